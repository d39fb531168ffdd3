//! What happened: counted in plain atomics on the path, told as Prometheus families when somebody reads.
//!
//! A request adds to three [`tally::Tally`]s: of its route, of the backend and of the endpoint that its attempt went to. All
//! families are made from those at a scrape ([`emit`]), so their number costs a request nothing. Families, labels and
//! buckets are Linkerd's ([`families`], `docs/metrics.md`), so its dashboards work. Labels come from configuration only.

pub mod arrivals;
pub mod arrived;
pub mod edges;
pub mod emit;
pub mod exemplars;
pub mod families;
pub mod kept;
pub mod layer;
pub mod ledger;
pub mod limit;
pub mod names;
pub mod past;
#[cfg(feature = "prometheus")]
pub mod prometheus;
pub mod registry;
pub mod report;
pub mod route;
pub mod rules;
pub mod series;
pub mod set;
pub mod show;
pub mod slo;
pub mod stat;
pub mod tally;
pub mod text;
pub mod traced;
