//! Holds every file of `src/` to its floor, so that the house has no cycles (docs/adr/0001-floors-and-lints.md).
//!
//! The first line of a file says its floor; it uses files of lower floors, and of its own floor and room.
//! Tests inside a file (`#[cfg(test)] mod tests`, which stands last) may look anywhere and are not counted;
//! `mod.rs` re-exports from any floor of its own room and need not say one; `bin/` is the door and may use everything.

use std::collections::BTreeMap;
use std::path::Path;

const LINES_MAX: usize = 500;
const CLOCK: &str = "stdx/clock.rs";
/// Words that a floor up to the given one may not use.
const BANNED: &[(u8, &[&str], &str)] = &[
    (
        3,
        &[
            "tokio",
            "async",
            "await",
            "tower",
            "tower_service",
            "tower_layer",
            "hyper",
            "tracing",
            "metrics::",
        ],
        "decide here, act in a layer (floor 4)",
    ),
    (3, &["metrics::"], "only the room `metrics/` holds handles: count there"),
    (3, &["Instant::now", "SystemTime::now", "clock::", "elapsed"], "take `now` as an argument"),
    (
        4,
        &["tokio::net", "tokio::spawn", "spawn", "hyper", "rustls", "std::fs"],
        "sockets, tasks and files live on floor 5",
    ),
];
/// The rooms of floor 6, from the bottom: the mesh starts the admin server, the simulator runs the mesh.
const ASSEMBLY: &[&str] = &["admin", "mesh", "sim"];
const LOGIC: &[&str] = &["fn", "impl", "trait", "enum", "static", "const", "macro_rules"];

struct File<'a> {
    path: &'a str,
    floor: u8,
    code: Vec<(usize, String)>,
    after_tests: bool,
}

impl File<'_> {
    fn room(&self) -> &str {
        self.path.split_once('/').map_or("", |(room, _)| room)
    }
    /// Rooms of floor 6 use those before them in [`ASSEMBLY`].
    fn assembles(&self, target: &str) -> bool {
        let place = |room: &str| ASSEMBLY.iter().position(|r| *r == room);
        let target = target.split_once('/').and_then(|(room, _)| place(room));
        place(self.room()).is_some_and(|own| target.is_some_and(|target| target < own))
    }
    fn is_door(&self) -> bool {
        self.path == "lib.rs" || self.path.ends_with("mod.rs")
    }
}

/// One line without comments and without the insides of its strings.
fn code_of(line: &str) -> String {
    let line = line.replace("'\"'", "' '").replace("\\\"", "");
    let mut code = String::new();
    for (index, part) in line.split('"').enumerate() {
        match part.find("//") {
            _ if index % 2 == 1 => code.push_str("\"\""),
            Some(comment) => return code + &part[..comment],
            None => code.push_str(part),
        }
    }
    code
}

fn is_word(text: &str, at: usize, word: &str) -> bool {
    let ident = |c: char| c.is_alphanumeric() || c == '_';
    let path = text[..at].ends_with("crate::") || text[..at].ends_with("::") && word.ends_with("::");
    !path
        && !text[..at].ends_with(ident)
        && (word.ends_with(':') || !text[at + word.len()..].starts_with(ident))
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| is_word(text, at, word))
}

fn read<'a>(path: &'a str, text: &str) -> Option<File<'a>> {
    let first = text.lines().next()?.strip_prefix("//! ")?;
    let floor = match first.strip_prefix("Floor ").and_then(|rest| rest.split_once(": ")) {
        Some((floor, _)) => floor.parse().ok().filter(|floor| *floor <= 7)?,
        None => path.ends_with("mod.rs").then_some(7)?,
    };
    let lines: Vec<&str> = text.lines().collect();
    let opens = |line: &&str| line.starts_with("mod ") && line.ends_with('{');
    let tests = |at: &usize| {
        let attribute = lines[*at].starts_with("#[cfg(") && lines[*at].contains("test");
        attribute && lines[at + 1..].iter().take(2).any(opens)
    };
    let end = (0..lines.len()).find(tests).unwrap_or(lines.len());
    let after_tests =
        lines[end..].iter().skip_while(|line| **line != "}").skip(1).any(|line| !line.is_empty());
    let code = lines[..end].iter().enumerate().map(|(at, line)| (at + 1, code_of(line))).collect();
    Some(File { path, floor, code, after_tests })
}

/// What `file` may not do on a line, with the remedy.
fn offences_of(file: &File<'_>, line: &str, floors: &BTreeMap<String, u8>) -> Vec<String> {
    let mut found = Vec::new();
    if line.contains("super::") {
        found.push("`super::` hides the floor: write `use crate::room::file::Item`".to_owned());
    }
    if line.contains("#[allow(") || line.contains("#![allow(") {
        found.push("`allow` outlives its cause: write `#[expect(lint, reason = \"…\")]`".to_owned());
    }
    let exempt =
        |word: &str| file.is_door() || file.path == CLOCK || file.room() == "metrics" && word == "metrics::";
    for (_, words, remedy) in BANNED.iter().filter(|(floor, ..)| file.floor <= *floor) {
        for word in words.iter().filter(|word| has_word(line, word) && !exempt(word)) {
            found.push(format!("floor {} may not use `{word}`: {remedy}", file.floor));
        }
    }
    for word in LOGIC.iter().filter(|word| file.is_door() && has_word(line, word)) {
        found.push(format!(
            "`{word}` in a door: only docs, `pub mod` and re-exports stand here; give it a file"
        ));
    }
    for (at, _) in line.match_indices("crate::").filter(|_| !file.path.starts_with("bin/")) {
        let rest = &line[at + "crate::".len()..];
        let names: Vec<&str> = rest
            .split("::")
            .map(|name| name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(""))
            .collect();
        let target =
            (1..=names.len()).rev().find_map(|n| floors.get_key_value(&(names[..n].join("/") + ".rs")));
        let Some((target, floor)) = target else {
            found.push(format!(
                "`crate::{rest}` names no file: write `use crate::room::file::Item`, one `use` a file"
            ));
            continue;
        };
        let same_room = !file.room().is_empty() && target.starts_with(&format!("{}/", file.room()));
        let allowed = match file.path.strip_suffix("mod.rs") {
            Some(_) => same_room,
            None => *floor < file.floor || *floor == file.floor && (same_room || file.assembles(target)),
        };
        if !allowed {
            let way = if *floor > file.floor { "up" } else { "sideways" };
            found.push(format!(
                "floor {} looks {way} to {target} (floor {floor}): move what both need to a lower floor, or let \
                 floor 6 pass it in",
                file.floor
            ));
        }
    }
    found
}

fn check(files: &[(&str, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut house = Vec::new();
    for (path, text) in files {
        match read(path, text) {
            Some(file) => house.push(file),
            None => {
                found.push(format!("src/{path}:1: begin with `//! Floor N: <one clause>.`, N from 0 to 7"))
            }
        }
    }
    let floors = house.iter().filter(|f| !f.is_door()).map(|f| (f.path.to_owned(), f.floor)).collect();
    for file in &house {
        for (number, line) in &file.code {
            let offences = offences_of(file, line, &floors);
            found.extend(offences.into_iter().map(|what| format!("src/{}:{number}: {what}", file.path)));
        }
        if file.code.len() > LINES_MAX {
            found.push(format!(
                "src/{}:{}: over {LINES_MAX} lines without tests: split it",
                file.path,
                file.code.len()
            ));
        }
        if file.after_tests {
            found.push(format!(
                "src/{}:{}: code after the tests: tests stand last",
                file.path,
                file.code.len()
            ));
        }
    }
    found
}

fn collect(dir: &Path, root: &Path, into: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, root, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            into.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn every_file_keeps_to_its_floor() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    files.sort();
    assert!(files.len() > 10, "found only {} files below {}", files.len(), root.display());
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let found = check(&files);
    assert!(found.is_empty(), "{} offences:\n{}", found.len(), found.join("\n"));
}

#[test]
fn each_offence_is_seen_and_nothing_else() {
    let house = |path: &'static str, text: &'static str| {
        let rest = [
            ("error.rs", "//! Floor 0: errors."),
            ("retry/budget.rs", "//! Floor 2: a budget."),
            ("retry/layer.rs", "//! Floor 4: retries."),
            ("balance/layer.rs", "//! Floor 4: picks."),
            ("tls/verify.rs", "//! Floor 5: verifies."),
            ("mesh/stack.rs", "//! Floor 6: stacks."),
        ];
        let files: Vec<_> = rest.into_iter().filter(|(p, _)| *p != path).chain([(path, text)]).collect();
        check(&files)
    };
    let long = "//! Floor 0: x.\n".to_owned() + &"\n".repeat(LINES_MAX);
    for (path, text, expected) in [
        ("a/b.rs", "// hello", "src/a/b.rs:1: begin with"),
        ("a/b.rs", "//! Floor 9: x.", "src/a/b.rs:1: begin with"),
        ("a/b.rs", "//! Floor 1: x.\nuse crate::retry::budget::B;", "src/a/b.rs:2: floor 1 looks up"),
        (
            "a/layer.rs",
            "//! Floor 4: x.\nuse crate::retry::layer::R;",
            "src/a/layer.rs:2: floor 4 looks sideways",
        ),
        (
            "a/b.rs",
            "//! Floor 5: x.\nfn f(x: crate::tls::verify::V) {}",
            "src/a/b.rs:2: floor 5 looks sideways",
        ),
        (
            "admin/server.rs",
            "//! Floor 6: x.\nuse crate::mesh::stack::S;",
            "src/admin/server.rs:2: floor 6 looks sideways",
        ),
        ("a/b.rs", "//! Floor 5: x.\nuse crate::{error::E};", "names no file"),
        ("a/b.rs", "//! Floor 5: x.\nuse crate::retry::Budget;", "names no file"),
        ("a/b.rs", "//! Floor 5: x.\nuse super::c::D;", "`super::` hides"),
        ("a/b.rs", "//! Floor 2: x.\nasync fn f() {}", "may not use `async`"),
        ("a/b.rs", "//! Floor 3: x.\nuse tokio::time;", "may not use `tokio`"),
        ("a/b.rs", "//! Floor 2: x.\nmetrics::counter!();", "may not use `metrics::`"),
        ("a/b.rs", "//! Floor 2: x.\nlet t = Instant::now();", "may not use `Instant::now`"),
        ("a/layer.rs", "//! Floor 4: x.\ntokio::spawn(f);", "src/a/layer.rs:2: floor 4 may not use"),
        ("a/b.rs", "//! Floor 4: x.\n#[allow(dead_code)]", "`allow` outlives"),
        ("a/mod.rs", "//! Floor 1: x.\nfn f() {}", "`fn` in a door"),
        ("a/mod.rs", "//! x.\npub use crate::retry::budget::B;", "looks sideways"),
        ("a/b.rs", "//! Floor 0: x.\n#[cfg(test)]\nmod tests {\n}\nfn f() {}", "code after the tests"),
        ("a/b.rs", long.leak(), "over 500 lines"),
    ] {
        let found = house(path, text);
        assert!(found.iter().any(|f| f.contains(expected)), "{text}: wanted `{expected}`, found {found:?}");
    }
    for (path, text) in [
        ("retry/hedge.rs", "//! Floor 4: x.\nuse crate::retry::layer::R;\nuse crate::error::{A, B};"),
        ("sim/world.rs", "//! Floor 6: x.\nuse crate::mesh::stack::S;"),
        ("retry/mod.rs", "//! Floor 2: x.\npub mod layer;\npub use crate::retry::layer::R;"),
        (
            "a/b.rs",
            "//! Floor 2: x.\n// async, tokio\nlet s = \"tokio // async\"; // super::x\nuse crate::error::E;",
        ),
        ("a/b.rs", "//! Floor 0: x.\n#[cfg(test)]\nmod tests {\n use super::*;\n async fn f() {}\n}\n"),
    ] {
        assert_eq!(house(path, text), Vec::<String>::new(), "{text}");
    }
}
