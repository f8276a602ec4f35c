//! The words of a template's tags, and what a tag may not do, before the engine sees it.
//!
//! Strings and the balance of brackets decide where a tag ends, exactly as in minijinja's lexer: a part about which it and
//! we disagreed would not be checked.
//!
//! What is refused, and why (each was seen to take gigabytes, minutes, or the stack, in minijinja 3.1 within its fuel):
//! - more words and signs in one tag, or more `elif`, than [`limits`] say: the engine recurses once for each;
//! - whatever makes a list or mapping (`[a, b]`, `(a, b)`, `{...}`, `*`, `+`): one that holds a long text many times is
//!   small until it is printed, joined or compared. Lists come from secrets and filters alone, and are as long as those.

use crate::{
    limits,
    spec::template::{Fault, place},
};

/// What an identifier is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// A variable, or a word of the language.
    Name,
    /// A variable that is called.
    Call,
    /// After a `|`.
    Filter,
    /// After `is` or `is not`.
    Test,
}

/// An identifier of a tag.
#[derive(Debug)]
pub(super) struct Word<'t> {
    pub text: &'t str,
    pub offset: usize,
    pub role: Role,
}

/// Words after which an expression begins: a bracket there does not follow a value.
const KEYWORDS: &[&str] = &[
    "and",
    "as",
    "autoescape",
    "do",
    "elif",
    "else",
    "filter",
    "for",
    "if",
    "in",
    "is",
    "not",
    "or",
    "recursive",
    "set",
    "with",
];

/// The tags that a template may have.
const TAGS: &[&str] = &[
    "elif",
    "else",
    "endfilter",
    "endfor",
    "endif",
    "endset",
    "endwith",
    "filter",
    "for",
    "if",
    "raw",
    "set",
    "with",
];

/// All identifiers of a template's tags.
///
/// # Errors
/// The first thing that no tag may do.
pub(super) fn scan(text: &str) -> Result<Vec<Word<'_>>, Fault> {
    if text.matches("elif").count() > limits::TEMPLATE_ELIFS {
        let message = format!(
            "more than {} `elif` in one template",
            limits::TEMPLATE_ELIFS
        );
        return Err(fault(text, 0, 1, message, None));
    }
    let bytes = text.as_bytes();
    let mut words = Vec::new();
    let mut balance = 0; // minijinja carries it from tag to tag
    let mut at = 0;
    while let Some(start) = next_tag(bytes, at) {
        let kind = bytes.get(start + 1).copied().unwrap_or(b'{');
        let mut inside = start + 2;
        if matches!(bytes.get(inside), Some(b'-' | b'+')) {
            inside += 1;
        }
        let raw = basic_tag(text, inside, "raw");
        at = match (kind, raw) {
            (b'#', _) => find(text, inside, "#}").map_or(bytes.len(), |end| end + 2),
            (b'%', Some(after)) => end_of_raw(text, after),
            _ => {
                let end = if kind == b'%' { b"%}" } else { b"}}" };
                let mut tag = Tag::new(text, inside, end, balance, &mut words);
                tag.read()?;
                balance = tag.balance;
                tag.at
            }
        };
    }
    Ok(words)
}

/// One tag being read.
struct Tag<'t, 'w> {
    text: &'t str,
    at: usize,
    end: &'static [u8; 2],
    /// Open brackets less closed ones, as minijinja counts.
    balance: i64,
    before: Before,
    /// For each open bracket of this tag, whether it holds the arguments of a call.
    open: Vec<bool>,
    /// Commas outside brackets are names to assign to: `for a, b in`, `with a=1, b=2`.
    commas: bool,
    words: &'w mut Vec<Word<'t>>,
}

/// What came before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    TagStart,
    Dot,
    Pipe,
    Is,
    /// A value: what follows in brackets belongs to it.
    Value,
    /// A test's name: its arguments may follow without brackets.
    Test,
    Other,
}

impl<'t, 'w> Tag<'t, 'w> {
    fn new(
        text: &'t str,
        at: usize,
        end: &'static [u8; 2],
        balance: i64,
        words: &'w mut Vec<Word<'t>>,
    ) -> Self {
        Self {
            text,
            at,
            end,
            balance,
            before: if end == b"%}" {
                Before::TagStart
            } else {
                Before::Other
            },
            open: Vec::new(),
            commas: false,
            words,
        }
    }

    /// Reads to the end of the tag, or of the text.
    fn read(&mut self) -> Result<(), Fault> {
        let start = self.at;
        let mut tokens = 0;
        while let Some(rest) = self
            .text
            .as_bytes()
            .get(self.at..)
            .filter(|rest| !rest.is_empty())
        {
            let byte = rest.first().copied().unwrap_or(0);
            if byte.is_ascii_whitespace() {
                self.at += 1;
                continue;
            }
            if self.balance == 0 {
                let control = usize::from(matches!(byte, b'-' | b'+'));
                if rest
                    .get(control..)
                    .is_some_and(|rest| rest.starts_with(self.end))
                {
                    self.at += control + 2;
                    return Ok(());
                }
            }
            tokens += 1;
            if tokens > limits::TEMPLATE_TAG_TOKENS {
                let most = limits::TEMPLATE_TAG_TOKENS;
                let message = format!("a tag of more than {most} words and signs");
                let help = Some("split it, with `{% set %}`");
                return Err(fault(self.text, start, 1, message, help));
            }
            self.token(byte, rest)?;
        }
        Ok(())
    }

    fn token(&mut self, byte: u8, rest: &[u8]) -> Result<(), Fault> {
        let is_word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        let length = match byte {
            b'"' | b'\'' => string_length(rest),
            _ if is_word(&byte) => rest.iter().take_while(|b| is_word(b)).count(),
            _ => 1,
        };
        self.before = match byte {
            b'"' | b'\'' => Before::Value,
            b'.' => Before::Dot,
            b'|' => Before::Pipe,
            b'(' | b'[' | b'{' => self.opens(byte)?,
            b')' | b']' | b'}' => {
                self.balance -= 1;
                self.open.pop();
                Before::Value
            }
            b',' if self.open.last().copied().unwrap_or(self.commas) => Before::Other,
            b',' => return Err(self.refuse("lists cannot be made in a template", None)),
            b'*' | b'+' => {
                let message = format!("`{}` is not supported", char::from(byte));
                return Err(self.refuse(&message, Some("`~` joins texts")));
            }
            _ if byte.is_ascii_digit() => Before::Value,
            _ if is_word(&byte) => match self.text.get(self.at..self.at + length) {
                Some(word) => self.word(word)?,
                None => Before::Other,
            },
            _ => Before::Other,
        };
        self.at += length;
        Ok(())
    }

    fn opens(&mut self, byte: u8) -> Result<Before, Fault> {
        let call = match (byte, self.before) {
            (b'(', Before::Value | Before::Test) => true,
            (b'(', _) | (b'[', Before::Value) => false,
            (b'[', _) => return Err(self.refuse("lists cannot be made in a template", None)),
            _ => return Err(self.refuse("mappings cannot be made in a template", None)),
        };
        self.balance += 1;
        self.open.push(call);
        Ok(Before::Other)
    }

    /// Notes an identifier, by what stands before and after it; what the next token comes after.
    fn word(&mut self, word: &'t str) -> Result<Before, Fault> {
        let rest = self.text.get(self.at + word.len()..).unwrap_or("");
        let role = match (self.before, word) {
            (Before::TagStart, _) if !TAGS.contains(&word) => {
                let message = format!("there is no tag `{word}`");
                let help = format!("there are: {}", TAGS.join(", "));
                return Err(fault(self.text, self.at, word.len(), message, Some(&help)));
            }
            (Before::TagStart, _) => {
                self.commas = matches!(word, "for" | "with");
                return Ok(if word == "filter" {
                    Before::Pipe
                } else {
                    Before::Other
                });
            }
            (Before::Dot, _) => return Ok(Before::Value),
            (Before::Is, "not") => return Ok(Before::Is),
            (Before::Is, _) => Role::Test,
            (Before::Pipe, _) => Role::Filter,
            (_, "is") => return Ok(Before::Is),
            (_, "in") => {
                self.commas = false;
                return Ok(Before::Other);
            }
            (_, keyword) if KEYWORDS.contains(&keyword) => return Ok(Before::Other),
            _ if rest.trim_start().starts_with('(') => Role::Call,
            _ => Role::Name,
        };
        self.words.push(Word {
            text: word,
            offset: self.at,
            role,
        });
        Ok(if role == Role::Test {
            Before::Test
        } else {
            Before::Value
        })
    }

    fn refuse(&self, message: &str, help: Option<&str>) -> Fault {
        fault(self.text, self.at, 1, message.to_owned(), help)
    }
}

fn fault(text: &str, offset: usize, length: usize, message: String, help: Option<&str>) -> Fault {
    Fault {
        at: place(text, offset, length),
        message,
        help: help.map(str::to_owned),
    }
}

fn next_tag(bytes: &[u8], from: usize) -> Option<usize> {
    let found = bytes
        .get(from..)?
        .array_windows::<2>()
        .position(|[first, second]| *first == b'{' && matches!(second, b'{' | b'%' | b'#'))?;
    Some(from + found)
}

fn find(text: &str, from: usize, what: &str) -> Option<usize> {
    text.get(from..)?.find(what).map(|at| from + at)
}

/// Where the tag ends that consists of `name` alone and whose inside begins at `at`.
fn basic_tag(text: &str, at: usize, name: &str) -> Option<usize> {
    let space = |c: char| c.is_ascii_whitespace();
    let rest = text.get(at..)?.trim_start_matches(space);
    let rest = rest.strip_prefix(name)?.trim_start_matches(space);
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    let rest = rest.strip_prefix("%}")?;
    Some(text.len() - rest.len())
}

fn end_of_raw(text: &str, mut at: usize) -> usize {
    while let Some(block) = find(text, at, "{%") {
        at = block + 2;
        let control = matches!(text.as_bytes().get(at), Some(b'-' | b'+'));
        if let Some(after) = basic_tag(text, at + usize::from(control), "endraw") {
            return after;
        }
    }
    text.len()
}

fn string_length(rest: &[u8]) -> usize {
    let quote = rest.first().copied().unwrap_or(b'"');
    let mut escaped = false;
    for (at, &byte) in rest.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_makes_lists_gets_through() {
        for text in [
            "{{ [a] }}",
            "{{ a|join([a]) }}",
            "{{ (a, a) }}",
            "{{ a, a }}",
            "{{ {'a': a} }}",
            "{{ a * 3 }}",
            "{{ a ** 3 }}",
            "{{ a + a }}",
            "{{ f(*a) }}",
            "{% set a = b, b %}",
            "{% set a, b = c %}",
            "{% for x in a, b %}{% endfor %}",
            "{% for x in (a, b) %}{% endfor %}",
            "{% for x in[a] %}{% endfor %}",
            "{% if(a, a) == b %}{% endif %}",
            "{% with a = (b, b) %}{% endwith %}",
            "{{ a is eq [b] }}",
            "{{ a if[b] else c }}",
            "{{ a.b not in [c] }}",
            "{{ '}}' ~ [a] }}",
            "{{ \"\\\"}}\" ~ [a] }}",
            "{# {{ #}{{ [a] }}",
            "{% raw %}{{ '{% endraw %}{{ [a] }}",
        ] {
            let fault = scan(text).unwrap_err();
            assert!(
                fault.message.contains("cannot be made") || fault.message.contains("not supported"),
                "{text}: {}",
                fault.message
            );
        }
    }

    #[test]
    fn what_templates_are_for_gets_through() {
        for text in [
            "{{ a.b ~ 'x' | replace('a', \"b\") }}",
            "{{ a['b-c'][0][1:2] }}",
            "{%- for k, v in a|items -%}{{ loop.cycle('a', 'b') }}{%+ endfor +%}",
            "{% with a = b, c = d %}{{ a }}{% endwith %}",
            "{% if (a == b) and not c is defined %}{% elif a is startingwith('x') %}{% endif %}",
            "{% set x = a|default('y', true) %}{{ x - 1 }}",
            "{% raw %}{{ [a] }}{% endraw %}{# {{ [a] }} #} [a, b] {'a': 1}",
        ] {
            assert!(scan(text).is_ok(), "{text}");
        }
    }
}
