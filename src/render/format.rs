//! All fields of a secret as one text file, sorted by name, with a final newline.

use crate::{
    error::{Error, Result, codes},
    render::{
        fields::{Entry, Look},
        quote,
    },
    spec::{Format, read::shown},
};

/// Writes the file. A `null` is left out of formats that cannot say it.
pub(super) fn format(format: Format, look: &Look<'_>) -> Result<Vec<u8>> {
    let mut out = String::new();
    match format {
        Format::Json => {
            look.write_json(&mut out)?;
            out.push('\n');
        }
        Format::Yaml => yaml(&look.entries()?, &mut out),
        Format::Dotenv => {
            for (key, value) in &look.entries()? {
                let Some(text) = value.text() else {
                    continue;
                };
                if !quote::is_variable(key) {
                    return Err(bad_key(
                        key,
                        "cannot be a variable's name (A-Z, a-z, 0-9, _)",
                    ));
                }
                let Some(value) = quote::dotenv(&text) else {
                    return Err(bad_key(
                        key,
                        "holds a NUL byte, which a .env file cannot say",
                    ));
                };
                out.push_str(&format!("{key}={value}\n"));
            }
        }
        Format::Properties => {
            for (key, value) in &look.entries()? {
                if let Some(text) = value.text() {
                    quote::properties(key, true, &mut out);
                    out.push('=');
                    quote::properties(&text, false, &mut out);
                    out.push('\n');
                }
            }
        }
    }
    Ok(out.into_bytes())
}

/// A line for each field; keys and text in double quotes, so that nothing is taken for a number or a date.
fn yaml(entries: &[(&str, Entry<'_>)], out: &mut String) {
    if entries.is_empty() {
        out.push_str("{}\n");
    }
    for (key, value) in entries {
        quote::json(key, out);
        out.push_str(": ");
        value.write_json(out);
        out.push('\n');
    }
}

fn bad_key(key: &str, why: &str) -> Error {
    Error::new(&codes::RENDER_BAD_KEY).detail(format!("the field `{}` {why}", shown(key)))
}
