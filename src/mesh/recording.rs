//! Floor 6: where a mesh's metrics go: to the program's recorder, or to a Prometheus recorder of its own.

use crate::error::Error;
use crate::mesh::builder::MeshBuilder;
use crate::metrics::ledger::{Collect, Ledger};
use crate::metrics::registry::Registry;
use crate::metrics::show::Show;
use crate::metrics::text::Form;
use crate::stdx::clock;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;

/// Makes the metrics as text.
type Render = Arc<dyn Fn(Form) -> String + Send + Sync>;

/// Where a mesh's metrics go.
#[derive(Debug)]
pub(crate) struct Recording {
    registry: Registry,
    /// Passes what the mesh counts on to a recorder that is not its own.
    passing: Option<Arc<Show>>,
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
            (None, Some(registry)) => {
                return Ok(Self { passing: passing(registry), registry: registry.clone(), own: None });
            }
            (None, None) => crate::metrics::prometheus::Prometheus::new()?,
        };
        Ok(Self { registry: own.registry().clone(), passing: None, own: Some(own) })
    }

    #[cfg(not(feature = "prometheus"))]
    pub(crate) fn of(builder: &MeshBuilder) -> Result<Self, Error> {
        let registry = builder.registry.clone().unwrap_or_default();
        Ok(Self { passing: passing(&registry), registry })
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Shows what `source` counts, for as long as somebody holds it.
    pub(crate) fn add(&self, source: &Arc<dyn Collect>) {
        if let Some(passing) = &self.passing {
            passing.add(source);
        }
        #[cfg(feature = "prometheus")]
        if let Some(own) = &self.own {
            own.add(source);
        }
    }

    /// Passes what was counted until now on to the program's recorder, if the mesh has none of its own.
    pub(crate) fn pass(&self) {
        if let Some(passing) = &self.passing {
            passing.gather(clock::now());
        }
    }

    /// What makes the metrics as text, if they are the mesh's own.
    #[cfg(feature = "prometheus")]
    pub(crate) fn render(&self) -> Option<Render> {
        let own = self.own.clone()?;
        Some(Arc::new(move |form| own.render_as(form)))
    }

    #[cfg(not(feature = "prometheus"))]
    pub(crate) fn render(&self) -> Option<Render> {
        None
    }

    /// The task that keeps the recorder small, or that passes on what is counted.
    pub(crate) fn upkeep(&self) -> Option<BoxFuture<'static, ()>> {
        #[cfg(feature = "prometheus")]
        if let Some(own) = self.own.clone() {
            return Some(Box::pin(async move {
                loop {
                    tokio::time::sleep(crate::metrics::prometheus::UPKEEP).await;
                    own.upkeep();
                }
            }));
        }
        let passing = self.passing.clone()?;
        Some(Box::pin(async move {
            loop {
                tokio::time::sleep(PASS).await;
                passing.gather(clock::now());
            }
        }))
    }
}

/// How often what is counted is passed on: a third of the shortest usual interval between scrapes.
const PASS: Duration = Duration::from_secs(5);

fn passing(registry: &Registry) -> Option<Arc<Show>> {
    Some(Arc::new(Show::new(Ledger::default().passing_to(registry.clone()))))
}
