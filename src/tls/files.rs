//! Floor 5: an identity from PEM files that something else keeps current: cert-manager, SPIRE's helper, a script.
//!
//! Files are polled, not watched: on overlay file systems and for Kubernetes' swapped links, notification is not
//! to be relied on, and renewals are far apart.

use crate::stdx::clock;
use crate::tls::identity::TrustDomain;
use crate::tls::material::BadMaterial;
use crate::tls::material::Material;
use crate::tls::material::Source;
use futures::future::BoxFuture;
use std::fmt;
use std::fs::File;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;
use zeroize::Zeroizing;

/// How long until files that were refused are offered again unchanged.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// The largest file that is read: a bundle of 64 domains is a tenth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the files are and how they are read.
#[derive(Debug, Clone)]
pub struct FileSettings {
    /// Our certificate and its intermediates.
    pub chain: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Trust roots and, if there are any, revocation lists.
    pub roots: PathBuf,
    /// The domain of roots that name none. Default: the one that our certificate names.
    pub trust_domain: Option<TrustDomain>,
    /// How often the files are looked at. Default 5 s.
    pub poll: Duration,
    /// Who may have access to the key file.
    pub key_access: KeyAccess,
}

/// Who may have access to the key file besides its owner. Checked on Unix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyAccess {
    /// The group may read it. The default: Kubernetes mounts secrets so with `fsGroup` and `defaultMode: 0440`.
    #[default]
    GroupMayRead,
    /// Nobody.
    OwnerOnly,
    /// It is not checked.
    Any,
}

impl FileSettings {
    /// The files of a Kubernetes TLS secret in `directory`: `tls.crt`, `tls.key` and `ca.crt`.
    pub fn directory(directory: impl AsRef<Path>) -> Self {
        let directory = directory.as_ref();
        Self::files(directory.join("tls.crt"), directory.join("tls.key"), directory.join("ca.crt"))
    }

    /// Three files.
    pub fn files(chain: impl Into<PathBuf>, key: impl Into<PathBuf>, roots: impl Into<PathBuf>) -> Self {
        Self {
            chain: chain.into(),
            key: key.into(),
            roots: roots.into(),
            trust_domain: None,
            poll: Duration::from_secs(5),
            key_access: KeyAccess::default(),
        }
    }
}

/// What was read at one look.
struct Texts {
    chain: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    roots: Vec<u8>,
}

/// How the texts of two looks are compared. Of the key no more is kept than a keyed hash.
#[derive(Clone, PartialEq, Eq)]
struct Seen {
    chain: Vec<u8>,
    roots: Vec<u8>,
    key: u64,
}

/// A source that reads PEM files.
pub struct Files {
    settings: FileSettings,
    hasher: RandomState,
    looked: bool,
    /// What was offered last.
    seen: Option<Seen>,
    /// When to offer the same again, if it was refused: its time may yet come, if it is not yet valid.
    again_at: Option<Instant>,
    /// What was wrong at the last look, so that it is told once.
    fault: Option<BadMaterial>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Files {
    /// Reads these files, first at once.
    pub fn new(settings: FileSettings) -> Self {
        Self { settings, hasher: RandomState::new(), looked: false, seen: None, again_at: None, fault: None }
    }

    async fn look_until_news(&mut self) -> Result<Material, BadMaterial> {
        loop {
            if std::mem::replace(&mut self.looked, true) {
                tokio::time::sleep(self.settings.poll).await;
            }
            match self.look().await {
                Ok(None) => self.fault = None,
                Ok(Some(material)) => {
                    self.fault = None;
                    return Ok(material);
                }
                Err(bad) if self.fault.as_ref() == Some(&bad) => {}
                Err(bad) => {
                    self.fault = Some(bad.clone());
                    return Err(bad);
                }
            }
        }
    }

    /// One look: a new identity, nothing new, or what is wrong.
    async fn look(&mut self) -> Result<Option<Material>, BadMaterial> {
        let settings = self.settings.clone();
        let read = tokio::task::spawn_blocking(move || read_all(&settings)).await;
        let texts = read.map_err(|_| BadMaterial::Source("reading the files was cut off".to_owned()))??;
        let Texts { chain, key, roots } = texts;
        let seen = Seen { chain, roots, key: self.hasher.hash_one(&*key) };
        let again = self.again_at.is_some_and(|at| at <= clock::now());
        if self.seen.as_ref() == Some(&seen) && !again {
            return Ok(None);
        }
        let domain = self.settings.trust_domain.as_ref();
        let material = Material::from_pem(&seen.chain, &key, &seen.roots, domain)?;
        self.seen = Some(seen);
        self.again_at = None;
        Ok(Some(material))
    }
}

impl Source for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Material, BadMaterial>> {
        Box::pin(self.look_until_news())
    }

    fn refused(&mut self) {
        self.again_at = clock::now().checked_add(REFUSED_AGAIN);
    }
}

fn read_all(settings: &FileSettings) -> Result<Texts, BadMaterial> {
    let mut mount = Mount::default();
    let chain = mount.resolve(&settings.chain);
    let key = mount.resolve(&settings.key);
    let roots = mount.resolve(&settings.roots);
    Ok(Texts {
        chain: read("certificate chain", &chain, KeyAccess::Any)?.to_vec(),
        key: read("private key", &key, settings.key_access)?,
        roots: read("trust roots", &roots, KeyAccess::Any)?.to_vec(),
    })
}

/// Where a Kubernetes mount's `..data` link leads, looked up once a look: all files are read through one version,
/// even if the link is swapped between two reads. Where that version vanishes meanwhile, the next look sees the new.
#[derive(Default)]
struct Mount(Option<(PathBuf, PathBuf)>);

impl Mount {
    fn resolve(&mut self, path: &Path) -> PathBuf {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
        if self.0.as_ref().is_none_or(|(seen, _)| seen != directory) {
            let version = std::fs::canonicalize(directory.join("..data"));
            self.0 = Some((directory.to_owned(), version.unwrap_or_else(|_| directory.to_owned())));
        }
        match &self.0 {
            Some((_, version)) if version.join(name).exists() => version.join(name),
            _ => path.to_owned(),
        }
    }
}

fn read(part: &'static str, path: &Path, access: KeyAccess) -> Result<Zeroizing<Vec<u8>>, BadMaterial> {
    let bad = |why: String| BadMaterial::Unreadable { part, why: format!("{}: {why}", path.display()) };
    let io = |error: io::Error| bad(error.to_string());
    // The open file is checked, not the path: between two looks at a path it may become another file.
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(bad("it is not a file".to_owned()));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(bad(format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    check_access(&metadata, access).map_err(bad)?;
    // Room for all of it at once: a growing buffer would leave copies of the key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 1));
    file.take(metadata.len()).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

#[cfg(unix)]
fn check_access(metadata: &std::fs::Metadata, access: KeyAccess) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode() & 0o777;
    let forbidden = match access {
        KeyAccess::Any => 0,
        KeyAccess::GroupMayRead => 0o037,
        KeyAccess::OwnerOnly => 0o077,
    };
    if mode & forbidden == 0 {
        return Ok(());
    }
    Err(format!(
        "mode {mode:04o} opens the key to others; set {:04o} or less, or allow it",
        0o777 & !forbidden & 0o640
    ))
}

#[cfg(not(unix))]
fn check_access(_: &std::fs::Metadata, _: KeyAccess) -> Result<(), String> {
    Ok(())
}
