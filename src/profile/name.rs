//! Floor 1: names a service: `host[:port]`, as it stands in an authority.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name of a service as callers write it: `emoji-svc.emojivoto:8080`.
///
/// The host is kept in lower case without a trailing dot, so that two spellings of one name are one key.
/// Cloning is a reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    host: Arc<str>,
    port: Option<u16>,
}

/// Why a text is no [`ServiceName`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadName {
    /// The text as given, cut to 300 bytes.
    pub given: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a service name: {}; write `host` or `host:port`", self.given, self.reason)
    }
}

impl std::error::Error for BadName {}

impl ServiceName {
    /// The longest host name that is accepted, in bytes (RFC 1035: 253 visible characters and a dot).
    pub const HOST_BYTES_MAX: usize = 254;

    /// `localhost`: the name of a process that is not called.
    pub fn localhost() -> Self {
        Self { host: "localhost".into(), port: None }
    }

    /// The host in lower case, without a trailing dot. An IPv6 address stands without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, if the name says one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The same host with `port`, if this name has none.
    #[must_use]
    pub fn or_port(&self, port: u16) -> Self {
        Self { host: Arc::clone(&self.host), port: Some(self.port.unwrap_or(port)) }
    }

    /// The same name with `port`, if there is one and this name has none.
    #[must_use]
    pub(crate) fn or_some_port(&self, port: Option<u16>) -> Self {
        Self { host: Arc::clone(&self.host), port: self.port.or(port) }
    }

    /// The name that all spellings of one Kubernetes service share: `web.ns.svc.<domain>` and `web.ns.svc` are
    /// `web.ns`. Other names stay as they are.
    #[must_use]
    pub fn short(&self, cluster_domain: &str) -> Self {
        let host = &*self.host;
        let host = host.strip_suffix(cluster_domain).and_then(|host| host.strip_suffix('.')).unwrap_or(host);
        match host.strip_suffix(".svc") {
            Some(short) if short.contains('.') => Self { host: short.into(), port: self.port },
            _ => self.clone(),
        }
    }

    /// The same host without a port.
    #[must_use]
    pub fn without_port(&self) -> Self {
        Self { host: Arc::clone(&self.host), port: None }
    }
}

impl FromStr for ServiceName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let bad = |reason| BadName { given: text.chars().take(300).collect(), reason };
        let (host, port) = split_port(text).map_err(bad)?;
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.is_empty() {
            return Err(bad("the host is empty"));
        }
        if host.len() > Self::HOST_BYTES_MAX {
            return Err(bad("the host is longer than 254 bytes"));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
        if !host.bytes().all(allowed) {
            return Err(bad("only letters, digits, `-`, `_` and `.` may stand in a host"));
        }
        Ok(Self { host: host.to_ascii_lowercase().into(), port })
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), &'static str> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, tail) = rest.split_once(']').ok_or("`[` has no `]`")?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| "what stands in brackets is no IPv6 address")?;
        return match tail.strip_prefix(':') {
            Some(port) => Ok((host, Some(parse_port(port)?))),
            None if tail.is_empty() => Ok((host, None)),
            None => Err("only `:port` may follow `]`"),
        };
    }
    match text.matches(':').count() {
        0 => Ok((text, None)),
        1 => {
            let (host, port) = text.split_once(':').unwrap_or((text, ""));
            Ok((host, Some(parse_port(port)?)))
        }
        _ => text
            .parse::<std::net::Ipv6Addr>()
            .map(|_| (text, None))
            .map_err(|_| "more than one `:`, and no IPv6 address"),
    }
}

fn parse_port(text: &str) -> Result<u16, &'static str> {
    match text.parse::<u16>() {
        Ok(0) | Err(_) => Err("the port must be a number from 1 to 65535"),
        Ok(port) => Ok(port),
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host.contains(':'), self.port) {
            (true, Some(port)) => write!(f, "[{}]:{port}", self.host),
            (false, Some(port)) => write!(f, "{}:{port}", self.host),
            (_, None) => f.write_str(&self.host),
        }
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<(&str, Option<u16>)>) {
        let parsed = text.parse::<ServiceName>().ok();
        let seen = parsed.as_ref().map(|name| (name.host(), name.port()));
        assert_eq!(seen, expected, "{text}");
    }

    #[test]
    fn hosts_ports_and_addresses_are_told_apart() {
        check("Emoji-SVC.emojivoto.:8080", Some(("emoji-svc.emojivoto", Some(8080))));
        check("web", Some(("web", None)));
        check("[::1]:80", Some(("::1", Some(80))));
        check("::1", Some(("::1", None)));
        for bad in ["", ".", ":80", "a:0", "a:70000", "a:b:c", "[::1", "[x]:1", "a b", "a/b", "u@h"] {
            check(bad, None);
        }
    }

    #[test]
    fn spellings_of_one_service_share_a_short_name() {
        let short = |text: &str| text.parse::<ServiceName>().unwrap().short("cluster.local").to_string();
        for text in
            ["web.ns:80", "web.ns.svc:80", "web.ns.svc.cluster.local:80", "WEB.ns.svc.cluster.local.:80"]
        {
            assert_eq!(short(text), "web.ns:80");
        }
        for text in ["example.com", "web.svc", "cluster.local", "svc.cluster.local"] {
            assert_eq!(short(text), text);
        }
    }

    #[test]
    fn display_parses_back() {
        for text in ["a.b:1", "a.b", "[::1]:80", "::1"] {
            let name: ServiceName = text.parse().unwrap();
            assert_eq!(name.to_string().parse::<ServiceName>().unwrap(), name);
        }
    }
}
