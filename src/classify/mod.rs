//! How did it end: one [`Outcome`](outcome::Outcome) for retry, breaker, balancer and metrics.

pub mod answer;
pub mod body;
pub mod classifier;
pub mod grpc;
pub mod outcome;
pub mod peek;
pub mod respond;
