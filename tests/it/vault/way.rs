//! The way to a server: TLS wrong in each way, a proxy, names and ports where nobody is, files.

use std::{
    fs,
    io::Write,
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
};

use serde_json::json;

use super::{
    bed::{backend, fetch, is_error},
    fake::{self, Fake},
};
use crate::support::{
    bao::{Bao, Files},
    certs::Authority,
};
use secretfs::limits;

/// How a read of a secret ends: "ok", or the error's code.
async fn ends(address: &str, token: &Path, more: &str) -> &'static str {
    let backend = backend(&format!(
        "address: \"{address}\", auth: {{method: token, file: {token:?}}}{more}"
    ));
    match fetch(&*backend, "vault:secret/a", None).await {
        Ok(_) => "ok",
        Err(error) => error.code().name,
    }
}

#[tokio::test]
async fn a_certificate_that_is_wrong_in_any_way_says_in_which() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let other = Authority::new(dir.path(), "theirs");
    let good = authority.sign("good", &["127.0.0.1", "vault.example"], 1);
    let Some(bao) = Bao::with_tls(&good) else {
        return;
    };
    bao.put("a", json!({"x": 1}));
    let token = bao.file("root", &bao.root);
    let (ours, theirs) = (&authority.file, &other.file);
    let none = dir.path().join("none");
    let ca = |file: &Path| format!(", tls: {{ca: {file:?}}}");
    let address = bao.address();
    assert_eq!(ends(&address, &token, &ca(ours)).await, "ok");
    assert_eq!(
        ends(&address, &token, &ca(theirs)).await,
        "backend.tls_unknown_ca"
    );
    assert_eq!(ends(&address, &token, &ca(&none)).await, "backend.tls_file");
    assert_eq!(
        ends(&address, &token, &ca(&token)).await,
        "backend.tls_file"
    );
    assert_eq!(
        ends(&address, &token, &ca(&good.key)).await,
        "backend.tls_file"
    );
    let named = |name| format!(", tls: {{ca: {ours:?}, serverName: {name}}}");
    assert_eq!(ends(&address, &token, &named("vault.example")).await, "ok");
    assert_eq!(
        ends(&address, &token, &named("other.example")).await,
        "backend.tls_wrong_name"
    );
    // a server that speaks no TLS, and one that speaks nothing else
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let tls_to_plain = format!("https://{}", plain.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    assert_eq!(ends(&tls_to_plain, &token, &ca(ours)).await, "backend.tls");
    let plain_to_tls = address.replace("https", "http");
    assert_eq!(ends(&plain_to_tls, &token, "").await, "vault.token_refused");

    let expired = authority.sign("expired", &["127.0.0.1"], -1);
    let Some(late) = Bao::with_tls(&expired) else {
        return;
    };
    assert_eq!(
        ends(&late.address(), &token, &ca(ours)).await,
        "backend.tls_expired"
    );
}

#[tokio::test]
async fn a_server_that_wants_our_certificate_gets_it_and_says_when_it_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let other = Authority::new(dir.path(), "theirs");
    let server = Files {
        clients: Some(authority.file.clone()),
        ..authority.sign("server", &["127.0.0.1"], 1)
    };
    let Some(bao) = Bao::with_tls(&server) else {
        return;
    };
    bao.put("a", json!({"x": 1}));
    let token = bao.file("root", &bao.root);
    let ours = &authority.file;
    let with = |files: &Files| {
        format!(
            ", tls: {{ca: {ours:?}, certificate: {:?}, key: {:?}}}",
            files.certificate, files.key
        )
    };
    let good = authority.sign("client", &["node-1"], 1);
    let strange = other.sign("stranger", &["node-1"], 1);
    let mixed = Files {
        key: strange.key.clone(),
        ..good.clone()
    };
    let address = bao.address();
    assert_eq!(ends(&address, &token, &with(&good)).await, "ok");
    assert_eq!(
        ends(&address, &token, &format!(", tls: {{ca: {ours:?}}}")).await,
        "backend.tls_client"
    );
    assert_eq!(
        ends(&address, &token, &with(&strange)).await,
        "backend.tls_client"
    );
    assert_eq!(
        ends(&address, &token, &with(&mixed)).await,
        "backend.tls_file"
    );
}

#[tokio::test]
async fn files_that_rotate_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (
        Authority::new(dir.path(), "old"),
        Authority::new(dir.path(), "new"),
    );
    let Some(bao) = Bao::with_tls(&new.sign("server", &["127.0.0.1"], 1)) else {
        return;
    };
    bao.put("a", json!({"x": 1}));
    let (token, ca) = (bao.file("root", &bao.root), dir.path().join("ca"));
    fs::copy(&old.file, &ca).unwrap();
    let backend = backend(&format!(
        "address: \"{}\", tls: {{ca: {ca:?}}}, auth: {{method: token, file: {token:?}}}",
        bao.address()
    ));
    is_error(
        fetch(&*backend, "vault:secret/a", None).await,
        "backend.tls_unknown_ca",
    );
    fs::copy(&new.file, &ca).unwrap();
    assert!(fetch(&*backend, "vault:secret/a", None).await.is_ok());
}

#[tokio::test]
async fn files_of_a_backend_have_their_limit() {
    let dir = tempfile::tempdir().unwrap();
    let Some(bao) = Bao::start() else { return };
    bao.put("a", json!({"x": 1}));
    let most = usize::try_from(limits::BACKEND_LOGIN_FILE_BYTES).unwrap();
    let padded = |length: usize| format!("{}{}", bao.root, "\n".repeat(length - bao.root.len()));
    let token = bao.file("longest", &padded(most));
    assert_eq!(ends(&bao.address(), &token, "").await, "ok");
    let token = bao.file("longer", &padded(most + 1));
    assert_eq!(ends(&bao.address(), &token, "").await, "vault.login_file");
    for text in ["", "\n"] {
        let token = bao.file("empty", text);
        assert_eq!(ends(&bao.address(), &token, "").await, "vault.login_file");
    }
    assert_eq!(
        ends(&bao.address(), &dir.path().join("none"), "").await,
        "vault.login_file"
    );

    let authority = Authority::new(dir.path(), "ours");
    let Some(tls) = Bao::with_tls(&authority.sign("server", &["127.0.0.1"], 1)) else {
        return;
    };
    tls.put("a", json!({"x": 1}));
    let pem = fs::read_to_string(&authority.file).unwrap();
    let most = usize::try_from(limits::BACKEND_PEM_BYTES).unwrap();
    let root = tls.file("root", &tls.root);
    for (length, ends_so) in [(most, "ok"), (most + 1, "backend.tls_file")] {
        let ca = tls.file("ca", &format!("{pem}{}", "\n".repeat(length - pem.len())));
        assert_eq!(
            ends(&tls.address(), &root, &format!(", tls: {{ca: {ca:?}}}")).await,
            ends_so
        );
    }
}

#[tokio::test]
async fn where_nobody_is_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "x").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    assert_eq!(
        ends(&format!("http://127.0.0.1:{port}"), &token, "").await,
        "backend.unavailable"
    );
    let socket = format!("unix://{}", dir.path().join("none.sock").display());
    assert_eq!(ends(&socket, &token, "").await, "backend.unavailable");
    assert_eq!(
        ends("http://nobody.invalid", &token, "").await,
        "backend.unresolved"
    );
}

/// A proxy that lets CONNECT through, with this status.
fn proxy(status: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let Some(asked) = fake::read(&mut stream) else {
                    return;
                };
                let to = asked
                    .strip_prefix("CONNECT ")
                    .unwrap()
                    .split(' ')
                    .next()
                    .unwrap()
                    .to_owned();
                write!(stream, "HTTP/1.1 {status} X\r\nProxy: yes\r\n\r\n").unwrap();
                if status != 200 {
                    return;
                }
                let mut there = TcpStream::connect(to).unwrap();
                let (mut back, mut here) =
                    (there.try_clone().unwrap(), stream.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut back, &mut here));
                let _ = std::io::copy(&mut stream, &mut there);
            });
        }
    });
    port
}

#[tokio::test]
async fn a_proxy_is_asked_for_a_way_and_may_refuse() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let Some(bao) = Bao::with_tls(&authority.sign("server", &["127.0.0.1"], 1)) else {
        return;
    };
    bao.put("a", json!({"x": 1}));
    let (token, ca) = (bao.file("root", &bao.root), &authority.file);
    for (status, ends_so) in [(200, "ok"), (407, "backend.proxy")] {
        let more = format!(
            ", tls: {{ca: {ca:?}}}, proxy: \"http://127.0.0.1:{}\"",
            proxy(status)
        );
        assert_eq!(ends(&bao.address(), &token, &more).await, ends_so);
    }
    let odd = Fake::new(|_| b"no HTTP\r\n\r\n".to_vec());
    let more = format!(", tls: {{ca: {ca:?}}}, proxy: \"{}\"", odd.address());
    assert_eq!(ends(&bao.address(), &token, &more).await, "backend.proxy");
}
