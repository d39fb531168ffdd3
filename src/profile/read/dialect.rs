//! Floor 1: which rules a ServiceProfile is read by.

/// Which rules a ServiceProfile is read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Dialect {
    /// `linkerd.io/v1alpha2` and `v1alpha1`: what Linkerd's webhook accepts loads. What its proxy would drop later
    /// without a word is dropped here with one, and never so that more requests match.
    Linkerd,
    /// `enmesh.dev/v1`: the same fields and many more, and whatever cannot be used is refused.
    Enmesh,
}

impl Dialect {
    /// The dialect of an `apiVersion`, if it is one of a ServiceProfile.
    pub(crate) fn of(api_version: &str) -> Option<Self> {
        match api_version {
            "linkerd.io/v1alpha1" | "linkerd.io/v1alpha2" => Some(Self::Linkerd),
            "enmesh.dev/v1" => Some(Self::Enmesh),
            _ => None,
        }
    }
}
