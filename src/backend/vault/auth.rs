//! Logs in, and keeps a login alive.
//!
//! Every login is one of six methods of the configuration. Two show the pod's own token (`kubernetes`, `jwt`), the rest is the node's: its
//! certificate, or what is in a file. A login is renewed when about two thirds of its life have passed, and made anew when the store does not
//! prolong it any more.

use std::{
    collections::HashSet,
    io::Read as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use serde_json::json;

use super::{
    Vault,
    mounts::Look,
    settings::Method,
    wire::{self, Auth, Call, Envelope, Said},
};
use crate::{
    backend::{Cx, login::Session},
    clock::Mono,
    error::{Error, Result, codes},
    limits,
    secret::SecretBytes,
};

/// A token of the store and its life.
pub(super) struct Login {
    token: Arc<SecretBytes>,
    expires_at: Mono,
    /// From when it is to be renewed or made anew.
    refresh_at: Mono,
    /// How long it lived when it began.
    life: Option<Duration>,
    renewable: bool,
    /// Paths whose metadata it may not read.
    no_metadata: Mutex<HashSet<Box<str>>>,
    /// Its look at what is mounted where.
    pub(super) look: Look,
}

impl Session for Login {
    fn is_good(&self, now: Mono) -> bool {
        now < self.refresh_at
    }

    fn expires_at(&self) -> Mono {
        self.expires_at
    }
}

const NEVER: Mono = Mono::from_nanos(u64::MAX);

impl Login {
    /// `life`: `None` is without end.
    fn new(now: Mono, token: Arc<SecretBytes>, life: Option<Duration>, renewable: bool) -> Self {
        let at = |part: Duration| now.after(part);
        let part = 0.6 + 0.1 * fastrand::f64(); // the nodes of a cluster that started together do not renew together
        Self {
            token,
            expires_at: life.map_or(NEVER, at),
            refresh_at: life.map_or(NEVER, |life| at(life.mul_f64(part))),
            life,
            renewable,
            no_metadata: Mutex::new(HashSet::new()),
            look: Look::default(),
        }
    }

    fn of(now: Mono, auth: Auth) -> Self {
        let token = Arc::new(SecretBytes::new(auth.client_token.into_bytes()));
        Self::new(now, token, life(auth.lease_duration), auth.renewable)
    }

    pub(super) fn token(&self) -> &Arc<SecretBytes> {
        &self.token
    }

    pub(super) fn may_read_metadata(&self, path: &str) -> bool {
        let known = self
            .no_metadata
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        !known.contains(path)
    }

    pub(super) fn may_not_read_metadata(&self, path: &str) {
        let mut known = self
            .no_metadata
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.len() < limits::MOUNTS_KNOWN {
            known.insert(path.into());
        }
    }
}

/// Seconds as the store says them; 0 is without end.
pub(super) fn life(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds.min(u64::from(u32::MAX))))
}

/// A secret id that came wrapped, and in what. A wrapping opens once: its content is kept for the next logins.
pub(super) struct Unwrapped {
    wrapping: SecretBytes,
    content: Arc<SecretBytes>,
}

/// The proof of a pod, for the methods that show one.
pub(super) type Proof = Result<SecretBytes>;

impl Vault {
    /// A login in place of one whose life is passing.
    ///
    /// 1. A token file: what is in it now. The same as before is renewed when its time has come.
    /// 2. Renew it; if that no longer gives it a third of its first life, or fails because it is dead, 3.
    /// 3. Log in.
    pub(super) async fn log_in_again(
        &self,
        cx: &Cx,
        before: Option<Arc<Login>>,
        role: &str,
        proof: Proof,
    ) -> Result<Login> {
        if let Method::Token { file } = &self.settings.method {
            return self.token_of(cx, file, before).await; // 1
        }
        if let Some(before) =
            before.filter(|login| login.renewable && login.expires_at > cx.clock.now())
            && let Some(renewed) = self.renew(cx, &before).await?
        {
            return Ok(renewed); // 2
        }
        self.log_in(cx, role, proof).await // 3
    }

    /// Prolongs it. `None`: it is of no more use.
    pub(super) async fn renew(&self, cx: &Cx, login: &Login) -> Result<Option<Login>> {
        let now = cx.clock.now();
        let call = Call::about("auth/token/renew-self", &login.token);
        let Said::Good(body) = self.wire.call(cx, call).await? else {
            return Ok(None);
        };
        let auth = auth_of(&body)?;
        let mut renewed = Login::new(
            now,
            login.token.clone(),
            life(auth.lease_duration),
            auth.renewable,
        );
        let enough = match (login.life, renewed.life) {
            (Some(first), Some(now)) => now >= first / 3,
            (None, None) => true,
            (Some(_), None) => false, // less than a second
            (None, Some(_)) => false,
        };
        renewed.life = login.life.max(renewed.life);
        tracing::trace!(enough, "a login was renewed");
        Ok(enough.then_some(renewed))
    }

    /// A login of its own.
    pub(super) async fn log_in(&self, cx: &Cx, role: &str, proof: Proof) -> Result<Login> {
        let mount = &self.settings.auth_mount;
        let (path, body) = match &self.settings.method {
            Method::Kubernetes { .. } | Method::Jwt { .. } => {
                let jwt = proof?;
                let jwt = std::str::from_utf8(jwt.expose()).map_err(|_| Error::new(&codes::BUG))?;
                let body = match role {
                    "" => json!({"jwt": jwt}),
                    role => json!({"jwt": jwt, "role": role}),
                };
                (format!("auth/{mount}/login"), body)
            }
            Method::Cert { .. } => {
                let body = match role {
                    "" => json!({}),
                    role => json!({"name": role}),
                };
                (format!("auth/{mount}/login"), body)
            }
            Method::AppRole {
                role_id,
                secret_id,
                wrapped,
            } => {
                let mut body = json!({"role_id": role_id});
                if let Some(file) = secret_id {
                    let secret = self.secret_id(cx, file, *wrapped).await?;
                    body["secret_id"] = text(&secret)?.into();
                }
                (format!("auth/{mount}/login"), body)
            }
            Method::Userpass { username, password } => {
                let password = read(password).await?;
                let body = json!({"password": text(&password)?});
                (format!("auth/{mount}/login/{username}"), body)
            }
            Method::Token { file } => return self.token_of(cx, file, None).await,
        };
        let now = cx.clock.now();
        let call = Call {
            path: &path,
            body: Some(body.to_string().into_bytes()),
            ..Call::default()
        };
        match self.wire.call(cx, call).await? {
            Said::Good(body) => Ok(Login::of(now, auth_of(&body)?)),
            Said::Missing(_) => Err(Error::new(&codes::VAULT_LOGIN_REFUSED)
                .detail(format!("no login method is mounted at `auth/{mount}`"))),
            Said::Denied | Said::Refused(_) => {
                let role = if role.is_empty() {
                    String::new()
                } else {
                    format!(" in the role `{role}`")
                };
                let method = self.settings.method.name();
                Err(Error::new(&codes::VAULT_LOGIN_REFUSED).detail(format!(
                    "the store refuses the login by `{method}` at `auth/{mount}`{role}"
                )))
            }
        }
    }

    /// The token in a file, as the store knows it. Whoever writes the file may do so at any time: it is looked at every minute.
    async fn token_of(&self, cx: &Cx, file: &Path, before: Option<Arc<Login>>) -> Result<Login> {
        let now = cx.clock.now();
        let token = read(file).await?;
        let same = before.filter(|before| before.token.same(&token) && before.expires_at > now);
        let mut login = match same {
            None => self.look_up(cx, Arc::new(token)).await?,
            Some(before) => {
                let old = before
                    .life
                    .is_some_and(|life| before.expires_at.since(now) <= life / 3);
                let renewed = match old && before.renewable {
                    true => self.renew(cx, &before).await?,
                    false => None,
                };
                renewed.unwrap_or_else(|| Login {
                    expires_at: before.expires_at,
                    life: before.life,
                    ..Login::new(now, before.token.clone(), None, before.renewable)
                })
            }
        };
        login.refresh_at = login.refresh_at.min(now.after(limits::LOGIN_FILE_LOOK));
        Ok(login)
    }

    async fn look_up(&self, cx: &Cx, token: Arc<SecretBytes>) -> Result<Login> {
        #[derive(Deserialize)]
        struct Told {
            #[serde(default)]
            ttl: u64,
            /// `null`: never.
            #[serde(default)]
            expire_time: Option<String>,
            #[serde(default)]
            renewable: bool,
        }
        let now = cx.clock.now();
        let call = Call {
            path: "auth/token/lookup-self",
            token: Some(&token),
            ..Call::default()
        };
        match self.wire.call(cx, call).await? {
            Said::Good(body) => {
                let told: Told = wire::of_data(&body)?;
                let life = told.expire_time.map(|_| life(told.ttl).unwrap_or_default());
                Ok(Login::new(now, token, life, told.renewable))
            }
            Said::Denied | Said::Missing(_) | Said::Refused(_) => {
                Err(Error::new(&codes::VAULT_TOKEN_REFUSED))
            }
        }
    }

    /// Whether the store does not know a token any more.
    pub(super) async fn is_dead(&self, cx: &Cx, token: Arc<SecretBytes>) -> Result<bool> {
        match self.look_up(cx, token).await {
            Ok(_) => Ok(false),
            Err(error) if *error.code() == codes::VAULT_TOKEN_REFUSED => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Ends a login, and with it all leases that it made. One that the store does not know is over already.
    pub(super) async fn revoke_self(&self, cx: &Cx, token: &SecretBytes) -> Result<()> {
        let call = Call::about("auth/token/revoke-self", token);
        self.wire.call(cx, call).await.map(drop)
    }

    /// The secret id in a file, or in the wrapping that the file holds.
    ///
    /// 1. The same wrapping as before: what was in it.
    /// 2. It must have been made for a secret id of this mount: another one's may hold anything.
    /// 3. Open it. It opens once, so a failure may mean that somebody else has.
    async fn secret_id(&self, cx: &Cx, file: &Path, wrapped: bool) -> Result<Arc<SecretBytes>> {
        let given = read(file).await?;
        if !wrapped {
            return Ok(Arc::new(given));
        }
        if let Some(known) = self
            .unwrapped()
            .as_ref()
            .filter(|known| known.wrapping.same(&given))
        {
            return Ok(known.content.clone()); // 1
        }
        self.made_for_us(cx, &given).await?; // 2
        let call = Call::about("sys/wrapping/unwrap", &given);
        let Said::Good(body) = self.wire.call(cx, call).await? else {
            return Err(Error::new(&codes::VAULT_WRAPPING)); // 3
        };
        #[derive(Deserialize)]
        struct Told {
            secret_id: String,
        }
        let told: Told = wire::of_data(&body)?;
        let content = Arc::new(SecretBytes::new(told.secret_id.into_bytes()));
        *self.unwrapped() = Some(Unwrapped {
            wrapping: given,
            content: content.clone(),
        });
        Ok(content)
    }

    async fn made_for_us(&self, cx: &Cx, wrapping: &SecretBytes) -> Result<()> {
        #[derive(Deserialize)]
        struct Told {
            creation_path: String,
        }
        let call = Call::about("sys/wrapping/lookup", wrapping);
        let Said::Good(body) = self.wire.call(cx, call).await? else {
            return Err(Error::new(&codes::VAULT_WRAPPING));
        };
        let told: Told = wire::of_data(&body)?;
        let begins = format!("auth/{}/role/", self.settings.auth_mount);
        let ends = ["/secret-id", "/custom-secret-id"];
        let path = &told.creation_path;
        match path.starts_with(&begins) && ends.iter().any(|end| path.ends_with(end)) {
            true => Ok(()),
            false => Err(Error::new(&codes::VAULT_WRAPPING)
                .detail("the wrapping was not made for a secret id of this login method")),
        }
    }

    fn unwrapped(&self) -> std::sync::MutexGuard<'_, Option<Unwrapped>> {
        self.unwrapped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn auth_of(body: &SecretBytes) -> Result<Auth> {
    let envelope: Envelope<'_> = wire::parse(body.expose())?;
    envelope.auth.ok_or_else(|| {
        Error::new(&codes::BACKEND_CORRUPT).detail("the store's answer to a login holds none")
    })
}

fn text(secret: &SecretBytes) -> Result<&str> {
    std::str::from_utf8(secret.expose())
        .map_err(|_| Error::new(&codes::VAULT_LOGIN_FILE).detail("the file is not text"))
}

/// What is in a file, without white space at its ends. Read anew each time: such files rotate.
async fn read(file: &Path) -> Result<SecretBytes> {
    let path = file.to_owned();
    let most = limits::BACKEND_LOGIN_FILE_BYTES;
    let bytes = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        let opened = std::fs::File::open(&path)?;
        opened.take(most + 1).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    });
    let bytes = bytes
        .await
        .map_err(|_| Error::new(&codes::BUG).detail("reading a file panicked"))?;
    let wrong = || Error::new(&codes::VAULT_LOGIN_FILE).object(file.display());
    let bytes = bytes.map_err(|error| wrong().source(error))?;
    if bytes.len() as u64 > most {
        return Err(wrong().detail("the file is longer than 64 KiB"));
    }
    let trimmed = bytes.trim_ascii();
    if trimmed.is_empty() {
        return Err(wrong().detail("the file is empty"));
    }
    Ok(SecretBytes::new(trimmed.to_vec()))
}
