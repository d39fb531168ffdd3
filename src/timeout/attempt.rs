//! Floor 4: ends attempts that take too long to their response's headers.

use crate::error::{Error, Scope};
use crate::policy::call::MeshRequest;
use crate::stdx::clock::{self, Duration};
use crate::timeout::timed::{Bound, Timed};
use std::task::{Context, Poll};
use tower_layer::Layer;
use tower_service::Service;

/// Ends attempts by their route's limit with [`Error::Timeout`]; those of requests that met no route by `own`.
///
/// It stands below the balancer's ticket, so that a slow replica is seen as slow. Where the whole call must end sooner it
/// arms no timer of its own: one suffices.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttemptLayer {
    own: Option<Duration>,
}

impl AttemptLayer {
    /// The limit for requests that met no route.
    #[must_use]
    pub fn with_own(mut self, limit: Duration) -> Self {
        self.own = Some(limit);
        self
    }

    fn bound<R: MeshRequest>(&self, request: &R) -> Option<Bound> {
        let Some((route, state)) = request.route().zip(request.state()) else {
            let after = self.own?;
            return Some(Bound { at: clock::now().checked_add(after)?, after, scope: Scope::Attempt });
        };
        let after = route.timeouts.attempt?;
        let begun = if state.attempt == 0 { state.started } else { clock::now() };
        let at = begun.checked_add(after)?;
        let sooner = state.deadline.is_some_and(|deadline| deadline <= at);
        (!sooner).then_some(Bound { at, after, scope: Scope::Attempt })
    }
}

impl<S> Layer<S> for AttemptLayer {
    type Service = Attempt<S>;

    fn layer(&self, inner: S) -> Attempt<S> {
        Attempt { inner, layer: *self }
    }
}

/// The service of [`AttemptLayer`].
#[derive(Debug, Clone)]
pub struct Attempt<S> {
    inner: S,
    layer: AttemptLayer,
}

impl<S, R> Service<R> for Attempt<S>
where
    R: MeshRequest,
    S: Service<R>,
    S::Error: Into<Error>,
{
    type Response = S::Response;
    type Error = Error;
    type Future = Timed<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        let bound = self.layer.bound(&request);
        Timed::new(self.inner.call(request), bound)
    }
}
