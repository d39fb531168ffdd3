//! Floor 5: identities from the SPIFFE Workload API: SPIRE's agent, and whoever speaks like it.
//!
//! `FetchX509SVID` is one call whose answers never end: each is a whole identity. When it breaks, it is made again; the
//! identity that is in use stays. Our copies of an answer's key are wiped; of the HTTP/2 library's buffers those that it lets go of.

use crate::stdx::protobuf::NoMessage;
use crate::stdx::protobuf::Value;
use crate::stdx::protobuf::fields;
use crate::stdx::rng::Rng;
use crate::tls::bundle::TrustBundles;
use crate::tls::grpc::Call;
use crate::tls::grpc::Ended;
use crate::tls::identity::SpiffeId;
use crate::tls::identity::TrustDomain;
use crate::tls::material::BadMaterial;
use crate::tls::material::Material;
use crate::tls::material::PrivateKey;
use crate::tls::material::Source;
use futures::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivatePkcs8KeyDer;
use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use x509_parser::prelude::FromDer;
use x509_parser::prelude::X509Certificate;

const PATH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
/// Says that we know what we ask for; servers refuse calls without it (SPIFFE Workload API §4).
const HEADERS: [(&str, &str); 1] = [("workload.spiffe.io", "true")];

/// How long until an identity that was refused is asked for again.
const REFUSED_AGAIN: Duration = Duration::from_secs(30);

/// Where the Workload API is and how it is asked.
#[derive(Debug, Clone)]
pub struct WorkloadApiSettings {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Which identity, if the agent has several for us. Default: the first.
    pub identity: Option<SpiffeId>,
    /// The wait before the first repetition of a broken call; it doubles. Default 100 ms (as Linkerd).
    pub retry_min: Duration,
    /// The longest wait before a repetition. Default 1 s (as Linkerd): the agent is on this node.
    pub retry_max: Duration,
    /// How long the first answer of a call may take. Default 10 s.
    pub answer_max: Duration,
}

impl WorkloadApiSettings {
    /// The API at this socket: a path, or `unix:///path` as in `SPIFFE_ENDPOINT_SOCKET`.
    pub fn at(socket: &str) -> Self {
        let path = socket.strip_prefix("unix:").unwrap_or(socket);
        let path = path.strip_prefix("//").unwrap_or(path);
        Self {
            socket: path.into(),
            identity: None,
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(1),
            answer_max: Duration::from_secs(10),
        }
    }
}

/// A source that asks the Workload API.
pub struct WorkloadApi {
    settings: WorkloadApiSettings,
    rng: Rng,
    call: Option<Call>,
    failures: u32,
    /// Whether the last answer was not taken over.
    refused: bool,
}

impl fmt::Debug for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApi").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl WorkloadApi {
    /// Asks the API, first at once.
    pub fn new(settings: WorkloadApiSettings, rng: Rng) -> Self {
        Self { settings, rng, call: None, failures: 0, refused: false }
    }

    async fn answer(&mut self) -> Result<Material, BadMaterial> {
        if std::mem::take(&mut self.refused) {
            tokio::time::sleep(REFUSED_AGAIN).await;
        } else if self.failures > 0 && self.call.is_none() {
            tokio::time::sleep(self.wait()).await;
        }
        let message = match self.call.take() {
            // Between answers an hour may pass; only the first one is due.
            Some(mut call) => call.next().await.map(|message| (call, message)),
            None => {
                let socket = self.settings.socket.clone();
                let first = async {
                    let mut call = start(&socket).await?;
                    call.next().await.map(|message| (call, message))
                };
                let late = |_| Err(Ended { code: 4, message: "no answer in time".to_owned() });
                tokio::time::timeout(self.settings.answer_max, first).await.unwrap_or_else(late)
            }
        };
        let (call, message) = message.map_err(|ended| {
            self.failures = self.failures.saturating_add(1);
            BadMaterial::Source(format!("workload api at {}: {ended}", self.settings.socket.display()))
        })?;
        self.call = Some(call);
        self.failures = 0;
        read(&message, self.settings.identity.as_ref())
    }

    fn wait(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        let whole = self.settings.retry_min.saturating_mul(1 << doublings).min(self.settings.retry_max);
        whole.mul_f64(0.9 + 0.2 * self.rng.unit())
    }
}

#[cfg(unix)]
async fn start(socket: &Path) -> Result<Call, Ended> {
    let connected = tokio::net::UnixStream::connect(socket).await;
    let stream = connected.map_err(|error| Ended { code: 14, message: error.to_string() })?;
    Call::start(stream, "localhost", PATH, &HEADERS, &[]).await
}

#[cfg(not(unix))]
async fn start(_: &Path) -> Result<Call, Ended> {
    let _ = (PATH, HEADERS, Call::start::<tokio::io::DuplexStream>);
    Err(Ended { code: 12, message: "this platform has no unix sockets".to_owned() })
}

impl Source for WorkloadApi {
    fn name(&self) -> &'static str {
        "workload_api"
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Material, BadMaterial>> {
        Box::pin(self.answer())
    }

    /// Asks again after a while: its time may yet come, if it is not yet valid.
    fn refused(&mut self) {
        self.call = None;
        self.refused = true;
    }
}

/// An `X509SVID` of an answer.
#[derive(Default)]
struct Svid<'a> {
    id: &'a [u8],
    chain: &'a [u8],
    key: &'a [u8],
    bundle: &'a [u8],
}

/// Reads an `X509SVIDResponse`.
fn read(message: &[u8], wanted: Option<&SpiffeId>) -> Result<Material, BadMaterial> {
    let (mut svids, mut crls, mut federated) = (Vec::new(), Vec::new(), Vec::new());
    for field in fields(message) {
        match field.map_err(not_a_message)? {
            (1, Value::Bytes(svid)) => svids.push(read_svid(svid).map_err(not_a_message)?),
            (2, Value::Bytes(crl)) => crls.push(crl),
            (3, Value::Bytes(entry)) => federated.push(read_entry(entry).map_err(not_a_message)?),
            _ => {}
        }
    }
    let is_wanted = |svid: &&Svid<'_>| wanted.is_none_or(|wanted| svid.id == wanted.as_str().as_bytes());
    let Some(svid) = svids.iter().find(is_wanted) else {
        let wanted = wanted.map_or_else(|| "any identity".to_owned(), ToString::to_string);
        return Err(BadMaterial::Source(format!(
            "the workload api has {} identities, and not {wanted}",
            svids.len()
        )));
    };
    let text = std::str::from_utf8(svid.id).unwrap_or_default();
    let id: SpiffeId = text.parse().map_err(|bad| BadMaterial::Source(format!("workload api: {bad}")))?;
    let domain: TrustDomain = domain(id.trust_domain())?;
    let mut bundles = TrustBundles::new(domain.clone());
    add_all(&mut bundles, svid.bundle, &domain)?;
    for (name, bundle) in federated {
        let other = domain_of_entry(name)?;
        bundles.know(&other).map_err(BadMaterial::Root)?;
        add_all(&mut bundles, bundle, &other)?;
    }
    for crl in crls {
        bundles.add_crl(crl, &domain).map_err(BadMaterial::Root)?;
    }
    let chain = split("certificate chain", svid.chain)?;
    let key = PrivateKey::new(PrivatePkcs8KeyDer::from(svid.key.to_vec()).into());
    Ok(Material { chain, key, bundles })
}

fn not_a_message(_: NoMessage) -> BadMaterial {
    BadMaterial::Source("the workload api answered with no protobuf message".to_owned())
}

fn domain(name: &str) -> Result<TrustDomain, BadMaterial> {
    name.parse().map_err(|bad| BadMaterial::Source(format!("workload api: {bad}")))
}

fn domain_of_entry(name: &[u8]) -> Result<TrustDomain, BadMaterial> {
    domain(std::str::from_utf8(name).unwrap_or_default())
}

fn read_svid(message: &[u8]) -> Result<Svid<'_>, NoMessage> {
    let mut svid = Svid::default();
    for field in fields(message) {
        match field? {
            (1, Value::Bytes(bytes)) => svid.id = bytes,
            (2, Value::Bytes(bytes)) => svid.chain = bytes,
            (3, Value::Bytes(bytes)) => svid.key = bytes,
            (4, Value::Bytes(bytes)) => svid.bundle = bytes,
            _ => {}
        }
    }
    Ok(svid)
}

/// An entry of a map from text to bytes.
fn read_entry(message: &[u8]) -> Result<(&[u8], &[u8]), NoMessage> {
    let mut entry: (&[u8], &[u8]) = (&[], &[]);
    for field in fields(message) {
        match field? {
            (1, Value::Bytes(bytes)) => entry.0 = bytes,
            (2, Value::Bytes(bytes)) => entry.1 = bytes,
            _ => {}
        }
    }
    Ok(entry)
}

/// Adds every anchor of a bundle; an empty one revokes its domain.
fn add_all(bundles: &mut TrustBundles, bundle: &[u8], domain: &TrustDomain) -> Result<(), BadMaterial> {
    for anchor in split("trust roots", bundle)? {
        bundles.add_to(anchor, domain).map_err(BadMaterial::Root)?;
    }
    Ok(())
}

/// Splits certificates that stand one after the other in DER.
fn split(part: &'static str, mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, BadMaterial> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        let unreadable = |_| BadMaterial::Unreadable { part, why: "it is not der of x.509".to_owned() };
        let (rest, _) = X509Certificate::from_der(der).map_err(unreadable)?;
        let length = der.len() - rest.len();
        certificates.push(CertificateDer::from(der.get(..length).unwrap_or_default().to_vec()));
        der = rest;
    }
    Ok(certificates)
}
