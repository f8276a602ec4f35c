//! Objects and a spec: the files that come of them, and errors that hold no value.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use secretfs::{
    path::{Mode, RelPath},
    render::{FileContent, FileSet, Known, render, render_all},
    secret::{Content, Field, Object, SecretBytes, Version},
    spec::{Setting, parse},
};

use crate::spec::{FULL, facts, good};

fn bytes(bytes: &[u8]) -> Known {
    object(Content::Bytes(Arc::new(SecretBytes::new(bytes.to_vec()))))
}

fn fields(fields: &[(&str, &[u8], Option<u16>)]) -> Known {
    let field = |(name, value, mode): &(&str, &[u8], Option<u16>)| {
        let value = Arc::new(SecretBytes::new(value.to_vec()));
        let mode = mode.map(Mode::literal);
        ((*name).into(), Field { value, mode })
    };
    object(Content::Fields(
        fields.iter().map(field).collect::<BTreeMap<_, _>>(),
    ))
}

fn object(content: Content) -> Known {
    Known::Object(Arc::new(Object {
        version: Version::new("1"),
        content,
        lease: None,
    }))
}

fn content(set: &FileSet, path: &str) -> Vec<u8> {
    match &set
        .file(&RelPath::parse(path).unwrap())
        .expect(path)
        .content
    {
        FileContent::New(bytes) => bytes.expose().to_vec(),
        FileContent::Keep => panic!("{path} is kept"),
    }
}

fn text_of(set: &FileSet, path: &str) -> String {
    String::from_utf8(content(set, path)).unwrap()
}

const DB: &[u8] = br#"{"username": "app", "password": "p/w&' \"$", "port": 5432, "ratio": 1.10, "none": null, "list": [1, {"a": "b"}]}"#;

#[test]
fn the_contracts_example_becomes_files() {
    let set = render(
        &good(FULL),
        &[
            bytes(DB),
            bytes(b"t\xff\n"),
            bytes(br#"{"certificate":"MIIB"}"#),
        ],
    )
    .unwrap();
    let paths: Vec<_> = set.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(
        paths,
        [
            ".env",
            "all/list",
            "all/password",
            "all/port",
            "all/ratio",
            "all/username",
            "app.conf",
            "cert.der",
            "db/password",
            "token"
        ]
    );
    assert_eq!(content(&set, "token"), b"t\xff\n", "bytes as they are");
    assert_eq!(
        text_of(&set, "app.conf"),
        "postgres://app:p%2Fw%26%27%20%22%24@db/app\n"
    );
    assert_eq!(text_of(&set, "all/ratio"), "1.10");
    assert_eq!(text_of(&set, "all/list"), r#"[1,{"a":"b"}]"#);
    assert_eq!(content(&set, "cert.der"), [0x30, 0x82, 0x01]);
    let dotenv = "list='[1,{\"a\":\"b\"}]'\npassword=\"p/w&' \\\"\\$\"\nport=\"5432\"\nratio=\"1.10\"\nusername=\"app\"\n";
    assert_eq!(text_of(&set, ".env"), dotenv);
    let mode = |path: &str| {
        set.file(&RelPath::parse(path).unwrap())
            .unwrap()
            .mode
            .bits()
    };
    assert_eq!((mode("token"), mode("db/password")), (0o400, 0o440));
}

#[test]
fn formats_say_every_value() {
    let spec = |format: &str| {
        good(&format!(
            "files: [{{path: f, from: \"store:a\", format: {format}}}]\n"
        ))
    };
    let secret = br#"{"b": "x: 'y'\n", "a": 1.0, "k y": null, "c": [true]}"#;
    for (format, expect) in [
        (
            "json",
            "{\"a\":1.0,\"b\":\"x: 'y'\\n\",\"c\":[true],\"k y\":null}\n",
        ),
        (
            "yaml",
            "\"a\": 1.0\n\"b\": \"x: 'y'\\n\"\n\"c\": [true]\n\"k y\": null\n",
        ),
        ("properties", "a=1.0\nb=x: 'y'\\n\nc=[true]\n"),
        ("dotenv", "a=\"1.0\"\nb=\"x: 'y'\n\"\nc=\"[true]\"\n"),
    ] {
        let set = render(&spec(format), &[bytes(secret)]).unwrap();
        assert_eq!(text_of(&set, "f"), expect, "{format}");
        let again = render(
            &spec(format),
            &[fields(&[("z", b"1", None), ("a", b"2", None)])],
        )
        .unwrap();
        assert!(
            text_of(&again, "f").find('a') < text_of(&again, "f").find('z'),
            "sorted"
        );
    }
    let error = render(&spec("dotenv"), &[bytes(b"{\"a-b\":\"s3cr3t\"}")]).unwrap_err();
    assert_eq!(error.code().name, "render.bad_key");
    let error = render(&spec("json"), &[fields(&[("a", b"\xff", None)])]).unwrap_err();
    assert_eq!(error.code().name, "render.not_text");
}

#[test]
fn what_is_unknown_is_kept_and_what_is_absent_is_an_error_or_optional() {
    let text = "sources: {a: store:a, b: store:b}\nfiles:\n- {path: one, from: a}\n- {path: both, template: \"{{ a }}{{ b }}\"}\n- {path: d/, from: \"a#*\"}\n- {path: two, from: b, optional: true}\n";
    let spec = good(text);
    let known = |a: Known, b: Known| render(&spec, &[a, b]);
    let kept = |set: &FileSet, path: &str| {
        let file = set.file(&RelPath::parse(path).unwrap());
        file.is_some_and(|file| matches!(file.content, FileContent::Keep))
    };
    let set = known(Known::Unknown, bytes(b"x")).unwrap();
    assert!(kept(&set, "one") && kept(&set, "both") && !kept(&set, "two"));
    let stays = |path: &str| set.keeps(&RelPath::parse(path).unwrap());
    assert!(stays("d/anything") && !stays("other") && !stays("one") && !stays("two"));

    let error = known(Known::Absent, bytes(b"x")).unwrap_err();
    assert_eq!(error.code().name, "backend.not_found");
    assert!(error.to_string().contains("store:a"), "{error}");

    for other in [bytes(b"x"), Known::Unknown] {
        let rest = known(Known::Withdrawn, other).unwrap();
        let paths: Vec<&str> = rest.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["two"]);
        assert!(!rest.keeps(&RelPath::parse("d/anything").unwrap()));
    }

    let spec = good(
        "files:\n- {path: f, from: \"store:a#x\", optional: true}\n- {path: d/, from: \"store:a#*\", optional: true}\n",
    );
    assert!(render(&spec, &[Known::Absent]).unwrap().is_empty());
    assert_eq!(render(&spec, &[bytes(b"{\"y\":1}")]).unwrap().len(), 1);
    let strict = good("files: [{path: f, from: \"store:a#x\"}]\n");
    let error = render(&strict, &[bytes(b"{\"y\":\"s3cr3t\"}")]).unwrap_err();
    assert_eq!(error.code().name, "render.no_field");
    assert_eq!(error.to_string(), "f: `store:a` has no field `x`");
}

#[test]
fn fields_become_files_within_the_volume_or_nothing_does() {
    let spec = good("files:\n- {path: d/, from: \"store:a#*\"}\n- {path: d/x, from: store:b}\n");
    let set = render(
        &spec,
        &[
            fields(&[("y/z", b"1", Some(0o600)), ("w", b"2", None)]),
            bytes(b"x"),
        ],
    )
    .unwrap();
    let modes: Vec<_> = set
        .iter()
        .map(|(path, file)| (path.as_str(), file.mode.bits()))
        .collect();
    assert_eq!(
        modes,
        [("d/w", 0o400), ("d/x", 0o400), ("d/y/z", 0o600)],
        "the store's mode, else the default"
    );
    for name in ["x", "../x", "..data", "/etc/passwd", "a\nb", "", "w/"] {
        let error = render(&spec, &[fields(&[(name, b"1", None)]), bytes(b"x")]).unwrap_err();
        assert_eq!(error.code().name, "render.field_path", "{name:?}: {error}");
    }
    let root = good("files: [{path: ./, from: \"store:a#*\"}]\n");
    assert_eq!(
        text_of(&render(&root, &[bytes(b"{\"k\":\"v\"}")]).unwrap(), "k"),
        "v"
    );
}

#[test]
fn limits_name_the_file_and_the_limit() {
    let mut spec = good("files:\n- {path: a, from: store:a}\n- {path: b, from: store:b}\n");
    spec.limits.bytes_per_file = 10;
    spec.limits.bytes_per_volume = 15;
    let error = render(&spec, &[bytes(&[0; 11]), bytes(b"")]).unwrap_err();
    assert!(
        error.to_string().starts_with("a: ") && error.to_string().contains("bytesPerFile"),
        "{error}"
    );
    let error = render(&spec, &[bytes(&[0; 10]), bytes(&[0; 6])]).unwrap_err();
    assert!(
        error.to_string().starts_with("b: ") && error.to_string().contains("bytesPerVolume"),
        "{error}"
    );
    spec.limits.files_per_volume = 1;
    let error = render(&spec, &[bytes(b""), bytes(b"")]).unwrap_err();
    assert_eq!(error.code().name, "render.too_large");
}

#[test]
fn a_rule_that_fails_hides_no_other() {
    let mut spec = good(
        "sources: {a: store:a}\nfiles:\n- {path: t, template: \"\\n{{ a.x }}\"}\n- {path: big, from: store:b}\n\
         - {path: good, from: \"a#k\"}\n- {path: none, from: \"a#x\"}\n",
    );
    spec.limits.bytes_per_file = 10;
    spec.limits.bytes_per_volume = 10;
    let (set, failures) = render_all(&spec, &[bytes(b"{\"k\":\"v\"}"), bytes(&[0; 11])]);
    let failed: Vec<_> = failures
        .iter()
        .map(|f| (f.rule, f.line, f.error.code().name))
        .collect();
    assert_eq!(
        failed,
        [
            (0, 2, "render.template"),
            (1, 0, "render.too_large"),
            (3, 0, "render.no_field")
        ]
    );
    assert_eq!((set.len(), &*text_of(&set, "good")), (1, "v"));
}

#[test]
fn the_limit_of_a_file_is_for_what_a_template_makes() {
    let text = "sources: {s: store:s}\nfiles: [{path: f, template: \"{# a comment of some length #}{{ s }}\"}]\n";
    let mut setting = Setting::local();
    setting.limits.bytes_per_file = 10;
    let spec = parse(text, &setting, &facts).unwrap();
    let set = render(&spec, &[bytes(b"0123456789")]).unwrap();
    assert_eq!(text_of(&set, "f"), "0123456789");
    let error = render(&spec, &[bytes(b"0123456789a")]).unwrap_err();
    assert_eq!(error.code().name, "render.too_large");
}

fn template(text: &str, secret: &Known) -> secretfs::error::Result<String> {
    let spec = format!(
        "sources: {{s: store:s}}\nfiles:\n- path: f\n  template: {}\n",
        serde_json::to_string(text).unwrap()
    );
    let spec = good(&spec);
    let known: Vec<_> = spec.objects.iter().map(|_| secret.clone()).collect();
    render(&spec, &known).map(|set| text_of(&set, "f"))
}

#[test]
fn filters_do_what_their_names_say() {
    let secret = bytes(r#"{"p": "a'b \"ü\"/$\n", "l": ["x","y"], "n": 7, "f": 1.50, "h": "c3VwZXI", "m": {"k": 1}}"#.as_bytes());
    for (text, expect) in [
        ("{{ s.p | b64encode }}", "YSdiICLDvCIvJAo="),
        ("{{ s.h | b64decode }}", "super"),
        ("{{ s.n | hex }}{{ s.n | hex | unhex }}", "377"),
        ("{{ s.p | tojson }}", r#""a'b \"ü\"/$\n""#),
        ("{{ s.p | yaml }}", r#""a'b \"ü\"/$\n""#),
        (
            "{{ s.m | json }}{{ s.l }}{{ s.f }}",
            r#"{"k":1}["x","y"]1.50"#,
        ),
        ("{{ s.p | urlencode }}", "a%27b%20%22%C3%BC%22%2F%24%0A"),
        ("{{ s.p | shellquote }}", "'a'\\''b \"ü\"/$\n'"),
        ("{{ 'plain' | dotenv }}", "\"plain\""),
        (
            "{{ s.l | join(',') }} {{ s.l | length }} {{ s.l | first | upper }}",
            "x,y 2 X",
        ),
        (
            "{% for k, v in s.m | items %}{{ k }}={{ v }}\n{% endfor %}",
            "k=1\n",
        ),
        (
            "{% if s.zz is defined %}a{% else %}b{% endif %}{{ s.zz | default('c') }}",
            "bc",
        ),
        ("{{ s.n ~ 'x' ~ s.l[1] }}\n", "7xy\n"),
        ("<{{ '<&>' }}>", "<<&>>"),
    ] {
        let text = if text.contains("s.") {
            text.to_owned()
        } else {
            format!("{text}{{% if s.q is defined %}}{{% endif %}}")
        };
        assert_eq!(template(&text, &secret).unwrap(), expect, "{text}");
    }
    assert_eq!(template("{{ s }}", &bytes(b"token")).unwrap(), "token");
    assert_eq!(
        template("{{ s }}", &bytes(b"[1, 2]")).unwrap(),
        "[1, 2]",
        "only an object has fields"
    );
    assert_eq!(
        template("{{ s | b64encode }} {{ s | hex }}", &bytes(b"\xff\x00")).unwrap(),
        "/wA= ff00"
    );
    let mixed = fields(&[("a", b"x", None), ("b", b"\xff", None)]);
    assert_eq!(
        template("{{ s.a }}", &mixed).unwrap(),
        "x",
        "a binary field that is not used does no harm"
    );
}

/// A value that must never be seen, in an error least of all.
const CANARY: &str = "cAnArY7f3a";

/// A template that fails, and what its error says.
#[rustfmt::skip]
const FAILURES: &[(&str, &str)] = &[
    ("a\n{{ s.nope }}", "line 2 of the template: `s.nope` is not there"),
    ("{{ s.v.x.y }}", "`s.v.x` is not there"),
    ("{{ s['q r'] | upper }}", "q r"),
    ("{{ s.v - 1 }}", "line 1 of the template: the values do not allow this operation at `s.v - 1`"),
    ("{{ s.v / s.l }}", "operation"),
    ("{{ s.v % 2 }}", "operation"),
    ("{{ -s.v }}", "operation"),
    ("{{ s.v | int }}", "operation"),
    ("{{ s.v | unhex }}", "the value is not hex at `unhex`"),
    ("{{ s.v | replace('C','_') | b64decode }}", "line 1 of the template: the value is not base64"),
    ("{{ s.l | shellquote }}", "tojson"),
    ("{{ s.m | urlencode }}", "tojson"),
    ("{{ s.v() }}", "operation"),
    ("{{ s.v.foo(s.v) }}", "called"),
    ("{{ s.v | replace }}", "arguments"),
    ("{{ s.v | upper(s.v) }}", "arguments"),
    ("{{ s.v | indent(s.v) }}", "operation"),
    ("{{ s.v | default(nope=s.v) }}", "line 1"),
    ("{% for a, b in s.l %}{{ a }}{% endfor %}", "parts"),
    ("{% for a in s.l recursive %}{{ loop(s.l) }}{% endfor %}", "line 1"),
    ("{% for a in s.big | list %}{% for b in s.big | list %}{{ b }}{% endfor %}{% endfor %}", "too many steps"),
    ("{{ s.l[s.v] }}", "is not there"),
    ("{{ s.v[1:s.v] }}", "operation"),
    ("{{ s.v | split(s.l) }}", "operation"),
    ("{{ s.v < s.l }}{{ s.v | dictsort }}", "operation"),
];

#[test]
fn no_error_of_a_template_holds_a_value() {
    let json = bytes(
        format!(
            r#"{{"v": "{CANARY}", "l": ["{CANARY}"], "m": {{"{CANARY}": 1}}, "big": "{}"}}"#,
            CANARY.repeat(2000)
        )
        .as_bytes(),
    );
    let binary = fields(&[("v", &[CANARY.as_bytes(), b"\xff"].concat(), None)]);
    for (text, says) in FAILURES {
        let error = template(text, &json).expect_err(text);
        let said = format!("{error} {error:?}");
        assert_eq!(error.code().name, "render.template", "{text}: {said}");
        assert!(said.contains(says), "{text}: {said}");
        assert!(said.starts_with("f: "), "{text}: {said}");
        assert!(!said.contains(CANARY), "{text}: {said}");
        assert!(std::error::Error::source(&error).is_none(), "{text}");
    }
    for text in [
        "{{ s.v }}",
        "{{ s.v ~ 1 }}",
        "{{ s.v | upper }}",
        "{{ s }}",
        "{{ s | tojson }}",
        "{{ s.v | urlencode }}!",
    ] {
        match template(text, &binary) {
            Err(error) => {
                let said = format!("{error} {error:?}");
                assert!(!said.contains(CANARY), "{text}: {said}");
                assert_eq!(error.code().name, "render.not_text", "{text}: {said}");
            }
            Ok(made) => assert_eq!(text, "{{ s.v | urlencode }}!", "{made}"),
        }
    }
}

#[test]
fn a_template_cannot_make_much_of_little() {
    let secret = bytes(format!(r#"{{"x": "{}"}}"#, "y".repeat(200_000)).as_bytes());
    let error = template(
        "{{ s.x }}{{ s.x }}{{ s.x }}{{ s.x }}{{ s.x }}{{ s.x }}",
        &secret,
    )
    .unwrap_err();
    assert_eq!(error.code().name, "render.too_large");
    let doubled =
        "{% set a = s.x %}".to_owned() + &"{% set a = a ~ a %}".repeat(30) + "{{ a | length }}";
    assert_eq!(
        template(&doubled, &secret).unwrap_err().code().name,
        "render.template"
    );
    let grown = "{{ s.x | replace('y', s.x) | length }}";
    assert_eq!(
        template(grown, &secret).unwrap_err().code().name,
        "render.template"
    );
    let wide = "{{ s.x | indent(1000000000) | length }}{{ s.x | split('') | join('\n') | indent(1000000000) }}";
    assert_eq!(
        template(wide, &secret).unwrap_err().code().name,
        "render.template"
    );
    let big = bytes(&vec![b'y'; secretfs::limits::TEMPLATE_INPUT_BYTES + 1]);
    assert_eq!(
        template("{{ s | length }}", &big).unwrap_err().code().name,
        "render.too_large"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_value_comes_out_as_it_went_in(value in any::<String>()) {
        let json = serde_json::json!({"v": value}).to_string();
        let spec = good("sources: {s: store:s}\nfiles:\n- {path: f, from: \"s#v\"}\n- {path: p, from: \"s#/v\"}\n- {path: t, template: \"{{ s.v }}\"}\n- {path: j, from: s, format: json}\n- {path: y, from: s, format: yaml}\n");
        let set = render(&spec, &[bytes(json.as_bytes())]).unwrap();
        for path in ["f", "p", "t"] {
            prop_assert_eq!(&text_of(&set, path), &value);
        }
        let read: serde_json::Value = serde_json::from_slice(&content(&set, "j")).unwrap();
        prop_assert_eq!(read["v"].as_str(), Some(&*value));
        let mut problems = secretfs::spec::Problems::default();
        let text = text_of(&set, "y");
        if text.len() < secretfs::limits::SPEC_BYTES {
            let tree = secretfs::yaml::parse(&text, &mut problems).unwrap();
            let secretfs::yaml::Value::Mapping(entries) = &tree.value else { panic!("not a mapping") };
            prop_assert_eq!(&entries[0].1.scalar().unwrap().text, &value);
        }
    }
}
