//! `secretfs check`, with a backend that answers from a list.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use async_trait::async_trait;
use secretfs::{
    backend::{
        Backend, Cx, Fetched, Want,
        registry::{Registry, problems},
    },
    caller::{AsksAs, Identity},
    cli::check::{CheckArgs, World, run},
    clock::SystemClock,
    config::Env,
    error::{Error, Result, codes},
    secret::{Content, Object, SecretBytes, Version},
    spec::{BackendName, ObjectRef, Problem},
};

/// Has `payments/db`, is down for `down`, and has nothing else.
struct Fixed;

const VALUE: &[u8] = br#"{"password":"cAnArY7f","user":"u"}"#;

#[async_trait]
impl Backend for Fixed {
    fn check(&self, _: &ObjectRef) -> Result<(), Problem> {
        Ok(())
    }

    fn asks_as(&self, _: &ObjectRef) -> AsksAs {
        AsksAs::Node
    }

    async fn fetch(&self, _: &Cx, want: Want<'_>) -> Result<Fetched> {
        match &*want.object.path {
            "payments/db" => Ok(Fetched::Object(Object {
                version: Version::new("17"),
                content: Content::Bytes(Arc::new(SecretBytes::new(VALUE.to_vec()))),
                lease: None,
            })),
            "down" => Err(Error::new(&codes::BACKEND_UNAVAILABLE)),
            _ => Err(Error::new(&codes::BACKEND_NOT_FOUND)),
        }
    }
}

/// Runs it on `spec`; the exit code and what was printed.
fn check(spec: &str, config: Option<&str>, fetch: bool, json: bool) -> (u8, String) {
    let mut out = Vec::new();
    let (code, place) = check_to(spec, config, fetch, json, &mut out);
    let text = String::from_utf8(out).unwrap();
    assert!(!text.contains("cAnArY7f"), "{text}");
    (code.unwrap(), text.replace(&place, ""))
}

/// Runs it with this stdout; the exit code, and the prefix of all files' names.
fn check_to(
    spec: &str,
    config: Option<&str>,
    fetch: bool,
    json: bool,
    out: &mut (dyn std::io::Write + Send),
) -> (Result<u8>, String) {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let args = CheckArgs {
        spec: Some(write("app.yaml", spec)),
        config: config.map(|text| write("node.yaml", text)),
        fetch,
        json,
    };
    let env = Env {
        store: Some("/s".into()),
        identity: Some("/i".into()),
        ..Env::default()
    };
    let world = World {
        env: &env,
        check_backend: &problems,
        registry: &|config| {
            let backend = || Arc::new(Fixed) as Arc<dyn Backend>;
            let names = config.backends.iter().map(|b| (b.name.clone(), backend()));
            Ok(Registry::new(
                names.collect::<BTreeMap<BackendName, _>>(),
                1,
            ))
        },
        clock: Arc::new(SystemClock),
        who: Identity::Local { uid: 0 },
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let code = runtime.block_on(run(&args, &world, out));
    (code, format!("{}/", Path::new(dir.path()).display()))
}

const GOOD: &str = "sources: {db: store:payments/db}\nfiles:\n- {path: db/, from: \"db#*\"}\n- {path: url, template: \"pg://{{ db.user }}\", mode: \"0440\"}\n- {path: extra, from: store:none, optional: true}\n";

#[test]
fn a_good_spec_is_summed_up_and_a_fetch_lists_everything_but_values() {
    let (code, text) = check(GOOD, None, false, false);
    assert_eq!(
        (code, &*text),
        (0, "app.yaml: 3 files from 2 secrets, no problem\n")
    );
    let (code, text) = check(GOOD, None, true, false);
    let expect = "\
app.yaml: 3 files from 2 secrets, no problem

SECRET             VERSION
store:payments/db  17
store:none         absent

PATH         MODE  BYTES
db/password  0400  8
db/user      0400  1
url          0440  6
";
    assert_eq!((code, &*text), (0, expect));
    let (code, text) = check(GOOD, None, true, true);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, json["files"][2]["path"].as_str()), (0, Some("url")));
    assert_eq!(json["secrets"][0]["version"], "17");
    assert_eq!(json["problems"], serde_json::json!([]));
}

#[test]
fn problems_are_exit_code_2_and_nothing_is_fetched() {
    let bad = GOOD
        .replace("template", "templte")
        .replace("store:none", "stor:none");
    let (code, text) = check(&bad, None, true, false);
    assert_eq!(code, 2);
    for part in [
        "app.yaml:4:15: unknown key `templte` in files[1]\n",
        "    |               ^^^^^^^ did you mean `template`?",
        "app.yaml:5:23: there is no backend `stor`\n",
        "did you mean `store`?",
        "spec.unknown_backend\n",
        "2 problems, nothing was fetched\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let (code, text) = check(&bad, None, false, true);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, json["problems"][0]["line"].as_u64()), (2, Some(4)));
    let (code, text) = check(GOOD, Some("backends: {s: {kind: store}}\n"), true, false);
    assert_eq!(code, 2, "{text}");
    assert!(
        text.contains("node.yaml:1:16: backends.s has no `path`"),
        "{text}"
    );
}

#[test]
fn everything_that_fails_after_the_fetch_is_told_at_its_place() {
    let spec = "\
sources: {db: store:payments/db, gone: store:down}
files:
- path: url
  template: |

    # u
    pg://{{ db.nope }}
- {path: a, from: store:none}
- {path: b, from: \"db#nope\"}
- {path: c, from: \"db#user\", decode: base64}
- {path: d, from: gone}
- {path: e, from: \"db#user\"}
- {path: f, from: store:none, optional: true}
- {path: g, template: \"{{ db.nope }}\"}
";
    let (code, text) = check(spec, None, true, false);
    let expect = "\
app.yaml:1:40: store:down: The store cannot be reached or is not ready
  1 | sources: {db: store:payments/db, gone: store:down}
    |                                        ^^^^^^^^^^ it was asked once: try again backend.unavailable
app.yaml:7:5: url: line 3 of the template: `db.nope` is not there
  7 |     pg://{{ db.nope }}
    |     ^^^^^^^^^^^^^^^^^^ Mend the line of the template that is named.       render.template
app.yaml:8:19: a: the store has no `store:none`
  8 | - {path: a, from: store:none}
    |                   ^^^^^^^^^^ Create it, or mend the reference.            backend.not_found
";
    assert_eq!(code, 2, "{text}");
    let (start, rest) = text.split_at(expect.len().min(text.len()));
    assert_eq!(start, expect);
    assert!(
        rest.ends_with("6 problems\n") && !text.contains("no problem"),
        "{text}"
    );
    let (code, text) = check(spec, None, true, true);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let problems: Vec<_> = json["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| {
            let text = |key: &str| problem[key].as_str().unwrap().to_owned();
            (
                problem["line"].as_u64().unwrap(),
                text("field"),
                text("code"),
            )
        })
        .collect();
    let expect = [
        (1, "sources.gone", "backend.unavailable"),
        (7, "files[0].template", "render.template"),
        (8, "files[1].from", "backend.not_found"),
        (9, "files[2].from", "render.no_field"),
        (10, "files[3].from", "render.decode"),
        (14, "files[7].template", "render.template"),
    ];
    let expect = expect.map(|(line, field, code)| (line, field.to_owned(), code.to_owned()));
    assert_eq!((code, &*problems), (2, &expect[..]));
    assert_eq!(json.get("error"), None);
}

#[test]
fn a_store_that_does_not_answer_is_exit_code_1() {
    let (code, text) = check(
        "files: [{path: a, from: \"store:down\"}]\n",
        None,
        true,
        false,
    );
    assert_eq!(code, 1);
    assert!(
        text.contains("store:down: The store cannot be reached")
            && text.contains("backend.unavailable\n1 problem\n"),
        "{text}"
    );
    let (code, text) = check(
        "files: [{path: a, from: \"store:none\"}]\n",
        None,
        true,
        false,
    );
    assert_eq!(code, 1);
    assert!(text.contains("a: the store has no `store:none`"), "{text}");
}

/// A stdout whose reader has gone.
struct Closed;

impl std::io::Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_has_gone_is_no_fault_of_the_disk() {
    let (result, _) = check_to(GOOD, None, false, true, &mut Closed);
    assert_eq!(result.unwrap_err().code().name, "stdout.closed");
}
