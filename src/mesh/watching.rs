//! Floor 6: makes what observes the calls of a mesh, as its builder was told.

use crate::error::Error;
#[cfg(feature = "otel")]
use crate::mesh::builder::Exporting;
use crate::mesh::builder::{LogWriter, MeshBuilder};
use crate::mesh::watch::Watch;
use crate::profile::name::ServiceName;
use crate::stdx::rng::Rng;
use crate::tap::hub::TapHub;
use crate::tap::redact::Redaction;
use crate::trace::access::{AccessLog, Lines};
#[cfg(feature = "otel")]
use crate::trace::otel::Otel;
use futures::future::BoxFuture;
use std::io::Write;

/// What writes an access log, until the mesh ends.
type Writing = BoxFuture<'static, ()>;

/// The most lines that are written at once.
const LINES_AT_ONCE: usize = 256;

/// What observes the calls of the mesh that `builder` makes for the service `own`.
pub(crate) fn of(
    builder: &mut MeshBuilder,
    own: &ServiceName,
    rng: &Rng,
) -> Result<(Watch, Option<Writing>), Error> {
    let tap = TapHub::new(own.to_string(), Redaction::and(builder.hidden.drain(..)));
    let (log, writing) = match builder.access_log.take() {
        Some((format, writer)) => {
            let (log, lines) = AccessLog::new(format);
            (Some(log), Some(Box::pin(write(lines, writer)) as Writing))
        }
        None => (None, None),
    };
    let watch = Watch::new(tap, builder.trace, log, rng.clone());
    #[cfg(feature = "otel")]
    let watch = match builder.otel.take() {
        None => watch,
        Some(Exporting::Own(otel)) => watch.exporting(otel),
        Some(Exporting::Otlp(settings)) => {
            if tokio::runtime::Handle::try_current().is_err() {
                return Err(Error::Config(
                    "a mesh that exports spans must be built inside a tokio runtime".into(),
                ));
            }
            watch.exporting(Otel::otlp(&own.to_string(), &settings)?)
        }
    };
    Ok((watch, writing))
}

/// Writes lines, on threads for what blocks. A writer that fails is given up: there is nobody to tell but the log.
async fn write(mut lines: Lines, writer: LogWriter) {
    let mut writer = writer.0;
    let mut some = Vec::new();
    while lines.recv_many(&mut some, LINES_AT_ONCE).await > 0 {
        let text: String = some.drain(..).collect();
        let written = tokio::task::spawn_blocking(move || {
            let written = writer.write_all(text.as_bytes()).and_then(|()| writer.flush());
            (writer, written)
        });
        match written.await {
            Ok((back, Ok(()))) => writer = back,
            Ok((_, Err(error))) => {
                tracing::error!(%error, "the access log cannot be written and ends");
                return;
            }
            // The runtime ends, or the writer panicked.
            Err(_) => return,
        }
    }
}
