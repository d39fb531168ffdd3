//! Identities from files, revocation lists, and keys that leave no trace.

use crate::NOW;
use crate::support::*;
use enmesh::tls::authority::Authority;
use enmesh::tls::authority::AuthoritySettings;
use enmesh::tls::authority::IssuedPem;
use enmesh::tls::bundle::TrustBundles;
use enmesh::tls::files::FileSettings;
use enmesh::tls::files::Files;
use enmesh::tls::files::KeyAccess;
use enmesh::tls::identity::TrustDomain;
use enmesh::tls::material::Material;
use enmesh::tls::rotate::Identities;
use enmesh::tls::svid::Names;
use enmesh::tls::svid::Refusal;
use enmesh::tls::verify::Expected;
use enmesh::tls::verify::ExpiredAnchors;
use enmesh::tls::verify::Side;
use enmesh::tls::verify::Verifier;
use enmesh::tls::verify::VerifySettings;
use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::UnixTime;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

/// A directory of this test, emptied; removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("enmesh-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn write_all(directory: &Path, pem: &IssuedPem) {
    write(&directory.join("tls.crt"), &pem.chain, 0o644);
    write(&directory.join("tls.key"), &pem.key, 0o640);
    write(&directory.join("ca.crt"), &pem.roots, 0o644);
}

fn settings_at(wall: &Arc<Wall>, directory: &Directory) -> Identities {
    keep(Files::new(FileSettings::directory(&directory.0)), settings(wall))
}

async fn a_look() {
    tokio::time::sleep(Duration::from_secs(6)).await;
}

#[tokio::test(start_paused = true)]
async fn files_are_read_again_and_a_half_written_pair_is_left_alone() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let directory = Directory::new("plain");
    let identities = settings_at(&wall, &directory);
    a_look().await;
    assert!(identities.status().fault.unwrap().contains("tls.crt"));
    write_all(&directory.0, &ca.issue_pem(&id("web")).unwrap());
    a_look().await;
    assert_eq!(identities.status().epoch, 1);

    // A new certificate whose key is not there yet, then the key.
    let next = ca.issue_pem(&id("web")).unwrap();
    write(&directory.0.join("tls.crt"), &next.chain, 0o644);
    a_look().await;
    a_look().await;
    let status = identities.status();
    assert_eq!((status.epoch, status.refused), (1, 2), "once for the missing file, once for the key");
    assert!(status.fault.unwrap().contains("not the certificate's"));
    write(&directory.0.join("tls.key"), &next.key, 0o640);
    a_look().await;
    assert_eq!((identities.status().epoch, identities.status().fault), (2, None));

    // Cut in the middle of a write, or not pem at all, or somebody else's.
    let whole = ca.issue_pem(&id("web")).unwrap();
    for broken in [&whole.chain[..whole.chain.len() / 3], "", "no pem", &next.roots] {
        write(&directory.0.join("tls.crt"), broken, 0o644);
        a_look().await;
        assert_eq!(identities.status().epoch, 2, "{broken}");
        assert!(identities.status().fault.is_some());
    }
    write_all(&directory.0, &ca.issue_pem(&id("other")).unwrap());
    a_look().await;
    assert!(identities.status().fault.unwrap().contains("other"));
    write_all(&directory.0, &whole);
    a_look().await;
    assert_eq!(identities.status().epoch, 3);
}

#[tokio::test(start_paused = true)]
async fn a_kubernetes_mount_is_read_through_one_version() {
    let wall = Wall::at(NOW);
    let ca = authority(&wall);
    let directory = Directory::new("mount");
    let version = |name: &str| {
        let path = directory.0.join(name);
        fs::create_dir(&path).unwrap();
        write_all(&path, &ca.issue_pem(&id("web")).unwrap());
        let link = directory.0.join("..data_tmp");
        std::os::unix::fs::symlink(name, &link).unwrap();
        fs::rename(&link, directory.0.join("..data")).unwrap();
    };
    version("..2026_1");
    for file in ["tls.crt", "tls.key", "ca.crt"] {
        std::os::unix::fs::symlink(Path::new("..data").join(file), directory.0.join(file)).unwrap();
    }
    let identities = settings_at(&wall, &directory);
    identities.ready().await;
    for epoch in 2..6 {
        version(&format!("..2026_{epoch}"));
        fs::remove_dir_all(directory.0.join(format!("..2026_{}", epoch - 1))).unwrap();
        a_look().await;
        let status = identities.status();
        assert_eq!((status.epoch, status.fault), (epoch, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_others_may_read_is_refused_unless_allowed() {
    let wall = Wall::at(NOW);
    let pem = authority(&wall).issue_pem(&id("web")).unwrap();
    for (mode, access, right) in [
        (0o600, KeyAccess::OwnerOnly, true),
        (0o640, KeyAccess::OwnerOnly, false),
        (0o640, KeyAccess::GroupMayRead, true),
        (0o660, KeyAccess::GroupMayRead, false),
        (0o644, KeyAccess::GroupMayRead, false),
        (0o666, KeyAccess::Any, true),
    ] {
        let directory = Directory::new("modes");
        write_all(&directory.0, &pem);
        write(&directory.0.join("tls.key"), &pem.key, mode);
        let files = FileSettings { key_access: access, ..FileSettings::directory(&directory.0) };
        let identities = keep(Files::new(files), settings(&wall));
        a_look().await;
        let status = identities.status();
        assert_eq!(status.epoch == 1, right, "{mode:o} {access:?}: {status:?}");
        assert!(right || status.fault.unwrap().contains(&format!("{mode:04o}")));
    }
}

#[test]
fn keys_are_never_shown() {
    let pem = rcgen_authority().issue_pem(&id("web")).unwrap();
    let material =
        Material::from_pem(pem.chain.as_bytes(), pem.key.as_bytes(), pem.roots.as_bytes(), None).unwrap();
    assert!(format!("{:?}", material.key) == "PrivateKey(…)" && !format!("{pem:?}").contains("PRIVATE"));
    let shown = format!("{material:?} {pem:?}");
    let body: String = pem.key.lines().filter(|line| !line.starts_with('-')).collect();
    assert!(!shown.contains(&body[..32]));
    // Nor by errors about a key file that is not one.
    let mangled = pem.key.replace("BEGIN PRIVATE", "BEGIN ENCRYPTED PRIVATE");
    let error =
        Material::from_pem(pem.chain.as_bytes(), mangled.as_bytes(), pem.roots.as_bytes(), None).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(&body[..16]));
}

fn rcgen_authority() -> Authority {
    Authority::new("mesh.example".parse().unwrap(), AuthoritySettings::default()).unwrap()
}

#[test]
fn an_authority_that_is_kept_signs_on_under_the_same_root() {
    let first = rcgen_authority();
    let (root, key) = (first.roots_pem(), first.root_key_pem());
    let again =
        Authority::from_pem("mesh.example".parse().unwrap(), AuthoritySettings::default(), &root, &key)
            .unwrap();
    let now = UnixTime::now();
    let material = again.issue(&id("web")).unwrap();
    let before = first.issue(&id("web")).unwrap();
    let verifier = Verifier::new(before.bundles, VerifySettings::default());
    verifier.verify(&material.chain[0], &material.chain[1..], Side::Client, now, None).unwrap();
    assert!(
        Authority::from_pem("other".parse().unwrap(), AuthoritySettings::default(), &root, &key).is_err()
    );
    assert!(first.issue(&"spiffe://other.example/web".parse().unwrap()).is_err());
}

/// A chain made by hand: a root with its key, and a leaf under it.
struct Made {
    root: CertifiedIssuer<'static, KeyPair>,
    leaf: CertificateDer<'static>,
    domain: TrustDomain,
}

fn made(sans: &[rcgen::SanType]) -> Made {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.serial_number = Some(7u64.into());
    params.subject_alt_names = sans.to_vec();
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    let leaf = params.signed_by(&KeyPair::generate().unwrap(), &root).unwrap().der().clone();
    Made { root, leaf, domain: "mesh.example".parse().unwrap() }
}

fn uri(text: &str) -> rcgen::SanType {
    rcgen::SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> rcgen::SanType {
    rcgen::SanType::DnsName(text.try_into().unwrap())
}

impl Made {
    fn bundles(&self) -> TrustBundles {
        let mut bundles = TrustBundles::new(self.domain.clone());
        bundles.add(self.root.der().clone(), &self.domain).unwrap();
        bundles
    }

    fn judge(
        &self,
        bundles: TrustBundles,
        expected: Option<&Expected>,
        names: Names,
    ) -> Result<String, Refusal> {
        let verifier = Verifier::new(bundles, VerifySettings { names, ..VerifySettings::default() });
        let peer = verifier.verify(&self.leaf, &[], Side::Server, UnixTime::now(), expected)?;
        Ok(peer.identity.to_string())
    }

    fn crl(&self, revoked: &[u64], days: u64) -> Vec<u8> {
        let now = enmesh::stdx::clock::wall();
        let day = Duration::from_secs(86_400);
        let params = rcgen::CertificateRevocationListParams {
            this_update: (now - 2 * day).into(),
            next_update: (now - 2 * day + day * days as u32).into(),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|serial| rcgen::RevokedCertParams {
                    serial_number: (*serial).into(),
                    revocation_time: (now - day).into(),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.root).unwrap().der().to_vec()
    }
}

#[test]
fn a_revocation_list_is_believed_while_it_is_current() {
    let made = made(&[uri("spiffe://mesh.example/web")]);
    let judge = |crl: Option<Vec<u8>>| {
        let mut bundles = made.bundles();
        if let Some(crl) = crl {
            bundles.add_crl(&crl, &made.domain).unwrap();
        }
        made.judge(bundles, None, Names::Spiffe)
    };
    assert!(judge(None).is_ok());
    assert!(judge(Some(made.crl(&[8], 10))).is_ok());
    assert_eq!(judge(Some(made.crl(&[7], 10))), Err(Refusal::Revoked));
    assert_eq!(judge(Some(made.crl(&[8], 1))), Err(Refusal::Revoked), "a list that has ended says nothing");
    let other = super::sources::made(&[uri("spiffe://mesh.example/web")]);
    assert!(judge(Some(other.crl(&[8], 10))).is_err(), "nor does a list of somebody else");
}

#[test]
fn malformed_revocation_lists_are_errors() {
    let made = made(&[]);
    let whole = made.crl(&[7], 10);
    let mut bundles = made.bundles();
    for cut in 0..whole.len() {
        assert!(bundles.add_crl(&whole[..cut], &made.domain).is_err(), "{cut}");
        let mut flipped = whole.clone();
        flipped[cut] ^= 0x55;
        // A flip in the signature or a name is seen when the list is used; here nothing may panic.
        let mut bundles = made.bundles();
        let _ = bundles.add_crl(&flipped, &made.domain);
    }
    // RUSTSEC-2026-0104: an issuing distribution point with an empty onlySomeReasons.
    let empty_reasons: [u8; 4] = [0x30, 0x02, 0x83, 0x00];
    assert!(bundles.add_crl(&empty_reasons, &made.domain).is_err());
}

#[test]
fn linkerds_names_need_the_switch_and_stay_in_their_trust_domain() {
    const WEB: &str = "web.ns.serviceaccount.identity.linkerd.mesh.example";
    let check = |sans: &[rcgen::SanType], expected: Option<&str>, names: Names, found: Option<&str>| {
        let made = made(sans);
        let expected = expected.map(|text| Expected::Is(text.parse().unwrap()));
        let judged = made.judge(made.bundles(), expected.as_ref(), names);
        assert_eq!(judged.as_deref().ok(), found, "{sans:?} {judged:?}");
    };
    check(&[dns(WEB)], None, Names::Spiffe, None);
    check(&[dns(WEB)], None, Names::Linkerd, Some(WEB));
    check(&[dns("a"), dns("b")], Some("b"), Names::Linkerd, Some("b"));
    check(&[dns("a"), dns("b")], None, Names::Linkerd, Some("a"));
    check(&[dns("a.")], None, Names::Linkerd, None);
    check(&[], Some("a"), Names::Linkerd, None);
    check(&[dns("a")], Some("spiffe://mesh.example/w"), Names::Linkerd, None);
    check(&[uri("spiffe://mesh.example/w"), dns("a")], None, Names::Linkerd, Some("spiffe://mesh.example/w"));
    check(&[uri("spiffe://mesh.example/w"), uri("spiffe://mesh.example/v")], None, Names::Spiffe, None);
    // Anchors of mesh.example vouch for no name of another domain, not even beside one of their own.
    let elsewhere = "web.ns.serviceaccount.identity.linkerd.other.example";
    check(&[dns(elsewhere)], None, Names::Linkerd, None);
    check(&[dns(WEB), dns(elsewhere)], Some(elsewhere), Names::Linkerd, None);
    check(
        &[dns(WEB), uri("spiffe://other.example/admin")],
        Some("spiffe://other.example/admin"),
        Names::Linkerd,
        None,
    );
}

#[test]
fn anchors_that_are_no_anchors_are_refused_when_they_are_loaded() {
    let made = made(&[uri("spiffe://mesh.example/web")]);
    let mut bundles = TrustBundles::new(made.domain.clone());
    assert!(bundles.add(made.leaf.clone(), &made.domain).is_err(), "a leaf");
    assert!(bundles.add(CertificateDer::from(vec![0x30, 0x00]), &made.domain).is_err(), "noise");
    let partner = Authority::new("partner.example".parse().unwrap(), AuthoritySettings::default()).unwrap();
    let root = partner.issue(&"spiffe://partner.example/x".parse().unwrap()).unwrap();
    let root = root.bundles.of(partner.trust_domain()).unwrap().certificates()[0].clone();
    assert!(bundles.add_to(root, &made.domain).is_err(), "another domain's");
}

#[test]
fn clock_skew_and_expired_anchors_are_settings_with_limits() {
    let made = made(&[uri("spiffe://mesh.example/web")]);
    let ends = Duration::from_secs(67_090_118_400); // 4096-01-01
    let at = |seconds: i64, skew: u64, expired_anchors| {
        let settings = VerifySettings {
            clock_skew: Duration::from_secs(skew),
            expired_anchors,
            ..VerifySettings::default()
        };
        let verifier = Verifier::new(made.bundles(), settings);
        let now = UnixTime::since_unix_epoch(ends.checked_add_signed(seconds));
        verifier.verify(&made.leaf, &[], Side::Server, now, None).is_ok()
    };
    assert!(at(0, 0, ExpiredAnchors::Refuse));
    assert!(!at(1, 0, ExpiredAnchors::Refuse));
    assert!(at(20, 20, ExpiredAnchors::Refuse));
    assert!(!at(21, 20, ExpiredAnchors::Refuse));
    assert!(!at(1, 0, ExpiredAnchors::Accept), "the leaf itself has ended too");
    assert!(!at(301, 3600, ExpiredAnchors::Refuse), "skew is capped at five minutes");
}

trait CheckedAddSigned {
    fn checked_add_signed(self, seconds: i64) -> Duration;
}

impl CheckedAddSigned for Duration {
    fn checked_add_signed(self, seconds: i64) -> Duration {
        Duration::from_secs((self.as_secs() as i64 + seconds) as u64)
    }
}

/// Reads this process's own memory and counts where `masked` (each byte turned by 0xA5) stands unmasked.
fn traces(masked: &[u8]) -> usize {
    use std::io::Read;
    use std::io::Seek;
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = fs::File::open("/proc/self/mem").unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw-p ") && !line.contains("[v")) {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        memory.seek(std::io::SeekFrom::Start(start)).unwrap();
        let mut bytes = vec![0; (end - start) as usize];
        if memory.read_exact(&mut bytes).is_err() {
            continue;
        }
        found += bytes
            .windows(masked.len())
            .filter(|w| w.iter().zip(masked).all(|(a, b)| *a == *b ^ 0xa5))
            .count();
        bytes.fill(0);
    }
    found
}

/// In a process of its own, which gets its keys from files: what made them must not be searched as well.
#[test]
fn retired_keys_leave_no_trace_in_memory() {
    if let Some(directory) = std::env::var_os("ENMESH_KEY_CHILD") {
        return look_for_keys(Path::new(&directory));
    }
    let directory = Directory::new("keys");
    let ca = rcgen_authority();
    for index in 0..10 {
        let version = directory.0.join(index.to_string());
        fs::create_dir(&version).unwrap();
        write_all(&version, &ca.issue_pem(&id("web")).unwrap());
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sources::retired_keys_leave_no_trace_in_memory", "--nocapture"])
        .env("ENMESH_KEY_CHILD", &directory.0)
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

fn look_for_keys(directory: &Path) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let masked = runtime.block_on(async {
        let now = enmesh::stdx::clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let wall = Wall::at(now.as_secs() as i64);
        let mut masked = Vec::new();
        let live = directory.join("live");
        for index in 0..10 {
            let version = directory.join(index.to_string());
            masked.push(masked_scalar(&version.join("tls.key")));
            let _ = fs::remove_file(&live);
            std::os::unix::fs::symlink(&version, &live).unwrap();
            if index == 0 {
                let identities = keep(Files::new(FileSettings::directory(&live)), settings(&wall));
                identities.ready().await;
            }
            a_look().await;
        }
        masked
    });
    // A needle that is there is found, or the search would prove nothing.
    let planted: Vec<u8> = (0..32).map(|n| n * 7 + 3).collect();
    let planted_masked: Vec<u8> = planted.iter().map(|byte| byte ^ 0xa5).collect();
    assert!(traces(&planted_masked) > 0, "{}", planted.len());
    drop(runtime);
    let found: Vec<usize> = masked.iter().map(|needle| traces(needle)).collect();
    assert_eq!(found, vec![0; 10]);
}

/// The secret number of a P-256 key in PKCS#8, 32 bytes after the 36th, each turned by 0xA5.
fn masked_scalar(path: &Path) -> Vec<u8> {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    use zeroize::Zeroize;
    let mut der = PrivateKeyDer::from_pem_slice(&fs::read(path).unwrap()).unwrap();
    let masked = der.secret_der()[36..68].iter().map(|byte| byte ^ 0xa5).collect();
    der.zeroize();
    masked
}
