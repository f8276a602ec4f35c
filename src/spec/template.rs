//! What a template says, before any value is known: whether it compiles, which names, filters and tests it uses, and where.
//!
//! The engine is minijinja, stripped to [`FILTERS`] and [`TESTS`]: no functions, macros, includes, methods or I/O. It parses
//! and walks expressions recursively, as deep as they have operators (a tag of some thousand operators overflows a 2 MiB
//! stack), so `scan.rs` counts them first, and refuses what could make a small template large. It also says where a name
//! stands, which the engine does not tell.
//!
//! Does not: render (`render/template.rs` does, with the same engine).

use minijinja::{Environment, UndefinedBehavior, syntax::SyntaxConfig};

use crate::{
    limits,
    spec::{
        read::shown,
        scan::{Role, Word, scan},
        suggest,
    },
};

/// Filters that a template may use: some of minijinja's, and ours (`render/filters.rs`).
pub const FILTERS: &[&str] = &[
    "b64decode",
    "b64encode",
    "capitalize",
    "default",
    "dictsort",
    "dotenv",
    "first",
    "hex",
    "indent",
    "int",
    "items",
    "join",
    "json",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "replace",
    "shellquote",
    "split",
    "string",
    "tojson",
    "trim",
    "unhex",
    "upper",
    "urlencode",
    "yaml",
];

/// Tests (`is defined`) that a template may use.
pub const TESTS: &[&str] = &[
    "defined",
    "endingwith",
    "mapping",
    "none",
    "number",
    "sequence",
    "startingwith",
    "string",
    "undefined",
];

/// What of minijinja's is taken away: of no use here, or a way to make much of little (`map('default', x)`).
const REMOVED_FILTERS: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "bool",
    "chain",
    "count",
    "d",
    "e",
    "escape",
    "float",
    "format",
    "groupby",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "sum",
    "title",
    "unique",
    "zip",
];
const REMOVED_TESTS: &[&str] = &[
    "boolean",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "int",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "ne",
    "odd",
    "safe",
    "sameas",
    "test",
    "true",
    "upper",
];

/// The engine without our own filters. An undefined name is an error; nothing is escaped; a final newline stays.
pub fn engine() -> Environment<'static> {
    let mut engine = Environment::new();
    for name in ["range", "dict", "debug", "namespace"] {
        engine.remove_global(name);
    }
    for name in REMOVED_FILTERS {
        engine.remove_filter(name);
    }
    for name in REMOVED_TESTS {
        engine.remove_test(name);
    }
    if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
        engine.set_syntax(syntax);
    }
    engine.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.set_fuel(Some(limits::TEMPLATE_STEPS));
    engine.set_recursion_limit(limits::NESTING * 2);
    engine.set_debug(true); // an error knows which name is undefined
    engine
}

/// A place in a template: 1-based line and column, and a length, in characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
    /// Characters.
    pub length: u32,
}

/// Something wrong with a template.
#[derive(Debug)]
pub struct Fault {
    /// Where.
    pub at: Place,
    /// What, as a sentence.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

/// A name that the template takes from outside.
#[derive(Debug)]
pub struct Use {
    /// The name.
    pub name: String,
    /// Where it stands first.
    pub at: Place,
    /// Whether it is called like a function.
    pub called: bool,
}

/// All names that `text` takes from outside, sorted, or all that is wrong with it.
///
/// 1. Scan, and refuse what would be too deep to compile.
/// 2. Compile.
/// 3. Look for filters and tests that do not exist: the engine would find them only when it renders.
///
/// # Errors
/// The faults, each with its place.
pub fn read(text: &str) -> Result<Vec<Use>, Vec<Fault>> {
    let words = scan(text).map_err(|fault| vec![fault])?; // 1
    let engine = engine();
    let template = engine.template_from_str(text).map_err(|error| {
        let range = error.range().unwrap_or(0..0);
        let detail = error.detail().unwrap_or("the template cannot be compiled");
        vec![Fault {
            at: place(text, range.start, range.len()),
            message: shown(detail),
            help: None,
        }]
    })?; // 2
    let faults: Vec<_> = words
        .iter()
        .filter_map(|word| unknown(text, word))
        .collect(); // 3
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut names: Vec<_> = template.undeclared_variables(false).into_iter().collect();
    names.sort_unstable();
    let uses = names.into_iter().map(|name| {
        let word = words
            .iter()
            .find(|word| matches!(word.role, Role::Name | Role::Call) && word.text == name);
        Use {
            at: word.map_or(place(text, 0, 1), |word| {
                place(text, word.offset, name.len())
            }),
            called: word.is_some_and(|word| word.role == Role::Call),
            name,
        }
    });
    Ok(uses.collect())
}

fn unknown(text: &str, word: &Word<'_>) -> Option<Fault> {
    let (kind, known) = match word.role {
        Role::Filter => ("filter", FILTERS),
        Role::Test => ("test", TESTS),
        Role::Name | Role::Call => return None,
    };
    if known.contains(&word.text) {
        return None;
    }
    Some(Fault {
        at: place(text, word.offset, word.text.len()),
        message: format!("there is no {kind} `{}`", shown(word.text)),
        help: suggest::did_you_mean(word.text, known.iter().copied())
            .or_else(|| Some(format!("there are: {}", known.join(", ")))),
    })
}

/// Line and column of a byte offset.
pub(super) fn place(text: &str, offset: usize, bytes: usize) -> Place {
    let before = text.get(..offset).unwrap_or("");
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let marked = text.get(offset..offset + bytes).unwrap_or("");
    let marked = marked.lines().next().unwrap_or("");
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Place {
        line: number(1 + before.matches('\n').count()),
        column: number(1 + before.get(line_start..).unwrap_or("").chars().count()),
        length: number(marked.chars().count().max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        read(text).unwrap().into_iter().map(|u| u.name).collect()
    }

    fn fault(text: &str) -> (u32, u32, u32, String) {
        let faults = read(text).unwrap_err();
        let fault = &faults[0];
        (
            fault.at.line,
            fault.at.column,
            fault.at.length,
            fault.message.clone(),
        )
    }

    #[test]
    fn names_from_outside_are_found_with_their_place() {
        assert_eq!(
            names("{{ db.user }}{% for k, v in api|items %}{{ k }}{{ loop.index }}{% endfor %}"),
            ["api", "db"]
        );
        assert_eq!(
            names("{% raw %}{{ x }}{% endraw %}{# {{ y }} #}{{ 'a }}' ~ z }}"),
            ["z"]
        );
        let uses = read("ü{{ 1 }}\n  {{ db.x ~ range(3) }}").unwrap();
        let seen: Vec<_> = uses
            .iter()
            .map(|u| (&*u.name, u.at.line, u.at.column, u.at.length, u.called))
            .collect();
        assert_eq!(seen, [("db", 2, 6, 2, false), ("range", 2, 13, 5, true)]);
    }

    #[test]
    fn faults_have_a_place_and_words() {
        for (text, line, column, length, says) in [
            ("a\n {{ db", 2, 5, 2, "unexpected end of input"),
            ("{{ a | urlencod }}", 1, 8, 8, "no filter `urlencod`"),
            (
                "{% filter uper %}{% endfilter %}",
                1,
                11,
                4,
                "no filter `uper`",
            ),
            ("{{ a is not defned }}", 1, 13, 6, "no test `defned`"),
            ("{% include 'x' %}", 1, 4, 7, "no tag"),
            ("{% macro x() %}{% endmacro %}", 1, 4, 5, "no tag"),
            ("{{ a | pprint }}", 1, 8, 6, "no filter `pprint`"),
        ] {
            let seen = fault(text);
            assert_eq!(
                (seen.0, seen.1, seen.2),
                (line, column, length),
                "{text}: {seen:?}"
            );
            assert!(seen.3.contains(says), "{text}: {seen:?}");
        }
        let help = read("{{ a | urlencod }}").unwrap_err().remove(0).help;
        assert_eq!(help.as_deref(), Some("did you mean `urlencode`?"));
    }

    #[test]
    fn what_would_overflow_the_stack_is_refused_first() {
        let n = 20_000;
        for text in [
            format!("{{{{ a{} }}}}", "~a".repeat(n)),
            format!("{{{{ a{} }}}}", "|upper".repeat(n)),
            format!("{{{{ a{} }}}}", "(a)".repeat(n)),
            format!("{{{{ {}a }}}}", "not ".repeat(n)),
            format!("{{{{ {}a }}}}", "-".repeat(n)),
            format!("{{{{ {}a }}}}", "[".repeat(n)),
            format!("{{{{ a{} }}}}", "~'}}'".repeat(n)),
            format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(n)),
            format!("{{% set {}a{} = 1 %}}", "(".repeat(n), ",)".repeat(n)),
            "{% if a %}".repeat(n),
            "{% for a in b %}".repeat(n),
            "{{ (".repeat(n),
            "{{ ) }}".repeat(n),
        ] {
            assert!(read(&text).is_err(), "{}", &text[..40]);
        }
        let deepest = format!(
            "{}{{{{ {}a }}}}{}",
            "{% if a %}".repeat(100),
            "-".repeat(limits::TEMPLATE_TAG_TOKENS - 1),
            "{% endif %}".repeat(100)
        );
        assert!(read(&deepest).is_ok());
    }

    #[test]
    fn every_filter_and_test_of_the_engine_is_allowed_or_removed() {
        let engine = engine();
        let text = |filter: &str| format!("{{{{ x|{filter} }}}}");
        for name in REMOVED_FILTERS {
            let error = engine.render_str(&text(name), ()).unwrap_err();
            assert_eq!(error.kind(), minijinja::ErrorKind::UnknownFilter, "{name}");
        }
        for name in REMOVED_TESTS {
            let error = engine
                .render_str(&format!("{{{{ 1 is {name} }}}}"), ())
                .unwrap_err();
            assert_eq!(error.kind(), minijinja::ErrorKind::UnknownTest, "{name}");
        }
        for name in TESTS {
            let text = format!("{{{{ 1 is {name} 1 }}}}");
            if let Err(error) = engine.render_str(&text, ()) {
                assert_ne!(error.kind(), minijinja::ErrorKind::UnknownTest, "{name}");
            }
        }
        assert!(engine.globals().next().is_none());
    }
}
