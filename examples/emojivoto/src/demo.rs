//! Everything in one process, on loopback: web, emoji, three replicas of voting (one slow), the vote-bot, each with
//! a mesh of its own as separate processes would have, and a live table of what goes on between them.

use crate::args;
use crate::bot::Bot;
use crate::emoji::Emojis;
use crate::env::Env;
use crate::mesh::{self, Mesh, Mode, Shown, Surroundings};
use crate::proto::emoji_service_server::EmojiServiceServer;
use crate::proto::voting_service_server::VotingServiceServer;
use crate::screen::Screen;
use crate::stop;
use crate::table::{Frame, Total};
use crate::voting::{Poll, Voting};
use crate::web::{self, Page};
use enmesh::metrics::registry::Registry;
use enmesh::stdx::clock;
use enmesh::stdx::rng::Rng;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::service::Routes;

/// The names that the services call each other by, as in the original's manifests.
pub const WEB: &str = "web-svc.emojivoto:80";
/// The emoji service.
pub const EMOJI: &str = "emoji-svc.emojivoto:8080";
/// The voting service.
pub const VOTING: &str = "voting-svc.emojivoto:8080";
/// A version of voting that is tried out.
pub const CANARY: &str = "voting-canary-svc.emojivoto:8080";
/// The vote-bot, which nobody calls.
pub const BOT: &str = "vote-bot.emojivoto";

/// Replicas of voting; the last one is slow.
const REPLICAS: usize = 3;

/// How long requests in flight may take to end once Ctrl-C is pressed: longer than the longest timeout of the
/// profiles, shorter than patience.
const DRAIN: Duration = Duration::from_secs(5);

/// A directory of our own that goes away with the demo.
struct RunDir(PathBuf);

impl RunDir {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("emojivoto-{}", std::process::id()));
        std::fs::create_dir_all(path.join("endpoints"))?;
        Ok(Self(path))
    }

    fn endpoints(&self) -> PathBuf {
        self.0.join("endpoints")
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // What cannot be removed is for the system to clean: it is in its temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The listeners, all bound before anything starts, so that a busy port is said at once.
struct Listeners {
    web: TcpListener,
    emoji: TcpListener,
    voting: Vec<TcpListener>,
    canary: Option<TcpListener>,
}

impl Listeners {
    async fn bind(port: u16, split: bool) -> Result<Self, String> {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let next = port.checked_add(1).unwrap_or(8080);
        let remedy = format!("choose another with `--port {next}`, or any free one with `--port 0`");
        let web = crate::listen::at(at(port), &remedy).await?;
        let emoji = crate::listen::at(at(0), "free some ports").await?;
        let mut voting = Vec::new();
        for _ in 0..REPLICAS {
            voting.push(crate::listen::at(at(0), "free some ports").await?);
        }
        let canary = if split { Some(crate::listen::at(at(0), "free some ports").await?) } else { None };
        Ok(Self { web, emoji, voting, canary })
    }

    fn endpoints(&self) -> Result<BTreeMap<&'static str, Vec<SocketAddr>>, String> {
        let addr = |listener: &TcpListener| listener.local_addr().map_err(|error| error.to_string());
        let mut endpoints = BTreeMap::from([
            (WEB, vec![addr(&self.web)?]),
            (EMOJI, vec![addr(&self.emoji)?]),
            (VOTING, self.voting.iter().map(addr).collect::<Result<_, _>>()?),
        ]);
        if let Some(canary) = &self.canary {
            endpoints.insert(CANARY, vec![addr(canary)?]);
        }
        Ok(endpoints)
    }
}

/// A replica of voting, to be shown as a row.
struct Replica {
    label: String,
    mesh: Mesh,
}

/// What runs.
struct Running {
    web: Mesh,
    emoji: Mesh,
    voting: Vec<Replica>,
    bot: Mesh,
    tasks: JoinSet<Result<(), String>>,
}

/// Runs the demo until somebody asks it to end.
pub async fn run(demo: args::Demo) -> Result<(), String> {
    let start = clock::now();
    let listeners = Listeners::bind(demo.port, demo.split).await?;
    let dir = RunDir::new().map_err(|error| format!("no directory for endpoints can be made: {error}"))?;
    let mut profiles = profiles(demo.profiles.as_deref(), &dir)?;
    if demo.split {
        profiles = with_split(&profiles, &dir)?;
    }
    let endpoints = listeners.endpoints()?;
    write_endpoints(&dir, &endpoints)?;
    let url = format!("http://{}", endpoints[WEB][0]);
    let mut running = Running::start(&demo, listeners, &profiles, &dir, &endpoints)?;

    let page = running.web.page().unwrap_or_default();
    let mut frame = Frame { url, notes: notes(page, &profiles, &dir, demo.split), ..Frame::default() };
    let screen = Screen::open(demo.plain);
    let shown = show(&screen, &mut frame, &mut running, start).await;
    let asked = matches!(shown, Ok(true));
    if asked {
        // A closed pipe takes no farewell.
        let _ = screen.say("ending: requests in flight are finished first (Ctrl-C again ends at once)");
    }
    drop(screen);
    running.drain().await?;
    match shown {
        Ok(_) => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// Draws until asked to end (`true`), or until nobody reads any more (`false`).
async fn show(
    screen: &Screen,
    frame: &mut Frame,
    running: &mut Running,
    start: Instant,
) -> Result<bool, String> {
    let mut history = crate::table::History::default();
    let mut ticks = tokio::time::interval(screen.every());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut stop = std::pin::pin!(stop::asked());
    if screen.greet(frame).is_err() {
        return Ok(false);
    }
    loop {
        tokio::select! {
            () = &mut stop => return Ok(true),
            ended = running.tasks.join_next() => ended_early(ended)?,
            _ = ticks.tick() => {
                frame.uptime = start.elapsed();
                frame.faults = running.web.faults();
                let rows = history.rows(clock::now(), running.totals());
                if screen.draw(frame, &rows).is_err() {
                    return Ok(false);
                }
            }
        }
    }
}

type Ended = Option<Result<Result<(), String>, tokio::task::JoinError>>;

fn ended_early(ended: Ended) -> Result<(), String> {
    match ended {
        Some(Ok(Ok(()))) | None => Err("a service ended before it was asked to".to_owned()),
        Some(Ok(Err(fault))) => Err(fault),
        Some(Err(panic)) => Err(format!("a service broke off: {panic}")),
    }
}

impl Running {
    fn start(
        demo: &args::Demo,
        listeners: Listeners,
        profiles: &Path,
        dir: &RunDir,
        endpoints: &BTreeMap<&'static str, Vec<SocketAddr>>,
    ) -> Result<Self, String> {
        let (authority, directory) = (mesh::authority()?, dir.endpoints());
        let here = Surroundings { profiles, endpoints: &directory, drain: DRAIN, authority: &authority };
        let mut tasks = JoinSet::new();
        let mut serve = |mesh: &Mesh, listener, app| {
            let mesh = mesh.clone();
            tasks.spawn(async move { mesh.serve(listener, app).await });
        };

        let emoji = here.mesh(EMOJI, "emoji", Mode::Strict, Shown::default())?;
        serve(&emoji, listeners.emoji, Routes::new(EmojiServiceServer::new(Emojis)).into_axum_router());

        // The replicas count together, so that the leaderboard does not depend on which of them is asked.
        let (poll, usual) = (Poll::default(), usual_delay()?);
        let mut voting = Vec::new();
        for (i, listener) in listeners.voting.into_iter().enumerate() {
            let slow = i + 1 == REPLICAS;
            let delay = if slow { demo.slow } else { usual };
            let (poll, rng, metrics) = (poll.clone(), Rng::thread(), Registry::global());
            let service = Voting { poll, failure_rate: demo.failure_rate, delay, rng, metrics };
            let label = endpoints[VOTING][i].to_string() + if slow { " slow" } else { "" };
            let mesh = here.mesh(VOTING, "voting", Mode::Strict, Shown::default())?;
            let replica = Replica { label, mesh };
            serve(&replica.mesh, listener, Routes::new(VotingServiceServer::new(service)).into_axum_router());
            voting.push(replica);
        }
        if let Some(listener) = listeners.canary {
            // The next version: it takes votes for the doughnut.
            let (poll, rng, metrics) = (poll.clone(), Rng::thread(), Registry::global());
            let service = Voting { poll, failure_rate: 0.0, delay: Duration::ZERO, rng, metrics };
            let label = endpoints[CANARY][0].to_string() + " canary";
            let canary =
                Replica { label, mesh: here.mesh(CANARY, "voting", Mode::Strict, Shown::default())? };
            serve(&canary.mesh, listener, Routes::new(VotingServiceServer::new(service)).into_axum_router());
            voting.push(canary);
        }

        let bot = here.mesh(BOT, "vote-bot", Mode::Strict, Shown::default())?;
        let others = [&emoji, &bot].into_iter().chain(voting.iter().map(|replica| &replica.mesh));
        let shown = Shown { port: demo.admin_port, others: others.filter_map(Mesh::page).collect() };
        // Browsers have no certificate of this mesh.
        let web = here.mesh(WEB, "web", Mode::Permissive, shown)?;
        let page =
            Page { message: std::env::var("MESSAGE_OF_THE_DAY").unwrap_or_default(), ..Page::default() };
        serve(&web, listeners.web, web::router(web.service(EMOJI)?, web.service(VOTING)?, page));

        if let Some(rate) = demo.rate {
            let web = WEB.to_owned();
            let bot =
                Bot { mesh: bot.clone(), web, host: None, rate, ttl: None, rng: Rng::thread(), say: |_| () };
            tasks.spawn(async move {
                bot.run().await;
                Ok(())
            });
        }
        Ok(Self { web, emoji, voting, bot, tasks })
    }

    /// What each route did so far: as web serves it, as web calls others, and each replica of voting.
    fn totals(&self) -> Vec<Total> {
        let mut routes: BTreeMap<(bool, String, String), Total> = BTreeMap::new();
        for route in self.web.routes() {
            // Requests that no route is for are worth a row only when there are some.
            if route.route.is_empty() && route.reading.requests == 0 {
                continue;
            }
            let service = route.service.split(['.', ':']).next().unwrap_or_default().to_owned();
            let (group, has_attempts) = match route.inbound {
                true => (format!("browsers and vote-bot → {service}"), false),
                false => (format!("web → {service}"), true),
            };
            let name = if route.route.is_empty() { "[default]".to_owned() } else { route.route };
            let total = routes.entry((has_attempts, service, name.clone())).or_default();
            let reading = total.reading.merge(&route.reading);
            *total = Total { group, route: name, has_attempts, reading };
        }
        let mut totals: Vec<Total> = routes.into_values().collect();
        for replica in &self.voting {
            let readings = replica.mesh.routes().into_iter().filter(|route| route.inbound).map(|r| r.reading);
            let reading = readings.reduce(|a, b| a.merge(&b)).unwrap_or_default();
            let group = "replicas of voting-svc".to_owned();
            totals.push(Total { group, route: replica.label.clone(), has_attempts: false, reading });
        }
        totals
    }

    /// Ends callers before those they call, each once its requests are finished.
    async fn drain(mut self) -> Result<(), String> {
        let end = async {
            self.bot.shutdown().await;
            self.web.shutdown().await;
            self.emoji.shutdown().await;
            for replica in &self.voting {
                replica.mesh.shutdown().await;
            }
        };
        tokio::select! {
            () = end => {}
            () = tokio::time::sleep(DRAIN) => {}
            () = stop::asked() => {}
        }
        self.tasks.shutdown().await;
        Ok(())
    }
}

/// What a vote takes at a replica that is not slow.
fn usual_delay() -> Result<Duration, String> {
    let lookup = |name: &str| std::env::var(name).ok();
    Ok(Env::new(&lookup).duration("ARTIFICIAL_DELAY")?.unwrap_or(Duration::ZERO))
}

/// The profiles that ship with the example, for when its source is not at hand.
const SHIPPED: [(&str, &str); 3] = [
    ("web.yaml", include_str!("../profiles/web.yaml")),
    ("emoji.yaml", include_str!("../profiles/emoji.yaml")),
    ("voting.yaml", include_str!("../profiles/voting.yaml")),
];

fn profiles(asked: Option<&Path>, dir: &RunDir) -> Result<PathBuf, String> {
    if let Some(path) = asked {
        let there = path.is_dir();
        return there.then(|| path.to_owned()).ok_or_else(|| {
            format!("`--profiles {}` is no directory: name one that holds service profiles", path.display())
        });
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
    if source.is_dir() {
        return Ok(source);
    }
    let copy = dir.0.join("profiles");
    let unpack = || {
        std::fs::create_dir_all(&copy)?;
        SHIPPED.iter().try_for_each(|(name, text)| std::fs::write(copy.join(name), text))
    };
    unpack().map_err(|error: io::Error| format!("the profiles cannot be unpacked: {error}"))?;
    Ok(copy)
}

fn write_endpoints(dir: &RunDir, services: &BTreeMap<&'static str, Vec<SocketAddr>>) -> Result<(), String> {
    for (service, addrs) in services {
        let account = service.split('-').next().unwrap_or(service);
        let identity = mesh::identity(account);
        let file = service.split('.').next().unwrap_or(service);
        let mut text = format!("apiVersion: enmesh.dev/v1\nkind: Endpoints\nmetadata:\n  name: {service}\n");
        text += "spec:\n  endpoints:\n";
        for addr in addrs {
            text += &format!("  - address: {addr}\n    identity: {identity}\n");
        }
        let path = dir.endpoints().join(format!("{file}.yaml"));
        std::fs::write(&path, text)
            .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    }
    Ok(())
}

/// The file that says how much of voting's traffic the canary gets.
const SPLIT: &str = "split.yaml";

/// The split as it begins: everything to the version that is in use.
const NO_CANARY: &str = include_str!("../split/split.yaml");

/// A copy of the profiles, and beside them the split, which is there to be edited.
fn with_split(profiles: &Path, dir: &RunDir) -> Result<PathBuf, String> {
    let copy = dir.0.join("split");
    let write = || {
        std::fs::create_dir_all(&copy)?;
        for entry in std::fs::read_dir(profiles)? {
            let from = entry?.path();
            if let Some(name) = from.file_name().filter(|_| from.is_file()) {
                std::fs::copy(&from, copy.join(name))?;
            }
        }
        std::fs::write(copy.join(SPLIT), NO_CANARY)
    };
    write().map_err(|error: io::Error| format!("the profiles cannot be copied: {error}"))?;
    Ok(copy)
}

fn notes(page: String, profiles: &Path, dir: &RunDir, split: bool) -> Vec<(&'static str, String)> {
    let here = std::env::current_dir().unwrap_or_default();
    let shown = profiles.strip_prefix(&here).unwrap_or(profiles);
    let mut notes = vec![
        ("mesh page", format!("{page}: routes, replicas, configuration, live requests")),
        ("profiles", format!("{}: edit one, and the next request follows", shown.display())),
        ("endpoints", dir.endpoints().display().to_string()),
        ("identity", "all services speak mutual TLS, by an authority of this run alone".to_owned()),
        ("Ctrl-C", "finishes the requests in flight and ends".to_owned()),
    ];
    if split {
        let file = shown.join(SPLIT);
        notes.insert(0, ("split", format!("{}: edit its weights to move the canary", file.display())));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_is_read_beside_the_profile() {
        let text = [SHIPPED[2].1, NO_CANARY].join("---\n");
        let imported = enmesh::profile::import::load::load_text(&text, "split", &Default::default());
        assert!(imported.notes.iter().all(|notes| notes.faults.is_empty()), "{:?}", imported.notes);
        let names: Vec<&str> = imported.profiles[0].routes.iter().map(|route| &*route.name).collect();
        assert_eq!(names, ["VoteDoughnut", "Vote", "Results", "voting-canary"]);
    }

    #[test]
    fn the_shipped_profiles_have_no_fault_and_name_every_route() {
        let routes = SHIPPED.map(|(name, text)| {
            let parsed = enmesh::profile::parse::parse(text, name);
            let faults: Vec<_> = parsed.documents.iter().flat_map(|document| &document.faults).collect();
            assert!(faults.is_empty(), "{name}: {faults:?}");
            let profiles = parsed.into_profiles();
            profiles[0].routes.iter().map(|route| route.name.to_string()).collect::<Vec<_>>().join(" ")
        });
        let web = "GET /api/list GET /api/vote GET /api/leaderboard page";
        assert_eq!(routes, [web, "ListAll FindByShortcode", "VoteDoughnut Vote Results"]);
    }
}
