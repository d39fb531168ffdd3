//! Floor 6: one question to one admin server, on a connection of its own.

use crate::admin::fleet::Question;
use crate::error::BoxError;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderName, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// For whom a process asks: it is told what that identity may see, and not more. Absent: for itself.
pub(crate) const OBSERVER: HeaderName = HeaderName::from_static("enmesh-observer");

/// Which process answers.
pub(crate) const PROCESS: HeaderName = HeaderName::from_static("enmesh-process");

/// The most bytes that are read ahead of whoever reads an answer.
const BUFFER_BYTES: usize = 64 << 10;

/// A stream of bytes.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Secures a connection, and proves to the peer who we are.
pub(crate) type Prove =
    Arc<dyn Fn(TcpStream) -> BoxFuture<'static, Result<Box<dyn Wire>, BoxError>> + Send + Sync>;

/// An answer that has begun.
pub(crate) struct Answer {
    pub(crate) head: Response<()>,
    body: Incoming,
    /// Must be driven for more of the body to come; `None` when it has ended.
    connection: Option<BoxFuture<'static, ()>>,
    /// Held, since a connection without it ends.
    _sender: http1::SendRequest<Full<Bytes>>,
}

/// Connects, by `prove` if it is given, asks, and waits for the answer to begin.
pub(crate) async fn ask(
    addr: SocketAddr,
    question: &Question,
    observer: Option<&str>,
    prove: Option<&Prove>,
) -> Result<Answer, String> {
    let stream = TcpStream::connect(addr).await.map_err(|error| format!("cannot be reached: {error}"))?;
    let wire: Box<dyn Wire> = match prove {
        None => Box::new(stream),
        Some(prove) => prove(stream).await.map_err(|error| format!("no mutual TLS: {error}"))?,
    };
    let broken = |error: hyper::Error| format!("does not speak HTTP: {error}");
    let mut http = http1::Builder::new();
    let (mut sender, connection) =
        http.max_buf_size(BUFFER_BYTES).handshake(TokioIo::new(wire)).await.map_err(broken)?;
    let body = question.body.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut request = Request::builder()
        .method(if question.body.is_some() { Method::POST } else { Method::GET })
        .uri(&question.path)
        .header(header::HOST, addr.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close");
    if let Some(observer) = observer {
        request = request.header(OBSERVER, observer);
    }
    let request = request
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| format!("cannot be asked for `{}`: {error}", question.path))?;
    // Its errors are those of the answer.
    let mut connection: BoxFuture<'static, ()> = Box::pin(async { drop(connection.await) });
    let mut open = true;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let response = loop {
        tokio::select! {
            biased;
            response = answer.as_mut() => break response.map_err(broken)?,
            () = connection.as_mut(), if open => open = false,
        }
    };
    let (head, body) = response.into_parts();
    let connection = open.then_some(connection);
    Ok(Answer { head: Response::from_parts(head, ()), body, connection, _sender: sender })
}

impl Answer {
    /// More of the body; `None` at its end. Cancel safe.
    pub(crate) async fn more(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let frame = match &mut self.connection {
                None => self.body.frame().await,
                Some(connection) => tokio::select! {
                    biased;
                    frame = self.body.frame() => frame,
                    () = connection.as_mut() => {
                        self.connection = None;
                        continue;
                    }
                },
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(format!("broke off: {error}")),
                // Trailers say nothing here.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    Ok(_) | Err(_) => {}
                },
            }
        }
    }

    /// The rest of the body, if it is no longer than `bytes_max`.
    pub(crate) async fn whole(&mut self, bytes_max: usize) -> Result<Vec<u8>, String> {
        let mut whole = Vec::new();
        while let Some(data) = self.more().await? {
            if whole.len() + data.len() > bytes_max {
                return Err(format!("answered with more than {bytes_max} bytes"));
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole)
    }
}
