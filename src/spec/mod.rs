//! What a volume's author writes, as types that cannot be wrong.
//!
//! Pure: text in, [`VolumeSpec`] or all [`Problem`]s out. Parse, don't validate: what leaves this module is complete,
//! within its limits, free of secrets, and may be logged and saved.

mod canonical;
pub mod files;
pub mod parse;
mod places;
mod problems;
pub mod read;
pub mod reference;
mod scan;
pub mod suggest;
pub mod template;
pub mod times;

use std::{fmt, sync::Arc, time::Duration};

pub use parse::{Check, Facts, Place, Setting, parse};
pub use places::{Part, Places};
pub use problems::Problems;

use crate::{
    error::Code,
    path::{Mode, Owner, RelPath},
};

/// The name under which the node's configuration knows a backend.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendName(Box<str>);

impl BackendName {
    /// Checks `text`: lower-case letters, digits and `-`, beginning with a letter, at most 63 characters.
    ///
    /// # Errors
    /// Why it is refused, as a phrase that follows the name.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let good = text.starts_with(|c: char| c.is_ascii_lowercase())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && text.len() <= 63;
        if good {
            Ok(Self(text.into()))
        } else {
            Err("is not a backend name (a-z, 0-9, -; a letter first; at most 63)")
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What one fetch asks for, in canonical form. No `#field`: fields are cut in `render`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Which configured backend.
    pub backend: BackendName,
    /// The secret's path in it.
    pub path: Box<str>,
    /// A fixed version; `None` is the current one.
    pub version: Option<Box<str>>,
    /// What the structured form adds (method, data), as canonical JSON; empty for a plain reference.
    pub params: Box<str>,
    /// Whether equal principals share the answer.
    pub share: Share,
}

impl fmt::Display for ObjectRef {
    /// `backend:path[@version]`, as it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.backend, self.path)?;
        self.version
            .as_ref()
            .map_or(Ok(()), |version| write!(f, "@{version}"))
    }
}

/// Who shares one object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Share {
    /// All volumes of one principal.
    Principal,
    /// Each volume has its own.
    Volume,
}

/// How a volume is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A tmpfs of its own.
    Tmpfs,
    /// A FUSE file system (reserved).
    Fuse,
}

/// How often a source that cannot push is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refresh {
    /// At least this often.
    Every(Duration),
    /// Only by push and on demand.
    Never,
}

/// Which part of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Select {
    /// All its bytes (of fields: the canonical JSON of them).
    Whole,
    /// `#name`: a top-level field as written.
    Field(Box<str>),
    /// `#/a/b`: a JSON pointer (RFC 6901), as written with its leading `/`.
    Pointer(Box<str>),
}

/// An encoding that a value is in and is freed of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decode {
    /// RFC 4648, standard or URL alphabet, padding optional, white space ignored.
    Base64,
    /// Two digits a byte, white space ignored.
    Hex,
}

/// A whole secret as one text file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `KEY="value"` lines.
    Dotenv,
    /// A JSON object.
    Json,
    /// A YAML mapping.
    Yaml,
    /// Java properties.
    Properties,
}

/// Where a file's bytes come from. `object` is an index into [`VolumeSpec::objects`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A value.
    Value {
        /// Index into `objects`.
        object: usize,
        /// Which part.
        select: Select,
        /// An encoding to undo.
        decode: Option<Decode>,
    },
    /// Every field, one file each, below the rule's path.
    AllFields {
        /// Index into `objects`.
        object: usize,
        /// An encoding to undo in each.
        decode: Option<Decode>,
    },
    /// All fields in one file.
    Formatted {
        /// Index into `objects`.
        object: usize,
        /// How it is written.
        format: Format,
    },
    /// A minijinja template over named sources.
    Template {
        /// The text, compiled once at parse time to see that it compiles.
        text: Arc<str>,
        /// (name in the template, index into `objects`): those that the template mentions.
        uses: Vec<(Box<str>, usize)>,
    },
}

impl Origin {
    /// Indices of all objects that it reads.
    pub fn objects(&self) -> Vec<usize> {
        match self {
            Origin::Value { object, .. }
            | Origin::AllFields { object, .. }
            | Origin::Formatted { object, .. } => {
                vec![*object]
            }
            Origin::Template { uses, .. } => uses.iter().map(|(_, object)| *object).collect(),
        }
    }
}

/// One entry of `files`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileRule {
    /// The file, or the directory of [`Origin::AllFields`] (`None` there: the volume's root, written `path: ./`).
    pub path: Option<RelPath>,
    /// Its bytes.
    pub origin: Origin,
    /// The spec's own mode for it.
    pub mode: Option<Mode>,
    /// Absent in the store: the file is absent, the volume still comes up.
    pub optional: bool,
}

/// SHA-256 of a spec's canonical text: equal digests mean equal specs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Digest(pub [u8; 32]);

/// Limits of one volume, from the node's configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeLimits {
    /// `limits.bytesPerFile`.
    pub bytes_per_file: u64,
    /// `limits.bytesPerVolume`.
    pub bytes_per_volume: u64,
    /// `limits.filesPerVolume`.
    pub files_per_volume: u32,
}

impl Default for VolumeLimits {
    fn default() -> Self {
        Self {
            bytes_per_file: crate::limits::BYTES_PER_FILE,
            bytes_per_volume: crate::limits::BYTES_PER_VOLUME,
            files_per_volume: crate::limits::FILES_PER_VOLUME,
        }
    }
}

/// What becomes of files whose secret the store, or the node's policy, refuses from now on, or does not have any more. A store that is down
/// is another matter: then they stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnDenied {
    /// They stay as they are while the volume lives.
    Keep,
    /// They stay for so long, and then go.
    RemoveAfter(Duration),
}

/// Valid, complete, no secrets: may be logged and saved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeSpec {
    /// How it is served.
    pub mount: MountKind,
    /// How often sources are asked.
    pub refresh: Refresh,
    /// What the store confirmed so long ago may still be given to a volume that comes while the store does not answer. Zero: nothing.
    pub serve_stale_for: Duration,
    /// What becomes of files whose secret is refused, or is there no more.
    pub on_denied: OnDenied,
    /// Each object once, however often the spec names it.
    pub objects: Vec<ObjectRef>,
    /// At least one.
    pub files: Vec<FileRule>,
    /// Mode of files without one of their own and without one of the store's; the origin's default is filled in.
    pub default_mode: Mode,
    /// Owner of all files.
    pub owner: Owner,
    /// Limits that hold for it.
    pub limits: VolumeLimits,
    /// Of the canonical text.
    pub digest: Digest,
    /// Where its parts stand in the text.
    pub places: Places,
}

/// A place in a text: 1-based line and column, and a length, all in characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    /// Line, from 1; 0 when the text has no lines (an attribute map).
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// Characters to underline.
    pub length: u32,
}

/// One thing that is wrong with a text.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Row of the error table.
    pub code: &'static Code,
    /// Where.
    pub at: Span,
    /// The field's path: `files[2].mode`.
    pub field: String,
    /// What is wrong, as a sentence without a full stop.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}
