//! Floor 6: what a page of the admin server is asked.

use crate::route::query;
use crate::tls::identity::Identity;
use bytes::Bytes;
use http::Method;
use std::net::IpAddr;

/// What a page is asked.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Asked {
    /// The method, one that the page was registered for; `HEAD` for a page that answers `GET`.
    pub method: Method,
    /// What stands after the `?`; empty if nothing does.
    pub query: String,
    /// The peer's address, where there is one.
    pub remote: Option<IpAddr>,
    /// Who the peer has proved to be, where it has.
    pub identity: Option<Identity>,
    /// Whether it accepts server-sent events, as a browser's `EventSource` does.
    pub wants_events: bool,
    /// Whether it accepts OpenMetrics, as Prometheus does.
    pub wants_open_metrics: bool,
    /// The body of a `POST`, at most [`BODY_BYTES_MAX`](crate::admin::server::BODY_BYTES_MAX) of it.
    pub body: Bytes,
}

impl Asked {
    /// Names and values of the query, decoded; `+` is a space.
    pub fn pairs(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let text = |part| String::from_utf8_lossy(&query::decoded(part)).into_owned();
        query::pairs(Some(&self.query)).map(move |(key, value)| (text(key), text(value)))
    }

    /// The values that the query gives `name`.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> + 'a {
        self.pairs().filter(move |(key, _)| key == name).map(|(_, value)| value)
    }

    /// The first value that the query gives `name`.
    pub fn value(&self, name: &str) -> Option<String> {
        self.values(name).next()
    }

    /// Whether the query says `name`, and neither `name=0` nor `name=false`.
    pub fn flag(&self, name: &str) -> bool {
        self.value(name).is_some_and(|value| value != "0" && value != "false")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded() {
        let asked = Asked { query: "a=1&b=x%20y+z&a=2&c&d=%zz%&%61=3&e=0".into(), ..Asked::default() };
        assert_eq!(asked.values("a").collect::<Vec<_>>(), ["1", "2", "3"]);
        assert_eq!(asked.value("b").as_deref(), Some("x y z"));
        assert_eq!(asked.value("d").as_deref(), Some("%zz%"));
        assert_eq!((asked.flag("c"), asked.flag("e"), asked.flag("f")), (true, false, false));
    }
}
