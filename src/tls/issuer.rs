//! Floor 5: a source that asks an issuer for certificates and asks again in time.

use crate::stdx::clock;
use crate::stdx::rng::Rng;
use crate::tls::epoch::read_wall;
use crate::tls::epoch::system_wall;
use crate::tls::material::BadMaterial;
use crate::tls::material::Material;
use crate::tls::material::Source;
use crate::tls::renew::RenewalSettings;
use crate::tls::svid::Names;
use crate::tls::svid::read_leaf;
use futures::future::BoxFuture;
use rustls::time_provider::TimeProvider;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

/// The longest sleep at a time: the wall clock may jump meanwhile.
const NAP_MAX: Duration = Duration::from_secs(30);

/// Who gives out certificates when asked: an authority, Linkerd's identity service.
pub trait Issuer: Send {
    /// A word for logs and pages.
    fn name(&self) -> &'static str;

    /// Asks for a certificate now. May be dropped when it takes too long.
    fn issue(&mut self) -> BoxFuture<'_, Result<Material, BadMaterial>>;

    /// Waits until a certificate should be asked for early, because the trust roots changed. Default: never.
    fn changed(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// The certificates of an issuer, each asked for at 70 % of the life of the one before.
///
/// An issuer that fails, hangs or answers wrongly is asked again with backoff; the last good certificate stays.
pub struct Renewing<I> {
    issuer: I,
    settings: RenewalSettings,
    rng: Rng,
    wall: Arc<dyn TimeProvider>,
    /// When to ask, by both clocks: whichever comes first, because wall time may jump and monotonic time may stop.
    due: Option<(Instant, SystemTime)>,
    failures: u32,
}

impl<I> fmt::Debug for Renewing<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing")
            .field("due", &self.due)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}

impl<I: Issuer> Renewing<I> {
    /// Asks `issuer`, first at once.
    pub fn new(issuer: I, settings: RenewalSettings, rng: Rng) -> Self {
        Self { issuer, settings, rng, wall: system_wall(), due: None, failures: 0 }
    }

    /// The same, by another wall clock; for tests.
    #[must_use]
    pub fn with_wall(mut self, wall: Arc<dyn TimeProvider>) -> Self {
        self.wall = wall;
        self
    }

    /// How long there is to wait; by the clock that says less.
    fn wait(&self) -> Duration {
        let Some((instant, wall)) = self.due else { return Duration::ZERO };
        let by_wall = wall.duration_since(read_wall(&*self.wall)).unwrap_or_default();
        instant.saturating_duration_since(clock::now()).min(by_wall)
    }

    fn ask_again_in(&mut self, wait: Duration) {
        let (now, wall) = (clock::now(), read_wall(&*self.wall));
        let due = now.checked_add(wait).zip(wall.checked_add(wait));
        self.due = Some(due.unwrap_or((now, wall)));
    }

    fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let wait = self.settings.wait_after_failure(self.failures, &self.rng);
        self.ask_again_in(wait);
    }

    async fn sleep_until_due(&mut self) {
        loop {
            let wait = self.wait();
            if wait.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait.min(NAP_MAX)) => {}
                () = self.issuer.changed(), if self.failures == 0 => return,
            }
        }
    }

    async fn ask(&mut self) -> Result<Material, BadMaterial> {
        self.sleep_until_due().await;
        let answer = match tokio::time::timeout(self.settings.answer_max, self.issuer.issue()).await {
            Ok(answer) => answer,
            Err(_) => Err(BadMaterial::Source(format!(
                "{} did not answer within {:?}",
                self.issuer.name(),
                self.settings.answer_max
            ))),
        };
        let end = match &answer {
            Ok(material) => material.chain.first().and_then(|leaf| read_leaf(leaf, Names::Linkerd).ok()),
            Err(_) => None,
        };
        match end {
            Some(leaf) => {
                let left = leaf.not_after.duration_since(read_wall(&*self.wall)).unwrap_or_default();
                let wait = self.settings.jittered_wait(left, &self.rng);
                self.ask_again_in(wait);
            }
            None => self.failed(),
        }
        answer
    }
}

impl<I: Issuer> Source for Renewing<I> {
    fn name(&self) -> &'static str {
        self.issuer.name()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Material, BadMaterial>> {
        Box::pin(self.ask())
    }

    fn taken(&mut self) {
        self.failures = 0;
    }

    fn refused(&mut self) {
        self.failed();
    }
}
