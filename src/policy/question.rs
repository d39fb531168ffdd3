//! Floor 3: a request that somebody wants explained: one JSON object.

use crate::profile::name::ServiceName;
use crate::route::head::Caller;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A request as it is written, in the tool's machine form (`docs/tool.md`).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Question {
    /// Whatever the answer is to be known by.
    pub id: Value,
    /// The authority that it names.
    pub host: Option<String>,
    method: Option<String>,
    path: Option<String>,
    headers: BTreeMap<String, Texts>,
    protocol: Protocol,
    port: Option<u16>,
    /// Who sends it.
    pub from: From,
    /// Whom it is sent to, if the host does not say.
    pub to: To,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    #[default]
    Http,
    Http2,
    Grpc,
}

/// The values of a header.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

/// Who sends it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct From {
    /// The identity that the caller's certificate proves.
    pub identity: Option<String>,
    /// The namespace that the caller lives in.
    pub namespace: Option<String>,
    labels: BTreeMap<String, String>,
    /// The caller's address.
    pub ip: Option<std::net::IpAddr>,
}

/// Whom it is sent to, if the host does not say.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct To {
    /// The service's name.
    pub service: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// The labels of the workload that answers.
    pub labels: BTreeMap<String, String>,
    /// Its Kubernetes service account, which SMI's access control is for.
    pub account: Option<String>,
}

impl Question {
    /// Whether the caller speaks gRPC.
    pub fn is_grpc(&self) -> bool {
        self.protocol == Protocol::Grpc
    }

    /// The caller, as routes that speak of callers see it.
    pub fn caller(&self) -> Caller {
        let text = |text: &Option<String>| text.as_deref().map(Arc::from);
        let labels = self.from.labels.iter();
        Caller {
            namespace: text(&self.from.namespace),
            labels: labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
            identity: text(&self.from.identity),
        }
    }

    /// The host that it names: `host`, else the header.
    pub fn host(&self) -> Option<&str> {
        let header = || {
            let (_, texts) = self.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"))?;
            match texts {
                Texts::One(host) => Some(host.as_str()),
                Texts::Many(hosts) => hosts.first().map(String::as_str),
            }
        };
        self.host.as_deref().filter(|host| !host.is_empty()).or_else(header)
    }

    /// The port it goes to: its own word, else the host's, else HTTP's.
    pub fn port(&self) -> u16 {
        let named = || self.host()?.parse::<ServiceName>().ok()?.port();
        self.port.or_else(named).unwrap_or(80)
    }

    /// The request, as a client of the running stack would give it.
    ///
    /// # Errors
    /// What is no request in it.
    pub fn http(&self, otherwise: &ServiceName) -> Result<Request<()>, String> {
        let path = self.path.as_deref().ok_or("path: is missing; write one such as \"/\"")?;
        let host = self.host().map_or_else(|| otherwise.host().to_owned(), str::to_owned);
        let scheme = if self.port() == 443 { "https" } else { "http" };
        let own = if scheme == "https" { 443 } else { 80 };
        let named = host.parse::<ServiceName>().is_ok_and(|name| name.port().is_some());
        let authority = if named || self.port() == own { host } else { format!("{host}:{}", self.port()) };
        let method = self.method.as_deref().unwrap_or(if self.is_grpc() { "POST" } else { "GET" });
        let method = method.parse::<Method>().map_err(|_| format!("method: is none ({method:?})"))?;
        let uri: Uri = format!("{scheme}://{authority}{path}")
            .parse()
            .map_err(|error| format!("path: makes no URI ({path:?} of {authority:?}): {error}"))?;
        if !path.starts_with(['/', '?']) {
            return Err(format!("path: must begin with / ({path:?})"));
        }
        let mut request = Request::new(());
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        *request.headers_mut() = self.headers()?;
        Ok(request)
    }

    fn headers(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, texts) in &self.headers {
            let parsed: HeaderName = name.parse().map_err(|_| format!("headers: {name:?} is no name"))?;
            let values = match texts {
                Texts::One(value) => std::slice::from_ref(value),
                Texts::Many(values) => values,
            };
            for value in values {
                let value = HeaderValue::from_str(value)
                    .map_err(|_| format!("headers.{name}: is no value ({value:?})"))?;
                headers.append(parsed.clone(), value);
            }
        }
        if self.is_grpc() && !headers.contains_key(http::header::CONTENT_TYPE) {
            headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        }
        Ok(headers)
    }
}
