//! Floor 7: finds the policy of a request's service among what files say, as a running mesh finds it.

use crate::config::compile;
use enmesh::policy::compile::Policy;
use enmesh::policy::question::Question;
use enmesh::profile::name::ServiceName;
use enmesh::profile::service::{DefaultsProfile, ServiceProfile};
use enmesh::route::head::RequestHead;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The policies of services, compiled when they are first asked for.
#[derive(Debug)]
pub(crate) struct Catalog {
    profiles: Vec<Arc<ServiceProfile>>,
    /// Which profiles are of a service, by its short name.
    by_name: BTreeMap<ServiceName, Vec<usize>>,
    /// The profiles of gateways, which are asked by whatever host their routes name.
    gateways: Vec<usize>,
    compiled: BTreeMap<(ServiceName, Option<usize>), Arc<Policy<ServiceName>>>,
    domain: String,
}

/// The service that a request is for, and its policy.
pub(crate) struct Found {
    pub(crate) name: ServiceName,
    pub(crate) policy: Arc<Policy<ServiceName>>,
}

impl Catalog {
    pub(crate) fn new(profiles: Vec<Arc<ServiceProfile>>, domain: &str) -> Self {
        let mut by_name: BTreeMap<ServiceName, Vec<usize>> = BTreeMap::new();
        let mut gateways = Vec::new();
        for (at, profile) in profiles.iter().enumerate() {
            for name in &profile.names {
                by_name.entry(name.short(domain)).or_default().push(at);
            }
            let of_service = |name: &ServiceName| name.host().ends_with(&format!(".svc.{domain}"));
            if profile.defaults == DefaultsProfile::GatewayApi && !profile.names.iter().any(of_service) {
                gateways.push(at);
            }
        }
        Self { profiles, by_name, gateways, compiled: BTreeMap::new(), domain: domain.to_owned() }
    }

    /// The policy for a request: of the service that `to` names, else of `service`, else of the host.
    ///
    /// # Errors
    /// What is no name of a service, or the faults of its profile.
    pub(crate) fn find(&mut self, asked: &Question, service: Option<&str>) -> Result<Found, String> {
        let home = asked.from.namespace.as_deref();
        let (text, namespace) = match (&asked.to.service, service) {
            (Some(to), _) => (Some(to.as_str()), asked.to.namespace.as_deref().or(home)),
            (None, Some(service)) => (Some(service), home),
            (None, None) => (asked.host(), home),
        };
        let Some(text) = text else { return self.only(asked) };
        let name: ServiceName = text.parse().map_err(|bad| format!("{bad}"))?;
        let explicit = asked.to.service.is_some() || service.is_some();
        for spelling in self.spellings(&name, namespace, asked.port()) {
            if let Some(at) = self.profile(&spelling, home) {
                return self.policy(&spelling, Some(at));
            }
        }
        if let Some(at) = self.gateway(asked).filter(|_| !explicit) {
            return self.policy_of_profile(at, asked.port());
        }
        // Nobody speaks of the service: it is called as it is, in the caller's namespace if it names none.
        let own = self.spellings(&name, namespace, asked.port()).pop();
        self.policy(&own.unwrap_or(name), None)
    }

    /// What `name` may mean: itself, and in the caller's namespace.
    fn spellings(&self, name: &ServiceName, namespace: Option<&str>, port: u16) -> Vec<ServiceName> {
        let mut spellings = vec![name.short(&self.domain).or_port(port)];
        if let Some(namespace) = namespace.filter(|_| !name.host().contains('.')) {
            let within = format!("{}.{namespace}", name.host()).parse::<ServiceName>();
            spellings.extend(within.map(|within| within.or_port(name.port().unwrap_or(port))));
        }
        spellings
    }

    /// The profile of a service for callers in `home`: theirs if they have one of their own, else the service's.
    fn profile(&self, name: &ServiceName, home: Option<&str>) -> Option<usize> {
        let places = self.by_name.get(name).into_iter().chain(self.by_name.get(&name.without_port()));
        let all: Vec<usize> = places.flatten().copied().collect();
        let within = |at: &usize, namespace: Option<&str>| {
            self.profiles.get(*at).is_some_and(|profile| profile.namespace.as_deref() == namespace)
        };
        let own = name.host().split('.').nth(1);
        let consumer = all.iter().find(|at| home.is_some() && within(at, home));
        let producer = || all.iter().find(|at| within(at, own) || within(at, None));
        // A consumer's profile is for callers of its namespace alone; a caller who says none is told of any.
        let any = || all.first().filter(|_| home.is_none());
        consumer.or_else(producer).or_else(any).copied()
    }

    /// The gateway's port that a request for a host of no service comes to: the first with a route for it.
    fn gateway(&mut self, asked: &Question) -> Option<usize> {
        let port = asked.port();
        let named = |at: &usize| self.profiles.get(*at).and_then(|profile| profile.name()).cloned();
        let at_port = |at: &usize| named(at).is_some_and(|name| name.port().is_none_or(|own| own == port));
        let open: Vec<usize> = self.gateways.iter().copied().filter(at_port).collect();
        for at in &open {
            let Ok(found) = self.policy_of_profile(*at, port) else { continue };
            let Ok(request) = asked.http(&found.name) else { continue };
            if found.policy.find(&RequestHead::of_request(&request)).is_some() {
                return Some(*at);
            }
        }
        open.first().copied()
    }

    /// The policy of the only profile there is, for requests that name nobody.
    fn only(&mut self, asked: &Question) -> Result<Found, String> {
        if let Some(at) = self.gateway(asked) {
            return self.policy_of_profile(at, asked.port());
        }
        match self.profiles.len() {
            1 => self.policy_of_profile(0, asked.port()),
            n => Err(format!("host: is missing, and there are {n} profiles; name one, or give --service")),
        }
    }

    fn policy_of_profile(&mut self, at: usize, port: u16) -> Result<Found, String> {
        let named = self.profiles.get(at).and_then(|profile| profile.name());
        let name = named.map(|name| name.short(&self.domain).or_port(port));
        self.policy(&name.unwrap_or_else(ServiceName::localhost), Some(at))
    }

    fn policy(&mut self, name: &ServiceName, at: Option<usize>) -> Result<Found, String> {
        let key = (name.clone(), at);
        if let Some(policy) = self.compiled.get(&key) {
            return Ok(Found { name: name.clone(), policy: Arc::clone(policy) });
        }
        let profile = at.and_then(|at| self.profiles.get(at)).map(Arc::clone);
        let profile = profile.unwrap_or_else(|| Arc::new(ServiceProfile::new(name.clone())));
        let policy = Arc::new(compile(profile, name).map_err(|invalid| invalid.to_string())?);
        // What no file speaks of is as many as a caller writes: it is not kept.
        if at.is_some() {
            self.compiled.insert(key, Arc::clone(&policy));
        }
        Ok(Found { name: name.clone(), policy })
    }
}
