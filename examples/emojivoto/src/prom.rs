//! Metrics for Prometheus, at `PROM_PORT` as they have always been.

use enmesh::admin::readiness::Readiness;
use enmesh::admin::server::{self, Admin};
use enmesh::metrics::prometheus::{Prometheus, UPKEEP};
use enmesh::metrics::registry::Registry;
use tokio::net::TcpListener;

/// Where metrics are counted, and where they are shown.
pub struct Metrics {
    prometheus: Prometheus,
    listener: TcpListener,
}

impl Metrics {
    /// Metrics that are shown at `port` of all addresses.
    pub async fn at(port: u16) -> Result<Self, String> {
        let listener = crate::listen::everywhere(port, "set PROM_PORT to another").await?;
        let addr = listener.local_addr().map_err(|error| error.to_string())?;
        tracing::info!("metrics are at http://{addr}/metrics");
        let prometheus = Prometheus::new().map_err(|error| error.to_string())?;
        Ok(Self { prometheus, listener })
    }

    /// Where to count.
    pub fn registry(&self) -> Registry {
        self.prometheus.registry().clone()
    }

    /// Shows them for as long as it is polled.
    pub async fn serve(self) {
        let shown = self.prometheus.clone();
        let admin = Admin::new(Readiness::default()).metrics(move || shown.render());
        let upkeep = async {
            loop {
                tokio::time::sleep(UPKEEP).await;
                self.prometheus.upkeep();
            }
        };
        tokio::select! {
            _ = server::serve(self.listener, admin, std::future::pending()) => {}
            () = upkeep => {}
        }
    }
}
