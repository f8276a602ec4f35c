//! The admin socket: what `status` and `refresh` speak to, and `curl --unix-socket` can.
//!
//! HTTP/1.1 with JSON: `GET /v1/volumes`, `GET /v1/volumes/ID`, `POST /v1/volumes/ID/refresh`, `POST /v1/refresh`. The socket
//! is made with mode 0600 before it is bound (never a moment with another), under a temporary name, and renamed into
//! place. An instance unlinks only its own inode.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::{fs::MetadataExt, net::UnixListener as StdListener},
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::{
    error::{Error, ErrorKind, Result, codes},
    limits,
    path::VolumeId,
    sys::socket::bind_private,
    volume::Volumes,
};

/// A client that sends nothing for this long is dropped.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A bound socket. Dropping it removes the file, if it is still ours.
pub struct AdminSocket {
    listener: StdListener,
    path: PathBuf,
    inode: u64,
}

impl AdminSocket {
    /// Binds `path`, in place of a dead socket that may be there. Whoever calls holds the lock that makes it the only one.
    ///
    /// # Errors
    /// `node.io`, naming the path.
    pub fn bind(path: &Path) -> Result<Self> {
        Self::bind_io(path).map_err(|error| {
            Error::new(&codes::NODE_IO)
                .object(path.display())
                .step("bind the admin socket")
                .source(error)
        })
    }

    fn bind_io(path: &Path) -> io::Result<Self> {
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = bind_private(&temporary)?;
        let inode = fs::metadata(&temporary)?.ino();
        fs::rename(&temporary, path)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode,
        })
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    /// `node.io` if the runtime cannot take the socket.
    pub async fn serve(&self, volumes: Volumes) -> Result<()> {
        let registered = self.listener.try_clone().and_then(UnixListener::from_std);
        let listener = registered.map_err(|error| {
            Error::new(&codes::NODE_IO)
                .object(self.path.display())
                .step("serve the admin socket")
                .source(error)
        })?;
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::task::yield_now().await; // EMFILE: others will close some
                continue;
            };
            let volumes = volumes.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(volumes.clone(), request));
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .max_buf_size(limits::ADMIN_REQUEST_BYTES)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                if served.is_err() {
                    tracing::debug!("admin connection ended early");
                }
            });
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path); // a leftover is replaced by the next instance
        }
    }
}

type Reply = Response<Full<Bytes>>;

async fn answer(volumes: Volumes, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let (head, body) = request.into_parts();
    let drained = Limited::new(body, limits::ADMIN_REQUEST_BYTES)
        .collect()
        .await;
    let result = match drained {
        Ok(_) => route(&volumes, &head.method, head.uri.path()).await,
        Err(_) => {
            Err(Error::new(&codes::ADMIN_BAD_REQUEST).detail("the body is too large or broken"))
        }
    };
    Ok(match result {
        Ok(value) => reply(StatusCode::OK, &value),
        Err(error) => reply(status(&error), &error_json(&error)),
    })
}

async fn route(volumes: &Volumes, method: &Method, path: &str) -> Result<Value> {
    let segments: Vec<_> = path.trim_matches('/').split('/').collect();
    match (method, segments.as_slice()) {
        (&Method::GET, ["v1", "volumes"]) => Ok(json!({ "volumes": volumes.status() })),
        (&Method::GET, ["v1", "volumes", id]) => one(volumes, id),
        (&Method::POST, ["v1", "volumes", id, "refresh"]) => {
            let known = VolumeId::parse(id).ok_or_else(|| unknown(id))?;
            volumes.refresh(&known).await?;
            one(volumes, id)
        }
        (&Method::POST, ["v1", "refresh"]) => {
            let failed = volumes
                .refresh_all()
                .await
                .into_iter()
                .find_map(|(id, answer)| Some((id, answer.err()?)));
            match failed {
                Some((id, error)) => Err(error.object(id)),
                None => Ok(json!({ "volumes": volumes.status() })),
            }
        }
        _ => Err(Error::new(&codes::ADMIN_BAD_REQUEST).detail("no such method and path")),
    }
}

fn one(volumes: &Volumes, id: &str) -> Result<Value> {
    let found = volumes.status().into_iter().find(|status| status.id == id);
    found.map(|status| json!(status)).ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> Error {
    let shown: String = id.chars().take(80).collect();
    Error::new(&codes::VOLUME_UNKNOWN).object(shown)
}

fn reply(status: StatusCode, value: &Value) -> Reply {
    let mut response = Response::new(Full::new(Bytes::from(format!("{value}\n"))));
    *response.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, json);
    response
}

fn error_json(error: &Error) -> Value {
    json!({ "error": { "code": error.code().name, "message": error.to_string(), "fix": error.code().fix } })
}

/// The HTTP edge of the error taxonomy (design section 7).
fn status(error: &Error) -> StatusCode {
    match error.kind() {
        ErrorKind::InvalidSpec => StatusCode::BAD_REQUEST,
        ErrorKind::Conflict | ErrorKind::Busy => StatusCode::CONFLICT,
        ErrorKind::SecretNotFound => StatusCode::NOT_FOUND,
        ErrorKind::Unauthenticated | ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Corrupt => StatusCode::BAD_GATEWAY,
        ErrorKind::Node | ErrorKind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
