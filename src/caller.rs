//! Who asks, and the proof.
//!
//! [`Identity`] may be logged and saved. [`Credentials`] are neither, ever. [`Principal`] is as whom a store sees us; only
//! [`Identity::principal`] makes one, so that no backend can widen its sharing.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{
    clock::Wall,
    error::{Error, Result, codes},
    secret::SecretBytes,
};

/// A Kubernetes object's name.
pub type Name = Box<str>;
/// A Kubernetes object's uid.
pub type Uid = Box<str>;

/// Who asks for a volume.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Identity {
    /// A pod, as the kubelet and its tokens say.
    Pod(PodIdentity),
    /// A user of this machine, without Kubernetes.
    Local {
        /// The user's id.
        uid: u32,
    },
}

/// A pod and the account it runs as.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodIdentity {
    /// Namespace of both.
    pub namespace: Name,
    /// The pod's name.
    pub pod: Name,
    /// The pod's uid.
    pub pod_uid: Uid,
    /// The service account's name.
    pub service_account: Name,
    /// The account's uid, from the token: an account deleted and made again under its name is another one.
    pub service_account_uid: Option<Uid>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Pod(pod) => write!(f, "{}/{}", pod.namespace, pod.pod),
            Identity::Local { uid } => write!(f, "uid {uid}"),
        }
    }
}

/// The proof of an identity. Replaced as a whole by each republish.
#[derive(Default)]
pub struct Credentials {
    tokens: Vec<Token>,
    /// What `nodePublishSecretRef` brought.
    pub secrets: BTreeMap<String, SecretBytes>,
}

/// A service account token for one audience.
pub struct Token {
    /// The `aud` it was made for.
    pub audience: String,
    /// Its `exp`.
    pub expires_at: Wall,
    /// The token itself.
    pub jwt: SecretBytes,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// A token with less life than this, in milliseconds, is not worth a request to a store.
const TOKEN_MARGIN_MS: i64 = 10_000;

impl Credentials {
    /// Credentials of these tokens.
    pub fn new(tokens: Vec<Token>, secrets: BTreeMap<String, SecretBytes>) -> Self {
        Self { tokens, secrets }
    }

    /// The freshest token for `audience` that lives 10 s beyond `now` (wall-clock time, as `exp` in a JWT is).
    ///
    /// # Errors
    /// `identity.token_stale`: there is none for it, or all are too old. The kubelet brings one with its next republish,
    /// within 90 s: wait, without backoff.
    pub fn token(&self, audience: &str, now: Wall) -> Result<&Token> {
        self.tokens
            .iter()
            .filter(|token| token.audience == audience)
            .max_by_key(|token| token.expires_at)
            .filter(|token| token.expires_at.as_millis() > now.as_millis() + TOKEN_MARGIN_MS)
            .ok_or_else(|| {
                Error::new(&codes::IDENTITY_TOKEN_STALE).object(format!("audience {audience}"))
            })
    }
}

/// Who asks, with the proof.
pub type Caller = Arc<(Identity, Credentials)>;

/// As whom a store sees us. Equal principals may share an object, unequal ones never.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Principal {
    /// This node; the node's policy has decided who may ask.
    Node,
    /// A service account.
    ServiceAccount {
        /// Its namespace.
        namespace: Name,
        /// Its name.
        name: Name,
        /// Its uid.
        uid: Option<Uid>,
    },
    /// One pod.
    Pod(Uid),
    /// A user of this machine.
    Local(u32),
}

/// How wide a backend may share what it fetches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AsksAs {
    /// As the node.
    Node,
    /// As the pod's service account.
    ServiceAccount,
    /// As the pod.
    Pod,
}

impl Identity {
    /// The only maker of a Principal. A local user is himself, whatever the backend would ask as.
    pub fn principal(&self, asks_as: AsksAs) -> Principal {
        match (self, asks_as) {
            (Identity::Local { uid }, _) => Principal::Local(*uid),
            (Identity::Pod(_), AsksAs::Node) => Principal::Node,
            (Identity::Pod(pod), AsksAs::ServiceAccount) => Principal::ServiceAccount {
                namespace: pod.namespace.clone(),
                name: pod.service_account.clone(),
                uid: pod.service_account_uid.clone(),
            },
            (Identity::Pod(pod), AsksAs::Pod) => Principal::Pod(pod.pod_uid.clone()),
        }
    }

    /// Whether it is one of those that a store sees as this.
    pub fn is(&self, principal: &Principal) -> bool {
        let asks_as = match principal {
            Principal::Node | Principal::Local(_) => AsksAs::Node,
            Principal::ServiceAccount { .. } => AsksAs::ServiceAccount,
            Principal::Pod(_) => AsksAs::Pod,
        };
        self.principal(asks_as) == *principal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_freshest_token_of_the_audience_is_taken_unless_it_is_nearly_dead() {
        let token = |audience: &str, at| Token {
            audience: audience.into(),
            expires_at: Wall::from_millis(at),
            jwt: SecretBytes::new(vec![]),
        };
        let proof = Credentials::new(
            vec![token("a", 50_000), token("a", 90_000), token("b", 1)],
            BTreeMap::new(),
        );
        let at = |audience, now| {
            proof
                .token(audience, Wall::from_millis(now))
                .map(|t| t.expires_at.as_millis())
        };
        assert_eq!(at("a", 0).unwrap(), 90_000);
        assert!(at("a", 80_001).is_err() && at("b", 0).is_err() && at("c", 0).is_err());
    }
}
