//! Floor 1: everything the operator says about one service.

use crate::profile::name::ServiceName;
use crate::profile::route::{Route, WeightedBackend};
use crate::profile::settings::{
    BalancerSettings, BreakerSettings, BudgetSettings, ClientTls, Limits, Objective, RetrySettings, Timeouts,
};
use std::sync::Arc;

/// Whose defaults fill what a document does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DefaultsProfile {
    /// This crate's own.
    #[default]
    Enmesh,
    /// Linkerd's: no retries unless asked, no timeouts.
    Linkerd,
    /// Gateway API's: as Linkerd's, and unmatched requests get 404.
    GatewayApi,
    /// Istio's: two retries on connect failure, refused stream, unavailable; no timeout.
    Istio,
    /// Consul's (Envoy's): 15 s, no retries.
    Consul,
    /// App Mesh's: 15 s, two retries on 503 and connect failure.
    AppMesh,
    /// Service Fabric Mesh's: nothing.
    ServiceFabric,
    /// SMI's: unmatched requests go to the root service.
    Smi,
}

/// What becomes of a request that no route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NoMatch {
    /// It goes to the service itself, by the service's own settings (Linkerd, Consul, SMI).
    #[default]
    Forward,
    /// 404, or gRPC UNIMPLEMENTED (Gateway API).
    NotFound,
}

/// Everything the operator says about one service, in any dialect.
///
/// It can be written in code; a text becomes one by [`profile::parse`](crate::profile). Nothing in it is
/// invalid by type except patterns and names, which compiling checks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServiceProfile {
    /// The names callers use; the first is the service's own (metric label `dst`). Never empty.
    pub names: Vec<ServiceName>,
    /// The namespace the document stands in.
    pub namespace: Option<Arc<str>>,
    /// Whose defaults fill what is not said.
    pub defaults: DefaultsProfile,
    /// The rules, in order.
    pub routes: Vec<Route>,
    /// Requests that no rule is for.
    pub no_match: NoMatch,
    /// Where the service's traffic goes instead, by weight (ServiceProfile `dstOverrides`); empty: to itself.
    pub backends: Vec<WeightedBackend>,
    /// Timeouts for routes that say none, and for requests that no route is for.
    pub timeouts: Timeouts,
    /// Retries, likewise.
    pub retry: Option<RetrySettings>,
    /// What bounds all retries together; `None`: the default of `defaults`.
    pub retry_budget: Option<BudgetSettings>,
    /// Which replica.
    pub balancer: BalancerSettings,
    /// When a replica is left alone; `None`: never.
    pub breaker: Option<BreakerSettings>,
    /// How much.
    pub limits: Limits,
    /// Who it must be.
    pub tls: ClientTls,
    /// Ports whose bytes are not HTTP.
    pub opaque_ports: Vec<u16>,
    /// The objective of the whole service.
    pub objective: Option<Objective>,
    /// Where it was written: `file#document`.
    pub origin: Arc<str>,
}

impl ServiceProfile {
    /// A profile that says nothing about `name`: every default holds.
    pub fn new(name: ServiceName) -> Self {
        Self { names: vec![name], ..Self::default() }
    }

    /// The service's own name: the first of `names`.
    pub fn name(&self) -> Option<&ServiceName> {
        self.names.first()
    }
}
