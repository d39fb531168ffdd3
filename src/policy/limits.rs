//! Floor 3: a route's limits and faults, compiled, with their counters.

use crate::fault::decide::FaultPolicy;
use crate::limit::concurrency::{ConcurrencySettings, Limiter};
use crate::limit::rate::RateLimits;
use crate::metrics::limit::LimitCounts;
use crate::profile::settings::{Limits, RateLimit, RateScope};
use std::sync::Arc;

/// A limit and what is counted of it.
#[derive(Debug)]
pub struct Counted<T> {
    /// The limit.
    pub limit: Arc<T>,
    /// What is counted.
    pub counts: Arc<LimitCounts>,
}

impl<T> Clone for Counted<T> {
    fn clone(&self) -> Self {
        Self { limit: Arc::clone(&self.limit), counts: Arc::clone(&self.counts) }
    }
}

/// What limits the requests of a route: what its service says for all routes together, and what it says itself.
#[derive(Debug, Clone, Default)]
pub struct LimitPolicy {
    /// The rates of the service as a whole, asked first.
    pub rates: Option<Counted<RateLimits>>,
    /// The rates of the route alone.
    pub own_rates: Option<Counted<RateLimits>>,
    /// The places, asked after the rates.
    pub places: Option<Counted<Limiter>>,
}

/// What keeps the requests of a route back.
#[derive(Debug, Default)]
pub struct Guard {
    /// How much; empty: nothing is limited.
    pub limits: LimitPolicy,
    /// What is broken on purpose.
    pub faults: Option<FaultPolicy>,
}

/// The limits of a service, which all its routes share, and whose memory an update keeps.
#[derive(Debug, Clone, Default)]
pub struct SharedLimits {
    /// The rates of all requests.
    pub rates: Option<Counted<RateLimits>>,
    /// The places.
    pub places: Option<Counted<Limiter>>,
}

impl LimitPolicy {
    /// Limits of one's own, for a layer without routes.
    pub fn new(limits: &Limits) -> Self {
        SharedLimits::compile(limits, None, &"".into(), "", |_| true).of_route(None)
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.rates.is_none() && self.own_rates.is_none() && self.places.is_none()
    }
}

impl SharedLimits {
    /// Compiles what `limits` say for the service `dst`; what was equal `before` keeps its memory. `is_for_us` says which
    /// rates hold here, and `side` stands before the limits' names where they are counted.
    pub fn compile(
        limits: &Limits,
        before: Option<&Self>,
        dst: &Arc<str>,
        side: &str,
        is_for_us: impl Fn(&RateLimit) -> bool,
    ) -> Self {
        let Limits { requests_max, pending_max, adaptive, rates, .. } = limits;
        let settings = ConcurrencySettings {
            requests_max: *requests_max,
            pending_max: *pending_max,
            adaptive: *adaptive,
        };
        let kept = before.and_then(|before| before.places.as_ref());
        let kept = kept.filter(|places| *places.limit.settings() == settings);
        let made = || {
            let limit = Arc::new(Limiter::new(settings));
            let shown = Arc::clone(&limit);
            let places = Box::new(move || (shown.limit(), shown.in_flight()));
            let counts = Arc::new(LimitCounts::new(dst, format!("{side}requests"), Some(places)));
            Counted { limit, counts }
        };
        let places =
            (requests_max.is_some() || adaptive.is_some()).then(|| kept.cloned().unwrap_or_else(made));
        let rates = rates.iter().filter(|rate| is_for_us(rate)).cloned().collect();
        let before = before.and_then(|before| before.rates.as_ref());
        Self { rates: keep_rates(before, rates, dst, || format!("{side}rate")), places }
    }

    /// What of it, and of a route's own rates, limits a route.
    pub fn of_route(&self, own_rates: Option<Counted<RateLimits>>) -> LimitPolicy {
        LimitPolicy { rates: self.rates.clone(), own_rates, places: self.places.clone() }
    }
}

/// Limits of these rates, with the memory of those `before` if they are equal; `None` for no rates.
pub fn keep_rates(
    before: Option<&Counted<RateLimits>>,
    rates: Vec<RateLimit>,
    dst: &Arc<str>,
    name: impl FnOnce() -> String,
) -> Option<Counted<RateLimits>> {
    match before {
        _ if rates.is_empty() => None,
        Some(before) if before.limit.settings() == rates => Some(before.clone()),
        _ => Some(Counted {
            limit: Arc::new(RateLimits::new(&rates)),
            counts: Arc::new(LimitCounts::new(dst, name(), None)),
        }),
    }
}

/// Whether a client can hold to this rate for what it sends: it knows itself to be one client, and not which.
pub fn holds_outbound(rate: &RateLimit) -> bool {
    match rate.scope {
        RateScope::Total | RateScope::Key(_) => true,
        RateScope::Identity | RateScope::Override(_) => false,
    }
}
