//! `BACKEND:PATH[@VERSION][#FIELD]`: what a `from` or a source says.
//!
//! The first `:` ends BACKEND, the last `#` starts FIELD, and an `@` counts only as the last one before it and only where the
//! backend has versions: that is not known here, so [`Reference::path`] still holds it, and [`split_version`] cuts it.

use crate::{
    limits,
    spec::{BackendName, Select},
};

/// What a reference takes of its object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Take {
    /// A value.
    Value(Select),
    /// `#*`: all fields.
    All,
}

/// A reference as written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reference<'t> {
    /// Before the first `:`.
    pub backend: BackendName,
    /// Up to the last `#`, a version included. Checked by [`check_path`].
    pub path: &'t str,
    /// After the last `#`.
    pub take: Take,
}

/// What a `from` names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum From<'t> {
    /// A secret in a store.
    Secret(Reference<'t>),
    /// A named source.
    Source(&'t str, Take),
}

/// Reads the text of a `from`. A `:` before any `#` makes it a reference, else it names a source.
///
/// # Errors
/// What is wrong, as a sentence.
pub fn parse_from(text: &str) -> Result<From<'_>, String> {
    let before_field = text.split('#').next().unwrap_or(text);
    if before_field.contains(':') {
        return parse(text).map(From::Secret);
    }
    let (name, take) = cut_field(text)?;
    if let Err(refusal) = check_name(name) {
        return Err(format!("`{}` {refusal}", super::read::shown(name)));
    }
    Ok(From::Source(name, take))
}

/// Reads a reference.
///
/// # Errors
/// What is wrong, as a sentence.
pub fn parse(text: &str) -> Result<Reference<'_>, String> {
    let Some((backend, rest)) = text.split_once(':') else {
        return Err("there is no `:` after the backend's name".to_owned());
    };
    let backend = BackendName::parse(backend)
        .map_err(|refusal| format!("`{}` {refusal}", super::read::shown(backend)))?;
    let (path, take) = cut_field(rest)?;
    check_path(path).map_err(|refusal| format!("the path {refusal}"))?;
    Ok(Reference {
        backend,
        path,
        take,
    })
}

/// The version of a path that may have one: what follows the last `@`.
pub fn split_version(path: &str) -> Option<(&str, &str)> {
    path.rsplit_once('@')
}

/// Whether `name` can be a source's name: an identifier that a template can say.
///
/// # Errors
/// Why not, as a phrase that follows it.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    const WORDS: &[&str] = &[
        "and",
        "elif",
        "else",
        "false",
        "False",
        "for",
        "if",
        "in",
        "is",
        "loop",
        "none",
        "None",
        "not",
        "or",
        "self",
        "true",
        "True",
        "recursive",
    ];
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !first
        || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        || name.len() > limits::SOURCE_NAME_BYTES
    {
        return Err("is not a source's name (A-Z, a-z, 0-9, _; no digit first; at most 63)");
    }
    if WORDS.contains(&name) {
        return Err("is a word of the template language and cannot name a source");
    }
    Ok(())
}

/// Whether `path` can be a secret's path in any store.
///
/// # Errors
/// Why not, as a phrase that follows it.
pub fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("is empty");
    }
    if path.len() > limits::REFERENCE_BYTES {
        return Err("is longer than 1024 bytes");
    }
    if path.starts_with('/') {
        return Err("begins with `/`");
    }
    if path.chars().any(char::is_control) {
        return Err("holds a control character");
    }
    if path.contains(['%', '?']) {
        return Err("holds `%` or `?`");
    }
    for segment in path.split('/') {
        match segment {
            "" => return Err("has an empty segment"),
            "." | ".." => return Err("has a `.` or `..` segment"),
            _ => {}
        }
    }
    Ok(())
}

/// Whether `version` can be a version's name.
///
/// # Errors
/// Why not, as a phrase that follows it.
pub fn check_version(version: &str) -> Result<(), &'static str> {
    if version.is_empty() {
        Err("is empty")
    } else if version.len() > limits::REFERENCE_BYTES {
        Err("is longer than 1024 bytes")
    } else if version
        .chars()
        .any(|c| c.is_control() || c.is_whitespace() || matches!(c, '%' | '?' | '/'))
    {
        Err("holds a space, a control character, `/`, `%` or `?`")
    } else {
        Ok(())
    }
}

/// What a FIELD says: `*`, a pointer, or a name.
///
/// # Errors
/// Why not, as a sentence.
pub fn take(field: &str) -> Result<Take, String> {
    if field.is_empty() {
        return Err("there is nothing after the `#`".to_owned());
    }
    if field.len() > limits::REFERENCE_BYTES {
        return Err("the field is longer than 1024 bytes".to_owned());
    }
    if field.chars().any(char::is_control) {
        return Err("the field holds a control character".to_owned());
    }
    Ok(match field {
        "*" => Take::All,
        pointer if pointer.starts_with('/') => {
            let mut rest = pointer;
            while let Some((_, after)) = rest.split_once('~') {
                rest = after;
                if !rest.starts_with(['0', '1']) {
                    return Err("a `~` in a JSON pointer is written `~0`, a `/` `~1`".to_owned());
                }
            }
            Take::Value(Select::Pointer(pointer.into()))
        }
        name => Take::Value(Select::Field(name.into())),
    })
}

fn cut_field(text: &str) -> Result<(&str, Take), String> {
    match text.rsplit_once('#') {
        None => Ok((text, Take::Value(Select::Whole))),
        Some((rest, field)) => Ok((rest, take(field)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_cut_at_its_first_colon_and_last_hash() {
        for (text, backend, path, select) in [
            (
                "store:payments/db",
                "store",
                "payments/db",
                Take::Value(Select::Whole),
            ),
            (
                "store:a#b",
                "store",
                "a",
                Take::Value(Select::Field("b".into())),
            ),
            (
                "store:a#tls.crt",
                "store",
                "a",
                Take::Value(Select::Field("tls.crt".into())),
            ),
            (
                "store:a#/b/c~1d",
                "store",
                "a",
                Take::Value(Select::Pointer("/b/c~1d".into())),
            ),
            ("store:a#*", "store", "a", Take::All),
            (
                "store:a#b#c",
                "store",
                "a#b",
                Take::Value(Select::Field("c".into())),
            ),
            (
                "aws:arn:aws:x@5",
                "aws",
                "arn:aws:x@5",
                Take::Value(Select::Whole),
            ),
            (
                "k8s-1:ns/näme x",
                "k8s-1",
                "ns/näme x",
                Take::Value(Select::Whole),
            ),
        ] {
            let reference = parse(text).unwrap();
            assert_eq!(reference.backend.as_str(), backend, "{text}");
            assert_eq!((reference.path, reference.take), (path, select), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_reference_says_why() {
        for (text, says) in [
            ("store", "no `:`"),
            (":a", "not a backend name"),
            ("Store:a", "not a backend name"),
            ("store:", "is empty"),
            ("store:#a", "is empty"),
            ("store:/a", "begins with `/`"),
            ("store:a//b", "empty segment"),
            ("store:a/", "empty segment"),
            ("store:a/../b", "`..`"),
            ("store:./a", "`.`"),
            ("store:a%2fb", "`%`"),
            ("store:a?b", "`?`"),
            ("store:a\nb", "control"),
            ("store:a#", "nothing after"),
            ("store:a#/b~", "`~0`"),
            ("store:a#b\0", "control"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(says), "{text:?}: {said}");
        }
        assert!(parse(&format!("store:{}", "x".repeat(2000))).is_err());
    }

    #[test]
    fn a_colon_decides_between_a_reference_and_a_source() {
        assert!(matches!(parse_from("db"), Ok(From::Source("db", _))));
        assert!(matches!(parse_from("db#a:b"), Ok(From::Source("db", _))));
        assert!(matches!(parse_from("store:db#a:b"), Ok(From::Secret(_))));
        assert!(parse_from("my-db#x").unwrap_err().contains("source's name"));
        assert!(
            parse_from("loop")
                .unwrap_err()
                .contains("template language")
        );
        assert!(parse_from("").is_err() && parse_from("1a").is_err());
    }

    #[test]
    fn a_version_is_what_follows_the_last_at() {
        assert_eq!(split_version("a@b@3"), Some(("a@b", "3")));
        assert_eq!(split_version("a"), None);
        assert!(check_version("3").is_ok() && check_version("2026-01-01T00:00:00Z").is_ok());
        assert!(check_version("").is_err() && check_version("a/b").is_err());
    }
}
