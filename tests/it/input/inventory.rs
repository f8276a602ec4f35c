//! docs/input-limits.md names constants and tests that there are, and forgets none of those that bound what comes in.

use std::{collections::BTreeSet, fs, path::Path};

/// Every limit whose name begins so is about what comes from outside.
const OUTSIDE: &[&str] = &[
    "CSI_",
    "HTTP_",
    "TOKEN",
    "TEMPLATE_",
    "STORE_VALUE",
    "STORE_HEADER",
    "KEY_FILE",
    "KUBE_ANSWER",
    "BACKEND_ANSWER",
    "BACKEND_PEM",
    "BACKEND_LOGIN",
];
/// What begins so too and is not: the reason.
#[rustfmt::skip]
const NOT: &[(&str, &str)] = &[
    ("CSI_STATUS_BYTES", "what we say"),
    ("CSI_WARNINGS", "what we say"),
    ("CSI_WARNINGS_OF_ONE", "what we say"),
    ("CSI_WARNINGS_REPEATED", "what we say"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The words in code style of a table's cell.
fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// All functions below a directory that a test harness runs.
fn tests(dir: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut marked = false;
            for line in text.lines().map(str::trim) {
                let name = line
                    .strip_prefix("async ")
                    .unwrap_or(line)
                    .strip_prefix("fn ");
                match name {
                    Some(name) if marked => {
                        into.insert(name.split('(').next().unwrap().to_owned());
                        marked = false;
                    }
                    _ if line.starts_with("#[test]") || line.starts_with("#[tokio::test") => {
                        marked = true
                    }
                    _ if line.starts_with("#[") || line.starts_with("//") => {}
                    _ => marked = false,
                }
            }
        }
    }
}

#[test]
fn the_list_of_inputs_names_limits_and_tests_that_there_are() {
    let page = fs::read_to_string(root().join("docs/input-limits.md")).unwrap();
    let source = fs::read_to_string(root().join("src/limits.rs")).unwrap();
    let constants: BTreeSet<&str> = source
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next())
        .collect();
    let mut run = BTreeSet::new();
    for dir in ["src", "tests/it"] {
        tests(&root().join(dir), &mut run);
    }
    assert!(run.len() > 300, "only {} tests were found", run.len());
    let (mut rows, mut named) = (0, BTreeSet::new());
    for line in page
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter(|line| !line.starts_with("| input "))
    {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let [input, limit, by] = cells[..] else {
            panic!("not three cells: {line}")
        };
        for constant in
            code(limit).filter(|word| word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        {
            assert!(
                constants.contains(constant),
                "{input}: there is no limit {constant}"
            );
            named.insert(constant);
        }
        let mut count = 0;
        for test in code(by) {
            assert!(run.contains(test), "{input}: there is no test {test}");
            count += 1;
        }
        assert!(count > 0, "{input}: no test");
        rows += 1;
    }
    assert!(rows > 40, "only {rows} rows");
    let not: BTreeSet<&str> = NOT.iter().map(|(name, _)| *name).collect();
    for constant in constants
        .difference(&named)
        .filter(|name| !not.contains(*name))
    {
        let outside = OUTSIDE.iter().any(|prefix| constant.starts_with(prefix));
        assert!(
            !outside,
            "docs/input-limits.md does not say what tests {constant}"
        );
    }
}
