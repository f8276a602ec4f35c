//! What a publish is told besides its files: their group, and their SELinux context.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    sync::Arc,
};

use secretfs::{
    error::codes,
    mount::{MountOptions, Mounter as _},
    render::{Known, Snapshot, render},
    secret::{Content, Object, SecretBytes, Version},
    spec::{Place, Setting, parse},
};

use crate::{
    spec::facts,
    support::{
        can_chown,
        faulty::{FaultyFs, KERNELS},
        kubelet_dir::{KubeletDir, making},
        mount_conformance::code,
        snapshots::snapshot,
    },
};

/// What a pod with this `fsGroup` gets of a secret in a directory.
fn of_a_pod(fs_group: u32) -> Snapshot {
    let setting = Setting {
        place: Place::Kubernetes {
            fs_group: Some(fs_group),
        },
        ..Setting::local()
    };
    let text = "files: [{path: d/e/f, from: \"store:a\"}]\n";
    let spec = parse(text, &setting, &facts).unwrap();
    let object = Object {
        version: Version::new("1"),
        content: Content::Bytes(Arc::new(SecretBytes::new(b"1".to_vec()))),
        lease: None,
    };
    let files = render(&spec, &[Known::Object(Arc::new(object))]).unwrap();
    Snapshot {
        files,
        ..snapshot(1, &[])
    }
}

#[test]
fn the_mount_group_becomes_the_files_group() {
    let kubelet = KubeletDir::shared();
    let mounter = kubelet.mounter(true);
    let target = kubelet.target("p");
    let own = rustix::process::getegid().as_raw();
    let look = |path: &str| {
        let metadata = fs::metadata(target.as_path().join(path)).unwrap();
        (metadata.permissions().mode() & 0o7777, metadata.gid())
    };
    let given = mounter.publish(&target, &of_a_pod(12345), &making("v"));
    if can_chown() {
        let mut volume = given.unwrap();
        assert_eq!(look("d/e/f"), (0o440, 12345));
        for dir in ["", "d", "d/e", "..data/."] {
            assert_eq!(
                look(dir),
                (0o755, own),
                "{dir}: whoever is in the group gets there"
            );
        }
        // The same again changes nothing.
        assert!(!volume.replace(&of_a_pod(12345)).unwrap());
    } else {
        // A user namespace without this id: refused, and nothing is left.
        let error = given.err().unwrap();
        assert_eq!(error.code(), &codes::MOUNT_OWNER);
        assert!(error.to_string().contains(":12345"), "{error}");
        assert!(!target.as_path().exists());
        drop(
            mounter
                .publish(&target, &of_a_pod(own), &making("v"))
                .unwrap(),
        );
        assert_eq!(look("d/e/f"), (0o440, own));
    }
}

#[test]
fn the_selinux_context_is_set_exactly_as_given_and_its_absence_sets_nothing() {
    let kubelet = KubeletDir::new();
    let fs = FaultyFs::new(KERNELS[0]);
    let mounter = kubelet.mounter_over(fs.clone(), false);
    let target = kubelet.target("p");
    let publish = |context: Option<&str>| {
        let options = MountOptions {
            context: context.map(str::to_owned),
            ..making("v")
        };
        fs.settings();
        let result = mounter
            .publish(&target, &snapshot(1, &[]), &options)
            .map(drop);
        let settings = fs.settings().into_iter();
        let set: Vec<_> = settings.filter(|one| one.contains("context")).collect();
        (result, set)
    };
    // A comma separates categories; it is no end of an option here, as it would be for mount(8).
    let label = "system_u:object_r:container_file_t:s0:c1,c2";
    fs.pretend_selinux(true);
    let (result, set) = publish(Some(label));
    result.unwrap();
    assert_eq!(set, [format!("context={label}")]);
    mounter.unpublish(&target, true).unwrap();
    assert_eq!(publish(None).1, [] as [&str; 0]);
    mounter.unpublish(&target, true).unwrap();

    fs.pretend_selinux(false);
    let (result, _) = publish(Some(label));
    let error = result.unwrap_err();
    assert_eq!(error.code(), &codes::MOUNT_CONTEXT);
    assert_eq!(error.failed_step(), "set the files' SELinux context");
    assert!(!target.as_path().exists());
    assert_eq!(code(publish(None).0), "ok");
}
