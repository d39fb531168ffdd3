//! How long it takes to find a request's route, and how that grows with the number of routes.
//!
//! `cargo bench --bench route` prints ns per find for each set of routes at 10, 100, 1,000 and 10,000 routes, beside
//! two baselines in the same run: the same conditions tried one after the other, and `matchit` (the radix router of
//! axum) on the same paths, which decides by path alone. `-- --instructions` counts instructions under valgrind
//! instead; `-- --smoke` runs everything once, in less than two seconds.

#![expect(clippy::disallowed_methods, reason = "a bench measures the real clock")]

use enmesh::profile::matching::{
    Condition, GrpcMatch, HostMatch, KeyMatch, PathKind, PathMatch, TextMatch, ValueMatch,
};
use enmesh::route::head::RequestHead;
use enmesh::route::matcher::Matcher;
use http::{HeaderName, HeaderValue, Method, Request};
use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

/// A set of routes: its name, what route `n` of them is, a request for route `n`, and the path as matchit writes it.
struct Set {
    name: &'static str,
    condition: fn(usize) -> Condition,
    request: fn(usize) -> Request<()>,
    matchit: Option<fn(usize) -> String>,
}

fn path(kind: PathKind, text: String) -> Condition {
    Condition::Path(PathMatch::new(kind, text))
}

fn get(uri: String) -> Request<()> {
    Request::get(uri).header("user-agent", "bench").header("accept", "*/*").body(()).expect("a request")
}

fn with(mut request: Request<()>, name: String, value: &str) -> Request<()> {
    let name = HeaderName::try_from(name).expect("a name");
    request.headers_mut().insert(name, HeaderValue::from_str(value).expect("a value"));
    request
}

fn header(name: String, value: String) -> KeyMatch {
    KeyMatch::new(name, ValueMatch::Text(TextMatch::Exact(value.into())))
}

const SETS: [Set; 9] = [
    Set {
        name: "method + exact path",
        condition: |n| {
            Condition::All(vec![
                Condition::Method(vec![Method::GET]),
                path(PathKind::Exact, format!("/api/r{n}/list")),
            ])
        },
        request: |n| get(format!("/api/r{n}/list")),
        matchit: Some(|n| format!("/api/r{n}/list")),
    },
    Set {
        name: "gRPC service + method",
        condition: |n| {
            Condition::Grpc(GrpcMatch {
                service: Some(TextMatch::Exact("emojivoto.v1.VotingService".into())),
                method: Some(TextMatch::Exact(format!("Vote{n}").into())),
            })
        },
        request: |n| {
            Request::post(format!("http://voting/emojivoto.v1.VotingService/Vote{n}"))
                .body(())
                .expect("a request")
        },
        matchit: Some(|n| format!("/emojivoto.v1.VotingService/Vote{n}")),
    },
    Set {
        name: "path prefix",
        condition: |n| path(PathKind::PrefixElement, format!("/api/r{n}")),
        request: |n| get(format!("/api/r{n}/list")),
        matchit: Some(|n| format!("/api/r{n}/{{*rest}}")),
    },
    Set {
        name: "path regex",
        condition: |n| path(PathKind::Regex, format!("/api/r{n}/[^/]*")),
        request: |n| get(format!("/api/r{n}/list")),
        matchit: Some(|n| format!("/api/r{n}/{{id}}")),
    },
    Set {
        name: "method + exact, prefix or regex",
        condition: |n| {
            let path = match n % 3 {
                0 => path(PathKind::Exact, format!("/api/r{n}/list")),
                1 => path(PathKind::PrefixElement, format!("/api/r{n}")),
                _ => path(PathKind::Regex, format!("/api/r{n}/[^/]*")),
            };
            Condition::All(vec![Condition::Method(vec![Method::GET]), path])
        },
        request: |n| get(format!("/api/r{n}/list")),
        matchit: None,
    },
    Set {
        name: "host + prefix /",
        condition: |n| {
            Condition::All(vec![
                Condition::Host(vec![HostMatch::Exact(format!("r{n}.example.com").into())]),
                path(PathKind::PrefixElement, "/".into()),
            ])
        },
        request: |n| get(format!("http://r{n}.example.com:8080/api/list")),
        matchit: None,
    },
    Set {
        name: "one path, header value",
        condition: |n| {
            Condition::All(vec![
                path(PathKind::PrefixElement, "/api".into()),
                Condition::Header(header("x-tenant".into(), format!("t{n}"))),
            ])
        },
        request: |n| with(get("/api/list".into()), "x-tenant".into(), &format!("t{n}")),
        matchit: None,
    },
    Set {
        name: "worst: all regexes match",
        condition: |n| {
            Condition::All(vec![
                path(PathKind::Regex, format!("/api/[^/]*(?:/x{n})?")),
                Condition::Header(KeyMatch { invert: true, ..header("x-off".into(), format!("{n}")) }),
                Condition::Header(header(format!("x-{n}"), "1".into())),
            ])
        },
        request: |n| with(get("/api/list".into()), format!("x-{n}"), "1"),
        matchit: None,
    },
    Set {
        name: "worst: nothing to look up",
        condition: |n| Condition::Header(KeyMatch::new(format!("x-{n}"), ValueMatch::Integer(0..=5))),
        request: |n| with(get("/api/list".into()), format!("x-{n}"), "1"),
        matchit: None,
    },
];

fn conditions(set: &Set, routes: usize) -> Vec<Condition> {
    (0..routes).map(set.condition).collect()
}

/// Requests for the last route, the first, one in the middle, and some between.
fn requests(set: &Set, routes: usize) -> Vec<(usize, Request<()>)> {
    let spread =
        [routes - 1, 0, routes / 2, routes / 3, routes * 2 / 3, routes / 7, routes * 6 / 7, routes - 1];
    spread.map(|n| (n, (set.request)(n))).into()
}

/// The least ns per call over `batches` batches of `calls`.
fn least_ns(batches: usize, calls: usize, mut call: impl FnMut(usize)) -> f64 {
    let batch = |_| {
        let begin = Instant::now();
        (0..calls).for_each(&mut call);
        begin.elapsed().as_nanos() as f64 / calls as f64
    };
    (0..batches).map(batch).fold(f64::MAX, f64::min)
}

fn time(smoke: bool) {
    println!(
        "ns per find, least of many batches; `linear` tries the same conditions in order, `matchit` knows paths only"
    );
    println!(
        "{:34}{:>8}{:>10}{:>10}{:>10}{:>10}{:>12}",
        "", "routes", "enmesh", "linear", "matchit", "/10 routes", "compile ms"
    );
    for set in &SETS {
        let mut at_ten = None;
        for routes in SIZES.into_iter().filter(|routes| !smoke || *routes <= 100) {
            let conditions = conditions(set, routes);
            let begin = Instant::now();
            let matcher = Matcher::compile(&conditions).expect("conditions without faults");
            let compile = begin.elapsed();
            let requests = requests(set, routes);
            let heads: Vec<_> = requests.iter().map(|(_, request)| request).collect();
            for (n, request) in &requests {
                assert_eq!(matcher.find(&RequestHead::of_request(request)), Some(*n), "{}", set.name);
            }
            let calls = |each: usize| if smoke { 8 } else { (20_000 / each).max(8) };
            let batches = if smoke { 1 } else { 50 };
            let worst = if set.name.starts_with("worst") { routes } else { 1 };
            let ours = least_ns(batches, calls(worst), |i| {
                black_box(matcher.find(&RequestHead::of_request(black_box(heads[i % 8]))));
            });
            let linear = least_ns(batches.min(10), calls(routes), |i| {
                black_box(matcher.find_in_order(&RequestHead::of_request(black_box(heads[i % 8]))));
            });
            let matchit = set.matchit.map_or(f64::NAN, |path| {
                let mut router = matchit::Router::new();
                (0..routes).for_each(|n| router.insert(path(n), n).expect("a path"));
                least_ns(batches, calls(1), |i| {
                    black_box(router.at(black_box(heads[i % 8]).uri().path()).ok());
                })
            });
            let at_ten = *at_ten.get_or_insert(ours);
            println!(
                "{:34}{routes:>8}{ours:>10.0}{linear:>10.0}{matchit:>10.0}{:>9.2}x{:>12.1}",
                set.name,
                ours / at_ten,
                compile.as_secs_f64() * 1e3
            );
        }
    }
}

/// Finds `count` times; the parent counts the instructions of two counts and subtracts.
fn run(what: &str, set: usize, routes: usize, count: usize) {
    let set = &SETS[set];
    let matcher = Matcher::compile(&conditions(set, routes)).expect("conditions without faults");
    let requests = requests(set, routes);
    let mut router = matchit::Router::new();
    if let Some(path) = set.matchit.filter(|_| what == "matchit") {
        (0..routes).for_each(|n| router.insert(path(n), n).expect("a path"));
    }
    for i in 0..count {
        let request = black_box(&requests[i % 8].1);
        match what {
            "enmesh" => drop(black_box(matcher.find(&RequestHead::of_request(request)))),
            "linear" => drop(black_box(matcher.find_in_order(&RequestHead::of_request(request)))),
            _ => drop(black_box(router.at(request.uri().path()).ok())),
        }
    }
}

fn instructions_of(what: &str, set: usize, routes: usize) -> Option<f64> {
    let total = |count: usize| {
        let me = std::env::current_exe().ok()?;
        let arguments = ["--run".into(), what.into(), set.to_string(), routes.to_string(), count.to_string()];
        let output = Command::new("valgrind")
            .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
            .arg(me)
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = text.lines().find(|line| line.contains("I refs") || line.contains("I   refs"))?;
        line.rsplit(':').next()?.trim().replace(',', "").parse::<f64>().ok()
    };
    let calls = 4_000.min(4_000_000 / routes).max(80);
    Some((total(2 * calls)? - total(calls)?) / calls as f64)
}

fn instructions() {
    println!("instructions per find (cachegrind, the difference of two runs)");
    println!("{:34}{:>8}{:>10}{:>10}{:>12}", "", "routes", "enmesh", "matchit", "/10 routes");
    for (index, set) in SETS.iter().enumerate() {
        let mut at_ten = None;
        for routes in SIZES.into_iter().filter(|routes| *routes <= 1_000 || !set.name.starts_with("worst")) {
            let Some(ours) = instructions_of("enmesh", index, routes) else {
                println!("valgrind is not here: nothing counted");
                return;
            };
            let matchit =
                set.matchit.and_then(|_| instructions_of("matchit", index, routes)).unwrap_or(f64::NAN);
            let at_ten = *at_ten.get_or_insert(ours);
            println!("{:34}{routes:>8}{ours:>10.0}{matchit:>10.0}{:>11.2}x", set.name, ours / at_ten);
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--run", what, set, routes, count] => {
            let number = |text: &str| text.parse().expect("a number");
            run(what, number(set), number(routes), number(count));
        }
        ["--instructions"] => instructions(),
        ["--smoke"] => time(true),
        _ => time(false),
    }
}
