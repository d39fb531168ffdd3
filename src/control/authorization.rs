//! Floor 5: the authorization of a server from a watched file; what is wrong with it never opens a door.

use crate::authz::layer::Gate;
use crate::authz::rules::AuthzPolicy;
use crate::authz::settings::AuthzSettings;
use crate::profile::invalid::Fault;
use crate::profile::invalid::Invalid;
use crate::stdx::clock::Duration;
use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use tokio::task::JoinHandle;

/// How often the file is looked at: every 500 ms, as profiles are.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a look may take before it is told as a fault: 5 s.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// The longest file that is read: 1 MiB, a thousand rules of a thousand bytes.
const BYTES_MAX: u64 = 1 << 20;

/// A file with an `Authorization` document, looked at again and again.
///
/// It is read by its path each time, so a file that is replaced and a Kubernetes volume that is swapped are seen. A new
/// text counts when two looks have found the same, so that half a document is never taken for one. What cannot be read
/// or understood is told and counted by the gate, and the last good policy stands.
#[derive(Debug)]
pub struct AuthorizationFile {
    path: PathBuf,
    /// The text that was judged last.
    judged: Vec<u8>,
    /// A text that one look has found.
    found: Option<Vec<u8>>,
    /// Why the file could not be read at the last look.
    unreadable: Option<String>,
}

impl AuthorizationFile {
    /// Reads the file for the first time. Blocks for as long as the disk does.
    ///
    /// # Errors
    /// It cannot be read or understood: there is no last good policy yet, and without one everything would be allowed.
    pub fn open(path: impl Into<PathBuf>) -> Result<(Self, AuthzSettings), Invalid> {
        let path = path.into();
        let judged = read(&path).map_err(|why| unreadable(&path, &why))?;
        let settings = parse(&judged)?;
        Ok((Self { path, judged, found: None, unreadable: None }, settings))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Publishes at `gate` what the file says whenever it changes, from now on. Never ends.
    pub async fn watch(mut self, gate: Gate) {
        let mut looking: Option<JoinHandle<Result<Vec<u8>, String>>> = None;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let path = self.path.clone();
            let read = move || read(&path).map_err(|error| error.to_string());
            // A look that takes long is waited for: a dead network file system costs one thread.
            let look = looking.get_or_insert_with(|| tokio::task::spawn_blocking(read));
            let text = match tokio::time::timeout(LOOK_MAX, look).await {
                Ok(text) => {
                    looking = None;
                    text.unwrap_or_else(|_| Err("reading it was cut off".to_owned()))
                }
                Err(_) => Err(format!("reading it took more than {LOOK_MAX:?}")),
            };
            self.take(&gate, text);
        }
    }

    /// Takes in what a look has found.
    fn take(&mut self, gate: &Gate, text: Result<Vec<u8>, String>) {
        let text = match text {
            Ok(text) => text,
            Err(why) if self.unreadable.as_ref() == Some(&why) => return,
            Err(why) => {
                gate.refuse(unreadable(&self.path, &why).faults);
                self.unreadable = Some(why);
                return;
            }
        };
        let readable_again = self.unreadable.take().is_some();
        if text == self.judged && !readable_again {
            self.found = None;
            gate.heard();
            return;
        }
        if !readable_again && self.found.as_ref() != Some(&text) {
            self.found = Some(text);
            return;
        }
        self.found = None;
        match parse(&text).and_then(|settings| AuthzPolicy::compile(&settings)) {
            Ok(policy) => gate.publish(policy),
            Err(invalid) => gate.refuse(invalid.faults),
        }
        self.judged = text;
    }
}

fn parse(text: &[u8]) -> Result<AuthzSettings, Invalid> {
    match std::str::from_utf8(text) {
        Ok(text) => AuthzSettings::from_yaml(text),
        Err(error) => Err(Fault::rejected("", format!("is no UTF-8: {error}"), "save it as UTF-8").into()),
    }
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> Invalid {
    let problem = format!("cannot be read (`{}`: {why})", path.display());
    Fault::rejected("", problem, "name a file with an Authorization document").into()
}

/// Reads a regular file, all of it or nothing.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    // Looked at before it is opened: opening a FIFO would wait for its writer.
    if !path.metadata()?.is_file() {
        return Err(wrong("it is not a regular file".to_owned()));
    }
    let mut text = Vec::new();
    File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut text)?;
    match text.len() as u64 > BYTES_MAX {
        true => Err(wrong(format!("it is longer than {BYTES_MAX} bytes"))),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::settings::Action;

    fn text(rule: &str) -> Vec<u8> {
        format!("apiVersion: enmesh.dev/v1\nkind: Authorization\nmetadata: {{name: a}}\nspec: {{rules: [{{name: {rule}}}]}}\n")
            .into_bytes()
    }

    fn gate() -> (AuthorizationFile, Gate) {
        let judged = text("one");
        let policy = AuthzPolicy::compile(&parse(&judged).unwrap()).unwrap();
        let file = AuthorizationFile { path: "policy.yaml".into(), judged, found: None, unreadable: None };
        (file, Gate::new(policy))
    }

    /// The name of the first rule, what is wrong, and how often something was.
    fn check(gate: &Gate, rule: &str, fault: Option<&str>, refused: u64) {
        let state = gate.state();
        assert_eq!(state.rules.first().map(|(name, action)| (&**name, *action)), Some((rule, Action::Allow)));
        let faults: Vec<String> = state.faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults.is_empty(), fault.is_none(), "{faults:?}");
        assert!(fault.is_none_or(|fault| faults[0].contains(fault)), "{faults:?}");
        assert_eq!(state.refused, refused);
    }

    #[test]
    fn a_new_text_counts_when_two_looks_have_found_the_same() {
        let (mut file, gate) = gate();
        for half in 1..text("two").len() {
            file.take(&gate, Ok(text("two")[..half].to_vec()));
            check(&gate, "one", None, 0);
        }
        file.take(&gate, Ok(text("two")));
        check(&gate, "one", None, 0);
        file.take(&gate, Ok(text("two")));
        check(&gate, "two", None, 0);
    }

    #[test]
    fn a_bad_text_keeps_the_last_good_and_is_told_once() {
        let (mut file, gate) = gate();
        for _ in 0..5 {
            file.take(&gate, Ok(b"kind: Other".to_vec()));
        }
        check(&gate, "one", Some("kind"), 1);
        for _ in 0..2 {
            file.take(&gate, Ok(vec![0xff]));
        }
        check(&gate, "one", Some("UTF-8"), 2);
        for _ in 0..2 {
            file.take(&gate, Ok(text("two")));
        }
        check(&gate, "two", None, 2);
    }

    #[test]
    fn a_file_that_is_gone_keeps_the_last_good_and_is_well_again_when_it_is_back() {
        let (mut file, gate) = gate();
        for _ in 0..3 {
            file.take(&gate, Err("gone".to_owned()));
        }
        check(&gate, "one", Some("gone"), 1);
        file.take(&gate, Ok(text("one")));
        check(&gate, "one", None, 1);
    }
}
