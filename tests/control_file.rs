//! The watched directory against everything that happens to real directories (reliability.md F-37 to F-40;
//! security-cases `cfg/*`, `cp/endpoint-ssrf`).
#![cfg(feature = "files")]

use enmesh::control::disk::{ALL_BYTES_MAX, ENTRIES_MAX, FILE_BYTES_MAX};
use enmesh::control::documents::Parsed;
use enmesh::control::file::Files;
use enmesh::control::scan::{Directory, SETTLE, Scanner, Settings};
use enmesh::control::screen::Screen;
use enmesh::control::source::{Rejections, Source, Updates};
use enmesh::discover::endpoint::{Endpoint, EndpointSet};
use enmesh::profile::invalid::{Fault, Invalid};
use enmesh::profile::name::ServiceName;
use enmesh::profile::service::ServiceProfile;
use enmesh::stdx::clock::{self, Duration, Instant};
use futures::StreamExt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A directory that is removed in the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("enmesh-files-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes in place, as an editor or a shell does.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    fn write_long_ago(&self, name: &str, text: &str) {
        self.write(name, text);
        let file = fs::File::options().write(true).open(self.at(name)).unwrap();
        file.set_modified(clock::wall() - Duration::from_secs(60)).unwrap();
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Lines `profile NAME GENERATION` and `endpoint NAME ADDRESS`; anything else is a fault.
fn parse(_: &str, text: &str) -> Result<Parsed, Invalid> {
    let mut parsed = Parsed::default();
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["profile", name, generation] => {
                let mut profile = ServiceProfile::new(name.parse().unwrap());
                profile.origin = generation.into();
                parsed.profiles.push(Arc::new(profile));
            }
            ["endpoint", name, address] => {
                let endpoint = Endpoint::new(address.parse().unwrap());
                parsed.endpoints.push((name.parse().unwrap(), EndpointSet::new([endpoint])));
            }
            _ => return Err(Fault::rejected("line", format!("is `{line}`"), "write a profile").into()),
        }
    }
    Ok(parsed)
}

/// A scanner and a clock that moves only here.
struct Eye {
    scanner: Scanner,
    rejections: Rejections,
    now: Instant,
}

impl Eye {
    fn new(path: impl Into<PathBuf>) -> Self {
        Self::screened(path, Screen::default())
    }

    fn screened(path: impl Into<PathBuf>, screen: Screen) -> Self {
        let rejections = Rejections::default();
        let (path, cluster_domain) = (path.into(), "cluster.local".into());
        let settings = Settings { path, parse: Arc::new(parse), screen, cluster_domain, home: None };
        let scanner = Scanner::new(settings, rejections.clone());
        Self { scanner, rejections, now: clock::now() }
    }

    /// Looks after `wait`.
    fn look(&mut self, wait: Duration) -> (Arc<Directory>, bool) {
        self.now += wait;
        self.scanner.look(self.now, clock::wall())
    }

    /// Looks until all has settled.
    fn settled(&mut self) -> Arc<Directory> {
        let _ = self.look(SETTLE);
        self.look(SETTLE).0
    }

    /// Looks; expects this generation of `web`, these many faults, and these many inputs refused in all.
    #[track_caller]
    fn expect(&mut self, generation: Option<&str>, faults: &[&str], rejected: u64) {
        let seen = self.settled();
        assert_eq!(web(&seen).as_deref(), generation, "{seen:?}");
        assert_eq!(seen.faults.len(), faults.len(), "{:?}", seen.faults);
        for (fault, expected) in seen.faults.iter().zip(faults) {
            assert!(fault.to_string().contains(expected), "`{fault}` lacks `{expected}`");
        }
        assert_eq!(self.rejections.total(), rejected);
    }
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn web(directory: &Directory) -> Option<String> {
    directory.profiles.get(&name("web")).map(|profile| profile.origin.to_string())
}

#[test]
fn a_file_is_read_once_it_is_left_alone() {
    let dir = Dir::new();
    let mut eye = Eye::new(&dir.0);
    dir.write("web.yaml", "profile web 1");
    assert!(eye.look(Duration::ZERO).1, "it is worth looking again soon");
    let (seen, again) = eye.look(SETTLE);
    assert_eq!((web(&seen).as_deref(), again), (Some("1"), false));
    assert!(Arc::ptr_eq(&seen, &eye.look(SETTLE).0), "nothing changed");
}

#[test]
fn a_file_that_is_old_already_is_read_at_once() {
    let dir = Dir::new();
    dir.write_long_ago("web.json", "profile web 1");
    let (seen, again) = Eye::new(&dir.0).look(Duration::ZERO);
    assert_eq!((web(&seen).as_deref(), again), (Some("1"), false));
}

#[test]
fn half_a_document_is_never_read() {
    let dir = Dir::new();
    let mut eye = Eye::new(&dir.0);
    dir.write("a.yaml", "profile web 1");
    eye.expect(Some("1"), &[], 0);
    let text = "profile web 23456789\nprofile emoji 1";
    for end in 1..=text.len() {
        dir.write("a.yaml", &text[..end]);
        let (seen, again) = eye.look(SETTLE / 2);
        assert_eq!((web(&seen).as_deref(), again), (Some("1"), true), "after {end} bytes");
    }
    eye.expect(Some("23456789"), &[], 0);
}

#[test]
fn what_cannot_be_understood_keeps_the_last_good_and_is_counted_once() {
    let dir = Dir::new();
    let mut eye = Eye::new(&dir.0);
    dir.write("a.yaml", "profile web 1");
    eye.expect(Some("1"), &[], 0);
    dir.write("a.yaml", "garbage");
    eye.expect(Some("1"), &["a.yaml: line: is `garbage`"], 1);
    eye.expect(Some("1"), &["a.yaml: line: is `garbage`"], 1);
    dir.write("a.yaml", "");
    eye.expect(Some("1"), &["holds no document"], 2);
    fs::write(dir.at("a.yaml"), b"profile web \xff").unwrap();
    eye.expect(Some("1"), &["is not UTF-8 at byte 12"], 3);
    dir.write("a.yaml", "profile web 2");
    eye.expect(Some("2"), &[], 3);
    dir.write("new.yaml", "never good");
    eye.expect(Some("2"), &["new.yaml: line"], 4);
}

#[test]
fn what_is_no_regular_file_neither_blocks_nor_is_followed() {
    let dir = Dir::new();
    let outside = Dir::new();
    outside.write("secret.yaml", "profile web 666");
    let mut eye = Eye::new(&dir.0);
    let path = dir.at("a.yaml");
    dir.write("a.yaml", "profile web 1");
    eye.expect(Some("1"), &[], 0);
    let mut rejected = 0;
    type Act<'a> = &'a dyn Fn(&Path);
    let acts: [(Act<'_>, &str); 6] = [
        (&|p| assert!(Command::new("mkfifo").arg(p).status().unwrap().success()), "not a regular file"),
        (&|p| fs::create_dir(p).unwrap(), "not a regular file"),
        (&|p| symlink("/dev/zero", p).unwrap(), "out of the directory"),
        (&|p| symlink(outside.at("secret.yaml"), p).unwrap(), "out of the directory"),
        (&|p| symlink(p, p).unwrap(), "cannot be read"),
        (&|p| symlink("nowhere", p).unwrap(), "cannot be read"),
    ];
    for (act, expected) in acts {
        fs::rename(&path, dir.at("kept")).unwrap();
        act(&path);
        rejected += 1;
        eye.expect(Some("1"), &[expected], rejected);
        if path.symlink_metadata().unwrap().is_dir() {
            fs::remove_dir(&path).unwrap();
        }
        fs::rename(dir.at("kept"), &path).unwrap();
        eye.expect(Some("1"), &[], rejected);
    }
    fs::rename(&path, dir.at("real")).unwrap();
    symlink("real", &path).unwrap();
    eye.expect(Some("1"), &[], rejected);
}

#[test]
fn permission_lost_keeps_the_last_good() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new();
    let mut eye = Eye::new(&dir.0);
    dir.write("a.yaml", "profile web 1");
    eye.expect(Some("1"), &[], 0);
    dir.write("a.yaml", "profile web 2");
    let allow = |mode| fs::set_permissions(dir.at("a.yaml"), fs::Permissions::from_mode(mode)).unwrap();
    allow(0o000);
    if fs::read(dir.at("a.yaml")).is_ok() {
        eprintln!("nothing is forbidden to root: the link loop in the test beside this one stands for it");
        return eye.expect(Some("2"), &[], 0);
    }
    eye.expect(Some("1"), &["cannot be read"], 1);
    allow(0o600);
    eye.expect(Some("2"), &[], 1);
}

#[test]
fn what_is_too_large_is_refused_unread() {
    let dir = Dir::new();
    let mut eye = Eye::new(&dir.0);
    dir.write("a.yaml", "profile web 1");
    eye.expect(Some("1"), &[], 0);
    let grow = |name: &str, bytes: u64| fs::File::create(dir.at(name)).unwrap().set_len(bytes).unwrap();
    grow("a.yaml", 100 << 20);
    eye.expect(Some("1"), &["it has 104857600 bytes, more than 4194304"], 1);
    dir.write("a.yaml", "profile web 2");
    eye.expect(Some("2"), &[], 1);
    for n in 0..=ALL_BYTES_MAX / FILE_BYTES_MAX {
        grow(&format!("big{n}.yaml"), FILE_BYTES_MAX);
    }
    eye.expect(Some("2"), &["more than 33554432 bytes together"], 2);
    for n in 0..=ALL_BYTES_MAX / FILE_BYTES_MAX {
        fs::remove_file(dir.at(&format!("big{n}.yaml"))).unwrap();
    }
    eye.expect(Some("2"), &[], 2);
    for n in 0..=ENTRIES_MAX {
        fs::write(dir.at(&format!("{n}.txt")), "").unwrap();
    }
    dir.write("a.yaml", "profile web 3");
    eye.expect(Some("2"), &["more than 4000 entries"], 3);
}

#[test]
fn a_removed_file_is_a_deletion_once_it_stays_away() {
    let dir = Dir::new();
    let mut eye = Eye::new(&dir.0);
    dir.write("a.yaml", "profile web 1");
    dir.write("b.yaml", "profile emoji 1");
    eye.expect(Some("1"), &[], 0);
    fs::rename(dir.at("a.yaml"), dir.at("a.yaml~")).unwrap();
    let (seen, again) = eye.look(SETTLE);
    assert_eq!((web(&seen).as_deref(), again), (Some("1"), true));
    fs::rename(dir.at("a.yaml~"), dir.at("a.yaml")).unwrap();
    eye.expect(Some("1"), &[], 0);
    fs::remove_file(dir.at("a.yaml")).unwrap();
    eye.expect(None, &[], 0);
    fs::remove_file(dir.at("b.yaml")).unwrap();
    assert_eq!(*eye.settled(), Directory::default());
}

#[test]
fn a_directory_that_is_gone_or_emptied_by_a_swap_deletes_nothing() {
    let dir = Dir::new();
    let path = dir.at("config");
    let mut eye = Eye::new(&path);
    eye.expect(None, &["cannot be read"], 1);
    fs::create_dir(&path).unwrap();
    dir.write("config/a.yaml", "profile web 1");
    eye.expect(Some("1"), &[], 1);
    fs::rename(&path, dir.at("away")).unwrap();
    eye.expect(Some("1"), &["config: cannot be read"], 2);
    fs::create_dir(&path).unwrap();
    eye.expect(Some("1"), &["replaced by a directory without a document"], 3);
    dir.write("config/b.yaml", "profile emoji 1");
    eye.expect(None, &[], 3);
    fs::remove_dir_all(&path).unwrap();
    fs::rename(dir.at("away"), &path).unwrap();
    eye.expect(Some("1"), &[], 3);
    fs::remove_dir_all(&path).unwrap();
    dir.write("config", "profile web 2");
    eye.expect(Some("1"), &["config: cannot be read"], 4);
}

#[test]
fn a_change_that_leaves_no_trace_in_size_and_time_is_seen() {
    let dir = Dir::new();
    let mut eye = Eye::new(&dir.0);
    let stamp = clock::wall() - SETTLE;
    let write = |text: &str| {
        dir.write("a.yaml", text);
        fs::File::options().write(true).open(dir.at("a.yaml")).unwrap().set_modified(stamp).unwrap();
    };
    write("profile web 1");
    eye.expect(Some("1"), &[], 0);
    write("profile web 2");
    eye.expect(Some("2"), &[], 0);
}

#[test]
fn of_two_documents_about_one_service_the_first_file_s_is_used() {
    let dir = Dir::new();
    let mut eye = Eye::new(&dir.0);
    dir.write("b.yaml", "profile web 2\nendpoint web 10.0.0.2:80");
    eye.expect(Some("2"), &[], 0);
    dir.write("a.yaml", "profile web 1");
    eye.expect(Some("1"), &["b.yaml: says what an earlier document already says of web"], 0);
    fs::remove_file(dir.at("a.yaml")).unwrap();
    eye.expect(Some("2"), &[], 0);
}

#[test]
fn endpoints_that_nobody_can_stand_at_are_refused() {
    let dir = Dir::new();
    dir.write(
        "a.yaml",
        "profile web 1\nendpoint a 0.0.0.0:80\nendpoint b 10.0.0.1:80\nendpoint c 127.0.0.1:22",
    );
    let mut eye = Eye::screened(&dir.0, Screen::only(|ip| !ip.is_loopback()));
    eye.expect(
        Some("1"),
        &["endpoints of a: 0.0.0.0:80 is refused", "endpoints of c: 127.0.0.1:22 is refused"],
        2,
    );
    let seen = eye.settled();
    let count = |service: &str| seen.endpoints[&name(service)].len();
    assert_eq!((count("a"), count("b"), count("c")), (0, 1, 0));
}

/// A Kubernetes volume: `a.yaml -> ..data/a.yaml`, `..data -> ..<generation>`.
fn swap(dir: &Path, generation: u32, files: &[&str]) {
    let data = format!("..{generation}");
    fs::create_dir(dir.join(&data)).unwrap();
    for file in files {
        let service = file.trim_end_matches(".yaml");
        fs::write(dir.join(&data).join(file), format!("profile {service} {generation}")).unwrap();
    }
    let _ = fs::remove_file(dir.join("..data_tmp"));
    symlink(&data, dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    if generation > 0 {
        let _ = fs::remove_dir_all(dir.join(format!("..{}", generation - 1)));
    }
}

const SERVICES: [&str; 3] = ["a.yaml", "m.yaml", "web.yaml"];

#[test]
fn a_volume_s_swap_is_seen_whole_at_the_next_look() {
    let dir = Dir::new();
    swap(&dir.0, 0, &SERVICES);
    for file in SERVICES {
        symlink(format!("..data/{file}"), dir.at(file)).unwrap();
    }
    let mut eye = Eye::new(&dir.0);
    for generation in 1..10 {
        swap(&dir.0, generation, &SERVICES);
        let (seen, again) = eye.look(Duration::ZERO);
        assert_eq!((web(&seen), seen.profiles.len(), again), (Some(generation.to_string()), 3, false));
    }
    swap(&dir.0, 10, &SERVICES[..2]);
    let (seen, again) = eye.look(Duration::ZERO);
    assert_eq!((web(&seen), seen.profiles.len(), again), (None, 2, false), "a key was deleted");
    swap(&dir.0, 11, &[]);
    let (seen, _) = eye.look(Duration::ZERO);
    assert_eq!((seen.profiles.len(), seen.faults.len()), (2, 1), "an empty volume is no wish");
    swap(&dir.0, 12, &SERVICES);
    eye.expect(Some("12"), &[], 1);
}

#[test]
fn a_thousand_racing_swaps_never_show_a_mixed_generation() {
    let dir = Dir::new();
    swap(&dir.0, 0, &SERVICES);
    let done = AtomicBool::new(false);
    let mut eye = Eye::new(&dir.0);
    let (mut looks, mut newest) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (1..=1000).for_each(|generation| swap(&dir.0, generation, &SERVICES));
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let (seen, _) = eye.look(Duration::ZERO);
            let mut of: Vec<u32> = seen.profiles.values().map(|p| p.origin.parse().unwrap()).collect();
            of.dedup();
            assert!(
                of.len() == 1 && seen.profiles.len() == 3 || looks == 0,
                "mixed: {of:?} {:?}",
                seen.faults
            );
            newest = newest.max(of.last().copied().unwrap_or(0));
            looks += 1;
        }
    });
    assert!(looks > 10 && newest > 0, "{looks} looks, newest {newest}");
    eye.now += SETTLE;
    assert_eq!(web(&eye.settled()).as_deref(), Some("1000"));
}

async fn next(updates: &mut Updates<Arc<ServiceProfile>>) -> (Option<String>, usize) {
    let snapshot = updates.next().await.unwrap();
    (snapshot.value.map(|profile| profile.origin.to_string()), snapshot.faults.len())
}

#[tokio::test(start_paused = true)]
async fn an_edit_shows_within_a_second_and_faults_and_repairs_too() {
    let dir = Dir::new();
    dir.write("web.yaml", "profile web 1");
    let files = Files::read_by(&dir.0, parse);
    let mut updates = Source::<Arc<ServiceProfile>>::watch(&files, &name("web:80"));
    assert_eq!(next(&mut updates).await, (Some("1".into()), 0), "known at once");
    for (text, expected) in [
        ("profile web 2", (Some("2"), 0)),
        ("garbage", (Some("2"), 1)),
        ("profile web 3", (Some("3"), 0)),
        ("profile emoji 1", (None, 0)),
    ] {
        let since = clock::now();
        dir.write("web.yaml", text);
        let (value, faults) = next(&mut updates).await;
        assert_eq!((value.as_deref(), faults), expected);
        assert!(clock::now() - since < Duration::from_secs(1), "{text} took {:?}", clock::now() - since);
    }
    assert_eq!(files.rejected(), 1);
}

#[tokio::test(start_paused = true)]
async fn real_documents_are_found_under_every_spelling_of_their_service() {
    let dir = Dir::new();
    let head = |kind: &str| {
        format!("apiVersion: enmesh.dev/v1\nkind: {kind}\nmetadata: {{name: web.ns.svc.mesh.test}}")
    };
    dir.write("a.yaml", &format!("{}\nspec: {{}}\n", head("ServiceProfile")));
    dir.write(
        "b.yaml",
        &format!("{}\nspec: {{endpoints: [{{address: '10.0.0.1:80'}}]}}\n", head("Endpoints")),
    );
    let files = Files::new(&dir.0).cluster_domain("mesh.test");
    for spelling in ["web.ns", "web.ns:80", "WEB.ns.svc.mesh.test.:80"] {
        let mut profiles = Source::<Arc<ServiceProfile>>::watch(&files, &name(spelling));
        assert!(profiles.next().await.unwrap().value.is_some(), "{spelling}");
        let mut endpoints = Source::<EndpointSet>::watch(&files, &name(spelling));
        assert_eq!(endpoints.next().await.unwrap().value.map(|set| set.len()), Some(1), "{spelling}");
    }
}

#[tokio::test(start_paused = true)]
async fn all_watchers_share_one_look() {
    let dir = Dir::new();
    dir.write("web.yaml", "profile web 1\nendpoint web 10.0.0.1:80");
    let parsed = Arc::new(AtomicUsize::new(0));
    let files = Files::read_by(&dir.0, {
        let parsed = Arc::clone(&parsed);
        move |name: &str, text: &str| {
            parsed.fetch_add(1, Ordering::SeqCst);
            parse(name, text)
        }
    });
    let mut profiles: Vec<Updates<Arc<ServiceProfile>>> =
        (0..50).map(|_| files.watch(&name("web"))).collect();
    let mut endpoints: Updates<EndpointSet> = files.watch(&name("web:80"));
    drop(profiles.pop());
    for updates in &mut profiles {
        assert_eq!(next(updates).await, (Some("1".into()), 0));
    }
    assert_eq!(endpoints.next().await.unwrap().value.map(|set| set.len()), Some(1));
    assert_eq!(parsed.load(Ordering::SeqCst), 1);
    let mut other: Updates<EndpointSet> = files.watch(&name("other"));
    assert_eq!(other.next().await.unwrap().value, None);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_hangs_is_told_and_its_end_taken_up() {
    let dir = Dir::new();
    dir.write_long_ago("web.yaml", "profile web 1");
    let (release, hang) = std::sync::mpsc::channel::<()>();
    let hang = std::sync::Mutex::new(hang);
    let entered = Arc::new(AtomicBool::new(false));
    let enter = Arc::clone(&entered);
    let files = Files::read_by(&dir.0, move |name: &str, text: &str| {
        enter.store(true, Ordering::SeqCst);
        let _ = hang.lock().unwrap().recv();
        parse(name, text)
    });
    let mut updates = Source::<Arc<ServiceProfile>>::watch(&files, &name("web"));
    let told = tokio::join!(next(&mut updates), async {
        while !entered.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        // The clock stands still while a blocking thread works: it is pushed.
        for _ in 0..200 {
            tokio::time::advance(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(told.0, (None, 1));
    drop(updates);
    let mut updates = Source::<Arc<ServiceProfile>>::watch(&files, &name("web"));
    assert_eq!(next(&mut updates).await, (None, 1), "the last state is still known");
    release.send(()).unwrap();
    assert_eq!(next(&mut updates).await, (Some("1".into()), 0));
    assert_eq!(files.rejected(), 1);
}
