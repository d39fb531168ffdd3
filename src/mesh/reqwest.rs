//! Floor 6: a reqwest middleware that sends through the mesh (feature `reqwest`).

use crate::mesh::client::Client;
use async_trait::async_trait;
use http::Request;
use reqwest_middleware::{Error, Middleware, Next, Result};
use tower_service::Service;

/// The last middleware of a `reqwest_middleware` client: requests go to the mesh and not to reqwest's own connections.
///
/// Options of a call are given by `RequestBuilder::with_extension(CallOptions::default())`.
#[derive(Debug, Clone)]
pub struct MeshMiddleware {
    client: Client,
}

impl MeshMiddleware {
    /// Sends by `client`.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

#[async_trait]
impl Middleware for MeshMiddleware {
    /// Never asks the next middleware: this is the last.
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut http::Extensions,
        _: Next<'_>,
    ) -> Result<reqwest::Response> {
        let mut request: Request<reqwest::Body> = request.try_into().map_err(Error::Reqwest)?;
        request.extensions_mut().extend(std::mem::take(extensions));
        let response = self.client.clone().call(request).await.map_err(Error::middleware)?;
        Ok(reqwest::Response::from(response.map(reqwest::Body::wrap)))
    }
}
