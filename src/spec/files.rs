//! One entry of `files` becomes a [`FileRule`]; and which paths exclude each other.

use std::sync::Arc;

use crate::{
    error::codes,
    limits,
    path::RelPath,
    spec::{
        BackendName, Decode, FileRule, Format, ObjectRef, Origin, Part, Problems, Select, Share,
        Span,
        parse::Reader,
        read::{self, Fields, shown},
        reference::{self, From, Take},
        template::{self, Place},
        times::duration,
    },
    yaml::{Node, Scalar, Style, Value},
};

/// Keys of one of `files`.
pub const KEYS: &[&str] = &[
    "path", "from", "template", "format", "decode", "mode", "optional",
];
/// Keys of a structured `from`.
pub const FROM_KEYS: &[&str] = &[
    "backend", "path", "version", "method", "data", "role", "wrapTTL", "field",
];
const SOURCE_KEYS: &[&str] = &[
    "backend", "path", "version", "method", "data", "role", "wrapTTL",
];
const DECODES: &[(&str, Decode)] = &[("base64", Decode::Base64), ("hex", Decode::Hex)];
const FORMATS: &[(&str, Format)] = &[
    ("dotenv", Format::Dotenv),
    ("json", Format::Json),
    ("yaml", Format::Yaml),
    ("properties", Format::Properties),
];

/// A file's claim to a path.
pub(super) struct Claim {
    /// `None`: something of it is wrong, which has been said.
    pub rule: Option<FileRule>,
    /// Where its `from` or `template` stands.
    pub place: Part,
    /// The path, if that is right.
    target: Option<Target>,
    at: Span,
    index: usize,
}

/// What a path names.
#[derive(Clone, PartialEq, Eq)]
enum Target {
    File(RelPath),
    /// `None`: the volume's root.
    Directory(Option<RelPath>),
}

impl Reader<'_> {
    /// Reads `files[index]`.
    pub fn file(&mut self, index: usize, node: &Node) -> Claim {
        let field = format!("files[{index}]");
        let mut claim = Claim {
            rule: None,
            place: Part::default(),
            target: None,
            at: node.at,
            index,
        };
        let known = self.problems.len();
        let Some(fields) = Fields::new(node, &field, KEYS, &[], &mut self.problems) else {
            return claim;
        };
        claim.place = origin_place(&fields);
        let path = fields.require("path", &mut self.problems);
        if let Some(path) = path {
            claim.at = path.at;
            claim.target = self.target(path, &fields.field("path"));
        }
        let mode_field = fields.field("mode");
        let mode = fields
            .value("mode")
            .and_then(|node| self.mode(node, &mode_field));
        let optional = fields
            .value("optional")
            .and_then(|node| read::flag(node, &fields.field("optional"), &mut self.problems));
        let origin = self.origin(&fields, claim.target.as_ref(), claim.at);
        if let (Some(origin), Some(target)) = (origin, &claim.target)
            && self.problems.len() == known
        {
            claim.rule = Some(FileRule {
                path: match target {
                    Target::File(path) => Some(path.clone()),
                    Target::Directory(path) => path.clone(),
                },
                origin,
                mode,
                optional: optional.unwrap_or(false),
            });
        }
        claim
    }

    fn target(&mut self, node: &Node, field: &str) -> Option<Target> {
        let scalar = read::text(node, field, &mut self.problems)?;
        let text = &*scalar.text;
        let parsed = match text.strip_suffix('/') {
            Some(".") => Ok(Target::Directory(None)),
            Some(directory) if !directory.is_empty() => {
                RelPath::parse(directory).map(|path| Target::Directory(Some(path)))
            }
            _ => RelPath::parse(text).map(Target::File),
        };
        parsed
            .map_err(|refusal| {
                let message = format!("the path `{}` {refusal}", shown(text));
                self.problems
                    .add(&codes::SPEC_BAD_PATH, node.at, field, message, None);
            })
            .ok()
    }

    /// Where the bytes come from: exactly one of `from` and `template`, with what goes with it.
    fn origin(&mut self, fields: &Fields<'_>, target: Option<&Target>, at: Span) -> Option<Origin> {
        let decode = self.word(fields, "decode", DECODES);
        let format = self.word(fields, "format", FORMATS);
        let (from, template) = (fields.value("from"), fields.value("template"));
        for (key, excludes) in [
            ("template", "from"),
            ("template", "format"),
            ("template", "decode"),
            ("format", "decode"),
        ] {
            if let (Some(_), Some((at, _))) = (fields.value(key), fields.entry(excludes)) {
                let message = format!("`{key}` and `{excludes}` exclude each other");
                let field = fields.field(excludes);
                self.problems
                    .add(&codes::SPEC_CONFLICTING_KEYS, at, &field, message, None);
            }
        }
        let is_directory = matches!(target, Some(Target::Directory(_)));
        match (from, template) {
            (None, None) if fields.is_misspelt("from") || fields.is_misspelt("template") => None,
            (None, None) => {
                let message = format!("{} has neither `from` nor `template`", fields.path);
                let field = fields.field("from");
                self.problems.add(
                    &codes::SPEC_MISSING_KEY,
                    fields.start(),
                    &field,
                    message,
                    None,
                );
                None
            }
            (_, Some(node)) => {
                if is_directory {
                    self.needs_all(at, fields);
                }
                self.template(node, &fields.field("template"))
            }
            (Some(node), None) => {
                let (object, take) = self.from(node, &fields.field("from"))?;
                self.taken(fields, target, at, (node.at, object, take), decode, format)
            }
        }
    }

    /// The origin of what a `from` takes, as the path and the `format` allow it.
    fn taken(
        &mut self,
        fields: &Fields<'_>,
        target: Option<&Target>,
        at: Span,
        (from, object, take): (Span, usize, Take),
        decode: Option<Decode>,
        format: Option<Format>,
    ) -> Option<Origin> {
        let is_directory = matches!(target, Some(Target::Directory(_)));
        match (take, format) {
            (Take::All, None) if target.is_none() || is_directory => {
                Some(Origin::AllFields { object, decode })
            }
            (Take::All, None) => {
                let message = "`#*` makes many files, but the path names one";
                let help = Some("end the path in `/`".to_owned());
                let field = fields.field("path");
                self.problems
                    .add(&codes::SPEC_BAD_PATH, at, &field, message, help);
                None
            }
            (Take::Value(_), _) if is_directory => {
                self.needs_all(at, fields);
                None
            }
            (Take::Value(Select::Whole), Some(format)) => {
                Some(Origin::Formatted { object, format })
            }
            (_, Some(_)) => {
                let message = "`format` writes a whole secret, not a part of it";
                let help = Some("remove the `#...`".to_owned());
                let (code, field) = (&codes::SPEC_CONFLICTING_KEYS, fields.field("from"));
                self.problems.add(code, from, &field, message, help);
                None
            }
            (Take::Value(select), None) => Some(Origin::Value {
                object,
                select,
                decode,
            }),
        }
    }

    fn needs_all(&mut self, at: Span, fields: &Fields<'_>) {
        let message = "a path that ends in `/` is a directory, one file for each field";
        let help = Some("remove the `/`, or take all fields: `from: NAME#*`".to_owned());
        let field = fields.field("path");
        self.problems
            .add(&codes::SPEC_BAD_PATH, at, &field, message, help);
    }

    fn word<T: Copy>(&mut self, fields: &Fields<'_>, key: &str, words: &[(&str, T)]) -> Option<T> {
        let node = fields.value(key)?;
        read::word(node, &fields.field(key), words, &mut self.problems)
    }

    fn from(&mut self, node: &Node, field: &str) -> Option<(usize, Take)> {
        if matches!(node.value, Value::Mapping(_)) {
            return self.structured(node, field, false);
        }
        let scalar = read::text(node, field, &mut self.problems)?;
        match reference::parse_from(&scalar.text) {
            Ok(From::Secret(reference)) => {
                let object = self.object(&reference, node, field)?;
                Some((object, reference.take))
            }
            Ok(From::Source(name, take)) => match self.source(name) {
                Some(object) => object.map(|object| (object, take)),
                None => {
                    let message = format!("there is no source `{name}`");
                    let help = self.source_help(name);
                    self.problems
                        .add(&codes::SPEC_UNKNOWN_SOURCE, node.at, field, message, help);
                    None
                }
            },
            Err(message) => {
                self.bad_reference(node, field, &message);
                None
            }
        }
    }

    /// `{backend, path, version, method, data, field}`: what a string cannot say.
    pub fn structured(&mut self, node: &Node, field: &str, source: bool) -> Option<(usize, Take)> {
        let (known, reserved): (_, &[&str]) = match source {
            true => (SOURCE_KEYS, &["lease"]),
            false => (FROM_KEYS, &[]),
        };
        let before = self.problems.len();
        let fields = Fields::new(node, field, known, reserved, &mut self.problems)?;
        let backend = fields.require("backend", &mut self.problems);
        let path = fields.require("path", &mut self.problems);
        let backend = backend.and_then(|node| {
            self.part(node, &fields.field("backend"), |text| {
                BackendName::parse(text).map_err(|refusal| format!("`{}` {refusal}", shown(text)))
            })
        });
        let path = path.and_then(|node| {
            self.part(node, &fields.field("path"), |text| {
                reference::check_path(text).map_err(|refusal| format!("the path {refusal}"))?;
                Ok(Box::<str>::from(text))
            })
        });
        let version = fields.value("version").and_then(|node| {
            self.part(node, &fields.field("version"), |text| {
                reference::check_version(text)
                    .map_err(|refusal| format!("the version {refusal}"))?;
                Ok(Box::<str>::from(text))
            })
        });
        let take = fields
            .value("field")
            .and_then(|node| self.part(node, &fields.field("field"), reference::take));
        let params = self.params(&fields);
        if self.problems.len() > before {
            return None;
        }
        let object = ObjectRef {
            backend: backend?,
            path: path?,
            version,
            params,
            // what opens once is nobody else's
            share: match fields.value("wrapTTL") {
                Some(_) => Share::Volume,
                None => Share::Principal,
            },
        };
        let object = self.checked(object, node, field)?;
        Some((object, take.unwrap_or(Take::Value(Select::Whole))))
    }

    fn part<T>(
        &mut self,
        node: &Node,
        field: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let scalar = read::text(node, field, &mut self.problems)?;
        parse(&scalar.text)
            .map_err(|message| {
                self.problems
                    .add(&codes::SPEC_BAD_REFERENCE, node.at, field, message, None);
            })
            .ok()
    }

    /// `method`, `data`, `role` and `wrapTTL` (in seconds) as canonical JSON: sorted keys, no spaces. Empty without any of them.
    fn params(&mut self, fields: &Fields<'_>) -> Box<str> {
        let mut params = serde_json::Map::new();
        if let Some(node) = fields.value("method") {
            let method = self.part(node, &fields.field("method"), |text| {
                let good = text.len() <= 32 && text.bytes().all(|b| b.is_ascii_lowercase());
                good.then(|| text.to_owned())
                    .ok_or_else(|| format!("`{}` is not a method (a-z)", shown(text)))
            });
            params.extend(method.map(|method| ("method".to_owned(), method.into())));
        }
        if let Some(node) = fields.value("data") {
            if matches!(node.value, Value::Mapping(_)) {
                params.insert("data".to_owned(), json(node));
            } else {
                read::wrong_type(node, &fields.field("data"), "a mapping", &mut self.problems);
            }
        }
        if let Some(node) = fields.value("role") {
            let role = self.part(node, &fields.field("role"), |text| {
                let good =
                    !text.is_empty() && text.len() <= 128 && !text.contains(char::is_control);
                good.then(|| text.to_owned())
                    .ok_or_else(|| "the role is not a name of at most 128 bytes".to_owned())
            });
            params.extend(role.map(|role| ("role".to_owned(), role.into())));
        }
        if let Some(node) = fields.value("wrapTTL") {
            let ttl = self.part(node, &fields.field("wrapTTL"), |text| {
                let ttl =
                    duration(text).filter(|ttl| !ttl.is_zero() && *ttl <= limits::REFRESH_MAX);
                ttl.ok_or_else(|| {
                    format!(
                        "`{}` is not a time like 60s, 5m or 1h, at most 720h",
                        shown(text)
                    )
                })
            });
            params.extend(ttl.map(|ttl| ("wrapTTL".to_owned(), ttl.as_secs().into())));
        }
        if params.is_empty() {
            return "".into();
        }
        serde_json::Value::Object(params).to_string().into()
    }

    fn template(&mut self, node: &Node, field: &str) -> Option<Origin> {
        let scalar = node.scalar().filter(|scalar| !scalar.is_null());
        let Some(scalar) = scalar else {
            read::wrong_type(node, field, "text", &mut self.problems);
            return None;
        };
        // Its text has at most SPEC_BYTES, as all text of a spec; `limits.bytesPerFile` is for what it makes.
        let names = match template::read(&scalar.text) {
            Ok(names) => names,
            Err(faults) => {
                for fault in faults {
                    let (at, place) = self.within(node, scalar, fault.at);
                    let message = format!("{}{place}", fault.message);
                    self.problems
                        .add(&codes::SPEC_BAD_TEMPLATE, at, field, message, fault.help);
                }
                return None;
            }
        };
        let mut uses = Vec::new();
        let mut good = true;
        for used in names {
            match self.source(&used.name) {
                Some(Some(object)) => uses.push((used.name.into(), object)),
                Some(None) => good = false,
                None => {
                    good = false;
                    let (at, place) = self.within(node, scalar, used.at);
                    let message = format!("there is no source `{}`{place}", shown(&used.name));
                    let help = match used.called {
                        true => Some("templates have filters, but no functions".to_owned()),
                        false => self.source_help(&used.name),
                    };
                    self.problems
                        .add(&codes::SPEC_UNKNOWN_SOURCE, at, field, message, help);
                }
            }
        }
        let text = Arc::from(&*scalar.text);
        good.then_some(Origin::Template { text, uses })
    }

    /// A place in a template as a place in the spec: exact for a `|` block and for text on one line without escapes; else
    /// the whole template, and the line within it in words.
    fn within(&self, node: &Node, scalar: &Scalar, place: Place) -> (Span, String) {
        let line = |number: u32| {
            let index = usize::try_from(number).ok()?.checked_sub(1)?;
            self.text.lines().nth(index)
        };
        let wanted = scalar
            .text
            .lines()
            .nth(place.line.saturating_sub(1) as usize);
        let source_line = match scalar.style {
            Style::Literal => (first_line(node, scalar) + place.line).saturating_sub(1),
            _ => node.at.line,
        };
        let exact = match (wanted, line(source_line)) {
            (Some(wanted), Some(source)) if scalar.style == Style::Literal => source
                .strip_suffix(wanted)
                .map(|indent| indent.chars().count()),
            (Some(wanted), Some(source)) if scalar.text == wanted => source
                .find(wanted)
                .and_then(|at| source.get(..at))
                .map(|before| before.chars().count()),
            _ => None,
        };
        let Some(indent) = exact else {
            return (node.at, format!(" (line {} of the template)", place.line));
        };
        let at = Span {
            line: source_line,
            column: u32::try_from(indent).unwrap_or(0) + place.column,
            length: place.length,
        };
        (at, String::new())
    }
}

/// The line of the text in which a `|` block's own text begins.
fn first_line(node: &Node, scalar: &Scalar) -> u32 {
    // A block begins, for the parser, at its first line that is not empty.
    let empty = scalar.text.lines().take_while(|line| line.is_empty());
    let empty = u32::try_from(empty.count()).unwrap_or(0);
    node.at.line.saturating_sub(empty)
}

/// Where a file's bytes come from, in the text.
fn origin_place(fields: &Fields<'_>) -> Part {
    let part = |key: &str| {
        fields.value(key).map(|node| Part {
            at: node.at,
            field: fields.field(key),
            first_line: match node.scalar() {
                Some(scalar) if scalar.style == Style::Literal => first_line(node, scalar),
                _ => 0,
            },
        })
    };
    part("template")
        .or_else(|| part("from"))
        .unwrap_or_default()
}

/// YAML as JSON. Text in quotes stays text; what is not a JSON number, `true`, `false` or nothing is text too.
fn json(node: &Node) -> serde_json::Value {
    use serde_json::Value as Json;
    match &node.value {
        Value::Sequence(items) => Json::Array(items.iter().map(json).collect()),
        Value::Mapping(entries) => {
            let entries = entries
                .iter()
                .map(|(key, node)| (key.text.clone(), json(node)));
            Json::Object(entries.collect())
        }
        Value::Scalar(scalar) if scalar.is_null() => Json::Null,
        Value::Scalar(scalar) if scalar.style == Style::Plain => match &*scalar.text {
            "true" => Json::Bool(true),
            "false" => Json::Bool(false),
            text => serde_json::from_str::<serde_json::Number>(text)
                .ok()
                .filter(|number| number.to_string() == text)
                .map_or_else(|| Json::String(text.to_owned()), Json::Number),
        },
        Value::Scalar(scalar) => Json::String(scalar.text.clone()),
    }
}

/// Names both places of each path that is taken twice, or lies inside a file. A file inside a directory of fields is
/// allowed: whether a field wants its place is known only when it is rendered.
pub(super) fn conflicts(claims: &[Claim], problems: &mut Problems) {
    for (later, claim) in claims.iter().enumerate() {
        let Some(target) = &claim.target else {
            continue;
        };
        for other in claims.iter().take(later) {
            let Some(message) = other
                .target
                .as_ref()
                .and_then(|first| clash(first, target, other))
            else {
                continue;
            };
            let help = Some("give one of the two another path".to_owned());
            let field = format!("files[{}].path", claim.index);
            problems.add(&codes::SPEC_PATH_CONFLICT, claim.at, &field, message, help);
            break;
        }
    }
}

fn clash(first: &Target, second: &Target, other: &Claim) -> Option<String> {
    let by = format!("(files[{}], line {})", other.index, other.at.line);
    let file_and_directory = |file: &RelPath| {
        format!("`{file}` is a file and cannot also be a directory; the other is {by}")
    };
    match (first, second) {
        (Target::File(a), Target::File(b)) if a == b => {
            Some(format!("`{a}` is there already {by}"))
        }
        (Target::File(a), Target::File(b)) if a.contains(b) => Some(format!(
            "`{a}` is a file {by} and cannot also be a directory"
        )),
        (Target::File(a), Target::File(b)) if b.contains(a) => Some(file_and_directory(b)),
        (Target::File(file), Target::Directory(Some(directory)))
        | (Target::Directory(Some(directory)), Target::File(file))
            if file == directory || file.contains(directory) =>
        {
            Some(file_and_directory(file))
        }
        _ => None,
    }
}
