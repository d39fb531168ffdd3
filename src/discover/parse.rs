//! Floor 2: reads `enmesh.dev/v1` Endpoints: the replicas of a service, written down.
//!
//! ```
//! let text = "
//! apiVersion: enmesh.dev/v1
//! kind: Endpoints
//! metadata: {name: 'voting-svc.emojivoto.svc.cluster.local:8080'}
//! spec:
//!   endpoints:
//!   - {address: '10.0.0.1:8080', zone: a}
//!   - {address: '10.0.0.2:8080', zone: b, weight: 500m}
//! ";
//! let documents = enmesh::discover::parse::parse(text, "voting.yaml");
//! let (name, set) = documents[0].endpoints.as_ref().expect("a good document");
//! assert_eq!((name.port(), set.len()), (Some(8080), 2));
//! ```

use crate::discover::endpoint::Endpoint;
use crate::discover::endpoint::EndpointSet;
use crate::profile::invalid::Fault;
use crate::profile::name::ServiceName;
use crate::profile::object;
use crate::profile::object::Object;
use crate::profile::quantity;
use crate::profile::reader::Faults;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;

/// What was read of one document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Where it stands: `file#0`.
    pub origin: Arc<str>,
    /// The service and its replicas, unless a fault refuses them.
    pub endpoints: Option<(ServiceName, EndpointSet)>,
    /// All faults.
    pub faults: Vec<Fault>,
}

/// Reads all Endpoints of a text; `origin` is the name of its file. A document of another kind is refused.
pub fn parse(text: &str, origin: &str) -> Vec<Document> {
    object::read(text, origin).into_iter().map(endpoints).collect()
}

/// Whether an object is one that [`endpoints`] reads.
pub fn is_endpoints(object: &Object) -> bool {
    object.kind == "Endpoints" && object.api_version == "enmesh.dev/v1"
}

/// Reads one object.
pub fn endpoints(object: Object) -> Document {
    let faults = Faults::default();
    for fault in &object.faults {
        faults.add(fault.clone());
    }
    let root = Field::root(&object.root, &faults);
    let read = match is_endpoints(&object) {
        true => root.fields(read).flatten(),
        false if faults.any_rejected() && !root.is_present() => None,
        false => {
            let problem =
                format!("is no Endpoints (kind {:?}, apiVersion {:?})", object.kind, object.api_version);
            root.reject(problem, "write apiVersion enmesh.dev/v1 and kind Endpoints");
            None
        }
    };
    let endpoints = read.filter(|_| !faults.any_rejected());
    Document { origin: object.origin, endpoints, faults: faults.into_vec() }
}

fn read(f: &mut Fields<'_>) -> Option<(ServiceName, EndpointSet)> {
    let name = f.get("metadata").look("name").required();
    object::metadata(f);
    let name = name.parse(|text| match text.parse::<ServiceName>() {
        Ok(name) => Ok(name),
        Err(bad) => Err(format!("a service ({})", bad.reason)),
    });
    let list = f.get("spec").required().fields(|f| {
        let port = f.get("port").integer(1..=u16::MAX);
        let mut seen: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        let items = f.get("endpoints").required().items();
        let read = |(index, item): (usize, Field<'_>)| {
            let endpoint = item.fields(|f| endpoint(f, port)).flatten()?;
            if let Some(first) = seen.insert(endpoint.addr, index) {
                item.reject(
                    format!("has the address of endpoints[{first}] ({})", endpoint.addr),
                    "remove one",
                );
            }
            Some(endpoint)
        };
        items.into_iter().enumerate().filter_map(read).collect::<Vec<_>>()
    });
    Some((name?, EndpointSet::new(list?)))
}

fn endpoint(f: &mut Fields<'_>, port: Option<u16>) -> Option<Endpoint> {
    let text = |field: Field<'_>| field.name().map(Arc::from);
    let addr = f.get("address").required().parse(|text| address(text, port));
    let weight = f.get("weight");
    let weight_milli = weight.parse_literal(|text| {
        let fits = u32::try_from(quantity::milli(text)?).ok();
        fits.ok_or_else(|| "a weight from 0 to 4294967".to_owned())
    });
    let label = |(key, value): (&str, Field<'_>)| Some((Arc::from(key), value.text().map(Arc::from)?));
    Some(Endpoint {
        weight_milli: weight_milli.unwrap_or(1_000),
        zone: text(f.get("zone")),
        priority: f.get("priority").integer(0..=u8::MAX).unwrap_or(0),
        draining: f.get("draining").bool().unwrap_or(false),
        identity: text(f.get("identity")),
        server_name: text(f.get("serverName")),
        http2: f.get("http2").bool().unwrap_or(false),
        labels: f.get("labels").pairs().into_iter().filter_map(label).collect(),
        addr: addr?,
    })
}

fn address(text: &str, port: Option<u16>) -> Result<SocketAddr, String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match (text.parse::<SocketAddr>(), bare.parse::<IpAddr>(), port) {
        (Ok(addr), ..) if addr.port() > 0 => Ok(addr),
        (_, Ok(ip), Some(port)) => Ok(SocketAddr::new(ip, port)),
        (_, Ok(_), None) => Err("an address with a port, such as 10.0.0.1:8080".to_owned()),
        _ => Err("an address such as 10.0.0.1:8080 or [::1]:8080".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: &str, endpoints: &[Endpoint], faults: &[&str]) {
        let text = format!(
            "{{apiVersion: enmesh.dev/v1, kind: Endpoints, metadata: {{name: a.b}}, spec: {spec}}}\n"
        );
        let document = parse(&text, "f").remove(0);
        let seen = document.endpoints.map(|(_, set)| set.iter().cloned().collect::<Vec<_>>());
        let seen_faults: Vec<String> =
            document.faults.iter().map(|f| format!("{}: {}", f.path, f.problem)).collect();
        assert_eq!(seen_faults, faults, "{spec}");
        assert_eq!(seen, faults.is_empty().then(|| endpoints.to_vec()), "{spec}");
    }

    #[test]
    fn all_that_discovery_knows_can_be_written_down() {
        let at = |text: &str| Endpoint::new(text.parse().unwrap());
        let full = Endpoint {
            weight_milli: 500,
            zone: Some("z".into()),
            priority: 2,
            draining: true,
            identity: Some("spiffe://t/a".into()),
            server_name: Some("a.t".into()),
            http2: true,
            labels: [(Arc::from("pod"), Arc::from("a-1"))].into(),
            ..at("10.0.0.1:80")
        };
        check(
            "{port: 80, endpoints: [{address: 10.0.0.1, weight: 500m, zone: z, priority: 2, draining: true, \
             identity: 'spiffe://t/a', serverName: a.t, http2: true, labels: {pod: a-1}}, {address: '::1'}, \
             {address: '[::1]:81'}]}",
            &[full, at("[::1]:80"), at("[::1]:81")],
            &[],
        );
        check("{endpoints: []}", &[], &[]);
    }

    #[test]
    fn every_fault_is_found_at_once() {
        check(
            "{endpoints: [{address: 10.0.0.1}, {address: a:1}, {address: '10.0.0.1:1', weight: -1}, \
             {address: '10.0.0.2:1'}, {address: '10.0.0.2:1', adress: x, priority: 256}]}",
            &[],
            &[
                "spec.endpoints[0].address: must be an address with a port, such as 10.0.0.1:8080, not \"10.0.0.1\"",
                "spec.endpoints[1].address: must be an address such as 10.0.0.1:8080 or [::1]:8080, not \"a:1\"",
                "spec.endpoints[2].weight: must be a weight from 0 to 4294967, not -1",
                "spec.endpoints[4]: has the address of endpoints[3] (10.0.0.2:1)",
                "spec.endpoints[4].adress: is no field here",
                "spec.endpoints[4].priority: must be a whole number from 0 to 255, not 256",
            ],
        );
        let other = parse("kind: Service\n", "f").remove(0);
        assert!(other.endpoints.is_none() && other.faults[0].problem.starts_with("is no Endpoints"));
    }
}
