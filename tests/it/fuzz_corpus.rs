//! The inputs that the fuzz targets keep, replayed with the ordinary tests.

use std::{collections::BTreeSet, fs, path::Path};

use properties::Verdict;

#[path = "../../fuzz/properties.rs"]
mod properties;

/// All inputs of a target hold its property; at least one goes all the way, and at least one is refused: else the corpus, and what is made
/// of it, would search only the first lines.
fn replay(target: &str, property: fn(&[u8]) -> Verdict) {
    let corpus = fuzz().join("corpus").join(target);
    let mut inputs: Vec<_> = fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "the corpus of {target} is not there");
    let mut verdicts = BTreeSet::new();
    for input in inputs {
        let data = fs::read(&input).unwrap();
        match std::panic::catch_unwind(|| property(&data)) {
            Ok(verdict) => verdicts.insert(verdict),
            Err(_) => panic!("{}", input.display()),
        };
    }
    let both = BTreeSet::from([Verdict::Accepted, Verdict::Refused]);
    assert_eq!(verdicts, both, "of {target}");
}

fn fuzz() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}

#[test]
fn specs_of_the_corpus_hold_the_property() {
    replay("spec", properties::spec);
}

#[test]
fn renders_of_the_corpus_hold_the_property() {
    replay("render", properties::render);
}

#[test]
fn publishes_of_the_corpus_hold_the_property() {
    replay("csi_publish", properties::csi_publish);
}

#[test]
fn tokens_of_the_corpus_hold_the_property() {
    replay("token", properties::token);
}

#[test]
fn mounts_of_the_corpus_hold_the_property() {
    replay("mountinfo", properties::mountinfo);
}

#[test]
fn store_files_of_the_corpus_hold_the_property() {
    replay("store_header", properties::store_header);
}

#[test]
fn http_of_the_corpus_holds_the_property() {
    replay("admin_http", properties::admin_http);
}

#[test]
fn each_target_has_a_program_a_corpus_a_dictionary_and_a_line() {
    let names = |dir: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz().join(dir)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect()
    };
    let targets = names("fuzz_targets");
    assert_eq!(
        (names("corpus"), names("dict")),
        (targets.clone(), targets.clone())
    );
    let script = fs::read_to_string(fuzz().join("../tests/fuzz.sh")).unwrap();
    let line = script
        .lines()
        .find_map(|line| line.strip_prefix("targets="));
    let run: BTreeSet<String> = line
        .unwrap()
        .trim_matches('"')
        .split(' ')
        .map(str::to_owned)
        .collect();
    assert_eq!(run, targets);
}
