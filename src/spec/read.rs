//! Fields of a YAML mapping, read one by one; what nobody read is unknown. Used by the spec and by the node's configuration.

use crate::{
    error::codes,
    spec::{Problems, Span, suggest},
    yaml::{Key, Node, Scalar, Style, Value},
};

/// A mapping, its place in the text as a path, and where to complain.
pub struct Fields<'n> {
    /// Path of the mapping: `files[2]`; empty for the whole text.
    pub path: String,
    /// The mapping's own place.
    pub at: Span,
    entries: &'n [(Key, Node)],
    /// Known keys that unknown ones were taken for: not missing, but misspelt.
    misspelt: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// `node` as a mapping with the keys `known`; each other key is a problem with the nearest known one named.
    /// A key of `reserved` is a problem too, of its own kind.
    pub fn new(
        node: &'n Node,
        path: &str,
        known: &[&'static str],
        reserved: &[&str],
        problems: &mut Problems,
    ) -> Option<Self> {
        let Value::Mapping(entries) = &node.value else {
            wrong_type(node, path, "a mapping (`key: value`)", problems);
            return None;
        };
        let mut fields = Self {
            path: path.to_owned(),
            at: node.at,
            entries,
            misspelt: Vec::new(),
        };
        for (key, _) in entries {
            let name = &*key.text;
            if reserved.contains(&name) {
                let message =
                    format!("`{name}` is reserved; this version of secretfs does not have it yet");
                let help = Some("remove it".to_owned());
                let field = fields.field(name);
                problems.add(&codes::SPEC_NOT_IMPLEMENTED, key.at, &field, message, help);
            } else if !known.contains(&name) {
                let place = if path.is_empty() {
                    String::new()
                } else {
                    format!(" in {path}")
                };
                let message = format!("unknown key `{}`{place}", shown(name));
                let meant = suggest::nearest(name, known.iter().copied());
                fields.misspelt.extend(meant);
                let help = meant
                    .map(|name| format!("did you mean `{name}`?"))
                    .or_else(|| Some(format!("known here: {}", known.join(", "))));
                let field = fields.field(&shown(name));
                problems.add(&codes::SPEC_UNKNOWN_KEY, key.at, &field, message, help);
            }
        }
        Some(fields)
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&'n Node> {
        self.entry(key).map(|(_, node)| node)
    }

    /// A key's own place and its value.
    pub fn entry(&self, key: &str) -> Option<(Span, &'n Node)> {
        self.entries
            .iter()
            .find(|(entry, _)| entry.text == key)
            .map(|(entry, node)| (entry.at, node))
    }

    /// The value of a key that must be there.
    pub fn require(&self, key: &str, problems: &mut Problems) -> Option<&'n Node> {
        let found = self.value(key);
        if found.is_none() && !self.is_misspelt(key) {
            let place = if self.path.is_empty() {
                "the text"
            } else {
                &self.path
            };
            let message = format!("{place} has no `{key}`");
            let at = self.start();
            problems.add(
                &codes::SPEC_MISSING_KEY,
                at,
                &self.field(key),
                message,
                None,
            );
        }
        found
    }

    /// Whether an unknown key was probably meant to be this one.
    pub fn is_misspelt(&self, key: &str) -> bool {
        self.misspelt.contains(&key)
    }

    /// Where to show what is missing: the first key.
    pub fn start(&self) -> Span {
        self.entries.first().map_or(self.at, |(key, _)| key.at)
    }

    /// All keys and values, for a mapping whose keys are names.
    pub fn all(&self) -> impl Iterator<Item = (&'n Key, &'n Node)> {
        self.entries.iter().map(|(key, node)| (key, node))
    }

    /// The path of a key of it.
    pub fn field(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

/// `node` as a mapping of names to values, all keys welcome.
pub fn names<'n>(node: &'n Node, path: &str, problems: &mut Problems) -> Option<Fields<'n>> {
    match &node.value {
        Value::Mapping(entries) => Some(Fields {
            path: path.to_owned(),
            at: node.at,
            entries,
            misspelt: Vec::new(),
        }),
        _ => {
            wrong_type(node, path, "a mapping of names", problems);
            None
        }
    }
}

/// `node` as a list.
pub fn list<'n>(node: &'n Node, path: &str, problems: &mut Problems) -> Option<&'n [Node]> {
    match &node.value {
        Value::Sequence(items) => Some(items),
        _ => {
            wrong_type(node, path, "a list", problems);
            None
        }
    }
}

/// `node` as text: a scalar that says something.
pub fn text<'n>(node: &'n Node, path: &str, problems: &mut Problems) -> Option<&'n Scalar> {
    match node.scalar() {
        Some(scalar) if !scalar.is_null() => Some(scalar),
        _ => {
            wrong_type(node, path, "text", problems);
            None
        }
    }
}

/// `node` as `true` or `false`, without quotes.
pub fn flag(node: &Node, path: &str, problems: &mut Problems) -> Option<bool> {
    match node.scalar() {
        Some(Scalar {
            text,
            style: Style::Plain,
        }) if text == "true" => Some(true),
        Some(Scalar {
            text,
            style: Style::Plain,
        }) if text == "false" => Some(false),
        _ => {
            wrong_type(node, path, "`true` or `false`", problems);
            None
        }
    }
}

/// `node` as a whole number from 0 to `max`, without quotes.
pub fn number(node: &Node, path: &str, max: u64, problems: &mut Problems) -> Option<u64> {
    let digits = node.scalar().filter(|scalar| {
        scalar.style == Style::Plain
            && !scalar.text.is_empty()
            && scalar.text.bytes().all(|b| b.is_ascii_digit())
            && (scalar.text == "0" || !scalar.text.starts_with('0'))
    });
    let number = digits.and_then(|scalar| scalar.text.parse().ok());
    let number = number.filter(|number| *number <= max);
    if number.is_none() {
        let expect = format!("a whole number from 0 to {max}");
        wrong_type(node, path, &expect, problems);
    }
    number
}

/// `node` as a number of bytes: `4096`, `64Ki`, `1Mi`, `2Gi`.
pub fn bytes(node: &Node, path: &str, problems: &mut Problems) -> Option<u64> {
    let parsed = node.scalar().and_then(|scalar| {
        let (digits, shift) = [("Ki", 10), ("Mi", 20), ("Gi", 30)]
            .iter()
            .find_map(|(unit, shift)| Some((scalar.text.strip_suffix(unit)?, *shift)))
            .unwrap_or((&scalar.text, 0));
        let number: u64 = digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse().ok())??;
        number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
    });
    if parsed.is_none() {
        wrong_type(node, path, "a size like 4096, 64Ki or 1Mi", problems);
    }
    parsed
}

/// `node` as one of `words`.
pub fn word<T: Copy>(
    node: &Node,
    path: &str,
    words: &[(&str, T)],
    problems: &mut Problems,
) -> Option<T> {
    let scalar = text(node, path, problems)?;
    let found = words.iter().find(|(word, _)| *word == scalar.text);
    if found.is_none() {
        let all: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        let message = format!(
            "{path} is `{}`, not {}",
            shown(&scalar.text),
            all.join(" or ")
        );
        let help = suggest::did_you_mean(&scalar.text, words.iter().map(|(word, _)| *word));
        problems.add(&codes::SPEC_WRONG_TYPE, node.at, path, message, help);
    }
    found.map(|(_, value)| *value)
}

/// "PATH is X, where Y is needed".
pub fn wrong_type(node: &Node, path: &str, expect: &str, problems: &mut Problems) {
    let what = match node.scalar() {
        Some(scalar) if !scalar.is_null() => format!("`{}`", shown(&scalar.text)),
        _ => node.kind().to_owned(),
    };
    let name = if path.is_empty() { "the text" } else { path };
    let message = format!("{name} is {what}; {expect} is needed");
    problems.add(&codes::SPEC_WRONG_TYPE, node.at, path, message, None);
}

/// Text from outside, fit for one line of a message: no control characters, at most 60 characters.
pub fn shown(text: &str) -> String {
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == 60 {
            out.push('…');
            break;
        }
        if c.is_control() || is_bidi(c) {
            out.extend(c.escape_debug());
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters that change the order in which a terminal shows others.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}
