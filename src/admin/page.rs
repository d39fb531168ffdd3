//! Floor 6: the page that people open: static files, compiled in. What it shows it asks this server for.

use crate::admin::guard::Access;
use crate::admin::server::{self, Admin, AdminBody};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};

/// Path, type and text of each file.
type File = (&'static str, &'static str, &'static str);

const JS: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const FILES: &[File] = &[
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/page/style.css", CSS, include_str!("page/style.css")),
    ("/page/api.js", JS, include_str!("page/api.js")),
    ("/page/chart.js", JS, include_str!("page/chart.js")),
    ("/page/config.js", JS, include_str!("page/config.js")),
    ("/page/dom.js", JS, include_str!("page/dom.js")),
    ("/page/endpoints.js", JS, include_str!("page/endpoints.js")),
    ("/page/explain.js", JS, include_str!("page/explain.js")),
    ("/page/findings.js", JS, include_str!("page/findings.js")),
    ("/page/identity.js", JS, include_str!("page/identity.js")),
    ("/page/main.js", JS, include_str!("page/main.js")),
    ("/page/overview.js", JS, include_str!("page/overview.js")),
    ("/page/routes.js", JS, include_str!("page/routes.js")),
    ("/page/slo.js", JS, include_str!("page/slo.js")),
    ("/page/table.js", JS, include_str!("page/table.js")),
    ("/page/tap.js", JS, include_str!("page/tap.js")),
    ("/page/topology.js", JS, include_str!("page/topology.js")),
    ("/page/why.js", JS, include_str!("page/why.js")),
    ("/page/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("/page/uplot.min.js", JS, include_str!("page/vendor/uplot.min.js")),
    ("/page/uplot.min.css", CSS, include_str!("page/vendor/uplot.min.css")),
    ("/page/uplot.license.txt", "text/plain; charset=utf-8", include_str!("page/vendor/uplot.LICENSE")),
];

/// What the page may do: read what this server gives, and nothing else. Its scripts and styles are files of its own,
/// nothing is written into it, nobody may frame it, and no other address is asked for anything.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

/// Adds the page and its files.
pub(crate) fn add(admin: Admin) -> Admin {
    FILES.iter().fold(admin, |admin, file| {
        admin.route(Method::GET, file.0, Access::Read, move |_| Box::pin(async move { answer(file) }))
    })
}

fn answer((_, content_type, text): &'static File) -> Response<AdminBody> {
    let mut response = server::response(StatusCode::OK, content_type, Bytes::from_static(text.as_bytes()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let name = HeaderName::from_static("cross-origin-resource-policy");
    headers.insert(name, HeaderValue::from_static("same-origin"));
    response
}
