//! Floor 0: a copy of a request's head in one piece of memory, for a second sending.

use bytes::Buf;
use bytes::Bytes;
use http::Extensions;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Uri;
use http::Version;
use http::uri::Authority;
use http::uri::PathAndQuery;
use http::uri::Scheme;

/// Everything of a head; of its extensions, what its maker says.
///
/// Most copies are dropped unused, so making one and dropping it must be cheap: a clone of the header map and of the
/// URI would cost an allocation or a counter for each of their parts.
pub(crate) struct Copy {
    method: Method,
    scheme: Option<Scheme>,
    version: Version,
    extensions: Extensions,
    /// Authority, path and query, and then name, value and sensitivity of each header, each after its length.
    parts: Vec<u8>,
}

const LENGTH: usize = size_of::<usize>();
const SENSITIVE: &[u8] = &[1];
const PLAIN: &[u8] = &[0];

impl Copy {
    pub(crate) fn of<B>(request: &Request<B>, extensions: Extensions) -> Self {
        let (uri, headers) = (request.uri(), request.headers());
        let authority = uri.authority().map_or("", Authority::as_str);
        let path = uri.path_and_query().map_or("", PathAndQuery::as_str);
        let size = |(name, value): (&HeaderName, &HeaderValue)| {
            3 * LENGTH + name.as_str().len() + value.len() + PLAIN.len()
        };
        let size = 2 * LENGTH + authority.len() + path.len() + headers.iter().map(size).sum::<usize>();
        let mut parts = Vec::with_capacity(size);
        push(&mut parts, authority.as_bytes());
        push(&mut parts, path.as_bytes());
        for (name, value) in headers {
            push(&mut parts, name.as_str().as_bytes());
            push(&mut parts, value.as_bytes());
            push(&mut parts, if value.is_sensitive() { SENSITIVE } else { PLAIN });
        }
        Self {
            method: request.method().clone(),
            scheme: uri.scheme().cloned(),
            version: request.version(),
            extensions,
            parts,
        }
    }

    /// The request again. `None` never happens: all parts were valid.
    pub(crate) fn restore<B>(self, body: B) -> Option<Request<B>> {
        let mut parts = Bytes::from(self.parts);
        let (authority, path) = (pop(&mut parts)?, pop(&mut parts)?);
        let mut uri = http::uri::Parts::default();
        uri.scheme = self.scheme;
        if !authority.is_empty() {
            uri.authority = Some(Authority::from_maybe_shared(authority).ok()?);
        }
        if !path.is_empty() {
            uri.path_and_query = Some(PathAndQuery::from_maybe_shared(path).ok()?);
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = Uri::from_parts(uri).ok()?;
        *request.version_mut() = self.version;
        *request.extensions_mut() = self.extensions;
        while !parts.is_empty() {
            let name = HeaderName::from_bytes(&pop(&mut parts)?).ok()?;
            let mut value = HeaderValue::from_maybe_shared(pop(&mut parts)?).ok()?;
            value.set_sensitive(pop(&mut parts)? == SENSITIVE);
            request.headers_mut().append(name, value);
        }
        Some(request)
    }
}

fn push(parts: &mut Vec<u8>, part: &[u8]) {
    parts.extend_from_slice(&part.len().to_ne_bytes());
    parts.extend_from_slice(part);
}

fn pop(parts: &mut Bytes) -> Option<Bytes> {
    let length = usize::from_ne_bytes(*parts.first_chunk()?);
    parts.advance(LENGTH);
    (length <= parts.len()).then(|| parts.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(request: Request<()>) {
        let again = Copy::of(&request, Extensions::new()).restore(()).unwrap();
        assert_eq!(again.method(), request.method());
        assert_eq!(again.uri(), request.uri());
        assert_eq!(again.version(), request.version());
        assert_eq!(again.headers(), request.headers());
        let sensitive = |request: &Request<()>| -> Vec<bool> {
            request.headers().values().map(HeaderValue::is_sensitive).collect()
        };
        assert_eq!(sensitive(&again), sensitive(&request));
    }

    #[test]
    fn a_restored_head_is_the_head_that_was_copied() {
        for uri in ["http://web.ns:8080/a?b=c", "https://web/", "other://web/a", "/a", "*", "web.ns:443", "/"]
        {
            check(Request::get(uri).version(Version::HTTP_2).body(()).unwrap());
        }
        let mut secret = HeaderValue::from_bytes(b"b\xe4r").unwrap();
        secret.set_sensitive(true);
        let request = Request::builder()
            .method("PURGE-EVERYTHING-THERE-IS")
            .uri("http://web/a")
            .header("x-many", "1")
            .header("accept", "")
            .header("x-many", secret)
            .header("x-many", "3");
        check(request.body(()).unwrap());
    }

    #[test]
    fn it_has_the_extensions_that_it_was_given() {
        let mut request = Request::get("http://web/chat").body(()).unwrap();
        request.extensions_mut().insert("left");
        let mut kept = Extensions::new();
        kept.insert(2u8);
        let again = Copy::of(&request, kept).restore(()).unwrap();
        assert_eq!((again.extensions().get(), again.extensions().len()), (Some(&2u8), 1));
    }
}
