//! The CSI services over a real Unix socket, on mounts in memory, by a kubelet's calls.

mod counted;
pub mod flood;
mod logs;
mod real;
mod wire;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use secretfs::{
    clock::{Clock, Mono, Wall},
    csi::{
        client::Channel,
        context::{Expect, TokensIn},
        log::RpcLog,
        node::Node,
        plugin_info::PluginInfo,
        proto::{
            GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest,
            NodeGetInfoRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
            NodeUnpublishVolumeRequest, ProbeRequest,
            node_service_capability::{Type, rpc::Type as Offers},
            registration::{InfoRequest, RegistrationStatus},
            volume_usage::Unit,
        },
        registration::{Registered, Registration},
        server::{self, Services},
    },
    error::{Error, codes},
    observe::{audit::Audit, ready::Readiness},
    path::{RelPath, TargetPath},
    sys::socket::bind_private,
};
use tokio::{sync::watch, task::JoinHandle};
use tonic::{Code, Status};

use crate::support::{
    bed::Bed,
    clock::ManualClock,
    kubelet::{FakeKubelet, Pod, Volume},
    scripted::{Answer, What},
};

const SPEC: &str = "files: [{path: password, from: \"a:db\"}]";
const OTHER: &str = "files: [{path: password, from: \"b:db\"}]";

/// A plugin in this process, and a kubelet.
struct Stage {
    bed: Bed,
    kubelet: FakeKubelet,
    services: Services,
    clock: Arc<Bomb>,
    readiness: Readiness,
    _dir: Option<tempfile::TempDir>,
}

/// A clock that panics when it is told to: the one thing in every handler that a test can make panic.
struct Bomb {
    inner: Arc<ManualClock>,
    armed: AtomicBool,
}

#[async_trait]
impl Clock for Bomb {
    fn now(&self) -> Mono {
        assert!(!self.armed.load(Ordering::Relaxed), "as the test says");
        self.inner.now()
    }

    fn wall(&self) -> Wall {
        self.inner.wall()
    }

    async fn sleep_until(&self, at: Mono) {
        self.inner.sleep_until(at).await;
    }
}

impl Stage {
    fn new() -> Self {
        Self::on_node("node-1")
    }

    fn on_node(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stage = Self::of(Bed::new(), dir.path(), name);
        Self {
            _dir: Some(dir),
            ..stage
        }
    }

    /// With these volumes and this kubelet's directory.
    fn of(bed: Bed, kubelet_dir: &Path, name: &str) -> Self {
        let kubelet = FakeKubelet::new(kubelet_dir);
        bed.a.put("db", "s3cret");
        bed.b.put("db", "other");
        let readiness = Readiness::default();
        let expect = Expect {
            kubelet_dir: kubelet.dir.clone(),
            tokens_in: TokensIn::Context,
        };
        let clock = Arc::new(Bomb {
            inner: bed.clock.clone(),
            armed: AtomicBool::new(false),
        });
        let node = Node {
            node: name.into(),
            volumes: bed.volumes.clone(),
            expect: watch::channel(expect).1,
            readiness: readiness.clone(),
            audit: Audit::off(),
            log: RpcLog::new(clock.clone()).counting(bed.metrics.clone()),
        };
        let info = PluginInfo::new("csi.secretfs.dev", readiness.clone());
        let listener = bind_private(&kubelet.socket).unwrap();
        // the clock without the bomb: what measures a panic must not panic
        let services = Services::new(Arc::new(info), Arc::new(node))
            .measured(bed.clock.clone(), bed.metrics.clone());
        let served = services.clone();
        tokio::spawn(async move { server::serve(&listener, served).await });
        Self {
            bed,
            kubelet,
            services,
            clock,
            readiness,
            _dir: None,
        }
    }

    /// The volume `secrets` of the pod `web`.
    fn volume(&self) -> Volume {
        self.kubelet.volume(&Pod::new("web"), "secrets", SPEC)
    }

    /// Publishes in a task of its own.
    fn begin(&self, volume: &Volume) -> JoinHandle<Result<(), Status>> {
        let (kubelet, volume) = (self.kubelet.clone(), volume.clone());
        tokio::spawn(async move { kubelet.publish(&volume).await })
    }

    /// Returns when a request to the store `a` is in flight.
    async fn asked(&self) {
        while self.bed.a.running() == 0 {
            tokio::task::yield_now().await;
        }
    }

    /// What a reader of the volume finds in `password`.
    fn password(&self, volume: &Volume) -> Option<String> {
        let target = TargetPath::parse(&volume.target).unwrap();
        let files = self.bed.mounts.shown(&target)?.files;
        let file = files.0.get(&RelPath::parse("password").unwrap())?;
        Some(String::from_utf8(file.bytes.expose().to_vec()).unwrap())
    }
}

/// The code of an answer; OK is one.
fn code<T>(answer: &Result<T, Status>) -> Code {
    answer.as_ref().map_or_else(Status::code, |_| Code::Ok)
}

#[tokio::test]
async fn a_volume_is_published_republished_and_unpublished() {
    let stage = Stage::new();
    let volume = stage.volume();
    stage.kubelet.publish(&volume).await.unwrap();
    assert_eq!(stage.password(&volume).as_deref(), Some("s3cret"));
    for _ in 0..3 {
        stage.kubelet.publish(&volume).await.unwrap();
    }
    assert_eq!(stage.bed.a.count(What::Fetch, "db"), 1);
    for _ in 0..2 {
        stage.kubelet.unpublish(&volume).await.unwrap(); // again: success
        assert_eq!(stage.password(&volume), None);
    }
}

#[tokio::test]
async fn the_services_say_what_they_are() {
    let stage = Stage::new();
    let channel = stage.kubelet.connect().await;
    let (mut identity, mut node) = (channel.identity(), channel.node());
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await;
    assert_eq!(info.unwrap().into_inner().name, "csi.secretfs.dev");
    let offers = identity
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await;
    assert!(offers.unwrap().into_inner().capabilities.is_empty());
    let offers = node
        .node_get_capabilities(NodeGetCapabilitiesRequest {})
        .await;
    let offers = offers.unwrap().into_inner().capabilities;
    let offers: Vec<_> = offers
        .into_iter()
        .map(|one| match one.r#type {
            Some(Type::Rpc(rpc)) => rpc.r#type(),
            None => Offers::Unknown,
        })
        .collect();
    assert_eq!(
        offers,
        [
            Offers::GetVolumeStats,
            Offers::VolumeCondition,
            Offers::VolumeMountGroup
        ]
    );
    let info = node.node_get_info(NodeGetInfoRequest {}).await;
    assert_eq!(info.unwrap().into_inner().node_id, "node-1");
    for nameless in ["", &"n".repeat(257)] {
        let stage = Stage::on_node(nameless);
        let mut node = stage.kubelet.connect().await.node();
        let info = node.node_get_info(NodeGetInfoRequest {}).await;
        assert_eq!(code(&info), Code::FailedPrecondition);
    }
}

#[tokio::test]
async fn a_call_without_its_fields_is_invalid() {
    let stage = Stage::new();
    let volume = stage.volume();
    let mut node = stage.kubelet.connect().await.node();
    let change = |change: fn(&mut NodePublishVolumeRequest)| {
        let mut request = volume.request();
        change(&mut request);
        request
    };
    for request in [
        NodePublishVolumeRequest::default(),
        change(|r| r.volume_id.clear()),
        change(|r| r.target_path.clear()),
        change(|r| r.volume_capability = None),
    ] {
        let answer = stage.kubelet.send(request).await;
        assert_eq!(code(&answer), Code::InvalidArgument, "{answer:?}");
    }
    let (id, path) = (
        volume.id.clone(),
        volume.target.to_str().unwrap().to_owned(),
    );
    for (volume_id, target_path) in [("", path.as_str()), (&id, ""), (&id, "/elsewhere")] {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume_id.into(),
            target_path: target_path.into(),
        };
        let answer = node.node_unpublish_volume(request).await;
        assert_eq!(code(&answer), Code::InvalidArgument, "{answer:?}");
    }
    stage.kubelet.publish(&volume).await.unwrap();
    for (volume_id, volume_path, expect) in [
        ("", path.as_str(), Code::InvalidArgument),
        (&id, "", Code::InvalidArgument),
        ("unknown", &path, Code::NotFound),
        ("no id/at all", &path, Code::NotFound),
        (&id, "/elsewhere", Code::NotFound),
        (&id, &path, Code::Ok),
    ] {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume_id.into(),
            volume_path: volume_path.into(),
            staging_target_path: String::new(),
        };
        let answer = node.node_get_volume_stats(request).await;
        assert_eq!(code(&answer), expect, "{volume_id} {volume_path}");
    }
}

#[tokio::test(start_paused = true)]
async fn stats_count_bytes_and_inodes_and_say_what_is_wrong() {
    let stage = Stage::new();
    let volume = stage.volume();
    stage.kubelet.publish(&volume).await.unwrap();
    let stats = stage.kubelet.stats(&volume).await.unwrap();
    let units: Vec<_> = stats.usage.iter().map(|one| one.unit()).collect();
    assert_eq!(units, [Unit::Bytes, Unit::Inodes]);
    for one in &stats.usage {
        assert!(
            one.used > 0 && one.used + one.available == one.total,
            "{one:?}"
        );
    }
    assert!(!stats.volume_condition.unwrap().abnormal);
    let down = Answer::Fail(&codes::BACKEND_UNAVAILABLE, None);
    stage.bed.a.answer("db", down);
    stage.bed.pass(120).await;
    let condition = stage.kubelet.stats(&volume).await.unwrap().volume_condition;
    let condition = condition.unwrap();
    assert!(condition.abnormal);
    assert!(
        condition.message.starts_with("stale since 2"),
        "{condition:?}"
    );
    assert!(
        condition.message.contains(": backend.unavailable: "),
        "{condition:?}"
    );
}

#[tokio::test]
async fn while_not_ready_nothing_new_is_served_and_what_is_served_can_go() {
    let stage = Stage::new();
    let (old, new) = (
        stage.volume(),
        stage.kubelet.volume(&Pod::new("web"), "new", SPEC),
    );
    stage.kubelet.publish(&old).await.unwrap();
    let mut identity = stage.kubelet.connect().await.identity();
    for (part, error, first) in [
        (
            "propagation",
            &codes::MOUNT_NO_PROPAGATION,
            Code::FailedPrecondition,
        ),
        ("csidriver", &codes::DRIVER_OBJECT, Code::FailedPrecondition),
        ("stopping", &codes::VOLUME_STOPPED, Code::Unavailable),
    ] {
        stage.readiness.set(part, Err(Error::new(error)));
        assert_eq!(code(&stage.kubelet.publish(&new).await), first);
        assert_eq!(code(&stage.kubelet.publish(&old).await), Code::Unavailable);
        let wrong = stage
            .kubelet
            .send(NodePublishVolumeRequest::default())
            .await;
        assert_eq!(code(&wrong), Code::InvalidArgument);
        let probe = identity.probe(ProbeRequest {}).await.unwrap();
        assert_eq!(probe.into_inner().ready, Some(false));
        stage.readiness.set(part, Ok(()));
    }
    stage
        .readiness
        .set("stopping", Err(Error::new(&codes::VOLUME_STOPPED)));
    assert_eq!(stage.password(&old).as_deref(), Some("s3cret"));
    assert_eq!(stage.password(&new), None);
    stage.kubelet.unpublish(&old).await.unwrap();
    assert_eq!(stage.password(&old), None);
}

#[tokio::test]
async fn another_spec_is_the_next_generation_and_a_bad_one_changes_nothing() {
    let stage = Stage::new();
    let volume = stage.volume();
    stage.kubelet.publish(&volume).await.unwrap();
    let other = volume.clone().with_spec(OTHER);
    stage.kubelet.publish(&other).await.unwrap();
    assert_eq!(stage.password(&volume).as_deref(), Some("other"));
    let bad = stage
        .kubelet
        .publish(&volume.clone().with_spec("files: 1"))
        .await;
    assert!(
        matches!(code(&bad), Code::Ok | Code::Unavailable),
        "final: {bad:?}"
    );
    assert_eq!(stage.password(&volume).as_deref(), Some("other"));
    // where nothing is served yet the author hears it
    let first = stage.kubelet.volume(&Pod::new("web"), "first", "files: 1");
    assert_eq!(
        code(&stage.kubelet.publish(&first).await),
        Code::InvalidArgument
    );
}

/// What a pod's author wrote beside the spec. It cannot change while the pod lives, but another version of the plugin may judge it otherwise.
#[tokio::test]
async fn a_wrong_attribute_of_a_served_volume_changes_nothing_and_its_author_is_told_once() {
    type Change = fn(&mut Volume);
    let stage = Stage::new();
    let volume = stage.volume();
    stage.kubelet.publish(&volume).await.unwrap();
    let wrong: [(&str, Change); 3] = [
        ("spec.unknown_key", |volume| {
            volume.attributes.insert("sepc".into(), "x".into());
        }),
        ("spec.missing_key", |volume| volume.attributes.clear()),
        ("csi.not_readonly", |volume| volume.read_only = false),
    ];
    for (expect, change) in wrong {
        let mut wrong = volume.clone();
        change(&mut wrong);
        for _ in 0..2 {
            stage.kubelet.publish(&wrong).await.unwrap();
        }
        assert_eq!(stage.bed.told(), ["SecretSpecRefused"], "{expect}");
        assert_eq!(stage.bed.trouble(&volume.id).unwrap(), expect);
        assert_eq!(stage.password(&volume).as_deref(), Some("s3cret"));
        // where the mount is in doubt it is not OK, and where nothing is served yet the author hears it
        let target = TargetPath::parse(&volume.target).unwrap();
        let (id, at) = (wrong.id.clone(), wrong.target.clone());
        let first = stage.kubelet.volume(&Pod::new("web"), "first", SPEC);
        (wrong.id, wrong.target) = (first.id.clone(), first.target.clone());
        assert_eq!(
            code(&stage.kubelet.publish(&wrong).await),
            Code::InvalidArgument
        );
        (wrong.id, wrong.target) = (id, at);
        stage.bed.mounts.occupy(&target);
        assert_eq!(
            code(&stage.kubelet.publish(&wrong).await),
            Code::Unavailable
        );
        stage.bed.mounts.lose(&target);
        stage.kubelet.publish(&volume).await.unwrap();
        assert_eq!(
            stage.bed.told(),
            ["SecretVolumeLost"],
            "mended, and mounted anew"
        );
    }
}

#[tokio::test]
async fn a_target_that_is_anothers_already_exists() {
    let stage = Stage::new();
    let volume = stage.volume();
    stage.kubelet.publish(&volume).await.unwrap();
    let mut elsewhere = volume.clone();
    elsewhere.target.set_file_name("mount2");
    assert_eq!(
        code(&stage.kubelet.publish(&elsewhere).await),
        Code::AlreadyExists
    );
    let taken = stage.kubelet.volume(&Pod::new("web"), "taken", SPEC);
    stage
        .bed
        .mounts
        .occupy(&TargetPath::parse(&taken.target).unwrap());
    assert_eq!(
        code(&stage.kubelet.publish(&taken).await),
        Code::AlreadyExists
    );
    assert_eq!(stage.password(&volume).as_deref(), Some("s3cret"));
}

#[tokio::test]
async fn a_second_publish_meanwhile_is_aborted_and_an_unpublish_overtakes() {
    let stage = Stage::new();
    let volume = stage.volume();
    stage.bed.a.answer("db", Answer::Hang);
    let first = stage.begin(&volume);
    stage.asked().await;
    let second = stage
        .kubelet
        .publish(&volume.clone().with_spec(OTHER))
        .await;
    assert_eq!(code(&second), Code::Aborted);
    stage.kubelet.unpublish(&volume).await.unwrap();
    assert_eq!(code(&first.await.unwrap()), Code::Aborted);
    assert_eq!(stage.password(&volume), None);
}

#[tokio::test]
async fn who_is_not_believed_gets_nothing_and_takes_nothing_away() {
    let stage = Stage::new();
    let mut volume = stage.volume();
    volume.audiences = vec!["vault".into()];
    let forged = |volume: &Volume| {
        let mut request = volume.request();
        request.volume_context.insert(
            "csi.storage.k8s.io/pod.namespace".into(),
            "kube-system".into(),
        );
        request
    };
    let answer = stage.kubelet.send(forged(&volume)).await;
    assert_eq!(code(&answer), Code::PermissionDenied);
    let told = answer.unwrap_err();
    assert!(told.message().ends_with("[identity.forged]"), "{told}");
    assert_eq!(stage.bed.a.count(What::Fetch, "db"), 0);
    assert_eq!(stage.password(&volume), None);
    stage.kubelet.publish(&volume).await.unwrap();
    let answer = stage.kubelet.send(forged(&volume)).await;
    assert_eq!(
        code(&answer),
        Code::Unavailable,
        "final for a volume that is served"
    );
    assert_eq!(stage.password(&volume).as_deref(), Some("s3cret"));
}

#[tokio::test]
async fn a_hundred_at_once_are_all_served() {
    let stage = Stage::new();
    let volumes: Vec<_> = (0..100)
        .map(|n| {
            stage
                .kubelet
                .volume(&Pod::new(&format!("web-{n}")), "secrets", SPEC)
        })
        .collect();
    let channel = stage.kubelet.connect().await;
    for shared in [false, true] {
        let calls: Vec<_> = volumes
            .iter()
            .map(|volume| {
                let (kubelet, channel) = (stage.kubelet.clone(), channel.clone());
                let request = volume.request();
                tokio::spawn(async move {
                    match shared {
                        true => kubelet.send_on(&channel, request).await,
                        false => kubelet.send(request).await,
                    }
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap().unwrap();
        }
    }
    for volume in &volumes {
        assert_eq!(stage.password(volume).as_deref(), Some("s3cret"));
    }
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_the_connection_and_the_volume_whole() {
    let mut stage = Stage::new();
    let volume = stage.volume();
    stage.bed.a.answer("db", Answer::Hang);
    let channel = stage.kubelet.connect().await;
    stage.kubelet.deadline = Duration::from_millis(20);
    let late = stage.kubelet.send_on(&channel, volume.request()).await;
    assert_eq!(code(&late), Code::DeadlineExceeded);
    stage.services.idle().await; // its handler is gone
    stage.kubelet.deadline = Duration::from_secs(120);
    let info = channel.node().node_get_info(NodeGetInfoRequest {}).await;
    assert_eq!(code(&info), Code::Ok);
    assert_eq!(stage.password(&volume), None);
    stage.kubelet.unpublish(&volume).await.unwrap();
    stage.bed.a.answer("db", Answer::Value);
    stage.kubelet.publish(&volume).await.unwrap();
    assert_eq!(stage.password(&volume).as_deref(), Some("s3cret"));
}

#[tokio::test]
async fn the_kubelet_registers_the_driver() {
    let stage = Stage::new();
    let socket = stage
        .kubelet
        .dir
        .join("plugins_registry/csi.secretfs.dev-reg.sock");
    let listener = bind_private(&socket).unwrap();
    let registration = Registration::new("csi.secretfs.dev", &stage.kubelet.socket);
    let mut state = registration.state();
    assert_eq!(*state.borrow_and_update(), Registered::Unasked);
    tokio::spawn(async move { registration.serve(&listener).await });
    let mut kubelet = Channel::connect(&socket).await.unwrap().registration();
    let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (info.r#type.as_str(), info.name.as_str()),
        ("CSIPlugin", "csi.secretfs.dev")
    );
    assert_eq!(info.endpoint, stage.kubelet.socket.to_str().unwrap());
    assert_eq!(info.supported_versions, ["1.0.0"]);
    for (plugin_registered, error, expect) in [
        (true, "", Registered::Yes),
        (
            false,
            "no such node\n",
            Registered::No("no such node\\n".into()),
        ),
        (true, "", Registered::Yes),
    ] {
        let error = error.into();
        let status = RegistrationStatus {
            plugin_registered,
            error,
        };
        kubelet.notify_registration_status(status).await.unwrap();
        assert_eq!(*state.borrow_and_update(), expect);
    }
}
