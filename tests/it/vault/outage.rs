//! A real server that is away, and one that says no: the node plugin keeps, removes and starts pods as their specs say.

use serde_json::{Value, json};
use tonic::Code;

use super::{
    fake::{Fake, token_review},
    node::{server, volume},
};
use crate::{
    node::bed::{NodeBed, get},
    support::{
        bao::Bao,
        kubelet::{FakeKubelet, Volume},
        program::{Bed, Running, eventually},
    },
};
use rustix::mount::MountPropagationFlags as Propagation;

/// Two secrets, asked for each second.
const SPEC: &str = "refreshInterval: 1s\nfiles:\n- {path: password, from: \"vault:secret/payments/db#password\"}\n\
                    - {path: url, template: \"{{ db.password }}@{{ host.name }}\"}\n- {path: host, from: host#name}\n\
                    sources: {db: vault:secret/payments/db, host: vault:secret/payments/host}\n";

/// Something that is done to the server.
type Do<'a> = &'a dyn Fn();

/// A node with the server's secrets.
struct Node {
    node: NodeBed,
    running: Running,
    kubelet: FakeKubelet,
    bao: Bao,
    _cluster: Fake,
}

impl Node {
    fn up() -> Option<Self> {
        let cluster = token_review();
        let bao = server(&cluster)?;
        bao.put("payments/host", json!({"name": "h"}));
        let node = NodeBed::on(Bed::new(), Propagation::SHARED);
        node.configure(&format!(
            "backends: {{vault: {{kind: vault, address: \"{}\", audience: vault, auth: {{method: kubernetes, role: app}}}}}}\npolicy: []",
            bao.address()
        ));
        let running = node.start();
        let kubelet = FakeKubelet {
            socket: node.csi(),
            ..FakeKubelet::new(&node.bed.path("k"))
        };
        Some(Self {
            node,
            running,
            kubelet,
            bao,
            _cluster: cluster,
        })
    }

    fn publish(&self, pod: &str, account: &str, more: &str) -> Result<Volume, tonic::Status> {
        let volume = volume(&self.kubelet, pod, account, &format!("{SPEC}{more}\n"));
        let published = self.node.runtime.block_on(self.kubelet.publish(&volume));
        published.map(|()| volume)
    }

    fn refused(&self, pod: &str, account: &str, more: &str) -> tonic::Status {
        let published = self.publish(pod, account, more);
        published.map(drop).unwrap_err()
    }

    fn mounted(&self, pod: &str, more: &str) -> Volume {
        self.publish(pod, "api", more).unwrap()
    }

    /// The status of a pod's volume.
    fn status(&self, pod: &str) -> Value {
        let (status, body) = get(&self.node.admin(), "/v1/volumes");
        assert_eq!(status, 200, "{body}");
        let all: Value = serde_json::from_str(&body).unwrap();
        let owner = json!(format!("payments/{pod}"));
        let all = all.as_array().or(all["volumes"].as_array()).unwrap();
        all.iter()
            .find(|one| one["owner"] == owner)
            .unwrap()
            .clone()
    }

    /// Who the pod is allowed to be may read these.
    fn allow(&self, secrets: &[&str]) {
        let paths: Vec<String> = secrets
            .iter()
            .flat_map(|secret| {
                [
                    format!("secret/data/{secret}"),
                    format!("secret/metadata/{secret}"),
                ]
            })
            .collect();
        let read: &[&str] = &["read"];
        let lines: Vec<(&str, &[&str])> = paths.iter().map(|path| (path.as_str(), read)).collect();
        self.bao.policy("app", &lines);
    }

    fn stop(mut self) {
        self.running.stop();
    }
}

/// The three files.
fn files(volume: &Volume) -> [String; 3] {
    ["password", "url", "host"].map(|file| match volume.target.join(file).exists() {
        true => volume.file(file),
        false => "-".into(),
    })
}

fn all(password: &str) -> [String; 3] {
    [password.into(), format!("{password}@h"), "h".into()]
}

fn rest() -> [String; 3] {
    ["-".into(), "-".into(), "h".into()]
}

#[test]
fn a_right_that_is_taken_away_and_a_deleted_secret_take_their_files_and_give_them_back() {
    let Some(node) = Node::up() else { return };
    let bao = &node.bao;
    let [keeps, waits, soon] = [
        ("keeps", "onDenied: keep"),
        ("waits", ""),
        ("soon", "onDenied: {grace: 2s}"),
    ]
    .map(|(pod, more)| node.mounted(pod, more));
    let both = ["payments/db", "payments/host"];
    let taken_away: [(&str, Do<'_>, Do<'_>); 3] = [
        (
            "backend.permission_denied",
            &|| node.allow(&["payments/host"]),
            &|| node.allow(&both),
        ),
        (
            "vault.deleted",
            &|| _ = bao.call("DELETE", "secret/data/payments/db", &Value::Null),
            &|| _ = bao.put("payments/db", json!({"password": "second"})),
        ),
        (
            "backend.not_found",
            &|| _ = bao.call("DELETE", "secret/metadata/payments/db", &Value::Null),
            &|| _ = bao.put("payments/db", json!({"password": "third"})),
        ),
    ];
    let mut password = "first";
    for (nth, (code, take, give)) in taken_away.into_iter().enumerate() {
        take();
        eventually("the files are removed", || files(&soon) == rest());
        let says = |pod: &str| {
            let status = node.status(pod);
            let mut sources = status["sources"].as_array().unwrap().iter();
            let of_db = sources.find(|one| one["reference"] == "vault:secret/payments/db");
            let removed = of_db.unwrap()["removed"].as_bool().unwrap();
            (status["error"]["code"].as_str().map(str::to_owned), removed)
        };
        for pod in ["keeps", "waits", "soon"] {
            // readers see it a moment before the status does
            let expect = (Some(code.to_owned()), pod == "soon");
            eventually("the status says so", || says(pod) == expect);
        }
        assert_eq!(
            [files(&keeps), files(&waits)],
            [all(password), all(password)]
        );
        give();
        password = ["first", "second", "third"][nth];
        for volume in [&keeps, &waits, &soon] {
            eventually("they are back", || files(volume) == all(password));
        }
    }
    node.stop();
}

// The credential by which the store asks the cluster has ended, or the role is gone: nobody can log in, and nobody has lost a right.
#[test]
fn logins_that_are_refused_remove_nothing() {
    let Some(node) = Node::up() else { return };
    let pod = node.mounted("api-0", "onDenied: {grace: 0s}");
    let bao = &node.bao;
    assert_eq!(
        bao.call("DELETE", "auth/kubernetes/role/app", &Value::Null)
            .0,
        204
    );
    bao.ok("sys/leases/revoke-prefix/auth/kubernetes/login", json!({}));
    let refused = || node.status("api-0")["error"]["code"] == "vault.login_refused";
    eventually("the login is refused", refused);
    let since = node.status("api-0")["error"]["since"].clone();
    eventually("and again", || {
        let asked = bao.requests("auth/kubernetes/login");
        asked > 4
    });
    assert_eq!(node.status("api-0")["error"]["since"], since);
    assert_eq!(files(&pod), all("first"));
    node.stop();
}

#[test]
fn while_the_server_is_sealed_only_who_may_starts_from_the_cache_of_his_account() {
    let Some(node) = Node::up() else { return };
    let first = node.mounted("api-0", "");
    node.bao.seal();
    eventually("it is known to be down, and the value is too old", || {
        let status = node.status("api-0");
        status["error"]["code"] == "vault.sealed"
            && status["checkedSecondsAgo"].as_f64() > Some(1.0)
    });
    let refused = node.refused("api-1", "api", "");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let other = node.refused("web-0", "web", "serveStaleFor: 1h");
    assert_eq!(other.code(), Code::Unavailable, "another account: {other}");
    let second = node.mounted("api-2", "serveStaleFor: 1h");
    assert_eq!(
        [files(&first), files(&second)],
        [all("first"), all("first")]
    );
    assert_eq!(node.status("api-2")["state"], "stale");
    node.bao.unseal();
    node.bao.put("payments/db", json!({"password": "second"}));
    let third = {
        eventually("it is back", || node.publish("api-1", "api", "").is_ok());
        node.mounted("api-1", "")
    };
    for volume in [&first, &second, &third] {
        eventually("the new value", || files(volume) == all("second"));
    }
    node.stop();
}
