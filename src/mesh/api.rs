//! Floor 6: the figures of this process and its peers as JSON: `/api/v1/stat`, `/api/v1/edges`, `/api/v1/slo`.

use crate::admin::asked::Asked;
use crate::admin::fleet::{self, Fleet, Lookup, Question, Said};
use crate::admin::guard::Access;
use crate::admin::server::{self, Admin, AdminBody, Turn};
use crate::admin::told::{self, Told};
use crate::mesh::directory::Directory;
use crate::mesh::live::Live;
use crate::mesh::services::Services;
use crate::metrics::edges::Edges;
use crate::metrics::past::WINDOW_MAX;
use crate::metrics::report::{Kind, Process, Report, Row};
use crate::metrics::slo::Objectives;
use crate::profile::duration;
use crate::profile::name::ServiceName;
use futures::future::BoxFuture;
use http::{Method, Response, StatusCode};
use serde::Serialize;
use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How many questions are passed on to peers at once: a page asks four, and it may be open twice.
const PASSED_ON_MAX: usize = 8;

/// How long a question may wait for others to be passed on: with the answer itself less than a page waits (8 s).
const TURN_MAX: Duration = Duration::from_secs(2);

/// What the pages of figures are made of.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) live: Arc<Live>,
    pub(crate) turn: Turn,
    fleet: Fleet,
    passing_on: Arc<Semaphore>,
}

/// Finds a peer's processes among the replicas that the mesh knows of the service of that name, else in DNS.
pub(crate) fn lookup(services: Weak<Services>) -> Lookup {
    let dns = fleet::dns();
    Arc::new(move |host, port| {
        let known = services.upgrade().map(|services| replicas(&services.directory(), &host));
        match known.filter(|known| !known.is_empty()) {
            Some(ips) => {
                let found = ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
                Box::pin(std::future::ready(Ok(found)))
            }
            None => dns(host, port),
        }
    })
}

/// The addresses of the replicas of a service, whichever of its ports they are known by.
fn replicas(directory: &Directory, host: &str) -> BTreeSet<IpAddr> {
    let Ok(name) = host.parse::<ServiceName>() else { return BTreeSet::new() };
    let name = name.short(directory.own().1);
    let known = directory.known().filter(|(known, _)| known.host() == name.host());
    let endpoints = known.flat_map(|(_, known)| known.endpoints.iter().flat_map(|set| set.iter()));
    endpoints.map(|endpoint| endpoint.addr.ip()).collect()
}

/// An answer, or the refusal of the question.
pub(crate) type Answered<T> = Result<T, Response<AdminBody>>;

/// Adds the pages of figures.
pub(crate) fn pages(admin: Admin, figures: &Figures) -> Admin {
    admin
        .route(Method::GET, "/api/v1/stat", Access::Read, figures.page(Figures::stat))
        .route(Method::GET, "/api/v1/edges", Access::Read, figures.page(Figures::edges))
        .route(Method::GET, "/api/v1/slo", Access::Read, figures.page(Figures::slo))
}

impl Figures {
    /// Of this process and of those that `fleet` asks; they are made in the turn of `admin`.
    pub(crate) fn new(admin: &Admin, live: Arc<Live>, fleet: Fleet) -> Self {
        Self { live, fleet, passing_on: Arc::new(Semaphore::new(PASSED_ON_MAX)), turn: admin.turn() }
    }

    /// A handler that answers in JSON.
    fn page<T, F>(
        &self,
        answer: fn(Self, Asked) -> F,
    ) -> impl Fn(Asked) -> BoxFuture<'static, Response<AdminBody>> + Send + Sync + 'static
    where
        T: Serialize + Send + 'static,
        F: Future<Output = Answered<T>> + Send + 'static,
    {
        let this = self.clone();
        move |asked| {
            let answering = answer(this.clone(), asked);
            Box::pin(async move { json(answering.await) })
        }
    }

    async fn stat(self, asked: Asked) -> Answered<Report> {
        let (window, kinds) = (window(&asked).map_err(bad)?, kinds(&asked).map_err(bad)?);
        let series = asked.flag("series");
        let by_process = asked.value("by").is_some_and(|by| by == "process");
        let live = Arc::clone(&self.live);
        let own = self.turn.take(move || live.report(window, &kinds, series)).await?;
        let merge = |reports| Report::merge(reports, by_process);
        let mut whole = self.with_peers(own, "/api/v1/stat", &asked, merge).await?;
        if !asked.flag("histograms") {
            whole.rows.iter_mut().for_each(Row::strip);
        }
        Ok(whole)
    }

    async fn edges(self, asked: Asked) -> Answered<Edges> {
        let window = window(&asked).map_err(bad)?;
        let live = Arc::clone(&self.live);
        let own = self.turn.take(move || live.edges(window)).await?;
        let mut whole =
            self.with_peers(own, "/api/v1/edges", &asked, |reports| Ok(Edges::merge(reports))).await?;
        if !asked.flag("histograms") {
            whole.strip();
        }
        Ok(whole)
    }

    async fn slo(self, asked: Asked) -> Answered<Objectives> {
        let live = Arc::clone(&self.live);
        let own = self.turn.take(move || live.objectives()).await?;
        self.with_peers(own, "/api/v1/slo", &asked, |reports| Ok(Objectives::merge(reports))).await
    }

    /// Puts what the peers say to our own, unless the question is for this process alone (`local`), and leaves out all but one
    /// `process` if the question names one by its id. What a peer says that is no report is told as its error.
    pub(crate) async fn with_peers<T: Told>(
        &self,
        own: T,
        path: &str,
        asked: &Asked,
        merge: impl FnOnce(Vec<T>) -> Result<T, String>,
    ) -> Answered<T> {
        let mut reports = vec![own];
        if !asked.flag("local") {
            let question = Question::get(format!("{path}?local=1&histograms=1&{}", asked.query));
            reports.extend(self.ask(&question).await?.into_iter().map(told::read::<T>));
        }
        if let Some(id) = asked.value("process") {
            let is_it = |process: &Process| process.id.as_ref() == Some(&id);
            reports.retain_mut(|report| report.processes().iter().any(is_it));
        }
        merge(reports).map_err(|why| server::text(StatusCode::BAD_GATEWAY, &format!("{why}\n")))
    }

    /// What the peers say; nothing if there are none.
    pub(crate) async fn ask(&self, question: &Question) -> Answered<Vec<Said>> {
        if self.fleet.is_empty() {
            return Ok(Vec::new());
        }
        let Ok(_turn) = tokio::time::timeout(TURN_MAX, self.passing_on.acquire()).await else {
            let why = "too many questions are being passed on to other processes; come back later\n";
            return Err(server::text(StatusCode::SERVICE_UNAVAILABLE, why));
        };
        Ok(self.fleet.ask(question).await)
    }
}

/// An answer in JSON.
pub(crate) fn json<T: Serialize>(answer: Answered<T>) -> Response<AdminBody> {
    match answer.map(|answer| serde_json::to_value(&answer)) {
        Ok(Ok(value)) => server::json(StatusCode::OK, &value),
        Ok(Err(error)) => server::text(StatusCode::INTERNAL_SERVER_ERROR, &format!("no JSON: {error}\n")),
        Err(refusal) => refusal,
    }
}

fn window(asked: &Asked) -> Result<Duration, String> {
    let Some(text) = asked.value("window") else { return Ok(Duration::from_secs(60)) };
    let window =
        duration::go(&text).ok().filter(|window| (Duration::from_secs(1)..=WINDOW_MAX).contains(window));
    window.ok_or_else(|| format!("window: is no time from 1s to 1h ({text}); write 10s, 1m, 5m or 1h"))
}

fn kinds(asked: &Asked) -> Result<Vec<Kind>, String> {
    let Some(text) = asked.value("kind") else { return Ok(Vec::new()) };
    let kind = |word: &str| match word {
        "route" => Ok(Kind::Route),
        "backend" => Ok(Kind::Backend),
        "endpoint" => Ok(Kind::Endpoint),
        "client" => Ok(Kind::Client),
        _ => Err(format!("kind: is not known ({word}); write route, backend, endpoint or client")),
    };
    text.split(',').map(kind).collect()
}

fn bad(why: String) -> Response<AdminBody> {
    server::text(StatusCode::BAD_REQUEST, &format!("{why}\n"))
}
