//! Floor 6: every task that a mesh runs.
//!
//! They end when the last handle of the mesh is dropped.

use crate::mesh::directory::Update;
use crate::mesh::services::Services;
use crate::profile::name::ServiceName;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered, SelectAll};
use std::future::Future;
use std::sync::{Arc, Weak};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The tasks of one mesh; dropped, they end.
#[derive(Debug, Default)]
pub struct Tasks(JoinSet<()>);

impl Tasks {
    /// Runs `future` on `runtime` until it or the mesh ends.
    pub fn spawn(&mut self, runtime: &Handle, future: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn_on(future, runtime);
    }
}

/// What is done beside requests, and nobody waits for.
pub type Aside = BoxFuture<'static, ()>;

/// The most of it that waits to begin: as many as a mirror's copies may be under way, four times. What is more is dropped.
pub const ASIDE_MAX: usize = 256;

/// Does what is sent to it, all at once, until the senders are gone.
pub async fn aside(mut sent: mpsc::Receiver<Aside>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            next = sent.recv() => match next {
                Some(next) => running.push(next),
                None => return,
            },
            Some(()) = running.next(), if !running.is_empty() => {}
        }
    }
}

/// Reads the sources' streams and applies what they say, one update after the other. `ready` is dropped when they have
/// spoken for the first time, or have nothing to say.
pub async fn update(services: Weak<Services>, told: Arc<tokio::sync::Notify>, ready: Box<dyn Send>) {
    let mut ready = Some(ready);
    let mut streams: SelectAll<BoxStream<'static, (ServiceName, Update)>> = SelectAll::new();
    loop {
        match services.upgrade() {
            Some(services) => {
                for (name, stream) in services.directory().take_streams() {
                    streams.push(stream.map(move |update| (name.clone(), update)).boxed());
                }
            }
            None => return drop(ready),
        }
        if streams.is_empty() {
            ready = None;
        }
        tokio::select! {
            () = told.notified() => {}
            Some((name, update)) = streams.next(), if !streams.is_empty() => {
                if let Some(services) = services.upgrade() {
                    services.directory().apply(&name, update);
                }
                ready = None;
            }
        }
    }
}
