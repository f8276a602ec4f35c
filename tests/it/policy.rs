//! Who may read what: the meaning of patterns, and the lines of the configuration.

use proptest::prelude::*;
use secretfs::{
    backend::registry::problems,
    caller::PodIdentity,
    config::{Config, Env},
    error::codes,
    policy::{Pattern, Policy},
    spec::{BackendName, ObjectRef, Problem, Share},
};

/// The table of docs/reference/config.md: pattern, what it covers, what it does not.
const MEANING: &[(&str, &[&str], &[&str])] = &[
    (
        "payments/db",
        &["payments/db"],
        &["payments/d", "payments/db/x", "payments", "Payments/db"],
    ),
    (
        "payments/*",
        &["payments/db", "payments/a.b-c"],
        &["payments", "payments/db/x", "payments-x/db"],
    ),
    (
        "payments/db-*",
        &["payments/db-1", "payments/db-"],
        &["payments/db", "payments/db-1/x", "payments/xdb-1"],
    ),
    (
        "*/db",
        &["payments/db", "billing/db"],
        &["db", "a/b/db", "payments/db2"],
    ),
    (
        "payments/**",
        &["payments/db", "payments/a/b/c"],
        &["payments", "payments2/db", "x/payments/db"],
    ),
    ("**", &["db", "payments/db", "a/b/c/d"], &[]),
    (
        "**/tls",
        &["tls", "web/tls", "a/b/tls"],
        &["web/tls2", "tls/x", "atls"],
    ),
    (
        "teams/**/tls",
        &["teams/tls", "teams/a/tls", "teams/a/b/tls"],
        &["teams", "teams/a", "teams/tls/key"],
    ),
    ("*", &["db"], &["payments/db"]),
    ("a*b*c", &["abc", "axbxc", "abbc"], &["ab", "abcd", "a/b/c"]),
    (
        "a/**/b/**",
        &["a/b/c", "a/x/b/c", "a/b/b"],
        &["a/b", "a/x/b", "b/c"],
    ),
    ("**/**", &["a", "a/b"], &[]),
    ("a[1]{x}.+", &["a[1]{x}.+"], &["a1", "a[1]{x}xx"]),
    ("gr\u{fc}n/*", &["gr\u{fc}n/\u{e4}"], &["grun/x"]),
];

#[test]
fn the_table_of_patterns_holds() {
    for (pattern, covered, others) in MEANING {
        let parsed = Pattern::parse(pattern).unwrap();
        for path in *covered {
            assert!(parsed.covers(path), "`{pattern}` does not cover `{path}`");
        }
        for path in *others {
            assert!(!parsed.covers(path), "`{pattern}` covers `{path}`");
        }
    }
}

#[test]
fn the_page_has_the_table_of_patterns() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/config.md");
    let page = std::fs::read_to_string(page).unwrap();
    let rows: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `store:"))
        .collect();
    assert!(rows.len() >= 7, "{rows:?}");
    let list = |cell: &str| -> Vec<String> {
        let words = cell.split('`').skip(1).step_by(2);
        words.map(str::to_owned).collect()
    };
    for row in rows {
        let (pattern, rest) = row.split_once("` |").unwrap();
        let (covered, others) = rest.split_once('|').unwrap();
        let parsed = Pattern::parse(pattern).unwrap();
        for path in list(covered) {
            assert!(parsed.covers(&path), "`{pattern}` does not cover `{path}`");
        }
        for path in list(others) {
            assert!(!parsed.covers(&path), "`{pattern}` covers `{path}`");
        }
        let tested = MEANING.iter().any(|(known, ..)| *known == pattern);
        assert!(tested, "`{pattern}` is not in the table of this test");
    }
}

#[test]
fn what_could_never_name_a_secret_is_no_pattern() {
    for text in [
        "",
        "/a",
        "a/",
        "a//b",
        "a/../b",
        "./a",
        "a%2f",
        "a?",
        "a\n",
        "**x",
        "x**",
        "a/b**/c",
        "***",
        "db#password",
    ] {
        let (refusal, fix) = Pattern::parse(text).unwrap_err();
        assert!(!refusal.is_empty() && !fix.is_empty(), "{text:?}");
    }
}

/// What a pattern means, said without care for time: every split is tried.
fn reference(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], path) => path.is_empty(),
        (["**"], path) => !path.is_empty(),
        (["**", rest @ ..], path) => (0..=path.len()).any(|n| reference(rest, &path[n..])),
        ([_, ..], []) => false,
        ([glob, rest @ ..], [segment, others @ ..]) => {
            within(glob, segment) && reference(rest, others)
        }
    }
}

fn within(glob: &str, segment: &str) -> bool {
    match glob.chars().next() {
        None => segment.is_empty(),
        Some('*') => {
            let mut ends = segment.char_indices().map(|(at, _)| at).collect::<Vec<_>>();
            ends.push(segment.len());
            ends.iter().any(|at| within(&glob[1..], &segment[*at..]))
        }
        Some(c) => segment
            .strip_prefix(c)
            .is_some_and(|rest| within(&glob[c.len_utf8()..], rest)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn patterns_mean_what_the_plain_reference_says(
        pattern in prop::collection::vec("\\*\\*|[a\u{e9}*]{1,4}", 1..6),
        path in prop::collection::vec("[a\u{e9}]{1,4}", 1..6),
    ) {
        let text = pattern.join("/");
        let segments: Vec<&str> = text.split('/').collect();
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        match Pattern::parse(&text) {
            Ok(pattern) => prop_assert_eq!(pattern.covers(&path.join("/")), reference(&segments, &names)),
            Err(_) => prop_assert!(segments.iter().any(|s| *s != "**" && s.contains("**"))),
        }
    }
}

/// A search that tries each star's every length would not end within the age of the universe.
#[test]
fn the_worst_pattern_takes_no_noticeable_time() {
    let pattern = Pattern::parse(&format!("{}x", "a*".repeat(500))).unwrap();
    assert!(!pattern.covers(&"a".repeat(1024)));
    let pattern = Pattern::parse(&format!("{}x", "**/a/".repeat(200))).unwrap();
    assert!(!pattern.covers("a/".repeat(511).trim_end_matches('/')));
}

fn parse(policy: &str) -> Result<Policy, Vec<Problem>> {
    let text = format!(
        "backends:\n  store: {{kind: store, path: /a, identity: /b}}\n  payments: {{kind: store, path: /c, identity: /d}}\npolicy:\n{policy}"
    );
    Config::parse(&text, &Env::default(), &problems).map(|config| Policy::new(config.policy))
}

fn pod(namespace: &str, account: &str) -> PodIdentity {
    PodIdentity {
        namespace: namespace.into(),
        pod: "p".into(),
        pod_uid: "u".into(),
        service_account: account.into(),
        service_account_uid: None,
    }
}

fn object(backend: &str, path: &str) -> ObjectRef {
    ObjectRef {
        backend: BackendName::parse(backend).unwrap(),
        path: path.into(),
        version: None,
        params: "".into(),
        share: Share::Principal,
    }
}

#[test]
fn any_line_may_allow_and_all_three_parts_of_it_must_agree() {
    let policy = parse(
        "- {namespaces: [payments, shop], serviceAccounts: [api], allow: [\"store:payments/**\", \"payments:db\"]}\n\
         - {namespaces: [\"*\"], serviceAccounts: [mesh.agent], allow: [\"store:ca\"]}\n\
         - {namespaces: [ops], serviceAccounts: [\"*\"], allow: [\"store:**\"]}\n",
    )
    .unwrap();
    for (namespace, account, backend, path, expect) in [
        ("payments", "api", "store", "payments/db", true),
        ("shop", "api", "store", "payments/db", true),
        ("shop", "api", "payments", "db", true),
        ("shop", "api", "payments", "payments/db", false),
        ("shop", "api", "store", "db", false),
        ("payments", "web", "store", "payments/db", false),
        ("other", "api", "store", "payments/db", false),
        ("api", "payments", "store", "payments/db", false),
        ("anywhere", "mesh.agent", "store", "ca", true),
        ("anywhere", "api", "store", "ca", false),
        ("ops", "anybody", "store", "payments/db", true),
        ("ops", "anybody", "payments", "db", false),
        ("*", "*", "store", "payments/db", false),
    ] {
        let answer = policy.allows(&pod(namespace, account), &object(backend, path));
        assert_eq!(
            answer.is_ok(),
            expect,
            "{namespace}/{account} {backend}:{path}"
        );
    }
    let mut fixed = object("store", "payments/db");
    fixed.version = Some("3".into());
    assert!(policy.allows(&pod("shop", "api"), &fixed).is_ok());
    let nobody = Policy::default().allows(&pod("ops", "a"), &object("store", "ca"));
    assert_eq!(nobody.unwrap_err().code(), &codes::POLICY_DENIED);
}

#[test]
fn a_denial_names_who_and_what_and_the_line_that_would_allow_just_that() {
    let policy = Policy::default();
    for path in ["payments/db", "a \"b\" \\: c", "x@1"] {
        let (who, what) = (pod("null", "api"), object("store", path));
        let said = policy.allows(&who, &what).unwrap_err().to_string();
        assert!(
            said.starts_with(&format!(
                "store:{path}: no line of the node's policy allows service account null/api"
            )),
            "{said}"
        );
        let (_, line) = said.split_once("`policy`: ").unwrap();
        let mended = parse(line).unwrap_or_else(|problems| panic!("{line}: {problems:?}"));
        assert!(mended.allows(&who, &what).is_ok(), "{line}");
        for (who, what) in [
            (pod("null", "web"), object("store", path)),
            (pod("other", "api"), object("store", path)),
            (pod("null", "api"), object("payments", path)),
            (pod("null", "api"), object("store", "payments/dbx")),
        ] {
            assert!(mended.allows(&who, &what).is_err(), "{line}");
        }
    }
    // A pod's author must not make the operator copy a line that opens everything.
    for path in ["**", "payments/*"] {
        let refused = policy.allows(&pod("a", "b"), &object("store", path));
        let said = refused.unwrap_err().to_string();
        assert!(!said.contains("allow: ["), "{said}");
    }
}

#[test]
fn every_mistake_of_a_line_is_told_with_its_line_and_its_fix() {
    for (line, field, message, help) in [
        (
            "{namespaces: [pay*], serviceAccounts: [a], allow: [\"store:a\"]}",
            "namespaces",
            "`pay*` cannot be a name",
            "exact names",
        ),
        (
            "{namespaces: [a.b], serviceAccounts: [a], allow: [\"store:a\"]}",
            "namespaces",
            "`a.b` cannot be a name",
            "a-z",
        ),
        (
            "{namespaces: [a], serviceAccounts: [Api], allow: [\"store:a\"]}",
            "serviceAccounts",
            "`Api` cannot be a name",
            "a-z",
        ),
        (
            "{namespaces: [a], serviceAccounts: [-a], allow: [\"store:a\"]}",
            "serviceAccounts",
            "`-a` cannot be a name",
            "a-z",
        ),
        (
            "{namespaces: [a], serviceAccounts: [a..b], allow: [\"store:a\"]}",
            "serviceAccounts",
            "`a..b` cannot be a name",
            "a-z",
        ),
        (
            "{namespaces: [a], serviceAccounts: [a], allow: [\"stroe:a\"]}",
            "allow",
            "there is no backend `stroe`",
            "did you mean `store`?",
        ),
        (
            "{namespaces: [a], serviceAccounts: [a], allow: [\"*:a\"]}",
            "allow",
            "there is no backend `*`",
            "there are: payments, store",
        ),
        (
            "{namespaces: [a], serviceAccounts: [a], allow: [store]}",
            "allow",
            "`store` is not BACKEND:PATTERN",
            "store:payments/**",
        ),
        (
            "{namespaces: [a], serviceAccounts: [a], allow: [\"store:a/b**\"]}",
            "allow",
            "has `**` within a segment",
            "stands alone",
        ),
        (
            "{namespaces: [a], serviceAccounts: [a], allow: [\"store:/a\"]}",
            "allow",
            "begins with `/`",
            "path",
        ),
        (
            "{namespaces: [a], serviceAccounts: [a], allow: [\"store:db#pw\"]}",
            "allow",
            "holds `#`",
            "whole secrets",
        ),
        (
            "{namespaces: [], serviceAccounts: [a], allow: [\"store:a\"]}",
            "namespaces",
            "names nothing",
            "",
        ),
        (
            "{namespaces: [a], serviceAccount: [a], allow: [\"store:a\"]}",
            "serviceAccount",
            "unknown key `serviceAccount`",
            "did you mean `serviceAccounts`?",
        ),
    ] {
        let good = "- {namespaces: [a], serviceAccounts: [a], allow: [\"store:a\"]}\n";
        let found = parse(&format!("{good}- {line}\n")).unwrap_err();
        let [problem] = &found[..] else {
            panic!("{line}: {found:?}");
        };
        assert_eq!(
            (problem.at.line, &*problem.field),
            (6, &*format!("policy[1].{field}"))
        );
        assert_eq!(problem.code, &codes::CONFIG_INVALID);
        assert!(
            problem.message.contains(message),
            "{line}: {}",
            problem.message
        );
        assert!(
            problem.help.clone().unwrap_or_default().contains(help),
            "{problem:?}"
        );
    }
    let both = parse("- {namespaces: [a], serviceAccounts: [a], allow: [\"x:**y\"]}\n");
    assert_eq!(both.unwrap_err().len(), 2, "both halves are looked at");
}
