//! The node plugin with a real server: pods that a kubelet publishes for, with the tokens that it brings; the cluster's word is a fake's.

use rustix::mount::MountPropagationFlags as Propagation;
use secretfs::clock::{Clock as _, SystemClock};
use serde_json::json;
use tonic::Code;

use super::fake::{Fake, token_review};
use crate::{
    kube::object,
    node::bed::NodeBed,
    support::{
        apiserver::ApiServer,
        bao::Bao,
        kubelet::{FakeKubelet, Pod, Volume},
        program::{Bed, eventually},
    },
};

const SPEC: &str = "refreshInterval: 1s\nfiles:\n- {path: password, from: \"vault:secret/payments/db#password\"}\n";

/// A server that takes tokens of the account `payments/api` for `vault`, as the cluster says.
pub fn server(cluster: &Fake) -> Option<Bao> {
    let bao = Bao::start()?;
    let read: &[&str] = &["read"];
    bao.policy(
        "app",
        &[
            ("secret/data/payments/*", read),
            ("secret/metadata/payments/*", read),
        ],
    );
    bao.with_kubernetes(&cluster.address());
    let role = json!({
        "bound_service_account_names": ["api"], "bound_service_account_namespaces": ["payments"], "audience": "vault",
        "token_policies": ["app"], "token_ttl": "1h",
    });
    bao.ok("auth/kubernetes/role/app", role);
    bao.put("payments/db", json!({"password": "first"}));
    Some(bao)
}

pub fn volume(kubelet: &FakeKubelet, pod: &str, account: &str, spec: &str) -> Volume {
    let pod = Pod::of(pod, "payments", account);
    Volume {
        audiences: vec!["vault".into()],
        tokens_expire: SystemClock.wall().as_millis() / 1000 + 600,
        ..kubelet.volume(&pod, "v", spec)
    }
}

#[test]
fn pods_are_served_as_their_account_by_one_login_and_others_are_refused() {
    let cluster = token_review();
    let node = NodeBed::on(Bed::new(), Propagation::SHARED);
    let Some(bao) = server(&cluster) else { return };
    let (address, token) = (bao.address(), bao.file("root", &bao.root));
    node.configure(&format!(
        "backends: {{vault: {{kind: vault, address: \"{address}\", audience: vault, auth: {{method: kubernetes, role: app}}}}, \
         asnode: {{kind: vault, address: \"{address}\", auth: {{method: token, file: {token:?}}}}}}}\npolicy: []"
    ));
    let mut running = node.start();
    let kubelet = FakeKubelet {
        socket: node.csi(),
        ..FakeKubelet::new(&node.bed.path("k"))
    };
    let publish = |volume: &Volume| node.runtime.block_on(kubelet.publish(volume));
    let pods = ["api-0", "api-1", "api-2"].map(|pod| volume(&kubelet, pod, "api", SPEC));
    for pod in &pods {
        publish(pod).unwrap();
        assert_eq!(pod.file("password"), "first");
    }
    let refused = publish(&volume(&kubelet, "web-0", "web", SPEC)).unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(
        refused.message().contains("[vault.login_refused]"),
        "{refused}"
    );
    // what only the node may read, a pod may not unless the policy says so
    let spec = SPEC.replace("vault:secret", "asnode:secret");
    let denied = publish(&volume(&kubelet, "api-3", "api", &spec)).unwrap_err();
    assert!(denied.message().contains("[policy.denied]"), "{denied}");

    bao.put("payments/db", json!({"password": "second"}));
    for pod in &pods {
        eventually("the new value is there", || {
            pod.file("password") == "second"
        });
    }
    assert_eq!(
        bao.requests("auth/kubernetes/login"),
        2,
        "one each of the accounts"
    );
    assert_eq!(
        bao.requests("secret/data/payments/db"),
        4,
        "two by the test, two for all three pods"
    );
    for pod in &pods {
        node.runtime.block_on(kubelet.unpublish(pod)).unwrap();
    }
    running.stop();
    let log = running.log();
    for jwt in cluster.asked() {
        let sent = jwt
            .split("\"token\":\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        assert!(
            !sent.is_empty() && !log.contains(sent),
            "a token is in the log"
        );
    }
    assert!(!log.contains("second") && !log.contains(&bao.root));
}

#[test]
fn the_csidriver_object_must_ask_for_the_backends_audience() {
    let node = NodeBed::shared();
    let server = ApiServer::up(node.runtime.handle());
    server.put(object(json!({})));
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": format!("http://127.0.0.1:{}", server.port())}}],
        "users": [{"name": "u", "user": {"token": "x"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    });
    node.bed.write("kubeconfig", &kubeconfig.to_string());
    let configured = |audience: &str| {
        node.configure(&format!(
            "kubernetes: auto\nbackends: {{vault: {{kind: vault, address: \"http://127.0.0.1:1\", audience: {audience}, auth: {{method: jwt}}}}}}\npolicy: []"
        ));
    };
    configured("vault");
    let mut command = node.bed.command(&NodeBed::ARGS);
    command.env("KUBECONFIG", node.bed.path("kubeconfig"));
    let mut running = node.bed.spawn(command);
    let wants = |audience: &str| format!("add to `tokenRequests`: {{audience: {audience:?}}}");
    let (first, second) = (wants("vault"), wants("other"));
    eventually("it says what is missing", || {
        running.log().contains(&first) || running.log().contains(&first.replace('"', "\\\""))
    });
    running.first_line(); // it serves, and is not ready
    server.put(object(json!({"tokenRequests": [{"audience": "vault"}]})));
    eventually("it is ready", || node.node()["ready"] == true);
    configured("other");
    eventually("so it is after a change of the configuration", || {
        let log = running.log();
        log.contains(&second) || log.contains(&second.replace('"', "\\\""))
    });
    running.stop();
}
