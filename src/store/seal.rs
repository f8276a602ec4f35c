//! One version's bytes: an age file, sealed to recipients and opened with identities. Pure.

use std::io::{Read, Write};

use crate::{
    error::{Error, Result, codes},
    limits,
    secret::SecretBytes,
    store::{
        disk::read_at_most,
        keys::{Identities, MARK, Recipients},
    },
};

/// Bytes of the largest age file that is read: its value, its header, and 16 bytes each 64 KiB.
pub const SEALED_BYTES: u64 = limits::STORE_VALUE_BYTES + limits::STORE_HEADER_BYTES;

/// An age file that holds `value`.
///
/// # Errors
/// `store.too_large`; `store.bad_recipient` when the keys cannot be used together.
pub fn seal(value: &SecretBytes, to: &Recipients) -> Result<Vec<u8>> {
    if value.len() as u64 > limits::STORE_VALUE_BYTES {
        return Err(Error::new(&codes::STORE_TOO_LARGE));
    }
    let encryptor = age::Encryptor::with_recipients(std::iter::once(to as &dyn age::Recipient))
        .map_err(|error| {
            Error::new(&codes::STORE_BAD_RECIPIENT)
                .detail(format!("cannot encrypt to the recipients: {error}"))
        })?;
    let mut sealed = Vec::with_capacity(value.len() + 4096);
    encryptor
        .wrap_output(&mut sealed)
        .and_then(|mut output| {
            output.write_all(value.expose())?;
            output.finish().map(|_| ())
        })
        .map_err(|error| Error::new(&codes::BUG).step("encrypt").source(error))?;
    if has_long_header(&sealed) {
        return Err(Error::new(&codes::STORE_BAD_RECIPIENT).detail(
            "there are too many recipients: the header would be longer than 64 KiB, and nobody would read it",
        ));
    }
    Ok(sealed)
}

/// What an age file holds, byte for byte.
///
/// # Errors
/// `store.corrupt`: damaged, or encrypted to other keys; the caller adds the file's name. `store.too_large`.
pub fn unseal(sealed: &[u8], with: &Identities) -> Result<SecretBytes> {
    let corrupt = |what: &str| Error::new(&codes::STORE_CORRUPT).detail(what);
    if sealed.is_empty() {
        return Err(corrupt(
            "is empty; restore it, or roll back to another version",
        ));
    }
    if sealed.starts_with(b"-----BEGIN AGE") {
        return Err(corrupt(
            "is in age's text form; the store holds binary ones (`age` without -a)",
        ));
    }
    let damaged = |error: age::DecryptError| match error {
        age::DecryptError::NoMatchingKeys => corrupt(
            "is encrypted to other keys than this identity's; `secretfs store rekey` where it can be read",
        ),
        _ => corrupt("is damaged; restore it, or roll back to another version"),
    };
    if has_long_header(sealed) {
        return Err(corrupt(
            "has a header longer than 64 KiB: damaged, or encrypted to too many recipients",
        ));
    }
    let mut reader = age::Decryptor::new_buffered(sealed)
        .map_err(damaged)?
        .decrypt(with.keys())
        .map_err(damaged)?;
    let value = read_at_most(
        &mut reader as &mut dyn Read,
        sealed.len() as u64,
        limits::STORE_VALUE_BYTES,
    )
    .map_err(|_| corrupt("is damaged; restore it, or roll back to another version"))?;
    value
        .map(SecretBytes::new)
        .ok_or_else(|| Error::new(&codes::STORE_TOO_LARGE))
}

/// Whether the header does not end (`\n--- MAC`) where one may: each of its lines costs each key a multiplication on a curve.
fn has_long_header(sealed: &[u8]) -> bool {
    let most = usize::try_from(limits::STORE_HEADER_BYTES).unwrap_or(usize::MAX);
    let header = sealed.get(..most).unwrap_or_default(); // a shorter file is all that it can be
    !header.is_empty() && !header.array_windows::<4>().any(|four| four == b"\n---")
}

/// The mark of the recipients that a file was sealed to, if `seal` made it.
pub fn mark_of(sealed: &[u8]) -> Option<&str> {
    sealed
        .split(|byte| *byte == b'\n')
        .take_while(|line| !line.starts_with(b"---"))
        .filter_map(|line| std::str::from_utf8(line).ok())
        .find_map(|line| {
            line.strip_prefix("-> ")?
                .strip_prefix(MARK)?
                .strip_prefix(' ')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (tempfile::TempDir, Recipients, Identities) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        let (public, _) = Identities::load_or_make(&path).unwrap();
        let identities = Identities::load(&path).unwrap();
        (dir, Recipients::of(&public).unwrap(), identities)
    }

    #[test]
    fn what_was_sealed_comes_out_and_any_flipped_byte_is_found() {
        let (_dir, to, with) = pair();
        let (_other_dir, _, other) = pair();
        for size in [
            0,
            1,
            100,
            65_536,
            65_537,
            limits::STORE_VALUE_BYTES as usize,
        ] {
            let value = SecretBytes::new(vec![7; size]);
            let sealed = seal(&value, &to).unwrap();
            assert!(sealed.len() as u64 <= SEALED_BYTES);
            assert!(unseal(&sealed, &with).unwrap().same(&value));
            assert_eq!(mark_of(&sealed), Some(to.mark().as_str()));
        }
        let sealed = seal(&SecretBytes::new(b"canary".to_vec()), &to).unwrap();
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            let error = unseal(&bad, &with).unwrap_err();
            assert_eq!(error.code(), &codes::STORE_CORRUPT, "byte {at}");
        }
        for length in 0..sealed.len() {
            assert!(unseal(&sealed[..length], &with).is_err(), "{length} bytes");
        }
        let error = unseal(&sealed, &other).unwrap_err();
        assert!(error.to_string().contains("other keys"), "{error}");
        let big = SecretBytes::new(vec![0; limits::STORE_VALUE_BYTES as usize + 1]);
        assert_eq!(seal(&big, &to).unwrap_err().code(), &codes::STORE_TOO_LARGE);
    }

    #[test]
    fn the_mark_is_found_only_in_the_header() {
        assert_eq!(mark_of(b""), None);
        assert_eq!(
            mark_of(
                b"age-encryption.org/v1\n-> X25519 a\nb\n-> secretfs.dev/recipients ab\n\n--- m\n"
            ),
            Some("ab")
        );
        assert_eq!(
            mark_of(b"age-encryption.org/v1\n--- m\n-> secretfs.dev/recipients ab\n"),
            None
        );
    }
}
