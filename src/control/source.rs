//! Floor 5: the one trait of everything that tells profiles or endpoints: a stream of whole snapshots.

use crate::metrics::registry::Registry;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::name::ServiceName;
use crate::profile::scope;
use crate::profile::scope::Scope;
use crate::profile::service::ServiceProfile;
use futures::stream::BoxStream;
use metrics::{Counter, Label};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts inputs that sources refused, keeping the last good instead. Label `source`: `files`, `dns`, …
pub const REJECTED: &str = "enmesh_source_rejected_total";

/// What a source says of one service now: the whole of it, never a difference.
///
/// `T` is an [`EndpointSet`](crate::discover::endpoint::EndpointSet) or an
/// `Arc<`[`ServiceProfile`]`>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot<T> {
    /// The last good value. `None`: the source does not know the service, or no longer, and another may be asked.
    /// An empty set is a value: there is such a service, and nobody there.
    pub value: Option<T>,
    /// What is wrong at present; the value is then older than the source would like. Empty when all is well.
    pub faults: Arc<[SourceFault]>,
}

impl<T> Snapshot<T> {
    /// A value that nothing is wrong with.
    pub fn good(value: Option<T>) -> Self {
        Self { value, faults: Arc::default() }
    }
}

/// One thing that is wrong at a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFault {
    /// Where: a file's name in the watched directory, or the question asked of DNS.
    pub origin: Arc<str>,
    /// What.
    pub fault: Fault,
}

impl SourceFault {
    /// A fault at `origin`.
    pub fn new(origin: impl Into<Arc<str>>, fault: Fault) -> Self {
        Self { origin: origin.into(), fault }
    }
}

impl fmt::Display for SourceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.fault)
    }
}

/// Snapshots as they come. Only the newest counts: a slow reader misses those between.
///
/// The first comes as soon as the source knows the service, or knows that it does not. The end of the stream means
/// that the last snapshot holds for good.
pub type Updates<T> = BoxStream<'static, Snapshot<T>>;

/// Where profiles or endpoints come from.
///
/// A source never fails: it keeps the last good value and tells its faults in the snapshot. It spawns nothing; it
/// works while its stream is polled, and needs no more memory than one snapshot for it. Watching a service again
/// asks afresh, whatever an earlier stream has learned.
pub trait Source<T>: Send + Sync + 'static {
    /// What it says of `service`, from now on.
    fn watch(&self, service: &ServiceName) -> Updates<T>;
}

impl<T, S: Source<T> + ?Sized> Source<T> for Arc<S> {
    fn watch(&self, service: &ServiceName) -> Updates<T> {
        self.as_ref().watch(service)
    }
}

/// The domain of a Kubernetes cluster unless its installer was told another: names below it have a short form.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// What `map`, whose names are [short](ServiceName::short), says of `service`: under its whole name, else under its
/// host for every port; a single label also with the namespace `home`, where its process lives.
pub fn find<'a, T>(
    map: &'a BTreeMap<ServiceName, T>,
    service: &ServiceName,
    domain: &str,
    home: Option<&str>,
) -> Option<&'a T> {
    let of = |name: &ServiceName| map.get(name).or_else(|| map.get(&name.without_port()));
    let short = service.short(domain);
    of(&short).or_else(|| of(&scope::at_home(&short, home)?))
}

/// Profiles by name.
pub type Profiles = BTreeMap<ServiceName, Arc<ServiceProfile>>;

/// The profiles by each of their names, in short, for callers in the namespace `home`: theirs before the service's own.
/// Of two for the same callers the first is used. Those that are not used at all come second, with the reason.
pub fn by_name<'p, P>(
    profiles: impl IntoIterator<Item = (&'p P, Arc<ServiceProfile>)>,
    home: Option<&str>,
    domain: &str,
) -> (Profiles, Vec<(&'p P, Fault)>) {
    let mut ranked: Vec<(Scope, &P, Arc<ServiceProfile>)> = Vec::new();
    ranked.extend(
        profiles.into_iter().map(|(from, profile)| (scope::scope(&profile, home, domain), from, profile)),
    );
    ranked.sort_by_key(|(scope, ..)| *scope);
    let mut found: BTreeMap<ServiceName, (Scope, Arc<ServiceProfile>)> = BTreeMap::new();
    let mut unused = Vec::new();
    for (scope, from, profile) in ranked {
        if scope == Scope::Others {
            let (of, here) = (profile.namespace.as_deref().unwrap_or_default(), home.unwrap_or_default());
            let problem = format!("is for callers in namespace {of}, and this process lives in {here}");
            let remedy = "nothing is wrong with it; keep it elsewhere to silence this";
            unused.push((from, Fault::new(Severity::Ignored, "metadata.namespace", problem, remedy)));
            continue;
        }
        for name in &profile.names {
            match found.entry(name.short(domain)) {
                Entry::Vacant(place) => drop(place.insert((scope, Arc::clone(&profile)))),
                Entry::Occupied(place) if place.get().0 == scope => {
                    unused.push((from, said_twice(name)));
                }
                // The callers' own comes before the service's: that is no mistake.
                Entry::Occupied(_) => {}
            }
        }
    }
    (found.into_iter().map(|(name, (_, profile))| (name, profile)).collect(), unused)
}

/// Warns in the log of each route of `profile` that breaks its requests on purpose: one that was left in by mistake is
/// looked for there.
#[cfg(any(feature = "http", feature = "files"))]
pub(crate) fn warn_of_faults(profile: &ServiceProfile) {
    for route in profile.routes.iter().filter(|route| route.fault.is_some()) {
        let (service, fault) = (profile.name().map(ToString::to_string), &route.fault);
        tracing::warn!(?service, route = %route.name, ?fault, "requests of this route are broken on purpose");
    }
}

/// What is wrong with a document about a service of which an earlier one speaks already.
pub fn said_twice(service: &ServiceName) -> Fault {
    let problem = format!("says what an earlier document already says of {service}, and is not used");
    Fault::rejected("", problem, "keep one of the two")
}

/// How many inputs a source refused since it began.
#[derive(Debug, Clone)]
pub struct Rejections {
    total: Arc<AtomicU64>,
    counter: Counter,
}

impl Default for Rejections {
    /// Counts for [`total`](Self::total) alone.
    fn default() -> Self {
        Self { total: Arc::default(), counter: Counter::noop() }
    }
}

impl Rejections {
    /// Counts into [`REJECTED`] with the label `source` too.
    pub fn new(registry: &Registry, source: &'static str) -> Self {
        let counter = registry.counter(REJECTED, vec![Label::from_static_parts("source", source)]);
        Self { total: Arc::default(), counter }
    }

    /// One more.
    pub fn add(&self) {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.counter.increment(1);
    }

    /// All until now.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}
