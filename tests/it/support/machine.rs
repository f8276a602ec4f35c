//! A machine under a kubelet: the built program `secretfs node`, a real store, real mounts, pods that read.
//!
//! What a secret holds is a number, many times over, so a reader can tell a whole value from half of one, and new from old.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags, openat},
    mount::MountPropagationFlags,
    process::Signal,
};
use secretfs::{
    mount::mountinfo::Mounts,
    secret::SecretBytes,
    store::{Name, Store},
    sys::namespace,
    volume::VolumeStatus,
};
use tonic::Status;

use super::{
    kubelet::{FakeKubelet, Pod, Volume},
    program::{Running, eventually},
};
use crate::node::bed::{NodeBed, get};

/// The secrets, and the files of a volume.
pub const FILES: [&str; 3] = ["a", "b", "c"];
/// All of them.
pub const SPEC: &str =
    "files: [{path: a, from: store:a}, {path: b, from: store:b}, {path: c, from: store:c}]";

/// See the module.
pub struct Machine {
    /// What the plugin stands on.
    pub node: NodeBed,
    pub kubelet: FakeKubelet,
    store: Store,
}

/// What of a volume is the same as long as nobody touches it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    /// Ids of the mounts at its target.
    pub mounts: Vec<u64>,
    /// Where `..data` leads.
    pub data: PathBuf,
    /// The inode there.
    pub inode: u64,
}

impl Machine {
    /// With a kubelet's directory that is shared, and a store in which every secret is 1.
    pub fn new() -> Self {
        Self::of(NodeBed::shared())
    }

    /// The same on this bed.
    pub fn of(node: NodeBed) -> Self {
        let kubelet = FakeKubelet {
            socket: node.csi(),
            ..FakeKubelet::new(&node.bed.path("k"))
        };
        let store = Store::open(node.bed.path("store")).unwrap();
        let machine = Self {
            node,
            kubelet,
            store,
        };
        machine.put_all(1);
        machine
    }

    /// Starts the plugin; it must be ready with so many volumes of its forerunner.
    #[track_caller]
    pub fn start(&self, restored: usize) -> Running {
        let running = self.node.start();
        let says = match restored {
            1 => ", 1 volume restored,".to_owned(),
            many => format!(", {many} volumes restored,"),
        };
        assert!(running.ready.contains(&says), "{}", running.ready);
        running
    }

    pub fn put(&self, name: &str, number: u64) {
        put(&self.store, name, number);
    }

    pub fn put_all(&self, number: u64) {
        for name in FILES {
            self.put(name, number);
        }
    }

    /// The store, for another thread.
    pub fn store(&self) -> Store {
        Store::open(self.node.bed.path("store")).unwrap()
    }

    /// Volumes of pods, four of each.
    pub fn volumes(&self, count: usize) -> Vec<Volume> {
        let volume = |i: usize| {
            let pod = Pod::of(&format!("pod-{}", i / 4), "payments", "api");
            self.kubelet.volume(&pod, &format!("v{}", i % 4), SPEC)
        };
        (0..count).map(volume).collect()
    }

    pub fn publish(&self, volume: &Volume) -> Result<(), Status> {
        self.node.runtime.block_on(self.kubelet.publish(volume))
    }

    pub fn unpublish(&self, volume: &Volume) -> Result<(), Status> {
        self.node.runtime.block_on(self.kubelet.unpublish(volume))
    }

    #[track_caller]
    pub fn publish_all(&self, volumes: &[Volume]) {
        for volume in volumes {
            self.publish(volume).unwrap();
        }
    }

    /// Unpublishes, and nothing at all may be left.
    #[track_caller]
    pub fn unpublish_all(&self, volumes: &[Volume]) {
        for volume in volumes {
            self.unpublish(volume).unwrap();
        }
        self.nothing_is_left(volumes);
    }

    #[track_caller]
    pub fn nothing_is_left(&self, volumes: &[Volume]) {
        let (all, dir) = (mounts(), &self.node.bed.dir);
        let ours = all.iter().filter(|one| one.volume().is_some());
        let ours: Vec<_> = ours
            .filter(|one| Path::new(&one.mount_point).starts_with(dir))
            .collect();
        assert!(ours.is_empty(), "{ours:?}");
        for volume in volumes {
            assert!(!volume.target.exists(), "{}", volume.target.display());
        }
        assert_eq!(self.records(), [] as [&str; 0], "records are left");
    }

    /// What `GET /v1/volumes` says.
    pub fn all_status(&self) -> Vec<VolumeStatus> {
        let (code, body) = get(&self.node.admin(), "/v1/volumes");
        assert_eq!(code, 200, "{body}");
        let mut all: serde_json::Value = serde_json::from_str(&body).unwrap();
        serde_json::from_value(all["volumes"].take()).unwrap()
    }

    /// What is told of one volume.
    pub fn status(&self, volume: &Volume) -> Option<VolumeStatus> {
        let mut all = self.all_status().into_iter();
        all.find(|one| one.id == volume.id)
    }

    /// Its state; "" if it is not served.
    pub fn state(&self, volume: &Volume) -> String {
        let status = self.status(volume);
        status.map_or(String::new(), |status| json_name(&status.state))
    }

    /// Waits until a volume is in a state.
    #[track_caller]
    pub fn until(&self, volume: &Volume, state: &str) -> VolumeStatus {
        eventually(state, || self.state(volume) == state);
        self.status(volume).unwrap()
    }

    /// Waits until each of these tells of the versions that are the newest in the store.
    #[track_caller]
    pub fn settled(&self, volumes: &[Volume]) {
        let newest = FILES.map(|name| {
            let history = self.store.history(&Name::parse(name).unwrap()).unwrap();
            let newest = history.iter().map(|one| one.version).max().unwrap();
            Some(newest.to_string())
        });
        let is_settled = |one: &VolumeStatus| {
            let versions = one.sources.iter().map(|source| source.version.clone());
            json_name(&one.state) == "fresh" && versions.eq(newest.iter().cloned())
        };
        eventually("all are settled", || {
            let all = self.all_status();
            let found = |volume: &Volume| all.iter().find(|one| one.id == volume.id);
            volumes.iter().all(|one| found(one).is_some_and(is_settled))
        });
    }

    /// Names of the files in `<runtimeDir>/volumes`.
    pub fn records(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.node.bed.path("rt/volumes")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// File of a volume's record.
    pub fn record(&self, volume: &Volume) -> PathBuf {
        let name = format!("rt/volumes/{}.json", volume.id);
        self.node.bed.path(&name)
    }

    /// A program in a container of the pod, in a mount namespace of its own, with the volume bound into it.
    pub fn reader(&self, volume: &Volume) -> Reader {
        let at = self.node.bed.path(&format!("c-{}", fastrand::u64(..)));
        fs::create_dir(&at).unwrap();
        Reader::start(volume.target.clone(), at)
    }
}

/// `kill -9`, and waits for the end.
pub fn kill(running: &mut Running) {
    running.signal(Signal::KILL);
    running.ended();
}

pub fn put(store: &Store, name: &str, number: u64) {
    let name = Name::parse(name).unwrap();
    let value = SecretBytes::new(content(number).into_bytes());
    store.put(&name, &value).unwrap();
}

/// A value as it stands in a file.
pub fn content(number: u64) -> String {
    format!("{number} ").repeat(300)
}

/// The number in a value, if it is whole.
pub fn number(text: &str) -> Option<u64> {
    let first = text.split(' ').next()?.parse().ok()?;
    (text == content(first)).then_some(first)
}

/// All mounts of this thread.
pub fn mounts() -> Mounts {
    Mounts::parse(&fs::read("/proc/thread-self/mountinfo").unwrap())
}

/// Ids of the mounts at a volume's target; those of others too.
pub fn mounts_at(volume: &Volume) -> Vec<u64> {
    let all = mounts();
    let here = all
        .iter()
        .filter(|one| Path::new(&one.mount_point) == volume.target);
    here.map(|one| one.id).collect()
}

/// Looks at a volume that is mounted.
#[track_caller]
pub fn shown(volume: &Volume) -> Shown {
    let data = volume.target.join("..data");
    Shown {
        mounts: mounts_at(volume),
        inode: fs::metadata(&data).unwrap().ino(),
        data: fs::read_link(data).unwrap(),
    }
}

/// The number in each of its files; `None` for one that is not there or not whole.
pub fn numbers(volume: &Volume) -> [Option<u64>; 3] {
    FILES.map(|name| number(&volume.file(name)))
}

/// One mount, and all its files whole.
#[track_caller]
pub fn assert_complete(volume: &Volume) {
    assert_eq!(mounts_at(volume).len(), 1, "layers of {}", volume.id);
    let numbers = numbers(volume);
    assert!(
        numbers.iter().all(Option::is_some),
        "{} {numbers:?}",
        volume.id
    );
}

/// Waits until all its files hold this number.
#[track_caller]
pub fn until_shows(volume: &Volume, number: u64) {
    eventually("the files show what was put", || {
        numbers(volume) == [Some(number); 3]
    });
}

/// How a value is called in JSON.
fn json_name(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap();
    value.as_str().unwrap().to_owned()
}

/// A program that reads a volume's files without a pause, in a namespace that hears nothing of this one's mounts.
pub struct Reader {
    stop: Arc<AtomicBool>,
    /// The newest number in the first file.
    newest: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<u64, String>>>,
}

impl Reader {
    fn start(from: PathBuf, at: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let newest = Arc::new(AtomicU64::new(0));
        let (tell, told) = mpsc::channel();
        let (stopped, newest_of) = (stop.clone(), newest.clone());
        let thread = thread::spawn(move || {
            namespace::unshare_mounts().unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            namespace::bind(&from, &at).unwrap();
            tell.send(()).unwrap();
            let mut reads = 0;
            while !stopped.load(SeqCst) {
                let seen = read(&at, newest_of.load(SeqCst))?;
                newest_of.store(seen, SeqCst);
                reads += 1;
                thread::park_timeout(Duration::from_micros(100)); // the machine has others to run
            }
            Ok(reads)
        });
        told.recv().unwrap();
        Self {
            stop,
            newest,
            thread: Some(thread),
        }
    }

    /// Waits until it has read this.
    #[track_caller]
    pub fn until(&self, number: u64) {
        eventually("the reader sees what was put", || {
            self.newest.load(SeqCst) == number || self.has_ended()
        });
        assert!(!self.has_ended(), "a read has failed");
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// What it has read last.
    pub fn newest(&self) -> u64 {
        self.newest.load(SeqCst)
    }

    /// It has read all the time, and no read has failed.
    #[track_caller]
    pub fn end(mut self) {
        self.stop.store(true, SeqCst);
        let ended = self.thread.take().unwrap().join().unwrap();
        assert!(ended.as_ref().is_ok_and(|reads| *reads > 0), "{ended:?}");
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One look at a volume: a file by its path, then all of them in one generation. The first one's number, which never gets less.
fn read(at: &Path, before: u64) -> Result<u64, String> {
    let text = fs::read_to_string(at.join("a")).map_err(|error| format!("a: {error}"))?;
    let seen = number(&text).ok_or_else(|| format!("a: {:.40}", text))?;
    if seen < before {
        return Err(format!("{seen} after {before}"));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let data = rustix::fs::open(at.join("..data"), flags, Mode::empty());
    let data = data.map_err(|error| format!("..data: {error}"))?;
    for name in FILES {
        let file = openat(&data, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let file = file.map_err(|error| format!("..data/{name}: {error}"))?;
        let mut text = String::new();
        let read = File::from(file).read_to_string(&mut text);
        read.map_err(|error| format!("..data/{name}: {error}"))?;
        number(&text).ok_or_else(|| format!("..data/{name}: {:.40}", text))?;
    }
    Ok(seen)
}
