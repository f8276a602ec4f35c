//! Service account tokens: what the kubelet hands over, and what stands in it.
//!
//! `{"<audience>": {"token": "<JWT>", "expirationTimestamp": "..."}}`; the audience "" is the API server's own. Of a JWT only the
//! claims are read. That they are signed by the cluster is for the store to see; that they are this pod's is seen here.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use super::{TOKENS, forged, wrong};
use crate::{
    caller::{PodIdentity, Token},
    clock::Wall,
    error::{Error, Result},
    limits,
    secret::SecretBytes,
};

/// Reads all tokens, holds each against `pod`, and fills in the service account's uid, on which they must agree.
///
/// # Errors
/// `csi.bad_request`: not in that form; `identity.forged`: of another pod, account or audience.
pub fn read(text: &str, pod: &mut PodIdentity) -> Result<Vec<Token>> {
    // A parser's own message would show what it stumbled over.
    let given: Given = serde_json::from_str(text).map_err(|_| malformed())?;
    if given.0.len() > limits::TOKENS {
        let says = format!("holds more than {} tokens", limits::TOKENS);
        return Err(wrong(TOKENS, &says));
    }
    let mut tokens = Vec::with_capacity(given.0.len());
    for (audience, Wrapped { token }) in given.0 {
        let claims = claims(&token)?;
        claims.agree(&audience, pod)?;
        let uid = claims.kubernetes.account.uid;
        match &pod.service_account_uid {
            None => pod.service_account_uid = Some(uid.into()),
            Some(known) if **known == *uid => {}
            Some(_) => return Err(forged("tokens name service accounts of different uids")),
        }
        tokens.push(Token {
            audience,
            expires_at: Wall::from_millis(claims.exp.saturating_mul(1000)),
            jwt: SecretBytes::new(token.into_bytes()),
        });
    }
    Ok(tokens)
}

fn malformed() -> Error {
    wrong(
        TOKENS,
        "is not a JSON object of audiences with `token` and `expirationTimestamp`",
    )
}

/// Audience and token, as they stand there; none twice.
struct Given(Vec<(String, Wrapped)>);

#[derive(Deserialize)]
struct Wrapped {
    token: String,
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Given;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tokens by audience")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Given, M::Error> {
                let mut pairs: Vec<(String, Wrapped)> = Vec::new();
                while let Some((audience, token)) = map.next_entry::<String, Wrapped>()? {
                    // one more than allowed is enough to know
                    if pairs.len() > limits::TOKENS || pairs.iter().any(|(one, _)| *one == audience)
                    {
                        return Err(M::Error::custom("too many, or one twice"));
                    }
                    pairs.push((audience, token));
                }
                Ok(Given(pairs))
            }
        }
        from.deserialize_map(Pairs)
    }
}

/// What a JWT of Kubernetes says.
#[derive(Deserialize)]
struct Claims {
    aud: Audiences,
    exp: i64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    #[serde(rename = "serviceaccount")]
    account: Bound,
    /// In every token that a kubelet asks for.
    pod: Option<Bound>,
}

#[derive(Deserialize)]
struct Bound {
    name: String,
    uid: String,
}

/// The middle one of a JWT's three parts.
fn claims(jwt: &str) -> Result<Claims> {
    let bad = || {
        wrong(
            TOKENS,
            "holds a token that is not a JWT of a service account",
        )
    };
    if jwt.len() > limits::TOKEN_BYTES {
        let says = format!("holds a token longer than {} bytes", limits::TOKEN_BYTES);
        return Err(wrong(TOKENS, &says));
    }
    let parts: Vec<&str> = jwt.splitn(4, '.').collect();
    let [_, payload, _] = parts[..] else {
        return Err(bad());
    };
    let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| bad())?;
    let claims: Claims = serde_json::from_slice(&payload).map_err(|_| bad())?;
    if !super::names::is_uid(&claims.kubernetes.account.uid) {
        return Err(bad());
    }
    Ok(claims)
}

impl Claims {
    fn agree(&self, audience: &str, pod: &PodIdentity) -> Result<()> {
        let Kubernetes {
            namespace,
            account,
            pod: bound,
        } = &self.kubernetes;
        let Some(bound) = bound else {
            return Err(forged("a token is bound to no pod")); // whoever has it may have made it himself
        };
        let for_it = match &self.aud {
            _ if audience.is_empty() => true, // the API server's own, whatever its name
            Audiences::One(one) => one == audience,
            Audiences::Many(many) => many.iter().any(|one| one == audience),
        };
        let differs = if **namespace != *pod.namespace {
            "namespace"
        } else if *account.name != *pod.service_account {
            "service account"
        } else if *bound.name != *pod.pod {
            "pod name"
        } else if *bound.uid != *pod.pod_uid {
            "pod uid"
        } else if !for_it {
            "audience"
        } else {
            return Ok(());
        };
        Err(forged(&format!("a token is for another {differs}")))
    }
}
