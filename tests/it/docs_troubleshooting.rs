//! docs/troubleshooting.md says of every error code and of every Event's reason what to do, and names none that does not exist.

use std::{collections::BTreeSet, fs, path::Path};

use secretfs::error::{Code, codes};

use crate::{docs::group, tidy::program_files};

const PAGE: &str = "docs/troubleshooting.md";
/// Where one code is explained.
const ERRORS: &str = "](reference/errors.md#";

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Codes in a table's first column, each with the heading of errors.md that its link names.
fn explained(page: &str) -> Vec<(&str, &str)> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    let mut found = Vec::new();
    for cell in cells {
        for (at, _) in cell.match_indices(ERRORS) {
            let name = cell[..at].rsplit("[`").next().unwrap_or_default();
            let rest = &cell[at + ERRORS.len()..];
            let heading = rest.split(')').next().unwrap_or_default();
            found.push((name.trim_end_matches('`'), heading));
        }
    }
    found
}

/// Words that have the form of a code of one of the table's groups, wherever they stand; files' names have it, too.
fn words(page: &str) -> BTreeSet<&str> {
    let of_a_word = |c: char| c.is_alphanumeric() || "._-/".contains(c);
    let trimmed = |word| str::trim_matches(word, ['.', '-']);
    let known: BTreeSet<&str> = codes::ALL.iter().map(|code| group(code)).collect();
    page.split(|c| !of_a_word(c))
        .map(trimmed)
        .filter(|word| {
            let parts = word.split_once('.');
            parts.is_some_and(|(group, name)| {
                known.contains(group)
                    && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
                    && !["md", "sock", "yaml"].contains(&name)
            })
        })
        .collect()
}

/// Reasons of Events in a table's first column.
fn reasons(page: &str) -> BTreeSet<&str> {
    let cells = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let names = cells.map(|(name, _)| name);
    names.filter(|name| is_reason(name)).collect()
}

/// Whether it has the form of a reason: `SecretStale`.
fn is_reason(text: &str) -> bool {
    let rest = text.strip_prefix("Secret").unwrap_or_default();
    rest.starts_with(|c: char| c.is_ascii_uppercase())
        && rest.chars().all(|c| c.is_ascii_alphabetic())
}

/// What a page says too little, or too much.
fn wrong(page: &str, table: &[&Code], told: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let explained = explained(page);
    for code in table {
        if !explained.iter().any(|(name, _)| *name == code.name) {
            wrong.push(format!("does not say what to do for `{}`", code.name));
        }
    }
    for (name, heading) in &explained {
        match table.iter().find(|code| code.name == *name) {
            None => wrong.push(format!("explains `{name}`, which there is not")),
            Some(code) if group(code) != *heading => {
                wrong.push(format!("`{name}` is not under #{heading}"));
            }
            Some(_) => {}
        }
    }
    for word in words(page) {
        if !table.iter().any(|code| code.name == word) {
            wrong.push(format!("names `{word}`, which there is not"));
        }
    }
    let named: BTreeSet<String> = reasons(page).into_iter().map(str::to_owned).collect();
    for reason in told.symmetric_difference(&named) {
        wrong.push(format!("Event `{reason}` is here or there only"));
    }
    wrong
}

/// Reasons of Events that the program writes: volumes tell them, in one place.
fn told() -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    for file in program_files() {
        let text = read(&file);
        assert!(
            !text.contains(".events.tell(") || file.ends_with("volume/word.rs"),
            "{}: Events are told here, too",
            file.display()
        );
        if file.starts_with("src/volume") {
            let literals = text.split('"').filter(|text| is_reason(text));
            told.extend(literals.map(str::to_owned));
        }
    }
    told
}

#[test]
fn the_page_of_troubles_says_what_to_do_for_each_code_and_each_event() {
    let told = told();
    assert!(told.len() >= 5, "{told:?}");
    let wrong = wrong(&read(PAGE), codes::ALL, &told);
    assert!(wrong.is_empty(), "{PAGE}:\n{}", wrong.join("\n"));
}

#[test]
fn what_is_missing_on_the_page_or_too_much_is_found() {
    let (page, told) = (read(PAGE), told());
    for code in codes::ALL {
        let link = format!("[`{}`{ERRORS}{})", code.name, group(code));
        let without = page.replace(&link, "");
        let expect = format!("does not say what to do for `{}`", code.name);
        assert_eq!(wrong(&without, codes::ALL, &told), [expect]);
    }
    for reason in &told {
        let without = page.replace(&format!("| `{reason}` |"), "| |");
        assert_eq!(wrong(&without, codes::ALL, &told).len(), 1, "{reason}");
    }
    for more in [
        "| [`mount.none`](reference/errors.md#mount) | x |",
        "| [`mount.busy`](reference/errors.md#volume) | x |",
        "see [policy.refused].",
        "| `SecretGone` | x |",
    ] {
        let found = wrong(&format!("{page}\n{more}\n"), codes::ALL, &told);
        assert!(!found.is_empty(), "{more}");
    }
    let fewer = &codes::ALL[1..];
    assert!(!wrong(&page, fewer, &told).is_empty());
}
