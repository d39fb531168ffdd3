//! Floor 5: reads a directory so that what comes out is of one generation and nothing in it blocks or grows.

use crate::profile::invalid::Fault;
use crate::stdx::clock::{Duration, SystemTime};
use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The most bytes of one file: 4 MiB, some ten thousand routes. A larger one is a mistake or an attack.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// The most bytes of all files together: 32 MiB, so that reading them again never takes much memory.
pub const ALL_BYTES_MAX: u64 = 32 << 20;
/// The most entries of the directory, documents or not: 4,000. Each is looked at twice a second.
pub const ENTRIES_MAX: usize = 4_000;
/// File systems keep times as coarsely as this (FAT: 2 s): a later change may leave no trace in them.
const COARSE: Duration = Duration::from_secs(2);
/// How often a look begins anew when the directory is swapped under it: 8 times; then the next look tries again.
const SWAPS_MAX: usize = 8;

/// The directory that the documents are in, at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// What no link may lead out of.
    top: PathBuf,
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Whether it changes only by being swapped as a whole, as Kubernetes does with `..data`.
    pub atomic: bool,
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
    changed: (i64, i64),
}

impl Signature {
    fn new(meta: &Metadata) -> Self {
        let (device, inode, changed) = identity(meta);
        Self { device, inode, bytes: meta.len(), modified: meta.modified().ok(), changed }
    }

    /// How long ago the file was written; `None` if that is unknown or in the future.
    pub fn age(&self, wall: SystemTime) -> Option<Duration> {
        wall.duration_since(self.modified?).ok()
    }
}

/// A file whose text has been judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// How it looked.
    pub signature: Signature,
    /// Of its bytes.
    pub hash: u64,
    read_at: SystemTime,
}

impl Known {
    /// A file that looked so and held `bytes` when it was read at `wall`.
    pub fn new(signature: Signature, bytes: &[u8], wall: SystemTime) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        Self { signature, hash: hasher.finish(), read_at: wall }
    }

    /// Whether it was read so soon after it was written that a second writing could look the same.
    pub fn may_hide_a_change(&self) -> bool {
        self.signature.age(self.read_at).is_none_or(|age| age < COARSE)
    }
}

/// What to do with a file that looks a certain way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing: its text is known.
    Same,
    /// Wait until its writer is done.
    Wait,
    /// Read it.
    Read,
}

/// A file of the directory.
#[derive(Debug)]
pub enum Found {
    /// As it was.
    Same,
    /// Not left alone for long enough yet.
    Waiting(Signature),
    /// Its text, and how it looked before and after reading.
    Text {
        /// How it looked.
        signature: Signature,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Why there is no text.
    Unreadable(Fault),
}

/// Reads the documents of the directory at `path`: those that `due` says, all from one generation.
///
/// Documents are the files called `*.yaml`, `*.yml` or `*.json` whose name does not begin with a dot; other entries
/// and directories below are not looked at. With an entry `..data` the directory is taken for a Kubernetes volume,
/// and only what that leads to is read. `due` is asked with the root, the name and the state of each.
///
/// # Errors
///
/// When the directory cannot be listed, holds too much, or is swapped again and again while it is read.
pub fn look(
    path: &Path,
    due: impl Fn(&Root, &str, &Signature) -> Due,
) -> Result<(Root, BTreeMap<String, Found>), Fault> {
    let unreadable = |error: io::Error| {
        Fault::rejected(
            "",
            format!("cannot be read: {error}"),
            "make it a directory that this process can read",
        )
    };
    for _ in 0..SWAPS_MAX {
        let before = resolve(path).map_err(unreadable)?;
        let found = read_all(&before, &due);
        if resolve(path).map_err(unreadable)? == before {
            return Ok((before, found?));
        }
    }
    let problem = format!("was swapped {SWAPS_MAX} times while it was read");
    Err(Fault::rejected("", problem, "swap it less often than ten times a second"))
}

fn resolve(path: &Path) -> io::Result<Root> {
    let data = path.join("..data");
    let atomic = data.symlink_metadata().is_ok();
    let top = std::fs::canonicalize(path)?;
    let path = if atomic { std::fs::canonicalize(&data)? } else { top.clone() };
    let meta = path.metadata()?;
    if !meta.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let (device, inode, _) = identity(&meta);
    Ok(Root { top, path, device, inode, atomic })
}

fn read_all(
    root: &Root,
    due: &impl Fn(&Root, &str, &Signature) -> Due,
) -> Result<BTreeMap<String, Found>, Fault> {
    let lost =
        |error: io::Error| Fault::rejected("", format!("cannot be listed: {error}"), "allow it to be read");
    let mut names = Vec::new();
    for (count, entry) in std::fs::read_dir(&root.path).map_err(lost)?.enumerate() {
        if count >= ENTRIES_MAX {
            let problem = format!("holds more than {ENTRIES_MAX} entries");
            return Err(Fault::rejected("", problem, "give the documents a directory of their own"));
        }
        let name = entry.map_err(lost)?.file_name().to_string_lossy().into_owned();
        if is_document(&name) {
            names.push(name);
        }
    }
    let mut found = BTreeMap::new();
    let mut total = 0u64;
    for name in names {
        let seen = match read_one(&root.top, &root.path.join(&name), |signature| {
            total = total.saturating_add(signature.bytes);
            due(root, &name, signature)
        }) {
            Ok(seen) => seen,
            Err(error) => {
                let remedy = "make it a regular file that this process can read";
                Found::Unreadable(Fault::rejected("", format!("cannot be read: {error}"), remedy))
            }
        };
        if total > ALL_BYTES_MAX {
            let problem = format!("holds documents of more than {ALL_BYTES_MAX} bytes together");
            return Err(Fault::rejected("", problem, "split it between several meshes"));
        }
        found.insert(name, seen);
    }
    Ok(found)
}

fn is_document(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Reads one file if `due`. A link may lead anywhere below `top` and nowhere else.
fn read_one(top: &Path, path: &Path, mut due: impl FnMut(&Signature) -> Due) -> io::Result<Found> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    let real = std::fs::canonicalize(path)?;
    if !real.starts_with(top) {
        return Err(wrong(format!("it leads out of the directory, to {}", real.display())));
    }
    let meta = real.symlink_metadata()?;
    if !meta.is_file() {
        return Err(wrong("it is not a regular file".to_owned()));
    }
    let signature = Signature::new(&meta);
    if signature.bytes > FILE_BYTES_MAX {
        return Err(wrong(format!("it has {} bytes, more than {FILE_BYTES_MAX}", signature.bytes)));
    }
    match due(&signature) {
        Due::Same => return Ok(Found::Same),
        Due::Wait => return Ok(Found::Waiting(signature)),
        Due::Read => {}
    }
    let file = open(&real)?;
    let mut bytes = Vec::new();
    (&file).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    let after = Signature::new(&file.metadata()?);
    let whole = after == signature && bytes.len() as u64 == signature.bytes;
    Ok(if whole { Found::Text { signature, bytes } } else { Found::Waiting(after) })
}

/// Opens a file for reading without waiting for anybody: were it a FIFO by now, a plain `open` would wait for a
/// writer. What was opened is compared with what was looked at afterwards.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(all(
        target_os = "linux",
        not(any(target_arch = "mips", target_arch = "mips64", target_arch = "sparc64"))
    ))]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, 0o4000); // O_NONBLOCK
    #[cfg(any(target_os = "macos", target_os = "freebsd"))]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, 0x4); // O_NONBLOCK
    let file = options.open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

#[cfg(unix)]
fn identity(meta: &Metadata) -> (u64, u64, (i64, i64)) {
    use std::os::unix::fs::MetadataExt;
    (meta.dev(), meta.ino(), (meta.ctime(), meta.ctime_nsec()))
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> (u64, u64, (i64, i64)) {
    (0, 0, (0, 0))
}
