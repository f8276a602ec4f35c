//! HTTP/1.1 for a handful of clients: what the admin socket and the health checks are served with.
//!
//! Everything that a client could make big or slow is bounded: the head, the body (which is read and thrown away), the time
//! until a request is there, and the number of connections. Beyond that number they wait unanswered in the kernel's queue, where only the
//! owner may connect. **Where everybody may, one is closed for the new one: the oldest of the address that has most**. Else connections that
//! say nothing, or a pod that opens them as fast as it can, would keep the kubelet's own check from its answer until it restarts us.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::AbortHandle,
};

use crate::{
    error::{Error, ErrorKind, Result, codes},
    limits,
};

/// An answer.
pub type Reply = Response<Full<Bytes>>;

/// Who answers.
#[async_trait]
pub trait Answers: Clone + Send + Sync + 'static {
    /// The answer; an error becomes one.
    async fn answer(&self, method: &Method, path: &str) -> Result<Reply>;
    /// Longest time that one connection may take, where everybody may connect; `None` where only the owner may.
    fn patience(&self) -> Option<Duration>;
}

/// Where clients come in.
pub enum Listener {
    /// At an address.
    Tcp(TcpListener),
    /// At a socket file.
    Unix(UnixListener),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Listener {
    /// For a non-blocking listener at an address. Call it inside a runtime.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        TcpListener::from_std(listener).map(Self::Tcp)
    }

    /// For a non-blocking listener at a file, which its owner keeps. Call it inside a runtime.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn unix(listener: &std::os::unix::net::UnixListener) -> io::Result<Self> {
        let listener = listener.try_clone()?;
        UnixListener::from_std(listener).map(Self::Unix)
    }

    async fn accept(&self) -> io::Result<(Box<dyn Stream>, Peer)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                (Box::new(stream), Some(host(address.ip())))
            }
            Self::Unix(listener) => (Box::new(listener.accept().await?.0), None),
        })
    }
}

/// Whose connections are counted together; `None` at a socket file.
type Peer = Option<IpAddr>;

/// One host's addresses as one: an IPv6 host has all of its /64.
fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX)).into(),
        four @ IpAddr::V4(_) => four,
    }
}

/// Serves until the future is dropped; connections that are open then end by themselves.
pub async fn serve(listener: Listener, answers: impl Answers) -> Infallible {
    match answers.patience() {
        None => serve_owner(&listener, answers).await,
        Some(patience) => serve_all(&listener, answers, patience).await,
    }
}

async fn serve_owner(listener: &Listener, answers: impl Answers) -> Infallible {
    let free = Arc::new(Semaphore::new(limits::HTTP_CONNECTIONS));
    loop {
        let Ok(place) = free.clone().acquire_owned().await else {
            return std::future::pending().await; // it is never closed
        };
        let ((stream, _), answers) = (accepted(listener).await, answers.clone());
        tokio::spawn(async move {
            let _place = place;
            connection(stream, answers).await;
        });
    }
}

async fn serve_all(listener: &Listener, answers: impl Answers, patience: Duration) -> Infallible {
    let mut crowd = Crowd::default();
    loop {
        let ((stream, peer), answers) = (accepted(listener).await, answers.clone());
        crowd.make_room();
        let served = tokio::spawn(async move {
            // an error: it took too long, and is closed
            let _ = tokio::time::timeout(patience, connection(stream, answers)).await;
        });
        crowd.open.push_back((peer, served.abort_handle()));
    }
}

/// The open connections where everybody may connect, the oldest first.
#[derive(Default)]
struct Crowd {
    open: VecDeque<(Peer, AbortHandle)>,
}

impl Crowd {
    /// For one more. An address that has one connection loses it to another only if all have one.
    fn make_room(&mut self) {
        self.open.retain(|(_, task)| !task.is_finished());
        if self.open.len() < limits::HTTP_CONNECTIONS {
            return;
        }
        let mut of_each: HashMap<Peer, usize> = HashMap::new();
        for (peer, _) in &self.open {
            *of_each.entry(*peer).or_default() += 1;
        }
        let most = of_each.values().max();
        let oldest = self
            .open
            .iter()
            .position(|(peer, _)| of_each.get(peer) == most);
        if let Some((_, task)) = oldest.and_then(|at| self.open.remove(at)) {
            task.abort();
        }
    }
}

async fn accepted(listener: &Listener) -> (Box<dyn Stream>, Peer) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(_) => tokio::time::sleep(limits::ACCEPT_PAUSE).await, // EMFILE: others will close some
        }
    }
}

/// Serves one connection until it ends.
#[doc(hidden)] // public for the fuzz target
pub async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send, answers: impl Answers) {
    let service = service_fn(|request| respond(&answers, request));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP_HEADER)
        .max_buf_size(limits::ADMIN_REQUEST_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if served.is_err() {
        tracing::debug!("an HTTP connection ended early");
    }
}

async fn respond(
    answers: &impl Answers,
    request: Request<Incoming>,
) -> std::result::Result<Reply, Infallible> {
    tracing::trace!("a request by HTTP"); // nothing of it: a client may send anything
    let (head, body) = request.into_parts();
    let body = Limited::new(body, limits::ADMIN_REQUEST_BYTES);
    let bad = |why: &str| Err(Error::new(&codes::ADMIN_BAD_REQUEST).detail(why));
    let result = match tokio::time::timeout(limits::HTTP_BODY, body.collect()).await {
        Ok(Ok(_)) => answers.answer(&head.method, head.uri.path()).await,
        Ok(Err(_)) => bad("the body is broken, or larger than 64 KiB"),
        Err(_) => bad("the body did not come within 10 s"),
    };
    Ok(result.unwrap_or_else(|error| json_reply(status(&error), &error_json(&error))))
}

/// A JSON answer.
pub fn json_reply(status: StatusCode, value: &Value) -> Reply {
    reply(status, "application/json", format!("{value}\n"))
}

/// A text answer.
pub fn text_reply(status: StatusCode, text: String) -> Reply {
    reply(status, "text/plain; charset=utf-8", text)
}

/// An answer of this content type.
pub fn reply(status: StatusCode, kind: &'static str, body: String) -> Reply {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
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
