//! The sockets of a node plugin: bound together, before any is served, and removed when it ends.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
};

use crate::{
    admin::http::Listener,
    cli::rundir,
    config::{Config, Listen},
    error::{Error, Result, codes},
    sys::socket::SocketFile,
};

/// All of them. The first to be removed is the one by which the kubelet knows us.
pub struct Doors {
    registration: Option<SocketFile>,
    csi: SocketFile,
    /// `None`: runtimeDir is read-only.
    admin: Option<SocketFile>,
    http: Option<Http>,
}

enum Http {
    Tcp(TcpListener, SocketAddr),
    Unix(SocketFile),
}

impl Doors {
    /// Binds them. Whoever calls holds the node's lock.
    ///
    /// # Errors
    /// `node.io`, naming the first that cannot be.
    pub fn open(config: &Config) -> Result<Self> {
        tracing::trace!(registration = config.registration, "the sockets are bound");
        let http = match &config.http {
            None => None,
            Some(Listen::Tcp(address)) => Some(tcp(*address).map_err(|e| taken(*address, e))?),
            Some(Listen::Unix(path)) => {
                Some(Http::Unix(rundir::bind(path, "bind the http socket")?))
            }
        };
        let admin = admin(&rundir::node_socket(&config.runtime_dir))?;
        let csi = rundir::bind(&config.endpoint, "bind the CSI socket")?;
        // last: the kubelet calls as soon as it sees it
        let registration = config.registration.then(|| {
            let path = config.registration_socket();
            rundir::bind(&path, "bind the registration socket")
        });
        Ok(Self {
            registration: registration.transpose()?,
            csi,
            admin,
            http,
        })
    }

    /// Where the kubelet finds us, if it is to.
    pub fn registration(&self) -> Option<&UnixListener> {
        self.registration.as_ref().map(SocketFile::listener)
    }

    /// The CSI socket.
    pub fn csi(&self) -> &UnixListener {
        self.csi.listener()
    }

    /// Where the CSI socket is, as an address.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.csi.path().display())
    }

    /// The admin socket, if there is one. Call it inside a runtime.
    ///
    /// # Errors
    /// `node.io` if the runtime cannot take it.
    pub fn admin(&self) -> Result<Option<Listener>> {
        self.admin.as_ref().map(rundir::listen).transpose()
    }

    /// Where health is served, if anywhere. Call it inside a runtime.
    ///
    /// # Errors
    /// `node.io` if the runtime cannot take it.
    pub fn http(&self) -> Result<Option<Listener>> {
        match &self.http {
            None => Ok(None),
            Some(Http::Unix(socket)) => rundir::listen(socket).map(Some),
            Some(Http::Tcp(listener, address)) => {
                let listener = listener.try_clone().and_then(Listener::tcp);
                listener.map(Some).map_err(|error| taken(*address, error))
            }
        }
    }

    /// Where health is served, for people: with the port that was chosen for port 0.
    pub fn http_address(&self) -> Option<String> {
        self.http.as_ref().map(|http| match http {
            Http::Tcp(_, address) => address.to_string(),
            Http::Unix(socket) => format!("unix://{}", socket.path().display()),
        })
    }
}

/// The admin socket. Pods are served without it where the directory is read-only: it is for people.
fn admin(path: &Path) -> Result<Option<SocketFile>> {
    match SocketFile::bind(path) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            tracing::warn!("runtimeDir is read-only: no admin socket, and no records of volumes");
            Ok(None)
        }
        Err(error) => Err(Error::new(&codes::NODE_IO)
            .object(path.display())
            .step("bind the admin socket")
            .source(error)),
    }
}

fn tcp(address: SocketAddr) -> io::Result<Http> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok(Http::Tcp(listener, address))
}

fn taken(address: SocketAddr, error: io::Error) -> Error {
    let failed = Error::new(&codes::NODE_IO).object(format_args!("http: {address}"));
    let failed = match error.kind() {
        io::ErrorKind::AddrInUse => {
            failed.detail("another program listens there; choose another address, or \"\" for none")
        }
        _ => failed,
    };
    failed.step("listen").source(error)
}
