//! A secret's name, checked once.
//!
//! A name is the PATH of a reference, so it is checked as references are; beyond that it must be one that a reference can
//! write (no `#`, no `@7` at the end) and that fits one file name, because a name is one directory of the store.

use std::fmt;

use crate::limits;

/// A secret's name: `payments/db`.
///
/// No segment is empty, `.` or `..`; nowhere a control character, `%`, `?` or `#`; no `@` followed by digits alone at the
/// end, which would be a version.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name(Box<str>);

impl Name {
    /// Checks `text`.
    ///
    /// # Errors
    /// The reason, as a phrase that follows the name: "is empty", "begins with `/`" ...
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("is empty");
        }
        if text.starts_with('/') {
            return Err("begins with `/`; leave it out");
        }
        if text.chars().any(char::is_control) {
            return Err("holds a control character");
        }
        if text.contains(['%', '?']) {
            return Err("holds `%` or `?`, which references do not allow");
        }
        if text.contains('#') {
            return Err("holds `#`, which begins a field in a reference");
        }
        for segment in text.split('/') {
            match segment {
                "" => return Err("has an empty segment (`//` or a `/` at the end)"),
                "." | ".." => return Err("has a `.` or `..` segment"),
                _ => {}
            }
        }
        if let Some((_, version)) = text.rsplit_once('@')
            && !version.is_empty()
            && version.bytes().all(|b| b.is_ascii_digit())
        {
            return Err("ends in `@` and digits, which a reference takes for a version");
        }
        let name = Self(text.into());
        if name.to_dir().len() > limits::FILE_NAME_BYTES {
            return Err("is longer than 255 bytes, the most that a file name may have");
        }
        Ok(name)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of its directory below `secrets/`: `/` is written `%`, which no name holds, and a leading `.` is written
    /// `%.`, so that no secret is a hidden file (`.git`!) and no hidden file a secret.
    pub fn to_dir(&self) -> String {
        let flat = self.0.replace('/', "%");
        if flat.starts_with('.') {
            format!("%{flat}")
        } else {
            flat
        }
    }

    /// The inverse of [`Name::to_dir`]; `None` for a directory that this program would not make.
    pub fn from_dir(dir: &str) -> Option<Self> {
        let flat = dir.strip_prefix('%').unwrap_or(dir);
        let name = Self::parse(&flat.replace('%', "/")).ok()?;
        (name.to_dir() == dir).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_checked_as_references_are() {
        for (text, refused) in [
            ("a", None),
            ("payments/db", None),
            ("a b/ü.c", None),
            (".env", None),
            ("..data/x", None),
            ("user@example.com", None),
            ("a@7/b", None),
            ("a@", None),
            ("a:b", None),
            ("", Some("empty")),
            ("/a", Some("begins with `/`")),
            ("a/", Some("empty segment")),
            ("a//b", Some("empty segment")),
            ("a/./b", Some("`..` segment")),
            ("..", Some("`..` segment")),
            ("a/../b", Some("`..` segment")),
            ("a%b", Some("`%`")),
            ("a?b", Some("`?`")),
            ("a#b", Some("`#`")),
            ("a\nb", Some("control")),
            ("a\0b", Some("control")),
            ("a\u{7f}", Some("control")),
            ("a@7", Some("version")),
            ("a/b@007", Some("version")),
        ] {
            match (Name::parse(text), refused) {
                (Ok(name), None) => assert_eq!(name.as_str(), text),
                (Err(why), Some(part)) => assert!(why.contains(part), "{text:?}: {why}"),
                (other, _) => panic!("{text:?}: {other:?}"),
            }
        }
        assert!(Name::parse(&"x".repeat(255)).is_ok() && Name::parse(&"x".repeat(256)).is_err());
        assert!(Name::parse(&format!(".{}", "x".repeat(254))).is_err());
    }

    #[test]
    fn a_directory_that_no_name_has_is_no_secret() {
        for dir in [
            "", "%", "%%", "a%", "%a", ".env", "..", "a%%b", "a@7", "a#b",
        ] {
            assert_eq!(Name::from_dir(dir), None, "{dir:?}");
        }
        assert_eq!(Name::parse(".git").unwrap().to_dir(), "%.git");
        assert_eq!(Name::parse("a/.git").unwrap().to_dir(), "a%.git");
    }

    proptest! {
        #[test]
        fn a_name_and_its_directory_tell_each_other(text in "[a-z./@%]{1,12}") {
            if let Ok(name) = Name::parse(&text) {
                let dir = name.to_dir();
                prop_assert!(!dir.contains('/') && !dir.starts_with('.'));
                prop_assert_eq!(Name::from_dir(&dir), Some(name));
            }
            if let Some(name) = Name::from_dir(&text) {
                prop_assert_eq!(name.to_dir(), text);
            }
        }
    }
}
