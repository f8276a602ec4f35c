//! A mount of secrets of a real OpenBao: over TLS, by a login of its own that is renewed, dies and is made again, with answers that are errors.

use std::{fs, time::Duration};

use serde_json::json;

use super::{
    modules::{Seen, assert_seen},
    sinks::{ECHO, Sinks},
};
use crate::support::{
    bao::Bao,
    canary::CANARY,
    certs::Authority,
    program::{Bed, eventually},
};

const SPEC: &str = "refreshInterval: 1s\nonDenied: {grace: 1s}\nsources: {db: vault:secret/doc, old: vault:old/doc}\nfiles:\n- {path: password, from: \"db#password\"}\n\
                    - {path: old, from: \"old#password\"}\n- {path: none, from: vault:secret/none, optional: true}\n";

#[test]
fn a_life_with_a_real_server_says_nothing() {
    for format in ["text", "json"] {
        let bed = Bed::named(ECHO);
        let authority = Authority::new(&bed.dir, "authority");
        let files = authority.sign("server", &["127.0.0.1"], 1);
        let Some(bao) = Bao::with_tls(&files) else {
            return;
        };
        let mut sinks = Sinks::new();
        configure(&bed, &bao, &authority, &mut sinks);
        let put = |value: &str| {
            bao.put("doc", json!({"password": value}));
            bao.ok("old/doc", json!({"password": value}));
        };
        put(CANARY);
        let spec = "files: [{path: a, from: \"vault:secret/doc#none\"}]";
        bed.write("wrong.yaml", spec);
        sinks.run(
            &bed,
            &["check", "wrong.yaml", "--config", "node.yaml", "--fetch"],
            "",
        );

        let mut running = bed.mount(SPEC, &["--config", "node.yaml", "--log-format", format]);
        assert_eq!(bed.file("password"), CANARY);
        let heard = |what: &str| running.log().contains(what);
        eventually("the login is renewed", || heard("a login was renewed"));
        // everybody's tokens die
        bao.ok("sys/leases/revoke-prefix/auth/approle/login", json!({}));
        let next = format!("{CANARY} and more");
        put(&next);
        eventually("a new login reads the new value", || {
            bed.file("password") == next && bed.file("old") == next
        });
        eventually("it died", || heard("a login has died"));
        bao.policy("app", &[("secret/data/other", &["read"])]);
        eventually("the store says no", || heard("backend.permission_denied"));
        eventually("the files go", || {
            heard("the files of a secret are removed") && bed.file("password").is_empty()
        });
        bao.seal();
        eventually("the store is sealed", || heard("vault.sealed"));
        std::thread::sleep(Duration::from_millis(50));
        sinks.add("status", bed.ok(&["status", "--json"], ""));
        sinks.running(&running);
        running.stop();
        sinks.running(&running);
        sinks.assert_silent();
        assert_seen(Seen::Vault, &sinks.text("log"));
        assert!(
            sinks.echoes().contains("log"),
            "the log was not looked into"
        );
    }
}

/// A role whose logins live for six seconds, and a configuration that uses it.
fn configure(bed: &Bed, bao: &Bao, authority: &Authority, sinks: &mut Sinks) {
    let all: &[&str] = &["read"];
    bao.policy(
        "app",
        &[
            ("secret/data/*", all),
            ("secret/metadata/*", all),
            ("old/*", all),
        ],
    );
    bao.ok("sys/auth/approle", json!({"type": "approle"}));
    bao.ok(
        "auth/approle/role/app",
        json!({"token_policies": ["app"], "token_ttl": "6s"}),
    );
    let (_, role) = bao.call(
        "GET",
        "auth/approle/role/app/role-id",
        &serde_json::Value::Null,
    );
    let role = role["data"]["role_id"].as_str().unwrap();
    let made = bao.ok("auth/approle/role/app/secret-id", json!({}));
    let secret_id = made["data"]["secret_id"].as_str().unwrap();
    sinks.secret("a secret id", secret_id);
    sinks.secret("the root token", bao.root.as_str());
    fs::write(bed.path("secret-id"), secret_id).unwrap();
    let (address, file, ca) = (bao.address(), bed.path("secret-id"), &authority.file);
    bed.write(
        "node.yaml",
        &format!(
            "backends: {{vault: {{kind: vault, address: \"{address}\", tls: {{ca: {ca:?}}}, \
             auth: {{method: approle, roleId: {role}, secretIdFile: {file:?}}}}}}}\n"
        ),
    );
}
