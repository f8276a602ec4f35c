//! Logging in, by each method, against a real server; and who shares a login with whom.

use std::{collections::BTreeMap, fs, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{KeyPair, SigningKey as _};
use secretfs::{
    backend::{Backend, Fetched},
    caller::{Credentials, Identity, PodIdentity, Token},
    clock::{Clock as _, SystemClock, Wall},
    error::Result,
    secret::SecretBytes,
};
use serde_json::{Value, json};

use super::{
    bed::{backend, fetch, fetch_as, is_error, is_new, json as json_of},
    fake::token_review,
};
use crate::support::{
    bao::{Bao, Files},
    certs::Authority,
};

/// A policy that reads `secret/app`, and that secret.
fn app(bao: &Bao) {
    bao.policy("app", &[("secret/data/app", &["read"])]);
    bao.put("app", json!({"a": 1}));
    bao.put("other", json!({"a": 2}));
}

async fn reads(backend: &dyn Backend) -> Result<Fetched> {
    fetch(backend, "vault:secret/app", None).await
}

#[tokio::test]
async fn a_token_file_is_read_anew_and_a_dead_token_is_not_a_denied_path() {
    let Some(bao) = Bao::start() else { return };
    app(&bao);
    let first = bao.token(&["app"], "1h");
    let file = bao.file("token", &first);
    let backend = backend(&format!(
        "address: \"{}\", auth: {{method: token, file: {file:?}}}",
        bao.address()
    ));
    assert!(reads(&*backend).await.is_ok());
    is_error(
        fetch(&*backend, "vault:secret/other", None).await,
        "backend.permission_denied",
    );
    assert!(reads(&*backend).await.is_ok());
    bao.ok("auth/token/revoke", json!({"token": first}));
    is_error(reads(&*backend).await, "vault.token_refused");
    bao.file("token", &bao.token(&["app"], "1h"));
    assert!(reads(&*backend).await.is_ok(), "the new token is taken");
}

#[tokio::test]
async fn approle_with_a_secret_id_from_a_file_plain_and_wrapped() {
    let Some(bao) = Bao::start() else { return };
    app(&bao);
    bao.ok("sys/auth/approle", json!({"type": "approle"}));
    bao.ok(
        "auth/approle/role/app",
        json!({"token_policies": ["app"], "token_ttl": "1h"}),
    );
    let (_, role) = bao.call("GET", "auth/approle/role/app/role-id", &Value::Null);
    let role = role["data"]["role_id"].as_str().unwrap();
    let made = bao.ok("auth/approle/role/app/secret-id", json!({}));
    let file = bao.file("secret-id", made["data"]["secret_id"].as_str().unwrap());
    let settings = |more: &str| {
        format!(
            "address: \"{}\", auth: {{method: approle, roleId: {role}, secretIdFile: {file:?}{more}}}",
            bao.address()
        )
    };
    assert!(reads(&*backend(&settings(""))).await.is_ok());
    fs::write(&file, "wrong").unwrap();
    is_error(reads(&*backend(&settings(""))).await, "vault.login_refused");

    let wrap = |path: &str, body: &Value| {
        let (_, made) = bao.call_with("POST", path, body, &[("X-Vault-Wrap-TTL", "60s")]);
        made["wrap_info"]["token"].as_str().unwrap().to_owned()
    };
    let wrapping = wrap("auth/approle/role/app/secret-id", &json!({}));
    fs::write(&file, &wrapping).unwrap();
    let wrapped = backend(&settings(", wrapped: true"));
    assert!(reads(&*wrapped).await.is_ok());
    // all logins die: what was wrapped is still known
    bao.ok("sys/leases/revoke-prefix/auth/approle/login", json!({}));
    assert!(reads(&*wrapped).await.is_ok());
    // another process finds the wrapping opened
    is_error(
        reads(&*backend(&settings(", wrapped: true"))).await,
        "vault.wrapping",
    );
    // a wrapping of something else is not even opened
    let strange = wrap("sys/wrapping/wrap", &json!({"secret_id": "x"}));
    fs::write(&file, &strange).unwrap();
    is_error(
        reads(&*backend(&settings(", wrapped: true"))).await,
        "vault.wrapping",
    );
    let (status, _) = bao.call("POST", "sys/wrapping/lookup", &json!({"token": strange}));
    assert_eq!(status, 200);
}

#[tokio::test]
async fn userpass_reads_the_password_from_a_file() {
    let Some(bao) = Bao::start() else { return };
    app(&bao);
    bao.ok("sys/auth/people", json!({"type": "userpass"}));
    bao.ok(
        "auth/people/users/me",
        json!({"password": "päss wörd", "token_policies": ["app"]}),
    );
    let file = bao.file("password", "päss wörd\n");
    let settings = format!(
        "address: \"{}\", auth: {{method: userpass, mount: people, username: me, passwordFile: {file:?}}}",
        bao.address()
    );
    assert!(reads(&*backend(&settings)).await.is_ok());
    fs::write(&file, "wrong").unwrap();
    is_error(reads(&*backend(&settings)).await, "vault.login_refused");
}

#[tokio::test]
async fn cert_shows_the_certificate_of_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let server = Files {
        clients: Some(authority.file.clone()),
        ..authority.sign("server", &["127.0.0.1"], 1)
    };
    let Some(bao) = Bao::with_tls(&server) else {
        return;
    };
    app(&bao);
    bao.ok("sys/auth/cert", json!({"type": "cert"}));
    let ca = fs::read_to_string(&authority.file).unwrap();
    let role =
        json!({"certificate": ca, "allowed_common_names": ["node-1"], "token_policies": ["app"]});
    bao.ok("auth/cert/certs/node", role);
    let ours = &authority.file;
    for (name, good) in [("node-1", true), ("node-2", false)] {
        let client = authority.sign(name, &[name], 1);
        let settings = format!(
            "address: \"{}\", tls: {{ca: {ours:?}, certificate: {:?}, key: {:?}}}, auth: {{method: cert, role: node}}",
            bao.address(),
            client.certificate,
            client.key
        );
        let read = reads(&*backend(&settings)).await;
        if good {
            assert!(read.is_ok());
        } else {
            is_error(read, "vault.login_refused");
        }
    }
}

/// An issuer of service account tokens.
struct Issuer(KeyPair);

impl Issuer {
    fn new() -> Self {
        Self(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap())
    }

    /// A pod of an account with this uid, and its token for `audience`.
    fn pod(&self, name: &str, account: &str, uid: &str, audience: &str) -> (Identity, Credentials) {
        let who = Identity::Pod(PodIdentity {
            namespace: "shop".into(),
            pod: name.into(),
            pod_uid: format!("uid-of-{name}").into(),
            service_account: account.into(),
            service_account_uid: Some(uid.into()),
        });
        let expires = SystemClock.wall().as_millis() / 1000 + 600;
        let claims = json!({
            "iss": "kubernetes", "aud": [audience], "sub": format!("system:serviceaccount:shop:{account}"), "exp": expires, "iat": expires - 600, "nbf": expires - 600,
            "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": account, "uid": uid}, "pod": {"name": name}},
        });
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let unsigned = format!("{}.{}", part(json!({"alg": "ES256"})), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(plain(&self.0.sign(unsigned.as_bytes()).unwrap()));
        let token = Token {
            audience: audience.to_owned(),
            expires_at: Wall::from_millis(expires * 1000),
            jwt: SecretBytes::new(format!("{unsigned}.{signature}").into_bytes()),
        };
        (who, Credentials::new(vec![token], BTreeMap::new()))
    }
}

/// A signature as a JWT has it (RFC 7518, 3.4): two numbers of 32 bytes, out of DER's two integers.
fn plain(der: &[u8]) -> Vec<u8> {
    let (first, rest) = der[4..].split_at(usize::from(der[3]));
    let numbers = [first, &rest[2..]];
    let padded = numbers.map(|number| {
        let digits = number.iter().copied().skip_while(|byte| *byte == 0);
        let digits: Vec<u8> = digits.collect();
        [vec![0; 32 - digits.len()], digits].concat()
    });
    padded.concat()
}

/// A server that takes such tokens, for the role `api`: only of the account `api`.
fn with_jwt(bao: &Bao, issuer: &Issuer) {
    app(bao);
    bao.ok("sys/auth/jwt", json!({"type": "jwt"}));
    bao.ok("auth/jwt/config", json!({"jwt_validation_pubkeys": [issuer.0.public_key_pem()], "jwt_supported_algs": ["ES256"]}));
    let role = json!({
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"], "token_policies": ["app"], "token_ttl": "1h",
        "bound_subject": "system:serviceaccount:shop:api",
    });
    bao.ok("auth/jwt/role/api", role);
}

fn jwt_backend(bao: &Bao, more: &str) -> Arc<dyn Backend> {
    backend(&format!(
        "address: \"{}\", audience: vault, auth: {{method: jwt, role: api}}{more}",
        bao.address()
    ))
}

const FROM: &str = "vault:secret/app";

#[tokio::test]
async fn a_pod_logs_in_as_itself_and_another_account_is_refused() {
    let Some(bao) = Bao::start() else { return };
    let issuer = Issuer::new();
    with_jwt(&bao, &issuer);
    let backend = jwt_backend(&bao, "");
    let read =
        async |caller: &(Identity, Credentials)| fetch_as(&*backend, FROM, None, caller).await;
    let mine = is_new(read(&issuer.pod("p0", "api", "u1", "vault")).await);
    assert_eq!(json_of(&mine), json!({"a": 1}));
    is_error(
        read(&issuer.pod("p1", "web", "u2", "vault")).await,
        "vault.login_refused",
    );
    // a token of another audience is not sent at all; a pod without one waits
    let logins = bao.requests("auth/jwt/login");
    is_error(
        read(&issuer.pod("p2", "cron", "u3", "other")).await,
        "identity.token_stale",
    );
    assert_eq!(bao.requests("auth/jwt/login"), logins);
    is_error(
        fetch(&*backend, FROM, None).await,
        "backend.unauthenticated",
    );
    // another issuer's word is none
    is_error(
        read(&Issuer::new().pod("p3", "api", "u9", "vault")).await,
        "vault.login_refused",
    );
    // in a role of its own choice, which the store binds
    let from = "{backend: vault, path: secret/app, role: none}";
    is_error(
        fetch_as(
            &*backend,
            from,
            None,
            &issuer.pod("p0", "api", "u1", "vault"),
        )
        .await,
        "vault.login_refused",
    );
}

#[tokio::test]
async fn pods_of_one_account_share_a_login_and_nobody_else_does() {
    let Some(bao) = Bao::start() else { return };
    let issuer = Issuer::new();
    with_jwt(&bao, &issuer);
    let logins = || bao.requests("auth/jwt/login");
    let shared = jwt_backend(&bao, "");
    let mut all = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (backend, caller) = (
            shared.clone(),
            issuer.pod(&format!("p{number}"), "api", "u1", "vault"),
        );
        all.spawn(async move { fetch_as(&*backend, FROM, None, &caller).await.is_ok() });
    }
    assert!(all.join_all().await.into_iter().all(|good| good));
    assert_eq!(logins(), 1);
    assert_eq!(bao.requests("sys/internal/ui/mounts/secret/app"), 1);
    // deleted and made again under its name: another account
    assert!(
        fetch_as(
            &*shared,
            FROM,
            None,
            &issuer.pod("p0", "api", "u2", "vault")
        )
        .await
        .is_ok()
    );
    assert_eq!(logins(), 2);
    // the login dies: one more, not one for each
    bao.ok("sys/leases/revoke-prefix/auth/jwt/login", json!({}));
    for _ in 0..3 {
        assert!(
            fetch_as(
                &*shared,
                FROM,
                None,
                &issuer.pod("p1", "api", "u1", "vault")
            )
            .await
            .is_ok()
        );
    }
    assert_eq!(logins(), 3);
    let apart = jwt_backend(&bao, ", shareBy: pod");
    for pod in ["p0", "p1", "p0"] {
        assert!(
            fetch_as(&*apart, FROM, None, &issuer.pod(pod, "api", "u1", "vault"))
                .await
                .is_ok()
        );
    }
    assert_eq!(logins(), 5);
}

#[tokio::test]
async fn kubernetes_is_checked_by_the_clusters_token_review() {
    let Some(bao) = Bao::start() else { return };
    app(&bao);
    let cluster = token_review();
    bao.with_kubernetes(&cluster.address());
    let role = json!({
        "bound_service_account_names": ["api"], "bound_service_account_namespaces": ["shop"], "audience": "vault",
        "token_policies": ["app"], "token_ttl": "1h",
    });
    bao.ok("auth/kubernetes/role/api", role);
    let backend = backend(&format!(
        "address: \"{}\", audience: vault, auth: {{method: kubernetes}}",
        bao.address()
    ));
    let issuer = Issuer::new();
    let from = "{backend: vault, path: secret/app, role: api}";
    let read =
        async |caller: &(Identity, Credentials)| fetch_as(&*backend, from, None, caller).await;
    is_new(read(&issuer.pod("p0", "api", "u1", "vault")).await);
    is_error(
        read(&issuer.pod("p1", "web", "u2", "vault")).await,
        "vault.login_refused",
    );
    assert!(!cluster.asked().is_empty());
}

#[tokio::test]
async fn a_login_is_renewed_before_it_ends_and_made_anew_at_the_end_of_its_life() {
    let Some(bao) = Bao::start() else { return };
    app(&bao);
    bao.ok("sys/auth/people", json!({"type": "userpass"}));
    let user = json!({"password": "x", "token_policies": ["app"], "token_ttl": "2s", "token_max_ttl": "4s"});
    bao.ok("auth/people/users/me", user);
    let file = bao.file("password", "x");
    let backend = backend(&format!(
        "address: \"{}\", auth: {{method: userpass, mount: people, username: me, passwordFile: {file:?}}}",
        bao.address()
    ));
    for _ in 0..60 {
        assert!(reads(&*backend).await.is_ok());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let (logins, renewals) = (
        bao.requests("auth/people/login/me"),
        bao.requests("auth/token/renew-self"),
    );
    assert!(
        (2..=4).contains(&logins) && (4..=4 * logins + 4).contains(&renewals),
        "{logins} logins, {renewals} renewals"
    );
}
