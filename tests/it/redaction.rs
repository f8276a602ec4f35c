//! No secret gets out: a canary goes through every path of the program at trace level, error branches included.
//!
//! The sinks are what the program prints and logs, what `status` and `check` say, what it leaves in its run directory, and what
//! other processes can see of it (arguments, environment). Two places may hold the canary and are not sinks: what `store get`
//! prints, and the mounted files.

use std::{collections::BTreeMap, fs, path::Path};

use rustix::process::Signal;

use crate::support::{
    canary::{CANARY, found_in},
    program::{Bed, Running, eventually},
};

/// What came out where.
#[derive(Default)]
struct Sinks(BTreeMap<String, Vec<u8>>);

impl Sinks {
    fn add(&mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.entry(name.into()).or_default().extend(bytes.into());
    }

    /// Runs a command at trace level; both its streams are sinks. Whether it worked does not matter here.
    fn run(&mut self, bed: &Bed, args: &[&str], input: &str) -> Option<i32> {
        for format in ["text", "json"] {
            let mut all = args.to_vec();
            all.extend(["--log-level", "trace", "--log-format", format]);
            let output = bed.run(&all, input);
            self.add(format!("stdout of {args:?}"), output.stdout);
            self.add(format!("stderr of {args:?}"), output.stderr);
            if format == "json" {
                return output.status.code();
            }
        }
        None
    }

    fn running(&mut self, name: &str, running: &Running) {
        let proc = format!("/proc/{}", running.child.id());
        for file in ["cmdline", "environ"] {
            self.add(
                format!("{file} of {name}"),
                fs::read(Path::new(&proc).join(file)).unwrap_or_default(),
            );
        }
        self.add(format!("log of {name}"), running.log());
    }

    fn files_below(&mut self, dir: &Path) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                self.files_below(&path);
            } else if path.is_file() {
                self.add(
                    format!("file {}", path.display()),
                    fs::read(&path).unwrap_or_default(),
                );
            }
        }
    }

    fn leaks(&self) -> Vec<String> {
        let leak = |(name, bytes): (&String, &Vec<u8>)| {
            let forms = found_in(bytes);
            (!forms.is_empty()).then(|| format!("{name}: {forms:?}"))
        };
        self.0.iter().filter_map(leak).collect()
    }
}

/// Every file rule that can fail on a value, and what goes through it.
const FAILING: [(&str, &str); 12] = [
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

fn doc() -> String {
    serde_json::json!({ "username": "app", "password": CANARY }).to_string()
}

/// A bed whose store has the canary in a document, as a text, and inside bytes that are not text.
fn bed() -> Bed {
    let bed = Bed::new();
    bed.put("doc", &doc());
    bed.put("text", CANARY);
    let mut binary = vec![0xff, 0xfe];
    binary.extend(CANARY.as_bytes());
    fs::write(bed.path("binary.bin"), &binary).unwrap();
    bed.ok(&["store", "put", "binary", "--file", "binary.bin"], "");
    fs::remove_file(bed.path("binary.bin")).unwrap();
    bed
}

#[test]
fn the_store_commands_say_nothing() {
    let bed = bed();
    let mut sinks = Sinks::default();
    sinks.run(&bed, &["store", "put", "more"], CANARY);
    sinks.run(&bed, &["store", "put", "bad//name"], CANARY);
    sinks.run(&bed, &["store", "put", "field", "--field", "a=-"], CANARY);
    sinks.run(
        &bed,
        &["store", "put", "field", "--field", "broken"],
        CANARY,
    );
    sinks.run(&bed, &["store", "get", "text", "--field", "none"], "");
    sinks.run(&bed, &["store", "get", "binary", "--field", "none"], "");
    sinks.run(&bed, &["store", "get", "doc", "--version", "99"], "");
    for args in [
        ["list", "--json"],
        ["history", "text"],
        ["rollback", "text"],
        ["rm", "more"],
    ] {
        let mut all = vec!["store"];
        all.extend(args);
        sinks.run(&bed, &all, "");
    }
    sinks.run(&bed, &["store", "rollback", "text", "1"], "");
    sinks.run(&bed, &["store", "rekey"], "");
    damage(&bed.path("store"));
    sinks.run(&bed, &["store", "get", "text"], "");
    sinks.run(&bed, &["store", "rekey"], "");
    sinks.files_below(&bed.dir); // the store itself is a sink: it is encrypted
    assert_eq!(sinks.leaks(), Vec::<String>::new());
}

/// Flips a byte near the end of every encrypted file.
fn damage(store: &Path) {
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

#[test]
fn check_and_mount_say_nothing_whatever_fails() {
    let bed = bed();
    let mut sinks = Sinks::default();
    for (what, rule) in FAILING {
        let sources = "sources:\n  doc: store:doc\n  binary: store:binary\n";
        let sources = if rule.contains("template") {
            let used = |name: &str| {
                rule.contains(&format!("{{ {name}")) || rule.contains(&format!("[{name}"))
            };
            let lines = sources.lines().filter(|line| {
                line.starts_with('s') || used(line.trim().split(':').next().unwrap())
            });
            lines.map(|line| format!("{line}\n")).collect::<String>()
        } else {
            String::new()
        };
        let path = if rule.contains("#*") { "all/" } else { "f" };
        bed.write(
            "app.yaml",
            &format!("{sources}files:\n  - path: {path}\n    {rule}\n"),
        );
        let code = sinks.run(&bed, &["check", "app.yaml", "--fetch"], "");
        assert!(matches!(code, Some(1 | 2)), "{what} was to fail: {code:?}");
        sinks.run(&bed, &["check", "app.yaml", "--fetch", "--json"], "");
        let code = sinks.run(&bed, &["mount", "app.yaml", "target"], "");
        assert!(matches!(code, Some(1 | 2)), "{what} was to fail: {code:?}");
    }
    // a spec that holds a secret by mistake is not repeated beyond the line that is wrong... and that line is the author's own
    assert_eq!(sinks.leaks(), Vec::<String>::new());
}

const SPEC: &str = "sources:\n  doc: store:doc\nfiles:\n  - path: t\n    template: '{{ doc.password }}'\n  - path: p\n    from: doc#password\n";

/// One life of a mount, with everything that can happen to it.
fn a_life(bed: &Bed, format: &str) -> Sinks {
    let mut sinks = Sinks::default();
    let hook = "env > hook-env; tr '\\0' ' ' < /proc/$$/cmdline > hook-args; exit 1";
    let mut running = bed.mount(SPEC, &["--on-change", hook, "--log-format", format]);
    sinks.run(bed, &["check", "app.yaml", "--fetch"], "");
    assert_eq!(bed.file("p"), CANARY);
    let rotate = |number: u32| {
        let value = serde_json::json!({ "password": CANARY, "number": number }).to_string();
        bed.put("doc", &value);
        eventually("the next generation", || {
            bed.status()["generation"].as_u64().unwrap() >= 2
        });
    };
    bed.put(
        "doc",
        &serde_json::json!({ "password": format!("{CANARY}2") }).to_string(),
    );
    eventually("a new value", || bed.file("p").ends_with('2'));
    bed.put("doc", &serde_json::json!({ "other": CANARY }).to_string()); // the template fails now
    eventually("the render error shows", || {
        bed.status()["error"].is_object()
    });
    rotate(1);
    damage(&bed.path("store"));
    sinks.run(bed, &["refresh"], "");
    eventually("the store error shows", || {
        bed.status()["error"].is_object()
    });
    sinks.run(bed, &["status"], "");
    sinks.run(bed, &["status", "--json"], "");
    sinks.running("mount", &running);
    sinks.files_below(&bed.path("run"));
    eventually("the hook ran", || bed.path("hook-args").exists());
    running.signal(Signal::TERM);
    assert!(running.ended().success());
    sinks.running("mount", &running);
    sinks.files_below(&bed.dir);
    sinks
}

#[test]
fn a_whole_life_of_a_mount_says_nothing() {
    for format in ["text", "json"] {
        let bed = bed();
        let sinks = a_life(&bed, format);
        assert_eq!(sinks.leaks(), Vec::<String>::new());
        let log = String::from_utf8_lossy(&sinks.0["log of mount"]).into_owned();
        for room in [
            "secretfs::volume",
            "secretfs::source",
            "secretfs::backend",
            "secretfs::mount",
            "secretfs::cli",
        ] {
            assert!(
                log.contains(room),
                "the trace level said nothing of {room}, so this test did not see it:\n{log}"
            );
        }
    }
}

#[test]
fn a_leak_in_any_sink_would_be_found() {
    let bed = bed();
    let sinks = a_life(&bed, "text");
    let names: Vec<_> = sinks.0.keys().cloned().collect();
    assert!(
        names.iter().any(|name| name.starts_with("file ")) && names.len() > 8,
        "{names:?}"
    );
    for name in names {
        let mut planted = Sinks(sinks.0.clone());
        planted.add(name.clone(), format!("... {CANARY} ..."));
        let leaks = planted.leaks();
        assert!(
            leaks.iter().any(|leak| leak.starts_with(&name)),
            "planted in {name}, found {leaks:?}"
        );
    }
}
