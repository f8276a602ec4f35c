//! The settings of a backend, and references that it refuses.

use super::bed::{backend, read, wrong};
use crate::support::scripted;

const GOOD: &str = "address: \"https://v:8200\", audience: vault, auth: {method: kubernetes}";

#[test]
fn settings_are_taken_or_every_mistake_is_told() {
    for good in [
        GOOD,
        "address: \"https://v\", namespace: a/b, tls: {ca: /ca, serverName: v.example, certificate: /c, key: /k}, proxy: \"http://p:3128\", \
         redirectHosts: [\"https://w:8200\"], timeouts: {resolve: 2s, connect: 3s, tls: 4s, answer: 30s}, requests: {perSecond: 100, burst: 1, inFlight: 10000}, audience: v, shareBy: pod, \
         auth: {method: jwt, mount: clusters/one, role: app}, allowedPaths: [\"secret/**\"], kv: {secret: 2, old/: 1}",
        "address: \"unix:///run/bao.sock\", auth: {method: approle, roleId: r, secretIdFile: /s, wrapped: true}",
        "address: \"https://v\", auth: {method: approle, roleId: r}",
        "address: \"https://v\", tls: {certificate: /c, key: /k}, auth: {method: cert, role: node}",
        "address: \"https://v\", auth: {method: token, file: /t}",
        "address: \"https://v\", auth: {method: userpass, username: me, passwordFile: /p}",
        "address: \"https://v\", audience: \"https://kubernetes.default.svc\", allowAPIServerAudience: true, auth: {method: kubernetes}",
    ] {
        assert_eq!(wrong(good), [], "{good}");
    }
    let auth = "auth: {method: token, file: /t}";
    for (bad, field) in [
        ("auth: {method: token, file: /t}".to_owned(), "address"),
        (format!("address: v, {auth}"), "address"),
        (format!("address: \"https://v/x\", {auth}"), "address"),
        ("address: \"https://v\"".to_owned(), "auth"),
        ("address: \"https://v\", auth: {method: magic}".to_owned(), "auth.method"),
        ("address: \"https://v\", auth: {method: token}".to_owned(), "auth.file"),
        ("address: \"https://v\", auth: {method: token, file: t}".to_owned(), "auth.file"),
        ("address: \"https://v\", auth: {method: token, file: /t, role: r}".to_owned(), "auth.role"),
        ("address: \"https://v\", auth: {method: cert}".to_owned(), "auth"),
        ("address: \"https://v\", auth: {method: approle, roleId: r, wrapped: true}".to_owned(), "auth.wrapped"),
        ("address: \"https://v\", auth: {method: userpass, username: a/b, passwordFile: /p}".to_owned(), "auth.username"),
        ("address: \"https://v\", auth: {method: kubernetes}".to_owned(), "audience"),
        ("address: \"https://v\", audience: \"\", auth: {method: kubernetes}".to_owned(), "audience"),
        ("address: \"https://v\", audience: \"https://kubernetes.default.svc.cluster.local\", auth: {method: jwt}".to_owned(), "audience"),
        ("address: \"https://v\", audience: \"https://kubernetes.default.svc\", allowAPIServerAudience: false, auth: {method: jwt}".to_owned(), "audience"),
        (format!("address: \"https://v\", audience: v, {auth}"), "audience"),
        (format!("address: \"https://v\", shareBy: pod, {auth}"), "shareBy"),
        (format!("{GOOD}, shareBy: namespace"), "shareBy"),
        (format!("{GOOD}, tls: {{certificate: /c}}"), "tls"),
        (format!("{GOOD}, tls: {{ca: rel}}"), "tls.ca"),
        (format!("{GOOD}, proxy: \"https://p\""), "proxy"),
        (format!("{GOOD}, timeouts: {{answer: 31s}}"), "timeouts.answer"),
        (format!("{GOOD}, requests: {{perSecond: 0}}"), "requests.perSecond"),
        (format!("{GOOD}, requests: {{inFlight: 10001}}"), "requests.inFlight"),
        (format!("{GOOD}, requests: {{perMinute: 1}}"), "requests.perMinute"),
        (format!("{GOOD}, namespace: a/../b"), "namespace"),
        (format!("{GOOD}, allowedPaths: [\"a/../b\"]"), "allowedPaths"),
        (format!("{GOOD}, kv: {{secret: 3}}"), "kv.secret"),
        (format!("{GOOD}, token: abc"), "token"),
    ] {
        let found = wrong(&bad);
        let fields: Vec<_> = found.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, [format!("backends.vault.{field}")], "{bad}: {found:?}");
    }
}

#[test]
fn references_that_could_lead_elsewhere_are_refused_in_both_forms() {
    let backend = backend(&format!(
        "{GOOD}, allowedPaths: [\"secret/app/**\", \"pki/issue/*\"]"
    ));
    let structured = |path: &str| format!("{{backend: vault, path: {path:?}}}");
    for path in [
        "secret/app//x",
        "secret/app/./x",
        "secret/app/../x",
        "secret/app/%2e%2e/x",
        "secret/app/x?list=true",
        "/secret/app/x",
        "secret/app/x/",
    ] {
        for from in [format!("{:?}", format!("vault:{path}")), structured(path)] {
            let said = read(&*backend, &from).unwrap_err();
            assert!(said.starts_with("[spec.bad_reference]"), "{from}: {said}");
        }
    }
    for path in [
        "secret/other",
        "secret/app",
        "secret/appx/a",
        "pki/issue/a/b",
        "pki/root/generate",
    ] {
        for from in [format!("{:?}", format!("vault:{path}")), structured(path)] {
            let said = read(&*backend, &from).unwrap_err();
            assert!(
                said.starts_with("[vault.path_not_allowed]"),
                "{from}: {said}"
            );
        }
    }
    for path in ["auth/token/lookup-self", "sys/health", "cubbyhole/x"] {
        let said = read(&*backend, &structured(path)).unwrap_err();
        assert!(said.contains("no secret"), "{said}");
    }
    for (from, says) in [
        ("\"vault:secret/app/x@0\"", "not a version"),
        ("\"vault:secret/app/x@a\"", "not a version"),
        (
            "{backend: vault, path: secret/app/x, method: delete}",
            "no method",
        ),
        (
            "{backend: vault, path: secret/app/x, method: write, version: \"1\"}",
            "plain read",
        ),
        (
            "{backend: vault, path: secret/app/x, method: metadata, data: {a: b}}",
            "no `data`",
        ),
        (
            "{backend: vault, path: secret/app/x, role: \"a b\"}",
            "role",
        ),
    ] {
        let said = read(&*backend, from).unwrap_err();
        assert!(said.contains(says), "{from}: {said}");
    }
    for from in [
        "\"vault:secret/app/x@12#a\"",
        "{backend: vault, path: pki/issue/web, method: write, data: {common_name: web}, role: app, field: certificate}",
        "{backend: vault, path: secret/app/x, method: metadata}",
    ] {
        assert!(read(&*backend, from).is_ok(), "{from}");
    }
}

#[test]
fn who_asks_is_the_pods_account_the_pod_or_the_node() {
    use secretfs::caller::Principal;
    let who = scripted::pod("p", "api");
    let principal = |settings: &str| {
        let backend = backend(settings);
        let object = super::bed::object(&*backend, "vault:secret/a");
        (
            who.principal(backend.asks_as(&object)),
            backend.audience().map(str::to_owned),
        )
    };
    let (account, audience) = principal(GOOD);
    assert!(matches!(account, Principal::ServiceAccount { .. }));
    assert_eq!(audience.as_deref(), Some("vault"));
    assert!(matches!(
        principal(&format!("{GOOD}, shareBy: pod")).0,
        Principal::Pod(_)
    ));
    let node = principal("address: \"https://v\", auth: {method: token, file: /t}");
    assert_eq!(node, (Principal::Node, None));
}
