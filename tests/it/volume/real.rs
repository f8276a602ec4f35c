//! The volume task on what it will stand on: real mounts, in a namespace of the test's own; the machine's clock and threads.

use std::{fs, io::Read as _, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use rustix::mount::MountFlags;
use secretfs::{
    backend::{Backend, registry::Registry},
    caller::Identity,
    clock::{Clock as _, SystemClock},
    error::codes,
    mount::{Mounter, memory::MemoryMounter, tmpfs::TmpfsMounter},
    observe::{audit::Audit, events::Events, metrics::Metrics},
    path::TargetPath,
    render::{Generation, Snapshot},
    source::pool::Rules,
    spec::BackendName,
    sys::fs::RealFs,
    volume::{
        Mounters, Parts, PublishRequest, Restored, Settings, VolumeState, Volumes, record::Records,
    },
};
use tokio::sync::watch;

use crate::support::{
    bed::{Bed, asked, caller, code, request, spec, volume},
    faulty::{FaultyFs, KERNELS},
    sandbox::{Below, Sandbox},
    scripted::Scripted,
};

fn mounter() -> Arc<dyn Mounter> {
    Arc::new(TmpfsMounter::new(Arc::new(RealFs)))
}

fn at(target: &TargetPath, spec: &Arc<secretfs::spec::VolumeSpec>) -> PublishRequest {
    PublishRequest {
        target: target.clone(),
        ..request("v", spec)
    }
}

/// A runtime in the test's own thread, so that its blocking threads are in the sandbox too. Its clock stands.
fn paused() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

fn read(target: &TargetPath, file: &str) -> Option<String> {
    fs::read_to_string(target.as_path().join(file)).ok()
}

#[test]
fn a_secret_becomes_a_file_that_rotates_and_survives_us() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("secrets");
    let runtime = paused();
    runtime.block_on(story(&sandbox, &target));
    assert!(sandbox.layers(&target).is_empty());
    assert!(!target.as_path().exists(), "the directory was to go too");
}

async fn story(sandbox: &Sandbox, target: &TargetPath) {
    let bed = Bed::on(mounter(), MemoryMounter::default());
    bed.a.put("db", "one");
    bed.b
        .put_fields("tls", &[("crt", "cert", None), ("key", "key", None)]);
    let spec = spec(&["db/password < a:db", "/ < b:tls#*"]);
    let published = bed.volumes.publish(at(target, &spec)).await.unwrap();
    assert_eq!(
        (published.generation, published.files),
        (Generation(1), Some(3))
    );
    assert_eq!(sandbox.layers(target), ["secretfs:v"]);
    assert_eq!(read(target, "db/password").unwrap(), "one");
    let mode = fs::metadata(target.as_path().join("key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o444);

    // rotation: the set is swapped, the old one goes later and by itself
    let old = fs::read_link(target.as_path().join("..data")).unwrap();
    bed.a.put("db", "two");
    bed.volumes.refresh(&volume("v")).await.unwrap();
    assert_eq!(read(target, "db/password").unwrap(), "two");
    let still_there = |name: &Path| target.as_path().join(name).exists();
    assert!(still_there(&old), "no time for a slow path walk");
    bed.pass(15).await;
    assert!(!still_there(&old), "nobody swept");
    let status = bed.status("v").unwrap();
    assert_eq!((status.state, status.generation), (VolumeState::Fresh, 2));
    assert!(status.usage.unwrap().bytes > 0);
    assert!(bed.clock.next_sleeper() > Some(bed.clock.now()));

    // another process takes it over, and changes only what changed
    bed.volumes.shutdown().await;
    assert_eq!(read(target, "db/password").unwrap(), "two");
    let next = Bed::on(mounter(), MemoryMounter::default());
    next.a.put("db", "three");
    next.b
        .put_fields("tls", &[("crt", "cert", None), ("key", "key", None)]);
    let adopted = next.volumes.publish(at(target, &spec)).await.unwrap();
    assert!(
        adopted.adopted && adopted.generation == Generation(2),
        "{adopted:?}"
    );
    next.pass(1).await;
    assert_eq!(read(target, "db/password").unwrap(), "three");
    assert_eq!(read(target, "crt").unwrap(), "cert");
    assert_eq!(sandbox.layers(target), ["secretfs:v"], "stacked");

    // somebody unmounts it: nothing is written below
    sandbox.unmount(target.as_path());
    next.a.put("db", "four");
    next.pass(70).await;
    assert_eq!(next.trouble("v").unwrap(), "mount.gone");
    assert_eq!(fs::read_dir(target.as_path()).unwrap().count(), 0);
    next.volumes.publish(at(target, &spec)).await.unwrap();
    next.clock.settle().await;
    assert_eq!(read(target, "db/password").unwrap(), "four");

    next.volumes
        .unpublish(&volume("v"), None, true)
        .await
        .unwrap();
    next.volumes.shutdown().await;
}

/// Publishes, disturbs, unpublishes: what is left of the files for those who hold them, and the answer.
fn end_after(
    disturb: fn(&Sandbox, &TargetPath),
) -> (Sandbox, TargetPath, secretfs::error::Result<()>) {
    let sandbox = Sandbox::new();
    let target = sandbox.target("parent/secrets");
    let runtime = paused();
    let ended = runtime.block_on(async {
        let bed = Bed::on(mounter(), MemoryMounter::default());
        bed.a.put("db", "secret");
        let spec = spec(&["x < a:db"]);
        bed.volumes.publish(at(&target, &spec)).await.unwrap();
        // as another namespace's copy of the mount, and a program's open file
        let root = Below::of(target.as_path());
        let mut held = fs::File::open(target.as_path().join("x")).unwrap();
        disturb(&sandbox, &target);
        bed.clock.settle().await;
        let ended = bed.unpublish_at(&target).await;
        let mut text = String::new();
        held.read_to_string(&mut text).unwrap();
        assert_eq!(text, "\0".repeat(6));
        assert_eq!(root.names(), [] as [&str; 0], "a copy still shows files");
        if ended.is_err() {
            assert_eq!(bed.trouble("v").unwrap(), "mount.foreign");
            sandbox.unmount(target.as_path());
            assert_eq!(fs::read_dir(target.as_path()).unwrap().count(), 0);
            bed.unpublish_at(&target).await.unwrap();
        }
        assert!(bed.volumes.status().is_empty());
        bed.volumes.shutdown().await;
        ended
    });
    (sandbox, target, ended)
}

#[test]
fn gone_means_gone_below_somebody_elses_mount_and_it_is_said() {
    let (sandbox, target, ended) = end_after(|sandbox, target| {
        sandbox.mount_foreign(target.as_path(), "theirs");
    });
    let error = ended.unwrap_err();
    assert_eq!(error.code(), &codes::MOUNT_FOREIGN);
    assert!(error.to_string().contains("emptied"), "{error}");
    assert!(sandbox.layers(&target).is_empty());
}

#[test]
fn gone_means_gone_after_somebody_unmounted_it() {
    let (sandbox, _, ended) = end_after(|sandbox, target| sandbox.unmount(target.as_path()));
    ended.unwrap();
    assert!(sandbox.mount_points().is_empty());
}

#[test]
fn gone_means_gone_after_a_parent_was_renamed() {
    let (sandbox, _, ended) = end_after(|sandbox, _| {
        let at = |name| sandbox.path().join(name);
        fs::rename(at("parent"), at("renamed")).unwrap();
    });
    ended.unwrap();
    assert!(sandbox.mount_points().is_empty());
}

#[test]
fn gone_means_gone_for_a_mount_that_was_made_anew() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("secrets");
    let runtime = paused();
    runtime.block_on(async {
        let bed = Bed::on(mounter(), MemoryMounter::default());
        bed.a.put("db", "secret");
        let spec = spec(&["x < a:db"]);
        bed.volumes.publish(at(&target, &spec)).await.unwrap();
        let first = Below::of(target.as_path());
        sandbox.unmount(target.as_path());
        bed.volumes.publish(at(&target, &spec)).await.unwrap();
        assert!(!first.names().is_empty(), "who has it reads on");
        bed.unpublish_at(&target).await.unwrap();
        assert_eq!(first.names(), [] as [&str; 0]);
        bed.volumes.shutdown().await;
    });
}

#[test]
fn a_local_mount_that_somebody_unmounts_comes_back_with_its_copies() {
    for kernel in [KERNELS[0], KERNELS[3]] {
        let sandbox = Sandbox::new();
        let (target, copy) = (sandbox.target("secrets"), sandbox.target("copy"));
        let runtime = paused();
        runtime.block_on(async {
            let mounter = TmpfsMounter::new(FaultyFs::new(kernel));
            let bed = Bed::on(Arc::new(mounter), MemoryMounter::default());
            bed.a.put("db", "one");
            let spec = spec(&["x < a:db"]);
            let request = PublishRequest {
                caller: caller(Identity::Local { uid: 7 }),
                ..at(&target, &spec)
            };
            bed.volumes.publish(request).await.unwrap();
            rustix::mount::mount_bind(target.as_path(), copy.as_path()).unwrap();

            sandbox.unmount(target.as_path());
            bed.volumes.refresh(&volume("v")).await.unwrap();
            assert_eq!(read(&target, "x").unwrap(), "one");
            assert_eq!(sandbox.layers(&target), ["secretfs:v"]);
            bed.a.put("db", "two");
            bed.volumes.refresh(&volume("v")).await.unwrap();
            assert_eq!(read(&target, "x").unwrap(), "two");
            let same = if kernel.clones_detached { "two" } else { "one" };
            assert_eq!(read(&copy, "x").unwrap(), same, "{}", kernel.name);

            // below something foreign it waits
            sandbox.mount_foreign(target.as_path(), "theirs");
            bed.a.put("db", "three");
            let refreshed = bed.volumes.refresh(&volume("v")).await;
            assert_eq!(code(&refreshed), "mount.gone");
            assert_eq!(bed.status("v").unwrap().state, VolumeState::Lost);
            sandbox.unmount(target.as_path());
            bed.volumes.refresh(&volume("v")).await.unwrap();
            assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
            assert_eq!(read(&target, "x").unwrap(), "three");

            bed.unpublish_at(&target).await.unwrap();
            assert!(sandbox.mount_points().is_empty());
            bed.volumes.shutdown().await;
        });
    }
}

#[test]
fn a_restart_takes_real_mounts_over_by_their_records() {
    let sandbox = Sandbox::new();
    let ids = ["good", "truncated", "gone"];
    let targets = ids.map(|id| sandbox.target(id));
    let runtime = paused();
    runtime.block_on(async {
        let mut bed = Bed::with_records_on(mounter(), MemoryMounter::default());
        bed.a.put("db", "one");
        let asked = |nth: usize| PublishRequest {
            target: targets[nth].clone(),
            ..asked(ids[nth], "files: [{path: x, from: a:db}]")
        };
        for nth in 0..ids.len() {
            bed.volumes.publish(asked(nth)).await.unwrap();
        }
        let held = Below::of(targets[0].as_path());
        bed.restart_on(mounter()).await;
        fs::write(bed.records().join("truncated.json"), "{\"version\":").unwrap();
        sandbox.unmount(targets[2].as_path());
        bed.a.put("db", "two");
        let expect = Restored {
            restored: 1,
            held: 1,
            lost: 1,
            skipped: 1,
        };
        assert_eq!(bed.volumes.restore().await, expect);
        bed.pass(1).await;
        // nobody has called: what has a record rotates, what has none stays, what is gone is said
        assert_eq!(read(&targets[0], "x").unwrap(), "two");
        assert_eq!(read(&targets[1], "x").unwrap(), "one");
        let states = ids.map(|id| bed.status(id).unwrap().state);
        let [fresh, adopted, lost] = [VolumeState::Fresh, VolumeState::Adopted, VolumeState::Lost];
        assert_eq!(states, [fresh, adopted, lost]);
        for (nth, target) in targets.iter().enumerate() {
            let again = bed.volumes.publish(asked(nth)).await.unwrap();
            assert!(again.refused.is_none());
            bed.pass(1).await;
            assert_eq!(read(target, "x").unwrap(), "two");
            assert_eq!(sandbox.layers(target).len(), 1, "stacked");
        }
        for (id, target) in ids.iter().zip(&targets) {
            let target = Some(target.clone());
            bed.volumes
                .unpublish(&volume(id), target, true)
                .await
                .unwrap();
        }
        assert_eq!(held.names(), [] as [&str; 0], "a copy still shows files");
        assert_eq!(fs::read_dir(bed.records()).unwrap().count(), 0);
        assert!(sandbox.mount_points().is_empty());
        bed.volumes.shutdown().await;
    });
}

#[test]
fn a_mount_that_somebody_changed_is_not_answered_ok() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("secrets");
    let runtime = paused();
    runtime.block_on(async {
        let bed = Bed::on(mounter(), MemoryMounter::default());
        bed.a.put("db", "one");
        let spec = spec(&["x < a:db"]);
        let publish = || bed.volumes.publish(at(&target, &spec));
        publish().await.unwrap();
        let remount = |flags| {
            let flags = MountFlags::BIND
                | MountFlags::NOSUID
                | MountFlags::NODEV
                | MountFlags::NOEXEC
                | flags;
            rustix::mount::mount_remount(target.as_path(), flags, c"").unwrap();
        };
        let shown = || (bed.status("v").unwrap().state, bed.trouble("v"));
        let fresh = (VolumeState::Fresh, None);
        assert_eq!(shown(), fresh);
        remount(MountFlags::empty());
        let refused = publish().await.unwrap_err();
        assert!(refused.served && refused.error.to_string().contains("it is writable"));
        assert_eq!(refused.error.code().name, "mount.altered");
        bed.clock.settle().await;
        let altered = (VolumeState::Stale, Some("mount.altered".to_owned()));
        assert_eq!(shown(), altered);
        bed.a.put("db", "two");
        bed.pass(70).await; // a rotation does not mend it
        assert_eq!(shown(), altered);
        assert_eq!(bed.status("v").unwrap().generation, 2);
        remount(MountFlags::RDONLY);
        publish().await.unwrap();
        bed.clock.settle().await;
        assert_eq!(shown(), fresh);

        sandbox.mount_foreign(target.as_path(), "other");
        for _ in 0..2 {
            let refused = publish().await.unwrap_err();
            assert_eq!(refused.error.code().name, "mount.foreign");
            bed.clock.settle().await;
            let foreign = (VolumeState::Lost, Some("mount.foreign".to_owned()));
            assert_eq!(shown(), foreign);
        }
        sandbox.unmount(target.as_path());
        publish().await.unwrap();
        bed.clock.settle().await;
        assert_eq!(shown(), fresh);

        rustix::mount::mount_bind(target.as_path(), target.as_path()).unwrap();
        let refused = publish().await.unwrap_err();
        assert!(
            refused.error.to_string().contains("another mount lies"),
            "{}",
            refused.error
        );
        sandbox.unmount(target.as_path());
        publish().await.unwrap();
        bed.unpublish_at(&target).await.unwrap();
        assert!(sandbox.mount_points().is_empty());
        bed.volumes.shutdown().await;
    });
}

/// No clock of ours here: the machine's own, and its threads. Nothing is slept for; a follower says when it is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_the_machines_clock_and_threads_a_push_reaches_every_volume() {
    let (a, mounts) = (Scripted::default(), MemoryMounter::default());
    a.script("db", |script| script.pushes = true);
    a.put("db", "0");
    let store: Arc<dyn Backend> = Arc::new(a.clone());
    let by_name = [(BackendName::parse("a").unwrap(), store)].into();
    let volumes = Volumes::start(Parts {
        clock: Arc::new(SystemClock),
        settings: watch::channel(Arc::new(Settings {
            registry: Registry::new(by_name, 0),
            ..Settings::default()
        }))
        .1,
        mounters: Mounters {
            tmpfs: Arc::new(mounts.clone()),
        },
        rules: Rules::default(),
        records: Records::off(),
        events: Events::off(),
        audit: Audit::off(),
        metrics: Metrics::default(),
    });
    let spec = spec(&["x < a:db"]);
    let ids: Vec<String> = (0..16).map(|n| format!("v{n}")).collect();
    let mut follows = Vec::new();
    for id in &ids {
        volumes.publish(request(id, &spec)).await.unwrap();
        follows.push(volumes.follow(&volume(id)).await.unwrap());
    }
    for round in 1..=5 {
        a.put("db", &round.to_string());
        for follow in &mut follows {
            let shows = |snapshot: &Option<Arc<Snapshot>>| {
                let snapshot = snapshot.as_ref().unwrap();
                snapshot.versions[0].as_ref().unwrap().as_str() == (round + 1).to_string()
            };
            follow.wait_for(shows).await.unwrap();
        }
    }
    for id in &ids {
        volumes.unpublish(&volume(id), None, true).await.unwrap();
        assert!(mounts.shown(&crate::support::bed::target(id)).is_none());
    }
    volumes.shutdown().await;
    assert_eq!((a.watchers("db"), a.running(), volumes.panics()), (0, 0, 0));
}
