//! Floor 3: what holds when a document says nothing; it differs from mesh to mesh (meshes.md §4.3, §4.4).

use crate::policy::route::TimeoutPolicy;
use crate::profile::service::DefaultsProfile;
use crate::profile::settings::{BackoffSettings, BudgetSettings, Limit, RetryOn, RetrySettings, Timeouts};
use std::time::Duration;

/// The budget when none is said.
///
/// Linkerd's is 20 % of the last 10 s plus 10 a second. Ours is [`budget::DEFAULT`](crate::retry::budget::DEFAULT): it
/// banks no burst, so retries cannot keep a brown-out alive (performance.md §5.3).
pub fn budget(defaults: DefaultsProfile) -> BudgetSettings {
    match defaults {
        DefaultsProfile::Linkerd => {
            BudgetSettings::Windowed { ratio_ppm: 200_000, min_per_second: 10, ttl: Duration::from_secs(10) }
        }
        DefaultsProfile::GatewayApi => {
            BudgetSettings::Windowed { ratio_ppm: 200_000, min_per_second: 10, ttl: Duration::from_secs(10) }
        }
        DefaultsProfile::Istio | DefaultsProfile::Consul | DefaultsProfile::AppMesh => {
            BudgetSettings::ActiveShare { ratio_ppm: 200_000, min_concurrent: 3 }
        }
        DefaultsProfile::Enmesh | DefaultsProfile::ServiceFabric | DefaultsProfile::Smi => {
            crate::retry::budget::DEFAULT
        }
    }
}

/// The retries when none are said. Everywhere, what a peer certainly did not process is tried elsewhere, within the
/// budget: a replica that cannot be reached costs no caller a failure. Istio and App Mesh retry more unasked; Consul, as
/// Envoy does, nothing.
pub fn retry(defaults: DefaultsProfile) -> Option<RetrySettings> {
    let unsent = RetryOn { connect_failure: true, refused: true, ..RetryOn::default() };
    let on = match defaults {
        DefaultsProfile::Istio => RetryOn { grpc: vec![1, 14], ..unsent },
        DefaultsProfile::AppMesh => RetryOn { statuses: vec![503..=503], grpc: vec![14], ..unsent },
        DefaultsProfile::Enmesh
        | DefaultsProfile::Linkerd
        | DefaultsProfile::GatewayApi
        | DefaultsProfile::ServiceFabric
        | DefaultsProfile::Smi => unsent,
        DefaultsProfile::Consul => return None,
    };
    let idempotent = retries_unasked(defaults);
    let backoff = Some(BackoffSettings::default());
    Some(RetrySettings { attempts_max: Some(3), on, backoff, idempotent, ..RetrySettings::default() })
}

/// Whether the dialect retries failures that nobody asked to retry.
pub fn retries_unasked(defaults: DefaultsProfile) -> bool {
    matches!(defaults, DefaultsProfile::Istio | DefaultsProfile::AppMesh)
}

/// The timeouts, from the route, the service, and the dialect: Envoy's 15 s in Consul and App Mesh, else none.
pub fn timeouts(defaults: DefaultsProfile, route: &Timeouts, service: &Timeouts) -> TimeoutPolicy {
    let request = match defaults {
        DefaultsProfile::Consul | DefaultsProfile::AppMesh => Limit::After(Duration::from_secs(15)),
        DefaultsProfile::Enmesh
        | DefaultsProfile::Linkerd
        | DefaultsProfile::GatewayApi
        | DefaultsProfile::Istio
        | DefaultsProfile::ServiceFabric
        | DefaultsProfile::Smi => Limit::Unset,
    };
    TimeoutPolicy {
        request: route.request.or(service.request).or(request).duration(),
        response_headers: route.response_headers.or(service.response_headers).duration(),
        response: route.response.or(service.response).duration(),
        idle: route.idle.or(service.idle).duration(),
        attempt: route.attempt.or(service.attempt).duration(),
        connect: route.connect.or(service.connect).duration(),
    }
}
