//! Each rule of a spec becomes files.

use std::sync::Arc;

use crate::{
    error::{Error, Result, codes},
    path::{Mode, RelPath},
    render::{
        File, FileContent, FileSet, Known, decode,
        fields::{Found, Look},
        format, template,
    },
    secret::SecretBytes,
    spec::{Decode, FileRule, Origin, Select, VolumeSpec, read::shown},
};

/// The files of `spec`, of its `objects` (one for each of [`VolumeSpec::objects`], in that order).
///
/// For each rule:
/// 1. An object Withdrawn: no file. One Absent: the same, if the file is optional; else an error, for the volume is not what its author
///    asked for.
/// 2. An object Unknown: the file is kept; of a directory, all that is below it.
/// 3. All known: its bytes are made, and counted.
///
/// # Errors
/// The first rule's that fails: with the file and the object, never a value. A field that is missing is `render.no_field`
/// unless the file is optional.
pub fn render(spec: &VolumeSpec, objects: &[Known]) -> Result<FileSet> {
    let (set, failures) = render_all(spec, objects);
    match failures.into_iter().next() {
        Some(failure) => Err(failure.error),
        None => Ok(set),
    }
}

/// Why one rule made no file.
#[derive(Debug)]
pub struct Failure {
    /// Index into [`VolumeSpec::files`].
    pub rule: usize,
    /// Line of the template, from 1; 0 when it is not about a line.
    pub line: u32,
    /// What [`render`] would have returned.
    pub error: Error,
}

/// As [`render`], but goes on after a rule that fails: the files of all others, and every failure, in the order of the rules.
pub fn render_all(spec: &VolumeSpec, objects: &[Known]) -> (FileSet, Vec<Failure>) {
    let looks: Vec<_> = spec
        .objects
        .iter()
        .zip(objects)
        .map(|(name, known)| match known {
            Known::Object(object) => Seen::Object(Look::new(name, object)),
            Known::Absent => Seen::Absent,
            Known::Withdrawn => Seen::Withdrawn,
            Known::Unknown => Seen::Unknown,
        })
        .collect();
    let mut out = Out {
        spec,
        looks: &looks,
        set: FileSet::default(),
        bytes: 0,
        line: 0,
    };
    let mut failures = Vec::new();
    for (index, rule) in spec.files.iter().enumerate() {
        out.line = 0;
        if let Err(error) = out.rule(rule) {
            failures.push(Failure {
                rule: index,
                line: out.line,
                error: error.object(place(rule)),
            });
        }
    }
    (out.set, failures)
}

/// How a rule is named in an error.
fn place(rule: &FileRule) -> String {
    match &rule.path {
        Some(path) => path.to_string(),
        None => "./".to_owned(),
    }
}

enum Seen<'a> {
    Unknown,
    Absent,
    Withdrawn,
    Object(Look<'a>),
}

struct Out<'a> {
    spec: &'a VolumeSpec,
    looks: &'a [Seen<'a>],
    set: FileSet,
    bytes: u64,
    /// The line of the template that failed.
    line: u32,
}

impl<'a> Out<'a> {
    fn rule(&mut self, rule: &FileRule) -> Result<()> {
        let used = rule.origin.objects();
        let is_withdrawn = |index| matches!(self.looks.get(index), Some(Seen::Withdrawn));
        if used.iter().any(|index| is_withdrawn(*index)) {
            return Ok(()); // 1
        }
        let absent = used
            .iter()
            .find(|index| matches!(self.looks.get(**index), Some(Seen::Absent)));
        if let Some(index) = absent {
            return match self.spec.objects.get(*index) {
                _ if rule.optional => Ok(()), // 1
                Some(name) => Err(Error::new(&codes::BACKEND_NOT_FOUND)
                    .detail(format!("the store has no `{}`", shown(&name.to_string())))),
                None => Err(bug()),
            };
        }
        let unknown = used
            .iter()
            .any(|index| !matches!(self.looks.get(*index), Some(Seen::Object(_))));
        match (&rule.origin, &rule.path) {
            (Origin::AllFields { .. }, directory) if unknown => {
                self.set.keep_below(directory.clone()); // 2
                Ok(())
            }
            (Origin::AllFields { object, decode }, directory) => {
                self.fields(rule, *object, *decode, directory.as_ref())
            }
            (_, None) => Err(bug()),
            (_, Some(path)) if unknown => {
                self.add(path.clone(), self.mode(rule, None), FileContent::Keep) // 2
            }
            (origin, Some(path)) => match self.bytes_of(origin)? {
                Some(found) => {
                    let mode = self.mode(rule, found.mode);
                    self.add(path.clone(), mode, FileContent::New(found.bytes)) // 3
                }
                None if rule.optional => Ok(()),
                None => Err(self.no_field(origin)),
            },
        }
    }

    fn look(&self, index: usize) -> Result<&'a Look<'a>> {
        match self.looks.get(index) {
            Some(Seen::Object(look)) => Ok(look),
            _ => Err(bug()),
        }
    }

    /// A single file's bytes. `None`: the field is not there.
    fn bytes_of(&mut self, origin: &Origin) -> Result<Option<Found>> {
        let made = |bytes| {
            Some(Found {
                bytes: Arc::new(SecretBytes::new(bytes)),
                mode: None,
            })
        };
        match origin {
            Origin::Value {
                object,
                select,
                decode,
            } => match self.look(*object)?.select(select)? {
                Some(found) => decoded(found, *decode).map(Some),
                None => Ok(None),
            },
            Origin::Formatted { object, format } => {
                format::format(*format, self.look(*object)?).map(made)
            }
            Origin::Template { text, uses } => {
                let mut sources = Vec::with_capacity(uses.len());
                for (name, index) in uses {
                    sources.push((&**name, self.look(*index)?));
                }
                let limit = self.spec.limits.bytes_per_file;
                template::render(text, &sources, limit, &mut self.line).map(made)
            }
            Origin::AllFields { .. } => Err(bug()),
        }
    }

    fn fields(
        &mut self,
        rule: &FileRule,
        object: usize,
        decode: Option<Decode>,
        directory: Option<&RelPath>,
    ) -> Result<()> {
        for (name, found) in self.look(object)?.all()? {
            let text = match directory {
                Some(directory) => format!("{directory}/{name}"),
                None => name.clone(),
            };
            let refuse = |why: &str| {
                Error::new(&codes::RENDER_FIELD_PATH)
                    .detail(format!("the field `{}` {why}", shown(&name)))
            };
            RelPath::parse(&name).map_err(refuse)?;
            let path = RelPath::parse(&text).map_err(refuse)?;
            let found = decoded(found, decode).map_err(|error| error.object(&path))?;
            let mode = self.mode(rule, found.mode);
            self.add(path, mode, FileContent::New(found.bytes))?;
        }
        Ok(())
    }

    fn mode(&self, rule: &FileRule, of_store: Option<Mode>) -> Mode {
        rule.mode.or(of_store).unwrap_or(self.spec.default_mode)
    }

    /// Adds a file within the limits.
    fn add(&mut self, path: RelPath, mode: Mode, content: FileContent) -> Result<()> {
        let limits = &self.spec.limits;
        let too_large = |what: String| {
            Err(Error::new(&codes::RENDER_TOO_LARGE)
                .object(&path)
                .detail(what))
        };
        if let FileContent::New(bytes) = &content {
            let bytes = bytes.len() as u64;
            if bytes > limits.bytes_per_file {
                return too_large(format!(
                    "the file has more than {} bytes (limits.bytesPerFile)",
                    limits.bytes_per_file
                ));
            }
            if self.bytes + bytes > limits.bytes_per_volume {
                return too_large(format!(
                    "with this file the volume has more than {} bytes (limits.bytesPerVolume)",
                    limits.bytes_per_volume
                ));
            }
            self.bytes += bytes;
        }
        if self.set.len() >= limits.files_per_volume as usize {
            return too_large(format!(
                "with this file the volume has more than {} files (limits.filesPerVolume)",
                limits.files_per_volume
            ));
        }
        let file = File {
            mode,
            owner: self.spec.owner,
            content,
        };
        self.set.insert(path.clone(), file).map_err(|other| {
            Error::new(&codes::RENDER_FIELD_PATH)
                .object(path)
                .detail(format!(
                    "a field and another file exclude each other: `{other}`"
                ))
        })
    }

    fn no_field(&self, origin: &Origin) -> Error {
        let (name, field) = match origin {
            Origin::Value { object, select, .. } => {
                let field = match select {
                    Select::Field(name) => shown(name),
                    Select::Pointer(pointer) => shown(pointer),
                    Select::Whole => String::new(),
                };
                (self.spec.objects.get(*object), field)
            }
            _ => (None, String::new()),
        };
        let name = name.map(ToString::to_string).unwrap_or_default();
        Error::new(&codes::RENDER_NO_FIELD)
            .detail(format!("`{}` has no field `{field}`", shown(&name)))
    }
}

fn decoded(found: Found, encoding: Option<Decode>) -> Result<Found> {
    let Some(encoding) = encoding else {
        return Ok(found);
    };
    let bytes = decode::decode(encoding, found.bytes.expose()).ok_or_else(|| {
        let name = match encoding {
            Decode::Base64 => "base64",
            Decode::Hex => "hex",
        };
        Error::new(&codes::RENDER_DECODE).detail(format!("the value is not {name}"))
    })?;
    Ok(Found {
        bytes: Arc::new(SecretBytes::new(bytes)),
        mode: found.mode,
    })
}

/// The spec's types exclude it, or the caller gave another number of objects than the spec has.
fn bug() -> Error {
    Error::new(&codes::BUG).detail("the objects given are not those of the spec")
}
