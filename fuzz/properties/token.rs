//! The kubelet's tokens, as they stand in a publish.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secretfs::{
    caller::Identity,
    clock::Wall,
    csi::context::{self, Expect, TokensIn},
    error::Result,
    volume::PublishRequest,
};
use serde_json::Value;

use super::{
    PLANTED, Verdict,
    csi_publish::{KUBELET_DIR, TOKENS, plant, request},
    same_words,
};

/// `FLAGS TEXT`. Bit 0 of FLAGS: TEXT is `audience \0 claims \0 audience \0 claims ...`, of which tokens are made; else it is the tokens'
/// JSON as it is. Bits 1 and 2: where the kubelet puts tokens.
///
/// They are read alike twice. What is accepted says the same of the pod as the kubelet does, in a reader of our own; what is refused shows
/// no byte of a token.
pub fn token(data: &[u8]) -> Verdict {
    let Some((flags, text)) = data.split_first() else {
        return Verdict::Refused;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return Verdict::Refused; // protobuf takes no other
    };
    let text = match flags & 1 {
        0 => text.to_owned(),
        _ => made(text),
    };
    let tokens_in = match flags >> 1 & 3 {
        0 => TokensIn::Context,
        1 => TokensIn::Secrets,
        2 => TokensIn::Either,
        _ => TokensIn::Nowhere,
    };
    let text = plant(&text);
    let (first, again) = (read(&text, tokens_in), read(&text, tokens_in));
    match (first, again) {
        (Ok(asked), Ok(again)) => {
            assert_eq!(asked.caller.0, again.caller.0);
            assert_ne!(tokens_in, TokensIn::Nowhere, "nobody requests any");
            agrees(&text, &asked);
            Verdict::Accepted
        }
        (Err(error), Err(again)) => {
            same_words(&error, &again);
            Verdict::Refused
        }
        _ => panic!("the same tokens are good and bad"),
    }
}

/// Tokens of these claims, as a kubelet writes them.
fn made(text: &str) -> String {
    let mut json = String::from("{");
    let mut parts = text.split('\0');
    while let (Some(audience), Some(claims)) = (parts.next(), parts.next()) {
        if json.len() > 1 {
            json.push(',');
        }
        json += &format!(
            r#"{}:{{"token":"h.{}.s","expirationTimestamp":"2026-11-24T00:43:24Z"}}"#,
            Value::from(audience),
            URL_SAFE_NO_PAD.encode(claims)
        );
    }
    json + "}"
}

fn read(text: &str, tokens_in: TokensIn) -> Result<PublishRequest> {
    let mut request = request();
    let into = match tokens_in {
        TokensIn::Secrets => &mut request.secrets,
        TokensIn::Context | TokensIn::Either | TokensIn::Nowhere => &mut request.volume_context,
    };
    into.insert(TOKENS.to_owned(), text.to_owned());
    let expect = Expect {
        kubelet_dir: KUBELET_DIR.into(),
        tokens_in,
    };
    context::read(request, &expect)
}

/// Each token's claims are those of the pod that the kubelet names, for the audience under which it stands.
fn agrees(text: &str, asked: &PublishRequest) {
    let Identity::Pod(pod) = &asked.caller.0 else {
        panic!("a publish is a pod's")
    };
    assert!(!format!("{:?}", asked.caller).contains(PLANTED));
    let Ok(given) = serde_json::from_str::<Value>(text) else {
        return; // nested too deeply, or a number too large, where nobody looks
    };
    let given = given.as_object().expect("tokens by audience");
    assert_eq!(pod.service_account_uid.is_some(), !given.is_empty());
    for (audience, wrapped) in given {
        let jwt = part(wrapped, "token", 0).as_str().expect("a token is text");
        let parts: Vec<&str> = jwt.split('.').collect();
        assert_eq!(parts.len(), 3, "a JWT has three parts");
        let claims = URL_SAFE_NO_PAD.decode(parts[1]).expect("base64");
        let Ok(claims) = serde_json::from_slice::<Value>(&claims) else {
            continue;
        };
        let said = part(&claims, "kubernetes.io", 2);
        let (account, bound) = (part(said, "serviceaccount", 1), part(said, "pod", 2));
        for (claim, expect) in [
            (part(said, "namespace", 0), &pod.namespace),
            (part(account, "name", 0), &pod.service_account),
            (part(bound, "name", 0), &pod.pod),
            (part(bound, "uid", 1), &pod.pod_uid),
        ] {
            assert_eq!(claim.as_str(), Some(&**expect), "{claims}");
        }
        let uid = part(account, "uid", 1).as_str();
        assert_eq!(uid, pod.service_account_uid.as_deref());
        let meant = match part(&claims, "aud", 0) {
            Value::String(one) => one == audience,
            Value::Array(many) => many.iter().any(|one| one.as_str() == Some(audience)),
            _ => false,
        };
        assert!(meant || audience.is_empty(), "{claims} for {audience:?}");
        let expires = part(&claims, "exp", 1).as_i64().expect("a time");
        let expires = expires.saturating_mul(1000);
        let kept = asked.caller.1.token(audience, Wall::from_millis(0));
        match kept {
            Ok(kept) => {
                assert_eq!(kept.expires_at.as_millis(), expires);
                assert_eq!(kept.jwt.expose(), jwt.as_bytes());
            }
            Err(_) => assert!(expires <= 10_000, "{claims} is not kept"),
        }
    }
}

/// A field of what our reader takes for a struct: an object, or, because serde says so, an array in the order of its fields.
pub fn part<'a>(value: &'a Value, name: &str, at: usize) -> &'a Value {
    match value.is_array() {
        true => &value[at],
        false => &value[name],
    }
}
