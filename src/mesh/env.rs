//! Floor 6: a mesh configured from outside, as an injected sidecar would be.

use crate::mesh::builder::MeshBuilder;
use crate::profile::duration;
use crate::profile::invalid::Fault;
use std::str::FromStr;
use std::time::Duration;

/// Every variable that [`Mesh::from_env`](crate::mesh::runtime::Mesh::from_env) reads, and what it sets.
pub const VARIABLES: [(&str, &str); 8] = [
    ("ENMESH_NAME", "this process's own service, name.namespace[:port]"),
    ("ENMESH_PROFILES", "a directory of profiles, watched"),
    ("ENMESH_ENDPOINTS", "a directory of Endpoints documents, watched; may be the same"),
    ("ENMESH_DNS", "whether unknown names are looked up in DNS: true or false"),
    ("ENMESH_ADMIN", "address:port of the admin server"),
    ("ENMESH_CLUSTER_DOMAIN", "the suffix of Kubernetes service names; default cluster.local"),
    ("ENMESH_CONNECT_TIMEOUT", "how long opening a connection may take, such as 1s"),
    ("ENMESH_DRAIN_TIMEOUT", "how long requests under way may take at shutdown, such as 30s"),
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
        "ENMESH_ADMIN" => {
            let remedy = "write address:port, such as 127.0.0.1:4191";
            builder.admin = parsed(&mut builder.faults, key, value, remedy);
            builder
        }
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
        _ => {
            let known: Vec<&str> = VARIABLES.iter().map(|(name, _)| *name).collect();
            let remedy = format!("known are {}", known.join(", "));
            builder.faults.push(Fault::rejected(key, format!("is not known (`{value}`)"), remedy));
            builder
        }
    }
}

fn parsed<T: FromStr>(faults: &mut Vec<Fault>, key: &str, value: &str, remedy: &str) -> Option<T> {
    let parsed = value.trim().parse().ok();
    if parsed.is_none() {
        faults.push(Fault::rejected(key, format!("cannot be read (`{value}`)"), remedy));
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
