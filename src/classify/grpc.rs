//! Floor 1: tells gRPC's messages from others.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// Whether headers are those of a gRPC message, by their content type.
#[inline]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}
