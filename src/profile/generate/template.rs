//! Floor 1: a ServiceProfile to begin with, its fields explained beside them.

use crate::profile::generate::target::Target;

/// A template for `target`, in YAML with comments. Read as it is, it has one route.
pub fn template(target: &Target) -> String {
    let (name, namespace) = (target.name(), &target.namespace);
    format!(
        r#"### ServiceProfile for {name}
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata:
  name: {name}
  namespace: {namespace}
spec:
  # Routes are tried in order; the first whose condition holds is used.
  routes:
  - name: '/authors/{{id}}'  # any text; it is the metric label rt_route

    # Which requests. All fields that are set must hold:
    #   method      the method, equal
    #   pathRegex   a pattern for the whole path, without the query
    #   not         a condition that must not hold
    #   all, any    lists of conditions
    condition:
      pathRegex: '/authors/\d+'
      method: POST

    # Whether a failure may be tried again, within the budget below. Default: false.
    # isRetryable: true

    # From the call to the response's headers, all attempts together. Default: none.
    # timeout: 300ms

    # How responses count. The first class whose condition holds decides; without one, 5xx and the usual gRPC codes
    # are failures. Conditions: status, not, all, any.
    responseClasses:
    - condition:
        status:
          min: 500
          max: 599
      isFailure: true

  # What bounds all retries of the service together. These are the defaults.
  # retryBudget:
  #   retryRatio: 0.2           # retries for each request
  #   minRetriesPerSecond: 10   # that are allowed in any case
  #   ttl: 10s                  # how long a request counts; 1s to 60s

  # Where the traffic goes instead, by weight. Default: to the service itself.
  # dstOverrides:
  # - authority: other.{namespace}.svc.{domain}:8080
  #   weight: 500m
"#,
        domain = target.cluster_domain,
    )
}
