//! Floor 4: a service's balancing as its settings have it, shared by all its endpoints.

use crate::balance::cost::{Estimator, Formula, OthersMean, Power};
use crate::balance::count::Count;
use crate::balance::hash::{HashRing, Hashed, Table};
use crate::balance::maglev::Maglev;
use crate::balance::pick::{CHOICES_MAX, Picker, Rule};
use crate::balance::routes::RouteWards;
use crate::balance::set::{Place, Rank, Set, Slot};
use crate::balance::ticket::Member;
use crate::breaker::detect::Chart;
use crate::breaker::ward::Ward;
use crate::discover::endpoint::Endpoint;
use crate::metrics::route::EndpointMetrics;
use crate::profile::settings::{Algorithm, BalancerSettings, BreakerSettings};
use crate::stdx::clock;
use crate::stdx::clock::{Duration, Instant};
use crate::stdx::moment::Moment;
use crate::stdx::rng::Rng;
use crate::stdx::sync::AtomicU64;
use std::sync::Arc;

/// What is assumed of an endpoint that nobody measured: 30 ms, as Linkerd has it.
const ASSUMED: Duration = Duration::from_millis(30);
/// How fast peak EWMA forgets: 10 s, as Finagle and Linkerd have it.
const PEAK_DECAY: Duration = Duration::from_secs(10);
/// How fast the crate's own rule forgets. In the simulations 60 s decides a little better and takes twice as long
/// to try an endpoint again that was slow; 10 s decides worse (docs/balancing.md).
const OWN_DECAY: Duration = Duration::from_secs(30);
/// How long it keeps what it learned: of endpoints in use nothing is forgotten.
const OWN_GRACE: Duration = Duration::from_secs(1);
/// Where a nearer tier begins to overflow: 70 % (100 / Envoy's 1.4).
const OVERFLOW_PERCENT: u8 = 70;

/// What holds for all endpoints of a service, of one version of its settings.
#[derive(Debug)]
pub(crate) struct Rules {
    /// The balancer's number in this process.
    pub(crate) number: u32,
    pub(crate) epoch: Instant,
    pub(crate) rng: Rng,
    pub(crate) settings: BalancerSettings,
    pub(crate) formula: Formula,
    /// Where this client stands in the order of clients.
    pub(crate) subset_seed: u64,
    /// Whose turn it is, where there are turns.
    turn: Arc<AtomicU64>,
    pub(crate) breaker: Breaker,
    /// Others' requests in the mean, where reports count.
    pub(crate) others: Option<Arc<OthersMean>>,
    /// Who counts attempts, if anybody does.
    count: Option<Count>,
}

/// Who is left alone.
#[derive(Debug, Clone)]
pub(crate) enum Breaker {
    /// Nobody ever.
    None,
    /// Endpoints, for all requests.
    Whole(Arc<Ward<Arc<Member>>>),
    /// Endpoints, for each route apart.
    Routes(Arc<RouteWards>),
}

impl Breaker {
    fn new(settings: Option<&BreakerSettings>, min_ready: u32, now: Moment) -> Self {
        match settings {
            None => Self::None,
            Some(settings) if settings.per_route => {
                Self::Routes(Arc::new(RouteWards::new(settings.clone(), min_ready)))
            }
            Some(settings) => Self::Whole(Arc::new(Ward::new(settings.clone(), min_ready, now))),
        }
    }

    fn settings(&self) -> Option<&BreakerSettings> {
        match self {
            Self::None => None,
            Self::Whole(ward) => Some(ward.settings()),
            Self::Routes(routes) => Some(routes.settings()),
        }
    }

    /// Whether both have one memory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Whole(a), Self::Whole(b)) => Arc::ptr_eq(a, b),
            (Self::Routes(a), Self::Routes(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The service has so many endpoints now.
    pub(crate) fn resize(&self, total: u32) {
        match self {
            Self::None => {}
            Self::Whole(ward) => ward.resize(total),
            Self::Routes(routes) => routes.resize(total),
        }
    }

    /// An endpoint left, or gets nothing new.
    pub(crate) fn discharge(&self, id: u32) {
        match self {
            Self::None => {}
            Self::Whole(ward) => ward.discharge(id),
            Self::Routes(routes) => routes.discharge(id),
        }
    }

    /// Opens all for good.
    pub(crate) fn close(&self) {
        match self {
            Self::None => {}
            Self::Whole(ward) => ward.close(),
            Self::Routes(routes) => routes.close(),
        }
    }

    /// A new endpoint's memory.
    pub(crate) fn chart(&self) -> Arc<Chart> {
        match self {
            Self::Whole(ward) => Arc::new(ward.chart()),
            Self::None | Self::Routes(_) => Arc::default(),
        }
    }
}

impl Rules {
    pub(crate) fn new(
        (number, epoch, rng): (u32, Instant, Rng),
        settings: &BalancerSettings,
        breaker: Option<&BreakerSettings>,
    ) -> Self {
        let now = Moment::since(epoch, clock::now());
        Self {
            number,
            epoch,
            turn: Arc::new(AtomicU64::new(rng.next_u64() >> 1)),
            subset_seed: rng.next_u64(),
            rng,
            settings: settings.clone(),
            formula: formula(settings),
            others: settings.reports.then(Arc::default),
            breaker: Breaker::new(breaker, settings.min_ready.unwrap_or(1), now),
            count: None,
        }
    }

    /// The same rules and memory, with attempts counted.
    pub(crate) fn counted(&self, count: Count) -> Self {
        let mut new = self.renew(&self.settings, self.breaker.settings());
        new.count = Some(count);
        new
    }

    /// What is counted of an endpoint.
    pub(crate) fn metrics(&self, endpoint: &Endpoint) -> Option<Arc<EndpointMetrics>> {
        self.count.as_ref().map(|count| count.of(endpoint))
    }

    /// Other settings; the breaker's memory stays if its settings are the same.
    pub(crate) fn renew(&self, settings: &BalancerSettings, breaker: Option<&BreakerSettings>) -> Self {
        let mut new = Self::new((self.number, self.epoch, self.rng.clone()), settings, breaker);
        new.turn = Arc::clone(&self.turn);
        new.subset_seed = self.subset_seed;
        new.count.clone_from(&self.count);
        if self.settings.min_ready == settings.min_ready && self.breaker.settings() == breaker {
            new.breaker = self.breaker.clone();
        }
        new
    }

    pub(crate) fn now(&self) -> Moment {
        Moment::since(self.epoch, clock::now())
    }

    /// The latency assumed of an endpoint that nobody measured, in seconds.
    pub(crate) fn assumed(&self) -> f32 {
        self.settings.default_rtt.unwrap_or(ASSUMED).as_secs_f32()
    }

    /// The tier that an endpoint belongs to.
    pub(crate) fn rank(&self, endpoint: &Endpoint) -> Rank {
        let far =
            self.settings.locality.as_ref().is_some_and(|here| endpoint.zone.as_ref() != Some(&here.zone));
        Rank { priority: endpoint.priority, far }
    }

    /// Whether so few endpoints are open that all are used.
    #[inline]
    pub(crate) fn panics(&self, usable: u32, shut: u32) -> bool {
        let percent = self.settings.panic_percent.unwrap_or(0);
        shut > 0 && u64::from(usable.saturating_sub(shut)) * 100 < u64::from(percent) * u64::from(usable)
    }

    /// How to choose from `set`. Rules that hash build their tables anew.
    pub(crate) fn picker<T>(&self, set: &Set<T>) -> Picker {
        let rule = match self.settings.algorithm {
            None | Some(Algorithm::RecentlyFreed) => Rule::Freed,
            Some(Algorithm::PeakEwma) => Rule::Choices(2),
            Some(Algorithm::LeastRequest { choices }) => Rule::Choices(choices.clamp(2, CHOICES_MAX)),
            Some(Algorithm::RoundRobin) => Rule::Turn(Arc::clone(&self.turn)),
            Some(Algorithm::Random) => Rule::Random,
            Some(Algorithm::RingHash { entries_min }) => {
                let ring = |endpoints: &[Hashed]| Table::Ring(HashRing::new(endpoints, entries_min));
                Rule::Hash(tables(set, ring))
            }
            Some(Algorithm::Maglev { table }) => {
                let maglev = |endpoints: &[Hashed]| Table::Maglev(Maglev::new(endpoints, table));
                Rule::Hash(tables(set, maglev))
            }
        };
        let percent =
            self.settings.locality.as_ref().map_or(OVERFLOW_PERCENT, |here| here.overflow_below_percent);
        Picker::new(rule, self.formula)
            .with_slow_start(self.settings.slow_start.filter(|window| !window.is_zero()))
            .with_overflow_below(f32::from(percent) / 100.0)
            .with_others(self.others.clone())
    }
}

fn tables<T>(set: &Set<T>, table: impl Fn(&[Hashed]) -> Table) -> Arc<[Table]> {
    let hashed = |(place, slot): (Place, &Slot<T>)| {
        (slot.weight > 0).then(|| Hashed { place, key: slot.cell.key(), weight: slot.weight })
    };
    set.tiers().map(|tier| table(&tier.places().filter_map(hashed).collect::<Vec<_>>())).collect()
}

fn formula(settings: &BalancerSettings) -> Formula {
    let peak = |power| {
        let decay = settings.decay.unwrap_or(PEAK_DECAY);
        Formula::new(Estimator::Peak, power, decay, Duration::ZERO)
    };
    match settings.algorithm {
        None | Some(Algorithm::RecentlyFreed) => {
            let decay = settings.decay.unwrap_or(OWN_DECAY);
            Formula::new(Estimator::Average, Power::ThreeHalves, decay, OWN_GRACE)
        }
        Some(Algorithm::LeastRequest { .. }) => peak(Power::None),
        Some(
            Algorithm::PeakEwma
            | Algorithm::RoundRobin
            | Algorithm::Random
            | Algorithm::RingHash { .. }
            | Algorithm::Maglev { .. },
        ) => peak(Power::One),
    }
}
