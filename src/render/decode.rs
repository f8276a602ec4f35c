//! Base64 and hex, read.

use base64::{
    Engine as _,
    alphabet::{Alphabet, STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use crate::spec::Decode;

/// The bytes that `text` stands for. White space does not count. `None`: it is not in this encoding.
pub(super) fn decode(encoding: Decode, text: &[u8]) -> Option<Vec<u8>> {
    let compact: Vec<u8> = text
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    match encoding {
        Decode::Base64 => {
            let url = compact.iter().any(|b| matches!(b, b'-' | b'_'));
            engine(if url { &URL_SAFE } else { &STANDARD })
                .decode(&compact)
                .ok()
        }
        Decode::Hex => {
            let (pairs, rest) = compact.as_chunks::<2>();
            if !rest.is_empty() {
                return None;
            }
            let digit = |byte: u8| char::from(byte).to_digit(16);
            pairs
                .iter()
                .map(|[high, low]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok())
                .collect()
        }
    }
}

/// Standard base64, with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn engine(alphabet: &Alphabet) -> GeneralPurpose {
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_alphabets_padding_or_not_and_white_space() {
        for (encoding, text, expect) in [
            (Decode::Base64, "//79", Some(&b"\xff\xfe\xfd"[..])),
            (Decode::Base64, "__79", Some(b"\xff\xfe\xfd")),
            (Decode::Base64, "YQ==", Some(b"a")),
            (Decode::Base64, " Y\nQ \r\n", Some(b"a")),
            (Decode::Base64, "", Some(b"")),
            (Decode::Base64, "Y", None),
            (Decode::Base64, "a_/b", None),
            (Decode::Base64, "häh?", None),
            (Decode::Hex, "00 fF\n", Some(b"\x00\xff")),
            (Decode::Hex, "0", None),
            (Decode::Hex, "0x", None),
        ] {
            assert_eq!(
                decode(encoding, text.as_bytes()).as_deref(),
                expect,
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read_back(bytes in any::<Vec<u8>>()) {
            let text = base64(&bytes);
            prop_assert_eq!(decode(Decode::Base64, text.as_bytes()).unwrap(), bytes.clone());
            prop_assert_eq!(decode(Decode::Base64, text.trim_end_matches('=').as_bytes()).unwrap(), bytes.clone());
            let hex = crate::render::quote::hex(&bytes);
            prop_assert_eq!(decode(Decode::Hex, hex.as_bytes()).unwrap(), bytes);
        }
    }
}
