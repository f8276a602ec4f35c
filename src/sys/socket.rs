//! Unix sockets: never with another mode than their final one, and below any path.
//!
//! The kernel takes 107 bytes of path (unix(7)), and a run directory may lie deeper. So the directory is opened, and the socket
//! named below the descriptor: `/proc/self/fd/N/NAME`. Whoever connects by the path itself (the kubelet does) needs one of at most
//! [`PATH_BYTES`].

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder},
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

/// Connections that wait for `accept`; one more is refused with EAGAIN. A kubelet makes one for each call, and on a node that starts there
/// are some hundred calls at once.
const BACKLOG: i32 = 1024;
/// The longest path that connect(2) takes: `sun_path` less its final NUL.
pub const PATH_BYTES: usize = 107;

/// A listener and its name. Dropping it removes the name, if it still leads to this socket and not to another instance's.
#[derive(Debug)]
pub struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl SocketFile {
    /// Binds `path`, in place of a dead socket that may be there; its directory is made if it is not there (0750). Whoever calls
    /// holds the lock that makes it the only one.
    ///
    /// 1. Refuse to replace what is not a socket: somebody else's file.
    /// 2. Bind a temporary name beside it, so that nobody ever connects to a name that does not listen yet.
    /// 3. Rename it into place.
    ///
    /// # Errors
    /// AlreadyExists for a file that is not a socket; those of bind(2) and rename(2).
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                let message = "something that is not a socket is there; move it away";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message)); // 1
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = bind_private(&temporary)?; // 2
        let renamed = fs::symlink_metadata(&temporary)
            .and_then(|found| fs::rename(&temporary, path).map(|()| found)); // 3
        let found = renamed.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (found.dev(), found.ino()),
        })
    }

    /// The listener, non-blocking.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = |found: fs::Metadata| (found.dev(), found.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            let _ = fs::remove_file(&self.path); // a leftover is replaced by the next instance
        }
    }
}

/// A non-blocking listener at `path`, which must not exist, with mode 0600 from the moment it is there.
///
/// # Errors
/// Those of bind(2), EADDRINUSE for one.
pub fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // unix_bind (net/unix/af_unix.c) makes the file with the mode of the socket's own inode
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    let short = Short::of(path)?;
    bind(&socket, &SocketAddrUnix::new(&short.path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// A short path to a socket, as long as this lives.
pub struct Short {
    /// The path.
    pub path: PathBuf,
    _dir: OwnedFd,
}

impl Short {
    /// For `path`, whose directory must be there.
    ///
    /// # Errors
    /// Those of open(2) of the directory.
    pub fn of(path: &Path) -> io::Result<Self> {
        let dir = path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or(OsStr::new(""));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        Ok(Self { path, _dir: dir })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixStream};

    use super::*;

    #[test]
    fn a_socket_lies_below_any_path_and_belongs_to_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let path = deep.join("a.sock");
        let listener = bind_private(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(
            UnixStream::connect(&path).is_err(),
            "the long path itself is refused"
        );
        let _client = UnixStream::connect(Short::of(&path).unwrap().path).unwrap();
        assert!(listener.accept().is_ok());
        let again = bind_private(&path).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_socket_replaces_a_dead_one_and_removes_its_own_name_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for/it/a.sock");
        let first = SocketFile::bind(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()) & 0o027, 0);
        let second = SocketFile::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        assert!(second.listener().accept().is_ok());
        drop(second);
        assert!(fs::symlink_metadata(&path).is_err());
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 0, "no temporary name is left");
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        fs::write(&path, "somebody's").unwrap();
        let refused = SocketFile::bind(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "somebody's");
        let dangling = dir.path().join("b.sock");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert!(SocketFile::bind(&dangling).is_err());
    }
}
