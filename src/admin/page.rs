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
    ("/page/main.js", JS, include_str!("page/main.js")),
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
