//! Where `secretfs mount` keeps its lock and its admin socket, where `status` looks for them, and how a command's sockets are bound.
//!
//! One pair of files per target: `mount-<id>.lock`, held as long as the process lives, and `mount-<id>.sock`. No secrets.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{
    admin::http::Listener,
    config::Env,
    error::{Error, Result, codes},
    path::VolumeId,
    sys::{process, socket::SocketFile},
};

/// Where the node plugin's admin socket lies, unless its configuration says otherwise.
const NODE_RUNTIME_DIR: &str = "/run/secretfs";

/// The directories in which a `secretfs mount` of this user may have put its socket; the first usable one is where it does.
pub fn candidates(env: &Env) -> Vec<PathBuf> {
    // a user namespace's root is not the machine's: both may come here, in one TMPDIR
    let uid = process::outer_uid();
    let mut all = Vec::new();
    all.extend(env.runtime_dir.as_ref().map(|dir| dir.join("secretfs")));
    all.push(PathBuf::from(format!("/run/user/{uid}/secretfs")));
    all.push(env.tmp.join(format!("secretfs-{uid}")));
    all
}

/// The directory for this process, made if it is not there.
///
/// # Errors
/// `node.io`: none can be used; the message is about the last one.
pub fn own(env: &Env) -> Result<PathBuf> {
    let mut last = None;
    for dir in candidates(env) {
        match usable(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) => last = Some((dir, error)),
        }
    }
    let (dir, error) = last.unwrap_or_else(|| (PathBuf::new(), io::Error::other("no candidate")));
    Err(Error::new(&codes::NODE_IO)
        .object(dir.display())
        .step("use it for the admin socket")
        .source(error))
}

/// Makes it 0700, or sees that it is ours and nobody else can write to it: in a shared TMPDIR anybody may have made it.
pub fn usable(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = dir.symlink_metadata()?;
    let ours = found.is_dir() && found.uid() == process::uid() && found.mode() & 0o022 == 0;
    if ours {
        Ok(())
    } else {
        Err(io::Error::other(
            "it belongs to, or can be written by, another user",
        ))
    }
}

/// Binds a socket file; `step` says what for.
///
/// # Errors
/// `node.io`, naming the path.
pub fn bind(path: &Path, step: &'static str) -> Result<SocketFile> {
    tracing::trace!(path = %path.display(), step, "a socket");
    SocketFile::bind(path).map_err(|error| {
        Error::new(&codes::NODE_IO)
            .object(path.display())
            .step(step)
            .source(error)
    })
}

/// What is to be served with HTTP at a socket file. Call it inside a runtime.
///
/// # Errors
/// `node.io` if the runtime cannot take the socket.
pub fn listen(socket: &SocketFile) -> Result<Listener> {
    Listener::unix(socket.listener()).map_err(|error| {
        Error::new(&codes::NODE_IO)
            .object(socket.path().display())
            .step("serve the socket")
            .source(error)
    })
}

/// The admin socket of a volume in `dir`.
pub fn socket(dir: &Path, id: &VolumeId) -> PathBuf {
    dir.join(format!("mount-{id}.sock"))
}

/// Whose admin socket it is: the id of the volume of a `secretfs mount`.
pub fn volume_of(socket: &Path) -> Option<&str> {
    let name = socket.file_name()?.to_str()?;
    name.strip_prefix("mount-")?.strip_suffix(".sock")
}

/// Held as long as this process serves a target.
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of a volume.
    ///
    /// # Errors
    /// `mount.held` if another process has it.
    pub fn take(dir: &Path, id: &VolumeId, target: impl std::fmt::Display) -> Result<Self> {
        let path = dir.join(format!("mount-{id}.lock"));
        let io = |error: io::Error| {
            Error::new(&codes::NODE_IO)
                .object(path.display())
                .step("lock it")
                .source(error)
        };
        loop {
            let open = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(&path);
            let file = open.map_err(io)?;
            if !process::try_lock(&file).map_err(io)? {
                return Err(Error::new(&codes::MOUNT_HELD).object(target));
            }
            // a former holder may have removed the name between our open and our lock: then we hold nothing
            let same = file.metadata().map_err(io)?.ino();
            if path
                .symlink_metadata()
                .is_ok_and(|found| found.ino() == same)
            {
                return Ok(Self { _file: file, path });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // while it is still locked; see `take`
    }
}

/// Every admin socket that this user could speak to.
pub fn sockets(env: &Env) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in candidates(env) {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        let names = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        found.extend(names.filter(|path| path.extension().is_some_and(|end| end == "sock")));
    }
    found.sort();
    found.extend(Some(default_node_socket()).filter(|path| path.exists()));
    found
}

/// The node plugin's admin socket, unless its configuration says otherwise.
pub fn default_node_socket() -> PathBuf {
    node_socket(Path::new(NODE_RUNTIME_DIR))
}

/// The node plugin's admin socket.
pub fn node_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("admin.sock")
}
