//! The CSI socket: a publish through all of the plugin (A) against the same server whose handler makes the same system calls and nothing
//! else (B, `floor`), taking turns; then republish and rotation.

use std::{
    collections::HashMap,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};
use secretfs::{
    backend::registry::Registry,
    clock::{Clock, SystemClock},
    config::{Config, Env},
    csi::{
        client::Channel,
        context::{Expect, TokensIn},
        log::RpcLog,
        node::Node,
        plugin_info::PluginInfo,
        proto::{
            NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest,
            NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
            NodePublishVolumeRequest, NodePublishVolumeResponse, NodeUnpublishVolumeRequest,
            NodeUnpublishVolumeResponse, node_server,
        },
        server::{Services, serve},
    },
    mount::{Root, tmpfs::TmpfsMounter},
    observe::{audit::Audit, events::Events, metrics::Metrics, ready::Readiness},
    policy::Policy,
    secret::SecretBytes,
    source::pool::Rules,
    store::{Identities, Name, Recipients, Store},
    sys::{
        fs::{Fs, RealFs},
        socket::bind_private,
    },
    volume::{Mounters, Parts, Settings, Volumes, record::Records},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};

use super::{
    Outcome, calls,
    floor::{Recorder, Script},
    row::Row,
};

/// Publishes in flight at once.
const PARALLEL: usize = 16;

/// All of it.
pub fn run(at: &Path, volumes: usize, rotations: usize) -> Outcome<Vec<Row>> {
    let bed = Bed::new(&at.join("csi"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let script = runtime.block_on(record(&bed))?;
    let rows = runtime.block_on(measure(&bed, &script, volumes, rotations))?;
    drop(runtime);
    bed.close()?;
    Ok(rows)
}

/// A store, a kubelet's directory, and a runtime directory on a tmpfs, as `/run` is.
pub struct Bed {
    dir: PathBuf,
    pub kubelet: PathBuf,
    pub store: Store,
    pub config: Config,
}

impl Bed {
    /// With the embedded store alone.
    pub fn new(dir: &Path) -> Outcome<Self> {
        Self::with(dir, "")
    }

    /// With one more backend: a line of the configuration, or nothing.
    pub fn with(dir: &Path, backend: &str) -> Outcome<Self> {
        let kubelet = dir.join("kubelet");
        fs::create_dir_all(&kubelet)?;
        mount_bind(&kubelet, &kubelet)?;
        mount_change(&kubelet, MountPropagationFlags::PRIVATE)?;
        mount_change(&kubelet, MountPropagationFlags::SHARED)?;
        let run = dir.join("run");
        fs::create_dir_all(&run)?;
        mount("run", &run, "tmpfs", MountFlags::empty(), c"mode=0700")?;
        let identity = dir.join("identity.age");
        let (keys, _) = Identities::load_or_make(&identity)?;
        let store = Store::init(dir.join("store"), &Recipients::of(&keys)?)?;
        let text = format!(
            "node: bench\nendpoint: unix://{dir}/csi.sock\nkubeletDir: {kubelet}\nruntimeDir: {dir}/run\n\
             kubernetes: off\nregistration: false\nhttp: \"\"\naudit: {{file: {dir}/audit.log}}\n\
             backends:\n  store: {{kind: store, path: {dir}/store, identity: {identity}}}\n{backend}\
             policy:\n  - {{namespaces: [bench], serviceAccounts: [default], allow: [\"store:**\"]}}\n\
             limits: {{bytesPerNamespace: 1Gi, bytesPerNode: 1Gi}}\n",
            dir = dir.display(),
            kubelet = kubelet.display(),
            identity = identity.display(),
        );
        fs::write(dir.join("node.yaml"), &text)?;
        let config = Config::parse(&text, &Env::default(), &|_| Vec::new())
            .map_err(|problems| format!("{problems:?}"))?;
        let bed = Self {
            dir: dir.to_owned(),
            kubelet,
            store,
            config,
        };
        bed.put("bench/user", 0)?;
        bed.put("bench/password", 0)?;
        Ok(bed)
    }

    pub fn put(&self, name: &str, round: usize) -> Outcome<()> {
        let value = SecretBytes::new(format!("{round:032}").into_bytes());
        self.store.put(&Name::parse(name)?, &value)?;
        Ok(())
    }

    /// Unmounts what [`Self::new`] has mounted.
    pub fn close(&self) -> Outcome<()> {
        unmount(&self.kubelet, UnmountFlags::DETACH)?;
        Ok(unmount(self.dir.join("run"), UnmountFlags::DETACH)?)
    }

    /// The file of the configuration.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("node.yaml")
    }

    /// The plugin's parts as `secretfs node` puts them together.
    fn volumes(&self, fs: Arc<dyn Fs>, run: &str) -> Outcome<Volumes> {
        let settings = Settings {
            registry: Registry::build(&self.config, 0)?,
            policy: Policy::new(self.config.policy.clone()),
            volume_limits: self.config.volume_limits,
            node_limits: self.config.node_limits,
        };
        let root = Root {
            dir: self.kubelet.clone(),
            shared: true,
        };
        let run = self.dir.join("run").join(run);
        fs::create_dir_all(run.join("volumes"))?;
        Ok(Volumes::start(Parts {
            clock: Arc::new(SystemClock),
            settings: watch::channel(Arc::new(settings)).1,
            mounters: Mounters {
                tmpfs: Arc::new(TmpfsMounter::new(fs).below(root)),
            },
            rules: Rules::default(),
            records: Records::below(&run),
            events: Events::off(),
            audit: Audit::off(),
            metrics: Metrics::default(),
        }))
    }

    fn node(&self, volumes: Volumes) -> Node {
        let expect = Expect {
            kubelet_dir: self.kubelet.clone(),
            tokens_in: TokensIn::Either,
        };
        Node {
            node: "bench".to_owned(),
            volumes,
            expect: watch::channel(expect).1,
            readiness: Readiness::default(),
            audit: Audit::off(),
            log: RpcLog::new(Arc::new(SystemClock)),
        }
    }

    /// Serves `node` at a socket of its own.
    async fn serve<N: node_server::Node>(&self, name: &str, node: Arc<N>) -> Outcome<Channel> {
        let socket = self.dir.join(name);
        let listener = bind_private(&socket)?;
        let info = Arc::new(PluginInfo::new("csi.secretfs.dev", Readiness::default()));
        tokio::spawn(async move { serve(&listener, Services::new(info, node)).await });
        Ok(Channel::connect(&socket).await?)
    }
}

/// The calls of one publish, which is taken down again. The volume has the highest number, so that no other one's name is
/// part of its name.
async fn record(bed: &Bed) -> Outcome<Script> {
    let recorder = Recorder::default();
    let volumes = bed.volumes(Arc::new(recorder.clone()), "recorded")?;
    let node = bed.node(volumes.clone());
    calls::make_directories(&bed.kubelet, RECORDED)?;
    let request = Request::new(calls::publish(&bed.kubelet, RECORDED));
    node_server::Node::node_publish_volume(&node, request).await?;
    let script = recorder.take();
    let request = Request::new(calls::unpublish(&bed.kubelet, RECORDED));
    node_server::Node::node_unpublish_volume(&node, request).await?;
    volumes.shutdown().await;
    Ok(script)
}

const RECORDED: usize = 999_999_999;

/// B: the system calls alone.
struct Floor {
    scripts: HashMap<String, Script>,
    /// What a volume keeps open.
    open: Mutex<Vec<Vec<Option<OwnedFd>>>>,
}

#[async_trait]
impl node_server::Node for Floor {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let script = self.scripts.get(&request.get_ref().volume_id).cloned();
        let script = script.ok_or_else(|| Status::not_found("no script"))?;
        let played = tokio::task::spawn_blocking(move || script.play()).await;
        let open = played
            .map_err(|_| Status::internal("panic"))?
            .map_err(|error| Status::internal(error.to_string()))?;
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(open);
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        _: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Volumes of A have even numbers, of B odd ones.
async fn measure(bed: &Bed, script: &Script, count: usize, rotations: usize) -> Outcome<Vec<Row>> {
    let numbers = |side: usize| (0..2 * count).map(move |n| 2 * n + side);
    for number in numbers(0).chain(numbers(1)) {
        calls::make_directories(&bed.kubelet, number)?;
    }
    let scripts = numbers(1).map(|number| {
        let rename = |text: &str| {
            text.replace(&calls::uid(RECORDED), &calls::uid(number))
                .replace(&calls::volume_id(RECORDED), &calls::volume_id(number))
        };
        (calls::volume_id(number), script.for_other(rename))
    });
    let floor = Arc::new(Floor {
        scripts: scripts.collect(),
        open: Mutex::default(),
    });
    let volumes = bed.volumes(Arc::new(RealFs), "measured")?;
    let a = bed
        .serve("a.sock", Arc::new(bed.node(volumes.clone())))
        .await?;
    let b = bed.serve("b.sock", floor.clone()).await?;

    let (mut in_turn_a, mut in_turn_b) = (Vec::new(), Vec::new());
    for (even, odd) in numbers(0).zip(numbers(1)).take(count) {
        in_turn_a.push(publish(bed, &a, even).await?);
        in_turn_b.push(publish(bed, &b, odd).await?);
    }
    let (mut at_once_a, mut at_once_b) = (Vec::new(), Vec::new());
    let rest: Vec<usize> = numbers(0).skip(count).collect();
    for some in rest.chunks(PARALLEL) {
        at_once_a.extend(publish_all(bed, &a, some.to_vec()).await?);
        at_once_b.extend(publish_all(bed, &b, some.iter().map(|n| n + 1).collect()).await?);
    }
    let mut again = Vec::new();
    for number in numbers(0).take(count.min(100)) {
        again.push(publish(bed, &a, number).await?);
    }
    let mut rows = vec![
        Row::times("CSI publish, in turn", "A secretfs", &in_turn_a),
        Row::times("CSI publish, in turn", "B its system calls", &in_turn_b),
        Row::times("CSI publish, 16 at once", "A secretfs", &at_once_a),
        Row::times("CSI publish, 16 at once", "B its system calls", &at_once_b),
        Row::of(
            "calls on the mount in a publish",
            "A and B",
            "calls",
            vec![script.len() as f64],
        ),
        Row::times("CSI republish", "A secretfs", &again),
    ];
    for number in numbers(0).skip(100) {
        a.node()
            .node_unpublish_volume(calls::unpublish(&bed.kubelet, number))
            .await?;
    }
    let some: Vec<usize> = numbers(0).take(100).collect();
    rows.extend(super::rotation::shared(bed, &some, rotations)?);
    for number in some {
        a.node()
            .node_unpublish_volume(calls::unpublish(&bed.kubelet, number))
            .await?;
    }
    volumes.shutdown().await;
    drop(floor);
    for number in numbers(1) {
        unmount(calls::target(&bed.kubelet, number), UnmountFlags::DETACH)?;
    }
    Ok(rows)
}

/// One publish, and that its files are there.
async fn publish(bed: &Bed, channel: &Channel, number: usize) -> Outcome<Duration> {
    let request = calls::publish(&bed.kubelet, number);
    let begun = SystemClock.now();
    channel.node().node_publish_volume(request).await?;
    let took = SystemClock.now().since(begun);
    let found = fs::read(calls::target(&bed.kubelet, number).join("password"))?;
    if found.len() != 32 {
        return Err("a volume without its files".into());
    }
    Ok(took)
}

async fn publish_all(bed: &Bed, channel: &Channel, numbers: Vec<usize>) -> Outcome<Vec<Duration>> {
    let tasks: Vec<_> = numbers
        .into_iter()
        .map(|number| {
            let (channel, request) = (channel.clone(), calls::publish(&bed.kubelet, number));
            tokio::spawn(async move {
                let begun = SystemClock.now();
                let answer = channel.node().node_publish_volume(request).await;
                answer.map(|_| SystemClock.now().since(begun))
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.push(task.await??);
    }
    Ok(times)
}
