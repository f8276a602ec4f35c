use std::fs;

use clap::Parser;

use super::*;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: StoreArgs,
}

/// A person at a shell, with a home directory of his own.
struct Shell {
    home: tempfile::TempDir,
    terminal: bool,
}

struct Ran {
    result: Result<()>,
    stdout: String,
    stderr: String,
}

impl Shell {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            terminal: false,
        }
    }

    fn with_store() -> Self {
        let shell = Self::new();
        shell.ok(&["init"], "");
        shell
    }

    fn run(&self, line: &[&str], stdin: &str) -> Ran {
        let args = Line::try_parse_from([&["store"], line].concat())
            .unwrap()
            .args;
        let env = Env {
            data_home: Some(self.home.path().join(".local/share")),
            config_home: Some(self.home.path().join(".config")),
            ..Env::default()
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut io = Io {
            stdin: &mut stdin.as_bytes(),
            stdin_is_terminal: self.terminal,
            stdout: &mut stdout,
            stderr: &mut stderr,
        };
        let result = run(args, &env, &mut io);
        Ran {
            result,
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    fn ok(&self, line: &[&str], stdin: &str) -> String {
        let ran = self.run(line, stdin);
        ran.result.unwrap();
        ran.stdout
    }

    fn fails(&self, line: &[&str], stdin: &str) -> (&'static str, String) {
        let error = self.run(line, stdin).result.unwrap_err();
        (error.code().name, error.to_string())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.home.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }
}

#[test]
fn init_says_what_it_made_and_uses_an_identity_that_is_there() {
    let shell = Shell::new();
    let identity = shell.home.path().join(".config/secretfs/identity.age");
    let store = shell.home.path().join(".local/share/secretfs/store");
    let said = shell.ok(&["init"], "");
    assert!(said.contains(&identity.display().to_string()), "{said}");
    assert!(said.contains(&store.display().to_string()), "{said}");
    let key = fs::read_to_string(&identity).unwrap();
    assert!(!said.contains("AGE-SECRET-KEY"), "{said}");
    assert_eq!(shell.fails(&["init"], "").0, "store.exists");
    let other = shell.home.path().join("other").display().to_string();
    let said = shell.ok(&["init", "--store", &other], "");
    assert!(said.contains("that was there"), "{said}");
    assert_eq!(fs::read_to_string(&identity).unwrap(), key);
    // for somebody else: no identity is made
    let public = Identities::load(&identity).unwrap().public_keys();
    let shell = Shell::new();
    shell.ok(&["init", "--recipient", &public[0]], "");
    assert!(!shell.home.path().join(".config").exists());
    shell.ok(&["put", "a"], "x");
    assert_eq!(shell.fails(&["get", "a"], "").0, "store.identity_missing");
}

#[test]
fn a_value_goes_in_by_stdin_file_or_fields_and_comes_out_as_it_was() {
    let shell = Shell::with_store();
    assert_eq!(shell.ok(&["put", "a"], "line\n"), "put a, version 1\n");
    assert_eq!(shell.ok(&["get", "a"], ""), "line\n");
    let file = shell.file("value", "from a file");
    assert_eq!(
        shell.ok(&["put", "a", "--file", &file], ""),
        "put a, version 2\n"
    );
    assert_eq!(shell.ok(&["get", "a"], ""), "from a file");
    assert_eq!(shell.ok(&["get", "a", "--version", "1"], ""), "line\n");
    let field = format!("tls.crt=@{file}");
    shell.ok(
        &["put", "b", "--field", &field, "--field", "key=@-"],
        "s\"ecret",
    );
    assert_eq!(
        shell.ok(&["get", "b"], ""),
        r#"{"key":"s\"ecret","tls.crt":"from a file"}"#
    );
    assert_eq!(shell.ok(&["get", "b", "--field", "key"], ""), "s\"ecret");
    assert_eq!(
        shell.fails(&["get", "b", "--field", "no"], "").0,
        "render.no_field"
    );
    assert_eq!(
        shell.fails(&["get", "a", "--field", "no"], "").0,
        "render.not_fields"
    );
}

#[test]
fn what_a_person_is_likely_to_get_wrong_is_said() {
    let mut shell = Shell::with_store();
    let note = |line: &[&str], stdin, part: &str| {
        let ran = shell.run(line, stdin);
        ran.result.unwrap();
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
        assert_eq!(ran.stderr.is_empty(), part.is_empty(), "{}", ran.stderr);
    };
    note(&["put", "a"], "echo\n", "newline");
    note(&["put", "a"], "two\nlines\n", "");
    note(&["put", "a", "--file", "/dev/null"], "", "empty");
    shell.terminal = true;
    let ran = shell.run(&["put", "a"], "typed");
    assert!(ran.stderr.contains("Ctrl-D"), "{}", ran.stderr);
    let big = "x".repeat(limits::STORE_VALUE_BYTES as usize + 1);
    assert_eq!(shell.fails(&["put", "a"], &big).0, "store.too_large");
    assert_eq!(
        shell.fails(&["put", "a", "--file", "/no/such"], "").0,
        "config.unreadable"
    );
    let (code, text) = shell.fails(&["get", "/a"], "");
    assert!(
        code == "store.bad_name" && text.contains("begins with `/`"),
        "{text}"
    );
    let (code, text) = shell.fails(&["get", "nobody"], "");
    assert!(
        code == "backend.not_found" && text.contains("store list"),
        "{text}"
    );
    let (code, text) = shell.fails(&["history", "nobody"], "");
    assert!(
        code == "backend.not_found" && text.contains("store list"),
        "{text}"
    );
    assert_eq!(
        shell.fails(&["get", "a", "--version", "99"], "").0,
        "store.no_version"
    );
    assert_eq!(Shell::new().fails(&["list"], "").0, "store.missing");
}

#[test]
fn a_value_on_the_command_line_is_refused_and_not_repeated() {
    let shell = Shell::with_store();
    let binary = shell.file("binary", b"CANARY\xff");
    let in_binary = format!("k=@{binary}");
    for (line, part) in [
        (
            vec!["put", "a", "CANARY"],
            "never given on the command line",
        ),
        (vec!["put", "a", "--field", "k=CANARY"], "k=@FILE"),
        (vec!["put", "a", "--field", "CANARY"], "KEY=@FILE"),
        (vec!["put", "a", "--field", "k=@"], "k=@FILE"),
        (
            vec!["put", "a", "--field", "k=-", "--field", "l=@-"],
            "only one field",
        ),
        (
            vec!["put", "a", "--field", "k=-", "--field", "k=@x"],
            "twice",
        ),
        (vec!["put", "a", "--field", "/k=-"], "JSON pointer"),
        (vec!["put", "a", "--field", &in_binary], "base64"),
        (
            vec![
                "init",
                "--store",
                "x",
                "--recipient",
                "AGE-SECRET-KEY-1CANARY",
            ],
            "private key",
        ),
    ] {
        let ran = shell.run(&line, "CANARY");
        let text = ran.result.unwrap_err().to_string();
        assert!(text.contains(part), "{line:?}: {text}");
        let all = [text, ran.stdout, ran.stderr].concat();
        assert!(!all.contains("CANARY"), "{line:?}: {all}");
    }
    assert_eq!(shell.fails(&["get", "a"], "").0, "backend.not_found");
}

#[test]
fn lists_are_aligned_for_people_and_json_for_programs() {
    let shell = Shell::with_store();
    assert_eq!(shell.ok(&["list"], ""), "");
    assert_eq!(shell.ok(&["list", "--json"], ""), "[]\n");
    shell.ok(&["put", "payments/db"], "1");
    shell.ok(&["put", "payments/db"], "2");
    shell.ok(&["put", "ü"], "3");
    let text = shell.ok(&["list"], "");
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0].starts_with("NAME         VERSION  KEPT  WRITTEN"),
        "{text}"
    );
    assert!(
        lines[1].starts_with("payments/db  2        2     20"),
        "{text}"
    );
    assert!(
        lines[2].starts_with("ü            1        1     20"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&shell.ok(&["list", "--json"], "")).unwrap();
    assert_eq!(json[0]["name"], "payments/db");
    assert_eq!(json[0]["version"], 2);
    let text = shell.ok(&["history", "payments/db"], "");
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("VERSION  WRITTEN"), "{text}");
    assert!(
        lines[1].starts_with("2        20") && lines[1].ends_with("  current"),
        "{text}"
    );
    assert!(
        lines[2].starts_with("1        20") && lines[2].ends_with('Z'),
        "{text}"
    );
    let json = shell.ok(&["history", "payments/db", "--json"], "");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["versions"][0]["current"], true);
    assert_eq!(json["versions"][1]["version"], 1);
    // damage of one is said, and the others are listed
    let secrets = shell
        .home
        .path()
        .join(".local/share/secretfs/store/secrets");
    fs::write(secrets.join("weird"), b"").unwrap();
    let ran = shell.run(&["list"], "");
    assert!(ran.stdout.contains("payments/db"), "{}", ran.stdout);
    assert!(
        ran.result
            .unwrap_err()
            .to_string()
            .contains("secrets/weird")
    );
}

#[test]
fn versions_are_rolled_back_removed_and_rekeyed() {
    let shell = Shell::with_store();
    shell.ok(&["put", "a"], "one");
    shell.ok(&["put", "a"], "two");
    let said = shell.ok(&["rollback", "a", "1"], "");
    assert_eq!(said, "put a, version 3, with the content of version 1\n");
    assert_eq!(shell.ok(&["get", "a"], ""), "one");
    let other = shell.home.path().join("other.age");
    let (public, _) = Identities::load_or_make(&other).unwrap();
    let ran = shell.run(&["rekey", "--recipient", &public[0]], "");
    ran.result.unwrap();
    assert_eq!(
        ran.stdout,
        "encrypted 3 versions to 1 recipient (0 already)\n"
    );
    assert!(
        ran.stderr.contains("none of the recipients"),
        "{}",
        ran.stderr
    );
    assert_eq!(shell.fails(&["get", "a"], "").0, "store.corrupt");
    let other = other.display().to_string();
    assert_eq!(shell.ok(&["get", "a", "--identity", &other], ""), "one");
    let secret = shell
        .home
        .path()
        .join(".local/share/secretfs/store/secrets/a");
    fs::write(secret.join("2.age"), b"junk").unwrap();
    let own = Identities::load(&shell.home.path().join(".config/secretfs/identity.age")).unwrap();
    let own = own.public_keys();
    let back = ["rekey", "--identity", &other, "--recipient", &own[0]];
    let ran = shell.run(&back, "");
    let text = ran.result.unwrap_err().to_string();
    assert!(text.contains("1 version could not be read"), "{text}");
    assert!(ran.stderr.contains("a/2.age"), "{}", ran.stderr);
    assert_eq!(shell.ok(&["get", "a"], ""), "one");
    assert_eq!(
        shell.ok(&["rm", "a"], ""),
        "removed a with all its versions\n"
    );
    assert_eq!(shell.fails(&["get", "a"], "").0, "backend.not_found");
    assert_eq!(shell.ok(&["put", "a"], "again"), "put a, version 5\n");
}

#[test]
fn an_empty_value_is_stored_only_on_purpose() {
    let shell = Shell::with_store();
    for line in [
        &["put", "a"][..],
        &["put", "a", "--file", "-"],
        &["put", "a", "--field", "k=-"],
    ] {
        let (code, said) = shell.fails(line, "");
        assert_eq!(code, "store.bad_value", "{line:?}");
        assert!(
            said.contains("--file /dev/null") && said.contains("--field KEY=@/dev/null"),
            "{said}"
        );
        assert_eq!(shell.fails(&["history", "a"], "").0, "backend.not_found");
    }
    shell.ok(&["put", "a", "--file", "/dev/null"], "");
    assert_eq!(shell.ok(&["get", "a"], ""), "");
    shell.ok(&["put", "a", "--field", "k=@/dev/null"], "");
    assert_eq!(shell.ok(&["get", "a", "--field", "k"], ""), "");
}

/// A stdout whose reader has gone.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_has_gone_is_no_fault_of_the_disk() {
    let shell = Shell::with_store();
    let args = Line::try_parse_from(["store", "list", "--json"])
        .unwrap()
        .args;
    let env = Env {
        data_home: Some(shell.home.path().join(".local/share")),
        ..Env::default()
    };
    let mut io = Io {
        stdin: &mut io::empty(),
        stdin_is_terminal: false,
        stdout: &mut Closed,
        stderr: &mut io::sink(),
    };
    let error = run(args, &env, &mut io).unwrap_err();
    assert_eq!(error.code().name, "stdout.closed");
}
