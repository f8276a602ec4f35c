//! HTTP/1.1 for a handful of clients: what the admin socket and the health checks are served with.
//!
//! Everything that a client could make big or slow is bounded: the head, the body (which is read and thrown away), the time
//! until a request is there, and the number of connections. Beyond that number they wait unanswered in the kernel's queue, where only the
//! owner may connect. **Where everybody may, the oldest connection is closed for the new one**: else a few connections that say nothing
//! would keep the kubelet's own check waiting until it restarts us. A check that is answered at once is never the oldest for long.

use std::{collections::VecDeque, convert::Infallible, io, sync::Arc, time::Duration};

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

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
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
        let (stream, answers) = (accepted(listener).await, answers.clone());
        tokio::spawn(async move {
            let _place = place;
            connection(stream, answers).await;
        });
    }
}

async fn serve_all(listener: &Listener, answers: impl Answers, patience: Duration) -> Infallible {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (stream, answers) = (accepted(listener).await, answers.clone());
        open.retain(|one| !one.is_finished());
        if open.len() >= limits::HTTP_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let served = tokio::spawn(async move {
            // an error: it took too long, and is closed
            let _ = tokio::time::timeout(patience, connection(stream, answers)).await;
        });
        open.push_back(served.abort_handle());
    }
}

async fn accepted(listener: &Listener) -> Box<dyn Stream> {
    loop {
        match listener.accept().await {
            Ok(stream) => return stream,
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
