//! Whatever a server answers: it is read as JSON reads it, or refused without a word of it.

use proptest::prelude::*;

use super::*;

const CANARY: &str = "kanarie";

/// Answers as a server gives them, one for each reader.
const ANSWERS: [&str; 6] = [
    r#"{"request_id":"1","lease_id":"","data":{"data":{"a":"kanarie","n":[1,2.5e3,null]},"metadata":{"version":7,"created_time":"2026-01-01T00:00:00.5Z","deletion_time":"","destroyed":false}}}"#,
    r#"{"data":{"current_version":2,"versions":{"1":{"created_time":"2026-01-01T00:00:00Z","destroyed":true},"2":{"created_time":"2026-01-02T00:00:00Z"}},"custom_metadata":{"k":"kanarie"},"updated_time":"x"}}"#,
    r#"{"data":{"path":"kanarie/","type":"kv","accessor":"kv_1","options":{"version":"2"}}}"#,
    r#"{"auth":{"client_token":"kanarie","lease_duration":3600,"renewable":true}}"#,
    r#"{"lease_id":"kanarie","lease_duration":60,"renewable":true,"data":{"password":"kanarie","expiration":1}}"#,
    r#"{"wrap_info":{"token":"kanarie","ttl":300},"data":null}"#,
];

/// One of them, with some of its bytes cut out, doubled, or replaced.
fn answer() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), 0..12_usize, ".{0,6}", 0..3_u8);
    let changes = prop::collection::vec(change, 0..4);
    (prop::sample::select(&ANSWERS[..]), changes).prop_map(|(text, changes)| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, length, with, how) in changes {
            let at = at.index(bytes.len() + 1);
            let end = (at + length).min(bytes.len());
            match how {
                0 => drop(bytes.drain(at..end)),
                1 => drop(bytes.splice(at..end, with.bytes())),
                _ => bytes.truncate(at),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_answer_is_read_as_json_reads_it_or_refused_without_a_word_of_it(bytes in answer()) {
        let body = SecretBytes::new(bytes);
        let whole: Option<serde_json::Value> = serde_json::from_slice(body.expose()).ok();
        // a number beyond all types is JSON too, and stays as it is written
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(body.expose()).is_ok();
        let is_refusal = |error: &Error| {
            let text = format!("{error:?}");
            *error.code() == codes::BACKEND_CORRUPT && !text.contains(CANARY)
        };
        match wire::parse::<wire::Envelope<'_>>(body.expose()) {
            Err(error) => prop_assert!(is_refusal(&error)),
            Ok(envelope) => {
                prop_assert!(is_json);
                if let Some(whole) = &whole {
                    let data = envelope.data.map(|data| serde_json::from_str::<serde_json::Value>(data.get()).unwrap());
                    prop_assert_eq!(data.as_ref(), whole.get("data").filter(|data| !data.is_null()));
                }
            }
        }
        match kv::read(&body) {
            Err(error) => prop_assert!(is_refusal(&error)),
            Ok(value) => {
                prop_assert!(is_json);
                if let Some(whole) = &whole {
                    let value: serde_json::Value = serde_json::from_slice(value.expose()).unwrap();
                    prop_assert_eq!(&value, whole.pointer("/data/data").unwrap_or(&serde_json::Value::Null));
                }
            }
        }
        if let Err(error) = mounts::read(&body) {
            prop_assert!(is_refusal(&error));
        }
        if let Err(error) = auth::auth_of(&body) {
            prop_assert!(is_refusal(&error));
        }
    }
}
