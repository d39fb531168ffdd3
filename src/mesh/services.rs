//! Floor 6: finds the service that a request's authority names; no lock and no allocation once a name is known.

use crate::error::Error;
use crate::mesh::directory::{Directory, Service};
use crate::mesh::tasks::{self, ASIDE_MAX, Aside, Tasks};
use crate::mesh::watch::Watch;
use crate::profile::name::ServiceName;
use crate::route::head::without_userinfo;
use arc_swap::{ArcSwap, ArcSwapOption};
use http::uri::Scheme;
use http::{HeaderMap, Uri, header};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};

/// The most spellings of names that are remembered; each service may be spelt in several ways.
const SPELLINGS_MAX: usize = 4 * crate::mesh::directory::SERVICES_MAX;

/// Spellings are shared, since the table is copied for each new one.
type Spelt = ArcSwap<HashMap<Arc<str>, Arc<Service>>>;

/// The services by the spelling of their authority, and the directory behind them.
#[derive(Debug)]
pub struct Services {
    spelt: Spelt,
    /// The same for `https://`, where a port that is not said is another.
    spelt_https: Spelt,
    directory: Mutex<Directory>,
    /// What keeps the directory up to date. It ends with the last handle that needs it: of the mesh, or of a client.
    pub(crate) tasks: Mutex<Tasks>,
    /// Where copies of requests go; made when there is one.
    aside: ArcSwapOption<mpsc::Sender<Aside>>,
    /// Who observes calls.
    pub(crate) watch: Watch,
    /// Told when there are streams to be read.
    pub(crate) streams: Arc<Notify>,
}

impl Services {
    /// Services over `directory`.
    pub(crate) fn new(directory: Directory, watch: Watch) -> Self {
        Self {
            spelt: Spelt::default(),
            spelt_https: Spelt::default(),
            directory: Mutex::new(directory),
            tasks: Mutex::default(),
            aside: ArcSwapOption::empty(),
            watch,
            streams: Arc::new(Notify::new()),
        }
    }

    /// The directory, for updates and inspection. Never held over an `await`.
    pub fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` beside requests, in a task of the mesh. Without room for it, or outside of a runtime, it is dropped.
    pub(crate) fn run_aside(&self, work: Aside) {
        let open = self.aside.load_full().filter(|sender| !sender.is_closed());
        if let Some(sender) = open.or_else(|| self.begin_aside()) {
            // An error means that there is no room.
            let _ = sender.try_send(work);
        }
    }

    /// Starts the task of what is done aside, in the runtime that asks for it first.
    #[cold]
    fn begin_aside(&self) -> Option<Arc<mpsc::Sender<Aside>>> {
        let runtime = Handle::try_current().ok()?;
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been faster.
        if let Some(sender) = self.aside.load_full().filter(|sender| !sender.is_closed()) {
            return Some(sender);
        }
        let (sender, sent) = mpsc::channel(ASIDE_MAX);
        tasks.spawn(&runtime, tasks::aside(sent));
        let sender = Arc::new(sender);
        self.aside.store(Some(Arc::clone(&sender)));
        Some(sender)
    }

    /// The service that a request is for: by its URI's authority, else by its `Host` header.
    ///
    /// # Errors
    /// [`Error::BadRequest`] when it names none, or too many services were named.
    pub fn find(&self, uri: &Uri, headers: &HeaderMap) -> Result<Arc<Service>, Error> {
        let from_header = || headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = uri.authority().map(|authority| authority.as_str()).or_else(from_header);
        let Some(authority) = host else {
            let reason = "it names no service; write an absolute URI such as http://web.ns:8080/".into();
            return Err(Error::BadRequest { reason });
        };
        let https = uri.scheme() == Some(&Scheme::HTTPS);
        let spelt = if https { &self.spelt_https } else { &self.spelt };
        if let Some(service) = spelt.load().get(authority) {
            return Ok(Arc::clone(service));
        }
        self.remember(spelt, authority, if https { 443 } else { 80 })
    }

    /// The service of this name; made when it is first asked for.
    ///
    /// # Errors
    /// [`Error::BadRequest`] when it is no name, [`Error::Config`] when its profile is unusable.
    pub fn named(&self, name: &str) -> Result<Arc<Service>, Error> {
        self.on_port(name, 80)
    }

    /// The same, on `port` if the name has none.
    fn on_port(&self, name: &str, port: u16) -> Result<Arc<Service>, Error> {
        let name: ServiceName = without_userinfo(name)
            .parse()
            .map_err(|bad| Error::BadRequest { reason: format!("{bad}").into() })?;
        let mut directory = self.directory();
        let service =
            directory.service(&name.or_port(port)).map_err(|invalid| Error::Config(Box::new(invalid)))?;
        drop(directory);
        self.streams.notify_one();
        Ok(service)
    }

    #[cold]
    fn remember(&self, spelt: &Spelt, authority: &str, port: u16) -> Result<Arc<Service>, Error> {
        let service = self.on_port(authority, port)?;
        let authority: Arc<str> = authority.into();
        spelt.rcu(|spelt| {
            let mut spelt = HashMap::clone(spelt);
            if spelt.len() < SPELLINGS_MAX {
                spelt.insert(Arc::clone(&authority), Arc::clone(&service));
            }
            spelt
        });
        Ok(service)
    }
}
