//! Floor 6: where a mesh's metrics go: to the program's recorder, or to a Prometheus recorder of its own.

use crate::error::Error;
use crate::mesh::builder::MeshBuilder;
use crate::metrics::registry::Registry;
use futures::future::BoxFuture;
use std::sync::Arc;

/// Makes the metrics as text.
type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// Where a mesh's metrics go.
#[derive(Debug)]
pub(crate) struct Recording {
    registry: Registry,
    #[cfg(feature = "prometheus")]
    own: Option<crate::metrics::prometheus::Prometheus>,
}

impl Recording {
    /// The recorder or the registry that the builder was given; else, with feature `prometheus`, a recorder of the mesh's own unless the
    /// program wants its global one (see [`MeshBuilder::registry`]).
    #[cfg(feature = "prometheus")]
    pub(crate) fn of(builder: &MeshBuilder) -> Result<Self, Error> {
        let own = match (&builder.prometheus, &builder.registry) {
            (Some(given), _) => given.clone(),
            (None, Some(registry)) => return Ok(Self { registry: registry.clone(), own: None }),
            (None, None) => crate::metrics::prometheus::Prometheus::new()?,
        };
        Ok(Self { registry: own.registry().clone(), own: Some(own) })
    }

    #[cfg(not(feature = "prometheus"))]
    pub(crate) fn of(builder: &MeshBuilder) -> Result<Self, Error> {
        Ok(Self { registry: builder.registry.clone().unwrap_or_default() })
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What makes the metrics as text, if they are the mesh's own.
    #[cfg(feature = "prometheus")]
    pub(crate) fn render(&self) -> Option<Render> {
        let own = self.own.clone()?;
        Some(Arc::new(move || own.render()))
    }

    #[cfg(not(feature = "prometheus"))]
    pub(crate) fn render(&self) -> Option<Render> {
        None
    }

    /// The task that keeps the recorder small.
    #[cfg(feature = "prometheus")]
    pub(crate) fn upkeep(&self) -> Option<BoxFuture<'static, ()>> {
        let own = self.own.clone()?;
        Some(Box::pin(async move {
            loop {
                tokio::time::sleep(crate::metrics::prometheus::UPKEEP).await;
                own.upkeep();
            }
        }))
    }

    #[cfg(not(feature = "prometheus"))]
    pub(crate) fn upkeep(&self) -> Option<BoxFuture<'static, ()>> {
        None
    }
}
