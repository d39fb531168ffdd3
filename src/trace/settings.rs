//! Floor 2: what is done with traces.

use crate::trace::context::{Format, Formats};

/// What is done with the contexts of traces in requests' headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TraceMode {
    /// They are left alone, as Linkerd does without a collector.
    #[default]
    Off,
    /// The context of what arrives is handed on as it is to what is sent meanwhile, so that a trace goes through this
    /// process though nobody records it here.
    Pass,
    /// Calls and attempts are spans of their own; a trace is begun where there is none.
    Record,
}

/// What is done with traces.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TraceSettings {
    /// What is done with contexts.
    pub mode: TraceMode,
    /// The share of traces begun here that are recorded, 0 to 1; whoever began another trace has decided about it.
    /// Default: 1, OpenTelemetry's own.
    pub roots: f64,
    /// How contexts of traces begun here are written; others are written as they came. Default: W3C's.
    pub formats: Formats,
}

impl Default for TraceSettings {
    fn default() -> Self {
        Self { mode: TraceMode::Off, roots: 1.0, formats: Formats::of(&[Format::W3c]) }
    }
}

impl TraceSettings {
    /// Hands contexts on.
    pub fn pass() -> Self {
        Self { mode: TraceMode::Pass, ..Self::default() }
    }

    /// Records, and begins traces.
    pub fn record() -> Self {
        Self { mode: TraceMode::Record, ..Self::default() }
    }

    /// Records this share of the traces begun here.
    #[must_use]
    pub fn roots(self, share: f64) -> Self {
        Self { roots: share.clamp(0.0, 1.0), ..self }
    }

    /// Writes contexts of traces begun here so.
    #[must_use]
    pub fn formats(self, formats: &[Format]) -> Self {
        Self { formats: Formats::of(formats), ..self }
    }
}
