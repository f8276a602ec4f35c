//! Secrets of OpenBao, read as the pod's service account: the API server says whose the token is (TokenReview).

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::cluster::{
    self, Namespace,
    bao::Bao,
    eventually,
    namespace::Pod,
    plugin::{self, Configured, DriverObject},
};

/// A pod of the account `web` whose file follows OpenBao's secret of its namespace.
fn reader(name: &str, namespace: &Namespace<'_>) -> Pod {
    let mut pod = Pod::new(name, namespace);
    pod.files[0].1 = format!("vault:secret/{}/a#word", namespace.name);
    pod.volume = "refreshInterval: 2s\n".to_owned();
    pod.spec = "serviceAccountName: web\n".to_owned();
    pod
}

#[test]
fn a_pod_reads_vault_as_its_service_account_through_every_restart() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "vault");
    namespace.kubectl(&["create", "serviceaccount", "web"]);
    let mut bao = Bao::start(cluster);
    bao.let_read(&namespace.name, "web,api");
    bao.put(&namespace.name, "first");
    bao.call(&[
        "kv",
        "put",
        "-mount=secret",
        &format!("{}/db", namespace.name),
        "user=u",
        "password=p/w",
    ]);

    let object = DriverObject::of(cluster);
    object.with(&json!({"tokenRequests": [{"audience": "vault", "expirationSeconds": 600}]}));
    let backend = format!(
        "\n  vault: {{kind: vault, address: \"{}\", audience: vault, auth: {{method: kubernetes, role: app}}}}\n",
        bao.address()
    );
    let config = plugin::CONFIG.replacen("\npolicy:", &format!("{backend}policy:"), 1);
    let _configured = Configured::with(cluster, &config);
    plugin::wait_until_ready(cluster);

    namespace.run(&reader("reads", &namespace));
    assert_eq!(namespace.word("reads"), "first");
    let mut stranger = reader("stranger", &namespace);
    stranger.spec = String::new(); // the account `default`
    namespace.create(&stranger);
    namespace.wait_for_event("stranger", "FailedMount", &["vault.login_refused"]);
    bao.put(&namespace.name, "second");
    namespace.wait_for_word("reads", "second");

    let example =
        include_str!("../../deploy/examples/vault.yaml").replace("payments", &namespace.name);
    cluster.kubectl_with(&["create", "-f", "-"], &example);
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/api", "--timeout=90s"]);
    let url = namespace.exec("api", &["cat", "/secrets/db/url"]);
    assert_eq!(url, format!("postgres://u:p%2Fw@db/{}", namespace.name));

    // it restarts, sealed: who runs keeps what he has, who comes waits
    bao.kill();
    bao.resume_sealed();
    eventually(
        "the last answer is older than the interval",
        || {
            let last = plugin::metric(cluster, "secretfs_oldest_content_timestamp_seconds")?;
            let age = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .ok()?
                .as_secs_f64()
                - last;
            (age > 3.0).then_some(())
        },
        || plugin::told(cluster),
    );
    namespace.create(&reader("waits", &namespace));
    namespace.wait_for_event("waits", "FailedMount", &["vault.sealed"]);
    assert_eq!(namespace.word("reads"), "second");
    bao.unseal();
    bao.put(&namespace.name, "third");
    namespace.wait_for_word("reads", "third");
    namespace.wait_running("waits");
    assert_eq!(namespace.word("waits"), "third");

    // the plugin's death: logins are forgotten, tokens come with the next republish
    let before = plugin::kill(cluster);
    plugin::wait_for_another(cluster, before);
    assert_eq!(namespace.word("reads"), "third");
    bao.put(&namespace.name, "fourth");
    namespace.wait_for_word("reads", "fourth");
    for pod in ["reads", "waits"] {
        namespace.delete(pod);
    }
}
