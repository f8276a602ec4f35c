//! Texts: specs, the configuration, the environment, the store's files and the records of volumes, at their limits and beyond.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use secretfs::{
    backend::registry,
    caller::Identity,
    config::{Config, Env},
    error::{Result, codes},
    limits,
    mount::VolumeId,
    path::TargetPath,
    secret::SecretBytes,
    spec::MountKind,
    store::{Identities, Name, Recipients, Store},
    sys::socket,
    volume::{
        Placing,
        record::{Records, Skip, VolumeRecord},
    },
};

use crate::{
    spec::{good, problems},
    support::program::program,
};

/// Code and message of the first problem.
fn first(spec: &str) -> String {
    let found = problems(spec);
    format!("{} {}", found[0].code.name, found[0].message)
}

fn long(n: usize) -> String {
    "a".repeat(n)
}

/// How to have so much of something in a spec.
type Spec = fn(usize) -> String;

#[rustfmt::skip]
const SPECS: &[(&str, usize, Spec, &str)] = &[
    ("bytes", limits::SPEC_BYTES, |n| { let s = "files: [{path: a, from: \"store:a\"}]\n"; s.to_owned() + &"#".repeat(n - s.len()) }, "spec.too_large"),
    ("files", limits::FILES_PER_VOLUME as usize, |n| {
        (0..n).fold("files:\n".to_owned(), |all, k| all + &format!("  - {{path: f{k}, from: \"store:a\"}}\n"))
    }, "spec.too_large"),
    ("a path's segment", limits::FILE_NAME_BYTES, |n| format!("files: [{{path: {}, from: \"store:a\"}}]", long(n)), "spec.bad_path"),
    ("a path", limits::PATH_BYTES, |n| format!("files: [{{path: {}{}, from: \"store:a\"}}]", "a/".repeat(n / 2 - 1), long(2 + n % 2)), "spec.bad_path"),
    ("a reference", limits::REFERENCE_BYTES, |n| format!("files: [{{path: a, from: \"plain:{}\"}}]", long(n)), "spec.bad_reference"),
    ("a version", limits::REFERENCE_BYTES, |n| format!("files: [{{path: a, from: {{backend: store, path: a, version: \"{}\"}}}}]", "1".repeat(n)), "spec.bad_reference"),
    ("a field", limits::REFERENCE_BYTES, |n| format!("files: [{{path: a, from: \"store:a#{}\"}}]", long(n)), "spec.bad_reference"),
    ("a source's name", limits::SOURCE_NAME_BYTES, |n| format!("sources: {{{0}: \"store:a\"}}\nfiles: [{{path: a, from: {0}}}]", long(n)), "spec."),
    ("words of a template's tag", limits::TEMPLATE_TAG_TOKENS, |n| template(&format!("{{{{ {}a }}}}", "-".repeat(n - 1))), "spec.bad_template"),
    ("elif of a template", limits::TEMPLATE_ELIFS, |n| template(&format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(n))), "spec.bad_template"),
];

/// A spec of one file by this template.
fn template(text: &str) -> String {
    format!("sources: {{a: \"store:a\"}}\nfiles: [{{path: a, template: \"{text}\"}}]")
}

#[test]
fn a_spec_is_taken_at_each_limit_and_told_beyond() {
    for (what, most, spec, code) in SPECS {
        good(&spec(*most));
        let told = first(&spec(most + 1));
        assert!(told.starts_with(code), "{what}: {told}");
    }
}

#[test]
fn a_spec_that_is_built_to_hurt_is_told_and_ends() {
    let laughs = (1..30).fold("l0: &l0 x\n".to_owned(), |all, n| {
        let before = format!("*l{}", n - 1);
        all + &format!("l{n}: &l{n} [{}]\n", vec![before; 9].join(", "))
    });
    let nested = |open: &str, n: usize| open.repeat(n);
    let wide = format!("files: [{}]", "[], ".repeat(60_000));
    let keys = (0..20_000).fold(String::new(), |all, n| all + &format!("k{n}: 1\n"));
    for text in [
        laughs,
        "a: &a [*a]".into(),
        nested("[", 200_000),
        nested("{a: ", 60_000),
        nested("- ", 100_000),
        (0..400).fold(String::new(), |all, n| all + &" ".repeat(n) + "a:\n"),
        wide,
        keys,
        "\u{feff}".repeat(80_000),
        "files: !!binary aaaa".into(),
        "%YAML 9.9\n---\nfiles: []".into(),
        "--- {}\n".repeat(30_000),
        format!("? {}\n: a", long(200_000)),
        "&a ".repeat(80_000),
        format!("files: \"{}", long(200_000)),
        template(&"{{".repeat(50_000)),
        template(&"{% if a %}".repeat(5_000)),
        template(&format!(
            "{{{{ {}a{} }}}}",
            "(".repeat(5_000),
            ")".repeat(5_000)
        )),
    ] {
        let told = problems(&text);
        assert!((1..=limits::PROBLEMS).contains(&told.len()));
        for problem in told {
            assert!(
                problem.message.len() < 1000,
                "{} bytes",
                problem.message.len()
            );
        }
    }
}

#[test]
fn the_configuration_is_taken_at_each_limit_and_told_beyond() {
    let parse = |text: &str| -> Vec<String> {
        let parsed = Config::parse(text, &Env::default(), &registry::problems);
        let told = parsed.err().unwrap_or_default().into_iter();
        told.map(|problem| format!("{} {}", problem.code.name, problem.message))
            .collect()
    };
    type Text = fn(usize) -> String;
    #[rustfmt::skip]
    let rows: &[(&str, usize, Text)] = &[
        ("bytes", limits::SPEC_BYTES, |n| "node: a\n".to_owned() + &"#".repeat(n - 8)),
        ("the endpoint", socket::PATH_BYTES, |n| format!("endpoint: unix:///{}", long(n - 1))),
        ("a backend's name", limits::SOURCE_NAME_BYTES, |n| format!("backends: {{{}: {{kind: store, path: /s, identity: /i}}}}", long(n))),
        ("a pattern", limits::REFERENCE_BYTES, |n| {
            let backend = "backends: {s: {kind: store, path: /s, identity: /i}}";
            format!("{backend}\npolicy: [{{namespaces: [a], serviceAccounts: [a], allow: [\"s:{}\"]}}]", long(n))
        }),
        // nodes: the mapping, its key, the list, and a line of nine and a pattern
        ("the node's name", limits::NODE_ID_BYTES, |n| format!("node: {}", long(n))),
    ];
    for (what, most, text) in rows {
        assert_eq!(parse(&text(*most)), [""; 0], "{what}");
        assert!(!parse(&text(most + 1)).is_empty(), "{what}");
    }
    let lines = |n: usize| {
        let line = "- {namespaces: [a], serviceAccounts: [a], allow: [\"s:a\"]}\n";
        format!(
            "backends: {{s: {{kind: store, path: /s, identity: /i}}}}\npolicy:\n{}",
            line.repeat(n)
        )
    };
    assert_eq!(parse(&lines(900)), [""; 0]);
    let told = parse(&lines(4_000));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("10000 nodes"), "{told:?}");
}

#[test]
fn an_environment_of_any_bytes_is_read() {
    use std::os::unix::ffi::OsStringExt as _;
    let bad = std::ffi::OsString::from_vec(vec![0xff, 0xfe, b'/']);
    let env = Env::from(|_| Some(bad.clone()));
    assert_eq!(
        (env.node_name, env.log_level, env.kubernetes),
        (None, None, None)
    );
    assert_eq!(env.runtime_dir, None, "it is not absolute");
    let huge = Env::from(|_| Some(long(1 << 20).into()));
    assert!(
        huge.node_name.is_some_and(|name| name.len() == 1 << 20),
        "held against its limit where it is used"
    );
}

// --- the store

struct Kept {
    dir: tempfile::TempDir,
    store: Store,
    keys: Identities,
}

impl Kept {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("id");
        let (public, _) = Identities::load_or_make(&file).unwrap();
        let place = dir.path().join("store");
        Store::init(&place, &Recipients::of(&public).unwrap()).unwrap();
        Self {
            store: Store::open(place).unwrap(),
            keys: Identities::load(&file).unwrap(),
            dir,
        }
    }

    fn path(&self, below: &str) -> std::path::PathBuf {
        self.dir.path().join(below)
    }

    fn get(&self, text: &str) -> String {
        let got = self.store.get(&name(text), None, &self.keys);
        told(got.map(|(_, value)| value.len()))
    }
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn told<T: std::fmt::Display>(result: Result<T>) -> String {
    match result {
        Ok(value) => format!("ok {value}"),
        Err(error) => format!("{} {error}", error.code().name),
    }
}

#[test]
fn a_value_of_the_store_has_its_limit_and_a_file_that_is_none_is_told() {
    let kept = Kept::new();
    let most = usize::try_from(limits::STORE_VALUE_BYTES).unwrap();
    let put = |bytes: usize| {
        kept.store
            .put(&name("a"), &SecretBytes::new(vec![7; bytes]))
    };
    assert_eq!(told(put(most)), "ok 1");
    assert_eq!(kept.get("a"), format!("ok {most}"));
    assert!(told(put(most + 1)).starts_with("store.too_large"));
    assert_eq!(kept.get("a"), format!("ok {most}"));

    let file = |version: &str| kept.path(&format!("store/secrets/a/{version}.age"));
    let header = usize::try_from(limits::STORE_HEADER_BYTES).unwrap();
    fs::write(file("2"), vec![b'x'; most + header + 1]).unwrap();
    assert!(
        kept.get("a").starts_with("store.too_large"),
        "{}",
        kept.get("a")
    );
    // a header that does not end where one may
    let stanza = "-> X25519 TEiF0ypqr+bpvcqXNyCVJpL7OuwPdVwPL7KQEbFDOCc\nEmECAEcKN+n/Vs9SbWiV+Hu0r+E8R77DdWYyd83nw7U\n";
    let stanzas = |n: usize| {
        format!(
            "age-encryption.org/v1\n{}--- {}\n",
            stanza.repeat(n),
            long(43)
        )
    };
    fs::write(file("2"), stanzas(header / stanza.len() + 1)).unwrap();
    assert!(
        kept.get("a").contains("a header longer than 64 KiB"),
        "{}",
        kept.get("a")
    );
    fs::write(file("2"), stanzas(100)).unwrap();
    assert!(
        kept.get("a").starts_with("store.corrupt"),
        "{}",
        kept.get("a")
    );
    // the highest number that there is, and one more, which is none
    fs::rename(file("1"), file("18446744073709551615")).unwrap();
    fs::write(file("18446744073709551616"), "").unwrap();
    assert_eq!(kept.get("a"), format!("ok {most}"));
    let full = told(put(1));
    assert!(
        !full.starts_with("ok") && kept.get("a") == format!("ok {most}"),
        "{full}"
    );
}

#[test]
fn a_pipe_in_the_store_is_no_version_and_nobody_waits_for_it() {
    let kept = Kept::new();
    kept.store
        .put(&name("a"), &SecretBytes::new(b"1".to_vec()))
        .unwrap();
    let pipe = kept.path("store/secrets/a/2.age");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, rustix::fs::Mode::RUSR, 0).unwrap();
    let got = kept.get("a");
    assert!(
        got.starts_with("store.io") && got.contains("not a regular file"),
        "{got}"
    );
}

#[test]
fn the_stores_small_files_have_their_limit() {
    let kept = Kept::new();
    let most = usize::try_from(limits::KEY_FILE_BYTES).unwrap();
    let opened = || told(Store::open(kept.path("store")).map(|_| ""));
    for (file, at, beyond) in [
        ("store/store.json", "ok ", "store.corrupt"),
        ("store/recipients", "ok ", "store.bad_recipient"),
        ("id", "ok ", "store.identity_bad"),
    ] {
        let path = kept.path(file);
        let text = fs::read(&path).unwrap();
        let look = || match file {
            "store/store.json" => opened(),
            "store/recipients" => told(kept.store.recipients().map(|_| "")),
            _ => told(Identities::load(&path).map(|_| "")),
        };
        for (bytes, expect) in [(most, at), (most + 1, beyond)] {
            let mut padded = text.clone();
            padded.resize(bytes, b'\n');
            fs::write(&path, padded).unwrap();
            let got = look();
            assert!(got.starts_with(expect), "{file} of {bytes}: {got}");
        }
        fs::write(&path, text).unwrap();
    }
}

#[test]
fn recipients_are_as_many_as_a_header_holds() {
    let kept = Kept::new();
    let keys = |n: usize| -> Vec<String> {
        (0..n)
            .map(|_| age::x25519::Identity::generate().to_public().to_string())
            .collect()
    };
    let own = kept.keys.public_keys();
    let put = |n: usize| {
        let all = Recipients::of(&[own.clone(), keys(n)].concat()).unwrap();
        fs::write(kept.path("store/recipients"), all.to_text()).unwrap();
        told(kept.store.put(&name("a"), &SecretBytes::new(b"1".to_vec())))
    };
    assert_eq!(put(500), "ok 1");
    assert_eq!(kept.get("a"), "ok 1");
    let refused = put(700);
    assert!(refused.contains("too many recipients"), "{refused}");
    assert_eq!(kept.get("a"), "ok 1", "the version before");
}

// --- the command line

/// Runs `store` below a directory of its own.
fn store(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(program());
    command
        .arg("store")
        .args(args)
        .env_clear()
        .env("SECRETFS_STORE", dir.join("store"))
        .env("SECRETFS_IDENTITY", dir.join("id"))
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input); // it may have had enough: EPIPE
    child.wait_with_output().unwrap()
}

#[test]
fn what_is_typed_into_the_store_has_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str], input: &[u8]| {
        let output = store(dir.path(), args, input);
        let code = output.status.code().unwrap();
        (code, String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run(&["init"], b"").0, 0);
    let most = usize::try_from(limits::STORE_VALUE_BYTES).unwrap();
    assert_eq!(run(&["put", "a"], &vec![7; most]).0, 0);
    for endless in [most + 1, 8 * most] {
        let (code, told) = run(&["put", "a"], &vec![7; endless]);
        assert!(
            code == 1 && told.contains("store.too_large"),
            "{code} {told}"
        );
    }
    let (code, told) = run(&["put", "a", "--file", "/dev/zero"], b"");
    assert!(
        code == 1 && told.contains("store.too_large"),
        "{code} {told}"
    );
    let (code, told) = run(&["put", "a", "--field", "k=@/dev/zero"], b"");
    assert!(
        code == 1 && told.contains("store.too_large"),
        "{code} {told}"
    );
    for (field, code) in [
        ("=@-", 2),
        ("k", 2),
        ("k=v", 2),
        ("*=@-", 2),
        ("/k=@-", 2),
        ("k#=@-", 2),
        ("k\u{1b}=@-", 2),
        ("k=@none", 2),
    ] {
        let (got, told) = run(&["put", "b", "--field", field], b"x");
        assert_eq!(got, code, "{field:?}: {told}");
        assert!(!told.contains('\u{1b}'), "{told:?}");
    }
    let (code, told) = run(&["put", &long(256)], b"x");
    assert!(code == 2 && told.contains("255 bytes"), "{told}");
    let (code, told) = run(&["get", "a", "--version", "18446744073709551616"], b"");
    assert_eq!(code, 2, "{told}");
    let fields: Vec<String> = (0..3)
        .flat_map(|k| ["--field".into(), format!("k{k}=@half")])
        .collect();
    fs::write(dir.path().join("half"), vec![b'x'; most / 2]).unwrap();
    let args: Vec<&str> = ["put", "c"]
        .into_iter()
        .chain(fields.iter().map(String::as_str))
        .collect();
    let (code, told) = run(&args, b"");
    assert!(
        code == 1 && told.contains("store.too_large"),
        "{code} {told}"
    );
}

// --- records

fn record(id: &str, spec: &str) -> VolumeRecord {
    VolumeRecord {
        id: VolumeId::parse(id).unwrap(),
        target: TargetPath::parse(Path::new("/t/v")).unwrap(),
        who: Identity::Local { uid: 0 },
        spec: spec.into(),
        kind: MountKind::Tmpfs,
        placing: Placing::default(),
    }
}

#[test]
fn records_that_are_none_are_skipped_and_hide_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::below(dir.path());
    let place = dir.path().join("volumes");
    // the largest spec, each byte of which is six in JSON
    let largest = "\u{1}".repeat(limits::SPEC_BYTES);
    for (id, spec) in [("good", "files: []"), ("large", &largest)] {
        records.write(&record(id, spec)).unwrap();
        records.settle(&VolumeId::parse(id).unwrap()).unwrap();
    }
    let text = fs::read_to_string(place.join("good.json")).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(place.join(name), bytes).unwrap();
    let most = usize::try_from(limits::RECORD_BYTES).unwrap();
    let mut padded = text.clone().into_bytes();
    padded.resize(most + 1, b' ');
    put("larger.json", &padded);
    put("empty.json", b"");
    put("bytes.json", &[0xff; 100]);
    put("deep.json", "[".repeat(1 << 20).as_bytes());
    put(
        "newer.json",
        text.replace("\"version\":1", "\"version\":4294967295")
            .as_bytes(),
    );
    put(
        "number.json",
        text.replace("\"version\":1", "\"version\":4294967296")
            .as_bytes(),
    );
    put("renamed.json", text.as_bytes());
    put(
        "up.json",
        text.replace("/t/v", "/t/../v")
            .replace("\"good\"", "\"up\"")
            .as_bytes(),
    );
    put(
        "id.json",
        text.replace("\"good\"", "\"../../id\"").as_bytes(),
    );
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.join("pipe.json"),
        kind,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    std::os::unix::fs::symlink("/dev/zero", place.join("device.json")).unwrap();
    fs::create_dir(place.join("dir.json")).unwrap();
    let loaded = records.load();
    let ids: Vec<&str> = loaded.records.keys().map(VolumeId::as_str).collect();
    assert_eq!(ids, ["good", "large"]);
    let mut skipped = loaded.skipped;
    skipped.sort_by(|a, b| a.0.cmp(&b.0));
    let expect = [
        ("bytes.json", Skip::Damaged),
        ("deep.json", Skip::Damaged),
        ("device.json", Skip::Unreadable),
        ("dir.json", Skip::Unreadable),
        ("empty.json", Skip::Damaged),
        ("id.json", Skip::Misnamed),
        ("larger.json", Skip::TooLarge),
        ("newer.json", Skip::Newer),
        ("number.json", Skip::Damaged),
        ("pipe.json", Skip::Unreadable),
        ("renamed.json", Skip::Misnamed),
        ("up.json", Skip::Damaged),
    ];
    assert_eq!(skipped, expect.map(|(name, why)| (name.to_owned(), why)));
}

#[test]
fn more_records_than_a_node_has_are_counted_and_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("volumes");
    fs::create_dir(&place).unwrap();
    for n in 0..limits::RECORDS + 5 {
        fs::File::create(place.join(format!("{n}.json"))).unwrap();
    }
    let loaded = Records::below(dir.path()).load();
    let too_many = loaded
        .skipped
        .iter()
        .filter(|(_, why)| *why == Skip::TooMany);
    assert_eq!(too_many.count(), 5);
    assert_eq!(
        fs::read_dir(&place).unwrap().count(),
        5,
        "those that are damaged have gone"
    );
}

#[test]
fn the_mode_of_an_identity_is_not_wider_than_its_owner() {
    let kept = Kept::new();
    let path = kept.path("id");
    for mode in [0o604, 0o640, 0o4600, 0o700] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let refused = Identities::load(&path).unwrap_err();
        assert_eq!(refused.code(), &codes::STORE_IDENTITY_MODE, "{mode:o}");
    }
}
