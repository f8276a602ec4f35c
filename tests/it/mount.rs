//! The mounts, on a real kernel: what every kind does (`support/mount_conformance.rs`), and what only a tmpfs has.

mod options;
mod race;
mod reach;
mod root;

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rustix::{mount::MountFlags, thread::CapabilitySet};
use secretfs::{
    clock::Mono,
    error::codes,
    limits,
    mount::{Mounted, Mounter, Probe, layout, memory::MemoryMounter, tmpfs::TmpfsMounter},
    path::TargetPath,
    render::Generation,
    sys::fs::{RealFs, page_bytes},
};

use crate::support::{
    faulty::{FaultyFs, KERNELS},
    mount_conformance::{code, conformance, seen},
    sandbox::{Below, Sandbox, everything, files, names},
    snapshots::{options, snapshot, snapshot_of},
};

fn tmpfs() -> TmpfsMounter {
    TmpfsMounter::new(Arc::new(RealFs))
}

#[test]
fn the_tmpfs_kind_conforms() {
    let sandbox = Sandbox::new();
    conformance(&tmpfs(), &sandbox.target("t"), &options, &|target| {
        target.as_path().exists().then(|| files(target.as_path()))
    });
    assert_eq!(names(sandbox.path()), [] as [&str; 0]);
}

#[test]
fn the_tmpfs_kind_conforms_on_older_kernels() {
    for kernel in KERNELS {
        let sandbox = Sandbox::new();
        let mounter = TmpfsMounter::new(FaultyFs::new(kernel));
        conformance(&mounter, &sandbox.target("t"), &options, &|target| {
            target.as_path().exists().then(|| files(target.as_path()))
        });
    }
}

#[test]
fn without_the_capability_the_error_names_it() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("t");
    // Capabilities are the thread's own.
    let mut capabilities = rustix::thread::capabilities(None).unwrap();
    capabilities.effective.remove(CapabilitySet::SYS_ADMIN);
    rustix::thread::set_capabilities(None, capabilities).unwrap();
    let refused = tmpfs().publish(&target, &snapshot(1, &[("a", "1")]), &options("v"));
    let error = refused.err().unwrap();
    assert_eq!(error.code(), &codes::MOUNT_NOT_PERMITTED);
    assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
    assert_eq!(names(target.as_path()), [] as [&str; 0]);
}

#[test]
fn the_memory_kind_conforms() {
    let mounter = MemoryMounter::default();
    let target = TargetPath::parse(Path::new("/nowhere/t")).unwrap();
    conformance(&mounter, &target, &options, &|target| {
        let shown = mounter.shown(target)?;
        let rows = shown.files.0.iter().map(|(path, file)| {
            let text = String::from_utf8(file.bytes.expose().to_vec()).unwrap();
            (path.to_string(), (text, file.mode.bits()))
        });
        Some(rows.collect())
    });
    mounter.occupy(&target);
    assert_eq!(mounter.probe(&target).unwrap(), Probe::Foreign);
    let refused = mounter.publish(&target, &snapshot(1, &[]), &options("v"));
    assert_eq!(code(refused), "mount.foreign");
}

#[test]
fn the_layout_is_the_kubelets_whatever_the_umask() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("t");
    // The mask is the thread's own since it has its own mounts.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let rows = [
        ("a", 0o444, None, Some("1")),
        ("d/e/f", 0o640, None, Some("2")),
    ];
    let _volume = tmpfs()
        .publish(&target, &snapshot_of(17, &rows), &options("v"))
        .unwrap();
    let root = target.as_path();
    let generation = "..2026_11_24_00_00_17.17";
    let expect = [
        "..copies/",
        &format!("{generation}/"),
        &format!("{generation}/a"),
        &format!("{generation}/d/"),
        &format!("{generation}/d/e/"),
        &format!("{generation}/d/e/f"),
        "..data",
        "a",
        "d",
    ];
    assert_eq!(
        everything(root),
        expect.iter().map(|s| (*s).to_owned()).collect()
    );
    for (link, to) in [("a", "..data/a"), ("d", "..data/d"), ("..data", generation)] {
        assert_eq!(fs::read_link(root.join(link)).unwrap(), Path::new(to));
    }
    for (path, mode) in [
        ("", 0o755),
        ("..data/.", 0o755),
        ("d", 0o755),
        ("d/e", 0o755),
        ("a", 0o444),
        ("d/e/f", 0o640),
    ] {
        let found = fs::metadata(root.join(path)).unwrap().permissions().mode();
        assert_eq!(found & 0o7777, mode, "{path}");
    }
}

#[test]
fn readers_have_no_writable_path_and_the_mount_says_whose_it_is() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("t");
    let volume = tmpfs()
        .publish(&target, &snapshot(1, &[("a", "1")]), &options("v-9"))
        .unwrap();
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = text
        .lines()
        .find(|line| line.contains("secretfs:v-9"))
        .unwrap();
    assert!(line.contains(" ro,nosuid,nodev,noexec,"), "{line}");
    assert!(line.contains("- tmpfs secretfs:v-9 rw,"), "{line}");
    let usage = volume.usage().unwrap();
    assert_eq!(usage.swappable, !line.contains("noswap"), "{line}");
    assert!(
        usage.bytes_capacity < 256 << 10,
        "the size follows the content: {usage:?}"
    );
    let written = fs::write(target.as_path().join("b"), "x").unwrap_err();
    assert_eq!(written.raw_os_error(), Some(libc::EROFS));
    let own = target.as_path().join("a");
    let written = fs::OpenOptions::new().write(true).open(own).unwrap_err();
    assert_eq!(written.raw_os_error(), Some(libc::EROFS));
    assert_eq!(sandbox.mount_points().len(), 1);
}

#[test]
fn a_target_that_cannot_be_mounted_on_is_left_as_it_is() {
    let sandbox = Sandbox::new();
    let mounter = tmpfs();
    let publish =
        |target: &TargetPath| code(mounter.publish(target, &snapshot(1, &[]), &options("v")));
    let at = |name: &str| TargetPath::parse(&sandbox.path().join(name)).unwrap();
    let real = sandbox.target("real/t");
    assert_eq!(publish(&at("missing")), "mount.no_target");
    assert_eq!(publish(&at("missing/too")), "mount.no_target");
    fs::write(sandbox.path().join("file"), "").unwrap();
    assert_eq!(publish(&at("file")), "mount.no_target");
    // A link at the target's own name is not followed; one on the way to it is.
    symlink(real.as_path(), sandbox.path().join("link")).unwrap();
    assert_eq!(publish(&at("link")), "mount.link");
    assert_eq!(code(mounter.unpublish(&at("link"), true)), "mount.link");
    symlink(real.parent(), sandbox.path().join("parent")).unwrap();
    assert_eq!(publish(&at("parent/t")), "ok");
    assert_eq!(sandbox.mount_points(), [real.as_path()]);
    mounter.unpublish(&at("parent/t"), false).unwrap();

    let foreign = sandbox.target("foreign");
    sandbox.mount_foreign(foreign.as_path(), "theirs");
    assert_eq!(mounter.probe(&foreign).unwrap(), Probe::Foreign);
    assert_eq!(publish(&foreign), "mount.foreign");
    assert_eq!(
        code(mounter.adopt(&foreign, &options("v"))),
        "mount.foreign"
    );
    mounter.unpublish(&foreign, true).unwrap();
    assert_eq!(sandbox.layers(&foreign), ["theirs"]);
    assert_eq!(names(foreign.as_path()), [] as [&str; 0]);
    for missing in ["missing", "missing/too", "file"] {
        mounter.unpublish(&at(missing), true).unwrap();
    }
}

#[test]
fn a_changed_mode_or_owner_alone_is_a_change() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("t");
    let rows = |mode, uid| [("a", mode, uid, Some("1"))];
    let mut volume = tmpfs()
        .publish(&target, &snapshot_of(1, &rows(0o400, None)), &options("v"))
        .unwrap();
    let mode_and_uid = || {
        let metadata = fs::metadata(target.as_path().join("a")).unwrap();
        (metadata.permissions().mode() & 0o7777, metadata.uid())
    };
    let own = rustix::process::geteuid().as_raw();
    assert!(volume.replace(&snapshot_of(2, &rows(0o440, None))).unwrap());
    assert_eq!(mode_and_uid(), (0o440, own));
    assert!(
        !volume
            .replace(&snapshot_of(3, &rows(0o440, Some(own))))
            .unwrap()
    );
    let given = volume.replace(&snapshot_of(3, &rows(0o440, Some(12345))));
    if crate::support::can_chown() {
        assert!(given.unwrap());
        assert_eq!(mode_and_uid(), (0o440, 12345));
        assert!(
            !volume
                .replace(&snapshot_of(4, &rows(0o440, Some(12345))))
                .unwrap()
        );
    } else {
        // A user namespace without this id: refused, and readers keep what they have.
        assert_eq!(code(given), "mount.owner");
        assert_eq!(mode_and_uid(), (0o440, own));
    }
}

#[test]
fn the_old_generation_stays_whole_for_who_is_in_it() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("t");
    let mut volume = tmpfs()
        .publish(
            &target,
            &snapshot(1, &[("a", "1"), ("d/b", "2")]),
            &options("v"),
        )
        .unwrap();
    let old = fs::read_link(target.as_path().join("..data")).unwrap();
    let old = target.as_path().join(old);
    let mut held = fs::File::open(old.join("a")).unwrap();
    let inside = Below::of(&old);
    assert!(volume.replace(&snapshot(2, &[("c", "3")])).unwrap());
    let first = seen(&[("a", "1", 0o400), ("d/b", "2", 0o400)]);
    assert_eq!(files(&old), first);
    assert_eq!(inside.names(), ["a", "d"]);

    let start = Mono::from_nanos(5_000);
    let due = start.after(limits::OLD_GENERATION);
    assert_eq!(volume.sweep(start), Some(due));
    assert!(volume.replace(&snapshot(3, &[("c", "4")])).unwrap());
    let second = start.after(Duration::from_secs(4));
    assert_eq!(volume.sweep(second), Some(due));
    assert_eq!(files(&old), first, "before its time");
    let next = second.after(limits::OLD_GENERATION);
    assert_eq!(volume.sweep(due), Some(next));
    assert!(!old.exists());
    assert_eq!(volume.sweep(next), None);
    let generations = names(target.as_path());
    assert_eq!(
        generations,
        ["..2026_11_24_00_00_03.3", "..copies", "..data", "c"]
    );
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "1", "a held descriptor keeps its version");
}

#[test]
fn it_grows_to_its_limit_and_superseded_generations_make_room() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("t");
    let mut volume = tmpfs()
        .publish(&target, &snapshot(1, &[("a", "1")]), &options("v"))
        .unwrap();
    let small = volume.usage().unwrap();
    let full = |n: u64| {
        let text = n.to_string().repeat(1 << 20);
        let text = text[..1 << 20].to_owned();
        snapshot(n, &[("a", &text)])
    };
    assert!(volume.replace(&full(2)).unwrap());
    assert!(volume.usage().unwrap().bytes_capacity > small.bytes_capacity);
    let mut now = Mono::from_nanos(1);
    volume.sweep(now);
    // As fast as it will go, with a sweep after each: sooner or later there is no room, never a broken set.
    let (mut refused, mut refusals) = (0, 0);
    for n in 3..40 {
        match volume.replace(&full(n)) {
            Ok(changed) => assert!(changed),
            Err(error) => {
                assert_eq!(error.code(), &codes::MOUNT_NO_SPACE, "{error}");
                refused += 1;
                refusals += 1;
            }
        }
        let (text, _) = &files(target.as_path())["a"];
        let shown = volume.generation().0;
        assert_eq!(text.len(), 1 << 20);
        assert!(text.starts_with(&shown.to_string()));
        let due = volume.sweep(now);
        if refused > 0 {
            // Short of memory, a second is enough.
            let due = due.unwrap();
            assert!(due <= now.after(limits::OLD_GENERATION_MIN));
            now = due;
            volume.sweep(now);
            refused = 0;
        }
    }
    assert!(volume.generation() >= Generation(20));
    assert!(refusals > 0, "the test never met its subject");
    // Three sets, and a page for the end of each file and link that there could be.
    assert!(volume.usage().unwrap().bytes_capacity <= (3 << 20) + (3 * 2 * 64 + 16) * page_bytes());
}

#[test]
fn a_mount_that_went_away_is_never_written_below() {
    let sandbox = Sandbox::new();
    let mounter = tmpfs();
    let target = sandbox.target("t");
    let below = Below::of(target.as_path());
    let mut volume = mounter
        .publish(&target, &snapshot(1, &[("a", "1")]), &options("v"))
        .unwrap();
    sandbox.unmount(target.as_path());
    assert_eq!(
        code(volume.replace(&snapshot(2, &[("a", "2")]))),
        "mount.gone"
    );
    assert_eq!(code(mounter.adopt(&target, &options("v"))), "mount.gone");
    // Something of somebody else's, and a bind of one of ours at another place.
    sandbox.mount_foreign(target.as_path(), "secretfs:other");
    assert_eq!(
        code(volume.replace(&snapshot(2, &[("a", "2")]))),
        "mount.gone"
    );
    assert_eq!(code(mounter.adopt(&target, &options("v"))), "mount.held");
    sandbox.unmount(target.as_path());
    assert_eq!(below.names(), [] as [&str; 0]);
}

#[test]
fn adopt_puts_in_order_what_a_crash_left() {
    let sandbox = Sandbox::new();
    let mounter = tmpfs();
    let target = sandbox.target("t");
    let first = snapshot(7, &[("a", "1"), ("d/b", "2")]);
    drop(mounter.publish(&target, &first, &options("v")).unwrap());
    let clean = everything(target.as_path());
    {
        // A writable mount of it elsewhere, to make a mess by.
        let side = sandbox.target("side");
        rustix::mount::mount_bind(target.as_path(), side.as_path()).unwrap();
        let flags = MountFlags::BIND;
        rustix::mount::mount_remount(side.as_path(), flags, "").unwrap();
        let at = |name: &str| side.as_path().join(name);
        fs::create_dir_all(at("..2026_11_24_00_00_08.8/half")).unwrap();
        fs::write(at("..2026_11_24_00_00_08.8/half/written"), "x").unwrap();
        fs::write(at("..copies/0"), "x").unwrap();
        symlink("..2026_11_24_00_00_08.8", at("..data_tmp")).unwrap();
        symlink("..data/dangling", at("dangling")).unwrap();
        fs::remove_file(at("d")).unwrap();
        sandbox.unmount(side.as_path());
    }
    let mut volume = mounter.adopt(&target, &options("v")).unwrap();
    assert_eq!(volume.generation(), Generation(7));
    assert_eq!(
        files(target.as_path()),
        seen(&[("a", "1", 0o400), ("d/b", "2", 0o400)])
    );
    // Somebody may be in a directory that `..data` does not name: it has its time.
    let start = Mono::from_nanos(9);
    let due = volume.sweep(start).unwrap();
    assert_eq!(due, start.after(limits::OLD_GENERATION));
    assert_eq!(volume.sweep(due), None);
    assert_eq!(everything(target.as_path()), clean);
    assert!(volume.replace(&snapshot(8, &[("a", "3")])).unwrap());
}

#[test]
fn unpublish_removes_every_layer_of_ours_and_no_other() {
    let sandbox = Sandbox::new();
    let mounter = tmpfs();
    let target = sandbox.target("t");
    let publish = |n| {
        mounter
            .publish(&target, &snapshot(n, &[("a", "1")]), &options("v"))
            .unwrap()
    };
    let _first = publish(1);
    // No call of ours stacks; this is how an accident looks.
    rustix::mount::mount_bind(target.as_path(), target.as_path()).unwrap();
    assert_eq!(sandbox.layers(&target).len(), 2);
    assert!(matches!(
        mounter.probe(&target).unwrap(),
        Probe::Ours {
            layers: 2,
            altered: Some(_),
            ..
        }
    ));
    mounter.unpublish(&target, false).unwrap();
    assert_eq!(sandbox.layers(&target), [] as [&str; 0]);

    let _second = publish(2);
    sandbox.mount_foreign(target.as_path(), "theirs");
    mounter.unpublish(&target, true).unwrap();
    assert_eq!(sandbox.layers(&target), ["theirs", "secretfs:v"]);
    sandbox.unmount(target.as_path());
    assert_eq!(files(target.as_path()), seen(&[("a", "1", 0o400)]));
    mounter.unpublish(&target, true).unwrap();
    assert!(!target.as_path().exists());

    // Ours on theirs: ours goes.
    let (on_theirs, other) = (sandbox.target("u"), sandbox.target("w"));
    let first = snapshot(1, &[("a", "1")]);
    let _third = mounter.publish(&other, &first, &options("v")).unwrap();
    sandbox.mount_foreign(on_theirs.as_path(), "theirs");
    rustix::mount::mount_bind(other.as_path(), on_theirs.as_path()).unwrap();
    mounter.unpublish(&on_theirs, true).unwrap();
    assert_eq!(sandbox.layers(&on_theirs), ["theirs"]);
    mounter.unpublish(&other, true).unwrap();
    assert_eq!(names(sandbox.path()), ["u"]);
}

#[test]
fn a_copy_of_the_mount_in_another_namespace_reads_nothing_any_more() {
    let sandbox = Sandbox::new();
    let mounter = tmpfs();
    let target = sandbox.target("t");
    let mut volume = mounter
        .publish(
            &target,
            &snapshot(1, &[("a", "secret"), ("d/b", "2")]),
            &options("v"),
        )
        .unwrap();
    volume.replace(&snapshot(2, &[("a", "SECRET")])).unwrap();
    let (ready, is_ready) = mpsc::channel();
    let (gone, is_gone) = mpsc::channel::<()>();
    let path = target.as_path().to_owned();
    let other = thread::spawn(move || {
        secretfs::sys::namespace::unshare_mounts().unwrap();
        let mut held = fs::File::open(path.join("a")).unwrap();
        ready.send(files(&path).len()).unwrap();
        is_gone.recv().unwrap();
        let mut text = String::new();
        held.read_to_string(&mut text).unwrap();
        (text, names(&path))
    });
    assert_eq!(is_ready.recv().unwrap(), 1);
    mounter.unpublish(&target, false).unwrap();
    gone.send(()).unwrap();
    let (held, left) = other.join().unwrap();
    assert_eq!(held, "\0".repeat(6), "a held descriptor reads zeros");
    assert_eq!(left, [] as [&str; 0]);
}

#[test]
fn hundreds_of_files_with_long_names_fit_and_change() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("t");
    let name = |n: usize| format!("{n:03}{}/{}", "x".repeat(240), "y".repeat(100));
    let set = |from: usize, text: &str| {
        let paths: Vec<String> = (from..from + 200).map(name).collect();
        let rows: Vec<(&str, &str)> = paths.iter().map(|path| (path.as_str(), text)).collect();
        snapshot(from as u64 + 1, &rows)
    };
    let mut options = options("v");
    options.files_limit = 200;
    let mut volume = tmpfs().publish(&target, &set(0, "1"), &options).unwrap();
    let mut now = Mono::from_nanos(1);
    for from in 1..5 {
        assert!(volume.replace(&set(from, "2")).unwrap(), "{from}");
        now = now.after(limits::OLD_GENERATION);
        volume.sweep(now);
    }
    let shown: BTreeMap<_, _> = files(target.as_path());
    assert_eq!(shown.len(), 200);
    assert!(shown.contains_key(&name(203)) && !shown.contains_key(&name(3)));
}

/// Two threads cannot both hold the volume, but a [`Mounted`] moves between threads.
#[test]
fn a_mounted_volume_moves_to_another_thread() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("t");
    let mut volume: Box<dyn Mounted> = tmpfs()
        .publish(&target, &snapshot(1, &[("a", "1")]), &options("v"))
        .unwrap();
    let moved = thread::spawn(move || volume.replace(&snapshot(2, &[("a", "2")])));
    assert!(moved.join().unwrap().unwrap());
    assert_eq!(files(target.as_path()), seen(&[("a", "2", 0o400)]));
}

#[test]
fn random_sets_come_back_as_they_were() {
    let sandbox = Sandbox::new();
    let mounter = tmpfs();
    // Files become directories and the other way round.
    let paths = ["a", "a/x", "a/x/y", "b", "b/c", "c", ".env", "d/e/f/g"];
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let target = sandbox.target("t");
        let mut set = |n: u64| {
            let mut rows: BTreeMap<&str, (String, u32)> = BTreeMap::new();
            for path in paths {
                let clashes = rows
                    .keys()
                    .any(|other| path.starts_with(&format!("{other}/")));
                if random.bool() && !clashes {
                    let text = random.u8(b'0'..=b'3') as char;
                    let text = text.to_string().repeat(random.usize(..9000));
                    rows.insert(path, (text, [0o400, 0o444][random.usize(..2)]));
                }
            }
            let files: Vec<_> = rows
                .iter()
                .map(|(path, (text, mode))| (*path, *mode as u16, None, Some(text.as_str())))
                .collect();
            let seen = rows
                .iter()
                .map(|(path, file)| ((*path).to_owned(), file.clone()));
            (snapshot_of(n, &files), seen.collect())
        };
        let (first, mut shown) = set(1);
        let mut volume = mounter.publish(&target, &first, &options("v")).unwrap();
        let mut now = Mono::from_nanos(1);
        for n in 2..20 {
            assert_eq!(files(target.as_path()), shown, "seed {seed}, set {n}");
            let (next, seen) = set(n);
            let changed = volume.replace(&next).unwrap();
            assert_eq!(changed, seen != shown, "seed {seed}, set {n}");
            shown = seen;
            now = now.after(limits::OLD_GENERATION / 2);
            volume.sweep(now);
        }
        volume.sweep(now.after(limits::OLD_GENERATION));
        let dirs = names(target.as_path());
        let generations = dirs
            .iter()
            .filter(|name| layout::generation_of(name).is_some());
        assert_eq!(generations.count(), 1, "seed {seed}: {dirs:?}");
        mounter.unpublish(&target, false).unwrap();
    }
}
