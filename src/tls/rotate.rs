//! Floor 5: keeps an identity current: asks its source, checks what comes, publishes epochs, retires connections.

use crate::stdx::clock;
use crate::stdx::rng::Rng;
use crate::tls::epoch::Epoch;
use crate::tls::epoch::EpochSettings;
use crate::tls::identity::TrustDomain;
use crate::tls::material::BadMaterial;
use crate::tls::material::Material;
use crate::tls::material::Source;
use crate::tls::renew::Alarm;
use crate::tls::session::Session;
use crate::tls::session::TlsError;
use crate::tls::svid::Refusal;
use metrics::Label;
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use tokio::sync::watch;

/// How often wall time is looked at besides the events that are waited for, because it may jump.
const TICK: Duration = Duration::from_secs(30);

/// What stands at present.
#[derive(Debug, Default)]
struct State {
    epoch: Option<Arc<Epoch>>,
    fault: Option<BadMaterial>,
    refused: u64,
}

/// The current identity of this process, for whoever makes connections. Clones show the same.
#[derive(Clone)]
pub struct Identities {
    state: watch::Receiver<State>,
    settings: Arc<EpochSettings>,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identities").field(&self.status()).finish()
    }
}

/// How things stand with our identity, for `/ready`, metrics and pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Our name; `None` before the first certificate.
    pub identity: Option<String>,
    /// The number of the epoch; 0 before the first certificate.
    pub epoch: u64,
    /// When our certificate ends.
    pub not_after: Option<SystemTime>,
    /// Whether a renewal is overdue.
    pub alarm: Alarm,
    /// Why the last identity was not taken over, if it was not.
    pub fault: Option<String>,
    /// How many were not taken over.
    pub refused: u64,
}

impl Identities {
    /// The current epoch; `None` before the first certificate.
    pub fn current(&self) -> Option<Arc<Epoch>> {
        self.state.borrow().epoch.clone()
    }

    /// The current epoch, or why there is none. Our own certificate's end is left to our peers to judge.
    pub(crate) fn demand(&self) -> Result<Arc<Epoch>, TlsError> {
        let state = self.state.borrow();
        state.epoch.clone().ok_or_else(|| {
            let why = state.fault.as_ref().map(ToString::to_string);
            TlsError::NoIdentity(why.unwrap_or_else(|| "the identity source has not answered yet".to_owned()))
        })
    }

    /// Waits for the first epoch. Never returns if the source never delivers one and goes away.
    pub async fn ready(&self) -> Arc<Epoch> {
        let mut state = self.state.clone();
        loop {
            if let Some(epoch) = state.borrow_and_update().epoch.clone() {
                return epoch;
            }
            if state.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits until another epoch than number `seen` is current.
    pub async fn changed(&self, seen: u64) -> Arc<Epoch> {
        let mut state = self.state.clone();
        loop {
            if let Some(epoch) =
                state.borrow_and_update().epoch.clone().filter(|epoch| epoch.number() != seen)
            {
                return epoch;
            }
            if state.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Tells how things stand, now and when that may have changed: when the source answers, and when our certificate
    /// ends. Never returns.
    pub async fn follow(&self, mut tell: impl FnMut(Status)) {
        let mut state = self.state.clone();
        loop {
            state.mark_unchanged();
            let status = self.status();
            let left = status.not_after.and_then(|end| end.duration_since(self.settings.wall()).ok());
            tell(status);
            // A certificate is valid through the second that it names.
            let nap = left.map_or(TICK, |left| left + Duration::from_secs(1)).min(TICK);
            tokio::select! {
                changed = state.changed() => if changed.is_err() { tokio::time::sleep(nap).await },
                () = tokio::time::sleep(nap) => {}
            }
        }
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        let now = self.settings.wall();
        let state = self.state.borrow();
        let epoch = state.epoch.as_deref();
        Status {
            identity: epoch.map(|epoch| epoch.identity().identity.to_string()),
            epoch: epoch.map(Epoch::number).unwrap_or_default(),
            not_after: epoch.map(|epoch| epoch.identity().not_after),
            alarm: epoch.map_or(Alarm::Expired, |epoch| {
                Alarm::at(now, epoch.not_before(), epoch.identity().not_after)
            }),
            fault: state.fault.as_ref().map(ToString::to_string),
            refused: state.refused,
        }
    }

    /// Waits until the connection of `session` must take no further request, and says why.
    ///
    /// Who serves or uses the connection then lets what is running end within its own bound, and closes it. This is
    /// how a withdrawn root or an expired certificate reaches connections that are open (ADR 0010).
    pub async fn retired(&self, session: &Session, rng: &Rng) -> Retirement {
        let mut state = self.state.clone();
        let mut judge = Arc::clone(session.epoch().verifier());
        let mut replaced: Option<Instant> = None;
        loop {
            let current = state.borrow_and_update().epoch.clone();
            if let Some(current) = current {
                if !current.verifier().bundles().same_as(judge.bundles()) {
                    judge = Arc::clone(current.verifier());
                    if let Err(refusal) = session.check_again(&judge, self.settings.now()) {
                        return Retirement::PeerRefused(refusal);
                    }
                }
                if replaced.is_none() && current.chain() != session.epoch().chain() {
                    replaced = clock::now().checked_add(self.settings.old_epoch_max.mul_f64(rng.unit()));
                }
            }
            let now = clock::now();
            if replaced.is_some_and(|end| end <= now) {
                return Retirement::OldEpoch;
            }
            let Some(left) = self.left_of(session, judge.clock_skew()) else {
                return Retirement::PeerExpired;
            };
            let until_replaced = replaced.map_or(TICK, |end| end.saturating_duration_since(now));
            let nap = tokio::time::sleep(left.min(until_replaced).min(TICK));
            tokio::select! {
                changed = state.changed() => if changed.is_err() { tokio::time::sleep(left.min(TICK)).await },
                () = nap => {}
            }
        }
    }

    /// Counts a handshake, and why it failed if it did.
    pub(crate) fn count_handshake(&self, direction: &'static str, failure: Option<&TlsError>) {
        let direction = Label::new("direction", direction);
        let (family, labels) = match failure {
            None => ("tls_handshakes_total", vec![direction]),
            Some(error) => {
                ("tls_handshake_failures_total", vec![direction, Label::new("reason", error.label())])
            }
        };
        self.settings.registry.counter(family, labels).increment(1);
    }

    /// Counts a connection that was retired.
    pub(crate) fn count_retired(&self, why: &Retirement) {
        let labels = vec![Label::new("reason", why.label())];
        self.settings.registry.counter("tls_connections_retired_total", labels).increment(1);
    }

    /// How much is left of the peer's certificate; `None`: nothing.
    fn left_of(&self, session: &Session, skew: Duration) -> Option<Duration> {
        let Some(peer) = session.peer() else { return Some(TICK) };
        let end = peer.not_after.checked_add(skew).unwrap_or(peer.not_after);
        // A certificate is valid through the second that it names.
        let left = end.duration_since(self.settings.wall()).ok()?;
        Some(left.max(Duration::from_secs(1)))
    }
}

/// Why a connection takes no further requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retirement {
    /// The peer's certificate has ended.
    PeerExpired,
    /// The peer's certificate is refused by the trust bundles of a later epoch.
    PeerRefused(Refusal),
    /// It was made under our former certificate, and its time is up.
    OldEpoch,
}

impl Retirement {
    /// The reason as a metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::PeerExpired => "peer_expired",
            Self::PeerRefused(_) => "peer_refused",
            Self::OldEpoch => "old_epoch",
        }
    }
}

/// Readies the identity of a process: what connections are made with, and the task that keeps it current.
///
/// Nothing happens until the task is run; whoever runs it decides when it ends.
pub fn rotation(
    mut source: impl Source + 'static,
    settings: EpochSettings,
) -> (Identities, impl Future<Output = ()> + Send + 'static) {
    let (sender, state) = watch::channel(State::default());
    let settings = Arc::new(settings);
    let mut publisher =
        Publisher { sender, settings: Arc::clone(&settings), alarm: None, warned: BTreeSet::new() };
    let task = async move {
        loop {
            let mut next = source.next();
            let answer = loop {
                tokio::select! {
                    biased;
                    answer = &mut next => break answer,
                    () = tokio::time::sleep(TICK) => publisher.look_at_the_clock(),
                }
            };
            drop(next);
            match publisher.take(answer) {
                Verdict::Taken => source.taken(),
                Verdict::Refused => source.refused(),
                Verdict::NoAnswer => {}
            }
            publisher.look_at_the_clock();
        }
    };
    (Identities { state, settings }, task)
}

/// What became of a source's answer.
enum Verdict {
    Taken,
    Refused,
    NoAnswer,
}

struct Publisher {
    sender: watch::Sender<State>,
    settings: Arc<EpochSettings>,
    alarm: Option<Alarm>,
    /// The trust domains of which an anchor has expired and was told of.
    warned: BTreeSet<TrustDomain>,
}

impl Publisher {
    /// Publishes a new epoch, or says what is wrong and leaves the old one.
    fn take(&mut self, answer: Result<Material, BadMaterial>) -> Verdict {
        let before = self.sender.borrow().epoch.clone();
        let number = before.as_ref().map(|epoch| epoch.number()).unwrap_or_default() + 1;
        let answered = answer.is_ok();
        let made =
            answer.and_then(|material| Epoch::new(number, material, &self.settings, before.as_deref()));
        match made {
            Ok(epoch) => {
                let same = before.is_some_and(|before| {
                    before.chain() == epoch.chain()
                        && before.verifier().bundles().same_as(epoch.verifier().bundles())
                });
                if same {
                    self.sender.send_modify(|state| state.fault = None);
                    return Verdict::Taken;
                }
                tracing::info!(epoch = number, identity = %epoch.identity().identity, "identity published");
                self.counted("control_identity_cert_refreshes_total", vec![]);
                self.shown("control_identity_epoch", vec![], number as f64);
                let end = seconds(epoch.identity().not_after);
                self.shown("control_identity_cert_expiration_timestamp_seconds", vec![], end);
                let now = seconds(self.settings.wall());
                self.shown("control_identity_cert_refresh_timestamp_seconds", vec![], now);
                self.sender.send_modify(|state| {
                    state.epoch = Some(Arc::new(epoch));
                    state.fault = None;
                });
                Verdict::Taken
            }
            Err(bad) => {
                tracing::warn!(reason = bad.label(), error = %bad, "identity not taken over");
                let labels = vec![Label::new("source", "identity"), Label::new("reason", bad.label())];
                self.counted("config_rejected_total", labels);
                self.sender.send_modify(|state| {
                    state.fault = Some(bad);
                    state.refused += 1;
                });
                if answered { Verdict::Refused } else { Verdict::NoAnswer }
            }
        }
    }

    fn counted(&self, family: &'static str, labels: Vec<Label>) {
        self.settings.registry.counter(family, labels).increment(1);
    }

    fn shown(&self, family: &'static str, labels: Vec<Label>, value: f64) {
        self.settings.registry.gauge(family, labels).set(value);
    }

    /// Shows and logs how much is left of our certificate.
    fn look_at_the_clock(&mut self) {
        let Some(epoch) = self.sender.borrow().epoch.clone() else { return };
        let (now, end) = (self.settings.wall(), epoch.identity().not_after);
        let alarm = Alarm::at(now, epoch.not_before(), end);
        let left = end.duration_since(now).unwrap_or_default();
        self.shown("control_identity_cert_seconds_left", vec![], left.as_secs_f64());
        for (domain, bundle) in epoch.verifier().bundles().iter() {
            let Some(end) = bundle.first_expiry() else { continue };
            let left = end
                .duration_since(now)
                .map_or_else(|late| -late.duration().as_secs_f64(), |left| left.as_secs_f64());
            let of = vec![Label::new("trust_domain", domain.to_string())];
            self.shown("control_identity_anchor_seconds_left", of, left);
            if left <= 0.0 && self.warned.insert(domain.clone()) {
                tracing::warn!(trust_domain = %domain, "a trust anchor has expired");
            }
        }
        if self.alarm.replace(alarm) == Some(alarm) {
            return;
        }
        for each in [Alarm::Low, Alarm::Critical, Alarm::Expired] {
            let rings = if each == alarm { 1.0 } else { 0.0 };
            self.shown("control_identity_cert_alarm", vec![Label::new("level", each.as_str())], rings);
        }
        if alarm > Alarm::Calm {
            tracing::warn!(alarm = alarm.as_str(), left = ?left, "our certificate is not being renewed");
        }
    }
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
