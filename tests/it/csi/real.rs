//! The same on a real mount, below a kubelet's directory that is shared as on a node.

use std::{fs, os::unix::fs::MetadataExt as _, sync::Arc};

use secretfs::{
    mount::{Root, memory::MemoryMounter, tmpfs::TmpfsMounter},
    sys::{fs::RealFs, namespace},
};
use tonic::Code;

use super::{SPEC, Stage, code};
use crate::support::{
    bed::Bed,
    kubelet::{Pod, wait},
    sandbox::Sandbox,
};

/// A plugin whose mounts are real, and which insists on a shared directory.
fn stage(sandbox: &Sandbox) -> Stage {
    let root = Root {
        dir: sandbox.path().join("kubelet"),
        shared: true,
    };
    let mounter = TmpfsMounter::new(Arc::new(RealFs)).below(root.clone());
    let bed = Bed::on(Arc::new(mounter), MemoryMounter::default());
    Stage::of(bed, &root.dir, "node-1")
}

#[test]
fn a_pods_files_are_there_with_its_group_and_go_with_its_directory() {
    let sandbox = Sandbox::new();
    let kubelet_dir = sandbox.path().join("kubelet");
    fs::create_dir(&kubelet_dir).unwrap();
    namespace::make_shared(&kubelet_dir).unwrap();
    wait(async {
        let stage = stage(&sandbox);
        let mut pod = Pod::new("web");
        pod.fs_group = Some(4242);
        let volume = stage.kubelet.volume(&pod, "secrets", SPEC);
        for _ in 0..2 {
            stage.kubelet.publish(&volume).await.unwrap();
            assert_eq!(volume.file("password"), "s3cret");
        }
        let file = fs::metadata(volume.target.join("password")).unwrap();
        assert_eq!((file.gid(), file.mode() & 0o7777), (4242, 0o440));
        let stats = stage.kubelet.stats(&volume).await.unwrap();
        assert!(stats.usage.iter().all(|one| one.used > 0), "{stats:?}");
        stage.kubelet.unpublish(&volume).await.unwrap();
        let parent = volume.target.parent().unwrap();
        assert!(!parent.exists(), "something is left in the pod's directory");
        stage.bed.volumes.shutdown().await;
    });
}

#[test]
fn a_directory_that_is_not_shared_gets_nothing() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path().join("kubelet")).unwrap();
    wait(async {
        let stage = stage(&sandbox);
        let volume = stage.kubelet.volume(&Pod::new("web"), "secrets", SPEC);
        let answer = stage.kubelet.publish(&volume).await;
        assert_eq!(code(&answer), Code::FailedPrecondition);
        let told = answer.unwrap_err();
        assert!(
            told.message().contains("mountPropagation: Bidirectional"),
            "{told}"
        );
        assert!(!volume.target.exists(), "a directory is left");
        stage.bed.volumes.shutdown().await;
    });
}
