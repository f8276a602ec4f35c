//! Reads a source file as a list of paths. Not a parser: enough of the language for the rules, and no dependency.
//!
//! 1. `tokens`: identifiers, `::` and single characters; comments and literals are gone.
//! 2. `without_tests`: items under `#[cfg(test)]` are gone; files that such a `mod x;` names are remembered.
//! 3. `collect`: each `use` tree and each inline path as one full path, `self` and `super` resolved against the module.

use std::path::{Path, PathBuf};

/// A path that a file uses, from `crate` where it is our own.
#[derive(Debug)]
pub struct Found {
    /// Segments joined by `::`; a macro's last one ends in `!`.
    pub path: String,
    /// Where, from 1.
    pub line: usize,
}

impl Found {
    pub fn segments(&self) -> Vec<&str> {
        self.path.split("::").collect()
    }

    /// Whether the segments of `what` stand in this path one after the other.
    pub fn contains(&self, what: &str) -> bool {
        let what: Vec<&str> = what.split("::").collect();
        self.segments().windows(what.len()).any(|part| part == what)
    }
}

/// A file of the program.
pub struct Source {
    pub file: PathBuf,
    pub paths: Vec<Found>,
    /// Files (without `.rs`) or folders that only tests compile.
    pub test_files: Vec<PathBuf>,
}

impl Source {
    pub fn parse(file: &Path, text: &str) -> Self {
        let module = module_path(file);
        let (tokens, test_modules) = without_tests(tokens(text));
        let base = match file.file_stem().and_then(|stem| stem.to_str()) {
            Some("mod" | "lib" | "main") => file.parent().unwrap_or(file).to_owned(),
            _ => file.with_extension(""),
        };
        Self {
            file: file.to_owned(),
            paths: collect(&tokens, &module),
            test_files: test_modules.iter().map(|name| base.join(name)).collect(),
        }
    }

    /// The top-level module of the file: `volume` for src/volume/task.rs, `main` and `lib` for themselves.
    pub fn module(&self) -> String {
        let first = self.file.components().nth(1);
        let name = first.map(|part| part.as_os_str().to_string_lossy().into_owned());
        name.unwrap_or_default().trim_end_matches(".rs").to_owned()
    }
}

/// `[crate, volume, task]` for src/volume/task.rs.
fn module_path(file: &Path) -> Vec<String> {
    let inside = file.strip_prefix("src").unwrap_or(file).with_extension("");
    let mut module = vec!["crate".to_owned()];
    module.extend(
        inside
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned()),
    );
    if matches!(
        module.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    ) {
        module.pop();
    }
    module
}

/// Lines of `#[ignore]` and `#[ignore = "..."]`.
pub fn ignored_tests(text: &str) -> Vec<usize> {
    let tokens = tokens(text);
    let starts = tokens
        .windows(3)
        .filter(|w| w[0].is("#") && w[1].is("[") && w[2].is("ignore"));
    starts.map(|w| w[2].line).collect()
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    line: usize,
}

impl Token {
    fn is(&self, text: &str) -> bool {
        self.text == text
    }

    fn is_word(&self) -> bool {
        self.text
            .starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut i, mut line, mut out) = (0, 1, Vec::new());
    while i < chars.len() {
        let start = i;
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => i = skip_block_comment(&chars, i),
            '"' => i = skip_string(&chars, i),
            '\'' => i = skip_char_or_lifetime(&chars, i),
            c if word(c) => {
                while word(at(i)) {
                    i += 1;
                }
                let text: String = chars[start..i].iter().collect();
                let prefix = matches!(&*text, "r" | "b" | "br" | "c" | "cr");
                match at(i) {
                    '"' | '#' if prefix && text.ends_with('r') && opens_raw(&chars, i) => {
                        i = skip_raw_string(&chars, i);
                    }
                    '"' if prefix => i = skip_string(&chars, i),
                    '\'' if text == "b" => i = skip_char_or_lifetime(&chars, i),
                    _ => out.push(Token { text, line }),
                }
            }
            ':' if at(i + 1) == ':' => {
                out.push(Token {
                    text: "::".into(),
                    line,
                });
                i += 2;
            }
            c => {
                if !c.is_whitespace() {
                    out.push(Token {
                        text: c.into(),
                        line,
                    });
                }
                i += 1;
            }
        }
        line += chars[start..i.min(chars.len())]
            .iter()
            .filter(|c| **c == '\n')
            .count();
    }
    out
}

fn skip_block_comment(chars: &[char], mut i: usize) -> usize {
    let mut depth = 0;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn skip_string(chars: &[char], mut i: usize) -> usize {
    i += 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn opens_raw(chars: &[char], i: usize) -> bool {
    chars[i..].iter().find(|c| **c != '#') == Some(&'"')
}

fn skip_raw_string(chars: &[char], mut i: usize) -> usize {
    let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
    i += hashes + 1;
    while i < chars.len() {
        let closing = chars[i + 1..]
            .iter()
            .take(hashes)
            .filter(|c| **c == '#')
            .count();
        i += 1;
        if chars[i - 1] == '"' && closing == hashes {
            return i + hashes;
        }
    }
    i
}

fn skip_char_or_lifetime(chars: &[char], i: usize) -> usize {
    match (chars.get(i + 1), chars.get(i + 2)) {
        (Some('\\'), _) => {
            let end = chars[(i + 3).min(chars.len())..]
                .iter()
                .position(|c| *c == '\'');
            end.map_or(chars.len(), |end| i + 3 + end + 1)
        }
        (Some(_), Some('\'')) => i + 3,
        _ => i + 1, // a lifetime: its name is read as a word, which harms nothing
    }
}

/// Index after the bracket that closes the one at `open`.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match &*token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return i + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// Index after the item that begins at `i`: its `;`, or its block.
fn end_of_item(tokens: &[Token], mut i: usize) -> usize {
    while i < tokens.len() {
        match &*tokens[i].text {
            ";" | "," => return i + 1,
            "{" => {
                let end = closing(tokens, i);
                // `use a::{b};` goes on after its braces, a function or module does not
                return if tokens.get(end).is_some_and(|t| t.is(";")) {
                    end + 1
                } else {
                    end
                };
            }
            "(" | "[" => i = closing(tokens, i),
            _ => i += 1,
        }
    }
    i
}

/// The tokens without items under `#[cfg(test)]`, and the names of test modules in files of their own.
fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, Vec<String>) {
    let (mut kept, mut modules, mut i) = (Vec::new(), Vec::new(), 0);
    while i < tokens.len() {
        let attribute = tokens[i].is("#") && tokens.get(i + 1).is_some_and(|t| t.is("["));
        if !attribute {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        let end = closing(&tokens, i + 1);
        let inside = &tokens[i + 2..end.max(i + 3) - 1];
        let has = |word: &str| inside.iter().any(|t| t.is(word));
        let for_tests = inside.first().is_some_and(|t| t.is("cfg")) && has("test") && !has("not");
        if !for_tests {
            kept.extend_from_slice(&tokens[i..end]);
            i = end;
            continue;
        }
        let after = end_of_item(&tokens, end);
        let item = &tokens[end..after];
        if let Some(at) = item.iter().position(|t| t.is("mod"))
            && item.last().is_some_and(|t| t.is(";"))
            && let Some(name) = item.get(at + 1)
        {
            modules.push(name.text.clone());
        }
        i = after;
    }
    (kept, modules)
}

/// All paths, with inline modules taken into account for `super`.
fn collect(tokens: &[Token], module: &[String]) -> Vec<Found> {
    let (mut found, mut i, mut depth) = (Vec::new(), 0, 0usize);
    let mut inline: Vec<(String, usize)> = Vec::new(); // inline modules we are in, and the depth of their brace
    while i < tokens.len() {
        let token = &tokens[i];
        let follows = |text: &str| tokens.get(i + 1).is_some_and(|t| t.is(text));
        let within = || -> Vec<String> {
            module
                .iter()
                .cloned()
                .chain(inline.iter().map(|(name, _)| name.clone()))
                .collect()
        };
        if token.is("mod") && tokens.get(i + 2).is_some_and(|t| t.is("{")) {
            depth += 1;
            inline.push((tokens[i + 1].text.clone(), depth));
            i += 3;
        } else if token.is("use") && !follows("<") {
            let start = found.len();
            i = use_tree(tokens, i + 1, "", &mut found);
            let within = within();
            for path in &mut found[start..] {
                path.path = resolve(&path.path, &within);
            }
        } else if token.is_word() {
            let (mut path, line) = (token.text.clone(), token.line);
            while tokens.get(i + 1).is_some_and(|t| t.is("::"))
                && tokens.get(i + 2).is_some_and(Token::is_word)
            {
                path = format!("{path}::{}", tokens[i + 2].text);
                i += 2;
            }
            let next = |n: usize, text: &str| tokens.get(i + n).is_some_and(|t| t.is(text));
            if next(1, "!") && !next(2, "=") {
                path.push('!');
            }
            found.push(Found {
                path: resolve(&path, &within()),
                line,
            });
            i += 1;
        } else {
            match &*token.text {
                "{" => depth += 1,
                "}" => {
                    if inline.last().is_some_and(|(_, at)| *at == depth) {
                        inline.pop();
                    }
                    depth = depth.saturating_sub(1);
                }
                _ => {}
            }
            i += 1;
        }
    }
    found
}

/// Reads one use tree from `i` on, below `prefix`; returns the index after it.
fn use_tree(tokens: &[Token], mut i: usize, prefix: &str, found: &mut Vec<Found>) -> usize {
    let mut path = prefix.to_owned();
    let line = tokens.get(i).map_or(0, |token| token.line);
    while let Some(token) = tokens.get(i) {
        match &*token.text {
            "::" => i += 1,
            "{" => {
                i += 1;
                while tokens.get(i).is_some_and(|t| !t.is("}")) {
                    i = use_tree(tokens, i, &path, found);
                    if tokens.get(i).is_some_and(|t| t.is(",")) {
                        i += 1;
                    }
                }
                return i + 1;
            }
            "as" => i += 2,
            "*" => {
                path = format!("{path}::*");
                i += 1;
            }
            _ if token.is_word() => {
                path = if path.is_empty() {
                    token.text.clone()
                } else {
                    format!("{path}::{}", token.text)
                };
                i += 1;
            }
            _ => break,
        }
    }
    found.push(Found { path, line });
    i
}

/// `self` and `super` against the module, and the library's own name as `crate`.
fn resolve(path: &str, module: &[String]) -> String {
    let mut segments: Vec<&str> = path.split("::").collect();
    let mut base: Vec<&str> = module.iter().map(String::as_str).collect();
    match segments.first() {
        Some(&"secretfs") => segments[0] = "crate",
        Some(&"self") if segments.len() > 1 => segments = [base, segments.split_off(1)].concat(),
        Some(&"super") => {
            let ups = segments
                .iter()
                .take_while(|segment| **segment == "super")
                .count();
            base.truncate(base.len().saturating_sub(ups).max(1));
            segments = [base, segments.split_off(ups)].concat();
        }
        _ => {}
    }
    segments.join("::")
}
