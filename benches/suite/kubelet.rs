//! B: the kubelet's AtomicWriter, as small as it can be and still do what it does (Kubernetes `pkg/volume/util/atomic_writer.go`),
//! in a writable tmpfs of its own.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A set of files: name to bytes.
pub type Payload = BTreeMap<String, Vec<u8>>;

/// One volume of the kubelet.
pub struct AtomicWriter {
    target: PathBuf,
    written: u64,
}

impl AtomicWriter {
    /// Mounts a tmpfs on the directory `target`.
    pub fn mount(target: &Path) -> io::Result<Self> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("kubelet", target, "tmpfs", flags, Some(c"mode=0755"))?;
        Ok(Self {
            target: target.to_owned(),
            written: 0,
        })
    }

    /// Unmounts it.
    pub fn unmount(self) -> io::Result<()> {
        Ok(unmount(&self.target, UnmountFlags::DETACH)?)
    }

    /// Replaces all files.
    ///
    /// 1. Read where `..data` leads. 2. Compare all old files; nothing changed: done. 3. Make the new directory and write all
    ///    files. 4. Make the user-visible links that are not there. 5. `symlink ..data_tmp`, rename it to `..data`.
    ///    6. Remove links of names that are gone. 7. Remove the old directory, at once.
    pub fn write(&mut self, payload: &Payload) -> io::Result<()> {
        let data = self.target.join("..data");
        let old = fs::read_link(&data).ok(); // 1
        let old = old.map(|name| self.target.join(name));
        if old.as_ref().is_some_and(|old| same(old, payload)) {
            return Ok(()); // 2
        }
        self.written += 1;
        let name = format!("..2026_11_24_00_00_00.{}", self.written);
        let new = self.target.join(&name);
        fs::create_dir(&new)?; // 3
        fs::set_permissions(&new, Permissions::from_mode(0o755))?;
        for (file, bytes) in payload {
            let path = new.join(file);
            fs::write(&path, bytes)?;
            fs::set_permissions(&path, Permissions::from_mode(0o444))?;
        }
        for file in payload.keys() {
            let link = self.target.join(file);
            if fs::read_link(&link).is_err() {
                symlink(Path::new("..data").join(file), link)?; // 4
            }
        }
        let temporary = self.target.join("..data_tmp");
        symlink(name, &temporary)?;
        fs::rename(temporary, data)?; // 5
        let Some(old) = old else { return Ok(()) };
        for entry in fs::read_dir(&old)? {
            let file = entry?.file_name();
            if !file.to_str().is_some_and(|file| payload.contains_key(file)) {
                fs::remove_file(self.target.join(file))?; // 6
            }
        }
        fs::remove_dir_all(old) // 7
    }
}

fn same(old: &Path, payload: &Payload) -> bool {
    payload
        .iter()
        .all(|(file, bytes)| fs::read(old.join(file)).is_ok_and(|old| old == *bytes))
}
