//! Floor 6: the figures of a running mesh, in windows, read without an exporter.

use crate::mesh::directory::{Directory, Known};
use crate::mesh::services::Services;
use crate::metrics::arrivals::Client;
use crate::metrics::edges::{self, Edges, Security, Told};
use crate::metrics::families;
use crate::metrics::ledger::{Collect, Sink};
use crate::metrics::names::Direction;
use crate::metrics::past::{Past, STEP, Total};
use crate::metrics::report::{Facts, Kind, Process, Report, RowKey, Scheme};
use crate::metrics::route::EndpointMetrics;
use crate::metrics::set::MetricsSet;
use crate::metrics::slo::{self, Aim, Budgets, Count, Objectives, Promise, Standing};
use crate::metrics::stat::Reading;
use crate::metrics::tally::Tally;
use crate::profile::name::ServiceName;
use crate::profile::service::ServiceProfile;
use crate::profile::settings::TlsMode;
use crate::stdx::clock::{self, Instant};
use metrics::Label;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Who this process proves to be, if it can.
pub(crate) type OwnIdentity = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// What the figures of a mesh are read from. Nothing here is on the path of a request.
pub(crate) struct Live {
    id: String,
    name: ServiceName,
    begun: Instant,
    metrics: Arc<MetricsSet>,
    services: Weak<Services>,
    /// `None`: this process has no identity and calls without TLS.
    identity: Option<OwnIdentity>,
    past: Mutex<Past>,
    budgets: Mutex<Sampled<Budgets>>,
}

/// What takes values less often than [`STEP`].
struct Sampled<T> {
    at: Instant,
    value: T,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Live {
    pub(crate) fn new(
        id: String,
        name: ServiceName,
        metrics: Arc<MetricsSet>,
        services: Weak<Services>,
        identity: Option<OwnIdentity>,
    ) -> Self {
        let begun = clock::now();
        let past = Mutex::new(Past::new(begun));
        let budgets = Mutex::new(Sampled { at: begun, value: Budgets::new(begun) });
        Self { id, name, begun, metrics, services, identity, past, budgets }
    }

    /// This process, as reports name it.
    pub(crate) fn process(&self) -> Process {
        Process {
            id: Some(self.id.clone()),
            name: self.name.to_string(),
            addr: String::new(),
            uptime_secs: Some(clock::now().saturating_duration_since(self.begun).as_secs_f64()),
            error: None,
        }
    }

    /// Takes the counts of now into the past.
    fn sample(&self) {
        let (now, totals) = (clock::now(), self.totals(|_| true));
        self.past().push(now, &totals);
        let mut budgets = self.budgets();
        if now.saturating_duration_since(budgets.at) + STEP / 2 >= slo::STEP {
            budgets.at = now;
            budgets.value.push(now, &counts(&self.promises(), &totals));
        }
    }

    /// How the objectives of profiles are kept.
    pub(crate) fn objectives(&self) -> Objectives {
        let objectives = self.standings().into_iter().map(|(_, standing)| standing).collect();
        Objectives { processes: vec![self.process()], objectives }
    }

    /// The same, each with what was counted since the process began.
    fn standings(&self) -> Vec<(Count, Standing)> {
        let (now, routes) = (clock::now(), self.totals(|kind| kind == Kind::Route));
        let counts = counts(&self.promises(), &routes);
        let standings = self.budgets().value.standing(now, &counts);
        counts.into_iter().map(|(_, count)| count).zip(standings).collect()
    }

    /// What the profiles in use promise: those of services that are called, and this process's own.
    fn promises(&self) -> Vec<Promise> {
        let Some(services) = self.services.upgrade() else { return Vec::new() };
        let directory = services.directory();
        let called = directory.known().filter_map(|(_, known)| Some(known.service()?.policy.load_full()));
        let mut promises: Vec<Promise> = called
            .flat_map(|policy| promised(Direction::Outbound, policy.service(), policy.profile()))
            .collect();
        let own = directory.inbound().load_full();
        promises.extend(promised(Direction::Inbound, own.service(), own.profile()));
        promises
    }

    fn budgets(&self) -> MutexGuard<'_, Sampled<Budgets>> {
        self.budgets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted in the last `window`.
    pub(crate) fn report(&self, window: Duration, kinds: &[Kind], series: bool) -> Report {
        let is_asked = |kind| kinds.is_empty() || kinds.contains(&kind);
        // A route's row tells the latencies of its backends' attempts too.
        let is_needed = |kind| is_asked(kind) || kind == Kind::Backend && is_asked(Kind::Route);
        let (now, totals) = (clock::now(), self.totals(is_needed));
        let past = self.past();
        let mut rows = past.window(now, window, &totals);
        rows.retain(|row| is_asked(row.key.kind));
        let by_key: BTreeMap<&RowKey, &Total> =
            totals.iter().filter(|_| series).map(|total| (&*total.key, total)).collect();
        for row in &mut rows {
            row.process = Some(self.name.to_string());
            row.series = by_key.get(&row.key).map(|total| past.series(now, total));
        }
        drop(past);
        let processes = vec![self.process()];
        Report { window_secs: window.as_secs_f64(), histogram: Scheme::default(), processes, rows }
    }

    /// Who talked to whom in the last `window`.
    pub(crate) fn edges(&self, window: Duration) -> Edges {
        let report = self.report(window, &[Kind::Route, Kind::Client], false);
        let identity = self.identity.as_ref().and_then(|identity| identity());
        let told = Told {
            name: &self.name.to_string(),
            identity: identity.as_deref(),
            security: self.security(&report),
        };
        let edges = edges::of(&told, &report.rows);
        Edges { window_secs: report.window_secs, processes: report.processes, edges }
    }

    /// How the services are called that have rows.
    fn security(&self, report: &Report) -> BTreeMap<String, Security> {
        let Some(services) = self.services.upgrade().filter(|_| self.identity.is_some()) else {
            return BTreeMap::new();
        };
        let directory = services.directory();
        let labels: BTreeSet<&String> = report.rows.iter().map(|row| &row.key.service).collect();
        labels.into_iter().filter_map(|label| Some((label.clone(), of_service(&directory, label)?))).collect()
    }

    /// What is counted up to now, of the kinds that are needed: each row is read with its whole histogram.
    fn totals(&self, is_needed: impl Fn(Kind) -> bool) -> Vec<Total> {
        let mut totals = Vec::new();
        for route in self.metrics.all() {
            if is_needed(Kind::Route) {
                let key = RowKey::route(route.direction(), route.dst(), route.route());
                totals.push(Total { key: Arc::new(key), facts: Facts::default(), reading: route.read() });
            }
            if !is_needed(Kind::Backend) {
                continue;
            }
            for backend in route.backends().all() {
                let key = RowKey::backend(route.dst(), route.route(), &backend.name);
                let facts = Facts { overflow: &*backend.name == OTHER, ..Facts::default() };
                totals.push(Total { key: Arc::new(key), facts, reading: reading(&backend.tally) });
            }
        }
        if is_needed(Kind::Endpoint) {
            totals.extend(self.metrics.endpoints().iter().map(|endpoint| of_endpoint(endpoint)));
        }
        if is_needed(Kind::Client) {
            totals.extend(self.callers());
        }
        totals
    }

    /// What callers of this process's own service did; of those that prove nothing only if there were any.
    fn callers(&self) -> Vec<Total> {
        let Some(services) = self.services.upgrade() else { return Vec::new() };
        let own = services.directory().inbound().load_full();
        let mut readings: BTreeMap<Client, Reading> = BTreeMap::new();
        for listener in self.metrics.all_arrivals() {
            for (client, heap) in listener.all() {
                let sum = readings.entry(client).or_default();
                *sum = sum.merge(&reading(&heap.tally));
            }
            let sum = readings.entry(Client::Other).or_default();
            *sum = sum.merge(&reading(listener.rest()));
        }
        let row = |(client, reading): (Client, Reading)| {
            let (name, tls, overflow) = match &client {
                Client::Known(identity) => (identity.as_str(), Some(true), false),
                Client::Unknown => ("", Some(false), false),
                Client::Other => (OTHER, None, true),
            };
            let key = Arc::new(RowKey::client(own.service(), name));
            Total { key, facts: Facts { tls, overflow, ..Facts::default() }, reading }
        };
        readings.into_iter().filter(|(_, reading)| reading.requests > 0).map(row).collect()
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collect for Live {
    fn collect(&self, sink: &mut Sink<'_>) {
        for (count, standing) in self.standings() {
            tell(count, &standing, sink);
        }
    }
}

/// Tells an objective. Its counters are of the whole life of the process, since those of a window fall again.
fn tell(count: Count, standing: &Standing, sink: &mut Sink<'_>) {
    let mut labels = vec![
        Label::from_static_parts("direction", standing.direction.as_str()),
        Label::new("dst", standing.service.clone()),
    ];
    if let Some(route) = &standing.route {
        labels.push(Label::new("rt_route", route.clone()));
    }
    let kind = match standing.kind {
        Aim::Availability => "availability",
        Aim::Latency => "latency",
    };
    labels.push(Label::from_static_parts("kind", kind));
    sink.gauge(&families::SLO_TARGET, &labels, standing.target);
    sink.counter(&families::SLO_CALLS, &labels, count.total);
    sink.counter(&families::SLO_BAD, &labels, count.bad);
    if let Some(left) = standing.budget_left {
        sink.gauge(&families::SLO_LEFT, &labels, left);
    }
    // A window of two pairs has one rate.
    let mut told = BTreeSet::new();
    for burn in &standing.burn {
        for (window, rate) in [(&burn.short, burn.short_rate), (&burn.long, burn.long_rate)] {
            if let Some(rate) = rate.filter(|_| told.insert(window)) {
                let labels = [&labels[..], &[Label::new("window", window.clone())]].concat();
                sink.gauge(&families::SLO_BURN, &labels, rate);
            }
        }
    }
}

/// What a profile promises of its routes and of its service.
fn promised(direction: Direction, service: &str, profile: &ServiceProfile) -> Vec<Promise> {
    let routes = profile.routes.iter().filter_map(|route| Some((Some(&*route.name), route.objective?)));
    let whole = profile.objective.map(|objective| (None, objective));
    let all = whole.into_iter().chain(routes);
    all.flat_map(|(route, objective)| Promise::of(direction, service, route, &objective).collect::<Vec<_>>())
        .collect()
}

/// What was counted of each promise: of its route, or of all routes of its service together.
fn counts(promises: &[Promise], totals: &[Total]) -> Vec<(Promise, Count)> {
    let routes = totals.iter().filter(|total| total.key.kind == Kind::Route);
    let routes: BTreeMap<(Direction, &str, &str), &Reading> = routes
        .map(|total| {
            let route = total.key.route.as_deref().unwrap_or_default();
            ((total.key.direction, &*total.key.service, route), &total.reading)
        })
        .collect();
    let count = |promise: &Promise| {
        let (direction, service) = (promise.direction, &*promise.service);
        match &promise.route {
            Some(route) => routes.get(&(direction, service, &**route)).map(|reading| promise.count(reading)),
            None => {
                let own = routes.iter().filter(|((way, of, _), _)| (*way, *of) == (direction, service));
                Some(own.fold(Count::default(), |sum, (_, reading)| sum.plus(promise.count(reading))))
            }
        }
    };
    promises.iter().map(|promise| (promise.clone(), count(promise).unwrap_or_default())).collect()
}

/// What the rows beyond a cap are called.
const OTHER: &str = "other";

/// The attempts of a backend or an endpoint.
fn reading(tally: &Tally) -> Reading {
    let told = tally.read();
    Reading {
        requests: told.begun,
        successes: told.successes(),
        failures: told.failures(),
        cancelled: told.cancelled(),
        causes: told.causes(),
        failed: told.failed(),
        latency: told.latency,
        ..Reading::default()
    }
}

/// The row of an endpoint: its labels say what it is.
fn of_endpoint(endpoint: &EndpointMetrics) -> Total {
    let label = |key: &str| {
        let label = endpoint.labels.iter().find(|label| label.key() == key);
        label.map(Label::value).filter(|value| !value.is_empty())
    };
    let address = label("target_addr").unwrap_or_default();
    let facts = Facts {
        identity: label("server_id").map(str::to_owned),
        tls: label("tls").map(|tls| tls == "true"),
        zone: label("dst_zone").map(str::to_owned),
        overflow: address == OTHER,
    };
    let key = RowKey::endpoint(label("authority").unwrap_or_default(), address);
    Total { key: Arc::new(key), facts, reading: reading(&endpoint.tally) }
}

/// Samples until nobody reads the figures any more.
pub(crate) async fn sampling(live: Weak<Live>) {
    let mut ticks = tokio::time::interval(STEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(live) = live.upgrade() else { return };
        // Off the threads that requests run on: ten thousand rows take milliseconds. A panic there is of one sample.
        let _ = tokio::task::spawn_blocking(move || live.sample()).await;
    }
}

fn of_service(directory: &Directory, label: &str) -> Option<Security> {
    let name: ServiceName = label.parse().ok()?;
    let name = name.short(directory.own().1);
    let (_, known) = directory.known().find(|(known, _)| **known == name)?;
    Some(security(known))
}

/// How replicas are called by a process that has an identity, as `mesh/secure.rs` decides it for each.
fn security(known: &Known) -> Security {
    let tls = known.profile.as_ref().map(|profile| &profile.tls);
    let listed = tls.is_some_and(|tls| !tls.identities.is_empty());
    match tls.map(|tls| tls.mode).unwrap_or_default() {
        TlsMode::Off => return Security { no_tls_reason: Some("disabled"), server_id: None },
        TlsMode::Auto | TlsMode::Mesh | TlsMode::Simple => {}
    }
    let endpoints = known.endpoints.iter().flat_map(|set| set.iter());
    let identities: BTreeSet<Option<&str>> = endpoints.map(|endpoint| endpoint.identity.as_deref()).collect();
    let all_named = !identities.is_empty() && !identities.contains(&None);
    let mut one = identities.iter().flatten();
    Security {
        no_tls_reason: (!all_named && !listed).then_some("not_provided_by_service_discovery"),
        server_id: one.next().filter(|_| identities.len() == 1).map(|id| (*id).to_owned()),
    }
}
