//! Floor 5: endpoints from DNS: A and AAAA, or SRV for names that begin with an underscore.

use crate::control::answers::Answers;
use crate::control::answers::Reply;
use crate::control::literal::Literal;
use crate::control::screen::Screen;
use crate::control::source::Rejections;
use crate::control::source::Snapshot;
use crate::control::source::Source;
use crate::control::source::SourceFault;
use crate::control::source::Updates;
use crate::discover::endpoint::Endpoint;
use crate::discover::endpoint::EndpointSet;
use crate::metrics::registry::Registry;
use crate::profile::invalid::Fault;
use crate::profile::name::ServiceName;
use crate::stdx::clock;
use crate::stdx::clock::{Duration, Instant};
use crate::stdx::rng::Rng;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// How long one round of questions may take: 10 s. What has no answer by then has failed.
pub const ROUND_MAX: Duration = Duration::from_secs(10);
/// The most questions of one service that are under way at once: 32.
pub const QUESTIONS_MAX: usize = 32;
/// The port of a service whose name says none: 80, as in `http`.
pub const PORT: u16 = 80;

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

/// An SRV record (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Srv {
    /// The lowest is used first.
    pub priority: u16,
    /// The host that serves, complete if it ends with a dot; a lone `.` says that nobody does.
    pub target: Arc<str>,
    /// The port there.
    pub port: u16,
    /// Its share among those of the same priority.
    pub weight: u16,
}

/// Who answers questions: a resolver that keeps no cache, for [`Dns`] keeps the time.
pub trait Resolve: Send + Sync + 'static {
    /// Asks for the addresses of `host`.
    fn addresses(&self, host: Arc<str>, family: Family) -> BoxFuture<'static, Reply<IpAddr>>;
    /// Asks for the SRV records of `name`.
    fn services(&self, name: Arc<str>) -> BoxFuture<'static, Reply<Srv>>;
}

/// Endpoints by DNS.
///
/// `emoji-svc.emojivoto:8080` is asked for addresses, and each is an endpoint at that port (80 if the name says
/// none); `_grpc._tcp.emoji-svc.emojivoto` is asked for SRV records, whose ports, priorities and weights are used.
/// An IP address stands for itself. When and what is believed: see [`answers`](crate::control::answers).
#[derive(Clone)]
pub struct Dns {
    resolver: Arc<dyn Resolve>,
    screen: Screen,
    rng: Rng,
    rejections: Rejections,
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns").field("screen", &self.screen).finish_non_exhaustive()
    }
}

impl Dns {
    /// Asks `resolver`.
    pub fn new(resolver: impl Resolve) -> Self {
        let (screen, rng, rejections) = (Screen::default(), Rng::thread(), Rejections::default());
        Self { resolver: Arc::new(resolver), screen, rng, rejections }
    }

    /// Uses only addresses that pass `screen`.
    #[must_use]
    pub fn screened(self, screen: Screen) -> Self {
        Self { screen, ..self }
    }

    /// Draws the chance in its waits from `rng`.
    #[must_use]
    pub fn chanced(self, rng: Rng) -> Self {
        Self { rng, ..self }
    }

    /// Counts failed questions and refused addresses with a handle of `registry`.
    #[must_use]
    pub fn counted(self, registry: &Registry) -> Self {
        Self { rejections: Rejections::new(registry, "dns"), ..self }
    }

    /// How many questions failed and addresses were refused until now.
    pub fn rejected(&self) -> u64 {
        self.rejections.total()
    }
}

impl Source<EndpointSet> for Dns {
    fn watch(&self, service: &ServiceName) -> Updates<EndpointSet> {
        if service.host().parse::<IpAddr>().is_ok() {
            return Literal.watch(service);
        }
        let watch = Watch::new(self.clone(), service);
        stream::unfold((watch, None), |(mut watch, told)| async move {
            loop {
                watch.ask_what_is_due().await;
                let snapshot = watch.snapshot();
                if told.as_ref() != Some(&snapshot) {
                    return Some((snapshot.clone(), (watch, Some(snapshot))));
                }
                tokio::time::sleep_until(watch.due().into()).await;
            }
        })
        .boxed()
    }
}

/// What is known of one service.
struct Watch {
    dns: Dns,
    /// The SRV name, and what is known of it.
    services: Option<(Arc<str>, Answers<Srv>)>,
    /// What to connect to at which host: one entry unless there is an SRV name.
    targets: Vec<Srv>,
    hosts: BTreeMap<(Arc<str>, Family), Answers<IpAddr>>,
    /// How many addresses were refused last.
    refused: usize,
}

impl Watch {
    fn new(dns: Dns, service: &ServiceName) -> Self {
        let host: Arc<str> = service.host().into();
        let mut watch = Self { dns, services: None, targets: Vec::new(), hosts: BTreeMap::new(), refused: 0 };
        if host.starts_with('_') {
            watch.services = Some((host, Answers::default()));
        } else {
            let port = service.port().unwrap_or(PORT);
            watch.targets = vec![Srv { priority: 0, target: host, port, weight: 1 }];
            watch.track_hosts();
        }
        watch
    }

    /// Keeps what is known of hosts that are still named, and begins with those that are new.
    fn track_hosts(&mut self) {
        let mut before = std::mem::take(&mut self.hosts);
        for target in &self.targets {
            for family in [Family::V4, Family::V6] {
                let key = (Arc::clone(&target.target), family);
                let answers = before.remove(&key).unwrap_or_default();
                self.hosts.entry(key).or_insert(answers);
            }
        }
    }

    fn due(&self) -> Instant {
        let now = clock::now();
        let hosts = self.hosts.values().map(|answers| answers.due(now));
        let services = self.services.iter().map(|(_, answers)| answers.due(now));
        hosts.chain(services).min().unwrap_or(now + ROUND_MAX)
    }

    async fn ask_what_is_due(&mut self) {
        let now = clock::now();
        let deadline = now + ROUND_MAX;
        if let Some((name, answers)) = self.services.as_mut().filter(|(_, answers)| answers.due(now) <= now) {
            let asked = self.dns.resolver.services(Arc::clone(name));
            let reply = tokio::time::timeout_at(deadline.into(), asked).await;
            let reply = reply.unwrap_or_else(|_| late());
            self.dns.note(&reply);
            answers.record(clock::now(), &self.dns.rng, reply);
            self.targets = answers.records().iter().filter(|srv| &*srv.target != ".").cloned().collect();
            self.track_hosts();
        }
        let due = self.hosts.iter().filter(|(_, answers)| answers.due(now) <= now);
        let questions: Vec<(Arc<str>, Family)> = due.map(|(key, _)| key.clone()).collect();
        let resolver = &self.dns.resolver;
        let replies: Vec<_> = stream::iter(questions)
            .map(|(host, family)| async move {
                let asked = resolver.addresses(Arc::clone(&host), family);
                let reply = tokio::time::timeout_at(deadline.into(), asked).await;
                ((host, family), reply.unwrap_or_else(|_| late()))
            })
            .buffer_unordered(QUESTIONS_MAX)
            .collect()
            .await;
        let now = clock::now();
        for (key, reply) in replies {
            self.dns.note(&reply);
            self.hosts.entry(key).or_default().record(now, &self.dns.rng, reply);
        }
    }

    fn snapshot(&mut self) -> Snapshot<EndpointSet> {
        let mut faults = Vec::new();
        let services = self.services.iter().map(|(name, answers)| (format!("SRV {name}"), answers.fault()));
        let hosts = self.hosts.iter().map(|((host, family), answers)| {
            let kind = if *family == Family::V4 { "A" } else { "AAAA" };
            (format!("{kind} {host}"), answers.fault())
        });
        for (origin, fault) in services.chain(hosts) {
            faults.extend(fault.map(|fault| SourceFault::new(origin, Fault::rejected("", fault, REMEDY))));
        }
        let (set, refused) = self.dns.screen.sift("", self.endpoints());
        (self.refused..refused.len()).for_each(|_| self.dns.rejections.add());
        self.refused = refused.len();
        faults.extend(refused.into_iter().map(|fault| SourceFault::new("answers", fault)));
        let known = self.services.as_ref().is_none_or(|(_, answers)| answers.is_known())
            && self.hosts.values().all(Answers::is_known);
        Snapshot { value: (known || !set.is_empty()).then_some(set), faults: faults.into() }
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let mut priorities: Vec<u16> = self.targets.iter().map(|srv| srv.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let mut endpoints = Vec::new();
        // Backwards, for of two with one address the later stays: the one with the better priority.
        for srv in self.targets.iter().rev() {
            let rank = priorities.binary_search(&srv.priority).unwrap_or(0);
            let peers = self.targets.iter().filter(|peer| peer.priority == srv.priority);
            let weighted = peers.map(|peer| u32::from(peer.weight)).sum::<u32>() > 0;
            let addresses: Vec<IpAddr> = [Family::V4, Family::V6]
                .into_iter()
                .filter_map(|family| self.hosts.get(&(Arc::clone(&srv.target), family)))
                .flat_map(|answers| answers.records().iter().copied())
                .collect();
            for ip in &addresses {
                let mut endpoint = Endpoint::new(SocketAddr::new(*ip, srv.port));
                endpoint.priority = u8::try_from(rank).unwrap_or(u8::MAX);
                if self.services.is_some() && weighted {
                    endpoint.weight_milli = weight(srv.weight, addresses.len());
                }
                endpoints.push(endpoint);
            }
        }
        endpoints
    }
}

const REMEDY: &str = "look at the name, at resolv.conf and at its name servers";

/// The weight of one of the addresses of a record, in thousandths. A weight of 0 among others is a very small
/// chance and not none (RFC 2782).
fn weight(weight: u16, addresses: usize) -> u32 {
    let share = u32::from(weight) * 1000 / u32::try_from(addresses).unwrap_or(u32::MAX).max(1);
    share.max(1)
}

fn late<R>() -> Reply<R> {
    Reply::Failed(format!("no answer within {ROUND_MAX:?}"))
}

impl Dns {
    fn note<R>(&self, reply: &Reply<R>) {
        if let Reply::Failed(_) = reply {
            self.rejections.add();
        }
    }
}
