//! The admin socket: what `status` and `refresh` speak to, and `curl --unix-socket` can.
//!
//! HTTP/1.1 with JSON: `GET /v1/volumes`, `GET /v1/volumes/ID`, `POST /v1/volumes/ID/refresh`, `POST /v1/refresh`; of a node plugin
//! also `GET /v1/node` and `GET /metrics`. Its file is a [`SocketFile`](crate::sys::socket::SocketFile), mode 0600, which whoever serves it holds.

pub mod health;
pub mod http;
pub mod scrape;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    admin::{
        http::{Answers, Reply, json_reply},
        scrape::Scrape,
    },
    clock::Wall,
    error::{Error, Result, codes},
    observe::ready::Readiness,
    path::VolumeId,
    spec::read::shown,
    volume::Volumes,
};

/// Answers at an admin socket.
#[derive(Clone)]
pub struct Admin {
    volumes: Volumes,
    node: Option<Arc<NodeView>>,
}

/// What is to be told of a node plugin, besides its volumes.
pub struct NodeView {
    /// The CSI driver's name.
    pub driver: String,
    /// The node's name.
    pub node: String,
    /// Whether publishes would work.
    pub readiness: Readiness,
    /// Whether the API server is asked at all.
    pub kubernetes: bool,
    /// Where health is served: an address, with the port that was chosen for port 0, or `unix:///PATH`.
    pub http: Option<String>,
    /// What it counts.
    pub scrape: Scrape,
    /// How the configuration is.
    pub config: Box<dyn Fn() -> ConfigState + Send + Sync>,
}

/// How the node's configuration is.
#[derive(Clone, Debug)]
pub struct ConfigState {
    /// Its file.
    pub file: PathBuf,
    /// When what is in force was read.
    pub loaded_at: Wall,
    /// Why the file, as it is now, is not in force.
    pub error: Option<String>,
}

impl Admin {
    /// For these volumes.
    pub fn new(volumes: Volumes) -> Self {
        Self {
            volumes,
            node: None,
        }
    }

    /// And for the plugin that serves them.
    pub fn of_node(mut self, node: NodeView) -> Self {
        self.node = Some(Arc::new(node));
        self
    }

    async fn route(&self, method: &Method, path: &str) -> Result<Value> {
        let segments: Vec<_> = path.trim_matches('/').split('/').collect();
        match (method, segments.as_slice()) {
            (&Method::GET, ["v1", "volumes"]) => Ok(self.all()),
            (&Method::GET, ["v1", "volumes", id]) => self.one(id),
            (&Method::POST, ["v1", "volumes", id, "refresh"]) => {
                let known = VolumeId::parse(id).ok_or_else(|| unknown(id))?;
                self.volumes.refresh(&known).await?;
                self.one(id)
            }
            (&Method::POST, ["v1", "refresh"]) => {
                let answers = self.volumes.refresh_all().await;
                let mut failed = answers
                    .into_iter()
                    .filter_map(|(id, answer)| Some((id, answer.err()?)));
                match failed.next() {
                    Some((id, error)) => Err(error.object(id)),
                    None => Ok(self.all()),
                }
            }
            (&Method::GET, ["v1", "node"]) if self.node.is_some() => Ok(self.node()),
            _ => Err(Error::new(&codes::ADMIN_BAD_REQUEST).detail("no such method and path")),
        }
    }

    fn all(&self) -> Value {
        json!({ "volumes": self.volumes.status() })
    }

    fn one(&self, id: &str) -> Result<Value> {
        let found = self.volumes.status().into_iter();
        let mut found = found.filter(|status| status.id == id);
        found
            .next()
            .map(|status| json!(status))
            .ok_or_else(|| unknown(id))
    }

    fn node(&self) -> Value {
        let Some(node) = &self.node else {
            return Value::Null;
        };
        let objections = node.readiness.objections();
        let config = (node.config)();
        json!({
            "driver": node.driver,
            "node": node.node,
            "version": env!("CARGO_PKG_VERSION"),
            "ready": objections.is_empty(),
            "objections": objections.iter().map(|(part, error)| json!({
                "part": part, "code": error.code().name, "message": error.to_string(), "fix": error.code().fix,
            })).collect::<Vec<_>>(),
            "kubernetes": if node.kubernetes { "auto" } else { "off" },
            "http": node.http,
            "volumes": self.volumes.status().len(),
            "config": { "file": config.file, "loadedAt": config.loaded_at.to_rfc3339(), "error": config.error },
        })
    }
}

#[async_trait]
impl Answers for Admin {
    async fn answer(&self, method: &Method, path: &str) -> Result<Reply> {
        if let (Some(node), &Method::GET, "/metrics") = (&self.node, method, path) {
            return Ok(node.scrape.reply().await);
        }
        let answered = self.route(method, path).await;
        tracing::trace!(ok = answered.is_ok(), "the admin socket was asked");
        Ok(json_reply(StatusCode::OK, &answered?))
    }

    /// A refresh waits for its stores, and only the owner of the socket may ask.
    fn patience(&self) -> Option<Duration> {
        None
    }
}

fn unknown(id: &str) -> Error {
    Error::new(&codes::VOLUME_UNKNOWN).object(shown(id))
}
