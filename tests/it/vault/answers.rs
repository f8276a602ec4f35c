//! What a server may say instead of a secret, and which of our errors that is. No word of it is in any.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use secretfs::{backend::Backend, error::Error, limits};

use super::{
    bed::{backend, cx, fetch, is_error, is_new, json, local, object},
    fake::{Fake, LIVES, kv, says, says_with},
};
use crate::support::bao::Bao;
use secretfs::backend::Want;

const CANARY: &str = "kanarie-in-a-body";

/// A backend that asks `fake` with a token, and knows that `secret` is KV version 2. `more`: further settings.
fn asks(fake: &Fake, dir: &tempfile::TempDir, more: &str) -> Arc<dyn Backend> {
    let file = dir.path().join("token");
    std::fs::write(&file, "a-token").unwrap();
    backend(&format!(
        "address: \"{}\", kv: {{secret: 2}}, auth: {{method: token, file: {file:?}}}{more}",
        fake.address()
    ))
}

/// A fake whose token lives and whose secret is what `answer` says; `health` is the status of its health.
fn fake(health: u16, answer: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Fake {
    Fake::new(move |request| match request {
        _ if request.contains("lookup-self") => says(200, LIVES),
        _ if request.contains("sys/health") => says(health, "{}"),
        _ => answer(),
    })
}

/// The error of a read that is answered so.
async fn error(health: u16, answer: Vec<u8>) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let fake = fake(health, move || answer.clone());
    let backend = asks(&fake, &dir, "");
    let error = fetch(&*backend, "vault:secret/a", None)
        .await
        .map(drop)
        .unwrap_err();
    assert!(!format!("{error:?}").contains(CANARY), "{error}");
    error
}

#[tokio::test]
async fn answers_that_are_none_are_told_apart() {
    let half = {
        let whole = says(200, &kv(CANARY));
        whole[..whole.len() - 20].to_vec()
    };
    let body = format!("{{\"errors\": [\"{CANARY}\"]}}");
    for (health, answer, code) in [
        (200, says(200, CANARY), "backend.corrupt"),
        (
            200,
            says(200, &format!("{{\"data\": {{\"data\": \"{CANARY}")),
            "backend.corrupt",
        ),
        (
            200,
            says(
                200,
                &format!("{{\"data\": {{\"metadata\": \"{CANARY}\"}}}}"),
            ),
            "backend.corrupt",
        ),
        (
            200,
            format!("{CANARY}\r\n\r\n").into_bytes(),
            "backend.corrupt",
        ),
        (200, half, "backend.answer_cut"),
        (
            200,
            b"HTTP/1.1 200 OK\r\nConte".to_vec(),
            "backend.answer_cut",
        ),
        (200, says(404, &body), "backend.not_found"),
        // what stands before the store, and has lost it
        (200, says(404, CANARY), "backend.server_error"),
        (200, says(404, "{\"code\": 404}"), "backend.server_error"),
        (200, says(403, &body), "backend.permission_denied"),
        (200, says(400, &body), "vault.bad_request"),
        (200, says(418, &body), "vault.bad_request"),
        (200, says(302, &body), "backend.corrupt"),
        (200, says(429, &body), "backend.throttled"),
        (200, says(500, &body), "backend.server_error"),
        (200, says(502, &body), "backend.server_error"),
        (503, says(503, &body), "vault.sealed"),
        (501, says(500, &body), "vault.uninitialized"),
        (429, says(500, &body), "vault.no_leader"),
        (
            200,
            says_with(
                307,
                "Location: https://elsewhere/v1/secret/data/a\r\n",
                &body,
            ),
            "vault.standby",
        ),
    ] {
        let shown = String::from_utf8_lossy(&answer).into_owned();
        let error = error(health, answer).await;
        assert_eq!(error.code().name, code, "{shown}: {error}");
    }
    let slower = error(200, says_with(429, "Retry-After: 7\r\n", &body)).await;
    assert_eq!(slower.wait(), Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn an_answer_has_its_limit_whatever_it_says_of_its_length() {
    let most = limits::BACKEND_ANSWER_BYTES;
    let padded = |length: usize| {
        let body = kv("x");
        says(200, &format!("{body}{}", " ".repeat(length - body.len())))
    };
    let dir = tempfile::tempdir().unwrap();
    let whole = padded(most);
    let longest = fake(200, move || whole.clone());
    let read = fetch(&*asks(&longest, &dir, ""), "vault:secret/a", None).await;
    assert_eq!(json(&is_new(read))["a"], "x");
    let mut chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..9 {
        chunked.extend(format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20)).bytes());
    }
    for answer in [padded(most + 1), chunked] {
        assert_eq!(
            error(200, answer).await.code().name,
            "backend.answer_too_large"
        );
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let silent = fake(200, Vec::new);
    let backend = asks(&silent, &dir, ", timeouts: {answer: 1s}");
    let start = Instant::now();
    is_error(
        fetch(&*backend, "vault:secret/a", None).await,
        "backend.timeout",
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    // nobody wants it any more
    let (object, caller, terms) = (object(&*backend, "vault:secret/a"), local(), cx());
    let want = Want {
        object: &object,
        who: &caller.0,
        proof: &caller.1,
        have: None,
    };
    let cancel = terms.cancel.clone();
    let start = Instant::now();
    let (fetched, ()) = tokio::join!(backend.fetch(&terms, want), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cancel.cancel();
    });
    is_error(fetched, "backend.cancelled");
    assert!(start.elapsed() < Duration::from_millis(900));
}

#[tokio::test]
async fn a_standby_is_followed_to_configured_hosts_only() {
    let dir = tempfile::tempdir().unwrap();
    let active = Arc::new(fake(200, || says(200, &kv("active"))));
    let to = active.address();
    let standby = Fake::new(move |request| {
        let path = request.split(' ').nth(1).unwrap();
        let path = if request.contains("oblique") {
            "/v1/oth/b"
        } else {
            path
        };
        says_with(307, &format!("Location: {to}{path}\r\n"), "")
    });
    let known = asks(
        &standby,
        &dir,
        &format!(", redirectHosts: [\"{}\"]", active.address()),
    );
    let found = is_new(fetch(&*known, "vault:secret/a", None).await);
    assert_eq!(json(&found)["a"], "active");
    assert!(
        active
            .asked()
            .iter()
            .all(|asked| asked.contains("x-vault-token: a-token"))
    );
    let before = active.asked().len();
    is_error(
        fetch(&*known, "vault:secret/oblique", None).await,
        "vault.standby",
    );
    let unknown = asks(&standby, &dir, "");
    let error = is_error(
        fetch(&*unknown, "vault:secret/a", None).await,
        "vault.standby",
    );
    assert!(error.to_string().contains("redirectHosts"), "{error}");
    assert_eq!(active.asked().len(), before, "nobody was sent there");
}

#[tokio::test]
async fn a_real_server_that_is_sealed_or_was_never_made_says_so() {
    let Some(bao) = Bao::start() else { return };
    let file = bao.file("root", &bao.root);
    let backend = backend(&format!(
        "address: \"{}\", auth: {{method: token, file: {file:?}}}",
        bao.address()
    ));
    bao.put("a", serde_json::json!({"x": 1}));
    assert!(fetch(&*backend, "vault:secret/a", None).await.is_ok());
    bao.seal();
    is_error(
        fetch(&*backend, "vault:secret/a", None).await,
        "vault.sealed",
    );
    bao.unseal();
    assert!(fetch(&*backend, "vault:secret/a", None).await.is_ok());
    let Some(blank) = Bao::sealed(None) else {
        return;
    };
    let file = blank.file("root", "nothing");
    let other = super::bed::backend(&format!(
        "address: \"{}\", auth: {{method: token, file: {file:?}}}",
        blank.address()
    ));
    is_error(
        fetch(&*other, "vault:secret/a", None).await,
        "vault.uninitialized",
    );
}

#[tokio::test]
async fn a_real_server_that_hangs_is_given_up_and_asked_again() {
    let Some(bao) = Bao::start() else { return };
    let file = bao.file("root", &bao.root);
    let settings = format!(
        "address: \"{}\", timeouts: {{answer: 1s}}, auth: {{method: token, file: {file:?}}}",
        bao.address()
    );
    let backend = backend(&settings);
    bao.put("a", serde_json::json!({"x": 1}));
    assert!(fetch(&*backend, "vault:secret/a", None).await.is_ok());
    bao.freeze();
    is_error(
        fetch(&*backend, "vault:secret/a", None).await,
        "backend.timeout",
    );
    bao.thaw();
    assert!(fetch(&*backend, "vault:secret/a", None).await.is_ok());
}

#[tokio::test]
async fn a_replica_that_lags_behind_is_no_news() {
    let dir = tempfile::tempdir().unwrap();
    let state = Arc::new(std::sync::Mutex::new((3, "2026-01-03T00:00:00Z")));
    let now = state.clone();
    let answers = fake(200, move || {
        let (version, made) = *now.lock().unwrap();
        says(
            200,
            &kv("x")
                .replace("\"version\": 1", &format!("\"version\": {version}"))
                .replace("2026-01-01T00:00:00Z", made),
        )
    });
    let backend = asks(&answers, &dir, "");
    let have = is_new(fetch(&*backend, "vault:secret/a", None).await);
    *state.lock().unwrap() = (2, "2026-01-02T00:00:00.5Z");
    let lagging = fetch(&*backend, "vault:secret/a", Some(&have))
        .await
        .unwrap();
    assert!(matches!(lagging, secretfs::backend::Fetched::NotModified));
    *state.lock().unwrap() = (1, "2026-01-04T00:00:00Z"); // made anew
    is_new(fetch(&*backend, "vault:secret/a", Some(&have)).await);
}
