//! Metrics for Prometheus, at `PROM_PORT` as they have always been.

use enmesh::admin::readiness::Readiness;
use enmesh::admin::server::{self, Admin};
use enmesh::metrics::prometheus::Prometheus;
use tokio::net::TcpListener;

/// The metrics of a mesh, and where they are shown.
pub struct Metrics {
    prometheus: Prometheus,
    listener: TcpListener,
}

impl Metrics {
    /// Shows what a mesh counts in `prometheus` at `port` of all addresses.
    pub async fn at(port: u16, prometheus: Prometheus) -> Result<Self, String> {
        let listener = crate::listen::everywhere(port, "set PROM_PORT to another").await?;
        let addr = listener.local_addr().map_err(|error| error.to_string())?;
        tracing::info!("metrics are at http://{addr}/metrics");
        Ok(Self { prometheus, listener })
    }

    /// Shows them for as long as it is polled.
    pub async fn serve(self) {
        let shown = self.prometheus;
        let admin = Admin::new(Readiness::default()).metrics(move || shown.render());
        server::serve(self.listener, admin, std::future::pending()).await;
    }
}
