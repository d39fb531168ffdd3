//! Floor 1: writes timeouts, retries, budgets and rates as `enmesh.dev/v1` has them.

use crate::profile::read::settings::GRPC_CODES;
use crate::profile::read::settings::HOP_MARKS;
use crate::profile::settings::BackoffSettings;
use crate::profile::settings::BudgetSettings;
use crate::profile::settings::HashKey;
use crate::profile::settings::HedgeSettings;
use crate::profile::settings::HopMarks;
use crate::profile::settings::Limit;
use crate::profile::settings::RateLimit;
use crate::profile::settings::RateScope;
use crate::profile::settings::RetryOn;
use crate::profile::settings::RetrySettings;
use crate::profile::settings::Timeouts;
use crate::profile::write::tree;
use crate::profile::write::tree::Tree;
use serde_json::Value;

/// A time limit, if anything was said.
pub(crate) fn limit(limit: Limit) -> Option<Value> {
    match limit {
        Limit::Unset => None,
        Limit::Disabled => Some("0s".into()),
        Limit::After(time) => Some(tree::time(time)),
    }
}

/// `timeouts`.
pub(crate) fn timeouts(timeouts: &Timeouts) -> Tree {
    Tree::default()
        .maybe("request", limit(timeouts.request))
        .maybe("responseHeaders", limit(timeouts.response_headers))
        .maybe("response", limit(timeouts.response))
        .maybe("idle", limit(timeouts.idle))
        .maybe("attempt", limit(timeouts.attempt))
        .maybe("connect", limit(timeouts.connect))
}

/// `retry`.
pub(crate) fn retry(retry: &RetrySettings) -> Value {
    let hedge = retry.hedge.as_ref().map(|hedge| match hedge {
        HedgeSettings::After(time) => Tree::default().with("after", tree::time(*time)),
        HedgeSettings::Quantile(thousandths) => {
            Tree::default().with("quantile", tree::fixed(u32::from(*thousandths), 3))
        }
    });
    let hops = (retry.hops != HopMarks::default()).then(|| tree::word(HOP_MARKS, &retry.hops));
    Tree::default()
        .maybe("attempts", retry.attempts_max)
        .with("on", retry_on(&retry.on))
        .with("backoff", retry.backoff.map_or_else(|| "0s".into(), |backoff| self::backoff(&backoff)))
        .flag("idempotent", retry.idempotent)
        .maybe("budget", retry.budget.map(|budget| self::budget(&budget)))
        .maybe("hedge", hedge)
        .maybe("maxBodyBytes", retry.body_bytes_max)
        .maybe("hopMarks", hops)
        .maybe("patience", retry.patience.map(tree::time))
        .into()
}

fn backoff(backoff: &BackoffSettings) -> Value {
    Tree::default()
        .with("base", tree::time(backoff.base))
        .with("max", tree::time(backoff.max))
        .with("jitter", tree::short(backoff.jitter))
        .into()
}

impl RetryOn {
    /// The words that `retry.on` of an `enmesh.dev/v1` document has for it: `5xx`, `connect-failure`, `unavailable`.
    pub fn words(&self) -> Vec<Value> {
        retry_on(self)
    }
}

fn retry_on(on: &RetryOn) -> Vec<Value> {
    let flags = [
        ("failures", on.failures),
        ("connect-failure", on.connect_failure),
        ("refused", on.refused),
        ("reset", on.reset),
        ("attempt-timeout", on.attempt_timeout),
    ];
    let flags = flags.into_iter().filter(|(_, set)| *set).map(|(word, _)| word.into());
    let statuses = on.statuses.iter().map(|range| match (*range.start(), *range.end()) {
        (500, 599) => "5xx".into(),
        (502, 504) => "gateway-error".into(),
        (min, max) if min == max => min.into(),
        (min, max) => format!("{min}-{max}").into(),
    });
    let codes =
        on.grpc.iter().filter_map(|code| GRPC_CODES.get(usize::from(*code)).map(|name| (*name).into()));
    flags.chain(statuses).chain(codes).collect()
}

/// `retryBudget` and `budget`.
pub(crate) fn budget(budget: &BudgetSettings) -> Value {
    let tree = Tree::default();
    let tree = match *budget {
        BudgetSettings::Windowed { ratio_ppm, min_per_second, ttl } => tree
            .with("retryRatio", tree::fixed(ratio_ppm, 6))
            .with("minRetriesPerSecond", min_per_second)
            .with("ttl", tree::time(ttl)),
        BudgetSettings::Recent { ratio_ppm, min_per_second, burst } => tree
            .with("recentRatio", tree::fixed(ratio_ppm, 6))
            .with("minRetriesPerSecond", min_per_second)
            .with("burst", burst),
        BudgetSettings::ActiveShare { ratio_ppm, min_concurrent } => {
            tree.with("activeRatio", tree::fixed(ratio_ppm, 6)).with("minConcurrent", min_concurrent)
        }
        BudgetSettings::TokenBucket { max_milli, ratio_milli } => {
            tree.with("maxTokens", tree::fixed(max_milli, 3)).with("tokenRatio", tree::fixed(ratio_milli, 3))
        }
    };
    tree.into()
}

/// What is hashed.
pub(crate) fn hash_keys(keys: &[HashKey]) -> Vec<Value> {
    keys.iter().map(hash_key).collect()
}

fn hash_key(key: &HashKey) -> Value {
    let tree = Tree::default();
    let tree = match key {
        HashKey::Header(name) => tree.with("header", &**name),
        HashKey::Cookie { name, path, ttl } => {
            let cookie = Tree::default()
                .with("name", &**name)
                .maybe("path", path.as_deref())
                .maybe("ttl", ttl.map(tree::time));
            tree.with("cookie", cookie)
        }
        HashKey::Query(name) => tree.with("query", &**name),
        HashKey::Path => tree.with("path", true),
        HashKey::Source => tree.with("source", true),
    };
    tree.into()
}

/// Rate limits.
pub(crate) fn rate_limits(rates: &[RateLimit]) -> Vec<Value> {
    let rate = |rate: &RateLimit| {
        let tree = Tree::default();
        let tree = match &rate.scope {
            RateScope::Total => tree,
            RateScope::Identity => tree.with("scope", "Identity"),
            RateScope::Override(names) => {
                tree.with("scope", "Override").with("identities", tree::texts(names))
            }
            RateScope::Key(key) => tree.with("scope", "Key").with("key", hash_key(key)),
        };
        tree.with("requests", rate.requests)
            .with("per", tree::time(rate.per))
            .maybe("burst", rate.burst)
            .into()
    };
    rates.iter().map(rate).collect()
}
