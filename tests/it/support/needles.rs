//! Looks for secrets in bytes of any kind: a process's memory, a file, the raw image of a file system.
//!
//! What it looks for is random, so a piece of it is nowhere by chance. Found are its own bytes, base64 (all three alignments, both alphabets)
//! and hex, and any piece of these forms of [`PIECE`] bytes or more: a copy of which a half was overwritten is a copy.

use std::collections::{BTreeSet, HashMap};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Length of the shortest piece that counts, in bytes. 12 characters of base64 are 72 bits of the secret, of hex 48.
pub const PIECE: usize = 12;
/// Length of what is looked up, in bytes.
const WORD: usize = 4;
/// A piece has words at `PIECE - WORD + 1` places in a row, so one of them is at a multiple of this.
const STRIDE: usize = 8;

/// What is looked for.
#[derive(Default)]
pub struct Needles {
    forms: Vec<Form>,
    /// Where each word stands in the forms.
    words: HashMap<u32, Vec<(usize, usize)>>,
    /// Whether any word has this [`hash`].
    filter: Vec<bool>,
}

struct Form {
    secret: String,
    name: &'static str,
    bytes: Vec<u8>,
}

/// A piece that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Name of the secret.
    pub secret: String,
    /// Which form of it.
    pub form: &'static str,
    /// Where, from the start of what was searched.
    pub at: usize,
    /// How much of the form.
    pub length: usize,
}

fn hash(word: u32) -> usize {
    (word.wrapping_mul(0x9e37_79b1) >> 16) as usize
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..WORD].try_into().unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Base64 of `bytes` when `before` bytes stand before them: only the characters that nothing else has a part in.
fn base64(bytes: &[u8], before: usize) -> String {
    let text = STANDARD.encode([&vec![0; before][..], bytes].concat());
    let whole = (before + bytes.len()) * 8 / 6;
    text[(before * 8).div_ceil(6)..whole].to_owned()
}

impl Needles {
    /// Looks for this secret from now on.
    pub fn add(&mut self, secret: &str, bytes: &[u8]) {
        assert!(bytes.len() >= 2 * PIECE, "{secret} is too short");
        let mut forms = vec![
            ("raw", bytes.to_vec()),
            ("hex", hex(bytes).into_bytes()),
            ("upper-case hex", hex(bytes).to_uppercase().into_bytes()),
        ];
        for before in 0..3 {
            let text = base64(bytes, before);
            let url_safe = text.replace('+', "-").replace('/', "_");
            if url_safe != text {
                forms.push(("url-safe base64", url_safe.into_bytes()));
            }
            forms.push(("base64", text.into_bytes()));
        }
        self.filter.resize(1 << 16, false);
        for (name, bytes) in forms {
            for (at, window) in bytes.windows(WORD).enumerate() {
                let word = word(window);
                self.filter[hash(word)] = true;
                let places = self.words.entry(word).or_default();
                places.push((self.forms.len(), at));
            }
            self.forms.push(Form {
                secret: secret.to_owned(),
                name,
                bytes,
            });
        }
    }

    /// All pieces that stand in `bytes`.
    pub fn find(&self, bytes: &[u8]) -> Vec<Found> {
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for at in (0..bytes.len().saturating_sub(WORD - 1)).step_by(STRIDE) {
            let word = word(&bytes[at..]);
            if !self.filter.get(hash(word)).is_some_and(|any| *any) {
                continue;
            }
            for (form, offset) in self.words.get(&word).into_iter().flatten() {
                let (from, length) = piece(&self.forms[*form].bytes, *offset, bytes, at);
                if length >= PIECE && seen.insert((*form, from)) {
                    let form = &self.forms[*form];
                    found.push(Found {
                        secret: form.secret.clone(),
                        form: form.name,
                        at: from,
                        length,
                    });
                }
            }
        }
        found
    }
}

/// How far `form` and `bytes` agree around the place where the word was found: start in `bytes`, and length.
fn piece(form: &[u8], offset: usize, bytes: &[u8], at: usize) -> (usize, usize) {
    let same = |(one, other): &(&u8, &u8)| one == other;
    let before = form[..offset].iter().rev().zip(bytes[..at].iter().rev());
    let before = before.take_while(same).count();
    let after = form[offset..].iter().zip(&bytes[at..]);
    (at - before, before + after.take_while(same).count())
}

#[test]
fn each_form_and_each_long_piece_is_found_wherever_it_stands() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // no byte of what stands around it: a piece must not go on there
    let secret: Vec<u8> = (0..48).map(|_| random.u8(b'/'..)).collect();
    let mut needles = Needles::default();
    needles.add("it", &secret);
    let planted = |bytes: &[u8]| needles.find(bytes);
    for shift in 0..2 * STRIDE {
        let around = |what: &[u8]| [&vec![b'.'; shift][..], what, &[b'.'; 9]].concat();
        for (form, text) in [
            ("raw", secret.clone()),
            ("hex", hex(&secret).into_bytes()),
            ("upper-case hex", hex(&secret).to_uppercase().into_bytes()),
        ] {
            let found = planted(&around(&text));
            let is_whole = |one: &&Found| (one.at, one.length) == (shift, text.len());
            let whole: Vec<_> = found.iter().filter(is_whole).collect();
            assert_eq!(whole.len(), 1, "{found:?}");
            assert_eq!(whole[0].form, form);
        }
        let longer = [&vec![b'x'; shift][..], &secret, b"and more"].concat();
        for text in [
            STANDARD.encode(&longer),
            base64::engine::general_purpose::URL_SAFE.encode(&longer),
        ] {
            let found = planted(&around(text.as_bytes()));
            assert!(found.iter().any(|one| one.length >= 60), "{found:?}");
        }
        for from in 0..=secret.len() - PIECE {
            let found = planted(&around(&secret[from..from + PIECE]));
            assert_eq!(found.len(), 1, "{from}");
        }
        assert_eq!(planted(&around(&secret[..PIECE - 1])), []);
    }
}
