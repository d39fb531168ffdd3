//! Floor 5: the one source of cryptography: aws-lc-rs, or ring where that alone is built in.

#[cfg(feature = "tls")]
use rustls::crypto::aws_lc_rs as built_in;
#[cfg(not(feature = "tls"))]
use rustls::crypto::ring as built_in;

use crate::tls::material::BadMaterial;
use crate::tls::material::PrivateKey;
use rustls::crypto::CryptoProvider;
use rustls::crypto::SupportedKxGroup;
use rustls::sign::SigningKey;
use std::sync::Arc;
use std::sync::LazyLock;

/// In order of preference, the post-quantum hybrid first.
#[cfg(feature = "tls")]
const KX_GROUPS: [&dyn SupportedKxGroup; 4] = [
    built_in::kx_group::X25519MLKEM768,
    built_in::kx_group::X25519,
    built_in::kx_group::SECP256R1,
    built_in::kx_group::SECP384R1,
];

/// In order of preference. ring has no post-quantum key exchange.
#[cfg(not(feature = "tls"))]
const KX_GROUPS: [&dyn SupportedKxGroup; 3] =
    [built_in::kx_group::X25519, built_in::kx_group::SECP256R1, built_in::kx_group::SECP384R1];

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            built_in::cipher_suite::TLS13_AES_128_GCM_SHA256,
            built_in::cipher_suite::TLS13_AES_256_GCM_SHA384,
            built_in::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: KX_GROUPS.to_vec(),
        ..built_in::default_provider()
    })
});

/// What every connection here is secured with: the suites of TLS 1.3 alone. With feature `tls` it is aws-lc-rs, also if
/// `ring` is on too; with `ring` alone it is ring.
///
/// It is passed explicitly: rustls's process default is the application's, and none of ours is installed.
pub fn crypto() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// The key as the provider signs with it. The provider's copy is the provider's to wipe, and ours stays ours.
pub(crate) fn signing_key(key: &PrivateKey) -> Result<Arc<dyn SigningKey>, BadMaterial> {
    built_in::sign::any_supported_type(key.der()).map_err(|_| BadMaterial::BadKey)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::NamedGroup;

    #[test]
    fn the_post_quantum_hybrid_comes_first_where_there_is_one() {
        let first = crypto().kx_groups.first().map(|group| group.name());
        let expected = if cfg!(feature = "tls") { NamedGroup::X25519MLKEM768 } else { NamedGroup::X25519 };
        assert_eq!(first, Some(expected));
        assert!(crypto().cipher_suites.iter().all(|suite| suite.version() == &rustls::version::TLS13));
    }
}
