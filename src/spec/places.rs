//! Where the parts of a spec stand in its text, so that what fails after it was read (a fetch, a render) can be shown there.

use crate::spec::Span;

/// Places of a spec's parts. Not part of its meaning: any two are equal, and the digest does not hold them.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Of each of the spec's `objects`: where it is named first.
    pub objects: Vec<Part>,
    /// Of each of the spec's `files`: what its bytes come from.
    pub files: Vec<Part>,
}

/// The place of one part.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// The value: a reference, or a template.
    pub at: Span,
    /// The field's path: `files[2].from`.
    pub field: String,
    /// Line of the text in which a template begins whose lines are lines of the text (`|`); else 0.
    pub first_line: u32,
}

impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Places {}

impl Part {
    /// Where to show a fault of this part: in `text`, the line of the template that is at fault (0: all of it).
    pub fn shown_at(&self, text: &str, line: u32) -> Span {
        if self.first_line == 0 || line == 0 {
            return self.at;
        }
        let number = self.first_line.saturating_add(line - 1);
        let source = text.lines().nth(number.saturating_sub(1) as usize);
        let source = source.unwrap_or_default().trim_end();
        let body = source.trim_start();
        let length = |text: &str| u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        Span {
            line: number,
            column: length(source).saturating_sub(length(body)) + 1,
            length: length(body).max(1),
        }
    }
}
