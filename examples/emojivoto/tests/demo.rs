//! Runs the real program, as processes on free ports, and talks to it as any client would: over TCP, without enmesh.

#![cfg(unix)]
#![expect(clippy::disallowed_methods, reason = "processes live in real time, which nobody can pause")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may give up")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Until when anything must have happened. Only a broken program or machine takes so long; no test asserts less.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory that goes away with its test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("emojivoto-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A copy of the shipped profiles.
    fn with_profiles(self) -> Self {
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/profiles")).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, self.0.join(from.file_name().unwrap())).unwrap();
        }
        self
    }

    /// Writes a file whole, as editors do: beside it, then over it.
    fn write(&self, name: &str, text: &str) {
        let draft = self.0.join(format!(".{name}.draft"));
        fs::write(&draft, text).unwrap();
        fs::rename(draft, self.0.join(name)).unwrap();
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running emojivoto, ended with its test.
struct Program {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Program {
    fn start(args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_emojivoto"));
        command.args(args).env_remove("RUST_LOG").env("NO_COLOR", "1").envs(environment.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (send, lines) = mpsc::channel();
        for pipe in [
            Box::new(child.stdout.take().unwrap()) as Box<dyn Read + Send>,
            Box::new(child.stderr.take().unwrap()),
        ] {
            let send = send.clone();
            thread::spawn(move || {
                BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| send.send(line).ok())
            });
        }
        Self { child, lines, seen: Vec::new() }
    }

    /// What stands after `mark` in the first line that has it.
    fn after(&mut self, mark: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if let Some((_, rest)) = line.split_once(mark) {
                        return rest.to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no line had `{mark}`:\n{}", self.seen.join("\n"))
                }
            }
        }
    }

    /// Starts the whole demo, and answers with where its page is.
    fn demo(args: &[&str]) -> (Self, String) {
        let mut program = Self::start(&[&["--port", "0", "--plain"], args].concat(), &[]);
        let addr = program.after("open http://");
        (program, addr)
    }

    /// Starts one service, and answers with the port it listens at.
    fn service(name: &str, environment: &[(&str, &str)]) -> (Self, String) {
        let mut program = Self::start(&[name], environment);
        let port = program.port(" listens at ");
        (program, port)
    }

    /// The port of the address in the first line that has `mark` before it.
    fn port(&mut self, mark: &str) -> String {
        let rest = self.after(mark);
        let addr = rest.split('/').next().unwrap();
        addr.rsplit(':').next().unwrap().trim().to_owned()
    }

    /// Presses Ctrl-C, and answers with the exit code.
    fn interrupt(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

fn get(addr: &str, path: &str) -> Answer {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // HTTP/1.0: the answer ends where the connection does.
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {addr}\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let split = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer has a head");
    let head = String::from_utf8(answer[..split].to_vec()).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: answer[split + 4..].to_vec() }
}

/// Waits until `there` answers.
fn until<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(answer) = there() {
            return answer;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("{what}: not within {PATIENCE:?}")
}

fn votes(addr: &str, shortcode: &str) -> u64 {
    let board = get(addr, "/api/leaderboard").json();
    let row = board.as_array().unwrap().iter().find(|row| row["shortcode"] == shortcode);
    row.map_or(0, |row| row["votes"].as_str().unwrap().parse().unwrap())
}

#[test]
fn the_api_answers_as_it_always_has() {
    let (_demo, addr) = Program::demo(&["--no-bot"]);

    let list = get(&addr, "/api/list");
    assert_eq!(list.status, 200);
    assert!(list.head.contains("content-type: application/json; charset=utf-8"), "{}", list.head);
    let list = list.json();
    assert_eq!(list.as_array().unwrap().len(), 100);
    assert_eq!(list[0], serde_json::json!({"shortcode": ":joy:", "unicode": "😂"}));

    let empty = get(&addr, "/api/leaderboard");
    assert_eq!((empty.status, empty.text()), (200, "[]\n"));
    for choice in [":ghost:", ":joy:", ":100:", ":joy:", ":point_up_2:", ":ghost:", ":joy:"] {
        let voted = get(&addr, &format!("/api/vote?choice={choice}"));
        assert_eq!((voted.status, voted.text()), (200, ""), "{choice}");
    }
    let row = |shortcode, unicode, votes| serde_json::json!({"shortcode": shortcode, "unicode": unicode, "votes": votes});
    let board = serde_json::json!([
        row(":joy:", "😂", "3"),
        row(":ghost:", "👻", "2"),
        row(":100:", "💯", "1"),
        row(":point_up_2:", "👆", "1"),
    ]);
    assert_eq!(get(&addr, "/api/leaderboard").json(), board);

    let check = |path: &str, status: u16, error: &str| {
        let answer = get(&addr, path);
        assert_eq!(
            (answer.status, answer.text()),
            (status, format!("{{\"error\":\"{error}\"}}\n").as_str()),
            "{path}"
        );
        assert!(answer.head.contains("content-type: application/json; charset=utf-8"), "{}", answer.head);
    };
    check("/api/vote?choice=:doughnut:", 500, "rpc error: code = Unknown desc = ERROR");
    check("/api/vote", 400, "Emoji choice [] is mandatory");
    check("/api/vote?choice=", 400, "Emoji choice [] is mandatory");
    check("/api/vote?choice=:nope:", 400, "Choosen emoji shortcode [:nope:] doesnt exist");
    assert_eq!(get(&addr, "/api/leaderboard").json(), board, "what fails is not counted");
}

#[test]
fn every_one_of_the_hundred_can_be_voted_for() {
    let (_demo, addr) = Program::demo(&["--no-bot", "--failure-rate", "0"]);
    let list = get(&addr, "/api/list").json();
    for emoji in list.as_array().unwrap() {
        let choice = emoji["shortcode"].as_str().unwrap();
        assert_eq!(get(&addr, &format!("/api/vote?choice={choice}")).status, 200, "{choice}");
    }
    let board = get(&addr, "/api/leaderboard").json();
    assert_eq!(board.as_array().unwrap().len(), 100);
    assert!(
        board.as_array().unwrap().iter().all(|row| row["votes"] == "1" && row["unicode"] != ""),
        "{board}"
    );
}

#[test]
fn the_page_and_its_parts_are_where_they_always_were() {
    let (_demo, addr) = Program::demo(&["--no-bot"]);
    for (path, kind) in [
        ("/", "text/html"),
        ("/leaderboard", "text/html"),
        ("/js", "text/javascript"),
        ("/dist/index_bundle.js", "text/javascript"),
        ("/dist/styles.css", "text/css"),
        ("/img/favicon.ico", "image/x-icon"),
    ] {
        let answer = get(&addr, path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.head.contains(&format!("content-type: {kind}")), "{path}: {}", answer.head);
        assert!(!answer.body.is_empty(), "{path}");
    }
    assert_eq!(get(&addr, "/nothing").status, 404);
}

#[test]
fn the_bot_votes_and_the_table_tells_the_failing_route() {
    let (mut demo, addr) = Program::demo(&["--rate", "50"]);
    until("votes of the bot", || {
        (get(&addr, "/api/leaderboard").json().as_array().unwrap().len() > 20).then_some(())
    });
    let line = loop {
        let line = demo.after("web → voting-svc: VoteDoughnut ");
        if !line.contains(" rps=0.0 ") {
            break line;
        }
    };
    assert!(line.starts_with("success=0.00% "), "{line}");
    assert!(line.contains(" retries="), "{line}");
    let vote = demo.after("web → voting-svc: Vote ");
    assert!(vote.starts_with("success=100.00% "), "{vote}");
    assert_eq!(demo.interrupt(), Some(0));
}

#[test]
fn a_service_of_the_demo_refuses_who_has_no_certificate() {
    let (mut demo, addr) = Program::demo(&["--no-bot", "--failure-rate", "0"]);
    let line = demo.after("replicas of voting-svc: ");
    let replica = line.split(' ').next().unwrap();
    let mut stream = TcpStream::connect(replica).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nhost: voting\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // A reset is as good an end as any.
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(get(&addr, "/api/vote?choice=:joy:").status, 200, "web has one");
}

/// What voting takes for a vote when services run apart: long enough to be caught in the act.
const DELAY: (Duration, &str) = (Duration::from_millis(600), "600ms");

/// emoji, voting and web, a process each.
struct Apart {
    profiles: Dir,
    endpoints: Dir,
    _emoji: Program,
    _voting: Program,
    web: Program,
    /// Where voting shows its metrics.
    metrics: String,
    /// Where the page is.
    addr: String,
}

impl Apart {
    fn start(name: &str) -> Self {
        let profiles = Dir::new(&format!("{name}-profiles")).with_profiles();
        let endpoints = Dir::new(&format!("{name}-endpoints"));
        profiles.write("voting.yaml", &voting_document(None));
        let at = |service: &str, port: &str| place(&endpoints, service, port);
        let with = |own: &[_]| [own, &mesh(&profiles, &endpoints)].concat();
        let (emoji, port) = Program::service("emoji", &with(&[("GRPC_PORT", "0")]));
        at("emoji-svc.emojivoto:8080", &port);
        let own =
            [("GRPC_PORT", "0"), ("PROM_PORT", "0"), ("ARTIFICIAL_DELAY", DELAY.1), ("FAILURE_RATE", "1")];
        let mut voting = Program::start(&["voting"], &with(&own));
        let metrics = format!("127.0.0.1:{}", voting.port("metrics are at http://"));
        at("voting-svc.emojivoto:8080", &voting.port(" listens at "));
        let own = [
            ("WEB_PORT", "0"),
            ("EMOJISVC_HOST", "emoji-svc.emojivoto:8080"),
            ("VOTINGSVC_HOST", "voting-svc.emojivoto:8080"),
        ];
        let (web, port) = Program::service("web", &with(&own));
        at("web-svc.emojivoto:80", &port);
        let addr = format!("127.0.0.1:{port}");
        Self { profiles, endpoints, _emoji: emoji, _voting: voting, web, metrics, addr }
    }

    fn vote(&self) -> Answer {
        get(&self.addr, "/api/vote?choice=:joy:")
    }
}

fn mesh<'a>(profiles: &'a Dir, endpoints: &'a Dir) -> [(&'a str, &'a str); 2] {
    let text = |dir: &'a Dir| dir.0.to_str().unwrap();
    [("ENMESH_PROFILES", text(profiles)), ("ENMESH_ENDPOINTS", text(endpoints))]
}

fn place(endpoints: &Dir, service: &str, port: &str) {
    endpoints.write(&format!("{}.yaml", service.replace(':', "-")), &endpoints_document(service, port));
}

#[test]
fn an_edited_profile_holds_at_once_and_a_broken_one_never() {
    let mut apart = Apart::start("edit");
    assert_eq!(apart.vote().status, 200, "no timeout: a slow vote counts");
    assert_eq!(votes(&apart.addr, ":joy:"), 1);

    apart.profiles.write("voting.yaml", &voting_document(Some("50ms")));
    let edited = Instant::now();
    let late = until("a timeout", || Some(apart.vote()).filter(|answer| answer.status == 500));
    println!("an edited profile held {:?} later", edited.elapsed());
    assert!(late.text().contains("rpc error: code = DeadlineExceeded"), "{}", late.text());

    let broken = "apiVersion: enmesh.dev/v1\nkind: ServiceProfile\nspec: [this is no profile]\n";
    apart.profiles.write("voting.yaml", broken);
    apart.web.after("WARN emojivoto::mesh: voting.yaml: ");
    assert_eq!(apart.vote().status, 500, "a profile that cannot be used leaves the last good one");

    apart.profiles.write("voting.yaml", &voting_document(Some("10s")));
    until("time enough", || Some(apart.vote()).filter(|answer| answer.status == 200));
}

#[test]
fn a_canary_moves_from_nothing_to_everything_by_editing_one_file() {
    let (mut program, addr) = Program::demo(&["--split", "--rate", "50", "--slow", "1ms"]);
    let file = program.after("split").trim().trim_start_matches(": ").to_owned();
    let file = PathBuf::from(file.split(": edit").next().unwrap().trim());
    let text = fs::read_to_string(&file).unwrap();
    let doughnut = |addr: &str| get(addr, "/api/vote?choice=:doughnut:").status;
    // What the canary does each second, in the newest line of the table.
    let canary = |program: &mut Program| -> f64 {
        let line = program.after(" canary success=");
        line.split("rps=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    };
    let share = |program: &mut Program, wanted: &dyn Fn(f64) -> bool| {
        let end = Instant::now() + PATIENCE;
        while !wanted(canary(program)) {
            assert!(Instant::now() < end, "{}", program.seen.join("\n"));
        }
    };
    share(&mut program, &|rps| rps == 0.0);
    assert_ne!(doughnut(&addr), 200);
    for (stable, next) in [(50, 50), (0, 100)] {
        let moved = text.replace(
            "{name: voting-svc, port: 8080, weight: 100}",
            &format!("{{name: voting-svc, port: 8080, weight: {stable}}}"),
        );
        let moved = moved.replace(
            "canary-svc, port: 8080, weight: 0}",
            &format!("canary-svc, port: 8080, weight: {next}}}"),
        );
        let draft = file.with_extension("draft");
        fs::write(&draft, moved).unwrap();
        fs::rename(draft, &file).unwrap();
        share(&mut program, &|rps| rps > f64::from(next) / 10.0);
    }
    until("the canary takes every doughnut", || (0..10).all(|_| doughnut(&addr) == 200).then_some(()));
    assert_eq!(program.interrupt(), Some(0));
}

#[test]
fn services_in_processes_of_their_own_find_each_other_and_end_well() {
    let mut apart = Apart::start("apart");
    assert_eq!(apart.vote().status, 200);
    let shown = get(&apart.metrics, "/metrics");
    assert!(shown.text().contains("emojivoto_votes_total{emoji=\":joy:\"} 1\n"), "{}", shown.text());

    // The bot reaches web by its name, votes, and ends when its time is over.
    let own = [("WEB_HOST", "web-svc.emojivoto:80"), ("REQUEST_RATE", "20"), ("TTL", "2")];
    let own = [&own[..], &mesh(&apart.profiles, &apart.endpoints)].concat();
    let mut bot = Program::start(&["vote-bot"], &own);
    bot.after("✔ Voting for :");
    assert_eq!(bot.child.wait().unwrap().code(), Some(0), "its time is over");

    // A vote in flight is finished before web ends. The first request makes sure that the connection is accepted.
    let mut stream = TcpStream::connect(&apart.addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /api/list HTTP/1.1\r\nhost: {}\r\n\r\n", apart.addr).unwrap();
    stream.read_exact(&mut [0; 512]).unwrap();
    write!(stream, "GET /api/vote?choice=:ghost: HTTP/1.1\r\nhost: {}\r\n\r\n", apart.addr).unwrap();
    thread::sleep(DELAY.0 / 3);
    assert_eq!(apart.web.interrupt(), Some(0));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains("HTTP/1.1 200 OK"), "the vote in flight was broken off: {rest}");
}

fn endpoints_document(service: &str, port: &str) -> String {
    format!(
        "apiVersion: enmesh.dev/v1\nkind: Endpoints\nmetadata:\n  name: {service}\nspec:\n  endpoints:\n  \
         - address: 127.0.0.1:{port}\n"
    )
}

fn voting_document(timeout: Option<&str>) -> String {
    let timeout = timeout.map(|timeout| format!("\n    timeout: {timeout}")).unwrap_or_default();
    format!(
        "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata:\n  \
         name: voting-svc.emojivoto.svc.cluster.local\n  namespace: emojivoto\nspec:\n  routes:\n  - name: Vote\n    \
         condition:\n      pathRegex: /emojivoto\\.v1\\.VotingService/Vote.*{timeout}\n"
    )
}

fn fails(args: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_emojivoto"));
    let Output { status, stderr, .. } =
        command.args(args).envs(environment.iter().copied()).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_busy_port_is_named_with_what_to_do() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    let (code, fault) = fails(&["--port", &port.to_string()], &[]);
    assert_eq!(code, Some(1));
    let told = format!("emojivoto: port {port} is in use by another program: choose another with `--port ");
    assert!(fault.starts_with(&told), "{fault}");
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let check = |args: &[&str], environment: &[(&str, &str)], code: i32, part: &str| {
        let (ended, fault) = fails(args, environment);
        assert_eq!(ended, Some(code), "{fault}");
        assert!(fault.contains(part) && fault.lines().count() == 1, "{fault}");
    };
    check(&["web"], &[], 1, "WEB_PORT is not set: set it, for example WEB_PORT=8080");
    check(&["emoji"], &[("GRPC_PORT", "http")], 1, "GRPC_PORT=http cannot be used: write a port");
    check(&["voting"], &[("GRPC_PORT", "0"), ("FAILURE_RATE", "7")], 1, "FAILURE_RATE=7");
    check(&["vote-bot"], &[], 1, "WEB_HOST is not set");
    check(&["--profiles", "/nowhere"], &[], 1, "`--profiles /nowhere` is no directory");
    check(&["--frob"], &[], 2, "`--frob` is not understood");
}

#[test]
fn the_shipped_profiles_are_all_there() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
    for name in ["web.yaml", "emoji.yaml", "voting.yaml"] {
        assert!(dir.join(name).is_file(), "{name}");
    }
}
