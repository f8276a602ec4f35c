//! Readers of every kind that programs are, on self-verifying content.
//!
//! A [`Reader`] makes one read at a time and says which generation it saw, or what was wrong. Between two of its steps it
//! calls `gap`, where the caller may let the writer pass: most faults live there, and chance alone seldom goes there.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::{self, ErrorKind, Read},
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::Path,
};

use rustix::fs::{Dir, Mode, OFlags, open, openat};
use secretfs::sys::mmap::Mapping;

use super::content::{Fault, PAIR, names, verify};

/// Reads from one descriptor before it is opened again.
const HELD_READS: u32 = 40;

/// How a program reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Open by path, read to the end.
    ToEnd,
    /// Open, fstat, read exactly that many bytes.
    Exact,
    /// Reads of 512 bytes.
    Small,
    /// Map it, read the mapping.
    Mapped,
    /// Open once, read from the start again and again.
    Held,
    /// Open `..data` once, list it, compare with the names that its generation has.
    Listing,
    /// Open `..data` once, open two files below it.
    Pair,
    /// Resolve the path through `..data`, then open what it led to.
    Walk,
    /// Open two files by two paths. May straddle a swap (promise 2): counted, no fault.
    Separate,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Kind; 9] = [
        Kind::ToEnd,
        Kind::Exact,
        Kind::Small,
        Kind::Mapped,
        Kind::Held,
        Kind::Listing,
        Kind::Pair,
        Kind::Walk,
        Kind::Separate,
    ];
}

/// What a read without a fault saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The (older) generation.
    pub generation: u64,
    /// Two files by two paths, of two generations.
    pub straddled: bool,
}

/// One program.
pub struct Reader<'a> {
    kind: Kind,
    target: &'a Path,
    newest: u64,
    held: Option<(File, Option<u64>, u32)>,
}

impl<'a> Reader<'a> {
    /// A reader of the volume at `target`.
    pub fn new(kind: Kind, target: &'a Path) -> Self {
        Self {
            kind,
            target,
            newest: 0,
            held: None,
        }
    }

    /// How it reads.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// One read.
    pub fn read(&mut self, gap: &mut dyn FnMut()) -> Result<Seen, Fault> {
        let [a, b] = PAIR.map(|key| self.target.join(key));
        let one = |generation| Seen {
            generation,
            straddled: false,
        };
        let seen = match self.kind {
            Kind::ToEnd => to_end(&a, gap).map(one)?,
            Kind::Exact => exact(&a, gap).map(one)?,
            Kind::Small => small(&a, gap).map(one)?,
            Kind::Mapped => mapped(&a, gap).map(one)?,
            Kind::Held => return self.held(&a, gap).map(one), // may be old, must not change
            Kind::Listing => self.listing(gap).map(one)?,
            Kind::Pair => self.pair(gap).map(one)?,
            Kind::Walk => self.walk(gap).map(one)?,
            Kind::Separate => separate(&a, &b)?,
        };
        if seen.generation < self.newest {
            return Err(Fault::Backwards);
        }
        self.newest = seen.generation;
        Ok(seen)
    }

    fn held(&mut self, path: &Path, gap: &mut dyn FnMut()) -> Result<u64, Fault> {
        let (file, was, reads) = match self.held.take() {
            Some((file, was, reads)) if reads < HELD_READS => (file, was, reads),
            _ => (File::open(path).map_err(fault)?, None, 0),
        };
        gap();
        let mut bytes = vec![0; file.metadata().map_err(fault)?.len() as usize];
        let result = file
            .read_exact_at(&mut bytes, 0)
            .map_err(fault)
            .and_then(|()| verify(&bytes, PAIR[0]))
            .and_then(|now| match was {
                Some(was) if was != now => Err(Fault::Changed),
                _ => Ok(now),
            });
        if let Ok(now) = result {
            self.held = Some((file, Some(now), reads + 1));
        }
        result
    }

    /// Names that begin with `..` are the layout's own, in every directory.
    fn listing(&self, gap: &mut dyn FnMut()) -> Result<u64, Fault> {
        let data = self.data()?;
        gap();
        let mut listed = BTreeSet::new();
        for entry in Dir::read_from(&data).map_err(errno)? {
            let name = entry.map_err(errno)?;
            let name = name.file_name().to_string_lossy();
            if !name.starts_with("..") && name != "." && !listed.insert(name.into_owned()) {
                return Err(Fault::Names); // the same name twice
            }
        }
        let generation = below(&data, PAIR[0])?;
        if listed == names(generation) {
            Ok(generation)
        } else {
            Err(Fault::Names)
        }
    }

    fn pair(&self, gap: &mut dyn FnMut()) -> Result<u64, Fault> {
        let data = self.data()?;
        let first = below(&data, PAIR[0])?;
        gap();
        if below(&data, PAIR[1])? == first {
            Ok(first)
        } else {
            Err(Fault::Mixed)
        }
    }

    fn walk(&self, gap: &mut dyn FnMut()) -> Result<u64, Fault> {
        let path = fs::canonicalize(self.target.join("..data").join(PAIR[0])).map_err(fault)?;
        gap();
        let bytes = fs::read(path).map_err(fault)?;
        verify(&bytes, PAIR[0])
    }

    fn data(&self) -> Result<OwnedFd, Fault> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(self.target.join("..data"), flags, Mode::empty()).map_err(errno)
    }
}

fn to_end(path: &Path, gap: &mut dyn FnMut()) -> Result<u64, Fault> {
    let mut file = File::open(path).map_err(fault)?;
    gap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(fault)?;
    verify(&bytes, PAIR[0])
}

fn exact(path: &Path, gap: &mut dyn FnMut()) -> Result<u64, Fault> {
    let mut file = File::open(path).map_err(fault)?;
    let mut bytes = vec![0; file.metadata().map_err(fault)?.len() as usize];
    gap();
    file.read_exact(&mut bytes).map_err(fault)?;
    verify(&bytes, PAIR[0])
}

fn small(path: &Path, gap: &mut dyn FnMut()) -> Result<u64, Fault> {
    let mut file = File::open(path).map_err(fault)?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 512]);
    loop {
        let count = file.read(&mut piece).map_err(fault)?;
        if bytes.is_empty() {
            gap();
        }
        if count == 0 {
            return verify(&bytes, PAIR[0]);
        }
        bytes.extend_from_slice(&piece[..count]);
    }
}

fn mapped(path: &Path, gap: &mut dyn FnMut()) -> Result<u64, Fault> {
    let file = File::open(path).map_err(fault)?;
    let length = file.metadata().map_err(fault)?.len() as usize;
    if length == 0 {
        return Err(Fault::Short); // cannot be mapped
    }
    let mapping = Mapping::new(&file, length).map_err(fault)?;
    gap();
    verify(&mapping.copy().map_err(fault)?, PAIR[0])
}

fn separate(a: &Path, b: &Path) -> Result<Seen, Fault> {
    let first = verify(&fs::read(a).map_err(fault)?, PAIR[0])?;
    let second = verify(&fs::read(b).map_err(fault)?, PAIR[1])?;
    Ok(Seen {
        generation: first.min(second),
        straddled: first != second,
    })
}

/// Reads file `key` below an open directory.
fn below(data: &OwnedFd, key: &str) -> Result<u64, Fault> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(data, OsStr::new(key), flags, Mode::empty()).map_err(errno)?;
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).map_err(fault)?;
    verify(&bytes, key)
}

fn errno(error: rustix::io::Errno) -> Fault {
    fault(error.into())
}

fn fault(error: io::Error) -> Fault {
    match error.kind() {
        ErrorKind::NotFound => Fault::Missing,
        ErrorKind::UnexpectedEof => Fault::Short,
        _ => Fault::Errno(error.raw_os_error().unwrap_or_default()),
    }
}
