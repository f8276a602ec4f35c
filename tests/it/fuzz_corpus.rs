//! The inputs that the fuzz targets keep, replayed with the ordinary tests.

use std::path::Path;

#[path = "../../fuzz/properties.rs"]
mod properties;

fn replay(target: &str, property: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut inputs: Vec<_> = std::fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "the corpus of {target} is not there");
    for input in inputs {
        let data = std::fs::read(&input).unwrap();
        let held = std::panic::catch_unwind(|| property(&data));
        assert!(held.is_ok(), "{}", input.display());
    }
}

#[test]
fn specs_of_the_corpus_hold_the_property() {
    replay("spec", properties::spec);
}

#[test]
fn renders_of_the_corpus_hold_the_property() {
    replay("render", properties::render);
}
