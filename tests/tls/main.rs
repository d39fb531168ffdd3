//! Mutual TLS as two processes would meet it: over pipes, on a paused clock, with every kind of wrong peer.
#![cfg(any(feature = "tls", feature = "ring"))]

mod handshake;
mod rotation;
mod sources;
#[path = "../support/tls.rs"]
mod support;
mod tamper;

use enmesh::stdx::rng::Rng;
use enmesh::tls::authority::Authority;
use enmesh::tls::renew::RenewalSettings;
use enmesh::tls::rotate::Identities;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use support::Wall;

/// 2026-06-01.
const NOW: i64 = 1_780_272_000;

/// A workload of `authority`, renewed by itself.
async fn workload(authority: &Authority, name: &str, wall: &Arc<Wall>) -> Identities {
    let source = authority.source(support::id(name), RenewalSettings::default(), Rng::seeded(1));
    let identities = support::keep(source, support::settings(wall));
    identities.ready().await;
    identities
}

/// Turns the clock.
fn turn(wall: &Wall, seconds: i64) {
    wall.offset.fetch_add(seconds, Ordering::SeqCst);
}
