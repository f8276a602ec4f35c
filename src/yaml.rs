//! YAML text as a tree in which every node knows its place, so that a complaint can point at it.
//!
//! A [`Node`] is a scalar, a sequence or a mapping with text keys. A scalar keeps its [`Style`]: `0440` and `"0440"` are not
//! the same. Nothing is guessed: there are no numbers, booleans or nulls here, only text; the reader of a field decides.
//! The tree is bounded in bytes, depth and nodes *after* aliases are expanded, so what walks it may be recursive.
//!
//! Does not: tags, directives, merge keys, several documents, keys that are not scalars. All are refused.

use granit_parser::{Event, Parser, ScalarStyle, Span as RawSpan};

use crate::{
    error::{Code, codes},
    limits,
    spec::{Problem, Problems, Span, read::shown},
};

/// A place in the tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it stands.
    pub at: Span,
    /// What it is.
    pub value: Value,
    /// Nodes below it and itself, aliases expanded.
    nodes: usize,
    /// Bytes of all scalars and keys below it.
    bytes: usize,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Value {
    /// Text.
    Scalar(Scalar),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys in the order of the text, each once.
    Mapping(Vec<(Key, Node)>),
}

/// A mapping's key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its text.
    pub text: String,
    /// Where it stands.
    pub at: Span,
}

/// A scalar's text and how it was written.
#[derive(Clone, Debug)]
pub struct Scalar {
    /// The text, escapes resolved.
    pub text: String,
    /// How it was written.
    pub style: Style,
}

/// How a scalar was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Without quotes: could be meant as a number, a boolean or nothing.
    Plain,
    /// In quotes: text.
    Quoted,
    /// `|`: text, whose lines are lines of the source.
    Literal,
    /// `>`: text, whose lines are not.
    Folded,
}

impl Scalar {
    /// Whether it says "nothing": `key:`, `~`, `null`.
    pub fn is_null(&self) -> bool {
        self.style == Style::Plain && matches!(&*self.text, "" | "~" | "null")
    }
}

impl Node {
    /// Text that stands nowhere.
    pub fn text(text: &str) -> Self {
        let scalar = Scalar {
            text: text.to_owned(),
            style: Style::Quoted,
        };
        node(Span::default(), Value::Scalar(scalar), text.len())
    }

    /// A mapping that stands nowhere.
    pub fn mapping(entries: Vec<(&str, Node)>) -> Self {
        let at = Span::default();
        let key = |text: &str| Key {
            text: text.to_owned(),
            at,
        };
        let entries = entries.into_iter().map(|(text, value)| (key(text), value));
        node(at, Value::Mapping(entries.collect()), 0)
    }

    /// "a list", "a mapping", "text", "nothing".
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
            Value::Scalar(scalar) if scalar.is_null() => "nothing",
            Value::Scalar(_) => "text",
        }
    }

    /// The scalar, if it is one.
    pub fn scalar(&self) -> Option<&Scalar> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }
}

/// Reads `text`. `None`, with a problem, if there is no tree; a tree with problems if keys stand twice (the first counts).
///
/// The parser's own nesting limit is set one above ours: ours speaks of the field.
pub fn parse(text: &str, problems: &mut Problems) -> Option<Node> {
    if text.len() > limits::SPEC_BYTES {
        let message = format!(
            "the text has {} bytes; the limit is {}",
            text.len(),
            limits::SPEC_BYTES
        );
        problems.add(&codes::SPEC_TOO_LARGE, START, "", message, None);
        return None;
    }
    if let Some(problem) = lone_return(text) {
        problems.push(problem);
        return None;
    }
    let options = granit_parser::options! {
        disallow_directives: true,
        emit_comments: false,
        flow_nesting_limit: limits::NESTING + 1,
        block_nesting_limit: limits::NESTING + 1,
    };
    let mut tree = Tree {
        text,
        problems,
        open: Vec::new(),
        anchors: Vec::new(),
        root: None,
        total: (0, 0),
    };
    for event in Parser::new_from_str_with_options(text, options) {
        let step = match event {
            Ok((event, span)) => tree.on(event, span),
            Err(error) => {
                let mark = error.marker();
                if error.info().contains("tab")
                    && let Some(problem) = indenting_tab(text, mark.line(), tree.field())
                {
                    problems.push(problem);
                    return None;
                }
                let at = Span {
                    line: number(mark.line()),
                    column: number(mark.col() + 1),
                    length: 1,
                };
                let code = match error.kind() {
                    granit_parser::ErrorKind::RecursionLimitExceeded => &codes::SPEC_TOO_DEEP,
                    _ => &codes::SPEC_SYNTAX,
                };
                Err(tree.problem(code, at, error.info().to_owned(), None))
            }
        };
        if let Err(problem) = step {
            problems.push(*problem);
            return None;
        }
    }
    if tree.root.is_none() {
        problems.add(&codes::SPEC_SYNTAX, START, "", "the text is empty", None);
        return None;
    }
    tree.root
}

/// YAML ends a line at a carriage return alone; nothing else that shows the text does, so places would be wrong.
fn lone_return(text: &str) -> Option<Problem> {
    let bytes = text.as_bytes();
    let at = (0..bytes.len())
        .find(|at| bytes.get(*at) == Some(&b'\r') && bytes.get(at + 1) != Some(&b'\n'))?;
    let before = text.get(..at)?;
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    Some(Problem {
        code: &codes::SPEC_SYNTAX,
        at: Span {
            line: number(1 + before.matches('\n').count()),
            column: number(1 + before.get(line_start..)?.chars().count()),
            length: 1,
        },
        field: String::new(),
        message: "a carriage return that ends no line".to_owned(),
        help: None,
    })
}

/// The first tab that indents a line, from `line` on: the parser complains about what stands before it.
fn indenting_tab(text: &str, line: usize, field: String) -> Option<Problem> {
    let mut lines = text.lines().enumerate().skip(line.saturating_sub(1));
    let (index, before, tabs) = lines.find_map(|(index, line)| {
        let (before, rest) = line.split_once('\t')?;
        let tabs = 1 + rest.chars().take_while(|c| *c == '\t').count();
        let indents = before.bytes().all(|byte| byte == b' ');
        indents.then_some((index, before.len(), tabs))
    })?;
    Some(Problem {
        code: &codes::SPEC_SYNTAX,
        at: Span {
            line: number(index + 1),
            column: number(before + 1),
            length: number(tabs),
        },
        field,
        message: "a tab indents this line, and YAML knows only spaces".to_owned(),
        help: Some("indent with spaces".to_owned()),
    })
}

/// Where a problem of the whole text is shown.
const START: Span = Span {
    line: 1,
    column: 1,
    length: 1,
};

type Step = Result<(), Box<Problem>>;

/// A collection whose end has not come yet.
struct Open {
    node: Node,
    anchor: usize,
    /// In a mapping: the key whose value comes next.
    key: Option<Key>,
    /// The value of a key that stood before: read, and dropped.
    duplicate: bool,
}

struct Tree<'t> {
    text: &'t str,
    problems: &'t mut Problems,
    open: Vec<Open>,
    /// Finished anchored nodes. An alias to one that is still open (itself) finds none.
    anchors: Vec<(usize, Node)>,
    root: Option<Node>,
    /// Nodes and bytes so far, aliases expanded.
    total: (usize, usize),
}

impl Tree<'_> {
    fn on(&mut self, event: Event<'_>, raw: RawSpan) -> Step {
        let at = self.span(raw);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.no_tag(tag.is_some(), at)?;
                let scalar = Scalar {
                    text: match style {
                        ScalarStyle::Plain if at.length == 0 => String::new(),
                        _ => text.into_owned(),
                    },
                    style: match style {
                        ScalarStyle::Plain => Style::Plain,
                        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
                        ScalarStyle::Literal => Style::Literal,
                        ScalarStyle::Folded => Style::Folded,
                    },
                };
                let bytes = scalar.text.len();
                self.count(1, bytes, at)?;
                self.place(node(at, Value::Scalar(scalar), bytes), anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.no_tag(tag.is_some(), at)?;
                self.begin(node(at, Value::Sequence(Vec::new()), 0), anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.no_tag(tag.is_some(), at)?;
                self.begin(node(at, Value::Mapping(Vec::new()), 0), anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.place(open.node, open.anchor),
                None => Ok(()),
            },
            Event::Alias(id) => {
                let found = self.anchors.iter().rev().find(|(anchor, _)| *anchor == id);
                let Some((_, node)) = found else {
                    let message = "an alias stands inside what it names".to_owned();
                    return Err(self.problem(&codes::SPEC_TOO_DEEP, at, message, None));
                };
                let node = node.clone();
                self.count(node.nodes, node.bytes, at)?;
                self.place(node, 0)
            }
            Event::DocumentStart(..) if self.root.is_some() => {
                let message = "there is a second document".to_owned();
                let help = Some("keep one; remove the `---` and what follows".to_owned());
                Err(self.problem(&codes::SPEC_SYNTAX, at, message, help))
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, node: Node, anchor: usize) -> Step {
        self.count(1, 0, node.at)?;
        if self.open.len() >= limits::NESTING {
            let message = format!("nested deeper than {} levels", limits::NESTING);
            return Err(self.problem(&codes::SPEC_TOO_DEEP, node.at, message, None));
        }
        if let Some(Open {
            node: parent,
            key: None,
            ..
        }) = self.open.last()
            && matches!(parent.value, Value::Mapping(_))
        {
            let message = "a key must be text".to_owned();
            return Err(self.problem(&codes::SPEC_SYNTAX, node.at, message, None));
        }
        self.open.push(Open {
            node,
            anchor,
            key: None,
            duplicate: false,
        });
        Ok(())
    }

    /// Puts a finished node where it belongs: the root, a list's end, a key, or a key's value.
    fn place(&mut self, node: Node, anchor: usize) -> Step {
        if anchor != 0 {
            self.anchors.push((anchor, node.clone()));
        }
        // An alias brings depth that the events did not count.
        if self.open.len() + depth(&node) > limits::NESTING + 1 {
            let message = format!("nested deeper than {} levels", limits::NESTING);
            return Err(self.problem(&codes::SPEC_TOO_DEEP, node.at, message, None));
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        parent.node.nodes += node.nodes;
        parent.node.bytes += node.bytes;
        match (&mut parent.node.value, parent.key.take()) {
            (Value::Sequence(items), _) => items.push(node),
            (Value::Mapping(entries), Some(key)) => {
                if !std::mem::take(&mut parent.duplicate) {
                    entries.push((key, node));
                }
            }
            (Value::Mapping(entries), None) => {
                let at = node.at;
                let Value::Scalar(scalar) = node.value else {
                    let message = "a key must be text".to_owned();
                    return Err(self.problem(&codes::SPEC_SYNTAX, at, message, None));
                };
                let text = scalar.text;
                let first = entries.iter().find(|(key, _)| key.text == text);
                let first = first.map(|(key, _)| key.at.line);
                parent.duplicate = first.is_some();
                parent.key = Some(Key {
                    text: text.clone(),
                    at,
                });
                if let Some(line) = first {
                    let message =
                        format!("`{}` stands twice here, first in line {line}", shown(&text));
                    let problem = self.problem(&codes::SPEC_DUPLICATE_KEY, at, message, None);
                    self.problems.push(*problem);
                }
            }
            (Value::Scalar(_), _) => {}
        }
        Ok(())
    }

    fn count(&mut self, nodes: usize, bytes: usize, at: Span) -> Step {
        self.total.0 += nodes;
        self.total.1 += bytes;
        let message = if self.total.0 > limits::YAML_NODES {
            format!("more than {} nodes, aliases expanded", limits::YAML_NODES)
        } else if self.total.1 > limits::SPEC_BYTES {
            format!("more than {} bytes, aliases expanded", limits::SPEC_BYTES)
        } else {
            return Ok(());
        };
        Err(self.problem(&codes::SPEC_TOO_DEEP, at, message, None))
    }

    fn no_tag(&self, tagged: bool, at: Span) -> Step {
        if tagged {
            let message = "tags (`!name`) are not supported".to_owned();
            return Err(self.problem(&codes::SPEC_SYNTAX, at, message, None));
        }
        Ok(())
    }

    fn problem(
        &self,
        code: &'static Code,
        at: Span,
        message: String,
        help: Option<String>,
    ) -> Box<Problem> {
        Box::new(Problem {
            code,
            at,
            field: self.field(),
            message,
            help,
        })
    }

    /// The path of what is being read: `files[2].mode`.
    fn field(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match (&open.node.value, &open.key) {
                (Value::Sequence(items), _) => path.push_str(&format!("[{}]", items.len())),
                (_, Some(key)) if path.is_empty() => path.push_str(&shown(&key.text)),
                (_, Some(key)) => {
                    path.push('.');
                    path.push_str(&shown(&key.text));
                }
                _ => {}
            }
        }
        path
    }

    /// What to underline: the node, or of one with several lines what is left of its first.
    fn span(&self, raw: RawSpan) -> Span {
        let length = if raw.start.line() == raw.end.line() {
            raw.len()
        } else {
            let rest = raw.start.byte_offset().and_then(|at| self.text.get(at..));
            let line = rest.and_then(|rest| rest.lines().next()).unwrap_or("");
            line.chars().count()
        };
        Span {
            line: number(raw.start.line()),
            column: number(raw.start.col() + 1),
            length: number(length),
        }
    }
}

fn node(at: Span, value: Value, bytes: usize) -> Node {
    Node {
        at,
        value,
        nodes: 1,
        bytes,
    }
}

/// Levels of a node: 1 for a scalar.
fn depth(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar(_) => 0,
        Value::Sequence(items) => items.iter().map(depth).max().unwrap_or(0),
        Value::Mapping(entries) => entries.iter().map(|(_, v)| depth(v)).max().unwrap_or(0),
    }
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(text: &str) -> Vec<(&'static str, u32, u32, String)> {
        let mut problems = Problems::default();
        let tree = parse(text, &mut problems);
        assert!(tree.is_some() || !problems.is_empty(), "{text:?}");
        problems
            .sorted()
            .into_iter()
            .map(|p| (p.code.name, p.at.line, p.at.column, p.field))
            .collect()
    }

    #[test]
    fn a_scalar_keeps_its_style_and_place() {
        let text = "a: 0440\nb: \"0440\"\nc: |\n  x\n  y\nd:\n- ü: 1\n";
        let mut problems = Problems::default();
        let tree = parse(text, &mut problems).unwrap();
        assert!(problems.is_empty());
        let Value::Mapping(entries) = &tree.value else {
            panic!("not a mapping");
        };
        let seen: Vec<_> = entries
            .iter()
            .filter_map(|(key, node)| {
                let scalar = node.scalar()?;
                Some((
                    &*key.text,
                    &*scalar.text,
                    scalar.style,
                    node.at.line,
                    node.at.column,
                ))
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("a", "0440", Style::Plain, 1, 4),
                ("b", "0440", Style::Quoted, 2, 4),
                ("c", "x\ny\n", Style::Literal, 4, 3),
            ]
        );
    }

    #[test]
    fn what_is_not_a_plain_tree_is_refused_with_its_place() {
        for (text, code, line, column, field) in [
            ("", "spec.syntax", 1, 1, ""),
            ("# nothing\n", "spec.syntax", 1, 1, ""),
            (
                "a: 1\nb: {a: 1, a: 2}\n",
                "spec.duplicate_key",
                2,
                11,
                "b.a",
            ),
            ("a: [b, c\n", "spec.syntax", 1, 4, "a[1]"),
            ("a: 1\n---\nb: 2\n", "spec.syntax", 2, 1, ""),
            ("a: !secret x\n", "spec.syntax", 1, 12, "a"),
            ("%YAML 1.2\n---\na: 1\n", "spec.syntax", 1, 1, ""),
            ("? [a]\n: b\n", "spec.syntax", 1, 3, ""),
            ("a: *nobody\n", "spec.syntax", 1, 4, "a"),
            ("a: &x [*x]\n", "spec.too_deep", 1, 8, "a[0]"),
            ("a: 1\r\nb: ü\r c\n", "spec.syntax", 2, 5, ""),
            ("a: \"\\q\"\n", "spec.syntax", 1, 4, "a"),
            ("a:\n\t- b\n", "spec.syntax", 2, 1, "a"),
            ("a: x\n\tb: y\n", "spec.syntax", 2, 1, "a"),
            ("c:\n  a: x\n \tb: y\n", "spec.syntax", 3, 2, "c.a"),
            ("a: |\n\t\tx\n", "spec.syntax", 2, 1, "a"),
        ] {
            let seen = problems_of(text);
            let expect = (code, line, column, field.to_owned());
            assert_eq!(seen, [expect], "{text:?}");
        }
    }

    #[test]
    fn aliases_and_nesting_are_bounded() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let alias = format!("*a{}, ", level - 1).repeat(10);
            laughs += &format!("a{level}: &a{level} [{}]\n", alias.trim_end_matches(", "));
        }
        assert_eq!(problems_of(&laughs)[0].0, "spec.too_deep");
        let big = format!("a: &a \"{}\"\nb: [*a, *a, *a, *a]\n", "x".repeat(100 << 10));
        assert_eq!(problems_of(&big)[0].0, "spec.too_deep");
        let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        assert_eq!(problems_of(&deep(limits::NESTING)), []);
        assert_eq!(
            problems_of(&deep(limits::NESTING + 1))[0].0,
            "spec.too_deep"
        );
        assert_eq!(problems_of(&deep(100_000))[0].0, "spec.too_deep");
        let half = limits::NESTING / 2 + 1;
        let stacked = format!(
            "a: &a {}\nb: {}*a{}\n",
            deep(half),
            "[".repeat(half),
            "]".repeat(half)
        );
        assert_eq!(problems_of(&stacked)[0].0, "spec.too_deep");
        assert_eq!(
            problems_of(&"x".repeat(limits::SPEC_BYTES + 1))[0].0,
            "spec.too_large"
        );
    }
}
