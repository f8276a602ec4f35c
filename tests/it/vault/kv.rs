//! Secrets of the engine `kv`, version 1 and 2.

use serde_json::{Value, json};

use super::bed::{backend, fetch, is_error, is_new, json as json_of};
use crate::support::{bao::Bao, program::eventually};
use secretfs::backend::{Backend, Fetched};

fn rooted(bao: &Bao, more: &str) -> std::sync::Arc<dyn Backend> {
    let file = bao.file("root", &bao.root);
    backend(&format!(
        "address: \"{}\", auth: {{method: token, file: {file:?}}}{more}",
        bao.address()
    ))
}

#[tokio::test]
async fn versions_of_kv_2_are_read_pinned_deleted_and_destroyed() {
    let Some(bao) = Bao::start() else { return };
    let backend = rooted(&bao, "");
    let read = |from: &'static str| fetch(&*backend, from, None);
    is_error(read("vault:secret/app").await, "backend.not_found");
    bao.put("app", json!({"a": 1}));
    bao.put("app", json!({"a": 2, "big": 1234567}));
    let current = is_new(read("vault:secret/app").await);
    assert!(
        current.version.as_str().starts_with("2 20"),
        "{:?}",
        current.version
    );
    assert_eq!(json_of(&current), json!({"a": 2, "big": 1234567}));
    assert_eq!(
        json_of(&is_new(read("vault:secret/app@1").await)),
        json!({"a": 1})
    );
    is_error(read("vault:secret/app@3").await, "backend.not_found");

    bao.ok("secret/delete/app", json!({"versions": [2]}));
    let error = is_error(read("vault:secret/app").await, "vault.deleted");
    assert_eq!(error.to_string(), "version 2 of the secret was deleted");
    assert!(read("vault:secret/app@1").await.is_ok());
    bao.ok("secret/undelete/app", json!({"versions": [2]}));
    assert!(read("vault:secret/app").await.is_ok());
    bao.ok("secret/destroy/app", json!({"versions": [2]}));
    is_error(read("vault:secret/app").await, "vault.destroyed");
}

#[tokio::test]
async fn what_has_not_changed_is_not_read_again() {
    let Some(bao) = Bao::start() else { return };
    let backend = rooted(&bao, "");
    bao.put("app", json!({"a": 1}));
    let first = is_new(fetch(&*backend, "vault:secret/app", None).await);
    for _ in 0..3 {
        let again = fetch(&*backend, "vault:secret/app", Some(&first)).await;
        assert!(matches!(again, Ok(Fetched::NotModified)));
    }
    let count = |kind: &str| bao.requests(&format!("secret/{kind}/app"));
    assert_eq!((count("data"), count("metadata")), (2, 3)); // one of them is the test's own
    bao.put("app", json!({"a": 2}));
    let second = is_new(fetch(&*backend, "vault:secret/app", Some(&first)).await);
    assert_eq!(json_of(&second), json!({"a": 2}));
    // deleted with everything, made again: it counts from 1 again
    bao.call("DELETE", "secret/metadata/app", &Value::Null);
    bao.put("app", json!({"a": 3}));
    let third = is_new(fetch(&*backend, "vault:secret/app", Some(&first)).await);
    assert_eq!(json_of(&third), json!({"a": 3}));
    assert_eq!(bao.requests("sys/internal/ui/mounts/secret/app"), 1);
}

#[tokio::test]
async fn without_a_right_to_metadata_the_value_is_read_each_time() {
    let Some(bao) = Bao::start() else { return };
    bao.policy("values", &[("secret/data/app", &["read"])]);
    let file = bao.file("token", &bao.token(&["values"], "1h"));
    let backend = backend(&format!(
        "address: \"{}\", auth: {{method: token, file: {file:?}}}",
        bao.address()
    ));
    bao.put("app", json!({"a": 1}));
    let first = is_new(fetch(&*backend, "vault:secret/app", None).await);
    for _ in 0..3 {
        let again = fetch(&*backend, "vault:secret/app", Some(&first)).await;
        assert!(matches!(again, Ok(Fetched::NotModified)));
    }
    assert_eq!(bao.requests("secret/metadata/app"), 1, "it is remembered");
    // a refusal names what the store's policies speak of
    for (from, names) in [
        ("vault:secret/other", "`secret/data/other`"),
        ("vault:nothing/here", "nothing is mounted"),
    ] {
        let error = is_error(
            fetch(&*backend, from, None).await,
            "backend.permission_denied",
        );
        assert!(error.to_string().contains(names), "{error}");
    }
}

#[tokio::test]
async fn kv_1_has_no_versions_and_is_compared() {
    let Some(bao) = Bao::start() else { return };
    for more in ["", ", kv: {old: 1, secret: 2}"] {
        let backend = rooted(&bao, more);
        bao.ok("old/a/b", json!({"x": "1"}));
        let first = is_new(fetch(&*backend, "vault:old/a/b", None).await);
        assert_eq!(json_of(&first), json!({"x": "1"}));
        let again = fetch(&*backend, "vault:old/a/b", Some(&first)).await;
        assert!(matches!(again, Ok(Fetched::NotModified)));
        bao.ok("old/a/b", json!({"x": "2"}));
        let second = is_new(fetch(&*backend, "vault:old/a/b", Some(&first)).await);
        assert_ne!(second.version, first.version);
        is_error(
            fetch(&*backend, "vault:old/none", None).await,
            "backend.not_found",
        );
        is_error(
            fetch(&*backend, "vault:old/a@1", None).await,
            "spec.bad_reference",
        );
    }
}

#[tokio::test]
async fn custom_metadata_is_an_object_of_its_own() {
    let Some(bao) = Bao::start() else { return };
    let backend = rooted(&bao, "");
    bao.put("app", json!({"a": 1}));
    let from = "{backend: vault, path: secret/app, method: metadata}";
    let none = is_new(fetch(&*backend, from, None).await);
    assert_eq!(json_of(&none), json!({}));
    bao.ok(
        "secret/metadata/app",
        json!({"custom_metadata": {"owner": "payments"}}),
    );
    let some = is_new(fetch(&*backend, from, Some(&none)).await);
    assert_eq!(json_of(&some), json!({"owner": "payments"}));
    let again = fetch(&*backend, from, Some(&some)).await;
    assert!(matches!(again, Ok(Fetched::NotModified)));
}

#[tokio::test]
async fn names_that_need_quoting_and_a_socket_file() {
    let Some(bao) = Bao::start() else { return };
    let file = bao.file("root", &bao.root);
    let backend = backend(&format!(
        "address: \"{}\", auth: {{method: token, file: {file:?}}}",
        bao.socket()
    ));
    for (name, sent) in [
        ("a b", "a%20b"),
        ("ü+&;=", "%C3%BC%2B%26%3B%3D"),
        ("x:y", "x%3Ay"),
    ] {
        bao.ok(
            &format!("secret/data/q/{sent}"),
            json!({"data": {"is": name}}),
        );
        let from = format!("\"vault:secret/q/{name}\"");
        let found = is_new(fetch(&*backend, &from, None).await);
        assert_eq!(json_of(&found), json!({"is": name}));
    }
}

#[tokio::test]
async fn a_namespace_is_the_backends_and_hides_no_login() {
    let Some(bao) = Bao::start() else { return };
    bao.ok("sys/namespaces/team", json!({}));
    let within = [("X-Vault-Namespace", "team")];
    let mount = json!({"type": "kv", "options": {"version": "2"}});
    bao.call_with("POST", "sys/mounts/secret", &mount, &within);
    eventually("KV of the namespace is ready", || {
        let data = json!({"data": {"is": "the team's"}});
        bao.call_with("POST", "secret/data/app", &data, &within).0 == 200
    });
    bao.put("app", json!({"is": "everybody's"}));
    let (root, team) = (rooted(&bao, ""), rooted(&bao, ", namespace: team"));
    for (backend, from, is) in [
        (&root, "vault:secret/app", "everybody's"),
        (&team, "vault:secret/app", "the team's"),
        // where the login may, by the whole name, which policy and allowedPaths see
        (&root, "vault:team/secret/app", "the team's"),
    ] {
        let found = is_new(fetch(&**backend, from, None).await);
        assert_eq!(json_of(&found)["is"], is, "{from}");
    }
    bao.call_with(
        "POST",
        "sys/auth/approle",
        &json!({"type": "approle"}),
        &within,
    );
    for path in [
        "team/auth/token/lookup-self",
        "team/auth/approle/role/x/role-id",
        "team/sys/health",
        "team/cubbyhole/x",
    ] {
        let from = format!("vault:{path}");
        is_error(fetch(&*root, &from, None).await, "vault.path_not_allowed");
    }
}
