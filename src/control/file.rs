//! Floor 5: profiles and endpoints from a watched directory.

use crate::control::documents;
use crate::control::documents::Parsed;
use crate::control::scan::Directory;
use crate::control::scan::SETTLE;
use crate::control::scan::Scanner;
use crate::control::scan::Settings;
use crate::control::screen::Screen;
use crate::control::source::CLUSTER_DOMAIN;
use crate::control::source::Rejections;
use crate::control::source::Snapshot;
use crate::control::source::Source;
use crate::control::source::SourceFault;
use crate::control::source::Updates;
use crate::control::source::find;
use crate::control::source::warn_of_faults;
use crate::discover::endpoint::EndpointSet;
use crate::metrics::registry::Registry;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Invalid;
use crate::profile::name::ServiceName;
use crate::profile::service::ServiceProfile;
use crate::stdx::clock;
use crate::stdx::clock::{Duration, Instant};
use futures::Stream;
use futures::StreamExt;
use futures::stream;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// How often the directory is looked at: every 500 ms, so that an edit shows within a second.
pub const INTERVAL: Duration = Duration::from_millis(500);
/// How long a look may take before it is told as a fault: 5 s. The look goes on; there is never a second one
/// beside it, so that a dead network file system costs one thread.
pub const LOOK_MAX: Duration = Duration::from_secs(5);
/// How often the first look is repeated while files are still being written: 10 times, a second in all.
const FIRST_LOOKS_MAX: usize = 10;

/// A directory of documents that is looked at again and again while somebody watches.
///
/// * It looks instead of asking the kernel for events: those are lost on overlay and network file systems and at
///   the link swaps of Kubernetes volumes.
/// * A file is read when it has been left alone for [`SETTLE`], so half a document is never taken for one.
/// * A file that cannot be read or understood keeps what it last said. A file that is gone from a directory that
///   can be read is a deletion; a directory that is gone is not.
/// * A Kubernetes volume (`..data`) is read through one resolved link: never two generations at once.
/// * Of two documents about one service the one in the file whose name sorts first is used.
///
/// Clones share their looks. Limits: see [`disk`](crate::control::disk).
#[derive(Clone)]
pub struct Files {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    interval: Duration,
    rejections: Rejections,
    looking: Mutex<Looking>,
}

type Look = JoinHandle<(Scanner, Arc<Directory>, bool)>;

/// The scanner is here between looks, and in the blocking thread during one.
struct Looking {
    scanner: Option<Scanner>,
    running: Option<(Instant, Look)>,
    seen: Arc<Directory>,
    due: Option<Instant>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("path", &self.shared.settings.path).finish_non_exhaustive()
    }
}

impl Files {
    /// The ServiceProfiles and Endpoints in the directory at `path`. Nothing is looked at before somebody watches.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::read_by(path, documents::parse)
    }

    /// The directory at `path`, whose files `parse` reads: it gets a file's name and text.
    pub fn read_by(
        path: impl Into<PathBuf>,
        parse: impl Fn(&str, &str) -> Result<Parsed, Invalid> + Send + Sync + 'static,
    ) -> Self {
        let settings = Settings {
            path: path.into(),
            parse: Arc::new(parse),
            screen: Screen::default(),
            cluster_domain: CLUSTER_DOMAIN.into(),
            home: None,
        };
        Self::with(settings, INTERVAL, Rejections::default())
    }

    fn with(settings: Settings, interval: Duration, rejections: Rejections) -> Self {
        let looking = Looking { scanner: None, running: None, seen: Arc::default(), due: None };
        Self { shared: Arc::new(Shared { settings, interval, rejections, looking: Mutex::new(looking) }) }
    }

    fn changed(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.shared.settings.clone();
        change(&mut settings);
        Self::with(settings, self.shared.interval, self.shared.rejections.clone())
    }

    /// The same directory, looked at every `interval`; 10 ms to 1 h. Default [`INTERVAL`].
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        let interval = interval.clamp(Duration::from_millis(10), Duration::from_secs(3600));
        Self::with(self.shared.settings.clone(), interval, self.shared.rejections.clone())
    }

    /// The same directory, whose endpoints must pass `screen`.
    #[must_use]
    pub fn screened(self, screen: Screen) -> Self {
        self.changed(|settings| settings.screen = screen)
    }

    /// The same directory in a cluster with this domain. Default [`CLUSTER_DOMAIN`].
    #[must_use]
    pub fn cluster_domain(self, domain: impl Into<Arc<str>>) -> Self {
        self.changed(|settings| settings.cluster_domain = domain.into())
    }

    /// The same directory for a process in the namespace `home`: profiles for callers there come before the services'
    /// own, those for callers elsewhere are not used, and `web` is `web.home` where nobody knows it otherwise.
    #[must_use]
    pub fn home(self, home: Option<Arc<str>>) -> Self {
        self.changed(|settings| settings.home = home)
    }

    /// The same directory, counting refused inputs with a handle of `registry`.
    #[must_use]
    pub fn counted(self, registry: &Registry) -> Self {
        Self::with(self.shared.settings.clone(), self.shared.interval, Rejections::new(registry, "files"))
    }

    /// How many inputs were refused until now: each new text of a file that is no document, each time a file or the
    /// directory becomes unreadable.
    pub fn rejected(&self) -> u64 {
        self.shared.rejections.total()
    }

    /// All that the directory says, now and whenever it changes.
    pub fn directory(&self) -> impl Stream<Item = Arc<Directory>> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        stream::unfold((shared, None), |(shared, mut last): (_, Option<Arc<Directory>>)| async move {
            loop {
                let (seen, due) = shared.look().await;
                if last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &seen)) {
                    last = Some(Arc::clone(&seen));
                    return Some((seen, (shared, last)));
                }
                tokio::time::sleep_until(due.into()).await;
            }
        })
    }

    fn project<T>(
        &self,
        service: &ServiceName,
        map: impl Fn(&Directory) -> &BTreeMap<ServiceName, T> + Send + 'static,
    ) -> Updates<T>
    where
        T: PartialEq + Clone + Send + Sync + 'static,
    {
        let settings = &self.shared.settings;
        let (service, domain, home) =
            (service.clone(), Arc::clone(&settings.cluster_domain), settings.home.clone());
        let mut told: Option<Snapshot<T>> = None;
        self.directory()
            .filter_map(move |directory| {
                let value = find(map(&directory), &service, &domain, home.as_deref()).cloned();
                let snapshot = Snapshot { value, faults: Arc::clone(&directory.faults) };
                let news = told.as_ref() != Some(&snapshot);
                told = Some(snapshot.clone());
                std::future::ready(news.then_some(snapshot))
            })
            .boxed()
    }
}

impl Source<Arc<ServiceProfile>> for Files {
    fn watch(&self, service: &ServiceName) -> Updates<Arc<ServiceProfile>> {
        self.project(service, |directory| &directory.profiles)
    }
}

impl Source<EndpointSet> for Files {
    fn watch(&self, service: &ServiceName) -> Updates<EndpointSet> {
        self.project(service, |directory| &directory.endpoints)
    }
}

impl Shared {
    /// What is there, no older than the interval, and when it is worth asking again.
    async fn look(&self) -> (Arc<Directory>, Instant) {
        let mut looking = self.looking.lock().await;
        let now = clock::now();
        if let Some(due) = looking.due.filter(|due| now < *due) {
            return (Arc::clone(&looking.seen), due);
        }
        let mut again = self.look_once(&mut looking).await;
        if looking.due.is_none() {
            // Whoever watches first is told of a directory that was written just before.
            for _ in 0..FIRST_LOOKS_MAX {
                if !again {
                    break;
                }
                tokio::time::sleep(SETTLE).await;
                again = self.look_once(&mut looking).await;
            }
        }
        let wait = if again { SETTLE.min(self.interval) } else { self.interval };
        let due = clock::now() + wait;
        looking.due = Some(due);
        (Arc::clone(&looking.seen), due)
    }

    /// Begins a look, or waits on for one that takes long. Answers whether something waits to settle.
    async fn look_once(&self, looking: &mut Looking) -> bool {
        let now = clock::now();
        let scanner = looking.scanner.take();
        let (since, running) = looking.running.get_or_insert_with(|| (now, self.start(scanner, now)));
        let left = (*since + LOOK_MAX).saturating_duration_since(now);
        match tokio::time::timeout(left, running).await {
            Ok(Ok((scanner, seen, again))) => {
                self.warn_of_faults(&looking.seen, &seen);
                (looking.scanner, looking.running, looking.seen) = (Some(scanner), None, seen);
                return again;
            }
            Ok(Err(lost)) => {
                looking.running = None;
                self.complain(looking, format!("could not be looked at: {lost}"));
            }
            Err(_) => self.complain(looking, format!("takes longer than {LOOK_MAX:?} to look at")),
        }
        false
    }

    /// Warns of requests that are broken on purpose as soon as a file says so, whether or not anybody calls the service.
    fn warn_of_faults(&self, before: &Directory, now: &Directory) {
        let domain = &self.settings.cluster_domain;
        for (name, profile) in &now.profiles {
            let is_faulty = profile.routes.iter().any(|route| route.fault.is_some());
            let is_main = profile.name().is_some_and(|own| own.short(domain) == *name);
            if is_faulty && is_main && before.profiles.get(name) != Some(profile) {
                warn_of_faults(profile);
            }
        }
    }

    fn start(&self, scanner: Option<Scanner>, now: Instant) -> JoinHandle<(Scanner, Arc<Directory>, bool)> {
        let settings = self.settings.clone();
        let rejections = self.rejections.clone();
        tokio::task::spawn_blocking(move || {
            let mut scanner = scanner.unwrap_or_else(|| Scanner::new(settings, rejections));
            let (seen, again) = scanner.look(now, clock::wall());
            (scanner, seen, again)
        })
    }

    /// Keeps what was seen and adds why nothing newer is.
    fn complain(&self, looking: &mut Looking, problem: String) {
        let origin: Arc<str> = self.settings.path.to_string_lossy().into();
        let remedy = "look whether its file system answers";
        let fault = SourceFault::new(origin, Fault::rejected("", problem, remedy));
        if !looking.seen.faults.contains(&fault) {
            self.rejections.add();
            let mut seen = Directory::clone(&looking.seen);
            seen.faults = seen.faults.iter().cloned().chain([fault]).collect();
            looking.seen = Arc::new(seen);
        }
    }
}
