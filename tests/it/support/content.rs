//! Files that say themselves whether they are whole.
//!
//! A file is `generation u32, key u16, length u16, checksum u64`, all little-endian, then filler. The
//! checksum covers everything else, so a byte of another generation, a missing end or a stale tail shows. Lengths and the
//! set of names are functions of the generation: both change with every one.

use std::{collections::BTreeSet, sync::Arc};

use secretfs::{
    clock::Wall,
    path::{Mode, Owner, RelPath},
    render::{File, FileContent, FileSet, Generation, Snapshot},
    secret::SecretBytes,
};

/// Smallest file: its header.
pub const SMALLEST: usize = 16;
/// Largest file.
pub const LARGEST: usize = 16 << 10;
/// The two files that belong together; every generation has them.
pub const PAIR: [&str; 2] = ["a", "b"];
/// Further names, each in some generations only; small, so that a set costs few pages.
const SOMETIMES: [&str; 4] = ["x0", "x1", "x2", "x3"];

/// What a reader can find wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// ENOENT.
    Missing,
    /// Fewer bytes than the file says, or than its size was.
    Short,
    /// More bytes than the file says: a tail of another generation.
    Tail,
    /// Bytes of more than one generation, or half-written ones.
    Torn,
    /// Another file's content.
    Foreign,
    /// Two files of one directory, of two generations.
    Mixed,
    /// Names of one directory that are not those of its generation.
    Names,
    /// A descriptor whose content changed.
    Changed,
    /// An older generation than was seen before.
    Backwards,
    /// Any other error.
    Errno(i32),
}

/// The bytes of file `key` in `generation`.
pub fn content(generation: u64, key: &str) -> Vec<u8> {
    let (number, length) = (number(key), length(generation, key));
    let mut bytes = vec![0; length];
    let mut filler = fastrand::Rng::with_seed(generation << 16 | u64::from(number));
    filler.fill(&mut bytes[SMALLEST..]);
    bytes[..4].copy_from_slice(&(generation as u32).to_le_bytes());
    bytes[4..6].copy_from_slice(&number.to_le_bytes());
    bytes[6..8].copy_from_slice(&(length as u16).to_le_bytes());
    let sum = checksum(&bytes);
    bytes[8..16].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The generation of `bytes`, if they are file `key`, whole, and of one generation.
pub fn verify(bytes: &[u8], key: &str) -> Result<u64, Fault> {
    if bytes.len() < SMALLEST {
        return Err(Fault::Short);
    }
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let length = usize::from(word(6));
    if bytes.len() < length {
        return Err(Fault::Short);
    }
    if bytes.len() > length {
        return Err(Fault::Tail);
    }
    if bytes[8..16] != checksum(bytes).to_le_bytes() {
        return Err(Fault::Torn);
    }
    if word(4) != number(key) {
        return Err(Fault::Foreign);
    }
    Ok(u64::from(word(0)) | u64::from(word(2)) << 16)
}

/// Names of all files of `generation`.
pub fn names(generation: u64) -> BTreeSet<String> {
    let some = SOMETIMES
        .iter()
        .enumerate()
        .filter(|(bit, _)| (generation ^ (generation >> 1)) >> bit & 1 == 1) // Gray code: one name comes or goes each time
        .map(|(_, name)| *name);
    PAIR.into_iter().chain(some).map(str::to_owned).collect()
}

/// All files of `generation`.
pub fn snapshot(generation: u64, made_at: Wall) -> Snapshot {
    let mut files = FileSet::default();
    for name in names(generation) {
        let file = File {
            mode: Mode::literal(0o444),
            owner: Owner::default(),
            content: FileContent::New(Arc::new(SecretBytes::new(content(generation, &name)))),
        };
        files.insert(RelPath::parse(&name).unwrap(), file).unwrap();
    }
    Snapshot {
        generation: Generation(generation),
        made_at,
        versions: Vec::new(),
        files,
    }
}

fn number(key: &str) -> u16 {
    key.bytes()
        .fold(0, |number, byte| number << 8 | u16::from(byte))
}

/// Never the same in two generations that follow each other.
fn length(generation: u64, key: &str) -> usize {
    let spread = if PAIR.contains(&key) { LARGEST } else { 64 };
    let steps = (spread - SMALLEST + 1) as u64;
    SMALLEST + ((generation * 7919 + u64::from(number(key)) * 31) % steps) as usize
}

fn checksum(bytes: &[u8]) -> u64 {
    let (head, body) = (&bytes[..8], &bytes[16..]);
    head.chunks(8)
        .chain(body.chunks(8))
        .fold(0xcbf2_9ce4_8422_2325, |sum, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            (sum ^ u64::from_le_bytes(word))
                .wrapping_mul(0x0100_0000_01b3)
                .rotate_left(23)
        })
}

#[test]
fn content_says_of_itself_whether_it_is_whole() {
    for generation in [1, 2, 70_000] {
        let good = content(generation, "a");
        assert_eq!(verify(&good, "a"), Ok(generation));
        assert_eq!(verify(&good, "b"), Err(Fault::Foreign));
        assert_ne!(good.len(), content(generation + 1, "a").len());
        assert_ne!(names(generation), names(generation + 1));
        for at in [0, 4, 8, 15, good.len() / 2, good.len() - 1] {
            let mut torn = good.clone();
            torn[at] ^= 1;
            assert!(verify(&torn, "a").is_err(), "byte {at} of {generation}");
        }
        assert_eq!(verify(&good[..good.len() - 1], "a"), Err(Fault::Short));
        assert_eq!(verify(&[&good[..], b"x"].concat(), "a"), Err(Fault::Tail));
        assert_eq!(verify(&[], "a"), Err(Fault::Short));
        let next = content(generation + 1, "a");
        let half = good.len().min(next.len()) / 2;
        let mixed = [&next[..half], &good[half..]].concat();
        assert!(verify(&mixed, "a").is_err());
    }
}
