//! Floor 5: one gRPC call on a connection of its own: what identity services need, and no more.
//!
//! The call drives its connection while it waits: it needs no task, and when it is dropped everything is gone.

use bytes::Bytes;
use bytes::BytesMut;
use h2::RecvStream;
use h2::client::ResponseFuture;
use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use zeroize::Zeroize;
use zeroize::Zeroizing;

/// Bytes that may hold a key, wiped when they are dropped.
pub(crate) type Secret = Zeroizing<Vec<u8>>;

/// The longest message that is taken: gRPC's usual limit. A bundle of 64 domains is a tenth of it.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Why a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The gRPC code; 14 (unavailable) when the connection failed.
    pub(crate) code: u8,
    /// What the peer said, or what happened.
    pub(crate) message: String,
}

impl Ended {
    fn unavailable(why: impl fmt::Display) -> Self {
        Self { code: 14, message: why.to_string() }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grpc code {}: {}", self.code, self.message)
    }
}

type Driver = Pin<Box<dyn Future<Output = Result<(), h2::Error>> + Send>>;

/// A call that has been sent, whose answers are read one by one.
pub(crate) struct Call {
    connection: Driver,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    buffer: Secret,
}

impl Call {
    /// Sends a request of one message to `path` (`/package.Service/Method`) over `io`.
    pub(crate) async fn start<IO>(
        io: IO,
        authority: &str,
        path: &str,
        headers: &[(&'static str, &'static str)],
        message: &[u8],
    ) -> Result<Self, Ended>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = h2::client::handshake(io).await.map_err(Ended::unavailable)?;
        let mut connection: Driver = Box::pin(connection);
        let mut request = Request::post(format!("http://{authority}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(Ended::unavailable)?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_static(value));
        }
        let mut sender = drive(&mut connection, sender.ready()).await?.map_err(Ended::unavailable)?;
        let (response, mut body) = sender.send_request(request, false).map_err(Ended::unavailable)?;
        let mut framed = BytesMut::with_capacity(5 + message.len());
        framed.extend_from_slice(&[0]);
        framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
        framed.extend_from_slice(message);
        body.send_data(framed.freeze(), true).map_err(Ended::unavailable)?;
        Ok(Self { connection, response: Some(response), body: None, buffer: Secret::default() })
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// The call has ended: [`Ended`] with code 0 when the peer says that all went well.
    pub(crate) async fn next(&mut self) -> Result<Secret, Ended> {
        if let Some(response) = self.response.take() {
            let response = drive(&mut self.connection, response).await?.map_err(Ended::unavailable)?;
            if response.status() != http::StatusCode::OK {
                return Err(Ended::unavailable(format!("http status {}", response.status())));
            }
            if let Some(ended) = status(response.headers()) {
                return Err(ended);
            }
            self.body = Some(response.into_body());
        }
        let Some(body) = &mut self.body else { return Err(Ended::unavailable("the call is over")) };
        loop {
            if let Some(message) = message(&mut self.buffer)? {
                return Ok(message);
            }
            match drive(&mut self.connection, body.data()).await? {
                Some(Ok(data)) => {
                    body.flow_control().release_capacity(data.len()).map_err(Ended::unavailable)?;
                    append(&mut self.buffer, data);
                }
                Some(Err(error)) => return Err(Ended::unavailable(error)),
                None => {
                    let trailers = drive(&mut self.connection, body.trailers()).await?;
                    let trailers = trailers.map_err(Ended::unavailable)?.unwrap_or_default();
                    let cut = || Ended::unavailable("the stream ended without a status");
                    return Err(status(&trailers).unwrap_or_else(cut));
                }
            }
        }
    }
}

/// Adds a piece, which may hold a key: a buffer that is outgrown is wiped, and so is the piece, unless the HTTP/2 library
/// still holds a part of its memory.
fn append(buffer: &mut Secret, piece: Bytes) {
    let needed = buffer.len() + piece.len();
    if needed > buffer.capacity() {
        let mut larger = Secret::new(Vec::with_capacity(needed.next_power_of_two()));
        larger.extend_from_slice(buffer);
        *buffer = larger;
    }
    buffer.extend_from_slice(&piece);
    if let Ok(mut own) = piece.try_into_mut() {
        own.as_mut().zeroize();
    }
}

/// The next whole message of the buffer.
fn message(buffer: &mut Secret) -> Result<Option<Secret>, Ended> {
    let Some((head, rest)) = buffer.split_first_chunk::<5>() else { return Ok(None) };
    let [compressed, length @ ..] = *head;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 || length > MESSAGE_BYTES_MAX {
        return Err(Ended::unavailable(format!(
            "a message of {length} bytes (compression {compressed}) is not taken"
        )));
    }
    let Some((whole, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    let (whole, rest) = (Secret::new(whole.to_vec()), Secret::new(rest.to_vec()));
    *buffer = rest;
    Ok(Some(whole))
}

/// Waits for `step` while the connection is driven.
async fn drive<T>(connection: &mut Driver, step: impl Future<Output = T>) -> Result<T, Ended> {
    tokio::select! {
        biased;
        value = step => Ok(value),
        ended = connection => Err(match ended {
            Ok(()) => Ended::unavailable("the connection was closed"),
            Err(error) => Ended::unavailable(error),
        }),
    }
}

fn status(headers: &HeaderMap) -> Option<Ended> {
    let code = headers.get("grpc-status")?.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let message = headers.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
    Some(Ended { code, message: message.chars().take(300).collect() })
}
