//! Floor 7: reads the files that a command is given, whatever their dialects, and compiles what they say.

use crate::output::{Failure, fault_line};
use enmesh::authz::linkerd::words::Documents;
use enmesh::authz::parse as authorization;
use enmesh::authz::rules::AuthzPolicy;
use enmesh::authz::settings::AuthzSettings;
use enmesh::authz::smi::{self, TrafficTargets};
use enmesh::control::source::said_twice;
use enmesh::discover::parse as endpoints;
use enmesh::fault::decide::FaultSwitch;
use enmesh::metrics::names::Direction;
use enmesh::metrics::set::MetricsSet;
use enmesh::policy::compile::{Compiler, Policy};
use enmesh::policy::unhonoured::unhonoured;
use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::import::load;
use enmesh::profile::invalid::{Fault, Invalid, Place, Severity};
use enmesh::profile::name::ServiceName;
use enmesh::profile::node;
use enmesh::profile::node::{Node, Value};
use enmesh::profile::object;
use enmesh::profile::object::Object;
use enmesh::profile::scope::{self, Scope};
use enmesh::profile::service::ServiceProfile;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::{IsTerminal, Read, stderr, stdin};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most bytes of one file: 256 MiB, far above any cluster's manifests, so that a device or a log is no trap.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// What is said about one document.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) file: String,
    /// `file#0`.
    pub(crate) origin: Arc<str>,
    /// `HTTPRoute shop/cart`.
    pub(crate) object: Arc<str>,
    pub(crate) faults: Vec<Fault>,
    place: Place,
}

impl Note {
    pub(crate) fn is_refused(&self) -> bool {
        self.faults.iter().any(|fault| fault.severity == Severity::Rejected)
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.faults.iter().map(|fault| fault_line(&self.file, fault, Some(self.place)))
    }
}

/// All that the files say.
#[derive(Debug, Default)]
pub(crate) struct Config {
    pub(crate) profiles: Vec<Arc<ServiceProfile>>,
    pub(crate) authz: Documents,
    /// The last `Authorization` of our own: whom the process that is asked lets in.
    pub(crate) own: Option<AuthzSettings>,
    /// SMI's access control.
    pub(crate) access: TrafficTargets,
    /// Every document in order.
    pub(crate) notes: Vec<Note>,
}

impl Config {
    pub(crate) fn any_refused(&self) -> bool {
        self.notes.iter().any(Note::is_refused)
    }

    /// A fault of what the document `origin` became, as a line.
    pub(crate) fn line(&self, origin: &str, fault: &Fault) -> String {
        match self.notes.iter().find(|note| &*note.origin == origin) {
            Some(note) => fault_line(&note.file, fault, Some(note.place)),
            None => fault_line(origin, fault, None),
        }
    }

    /// Writes all faults to standard error.
    pub(crate) fn tell(&self) {
        for line in self.notes.iter().flat_map(Note::lines) {
            eprintln!("{line}");
        }
    }
}

/// The text of a file, or of standard input for `-`.
pub(crate) fn text(file: &str) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::Unreadable(format!("{file}: {error}"));
    let mut bytes = Vec::new();
    match file {
        "-" => stdin().lock().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes),
        path => {
            std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        }
    }
    .map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(Failure::Unreadable(format!("{file}: is longer than 256 MiB; split it")));
    }
    let text = node::decode(&bytes).map_err(|fault| Failure::Unreadable(fault_line(file, &fault, None)))?;
    Ok(text.into_owned())
}

/// The files that are meant: of a directory, all below it that end in `.yaml`, `.yml` or `.json`, by name.
fn files(given: &[String]) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for file in given {
        if file != "-" && Path::new(file).is_dir() {
            let walked = walk(Path::new(file), &mut found);
            walked.map_err(|error| Failure::Unreadable(format!("{file}: {error}")))?;
        } else {
            found.push(file.clone());
        }
    }
    Ok(found)
}

fn walk(folder: &Path, found: &mut Vec<String>) -> std::io::Result<()> {
    let mut entries = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<PathBuf>>>()?;
    entries.sort();
    for path in entries {
        let wanted = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        // A link to a directory may lead back up: it is not followed.
        if path.is_dir() && !path.is_symlink() {
            walk(&path, found)?;
        } else if wanted && path.is_file() {
            found.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// Reads files of any dialects, which may refer to each other, and compiles all that they say.
pub(crate) fn read(given: &[String], settings: &ImportSettings) -> Result<Config, Failure> {
    read_only(given, settings, |_| true)
}

/// The same; documents of API groups that `takes` does not want are refused.
pub(crate) fn read_only(
    given: &[String],
    settings: &ImportSettings,
    takes: impl Fn(&str) -> bool,
) -> Result<Config, Failure> {
    let mut config = Config::default();
    let mut from_stdin = String::new();
    let (mut imported, mut places) = (Vec::new(), Vec::new());
    let (mut policies, mut access) = (Vec::new(), Vec::new());
    for file in files(given)? {
        let read = text(&file)?;
        for object in object::read(&read, &file) {
            let (origin, place) = (Arc::clone(&object.origin), object.root.place);
            let described = format!("{} {}", object.kind, name(&object)).trim().into();
            let mut note = Note { file: file.clone(), origin, object: described, faults: Vec::new(), place };
            if !takes(object.group()) {
                let problem = format!("{} is of another dialect", object.api_version);
                note.faults.push(Fault::rejected("apiVersion", problem, "use --from auto"));
            } else if endpoints::is_endpoints(&object) {
                note.faults = endpoints::endpoints(object).faults;
            } else if authorization::is_authorization(&object) {
                let (settings, faults) = authorization::read(&object);
                let compiled = settings.as_ref().map(AuthzPolicy::compile).transpose();
                let refused = compiled.err().map(|invalid| invalid.faults).unwrap_or_default();
                note.faults = faults.into_iter().chain(refused).collect();
                config.own = settings.or(config.own);
            } else if smi::is_access(&object) {
                let (_, faults) = TrafficTargets::read(std::slice::from_ref(&object), &settings.namespace);
                note.faults = faults.into_iter().map(|fault| below(fault, &note.origin)).collect();
                access.push(object);
            } else if is_authorization(&object) {
                let (_, faults) = Documents::read(std::slice::from_ref(&object), &settings.namespace);
                note.faults = faults.into_iter().map(|fault| below(fault, &note.origin)).collect();
                policies.push(object);
            } else {
                places.push(config.notes.len());
                imported.push(object);
            }
            config.notes.push(note);
        }
        if file == "-" {
            from_stdin += &read;
        }
    }
    config.authz = Documents::read(&policies, &settings.namespace).0;
    if !access.is_empty() {
        // The groups of matches that they name are read as routes too.
        access.extend(imported.iter().filter(|object| is_specs(object)).cloned());
        config.access = TrafficTargets::read(&access, &settings.namespace).0;
    }
    let loaded = load::load(imported, settings);
    for (place, notes) in places.into_iter().zip(loaded.notes) {
        if let Some(note) = config.notes.get_mut(place) {
            (note.object, note.faults) = (notes.object, notes.faults);
        }
    }
    config.profiles = loaded.profiles.into_iter().map(Arc::new).collect();
    leave_out_repeated(&mut config, &settings.cluster_domain);
    compile_all(&mut config);
    place_all(&mut config.notes, &from_stdin);
    Ok(config)
}

/// Finds the place of faults that only came out when all was read: by their path, in their file read once more. They
/// are few.
fn place_all(notes: &mut [Note], from_stdin: &str) {
    let is_lost = |fault: &Fault| fault.place.is_none() && !fault.path.is_empty();
    let lost: BTreeSet<String> =
        notes.iter().filter(|note| note.faults.iter().any(is_lost)).map(|note| note.file.clone()).collect();
    for file in lost {
        let read = if file == "-" { Ok(from_stdin.to_owned()) } else { text(&file) };
        let objects = read.map(|text| object::read(&text, &file)).unwrap_or_default();
        let roots: BTreeMap<Arc<str>, Node> =
            objects.into_iter().map(|object| (object.origin, object.root)).collect();
        for note in notes.iter_mut().filter(|note| note.file == file) {
            let Some(root) = roots.get(&note.origin) else { continue };
            for fault in note.faults.iter_mut().filter(|fault| is_lost(fault)) {
                fault.place = Some(root.place_of(&fault.path));
            }
        }
    }
}

/// The places of the notes by the origin of their documents.
fn origins(notes: &[Note]) -> BTreeMap<Arc<str>, usize> {
    notes.iter().enumerate().map(|(at, note)| (Arc::clone(&note.origin), at)).collect()
}

/// Of two profiles of one service for the same callers a running mesh uses the first.
fn leave_out_repeated(config: &mut Config, domain: &str) {
    let origins = origins(&config.notes);
    let mut said = BTreeSet::new();
    let notes = &mut config.notes;
    config.profiles.retain(|profile| {
        // As seen from nowhere, a profile is for all callers or for those of its namespace.
        let is_for_all = scope::scope(profile, Some(""), domain) == Scope::All;
        let callers = profile.namespace.clone().filter(|_| !is_for_all);
        let is_new = |name: &&ServiceName| said.insert((callers.clone(), name.short(domain)));
        if profile.names.is_empty() || profile.names.iter().filter(is_new).count() > 0 {
            return true;
        }
        let note = origins.get(&profile.origin).and_then(|at| notes.get_mut(*at));
        if let (Some(note), Some(name)) = (note, profile.name()) {
            note.faults.push(said_twice(name));
        }
        false
    });
}

/// Compiles each profile, as a running mesh does before it uses it.
fn compile_all(config: &mut Config) {
    let origins = origins(&config.notes);
    let mut refused = Vec::new();
    let progress = (stderr().is_terminal() && config.profiles.len() > 1_000).then_some(config.profiles.len());
    for (at, profile) in config.profiles.iter().enumerate() {
        if let Some(all) = progress.filter(|_| at % 100 == 0) {
            eprint!("\r{at} of {all} profiles compiled");
        }
        let name = profile.name().cloned().unwrap_or_else(ServiceName::localhost);
        let faults = match compile(Arc::clone(profile), &name) {
            Ok(_) => unhonoured(profile),
            Err(invalid) => {
                refused.push(at);
                invalid.faults
            }
        };
        let note = origins.get(&profile.origin).copied().unwrap_or_default();
        if let Some(note) = config.notes.get_mut(note) {
            note.faults.extend(faults);
        }
    }
    if progress.is_some() {
        eprint!("\r\x1b[K");
    }
    for at in refused.into_iter().rev() {
        config.profiles.remove(at);
    }
}

/// The policy of a profile for callers who name its service `own`.
pub(crate) fn compile(
    profile: Arc<ServiceProfile>,
    own: &ServiceName,
) -> Result<Policy<ServiceName>, Invalid> {
    let metrics = MetricsSet::unseen();
    let (service, own) = (own.to_string().into(), own.clone());
    let compiler = Compiler {
        service,
        own,
        direction: Direction::Outbound,
        metrics: &metrics,
        faults: FaultSwitch::default(),
    };
    compiler.compile(profile, None, ServiceName::clone)
}

fn name(object: &Object) -> String {
    let metadata = object.root.get("metadata");
    let text = |key: &str| metadata.and_then(|metadata| metadata.get(key)?.text()).unwrap_or_default();
    match (text("namespace"), text("name")) {
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

/// Whether an object is one that SMI's access control refers to.
fn is_specs(object: &Object) -> bool {
    matches!(object.kind.as_str(), "HTTPRouteGroup" | "TCPRoute")
}

/// Whether an object says who may call, and not where calls go.
fn is_authorization(object: &Object) -> bool {
    let parents = object.root.get("spec").and_then(|spec| spec.get("parentRefs"));
    let of_server = match parents.map(|parents| &parents.value) {
        Some(Value::List(parents)) => {
            parents.iter().any(|parent| parent.get("kind").and_then(Node::text) == Some("Server"))
        }
        Some(Value::Map(_) | Value::Scalar(_)) | None => false,
    };
    let kinds = [
        "Server",
        "AuthorizationPolicy",
        "ServerAuthorization",
        "MeshTLSAuthentication",
        "NetworkAuthentication",
        "HTTPLocalRateLimitPolicy",
    ];
    of_server || object.group() == "policy.linkerd.io" && kinds.contains(&object.kind.as_str())
}

/// The fault without the place that stands before its path.
fn below(fault: Fault, origin: &str) -> Fault {
    let path = fault.path.strip_prefix(origin).and_then(|path| path.strip_prefix(':')).map(str::to_owned);
    Fault { path: path.unwrap_or_else(|| fault.path.clone()), ..fault }
}
