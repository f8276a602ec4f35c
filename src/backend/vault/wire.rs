//! One call of the API, and what its status means.
//!
//! What a caller has to tell apart is a [`Said`]: an answer, "there is none", "you may not", "that is no request of mine". All else is an error:
//! who may ask has nothing to do with it. A 5xx is followed by a look at `sys/health`, which needs no token: it says why.

use hyper::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    backend::{
        Cx,
        http::{self, Answer, Ask, Client},
    },
    error::{Error, Result, codes},
    secret::SecretBytes,
};

/// A call.
#[derive(Default)]
pub(super) struct Call<'a> {
    /// Below `/v1/`, as it is; encoded here.
    pub(super) path: &'a str,
    /// Names and values of the query.
    pub(super) query: Vec<(&'a str, String)>,
    /// As whom.
    pub(super) token: Option<&'a SecretBytes>,
    /// JSON to post. `None`: a GET.
    pub(super) body: Option<Vec<u8>>,
    /// Wrap the answer, for so many seconds.
    pub(super) wrap: Option<u64>,
}

/// What an answer means.
pub(super) enum Said {
    /// 2xx.
    Good(SecretBytes),
    /// 404 by a Vault, whose body may say more.
    Missing(SecretBytes),
    /// 403, or 401: the path, or the token.
    Denied,
    /// 400 and its like.
    Refused(u16),
}

/// The server.
pub(super) struct Wire {
    client: Client,
    namespace: Option<HeaderValue>,
}

/// The frame of every answer. Holds secrets: no Debug.
#[derive(Deserialize)]
pub(super) struct Envelope<'a> {
    #[serde(borrow, default)]
    pub(super) data: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) lease_id: Option<String>,
    #[serde(default)]
    pub(super) lease_duration: Option<u64>,
    #[serde(default)]
    pub(super) renewable: Option<bool>,
    #[serde(default)]
    pub(super) auth: Option<Auth>,
}

/// What a login brings. Holds a token: no Debug.
#[derive(Deserialize)]
pub(super) struct Auth {
    pub(super) client_token: String,
    pub(super) lease_duration: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

/// Reads an answer's JSON. A parser's own message would show what it stumbled over.
///
/// # Errors
/// `backend.corrupt`.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|_| {
        Error::new(&codes::BACKEND_CORRUPT).detail("the store's answer is not a Vault's")
    })
}

/// The part `data` of an answer.
///
/// # Errors
/// `backend.corrupt`.
pub(super) fn of_data<'a, T: Deserialize<'a>>(body: &'a SecretBytes) -> Result<T> {
    let envelope: Envelope<'a> = parse(body.expose())?;
    parse(envelope.data.map_or("", RawValue::get).as_bytes())
}

/// Whether it is a Vault that says that there is nothing. What stands before it, and has lost it, answers 404 too; that no secret is there
/// would be the wrong thing to make of that.
fn is_vaults(body: &SecretBytes) -> bool {
    #[derive(Deserialize)]
    struct Nothing<'a> {
        #[serde(borrow, default)]
        errors: Option<&'a RawValue>,
        #[serde(borrow, default)]
        data: Option<&'a RawValue>,
    }
    let read: Result<Nothing<'_>> = parse(body.expose());
    read.is_ok_and(|said| said.errors.is_some() || said.data.is_some())
}

impl<'a> Call<'a> {
    /// A POST whose only parameter is the token.
    pub(super) fn about(path: &'a str, token: &'a SecretBytes) -> Self {
        Self {
            path,
            token: Some(token),
            body: Some(b"{}".to_vec()),
            ..Self::default()
        }
    }
}

impl Wire {
    pub(super) fn new(settings: http::Settings, namespace: Option<&str>) -> Self {
        Self {
            client: Client::new(settings),
            namespace: namespace.and_then(|text| HeaderValue::from_str(text).ok()),
        }
    }

    /// # Errors
    /// Those of [`Client::send`], and what a status says of the server: `backend.throttled`, `backend.server_error`, `backend.corrupt`,
    /// `vault.sealed`, `vault.standby`, `vault.no_leader`, `vault.uninitialized`.
    pub(super) async fn call(&self, cx: &Cx, call: Call<'_>) -> Result<Said> {
        let mut headers = HeaderMap::new();
        let name = HeaderName::from_static;
        headers.insert(name("x-vault-request"), HeaderValue::from_static("true"));
        if let Some(namespace) = &self.namespace {
            headers.insert(name("x-vault-namespace"), namespace.clone());
        }
        if let Some(token) = call.token {
            headers.insert(name("x-vault-token"), http::secret_header(token.expose())?);
        }
        if let Some(seconds) = call.wrap {
            headers.insert(name("x-vault-wrap-ttl"), HeaderValue::from(seconds));
        }
        let mut path_and_query = String::from("/v1/");
        http::encode(call.path, true, &mut path_and_query);
        for (index, (key, value)) in call.query.iter().enumerate() {
            path_and_query.push(if index == 0 { '?' } else { '&' });
            http::encode(key, false, &mut path_and_query);
            path_and_query.push('=');
            http::encode(value, false, &mut path_and_query);
        }
        let ask = Ask {
            method: if call.body.is_some() {
                Method::POST
            } else {
                Method::GET
            },
            path_and_query,
            headers,
            body: call.body,
        };
        let sent = self.client.send(cx, ask).await;
        let answer = sent.map_err(|error| match *error.code() == codes::BACKEND_REDIRECTED {
            true => Error::new(&codes::VAULT_STANDBY).detail(error),
            false => error,
        })?;
        self.meaning(cx, answer).await
    }

    async fn meaning(&self, cx: &Cx, answer: Answer) -> Result<Said> {
        let status = answer.status.as_u16();
        let retry = |error: Error| match answer.retry_after {
            Some(after) => error.retry_after(after),
            None => error,
        };
        match status {
            200..=299 => Ok(Said::Good(answer.body)),
            404 if is_vaults(&answer.body) => Ok(Said::Missing(answer.body)),
            404 => Err(Error::new(&codes::BACKEND_SERVER_ERROR).detail(
                "the store answers 404, and not as a Vault does: something else answers in its place",
            )),
            401 | 403 => Ok(Said::Denied),
            429 => Err(retry(Error::new(&codes::BACKEND_THROTTLED))),
            400..=499 => Ok(Said::Refused(status)),
            500..=599 => Err(retry(self.why(cx, status).await)),
            _ => Err(Error::new(&codes::BACKEND_CORRUPT)
                .detail(format!("the store answers {status}, which no Vault does"))),
        }
    }

    /// Why the server fails, as its health says.
    async fn why(&self, cx: &Cx, status: u16) -> Error {
        let ask = Ask {
            method: Method::GET,
            path_and_query: "/v1/sys/health".to_owned(),
            headers: HeaderMap::new(),
            body: None,
        };
        let health = self.client.send(cx, ask).await;
        match health.map(|answer| answer.status.as_u16()) {
            Ok(503) => Error::new(&codes::VAULT_SEALED),
            Ok(501) => Error::new(&codes::VAULT_UNINITIALIZED),
            Ok(429 | 472 | 473) => Error::new(&codes::VAULT_NO_LEADER),
            Ok(_) | Err(_) => Error::new(&codes::BACKEND_SERVER_ERROR)
                .detail(format!("the store answers {status}")),
        }
    }
}
