//! A mount namespace and a directory for one test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
};
use secretfs::{mount::mountinfo::Mounts, path::TargetPath, sys::namespace};

/// The test's own mounts: made in its thread, inherited by threads and children that it starts afterwards, seen by no
/// other test, gone with its threads. The directory is on whatever file system holds temporary files.
pub struct Sandbox {
    _dir: tempfile::TempDir,
    /// As the kernel shows it: without links.
    path: PathBuf,
}

impl Sandbox {
    pub fn new() -> Self {
        namespace::unshare_mounts()
            .expect("tests that mount run as root, or by `unshare -Urm` as another user");
        let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", all).unwrap();
        let dir = tempfile::tempdir().unwrap();
        Self {
            path: dir.path().canonicalize().unwrap(),
            _dir: dir,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new, empty directory to mount at.
    pub fn target(&self, name: &str) -> TargetPath {
        let path = self.path().join(name);
        fs::create_dir_all(&path).unwrap();
        TargetPath::parse(&path).unwrap()
    }

    /// Mounts a tmpfs that is not ours.
    pub fn mount_foreign(&self, at: &Path, source: &str) {
        rustix::mount::mount(source, at, "tmpfs", MountFlags::empty(), None).unwrap();
    }

    /// Unmounts the topmost mount at `at`.
    pub fn unmount(&self, at: &Path) {
        rustix::mount::unmount(at, UnmountFlags::DETACH).unwrap();
    }

    /// All mounts of this thread.
    pub fn mounts(&self) -> Mounts {
        Mounts::parse(&fs::read("/proc/thread-self/mountinfo").unwrap())
    }

    /// Where the mounts below the sandbox are, a line for each.
    pub fn mount_points(&self) -> Vec<PathBuf> {
        let mounts = self.mounts();
        let points = mounts.iter().map(|mount| PathBuf::from(&mount.mount_point));
        points
            .filter(|point| point.starts_with(self.path()))
            .collect()
    }

    /// Where ours are below the sandbox.
    pub fn volumes(&self) -> Vec<PathBuf> {
        let mounts = self.mounts();
        let ours = mounts.iter().filter(|mount| mount.volume().is_some());
        let points = ours.map(|mount| PathBuf::from(&mount.mount_point));
        points
            .filter(|point| point.starts_with(self.path()))
            .collect()
    }

    /// Sources of the mounts at `target`, topmost first.
    pub fn layers(&self, target: &TargetPath) -> Vec<String> {
        let mounts = self.mounts();
        let here = mounts
            .iter()
            .filter(|mount| Path::new(&mount.mount_point) == target.as_path());
        let mut sources: Vec<_> = here
            .map(|mount| mount.source.to_string_lossy().into_owned())
            .collect();
        sources.reverse();
        sources
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for point in self.mount_points().iter().rev() {
            let _ = rustix::mount::unmount(point, UnmountFlags::DETACH);
        }
    }
}

/// A directory as it is below whatever is mounted on it later.
pub struct Below(OwnedFd);

impl Below {
    /// Of a directory on which nothing is mounted yet.
    pub fn of(dir: &Path) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self(rustix::fs::open(dir, flags, Mode::empty()).unwrap())
    }

    /// Names in it.
    pub fn names(&self) -> Vec<String> {
        names_of(self.0.as_fd())
    }
}

fn names_of(dir: impl AsFd) -> Vec<String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, ".", flags, Mode::empty()).unwrap();
    let entries = rustix::fs::Dir::read_from(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name != "." && name != "..").collect();
    names.sort();
    names
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Content and mode of a file.
pub type Seen = BTreeMap<String, (String, u32)>;

/// All files below `dir`, links followed, names of the layout left out. A link that leads nowhere is left out too.
pub fn files(dir: &Path) -> Seen {
    let mut seen = Seen::new();
    let mut dirs = vec![(dir.to_owned(), String::new())];
    while let Some((dir, prefix)) = dirs.pop() {
        for name in names(&dir) {
            if name.starts_with("..") {
                continue;
            }
            let (path, shown) = (dir.join(&name), format!("{prefix}{name}"));
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if metadata.is_dir() {
                dirs.push((path, format!("{shown}/")));
            } else {
                let text = String::from_utf8(fs::read(&path).unwrap()).unwrap();
                seen.insert(shown, (text, metadata.permissions().mode() & 0o7777));
            }
        }
    }
    seen
}

/// Every name below `dir`, without following a link; directories end in `/`.
pub fn everything(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![(dir.to_owned(), String::new())];
    while let Some((dir, prefix)) = dirs.pop() {
        for name in names(&dir) {
            let (path, shown) = (dir.join(&name), format!("{prefix}{name}"));
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                found.insert(format!("{shown}/"));
                dirs.push((path, format!("{shown}/")));
            } else {
                found.insert(shown);
            }
        }
    }
    found
}
