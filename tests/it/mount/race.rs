//! Whoever may write in a kubelet's directory exchanges a part of a target's path for a link, as fast as it goes, while volumes are
//! published there and unpublished. Whatever he does, nothing of ours is ever seen outside the target, and nothing that is not ours
//! is touched.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    mount::{MountFlags, UnmountFlags},
};
use secretfs::{
    mount::{Mounter, tmpfs::TmpfsMounter},
    path::TargetPath,
};

use crate::support::{
    kubelet_dir::{KubeletDir, making},
    mount_conformance::code,
    sandbox::{everything, files},
    snapshots::{options, snapshot},
};

/// Publishes and unpublishes, all together. Two threads share them.
const TRIES: usize = 10_000;
const THREADS: usize = 2;
/// The way from the kubelet's directory to a target, one part at a time.
const WAY: [&str; 6] = ["pods", "uid", "volumes", "csi", "vol", "mount"];
/// Whose volume lies beside ours.
const OTHER: &str = "other";

/// Where a link leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum To {
    /// A directory outside of the kubelet's, in which the rest of the way is there.
    Outside,
    /// The root directory.
    Root,
    /// The same part of the way to another pod's volume, which is mounted.
    Neighbour,
}

/// What is exchanged for what.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Swap {
    part: usize,
    to: To,
}

impl fmt::Display for Swap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {:?}", WAY[self.part], self.to)
    }
}

/// A kubelet's directory with our target and a neighbour's volume, and a directory outside.
struct Ground {
    kubelet: KubeletDir,
    target: TargetPath,
    outside: PathBuf,
    neighbour: TargetPath,
}

impl Ground {
    fn new() -> Self {
        let kubelet = KubeletDir::shared();
        let target = kubelet.at(&WAY.join("/"));
        // a way of its own from the top, so that each part of it has a counterpart
        let neighbour = kubelet.at(&format!("{OTHER}/{}", WAY.join("/")));
        let outside = kubelet.sandbox.path().join("outside");
        for dir in [target.as_path(), neighbour.as_path()] {
            fs::create_dir_all(dir.parent().unwrap()).unwrap();
        }
        fs::create_dir_all(outside.join(WAY.join("/"))).unwrap();
        let mounter = kubelet.mounter(true);
        let theirs = snapshot(1, &[("theirs", "1")]);
        drop(Mounter::publish(&mounter, &neighbour, &theirs, &making(OTHER)).unwrap());
        Self {
            kubelet,
            target,
            outside,
            neighbour,
        }
    }

    /// A part of our way.
    fn real(&self, part: usize) -> PathBuf {
        self.kubelet.dir.join(WAY[..=part].join("/"))
    }

    /// The link that is exchanged for it.
    fn decoy(&self, part: usize) -> PathBuf {
        self.real(part).with_extension("decoy")
    }

    fn leads(&self, swap: Swap) -> PathBuf {
        let way = WAY[..=swap.part].join("/");
        match swap.to {
            To::Outside => self.outside.join(way),
            To::Root => "/".into(),
            To::Neighbour => self.kubelet.dir.join(OTHER).join(way),
        }
    }

    /// Exchanges, until it is told to stop, and leaves all as it was. How often.
    fn swapping(&self, swap: Swap, stop: &AtomicBool) -> u64 {
        let (real, decoy) = (self.real(swap.part), self.decoy(swap.part));
        let is_link = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
        // The last part is there only while it is published: then the link takes its place, and goes from it again. While something is
        // mounted there it cannot be renamed.
        let step =
            |from: &Path, to: &Path| match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE)
            {
                Err(rustix::io::Errno::NOENT) => {
                    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
                }
                done => done,
            };
        let mut swaps = 0;
        loop {
            if !is_link(&real) && stop.load(Ordering::Relaxed) {
                return swaps;
            }
            let moved = match is_link(&real) {
                false => step(&decoy, &real),
                true => step(&real, &decoy),
            };
            let is_over = stop.load(Ordering::Relaxed);
            if is_over && moved == Err(rustix::io::Errno::BUSY) && is_link(&real) {
                // The directory went aside and has a mount all the same: `vfs_rename` (fs/namei.c) looks for one before it exchanges, and
                // does not lock a directory that keeps its parent, so one can be made, and be looked at, in between. It cannot be moved back.
                let _ = rustix::mount::unmount(&decoy, UnmountFlags::DETACH);
            }
            swaps += u64::from(moved.is_ok());
            thread::yield_now();
        }
    }

    /// What is wrong: a mount of ours outside the target, or a neighbour or a directory outside that is not as it was.
    fn escape(&self, swap: Swap, before: &Outside) -> Option<String> {
        let (real, decoy) = (self.real(swap.part), self.decoy(swap.part));
        let below = self.target.as_path().strip_prefix(&real).unwrap();
        // the directory itself, under the name that it has while the link has its own
        let aside = match below == Path::new("") {
            true => decoy,
            false => decoy.join(below),
        };
        for place in self.kubelet.sandbox.volumes() {
            if ![self.target.as_path(), &aside, self.neighbour.as_path()].contains(&&*place) {
                return Some(format!("{swap}: a mount at {}", place.display()));
            }
        }
        let now = Outside::of(self);
        (now != *before).then(|| format!("{swap}: {now:?} was {before:?}"))
    }
}

/// What must stay as it is.
#[derive(PartialEq, Eq, Debug)]
struct Outside {
    names: std::collections::BTreeSet<String>,
    layers: Vec<String>,
    theirs: Vec<String>,
}

impl Outside {
    fn of(ground: &Ground) -> Self {
        Self {
            names: everything(&ground.outside),
            layers: ground.kubelet.sandbox.layers(&ground.neighbour),
            theirs: match ground.neighbour.as_path().exists() {
                true => files(ground.neighbour.as_path()).into_keys().collect(),
                false => Vec::new(),
            },
        }
    }
}

/// Who mounts in a race.
trait Racer {
    fn publish(&self, target: &TargetPath) -> &'static str;
    fn unpublish(&self, target: &TargetPath) -> &'static str;
}

impl Racer for TmpfsMounter {
    fn publish(&self, target: &TargetPath) -> &'static str {
        let published = Mounter::publish(self, target, &snapshot(1, &[("a", "1")]), &making("v"));
        code(published)
    }

    fn unpublish(&self, target: &TargetPath) -> &'static str {
        code(Mounter::unpublish(self, target, true))
    }
}

/// Answers by call and code.
type Answers = BTreeMap<(&'static str, &'static str), u64>;

/// Publishes and unpublishes `rounds` times against one swap; the first escape ends it.
fn race(
    ground: &Ground,
    racer: &impl Racer,
    swap: Swap,
    rounds: usize,
) -> (Answers, Option<String>, u64) {
    symlink(ground.leads(swap), ground.decoy(swap.part)).unwrap();
    let before = Outside::of(ground);
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut answers = Answers::new();
    let escaped = thread::scope(|scope| {
        let _stop = super::root::StopOnDrop(&stop);
        scope.spawn(|| swaps.store(ground.swapping(swap, &stop), Ordering::Relaxed));
        let mut look = |call, answer| {
            *answers.entry((call, answer)).or_default() += 1;
            ground.escape(swap, &before)
        };
        for _ in 0..rounds {
            let published = racer.publish(&ground.target);
            if let Some(escaped) = look("publish", published) {
                return Some(escaped);
            }
            let gone = racer.unpublish(&ground.target);
            if let Some(escaped) = look("unpublish", gone) {
                return Some(escaped);
            }
        }
        None
    });
    fs::remove_file(ground.decoy(swap.part)).unwrap();
    (answers, escaped, swaps.into_inner())
}

fn swaps() -> impl Iterator<Item = Swap> {
    let tos = [To::Outside, To::Root, To::Neighbour];
    (0..WAY.len()).flat_map(move |part| tos.map(|to| Swap { part, to }))
}

/// The share of one thread, on ground of its own.
fn share() -> Answers {
    let ground = Ground::new();
    let mounter = ground.kubelet.mounter(true);
    let rounds = TRIES.div_ceil(THREADS * swaps().count() * 2);
    let mut all = Answers::new();
    for swap in swaps() {
        let (answers, escaped, exchanged) = race(&ground, &mounter, swap, rounds);
        assert_eq!(escaped, None, "{answers:?}");
        println!("{swap}: {exchanged} exchanges, {answers:?}");
        for (answer, count) in answers {
            *all.entry(answer).or_default() += count;
        }
        // What a link has kept from being unpublished goes now, and nothing is left.
        let mut last = "";
        for _ in 0..2 {
            last = code(Mounter::unpublish(&mounter, &ground.target, true));
        }
        assert_eq!(last, "ok", "{swap}");
        let left = ground.kubelet.sandbox.volumes();
        assert_eq!(left, [ground.neighbour.as_path()], "{swap}");
        assert!(!ground.target.as_path().exists(), "{swap}");
    }
    all
}

// Goal: nobody can lead a mount, a directory, or the removal of one out of a target by changing the way to it.
// Method: 10,000 calls against exchanges of each part of the way for links to three places, looked at after each call; some calls must
// meet a link, and some must not.
#[test]
fn ten_thousand_tries_against_exchanged_paths_and_no_escape() {
    let mut all = Answers::new();
    let threads: Vec<_> = (0..THREADS).map(|_| thread::spawn(share)).collect();
    for thread in threads {
        for (answer, count) in thread.join().unwrap() {
            *all.entry(answer).or_default() += count;
        }
    }
    println!("{all:?}");
    let tries: u64 = all.values().sum();
    assert!(tries >= TRIES as u64, "{tries}");
    let refused = |call| -> u64 {
        let refusals = all
            .iter()
            .filter(|((of, answer), _)| *of == call && *answer != "ok");
        refusals.map(|(_, count)| count).sum()
    };
    for call in ["publish", "unpublish"] {
        assert!(all.contains_key(&(call, "ok")), "{call} never went well");
        assert!(refused(call) > 0, "{call} never met a link");
    }
    // a link in the way, or the volume that is still there because of one
    let known = |call, answer| match answer {
        "ok" | "mount.link" => true,
        "mount.held" => call == "publish",
        _ => false,
    };
    let other: Vec<_> = all
        .keys()
        .filter(|(call, answer)| !known(*call, *answer))
        .collect();
    assert!(other.is_empty(), "other answers: {other:?}");
}

/// Mounts by path, after a look whether the path is free of links: what everybody writes first.
struct Naive;

impl Naive {
    fn has_links(target: &Path) -> bool {
        let parent = target.parent().unwrap();
        let free = parent.canonicalize().is_ok_and(|real| real == parent);
        !free || fs::symlink_metadata(target).is_ok_and(|meta| meta.is_symlink())
    }

    fn mount(target: &Path) -> io::Result<()> {
        match fs::create_dir(target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("secretfs:v", target, "tmpfs", flags, None)?;
        fs::write(target.join("a"), "1")
    }

    fn unmount(target: &Path) -> io::Result<()> {
        rustix::mount::unmount(target, UnmountFlags::DETACH)?;
        fs::remove_dir(target)
    }
}

impl Racer for Naive {
    fn publish(&self, target: &TargetPath) -> &'static str {
        let target = target.as_path();
        match Self::has_links(target) {
            true => "link",
            false => Self::mount(target).map_or("failed", |()| "ok"),
        }
    }

    fn unpublish(&self, target: &TargetPath) -> &'static str {
        let target = target.as_path();
        match Self::has_links(target) {
            true => "link",
            false => Self::unmount(target).map_or("failed", |()| "ok"),
        }
    }
}

// The rig itself: the same race against a mounter that looks first and then goes by path must find that it escapes.
#[test]
fn the_race_finds_a_mounter_that_looks_first_and_then_goes_by_path() {
    const ROUNDS: usize = 5_000;
    for swap in [
        Swap {
            part: 1,
            to: To::Outside,
        },
        Swap {
            part: 3,
            to: To::Neighbour,
        },
    ] {
        let ground = Ground::new();
        let (answers, escaped, exchanged) = race(&ground, &Naive, swap, ROUNDS);
        println!("{swap}: {exchanged} exchanges, {answers:?}, {escaped:?}");
        assert!(escaped.is_some(), "never in {ROUNDS} rounds: {answers:?}");
    }
}

// `secretfs mount TARGET`: who chooses the path is the user, and its parents are his own. The last part is not followed all the same.
#[test]
fn without_a_root_a_target_that_becomes_a_link_is_not_followed() {
    let kubelet = KubeletDir::new();
    let (home, outside) = (kubelet.dir.join("home"), kubelet.dir.join("outside"));
    let decoy = kubelet.dir.join("decoy");
    for dir in [&home, &outside] {
        fs::create_dir(dir).unwrap();
    }
    symlink(&outside, &decoy).unwrap();
    let target = TargetPath::parse(&home).unwrap();
    let mounter = TmpfsMounter::default();
    let exchange = || renameat_with(CWD, &home, CWD, &decoy, RenameFlags::EXCHANGE).unwrap();
    let first = snapshot(1, &[("a", "1")]);
    let publish = || Mounter::publish(&mounter, &target, &first, &options("v"));
    exchange();
    assert_eq!(code(publish()), "mount.link");
    assert_eq!(
        code(Mounter::unpublish(&mounter, &target, true)),
        "mount.link"
    );
    assert_eq!(kubelet.sandbox.volumes().len(), 0);
    assert!(outside.exists());
    exchange();
    assert_eq!(code(publish()), "ok");
    assert_eq!(kubelet.sandbox.volumes(), [home.as_path()]);
}
