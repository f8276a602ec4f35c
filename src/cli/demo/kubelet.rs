//! The kubelet of the demo: what it sends when a pod starts and when it ends, and the record of it (`--trace`).
//!
//! It words its calls as kubelets 1.34 and 1.36 do: the ids are hashes, the target does not exist before the call, and a new
//! connection is made for each. No token is sent: the store of the demo asks for none.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fs::{self, DirBuilder, File},
    future::Future,
    io::Write,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

use super::{failed, stage::hex};
use crate::{
    clock::{Clock, SystemClock},
    csi::{
        client::Channel,
        proto::{
            NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodePublishVolumeRequest,
            NodeUnpublishVolumeRequest, VolumeCapability,
            volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
        },
    },
    error::{Error, Result, codes},
};

/// Key of a pod's tokens in a context.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// How long a kubelet waits for an answer.
const DEADLINE: Duration = Duration::from_secs(120);

/// The kubelet of one node.
pub struct Kubelet {
    /// Its root directory.
    pub dir: PathBuf,
    /// Where the plugin answers.
    pub socket: PathBuf,
    /// Runs the calls.
    pub runtime: Handle,
    /// Where they are written down.
    pub trace: Option<RefCell<File>>,
}

/// A pod that asks for a volume.
pub struct Pod {
    pub namespace: &'static str,
    pub name: &'static str,
    pub account: &'static str,
    pub uid: String,
}

/// An inline volume of a pod.
pub struct Volume {
    pub pod: Pod,
    pub name: &'static str,
    /// `volumeAttributes.spec`.
    pub spec: &'static str,
}

/// What came back.
pub struct Answer {
    /// `Ok`, or another code of gRPC.
    pub code: String,
    /// What a pod's events would show; empty when all went well.
    pub message: String,
    pub took: Duration,
}

impl Answer {
    pub fn is_ok(&self) -> bool {
        self.code == "Ok"
    }

    /// Itself, if all went well.
    pub fn ok(self, call: &str) -> Result<Self> {
        if self.is_ok() {
            return Ok(self);
        }
        let (code, message) = (self.code, self.message);
        Err(Error::new(&codes::NODE_IO).detail(format!("{call} answered {code}: {message}")))
    }

    /// Code and time, for people.
    pub fn shown(&self) -> String {
        let ms = self.took.as_secs_f64() * 1000.0;
        format!("{} in {ms:.1} ms", self.code)
    }
}

impl Volume {
    /// The kubelet's id of it.
    pub fn id(&self) -> String {
        let hash = Sha256::digest(format!("{}{}", self.pod.uid, self.name));
        format!("csi-{}", hex(&hash))
    }

    fn request(&self, target: &Path) -> NodePublishVolumeRequest {
        let pod = &self.pod;
        let context = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", pod.name),
            ("csi.storage.k8s.io/pod.namespace", pod.namespace),
            ("csi.storage.k8s.io/pod.uid", &pod.uid),
            ("csi.storage.k8s.io/serviceAccount.name", pod.account),
            ("spec", self.spec),
        ];
        let context = context.map(|(key, value)| (key.to_owned(), value.to_owned()));
        NodePublishVolumeRequest {
            volume_id: self.id(),
            target_path: target.display().to_string(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode {
                    mode: Mode::SingleNodeWriter.into(),
                }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            readonly: true,
            volume_context: HashMap::from(context),
            ..NodePublishVolumeRequest::default()
        }
    }
}

impl Kubelet {
    /// Where a volume is mounted.
    pub fn target(&self, volume: &Volume) -> PathBuf {
        self.parent(volume).join("mount")
    }

    /// What follows the plugin's registration.
    pub fn register(&self) -> Result<Answer> {
        let ask = |channel: Channel| async move {
            let answer = channel.node().node_get_info(NodeGetInfoRequest {}).await;
            answer
                .map(|info| json!({ "nodeId": info.into_inner().node_id }))
                .map_err(|status| refused(&status.code(), status.message()))
        };
        self.call("NodeGetInfo", json!({}), ask)
    }

    /// A pod starts: its directories are made, the plugin is asked what it can do, and to publish.
    pub fn publish(&self, volume: &Volume) -> Result<Answer> {
        let mut builder = DirBuilder::new();
        let made = builder
            .recursive(true)
            .mode(0o750)
            .create(self.parent(volume));
        made.map_err(failed("make the pod's directory"))?;
        let ask = |channel: Channel| async move {
            let request = NodeGetCapabilitiesRequest {};
            let answer = channel.node().node_get_capabilities(request).await;
            answer
                .map(|found| json!({ "capabilities": found.into_inner().capabilities.len() }))
                .map_err(|status| refused(&status.code(), status.message()))
        };
        self.call("NodeGetCapabilities", json!({}), ask)?;
        self.publish_again(volume)
    }

    /// A pod runs: what a kubelet sends once or twice soon after its start, and about every 90 s from then on.
    pub fn publish_again(&self, volume: &Volume) -> Result<Answer> {
        let request = volume.request(&self.target(volume));
        let shown = shown(&request);
        let ask = |channel: Channel| async move {
            let answer = channel.node().node_publish_volume(request).await;
            answer
                .map(|_| json!({}))
                .map_err(|status| refused(&status.code(), status.message()))
        };
        self.call("NodePublishVolume", shown, ask)
    }

    /// A pod has ended. After a good answer its directories are removed.
    pub fn unpublish(&self, volume: &Volume) -> Result<Answer> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.id(),
            target_path: self.target(volume).display().to_string(),
        };
        let shown = json!({ "volumeId": request.volume_id, "targetPath": request.target_path });
        let ask = |channel: Channel| async move {
            let answer = channel.node().node_unpublish_volume(request).await;
            answer
                .map(|_| json!({}))
                .map_err(|status| refused(&status.code(), status.message()))
        };
        let answer = self.call("NodeUnpublishVolume", shown, ask)?;
        if answer.is_ok() {
            self.forget(volume);
        }
        Ok(answer)
    }

    /// Removes a pod's directories, as far as they are empty.
    pub fn forget(&self, volume: &Volume) {
        let pod = self.dir.join("pods").join(&volume.pod.uid);
        for empty in self.parent(volume).ancestors() {
            if !empty.starts_with(&pod) || fs::remove_dir(empty).is_err() {
                return;
            }
        }
    }

    fn parent(&self, volume: &Volume) -> PathBuf {
        let pod = self.dir.join("pods").join(&volume.pod.uid);
        pod.join("volumes/kubernetes.io~csi").join(volume.name)
    }

    /// Connects, calls, and writes both down.
    fn call<F>(
        &self,
        method: &str,
        request: Value,
        ask: impl FnOnce(Channel) -> F,
    ) -> Result<Answer>
    where
        F: Future<Output = std::result::Result<Value, (String, String)>>,
    {
        let clock = SystemClock;
        let start = clock.now();
        let answered = self.runtime.block_on(async {
            let channel = Channel::connect(&self.socket).await?;
            let late = |_| Err(("DeadlineExceeded".to_owned(), String::new()));
            let answered = tokio::time::timeout(DEADLINE, ask(channel)).await;
            Ok::<_, Error>(answered.unwrap_or_else(late))
        })?;
        let took = clock.now().since(start);
        let (code, message, response) = match answered {
            Ok(response) => ("Ok".to_owned(), String::new(), response),
            Err((code, message)) => (code, message, Value::Null),
        };
        if let Some(trace) = &self.trace {
            let ms = (took.as_secs_f64() * 10_000.0).round() / 10.0;
            let line = json!({
                "call": method,
                "request": request,
                "code": code,
                "message": message,
                "response": response,
                "ms": ms,
            });
            let written = writeln!(trace.borrow_mut(), "{line}");
            written.map_err(failed("write the trace"))?;
        }
        Ok(Answer {
            code,
            message,
            took,
        })
    }
}

fn refused(code: &impl std::fmt::Debug, message: &str) -> (String, String) {
    (format!("{code:?}"), message.to_owned())
}

/// A publish without values: of secrets the keys, of tokens nothing.
fn shown(request: &NodePublishVolumeRequest) -> Value {
    let left_out = |key: &str, value: &str| match key {
        TOKENS => "(left out)".to_owned(),
        _ => value.to_owned(),
    };
    let context = request.volume_context.iter();
    let context: BTreeMap<&str, String> = context
        .map(|(key, value)| (&**key, left_out(key, value)))
        .collect();
    let mut secrets: Vec<&String> = request.secrets.keys().collect();
    secrets.sort();
    json!({
        "volumeId": request.volume_id,
        "targetPath": request.target_path,
        "readonly": request.readonly,
        "volumeContext": context,
        "secretKeys": secrets,
    })
}

/// Opens the file for `--trace`.
pub fn open_trace(path: &Path) -> Result<RefCell<File>> {
    let opened = File::create(path).map_err(|error| {
        Error::new(&codes::NODE_IO)
            .object(path.display())
            .step("open the trace")
            .source(error)
    });
    opened.map(RefCell::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_names_secrets_and_tokens_and_shows_neither() {
        let volume = Volume {
            pod: Pod {
                namespace: "shop",
                name: "web",
                account: "web",
                uid: "1-2".into(),
            },
            name: "secrets",
            spec: "files: []",
        };
        let mut request = volume.request(Path::new("/k/pods"));
        request.secrets.insert("user".into(), "VALUE".into());
        request.secrets.insert(TOKENS.into(), "VALUE".into());
        request.volume_context.insert(TOKENS.into(), "VALUE".into());
        let text = shown(&request).to_string();
        assert!(!text.contains("VALUE"), "{text}");
        for part in [
            r#""secretKeys":["csi.storage.k8s.io/serviceAccount.tokens","user"]"#,
            r#""csi.storage.k8s.io/serviceAccount.tokens":"(left out)""#,
            r#""spec":"files: []""#,
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
}
