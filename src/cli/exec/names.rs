//! Which file becomes which variable. Pure.
//!
//! By rule: `db/password` becomes `DB_PASSWORD`. By list: only the files that are named, under the names that they are given. A value is
//! what is in the file, byte for byte.

use std::{collections::BTreeMap, ffi::OsStr, os::unix::ffi::OsStrExt as _, sync::Arc};

use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result, codes},
    path::RelPath,
    secret::SecretBytes,
};

/// Names that the loader, shells and interpreters act on before or while a program starts. The rule makes none of them: whoever can add a
/// field to a secret would choose what is executed. A list may.
#[rustfmt::skip]
const ACTED_ON: &[&str] = &[
    "PATH", "IFS", "ENV", "PS4", "SHELLOPTS", "BASHOPTS", "BASH_ENV", "GCONV_PATH", "GLIBC_TUNABLES", "HOSTALIASES", "LOCPATH", "MALLOC_TRACE",
    "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH", "NODE_OPTIONS", "NODE_PATH", "PERL5DB", "PERL5LIB", "PERL5OPT",
    "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "RUBYLIB", "RUBYOPT",
];
/// And all that begin so: the dynamic loader's.
const LOADERS: &str = "LD_";

/// How variables are named.
pub enum Naming {
    /// From the path.
    Rule {
        /// Stands before each name.
        prefix: String,
    },
    /// These and no others.
    List(Vec<Named>),
}

/// A line of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// The variable.
    pub name: String,
    /// The file.
    pub path: RelPath,
}

impl Named {
    /// Reads `NAME=PATH`.
    ///
    /// # Errors
    /// Why not, as a phrase.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("it is not NAME=PATH")?;
        is_name(name)
            .map_err(|why| format!("`{}` cannot be a variable: it {why}", name.escape_debug()))?;
        let path = RelPath::parse(path)
            .map_err(|why| format!("`{}` cannot be a file: it {why}", path.escape_debug()))?;
        Ok(Self {
            name: name.to_owned(),
            path,
        })
    }
}

impl Naming {
    /// The files to look for; `None`: all there are.
    pub fn wanted(&self) -> Option<Vec<&RelPath>> {
        match self {
            Self::Rule { .. } => None,
            Self::List(list) => Some(list.iter().map(|named| &named.path).collect()),
        }
    }
}

/// Whether a text can be a variable's name, as every shell takes it.
///
/// # Errors
/// Why not, as a phrase that follows the name.
pub fn is_name(text: &str) -> Result<(), &'static str> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    match text.as_bytes() {
        [] => Err("is empty"),
        [first, ..] if first.is_ascii_digit() => Err("begins with a digit"),
        all if !all.iter().copied().all(good) => {
            Err("holds something else than letters, digits and `_`")
        }
        _ => Ok(()),
    }
}

/// The variable for a path: `/`, `-` and `.` become `_`, letters upper case, and `prefix` stands before it.
///
/// # Errors
/// `exec.bad_name`.
fn by_rule(prefix: &str, path: &RelPath) -> Result<String> {
    let turned = path.as_str().chars().map(|c| match c {
        '/' | '-' | '.' => '_',
        c => c.to_ascii_uppercase(),
    });
    let name: String = prefix.chars().chain(turned).collect();
    let bad = |why: &str| {
        let shown = name.escape_debug();
        Error::new(&codes::EXEC_BAD_NAME)
            .object(path)
            .detail(format!("its variable would be `{shown}`, which {why}"))
    };
    is_name(&name).map_err(bad)?;
    if ACTED_ON.contains(&&*name) || name.starts_with(LOADERS) {
        return Err(bad("decides how programs start"));
    }
    Ok(name)
}

/// Variables with their values. Without a `Debug` form.
pub struct Variables(BTreeMap<String, Arc<SecretBytes>>);

impl Variables {
    /// None.
    pub fn none() -> Self {
        Self(BTreeMap::new())
    }

    /// Names files. `longest` is what the kernel takes as one string: `NAME=value` and its end.
    ///
    /// # Errors
    /// `exec.bad_name`, `exec.name_conflict`, `exec.bad_value`, `exec.too_large`, `exec.no_file`.
    pub fn of(
        naming: &Naming,
        files: &BTreeMap<RelPath, Arc<SecretBytes>>,
        longest: usize,
    ) -> Result<Self> {
        let mut named: BTreeMap<String, &RelPath> = BTreeMap::new();
        let mut add = |name: String, path| match named.insert(name.clone(), path) {
            None => Ok(()),
            Some(other) => {
                Err(Error::new(&codes::EXEC_NAME_CONFLICT)
                    .object(path)
                    .detail(format!(
                        "its variable is `{name}`, and so is that of `{other}`"
                    )))
            }
        };
        match naming {
            Naming::Rule { prefix } => files
                .keys()
                .try_for_each(|path| add(by_rule(prefix, path)?, path))?,
            Naming::List(list) => list
                .iter()
                .try_for_each(|line| add(line.name.clone(), &line.path))?,
        }
        let mut all = BTreeMap::new();
        for (name, path) in named {
            let value = files
                .get(path)
                .ok_or_else(|| Error::new(&codes::EXEC_NO_FILE).object(path))?;
            if value.expose().contains(&0) {
                return Err(Error::new(&codes::EXEC_BAD_VALUE).object(path));
            }
            if name.len() + 1 + value.len() + 1 > longest {
                let why = format!("`{name}` with its value is longer than {longest} bytes");
                let error = Error::new(&codes::EXEC_TOO_LARGE);
                return Err(error.object(path).detail(why));
            }
            all.insert(name, value.clone());
        }
        Ok(Self(all))
    }

    /// Each name and its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &OsStr)> {
        let all = self.0.iter();
        all.map(|(name, value)| (name.as_str(), OsStr::from_bytes(value.expose())))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Equal for equal names and values, and for no others: what is kept to see whether something has changed.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (name, value) in &self.0 {
            for part in [name.as_bytes(), value.expose()] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    fn files(all: &[(&str, &[u8])]) -> BTreeMap<RelPath, Arc<SecretBytes>> {
        let file = |(name, value): &(&str, &[u8])| {
            let value = SecretBytes::new(value.to_vec());
            (path(name), Arc::new(value))
        };
        all.iter().map(file).collect()
    }

    fn rule(prefix: &str) -> Naming {
        let prefix = prefix.to_owned();
        Naming::Rule { prefix }
    }

    fn list(all: &[&str]) -> Naming {
        Naming::List(all.iter().map(|text| Named::parse(text).unwrap()).collect())
    }

    const LONGEST: usize = 64;

    #[test]
    fn a_path_makes_a_name() {
        for (prefix, file, expect) in [
            ("", "db/password", Ok("DB_PASSWORD")),
            ("APP_", "db/password", Ok("APP_DB_PASSWORD")),
            ("app", "tls.crt", Ok("appTLS_CRT")),
            ("", "api-key", Ok("API_KEY")),
            ("", ".env", Ok("_ENV")),
            ("", "7up", Err("begins with a digit")),
            ("S", "7up", Ok("S7UP")),
            ("", "two words", Err("something else")),
            ("", "schlüssel", Err("something else")),
            ("", "a=b", Err("something else")),
            ("A=", "b", Err("something else")),
            ("", "path", Err("decides how programs start")),
            ("", "ld/preload", Err("decides how programs start")),
            ("LD_", "x", Err("decides how programs start")),
            ("", "node-options", Err("decides how programs start")),
            ("MY_", "path", Ok("MY_PATH")),
        ] {
            let file = path(file);
            match (by_rule(prefix, &file), expect) {
                (Ok(name), Ok(expect)) => assert_eq!(name, expect),
                (Err(error), Err(why)) => {
                    assert_eq!(error.code(), &codes::EXEC_BAD_NAME);
                    let text = error.to_string();
                    assert!(text.contains(file.as_str()) && text.contains(why), "{text}");
                }
                (is, _) => panic!("{file}: {is:?}, not {expect:?}"),
            }
        }
    }

    #[test]
    fn a_line_of_the_list_is_a_name_and_a_path() {
        for (text, expect) in [
            ("PATH=db/password", Ok("db/password")), // who writes it means it
            ("lower=a=b", Ok("a=b")),
            ("NAME", Err("NAME=PATH")),
            ("=a", Err("is empty")),
            ("1A=a", Err("digit")),
            ("A B=a", Err("letters")),
            ("A=", Err("is empty")),
            ("A=/etc/shadow", Err("absolute")),
            ("A=../b", Err("`..`")),
        ] {
            match (Named::parse(text), expect) {
                (Ok(named), Ok(expect)) => assert_eq!(named.path.as_str(), expect),
                (Err(is), Err(why)) => assert!(is.contains(why), "{text}: {is}"),
                (is, _) => panic!("{text}: {is:?}"),
            }
        }
    }

    #[test]
    fn each_file_has_one_variable_and_each_mistake_its_code() {
        let all = files(&[("db/password", b"p"), ("db_password", b"q"), ("user", b"u")]);
        let big = files(&[("big", &[b'x'; LONGEST]), ("nul", b"a\0b")]);
        let fits = files(&[("big", &[b'x'; LONGEST - 5])]);
        for (naming, files, expect) in [
            (rule(""), &all, Err(&codes::EXEC_NAME_CONFLICT)),
            (list(&["A=user", "B=user"]), &all, Ok(&["A", "B"][..])),
            (
                list(&["A=user", "A=db_password"]),
                &all,
                Err(&codes::EXEC_NAME_CONFLICT),
            ),
            (list(&["A=none"]), &all, Err(&codes::EXEC_NO_FILE)),
            (list(&["A=nul"]), &big, Err(&codes::EXEC_BAD_VALUE)),
            (list(&["A=big"]), &big, Err(&codes::EXEC_TOO_LARGE)),
            (rule(""), &fits, Ok(&["BIG"][..])),
            (rule("X"), &fits, Err(&codes::EXEC_TOO_LARGE)),
        ] {
            match (Variables::of(&naming, files, LONGEST), expect) {
                (Ok(variables), Ok(expect)) => {
                    let names: Vec<_> = variables.iter().map(|(name, _)| name).collect();
                    assert_eq!(names, expect);
                }
                (Err(error), Err(code)) => assert_eq!(error.code(), code, "{error}"),
                (Ok(_), Err(code)) => panic!("taken in spite of {code:?}"),
                (Err(error), Ok(_)) => panic!("{error:?}"),
            }
        }
        let error = Variables::of(&rule(""), &all, LONGEST)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("db_password") && error.contains("db/password"),
            "{error}"
        );
    }

    #[test]
    fn a_digest_tells_sets_apart() {
        let digest = |all: &[(&str, &[u8])]| {
            let variables = Variables::of(&rule(""), &files(all), LONGEST);
            variables.unwrap_or_else(|error| panic!("{error}")).digest()
        };
        let one = digest(&[("a", b"bc"), ("d", b"")]);
        assert_eq!(one, digest(&[("d", b""), ("a", b"bc")]));
        for other in [
            &[("a", &b"bc"[..])][..],
            &[("a", b"b"), ("d", b"c")],
            &[("ab", b"c"), ("d", b"")],
            &[("a", b""), ("d", b"bc")],
        ] {
            assert_ne!(one, digest(other));
        }
    }
}
