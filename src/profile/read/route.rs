//! Floor 1: reads a route.

use crate::profile::read::action;
use crate::profile::read::condition;
use crate::profile::read::dialect::Dialect;
use crate::profile::read::service;
use crate::profile::read::settings;
use crate::profile::read::words;
use crate::profile::reader::Field;
use crate::profile::reader::Fields;
use crate::profile::route::ResponseClass;
use crate::profile::route::Route;
use crate::profile::settings::Limit;
use crate::profile::settings::RetrySettings;

/// Reads a route; `origin` is its document's.
pub(crate) fn route(field: &Field<'_>, dialect: Dialect, origin: &str) -> Option<Route> {
    let place = field.path().strip_prefix("spec.").unwrap_or(field.path());
    let origin = format!("{origin}:{place}");
    field.fields(|f| {
        let name = words::name(&f.get("name").required()).unwrap_or_default();
        let condition = condition::request(&f.get("condition").required(), dialect).unwrap_or_default();
        let mut route = Route {
            name,
            condition,
            response_classes: f.get("responseClasses").each(|item| class(&item, dialect)),
            origin: origin.into(),
            ..Route::default()
        };
        let retryable = f.get("isRetryable");
        let timeout_field = f.get("timeout");
        let timeout = settings::linkerd_timeout(&timeout_field, dialect);
        if dialect == Dialect::Enmesh {
            more(f, &mut route);
        }
        if timeout != Limit::Unset {
            if route.timeouts.response_headers != Limit::Unset {
                timeout_field
                    .reject("is another name of `timeouts.responseHeaders`, which is set too", "remove one");
            }
            route.timeouts.response_headers = timeout;
        }
        route.retry = retry(&retryable, route.retry);
        route
    })
}

/// `isRetryable` and `retry` together.
fn retry(retryable: &Field<'_>, retry: Option<RetrySettings>) -> Option<RetrySettings> {
    match (retryable.bool(), retry) {
        (Some(true), Some(retry)) => Some(RetrySettings { idempotent: true, ..retry }),
        (Some(true), None) => Some(settings::retryable()),
        (Some(false), Some(retry)) => {
            retryable.reject("is false beside `retry`", "remove one of them");
            Some(retry)
        }
        (Some(false) | None, retry) => retry,
    }
}

fn class(field: &Field<'_>, dialect: Dialect) -> Option<ResponseClass> {
    field.fields(|f| {
        let is_failure = f.get("isFailure").bool().unwrap_or(false);
        let condition = condition::response(&f.get("condition").required(), dialect);
        condition.map(|condition| ResponseClass { condition, is_failure })
    })?
}

/// The fields that `enmesh.dev/v1` has besides.
fn more(f: &mut Fields<'_>, route: &mut Route) {
    route.timeouts = settings::timeouts(&f.get("timeouts"));
    route.retry = settings::retry(&f.get("retry"));
    route.action = action::action(f);
    route.fault = action::fault(&f.get("fault"));
    route.rates = words::rate_limits(&f.get("rateLimits"));
    route.hash = words::hash_keys(&f.get("hash"));
    route.session = action::session(&f.get("sessionPersistence"));
    route.objective = service::objective(&f.get("slo"));
}
