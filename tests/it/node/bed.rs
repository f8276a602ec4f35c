//! A node with a kubelet's directory, and what a kubelet and a prober say to the plugin on it.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use rustix::mount::MountPropagationFlags as Propagation;
use secretfs::{
    csi::{
        client::Channel,
        proto::{
            NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
            volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
        },
    },
    sys::socket::Short,
};
use sha2::{Digest as _, Sha256};
use tonic::Status;

use crate::support::program::{Bed, Running};

const UID: &str = "d2a0cf6e-4a7c-4c1f-8f0a-5b0c8d7e6f50";
pub const SPEC: &str = "files:\n  - path: a\n    from: store:a\n";

/// A bed whose directory `k` is the kubelet's.
pub struct NodeBed {
    pub bed: Bed,
    pub runtime: tokio::runtime::Runtime,
}

impl NodeBed {
    /// With a store that holds `a`, and a kubelet's directory whose mount has this propagation.
    pub fn new(propagation: Propagation) -> Self {
        Self::on(Bed::new(), propagation)
    }

    /// [`Self::new`], on a bed whose store is empty.
    pub fn on(bed: Bed, propagation: Propagation) -> Self {
        bed.put("a", "value of a");
        let kubelet = bed.path("k");
        fs::create_dir_all(&kubelet).unwrap();
        rustix::mount::mount_bind(&kubelet, &kubelet).unwrap();
        if propagation == Propagation::DOWNSTREAM {
            // a slave is one by having been of a group that has another member
            rustix::mount::mount_change(&kubelet, Propagation::SHARED).unwrap();
            let master = bed.path("master");
            fs::create_dir_all(&master).unwrap();
            rustix::mount::mount_bind(&kubelet, &master).unwrap();
        }
        rustix::mount::mount_change(&kubelet, propagation).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let bed = Self {
            bed,
            runtime: runtime.unwrap(), // after the namespace: its threads are in it
        };
        bed.configure("");
        bed
    }

    pub fn shared() -> Self {
        Self::new(Propagation::SHARED)
    }

    /// Writes the configuration; a line of `more` replaces the line with its key.
    pub fn configure(&self, more: &str) {
        let dir = self.bed.dir.display();
        let usual = format!(
            "node: n1\n\
             endpoint: unix://{dir}/k/plugins/d/csi.sock\n\
             kubeletDir: {dir}/k\n\
             registration: false\n\
             kubernetes: off\n\
             runtimeDir: {dir}/rt\n\
             http: 127.0.0.1:0\n\
             audit: {{file: {dir}/audit.log}}\n\
             backends: {{store: {{kind: store, path: {dir}/store, identity: {dir}/identity.age}}}}\n\
             policy: [{{namespaces: [\"*\"], serviceAccounts: [\"*\"], allow: [\"store:**\"]}}]\n"
        );
        let key = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
        let replaced = |line: &&str| more.lines().all(|new| key(new) != key(line));
        let kept: Vec<_> = usual.lines().filter(replaced).collect();
        self.bed
            .write("node.yaml", &format!("{}\n{more}", kept.join("\n")));
    }

    pub const ARGS: [&'static str; 5] = ["node", "--config", "node.yaml", "--log-level", "trace"];

    /// Starts the plugin, and it must say that it is ready.
    #[track_caller]
    pub fn start(&self) -> Running {
        let running = self.bed.start(&Self::ARGS);
        let good = running.ready.starts_with("ready: ");
        assert!(good, "{:?} {}", running.ready, running.log());
        running
    }

    /// Starts the plugin and does not wait.
    pub fn spawn(&self) -> Running {
        self.bed.spawn(self.bed.command(&Self::ARGS))
    }

    pub fn csi(&self) -> PathBuf {
        self.bed.path("k/plugins/d/csi.sock")
    }

    pub fn admin(&self) -> PathBuf {
        self.bed.path("rt/admin.sock")
    }

    pub fn channel(&self) -> Channel {
        let connected = self.runtime.block_on(Channel::connect(&self.csi()));
        connected.unwrap()
    }

    /// Where the kubelet wants a volume.
    pub fn target(&self, volume: &str) -> PathBuf {
        let path = format!("k/pods/{UID}/volumes/kubernetes.io~csi/{volume}/mount");
        self.bed.path(&path)
    }

    pub fn request(&self, volume: &str) -> NodePublishVolumeRequest {
        let target = self.target(volume);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let context = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "api-0"),
            ("csi.storage.k8s.io/pod.namespace", "payments"),
            ("csi.storage.k8s.io/pod.uid", UID),
            ("csi.storage.k8s.io/serviceAccount.name", "api"),
            ("spec", SPEC),
        ];
        let context = context.map(|(key, value)| (key.to_owned(), value.to_owned()));
        NodePublishVolumeRequest {
            volume_id: id(volume),
            publish_context: HashMap::new(),
            staging_target_path: String::new(),
            target_path: target.to_str().unwrap().to_owned(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: Some(AccessMode {
                    mode: Mode::SingleNodeWriter.into(),
                }),
            }),
            readonly: true,
            secrets: HashMap::new(),
            volume_context: context.into(),
        }
    }

    pub fn publish(&self, volume: &str) -> Result<(), Status> {
        let (mut node, request) = (self.channel().node(), self.request(volume));
        let answer = self.runtime.block_on(node.node_publish_volume(request));
        answer.map(drop)
    }

    pub fn unpublish(&self, volume: &str) -> Result<(), Status> {
        let mut node = self.channel().node();
        let request = NodeUnpublishVolumeRequest {
            volume_id: id(volume),
            target_path: self.target(volume).to_str().unwrap().to_owned(),
        };
        let answer = self.runtime.block_on(node.node_unpublish_volume(request));
        answer.map(drop)
    }

    /// What a reader sees; "" if nothing is there.
    pub fn file(&self, volume: &str) -> String {
        fs::read_to_string(self.target(volume).join("a")).unwrap_or_default()
    }

    /// `GET /v1/node`.
    pub fn node(&self) -> serde_json::Value {
        let (status, body) = get(&self.admin(), "/v1/node");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

/// `csi-` and the hash that a kubelet makes of the pod's uid and the volume's name.
fn id(volume: &str) -> String {
    let hash = Sha256::digest(format!("{UID}{volume}"));
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// Asks with GET at a socket file; status and body.
pub fn get(socket: &Path, path: &str) -> (u16, String) {
    let short = Short::of(socket).unwrap();
    exchange(UnixStream::connect(&short.path).unwrap(), "GET", path)
}

/// The same with POST.
pub fn post(socket: &Path, path: &str) -> (u16, String) {
    let short = Short::of(socket).unwrap();
    exchange(UnixStream::connect(&short.path).unwrap(), "POST", path)
}

/// Asks with GET at the address that a ready line ends with.
pub fn get_at(running: &Running, path: &str) -> (u16, String) {
    let address = running.ready.trim().rsplit(' ').next().unwrap();
    exchange(TcpStream::connect(address).unwrap(), "GET", path)
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str) -> (u16, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.parse().unwrap(), body.to_owned())
}
