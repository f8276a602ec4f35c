//! Answers that are wrapped: the store keeps the secret and gives a token that opens it once.
//!
//! What the file holds is that token and what the store says of it, so that the secret itself is seen by the pod and nobody before. It opens
//! once, so no two volumes share one. It is replaced before it ends, opened or not; one that nobody opened ends by itself.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Trouble, auth,
    endpoint::{self, Endpoint},
    mounts::{Engine, Mount},
    wire::{self, Said},
};
use crate::{
    backend::{Cx, Fetched, Want},
    error::{Error, codes},
    secret::{Content, Object, SecretBytes},
};

#[derive(Deserialize)]
struct Told<'a> {
    #[serde(borrow, default)]
    wrap_info: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Info {
    ttl: u64,
}

impl Endpoint<'_> {
    /// The answer, wrapped for so many seconds. Not of an engine that leases: whoever opens it has the lease, and nobody could give it back.
    pub(super) async fn wrapped(
        &self,
        cx: &Cx,
        want: &Want<'_>,
        mount: &Mount,
        seconds: u64,
    ) -> Result<Fetched, Trouble> {
        if endpoint::lives(cx, want.have) {
            return Ok(Fetched::NotModified);
        }
        if self.leases {
            return Err(Error::new(&codes::SPEC_BAD_REFERENCE)
                .detail("what may be leased is not wrapped: nobody could give its lease back")
                .into());
        }
        let rest = mount.rest(&self.asked.path).unwrap_or_default();
        let path = match mount.engine {
            Engine::Kv2 => format!("{}/data/{rest}", mount.path),
            Engine::Kv1 | Engine::Other { .. } => self.asked.path.to_string(),
        };
        let mut call = self.call(&path, self.login)?;
        let version = self
            .asked
            .version
            .map(|number| ("version", number.to_string()));
        call.query.extend(version);
        call.wrap = Some(seconds);
        let now = cx.clock.now();
        let body = match self.vault.wire.call(cx, call).await? {
            Said::Good(body) => body,
            Said::Missing(_) => return Err(Error::new(&codes::BACKEND_NOT_FOUND).into()),
            Said::Denied => return Err(super::denied(&path)),
            Said::Refused(status) => return Err(super::refused(status).into()),
        };
        let told: Told<'_> = wire::parse(body.expose())?;
        let info = told.wrap_info.ok_or_else(|| {
            Error::new(&codes::BACKEND_CORRUPT).detail("the store's answer is not wrapped")
        })?;
        let ttl = wire::parse::<Info>(info.get().as_bytes())?.ttl;
        let ends = now.after(auth::life(ttl).unwrap_or_default());
        Ok(Fetched::Object(Object {
            version: super::moment(cx),
            content: Content::Bytes(Arc::new(SecretBytes::new(info.get().as_bytes().to_vec()))),
            lease: Some(endpoint::end_only(ends)?),
        }))
    }
}
