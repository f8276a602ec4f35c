//! Looks for a secret in every form in which it could have got out.

use base64::{Engine, engine::general_purpose as alphabets};

/// A value that stands nowhere by chance, and looks different in every encoding.
pub const CANARY: &str = "kanarie/7f+3a=9 &%é";

/// The forms of `CANARY` that stand in `text`.
pub fn found_in(text: &[u8]) -> Vec<&'static str> {
    let forms: [(&'static str, Vec<u8>); 9] = [
        ("raw", CANARY.into()),
        ("base64", trimmed(&alphabets::STANDARD.encode(CANARY))),
        (
            "url-safe base64",
            trimmed(&alphabets::URL_SAFE.encode(CANARY)),
        ),
        ("hex", hex().into()),
        ("upper-case hex", hex().to_uppercase().into()),
        ("bytes as numbers", numbers().into()),
        ("percent-encoded", percent().into()),
        ("JSON with escapes", CANARY.replace('é', "\\u00e9").into()),
        // what a truncating message would leave
        ("its first half", CANARY.as_bytes()[..11].into()),
    ];
    let is_there = |form: &Vec<u8>| text.windows(form.len()).any(|window| window == form);
    forms
        .into_iter()
        .filter(|(_, form)| is_there(form))
        .map(|(name, _)| name)
        .collect()
}

/// Without the last group: what comes after the secret in a longer text changes it.
fn trimmed(text: &str) -> Vec<u8> {
    text.as_bytes()[..text.len() - 4].to_vec()
}

fn hex() -> String {
    CANARY.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn numbers() -> String {
    CANARY
        .bytes()
        .map(|byte| byte.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn percent() -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    CANARY
        .bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).into()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[test]
fn each_form_is_found_where_it_is_planted() {
    let base64 = alphabets::STANDARD.encode(format!("{CANARY} and more"));
    for (name, text) in [
        ("raw", format!("x{CANARY}y")),
        ("base64", base64),
        ("hex", hex()),
        ("upper-case hex", hex().to_uppercase()),
        ("bytes as numbers", format!("{:?}", CANARY.as_bytes())),
        ("percent-encoded", percent()),
        ("JSON with escapes", CANARY.replace('é', "\\u00e9")),
        ("its first half", CANARY.chars().take(12).collect()),
    ] {
        assert!(
            found_in(text.as_bytes()).contains(&name),
            "{name} in {text}: {:?}",
            found_in(text.as_bytes())
        );
    }
    assert!(found_in(b"kanarie and nothing else, 7f+3a").is_empty());
}
