//! The known name that was probably meant.

/// The one of `known` that is nearest to `written`, if it is near: case and `-`/`_` aside the same, or few edits away.
pub fn nearest<'k>(written: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if written.len() > 64 {
        return None;
    }
    let plain = |text: &str| text.replace(['-', '_'], "").to_lowercase();
    let wanted = plain(written);
    known
        .into_iter()
        .map(|name| (distance(&wanted, &plain(name)), name))
        .filter(|(edits, name)| *edits <= (name.len().min(written.len()) / 3).max(1))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

/// Like [`nearest`], as a help: "did you mean `x`?"
pub fn did_you_mean<'k>(written: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    nearest(written, known).map(|name| format!("did you mean `{name}`?"))
}

/// Insertions, deletions, changes, and swaps of neighbours that lead from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let (mut before, mut last) = (vec![0; b.len() + 1], (0..=b.len()).collect::<Vec<_>>());
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not() {
        let known = ["template", "from", "format", "path", "mode", "optional"];
        for (written, expect) in [
            ("templte", Some("template")),
            ("tempalte", Some("template")),
            ("Mode", Some("mode")),
            ("form", Some("from")),
            ("paths", Some("path")),
            ("option-al", Some("optional")),
            ("zzz", None),
            ("secretName", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, known), expect, "{written}");
        }
        assert_eq!(nearest(&"x".repeat(1000), known), None);
    }
}
