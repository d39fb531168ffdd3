//! Floor 5: one identity epoch: a checked identity as a fresh pair of rustls configurations.
//!
//! Nothing is shared between epochs but the crypto provider: no session, no ticket, no resolver. A session that was
//! agreed under one identity can therefore never be resumed under another, and since resumption is off, not at all.

use crate::metrics::registry::Registry;
use crate::stdx::clock;
use crate::tls::identity::Identity;
use crate::tls::identity::PeerIdentity;
use crate::tls::material::BadMaterial;
use crate::tls::material::Material;
use crate::tls::provider::crypto;
use crate::tls::provider::signing_key;
use crate::tls::svid::read_leaf;
use crate::tls::svid::system_time;
use crate::tls::verify::ClientVerifier;
use crate::tls::verify::Expected;
use crate::tls::verify::ServerVerifier;
use crate::tls::verify::Side;
use crate::tls::verify::Verifier;
use crate::tls::verify::VerifySettings;
use rustls::ClientConfig;
use rustls::ConfigBuilder;
use rustls::ServerConfig;
use rustls::client::ResolvesClientCert;
use rustls::client::Resumption;
use rustls::client::WantsClientCert;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::UnixTime;
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

/// What a mesh speaks inside TLS, in order of preference.
pub(crate) const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The wall clock of [`clock::wall`].
#[derive(Debug)]
struct Wall;

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        let since = clock::wall().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// The system's wall clock.
pub(crate) fn system_wall() -> Arc<dyn TimeProvider> {
    Arc::new(Wall)
}

/// The time of a wall clock; the Unix epoch, at which nothing is valid, if it has none.
pub(crate) fn read_wall(wall: &dyn TimeProvider) -> SystemTime {
    wall.current_time().map_or(SystemTime::UNIX_EPOCH, system_time)
}

/// How identities are checked and used.
#[derive(Debug, Clone)]
pub struct EpochSettings {
    /// How certificates are judged, ours and the peers'.
    pub verify: VerifySettings,
    /// Whose certificate a source must deliver. `None`: the first one decides, and later ones must be the same.
    pub identity: Option<Identity>,
    /// The longest that a connection made under our former certificate is used on; its end is drawn at random
    /// within it, so that connections are not all remade at once. Default 5 minutes.
    pub old_epoch_max: Duration,
    /// The wall clock, which tests turn. Default: the system's.
    pub wall: Arc<dyn TimeProvider>,
    /// Where identity and handshakes are counted. Default: the program's recorder; a mesh puts its own here.
    pub registry: Registry,
}

impl Default for EpochSettings {
    fn default() -> Self {
        Self {
            verify: VerifySettings::default(),
            identity: None,
            old_epoch_max: Duration::from_secs(300),
            wall: Arc::new(Wall),
            registry: Registry::global(),
        }
    }
}

impl EpochSettings {
    /// The present wall time; the Unix epoch if there is none, which refuses every certificate.
    pub(crate) fn now(&self) -> UnixTime {
        self.wall.current_time().unwrap_or(UnixTime::since_unix_epoch(Duration::ZERO))
    }

    /// [`now`](Self::now) as the standard library has it.
    pub(crate) fn wall(&self) -> SystemTime {
        read_wall(&*self.wall)
    }
}

/// One identity epoch.
#[derive(Debug)]
pub struct Epoch {
    number: u64,
    identity: PeerIdentity,
    not_before: SystemTime,
    pub(crate) verifier: Arc<Verifier>,
    chain: Vec<CertificateDer<'static>>,
    client: ClientConfig,
    require: Arc<ServerConfig>,
    request: Arc<ServerConfig>,
}

impl Epoch {
    /// Checks `material` and makes an epoch of it.
    ///
    /// `before` is the epoch it follows. With the same certificate as before, new bundles that no longer vouch for
    /// it are taken over all the same: roots are withdrawn for a reason, and our peers decide about us.
    ///
    /// # Errors
    /// [`BadMaterial`]: the parts do not fit each other, or are not ours.
    pub fn new(
        number: u64,
        material: Material,
        settings: &EpochSettings,
        before: Option<&Self>,
    ) -> Result<Self, BadMaterial> {
        let Material { chain, key, bundles } = material;
        let leaf_der = match chain.first() {
            Some(leaf) if chain.len() <= Material::CHAIN_MAX => leaf,
            Some(_) => {
                let why = format!("more than {} certificates", Material::CHAIN_MAX);
                return Err(BadMaterial::Unreadable { part: "certificate chain", why });
            }
            None => {
                let why = "it is empty".to_owned();
                return Err(BadMaterial::Unreadable { part: "certificate chain", why });
            }
        };
        let leaf = read_leaf(leaf_der, settings.verify.names).map_err(BadMaterial::Own)?;
        // From here on the key lives in the provider alone, which wipes it; our copy is wiped when we return.
        let signing = signing_key(&key)?;
        let certified = CertifiedKey::new(chain.clone(), signing);
        certified.keys_match().map_err(|_| BadMaterial::KeyMismatch)?;
        let verifier = Arc::new(Verifier::new(bundles, settings.verify));
        let unchanged = before.is_some_and(|before| before.chain.first() == Some(leaf_der));
        let identity = match own_identity(&verifier, &chain, settings) {
            Ok(identity) => identity,
            Err(BadMaterial::Own(_)) if unchanged => match before {
                Some(before) => before.identity.clone(),
                None => return Err(BadMaterial::NoDomain),
            },
            Err(bad) => return Err(bad),
        };
        let expected = settings.identity.as_ref().or(before.map(|before| &before.identity.identity));
        if let Some(expected) = expected.filter(|expected| !leaf.names.contains(expected)) {
            let (expected, given) = (expected.to_string(), identity.identity.to_string());
            return Err(BadMaterial::WrongIdentity { expected, given });
        }
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let server = |mandatory| server_config(&verifier, &resolver, mandatory, settings);
        Ok(Self {
            number,
            identity,
            not_before: leaf.not_before,
            client: client_config(&verifier, &resolver, settings)?,
            require: server(true)?,
            request: server(false)?,
            chain,
            verifier,
        })
    }

    /// Counts up with each identity of the process, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Who we are, for whose certificate how long.
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// When our certificate begins to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Our certificate and its intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Whom this epoch believes.
    pub fn verifier(&self) -> &Arc<Verifier> {
        &self.verifier
    }

    /// The configuration of one outgoing connection, on which `expected` must answer.
    pub(crate) fn client_for(&self, expected: &Expected, alpn: &[Vec<u8>]) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        let verifier = ServerVerifier { verifier: Arc::clone(&self.verifier), expected: expected.clone() };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        config.alpn_protocols = alpn.to_vec();
        Arc::new(config)
    }

    /// The configuration of incoming connections.
    pub(crate) fn server(&self, mandatory: bool) -> &Arc<ServerConfig> {
        if mandatory { &self.require } else { &self.request }
    }
}

/// Our own identity, if a peer who believes our bundles would believe it, on either side.
fn own_identity(
    verifier: &Verifier,
    chain: &[CertificateDer<'static>],
    settings: &EpochSettings,
) -> Result<PeerIdentity, BadMaterial> {
    let Some((leaf, intermediates)) = chain.split_first() else { return Err(BadMaterial::NoDomain) };
    let now = settings.now();
    let judge = |side| verifier.verify(leaf, intermediates, side, now, None).map_err(BadMaterial::Own);
    judge(Side::Server)?;
    judge(Side::Client)
}

fn client_config(
    verifier: &Arc<Verifier>,
    resolver: &Arc<SingleCertAndKey>,
    settings: &EpochSettings,
) -> Result<ClientConfig, BadMaterial> {
    // Nobody is expected until `client_for` says who.
    let nobody = ServerVerifier { verifier: Arc::clone(verifier), expected: Expected::OneOf(Arc::new([])) };
    let mut config = client_builder(Arc::new(nobody), Arc::clone(&settings.wall))
        .map_err(|_| BadMaterial::BadKey)?
        .with_client_cert_resolver(Arc::clone(resolver) as Arc<dyn ResolvesClientCert>);
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// The configuration of connections that we open without an identity: to ask for one, or out of the mesh.
///
/// # Errors
/// The crypto provider cannot speak TLS 1.3.
pub(crate) fn anonymous_client(
    verifier: Arc<dyn ServerCertVerifier>,
    wall: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = client_builder(verifier, wall)?.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// TLS 1.3 alone, with servers that `verifier` accepts.
fn client_builder(
    verifier: Arc<dyn ServerCertVerifier>,
    wall: Arc<dyn TimeProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    let builder = ClientConfig::builder_with_details(Arc::clone(crypto()), wall)
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
}

fn server_config(
    verifier: &Arc<Verifier>,
    resolver: &Arc<SingleCertAndKey>,
    mandatory: bool,
    settings: &EpochSettings,
) -> Result<Arc<ServerConfig>, BadMaterial> {
    let clients = ClientVerifier { verifier: Arc::clone(verifier), mandatory };
    let builder = ServerConfig::builder_with_details(Arc::clone(crypto()), Arc::clone(&settings.wall));
    let mut config = builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| BadMaterial::BadKey)?
        .with_client_cert_verifier(Arc::new(clients))
        .with_cert_resolver(Arc::clone(resolver) as Arc<dyn rustls::server::ResolvesServerCert>);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}
