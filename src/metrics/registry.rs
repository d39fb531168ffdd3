//! Floor 2: where handles come from: the program's `metrics` recorder, or one given to the mesh.

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use std::fmt;
use std::sync::Arc;

/// Resolves metric handles by family and labels.
#[derive(Clone, Default)]
pub struct Registry {
    own: Option<Arc<dyn Recorder + Send + Sync>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("own", &self.own.is_some()).finish()
    }
}

const METADATA: Metadata<'static> = Metadata::new("enmesh", Level::INFO, Some("enmesh"));

impl Registry {
    /// Handles of the recorder that the program installed (`metrics::set_global_recorder`) by then.
    pub fn global() -> Self {
        Self { own: None }
    }

    /// Handles of `recorder` alone, for a mesh that shares nothing with the rest of the program.
    pub fn own(recorder: Arc<dyn Recorder + Send + Sync>) -> Self {
        Self { own: Some(recorder) }
    }

    /// A counter.
    pub fn counter(&self, family: &'static str, labels: Vec<Label>) -> Counter {
        let key = Key::from_parts(family, labels);
        self.with(|recorder| recorder.register_counter(&key, &METADATA))
    }

    /// A gauge.
    pub fn gauge(&self, family: &'static str, labels: Vec<Label>) -> Gauge {
        let key = Key::from_parts(family, labels);
        self.with(|recorder| recorder.register_gauge(&key, &METADATA))
    }

    /// A histogram.
    pub fn histogram(&self, family: &'static str, labels: Vec<Label>) -> Histogram {
        let key = Key::from_parts(family, labels);
        self.with(|recorder| recorder.register_histogram(&key, &METADATA))
    }

    fn with<T>(&self, f: impl FnOnce(&dyn Recorder) -> T) -> T {
        match &self.own {
            Some(recorder) => f(recorder.as_ref()),
            None => metrics::with_recorder(f),
        }
    }
}
