//! Floor 6: every task that a mesh runs.
//!
//! They end when the last handle of the mesh is dropped.

use crate::mesh::directory::Update;
use crate::mesh::services::Services;
use crate::profile::name::ServiceName;
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use std::future::Future;
use std::sync::{Arc, Weak};
use tokio::runtime::Handle;
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
