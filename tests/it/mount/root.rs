//! Targets below a kubelet's directory: what lies there is written by others, and the target's own directory is ours to make.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use secretfs::{
    error::{Result, codes},
    mount::{Mounted, Mounter, Root, tmpfs::TmpfsMounter},
    path::TargetPath,
    sys::fs::RealFs,
};

use crate::support::{
    kubelet_dir::{KubeletDir, making},
    mount_conformance::{code, conformance, seen},
    sandbox::{everything, files, names},
    snapshots::{options, snapshot},
};

fn publish(mounter: &TmpfsMounter, target: &TargetPath) -> Result<Box<dyn Mounted>> {
    mounter.publish(target, &snapshot(1, &[("a", "1")]), &making("v"))
}

#[test]
fn the_tmpfs_kind_conforms_below_a_shared_root() {
    let kubelet = KubeletDir::shared();
    let mounter = kubelet.mounter(true);
    let view = |target: &TargetPath| target.as_path().exists().then(|| files(target.as_path()));
    conformance(&mounter, &kubelet.target("a"), &making, &view);
    let there = kubelet.target("b");
    fs::create_dir(there.as_path()).unwrap();
    conformance(&mounter, &there, &options, &view);
    let expect = ["pods/", "pods/a/", "pods/b/"];
    assert_eq!(
        everything(&kubelet.dir),
        expect.iter().map(|s| (*s).to_owned()).collect()
    );
}

/// Neither we nor the kubelet could remove it after the unpublish: its pod would be terminating for ever.
#[test]
fn a_target_of_ours_to_make_with_files_of_somebody_elses_is_refused() {
    let kubelet = KubeletDir::shared();
    let mounter = kubelet.mounter(true);
    let target = kubelet.target("p");
    fs::create_dir(target.as_path()).unwrap();
    fs::write(target.as_path().join("theirs"), "1").unwrap();
    assert_eq!(code(publish(&mounter, &target)), "mount.not_empty");
    assert_eq!(kubelet.sandbox.volumes().len(), 0);
    assert_eq!(names(target.as_path()), ["theirs"]);
    assert_eq!(code(mounter.unpublish(&target, true)), "mount.not_empty");
    // a directory that stays when the volume goes may hold anything
    let mount = mounter.publish(&target, &snapshot(1, &[("a", "1")]), &options("v"));
    drop(mount.unwrap());
    mounter.unpublish(&target, false).unwrap();
    assert_eq!(names(target.as_path()), ["theirs"]);

    fs::remove_file(target.as_path().join("theirs")).unwrap();
    publish(&mounter, &target).unwrap(); // an empty one is well
    // what somebody puts below our mount by another way is left, and said
    let parent = target.as_path().parent().unwrap();
    let other = kubelet.sandbox.path().join("other");
    fs::create_dir(&other).unwrap();
    rustix::mount::mount_bind(parent, &other).unwrap();
    fs::write(other.join("mount/theirs"), "2").unwrap();
    assert_eq!(code(mounter.unpublish(&target, true)), "mount.not_empty");
    assert_eq!(
        kubelet.sandbox.volumes().len(),
        0,
        "the secrets are gone all the same"
    );
    fs::remove_file(other.join("mount/theirs")).unwrap();
    mounter.unpublish(&target, true).unwrap();
    assert!(!target.as_path().exists());
}

#[test]
fn a_target_must_lie_below_the_root_as_text() {
    let kubelet = KubeletDir::new();
    let mounter = kubelet.mounter(false);
    let elsewhere = kubelet.sandbox.target("elsewhere/mount");
    let refused = publish(&mounter, &elsewhere).err().unwrap();
    assert_eq!(refused.code(), &codes::CSI_BAD_TARGET);
    let dir = kubelet.dir.display().to_string();
    assert!(refused.to_string().contains(&dir), "{refused}");
    let root = TargetPath::parse(&kubelet.dir).unwrap();
    assert_eq!(code(publish(&mounter, &root)), "csi.bad_target");
    assert_eq!(code(mounter.probe(&elsewhere)), "csi.bad_target");
    assert_eq!(
        code(mounter.adopt(&elsewhere, &options("v"))),
        "csi.bad_target"
    );
    assert_eq!(code(mounter.unpublish(&elsewhere, true)), "csi.bad_target");
    assert!(elsewhere.as_path().exists());
    // Directly below it is well.
    let top = kubelet.at("mount");
    assert_eq!(code(publish(&mounter, &top)), "ok");
    mounter.unpublish(&top, true).unwrap();
    assert_eq!(names(&kubelet.dir), [] as [&str; 0]);
}

#[test]
fn the_roots_own_links_are_followed_and_none_below_it() {
    let kubelet = KubeletDir::shared();
    let named = kubelet.sandbox.path().join("var-lib-kubelet");
    symlink(&kubelet.dir, &named).unwrap();
    let mounter = TmpfsMounter::new(Arc::new(RealFs)).below(Root {
        dir: named.clone(),
        shared: true,
    });
    let real = kubelet.target("p");
    let below = real.below(&kubelet.dir).unwrap();
    let target = TargetPath::parse(&named.join(below)).unwrap();
    let volume = publish(&mounter, &target).unwrap();
    assert_eq!(kubelet.sandbox.layers(&real), ["secretfs:v"]);
    // The kernel shows where the link leads; a target is named as the kubelet names it.
    let id = options("v").volume;
    assert_eq!(mounter.places(&id).unwrap(), [target.as_path()]);
    assert_eq!(mounter.all().unwrap(), [(id, target.as_path().to_owned())]);
    drop(volume);
    drop(mounter.adopt(&target, &options("v")).unwrap());

    // To a directory beside it, to one elsewhere, and one that dangles: in the middle, and at the end.
    let around = everything(kubelet.sandbox.path());
    for to in ["p", "../../elsewhere", "nowhere"] {
        for name in ["pods/link/mount", "pods/x/link"] {
            let (link, target) = match name {
                "pods/link/mount" => (kubelet.dir.join("pods/link"), kubelet.at(name)),
                _ => {
                    fs::create_dir(kubelet.dir.join("pods/x")).unwrap();
                    (kubelet.dir.join("pods/x/link"), kubelet.at(name))
                }
            };
            symlink(to, &link).unwrap();
            let mounter = kubelet.mounter(true);
            for answer in [
                code(publish(&mounter, &target)),
                code(mounter.probe(&target)),
                code(mounter.adopt(&target, &options("v"))),
                code(mounter.unpublish(&target, true)),
            ] {
                assert_eq!(answer, "mount.link", "{name} -> {to}");
            }
            fs::remove_file(&link).unwrap();
            let _ = fs::remove_dir(kubelet.dir.join("pods/x"));
            assert_eq!(everything(kubelet.sandbox.path()), around);
        }
    }
    mounter.unpublish(&target, true).unwrap();
    assert_eq!(names(&kubelet.dir.join("pods/p")), [] as [&str; 0]);
    // A pod's directory may be gone, once or twice.
    mounter.unpublish(&target, true).unwrap();
    fs::remove_dir_all(kubelet.dir.join("pods")).unwrap();
    mounter.unpublish(&target, true).unwrap();
}

#[test]
fn a_publish_makes_the_targets_directory_and_one_that_fails_removes_it() {
    let kubelet = KubeletDir::new();
    let mounter = kubelet.mounter(false);
    let target = kubelet.target("made");
    let below = target.as_path().parent().unwrap();
    let volume = publish(&mounter, &target).unwrap();
    assert_eq!(files(target.as_path()), seen(&[("a", "1", 0o400)]));
    drop(volume);
    mounter.unpublish(&target, false).unwrap();
    let mode = fs::metadata(target.as_path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o750);
    // It is there, and empty: used.
    drop(publish(&mounter, &target).unwrap());
    mounter.unpublish(&target, true).unwrap();
    assert_eq!(names(below), [] as [&str; 0]);

    // Only where it is asked for, and only itself.
    let asked_not = mounter.publish(&target, &snapshot(1, &[]), &options("v"));
    assert_eq!(code(asked_not), "mount.no_target");
    let orphan = publish(&mounter, &kubelet.at("pods/none/mount"))
        .err()
        .unwrap();
    assert_eq!(orphan.code(), &codes::MOUNT_NO_TARGET);
    assert!(orphan.to_string().contains("hold the target"), "{orphan}");
    assert_eq!(names(&kubelet.dir.join("pods")), ["made"]);

    // A file is refused and left; so is what lies in a directory that was there.
    fs::write(target.as_path(), "theirs").unwrap();
    assert_eq!(code(publish(&mounter, &target)), "mount.no_target");
    assert_eq!(fs::read_to_string(target.as_path()).unwrap(), "theirs");
    fs::remove_file(target.as_path()).unwrap();

    // One that fails before it is attached made nothing; see also `fault`.
    let too_large = snapshot(1, &[("a", &"x".repeat(2 << 20))]);
    let refused = mounter.publish(&target, &too_large, &making("v"));
    assert_eq!(code(refused), "mount.too_large");
    assert_eq!(names(below), [] as [&str; 0]);
}

/// Ends the swapping thread also when the test fails.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// Goal: whoever may write in a kubelet's directory cannot lead a mount, or the making or removal of a directory, out of it.
// Method: a directory on the way to the target is exchanged for a link to one of the same shape elsewhere, as fast as it goes,
// during 500 publishes and unpublishes; some must meet the link and some must not.
#[test]
fn a_component_that_becomes_a_link_leads_nothing_out_of_the_root() {
    const ROUNDS: usize = 500;
    let kubelet = KubeletDir::shared();
    let mounter = kubelet.mounter(true);
    let target = kubelet.at("pods/p/volumes/mount");
    let (pod, decoy) = (kubelet.dir.join("pods/p"), kubelet.dir.join("pods/decoy"));
    fs::create_dir_all(pod.join("volumes")).unwrap();
    // At the unpublish there would be an empty directory to remove, at the publish none.
    let elsewhere = kubelet.sandbox.path().join("elsewhere");
    fs::create_dir_all(elsewhere.join("volumes/mount")).unwrap();
    symlink(&elsewhere, &decoy).unwrap();
    let around = everything(kubelet.sandbox.path());

    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut answers: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            // An even number of exchanges: in the end all is as it was.
            while !stop.load(Ordering::Relaxed) || swaps.load(Ordering::Relaxed) % 2 == 1 {
                renameat_with(CWD, &pod, CWD, &decoy, RenameFlags::EXCHANGE).unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
                thread::yield_now();
            }
        });
        let mut check = |call, answer| {
            *answers.entry((call, answer)).or_default() += 1;
            for volume in kubelet.sandbox.volumes() {
                assert!(volume.starts_with(&kubelet.dir), "{call}: {volume:?}");
            }
            assert_eq!(names(&elsewhere.join("volumes")), ["mount"], "{call}");
            assert_eq!(names(&elsewhere.join("volumes/mount")), [] as [&str; 0]);
        };
        for _ in 0..ROUNDS {
            let published = publish(&mounter, &target);
            check("publish", code(published));
            loop {
                let gone = code(mounter.unpublish(&target, true));
                check("unpublish", gone);
                if gone == "ok" {
                    break;
                }
            }
        }
    });
    println!("{} swaps: {answers:?}", swaps.into_inner());
    assert_eq!(everything(kubelet.sandbox.path()), around);
    assert_eq!(kubelet.sandbox.volumes().len(), 0);
    for expect in [
        ("publish", "ok"),
        ("publish", "mount.link"),
        ("unpublish", "ok"),
        ("unpublish", "mount.link"),
    ] {
        assert!(answers.remove(&expect).is_some(), "never: {expect:?}");
    }
    assert_eq!(answers, BTreeMap::new(), "other answers");
}

#[test]
fn unpublish_below_a_root_takes_every_layer_of_ours_and_leaves_what_is_not() {
    let kubelet = KubeletDir::shared();
    let mounter = kubelet.mounter(true);
    let target = kubelet.target("p");
    drop(publish(&mounter, &target).unwrap());
    // No call of ours stacks; this is how an accident looks.
    rustix::mount::mount_bind(target.as_path(), target.as_path()).unwrap();
    mounter.unpublish(&target, true).unwrap();
    assert_eq!(kubelet.sandbox.layers(&target), [] as [&str; 0]);
    assert!(!target.as_path().exists());

    drop(publish(&mounter, &target).unwrap());
    kubelet.sandbox.mount_foreign(target.as_path(), "theirs");
    mounter.unpublish(&target, true).unwrap();
    assert_eq!(kubelet.sandbox.layers(&target), ["theirs", "secretfs:v"]);
    kubelet.sandbox.unmount(target.as_path());
    mounter.unpublish(&target, true).unwrap();
}
