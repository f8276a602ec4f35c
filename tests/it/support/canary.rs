//! Looks for a secret in every form in which it could have got out.

use base64::{Engine, engine::general_purpose as alphabets};

/// A value that stands nowhere by chance, and looks different in every encoding.
pub const CANARY: &str = "kanarie/7f+3a=9 &%é";

/// The forms of `CANARY` that stand in `text`.
pub fn found_in(text: &[u8]) -> Vec<&'static str> {
    found(CANARY, text)
}

/// The forms of `secret` that stand in `text`.
pub fn found(secret: &str, text: &[u8]) -> Vec<&'static str> {
    let text = String::from_utf8_lossy(text); // every form is text: what is not is of no interest
    let mut found = forms(secret);
    found.retain(|(_, form)| text.contains(form));
    found.into_iter().map(|(name, _)| name).collect()
}

fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let half = (0..=secret.len() / 2 + 1)
        .rev()
        .find(|at| secret.is_char_boundary(*at));
    let mut forms = vec![
        ("raw", secret.to_owned()),
        ("hex", hex(secret)),
        ("upper-case hex", hex(secret).to_uppercase()),
        ("bytes as numbers", numbers(secret)),
        ("percent-encoded", percent(secret)),
        ("JSON with escapes", escaped(secret)),
        // what a truncating message would leave
        ("its first half", secret[..half.unwrap_or(0)].to_owned()),
    ];
    for shift in 0..3 {
        let text = format!("{}{secret}", &"xx"[..shift]);
        forms.push(("base64", middle(&alphabets::STANDARD.encode(&text), shift)));
        let url = middle(&alphabets::URL_SAFE.encode(&text), shift);
        forms.push(("url-safe base64", url));
    }
    forms
}

/// Without the groups that what stands before and after the secret in a longer text would change.
fn middle(text: &str, shift: usize) -> String {
    let from = if shift == 0 { 0 } else { 4 };
    text[from..text.len() - 4].to_owned()
}

fn hex(secret: &str) -> String {
    secret.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn numbers(secret: &str) -> String {
    let bytes = secret.bytes().map(|byte| byte.to_string());
    bytes.collect::<Vec<_>>().join(", ")
}

fn percent(secret: &str) -> String {
    let one = |byte: u8| match byte {
        plain if plain.is_ascii_alphanumeric() => char::from(plain).into(),
        other => format!("%{other:02X}"),
    };
    secret.bytes().map(one).collect()
}

fn escaped(secret: &str) -> String {
    let one = |c: char| match c {
        plain if plain.is_ascii() => plain.to_string(),
        other => format!("\\u{:04x}", u32::from(other)),
    };
    secret.chars().map(one).collect()
}

#[test]
fn each_form_is_found_where_it_is_planted() {
    let base64 = |before: &str| alphabets::STANDARD.encode(format!("{before}{CANARY} and more"));
    let url = |before: &str| alphabets::URL_SAFE_NO_PAD.encode(format!("{before}{CANARY}!"));
    for (name, text) in [
        ("raw", format!("x{CANARY}y")),
        ("base64", base64("")),
        ("base64", base64("a")),
        ("base64", base64("user:")),
        ("url-safe base64", url("")),
        ("url-safe base64", url("a")),
        ("url-safe base64", url("user:")),
        ("hex", hex(CANARY)),
        ("upper-case hex", hex(CANARY).to_uppercase()),
        ("bytes as numbers", format!("{:?}", CANARY.as_bytes())),
        ("percent-encoded", percent(CANARY)),
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
    let among_bytes = [b"\xff\xfe\x80", CANARY.as_bytes(), b"\xc3"].concat();
    assert!(found_in(&among_bytes).contains(&"raw"));
}
