//! A kubelet without its node: the directories that it makes, the calls that it sends, the waits that it has.
//!
//! What it sends is what kubelets 1.34 and 1.36 were seen to send. A test that wants it otherwise changes the [`Volume`], or the request that
//! [`Volume::request`] makes. It speaks to whatever serves its socket: an in-process server, or the built binary.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, DirBuilder},
    future::Future,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secretfs::csi::{
    client::Channel,
    context::TokensIn,
    proto::{
        NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
        NodeUnpublishVolumeRequest, VolumeCapability,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tonic::{Request, Status};

/// Key of the tokens, in `volume_context` or in `secrets`.
pub const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// End of life of a token unless it is told: 2100-01-01.
pub const FAR: i64 = 4_102_444_800;

/// The kubelet of one node.
#[derive(Clone)]
pub struct FakeKubelet {
    /// `--root-dir`.
    pub dir: PathBuf,
    /// Where the plugin answers.
    pub socket: PathBuf,
    /// Longest wait for an answer: 120 s for a real one.
    pub deadline: Duration,
}

/// A pod, and the account it runs as.
#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub account: String,
    pub account_uid: String,
    pub fs_group: Option<u32>,
}

/// An inline volume of a pod, as its author wrote it and as its kubelet sends it.
#[derive(Clone)]
pub struct Volume {
    pub pod: Pod,
    pub id: String,
    pub target: PathBuf,
    pub read_only: bool,
    /// `volumeAttributes`.
    pub attributes: BTreeMap<String, String>,
    /// What `nodePublishSecretRef` names.
    pub secrets: BTreeMap<String, String>,
    /// `tokenRequests` of the CSIDriver object.
    pub audiences: Vec<String>,
    /// `exp` of the tokens, in seconds.
    pub tokens_expire: i64,
    pub tokens_in: TokensIn,
    pub mount_flags: Vec<String>,
}

impl Pod {
    /// In the namespace `default`, of the account `default`.
    pub fn new(name: &str) -> Self {
        Self {
            namespace: "default".into(),
            name: name.into(),
            uid: uid(name),
            account: "default".into(),
            account_uid: uid("account default"),
            fs_group: None,
        }
    }

    /// In this namespace, of this account.
    pub fn of(name: &str, namespace: &str, account: &str) -> Self {
        Self {
            namespace: namespace.into(),
            uid: uid(&format!("{namespace}/{name}")),
            account: account.into(),
            account_uid: uid(&format!("account {namespace}/{account}")),
            ..Self::new(name)
        }
    }

    /// What a token of this pod says.
    pub fn claims(&self, audience: &str, exp: i64) -> Value {
        let audience = match audience {
            "" => "https://kubernetes.default.svc",
            other => other,
        };
        json!({
            "aud": [audience],
            "exp": exp,
            "iat": exp - 3600,
            "iss": "https://kubernetes.default.svc",
            "kubernetes.io": {
                "namespace": self.namespace,
                "node": {"name": "node-1", "uid": uid("node-1")},
                "pod": {"name": self.name, "uid": self.uid},
                "serviceaccount": {"name": self.account, "uid": self.account_uid},
            },
            "nbf": exp - 3600,
            "sub": format!("system:serviceaccount:{}:{}", self.namespace, self.account),
        })
    }
}

/// A well-formed JWT of these claims, which nobody signed.
pub fn jwt(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(&json!({"alg": "RS256", "kid": "none"}));
    format!(
        "{header}.{}.{}",
        part(claims),
        URL_SAFE_NO_PAD.encode("nobody")
    )
}

/// Tokens as they are handed over, of pairs of audience and JWT.
pub fn tokens(pairs: &[(&str, String)]) -> String {
    let all: serde_json::Map<String, Value> = pairs
        .iter()
        .map(|(audience, jwt)| {
            let token = json!({"token": jwt, "expirationTimestamp": "2100-01-01T00:00:00Z"});
            ((*audience).to_owned(), token)
        })
        .collect();
    Value::Object(all).to_string()
}

/// A uid that is always the same for the same words.
pub fn uid(of: &str) -> String {
    let hex = hex(&Sha256::digest(of));
    let cut = |from, to| &hex[from..to];
    format!(
        "{}-{}-4{}-a{}-{}",
        cut(0, 8),
        cut(8, 12),
        cut(13, 16),
        cut(17, 20),
        cut(20, 32)
    )
}

/// The kubelet's id of an inline volume.
pub fn volume_id(pod_uid: &str, volume: &str) -> String {
    format!("csi-{}", hex(&Sha256::digest(format!("{pod_uid}{volume}"))))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

impl Volume {
    /// The call for this volume: `NodePublishVolume` as a kubelet words it.
    pub fn request(&self) -> NodePublishVolumeRequest {
        let pod = &self.pod;
        let mut context: BTreeMap<String, String> = self.attributes.clone();
        let mut secrets = self.secrets.clone();
        for (key, value) in [
            ("ephemeral", "true"),
            ("pod.name", &pod.name),
            ("pod.namespace", &pod.namespace),
            ("pod.uid", &pod.uid),
            ("serviceAccount.name", &pod.account),
        ] {
            context.insert(format!("csi.storage.k8s.io/{key}"), value.into());
        }
        if !self.audiences.is_empty() {
            let into = match self.tokens_in {
                TokensIn::Secrets => &mut secrets,
                TokensIn::Context | TokensIn::Nowhere | TokensIn::Either => &mut context,
            };
            into.insert(TOKENS.into(), self.tokens());
        }
        NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: self.target.to_str().unwrap().into(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode {
                    mode: Mode::SingleNodeWriter.into(),
                }),
                access_type: Some(AccessType::Mount(MountVolume {
                    fs_type: String::new(),
                    mount_flags: self.mount_flags.clone(),
                    volume_mount_group: pod.fs_group.map(|g| g.to_string()).unwrap_or_default(),
                })),
            }),
            readonly: self.read_only,
            secrets: secrets.into_iter().collect(),
            volume_context: context.into_iter().collect(),
            ..NodePublishVolumeRequest::default()
        }
    }

    /// The tokens of its audiences.
    pub fn tokens(&self) -> String {
        let token = |audience: &String| jwt(&self.pod.claims(audience, self.tokens_expire));
        let pairs: Vec<_> = self
            .audiences
            .iter()
            .map(|audience| (audience.as_str(), token(audience)))
            .collect();
        tokens(&pairs)
    }

    /// The same volume with another spec.
    pub fn with_spec(mut self, spec: &str) -> Self {
        self.attributes.insert("spec".into(), spec.into());
        self
    }

    /// A file of the mount; "" if it is not there.
    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.target.join(name)).unwrap_or_default()
    }
}

impl FakeKubelet {
    /// With this root directory, which is made; the plugin's socket is where kubelets look for it by default.
    pub fn new(dir: &Path) -> Self {
        let plugin = dir.join("plugins/csi.secretfs.dev");
        for sub in [&dir.join("pods"), &dir.join("plugins_registry"), &plugin] {
            make_dir(sub);
        }
        Self {
            dir: dir.to_owned(),
            socket: plugin.join("csi.sock"),
            deadline: Duration::from_secs(120),
        }
    }

    /// A volume of a pod, with the directories that the kubelet makes before it calls: all but the target itself.
    pub fn volume(&self, pod: &Pod, name: &str, spec: &str) -> Volume {
        let parent = self
            .dir
            .join("pods")
            .join(&pod.uid)
            .join("volumes/kubernetes.io~csi")
            .join(name);
        make_dir(&parent);
        fs::write(parent.join("vol_data.json"), "{}").unwrap();
        Volume {
            id: volume_id(&pod.uid, name),
            target: parent.join("mount"),
            pod: pod.clone(),
            read_only: true,
            attributes: BTreeMap::from([("spec".into(), spec.into())]),
            secrets: BTreeMap::new(),
            audiences: Vec::new(),
            tokens_expire: FAR,
            tokens_in: TokensIn::Context,
            mount_flags: Vec::new(),
        }
    }

    /// A connection: a kubelet makes a new one for each call.
    pub async fn connect(&self) -> Channel {
        self.try_connect().await.unwrap()
    }

    async fn try_connect(&self) -> Result<Channel, Status> {
        let connected = Channel::connect(&self.socket).await;
        connected.map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Publishes, or publishes again.
    pub async fn publish(&self, volume: &Volume) -> Result<(), Status> {
        self.send(volume.request()).await
    }

    /// Sends a publish as it is.
    pub async fn send(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        let channel = self.try_connect().await?;
        self.send_on(&channel, request).await
    }

    /// [`Self::send`] on a connection that is there.
    pub async fn send_on(
        &self,
        channel: &Channel,
        request: NodePublishVolumeRequest,
    ) -> Result<(), Status> {
        let mut node = channel.node();
        self.within(node.node_publish_volume(self.timed(request)))
            .await?;
        Ok(())
    }

    /// Unpublishes, and removes what a kubelet removes afterwards. It stays if something is left at the target.
    pub async fn unpublish(&self, volume: &Volume) -> Result<(), Status> {
        let mut node = self.try_connect().await?.node();
        let request = self.timed(NodeUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: volume.target.to_str().unwrap().into(),
        });
        self.within(node.node_unpublish_volume(request)).await?;
        if let Some(parent) = volume.target.parent() {
            let _ = fs::remove_file(parent.join("vol_data.json"));
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    pub async fn stats(&self, volume: &Volume) -> Result<NodeGetVolumeStatsResponse, Status> {
        let mut node = self.try_connect().await?.node();
        let request = self.timed(NodeGetVolumeStatsRequest {
            volume_id: volume.id.clone(),
            volume_path: volume.target.to_str().unwrap().into(),
            staging_target_path: String::new(),
        });
        let stats = self.within(node.node_get_volume_stats(request)).await?;
        Ok(stats.into_inner())
    }

    /// With the header that says how long we wait.
    fn timed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }

    /// Gives up after the deadline, as gRPC's client does: the stream is reset.
    async fn within<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let late = |_| Err(Status::deadline_exceeded("the kubelet waited long enough"));
        tokio::time::timeout(self.deadline, call)
            .await
            .unwrap_or_else(late)
    }
}

/// Runs a call of the kubelet in a test that has no runtime.
pub fn wait<T>(call: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(call)
}

/// As a kubelet makes them: for root alone, and its group may look.
fn make_dir(dir: &Path) {
    let made = DirBuilder::new().recursive(true).mode(0o750).create(dir);
    made.unwrap();
}
