//! Floor 1: for whose calls a profile is. A namespace may have a profile of its own for a service of another one
//! (Linkerd's client profiles, Gateway API's consumer routes): it is for callers there alone, and comes before the
//! service's own for them.

use crate::profile::name::ServiceName;
use crate::profile::service::ServiceProfile;
use std::sync::Arc;

/// For whom a profile is, the one that comes first first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// For callers in our own namespace.
    Ours,
    /// For all callers.
    All,
    /// For callers in another namespace.
    Others,
}

/// The namespace of a service: `ns` of `web.ns` and of `web.ns.svc.<domain>`; `None` for other names.
pub fn namespace(short: &ServiceName) -> Option<&str> {
    parts(short).map(|(_, namespace)| namespace)
}

/// Service and namespace of a name that [`namespace`] knows.
pub(crate) fn parts(short: &ServiceName) -> Option<(&str, &str)> {
    short.host().split_once('.').filter(|(_, namespace)| !namespace.contains('.'))
}

/// For whom `profile` is, as seen from the namespace `home`; who says no home may use any.
pub fn scope(profile: &ServiceProfile, home: Option<&str>, domain: &str) -> Scope {
    let Some(written) = profile.namespace.as_deref() else { return Scope::All };
    let short = profile.name().map(|name| name.short(domain));
    match short.as_ref().and_then(namespace) {
        Some(own) if own == written => Scope::All,
        // A single label is a service of the document's own namespace; other names belong to no namespace.
        None if short.as_ref().is_none_or(|name| !name.host().contains('.')) => Scope::All,
        Some(_) | None => match home {
            Some(home) if home == written => Scope::Ours,
            Some(_) => Scope::Others,
            None => Scope::All,
        },
    }
}

/// `name` with `home` if it is a single label, as a resolver in that namespace reads it: `web` there is `web.home`.
pub fn at_home(name: &ServiceName, home: Option<&str>) -> Option<ServiceName> {
    let home = home.filter(|_| !name.host().contains(['.', ':']))?;
    let within: ServiceName = format!("{}.{home}", name.host()).parse().ok()?;
    Some(within.or_some_port(name.port()))
}

/// The namespace that a process called `name` lives in.
pub fn home(name: &ServiceName, domain: &str) -> Option<Arc<str>> {
    namespace(&name.short(domain)).map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, written: Option<&str>, home: Option<&str>, expected: Scope) {
        let name = name.parse().unwrap();
        let profile = ServiceProfile { namespace: written.map(Arc::from), ..ServiceProfile::new(name) };
        assert_eq!(scope(&profile, home, "cluster.local"), expected, "{profile:?} {home:?}");
    }

    #[test]
    fn a_profile_of_another_namespace_is_for_callers_there() {
        for name in ["web.ns", "web.ns:80", "web.ns.svc.cluster.local"] {
            check(name, None, Some("a"), Scope::All);
            check(name, Some("ns"), Some("a"), Scope::All);
            check(name, Some("ns"), None, Scope::All);
            check(name, Some("a"), Some("a"), Scope::Ours);
            check(name, Some("a"), Some("b"), Scope::Others);
            check(name, Some("a"), Some("ns"), Scope::Others);
            check(name, Some("a"), None, Scope::All);
        }
        check("web", Some("a"), Some("b"), Scope::All);
        for name in ["www.example.com", "10.0.0.1"] {
            check(name, Some("a"), Some("b"), Scope::Others);
            check(name, Some("a"), Some("a"), Scope::Ours);
            check(name, None, Some("a"), Scope::All);
        }
    }

    #[test]
    fn a_single_label_is_meant_at_home() {
        let at = |name: &str, home| {
            at_home(&name.parse().unwrap(), home).map(|name: ServiceName| name.to_string())
        };
        assert_eq!(at("web", Some("ns")).as_deref(), Some("web.ns"));
        assert_eq!(at("web:80", Some("ns")).as_deref(), Some("web.ns:80"));
        assert_eq!(at("web", None), None);
        assert_eq!(at("web.a", Some("ns")), None);
        assert_eq!(at("[::1]:80", Some("ns")), None);
        assert_eq!(
            home(&"web.ns.svc.cluster.local:80".parse().unwrap(), "cluster.local").as_deref(),
            Some("ns")
        );
        assert_eq!(home(&"localhost".parse().unwrap(), "cluster.local"), None);
    }
}
