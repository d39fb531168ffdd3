//! Floor 4: tells the observers of live requests of one call.

use crate::classify::classifier::grpc_code;
use crate::discover::endpoint::Endpoint;
use crate::metrics::names::Direction;
use crate::policy::observe::{self, Ending, Note, Observer, Subject};
use crate::stdx::clock::Instant;
use crate::stdx::rng::Rng;
use crate::tap::filter::{Begun, Sent};
use crate::tap::hub::{Attempted, Ended, Kind, Message, Shown, TapHub, Tapper, path};
use http::{HeaderMap, StatusCode};
use std::sync::{Arc, Mutex, PoisonError};

/// The most attempts of one call that are followed: what a profile may ask for, with room.
const ATTEMPTS_MAX: usize = 64;

/// One call that somebody wants to see.
#[derive(Debug)]
pub struct TapCall {
    hub: Arc<TapHub>,
    tappers: Vec<Arc<Tapper>>,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    attempts: Vec<Followed>,
    sent: bool,
    /// Why the next attempt is made.
    reason: Option<Box<str>>,
    /// The rule on trial that would refuse it.
    audit: Option<Arc<str>>,
}

#[derive(Debug)]
struct Followed {
    attempt: Attempted,
    answered: Option<Instant>,
    status: Option<u16>,
    grpc: Option<u32>,
    seats: Vec<Seat>,
}

/// What one observer sees of one attempt.
#[derive(Debug, Clone)]
enum Seat {
    /// It was told that the request began, and is told the rest.
    Open,
    /// It is told when it is known how the request is answered or ends.
    Held(Vec<Message>),
    /// Nothing.
    Shut,
}

impl TapHub {
    /// What tells of this call, if anybody wants to see it.
    pub fn begin(
        self: &Arc<Self>,
        subject: &Arc<Subject>,
        headers: &HeaderMap,
        rng: &Rng,
    ) -> Option<Box<dyn Observer>> {
        if self.is_idle() {
            return None;
        }
        let begun = Begun {
            direction: subject.direction,
            method: subject.method.as_str(),
            path: path(&subject.uri),
            authority: subject.authority(),
            service: &subject.service,
            route: &subject.route,
            source: subject.source,
            source_identity: subject.identity.as_deref(),
        };
        let tappers = self.interested(&begun, rng);
        if tappers.is_empty() {
            return None;
        }
        let call = TapCall { hub: Arc::clone(self), tappers, live: Mutex::default() };
        if subject.direction == Direction::Inbound {
            // What arrives is one attempt of somebody else's.
            call.follow(&mut call.live(), subject, whole(subject), headers);
        }
        Some(Box::new(call))
    }
}

/// The call as its own only attempt.
fn whole(subject: &Subject) -> Attempted {
    Attempted { number: 0, id: observe::number(), endpoint: None, begun: subject.started }
}

impl TapCall {
    fn live(&self) -> std::sync::MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self, tapper: &Tapper, headers: &HeaderMap) -> Shown {
        tapper.filter.headers.then(|| self.hub.redaction.shown(headers))
    }

    /// Begins to follow an attempt.
    fn follow(&self, live: &mut Live, call: &Arc<Subject>, attempt: Attempted, headers: &HeaderMap) {
        live.sent = true;
        let reason = live.reason.take();
        if live.attempts.len() >= ATTEMPTS_MAX {
            return;
        }
        let endpoint = attempt.endpoint.as_deref();
        let sent = Sent {
            destination: endpoint.map(|endpoint| endpoint.addr).or(call.local),
            identity: endpoint.and_then(|endpoint| endpoint.identity.as_deref()),
            labels: endpoint.map(|endpoint: &Endpoint| &endpoint.labels),
        };
        let seat = |tapper: &Arc<Tapper>| {
            if !tapper.filter.goes(&sent, &call.route) {
                return Seat::Shut;
            }
            let kind = Kind::Request { headers: self.shown(tapper, headers), reason: reason.clone() };
            let message =
                Message { call: Arc::clone(call), attempt: attempt.clone(), at: attempt.begun, kind };
            if tapper.filter.waits_for_status() {
                return Seat::Held(vec![message]);
            }
            self.open(tapper, attempt.begun, vec![message])
        };
        let seats = self.tappers.iter().map(seat).collect();
        live.attempts.push(Followed { attempt, answered: None, status: None, grpc: None, seats });
    }

    /// Tells what was held, if one more may be told.
    fn open(&self, tapper: &Tapper, now: Instant, held: Vec<Message>) -> Seat {
        if !tapper.admits(now) {
            return Seat::Shut;
        }
        held.into_iter().for_each(|message| tapper.tell(&self.hub, message));
        Seat::Open
    }

    fn answered(
        &self,
        followed: &mut Followed,
        (call, at): (&Arc<Subject>, Instant),
        status: StatusCode,
        headers: &HeaderMap,
    ) {
        followed.answered = Some(at);
        followed.status = Some(status.as_u16());
        followed.grpc = grpc_code(headers).map(u32::from);
        for (tapper, seat) in self.tappers.iter().zip(&mut followed.seats) {
            let message = || Message {
                call: Arc::clone(call),
                attempt: followed.attempt.clone(),
                at,
                kind: Kind::Response { status: status.as_u16(), headers: self.shown(tapper, headers) },
            };
            match seat {
                Seat::Open => tapper.tell(&self.hub, message()),
                Seat::Held(_) if !tapper.filter.answers(followed.status) => *seat = Seat::Shut,
                Seat::Held(held) => {
                    held.push(message());
                    if !tapper.filter.waits_for_end() {
                        *seat = self.open(tapper, at, std::mem::take(held));
                    }
                }
                Seat::Shut => {}
            }
        }
    }

    fn ended(
        &self,
        followed: Followed,
        audit: Option<&Arc<str>>,
        (call, at): (&Arc<Subject>, Instant),
        ending: &Ending<'_>,
    ) {
        let trailer = ending.trailers.and_then(grpc_code).map(u32::from);
        let status = ending.status(followed.status);
        let error = ending.error.map(|error| error.kind());
        for (tapper, seat) in self.tappers.iter().zip(followed.seats) {
            let ended = Ended {
                answered: followed.answered,
                bytes: ending.bytes,
                trailers: ending.trailers.and_then(|trailers| self.shown(tapper, trailers)),
                grpc: trailer.or(followed.grpc),
                outcome: ending.outcome,
                error,
                rule: ending.rule().cloned(),
                audit: audit.cloned(),
            };
            let message = Message {
                call: Arc::clone(call),
                attempt: followed.attempt.clone(),
                at,
                kind: Kind::End(Box::new(ended)),
            };
            match seat {
                Seat::Open => tapper.tell(&self.hub, message),
                Seat::Held(held)
                    if tapper.filter.answers(status)
                        && tapper.filter.ends(&ending.outcome, audit.is_some()) =>
                {
                    self.open(tapper, at, held.into_iter().chain([message]).collect());
                }
                Seat::Held(_) | Seat::Shut => {}
            }
        }
    }
}

impl Observer for TapCall {
    fn note(&self, call: &Arc<Subject>, at: Instant, note: Note<'_>) {
        let mut live = self.live();
        let live = &mut *live;
        match note {
            Note::Sent(attempt, headers) => {
                let endpoint = attempt.endpoint.clone();
                let attempt =
                    Attempted { number: attempt.number, id: attempt.id, endpoint, begun: attempt.begun };
                self.follow(live, call, attempt, headers);
            }
            Note::Answered(attempt, status, headers) => {
                let followed = live.attempts.iter_mut().find(|followed| followed.attempt.id == attempt.id);
                if let Some(followed) = followed {
                    self.answered(followed, (call, at), status, headers);
                }
            }
            Note::Ended(attempt, ending) => {
                let place = live.attempts.iter().position(|followed| followed.attempt.id == attempt.id);
                if let Some(place) = place {
                    self.ended(live.attempts.swap_remove(place), live.audit.as_ref(), (call, at), ending);
                }
            }
            Note::Retried(_, outcome, _) => live.reason = Some(outcome.cause.to_string().into()),
            Note::Audited(rule) => live.audit = Some(Arc::clone(rule)),
            Note::GivenUp(..) | Note::Event(..) => {}
            Note::Head(status, headers) => {
                if call.direction == Direction::Outbound && !live.sent {
                    // A route that answers by itself, or a stack without a balancer.
                    self.follow(live, call, whole(call), &HeaderMap::new());
                } else if call.direction == Direction::Outbound {
                    return;
                }
                if let Some(followed) = live.attempts.last_mut() {
                    self.answered(followed, (call, at), status, headers);
                }
            }
            Note::End(ending) => {
                if !live.sent {
                    // It never came to an endpoint.
                    self.follow(live, call, whole(call), &HeaderMap::new());
                }
                if let Some(followed) = live.attempts.pop() {
                    self.ended(followed, live.audit.as_ref(), (call, at), ending);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::outcome::{Cause, Outcome, Verdict};
    use crate::error::Error;
    use crate::policy::observe::Observed;
    use crate::stdx::clock::{self, Duration};
    use crate::tap::event::Event;
    use crate::tap::filter::Filter;
    use crate::tap::hub::{EVENTS_MAX, Item, OBSERVERS_MAX, Tap};
    use crate::tap::redact::Redaction;
    use futures::FutureExt;
    use http::{Method, Uri, Version};

    const OK: Outcome = Outcome { verdict: Verdict::Success, cause: Cause::Status(200), retry_after: None };
    const FAILED: Outcome =
        Outcome { verdict: Verdict::Failure, cause: Cause::Status(503), retry_after: None };

    fn filter(query: &str) -> Filter {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Filter::parse(pairs.map(|pair| pair.split_once('=').unwrap())).unwrap()
    }

    fn call(hub: &Arc<TapHub>, direction: Direction, path: &str) -> Option<Arc<Observed>> {
        let subject = Arc::new(Subject {
            number: observe::number(),
            direction,
            service: "web.ns:80".into(),
            route: "".into(),
            method: Method::GET,
            uri: path.parse::<Uri>().unwrap(),
            version: Version::HTTP_11,
            host: Some("web.ns".parse().unwrap()),
            user_agent: None,
            referer: None,
            source: Some("10.0.0.1:99".parse().unwrap()),
            local: Some("10.0.0.9:80".parse().unwrap()).filter(|_| direction == Direction::Inbound),
            identity: None,
            context: None,
            parent: None,
            started: clock::now(),
            wall: clock::wall(),
        });
        let headers = HeaderMap::from_iter([("cookie".parse().unwrap(), "secret".parse().unwrap())]);
        let observer = hub.begin(&subject, &headers, &Rng::thread())?;
        Some(Arc::new(Observed::new(subject, vec![observer], clock::now, Rng::thread())))
    }

    fn endpoint(port: u16) -> Option<Arc<Endpoint>> {
        Some(Arc::new(Endpoint::new(([10, 0, 0, 2], port).into())))
    }

    fn seen(tap: &mut Tap) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(Some(Item::Event(event))) = tokio::task::unconstrained(tap.next()).now_or_never() {
            events.push(*event);
        }
        events
    }

    /// One letter an event, and the error at its end.
    fn words(tap: &mut Tap) -> String {
        let word = |event: Event| match (
            event.request_init_event,
            event.response_init_event,
            event.response_end_event,
        ) {
            (Some(_), ..) => format!("q{}", event.attempt),
            (_, Some(init), _) => format!("r{}", init.http_status),
            (.., Some(end)) => format!("e{}", end.error.as_deref().unwrap_or(&end.outcome)),
            _ => "?".to_owned(),
        };
        seen(tap).into_iter().map(word).collect::<Vec<_>>().join(" ")
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_is_told_as_linkerd_tells_it() {
        let hub = TapHub::new("me.ns:1", Redaction::default());
        assert!(hub.is_idle() && call(&hub, Direction::Outbound, "/a").is_none());
        let mut tap = hub.observe(filter("")).unwrap();
        let observed = call(&hub, Direction::Outbound, "/a?secret=1").unwrap();
        let mut headers = HeaderMap::new();
        let mut first = observed.attempt(0, endpoint(1), &mut headers);
        tokio::time::advance(Duration::from_millis(3)).await;
        first.head(StatusCode::SERVICE_UNAVAILABLE, &headers);
        first.end(&FAILED, None, None);
        observed.note(Note::Retried(0, &FAILED, Duration::ZERO));
        let mut second = observed.attempt(1, endpoint(2), &mut headers);
        second.head(StatusCode::OK, &headers);
        second.data(5);
        second.end(&OK, None, None);
        observed.head(StatusCode::OK, &headers);
        observed.end(&OK, None, None);
        let events = seen(&mut tap);
        assert_eq!(events.len(), 6);
        let (init, end) =
            (events[3].request_init_event.as_ref().unwrap(), events[5].response_end_event.as_ref().unwrap());
        assert_eq!(
            (init.path.as_str(), init.reason.as_deref(), init.authority.as_str()),
            ("/a", Some("status 503"), "web.ns")
        );
        assert_eq!((end.id, end.response_bytes, end.outcome.as_str()), (init.id, 5, "success"));
        assert_eq!(events[3].destination.port, 2);
        let since =
            events[1].response_init_event.as_ref().map(|init| Duration::from(init.since_request_init));
        assert_eq!(since, Some(Duration::from_millis(3)));
        drop(tap);
        assert!(hub.is_idle());
    }

    #[test]
    fn what_never_came_to_an_endpoint_and_what_was_denied_is_told_too() {
        let hub = TapHub::new("me", Redaction::default());
        let mut tap = hub.observe(filter("headers=1")).unwrap();
        let inbound = call(&hub, Direction::Inbound, "/in").unwrap();
        let denied = Error::Denied { rule: "only-web".into() };
        inbound.end(&Outcome::of_error(&denied), Some(&denied), None);
        drop(inbound);
        let outbound = call(&hub, Direction::Outbound, "/out").unwrap();
        let shed = Error::Overloaded { retry_after: None };
        outbound.end(&Outcome::of_error(&shed), Some(&shed), None);
        drop(call(&hub, Direction::Outbound, "/gone"));
        let events = seen(&mut tap);
        let headers = &events[0].request_init_event.as_ref().unwrap().headers.as_ref().unwrap()[0];
        assert_eq!((headers.name.as_str(), headers.value_str.as_str()), ("cookie", "<hidden>"));
        let ends: Vec<_> = events.iter().filter_map(|event| event.response_end_event.as_ref()).collect();
        let told: Vec<_> = ends
            .iter()
            .map(|end| (end.error.as_deref(), end.rule.as_deref(), end.outcome.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (Some("denied"), Some("only-web"), "failure"),
                (Some("overloaded"), None, "failure"),
                (None, None, "cancelled")
            ]
        );
    }

    #[test]
    fn filters_hold_back_what_they_cannot_judge_yet() {
        let hub = TapHub::new("me", Redaction::default());
        let mut all = hub.observe(filter("")).unwrap();
        let mut failed = hub.observe(filter("status=5xx")).unwrap();
        let mut lost = hub.observe(filter("outcome=cancelled")).unwrap();
        let mut there = hub.observe(filter("destination=:2")).unwrap();
        let headers = HeaderMap::new();
        for (port, status) in [(1, 503), (2, 200)] {
            let observed = call(&hub, Direction::Outbound, "/a").unwrap();
            let mut attempt = observed.attempt(0, endpoint(port), &mut HeaderMap::new());
            attempt.head(StatusCode::from_u16(status).unwrap(), &headers);
            attempt.end(if status == 200 { &OK } else { &FAILED }, None, None);
            observed.end(&OK, None, None);
        }
        let denied = Error::Denied { rule: "r".into() };
        call(&hub, Direction::Inbound, "/a").unwrap().end(&Outcome::of_error(&denied), Some(&denied), None);
        let mut refused = hub.observe(filter("status=403")).unwrap();
        call(&hub, Direction::Inbound, "/b").unwrap().end(&Outcome::of_error(&denied), Some(&denied), None);
        assert_eq!(words(&mut failed), "q0 r503 efailure");
        assert_eq!(words(&mut there), "q0 r200 esuccess");
        assert_eq!(words(&mut lost), "");
        assert_eq!(words(&mut refused), "q0 edenied");
        assert_eq!(words(&mut all), "q0 r503 efailure q0 r200 esuccess q0 edenied q0 edenied");
    }

    #[tokio::test(start_paused = true)]
    async fn observers_are_bounded_and_slow_ones_lose_events() {
        let hub = TapHub::new("me", Redaction::default());
        let mut slow = hub.observe(filter("rate=0")).unwrap();
        let mut some = hub.observe(filter("rate=5")).unwrap();
        let mut few = hub.observe(filter("max=2&rate=0")).unwrap();
        for _ in 0..EVENTS_MAX {
            drop(call(&hub, Direction::Inbound, "/a"));
        }
        assert_eq!(hub.dropped(), EVENTS_MAX as u64);
        assert_eq!(slow.next().await, Some(Item::Dropped(EVENTS_MAX as u64)));
        assert_eq!(seen(&mut slow).len(), EVENTS_MAX);
        assert_eq!(words(&mut some), "q0 ecancelled ".repeat(5).trim_end());
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(call(&hub, Direction::Inbound, "/a"));
        assert_eq!(words(&mut some), "q0 ecancelled");
        assert_eq!(words(&mut few), "q0 ecancelled q0 ecancelled");
        assert_eq!(few.next().await, None);
        let more: Vec<_> = (0..OBSERVERS_MAX).map_while(|_| hub.observe(filter(""))).collect();
        assert_eq!(more.len(), OBSERVERS_MAX - 3);
        drop((slow, some, few, more));
        assert!(hub.is_idle());
    }

    #[test]
    fn a_sample_is_a_share_of_calls() {
        let hub = TapHub::new("me", Redaction::default());
        let _tap = hub.observe(filter("sample=0.25&rate=0")).unwrap();
        let seen = (0..2_000).filter(|_| call(&hub, Direction::Inbound, "/a").is_some()).count();
        assert!((400..600).contains(&seen), "{seen}");
    }
}
