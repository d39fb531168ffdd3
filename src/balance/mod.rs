//! Which replica gets a request, and what is remembered of each.

pub mod alias;
pub mod body;
mod contest;
pub mod cost;
pub mod count;
pub mod endpoint;
pub mod future;
pub mod hash;
pub mod inspect;
pub mod key;
pub mod layer;
mod local;
pub mod maglev;
pub mod pick;
pub mod report;
pub mod ring;
mod routes;
mod rules;
pub mod session;
pub mod set;
mod standing;
pub mod subset;
pub mod tell;
pub mod ticket;
mod told;
mod update;
