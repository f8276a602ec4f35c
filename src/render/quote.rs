//! Text, written so that the reader of some syntax gets exactly it back.

/// A JSON string; also a YAML one in double quotes (what YAML calls not printable is escaped).
pub(super) fn json(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control()
                || matches!(
                    c,
                    '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
                ) =>
            {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// One word of a POSIX shell, in single quotes. `None`: a NUL byte cannot be said.
pub(super) fn shell(text: &str) -> Option<String> {
    (!text.contains('\0')).then(|| format!("'{}'", text.replace('\'', "'\\''")))
}

/// The value of a `.env` line. `None`: a NUL byte cannot be said.
///
/// The readers of such files disagree about escapes, so as few as possible are used: double quotes for what needs none,
/// single quotes for what has no `'`, and double quotes with `\` before `\ " $` and a backquote for the rest. A POSIX shell
/// reads all three right. Line breaks stand as they are.
pub(super) fn dotenv(text: &str) -> Option<String> {
    if text.contains('\0') {
        None
    } else if !text.contains(['"', '\\', '$', '`', '\n', '\r']) {
        Some(format!("\"{text}\""))
    } else if !text.contains('\'') {
        Some(format!("'{text}'"))
    } else {
        let mut out = String::from('"');
        for c in text.chars() {
            if matches!(c, '"' | '\\' | '$' | '`') {
                out.push('\\');
            }
            out.push(c);
        }
        out.push('"');
        Some(out)
    }
}

/// Whether `key` can be a variable's name.
pub(super) fn is_variable(key: &str) -> bool {
    key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A key or a value of a Java properties file, in ASCII.
pub(super) fn properties(text: &str, is_key: bool, out: &mut String) {
    for (index, c) in text.chars().enumerate() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' ' if is_key || index == 0 => out.push_str("\\ "),
            ':' | '=' | '#' | '!' if is_key => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            c => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}

/// Percent-encoding of all but unreserved characters (RFC 3986): letters, digits, `-._~`.
pub(super) fn url(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Two lower-case digits a byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| {
        char::from(if nibble < 10 {
            b'0' + nibble
        } else {
            b'a' + nibble - 10
        })
    };
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quoting_is_what_each_syntax_wants() {
        let quoted = |text| {
            let mut out = String::new();
            json(text, &mut out);
            out
        };
        assert_eq!(
            quoted("a\"\\\n\u{7f}\u{2028}ä"),
            "\"a\\\"\\\\\\n\\u007f\\u2028ä\""
        );
        assert_eq!(shell("it's $x").as_deref(), Some("'it'\\''s $x'"));
        assert_eq!(dotenv("a b#c").as_deref(), Some("\"a b#c\""));
        assert_eq!(dotenv("a\"$b\\\nc").as_deref(), Some("'a\"$b\\\nc'"));
        assert_eq!(dotenv("it's $5").as_deref(), Some("\"it's \\$5\""));
        assert_eq!((shell("\0"), dotenv("\0")), (None, None));
        let mut out = String::new();
        properties("a b:ü😀", true, &mut out);
        properties(" x =\\\n", false, &mut out);
        assert_eq!(out, "a\\ b\\:\\u00fc\\ud83d\\ude00\\ x =\\\\\\n");
        assert_eq!(url(b"a/b c~\xff"), "a%2Fb%20c~%FF");
        assert_eq!(hex(&[0, 0x1f, 0xff]), "001fff");
    }

    proptest! {
        #[test]
        fn a_json_string_is_read_back_by_json_and_by_yaml(text in any::<String>()) {
            let mut out = String::new();
            json(&text, &mut out);
            prop_assert_eq!(&serde_json::from_str::<String>(&out).unwrap(), &text);
            let mut problems = crate::spec::Problems::default();
            let node = crate::yaml::parse(&out, &mut problems);
            let read = node.as_ref().and_then(|node| node.scalar()).map(|scalar| &scalar.text);
            prop_assert_eq!(read, Some(&text));
        }
    }
}
