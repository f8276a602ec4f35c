//! From a change to the inotify event that tells of it, by real watchers in threads of their own.

use std::{
    fs,
    io::{BufRead, BufReader},
    mem::MaybeUninit,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use secretfs::{
    clock::{Clock, Mono, SystemClock},
    mount::Mounter,
    secret::SecretBytes,
    store::{Identities, Name, Recipients, Store},
    sys::process,
};

use super::{Outcome, kubelet::AtomicWriter, kubelet::Payload, ours, row::Row};

/// Longest that an event may take before the run fails.
const AT_MOST: Duration = Duration::from_secs(10);
/// One rotation: (when it began, when the directory's watcher heard, when the file's did).
type Heard = (Mono, Mono, Mono);

/// From the call of `replace` (A) or of the kubelet's write (B) to the event, `rounds` of each: three files of 1 KiB.
pub fn from_swap(at: &Path, rounds: u64) -> Outcome<Vec<Row>> {
    let [a, b] = ["a", "b"].map(|side| at.join(format!("latency-{side}")));
    fs::create_dir(&a)?;
    fs::create_dir(&b)?;
    let (mounter, target) = (ours::mounter(), ours::target(&a)?);
    let first = ours::payload(3, 1024, 0);
    let first_set = ours::snapshot(&first, 1)?;
    let mut mounted = mounter.publish(&target, &first_set, &ours::options(0)?)?;
    let mut writer = AtomicWriter::mount(&b)?;
    writer.write(&first)?;
    let (watch_a, watch_b) = (Watchers::start(&a)?, Watchers::start(&b)?);
    let mut later = ours::Later::new();
    let (mut by_us, mut by_kubelet) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let payload: Payload = ours::payload(3, 1024, round);
        let next = ours::snapshot(&payload, round + 1)?;
        by_us.push(watch_a.hear(|| {
            mounted.replace(&next)?;
            Ok(())
        })?);
        later.sweep(&mut *mounted);
        by_kubelet.push(watch_b.hear(|| Ok(writer.write(&payload)?))?);
    }
    drop(mounted);
    mounter.unpublish(&target, true)?;
    writer.unmount()?;
    let row = |name, variant, of: &[Heard], pick: fn(&Heard) -> Mono| {
        let times: Vec<_> = of.iter().map(|heard| pick(heard).since(heard.0)).collect();
        Row::times(name, variant, &times)
    };
    let (directory, file) = (
        "change -> inotify on the directory",
        "change -> inotify on a file",
    );
    Ok(vec![
        row(directory, "A secretfs", &by_us, |heard| heard.1),
        row(directory, "B kubelet AtomicWriter", &by_kubelet, |heard| {
            heard.1
        }),
        row(file, "A secretfs", &by_us, |heard| heard.2),
        row(file, "B kubelet AtomicWriter", &by_kubelet, |heard| heard.2),
    ])
}

/// From the call of `put` on the store to the event, through `secretfs mount` in a process of its own (A; goal: under 20 ms
/// p99), and how long the put alone takes until it is durable (B): what no watcher of a store could beat by much.
pub fn from_store(at: &Path, rounds: u64) -> Outcome<Vec<Row>> {
    let dir = at.join("from-store");
    let target = dir.join("target");
    fs::create_dir_all(&target)?;
    fs::create_dir(dir.join("run"))?;
    let (keys, _) = Identities::load_or_make(&dir.join("identity.age"))?;
    let store = Store::init(dir.join("store"), &Recipients::of(&keys)?)?;
    let name = Name::parse("bench")?;
    let put = |round: u64| -> Outcome<()> {
        store.put(
            &name,
            &SecretBytes::new(format!("{round:01024}").into_bytes()),
        )?;
        Ok(())
    };
    put(0)?;
    let mut child = serve(&dir)?;
    let watchers = Watchers::start(&target)?;
    let mut heard = Vec::new();
    let mut alone = Vec::new();
    for round in 1..=rounds {
        heard.push(watchers.hear(|| {
            let begun = SystemClock.now();
            put(round)?;
            alone.push(SystemClock.now().since(begun));
            Ok(())
        })?);
    }
    process::terminate(&child);
    if !child.wait()?.success() {
        return Err("secretfs mount did not end well".into());
    }
    let told: Vec<_> = heard.iter().map(|heard| heard.1.since(heard.0)).collect();
    let name = "put into the store -> inotify";
    Ok(vec![
        Row::times(name, "A secretfs mount", &told),
        Row::times(name, "B the put alone", &alone),
    ])
}

/// `secretfs mount` of one file, ready.
fn serve(dir: &Path) -> Outcome<Child> {
    fs::write(
        dir.join("app.yaml"),
        "files:\n  - path: key-000\n    from: store:bench\n",
    )?;
    let mut child = Command::new(env!("CARGO_BIN_EXE_secretfs"))
        .args(["mount", "app.yaml", "target", "--store", "store"])
        .args(["--identity", "identity.age"])
        .current_dir(dir)
        .env("XDG_RUNTIME_DIR", dir.join("run"))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ready = String::new();
    let stdout = child.stdout.take().ok_or("no stdout")?;
    BufReader::new(stdout).read_line(&mut ready)?;
    if ready.starts_with("ready") {
        Ok(child)
    } else {
        Err("secretfs mount did not get ready".into())
    }
}

/// Two watchers of one volume: of its directory, for `..data`, and of one file, which is watched anew after each event as
/// programs do.
pub struct Watchers {
    directory: mpsc::Receiver<Mono>,
    file: mpsc::Receiver<Mono>,
}

impl Watchers {
    /// Begins to watch the volume at `target`, which has a file `key-000`.
    pub fn start(target: &Path) -> Outcome<Self> {
        let data = |name: Option<&str>| name == Some("..data");
        Ok(Self {
            directory: watch(target.to_owned(), WatchFlags::MOVED_TO, data, false)?,
            file: watch(
                target.join("key-000"),
                WatchFlags::ATTRIB | WatchFlags::DELETE_SELF,
                |_| true,
                true,
            )?,
        })
    }

    /// Makes a change, and says when it began and when each of the two heard.
    pub fn hear(&self, change: impl FnOnce() -> Outcome<()>) -> Outcome<Heard> {
        let begun = SystemClock.now();
        change()?;
        let directory = self.directory.recv_timeout(AT_MOST)?;
        Ok((begun, directory, self.file.recv_timeout(AT_MOST)?))
    }
}

/// A thread that reads events of `path` and sends the time of each that `wanted` names. With `again` it adds the watch anew
/// before it sends, and skips what the dead one still says.
fn watch(
    path: PathBuf,
    flags: WatchFlags,
    wanted: fn(Option<&str>) -> bool,
    again: bool,
) -> Outcome<mpsc::Receiver<Mono>> {
    let queue = inotify::init(CreateFlags::CLOEXEC)?;
    let mut current = inotify::add_watch(&queue, &path, flags)?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&queue, &mut buffer);
        while let Ok(event) = events.next() {
            let heard = SystemClock.now();
            let name = event.file_name().and_then(|name| name.to_str().ok());
            if event.wd() != current {
                continue; // what a dead watch still says
            }
            if event.events().contains(ReadFlags::IGNORED) {
                break; // unmounted
            }
            if !wanted(name) {
                continue;
            }
            if again {
                match inotify::add_watch(&queue, &path, flags) {
                    Ok(new) => current = new,
                    Err(_) => break,
                }
            }
            if send.send(heard).is_err() {
                break;
            }
        }
    });
    Ok(receive)
}
