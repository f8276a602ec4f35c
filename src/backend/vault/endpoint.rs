//! Any endpoint of a secrets engine, and leases.
//!
//! Whoever has a token may renew the leases that it made, but under the store's default policy not revoke them: only the token itself, and
//! all of them with it. So an answer that may be leased is asked for with a login of its own, and to give the lease back is to end that login. If the
//! answer turns out to have no lease, the login is ended at once and the path is remembered: the next time the shared one will do.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{
    Trouble, Vault,
    asked::{Asked, Verb},
    auth::{self, Login},
    wire::{self, Call, Envelope, Said},
};
use crate::{
    backend::{Cx, Fetched, Want, login::Session as _},
    clock::{Clock, Mono},
    error::{Error, Result, codes},
    limits,
    secret::{Content, Lease, Object, SecretBytes},
};

/// All that renewing and revoking need. Secret.
#[derive(Serialize, Deserialize)]
struct Handle {
    /// "": the answer had no lease of the store, only an end. Then there is no token either.
    lease: String,
    token: String,
    /// The token made this lease and nothing else.
    own: bool,
}

impl Handle {
    fn read(lease: &Lease) -> Result<Self> {
        serde_json::from_slice(lease.handle.expose())
            .map_err(|_| Error::new(&codes::BUG).detail("a lease's handle is not ours"))
    }

    fn written(&self) -> Result<Arc<SecretBytes>> {
        let bytes = serde_json::to_vec(self).map_err(|_| Error::new(&codes::BUG))?;
        Ok(Arc::new(SecretBytes::new(bytes)))
    }

    fn token(&self) -> SecretBytes {
        SecretBytes::new(self.token.as_bytes().to_vec())
    }
}

/// One request for an endpoint.
pub(super) struct Endpoint<'a> {
    pub(super) vault: &'a Arc<Vault>,
    pub(super) login: &'a Arc<Login>,
    pub(super) asked: &'a Asked,
    /// The engine's answers may be leased.
    pub(super) leases: bool,
    pub(super) role: &'a str,
}

impl Endpoint<'_> {
    /// 1. What is leased and lives is current: to ask would make another one.
    /// 2. With a login of its own where there may be a lease.
    /// 3. Ask; a login of its own ends with a failure, and so does whatever it may have made.
    pub(super) async fn ask(&self, cx: &Cx, want: &Want<'_>) -> Result<Fetched, Trouble> {
        if lives(cx, want.have) {
            return Ok(Fetched::NotModified); // 1
        }
        if !self.leases || !self.vault.logs_in() || self.vault.is_known_unleased(&self.asked.path) {
            return self.with(cx, self.login, false, want.have).await;
        }
        let proof = self.vault.proof(cx, want);
        let own = Arc::new(self.vault.log_in(cx, self.role, proof).await?); // 2
        let answer = self.with(cx, &own, true, want.have).await;
        let leased = matches!(&answer, Ok(Fetched::Object(object)) if is_of_the_store(object));
        if !leased {
            if answer.is_ok() {
                self.vault.is_unleased(&self.asked.path);
            }
            self.vault.end(&cx.clock, own); // 3
        }
        answer
    }

    async fn with(
        &self,
        cx: &Cx,
        login: &Login,
        own: bool,
        have: Option<&Object>,
    ) -> Result<Fetched, Trouble> {
        let now = cx.clock.now();
        let call = self.call(&self.asked.path, login)?;
        let body = match self.vault.wire.call(cx, call).await? {
            Said::Good(body) => body,
            Said::Missing(_) => return Err(Error::new(&codes::BACKEND_NOT_FOUND).into()),
            Said::Denied => return Err(super::denied(&self.asked.path)),
            Said::Refused(status) => return Err(super::refused(status).into()),
        };
        let nothing =
            || Error::new(&codes::BACKEND_NOT_FOUND).detail("the endpoint answers without data");
        if body.is_empty() {
            return Err(nothing().into());
        }
        let envelope: Envelope<'_> = wire::parse(body.expose())?;
        let data = envelope.data.ok_or_else(nothing)?;
        let lease = self.lease(cx, now, &envelope, login, own)?;
        if lease.is_none() {
            return Ok(super::unnumbered(cx, data.get().as_bytes(), have, None));
        }
        Ok(Fetched::Object(Object {
            version: super::moment(cx),
            content: Content::Bytes(Arc::new(SecretBytes::new(data.get().as_bytes().to_vec()))),
            lease,
        }))
    }

    pub(super) fn call<'c>(&'c self, path: &'c str, login: &'c Login) -> Result<Call<'c>> {
        let data = self.asked.data.iter().flatten();
        let mut call = Call {
            path,
            token: Some(login.token()),
            ..Call::default()
        };
        match self.asked.verb {
            Verb::Read | Verb::Metadata => {
                call.query = data
                    .map(|(key, value)| match value {
                        Value::String(text) => (&**key, text.clone()),
                        other => (&**key, other.to_string()),
                    })
                    .collect();
            }
            Verb::Write => {
                let body = self.asked.data.clone().unwrap_or_default();
                let body = serde_json::to_vec(&body).map_err(|_| Error::new(&codes::BUG))?;
                call.body = Some(body);
            }
        }
        Ok(call)
    }

    /// The answer's lease; or its end, where it is a certificate or the like that says when it expires.
    fn lease(
        &self,
        cx: &Cx,
        asked_at: Mono,
        envelope: &Envelope<'_>,
        login: &Login,
        own: bool,
    ) -> Result<Option<Lease>> {
        let id = envelope.lease_id.as_deref().unwrap_or_default();
        let life = auth::life(envelope.lease_duration.unwrap_or(0));
        let ((id, Some(life)), false) = ((id, life), id.is_empty()) else {
            return self.expiry(cx, envelope.data).map(end_only).transpose();
        };
        let token = std::str::from_utf8(login.token().expose()).unwrap_or_default();
        let handle = Handle {
            lease: id.to_owned(),
            token: token.to_owned(),
            own,
        };
        Ok(Some(Lease {
            expires_at: asked_at.after(life).min(login.expires_at()),
            renewable: envelope.renewable.unwrap_or(false),
            handle: handle.written()?,
        }))
    }

    /// `expiration`, in seconds of 1970, of what a write has made.
    fn expiry(&self, cx: &Cx, data: Option<&RawValue>) -> Option<Mono> {
        #[derive(Deserialize)]
        struct Told {
            expiration: Option<i64>,
        }
        if self.asked.verb != Verb::Write {
            return None;
        }
        let told: Told = serde_json::from_str(data?.get()).ok()?;
        let at = told.expiration?.checked_mul(1000)?;
        let left = at.checked_sub(cx.clock.wall().as_millis())?;
        let left = Duration::from_millis(u64::try_from(left).ok()?);
        Some(cx.clock.now().after(left))
    }
}

/// Whether what is in hand is leased, and lives.
pub(super) fn lives(cx: &Cx, have: Option<&Object>) -> bool {
    let lease = have.and_then(|have| have.lease.as_ref());
    lease.is_some_and(|lease| lease.expires_at > cx.clock.now())
}

/// For what ends by itself, and is no lease of the store.
pub(super) fn end_only(expires_at: Mono) -> Result<Lease> {
    let handle = Handle {
        lease: String::new(),
        token: String::new(),
        own: false,
    };
    Ok(Lease {
        expires_at,
        renewable: false,
        handle: handle.written()?,
    })
}

/// Whether an answer has a lease that the store knows of, and not only an end.
fn is_of_the_store(object: &Object) -> bool {
    let handle = object.lease.as_ref().map(Handle::read);
    matches!(handle, Some(Ok(handle)) if !handle.lease.is_empty())
}

impl Vault {
    /// Prolongs a lease, its login first.
    pub(super) async fn renew_lease(&self, cx: &Cx, lease: &Lease) -> Result<Lease> {
        let handle = Handle::read(lease)?;
        let token = handle.token();
        let mut until = None;
        if handle.own {
            until = self.renew_token(cx, &token).await?;
        }
        let now = cx.clock.now();
        let body = serde_json::json!({"lease_id": handle.lease});
        let call = Call {
            path: "sys/leases/renew",
            token: Some(&token),
            body: Some(body.to_string().into_bytes()),
            ..Call::default()
        };
        match self.wire.call(cx, call).await? {
            Said::Good(body) => {
                let envelope: Envelope<'_> = wire::parse(body.expose())?;
                let life = auth::life(envelope.lease_duration.unwrap_or(0)).unwrap_or_default();
                let expires_at = now.after(life);
                Ok(Lease {
                    expires_at: until.map_or(expires_at, |until| expires_at.min(until)),
                    renewable: envelope.renewable.unwrap_or(false),
                    handle: lease.handle.clone(),
                })
            }
            Said::Denied => Err(Error::new(&codes::BACKEND_PERMISSION_DENIED)
                .detail("the store does not prolong the lease")),
            Said::Missing(_) | Said::Refused(_) => Err(Error::new(&codes::BACKEND_NOT_FOUND)
                .detail("the store does not know the lease, or does not prolong it")),
        }
    }

    /// When the token that made a lease now dies; `None`: never, or not known.
    async fn renew_token(&self, cx: &Cx, token: &SecretBytes) -> Result<Option<Mono>> {
        let now = cx.clock.now();
        let call = Call::about("auth/token/renew-self", token);
        let Said::Good(body) = self.wire.call(cx, call).await? else {
            return Ok(None); // a token that cannot be renewed; a dead one the lease itself will tell
        };
        let envelope: Envelope<'_> = wire::parse(body.expose())?;
        let life = envelope
            .auth
            .map(|auth| auth::life(auth.lease_duration).unwrap_or_default());
        Ok(life.map(|life| now.after(life)))
    }

    /// Gives a lease back. A lease and a token that the store does not know are gone already.
    pub(super) async fn revoke_lease(&self, cx: &Cx, lease: &Lease) -> Result<()> {
        let handle = Handle::read(lease)?;
        let token = handle.token();
        if handle.own {
            return self.revoke_self(cx, &token).await;
        }
        if handle.lease.is_empty() {
            return Ok(());
        }
        let body = serde_json::json!({"lease_id": handle.lease});
        let call = Call {
            path: "sys/leases/revoke",
            token: Some(&token),
            body: Some(body.to_string().into_bytes()),
            ..Call::default()
        };
        match self.wire.call(cx, call).await? {
            Said::Good(_) | Said::Missing(_) | Said::Refused(_) => Ok(()),
            Said::Denied => {
                let dead = self.is_dead(cx, Arc::new(token)).await?;
                let denied = || {
                    Error::new(&codes::BACKEND_PERMISSION_DENIED)
                    .detail("the token may not revoke its leases (`sys/leases/revoke`): they end by themselves")
                };
                if dead { Ok(()) } else { Err(denied()) }
            }
        }
    }

    /// Ends a login that is of no more use, without making anybody wait.
    pub(super) fn end(self: &Arc<Self>, clock: &Arc<dyn Clock>, login: Arc<Login>) {
        let (vault, cx) = (self.clone(), super::apart(clock));
        tokio::spawn(async move {
            let _ = vault.revoke_self(&cx, login.token()).await; // else it ends by itself
        });
    }

    fn is_known_unleased(&self, path: &str) -> bool {
        self.unleased().contains(path)
    }

    fn is_unleased(&self, path: &str) {
        let mut known = self.unleased();
        if known.len() < limits::MOUNTS_KNOWN {
            known.insert(path.into());
        }
    }
}
