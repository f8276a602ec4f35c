//! Whichever system call of a mount fails, or is the last one before a kill, readers see one set or the other, nothing is left
//! behind, and the next call succeeds.
//!
//! Method: strike call 1, 2, 3 ... until a run in which nothing is struck any more; for each kernel, and for each kind of fault.

use std::{cell::Cell, collections::BTreeSet, sync::Arc, thread};

use rustix::mount::{MountFlags, UnmountFlags};
use secretfs::{
    clock::Mono,
    error::codes,
    limits,
    mount::{MountOptions, Mounted, Mounter as _, Probe, Root, tmpfs::TmpfsMounter},
    path::TargetPath,
    render::{FileContent, Generation, Snapshot},
    sys::{fs::Errno, namespace::make_shared},
};

use crate::support::{
    can_chown,
    faulty::{Fault, FaultyFs, KERNELS, Kernel},
    sandbox::{Sandbox, Seen, everything, files, names},
    snapshots::{Row, options, snapshot_of},
};

const FAULTS: [Fault; 4] = [
    Fault::Errno(Errno::NOSPC),
    Fault::Errno(Errno::IO),
    Fault::Stuck(Errno::NOMEM),
    Fault::Death,
];

/// Two sets that differ in every way; the second needs a larger tmpfs.
struct Sets {
    old: Snapshot,
    new: Snapshot,
}

impl Sets {
    fn new() -> Self {
        let uid = can_chown().then_some(12345);
        let big = "n".repeat(100_000);
        let old: [Row<'_>; 4] = [
            ("changed", 0o400, uid, Some("old")),
            ("dir/x", 0o440, None, Some("same")),
            ("removed", 0o400, None, Some("old too")),
            ("same", 0o444, None, Some("same")),
        ];
        let new: [Row<'_>; 5] = [
            ("added", 0o400, None, Some("new too")),
            ("changed", 0o444, uid, Some(&big)),
            ("dir/sub/y", 0o400, None, Some("new")),
            ("dir/x", 0o440, None, None), // kept
            ("same", 0o444, None, Some("same")),
        ];
        Self {
            old: snapshot_of(1, &old),
            new: snapshot_of(2, &new),
        }
    }

    /// What readers see of them.
    fn seen(&self) -> (Seen, Seen) {
        let seen = |snapshot: &Snapshot| -> Seen {
            let rows = snapshot.files.iter().map(|(path, file)| {
                let text = match &file.content {
                    FileContent::New(bytes) => bytes.expose().to_vec(),
                    FileContent::Keep => b"same".to_vec(),
                };
                let text = String::from_utf8(text).unwrap();
                (path.to_string(), (text, file.mode.bits()))
            });
            rows.collect()
        };
        (seen(&self.old), seen(&self.new))
    }
}

/// Where the target is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ground {
    /// Anywhere, and it is there.
    Plain,
    /// Below a kubelet's directory, whose mount is shared; a publish makes it.
    Kubelet,
}

const GROUNDS: [Ground; 2] = [Ground::Plain, Ground::Kubelet];

/// A target, a kernel, and what is mounted there.
struct Bed {
    sandbox: Sandbox,
    ground: Ground,
    target: TargetPath,
    fs: Arc<FaultyFs>,
    mounter: TmpfsMounter,
    sets: Sets,
    old: Seen,
    new: Seen,
}

impl Bed {
    fn new(kernel: Kernel, ground: Ground) -> Self {
        let sandbox = Sandbox::new();
        let fs = FaultyFs::new(kernel);
        let mounter = TmpfsMounter::new(fs.clone());
        let (target, mounter) = match ground {
            Ground::Plain => (sandbox.target("t"), mounter),
            Ground::Kubelet => {
                let dir = sandbox.path().join("kubelet");
                std::fs::create_dir(&dir).unwrap();
                make_shared(&dir).unwrap();
                let target = sandbox.target("kubelet/pods/p/mount");
                std::fs::remove_dir(target.as_path()).unwrap();
                (target, mounter.below(Root { dir, shared: true }))
            }
        };
        let sets = Sets::new();
        let (old, new) = sets.seen();
        Self {
            mounter,
            sandbox,
            ground,
            target,
            fs,
            sets,
            old,
            new,
        }
    }

    fn publish(&self) -> secretfs::error::Result<Box<dyn Mounted>> {
        self.mounter
            .publish(&self.target, &self.sets.old, &self.options())
    }

    fn adopt(&self) -> secretfs::error::Result<Box<dyn Mounted>> {
        self.mounter.adopt(&self.target, &self.options())
    }

    fn unpublish(&self) {
        let remove = self.ground == Ground::Kubelet;
        self.mounter.unpublish(&self.target, remove).unwrap();
        self.assert_nothing();
    }

    fn options(&self) -> MountOptions {
        MountOptions {
            make_target: self.ground == Ground::Kubelet,
            ..options("v")
        }
    }

    /// Replaces by the new set, and sweeps the old one after its time.
    fn replace(&self, volume: &mut dyn Mounted) -> secretfs::error::Result<bool> {
        let result = volume.replace(&self.sets.new);
        let start = Mono::from_nanos(1);
        volume.sweep(start);
        volume.sweep(start.after(limits::OLD_GENERATION));
        result
    }

    /// One whole set, by `..data` and by each name. A name may be late (only the new set has it) or gone already.
    fn assert_one_set(&self, what: &str) -> Generation {
        let root = self.target.as_path();
        let shown = files(&root.join("..data/."));
        let (generation, other) = if shown == self.old {
            (Generation(1), &self.new)
        } else {
            assert_eq!(shown, self.new, "{what}: a mix");
            (Generation(2), &self.old)
        };
        for (path, file) in &files(root) {
            assert_eq!(shown.get(path), Some(file), "{what}: {path}");
        }
        for path in shown.keys() {
            let top = path.split('/').next().unwrap();
            let known = other.keys().any(|path| path.split('/').next() == Some(top));
            assert!(
                !known || root.join(path).exists(),
                "{what}: {path} is missing"
            );
        }
        generation
    }

    /// The set, its links, and nothing else; one mount.
    fn assert_exactly(&self, set: &Seen, what: &str) {
        let root = self.target.as_path();
        assert_eq!(&files(root), set, "{what}");
        assert_eq!(self.sandbox.layers(&self.target), ["secretfs:v"], "{what}");
        assert_eq!(self.sandbox.volumes().len(), 1, "{what}");
        let mut expect = BTreeSet::from(["..copies/".to_owned(), "..data".to_owned()]);
        let current = std::fs::read_link(root.join("..data")).unwrap();
        let current = current.to_str().unwrap();
        expect.insert(format!("{current}/"));
        for path in set.keys() {
            expect.insert(path.split('/').next().unwrap().to_owned());
            expect.insert(format!("{current}/{path}"));
            for (at, _) in path.match_indices('/') {
                expect.insert(format!("{current}/{}/", &path[..at]));
            }
        }
        assert_eq!(everything(root), expect, "{what}: orphans");
    }

    fn assert_nothing(&self) {
        assert_eq!(self.sandbox.volumes().len(), 0);
        match self.ground {
            Ground::Plain => assert_eq!(names(self.target.as_path()), [] as [&str; 0]),
            Ground::Kubelet => assert!(!self.target.as_path().exists()),
        }
    }
}

/// What one run does: it arms the fault by the closure, after it has built what it needs.
type Run = fn(&Bed, &dyn Fn(), Fault, &str);

/// Runs `one` with call 1, 2, 3 ... struck by each fault, until nothing is struck. What was struck.
fn strike_each(kernel: Kernel, ground: Ground, one: Run) -> BTreeSet<&'static str> {
    let mut struck = BTreeSet::new();
    let bed = Bed::new(kernel, ground);
    for fault in FAULTS {
        for nth in 1.. {
            let what = format!("kernel {}, {ground:?}, call {nth}, {fault:?}", kernel.name);
            one(&bed, &|| bed.fs.arm(nth, fault), fault, &what);
            bed.assert_nothing();
            match bed.fs.struck() {
                Some(call) => struck.insert(call),
                None => break,
            };
        }
    }
    struck
}

fn publish_under_faults(bed: &Bed, arm: &dyn Fn(), fault: Fault, what: &str) {
    arm();
    let result = bed.publish();
    bed.fs.disarm();
    let probe = bed.mounter.probe(&bed.target).unwrap();
    let volume = match (result, probe) {
        (Ok(volume), Probe::Ours { layers: 1, .. }) => volume,
        (Err(_), Probe::Absent) => {
            // A directory that it made is left by a death alone, and the next publish uses it.
            if fault != Fault::Death && bed.ground == Ground::Kubelet {
                assert!(!bed.target.as_path().exists(), "{what}");
            }
            bed.publish().expect(what)
        }
        // Killed after it was attached: it is whole, and the next process takes it over.
        (Err(_), Probe::Ours { layers: 1, .. }) if fault == Fault::Death => {
            bed.assert_one_set(what);
            bed.adopt().expect(what)
        }
        (result, probe) => panic!("{what}: {:?} and {probe:?}", result.err()),
    };
    bed.assert_exactly(&bed.old, what);
    drop(volume);
    bed.unpublish();
}

fn replace_under_faults(bed: &Bed, arm: &dyn Fn(), fault: Fault, what: &str) {
    let mut volume = bed.publish().unwrap();
    arm();
    let result = bed.replace(&mut *volume);
    bed.fs.disarm();
    let shown = bed.assert_one_set(what);
    if fault == Fault::Death {
        drop(volume);
        volume = bed.adopt().expect(what);
    }
    assert_eq!(volume.generation(), shown, "{what}");
    if result.is_ok() {
        assert_eq!(shown, Generation(2), "{what}");
    }
    if fault == Fault::Errno(Errno::NOSPC) && bed.fs.struck() == Some("write") {
        assert!(result.is_ok(), "{what}: it makes room and tries again");
    }
    let again = bed.replace(&mut *volume).expect(what);
    // A change is told once: by this call if no earlier one could.
    let was_told = result.is_ok() || (fault == Fault::Death && shown == Generation(2));
    assert_eq!(again, !was_told, "{what}");
    // What the second call superseded has its time too.
    let late = Mono::from_nanos(1).after(2 * limits::OLD_GENERATION);
    volume.sweep(late);
    volume.sweep(late.after(limits::OLD_GENERATION));
    bed.assert_exactly(&bed.new, what);
    drop(volume);
    bed.unpublish();
}

/// What a kill in the middle of a replace leaves: see `adopt_puts_in_order_what_a_crash_left`.
fn make_a_mess(bed: &Bed) {
    let side = bed.sandbox.target("side");
    rustix::mount::mount_bind(bed.target.as_path(), side.as_path()).unwrap();
    rustix::mount::mount_remount(side.as_path(), MountFlags::BIND, "").unwrap();
    let at = |name: &str| side.as_path().join(name);
    std::fs::create_dir_all(at("..2026_11_24_00_00_08.8/half")).unwrap();
    std::fs::write(at("..2026_11_24_00_00_08.8/half/written"), "x").unwrap();
    std::fs::write(at("..copies/0"), "x").unwrap();
    std::os::unix::fs::symlink("..2026_11_24_00_00_08.8", at("..data_tmp")).unwrap();
    std::fs::remove_file(at("same")).unwrap();
    bed.sandbox.unmount(side.as_path());
}

fn adopt_under_faults(bed: &Bed, arm: &dyn Fn(), _: Fault, what: &str) {
    drop(bed.publish().unwrap());
    make_a_mess(bed);
    let sweep = |volume: &mut dyn Mounted| {
        volume.sweep(Mono::from_nanos(1));
        volume.sweep(Mono::from_nanos(1).after(limits::OLD_GENERATION));
    };
    arm();
    let mut result = bed.adopt();
    if let Ok(volume) = &mut result {
        sweep(&mut **volume);
    }
    bed.fs.disarm();
    assert_eq!(files(&bed.target.as_path().join("..data/.")), bed.old);
    drop(result);
    let mut volume = bed.adopt().expect(what);
    sweep(&mut *volume);
    bed.assert_exactly(&bed.old, what);
    drop(volume);
    bed.unpublish();
}

fn unpublish_under_faults(bed: &Bed, arm: &dyn Fn(), _: Fault, what: &str) {
    drop(bed.publish().unwrap());
    arm();
    let result = bed.mounter.unpublish(&bed.target, true);
    bed.fs.disarm();
    // What can be read by name is whole.
    if bed.target.as_path().exists() {
        for (path, file) in files(bed.target.as_path()) {
            assert_eq!(bed.old.get(&path), Some(&file), "{what}: {path}");
        }
    }
    // Whoever changes their mind gets a whole volume back.
    if let Ok(Probe::Ours { .. }) = bed.mounter.probe(&bed.target) {
        assert!(result.is_err(), "{what}");
        let mut volume = bed.adopt().expect(what);
        bed.mounter.unpublish(&bed.target, false).expect(what);
        assert_eq!(
            volume.replace(&bed.sets.old).unwrap_err().code(),
            &codes::MOUNT_GONE
        );
    }
    bed.mounter.unpublish(&bed.target, true).expect(what);
    assert!(!bed.target.as_path().exists(), "{what}");
    if bed.ground == Ground::Plain {
        std::fs::create_dir(bed.target.as_path()).unwrap();
    }
}

fn attach_under_faults(bed: &Bed, arm: &dyn Fn(), fault: Fault, what: &str) {
    let mut volume = bed.publish().unwrap();
    bed.sandbox.unmount(bed.target.as_path());
    arm();
    let result = volume.attach();
    bed.fs.disarm();
    let is_there = match bed.mounter.probe(&bed.target).unwrap() {
        Probe::Ours { layers: 1, .. } => true,
        Probe::Absent => false,
        probe => panic!("{what}: {probe:?}"),
    };
    assert!(
        is_there == result.is_ok() || fault == Fault::Death,
        "{what}"
    );
    if !is_there {
        match volume.attach() {
            Ok(()) => {}
            Err(error) if error.code() == &codes::MOUNT_GONE => volume = bed.publish().unwrap(),
            Err(error) => panic!("{what}: {error}"),
        }
    }
    bed.assert_exactly(&bed.old, what);
    assert!(bed.replace(&mut *volume).expect(what));
    bed.assert_one_set(what);
    drop(volume);
    bed.unpublish();
}

fn wipe_under_faults(bed: &Bed, arm: &dyn Fn(), fault: Fault, what: &str) {
    let mut volume = bed.publish().unwrap();
    arm();
    let result = volume.wipe();
    bed.fs.disarm();
    let root = bed.target.as_path();
    // What can be read by name is whole.
    for (path, file) in files(root) {
        assert_eq!(bed.old.get(&path), Some(&file), "{what}: {path}");
    }
    if result.is_ok() {
        assert_eq!(everything(root), BTreeSet::new(), "{what}");
    }
    if fault == Fault::Death {
        drop(volume);
        volume = bed.adopt().expect(what);
    }
    for _ in 0..2 {
        volume.wipe().expect(what);
        assert_eq!(everything(root), BTreeSet::new(), "{what}");
    }
    assert!(volume.replace(&bed.sets.old).expect(what));
    bed.assert_exactly(&bed.old, what);
    drop(volume);
    bed.unpublish();
}

#[test]
fn a_fault_at_any_call_leaves_one_set_and_the_next_call_succeeds() {
    let runs: [Run; 6] = [
        publish_under_faults,
        replace_under_faults,
        adopt_under_faults,
        unpublish_under_faults,
        wipe_under_faults,
        attach_under_faults,
    ];
    // A thread for each, with mounts of its own: they spend their time waiting for the kernel to unmount.
    let struck: BTreeSet<&str> = thread::scope(|scope| {
        let plain = KERNELS.map(|kernel| (kernel, Ground::Plain));
        let [newest, .., oldest] = KERNELS;
        let kubelets = [newest, oldest].map(|kernel| (kernel, Ground::Kubelet));
        let threads: Vec<_> = plain
            .into_iter()
            .chain(kubelets)
            .flat_map(|(kernel, ground)| {
                runs.map(|run| scope.spawn(move || strike_each(kernel, ground, run)))
            })
            .collect();
        let sets = threads.into_iter().map(|thread| thread.join().unwrap());
        sets.flatten().collect()
    });
    let mut all = calls_of_fs();
    if !can_chown() {
        all.remove("fchown"); // nobody to give a file to
    }
    let all: BTreeSet<&str> = all.iter().map(String::as_str).collect();
    assert_eq!(struck, all, "a call was never made to fail");
}

/// Names of the methods of trait `Fs`, from its text.
fn calls_of_fs() -> BTreeSet<String> {
    let text = include_str!("../../src/sys/fs.rs");
    let (_, body) = text.split_once("pub trait Fs: Send + Sync {").unwrap();
    let (body, _) = body.split_once("\n}\n").unwrap();
    let names = body
        .split("    fn ")
        .skip(1)
        .map(|method| method.split('(').next().unwrap().to_owned());
    names.collect()
}

/// Runs `one` with `disturb` before call 1, 2, 3 ... of it, until it makes no more calls. How many it made.
fn disturb_each(
    bed: &Bed,
    prepare: impl Fn() -> Option<Box<dyn Mounted>>,
    disturb: fn(&TargetPath),
    one: impl Fn(Option<Box<dyn Mounted>>, u64),
) -> u64 {
    for nth in 1.. {
        let prepared = prepare();
        let target = bed.target.clone();
        bed.fs.before(nth, move || disturb(&target));
        one(prepared, nth);
        if !bed.fs.hook_ran() {
            return nth - 1;
        }
    }
    0
}

fn unmount(target: &TargetPath) {
    // There may be nothing any more: an unpublish looks once again after it has detached.
    let _ = rustix::mount::unmount(target.as_path(), UnmountFlags::DETACH);
}

fn occupy(target: &TargetPath) {
    let at = target.as_path();
    // There may be nothing yet: a publish makes it late.
    let _ = rustix::mount::mount("theirs", at, "tmpfs", MountFlags::empty(), None);
}

#[test]
fn nothing_is_written_below_a_target_that_is_unmounted_at_any_step() {
    for kernel in KERNELS {
        let bed = Bed::new(kernel, Ground::Plain);
        let around = everything(bed.sandbox.path());
        let replaced = disturb_each(
            &bed,
            || Some(bed.publish().unwrap()),
            unmount,
            |volume, nth| {
                let mut volume = volume.unwrap();
                let result = bed.replace(&mut *volume);
                bed.fs.calm();
                let is_gone = |error: &secretfs::error::Error| error.code() == &codes::MOUNT_GONE;
                assert!(result.as_ref().map_or_else(is_gone, |_| true), "{result:?}");
                if nth == 1 {
                    assert!(result.is_err(), "unmounted before it began");
                }
                bed.mounter.unpublish(&bed.target, false).unwrap();
                bed.assert_nothing();
                assert_eq!(everything(bed.sandbox.path()), around, "call {nth}");
            },
        );
        let adopted = disturb_each(
            &bed,
            || {
                drop(bed.publish().unwrap());
                None
            },
            unmount,
            |_, nth| {
                bed.fs.made();
                let result = bed.adopt();
                bed.fs.calm();
                let made = bed.fs.made();
                if let Err(error) = &result {
                    assert_eq!(error.code(), &codes::MOUNT_GONE, "call {nth}");
                    // The clone was refused before it became writable.
                    assert!(!made.contains("mount_setattr"), "call {nth}: {made:?}");
                }
                drop(result);
                bed.mounter.unpublish(&bed.target, false).unwrap();
                bed.assert_nothing();
                assert_eq!(everything(bed.sandbox.path()), around, "call {nth}");
            },
        );
        let unpublished = disturb_each(
            &bed,
            || Some(bed.publish().unwrap()),
            unmount,
            |_, nth| {
                let result = bed.mounter.unpublish(&bed.target, false);
                bed.fs.calm();
                result.unwrap();
                bed.assert_nothing();
                assert_eq!(everything(bed.sandbox.path()), around, "call {nth}");
            },
        );
        assert!(
            replaced > 50 && adopted > 8 && unpublished > 20,
            "{replaced} {adopted} {unpublished}"
        );
    }
}

#[test]
fn a_foreign_mount_that_comes_in_between_is_never_touched() {
    for ground in GROUNDS {
        let bed = Bed::new(KERNELS[0], ground);
        let (refused, accepted) = (Cell::new(0), Cell::new(0));
        let calls = disturb_each(
            &bed,
            || None,
            occupy,
            |_, nth| {
                let result = bed.publish();
                bed.fs.calm();
                let layers = bed.sandbox.layers(&bed.target);
                let occupied = layers.iter().filter(|source| *source == "theirs").count();
                match &result {
                    // It came after ours was checked, or never.
                    Ok(_) if occupied == 0 => assert_eq!(layers, ["secretfs:v"]),
                    Ok(_) => {
                        accepted.set(accepted.get() + 1);
                        assert_eq!(layers, ["theirs", "secretfs:v"], "call {nth}");
                    }
                    Err(error) => {
                        refused.set(refused.get() + 1);
                        let expect = [&codes::MOUNT_FOREIGN, &codes::MOUNT_LEFT][layers.len() - 1];
                        assert_eq!(error.code(), expect, "call {nth}");
                        assert_eq!((occupied, &*layers[0]), (1, "theirs"), "call {nth}");
                        assert_eq!(files(bed.target.as_path()), Seen::new());
                    }
                }
                // Ours may lie below theirs, where it cannot be detached without theirs.
                drop(result);
                if occupied == 1 {
                    unmount(&bed.target);
                }
                bed.unpublish();
            },
        );
        let least = match ground {
            Ground::Plain => 30,
            Ground::Kubelet => 5, // from when there is something to mount on
        };
        assert!(
            calls > 40 && refused.get() > least && accepted.get() > 0,
            "{ground:?} {calls} {refused:?} {accepted:?}"
        );
    }
}
