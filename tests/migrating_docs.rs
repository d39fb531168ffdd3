//! `docs/migrating/from-linkerd.md`: its documents load, and its commands say what it says.
#![cfg(feature = "cli")]

use enmesh::profile::import::cluster::ImportSettings;
use enmesh::profile::import::load::load_text;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn guide() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/migrating/from-linkerd.md");
    std::fs::read_to_string(path).unwrap()
}

fn blocks<'a>(guide: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    guide.split(opening.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn enmesh(folder: &Folder, args: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_enmesh")).args(args).current_dir(&folder.0).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

#[test]
fn every_document_of_the_guide_loads_without_a_fault() {
    let guide = guide();
    let documents = blocks(&guide, "yaml");
    assert_eq!(documents.len(), 3);
    for text in documents {
        let imported = load_text(text, "guide", &ImportSettings::default());
        let faults: Vec<_> = imported.notes.iter().flat_map(|notes| &notes.faults).collect();
        assert!(faults.is_empty(), "{text}\n{faults:?}");
    }
}

#[test]
fn its_commands_say_what_it_says() {
    let guide = guide();
    let folder = Folder(std::env::temp_dir().join(format!("enmesh-migrating-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).unwrap();
    std::fs::write(folder.0.join("linkerd.yaml"), blocks(&guide, "yaml")[0]).unwrap();
    std::fs::write(folder.0.join("requests.jsonl"), blocks(&guide, "json")[0]).unwrap();
    let commands: Vec<&str> =
        blocks(&guide, "console")[0].lines().filter_map(|line| line.strip_prefix("$ enmesh ")).collect();
    let ran: Vec<_> =
        commands.iter().map(|line| enmesh(&folder, &line.split(' ').collect::<Vec<_>>())).collect();
    assert_eq!((ran[0].0, ran[0].2.as_str()), (0, ""), "`check` has nothing to say");
    let answers: Vec<Value> = ran[1].1.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&answers[0]["route"], &answers[0]["timeouts"]["request"]),
        (&"GET /api/list".into(), &"1s".into())
    );
    assert_eq!(answers[1]["route"], "VoteDoughnut");
    let shares = |index: usize| {
        let backend = &answers[1]["backends"][index];
        (backend["service"].as_str().unwrap().to_owned(), backend["share"].as_f64().unwrap())
    };
    assert_eq!([shares(0), shares(1)], [("voting-svc".to_owned(), 0.9), ("voting-v2-svc".to_owned(), 0.1)]);
    let (status, converted, _) = enmesh(&folder, &["convert", "linkerd.yaml"]);
    assert_eq!(status, 0);
    std::fs::write(folder.0.join("enmesh.yaml"), converted).unwrap();
    assert_eq!(enmesh(&folder, &["check", "enmesh.yaml"]).0, 0);
}
