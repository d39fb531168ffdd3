//! The command line: what to run, and how.

use crate::env;
use std::path::PathBuf;
use std::time::Duration;

/// What to run.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Everything, on loopback.
    Demo(Demo),
    /// One service, configured by the environment.
    One(Service),
    /// Print this and stop.
    Print(String),
}

/// The services that can run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The page and its API.
    Web,
    /// The list of emoji.
    Emoji,
    /// The counts.
    Voting,
    /// The one that votes.
    VoteBot,
}

/// How the whole demo runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Demo {
    /// Where the page is served, on loopback; 0 is any free port.
    pub port: u16,
    /// Where the mesh's own page is served, on loopback; 0 is any free port.
    pub admin_port: u16,
    /// The directory of profiles; `None`: the ones that ship with the example.
    pub profiles: Option<PathBuf>,
    /// Votes each second by the vote-bot; `None`: no vote-bot.
    pub rate: Option<u32>,
    /// The share of doughnut votes that fail.
    pub failure_rate: f64,
    /// How long the slow replica of voting takes for a vote.
    pub slow: Duration,
    /// Whether there is a canary of voting.
    pub split: bool,
    /// Plain lines even on a terminal.
    pub plain: bool,
}

impl Default for Demo {
    fn default() -> Self {
        Self {
            port: 8080,
            admin_port: 0,
            profiles: None,
            rate: Some(10),
            failure_rate: 1.0,
            slow: Duration::from_millis(400),
            split: false,
            plain: false,
        }
    }
}

const HELP: &str = "\
emojivoto: vote for emoji over enmesh, a service mesh inside the process

Usage: emojivoto [OPTIONS]                     everything, on loopback
       emojivoto web|emoji|voting|vote-bot     one service, configured by the environment

Options, for everything:
  --port N            where the page is served (default 8080; 0 is any free port)
  --admin-port N      where the page of the mesh is served (default 0: any free port)
  --profiles DIR      service profiles to use and to watch (default: the example's own)
  --rate N            votes each second by the vote-bot (default 10)
  --no-bot            no vote-bot: all votes are yours
  --failure-rate F    share of doughnut votes that fail, 0 to 1 (default 1)
  --slow DURATION     what the slow replica of voting takes for a vote (default 400ms; the others: ARTIFICIAL_DELAY)
  --split             a canary of voting, which gets what the file it names says
  --plain             plain lines in place of the live table
  -h, --help          this text; after a service, its environment
  -V, --version       the version

Edit a profile while it runs, and the next request follows it. Ctrl-C drains and ends.
";

const MESH_HELP: &str = "
The mesh, for every service:
  ENMESH_PROFILES     directory of service profiles, watched
  ENMESH_ENDPOINTS    directory of endpoints, watched; without one, names are looked up in DNS
  ENMESH_ADMIN        where the mesh's page, metrics and health are served, for example 127.0.0.1:4191
  ENMESH_ADMIN_PEERS  the same of other processes, to be shown together: http://host:port, by commas
";

impl Service {
    /// The name, as on the command line and in the mesh.
    pub fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Emoji => "emoji",
            Self::Voting => "voting",
            Self::VoteBot => "vote-bot",
        }
    }

    fn help(self) -> String {
        let own = match self {
            Self::Web => {
                "\
  WEB_PORT            where the page is served (required)
  EMOJISVC_HOST       the emoji service, host:port (required)
  VOTINGSVC_HOST      the voting service, host:port (required)
  MESSAGE_OF_THE_DAY  a line shown above the page
  INDEX_BUNDLE        a script on disk, served as /js in place of the built-in one
  WEBPACK_DEV_SERVER  where a development server has /dist/index_bundle.js
"
            }
            Self::Emoji => {
                "\
  GRPC_PORT           where the service listens (required)
  PROM_PORT           where its metrics are served (default: nowhere)
"
            }
            Self::Voting => {
                "\
  GRPC_PORT           where the service listens (required)
  PROM_PORT           where its metrics are served (default: nowhere)
  FAILURE_RATE        share of doughnut votes that fail, 0 to 1 (default 0)
  ARTIFICIAL_DELAY    what each vote takes, for example 250ms (default 0)
"
            }
            Self::VoteBot => {
                "\
  WEB_HOST            the web service, host:port (required)
  HOST_OVERRIDE       the Host header to send, if not WEB_HOST
  REQUEST_RATE        votes each second, at least 1 (default 1)
  TTL                 seconds after which it stops (default 0: never)
"
            }
        };
        format!("emojivoto {}: configured by the environment\n\n{own}{MESH_HELP}", self.name())
    }
}

/// Reads the arguments that follow the program's name.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut args = args.into_iter().peekable();
    let service = args.peek().and_then(|first| {
        [Service::Web, Service::Emoji, Service::Voting, Service::VoteBot]
            .into_iter()
            .find(|s| s.name() == first)
    });
    if let Some(service) = service {
        return match args.nth(1).as_deref() {
            None => Ok(Command::One(service)),
            Some("-h" | "--help") => Ok(Command::Print(service.help())),
            Some(other) => {
                Err(unknown(other, &format!("`{0}` is configured by the environment", service.name())))
            }
        };
    }
    let mut demo = Demo::default();
    while let Some(arg) = args.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (arg.as_str(), None),
        };
        let mut value = |wanted: &str| {
            let given = inline.clone().or_else(|| args.next());
            given.ok_or_else(|| format!("`{name}` needs a value: write {wanted}"))
        };
        match name {
            "-h" | "--help" => return Ok(Command::Print(HELP.to_owned())),
            "-V" | "--version" => {
                return Ok(Command::Print(format!("emojivoto {}\n", env!("CARGO_PKG_VERSION"))));
            }
            "--port" => demo.port = read(name, "a port, 0 to 65535", &mut value, |t| t.parse().ok())?,
            "--admin-port" => {
                demo.admin_port = read(name, "a port, 0 to 65535", &mut value, |t| t.parse().ok())?;
            }
            "--profiles" => demo.profiles = Some(value("a directory")?.into()),
            "--rate" => {
                demo.rate = Some(read(name, "a whole number from 1 to 10000", &mut value, env::rate)?)
            }
            "--no-bot" if inline.is_none() => demo.rate = None,
            "--failure-rate" => {
                demo.failure_rate = read(name, "a number from 0 to 1", &mut value, env::share)?;
            }
            "--slow" => demo.slow = read(name, "a duration such as 400ms", &mut value, env::duration)?,
            "--split" if inline.is_none() => demo.split = true,
            "--plain" if inline.is_none() => demo.plain = true,
            _ => return Err(unknown(&arg, "it is no service and no option")),
        }
    }
    Ok(Command::Demo(demo))
}

fn unknown(arg: &str, why: &str) -> String {
    format!("`{arg}` is not understood: {why}; `emojivoto --help` says what there is")
}

fn read<T>(
    name: &str,
    wanted: &str,
    value: &mut impl FnMut(&str) -> Result<String, String>,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, String> {
    let text = value(wanted)?;
    parse(&text).ok_or_else(|| format!("`{name} {text}` cannot be used: write {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn no_argument_runs_everything() {
        assert_eq!(of(""), Ok(Command::Demo(Demo::default())));
    }

    #[test]
    fn options_are_read_with_a_space_or_an_equals_sign() {
        let expected = Demo {
            port: 0,
            admin_port: 4191,
            profiles: Some("p".into()),
            rate: None,
            failure_rate: 0.5,
            slow: Duration::from_secs(1),
            split: true,
            plain: true,
        };
        let line =
            "--port 0 --admin-port 4191 --profiles=p --no-bot --failure-rate=0.5 --slow 1s --split --plain";
        assert_eq!(of(line), Ok(Command::Demo(expected)));
    }

    #[test]
    fn a_service_runs_alone() {
        assert_eq!(of("vote-bot"), Ok(Command::One(Service::VoteBot)));
        assert!(matches!(of("voting --help"), Ok(Command::Print(text)) if text.contains("ARTIFICIAL_DELAY")));
    }

    #[test]
    fn a_fault_names_the_argument_and_the_remedy() {
        let check = |line: &str, part: &str| {
            let fault = of(line).unwrap_err();
            assert!(fault.contains(part), "{fault}");
        };
        check("--prot 1", "`--prot` is not understood");
        check("--port", "`--port` needs a value: write a port");
        check("--port 70000", "`--port 70000` cannot be used: write a port, 0 to 65535");
        check("--rate 0", "`--rate 0` cannot be used");
        check("--plain=yes", "`--plain=yes` is not understood");
        check("web --port 1", "`web` is configured by the environment");
        check("wbe", "`emojivoto --help` says what there is");
    }
}
