//! Floor 6: how a call ends: its response, counted to its body's end, or its error.

use crate::classify::answer::RespondBody;
use crate::classify::body::{End as BodyEnd, Watch, Watched};
use crate::error::{BoxError, Error};
use crate::limit::body::Lease;
use crate::limit::layer::is_dropped;
use crate::metrics::layer::Meter;
use crate::policy::call::Judged;
use crate::retry::again::End;
use crate::retry::body::Attempted;
use crate::route::filter::Filters;
use crate::stdx::clock::Instant;
use crate::timeout::body::TimedBody;
use crate::timeout::layer::whole;
use bytes::Bytes;
use http::Response;
use http_body::Body;

/// The body of a call's response over the attempts' bodies `B`.
pub type WholeBody<B> = Watched<RespondBody<TimedBody<Attempted<B>>>, Keep>;

/// What a call holds until it ends: its meter, and its place if its route has limits.
#[derive(Debug)]
pub struct Keep {
    pub(crate) meter: Meter,
    pub(crate) place: Option<Box<Lease>>,
}

impl Keep {
    /// What counts it.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }
}

impl Watch for Keep {
    fn first(&mut self, waited: bool) {
        self.meter.first(waited);
    }

    fn data(&mut self, bytes: usize) {
        self.meter.data(bytes);
    }

    #[inline]
    fn end(&mut self, end: BodyEnd<'_>) {
        self.meter.end(end);
        self.place = None;
    }
}

/// What a route answers by itself.
pub(crate) type Answer<B> = Response<AnswerBody<B>>;
pub(crate) type AnswerBody<B> = RespondBody<TimedBody<Attempted<B>>>;

/// Ends a call that took more than its first attempt: its response, or its error.
#[cold]
pub(crate) fn finish<ResB>(
    result: End<ResB>,
    mut keep: Keep,
    rest: (Option<Box<Filters>>, Option<Instant>),
) -> Result<Response<WholeBody<ResB>>, Error>
where
    ResB: Body<Data = Bytes> + Unpin,
    ResB::Error: Into<BoxError>,
{
    match result {
        // What is given to the caller later than it came, because its trailers were waited for, is judged anew.
        Ok(response) => Ok(answer(response, None, keep, rest, |body| body)),
        Err(error) => {
            keep.place.iter().for_each(|place| place.answered(is_dropped::<()>(Err(&error))));
            keep.meter.fail(&error);
            Err(error)
        }
    }
}

/// The response that ends a call, counted to its body's end.
#[inline]
pub(crate) fn answer<B, ResB>(
    mut response: Response<B>,
    judged: Option<Judged>,
    mut keep: Keep,
    (cors, deadline): (Option<Box<Filters>>, Option<Instant>),
    attempted: impl FnOnce(B) -> Attempted<ResB>,
) -> Response<WholeBody<ResB>>
where
    B: Body,
    ResB: Body<Data = Bytes> + Unpin,
    ResB::Error: Into<BoxError>,
{
    keep.place.iter().for_each(|place| place.answered(is_dropped(Ok(&response))));
    let meter = &mut keep.meter;
    let at = meter.head(&response, judged);
    if let Some(deadline) = deadline {
        meter.left(deadline, at);
    }
    if let Some(route) = meter.route().filter(|route| !route.filters.is_empty()) {
        route.filters.response(response.headers_mut());
    }
    if let Some(cors) = cors {
        cors.response(response.headers_mut());
    }
    if response.body().is_end_stream() {
        // It has no time to take, and is counted before it is moved.
        keep.end(BodyEnd::Complete(None));
        return response.map(|body| Watched::over(RespondBody::new(TimedBody::free(attempted(body))), keep));
    }
    let whole = whole(meter.started(), deadline);
    response
        .map(|body| Watched::new(RespondBody::new(TimedBody::limited(attempted(body), whole, None)), keep))
}

pub(crate) fn answered_by_route<B>(answer: Answer<B>, keep: Option<Keep>) -> Response<WholeBody<B>>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let keep = keep.map(|mut keep| {
        keep.meter.head(&answer, None);
        keep
    });
    answer.map(|body| Watched::maybe(body, keep))
}
