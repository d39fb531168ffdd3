//! The limits against the shared cases of Linkerd's `HTTPLocalRateLimitPolicy`. Run with `ENMESH_CORPUS` set.

#[path = "support/corpus.rs"]
mod support;

use enmesh::limit::rate::RateLimits;
use enmesh::profile::settings::{RateLimit, RateScope};
use enmesh::stdx::clock;
use serde_json::Value;
use std::time::{Duration, Instant};

fn per_second(scope: RateScope, requests: &Value) -> RateLimit {
    let requests = requests.as_u64().and_then(|requests| u32::try_from(requests).ok()).unwrap();
    RateLimit { scope, requests, per: Duration::from_secs(1), burst: None }
}

/// What becomes of one request: `ok`, or the limit as the cases write it.
fn asked(limits: &RateLimits, client: &str, now: Instant) -> String {
    match limits.admit(Some(client), |_| None, now) {
        Ok(()) => "ok".to_owned(),
        Err(refused) => refused.counted.as_str().replace("identity", "per-identity"),
    }
}

#[test]
fn local_rate_limits_decide_as_linkerds() {
    let Some(cases) = support::vectors("linkerd-rate-limit.json") else { return };
    let timeline = &cases["timeline"];
    let mut settings = vec![
        per_second(RateScope::Total, &timeline["total"]),
        per_second(RateScope::Identity, &timeline["per_identity"]),
    ];
    for (client, requests) in timeline["overrides"].as_object().unwrap() {
        settings.push(per_second(RateScope::Override(vec![client.as_str().into()]), requests));
    }
    let (limits, start, mut asks) = (RateLimits::new(&settings), clock::now(), 0);
    for second in 0..5 {
        let now = start + Duration::from_secs(second);
        for step in timeline["each_second_for_5_seconds"].as_array().unwrap() {
            let expected = step[1].as_str().unwrap().split('(').next().unwrap();
            for clients in step[0].as_str().unwrap().split(", ") {
                let (client, times) = clients.split_once(" x").unwrap_or((clients, "1"));
                for _ in 0..times.parse().unwrap() {
                    assert_eq!(asked(&limits, client, now), expected, "second {second}: {clients}");
                    asks += 1;
                }
            }
        }
    }
    assert_eq!(asks, 5 * 36);
    let denied = enmesh::error::Error::RateLimited { retry_after: Duration::from_secs(1) };
    assert_eq!(u64::from(denied.to_status().as_u16()), cases["denied"]["http"]);
    assert_eq!(u64::from(denied.to_grpc()), cases["denied"]["grpc"]);
}
