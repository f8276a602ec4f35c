//! docs/THREAT-MODEL.md claims nothing without naming what holds it, and names nothing that does not exist.

use std::{collections::BTreeSet, fs, path::Path};

/// Columns of tables whose rows are claims.
const HELD_BY: &str = "held by";
/// What a row says that no test holds.
const NO_TEST: &str = "no test";

fn read(path: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

/// What stands between backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Why a name leads to no test; `None`: it does, or is no name of one.
fn missing(name: &str) -> Option<String> {
    if let Some(target) = name.strip_prefix("tests/fuzz.sh ") {
        let there = target == "TARGET" || read(&format!("fuzz/fuzz_targets/{target}.rs")).is_some();
        return (!there).then(|| format!("there is no fuzz target {target}"));
    }
    if name.starts_with("tests/") {
        let there = Path::new(env!("CARGO_MANIFEST_DIR")).join(name).exists();
        return (!there).then(|| format!("there is no {name}"));
    }
    let words = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == ':';
    let (module, test) = name.rsplit_once("::").filter(|_| name.chars().all(words))?;
    let path = module.replace("::", "/");
    let files = match path.strip_prefix("secretfs/") {
        None => [
            format!("tests/it/{path}.rs"),
            format!("tests/it/{path}/mod.rs"),
        ],
        Some(unit) => {
            let unit = unit.trim_end_matches("/tests");
            [format!("src/{unit}.rs"), format!("src/{unit}/tests.rs")]
        }
    };
    let is_test = |text: &str| {
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        lines.iter().enumerate().any(|(at, line)| {
            let line = line.strip_prefix("async ").unwrap_or(line);
            let rest = line
                .strip_prefix("fn ")
                .and_then(|line| line.strip_prefix(test));
            rest.is_some_and(|rest| rest.starts_with('('))
                && lines[at.saturating_sub(4)..at]
                    .iter()
                    .any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
        })
    };
    let found = files
        .iter()
        .filter_map(|file| read(file))
        .any(|text| is_test(&text));
    (!found).then(|| format!("no test {name}"))
}

/// The rows that claim something, each with its last column.
fn claims(page: &str) -> Vec<(&str, &str)> {
    let mut claims = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", .., last, ""] if last == HELD_BY => inside = true,
            ["", .., last, ""] if inside && !last.starts_with("---") => claims.push((line, last)),
            ["", .., ""] => {}
            _ => inside = false,
        }
    }
    claims
}

#[test]
fn each_claim_of_the_threat_model_names_a_test_that_there_is() {
    let page = read("docs/THREAT-MODEL.md").unwrap();
    let mut wrong: Vec<String> = page.lines().flat_map(quoted).filter_map(missing).collect();
    let claims = claims(&page);
    assert!(claims.len() > 60, "only {} claims were found", claims.len());
    for (line, held_by) in claims {
        let named = quoted(held_by).any(|name| name.starts_with("tests/") || name.contains("::"));
        if !named && !held_by.contains(NO_TEST) {
            wrong.push(format!("nothing holds: {line}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_threat_model_names_every_fuzz_target() {
    let page = read("docs/THREAT-MODEL.md").unwrap();
    let named: BTreeSet<&str> = page
        .lines()
        .flat_map(quoted)
        .filter_map(|name| name.strip_prefix("tests/fuzz.sh "))
        .collect();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let target = path.file_stem().unwrap().to_str().unwrap();
        assert!(named.contains(target), "{target}");
    }
}

#[test]
fn a_name_that_leads_nowhere_is_found() {
    for (name, there) in [
        ("docs_threats::a_name_that_leads_nowhere_is_found", true),
        ("docs_threats::claims", false),
        ("docs_threats::nothing_of_that_name", false),
        ("nowhere::a_name_that_leads_nowhere_is_found", false),
        (
            "secretfs::path::tests::a_target_is_absolute_and_has_a_name",
            true,
        ),
        ("secretfs::path::tests::nothing", false),
        ("tests/fuzz.sh spec", true),
        ("tests/fuzz.sh none", false),
        ("tests/it/main.rs", true),
        ("tests/it/none.rs", false),
        ("kubeletDir", true),
        ("store:payments/**", true),
    ] {
        assert_eq!(missing(name).is_none(), there, "{name}");
    }
    let page = "| a | held by |\n|---|---|\n| b | `x::y` |\n\n| c | d |\n|---|---|\n| e | f |\n";
    assert_eq!(claims(page), [("| b | `x::y` |", "`x::y`")]);
}
