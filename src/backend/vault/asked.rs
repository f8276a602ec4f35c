//! A reference, read as what it asks of a Vault. Pure.
//!
//! A path is written as the `vault kv` command takes it: the mount, then the secret's name, without the `data/` that version 2 of KV has in
//! between. So each secret has one name, in references, in the node's policy and in `allowedPaths`; and what is sent has the segments of that
//! name, in their order, with one `data` or `metadata` of ours after the mount.

use serde::Deserialize;
use serde_json::Value;

use super::settings::Settings;
use crate::{
    error::{Code, Error, Result, codes},
    policy::Pattern,
    spec::{ObjectRef, Problem, Span, reference},
};

/// Beginnings of paths that are about logins and the store itself. Such an answer may hold the token we ask with, or make another.
const OURS: &[&str] = &["auth", "sys", "cubbyhole"];

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    pub(super) path: Box<str>,
    /// Of KV version 2.
    pub(super) version: Option<u64>,
    pub(super) verb: Verb,
    /// Named by the reference.
    pub(super) role: Option<Box<str>>,
    /// Parameters of a read, the body of a write: canonical JSON of a mapping.
    pub(super) data: Option<serde_json::Map<String, Value>>,
    /// For how many seconds the answer is wrapped.
    pub(super) wrap: Option<u64>,
}

/// How it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    Read,
    Write,
    /// The custom metadata of a secret of KV version 2.
    Metadata,
}

/// The structured form's part of a reference.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Params {
    method: Option<String>,
    data: Option<serde_json::Map<String, Value>>,
    role: Option<Box<str>>,
    #[serde(rename = "wrapTTL")]
    wrap: Option<u64>,
}

/// Whether `role` can be a role's name.
///
/// # Errors
/// Why not, as a phrase that follows it.
pub(super) fn check_role(role: &str) -> Result<(), &'static str> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    match !role.is_empty() && role.len() <= 128 && role.bytes().all(good) {
        true => Ok(()),
        false => Err("is not a role's name (A-Z, a-z, 0-9, -, _, .; at most 128)"),
    }
}

/// A reference that is none, with what to write instead.
fn bad(message: impl Into<String>, help: &str) -> Problem {
    Problem {
        code: &codes::SPEC_BAD_REFERENCE,
        at: Span::default(),
        field: String::new(),
        message: message.into(),
        help: Some(help.into()),
    }
}

impl Asked {
    /// Reads a reference.
    ///
    /// # Errors
    /// `spec.bad_reference`, `vault.path_not_allowed`.
    pub(super) fn parse(object: &ObjectRef, settings: &Settings) -> Result<Self, Problem> {
        is_a_secrets_path(&object.path)?;
        let params: Params = match &*object.params {
            "" => Params::default(),
            text => serde_json::from_str(text).map_err(|_| {
                bad(
                    "`method`, `data`, `role` or `wrapTTL` is not as it must be",
                    "see docs/backends/vault.md",
                )
            })?,
        };
        let verb = match params.method.as_deref() {
            None | Some("read") => Verb::Read,
            Some("write") => Verb::Write,
            Some("metadata") => Verb::Metadata,
            Some(other) => {
                let message = format!("there is no method `{other}`");
                return Err(bad(message, "use `read`, `write` or `metadata`"));
            }
        };
        let version = object.version.as_deref().map(version).transpose()?;
        if version.is_some() && (verb != Verb::Read || params.data.is_some()) {
            let help = "remove the version, or `method` and `data`";
            return Err(bad("a version goes with a plain read only", help));
        }
        if verb == Verb::Metadata && params.data.is_some() {
            return Err(bad("`method: metadata` has no `data`", "remove `data`"));
        }
        if verb == Verb::Metadata && params.wrap.is_some() {
            return Err(bad("`method: metadata` is not wrapped", "remove `wrapTTL`"));
        }
        if let Some(role) = &params.role {
            may_be_chosen(role, settings)?;
        }
        is_allowed(object, settings)?;
        Ok(Self {
            path: object.path.clone(),
            version,
            verb,
            role: params.role,
            data: params.data,
            wrap: params.wrap,
        })
    }

    /// As the error of a fetch: `check` has said the same before.
    pub(super) fn of(object: &ObjectRef, settings: &Settings) -> Result<Self> {
        Self::parse(object, settings)
            .map_err(|problem| Error::new(problem.code).detail(problem.message))
    }

    /// Nothing but the value at a path.
    pub(super) fn is_plain(&self) -> bool {
        self.verb == Verb::Read && self.data.is_none()
    }
}

fn is_a_secrets_path(path: &str) -> Result<(), Problem> {
    if let Err(refusal) = reference::check_path(path) {
        let help = "write it as `vault kv get` takes it";
        return Err(bad(format!("the path {refusal}"), help));
    }
    let first = path.split('/').next().unwrap_or_default();
    if OURS.contains(&first) {
        return Err(bad(
            format!("`{first}/` is about logins and the store itself, and no secret"),
            "name a path of a secrets engine",
        ));
    }
    Ok(())
}

/// The number of a version of KV.
fn version(text: &str) -> Result<u64, Problem> {
    let digits = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| {
        bad(
            format!("`@{text}` is not a version of KV"),
            "write a number from 1; a name with an `@` in it goes into the structured form, as its `path`",
        )
    })
}

/// Whether a pod may name a role, and this one.
fn may_be_chosen(role: &str, settings: &Settings) -> Result<(), Problem> {
    if !settings.method.is_of_the_pod() {
        let method = settings.method.name();
        let message =
            format!("the login method `{method}` of this backend is the node's, with one role");
        return Err(bad(message, "remove `role`"));
    }
    let named = check_role(role);
    named.map_err(|refusal| {
        bad(
            format!("the role {refusal}"),
            "name a role of the login method",
        )
    })
}

fn is_allowed(object: &ObjectRef, settings: &Settings) -> Result<(), Problem> {
    let covers = |patterns: &Vec<Pattern>| patterns.iter().any(|one| one.covers(&object.path));
    if settings.allowed.as_ref().is_none_or(covers) {
        return Ok(());
    }
    let code: &'static Code = &codes::VAULT_PATH_NOT_ALLOWED;
    let (path, backend) = (object.path.escape_debug(), &object.backend);
    let message = format!("`{path}` is not below `allowedPaths` of the backend `{backend}`");
    Err(Problem {
        code,
        ..bad(message, code.fix)
    })
}
