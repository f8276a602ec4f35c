//! Secrets of the engine `kv`, in its two versions.
//!
//! Version 1 has one value and no number for it: a version's name is when we first saw it, and "not modified" is found by comparing.
//!
//! Version 2 numbers its values. A version's name is the number and when it was made: a secret that is deleted with all its versions and made
//! again counts from 1 again. Polling is cheap: the metadata says which version is current, and only another one is read. Where the
//! token may not read metadata the value is read at once, and that is remembered with the login.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Trouble, Vault,
    asked::Asked,
    auth::Login,
    wire::{self, Call, Said},
};
use crate::{
    backend::{Cx, Fetched},
    error::{Code, Error, Result, codes},
    secret::{Content, Object, SecretBytes, Version},
};

/// `data` of an answer of version 2. Holds a secret: no Debug.
#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    metadata: State,
}

/// What is known of one version.
#[derive(Deserialize)]
struct State {
    #[serde(default)]
    version: u64,
    created_time: String,
    #[serde(default)]
    deletion_time: String,
    #[serde(default)]
    destroyed: bool,
}

/// What is known of a secret.
#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(default)]
    current_version: u64,
    #[serde(default)]
    versions: std::collections::BTreeMap<u64, State>,
    #[serde(borrow, default)]
    custom_metadata: Option<&'a RawValue>,
    #[serde(default)]
    updated_time: String,
}

impl State {
    /// The error for a version without a value.
    fn gone(&self, now: jiff::Timestamp) -> Option<&'static Code> {
        let at = self.deletion_time.parse::<jiff::Timestamp>();
        match (self.destroyed, at) {
            (true, _) => Some(&codes::VAULT_DESTROYED),
            (false, Ok(at)) if at <= now => Some(&codes::VAULT_DELETED), // a later one is `delete_version_after`
            (false, _) => None,
        }
    }

    fn name(&self) -> Version {
        Version::new(format!("{} {}", self.version, self.created_time))
    }
}

/// The number and time of a version's name.
fn parts(version: &Version) -> Option<(u64, &str)> {
    let (number, made) = version.as_str().split_once(' ')?;
    Some((number.parse().ok()?, made))
}

/// One request for a secret of version 2.
pub(super) struct Kv2<'a> {
    pub(super) vault: &'a Vault,
    pub(super) login: &'a Login,
    pub(super) asked: &'a Asked,
    /// Of the engine, and of the secret below it.
    pub(super) mount: &'a str,
    pub(super) rest: &'a str,
}

impl Kv2<'_> {
    /// 1. With a value in hand, ask the metadata whether it is still the one.
    /// 2. Read it.
    pub(super) async fn read(&self, cx: &Cx, have: Option<&Object>) -> Result<Fetched, Trouble> {
        if let Some(have) = have
            && let Some(known) = parts(&have.version)
            && self.login.may_read_metadata(&self.asked.path)
            && self.is_current(cx, known).await?
        {
            return Ok(Fetched::NotModified); // 1
        }
        self.value(cx, have).await // 2
    }

    /// Whether the version in hand is still what a read would bring. A `false` may be wrong, a `true` never.
    async fn is_current(&self, cx: &Cx, (number, made): (u64, &str)) -> Result<bool, Trouble> {
        let body = match self.call(cx, "metadata", Vec::new()).await? {
            Said::Good(body) => body,
            Said::Denied => {
                self.login.may_not_read_metadata(&self.asked.path);
                return Ok(false);
            }
            Said::Missing(_) | Said::Refused(_) => return Ok(false),
        };
        let metadata: Metadata<'_> = wire::of_data(&body)?;
        let wanted = self.asked.version.unwrap_or(metadata.current_version);
        let state = metadata.versions.get(&wanted);
        let same = |state: &State| {
            wanted == number && state.created_time == made && state.gone(wall(cx)).is_none()
        };
        Ok(state.is_some_and(same))
    }

    async fn value(&self, cx: &Cx, have: Option<&Object>) -> Result<Fetched, Trouble> {
        let version = self
            .asked
            .version
            .map(|number| ("version", number.to_string()));
        match self.call(cx, "data", version.into_iter().collect()).await? {
            Said::Good(body) => {
                let data: Data<'_> = wire::of_data(&body)?;
                if let Some(code) = data.metadata.gone(wall(cx)) {
                    return Err(self.gone(code, data.metadata.version).into());
                }
                let value = data.data.ok_or_else(|| {
                    Error::new(&codes::BACKEND_CORRUPT).detail("a secret without data")
                })?;
                Ok(current(&data.metadata, value, have))
            }
            Said::Missing(body) => Err(self.missing(cx, &body).into()),
            Said::Denied => Err(super::denied(&self.path("data"))),
            Said::Refused(status) => Err(super::refused(status).into()),
        }
    }

    /// A 404 with metadata is of a version that was deleted or destroyed.
    fn missing(&self, cx: &Cx, body: &SecretBytes) -> Error {
        let found = wire::of_data::<Data<'_>>(body).ok();
        let gone =
            found.and_then(|data| Some((data.metadata.gone(wall(cx))?, data.metadata.version)));
        match (gone, self.asked.version) {
            (Some((code, number)), _) => self.gone(code, number),
            (None, Some(number)) => Error::new(&codes::BACKEND_NOT_FOUND)
                .detail(format!("the store has no version {number} of this secret")),
            (None, None) => Error::new(&codes::BACKEND_NOT_FOUND),
        }
    }

    fn gone(&self, code: &'static Code, number: u64) -> Error {
        let what = match code.name {
            "vault.destroyed" => "destroyed",
            _ => "deleted",
        };
        Error::new(code).detail(format!("version {number} of the secret was {what}"))
    }

    /// The custom metadata, as one object of its own.
    pub(super) async fn custom_metadata(
        &self,
        cx: &Cx,
        have: Option<&Object>,
    ) -> Result<Fetched, Trouble> {
        let body = match self.call(cx, "metadata", Vec::new()).await? {
            Said::Good(body) => body,
            Said::Missing(_) => return Err(Error::new(&codes::BACKEND_NOT_FOUND).into()),
            Said::Denied => return Err(super::denied(&self.path("metadata"))),
            Said::Refused(status) => return Err(super::refused(status).into()),
        };
        let metadata: Metadata<'_> = wire::of_data(&body)?;
        let value = metadata.custom_metadata.map_or("{}", RawValue::get);
        Ok(super::unnumbered(
            cx,
            value.as_bytes(),
            have,
            Some(&metadata.updated_time),
        ))
    }

    /// As the API has it.
    fn path(&self, kind: &str) -> String {
        format!("{}/{kind}/{}", self.mount, self.rest)
    }

    async fn call(&self, cx: &Cx, kind: &str, query: Vec<(&str, String)>) -> Result<Said> {
        let path = self.path(kind);
        let call = Call {
            path: &path,
            query,
            token: Some(self.login.token()),
            ..Call::default()
        };
        self.vault.wire.call(cx, call).await
    }
}

/// The answer as it is to be given. A replica that lags behind may bring an older version than the one in hand: that is no news. (A lower
/// number that was made later is: the secret was made anew.)
fn current(state: &State, value: &RawValue, have: Option<&Object>) -> Fetched {
    let known = have.and_then(|have| parts(&have.version));
    let lags = known.is_some_and(|(number, made)| {
        let [mine, its] = [made, &*state.created_time].map(str::parse::<jiff::Timestamp>);
        state.version < number && matches!((mine, its), (Ok(mine), Ok(its)) if its < mine)
    });
    let version = state.name();
    if lags || have.is_some_and(|have| have.version == version) {
        return Fetched::NotModified;
    }
    Fetched::Object(Object {
        version,
        content: Content::Bytes(Arc::new(SecretBytes::new(value.get().as_bytes().to_vec()))),
        lease: None,
    })
}

fn wall(cx: &Cx) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(cx.clock.wall().as_millis()).unwrap_or_default()
}

/// The value of an answer of version 2.
#[cfg(test)]
pub(super) fn read(body: &SecretBytes) -> Result<SecretBytes> {
    let data: Data<'_> = wire::of_data(body)?;
    let value = data.data.map_or("null", RawValue::get);
    Ok(SecretBytes::new(value.as_bytes().to_vec()))
}
