//! The program as a person uses it, with a configuration that names a real server.

use std::{fs, time::Duration};

use serde_json::json;

use crate::support::{
    bao::Bao,
    program::{Bed, eventually},
};

const SPEC: &str = r#"
refreshInterval: 1s
sources:
  db: vault:secret/payments/db
files:
  - path: password
    from: db#password
  - path: url
    template: "postgres://{{ db.user }}:{{ db.password | urlencode }}@db/app"
"#;

fn config(bao: &Bao, bed: &Bed) {
    bao.policy(
        "app",
        &[
            ("secret/data/payments/*", &["read"]),
            ("secret/metadata/payments/*", &["read"]),
        ],
    );
    let token = bao.token(&["app"], "1h");
    fs::write(bed.path("token"), format!("{token}\n")).unwrap();
    // a name, so that the resolver runs under the system call filter
    let address = bao.address().replace("127.0.0.1", "localhost");
    let file = bed.path("token");
    bed.write(
        "node.yaml",
        &format!("backends: {{vault: {{kind: vault, address: \"{address}\", auth: {{method: token, file: {file:?}}}}}}}\n"),
    );
}

#[test]
fn a_secret_of_a_real_server_is_checked_mounted_and_rotates() {
    let Some(bao) = Bao::start() else { return };
    let bed = Bed::new();
    config(&bao, &bed);
    bao.put("payments/db", json!({"user": "app", "password": "first"}));
    bed.write("app.yaml", SPEC);
    let told = bed.ok(
        &["check", "app.yaml", "--config", "node.yaml", "--fetch"],
        "",
    );
    assert!(told.contains("vault:secret/payments/db  1 2"), "{told}");
    assert!(!told.contains("first"), "{told}");

    let mut running = bed.mount(SPEC, &["--config", "node.yaml"]);
    assert_eq!(bed.file("password"), "first");
    bao.put("payments/db", json!({"user": "app", "password": "se/cond"}));
    eventually("the new value is in the file", || {
        bed.file("password") == "se/cond"
    });
    assert_eq!(bed.file("url"), "postgres://app:se%2Fcond@db/app");
    running.stop();
    let log = running.log();
    let token = fs::read_to_string(bed.path("token")).unwrap();
    for secret in ["first", "se/cond", token.trim()] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

const CERTIFICATE: &str = r#"
refreshInterval: 1s
sources:
  web: {backend: vault, path: pki/issue/web, method: write, data: {common_name: web.example, ttl: 1h}}
files:
  - {path: tls.crt, from: "web#certificate"}
  - {path: tls.key, from: "web#private_key"}
"#;

#[test]
fn what_is_leased_is_asked_for_once_and_given_back_at_the_end() {
    let Some(bao) = Bao::start() else { return };
    let bed = Bed::new();
    bao.ok("sys/mounts/pki", json!({"type": "pki"}));
    bao.ok("pki/root/generate/internal", json!({"common_name": "root"}));
    let role = json!({"allow_any_name": true, "max_ttl": "72h", "generate_lease": true});
    bao.ok("pki/roles/web", role);
    bao.policy("app", &[("pki/issue/web", &["update"])]);
    bao.ok("sys/auth/userpass", json!({"type": "userpass"}));
    bao.ok(
        "auth/userpass/users/me",
        json!({"password": "x", "token_policies": ["app"], "token_ttl": "2h"}),
    );
    bed.write("password", "x");
    let (address, file) = (bao.socket(), bed.path("password"));
    bed.write(
        "node.yaml",
        &format!("backends: {{vault: {{kind: vault, address: \"{address}\", auth: {{method: userpass, username: me, passwordFile: {file:?}}}}}}}\n"),
    );
    let mut running = bed.mount(CERTIFICATE, &["--config", "node.yaml"]);
    let certificate = bed.file("tls.crt");
    assert!(
        certificate.contains("BEGIN CERTIFICATE") && bed.file("tls.key").contains("PRIVATE KEY")
    );
    std::thread::sleep(Duration::from_millis(1500)); // its interval has passed
    bed.ok(&["refresh"], "");
    assert_eq!(bed.file("tls.crt"), certificate);
    assert_eq!(bao.requests("pki/issue/web"), 1);
    assert_eq!(bao.requests("auth/token/revoke-self"), 0);
    running.stop();
    assert_eq!(
        bao.requests("auth/token/revoke-self"),
        1,
        "the lease's login ends with the mount"
    );
}
