//! The house rules that no lint holds: which module may use which, what is absent where, file length, links in the docs.
//!
//! The rules are the tables below. A new edge or a new exception is a line there, in the same commit, with its reason.
//! A source file is read as a list of paths (`use` trees taken apart, `super` resolved), without comments, literals and
//! `#[cfg(test)]` items; see `paths`.

mod paths;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use paths::{Found, Source};

/// Used by all. Among themselves a module may use those that stand before it.
const BASE: &[&str] = &[
    "limits", "path", "error", "sys", "clock", "secret", "caller", "yaml", "spec", "policy",
    "config",
];

/// Who may use whom, besides the base (ARCHITECTURE.md has the picture). A module that is not here is not allowed.
const EDGES: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &["csi", "admin", "volume", "holder", "store", "kube"],
    ),
    ("csi", &["volume", "observe", "kube"]),
    ("admin", &["volume"]),
    ("volume", &["source", "render", "mount", "observe"]),
    ("source", &["backend", "observe"]),
    ("backend", &["store", "observe"]),
    // backend, render and mount do not know each other
    ("render", &[]),
    ("mount", &[]),
    ("store", &[]),
    ("observe", &[]),
    ("holder", &[]),
    ("kube", &["observe"]),
];

/// Single paths that an edge's absence would forbid: (who, what, why). One that nobody needs any more must go.
#[rustfmt::skip]
const EXTRA: &[(&str, &str, &str)] = &[
    ("mount", "render::Snapshot", "the noun that render makes and mount shows; no function of render is used"),
    ("mount", "render::Generation", "the number of a Snapshot"),
    ("mount", "render::FileSet", "the files of a Snapshot"),
    ("mount", "render::FileContent", "the content of one of them"),
    ("cli", "render::Snapshot", "`--on-change` follows a volume's snapshots"),
    ("cli", "render::Generation", "the number of a Snapshot"),
    ("cli", "backend::registry", "commands are where the parts are put together: which backends there are"),
    ("cli", "backend::Cx", "`check --fetch` asks a backend itself, once, without a volume"),
    ("cli", "backend::Want", "as above"),
    ("cli", "backend::Fetched", "as above"),
    ("cli", "render::render_all", "`check --fetch` says what would be written"),
    ("cli", "render::FileSet", "as above"),
    ("cli", "render::FileContent", "as above"),
    ("cli", "mount::tmpfs", "the parts are put together: who mounts"),
    ("cli", "mount::memory", "the parts are put together: `exec --spec` mounts nowhere"),
    ("cli", "mount::layout", "`exec --from` reads what others have mounted in that layout"),
    ("cli", "mount::Root", "the parts are put together: where the kubelet's targets lie"),
    ("cli", "mount::mountinfo", "`status` names the mounts that a killed process left"),
    ("cli", "source::pool", "the parts are put together: when sources are asked"),
    ("volume", "backend::registry", "gives each source that it makes its backend; never calls one"),
    ("admin", "observe::ready", "`/readyz` and `GET /v1/node` tell what objects"),
    ("admin", "observe::metrics", "`/metrics` tells what was counted"),
    ("admin", "observe::audit", "and how many audit records were dropped"),
    ("cli", "observe::metrics", "the parts are put together: what happens is counted in one place"),
    ("cli", "observe::ready", "the parts are put together: what objects is told to all"),
    ("cli", "observe::audit", "the parts are put together: where the audit log goes"),
    ("cli", "observe::events", "the parts are put together: who writes Events"),
    ("cli", "observe::log", "each command begins with where its log goes"),
    ("yaml", "spec::Problem", "what is wrong with a text, in the same words for specs and configuration"),
    ("yaml", "spec::Span", "where in a text"),
    ("yaml", "spec::Problems", "all of them, bounded"),
    ("yaml", "spec::read", "how a text from outside is shown in a message"),
];

/// What stands nowhere but there: (path, where, why). A path is found anywhere inside a longer one; `!` marks a macro.
#[rustfmt::skip]
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    ("unsafe", &["src/sys/"], "each raw call is behind a safe function"),
    ("libc", &["src/sys/"], "system calls go through sys"),
    ("rustix", &["src/sys/", "src/clock.rs"], "system calls go through sys; clock reads the clocks"),
    ("std::env", &["src/config.rs"], "one reader of the environment"),
    ("env::var", &["src/config.rs"], "as above"),
    ("env::vars", &["src/config.rs"], "as above"),
    ("SystemTime::now", &["src/clock.rs", "src/sys/"], "time is injected; a file's own times are no clock"),
    ("Instant::now", &["src/clock.rs", "src/sys/"], "as above"),
    ("tonic::Status", &["src/csi/", "src/backend/external"], "errors are ours until the edge"),
    ("fuser", &["src/mount/fuse/"], "one module speaks to the library"),
    ("print!", &["src/cli/"], "only commands speak to people"),
    ("println!", &["src/cli/"], "as above"),
    ("eprint!", &["src/cli/", "src/main.rs"], "as above"),
    ("eprintln!", &["src/cli/", "src/main.rs"], "as above"),
    ("dbg!", &[], "left over"),
    ("todo!", &[], "left over"),
    ("unimplemented!", &[], "left over"),
];

/// Harmless uses of what `ONLY_IN` forbids: (file or folder, path, why). One that nobody needs any more must go, unless it is
/// for all of src.
#[rustfmt::skip]
const HARMLESS: &[(&str, &str, &str)] = &[
    ("src/", "rustix::io::Errno", "names of error numbers"),
];

/// Without I/O, clock, threads and randomness: they decide, others do.
const PURE: &[&str] = &[
    "src/spec/",
    "src/policy",
    "src/render/",
    "src/source/pool",
    "src/source/schedule",
    "src/source/gate",
    "src/source/breaker",
    "src/volume/decide",
    "src/volume/budget",
    "src/mount/mountinfo",
];
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "tokio",
    "fastrand",
    "SystemClock",
    "crate::sys",
];

const LINES_MAX: usize = 599;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `dir` with this extension, without build output and hidden folders; relative, sorted.
fn files(dir: &str, extension: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, extension: &str, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "node_modules" {
                    walk(&path, extension, into);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                into.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(dir), extension, &mut found);
    found.sort();
    found
}

fn read(file: &Path) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// The program's own sources, without files that are only compiled for tests.
fn sources() -> Vec<Source> {
    let all = files("src", "rs");
    let all = without_test_files(all.iter().map(|file| Source::parse(file, &read(file))));
    assert!(all.len() > 10, "found only {} sources", all.len());
    all
}

/// Their files.
pub fn program_files() -> Vec<PathBuf> {
    sources().into_iter().map(|source| source.file).collect()
}

fn without_test_files(all: impl Iterator<Item = Source>) -> Vec<Source> {
    let mut all: Vec<Source> = all.collect();
    let tests: BTreeSet<PathBuf> = all.iter().flat_map(|s| s.test_files.clone()).collect();
    let is_test = |file: &Path| {
        let name = file.with_extension("");
        tests.iter().any(|test| name.starts_with(test))
    };
    all.retain(|source| !is_test(&source.file));
    all
}

/// Every edge of `source` that the tables do not allow. Notes which lines of `EXTRA` were needed.
fn forbidden_edges(source: &Source, needed: &mut BTreeSet<usize>) -> Vec<String> {
    let from = source.module();
    if from == "lib" {
        return Vec::new(); // it declares the modules
    }
    let mut problems = Vec::new();
    let allowed = EDGES.iter().find(|(module, _)| *module == from);
    let level = BASE.iter().position(|module| *module == from);
    if allowed.is_none() && level.is_none() {
        problems.push(format!(
            "{}: module `{from}` is in no table",
            source.file.display()
        ));
    }
    for found in &source.paths {
        let ["crate", to, rest @ ..] = &found.segments()[..] else {
            continue;
        };
        let base = BASE.iter().position(|module| module == to);
        let good = *to == from
            || match (level, base) {
                (Some(from), Some(to)) => to < from,
                (None, Some(_)) => true,
                (Some(_), None) => false,
                (None, None) => allowed.is_some_and(|(_, list)| list.contains(to)),
            };
        let is_module = base.is_some() || EDGES.iter().any(|(module, _)| module == to);
        if good || !is_module {
            continue; // not a module: a macro or an item of lib.rs
        }
        let what = format!("{to}::{}", rest.first().unwrap_or(&""));
        match EXTRA.iter().position(|row| row.0 == from && row.1 == what) {
            Some(row) => drop(needed.insert(row)),
            None => problems.push(format!(
                "{}:{}: `{from}` may not use `{to}` ({})",
                source.file.display(),
                found.line,
                found.path
            )),
        }
    }
    problems
}

/// Every use of something that stands elsewhere only. Notes which lines of `HARMLESS` were needed.
fn out_of_place(source: &Source, needed: &mut BTreeSet<usize>) -> Vec<String> {
    let file = source.file.to_string_lossy();
    let within = |places: &[&str]| places.iter().any(|place| file.starts_with(place));
    let mut problems = Vec::new();
    for found in &source.paths {
        for (what, places, why) in ONLY_IN {
            if !found.contains(what) || within(places) {
                continue;
            }
            let harmless = HARMLESS
                .iter()
                .position(|row| file.starts_with(row.0) && found.contains(row.1));
            match harmless {
                Some(row) => drop(needed.insert(row)),
                None => problems.push(format!(
                    "{file}:{}: `{}` here ({why})",
                    found.line, found.path
                )),
            }
        }
        if within(PURE) {
            problems.extend(IMPURE.iter().filter(|what| found.contains(what)).map(|_| {
                format!(
                    "{file}:{}: `{}` in a module without I/O",
                    found.line, found.path
                )
            }));
        }
    }
    problems
}

fn assert_none(problems: &[String], rule: &str) {
    assert!(problems.is_empty(), "{rule}:\n  {}", problems.join("\n  "));
}

#[test]
fn modules_use_only_what_the_table_allows() {
    let mut needed = BTreeSet::new();
    let problems: Vec<String> = sources()
        .iter()
        .flat_map(|source| forbidden_edges(source, &mut needed))
        .collect();
    assert_none(&problems, "edges that EDGES and EXTRA do not have");
    let stale: Vec<String> = (0..EXTRA.len())
        .filter(|row| !needed.contains(row))
        .map(|row| format!("{} -> {}", EXTRA[row].0, EXTRA[row].1))
        .collect();
    assert_none(&stale, "lines of EXTRA that nobody needs");
}

#[test]
fn each_thing_stands_in_its_place() {
    let mut needed = BTreeSet::new();
    let problems: Vec<String> = sources()
        .iter()
        .flat_map(|source| out_of_place(source, &mut needed))
        .collect();
    assert_none(&problems, "out of place (ONLY_IN, PURE)");
    let stale: Vec<String> = (0..HARMLESS.len())
        .filter(|row| !needed.contains(row) && HARMLESS[*row].0 != "src/")
        .map(|row| format!("{}: {}", HARMLESS[row].0, HARMLESS[row].1))
        .collect();
    assert_none(&stale, "lines of HARMLESS that nobody needs");
}

#[test]
fn every_test_runs() {
    let problems: Vec<String> = files("src", "rs")
        .into_iter()
        .chain(files("tests", "rs"))
        .flat_map(|file| {
            let found = paths::ignored_tests(&read(&file));
            found
                .into_iter()
                .map(move |line| format!("{}:{line}", file.display()))
        })
        .collect();
    assert_none(&problems, "ignored tests");
}

#[test]
fn no_source_file_is_too_long() {
    let all = files("", "rs");
    assert!(all.iter().any(|file| file.ends_with("tests/it/tidy.rs")));
    let problems: Vec<String> = all
        .iter()
        .map(|file| (file, read(file).lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert_none(&problems, "600 lines or more");
}

#[test]
fn links_in_the_docs_lead_somewhere() {
    let mut problems = Vec::new();
    for file in files("", "md") {
        for (line, text) in read(&file).lines().enumerate() {
            for (at, _) in text.match_indices("](") {
                let link = text[at + 2..].split([')', '#', ' ']).next().unwrap_or("");
                let outside = link.contains("://") || link.starts_with("mailto:");
                let target = root()
                    .join(file.parent().unwrap_or(Path::new("")))
                    .join(link);
                if !link.is_empty() && !outside && !target.exists() {
                    problems.push(format!("{}:{}: no file {link}", file.display(), line + 1));
                }
            }
        }
    }
    assert_none(&problems, "broken links");
}

// --- the rules can fail

#[test]
fn a_forbidden_edge_is_found_in_every_spelling() {
    for (file, text, expect) in [
        ("src/render/mod.rs", "use crate::mount::VolumeId;", 1),
        (
            "src/render/mod.rs",
            "use crate::{path::Mode, mount::{self, Probe}};",
            2,
        ),
        ("src/render/json.rs", "use super::super::mount::Probe;", 1),
        ("src/render/mod.rs", "use super::{mount, path};", 1),
        ("src/render/mod.rs", "fn f() -> crate::mount::Probe {}", 1),
        (
            "src/render/mod.rs",
            "mod inner { use super::super::mount::Probe; }",
            1,
        ),
        (
            "src/render/mod.rs",
            "mod inner { fn f() {} } use super::mount::Probe;",
            1,
        ),
        ("src/path.rs", "use crate::{error::Error, limits};", 1),
        ("src/path.rs", "use crate::volume::VolumeStatus;", 1),
        ("src/novel.rs", "use crate::path::Mode;", 1),
        ("src/main.rs", "use secretfs::volume::Volumes;", 1),
        // allowed, or not code of the program
        ("src/volume/mod.rs", "use crate::mount::Mounter;", 0),
        (
            "src/render/mod.rs",
            "use super::path::Mode; use crate::render::X;",
            0,
        ),
        ("src/render/mod.rs", "// use crate::mount::Probe;", 0),
        (
            "src/render/mod.rs",
            r##"const X: &str = r#"crate::mount::Probe""#;"##,
            0,
        ),
        (
            "src/render/mod.rs",
            "#[cfg(test)] mod tests { use crate::mount::Probe; }",
            0,
        ),
        (
            "src/render/mod.rs",
            "#[cfg(test)] use crate::mount::Probe; fn f() {}",
            0,
        ),
        ("src/mount/mod.rs", "use crate::render::Snapshot;", 0),
        ("src/mount/mod.rs", "use crate::render::render;", 1),
    ] {
        let source = Source::parse(Path::new(file), text);
        let problems = forbidden_edges(&source, &mut BTreeSet::new());
        assert_eq!(problems.len(), expect, "{file}: {text}\n{problems:?}");
    }
}

#[test]
fn a_thing_out_of_place_is_found() {
    for (file, text, expect) in [
        ("src/cli/mount.rs", "fn f() { std::env::var(\"X\"); }", 2),
        ("src/cli/mount.rs", "use std::{env, fs};", 1),
        ("src/config.rs", "use std::env;", 0),
        (
            "src/cli/mount.rs",
            "const V: &str = env!(\"CARGO_PKG_VERSION\");",
            0,
        ),
        (
            "src/volume/mod.rs",
            "use std::time::SystemTime; SystemTime::now();",
            1,
        ),
        ("src/store/read.rs", "use std::time::SystemTime;", 0),
        ("src/store/read.rs", "use rustix::io::Errno;", 0),
        ("src/volume/mod.rs", "let t = Instant::now();", 1),
        ("src/volume/mod.rs", "unsafe { f() }", 1),
        ("src/sys/mount.rs", "unsafe { libc::syscall() }", 0),
        ("src/volume/mod.rs", "println!(\"{x}\"); dbg!(x)", 2),
        ("src/cli/status.rs", "println!(\"{x}\"); if x != y {}", 0),
        (
            "src/volume/mod.rs",
            "fn f<'a>(x: &'a str) -> char { '\"' } todo!()",
            1,
        ),
        ("src/render/json.rs", "use std::fs::File;", 1),
        ("src/source/pool.rs", "use tokio::sync::mpsc;", 1),
        ("src/source/runner.rs", "use tokio::sync::mpsc;", 0),
    ] {
        let source = Source::parse(Path::new(file), text);
        let problems = out_of_place(&source, &mut BTreeSet::new());
        assert_eq!(problems.len(), expect, "{file}: {text}\n{problems:?}");
    }
    assert_eq!(
        paths::ignored_tests("#[test]\n#[ignore = \"slow\"]\nfn f() {}"),
        [2]
    );
    let kept = without_test_files(
        [
            (
                "src/store/mod.rs",
                "#[cfg(test)] mod fault; #[cfg(not(test))] mod real; mod write;",
            ),
            ("src/store/fault.rs", ""),
            ("src/store/fault/deep.rs", ""),
            ("src/store/real.rs", ""),
            ("src/store/write.rs", "#[cfg(test)] mod tests;"),
            ("src/store/write/tests.rs", ""),
        ]
        .into_iter()
        .map(|(file, text)| Source::parse(Path::new(file), text)),
    );
    let kept: Vec<_> = kept
        .iter()
        .map(|source| source.file.to_str().unwrap())
        .collect();
    assert_eq!(
        kept,
        [
            "src/store/mod.rs",
            "src/store/real.rs",
            "src/store/write.rs"
        ]
    );
}

/// Keeps `Found` in the module's interface honest: what a rule sees is what the file says.
#[test]
fn paths_are_taken_apart() {
    let text = "use a::{b::{c, d as e}, self as f, g::*};\nfn x() { ::h::i(j::k!()); y.z }";
    let source = Source::parse(Path::new("src/x.rs"), text);
    let found: Vec<(&str, usize)> = source
        .paths
        .iter()
        .map(|f: &Found| (&*f.path, f.line))
        .collect();
    for expect in [
        ("a::b::c", 1),
        ("a::b::d", 1),
        ("a::self", 1),
        ("a::g::*", 1),
        ("h::i", 2),
        ("j::k!", 2),
    ] {
        assert!(found.contains(&expect), "{expect:?} not in {found:?}");
    }
}
