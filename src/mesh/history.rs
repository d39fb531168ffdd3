//! Floor 6: remembers the last updates of a mesh and what each changed, and what was refused and why.

use crate::control::source::SourceFault;
use crate::discover::endpoint::{Endpoint, EndpointSet};
use crate::mesh::hide;
use crate::profile::invalid::Severity;
use crate::profile::name::ServiceName;
use crate::profile::service::ServiceProfile;
use crate::profile::write::emit;
use crate::stdx::clock::{self, SystemTime};
use crate::stdx::diff::{self, Op};
use crate::tap::redact::Redaction;
use serde::Serialize;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

/// The updates that are remembered: 32 of profiles and as many of endpoints, so that replicas that come and go do not
/// push out what people wrote.
pub const UPDATES_MAX: usize = 32;
/// The refused inputs that are remembered.
pub const REFUSALS_MAX: usize = 32;
/// The most lines that are told of one update; what more there is, is counted.
pub const LINES_MAX: usize = 200;
/// The most faults that are told of one refused input.
const FAULTS_MAX: usize = 20;

/// The last updates and refusals.
#[derive(Debug, Default)]
pub struct History {
    redaction: Arc<Redaction>,
    profiles: VecDeque<Arc<Update>>,
    endpoints: VecDeque<Arc<Update>>,
    refusals: VecDeque<Refusal>,
}

/// One update that changed something. What it changed is worked out when it is first asked for.
#[derive(Debug)]
pub struct Update {
    generation: u64,
    at: SystemTime,
    service: ServiceName,
    change: Change,
    redaction: Arc<Redaction>,
    told: OnceLock<Arc<UpdateView>>,
}

/// What an update replaced, and by what.
#[derive(Debug)]
pub enum Change {
    /// A profile.
    Profile(Option<Arc<ServiceProfile>>, Option<Arc<ServiceProfile>>),
    /// Replicas.
    Endpoints(Option<EndpointSet>, Option<EndpointSet>),
}

/// One update, as people read it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct UpdateView {
    /// The generation that it began.
    pub generation: u64,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The service.
    pub service: String,
    /// `profile` or `endpoints`.
    pub kind: &'static str,
    /// Where it was written, if it says.
    pub origin: Option<String>,
    /// What changed, at most [`LINES_MAX`] lines of it.
    pub lines: Vec<LineView>,
    /// How many lines more.
    pub more: usize,
}

/// One line of a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LineView {
    /// `+`, `-`, a space for a line that stays, or `…` for lines that stay and are left out.
    pub op: char,
    /// The line.
    pub text: String,
}

/// An input that was refused; the last good one stayed in use.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Refusal {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The services that would have had it.
    pub services: Vec<String>,
    /// What was wrong with it.
    pub faults: Vec<String>,
}

impl History {
    /// Nothing yet; what `redaction` hides is never told.
    pub fn hiding(redaction: Redaction) -> Self {
        Self { redaction: Arc::new(redaction), ..Self::default() }
    }

    /// Remembers an update.
    pub fn update(&mut self, generation: u64, service: &ServiceName, change: Change) {
        let last = match &change {
            Change::Profile(..) => &mut self.profiles,
            Change::Endpoints(..) => &mut self.endpoints,
        };
        if last.len() >= UPDATES_MAX {
            last.pop_front();
        }
        let (at, service, told) = (clock::wall(), service.clone(), OnceLock::new());
        let redaction = Arc::clone(&self.redaction);
        last.push_back(Arc::new(Update { generation, at, service, change, redaction, told }));
    }

    /// Remembers what was refused in an input for `service`: the faults after it, which were `before` until then.
    pub fn faults(&mut self, service: &ServiceName, before: &[SourceFault], after: &[SourceFault]) {
        let refused = |told: &&SourceFault| told.fault.severity == Severity::Rejected;
        let new: Vec<_> = after.iter().filter(refused).filter(|told| !before.contains(told)).collect();
        if new.is_empty() {
            return;
        }
        let faults: Vec<String> = new.iter().take(FAULTS_MAX).map(ToString::to_string).collect();
        let service = service.to_string();
        // A fault of a file is told for every service that might have stood in it.
        if let Some(last) = self.refusals.back_mut().filter(|last| last.faults == faults) {
            if !last.services.contains(&service) {
                last.services.push(service);
            }
            return;
        }
        if self.refusals.len() >= REFUSALS_MAX {
            self.refusals.pop_front();
        }
        self.refusals.push_back(Refusal { at_ms: millis(clock::wall()), services: vec![service], faults });
    }

    /// The updates, the newest first.
    pub fn updates(&self) -> Vec<Arc<Update>> {
        let mut all: Vec<_> = self.profiles.iter().chain(&self.endpoints).cloned().collect();
        all.sort_by_key(|update| std::cmp::Reverse(update.generation));
        all
    }

    /// The refusals, the newest first.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.refusals.iter().rev().cloned().collect()
    }
}

impl Update {
    /// The update as people read it.
    pub fn told(&self) -> Arc<UpdateView> {
        Arc::clone(self.told.get_or_init(|| Arc::new(self.tell())))
    }

    fn tell(&self) -> UpdateView {
        let (before, after) = match &self.change {
            Change::Profile(before, after) => {
                let text = |told: &Option<Arc<ServiceProfile>>| {
                    told.as_ref().map(|told| profile(told, &self.redaction)).unwrap_or_default()
                };
                (text(before), text(after))
            }
            Change::Endpoints(before, after) => (endpoints(before.as_ref()), endpoints(after.as_ref())),
        };
        let lines = diff::lines(&before, &after);
        let shown = lines.iter().take(LINES_MAX).map(|line| LineView {
            op: match line.op {
                Op::Keep => ' ',
                Op::Remove => '-',
                Op::Add => '+',
                Op::Skip => '…',
            },
            text: line.text.to_owned(),
        });
        let (kind, origin) = match &self.change {
            Change::Profile(before, after) => {
                ("profile", after.as_ref().or(before.as_ref()).map(|profile| profile.origin.to_string()))
            }
            Change::Endpoints(..) => ("endpoints", None),
        };
        UpdateView {
            generation: self.generation,
            at_ms: millis(self.at),
            service: self.service.to_string(),
            kind,
            origin: origin.filter(|origin| !origin.is_empty()),
            lines: shown.collect(),
            more: lines.len().saturating_sub(LINES_MAX),
        }
    }
}

fn profile(profile: &ServiceProfile, redaction: &Redaction) -> String {
    let mut document = profile.to_json();
    hide::in_profile(&mut document, redaction);
    emit::yaml(&document)
}

/// A line for each replica.
fn endpoints(set: Option<&EndpointSet>) -> String {
    let mut text = String::new();
    for endpoint in set.into_iter().flatten() {
        let Endpoint { addr, weight_milli, zone, priority, draining, identity, labels, .. } = endpoint;
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{addr}");
        if *weight_milli != 1000 {
            let _ = write!(text, " weight={}", f64::from(*weight_milli) / 1e3);
        }
        let zone = zone.as_ref().map(|zone| ("zone", zone));
        let identity = identity.as_ref().map(|identity| ("identity", identity));
        for (name, value) in zone.into_iter().chain(identity) {
            let _ = write!(text, " {name}={value}");
        }
        if *priority != 0 {
            let _ = write!(text, " priority={priority}");
        }
        for (name, value) in labels {
            let _ = write!(text, " {name}={value}");
        }
        text.push_str(if *draining { " draining\n" } else { "\n" });
    }
    text
}

pub(crate) fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::invalid::Fault;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    fn with_timeout(text: &str) -> Arc<ServiceProfile> {
        let yaml = format!(
            "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nmetadata: {{name: web.ns:80}}\n\
             spec: {{timeouts: {{request: {text}}}}}\n"
        );
        Arc::new(ServiceProfile::from_yaml(&yaml).unwrap())
    }

    #[test]
    fn an_update_tells_the_lines_it_changed() {
        let mut history = History::default();
        let change = Change::Profile(Some(with_timeout("1s")), Some(with_timeout("250ms")));
        history.update(7, &name("web.ns:80"), change);
        let told = history.updates()[0].told();
        assert_eq!((told.generation, told.kind, told.more), (7, "profile", 0));
        let changed = told.lines.iter().filter(|line| line.op != ' ' && line.op != '…');
        let changed: Vec<_> = changed.map(|line| format!("{}{}", line.op, line.text.trim())).collect();
        assert_eq!(changed, ["-request: 1s", "+request: 250ms"]);
    }

    #[test]
    fn replicas_that_come_and_go_do_not_push_out_profiles_nor_grow_without_end() {
        let mut history = History::default();
        history.update(1, &name("web.ns:80"), Change::Profile(None, Some(with_timeout("1s"))));
        let many = EndpointSet::new((1..=1000).map(|port| Endpoint::new(([127, 0, 0, 1], port).into())));
        for generation in 2..200 {
            let change = Change::Endpoints(None, Some(many.clone()));
            history.update(generation, &name("web.ns:80"), change);
        }
        let updates = history.updates();
        assert_eq!((updates.len(), updates[0].told().generation), (UPDATES_MAX + 1, 199));
        assert_eq!(updates[UPDATES_MAX].told().kind, "profile");
        assert_eq!((updates[0].told().lines.len(), updates[0].told().more), (LINES_MAX, 1000 - LINES_MAX));
        assert_eq!(updates[0].told().lines[0].text, "127.0.0.1:1");
    }

    #[test]
    fn a_refusal_is_told_once_with_its_faults() {
        let mut history = History::default();
        let refused = SourceFault::new("web.yaml", Fault::rejected("spec.x", "is no duration", "write 1s"));
        let ignored = Fault::new(Severity::Ignored, "spec.y", "has no effect", "");
        let both = [refused.clone(), SourceFault::new("web.yaml", ignored)];
        history.faults(&name("web.ns:80"), &[], &both);
        history.faults(&name("api.ns:80"), &[], &both);
        history.faults(&name("web.ns:80"), &both, &both);
        let refusals = history.refusals();
        assert_eq!(refusals.len(), 1);
        assert_eq!(refusals[0].services, ["web.ns:80", "api.ns:80"]);
        assert_eq!(refusals[0].faults, ["web.yaml: spec.x: is no duration; write 1s"]);
        history.faults(&name("web.ns:80"), &[], &both[1..]);
        assert_eq!(history.refusals().len(), 1, "what is ignored is not refused");
        for n in 0..100 {
            let other = Fault::rejected("spec.x", format!("is no duration ({n})"), "write 1s");
            history.faults(&name("web.ns:80"), &[], &[SourceFault::new("web.yaml", other)]);
        }
        assert_eq!(history.refusals().len(), REFUSALS_MAX);
    }
}
