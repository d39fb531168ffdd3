//! Floor 1: what the operator wants, as data: [`ServiceProfile`](service::ServiceProfile) and the words it is made of.
//!
//! One model serves every dialect. Parsers and importers write it, [`policy`](crate::policy) compiles it,
//! and nothing in this room decides, remembers or does I/O. `Option` means "not said": the defaults that
//! fill it come from [`DefaultsProfile`](service::DefaultsProfile), because meshes disagree about them.

pub mod decimal;
pub mod duration;
pub mod generate;
pub mod import;
pub mod invalid;
mod json;
pub mod matching;
pub mod name;
pub mod node;
pub mod object;
pub mod parse;
pub mod pattern;
pub mod quantity;
pub(crate) mod read;
pub mod reader;
pub mod route;
pub mod scope;
pub mod service;
pub mod settings;
pub mod write;
mod yaml;
