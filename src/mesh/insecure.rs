//! Floor 6: stands for TLS in a program that was built without it: plaintext, or an error where TLS is required.

use crate::connect::handshake::Established;
use crate::connect::handshake::Handshake;
use crate::connect::handshake::Offer;
use crate::connect::handshake::Plain;
use crate::connect::handshake::retired_once;
use crate::discover::endpoint::Endpoint;
use crate::error::BoxError;
use crate::profile::settings::ClientTls;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// How connections to one replica are secured: not at all.
#[derive(Debug, Clone)]
pub struct Secure {
    tls: watch::Receiver<Arc<ClientTls>>,
}

impl Secure {
    /// Opens connections in plaintext while `tls` requires nothing else.
    pub fn new(tls: watch::Receiver<Arc<ClientTls>>) -> Self {
        Self { tls }
    }
}

impl Handshake for Secure {
    type Io = TcpStream;

    async fn handshake(
        &self,
        stream: TcpStream,
        endpoint: &Endpoint,
        offer: Offer,
    ) -> Result<Established<TcpStream>, BoxError> {
        if self.tls.borrow().mode.is_required() {
            return Err(
                "the profile requires tls, which this program was built without (feature `tls`)".into()
            );
        }
        let retired = retired_once(self.tls.clone(), |tls| tls.mode.is_required());
        let established = Plain.handshake(stream, endpoint, offer).await?;
        Ok(Established { retired: Some(retired), ..established })
    }
}
