//! Every subcommand, when it works and when it fails.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
    thread,
};

use rustix::process::Signal;

use super::{
    modules::{Seen, assert_seen},
    sinks::{ECHO, Sinks},
};
use crate::support::{
    canary::CANARY,
    program::{Bed, eventually},
};

/// Commands that work only while somebody serves, or for long: they do in the tests below, in `node`, and in `mount_demo`.
const LONG: [&str; 4] = ["demo", "mount", "node", "refresh"];

/// Every file rule that can fail on a value, and what goes through it.
pub const FAILING: [(&str, &str); 12] = [
    ("no such field", "from: store:doc#none"),
    ("no such pointer", "from: store:doc#/password/deeper"),
    ("fields of a text", "from: store:text#field"),
    ("all fields of a text", "from: store:text#*"),
    ("not base64", "from: store:text\n    decode: base64"),
    ("not hex", "from: store:doc#password\n    decode: hex"),
    ("not text", "from: store:binary\n    format: dotenv"),
    (
        "undefined in a template",
        "template: '{{ doc.password }} {{ doc.none }}'",
    ),
    (
        "a filter that fails",
        "template: '{{ doc.password | b64decode }}'",
    ),
    (
        "arithmetic on a value",
        "template: '{{ doc.password + 1 }}'",
    ),
    ("a value as an index", "template: '{{ doc[doc.password] }}'"),
    ("binary in a template", "template: '{{ binary }}'"),
];

/// A spec of one such rule.
pub fn failing_spec(rule: &str) -> String {
    let sources = "sources:\n  doc: store:doc\n  binary: store:binary\n";
    let used =
        |name: &str| rule.contains(&format!("{{ {name}")) || rule.contains(&format!("[{name}"));
    let needed =
        |line: &&str| line.starts_with('s') || used(line.trim().split(':').next().unwrap());
    let mut spec = String::new();
    if rule.contains("template") {
        spec.extend(
            sources
                .lines()
                .filter(needed)
                .map(|line| format!("{line}\n")),
        );
    }
    let path = if rule.contains("#*") { "all/" } else { "f" };
    spec + &format!("files:\n  - path: {path}\n    {rule}\n")
}

fn doc() -> String {
    serde_json::json!({ "username": "app", "password": CANARY }).to_string()
}

/// A store that has the canary in a document, as a text, and inside bytes that are not text.
pub fn fill(bed: &Bed) {
    bed.put("doc", &doc());
    bed.put("text", CANARY);
    let mut binary = vec![0xff, 0xfe];
    binary.extend(CANARY.as_bytes());
    fs::write(bed.path("binary.bin"), &binary).unwrap();
    bed.ok(&["store", "put", "binary", "--file", "binary.bin"], "");
    fs::remove_file(bed.path("binary.bin")).unwrap();
}

/// The secret key in an identity file.
pub fn identity_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let key = text
        .lines()
        .find(|line| line.starts_with("AGE-SECRET-KEY-"));
    key.unwrap().to_owned()
}

/// A bed with such a store, and what must be nowhere.
fn bed() -> (Bed, Sinks) {
    let bed = Bed::named(ECHO);
    fill(&bed);
    let mut sinks = Sinks::new();
    sinks.secret("the identity", identity_of(&bed.path("identity.age")));
    (bed, sinks)
}

/// Flips a byte near the end of every encrypted file.
pub fn damage(store: &Path) {
    for entry in fs::read_dir(store).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            damage(&path);
        } else if path.extension().is_some_and(|end| end == "age") {
            let mut bytes = fs::read(&path).unwrap();
            let last = bytes.len() - 3;
            bytes[last] ^= 0x55;
            fs::write(&path, bytes).unwrap();
        }
    }
}

/// `secretfs store`, whole and damaged.
fn store(bed: &Bed, sinks: &mut Sinks) {
    let key = identity_of(&bed.path("identity.age"));
    sinks.run(bed, &["store", "init"], "");
    sinks.run(
        bed,
        &["store", "init", "--store", "new", "--identity", "new.age"],
        "",
    );
    sinks.secret("another identity", identity_of(&bed.path("new.age")));
    // a secret key where a public one belongs: a mistake that happens
    sinks.run(
        bed,
        &["store", "init", "--store", "newer", "--recipient", &key],
        "",
    );
    sinks.run(bed, &["store", "rekey", "--recipient", &key], "");
    sinks.run(bed, &["store", "put", "more"], CANARY);
    sinks.run(bed, &["store", "put", "bad//name"], CANARY);
    sinks.run(bed, &["store", "put", "field", "--field", "a=@-"], CANARY);
    sinks.run(bed, &["store", "put", "field", "--field", "broken"], CANARY);
    sinks.run(
        bed,
        &["store", "put", "field", "--field", "a=@none"],
        CANARY,
    );
    // a value in the arguments: refused, and not repeated
    sinks.run(bed, &["store", "put", "more", CANARY], "");
    sinks.run(
        bed,
        &[
            "store",
            "put",
            "more",
            "--field",
            &format!("password={CANARY}"),
        ],
        "",
    );
    sinks.run(bed, &["store", "put", "more"], &CANARY.repeat(100_000));
    sinks.run(bed, &["store", "get", "none"], "");
    sinks.run(bed, &["store", "get", "text", "--field", "none"], "");
    sinks.run(bed, &["store", "get", "binary", "--field", "none"], "");
    sinks.run(bed, &["store", "get", "doc", "--version", "99"], "");
    sinks.run(bed, &["store", "get", "doc", "--field", "username"], "");
    sinks.run(bed, &["store", "list", "--json"], "");
    sinks.run(bed, &["store", "list"], "");
    sinks.run(bed, &["store", "history", "text"], "");
    sinks.run(bed, &["store", "history", "none"], "");
    sinks.run(bed, &["store", "rollback", "text"], "");
    sinks.run(bed, &["store", "rollback", "text", "1"], "");
    sinks.run(bed, &["store", "rm", "more"], "");
    sinks.run(bed, &["store", "rekey"], "");
    keys(bed, sinks, &key);
    damage(&bed.path("store"));
    sinks.run(bed, &["store", "get", "text"], "");
    sinks.run(bed, &["store", "rollback", "text", "1"], "");
    sinks.run(bed, &["store", "rekey"], "");
    sinks.files_below("the store", &bed.path("store")); // it is encrypted
    fs::rename(bed.path("store"), bed.path("away")).unwrap();
    sinks.run(bed, &["store", "list"], "");
    sinks.run(bed, &["check", "app.yaml", "--fetch"], "");
    fs::rename(bed.path("away"), bed.path("store")).unwrap();
}

/// Files of keys that hold something else, or are open to others.
fn keys(bed: &Bed, sinks: &mut Sinks, key: &str) {
    let identity = bed.path("identity.age");
    let whole = fs::read(&identity).unwrap();
    for (mode, text) in [
        (0o600, format!("{CANARY}\n")),
        (0o600, format!("{key}{CANARY}\n")),
        (0o600, key[..40].to_owned()),
        (0o644, format!("{key}\n")),
    ] {
        fs::write(&identity, text).unwrap();
        fs::set_permissions(&identity, fs::Permissions::from_mode(mode)).unwrap();
        sinks.run(bed, &["store", "get", "text"], "");
        sinks.run(bed, &["store", "rekey"], "");
    }
    fs::write(&identity, whole).unwrap();
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o600)).unwrap();
    let recipients = bed.path("store/recipients");
    let whole = fs::read(&recipients).unwrap();
    for line in [key, CANARY] {
        fs::write(&recipients, format!("{line}\n")).unwrap();
        sinks.run(bed, &["store", "put", "more"], CANARY);
        sinks.run(bed, &["store", "rekey"], "");
    }
    fs::write(&recipients, whole).unwrap();
}

/// `check` and `mount` on every rule that fails on a value, and on input that is none.
fn check_and_mount(bed: &Bed, sinks: &mut Sinks) {
    for (what, rule) in FAILING {
        bed.write("app.yaml", &failing_spec(rule));
        let code = sinks.run(bed, &["check", "app.yaml", "--fetch"], "");
        assert!(matches!(code, Some(1 | 2)), "{what} was to fail: {code:?}");
        sinks.run(bed, &["check", "app.yaml", "--fetch", "--json"], "");
        let code = sinks.run(bed, &["mount", "app.yaml", "target"], "");
        assert!(matches!(code, Some(1 | 2)), "{what} was to fail: {code:?}");
    }
    bed.write("app.yaml", SPEC);
    sinks.run(bed, &["check", "app.yaml", "--fetch"], "");
    sinks.run(bed, &["check", "app.yaml", "--fetch", "--json"], "");
    sinks.run(bed, &["check", "none.yaml"], "");
    sinks.run(bed, &["mount", "app.yaml", "none"], "");
    sinks.run(bed, &["mount", "none.yaml", "target"], "");
    // a secret in a configuration: a mistake. Its key is named; a person is also shown the line, which is his own
    bed.write(
        "node.yaml",
        &format!("backends: {{store: {{kind: store, password: '{CANARY}'}}}}\n"),
    );
    sinks.run(bed, &["check", "--config", "node.yaml", "--json"], "");
    sinks.run(bed, &["node", "--config", "none.yaml"], "");
}

/// `exec` from everywhere, with each mistake that is about a value or a name.
fn exec(bed: &Bed, sinks: &mut Sinks) {
    bed.write("app.yaml", SPEC);
    let dir = bed.path("exec");
    for (name, value) in [
        ("good/a", CANARY.as_bytes()),
        ("nul/a", format!("{CANARY}\0").as_bytes()),
        ("big/a", CANARY.repeat(9000).as_bytes()),
    ] {
        fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        fs::write(dir.join(name), value).unwrap();
    }
    fs::create_dir(dir.join("good/..1")).unwrap();
    fs::rename(dir.join("good/a"), dir.join("good/..1/a")).unwrap();
    std::os::unix::fs::symlink("..1", dir.join("good/..data")).unwrap();
    for (from, options, program) in [
        (&["--from", "exec/good"][..], &[][..], "true"),
        (&["--from", "exec/good"], &["--restart-on-change"], "true"),
        (&["--from", "exec/good"], &["--env", "A=b"], "true"),
        (&["--from", "exec/good"], &["--prefix", "1"], "true"),
        (&["--from", "exec/good"], &[], "nonesuch"),
        (&["--from", "exec/good"], &[], "/etc/passwd"),
        (&["--from", "exec/nul"], &[], "true"),
        (&["--from", "exec/big"], &[], "true"),
        (&["--spec", "app.yaml"], &[], "true"),
        (&["--spec", "app.yaml"], &["--signal", "HUP"], "true"),
        (&["--spec", "app.yaml"], &["--mount", "target"], "true"),
        (&["--spec", "app.yaml"], &["--mount", "none"], "true"),
    ] {
        sinks.run(
            bed,
            &[&["exec"], from, options, &["--", program]].concat(),
            "",
        );
    }
    // a value where a name belongs: a mistake; its author sees it again, nobody else does
    for (what, rule) in FAILING {
        bed.write("app.yaml", &failing_spec(rule));
        let code = sinks.run(bed, &["exec", "--spec", "app.yaml", "--", "true"], "");
        assert!(
            matches!(code, Some(2 | 125)),
            "{what} was to fail: {code:?}"
        );
    }
}

/// `status`, `refresh`, `version` and the usage of all, where nobody serves and where somebody answers nonsense.
fn others(bed: &Bed, sinks: &mut Sinks) {
    let nonsense = format!("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{CANARY}\r\n");
    let refusal =
        format!("HTTP/1.1 500 {CANARY}\r\nX-Token: {CANARY}\r\nContent-Length: 20\r\n\r\n{CANARY}");
    for answer in [nonsense, refusal, CANARY.to_owned()] {
        let path = bed.path("fake.sock");
        let _ = fs::remove_file(&path);
        let listener =
            UnixListener::bind(secretfs::sys::socket::Short::of(&path).unwrap().path).unwrap();
        let served = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let mut request = [0; 1024];
                if stream.read(&mut request).unwrap_or(0) == 4 {
                    return; // "stop"
                }
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        sinks.run(bed, &["status", "--socket", "fake.sock"], "");
        sinks.run(bed, &["status", "--socket", "fake.sock", "--json"], "");
        sinks.run(bed, &["refresh", "--socket", "fake.sock"], "");
        let mut stop = std::os::unix::net::UnixStream::connect(
            secretfs::sys::socket::Short::of(&path).unwrap().path,
        )
        .unwrap();
        stop.write_all(b"stop").unwrap();
        served.join().unwrap();
    }
    sinks.run(bed, &["status"], "");
    sinks.run(bed, &["status", "--json"], "");
    sinks.run(bed, &["refresh"], "");
    sinks.run(bed, &["version"], "");
    sinks.run(bed, &["version", "--json"], "");
    for args in [
        &["version", "--unknown"][..],
        &["demo", "--unknown"],
        &["store", "list", "--unknown"],
        &["node"],
    ] {
        sinks.run(bed, args, "");
    }
}

#[test]
fn every_command_says_nothing_whether_it_works_or_not() {
    let (bed, mut sinks) = bed();
    check_and_mount(&bed, &mut sinks);
    exec(&bed, &mut sinks);
    store(&bed, &mut sinks);
    others(&bed, &mut sinks);
    sinks.assert_silent();
    assert_seen(Seen::Commands, &sinks.logs());

    let missing = |well: bool| {
        let ran = |name: &String| sinks.ended.contains(&(name.clone(), well));
        let mut all = commands(&bed);
        all.retain(|name| !(ran(name) || (well && LONG.contains(&name.as_str()))));
        all
    };
    assert_eq!(missing(true), BTreeSet::new(), "commands that never worked");
    assert_eq!(
        missing(false),
        BTreeSet::new(),
        "commands that never failed"
    );
}

/// All commands, by the program's own help; of those that have commands below them, those.
fn commands(bed: &Bed) -> BTreeSet<String> {
    let below = |of: &[&str]| {
        let help = bed.ok(&[of, &["--help"]].concat(), "");
        let list = help.split("Commands:\n").nth(1).map(str::to_owned);
        let list = list.unwrap_or_default();
        let names = list.lines().take_while(|line| !line.is_empty());
        let names = names.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let names = names.filter_map(|line| line.split_whitespace().next());
        let mut names: Vec<_> = names.map(str::to_owned).collect();
        names.retain(|name| name != "help");
        names
    };
    let mut all = BTreeSet::new();
    for name in below(&[]) {
        let more = below(&[name.as_str()]);
        match more.is_empty() {
            true => drop(all.insert(name)),
            false => all.extend(more.iter().map(|one| format!("{name} {one}"))),
        }
    }
    assert!(all.len() >= 15, "{all:?}");
    all
}

/// A template, and a value as it is.
const SPEC: &str = "sources:\n  doc: store:doc\nfiles:\n  - path: t\n    template: '{{ doc.password }}'\n  - path: p\n    from: doc#password\n";

/// One life of a mount, with everything that can happen to it.
fn a_life(bed: &Bed, sinks: &mut Sinks, format: &str) {
    let hook = "env > hook-env; tr '\\0' ' ' < /proc/$$/cmdline > hook-args; exit 1";
    let mut running = bed.mount(SPEC, &["--on-change", hook, "--log-format", format]);
    sinks.run(bed, &["check", "app.yaml", "--fetch"], "");
    assert_eq!(bed.file("p"), CANARY);
    bed.put(
        "doc",
        &serde_json::json!({ "password": format!("{CANARY}2") }).to_string(),
    );
    eventually("a new value", || bed.file("p").ends_with('2'));
    bed.put("doc", &serde_json::json!({ "other": CANARY }).to_string()); // the template fails now
    eventually("the render error shows", || {
        bed.status()["error"].is_object()
    });
    sinks.run(bed, &["status"], "");
    sinks.run(bed, &["status", "--json"], "");
    bed.put("doc", &doc());
    eventually("it is well again", || bed.status()["error"].is_null());
    assert_eq!(sinks.run(bed, &["refresh"], ""), Some(0));
    damage(&bed.path("store"));
    sinks.run(bed, &["refresh"], "");
    running.signal(Signal::HUP);
    eventually("the store error shows", || {
        bed.status()["error"].is_object()
    });
    sinks.run(bed, &["status"], "");
    sinks.run(bed, &["status", "--json"], "");
    sinks.running(&running);
    sinks.files_below("the run directory", &bed.path("run"));
    eventually("the hook ran", || bed.path("hook-args").exists());
    sinks.add(
        "what the hook was told",
        fs::read(bed.path("hook-args")).unwrap(),
    );
    sinks.add(
        "what the hook was told",
        fs::read(bed.path("hook-env")).unwrap(),
    );
    running.signal(Signal::TERM);
    assert!(running.ended().success());
    sinks.running(&running);
}

#[test]
fn a_whole_life_of_a_mount_says_nothing() {
    for format in ["text", "json"] {
        let (bed, mut sinks) = bed();
        a_life(&bed, &mut sinks, format);
        sinks.assert_silent();
        assert_seen(Seen::Mount, &sinks.text("log"));
        for sink in [
            "log",
            "environ",
            "stdout",
            "what the hook was told",
            "stdout of commands",
        ] {
            assert!(
                sinks.echoes().contains(sink),
                "{sink} was not looked into: {:?}",
                sinks.echoes()
            );
        }
    }
}
