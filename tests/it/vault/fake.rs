//! A server that answers what it is told to, byte by byte, and remembers what it was asked.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// See the module. Its threads end with the test process; nobody else knows its port.
pub struct Fake {
    pub port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// `answer` gets a request, head and body, and says what to write. Empty: nothing, and the connection stays open.
    pub fn new(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (heard, answer) = (asked.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (heard, answer) = (heard.clone(), answer.clone());
                thread::spawn(move || serve(stream, &heard, &*answer));
            }
        });
        Self { port, asked }
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All requests, head and body.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Method and path of each.
    pub fn lines(&self) -> Vec<String> {
        let asked = self.asked();
        let line = |request: &String| request.split(" HTTP/").next().unwrap().to_owned();
        asked.iter().map(line).collect()
    }
}

/// A cluster's TokenReview: believes every token, of whatever account stands in it.
pub fn token_review() -> Fake {
    Fake::new(review)
}

/// What it answers.
pub fn review(request: &str) -> Vec<u8> {
    let body = request.split_once("\r\n\r\n").unwrap().1;
    let review: Value = serde_json::from_str(body).unwrap_or_default();
    let jwt = review["spec"]["token"].as_str().unwrap_or_default();
    let claims = jwt
        .split('.')
        .nth(1)
        .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Value = serde_json::from_slice(&claims.unwrap_or_default()).unwrap_or_default();
    let uid = &claims["kubernetes.io"]["serviceaccount"]["uid"];
    let user = json!({"username": claims["sub"], "uid": uid, "groups": ["system:serviceaccounts"]});
    let status = json!({"authenticated": true, "user": user, "audiences": claims["aud"]});
    let answer =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status});
    says_with(
        201,
        "Content-Type: application/json\r\n",
        &answer.to_string(),
    )
}

fn serve(mut stream: TcpStream, heard: &Mutex<Vec<String>>, answer: &dyn Fn(&str) -> Vec<u8>) {
    let Some(request) = read(&mut stream) else {
        return;
    };
    heard.lock().unwrap().push(request.clone());
    let bytes = answer(&request);
    if bytes.is_empty() {
        thread::sleep(Duration::from_secs(60));
    }
    let _ = stream.write_all(&bytes);
}

/// One request, head and body.
pub fn read(stream: &mut TcpStream) -> Option<String> {
    let mut all = Vec::new();
    let mut part = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&all);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_lowercase();
            let length = head.split("content-length: ").nth(1);
            let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(text.into_owned());
            }
        }
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return None,
            Ok(count) => all.extend(&part[..count]),
        }
    }
}

/// An answer with this status and body; the connection ends with it.
pub fn says(status: u16, body: &str) -> Vec<u8> {
    says_with(status, "", body)
}

/// With further headers, each with its line's end.
pub fn says_with(status: u16, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}").into_bytes()
}

/// What a token's own look at itself brings: it lives for ever.
pub const LIVES: &str = r#"{"data": {"ttl": 0, "renewable": false}}"#;

/// An answer to a read of KV version 2.
pub fn kv(value: &str) -> String {
    format!(
        r#"{{"data": {{"data": {{"a": "{value}"}}, "metadata": {{"version": 1, "created_time": "2026-01-01T00:00:00Z", "deletion_time": "", "destroyed": false}}}}}}"#
    )
}
