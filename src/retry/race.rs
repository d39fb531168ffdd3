//! Floor 4: a slow first attempt and a second copy beside it; one of the two is cancelled.

use crate::classify::outcome::Outcome;
use crate::metrics::route::Hedge;
use crate::policy::call::MeshRequest;
use crate::policy::route::RoutePolicy;
use crate::retry::again::Again;
use crate::retry::replay::Replay;
use crate::stdx::clock::Duration;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::time::Sleep;
use tower_service::Service;

/// A first attempt and, after a while, a second one beside it. The first one stands where attempts always stand, so that
/// a request that is not hedged pays nothing for this.
pub(crate) struct Race<F> {
    timer: Option<Pin<Box<Sleep>>>,
    second: Option<Pin<Box<F>>>,
    /// There, once a second one was sent.
    counts: Option<Counts>,
}

/// Counts the second copy once, whatever becomes of it, when it is dropped.
struct Counts {
    route: Option<Arc<RoutePolicy>>,
    /// Whether two attempts are under way, of which one will be cancelled.
    two: bool,
    won: bool,
}

impl Drop for Counts {
    fn drop(&mut self) {
        let Some(route) = &self.route else { return };
        if self.two {
            route.metrics.end_attempt(None, &Outcome::DROPPED);
        }
        route.metrics.hedged(if self.won { Hedge::Won } else { Hedge::Lost });
    }
}

impl<F> Race<F> {
    /// A second copy is sent after this.
    pub(crate) fn after(after: Duration) -> Self {
        Self { timer: Some(Box::pin(tokio::time::sleep(after))), second: None, counts: None }
    }

    /// How one of the two ended, and whether it was the second.
    pub(crate) fn poll<S, R, T, E>(
        &mut self,
        mut first: Pin<&mut Option<F>>,
        again: &mut Option<Again<S, R>>,
        cx: &mut Context<'_>,
    ) -> Poll<(bool, Result<T, E>)>
    where
        R: MeshRequest,
        S: Service<R::With<Replay<R::Body>>, Future = F>,
        F: Future<Output = Result<T, E>>,
    {
        if let Some(attempt) = first.as_mut().as_pin_mut() {
            if let Poll::Ready(end) = attempt.poll(cx) {
                first.set(None);
                return Poll::Ready((false, end));
            }
            // It may have waited for discovery until now.
            again.iter_mut().for_each(Again::note_sent);
        }
        if let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
            if let Some(again) = again {
                // What is not ready ends in an error when it is called.
                let _ = ready!(again.service_mut().poll_ready(cx));
            }
            self.timer = None;
            self.begin(again);
        }
        let Some(second) = &mut self.second else { return Poll::Pending };
        let end = ready!(second.as_mut().poll(cx));
        self.second = None;
        Poll::Ready((true, end))
    }

    /// Sends the second copy, if its request can be sent again and the budget allows it.
    fn begin<S, R>(&mut self, slot: &mut Option<Again<S, R>>)
    where
        R: MeshRequest,
        S: Service<R::With<Replay<R::Body>>, Future = F>,
    {
        if !slot.as_mut().is_some_and(Again::may_hedge) {
            return;
        }
        let Some(again) = slot.take() else { return };
        let body = again.body();
        let Some(body) = body else {
            *slot = Some(again);
            return;
        };
        let (mut again, request) = again.next(1, body);
        self.second = Some(Box::pin(again.service_mut().call(request)));
        let route = again.route().cloned();
        if let Some(route) = &route {
            route.metrics.begin_attempt();
        }
        self.counts = Some(Counts { route, two: true, won: false });
        *slot = Some(again);
    }

    /// Whether a second copy was sent.
    pub(crate) fn was_hedged(&self) -> bool {
        self.counts.is_some()
    }

    /// Whether another one than the one that ended is under way.
    pub(crate) fn is_on(&self, first: bool) -> bool {
        self.was_hedged() && (first || self.second.is_some())
    }

    /// One failed and was counted, and the other one goes on.
    pub(crate) fn lost(&mut self) {
        if let Some(counts) = &mut self.counts {
            counts.two = false;
        }
    }

    /// One ended, and what the other one does is of no interest any more.
    pub(crate) fn finish(&mut self, second_won: bool) {
        self.second = None;
        if let Some(counts) = &mut self.counts {
            counts.won = second_won;
        }
    }
}
