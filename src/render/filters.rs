//! Our filters, and bytes that are not text.
//!
//! A value that is not UTF-8 is a [`Binary`] in a template: `b64encode` and `hex` take it; whoever takes it as text gets nothing,
//! and the render fails for it (`render.not_text`). A filter that refuses its input says so in words of ours, a [`Refusal`]:
//! they are all that is shown of an error.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, OnceLock},
};

use minijinja::{
    Environment, Error, ErrorKind, Value,
    value::{Object, ObjectRepr, ValueKind},
};

use crate::{
    render::{
        decode::{base64, decode},
        quote,
    },
    secret::SecretBytes,
    spec::Decode,
};

/// Where the first use of a binary value as text is noted.
pub(super) type NotText = Arc<OnceLock<String>>;

/// Why a filter refused its input. No part of the input.
#[derive(Debug)]
pub(super) struct Refusal(pub &'static str);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Refusal {}

fn refuse(why: &'static str) -> Error {
    Error::from(ErrorKind::InvalidOperation).with_source(Refusal(why))
}

/// Bytes that are not text.
pub(super) struct Binary {
    pub bytes: Arc<SecretBytes>,
    /// What it is called in the template.
    pub name: String,
    pub not_text: NotText,
}

impl Binary {
    fn used_as_text(&self) {
        // The first one counts; later ones change nothing.
        let _ = self.not_text.set(self.name.clone());
    }
}

/// The engine prints a list with the Debug of its items.
impl fmt::Debug for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.used_as_text();
        f.write_str("Binary")
    }
}

impl Object for Binary {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.used_as_text();
        Ok(())
    }
}

/// Adds our filters. [`crate::spec::template::FILTERS`] names them.
pub(super) fn add(engine: &mut Environment<'_>, not_text: &NotText) {
    engine.add_filter("b64encode", |value: &Value| {
        Ok::<_, Error>(base64(&bytes(value)?))
    });
    engine.add_filter("hex", |value: &Value| {
        Ok::<_, Error>(quote::hex(&bytes(value)?))
    });
    for (name, encoding, why) in [
        ("b64decode", Decode::Base64, "the value is not base64"),
        ("unhex", Decode::Hex, "the value is not hex"),
    ] {
        let not_text = Arc::clone(not_text);
        engine.add_filter(name, move |value: &Value| {
            let decoded = decode(encoding, &bytes(value)?).ok_or_else(|| refuse(why))?;
            Ok::<_, Error>(from_bytes(decoded, "a decoded value", &not_text))
        });
    }
    for name in ["json", "tojson"] {
        engine.add_filter(name, json);
    }
    engine.add_filter("yaml", json);
    engine.add_filter("urlencode", |value: &Value| {
        Ok::<_, Error>(quote::url(&bytes(value)?))
    });
    engine.add_filter("shellquote", |value: &Value| {
        quote::shell(&text(value)?).ok_or_else(|| refuse("the value holds a NUL byte"))
    });
    engine.add_filter("dotenv", |value: &Value| {
        quote::dotenv(&text(value)?).ok_or_else(|| refuse("the value holds a NUL byte"))
    });
}

/// A value for a template: text if it is, else a [`Binary`].
pub(super) fn from_bytes(bytes: Vec<u8>, name: &str, not_text: &NotText) -> Value {
    match String::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(error) => Value::from_object(Binary {
            bytes: Arc::new(SecretBytes::new(error.into_bytes())),
            name: name.to_owned(),
            not_text: Arc::clone(not_text),
        }),
    }
}

/// A filter's input as text. Lists and mappings are none.
fn text(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    if let Some(binary) = value.downcast_object_ref::<Binary>() {
        binary.used_as_text();
        return Err(refuse("the value is not text"));
    }
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::Number | ValueKind::Bool => Ok(Cow::Owned(value.to_string())),
        _ => Err(refuse(
            "the value is a list, a mapping or nothing; `tojson` makes text of it",
        )),
    }
}

/// A filter's input as bytes.
fn bytes(value: &Value) -> Result<Cow<'_, [u8]>, Error> {
    if let Some(binary) = value.downcast_object_ref::<Binary>() {
        return Ok(Cow::Borrowed(binary.bytes.expose()));
    }
    Ok(match text(value)? {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    })
}

/// Canonical JSON, which is also YAML.
pub(super) fn json(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write(value, &mut out)?;
    Ok(out)
}

/// The engine bounds how deep values nest: its own recursion limit holds while they are made.
fn write(value: &Value, out: &mut String) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => return Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool | ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push(',');
                }
                quote::json(&text(&key)?, out);
                out.push(':');
                write(&value.get_item(&key)?, out)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(&item, out)?;
            }
            out.push(']');
        }
        _ => quote::json(&text(value)?, out),
    }
    Ok(())
}
