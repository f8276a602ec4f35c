//! Secret bytes and what a store says about them: the nouns of the data path, without I/O.
//!
//! An [`Object`] is one answer of a store, all of one [`Version`]. Its bytes are [`SecretBytes`]: shared by `Arc` from
//! the backend to the mount, wiped when the last owner lets go, and never printed. (Copies that parsers and templates
//! make are wiped by the allocator, `sys::alloc`.)

use std::{collections::BTreeMap, fmt, sync::Arc};

use zeroize::Zeroizing;

use crate::{clock::Mono, path::Mode};

/// Bytes of a secret. Wiped on drop; `Debug` prints the type's name; no Clone, Display, Serialize, PartialEq.
pub struct SecretBytes(Zeroizing<Box<[u8]>>);

impl SecretBytes {
    /// Takes `bytes` over. Spare capacity is freed (and wiped by the allocator) on the way.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes.into_boxed_slice()))
    }

    /// The bytes. Every caller is a place to look at when a secret is where it should not be.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Whether both hold the same bytes. Not constant-time: both sides are ours, nobody is guessing.
    pub fn same(&self, other: &SecretBytes) -> bool {
        self.0 == other.0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes")
    }
}

/// A store's name for one state of an object. Equality only; only the backend that wrote it looks inside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version(Box<str>);

impl Version {
    /// Wraps a store's own name for a version. It may be logged and shown to users.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The store's own spelling, for display, audit and the backend that made it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One answer of a store, all of one version.
#[derive(Debug)]
pub struct Object {
    /// What the store calls this state.
    pub version: Version,
    /// The secret itself.
    pub content: Content,
    /// Set when the object dies by itself.
    pub lease: Option<Lease>,
}

/// What is known of an object.
#[derive(Clone, Debug)]
pub enum Known {
    /// Not asked since our start.
    Unknown,
    /// The store says that there is none.
    Absent,
    /// There was one, and this volume may show it no longer: it has been refused, or gone from the store, for longer than the spec lets its
    /// files stay. Says the volume, never a source.
    Withdrawn,
    /// This.
    Object(Arc<Object>),
}

impl Known {
    /// Whether both are the same answer of the store: the same object, not only an equal one.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Known::Object(one), Known::Object(other)) => Arc::ptr_eq(one, other),
            (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
        }
    }
}

/// What is in an object. Several files in one answer are fields; a field's name becomes a path only in `render`.
#[derive(Debug)]
pub enum Content {
    /// One value as the store holds it. `#field` looks for a JSON object in it.
    Bytes(Arc<SecretBytes>),
    /// Named values.
    Fields(BTreeMap<Box<str>, Field>),
}

/// One named value of an object.
#[derive(Debug)]
pub struct Field {
    /// Its bytes.
    pub value: Arc<SecretBytes>,
    /// A mode that the store asks for; the spec's own mode wins.
    pub mode: Option<Mode>,
}

/// An object's limited life.
#[derive(Clone, Debug)]
pub struct Lease {
    /// When the object really dies, never later than the login that made it.
    pub expires_at: Mono,
    /// Whether the store lets it be prolonged.
    pub renewable: bool,
    /// All that renew and revoke need in any process (lease id, token): secret, only in memory and in the driver's own
    /// swap-less tmpfs.
    pub handle: Arc<SecretBytes>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_a_value() {
        let object = Object {
            version: Version::new("7"),
            content: Content::Bytes(Arc::new(SecretBytes::new(b"hunter2-canary".to_vec()))),
            lease: None,
        };
        let text = format!("{object:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("SecretBytes") && text.contains('7'), "{text}");
    }
}
