//! JSON as it is needed here: numbers keep their spelling, keys are sorted, depth is bounded, and nothing can be printed.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::{limits, render::quote};

/// A JSON value. No Debug: it is a secret.
pub(super) enum Json {
    Null,
    Bool(bool),
    /// As it was written: `1.10` stays `1.10`.
    Number(Box<str>),
    Text(String),
    List(Vec<Json>),
    Map(BTreeMap<String, Json>),
}

impl Json {
    /// Reads `text`. `None`: not JSON, or nested deeper than [`limits::NESTING`].
    pub fn parse(text: &str) -> Option<Self> {
        let raw: &RawValue = serde_json::from_str(text).ok()?;
        Self::read(raw, limits::NESTING)
    }

    /// Each level reads its own text again: at most 32 times over.
    fn read(raw: &RawValue, levels: usize) -> Option<Self> {
        let text = raw.get();
        Some(match text.as_bytes().first()? {
            b'n' => Json::Null,
            b't' => Json::Bool(true),
            b'f' => Json::Bool(false),
            b'"' => Json::Text(serde_json::from_str(text).ok()?),
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
                let levels = levels.checked_sub(1)?;
                let items = items.into_iter().map(|item| Self::read(item, levels));
                Json::List(items.collect::<Option<_>>()?)
            }
            b'{' => {
                let entries: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
                let levels = levels.checked_sub(1)?;
                let entries = entries
                    .into_iter()
                    .map(|(key, value)| Some((key, Self::read(value, levels)?)));
                Json::Map(entries.collect::<Option<_>>()?)
            }
            _ => Json::Number(text.into()),
        })
    }

    /// What a JSON pointer (RFC 6901) names.
    pub fn pointer(&self, pointer: &str) -> Option<&Json> {
        let mut here = self;
        for token in pointer.split('/').skip(1) {
            let token = unescape(token);
            here = match here {
                Json::Map(entries) => entries.get(&token)?,
                Json::List(items) => {
                    let plain = token == "0" || !token.starts_with(['0', '+']);
                    items.get(token.parse::<usize>().ok().filter(|_| plain)?)?
                }
                _ => return None,
            };
        }
        Some(here)
    }

    /// As the bytes of a file: text as it is, all else as canonical JSON. `null` is no value.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Json::Null => None,
            Json::Text(text) => Some(text.clone().into_bytes()),
            other => {
                let mut out = String::new();
                other.write(&mut out);
                Some(out.into_bytes())
            }
        }
    }

    /// Canonical: sorted keys, no spaces, numbers as they were written. Valid YAML too.
    pub fn write(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Number(text) => out.push_str(text),
            Json::Text(text) => quote::json(text, out),
            Json::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Json::Map(entries) => {
                out.push('{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    quote::json(key, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

/// A token of a JSON pointer without its escapes.
pub(super) fn unescape(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Option<String> {
        let mut out = String::new();
        Json::parse(text)?.write(&mut out);
        Some(out)
    }

    #[test]
    fn canonical_json_is_sorted_and_keeps_numbers() {
        for (text, expect) in [
            (
                "{\"b\": 1.10, \"a\": [1, null, true]}",
                Some("{\"a\":[1,null,true],\"b\":1.10}"),
            ),
            ("12345678901234567890123", Some("12345678901234567890123")),
            (" \"a\\u00e4\\n\" ", Some("\"aä\\n\"")),
            ("{\"a\":1,\"a\":2}", Some("{\"a\":2}")),
            ("{\"a\":1", None),
            ("{} x", None),
            ("", None),
            ("01", None),
        ] {
            assert_eq!(canonical(text).as_deref(), expect, "{text}");
        }
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(canonical(&deep(limits::NESTING)).is_some());
        assert!(canonical(&deep(limits::NESTING + 1)).is_none());
        assert!(canonical(&deep(500_000)).is_none());
    }

    #[test]
    fn a_pointer_finds_what_rfc_6901_says() {
        let json = Json::parse(r#"{"a":{"b/c":[10,{"~":"x"}]},"":0}"#).unwrap();
        for (pointer, expect) in [
            ("/a/b~1c/0", Some("10")),
            ("/a/b~1c/1/~0", Some("x")),
            ("/", Some("0")),
            ("/a/b~1c/00", None),
            ("/a/b~1c/-", None),
            ("/a/b~1c/2", None),
            ("/nope", None),
        ] {
            let found = json.pointer(pointer).and_then(Json::bytes);
            assert_eq!(found.as_deref(), expect.map(str::as_bytes), "{pointer}");
        }
    }
}
