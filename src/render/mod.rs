//! Objects and a spec become files. Pure: no I/O, no clock, bounded in steps and bytes; an error never holds a value.
//!
//! A [`FileSet`] is what readers should see next. Each rule of the spec becomes one file, or (`#*`) one for each field. A file
//! is rendered when all its objects are known; with one Unknown it is *kept* as it is mounted; with one Absent it is
//! absent, or an error, as the rule says; with one Withdrawn it is absent.
//!
//! `fields` looks into objects, `decode`, `format` and `template` make bytes of what is found, `quote` writes text so that a
//! reader of some syntax gets it back. Does not: fetch, mount, decide when.

mod decode;
mod fields;
mod filters;
mod format;
mod json;
mod quote;
mod rules;
mod template;

pub use rules::{Failure, render, render_all};

use std::{collections::BTreeMap, sync::Arc};

pub use crate::secret::Known;
use crate::{
    path::{Mode, Owner, RelPath},
    secret::{SecretBytes, Version},
};

/// Number of a volume's set of files, from 1, growing by one with each change that readers saw.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Generation(pub u64);

/// Sorted, within limits, no path the parent of another.
#[derive(Debug, Default, Clone)]
pub struct FileSet {
    files: BTreeMap<RelPath, File>,
    keep_below: Vec<Option<RelPath>>,
}

/// One file.
#[derive(Debug, Clone)]
pub struct File {
    /// Its permission bits.
    pub mode: Mode,
    /// Whose it is.
    pub owner: Owner,
    /// Its bytes.
    pub content: FileContent,
}

/// A file's bytes.
#[derive(Debug, Clone)]
pub enum FileContent {
    /// These.
    New(Arc<SecretBytes>),
    /// A source of the file is Unknown; it stays as mounted (and stays away if it is not there), so that a dead store does
    /// not stop the others.
    Keep,
}

impl FileSet {
    /// Adds a file.
    ///
    /// # Errors
    /// The path that it collides with: the same one, its parent or its child.
    pub fn insert(&mut self, path: RelPath, file: File) -> Result<(), RelPath> {
        if let Some(other) = self
            .files
            .keys()
            .find(|other| **other == path || other.contains(&path) || path.contains(other))
        {
            return Err(other.clone());
        }
        self.files.insert(path, file);
        Ok(())
    }

    /// Says that whatever is mounted below `directory` (`None`: the root) and is not named here stays as it is: its files
    /// are the fields of an object that is Unknown.
    pub fn keep_below(&mut self, directory: Option<RelPath>) {
        self.keep_below.push(directory);
    }

    /// The directories whose other files stay as they are.
    pub fn kept_below(&self) -> &[Option<RelPath>] {
        &self.keep_below
    }

    /// Whether a mounted file that is not in the set stays: it lies below a kept directory, and no file of the set needs
    /// its place.
    pub fn keeps(&self, mounted: &RelPath) -> bool {
        let below = self.keep_below.iter().any(|directory| {
            directory
                .as_ref()
                .is_none_or(|directory| directory.contains(mounted))
        });
        below
            && !self
                .files
                .keys()
                .any(|file| file == mounted || file.contains(mounted) || mounted.contains(file))
    }

    /// All files, by path.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&RelPath, &File)> {
        self.files.iter()
    }

    /// One file.
    pub fn file(&self, path: &RelPath) -> Option<&File> {
        self.files.get(path)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Bytes of all files that are not kept.
    pub fn bytes(&self) -> u64 {
        self.files
            .values()
            .map(|file| {
                if let FileContent::New(bytes) = &file.content {
                    bytes.len() as u64
                } else {
                    0
                }
            })
            .sum()
    }
}

/// One immutable generation.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its number.
    pub generation: Generation,
    /// When it was made, for the name of its directory.
    pub made_at: crate::clock::Wall,
    /// The version of each of the spec's objects; `None` while Unknown or Absent.
    pub versions: Vec<Option<Version>>,
    /// Its files.
    pub files: FileSet,
}
