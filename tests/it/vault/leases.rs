//! Endpoints of other engines, and what they lease.

use std::time::Duration;

use secretfs::{
    backend::{Backend, Fetched},
    clock::{Clock as _, SystemClock},
    secret::Lease,
    spec::Share,
};
use serde_json::{Value, json};

use super::{
    bed::{backend, cx, fetch, is_error, is_new, json as json_of, object, read},
    fake::{Fake, says},
};
use crate::support::{bao::Bao, program::eventually};

/// A server with an authority, and a login `people/me` that may ask it for certificates.
fn with_pki(bao: &Bao, leases: bool) -> std::sync::Arc<dyn Backend> {
    bao.ok(
        "sys/mounts/pki",
        json!({"type": "pki", "config": {"max_lease_ttl": "87600h"}}),
    );
    bao.ok(
        "pki/root/generate/internal",
        json!({"common_name": "root", "ttl": "8760h"}),
    );
    bao.ok(
        "pki/roles/web",
        json!({"allow_any_name": true, "max_ttl": "72h", "generate_lease": leases}),
    );
    bao.policy(
        "app",
        &[
            ("pki/issue/web", &["update"]),
            ("transit/*", &["read", "update"]),
        ],
    );
    bao.ok("sys/auth/people", json!({"type": "userpass"}));
    bao.ok(
        "auth/people/users/me",
        json!({"password": "x", "token_policies": ["app"], "token_ttl": "1h"}),
    );
    let file = bao.file("password", "x");
    backend(&format!(
        "address: \"{}\", auth: {{method: userpass, mount: people, username: me, passwordFile: {file:?}}}",
        bao.address()
    ))
}

const ISSUE: &str = "{backend: vault, path: pki/issue/web, method: write, data: {common_name: web.example, ttl: 1h}}";

fn left(lease: &Lease) -> Duration {
    lease.expires_at.since(SystemClock.now())
}

/// How many tokens the store knows, root's among them.
fn tokens(bao: &Bao) -> usize {
    let (_, listed) = bao.call("LIST", "auth/token/accessors", &Value::Null);
    listed["data"]["keys"].as_array().unwrap().len()
}

#[tokio::test]
async fn what_is_leased_has_a_login_of_its_own_that_ends_with_it() {
    let Some(bao) = Bao::start() else { return };
    let backend = with_pki(&bao, true);
    let before = tokens(&bao);
    let issued = is_new(fetch(&*backend, ISSUE, None).await);
    assert!(
        json_of(&issued)["certificate"]
            .as_str()
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
    let lease = issued.lease.as_ref().unwrap();
    let hour = Duration::from_secs(3590)..=Duration::from_secs(3600);
    assert!(
        hour.contains(&left(lease)) && !lease.renewable,
        "{:?}",
        left(lease)
    );
    // asked again while it lives: nothing new is made
    let again = fetch(&*backend, ISSUE, Some(&issued)).await.unwrap();
    assert!(matches!(again, Fetched::NotModified));
    assert_eq!(bao.requests("pki/issue/web"), 1);
    assert_eq!(tokens(&bao), before + 2, "the shared login, and its own");
    let serial = json_of(&issued)["serial_number"]
        .as_str()
        .unwrap()
        .to_owned();
    let revoked = || {
        let (_, found) = bao.call("GET", &format!("pki/cert/{serial}"), &Value::Null);
        found["data"]["revocation_time"].as_u64().unwrap() > 0
    };
    assert!(!revoked());
    backend.revoke(&cx(), lease).await.unwrap();
    backend.revoke(&cx(), lease).await.unwrap(); // there is nothing left to give back
    assert_eq!(tokens(&bao), before + 1);
    eventually("the certificate is revoked", revoked);
}

#[tokio::test]
async fn a_certificate_without_a_lease_lasts_until_it_expires() {
    let Some(bao) = Bao::start() else { return };
    let backend = with_pki(&bao, false);
    let issued = is_new(fetch(&*backend, ISSUE, None).await);
    let lease = issued.lease.as_ref().unwrap();
    assert!(left(lease) > Duration::from_secs(3590) && !lease.renewable);
    let again = fetch(&*backend, ISSUE, Some(&issued)).await.unwrap();
    assert!(matches!(again, Fetched::NotModified));
    backend.revoke(&cx(), lease).await.unwrap();
    // the second one needs no login of its own
    is_new(fetch(&*backend, ISSUE, None).await);
    assert_eq!(bao.requests("auth/people/login/me"), 2);
    assert_eq!(bao.requests("auth/token/revoke-self"), 1);
    is_error(
        fetch(
            &*backend,
            "{backend: vault, path: pki/issue/none, method: write}",
            None,
        )
        .await,
        "backend.permission_denied",
    );
}

#[tokio::test]
async fn an_endpoint_is_read_with_parameters_or_written_and_kv_is_neither() {
    let Some(bao) = Bao::start() else { return };
    let file = bao.file("root", &bao.root);
    let backend = backend(&format!(
        "address: \"{}\", auth: {{method: token, file: {file:?}}}",
        bao.address()
    ));
    bao.ok("sys/mounts/transit", json!({"type": "transit"}));
    bao.ok("transit/keys/k", json!({}));
    let encrypt =
        "{backend: vault, path: transit/encrypt/k, method: write, data: {plaintext: aGk=}}";
    let made = is_new(fetch(&*backend, encrypt, None).await);
    assert!(
        json_of(&made)["ciphertext"]
            .as_str()
            .unwrap()
            .starts_with("vault:v1:")
    );
    let read = is_new(fetch(&*backend, "vault:transit/keys/k", None).await);
    assert_eq!(json_of(&read)["name"], "k");
    let same = fetch(&*backend, "vault:transit/keys/k", Some(&read))
        .await
        .unwrap();
    assert!(matches!(same, Fetched::NotModified));
    let listed = "{backend: vault, path: transit/keys, method: read, data: {list: true}}";
    assert_eq!(
        json_of(&is_new(fetch(&*backend, listed, None).await))["keys"],
        json!(["k"])
    );
    bao.put("a", json!({"x": 1}));
    for from in [
        "{backend: vault, path: secret/a, method: write, data: {data: {x: 2}}}",
        "{backend: vault, path: old/a, method: write, data: {x: 2}}",
        "{backend: vault, path: transit/keys/k, version: \"1\"}",
        "{backend: vault, path: transit/keys/k, method: metadata}",
    ] {
        is_error(fetch(&*backend, from, None).await, "spec.bad_reference");
    }
    is_error(
        fetch(&*backend, "vault:none/a", None).await,
        "backend.permission_denied",
    );
    is_error(
        fetch(
            &*backend,
            "{backend: vault, path: transit/encrypt/k, method: write}",
            None,
        )
        .await,
        "vault.bad_request",
    );
}

/// A database engine, as far as its protocol goes: a lease of ten minutes that can be renewed.
fn database() -> Fake {
    let login = r#"{"auth": {"client_token": "own", "lease_duration": 300, "renewable": true}}"#;
    Fake::new(move |request| {
        let line = request.split(" HTTP/").next().unwrap();
        match line {
            "POST /v1/auth/userpass/login/me" => says(200, login),
            "GET /v1/sys/internal/ui/mounts/db/creds/app" => {
                says(200, r#"{"data": {"path": "db/", "type": "database"}}"#)
            }
            "GET /v1/db/creds/app" => says(
                200,
                r#"{"lease_id": "db/creds/app/1", "lease_duration": 600, "renewable": true, "data": {"username": "u"}}"#,
            ),
            "POST /v1/auth/token/renew-self" => says(200, login),
            "POST /v1/sys/leases/renew" => says(
                200,
                r#"{"lease_id": "db/creds/app/1", "lease_duration": 600, "renewable": true}"#,
            ),
            "POST /v1/auth/token/revoke-self" => says(204, ""),
            _ => says(404, "{}"),
        }
    })
}

#[tokio::test]
async fn a_lease_is_renewed_with_its_login_and_never_outlives_it() {
    let (dir, fake) = (tempfile::tempdir().unwrap(), database());
    let file = dir.path().join("password");
    std::fs::write(&file, "x").unwrap();
    let backend = backend(&format!(
        "address: \"{}\", auth: {{method: userpass, username: me, passwordFile: {file:?}}}",
        fake.address()
    ));
    let made = is_new(fetch(&*backend, "vault:db/creds/app", None).await);
    let lease = made.lease.as_ref().unwrap();
    let five = Duration::from_secs(290)..=Duration::from_secs(300);
    assert!(
        five.contains(&left(lease)) && lease.renewable,
        "the login ends first: {:?}",
        left(lease)
    );
    let renewed = backend.renew(&cx(), lease).await.unwrap();
    assert!(five.contains(&left(&renewed)) && renewed.handle.same(&lease.handle));
    backend.revoke(&cx(), &renewed).await.unwrap();
    let lines = fake.lines();
    let login = "POST /v1/auth/userpass/login/me";
    assert_eq!(
        lines,
        [
            login,
            "GET /v1/sys/internal/ui/mounts/db/creds/app",
            login,
            "GET /v1/db/creds/app",
            "POST /v1/auth/token/renew-self",
            "POST /v1/sys/leases/renew",
            "POST /v1/auth/token/revoke-self",
        ]
    );
}

#[tokio::test]
async fn a_wrapped_answer_is_a_token_that_opens_it_once_for_one_volume() {
    let Some(bao) = Bao::start() else { return };
    let file = bao.file("root", &bao.root);
    let backend = backend(&format!(
        "address: \"{}\", auth: {{method: token, file: {file:?}}}",
        bao.address()
    ));
    bao.put("app", json!({"a": 1}));
    bao.put("app", json!({"a": 2}));
    bao.ok("old/app", json!({"a": 3}));
    for (from, holds) in [
        ("{backend: vault, path: secret/app, wrapTTL: 5m}", json!(2)),
        (
            "{backend: vault, path: secret/app, version: \"1\", wrapTTL: 5m}",
            json!(1),
        ),
        ("{backend: vault, path: old/app, wrapTTL: 5m}", json!(3)),
    ] {
        assert_eq!(object(&*backend, from).share, Share::Volume);
        let wrapped = is_new(fetch(&*backend, from, None).await);
        let lease = wrapped.lease.as_ref().unwrap();
        let five = Duration::from_secs(295)..=Duration::from_secs(300);
        assert!(five.contains(&left(lease)) && !lease.renewable);
        let again = fetch(&*backend, from, Some(&wrapped)).await.unwrap();
        assert!(matches!(again, Fetched::NotModified));
        let token = json_of(&wrapped)["token"].clone();
        let opened = bao.ok("sys/wrapping/unwrap", json!({"token": token}));
        let data = &opened["data"];
        assert_eq!(
            *data.get("data").unwrap_or(data),
            json!({ "a": holds }),
            "{from}"
        );
        let (status, _) = bao.call("POST", "sys/wrapping/unwrap", &json!({"token": token}));
        assert_eq!(status, 400, "it opens once");
        backend.revoke(&cx(), lease).await.unwrap();
    }
    bao.ok("sys/mounts/pki", json!({"type": "pki"}));
    let leased = "{backend: vault, path: pki/issue/x, method: write, wrapTTL: 5m}";
    is_error(fetch(&*backend, leased, None).await, "spec.bad_reference");
    for ttl in ["0s", "721h", "soon"] {
        let from = format!("{{backend: vault, path: secret/app, wrapTTL: {ttl}}}");
        assert!(read(&*backend, &from).unwrap_err().contains("not a time"));
    }
}
