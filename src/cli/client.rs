//! The client's side of the admin socket.

use std::{path::Path, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, body::Bytes};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::{
    error::{Error, Result, codes},
    sys::socket::Short,
    volume::VolumeStatus,
};

/// Longest answer: a thousand volumes take about 1 MiB.
const ANSWER_BYTES: usize = 64 << 20;
/// How long a look may take: it waits for nothing but the process.
const LOOK: Duration = Duration::from_secs(5);
/// A refresh waits for its stores; this is longer than one request to a store may take.
const REFRESH: Duration = Duration::from_secs(60);

/// What the socket answers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Volumes { volumes: Vec<VolumeStatus> },
    Volume(Box<VolumeStatus>),
    Failed { error: Failed },
}

#[derive(Deserialize)]
struct Failed {
    code: String,
    message: String,
}

/// A node plugin, as `GET /v1/node` tells it: what is shown of it. The whole is in [`About::all`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// The CSI driver's name.
    pub driver: String,
    /// The node's name.
    pub node: String,
    /// What objects.
    pub objections: Vec<Objection>,
    /// `auto` or `off`.
    pub kubernetes: String,
    /// How its configuration is.
    pub config: ConfigAbout,
    /// The answer as it came.
    #[serde(skip)]
    pub all: serde_json::Value,
}

/// Why publishes would not work.
#[derive(Deserialize)]
pub struct Objection {
    /// Whose objection it is.
    pub part: String,
    /// In words.
    pub message: String,
    /// What to do.
    pub fix: String,
}

/// How a node's configuration is.
#[derive(Deserialize)]
pub struct ConfigAbout {
    /// Its file.
    pub file: String,
    /// Why the file, as it is now, is not in force.
    pub error: Option<String>,
}

/// The node plugin that answers at a socket; `None`: it is not a node plugin's, or nobody answers.
pub async fn node(socket: &Path) -> Option<About> {
    let asked = answer(socket, Method::GET, "/v1/node").await.ok()?;
    let all: serde_json::Value = serde_json::from_slice(&asked).ok()?;
    let about = About::deserialize(&all).ok()?;
    Some(About { all, ..about })
}

/// Asks one socket; the volumes that it answers with.
///
/// # Errors
/// `admin.unreachable` if nobody answers there; else the error that the other side reports, under its own code.
pub async fn ask(socket: &Path, method: Method, path: &str) -> Result<Vec<VolumeStatus>> {
    let body = answer(socket, method, path).await?;
    match serde_json::from_slice(&body) {
        Ok(Answer::Volumes { volumes }) => Ok(volumes),
        Ok(Answer::Volume(volume)) => Ok(vec![*volume]),
        Ok(Answer::Failed { error }) => Err(reported(&error)),
        Err(_) => Err(Error::new(&codes::ADMIN_UNREACHABLE)
            .object(socket.display())
            .detail("the answer is not understood; is it another version?")),
    }
}

async fn answer(socket: &Path, method: Method, path: &str) -> Result<Bytes> {
    let unreachable = || Error::new(&codes::ADMIN_UNREACHABLE).object(socket.display());
    let deadline = if method == Method::GET { LOOK } else { REFRESH };
    match tokio::time::timeout(deadline, exchange(socket, method, path)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(unreachable().source(std::io::Error::other(error.to_string()))),
        Err(_) => Err(unreachable().detail(format_args!(
            "no answer within {} s: is it stopped?",
            deadline.as_secs()
        ))),
    }
}

/// The other side's error, as ours.
fn reported(failed: &Failed) -> Error {
    let code = codes::ALL.iter().find(|code| code.name == failed.code);
    Error::new(code.unwrap_or(&&codes::ADMIN_UNREACHABLE)).detail(&failed.message)
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
) -> std::result::Result<Bytes, Failure> {
    tracing::trace!(socket = %socket.display(), path, "an admin socket is asked");
    let short = Short::of(socket)?;
    let stream = UnixStream::connect(&short.path).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "secretfs")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let body = Limited::new(response.into_body(), ANSWER_BYTES)
        .collect()
        .await?
        .to_bytes();
    driver.abort();
    Ok(body)
}
