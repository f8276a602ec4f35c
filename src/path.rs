//! Names from outside, checked once: what has one of these types is safe to use as it is.
//!
//! [`RelPath`] is the only way to name a file of a volume, [`TargetPath`] the only way to name where a volume is mounted, and
//! [`VolumeId`] the only way to name a volume.
//! [`Mode`] and [`Owner`] are what a file is created with. Nothing here touches a file system.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::limits;

/// Why a path was refused, as a phrase that follows the path in a sentence.
pub type Refusal = &'static str;

const LONG_SEGMENT: Refusal = "has a segment longer than 255 bytes";

/// The path of a file within a volume: relative, `/`-separated, and unable to leave it.
///
/// No segment is empty, `.`, `..` or begins with `..` (the layout's own names do), none holds a control character or NUL,
/// none is longer than [`limits::FILE_NAME_BYTES`], and the whole is no longer than [`limits::PATH_BYTES`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RelPath(Box<str>);

impl RelPath {
    /// Checks `text`.
    ///
    /// # Errors
    /// The reason, as a phrase: "is absolute", "leads upwards" ...
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        if text.is_empty() {
            return Err("is empty");
        }
        if text.len() > limits::PATH_BYTES {
            return Err("is longer than 1024 bytes");
        }
        if text.starts_with('/') {
            return Err("is absolute; paths are relative to the volume");
        }
        if text.ends_with('/') {
            return Err("ends in `/`, so it names a directory");
        }
        if text.chars().any(char::is_control) {
            return Err("holds a control character");
        }
        for segment in text.split('/') {
            match segment {
                "" => return Err("has an empty segment"),
                "." | ".." => return Err("has a `.` or `..` segment"),
                s if s.starts_with("..") => {
                    return Err(
                        "has a segment that begins with `..`; those names belong to the layout",
                    );
                }
                s if s.len() > limits::FILE_NAME_BYTES => return Err(LONG_SEGMENT),
                _ => {}
            }
        }
        Ok(Self(text.into()))
    }

    /// The path as text, without leading or trailing `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// First segment: the name that the volume's root shows.
    pub fn top(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }

    /// The segments, at least one.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether `self` is a proper ancestor directory of `other`.
    pub fn contains(&self, other: &RelPath) -> bool {
        other
            .0
            .strip_prefix(&*self.0)
            .is_some_and(|rest| rest.starts_with('/'))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a volume is mounted: an absolute path without `.` and `..`, not `/` itself, no longer than the kernel takes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TargetPath(PathBuf);

impl TargetPath {
    /// Checks `path`; it need not exist.
    ///
    /// # Errors
    /// The reason, as a phrase.
    pub fn parse(path: &Path) -> Result<Self, Refusal> {
        use std::path::Component as C;
        if !path.is_absolute() {
            return Err("is not absolute");
        }
        if path.as_os_str().len() > limits::TARGET_BYTES {
            return Err("is longer than 4095 bytes");
        }
        // NUL for the kernel; a newline or an escape for whoever reads the path in a line or a table.
        if path.to_string_lossy().contains(char::is_control) {
            return Err("holds a control character");
        }
        if path.components().any(|c| matches!(c, C::ParentDir)) {
            return Err("has a `..` segment");
        }
        let long = |c: C<'_>| c.as_os_str().len() > limits::FILE_NAME_BYTES;
        if path.components().any(long) {
            return Err(LONG_SEGMENT);
        }
        let clean: PathBuf = path.components().collect();
        if clean.file_name().is_none() {
            return Err("is the root directory");
        }
        Ok(Self(clean))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The path from `dir` to the mount point, if that lies below `dir` as text.
    pub fn below(&self, dir: &Path) -> Option<&Path> {
        let below = self.0.strip_prefix(dir).ok()?;
        // Of an empty `dir` nothing is stripped.
        (below.is_relative() && below != Path::new("")).then_some(below)
    }

    /// The directory that holds the mount point.
    pub fn parent(&self) -> &Path {
        self.0.parent().unwrap_or(Path::new("/"))
    }

    /// The mount point's own name.
    pub fn name(&self) -> &std::ffi::OsStr {
        self.0.file_name().unwrap_or_default()
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

/// A volume's id: the kubelet's `csi-<64 hex>`, or `local-<16 hex>` without Kubernetes.
#[derive(
    Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize,
)]
pub struct VolumeId(Box<str>);

impl VolumeId {
    /// Checks `text`: 1 to 128 characters of `[A-Za-z0-9._-]`, so that it fits a mount's source string and a file name.
    pub fn parse(text: &str) -> Option<Self> {
        let good = (1..=limits::VOLUME_ID_BYTES).contains(&text.len())
            && !text.starts_with('.')
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        good.then(|| Self(text.into()))
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Permission bits, at most 0777.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mode(u16);

impl Mode {
    /// `None` above 0777: no setuid, setgid or sticky bit ever.
    pub const fn new(bits: u32) -> Option<Self> {
        if bits <= 0o777 {
            Some(Self(bits as u16))
        } else {
            None
        }
    }

    /// A constant that is known to be right.
    ///
    /// # Panics
    /// At compile time, above 0777.
    pub const fn literal(bits: u16) -> Self {
        assert!(bits <= 0o777);
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// Whom a file belongs to. `None`: as whoever we run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Owner {
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_cannot_leave_the_volume() {
        for (text, good) in [
            ("a", true),
            ("a/b.c", true),
            (".env", true),
            ("a b/ü", true),
            ("", false),
            ("/a", false),
            ("a/", false),
            ("a//b", false),
            ("a/./b", false),
            ("a/../b", false),
            ("..data", false),
            ("a/..k", false),
            ("...", false),
            ("a\0b", false),
            ("a\nb", false),
        ] {
            assert_eq!(RelPath::parse(text).is_ok(), good, "{text:?}");
        }
        assert!(
            RelPath::parse(&"x".repeat(255)).is_ok() && RelPath::parse(&"x".repeat(256)).is_err()
        );
        let (a, ab, abc) = ("a", "ab", "a/b").into_paths();
        assert!(a.contains(&abc) && !a.contains(&ab) && !a.contains(&a));
    }

    trait IntoPaths {
        fn into_paths(self) -> (RelPath, RelPath, RelPath);
    }
    impl IntoPaths for (&str, &str, &str) {
        fn into_paths(self) -> (RelPath, RelPath, RelPath) {
            let parse = |text| RelPath::parse(text).unwrap();
            (parse(self.0), parse(self.1), parse(self.2))
        }
    }

    #[test]
    fn a_target_is_absolute_and_has_a_name() {
        for (text, good) in [
            ("/a/b", true),
            ("/a/b/", true),
            ("a", false),
            ("/", false),
            ("/a/../b", false),
            ("", false),
            ("/a\nready/b", false),
            ("/a/b\x1b[2J", false),
            ("/a/\u{85}", false),
            ("/a/\0", false),
            ("/a/ä b", true),
        ] {
            assert_eq!(TargetPath::parse(Path::new(text)).is_ok(), good, "{text:?}");
        }
        let target = TargetPath::parse(Path::new("/a//b/")).unwrap();
        assert_eq!(
            (target.parent(), target.name().to_str()),
            (Path::new("/a"), Some("b"))
        );
        for (dir, below) in [
            ("/a", Some("b")),
            ("/a/", Some("b")),
            ("/", Some("a/b")),
            ("/a/b", None),
            ("/a/b/c", None),
            ("/a/./", Some("b")),
            ("/aa", None),
            ("/a/../a", None),
            ("", None),
        ] {
            assert_eq!(
                target.below(Path::new(dir)),
                below.map(Path::new),
                "{dir:?}"
            );
        }
    }
}
