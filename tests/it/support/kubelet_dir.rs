//! A kubelet's directory in a sandbox.

use std::{fs, path::PathBuf, sync::Arc};

use secretfs::{
    mount::{MountOptions, Root, tmpfs::TmpfsMounter},
    path::TargetPath,
    sys::{
        fs::{Fs, RealFs},
        namespace,
    },
};

use super::{sandbox::Sandbox, snapshots::options};

/// A kubelet's directory in a sandbox.
pub struct KubeletDir {
    pub sandbox: Sandbox,
    pub dir: PathBuf,
}

impl KubeletDir {
    /// Whose mount is private, as the sandbox's.
    pub fn new() -> Self {
        let sandbox = Sandbox::new();
        let dir = sandbox.path().join("kubelet");
        fs::create_dir(&dir).unwrap();
        Self { sandbox, dir }
    }

    /// Whose mount is shared.
    pub fn shared() -> Self {
        let kubelet = Self::new();
        namespace::make_shared(&kubelet.dir).unwrap();
        kubelet
    }

    pub fn mounter(&self, shared: bool) -> TmpfsMounter {
        self.mounter_over(Arc::new(RealFs), shared)
    }

    pub fn mounter_over(&self, fs: Arc<dyn Fs>, shared: bool) -> TmpfsMounter {
        let dir = self.dir.clone();
        TmpfsMounter::new(fs).below(Root { dir, shared })
    }

    /// A target that is not there, in a directory that is.
    pub fn target(&self, name: &str) -> TargetPath {
        let path = self.dir.join("pods").join(name).join("mount");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        TargetPath::parse(&path).unwrap()
    }

    /// Any path below it.
    pub fn at(&self, below: &str) -> TargetPath {
        TargetPath::parse(&self.dir.join(below)).unwrap()
    }
}

/// Options of the volume `id`, whose target is made by the publish.
pub fn making(id: &str) -> MountOptions {
    MountOptions {
        make_target: true,
        ..options(id)
    }
}
