//! `docs/profile.md` is the reference: its examples load, and it has every field that is read.

use enmesh::discover::parse as endpoints;
use enmesh::profile::object;
use enmesh::profile::parse as profiles;
use std::collections::BTreeSet;
use std::path::Path;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("readable")
}

#[test]
fn every_example_loads_without_a_fault() {
    let reference = read("docs/profile.md");
    let mut examples: Vec<&str> =
        reference.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 2, "{examples:?}");
    let quick_start = read("docs/quick-start.yaml");
    examples.push(&quick_start);
    for example in examples {
        for object in object::read(example, "example") {
            let (good, faults) = if endpoints::is_endpoints(&object) {
                let document = endpoints::endpoints(object);
                (document.endpoints.is_some(), document.faults)
            } else {
                let document = profiles::profile(object);
                (document.profile.is_some(), document.faults)
            };
            assert!(good && faults.is_empty(), "{example}\n{faults:?}");
        }
    }
}

#[test]
fn every_field_and_word_that_is_read_is_described() {
    let reference = read("docs/profile.md");
    let words: BTreeSet<&str> = reference
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .filter(|word| !word.is_empty())
        .collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/profile/read");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| format!("src/profile/read/{}", entry.expect("an entry").file_name().to_string_lossy()))
        .collect();
    files.extend(["src/profile/parse.rs", "src/discover/parse.rs"].map(str::to_owned));
    let mut missing = Vec::new();
    for file in &files {
        let text = read(file);
        // `get("field")`, and `("Word", Value::Of)` of the tables of words.
        for (opening, closing) in [("get(\"", "\")"), ("(\"", "\", ")] {
            for rest in text.split(opening).skip(1) {
                let Some((name, _)) = rest.split_once(closing) else { continue };
                let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
                if is_name && !words.contains(name) {
                    missing.push(format!("{file}: {name}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/profile.md: {missing:#?}");
}
