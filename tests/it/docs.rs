//! Pages that list what the code has are the code's own lists. `UPDATE_DOCS=1` writes them anew.

use std::path::Path;

use secretfs::error::{Code, ErrorKind, codes};

/// Compares docs/`name` with `expect`, or writes it.
pub fn compare(name: &str, expect: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, expect).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    if page != expect {
        let line = page.lines().zip(expect.lines()).position(|(a, b)| a != b);
        panic!("docs/{name} is not what the code says, from line {line:?}; run with UPDATE_DOCS=1");
    }
}

/// The heading of the page under which a code stands.
pub fn group(code: &Code) -> &'static str {
    code.name.split('.').next().unwrap_or("")
}

/// Who must act, and what `secretfs` answers with.
fn who(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidSpec => "the author of the spec or configuration",
        ErrorKind::Conflict => "the author of the spec, or whoever holds the target",
        ErrorKind::SecretNotFound => "the author of the spec, or the store's owner",
        ErrorKind::Unauthenticated | ErrorKind::PermissionDenied => {
            "the owner of the store or of the policy"
        }
        ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::Timeout => {
            "nobody: it is tried again"
        }
        ErrorKind::Exhausted | ErrorKind::Node => "the operator of the machine",
        ErrorKind::Corrupt => "the store's owner",
        ErrorKind::Bug => "us: please report it",
    }
}

#[test]
fn the_page_of_errors_is_the_table_of_codes() {
    let mut page = String::from(
        "# Errors\n\n\
         Every error has a code. Codes are stable: scripts and alerts may rely on them. The kind says who must act.\n\n\
         This page is written by a test from the table in `src/error.rs`.\n\n\
         | kind | who must act |\n|---|---|\n",
    );
    let mut kinds: Vec<ErrorKind> = Vec::new();
    for code in codes::ALL {
        if !kinds.contains(&code.kind) {
            kinds.push(code.kind);
            page += &format!("| {:?} | {} |\n", code.kind, who(code.kind));
        }
    }
    let mut groups: Vec<&str> = Vec::new(); // each is one heading, so that there is one link to it
    for code in codes::ALL {
        if !groups.contains(&group(code)) {
            groups.push(group(code));
        }
    }
    for name in groups {
        page += &format!(
            "\n## {name}\n\n| code | kind | what it means | what to do |\n|---|---|---|---|\n"
        );
        for code in codes::ALL.iter().filter(|code| group(code) == name) {
            let cell = |text: &str| text.replace('|', "\\|");
            page += &format!(
                "| `{}` | {:?} | {} | {} |\n",
                code.name,
                code.kind,
                cell(code.cause),
                cell(code.fix)
            );
        }
    }
    compare("reference/errors.md", &page);
}

/// A page must name each of these, in code style.
fn names(page: &str, names: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs/reference")
        .join(page);
    let text = std::fs::read_to_string(path).unwrap();
    for name in names {
        assert!(
            text.contains(&format!("`{name}`")),
            "docs/reference/{page} does not explain `{name}`"
        );
    }
}

#[test]
fn the_page_of_specs_names_every_key_filter_and_test() {
    use secretfs::spec::{files, parse, template, times};
    for keys in [
        parse::KEYS,
        parse::RESERVED,
        times::DENIED_KEYS,
        files::KEYS,
        files::FROM_KEYS,
        template::FILTERS,
        template::TESTS,
    ] {
        names("spec.md", keys);
    }
}

#[test]
fn the_page_of_the_configuration_names_every_key() {
    use secretfs::config;
    names("config.md", config::KEYS);
    names("config.md", config::LIMIT_KEYS);
    names("config.md", config::POLICY_KEYS);
    names("config.md", config::AUDIT_KEYS);
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/config.md");
    let page = std::fs::read_to_string(page).unwrap();
    for key in config::KEYS {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{key}` |")));
        let row = row.unwrap_or_else(|| panic!("no row for `{key}`"));
        let effect = if config::RELOADED.contains(key) {
            "| at once |"
        } else {
            "| after a restart |"
        };
        assert!(row.ends_with(effect), "{row}");
    }
}

#[test]
fn the_page_of_vault_names_every_key() {
    use secretfs::backend::vault;
    for keys in [
        vault::KEYS,
        vault::TLS_KEYS,
        vault::TIMEOUT_KEYS,
        vault::REQUEST_KEYS,
        vault::AUTH_KEYS,
    ] {
        names("../backends/vault.md", keys);
    }
}

/// The examples on the pages are read by the parser: each block that begins with `files:` or holds it is a spec.
#[test]
fn every_example_on_the_pages_is_good() {
    let page = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("docs/reference")
            .join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let blocks = |text: &str| -> Vec<String> {
        let parts = text.split("```yaml\n").skip(1);
        parts
            .map(|part| part.split("```").next().unwrap_or("").to_owned())
            .collect()
    };
    let specs = blocks(&page("spec.md"));
    assert!(specs.len() >= 5);
    for text in specs {
        crate::spec::good(&text);
    }
    let vault = blocks(&page("../backends/vault.md"));
    let of_vault = vault.iter().filter(|text| text.contains("backends:"));
    for text in blocks(&page("config.md")).iter().chain(of_vault) {
        let env = secretfs::config::Env::default();
        let parsed =
            secretfs::config::Config::parse(text, &env, &secretfs::backend::registry::problems);
        assert!(parsed.is_ok(), "{text}\n{:?}", parsed.err());
    }
}
