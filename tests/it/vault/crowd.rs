//! Many pods of several accounts on one node, whose secrets are all in one real server.
//!
//! Each account reads what is its own (`secret/NAMESPACE/ACCOUNT/...`) and what is everybody's (`secret/all/...`), and nothing else: by one policy.

use std::{collections::HashMap, fmt::Write as _};

use futures_util::{StreamExt as _, stream};
use rustix::mount::MountPropagationFlags as Propagation;
use secretfs::{
    clock::{Clock as _, SystemClock},
    volume::VolumeStatus,
};
use serde_json::{Value, json};
use tonic::Status;

use super::fake::Fake;
use crate::{
    node::bed::{NodeBed, get},
    support::{
        bao::Bao,
        kubelet::{FakeKubelet, Pod, Volume},
        program::{Bed, Running},
    },
};

/// Publishes that a kubelet has in flight: one for each pod that it starts at that moment.
const AT_ONCE: usize = 16;

/// See the module.
pub struct Crowd {
    pub node: NodeBed,
    pub bao: Bao,
    kubelet: FakeKubelet,
    pub running: Running,
    _cluster: Fake,
}

/// An object of a spec: the server's path below `secret`.
pub type Path = String;

/// A spec of these objects, file `f0` of the first.
pub fn spec(every: &str, objects: &[Path]) -> String {
    let mut spec = format!("refreshInterval: {every}\nfiles:\n");
    for (number, path) in objects.iter().enumerate() {
        let line = format!("- {{path: f{number}, from: \"vault:secret/{path}#v\"}}");
        writeln!(spec, "{line}").unwrap();
    }
    spec
}

impl Crowd {
    /// With accounts in these namespaces. `address`: where the node finds the server; `more`: of the node's configuration, and of the backend's.
    pub fn new(
        bao: Bao,
        node: NodeBed,
        cluster: Fake,
        namespaces: &[&str],
        address: &str,
        (more, of_backend): (&str, &str),
    ) -> Self {
        bao.with_kubernetes(&cluster.address());
        let (_, methods) = bao.call("GET", "sys/auth", &Value::Null);
        let accessor = methods["data"]["kubernetes/"]["accessor"].as_str().unwrap();
        let part = |of: &str| {
            format!("{{{{identity.entity.aliases.{accessor}.metadata.service_account_{of}}}}}")
        };
        let own = format!("{}/{}/*", part("namespace"), part("name"));
        let paths: Vec<String> = ["data", "metadata"]
            .iter()
            .flat_map(|kind| {
                [
                    format!("secret/{kind}/all/*"),
                    format!("secret/{kind}/{own}"),
                ]
            })
            .collect();
        let read: &[&str] = &["read"];
        let rules: Vec<_> = paths.iter().map(|path| (path.as_str(), read)).collect();
        bao.policy("app", &rules);
        let role = json!({
            "bound_service_account_names": ["*"], "bound_service_account_namespaces": namespaces, "audience": "vault",
            "token_policies": ["app"], "token_ttl": "1h",
        });
        bao.ok("auth/kubernetes/role/app", role);
        node.configure(&format!(
            "backends: {{vault: {{kind: vault, address: \"{address}\", audience: vault, auth: {{method: kubernetes, role: app}}{of_backend}}}}}\n\
             policy: []{more}"
        ));
        let running = node.bed.start(&["node", "--config", "node.yaml"]);
        assert!(running.ready.starts_with("ready: "), "{}", running.log());
        let kubelet = FakeKubelet {
            socket: node.csi(),
            ..FakeKubelet::new(&node.bed.path("k"))
        };
        Self {
            node,
            bao,
            kubelet,
            running,
            _cluster: cluster,
        }
    }

    /// Where [`Self::new`] puts the node.
    pub fn node() -> NodeBed {
        NodeBed::on(Bed::new(), Propagation::SHARED)
    }

    /// A volume of a pod, with its token.
    pub fn volume(&self, pod: &Pod, name: &str, spec: &str) -> Volume {
        Volume {
            audiences: vec!["vault".into()],
            tokens_expire: SystemClock.wall().as_millis() / 1000 + 600,
            ..self.kubelet.volume(pod, name, spec)
        }
    }

    /// Publishes them as a kubelet does whose pods all start together; what came of each.
    pub fn publish(&self, volumes: &[Volume]) -> Vec<Result<(), Status>> {
        let calls = stream::iter(volumes).map(|volume| self.kubelet.publish(volume));
        self.node
            .runtime
            .block_on(calls.buffered(AT_ONCE).collect())
    }

    /// And they must all be there.
    #[track_caller]
    pub fn publish_all(&self, volumes: &[Volume]) {
        for (volume, answer) in volumes.iter().zip(self.publish(volumes)) {
            answer.unwrap_or_else(|status| panic!("{}: {status}", volume.pod.name));
        }
    }

    /// Of all volumes, by id.
    pub fn status(&self) -> HashMap<String, VolumeStatus> {
        let (status, body) = get(&self.node.admin(), "/v1/volumes");
        assert_eq!(status, 200, "{body}");
        let all: Value = serde_json::from_str(&body).unwrap();
        let all: Vec<VolumeStatus> = serde_json::from_value(all["volumes"].clone()).unwrap();
        all.into_iter().map(|one| (one.id.clone(), one)).collect()
    }

    /// Unpublishes them, and the plugin must end well.
    pub fn end(mut self, volumes: &[Volume]) {
        let calls = stream::iter(volumes).map(|volume| self.kubelet.unpublish(volume));
        let all: Vec<_> = self
            .node
            .runtime
            .block_on(calls.buffered(AT_ONCE).collect());
        all.into_iter().for_each(Result::unwrap);
        self.running.stop();
    }
}
