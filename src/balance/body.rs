//! Floor 4: a response body that holds its attempt's ticket until it ends, and says who sent it.

use crate::balance::ticket::{Member, Ticket};
use crate::classify::outcome::{Cause, Outcome, Verdict};
use crate::discover::endpoint::Endpoint;
use crate::error::BoxError;
use crate::policy::call::{EndpointId, Judged, ServedBy};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// A response's body. Its attempt is in flight until it ends or is dropped; then it still knows the endpoint.
#[pin_project]
#[derive(Debug)]
pub struct Served<B> {
    #[pin]
    inner: B,
    seat: Seat,
    judged: Judged,
}

#[derive(Debug)]
enum Seat {
    Taken(Ticket),
    Left(Option<Arc<Member>>),
}

impl Seat {
    fn leave(&mut self, end: impl FnOnce(Ticket) -> Option<Arc<Member>>) {
        if let Self::Taken(ticket) = std::mem::replace(self, Self::Left(None)) {
            *self = Self::Left(end(ticket));
        }
    }

    fn member(&self) -> Option<&Arc<Member>> {
        match self {
            Self::Taken(ticket) => ticket.member(),
            Self::Left(member) => member.as_ref(),
        }
    }
}

impl<B: Body> Served<B> {
    #[inline]
    pub(crate) fn new(inner: B, ticket: Ticket, judged: Judged) -> Self {
        let seat = match inner.is_end_stream() {
            true => Seat::Left(ticket.complete(None)),
            false => Seat::Taken(ticket),
        };
        Self { inner, seat, judged }
    }
}

impl<B> Served<B> {
    /// The number of the endpoint that sent it.
    pub fn endpoint_id(&self) -> Option<EndpointId> {
        self.seat.member().map(|member| member.id())
    }

    /// The endpoint that sent it.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.seat.member().map(|member| member.endpoint())
    }

    /// The body within.
    pub fn inner(&self) -> &B {
        &self.inner
    }
}

impl<B> Body for Served<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        match &frame {
            None => this.seat.leave(|ticket| ticket.complete(None)),
            Some(Err(_)) => {
                let broken = Outcome::new(Verdict::Failure, Cause::Reset);
                this.seat.leave(|ticket| ticket.settle(&broken));
            }
            Some(Ok(frame)) => match frame.trailers_ref() {
                Some(trailers) => this.seat.leave(|ticket| ticket.complete(Some(trailers))),
                None => {
                    if let Seat::Taken(ticket) = this.seat {
                        ticket.data();
                        if let (Some(attempting), Some(data)) = (ticket.attempting(), frame.data_ref()) {
                            attempting.data(bytes::Buf::remaining(data));
                        }
                    }
                    if this.inner.is_end_stream() {
                        this.seat.leave(|ticket| ticket.complete(None));
                    }
                }
            },
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Asks a [`Served`] body who sent it.
#[derive(Debug, Clone, Copy, Default)]
pub struct AskBody;

impl<B> ServedBy<Served<B>> for AskBody {
    fn served_by(body: &Served<B>) -> Option<EndpointId> {
        body.endpoint_id()
    }

    fn judged(body: &Served<B>) -> Option<Judged> {
        Some(body.judged)
    }
}
