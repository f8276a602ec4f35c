//! Specs: what is accepted, what is refused and how it is told, and what becomes of it.

use std::time::Duration;

use proptest::prelude::*;
use secretfs::{
    cli::check,
    error::codes,
    path::Mode,
    spec::{
        Facts, MountKind, ObjectRef, Origin, Place, Problem, Refresh, Setting, Span, VolumeSpec,
        parse,
    },
};

/// `store` pushes and has versions; `plain` does neither; there is no other.
pub fn facts(object: &ObjectRef) -> Result<Facts, Problem> {
    let store = match object.backend.as_str() {
        "store" => true,
        "plain" => false,
        other => {
            return Err(Problem {
                code: &codes::SPEC_UNKNOWN_BACKEND,
                at: Span::default(),
                field: String::new(),
                message: format!("there is no backend `{other}`"),
                help: None,
            });
        }
    };
    Ok(Facts {
        pushes: store,
        versions: store,
    })
}

pub fn good(text: &str) -> VolumeSpec {
    parse(text, &Setting::local(), &facts).unwrap_or_else(|problems| panic!("{text}\n{problems:?}"))
}

pub fn problems(text: &str) -> Vec<Problem> {
    parse(text, &Setting::local(), &facts).expect_err(text)
}

/// Code, line, column and length of each problem.
fn places(text: &str) -> Vec<(&'static str, u32, u32, u32)> {
    let found = problems(text).into_iter();
    found
        .map(|p| (p.code.name, p.at.line, p.at.column, p.at.length))
        .collect()
}

pub const FULL: &str = r#"apiVersion: secretfs.dev/v1alpha1
mount: tmpfs
refreshInterval: 60s
defaultMode: "0440"
sources:
  db: store:payments/db
files:
  - path: db/password
    from: db#password
  - path: token
    from: store:payments/token
    mode: "0400"
  - path: app.conf
    template: |
      postgres://{{ db.username }}:{{ db.password | urlencode }}@db/app
  - path: all/
    from: db#*
  - path: .env
    from: db
    format: dotenv
  - path: cert.der
    from: store:payments/tls#certificate
    decode: base64
    optional: true
"#;

#[test]
fn the_contracts_example_is_read_as_it_is_meant() {
    let spec = good(FULL);
    assert_eq!(spec.mount, MountKind::Tmpfs);
    assert_eq!(spec.refresh, Refresh::Every(Duration::from_secs(60)));
    assert_eq!(spec.default_mode, Mode::literal(0o440));
    let objects: Vec<_> = spec.objects.iter().map(ToString::to_string).collect();
    assert_eq!(
        objects,
        [
            "store:payments/db",
            "store:payments/token",
            "store:payments/tls"
        ]
    );
    assert_eq!(spec.files.len(), 6);
    assert_eq!(spec.files[1].mode, Some(Mode::literal(0o400)));
    assert!(matches!(&spec.files[2].origin, Origin::Template { uses, .. } if uses.len() == 1));
    assert!(matches!(
        spec.files[3].origin,
        Origin::AllFields {
            object: 0,
            decode: None
        }
    ));
    assert!(spec.files[5].optional && !spec.files[4].optional);
}

#[test]
fn the_default_mode_depends_on_the_place_and_the_owner() {
    let spec = |place, extra: &str| {
        let setting = Setting {
            place,
            ..Setting::local()
        };
        let text = format!("{extra}files: [{{path: a, from: \"store:a\"}}]\n");
        parse(&text, &setting, &facts).unwrap()
    };
    let mode = |place, extra: &str| spec(place, extra).default_mode.bits();
    let kubernetes = |fs_group| Place::Kubernetes { fs_group };
    assert_eq!(mode(Place::Local, ""), 0o400);
    assert_eq!(mode(Place::Local, "gid: 5\n"), 0o400);
    assert_eq!(mode(kubernetes(None), ""), 0o444);
    assert_eq!(mode(kubernetes(Some(2000)), ""), 0o440);
    assert_eq!(mode(kubernetes(None), "uid: 5\n"), 0o440);
    assert_eq!(mode(kubernetes(None), "defaultMode: \"0600\"\n"), 0o600);
    let group = |place, extra: &str| spec(place, extra).owner.gid;
    assert_eq!(group(kubernetes(Some(2000)), ""), Some(2000));
    assert_eq!(group(kubernetes(Some(2000)), "gid: 5\n"), Some(5));
    assert_eq!(group(kubernetes(Some(2000)), "uid: 5\n"), Some(2000));
    assert_eq!(group(kubernetes(None), ""), None);
}

/// What stands in a file's entry, after its path: the code, line, column and length of what is told.
#[rustfmt::skip]
const OF_A_FILE: &[(&str, &str, u32, u32, u32)] = &[
    ("from: store:a\n  frm: x", "spec.unknown_key", 4, 3, 3),
    ("from: store:a\n  mode: 0440", "spec.bad_mode", 4, 9, 4),
    ("from: store:a\n  mode: \"1777\"", "spec.bad_mode", 4, 9, 6),
    ("from: store:a\n  mode: \"u+r\"", "spec.bad_mode", 4, 9, 5),
    ("from: store:a\n  optional: \"true\"", "spec.wrong_type", 4, 13, 6),
    ("from: store", "spec.unknown_source", 3, 9, 5),
    ("from: Store:a", "spec.bad_reference", 3, 9, 7),
    ("from: vault:a", "spec.unknown_backend", 3, 9, 7),
    ("from: store:a@", "spec.bad_reference", 3, 9, 8),
    ("from: store:a#*", "spec.bad_path", 2, 9, 1),
    ("from: [a]", "spec.wrong_type", 3, 9, 1),
    ("from: {backend: store}", "spec.missing_key", 3, 10, 7),
    ("from: {backend: store, path: a, lease: x}", "spec.unknown_key", 3, 35, 5),
    ("template: x\n  from: store:a", "spec.conflicting_keys", 4, 3, 4),
    ("template: x\n  decode: hex", "spec.conflicting_keys", 4, 3, 6),
    ("from: store:a#b\n  format: json", "spec.conflicting_keys", 3, 9, 9),
    ("from: store:a\n  format: xml", "spec.wrong_type", 4, 11, 3),
    ("optional: true", "spec.missing_key", 2, 3, 4),
    ("template: \"x {{ nope }}\"", "spec.unknown_source", 3, 19, 4),
    ("template: |\n\n    ü {{ nope }}", "spec.unknown_source", 5, 10, 4),
    ("template: |\n    a\n    {{ 1 | nope }}", "spec.bad_template", 5, 12, 4),
    ("template: >\n    a\n    {{ 1 | nope }}", "spec.bad_template", 4, 5, 1),
    ("template: \"{{ range(3) }}\"", "spec.unknown_source", 3, 17, 5),
];

/// A file's path.
#[rustfmt::skip]
const OF_A_PATH: &[(&str, &str, u32, u32, u32)] = &[
    ("../a", "spec.bad_path", 2, 9, 4),
    ("/a", "spec.bad_path", 2, 9, 2),
    ("..data", "spec.bad_path", 2, 9, 6),
    ("\"a\\0\"", "spec.bad_path", 2, 9, 5),
    ("a/", "spec.bad_path", 2, 9, 2),
    ("a//b", "spec.bad_path", 2, 9, 4),
    ("~", "spec.wrong_type", 2, 9, 1),
];

/// Keys of the volume, after a good file.
#[rustfmt::skip]
const OF_THE_VOLUME: &[(&str, &str, u32, u32, u32)] = &[
    ("mount: fuse", "spec.not_implemented", 4, 8, 4),
    ("fuse: {cache: true}", "spec.not_implemented", 4, 1, 4),
    ("onDenied: drop", "spec.wrong_type", 4, 11, 4),
    ("onDenied: {actoin: keep}", "spec.unknown_key", 4, 12, 6),
    ("onDenied: {action: keep, grace: 10m}", "spec.conflicting_keys", 4, 26, 5),
    ("onDenied: {action: remove, grace: 10}", "spec.bad_interval", 4, 35, 2),
    ("onDenied: {grace: 721h}", "spec.bad_interval", 4, 19, 4),
    ("onDenied: ~", "spec.wrong_type", 4, 11, 1),
    ("serveStaleFor: never", "spec.bad_interval", 4, 16, 5),
    ("serveStaleFor: 1000h", "spec.bad_interval", 4, 16, 5),
    ("apiVersion: v1", "spec.wrong_type", 4, 13, 2),
    ("refreshInterval: 60", "spec.bad_interval", 4, 18, 2),
    ("refreshInterval: 1000h", "spec.bad_interval", 4, 18, 5),
    ("refreshInterval: never", "spec.never_refreshed", 4, 18, 5),
    ("uid: -1", "spec.wrong_type", 4, 6, 2),
    ("gid: 4294967295", "spec.wrong_type", 4, 6, 10),
    ("sources: {b: store:b}", "spec.unused_source", 4, 11, 1),
    ("sources: {b: \"store:b#x\"}", "spec.bad_reference", 4, 14, 11),
    ("sources: {b: {backend: store, path: b, lease: volume}}", "spec.not_implemented", 4, 40, 5),
];

#[test]
fn every_kind_of_mistake_has_its_code_and_place() {
    let check = |text: &str, row: &(&str, &'static str, u32, u32, u32)| {
        let expect = (row.1, row.2, row.3, row.4);
        let seen = places(text);
        assert!(seen.contains(&expect), "{text}\n{seen:?}");
        assert!(
            seen.iter()
                .all(|seen| *seen == expect || seen.0 == "spec.unused_source"),
            "{text}\n{seen:?}"
        );
    };
    for row in OF_A_FILE {
        check(&format!("files:\n- path: a\n  {}\n", row.0), row);
    }
    for row in OF_A_PATH {
        check(
            &format!("files:\n- path: {}\n  from: store:a\n", row.0),
            row,
        );
    }
    for row in OF_THE_VOLUME {
        check(
            &format!("files:\n- path: a\n  from: plain:a\n{}\n", row.0),
            row,
        );
    }
    assert_eq!(places("files: []\n"), [("spec.missing_key", 1, 8, 1)]);
    assert_eq!(places("mount: tmpfs\n"), [("spec.missing_key", 1, 1, 5)]);
    assert_eq!(places("- a\n"), [("spec.wrong_type", 1, 1, 0)]);
    assert_eq!(
        places("sources: {my-db: store:a}\nfiles: [{path: a, from: my-db}]\n").len(),
        2
    );
}

#[test]
fn paths_that_exclude_each_other_are_both_named() {
    let two = |a: &str, b: &str| {
        format!("files:\n- {{path: {a}, from: \"store:a\"}}\n- {{path: {b}, from: \"store:b\"}}\n")
    };
    for (a, b) in [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")] {
        let found = problems(&two(a, b));
        assert_eq!(found.len(), 1, "{a} {b}: {found:?}");
        assert_eq!(
            (found[0].code.name, found[0].at.line),
            ("spec.path_conflict", 3)
        );
        assert!(found[0].message.contains("files[0]") && found[0].message.contains("line 2"));
    }
    for (a, b) in [("a", "ab"), ("a/b", "a/c"), ("a/b", "a/bc")] {
        assert_eq!(good(&two(a, b)).files.len(), 2);
    }
    let with_directory = |path: &str| {
        format!(
            "files:\n- {{path: d/, from: \"store:a#*\"}}\n- {{path: {path}, from: \"store:b\"}}\n"
        )
    };
    assert_eq!(places(&with_directory("d"))[0].0, "spec.path_conflict");
    assert_eq!(good(&with_directory("d/x")).files.len(), 2);
}

#[test]
fn all_problems_come_at_once_in_the_order_of_the_text_and_not_without_end() {
    let text = "mount: disk\nrefreshInterval: soon\nsources: {x: store:x}\nfiles:\n- {path: /a, from: y}\n- {frm: 1}\n";
    let lines: Vec<_> = problems(text).iter().map(|p| p.at.line).collect();
    assert_eq!(lines, [1, 2, 5, 5, 6, 6]);
    let many = "files:\n".to_owned() + &"- {path: /a}\n".repeat(200);
    assert_eq!(problems(&many).len(), secretfs::limits::PROBLEMS);
    let too_many = "files:\n".to_owned() + &"- {path: a, from: \"store:a\"}\n".repeat(300);
    assert!(
        problems(&too_many)
            .iter()
            .any(|p| p.code.name == "spec.too_large" && p.at.line == 258)
    );
}

#[test]
fn an_at_is_a_version_only_where_there_are_versions() {
    let spec =
        good("files:\n- {path: a, from: \"store:x@y@3#f\"}\n- {path: b, from: \"plain:x@3\"}\n");
    assert_eq!(spec.objects[0].path.as_ref(), "x@y");
    assert_eq!(spec.objects[0].version.as_deref(), Some("3"));
    assert_eq!(
        (spec.objects[1].path.as_ref(), &spec.objects[1].version),
        ("x@3", &None)
    );
    let fixed = "refreshInterval: never\nfiles: [{path: a, from: {backend: plain, path: x, version: \"3\"}}]\n";
    assert_eq!(good(fixed).refresh, Refresh::Never);
}

#[test]
fn the_structured_form_says_the_rest_in_canonical_json() {
    let spec = good(
        "files:\n- path: a\n  from: {backend: store, path: pki/web, method: write, data: {z: 1, b: \"1\", a: [true, null, 1h, 0.10]}, field: /x/y}\n",
    );
    let expect = r#"{"data":{"a":[true,null,"1h","0.10"],"b":"1","z":1},"method":"write"}"#;
    assert_eq!(&*spec.objects[0].params, expect);
    let same = good(
        "files:\n- {path: a, from: {path: x, backend: store}}\n- {path: b, from: \"store:x\"}\n",
    );
    assert_eq!(same.objects.len(), 1, "one object, however it is written");
}

#[test]
fn the_digest_is_of_the_meaning() {
    let digest = |text: &str| good(text).digest;
    let one = "sources: {a: store:x}\nfiles: [{path: f, from: a}]\n";
    let other = "# comment\nfiles:\n  - from: {path: x, backend: store}\n    path: 'f'\nrefreshInterval: 1m\n";
    assert_eq!(digest(one), digest(other));
    for changed in [
        "files: [{path: g, from: \"store:x\"}]\n",
        "files: [{path: f, from: \"store:x@1\"}]\n",
        "files: [{path: f, from: \"store:x#y\"}]\n",
        "files: [{path: f, from: \"store:x\", mode: \"0444\"}]\n",
        "files: [{path: f, from: \"store:x\", optional: true}]\n",
        "refreshInterval: 61s\nfiles: [{path: f, from: \"store:x\"}]\n",
        "uid: 1\nfiles: [{path: f, from: \"store:x\"}]\n",
    ] {
        assert_ne!(digest(one), digest(changed), "{changed}");
    }
}

#[test]
fn problems_are_shown_with_the_line_the_fix_and_the_code() {
    let text = "files:\n  - path: certs\n    from: store:a\n  - path: x\n    templte: |\n      y\n    from: store:x\n  - path: certs/ca.pem\n    from: store:b\n";
    let shown = check::show("app.yaml", text, &problems(text));
    let expect = "\
app.yaml:5:5: unknown key `templte` in files[1]
  5 |     templte: |
    |     ^^^^^^^ did you mean `template`?                                           spec.unknown_key
app.yaml:8:11: `certs` is a file (files[0], line 2) and cannot also be a directory
  8 |   - path: certs/ca.pem
    |           ^^^^^^^^^^^^ give one of the two another path                         spec.path_conflict
";
    let squeeze = |text: &str| {
        let lines = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.collect::<Vec<_>>()
    };
    assert_eq!(squeeze(&shown), squeeze(expect));
    for line in shown.lines().filter(|line| line.contains("spec.")) {
        assert_eq!(line.find("spec."), Some(80), "{line}");
    }
    let carets = shown.lines().nth(2).unwrap().find('^');
    assert_eq!(carets, shown.lines().nth(1).unwrap().find("templte"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_parses_or_is_told_why(text in "(?s)[\\[\\]{}a-z:#&*!|>'\"%@\\n -]{0,200}") {
        match parse(&text, &Setting::local(), &facts) {
            Ok(spec) => prop_assert!(!spec.files.is_empty()),
            Err(problems) => prop_assert!(!problems.is_empty() && problems.iter().all(|p| p.at.line > 0)),
        }
    }
}
