//! `secretfs exec` as a person uses it: the built program, a real store, real volumes, real signals.

mod change;
mod mounted;
mod signals;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::support::{
    can_chown,
    program::{Bed, eventually, program},
};

const SPEC: &str = "
sources:
  db: store:payments/db
files:
  - path: db/password
    from: db#password
  - path: db/user-name
    from: db#username
";

fn db(password: &str) -> String {
    serde_json::json!({"username": "app", "password": password}).to_string()
}

/// A store with a password, and a spec of it.
fn bed() -> Bed {
    let bed = Bed::new();
    bed.put("payments/db", &db("first"));
    bed.write("app.yaml", SPEC);
    bed
}

/// `env` as the program that is run: its variables.
fn variables(output: &Output) -> BTreeMap<String, String> {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A directory in the layout of a volume, without a mount; `..data` leads to a directory of this name.
fn volume(root: &Path, name: &str, files: &[(&str, &[u8])]) {
    let generation = root.join(name);
    for (path, value) in files {
        let path = generation.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    }
    std::os::unix::fs::symlink(name, root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
}

#[test]
fn names_are_by_rule_or_by_list_and_the_secret_wins() {
    let bed = bed();
    let run = |options: &[&str]| {
        let mut args = vec!["exec", "--spec", "app.yaml"];
        args.extend(options);
        args.extend(["--", "env"]);
        let mut command = bed.command(&args);
        command.env("DB_PASSWORD", "old").env("OTHER", "kept");
        variables(&command.output().unwrap())
    };
    let all = run(&[]);
    assert_eq!(all["DB_PASSWORD"], "first");
    assert_eq!(all["DB_USER_NAME"], "app");
    assert_eq!(all["OTHER"], "kept");
    let all = run(&["--prefix", "MY_"]);
    assert_eq!(
        (&*all["DB_PASSWORD"], &*all["MY_DB_PASSWORD"]),
        ("old", "first")
    );
    let all = run(&[
        "--env",
        "PW=db/password",
        "--env",
        "DB_PASSWORD=db/password",
    ]);
    assert_eq!((&*all["PW"], &*all["DB_PASSWORD"]), ("first", "first"));
    assert!(!all.contains_key("DB_USER_NAME"), "it is not on the list");
    let all = run(&["--only"]);
    let names: Vec<_> = all.keys().map(String::as_str).collect();
    assert_eq!(names, ["DB_PASSWORD", "DB_USER_NAME"]);
    let all = run(&[
        "--only", "--keep", "OTHER", "--keep", "NONE", "--prefix", "MY_",
    ]);
    let names: Vec<_> = all.keys().map(String::as_str).collect();
    assert_eq!(names, ["MY_DB_PASSWORD", "MY_DB_USER_NAME", "OTHER"]);
}

#[test]
fn values_are_the_bytes_of_the_files_and_nothing_is_written_to_disk() {
    let bed = bed();
    let odd = b"  two\nlines =\xff\n";
    volume(&bed.target(), "..1", &[("odd", odd), (".hidden", b"h")]);
    let args = [
        "exec",
        "--from",
        "target",
        "--",
        "sh",
        "-c",
        "printf %s \"$ODD$_HIDDEN\"",
    ];
    let output = bed.command(&args).output().unwrap();
    assert_eq!(output.stdout, [&odd[..], b"h"].concat());
    // a directory without generations, too
    let plain = bed.path("plain");
    fs::create_dir_all(plain.join("db")).unwrap();
    fs::write(plain.join("db/password"), "of a plain file").unwrap();
    let args = [
        "exec",
        "--from",
        "plain",
        "--",
        "sh",
        "-c",
        "printf %s \"$DB_PASSWORD\"",
    ];
    assert_eq!(bed.ok(&args, ""), "of a plain file");
    let before = names_below(&bed.dir);
    bed.ok(&["exec", "--spec", "app.yaml", "--", "true"], "");
    assert_eq!(names_below(&bed.dir), before);
}

fn names_below(dir: &Path) -> std::collections::BTreeSet<String> {
    crate::support::sandbox::everything(dir)
}

/// Options and a command, the exit code, and what stderr says.
type Row<'a> = (&'a [&'a str], &'a [&'a str], i32, &'a str);

#[track_caller]
fn check(bed: &Bed, rows: &[Row<'_>]) {
    for (options, command, code, said) in rows {
        let args = [&["exec"], *options, &["--"], *command].concat();
        let stderr = bed.fails(*code, &args);
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
}

#[test]
fn the_exit_code_is_the_programs_or_says_why_there_is_none() {
    let bed = bed();
    bed.write("script", "#!/nowhere/interpreter\n");
    bed.write("plain", "text");
    fs::set_permissions(bed.path("script"), fs::Permissions::from_mode(0o755)).unwrap();
    for options in [
        &["--spec", "app.yaml"][..],
        &["--spec", "app.yaml", "--restart-on-change"],
    ] {
        let rows: &[Row<'_>] = &[
            (options, &["true"], 0, ""),
            (options, &["sh", "-c", "exit 7"], 7, ""),
            (options, &["sh", "-c", "exit 255"], 255, ""),
            (options, &["nonesuch"], 127, "[exec.not_found]"),
            (options, &["./none"], 127, "[exec.not_found]"),
            (options, &["./script"], 127, "[exec.not_found]"),
            (options, &["./plain"], 126, "[exec.cannot_run]"),
            (options, &["/"], 126, "[exec.cannot_run]"),
        ];
        check(&bed, rows);
    }
    let watch = &["--spec", "app.yaml", "--restart-on-change"];
    let rows: &[Row<'_>] = &[
        (watch, &["sh", "-c", "kill -USR1 $$"], 138, ""),
        (watch, &["sh", "-c", "kill -KILL $$"], 137, ""),
    ];
    check(&bed, rows);
}

#[test]
fn the_exit_code_says_whose_failure_it_was() {
    let bed = bed();
    bed.write("wrong.yaml", "files:\n  - path: a\n    templte: x\n");
    bed.write("none.yaml", "files: [{path: a, from: store:none}]");
    let run = &["true"];
    let from = |more: &[&'static str]| [&["--from", "target"], more].concat();
    #[rustfmt::skip]
    let rows: &[Row<'_>] = &[
        (&["--spec", "none.yaml"], run, 125, "[backend.not_found]"),
        (&["--spec", "none.yaml", "--signal", "HUP"], run, 125, "[backend.not_found]"),
        (&["--spec", "wrong.yaml"], run, 2, "did you mean `template`?"),
        (&["--spec", "nothing.yaml"], run, 2, "[config.unreadable]"),
        (&["--from", "nowhere"], run, 125, "[exec.no_file]"),
        (&from(&[]), run, 125, "it holds no file"),
        (&from(&["--store", "x"]), run, 2, "--spec"),
        (&from(&["--signal", "KILL"]), run, 2, "it is none of"),
        (&from(&["--delay", "1s"]), run, 2, "--restart-on-change"),
        (&from(&["--mount", "x"]), run, 2, "--mount"),
        (&from(&["--only", "--keep", "A=b"]), run, 2, "no name of a variable"),
        (&from(&[]), &[], 2, "<CMD>"),
        (&[], run, 2, "--from"),
    ];
    check(&bed, rows);
}

#[test]
fn what_cannot_be_a_variable_names_the_file_and_the_fix() {
    let bed = Bed::new();
    let big = vec![b'x'; 200_000];
    let largest = vec![b'x'; 131_072 - "BIG=".len() - 1];
    for (nth, (files, options, code, said)) in [
        (
            &[("7up", &b"v"[..])][..],
            &[][..],
            2,
            "7up: its variable would be `7UP`, which begins with a digit",
        ),
        (
            &[("ld/preload", b"v")],
            &[],
            2,
            "decides how programs start",
        ),
        (&[("a-b", b"v"), ("a/b", b"v")], &[], 2, "`A_B`"),
        (&[("nul", b"a\0b")], &[], 2, "nul: A value holds a NUL byte"),
        (
            &[("big", &big)],
            &[],
            125,
            "big: `BIG` with its value is longer than 131072 bytes",
        ),
        (&[("big", &largest)], &[], 0, ""),
        (&[("7up", b"v")], &["--env", "SEVEN=7up"], 0, ""),
        (&[("7up", b"v")], &["--env", "SEVEN=8up"], 125, "8up"),
        (&[("a", b"v")], &["--env", "7=a"], 2, "begins with a digit"),
        (&[("a", b"v")], &["--env", "A=../../etc/passwd"], 2, "`..`"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("v{nth}");
        fs::create_dir(bed.path(&name)).unwrap();
        volume(&bed.path(&name), "..1", files);
        let args = [&["exec", "--from", &name], options, &["--", "true"]].concat();
        let output = bed.run(&args, "");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}: {stderr}");
        assert!(stderr.contains(said), "{said}: {stderr}");
        let fix = ["--env", "Encode it"]
            .iter()
            .any(|fix| stderr.contains(fix));
        assert!(code == 0 || fix, "the fix: {stderr}");
    }
    // all of it together is more than the kernel takes
    let many: Vec<_> = (0..60).map(|nth| format!("f{nth}")).collect();
    let files: Vec<_> = many.iter().map(|name| (&**name, &largest[..])).collect();
    fs::create_dir(bed.path("all")).unwrap();
    volume(&bed.path("all"), "..1", &files);
    let stderr = bed.fails(125, &["exec", "--from", "all", "--", "true"]);
    assert!(stderr.contains("[exec.too_large]"), "{stderr}");
}

#[test]
fn what_is_no_file_is_refused_and_no_link_is_followed() {
    let bed = Bed::new();
    bed.write("outside", "of somebody else");
    let dir = bed.target();
    volume(&dir, "..1", &[("sub/a", b"v")]);
    std::os::unix::fs::symlink(bed.path("outside"), dir.join("..1/link")).unwrap();
    for options in [&[][..], &["--env", "A=link"]] {
        let args = [&["exec", "--from", "target"], options, &["--", "env"]].concat();
        let stderr = bed.fails(125, &args);
        assert!(
            stderr.contains("link: it is not a regular file"),
            "{stderr}"
        );
    }
    let stderr = bed.fails(
        125,
        &["exec", "--from", "target", "--env", "A=sub", "--", "env"],
    );
    assert!(stderr.contains("sub: it is not a regular file"), "{stderr}");
    assert_eq!(
        bed.ok(
            &[
                "exec", "--from", "target", "--env", "A=sub/a", "--", "sh", "-c", "echo $A"
            ],
            ""
        ),
        "v\n"
    );
}

#[test]
fn a_directory_is_read_up_to_its_limits() {
    let bed = Bed::new();
    let most = secretfs::limits::EXEC_FILES;
    let make = |dir: &str, files: usize| {
        fs::create_dir(bed.path(dir)).unwrap();
        for nth in 0..files {
            bed.write(&format!("{dir}/f{nth}"), "");
        }
    };
    make("full", most);
    make("over", most + 1);
    let deep = ["d"; secretfs::limits::NESTING + 1].join("/");
    fs::create_dir_all(bed.path("deep").join(deep)).unwrap();
    bed.ok(&["exec", "--from", "full", "--only", "--", "/bin/true"], "");
    for dir in ["over", "deep"] {
        let stderr = bed.fails(125, &["exec", "--from", dir, "--", "true"]);
        assert!(
            stderr.contains("no secrets for one program"),
            "{dir}: {stderr}"
        );
    }
}

/// Sets it when dropped, so that nobody waits for ever after a failure.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A kubelet removes the old generation at once; each of ours has the same number in all its files.
#[test]
fn all_variables_are_of_one_generation_however_often_it_changes() {
    let bed = Bed::new();
    let dir = bed.target();
    let names: Vec<_> = (0..8).map(|nth| format!("d{nth}/value")).collect();
    let show = |nth: u32| {
        let value = nth.to_string();
        let files: Vec<_> = names
            .iter()
            .map(|name| (&**name, value.as_bytes()))
            .collect();
        volume(&dir, &format!("..{nth}"), &files);
    };
    show(0);
    let (stop, swaps) = (AtomicBool::new(false), std::sync::atomic::AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for nth in 1.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                show(nth);
                fs::remove_dir_all(dir.join(format!("..{}", nth - 1))).unwrap();
                swaps.store(nth, Ordering::Relaxed);
            }
        });
        let _stop = Stop(&stop);
        while swaps.load(Ordering::Relaxed) < 100 {
            let output = bed
                .command(&["exec", "--from", "target", "--only", "--", "/usr/bin/env"])
                .output();
            let all = variables(&output.unwrap());
            let values: std::collections::BTreeSet<_> = all.values().collect();
            assert_eq!((all.len(), values.len()), (names.len(), 1), "{all:?}");
        }
    });
}

/// What a program sees of what it was given: signals and rights; descriptors, limits and the like. (dash clears the mask of signals.)
const SEEN: [&[&str]; 2] = [
    &[
        "grep",
        "-E",
        "^(SigBlk|SigIgn|Cap|Seccomp:|NoNewPrivs)",
        "/proc/self/status",
    ],
    &[
        "sh",
        "-c",
        "ls /proc/$$/fd; ulimit -S -c; ulimit -H -c; umask",
    ],
];

#[test]
fn a_program_inherits_what_it_would_without_us_and_nothing_of_ours() {
    let bed = bed();
    // signals that somebody blocks or ignores, and a limit, before us
    let before = "ulimit -S -c 0; ulimit -H -c 2048; ulimit -S -c 1024; \
                  exec env --default-signal=INT,QUIT --ignore-signal=HUP --block-signal=USR2 \"$@\"";
    let run = |args: &[&str]| {
        let mut seen = String::new();
        for program in SEEN {
            let mut command = Command::new("sh");
            command.args(["-c", before, "sh"]).args(args).args(program);
            let output = bed.environment(command.current_dir(&bed.dir)).output();
            let output = output.unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{stderr}");
            seen += &String::from_utf8(output.stdout).unwrap();
        }
        seen
    };
    let program = program();
    let program = program.to_str().unwrap();
    let without = run(&["env"]);
    for part in ["\n1024\n2048\n", "SigBlk:\t0000000000000800\n"] {
        assert!(without.contains(part), "{without}");
    }
    for options in [
        &["--spec", "app.yaml"][..],
        &["--spec", "app.yaml", "--restart-on-change"],
    ] {
        let with = run(&[&[program, "exec"], options, &["--"]].concat());
        assert_eq!(with, without, "{options:?}");
    }
}

#[test]
fn without_anything_to_watch_it_becomes_the_program() {
    let bed = bed();
    let script = "echo $$; read -r line; echo $DB_PASSWORD";
    let mut command = bed.command(&["exec", "--spec", "app.yaml", "--", "sh", "-c", script]);
    command.stdin(std::process::Stdio::piped());
    let mut running = bed.spawn(command);
    running.first_line();
    assert_eq!(running.ready, format!("{}\n", running.child.id()));
    let threads = fs::read_dir(format!("/proc/{}/task", running.child.id())).unwrap();
    assert_eq!(threads.count(), 1);
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.ended().signal(), Some(15), "the program's own end");
}

#[test]
fn only_its_own_user_can_read_the_programs_environment() {
    let bed = bed();
    for options in [&[][..], &["--restart-on-change"]] {
        let script = "echo $$; exec sleep 1000";
        let args = [
            &["exec", "--spec", "app.yaml"],
            options,
            &["--", "sh", "-c", script],
        ]
        .concat();
        let running = bed.start(&args);
        let environ = format!("/proc/{}/environ", running.ready.trim());
        let holds = || fs::read(&environ).unwrap();
        eventually("it is there", || {
            holds().windows(5).any(|word| word == b"first")
        });
        let mode = fs::metadata(&environ).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        if can_chown() {
            let mut other = Command::new("setpriv");
            other.args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "cat",
                &environ,
            ]);
            let output = other.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                !output.status.success() && said.contains("denied"),
                "{said}"
            );
        }
        if !options.is_empty() {
            rustix::process::kill_process(
                rustix::process::Pid::from_raw(running.ready.trim().parse().unwrap()).unwrap(),
                rustix::process::Signal::KILL,
            )
            .unwrap();
        }
    }
}
