//! Settings made ready for requests to read, and what travels with a request.

pub mod call;
pub mod compile;
pub mod defaults;
pub mod explain;
pub(crate) mod failed;
pub mod limits;
pub mod observe;
pub mod question;
pub mod route;
pub mod told;
mod turns;
pub mod unhonoured;
