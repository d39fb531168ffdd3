//! Floor 1: reads what Gateway API attaches to services: BackendTLSPolicy and XBackendTrafficPolicy.

use crate::profile::duration;
use crate::profile::import::cluster::Cluster;
use crate::profile::import::cluster::Documents;
use crate::profile::import::cluster::Identity;
use crate::profile::import::gateway_filter;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Severity;
use crate::profile::matching::TextMatch;
use crate::profile::object;
use crate::profile::object::Object;
use crate::profile::read::words;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use crate::profile::route::Session;
use crate::profile::settings::BudgetSettings;
use crate::profile::settings::ClientTls;
use crate::profile::settings::TlsMode;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// What is attached to services.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    pub(crate) tls: Vec<Tls>,
    pub(crate) traffic: Vec<Traffic>,
}

/// A service, or one of its ports, that a policy is for.
#[derive(Debug, Clone)]
pub(crate) struct PolicyTarget {
    pub(crate) service: Arc<str>,
    pub(crate) port_name: Option<Arc<str>>,
}

/// A BackendTLSPolicy.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) identity: Identity,
    targets: Vec<PolicyTarget>,
    /// Names of config maps that hold the authorities; none: the system's.
    authorities: Vec<Result<Arc<str>, String>>,
    settings: ClientTls,
    /// Whether authorities that policies of this namespace name are among the files: then they are taken to be all.
    authorities_shown: bool,
}

/// An XBackendTrafficPolicy.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    pub(crate) identity: Identity,
    targets: Vec<PolicyTarget>,
    pub(crate) budget: Option<BudgetSettings>,
    pub(crate) session: Option<Session>,
}

impl Policies {
    /// Sorts the policies so that of several for one service the oldest comes first, and says which come to nothing.
    pub(crate) fn settle(&mut self, cluster: &Cluster, documents: &mut Documents) {
        self.tls.sort_by_key(|policy| policy.identity.seniority());
        self.traffic.sort_by_key(|policy| policy.identity.seniority());
        let shown: BTreeSet<Arc<str>> = self
            .tls
            .iter()
            .filter(|policy| policy.shows(cluster))
            .map(|policy| Arc::clone(&policy.identity.namespace))
            .collect();
        for policy in &mut self.tls {
            policy.authorities_shown = shown.contains(&policy.identity.namespace);
        }
        for policy in &self.tls {
            for target in &policy.targets {
                if let Some(why) = policy.fault(cluster) {
                    let fault =
                        Fault::new(Severity::RuntimeFailure, "spec.validation", why, "correct the reference");
                    documents.say(policy.identity.document, fault);
                } else if !policy.authorities.is_empty() && policy.roots(cluster).is_none() {
                    let problem = format!(
                        "the authority for `{}` is known here only by the system's roots: what it signed is not trusted",
                        target.service
                    );
                    let remedy = "give its certificate to the builder, or add it to the system's roots";
                    let fault = Fault::new(
                        Severity::Approximated,
                        "spec.validation.caCertificateRefs",
                        problem,
                        remedy,
                    );
                    documents.say(policy.identity.document, fault);
                }
            }
        }
    }

    /// The TLS policy of a service's port: the oldest one for that port, else the oldest for the whole service.
    fn tls_of(&self, cluster: &Cluster, namespace: &str, service: &str, port: u16) -> Option<&Tls> {
        let known = cluster.service(namespace, service).flatten();
        let name = known.and_then(|known| known.ports.iter().find(|(number, _)| *number == port)?.1.clone());
        let of = |wanted: Option<&Arc<str>>| {
            let is_target =
                |target: &PolicyTarget| *target.service == *service && target.port_name.as_ref() == wanted;
            let mut policies = self.tls.iter().filter(|policy| *policy.identity.namespace == *namespace);
            policies.find(|policy| policy.targets.iter().any(is_target))
        };
        name.as_ref().and_then(|name| of(Some(name))).or_else(|| of(None))
    }

    /// Why no connection to a service's port may be made.
    pub(crate) fn tls_fault(
        &self,
        cluster: &Cluster,
        namespace: &str,
        service: &str,
        port: u16,
    ) -> Option<String> {
        self.tls_of(cluster, namespace, service, port)?.fault(cluster)
    }

    /// How a service's port is spoken to.
    pub(crate) fn client_tls(
        &self,
        cluster: &Cluster,
        namespace: &str,
        service: &str,
        port: u16,
    ) -> Option<ClientTls> {
        let policy = self.tls_of(cluster, namespace, service, port)?;
        Some(ClientTls { roots: policy.roots(cluster), ..policy.settings.clone() })
    }

    /// The traffic policy of a service.
    pub(crate) fn traffic_of(&self, namespace: &str, service: &str) -> Option<&Traffic> {
        let mut policies = self.traffic.iter().filter(|policy| *policy.identity.namespace == *namespace);
        policies.find(|policy| policy.targets.iter().any(|target| *target.service == *service))
    }

    /// Whether a policy is for one port of a service alone.
    pub(crate) fn tell_ports_apart(&self, namespace: &str, service: &str) -> bool {
        let mut policies = self.tls.iter().filter(|policy| *policy.identity.namespace == *namespace);
        policies.any(|policy| {
            policy.targets.iter().any(|target| *target.service == *service && target.port_name.is_some())
        })
    }

    /// All services that a policy is for: namespace and name.
    pub(crate) fn services(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let of = |identity: &Identity, targets: &[PolicyTarget]| {
            let namespace = Arc::clone(&identity.namespace);
            targets
                .iter()
                .map(|target| (Arc::clone(&namespace), Arc::clone(&target.service)))
                .collect::<Vec<_>>()
        };
        let tls = self.tls.iter().flat_map(|policy| of(&policy.identity, &policy.targets));
        tls.chain(self.traffic.iter().flat_map(|policy| of(&policy.identity, &policy.targets))).collect()
    }
}

impl Tls {
    /// Whether one of its authorities is among the files.
    fn shows(&self, cluster: &Cluster) -> bool {
        let namespace = &self.identity.namespace;
        let known = |name| cluster.authorities.contains_key(&(Arc::clone(namespace), Arc::clone(name)));
        self.authorities.iter().flatten().any(known)
    }

    /// The certificates of its authorities that are among the files.
    fn roots(&self, cluster: &Cluster) -> Option<Arc<str>> {
        let namespace = &self.identity.namespace;
        let known = |name: &Arc<str>| cluster.authorities.get(&(Arc::clone(namespace), Arc::clone(name)));
        let texts: Vec<&str> =
            self.authorities.iter().flatten().filter_map(|name| known(name)?.as_deref()).collect();
        (!texts.is_empty()).then(|| texts.join("\n").into())
    }

    fn fault(&self, cluster: &Cluster) -> Option<String> {
        let namespace = &self.identity.namespace;
        let bad = self.authorities.iter().filter_map(|authority| match authority {
            Err(why) => Some(why.clone()),
            Ok(name) => match cluster.authorities.get(&(Arc::clone(namespace), Arc::clone(name))) {
                Some(Some(_)) => None,
                Some(None) => {
                    Some(format!("config map {namespace}/{name} holds no certificate under ca.crt"))
                }
                None if !self.authorities_shown => None,
                None => Some(format!("config map {namespace}/{name} is not among the files")),
            },
        });
        let bad: Vec<String> = bad.collect();
        // One good authority is enough (BackendTLSPolicy, `caCertificateRefs`).
        (!bad.is_empty() && bad.len() == self.authorities.len()).then(|| bad.join("; "))
    }
}

fn targets(field: &Field<'_>) -> Vec<PolicyTarget> {
    field.each(|item| {
        item.fields(|f| {
            let (group, kind) = (f.get("group"), f.get("kind").required());
            let service = group.text().is_none_or(str::is_empty) && kind.text() == Some("Service");
            if !service && kind.is_present() {
                kind.reject(format!("{} cannot be a target here", kind.shown()), "name a Service");
            }
            let port_name = words::name(&f.get("sectionName"));
            words::name(&f.get("name").required()).map(|service| PolicyTarget { service, port_name })
        })?
    })
}

/// Reads a BackendTLSPolicy.
pub(crate) fn tls(
    documents: &mut Documents,
    document: usize,
    object: &Object,
    namespace: &Arc<str>,
) -> Option<Tls> {
    let (identity, (targets, (authorities, settings))) =
        documents.read(document, object, namespace, |f, _| {
            f.get("spec").required().fields(|f| {
                f.get("options").ignore("is not known here", "remove it");
                let targets = targets(&f.get("targetRefs").required());
                f.get("validation").required().fields(validation).map(|validation| (targets, validation))
            })?
        })?;
    Some(Tls { identity, targets, authorities, settings, authorities_shown: false })
}

fn validation(f: &mut Fields<'_>) -> (Vec<Result<Arc<str>, String>>, ClientTls) {
    let (authorities, system) = (f.get("caCertificateRefs"), f.get("wellKnownCACertificates"));
    let system_roots = system.word(&[("System", ())]).is_some();
    let authorities_given = authorities.node().is_some();
    if system_roots == authorities_given {
        f.whole().reject("must name its authorities in one way", "write caCertificateRefs, or System");
    }
    let authorities = authorities.each(|item| {
        item.fields(|f| {
            let group = f.get("group").text().unwrap_or_default();
            let kind = f.get("kind").required().text().unwrap_or_default();
            let name = words::name(&f.get("name").required())?;
            Some(if group.is_empty() && kind == "ConfigMap" {
                Ok(name)
            } else {
                Err(format!("{group}/{kind} {name} cannot hold an authority"))
            })
        })?
    });
    let host = f.get("hostname").required();
    let sni: Option<Arc<str>> = host.parse(|text| object::subdomain(text).map(|()| Arc::from(text)));
    let names = f.get("subjectAltNames").each(|item| {
        item.fields(|f| {
            let (host, uri) = (words::name(&f.get("hostname")), words::name(&f.get("uri")));
            let is_uri = f.get("type").required().word(&[("Hostname", false), ("URI", true)])?;
            if is_uri { uri } else { host }.map(TextMatch::Exact)
        })?
    });
    // With other names given, the host is only what is sent in the handshake (meshes.md §4.8, 78).
    let identities = match (names.is_empty(), &sni) {
        (true, Some(host)) => vec![TextMatch::Exact(Arc::clone(host))],
        _ => names,
    };
    (authorities, ClientTls { mode: TlsMode::Simple, sni, identities, roots: None })
}

/// Reads an XBackendTrafficPolicy.
pub(crate) fn traffic(
    documents: &mut Documents,
    document: usize,
    object: &Object,
    namespace: &Arc<str>,
) -> Option<Traffic> {
    let (identity, (targets, budget, session)) = documents.read(document, object, namespace, |f, _| {
        f.get("spec").required().fields(|f| {
            let targets = targets(&f.get("targetRefs").required());
            let budget = f.get("retryConstraint").fields(budget);
            (targets, budget, gateway_filter::session(&f.get("sessionPersistence")))
        })
    })?;
    Some(Traffic { identity, targets, budget, session })
}

/// `retryConstraint`: 20 % of the requests of 10 s, and 10 retries each second, unless something else is said.
fn budget(f: &mut Fields<'_>) -> BudgetSettings {
    let time = |field: Field<'_>, default| {
        field.parse(duration::gateway).filter(|time| !time.is_zero()).unwrap_or(Duration::from_secs(default))
    };
    let (percent, interval) = f
        .get("budget")
        .fields(|f| (f.get("percent").integer(0..=100_u32).unwrap_or(20), time(f.get("interval"), 10)))
        .unwrap_or((20, Duration::from_secs(10)));
    let (count, per) = f
        .get("minRetryRate")
        .fields(|f| (f.get("count").integer(0..=1_000_000_u32).unwrap_or(10), time(f.get("interval"), 1)))
        .unwrap_or((10, Duration::from_secs(1)));
    let per_second = u128::from(count) * 1_000 / per.as_millis().max(1);
    BudgetSettings::Windowed {
        ratio_ppm: percent * 10_000,
        min_per_second: u32::try_from(per_second).unwrap_or(u32::MAX),
        ttl: interval.clamp(Duration::from_secs(1), Duration::from_secs(60)),
    }
}
