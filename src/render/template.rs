//! A template and the objects that it uses become text.
//!
//! The engine is that of `spec::template`, with our filters. It is bounded in steps (its fuel, which also pays for what it
//! allocates) and in bytes of output. Its errors quote values: nothing of one is shown but its kind, its place in the
//! template's own text, and, of an undefined name, the expression as the template has it.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, OnceLock},
};

use minijinja::{ErrorKind, Value};
use zeroize::Zeroizing;

use crate::{
    error::{Error, Result, codes},
    limits,
    render::{
        fields::Look,
        filters::{self, NotText, Refusal},
        json::Json,
    },
    secret::Content,
    spec::{read::shown, template},
};

/// Renders `text` with what `sources` are called in it; at most `limit` bytes. `at` becomes the line that failed.
///
/// # Errors
/// `render.template`, `render.not_text`, `render.too_large`: with the line, without a value.
pub(super) fn render(
    text: &str,
    sources: &[(&str, &Look<'_>)],
    limit: u64,
    at: &mut u32,
) -> Result<Vec<u8>> {
    let input: usize = sources.iter().map(|(_, look)| look.len()).sum();
    if input > limits::TEMPLATE_INPUT_BYTES {
        let most = limits::TEMPLATE_INPUT_BYTES;
        let detail = format!("the secrets that the template uses have more than {most} bytes");
        return Err(Error::new(&codes::RENDER_TOO_LARGE).detail(detail));
    }
    let not_text: NotText = Arc::new(OnceLock::new());
    let values: BTreeMap<&str, Value> = sources
        .iter()
        .map(|(name, look)| (*name, source(name, look, &not_text)))
        .collect();
    let mut engine = template::engine();
    filters::add(&mut engine, &not_text);
    engine.set_formatter(|out, state, value| match value.kind() {
        minijinja::value::ValueKind::Map
        | minijinja::value::ValueKind::Seq
        | minijinja::value::ValueKind::Iterable => {
            let json = filters::json(value)?;
            out.write_str(&json).map_err(minijinja::Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    let mut out = Bounded {
        bytes: Zeroizing::new(Vec::new()),
        limit,
        full: false,
    };
    let rendered = engine.template_from_str(text).and_then(|template| {
        template
            .render_captured_to(Value::from(values), &mut out)
            .map(drop)
    });
    if let Err(error) = &rendered {
        *at = error
            .line()
            .and_then(|line| line.try_into().ok())
            .unwrap_or(0);
    }
    if out.full {
        return Err(Error::new(&codes::RENDER_TOO_LARGE)
            .detail(format!("the template makes more than {limit} bytes")));
    }
    if let Some(name) = not_text.get() {
        let what = format!(
            "`{}` is not UTF-8 text; in a template, `b64encode` or `hex` can say it",
            shown(name)
        );
        return Err(Error::new(&codes::RENDER_NOT_TEXT).detail(what));
    }
    match rendered {
        Ok(()) => Ok(std::mem::take(&mut *out.bytes)),
        Err(error) => Err(explain(text, &error)),
    }
}

/// A secret as a template sees it: a JSON object by its entries, a store's fields by name, all else as text.
fn source(name: &str, look: &Look<'_>, not_text: &NotText) -> Value {
    match &look.object.content {
        Content::Bytes(bytes) => match look.json() {
            Some(json @ Json::Map(_)) => value(json),
            _ => filters::from_bytes(bytes.expose().to_vec(), name, not_text),
        },
        Content::Fields(fields) => fields
            .iter()
            .map(|(field, found)| {
                let full = format!("{name}.{field}");
                let bytes = found.value.expose().to_vec();
                (
                    field.to_string(),
                    filters::from_bytes(bytes, &full, not_text),
                )
            })
            .collect::<BTreeMap<_, _>>()
            .into(),
    }
}

/// A number that the engine would spell otherwise is text; a `null` in a mapping is not there.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Text(text) => Value::from(&**text),
        Json::Number(text) => match text.parse::<i64>() {
            Ok(number) if number.to_string() == **text => Value::from(number),
            _ => Value::from(&**text),
        },
        Json::List(items) => items.iter().map(value).collect::<Vec<_>>().into(),
        Json::Map(entries) => entries
            .iter()
            .filter(|(_, entry)| !matches!(entry, Json::Null))
            .map(|(key, entry)| (key.clone(), value(entry)))
            .collect::<BTreeMap<_, _>>()
            .into(),
    }
}

/// The engine's error in our words.
fn explain(text: &str, error: &minijinja::Error) -> Error {
    let line = error.line().unwrap_or(1);
    let excerpt = error
        .range()
        .and_then(|range| text.get(range))
        .map(|part| format!(" at `{}`", shown(part)))
        .unwrap_or_default();
    let refusal =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<Refusal>());
    let what = match (error.kind(), refusal) {
        (_, Some(refusal)) => refusal.0.to_owned(),
        (ErrorKind::UndefinedError, _) => match undefined(error) {
            Some(name) => {
                let detail = format!(
                    "line {line} of the template: `{}` is not there",
                    shown(name)
                );
                return Error::new(&codes::RENDER_TEMPLATE).detail(detail);
            }
            None => "a name is not there".to_owned(),
        },
        (ErrorKind::OutOfFuel, _) => "the template takes too many steps".to_owned(),
        (ErrorKind::UnknownFilter, _) => "there is no such filter".to_owned(),
        (ErrorKind::UnknownTest, _) => "there is no such test".to_owned(),
        (ErrorKind::UnknownFunction | ErrorKind::UnknownMethod, _) => {
            "nothing can be called here".to_owned()
        }
        (ErrorKind::MissingArgument | ErrorKind::TooManyArguments, _) => {
            "wrong number of arguments".to_owned()
        }
        (ErrorKind::CannotUnpack, _) => {
            "a value has not as many parts as there are names".to_owned()
        }
        (ErrorKind::SyntaxError | ErrorKind::BadEscape, _) => {
            "the template cannot be compiled".to_owned()
        }
        _ => "the values do not allow this operation".to_owned(),
    };
    Error::new(&codes::RENDER_TEMPLATE)
        .detail(format!("line {line} of the template: {what}{excerpt}"))
}

/// The expression that is undefined. With this kind the engine's detail is made of the template's text alone:
/// "`EXPRESSION` is undefined".
fn undefined(error: &minijinja::Error) -> Option<&str> {
    let rest = error.detail()?.strip_prefix('`')?;
    rest.split_once("` is undefined").map(|(name, _)| name)
}

/// Takes bytes up to a limit, then refuses.
struct Bounded {
    bytes: Zeroizing<Vec<u8>>,
    limit: u64,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
