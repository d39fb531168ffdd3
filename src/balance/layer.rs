//! Floor 4: sends each request to one of a service's endpoints.

use crate::balance::body::Served;
use crate::balance::cost::{Estimator, Formula, Moment, Power};
use crate::balance::endpoint::Cell;
use crate::balance::inspect::{BalanceState, EndpointState};
use crate::balance::pick::pick;
use crate::balance::ticket::{Member, Rules, Ticket};
use crate::classify::classifier::Classifier;
use crate::classify::outcome::Outcome;
use crate::discover::endpoint::{Endpoint, EndpointSet};
use crate::error::{Error, Scope};
use crate::policy::call::{EndpointId, MeshRequest, Tried};
use crate::profile::settings::{Algorithm, BalancerSettings, BreakerSettings};
use crate::stdx::clock;
use crate::stdx::clock::{Duration, Instant};
use crate::stdx::rng::Rng;
use arc_swap::ArcSwap;
use http::Response;
use http_body::Body;
use pin_project::pin_project;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Sleep;
use tower_service::Service;

/// How long a request waits for the first endpoints, or for a picked one to become ready. 3 s, as Linkerd's
/// balancer queue has it (linkerd.md §5.4).
pub const FAIL_FAST: Duration = Duration::from_secs(3);

/// The number of the last endpoint that was met in this process.
static LAST_ID: AtomicU32 = AtomicU32::new(0);

/// Sends each request to one of a service's endpoints.
///
/// Clones share everything: a clone is one reference count. It is always ready; what there is to wait for is
/// waited for inside the call, so a clone that was ready and is dropped holds nothing. Endpoints come by
/// [`Balance::update`], settings by [`Balance::settings`]; neither is on the path of requests, and both keep
/// what is known of endpoints that stay.
pub struct Balance<S> {
    core: Arc<Core<S>>,
}

struct Core<S> {
    service: Arc<str>,
    fail_fast: Duration,
    rng: Rng,
    epoch: Instant,
    now: ArcSwap<Snapshot<S>>,
    writer: Mutex<()>,
    changed: Arc<Notify>,
}

struct Snapshot<S> {
    /// Whether discovery has answered.
    known: bool,
    rules: Arc<Rules>,
    assumed: f32,
    cells: Vec<Arc<Cell>>,
    slots: Vec<Slot<S>>,
}

#[derive(Clone)]
struct Slot<S> {
    member: Arc<Member>,
    service: S,
}

impl<S> Clone for Balance<S> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<S> fmt::Debug for Balance<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balance").field("service", &self.core.service).finish_non_exhaustive()
    }
}

impl<S> Balance<S> {
    /// A balancer for `service` without endpoints yet: requests wait for the first update, at most
    /// [`FAIL_FAST`]. Without `breaker` no endpoint is ever left alone.
    pub fn new(
        service: impl Into<Arc<str>>,
        settings: &BalancerSettings,
        breaker: Option<&BreakerSettings>,
        rng: Rng,
    ) -> Self {
        let epoch = clock::now();
        let snapshot = Snapshot {
            known: false,
            rules: rules(epoch, settings, breaker),
            assumed: assumed(settings),
            cells: Vec::new(),
            slots: Vec::new(),
        };
        Self {
            core: Arc::new(Core {
                service: service.into(),
                fail_fast: FAIL_FAST,
                rng,
                epoch,
                now: ArcSwap::from_pointee(snapshot),
                writer: Mutex::new(()),
                changed: Arc::new(Notify::new()),
            }),
        }
    }

    /// The service's name.
    pub fn service(&self) -> &Arc<str> {
        &self.core.service
    }

    /// Everything an operator may want to see. Costs what the fleet costs; not for the request path.
    pub fn inspect(&self) -> BalanceState {
        let now = Moment::since(self.core.epoch, clock::now());
        let snapshot = self.core.now.load();
        let state = |slot: &Slot<S>| {
            let cell = &slot.member.cell;
            let latency = cell.latency();
            EndpointState {
                id: slot.member.id(),
                endpoint: Arc::clone(&slot.member.endpoint),
                latency: (!latency.assumed).then(|| Duration::from_secs_f32(latency.secs)),
                health: cell.health(now),
                in_flight: cell.in_flight(),
                load: snapshot.rules.formula.score(&cell.view(now), now),
                open: cell.is_open(),
            }
        };
        BalanceState {
            service: Arc::clone(&self.core.service),
            known: snapshot.known,
            endpoints: snapshot.slots.iter().map(state).collect(),
        }
    }
}

impl<S: Clone> Balance<S> {
    /// Takes these endpoints from now on. Those that were there before (by address and identity) keep their
    /// number, load, breaker and service; `make` is asked for a service for the others, and for those that now
    /// speak another protocol. Running requests end where they are.
    pub fn update(&self, endpoints: &EndpointSet, mut make: impl FnMut(&Arc<Endpoint>) -> S) {
        let writer = self.core.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Moment::since(self.core.epoch, clock::now());
        let old = self.core.now.load();
        let find = |addr: &SocketAddr| {
            old.slots.binary_search_by_key(addr, |slot| slot.member.endpoint.addr).ok().map(|i| &old.slots[i])
        };
        let slots: Vec<Slot<S>> = endpoints
            .iter()
            .map(|endpoint| {
                let before =
                    find(&endpoint.addr).filter(|slot| slot.member.endpoint.identity == endpoint.identity);
                let Some(slot) = before else {
                    let id = LAST_ID.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
                    let endpoint = Arc::new(endpoint.clone());
                    let service = make(&endpoint);
                    let cell = Arc::new(Cell::new(id, now, old.assumed));
                    return Slot {
                        member: Arc::new(Member { cell, endpoint, rules: Arc::clone(&old.rules) }),
                        service,
                    };
                };
                let was = &slot.member.endpoint;
                if **was == *endpoint {
                    return slot.clone();
                }
                let same = was.http2 == endpoint.http2 && was.server_name == endpoint.server_name;
                let endpoint = Arc::new(endpoint.clone());
                let service = if same { slot.service.clone() } else { make(&endpoint) };
                let cell = Arc::clone(&slot.member.cell);
                Slot { member: Arc::new(Member { cell, endpoint, rules: Arc::clone(&old.rules) }), service }
            })
            .collect();
        self.publish(&old, true, Arc::clone(&old.rules), old.assumed, slots);
        drop(writer);
        self.core.changed.notify_waiters();
    }

    /// Balances by these settings from now on; all that is known of endpoints stays.
    pub fn settings(&self, settings: &BalancerSettings, breaker: Option<&BreakerSettings>) {
        let writer = self.core.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.core.now.load();
        let rules = rules(self.core.epoch, settings, breaker);
        let renew = |slot: &Slot<S>| Slot {
            member: Arc::new(Member {
                cell: Arc::clone(&slot.member.cell),
                endpoint: Arc::clone(&slot.member.endpoint),
                rules: Arc::clone(&rules),
            }),
            service: slot.service.clone(),
        };
        let slots = old.slots.iter().map(renew).collect();
        self.publish(&old, old.known, Arc::clone(&rules), assumed(settings), slots);
        drop(writer);
    }

    fn publish(&self, _: &Snapshot<S>, known: bool, rules: Arc<Rules>, assumed: f32, slots: Vec<Slot<S>>) {
        let cells = slots
            .iter()
            .filter(|slot| !slot.member.endpoint.draining && slot.member.endpoint.weight_milli > 0)
            .map(|slot| Arc::clone(&slot.member.cell))
            .collect();
        self.core.now.store(Arc::new(Snapshot { known, rules, assumed, cells, slots }));
    }
}

fn rules(epoch: Instant, settings: &BalancerSettings, _breaker: Option<&BreakerSettings>) -> Arc<Rules> {
    let peak = Formula {
        estimator: Estimator::Peak,
        decay: settings.decay.unwrap_or(Duration::from_secs(10)),
        grace: Duration::ZERO,
        power: Power::One,
    };
    let formula = match settings.algorithm {
        None | Some(Algorithm::RecentlyFreed) => {
            let own = Formula::default();
            Formula { decay: settings.decay.unwrap_or(own.decay), ..own }
        }
        Some(Algorithm::LeastRequest { .. }) => Formula { power: Power::None, ..peak },
        Some(_) => peak,
    };
    Arc::new(Rules { epoch, formula })
}

fn assumed(settings: &BalancerSettings) -> f32 {
    settings.default_rtt.unwrap_or(Duration::from_millis(30)).as_secs_f32()
}

/// What [`Core::pick`] may say.
enum Pick<S> {
    Sent(S, Ticket),
    Unknown,
    Refused(Error),
}

impl<S: Clone> Core<S> {
    fn pick<R: MeshRequest>(&self, request: &R, started: Instant) -> Pick<S> {
        let state = request.state();
        let tried = state.map_or_else(Tried::default, |state| state.tried);
        let snapshot = self.now.load();
        let now = Moment::since(self.epoch, started);
        let avoid = |id| tried.contains(EndpointId(id));
        let Some(index) = pick(&snapshot.cells, &snapshot.rules.formula, now, &self.rng, avoid) else {
            return if snapshot.known {
                Pick::Refused(Error::NoEndpoints { service: Arc::clone(&self.service) })
            } else {
                Pick::Unknown
            };
        };
        let id = snapshot.cells[index].id();
        let Some(slot) = snapshot.slots.iter().find(|slot| slot.member.cell.id() == id) else {
            return Pick::Refused(Error::NoEndpoints { service: Arc::clone(&self.service) });
        };
        let deadline = state.and_then(|state| state.deadline);
        Pick::Sent(slot.service.clone(), Ticket::take(Arc::clone(&slot.member), started, deadline))
    }
}

impl<S, R, ResB> Service<R> for Balance<S>
where
    R: MeshRequest,
    S: Service<R, Response = Response<ResB>> + Clone,
    S::Error: Into<Error>,
    ResB: Body,
{
    type Response = Response<Served<ResB>>;
    type Error = Error;
    type Future = BalanceFuture<S, R>;

    /// Always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let classifier =
            request.route().map(|route| Classifier::clone(&route.classifier)).unwrap_or_default();
        let started = match request.state() {
            Some(state) if state.attempt == 0 => state.started,
            _ => clock::now(),
        };
        let state = match self.core.pick(&request, started) {
            Pick::Sent(service, ticket) => State::ready(service, ticket, request, self.core.fail_fast),
            Pick::Refused(error) => State::Failed(Some(error)),
            Pick::Unknown => State::wait(&self.core, request),
        };
        BalanceFuture { state, classifier }
    }
}

/// The future of [`Balance`].
#[pin_project]
pub struct BalanceFuture<S: Service<R>, R> {
    #[pin]
    state: State<S, R>,
    classifier: Classifier,
}

impl<S: Service<R>, R> fmt::Debug for BalanceFuture<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceFuture").finish_non_exhaustive()
    }
}

#[pin_project(project = Step)]
enum State<S: Service<R>, R> {
    /// Discovery has not answered.
    Wait {
        patience: Pin<Box<Sleep>>,
        changed: Pin<Box<OwnedNotified>>,
        core: Arc<Core<S>>,
        request: Option<R>,
    },
    /// The picked endpoint is not ready yet. `patience` is armed when it is first found so.
    Ready {
        service: S,
        attempt: Option<(R, Ticket)>,
        fail_fast: Duration,
        patience: Option<Pin<Box<Sleep>>>,
    },
    Call {
        #[pin]
        future: S::Future,
        ticket: Option<Ticket>,
    },
    Failed(Option<Error>),
    Done,
}

impl<S: Service<R>, R> State<S, R> {
    fn ready(service: S, ticket: Ticket, request: R, fail_fast: Duration) -> Self {
        Self::Ready { service, attempt: Some((request, ticket)), fail_fast, patience: None }
    }

    fn wait(core: &Arc<Core<S>>, request: R) -> Self {
        // Already told, so that the first poll looks again: an update may have come since the pick.
        let changed = Arc::new(Notify::new());
        changed.notify_one();
        Self::Wait {
            patience: Box::pin(tokio::time::sleep(core.fail_fast)),
            changed: Box::pin(changed.notified_owned()),
            core: Arc::clone(core),
            request: Some(request),
        }
    }
}

impl<S, R, ResB> Future for BalanceFuture<S, R>
where
    R: MeshRequest,
    S: Service<R, Response = Response<ResB>> + Clone,
    S::Error: Into<Error>,
    ResB: Body,
{
    type Output = Result<Response<Served<ResB>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                Step::Wait { patience, changed, core, request } => {
                    let found = match request {
                        Some(request) => ready!(poll_known(cx, (patience, changed), core, request)),
                        None => Err(Error::Closed),
                    };
                    match (found, request.take()) {
                        (Ok((service, ticket)), Some(request)) => {
                            State::ready(service, ticket, request, core.fail_fast)
                        }
                        (Err(error), _) => State::Failed(Some(error)),
                        (Ok(_), None) => State::Done,
                    }
                }
                Step::Ready { service, attempt, fail_fast, patience } => {
                    let ready = match service.poll_ready(cx) {
                        Poll::Ready(ready) => ready.map_err(Into::into),
                        Poll::Pending => Err(ready!(poll_patience(cx, patience, *fail_fast))),
                    };
                    match (ready, attempt.take()) {
                        (Ok(()), Some((request, ticket))) => {
                            State::Call { future: service.call(request), ticket: Some(ticket) }
                        }
                        (Err(error), Some((_, ticket))) => {
                            ticket.settle(&Outcome::of_error(&error));
                            State::Failed(Some(error))
                        }
                        (_, None) => State::Done,
                    }
                }
                Step::Call { future, ticket } => {
                    let result = ready!(future.poll(cx)).map_err(Into::into);
                    let ticket = ticket.take();
                    this.state.set(State::Done);
                    return Poll::Ready(finish(result, ticket, this.classifier));
                }
                Step::Failed(error) => {
                    let error = error.take().unwrap_or(Error::Closed);
                    this.state.set(State::Done);
                    return Poll::Ready(Err(error));
                }
                // Polled after its end, which is the caller's fault: pend, as tower's futures may.
                Step::Done => return Poll::Pending,
            };
            this.state.set(next);
        }
    }
}

/// Waits until there is an endpoint, or it is known that there is none, or patience ends.
fn poll_known<S: Clone, R: MeshRequest>(
    cx: &mut Context<'_>,
    wait: (&mut Pin<Box<Sleep>>, &mut Pin<Box<OwnedNotified>>),
    core: &Arc<Core<S>>,
    request: &R,
) -> Poll<Result<(S, Ticket), Error>> {
    let (patience, changed) = wait;
    while changed.as_mut().poll(cx).is_ready() {
        // Asked before the pick, so that no update falls between the two.
        changed.set(Arc::clone(&core.changed).notified_owned());
        match core.pick(request, clock::now()) {
            Pick::Sent(service, ticket) => return Poll::Ready(Ok((service, ticket))),
            Pick::Refused(error) => return Poll::Ready(Err(error)),
            Pick::Unknown => {}
        }
    }
    ready!(patience.as_mut().poll(cx));
    Poll::Ready(Err(Error::NoEndpoints { service: Arc::clone(&core.service) }))
}

/// Waits for a picked endpoint that is not ready, so long as patience lasts.
fn poll_patience(
    cx: &mut Context<'_>,
    patience: &mut Option<Pin<Box<Sleep>>>,
    fail_fast: Duration,
) -> Poll<Error> {
    let patience = patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(fail_fast)));
    ready!(patience.as_mut().poll(cx));
    Poll::Ready(Error::Timeout { scope: Scope::Queue, after: fail_fast })
}

fn finish<B: Body>(
    result: Result<Response<B>, Error>,
    ticket: Option<Ticket>,
    classifier: &Classifier,
) -> Result<Response<Served<B>>, Error> {
    let Some(mut ticket) = ticket else { return Err(Error::Closed) };
    match result {
        Ok(response) => {
            let wall =
                || clock::wall().duration_since(clock::SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_secs());
            ticket.head(clock::now(), classifier.head(response.status(), response.headers(), wall));
            Ok(response.map(|body| Served::new(body, ticket)))
        }
        Err(error) => {
            ticket.settle(&Outcome::of_error(&error));
            Err(error)
        }
    }
}
