//! Floor 5: looks at a directory of documents once, and keeps the last good of each file. Blocks; no task, no clock.

use crate::control::disk;
use crate::control::disk::Found;
use crate::control::disk::Known;
use crate::control::disk::Root;
use crate::control::disk::Signature;
use crate::control::documents::Parsed;
use crate::control::screen::Screen;
use crate::control::source::Profiles;
use crate::control::source::Rejections;
use crate::control::source::SourceFault;
use crate::control::source::by_name;
use crate::control::source::said_twice;
use crate::discover::endpoint::EndpointSet;
use crate::profile::import::cluster::ImportSettings;
use crate::profile::import::load;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Invalid;
use crate::profile::name::ServiceName;
use crate::profile::object::Object;
use crate::profile::service::ServiceProfile;
use crate::stdx::clock::{Duration, Instant, SystemTime};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// How long a file must have been left alone before it is read, or gone before it counts as deleted: 100 ms. A
/// writer between two writes, or an editor that is replacing a file, takes less.
pub const SETTLE: Duration = Duration::from_millis(100);

/// Reads the text of one file: all of it, or every fault in it. The first argument is the file's name.
pub type Parse = Arc<dyn Fn(&str, &str) -> Result<Parsed, Invalid> + Send + Sync>;

/// All that a directory says at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Directory {
    /// Profiles by each of their names, in short.
    pub profiles: Profiles,
    /// Endpoints by service, in short.
    pub endpoints: BTreeMap<ServiceName, EndpointSet>,
    /// What is wrong, in order of file name.
    pub faults: Arc<[SourceFault]>,
}

/// What is remembered of one file.
#[derive(Debug, Default)]
struct Memory {
    /// The state of the file whose text was judged last.
    known: Option<Known>,
    /// What it said when it was last good.
    good: Option<Parsed>,
    /// Why the text judged last is not used.
    refused: Vec<Fault>,
    /// Why the file cannot be read.
    unreadable: Option<Fault>,
    /// Since when the file looks like this without having been read.
    waiting: Option<(Signature, Instant)>,
    /// Since when there is no such file.
    gone: Option<Instant>,
}

/// Which directory, and how it is read.
#[derive(Clone)]
pub struct Settings {
    /// The directory.
    pub path: PathBuf,
    /// Reads one file.
    pub parse: Parse,
    /// What endpoints must pass.
    pub screen: Screen,
    /// The domain below which names have a short form.
    pub cluster_domain: Arc<str>,
    /// The namespace that this process lives in.
    pub home: Option<Arc<str>>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A directory and what is known of it.
#[derive(Debug)]
pub struct Scanner {
    settings: Settings,
    rejections: Rejections,
    root: Option<Root>,
    files: BTreeMap<String, Memory>,
    /// Why the directory as a whole cannot be read.
    broken: Option<Fault>,
    /// What the files say together, until one of them says something else.
    joined: Option<Joined>,
    seen: Arc<Directory>,
}

/// The profiles of all files by name, and what is said about their documents by file.
type Joined = (Profiles, Vec<(String, Fault)>);

impl Scanner {
    /// Has not looked yet.
    pub fn new(settings: Settings, rejections: Rejections) -> Self {
        let (files, seen) = (BTreeMap::new(), Arc::default());
        Self { settings, rejections, root: None, files, broken: None, joined: None, seen }
    }

    /// Looks once. The directory is the same `Arc` as before unless something changed; the second answer says
    /// whether it is worth looking again after [`SETTLE`] already.
    pub fn look(&mut self, now: Instant, wall: SystemTime) -> (Arc<Directory>, bool) {
        let look = disk::look(&self.settings.path, |root, name, signature| {
            self.is_due(root, name, signature, now, wall)
        });
        let again = match look {
            Ok((root, found)) if found.is_empty() && self.was_replaced(&root) => {
                let problem = "was replaced by a directory without a document".to_owned();
                self.give_up(Fault::rejected(
                    "",
                    problem,
                    "to delete documents, remove their files one by one",
                ));
                false
            }
            Ok((root, found)) => {
                self.broken = None;
                self.take(root, found, now, wall)
            }
            Err(fault) => {
                self.give_up(fault);
                false
            }
        };
        let seen = self.directory();
        if seen != *self.seen {
            self.seen = Arc::new(seen);
        }
        (Arc::clone(&self.seen), again)
    }

    /// Whether a file that looks so is to be read.
    fn is_due(&self, root: &Root, name: &str, seen: &Signature, now: Instant, wall: SystemTime) -> disk::Due {
        let memory = self.files.get(name);
        let same_root = self.root.as_ref() == Some(root);
        let known = memory.and_then(|memory| memory.known.as_ref()).filter(|_| same_root);
        if known.is_some_and(|known| known.signature == *seen && !known.may_hide_a_change()) {
            return disk::Due::Same;
        }
        let waited = memory.and_then(|memory| memory.waiting).is_some_and(|(signature, since)| {
            signature == *seen && now.saturating_duration_since(since) >= SETTLE
        });
        if root.atomic || waited || seen.age(wall) >= Some(SETTLE) {
            disk::Due::Read
        } else {
            disk::Due::Wait
        }
    }

    /// Whether `root` is another directory than the one that documents came from: an unmounted volume leaves an
    /// empty mount point, and that is no wish to have no configuration.
    fn was_replaced(&self, root: &Root) -> bool {
        self.root.as_ref().is_some_and(|before| before != root)
            && self.files.values().any(|memory| memory.good.is_some())
    }

    fn give_up(&mut self, fault: Fault) {
        if self.broken.as_ref() != Some(&fault) {
            self.rejections.add();
        }
        self.broken = Some(fault);
    }

    /// Remembers what was found. Answers whether something waits to settle.
    fn take(&mut self, root: Root, found: BTreeMap<String, Found>, now: Instant, wall: SystemTime) -> bool {
        let mut again = false;
        let before = self.files.len();
        self.files.retain(|name, memory| {
            let since = if found.contains_key(name) { None } else { Some(*memory.gone.get_or_insert(now)) };
            memory.gone = since;
            let deleted =
                since.is_some_and(|since| root.atomic || now.saturating_duration_since(since) >= SETTLE);
            again |= since.is_some() && !deleted;
            !deleted
        });
        if self.files.len() < before {
            self.joined = None;
        }
        for (name, found) in found {
            again |= matches!(found, Found::Waiting(_));
            self.note(name, found, now, wall);
        }
        self.root = Some(root);
        again
    }

    fn note(&mut self, name: String, found: Found, now: Instant, wall: SystemTime) {
        let memory = self.files.entry(name.clone()).or_default();
        match found {
            Found::Same => memory.unreadable = None,
            Found::Waiting(signature) => {
                if memory.waiting.is_none_or(|(before, _)| before != signature) {
                    memory.waiting = Some((signature, now));
                }
            }
            Found::Unreadable(fault) => {
                if memory.unreadable.is_none() {
                    self.rejections.add();
                }
                memory.unreadable = Some(fault);
            }
            Found::Text { signature, bytes } => {
                let known = Known::new(signature, &bytes, wall);
                let is_new = memory.known.is_none_or(|before| before.hash != known.hash);
                (memory.unreadable, memory.waiting, memory.known) = (None, None, Some(known));
                if is_new {
                    match judge(&self.settings, &name, &bytes) {
                        Ok((parsed, refused)) => {
                            (0..refused).for_each(|_| self.rejections.add());
                            (memory.good, memory.refused) = (Some(parsed), Vec::new());
                            self.joined = None;
                        }
                        Err(invalid) => {
                            self.rejections.add();
                            memory.refused = invalid.faults;
                        }
                    }
                }
            }
        }
    }

    fn directory(&mut self) -> Directory {
        let (profiles, told) = match self.joined.take() {
            Some(joined) => joined,
            None => self.join(),
        };
        let mut all = Directory { profiles: profiles.clone(), ..Directory::default() };
        let mut faults: Vec<SourceFault> = Vec::new();
        let origin: Arc<str> = self.settings.path.to_string_lossy().into();
        faults.extend(self.broken.iter().map(|fault| SourceFault::new(Arc::clone(&origin), fault.clone())));
        for (name, memory) in &self.files {
            let origin: Arc<str> = name.as_str().into();
            let notes = memory.good.iter().flat_map(|parsed| &parsed.notes);
            let of_file = memory.unreadable.iter().chain(&memory.refused).chain(notes);
            faults.extend(of_file.map(|fault| SourceFault::new(Arc::clone(&origin), fault.clone())));
            let Some(good) = &memory.good else { continue };
            let of_file = told.iter().filter(|(file, _)| file == name);
            faults.extend(of_file.map(|(_, fault)| SourceFault::new(Arc::clone(&origin), fault.clone())));
            let twice = add(&mut all.endpoints, &good.endpoints, &self.settings.cluster_domain);
            faults.extend(twice.into_iter().map(|fault| SourceFault::new(Arc::clone(&origin), fault)));
        }
        all.faults = faults.into();
        self.joined = Some((profiles, told));
        all
    }

    /// What all files say of services. Documents of other dialects refer to each other across files, and are merged with
    /// the ServiceProfiles for the same service.
    fn join(&self) -> Joined {
        let good = || self.files.iter().filter_map(|(name, memory)| Some((name, memory.good.as_ref()?)));
        let (domain, home) = (&self.settings.cluster_domain, self.settings.home.as_deref());
        let mut told: Vec<(String, Fault)> = Vec::new();
        let objects: Vec<Object> = good().flat_map(|(_, parsed)| parsed.objects.clone()).collect();
        let plain = || good().flat_map(|(name, parsed)| parsed.profiles.iter().map(move |one| (name, one)));
        let found: Vec<(String, Arc<ServiceProfile>)> = if objects.is_empty() {
            plain().map(|(name, one)| (name.clone(), Arc::clone(one))).collect()
        } else {
            let profiles = plain().map(|(_, one)| ServiceProfile::clone(one)).collect();
            let settings = ImportSettings { cluster_domain: Arc::clone(domain), ..ImportSettings::default() };
            let imported = load::load_beside(objects, profiles, &settings);
            for notes in imported.notes {
                told.extend(notes.faults.into_iter().map(|fault| (file_of(&notes.origin), fault)));
            }
            imported.profiles.into_iter().map(|one| (file_of(&one.origin), Arc::new(one))).collect()
        };
        let (profiles, unused) =
            by_name(found.iter().map(|(file, one)| (file, Arc::clone(one))), home, domain);
        told.extend(unused.into_iter().map(|(file, fault)| (file.clone(), fault)));
        (profiles, told)
    }
}

/// The file of an origin: `web.yaml` of `web.yaml#0:items[1]`.
fn file_of(origin: &str) -> String {
    origin.split_once('#').map_or(origin, |(file, _)| file).to_owned()
}

/// Adds what is not there yet; a fault for each service that is. Earlier files win, so the order of names decides
/// and not the order of writing.
fn add(
    map: &mut BTreeMap<ServiceName, EndpointSet>,
    new: &[(ServiceName, EndpointSet)],
    domain: &str,
) -> Vec<Fault> {
    let mut twice = Vec::new();
    for (service, set) in new {
        match map.entry(service.short(domain)) {
            Entry::Vacant(place) => drop(place.insert(set.clone())),
            Entry::Occupied(_) => twice.push(said_twice(service)),
        }
    }
    twice
}

/// What the bytes say, and how many of their endpoints were refused.
fn judge(settings: &Settings, name: &str, bytes: &[u8]) -> Result<(Parsed, usize), Invalid> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Fault::rejected("", format!("is not UTF-8 at byte {}", error.valid_up_to()), "write it as UTF-8 text")
    })?;
    let mut parsed = (settings.parse)(name, text)?;
    if parsed.profiles.is_empty() && parsed.endpoints.is_empty() && parsed.objects.is_empty() {
        let remedy = "to delete its documents, remove the file";
        return Err(Fault::rejected("", "holds no document", remedy).into());
    }
    let mut refused = 0;
    for (service, set) in &mut parsed.endpoints {
        let (passed, faults) = settings.screen.sift(&format!("endpoints of {service}"), set.iter().cloned());
        *set = passed;
        refused += faults.len();
        parsed.notes.extend(faults);
    }
    Ok((parsed, refused))
}
