//! What is mounted below a kubelet's directory must leave our mount namespace: an OK says that it has, and where it could not,
//! nothing is made.

use std::{fs, os::fd::AsFd as _, path::PathBuf, sync::mpsc, thread};

use rustix::{
    fs::{Mode, OFlags, StatVfsMountFlags},
    mount::{MountPropagationFlags, mount_change},
};
use secretfs::{
    error::codes,
    mount::Mounter as _,
    sys::{
        fs::{Errno, Fs as _, RealFs},
        namespace,
    },
};

use crate::support::{
    faulty::{Fault, FaultyFs, KERNELS},
    kubelet_dir::{KubeletDir, making},
    mount_conformance::{code, seen},
    sandbox::{Seen, everything, files},
    snapshots::snapshot,
};

const SLAVE: MountPropagationFlags = MountPropagationFlags::DOWNSTREAM;

/// Another mount namespace: a copy of ours as it was, which sees what ours propagates and nothing else.
struct Elsewhere {
    ask: mpsc::Sender<PathBuf>,
    answer: mpsc::Receiver<Option<(Seen, bool)>>,
}

impl Elsewhere {
    fn new(kubelet: &KubeletDir) -> Self {
        let (ask, asked) = mpsc::channel::<PathBuf>();
        let (reply, answer) = mpsc::channel();
        let dir = kubelet.dir.clone();
        thread::spawn(move || {
            namespace::unshare_mounts().unwrap();
            mount_change(&dir, SLAVE).unwrap();
            reply.send(None).unwrap();
            while let Ok(target) = asked.recv() {
                let there = target.exists().then(|| {
                    let flags = rustix::fs::statvfs(&target).unwrap().f_flag;
                    let all = StatVfsMountFlags::RDONLY
                        | StatVfsMountFlags::NOSUID
                        | StatVfsMountFlags::NODEV
                        | StatVfsMountFlags::NOEXEC;
                    let read_only = flags.contains(all);
                    (files(&target), read_only)
                });
                let _ = reply.send(there);
            }
        });
        answer.recv().unwrap();
        Self { ask, answer }
    }

    /// The files that it sees at a path, and whether they are read-only, nosuid, nodev and noexec; `None` where it sees no directory.
    fn look(&self, at: &std::path::Path) -> Option<(Seen, bool)> {
        self.ask.send(at.to_owned()).unwrap();
        self.answer.recv().unwrap()
    }
}

#[test]
fn what_is_published_arrives_in_another_namespace_and_goes_from_it() {
    let kubelet = KubeletDir::shared();
    let elsewhere = Elsewhere::new(&kubelet);
    let mounter = kubelet.mounter(true);
    mounter.propagates().unwrap();
    let target = kubelet.target("p");
    let at = target.as_path();
    let first = snapshot(1, &[("a", "1")]);
    let mut volume = mounter.publish(&target, &first, &making("v")).unwrap();
    let shown = |text| Some((seen(&[("a", text, 0o400)]), true));
    assert_eq!(elsewhere.look(at), shown("1"));
    volume.replace(&snapshot(2, &[("a", "2")])).unwrap();
    assert_eq!(elsewhere.look(at), shown("2"));
    // Lost here alone or everywhere, the same mount comes back everywhere.
    kubelet.sandbox.unmount(at);
    assert_eq!(elsewhere.look(at).unwrap().0, Seen::new());
    volume.attach().unwrap();
    assert_eq!(elsewhere.look(at), shown("2"));
    drop(volume);
    drop(mounter.adopt(&target, &making("v")).unwrap());
    // The writable side is nobody's peer: one mount here, in a group; none of ours in the sandbox besides.
    let mounts = kubelet.sandbox.mounts();
    let ours: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.volume().is_some())
        .collect();
    assert_eq!(ours.len(), 1);
    assert!(ours[0].shared.is_some() && ours[0].read_only);
    mounter.unpublish(&target, true).unwrap();
    assert_eq!(elsewhere.look(at), None);
}

#[test]
fn a_mount_that_is_private_or_only_a_slave_is_refused_before_anything_is_made() {
    let kubelet = KubeletDir::new();
    refuses(&kubelet);
    namespace::make_shared(&kubelet.dir).unwrap();
    mount_change(&kubelet.dir, MountPropagationFlags::PRIVATE).unwrap();
    refuses(&kubelet);
    mount_change(&kubelet.dir, MountPropagationFlags::SHARED).unwrap();
    let target = kubelet.target("p");
    let outside = Elsewhere::new(&kubelet);
    // As a container with `mountPropagation: HostToContainer`.
    thread::scope(|scope| {
        let (kubelet, target) = (&kubelet, &target);
        let ours = scope.spawn(move || {
            namespace::unshare_mounts().unwrap();
            mount_change(&kubelet.dir, SLAVE).unwrap();
            refuses(kubelet);
            // Why: the mount is perfect, and nobody has it.
            let mounter = kubelet.mounter(false);
            let first = snapshot(1, &[("a", "1")]);
            drop(mounter.publish(target, &first, &making("v")).unwrap());
            assert_eq!(files(target.as_path()).len(), 1);
            let is_there = outside.look(target.as_path()).unwrap().0;
            assert_eq!(is_there, Seen::new());
            mounter.unpublish(target, true).unwrap();
            // A slave that has peers of its own reaches those.
            mount_change(&kubelet.dir, MountPropagationFlags::SHARED).unwrap();
            let mounter = kubelet.mounter(true);
            mounter.propagates().unwrap();
            drop(mounter.publish(target, &first, &making("v")).unwrap());
            mounter.unpublish(target, true).unwrap();
        });
        ours.join().unwrap();
    });
    drop(
        kubelet
            .mounter(true)
            .publish(&target, &snapshot(1, &[]), &making("v"))
            .unwrap(),
    );
    kubelet.mounter(true).unpublish(&target, true).unwrap();
}

/// A container need not have all of the kubelet's directory, with its keys: the pods' part is enough.
#[test]
fn a_shared_mount_of_the_pods_alone_is_enough() {
    let kubelet = KubeletDir::new();
    refuses(&kubelet); // and makes `pods`
    namespace::make_shared(&kubelet.dir.join("pods")).unwrap();
    let mounter = kubelet.mounter(true);
    mounter.propagates().unwrap();
    let target = kubelet.target("q");
    let first = snapshot(1, &[("a", "1")]);
    drop(mounter.publish(&target, &first, &making("v")).unwrap());
    mounter.unpublish(&target, true).unwrap();
}

/// The mounter says so when asked, and at a publish, before it makes anything; `requirePropagation: false` is another matter.
fn refuses(kubelet: &KubeletDir) {
    let fs = FaultyFs::new(KERNELS[0]);
    let mounter = kubelet.mounter_over(fs.clone(), true);
    let target = kubelet.target("p");
    let around = everything(kubelet.sandbox.path());
    let asked = mounter.propagates().unwrap_err();
    let published = mounter.publish(&target, &snapshot(1, &[("a", "1")]), &making("v"));
    for error in [asked, published.err().unwrap()] {
        assert_eq!(error.code(), &codes::MOUNT_NO_PROPAGATION);
        let said = error.to_string();
        assert!(said.contains("mountPropagation: Bidirectional"), "{said}");
    }
    let made = fs.made();
    assert!(
        !made.contains("fsopen") && !made.contains("mkdirat"),
        "{made:?}"
    );
    assert_eq!(everything(kubelet.sandbox.path()), around);
    kubelet.mounter(false).propagates().unwrap();
}

#[test]
fn a_mount_that_stops_being_shared_at_any_step_leaves_nothing_or_a_whole_volume() {
    let kubelet = KubeletDir::shared();
    let fs = FaultyFs::new(KERNELS[0]);
    let mounter = kubelet.mounter_over(fs.clone(), true);
    let target = kubelet.target("p");
    let (mut refused, mut accepted, mut undone) = (0, 0, 0);
    for nth in 1.. {
        let dir = kubelet.dir.clone();
        fs.before(nth, move || {
            mount_change(&dir, MountPropagationFlags::PRIVATE).unwrap();
        });
        fs.made();
        let result = mounter.publish(&target, &snapshot(1, &[("a", "1")]), &making("v"));
        fs.calm();
        match result {
            Ok(_) => {
                accepted += 1;
                let mounts = kubelet.sandbox.mounts();
                let ours = mounts.iter().find(|mount| mount.volume().is_some());
                assert!(ours.unwrap().shared.is_some(), "call {nth}");
            }
            Err(error) => {
                refused += 1;
                undone += u32::from(fs.made().contains("move_mount"));
                assert_eq!(error.code(), &codes::MOUNT_NO_PROPAGATION, "call {nth}");
                assert_eq!(kubelet.sandbox.volumes().len(), 0, "call {nth}");
                assert!(!target.as_path().exists(), "call {nth}");
            }
        }
        assert_eq!(code(mounter.unpublish(&target, true)), "ok");
        mount_change(&kubelet.dir, MountPropagationFlags::SHARED).unwrap();
        if !fs.hook_ran() {
            break;
        }
    }
    assert!(
        refused > 20 && undone > 10 && accepted > 1,
        "{refused} {undone} {accepted}"
    );
}

/// The kubelet unpublishes only after an answer that is not final: what is left behind must not be answered with one that is.
#[test]
fn what_a_failed_publish_cannot_undo_is_not_final_and_can_be_taken_over_or_down() {
    let kubelet = KubeletDir::shared();
    let fs = FaultyFs::new(KERNELS[0]);
    let mounter = kubelet.mounter_over(fs.clone(), true);
    let target = kubelet.target("p");
    let (mut undone, mut left) = (0, 0);
    for nth in 1.. {
        fs.arm(nth, Fault::Errno(Errno::PERM));
        fs.break_all(Some(("umount2", Errno::BUSY)));
        let result = mounter.publish(&target, &snapshot(1, &[("a", "1")]), &making("v"));
        let has_struck = fs.struck().is_some();
        fs.disarm();
        fs.break_all(None);
        let error = result.err();
        match kubelet.sandbox.volumes().len() {
            0 => {
                undone += 1;
                assert_ne!(error.unwrap().code(), &codes::MOUNT_LEFT, "call {nth}");
                assert!(!target.as_path().exists(), "call {nth}");
            }
            _ if error.is_none() => {}
            _ => {
                left += 1;
                let error = error.unwrap();
                assert_eq!(error.code(), &codes::MOUNT_LEFT, "call {nth}");
                let said = error.to_string();
                assert!(said.contains("; and the mount is still there: "), "{said}");
                let status = secretfs::csi::status::first_publish(&error);
                assert_eq!(status.code(), tonic::Code::Unavailable);
                let mut adopted = mounter.adopt(&target, &making("v")).unwrap();
                assert!(
                    !adopted.replace(&snapshot(1, &[("a", "1")])).unwrap(),
                    "it is whole"
                );
            }
        }
        assert_eq!(code(mounter.unpublish(&target, true)), "ok");
        assert_eq!(kubelet.sandbox.volumes().len(), 0);
        if !has_struck {
            break;
        }
    }
    assert!(undone > 20 && left > 5, "{undone} {left}");
}

#[test]
fn a_mount_between_the_root_and_the_target_must_be_shared_too() {
    let kubelet = KubeletDir::shared();
    let target = kubelet.target("p");
    let pods = kubelet.dir.join("pods");
    kubelet.sandbox.mount_foreign(&pods, "pods");
    let target = {
        fs::create_dir_all(target.parent()).unwrap();
        target
    };
    let mounter = kubelet.mounter(true);
    drop(
        mounter
            .publish(&target, &snapshot(1, &[]), &making("v"))
            .unwrap(),
    );
    mounter.unpublish(&target, true).unwrap();
    mount_change(&pods, MountPropagationFlags::PRIVATE).unwrap();
    let refused = mounter.publish(&target, &snapshot(1, &[]), &making("v"));
    let refused = refused.err().unwrap();
    assert_eq!(refused.code(), &codes::MOUNT_NO_PROPAGATION);
    assert!(
        refused.to_string().contains(pods.to_str().unwrap()),
        "{refused}"
    );
    mounter.propagates().unwrap();
}

#[test]
fn a_shared_mount_of_its_own_has_no_peer_but_its_copies() {
    let kubelet = KubeletDir::shared();
    let inner = kubelet.dir.join("inner");
    fs::create_dir(&inner).unwrap();
    namespace::make_shared(&inner).unwrap();
    let mounts = kubelet.sandbox.mounts();
    let group = |at: &std::path::Path| {
        let here = mounts
            .iter()
            .find(|mount| std::path::Path::new(&mount.mount_point) == at);
        here.unwrap().shared.unwrap()
    };
    assert_ne!(group(&inner), group(&kubelet.dir));
    assert!(namespace::make_shared(&kubelet.dir.join("none")).is_err());
}

// Goal: statmount(2) and mountinfo say the same of a mount, and a publish here does without the latter.
#[test]
fn one_mount_asked_for_alone_is_the_one_that_mountinfo_shows() {
    let kubelet = KubeletDir::shared();
    let fs = FaultyFs::new(KERNELS[0]);
    let mounter = kubelet.mounter_over(fs.clone(), true);
    let target = kubelet.target("with space, #\\ and \u{e4}");
    fs.made();
    drop(
        mounter
            .publish(&target, &snapshot(1, &[]), &making("v"))
            .unwrap(),
    );
    assert!(
        !fs.made().contains("mountinfo"),
        "this kernel tells of one mount"
    );
    kubelet
        .sandbox
        .mount_foreign(target.as_path(), "theirs # too");
    let mounts = kubelet.sandbox.mounts();
    let top = rustix::fs::open(target.as_path(), OFlags::PATH, Mode::empty()).unwrap();
    let mut unique = RealFs.unique_mount_id(top.as_fd()).unwrap();
    let id = RealFs.statx(top.as_fd()).unwrap().mount_id;
    let mut seen = Vec::new();
    for layer in mounts.layers(id) {
        let told = RealFs.statmount(unique).unwrap();
        assert_eq!(
            (told.id, told.parent, told.dev),
            (layer.id, layer.parent, layer.dev)
        );
        assert_eq!((&told.root, &told.point), (&layer.root, &layer.mount_point));
        assert_eq!(
            (told.read_only, told.shared),
            (layer.read_only, layer.shared)
        );
        assert_eq!(
            (&told.fs_type, told.source.as_ref()),
            (&layer.fs_type, Some(&layer.source))
        );
        let options = told.options.unwrap_or_default().into_string().unwrap();
        for option in options.split_terminator(',') {
            assert!(layer.has_option(option), "{option}");
        }
        assert_eq!(options.contains("noswap"), layer.has_option("noswap"));
        seen.push(told.source.unwrap());
        unique = told.parent_unique;
    }
    assert_eq!(seen, ["theirs # too", "secretfs:v"]);
    // What holds them is a mount of another kind, by whatever name.
    let below = RealFs.statmount(unique).unwrap();
    assert_eq!(
        Some(below.id),
        mounts.layers(id).last().map(|layer| layer.parent)
    );
}
