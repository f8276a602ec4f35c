//! Secrets of several fields: a JSON object, made from values and cut into them. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    error::{Error, Result, codes},
    secret::SecretBytes,
};

/// Checks a field's name: one that a reference can write as `#name`.
///
/// # Errors
/// The reason, as a phrase that follows the name.
pub fn check_key(key: &str) -> Result<(), &'static str> {
    if key.is_empty() {
        return Err("is empty");
    }
    if key.starts_with('/') {
        return Err("begins with `/`, which a reference takes for a JSON pointer");
    }
    if key == "*" {
        return Err("means all fields in a reference");
    }
    if key.contains('#') {
        return Err("holds `#`, which begins a field in a reference");
    }
    if key.chars().any(char::is_control) {
        return Err("holds a control character");
    }
    Ok(())
}

/// A JSON object of these fields, by name, each a string.
///
/// # Errors
/// `store.bad_value`: a value is not UTF-8 text, which JSON cannot hold.
pub fn from_fields(fields: &BTreeMap<String, SecretBytes>) -> Result<SecretBytes> {
    let mut texts = BTreeMap::new();
    for (key, value) in fields {
        let text = std::str::from_utf8(value.expose()).map_err(|_| {
            Error::new(&codes::STORE_BAD_VALUE).detail(format!(
                "field `{key}` is not UTF-8 text, and fields are JSON strings; \
                 put it as a secret of its own, or base64-encode it and use `decode: base64`"
            ))
        })?;
        texts.insert(key, text);
    }
    serde_json::to_vec(&texts)
        .map(SecretBytes::new)
        .map_err(|error| Error::new(&codes::BUG).source(error))
}

/// One field of a JSON object: by its name, or by a JSON pointer (`/a/b`). A string is its text, anything else its JSON.
///
/// # Errors
/// `render.not_fields`, `render.no_field`; a message lists the fields' names, never a value.
pub fn field(value: &SecretBytes, key: &str) -> Result<SecretBytes> {
    let document: Value = serde_json::from_slice(value.expose())
        .ok()
        .filter(Value::is_object)
        .ok_or_else(|| Error::new(&codes::RENDER_NOT_FIELDS))?;
    let found = if key.starts_with('/') {
        document.pointer(key)
    } else {
        document.get(key)
    };
    let found = found.ok_or_else(|| {
        let names: Vec<_> = document
            .as_object()
            .into_iter()
            .flat_map(|fields| fields.keys())
            .map(|name| format!("`{}`", name.escape_debug()))
            .collect();
        Error::new(&codes::RENDER_NO_FIELD).detail(format!(
            "there is no field `{}`; there are {}",
            key.escape_debug(),
            names.join(", ")
        ))
    })?;
    let bytes = match found {
        Value::String(text) => text.as_bytes().to_vec(),
        other => {
            serde_json::to_vec(other).map_err(|error| Error::new(&codes::BUG).source(error))?
        }
    };
    Ok(SecretBytes::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_make_a_document_and_come_out_of_it() {
        let bytes = |text: &[u8]| SecretBytes::new(text.to_vec());
        let mut fields = BTreeMap::new();
        fields.insert("user".to_owned(), bytes(b"app"));
        fields.insert("pass".to_owned(), bytes("a\"\n\u{fc}".as_bytes()));
        let document = from_fields(&fields).unwrap();
        assert_eq!(
            document.expose(),
            "{\"pass\":\"a\\\"\\n\u{fc}\",\"user\":\"app\"}".as_bytes()
        );
        assert!(field(&document, "pass").unwrap().same(&fields["pass"]));
        let error = field(&document, "none").unwrap_err();
        assert_eq!(error.code(), &codes::RENDER_NO_FIELD);
        assert!(error.to_string().contains("`pass`, `user`"), "{error}");
        fields.insert("bin".to_owned(), bytes(b"canary\xff"));
        let error = from_fields(&fields).unwrap_err();
        assert_eq!(error.code(), &codes::STORE_BAD_VALUE);
        assert!(!error.to_string().contains("canary"), "{error}");
        let nested = bytes(br#"{"a":{"b":[1,"x"]},"n":null}"#);
        for (key, expect) in [("/a/b/1", "x"), ("a", r#"{"b":[1,"x"]}"#), ("n", "null")] {
            assert_eq!(field(&nested, key).unwrap().expose(), expect.as_bytes());
        }
        for not_fields in ["", "plain", "[1]", "\"x\""] {
            let error = field(&bytes(not_fields.as_bytes()), "x").unwrap_err();
            assert_eq!(error.code(), &codes::RENDER_NOT_FIELDS);
        }
        for bad in ["", "/a", "*", "a#b", "a\n"] {
            assert!(check_key(bad).is_err(), "{bad:?}");
        }
        assert!(check_key("tls.crt").is_ok());
    }
}
