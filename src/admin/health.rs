//! `/healthz`, `/readyz` and `/metrics`, for whoever restarts the plugin, whoever waits for it, and whoever watches it.
//!
//! `/healthz` answers as long as the process does, and depends on nothing outside of it: a restart mends no API server. `/readyz` is
//! 200 when publishes would work, else 503 with each objection and what to do about it.
//! `/metrics` waits for no volume and no store either.

use std::{fmt::Write as _, time::Duration};

use async_trait::async_trait;
use hyper::{Method, StatusCode};

use super::{
    http::{Answers, Reply, text_reply},
    scrape::Scrape,
};
use crate::{error::Result, limits, observe::ready::Readiness};

/// Answers the health checks.
#[derive(Clone)]
pub struct Health {
    readiness: Readiness,
    scrape: Scrape,
}

impl Health {
    /// Of this readiness, and these metrics.
    pub fn new(readiness: Readiness, scrape: Scrape) -> Self {
        Self { readiness, scrape }
    }
}

#[async_trait]
impl Answers for Health {
    async fn answer(&self, method: &Method, path: &str) -> Result<Reply> {
        let (status, text) = match (method, path) {
            (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
            (&Method::GET | &Method::HEAD, "/readyz") => readyz(&self.readiness),
            (&Method::GET | &Method::HEAD, "/metrics") => return Ok(self.scrape.reply().await),
            _ => (
                StatusCode::NOT_FOUND,
                "there are: GET /healthz, GET /metrics, GET /readyz\n".to_owned(),
            ),
        };
        tracing::trace!(status = status.as_u16(), "a health check was answered");
        Ok(text_reply(status, text))
    }

    fn patience(&self) -> Option<Duration> {
        Some(limits::HTTP_CONNECTION)
    }
}

fn readyz(readiness: &Readiness) -> (StatusCode, String) {
    let objections = readiness.objections();
    if objections.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let mut text = String::new();
    for (part, error) in objections {
        let code = error.code();
        let _ = writeln!(text, "{part}: {error}\n  {}  [{}]", code.fix, code.name);
    }
    (StatusCode::SERVICE_UNAVAILABLE, text)
}
