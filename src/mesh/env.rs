//! Floor 6: a mesh configured from outside, as an injected sidecar would be.

use crate::mesh::builder::MeshBuilder;
use crate::profile::duration;
use crate::profile::invalid::Fault;
use crate::trace::log::LogFormat;
use crate::trace::settings::TraceMode;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

/// Every variable that [`Mesh::from_env`](crate::mesh::runtime::Mesh::from_env) reads, and what it sets.
pub const VARIABLES: [(&str, &str); 18] = [
    ("ENMESH_NAME", "this process's own service, name.namespace[:port]"),
    ("ENMESH_PROFILES", "a directory of profiles, watched"),
    ("ENMESH_ENDPOINTS", "a directory of Endpoints documents, watched; may be the same"),
    ("ENMESH_DNS", "whether unknown names are looked up in DNS: true or false"),
    ("ENMESH_ADMIN", "address:port of the admin server; a port alone is of loopback"),
    (
        "ENMESH_ADMIN_PEERS",
        "admin servers of other processes to show together, http://host:port each, by commas",
    ),
    ("ENMESH_CLUSTER_DOMAIN", "the suffix of Kubernetes service names; default cluster.local"),
    (
        "ENMESH_ADMIN_OBSERVERS",
        "identities that may see live requests at the admin server from another machine, by commas",
    ),
    ("ENMESH_CONNECT_TIMEOUT", "how long opening a connection may take, such as 1s"),
    ("ENMESH_DRAIN_TIMEOUT", "how long requests under way may take at shutdown, such as 30s"),
    (
        "ENMESH_IDENTITY",
        "a directory with tls.crt, tls.key and ca.crt, or unix:///path of a SPIFFE Workload API",
    ),
    ("ENMESH_ACCEPT", "what a server with an identity takes: strict (default), permissive or off"),
    (
        "ENMESH_FAULT_INJECTION",
        "whether the faults that profiles ask for are injected: true (default) or false",
    ),
    ("ENMESH_AUTHORIZATION", "a file with an Authorization document, watched"),
    ("ENMESH_TRACE", "what is done with contexts of traces: off (default), pass or record"),
    ("ENMESH_TRACE_SAMPLE", "the share of traces begun here that are recorded, 0 to 1; default 1"),
    ("ENMESH_OTLP", "the collector that spans are exported to, such as http://localhost:4317 (feature otel)"),
    ("ENMESH_ACCESS_LOG", "a line on standard error for each request that arrives: json or apache"),
];

/// Reads every variable by `get`. A variable that is unset or empty says nothing; one that starts with `ENMESH_` and is
/// not known is a fault, since it is a typing error.
pub(crate) fn read(variables: impl Iterator<Item = (String, String)>) -> MeshBuilder {
    let mut builder = MeshBuilder::default();
    let ours = variables.filter(|(key, value)| key.starts_with("ENMESH_") && !value.is_empty());
    let mut ours: Vec<_> = ours.filter(|(key, _)| key != "ENMESH_CORPUS").collect();
    ours.sort();
    for (key, value) in ours {
        builder = set(builder, &key, &value);
    }
    builder
}

fn set(mut builder: MeshBuilder, key: &str, value: &str) -> MeshBuilder {
    match key {
        "ENMESH_NAME" => builder.name(value),
        "ENMESH_PROFILES" => builder.profiles_dir(value),
        "ENMESH_ENDPOINTS" => builder.endpoints_dir(value),
        "ENMESH_CLUSTER_DOMAIN" => builder.cluster_domain(value),
        "ENMESH_DNS" => {
            builder.dns = parsed(&mut builder.faults, key, value, "write true or false");
            builder
        }
        "ENMESH_FAULT_INJECTION" => {
            builder.inject_faults = parsed(&mut builder.faults, key, value, "write true or false");
            builder
        }
        "ENMESH_ADMIN" => {
            let remedy = "write address:port, such as 127.0.0.1:4191, or a port, for this machine alone";
            let alone = value.parse().ok().map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            builder.admin = alone.or_else(|| parsed(&mut builder.faults, key, value, remedy));
            builder
        }
        "ENMESH_ADMIN_PEERS" | "ENMESH_ADMIN_OBSERVERS" => lists(builder, key, value),
        "ENMESH_CONNECT_TIMEOUT" => {
            if let Some(time) = time(&mut builder.faults, key, value) {
                builder.connect.timeout = time;
            }
            builder
        }
        "ENMESH_DRAIN_TIMEOUT" => {
            if let Some(time) = time(&mut builder.faults, key, value) {
                builder.serve.drain = time;
            }
            builder
        }
        // What cannot be read stops the process: without a policy everything would be allowed.
        "ENMESH_AUTHORIZATION" => builder.authorize_file(value),
        "ENMESH_TRACE" => {
            match value {
                "off" => builder.trace.mode = TraceMode::Off,
                "pass" => builder.trace.mode = TraceMode::Pass,
                "record" => builder.trace.mode = TraceMode::Record,
                _ => refuse(&mut builder.faults, key, value, "write off, pass or record"),
            }
            builder
        }
        "ENMESH_TRACE_SAMPLE" => {
            match value.parse::<f64>() {
                Ok(share) if (0.0..=1.0).contains(&share) => builder.trace.roots = share,
                Ok(_) | Err(_) => {
                    refuse(&mut builder.faults, key, value, "write a share from 0 to 1, such as 0.1")
                }
            }
            builder
        }
        "ENMESH_OTLP" => otlp(builder, key, value),
        "ENMESH_ACCESS_LOG" => match value {
            "json" => builder.access_log(LogFormat::Json),
            "apache" => builder.access_log(LogFormat::Apache),
            _ => {
                refuse(&mut builder.faults, key, value, "write json or apache");
                builder
            }
        },
        "ENMESH_IDENTITY" | "ENMESH_ACCEPT" => tls(builder, key, value),
        _ => {
            let known: Vec<&str> = VARIABLES.iter().map(|(name, _)| *name).collect();
            let remedy = format!("known are {}", known.join(", "));
            builder.faults.push(Fault::rejected(key, format!("is not known (`{value}`)"), remedy));
            builder
        }
    }
}

#[cfg(feature = "admin")]
fn lists(builder: MeshBuilder, key: &str, value: &str) -> MeshBuilder {
    let items = value.split(',').map(str::trim).filter(|item| !item.is_empty());
    match key {
        "ENMESH_ADMIN_PEERS" => builder.admin_peers(items),
        _ => builder.admin_observers(items),
    }
}

#[cfg(not(feature = "admin"))]
fn lists(mut builder: MeshBuilder, key: &str, value: &str) -> MeshBuilder {
    let remedy = "build it with feature `admin`";
    builder.faults.push(Fault::rejected(key, format!("is not built in (`{value}`)"), remedy));
    builder
}

#[cfg(feature = "otel")]
fn otlp(builder: MeshBuilder, _: &str, value: &str) -> MeshBuilder {
    builder.otlp(crate::trace::otel::OtelSettings::at(value))
}

#[cfg(not(feature = "otel"))]
fn otlp(mut builder: MeshBuilder, key: &str, _: &str) -> MeshBuilder {
    let remedy = "build it with feature `otel`";
    builder.faults.push(Fault::rejected(key, "needs OpenTelemetry, which is not built in", remedy));
    builder
}

fn refuse(faults: &mut Vec<Fault>, key: &str, value: &str, remedy: &str) {
    faults.push(Fault::rejected(key, format!("cannot be read (`{value}`)"), remedy));
}

#[cfg(any(feature = "tls", feature = "ring"))]
fn tls(mut builder: MeshBuilder, key: &str, value: &str) -> MeshBuilder {
    use crate::stdx::rng::Rng;
    use crate::tls::acceptor::Mode;
    use crate::tls::files::{FileSettings, Files};
    use crate::tls::workload_api::{WorkloadApi, WorkloadApiSettings};
    match (key, value) {
        ("ENMESH_ACCEPT", "strict") => builder.accepting(Mode::Strict),
        ("ENMESH_ACCEPT", "permissive") => builder.accepting(Mode::Permissive),
        ("ENMESH_ACCEPT", "off") => builder.accepting(Mode::Off),
        ("ENMESH_ACCEPT", _) => {
            refuse(&mut builder.faults, key, value, "write strict, permissive or off");
            builder
        }
        _ if value.starts_with("unix:") => {
            builder.identity(WorkloadApi::new(WorkloadApiSettings::at(value), Rng::thread()))
        }
        _ => builder.identity(Files::new(FileSettings::directory(value))),
    }
}

#[cfg(not(any(feature = "tls", feature = "ring")))]
fn tls(mut builder: MeshBuilder, key: &str, _: &str) -> MeshBuilder {
    let remedy = "build it with feature `tls`";
    builder.faults.push(Fault::rejected(key, "needs mutual TLS, which is not built in", remedy));
    builder
}

fn parsed<T: FromStr>(faults: &mut Vec<Fault>, key: &str, value: &str, remedy: &str) -> Option<T> {
    let parsed = value.trim().parse().ok();
    if parsed.is_none() {
        refuse(faults, key, value, remedy);
    }
    parsed
}

fn time(faults: &mut Vec<Fault>, key: &str, value: &str) -> Option<Duration> {
    match duration::go(value) {
        Ok(time) => Some(time),
        Err(problem) => {
            faults.push(Fault::rejected(
                key,
                format!("{problem} (`{value}`)"),
                "write such as 250ms or 1m30s",
            ));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(variables: &[(&str, &str)], fault: Option<&str>) {
        let owned = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let faults = read(owned).faults;
        let text: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(text.is_empty(), fault.is_none(), "{variables:?}: {text:?}");
        assert!(fault.is_none_or(|fault| text[0].contains(fault)), "{variables:?}: {text:?}");
    }

    #[test]
    fn an_admin_port_alone_is_of_loopback() {
        let admin = read([("ENMESH_ADMIN".to_owned(), "4191".to_owned())].into_iter()).admin;
        assert_eq!(admin, Some(([127, 0, 0, 1], 4191).into()));
        check(&[("ENMESH_ADMIN", ":4191")], Some("for this machine alone"));
    }

    #[test]
    fn a_policy_that_cannot_be_read_is_a_fault_and_not_an_open_door() {
        check(&[("ENMESH_AUTHORIZATION", "/nowhere/at-all.yaml")], Some("cannot be read"));
        check(&[("ENMESH_AUTHORIZATION", "")], None);
        check(&[("ENMESH_AUTORIZATION", "x")], Some("is not known"));
    }

    #[test]
    fn traces_and_logs_are_set_by_words() {
        check(
            &[("ENMESH_TRACE", "record"), ("ENMESH_TRACE_SAMPLE", "0.1"), ("ENMESH_ACCESS_LOG", "json")],
            None,
        );
        check(&[("ENMESH_TRACE", "on")], Some("off, pass or record"));
        check(&[("ENMESH_TRACE_SAMPLE", "NaN")], Some("a share from 0 to 1"));
        check(&[("ENMESH_ACCESS_LOG", "common")], Some("json or apache"));
        #[cfg(not(feature = "otel"))]
        check(&[("ENMESH_OTLP", "http://localhost:4317")], Some("not built in"));
    }

    #[cfg(any(feature = "tls", feature = "ring"))]
    #[test]
    fn identities_come_from_a_directory_or_a_socket() {
        check(&[("ENMESH_IDENTITY", "/var/run/identity"), ("ENMESH_ACCEPT", "permissive")], None);
        check(&[("ENMESH_IDENTITY", "unix:///run/spire/agent.sock")], None);
        check(&[("ENMESH_ACCEPT", "Permissive")], Some("strict, permissive or off"));
        let of = |value: &str| {
            let builder = read([("ENMESH_IDENTITY".to_owned(), value.to_owned())].into_iter());
            builder.identity.map(|own| own.source.name())
        };
        assert_eq!(
            (of("/run/identity"), of("unix:///run/agent.sock")),
            (Some("files"), Some("workload_api"))
        );
    }

    #[cfg(not(any(feature = "tls", feature = "ring")))]
    #[test]
    fn identity_without_tls_is_a_fault_and_not_plaintext() {
        check(&[("ENMESH_IDENTITY", "/var/run/identity")], Some("not built in"));
    }
}
