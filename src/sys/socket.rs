//! Unix sockets: never with another mode than their final one, and below any path.
//!
//! The kernel takes 107 bytes of path (unix(7)), and a run directory may lie deeper. So the directory is opened, and the socket
//! named below the descriptor: `/proc/self/fd/N/NAME`.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

/// Connections that wait for `accept`.
const BACKLOG: i32 = 64;

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
    use std::{fs, os::unix::fs::PermissionsExt, os::unix::net::UnixStream};

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
}
