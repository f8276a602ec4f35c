//! `secretfs store`: the embedded store by hand. Values come from stdin or files and never from the command line, where every
//! user of the machine could see them.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    cli::load,
    config::Env,
    error::{Error, Result, codes},
    limits,
    secret::SecretBytes,
    store::{Identities, Name, Recipients, Store, document, parse_version, read_at_most},
};

/// Keep secrets in an encrypted store on this machine
///
/// The store is a directory of age files: what was put is what `age -d -i IDENTITY FILE` gives back. It can live in git.
/// Writers need the store alone, readers also an identity file.
#[derive(clap::Args)]
pub struct StoreArgs {
    /// The store's directory [default: $SECRETFS_STORE, else $XDG_DATA_HOME/secretfs/store, else
    /// ~/.local/share/secretfs/store]
    #[arg(long, value_name = "DIR", global = true)]
    store: Option<PathBuf>,
    /// The identity file to read with, mode 0600 [default: $SECRETFS_IDENTITY, else
    /// $XDG_CONFIG_HOME/secretfs/identity.age, else ~/.config/secretfs/identity.age]
    #[arg(long, value_name = "FILE", global = true)]
    identity: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Make a store; without --recipient also an identity file, and say where
    Init {
        /// Who can read it: an age public key (repeatable)
        #[arg(long, value_name = "AGE_KEY")]
        recipient: Vec<String>,
    },
    /// Put a new version of a secret; the value from stdin unless told otherwise
    ///
    /// Bytes are kept as they are, a newline at the end too: use `printf %s`, not `echo`. Without an identity anybody who
    /// can write the directory can put.
    #[command(
        after_help = "Examples:\n  printf %s \"$TOKEN\" | secretfs store put payments/token\n  \
        secretfs store put payments/tls --field tls.crt=@cert.pem --field tls.key=@key.pem"
    )]
    Put {
        /// The secret's name: payments/db
        name: String,
        /// Take the value from this file
        #[arg(long, value_name = "FILE", conflicts_with = "field")]
        file: Option<PathBuf>,
        /// Make a JSON object: field KEY from this file, `-` is stdin (repeatable)
        #[arg(long, value_name = "KEY=@FILE")]
        field: Vec<String>,
        #[arg(hide = true)]
        value: Vec<OsString>,
    },
    /// Write a secret's value to stdout, byte for byte
    Get {
        /// The secret's name
        name: String,
        /// This version, not the current one
        #[arg(long, value_name = "N", value_parser = version)]
        version: Option<u64>,
        /// One field of a JSON object: its name, or a JSON pointer (/a/b)
        #[arg(long, value_name = "KEY")]
        field: Option<String>,
    },
    /// List all secrets; needs no identity
    List {
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Remove a secret with all its versions
    Rm {
        /// The secret's name
        name: String,
    },
    /// List the versions of a secret, newest first; needs no identity
    History {
        /// The secret's name
        name: String,
        /// As a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Put the content of an old version as a new one
    Rollback {
        /// The secret's name
        name: String,
        /// The version to go back to
        #[arg(value_parser = version)]
        version: u64,
    },
    /// Encrypt everything anew, to the keys in the store's `recipients` file or to those given here
    ///
    /// Can be killed and run again: it passes over what is done. To change the identity: put the old and the new key
    /// into the identity file, rekey with --recipient NEW, and then take the old key out.
    Rekey {
        /// Who can read it from now on, instead of the keys in `recipients` (repeatable)
        #[arg(long, value_name = "AGE_KEY")]
        recipient: Vec<String>,
    },
}

/// Where a command reads and writes.
pub struct Io<'a> {
    /// Values.
    pub stdin: &'a mut dyn Read,
    /// Whether a person types them.
    pub stdin_is_terminal: bool,
    /// Results.
    pub stdout: &'a mut dyn Write,
    /// Everything else.
    pub stderr: &'a mut dyn Write,
}

/// Runs the command.
///
/// # Errors
/// Those of the store; `usage`, `config.unreadable` for an input file, `stdout.closed`, `node.io` when stdout cannot be written.
pub fn run(args: StoreArgs, env: &Env, io: &mut Io<'_>) -> Result<()> {
    let dir = load::store_dir(args.store.as_deref(), env)?;
    tracing::trace!(dir = %dir.display(), "the store");
    let identity = || load::identity_file(args.identity.as_deref(), env);
    match args.command {
        Command::Init { recipient } => init(&dir, &recipient, identity, io),
        Command::Put {
            name,
            file,
            field,
            value,
        } => {
            if !value.is_empty() {
                return Err(Error::new(&codes::USAGE).detail(
                    "a value is never given on the command line, where every user of the machine can see it; \
                     pipe it in, or name a file with --file",
                ));
            }
            put(&dir, &parse_name(&name)?, file.as_deref(), &field, io)
        }
        Command::Get {
            name,
            version,
            field,
        } => {
            let name = parse_name(&name)?;
            let store = Store::open(dir)?;
            let found = store.look_up(&name, version)?.or_error(&name, version)?;
            let mut value = found.read(&Identities::load(&identity()?)?)?;
            if let Some(key) = field {
                value = document::field(&value, &key).map_err(|error| error.object(&name))?;
            }
            written(io.stdout.write_all(value.expose()), io)
        }
        Command::List { json } => list(&dir, json, io),
        Command::Rm { name } => {
            let name = parse_name(&name)?;
            Store::open(dir)?.remove(&name)?;
            say(io, &format!("removed {name} with all its versions"))
        }
        Command::History { name, json } => history(&dir, &parse_name(&name)?, json, io),
        Command::Rollback { name, version } => {
            rollback(&dir, &parse_name(&name)?, version, &identity()?, io)
        }
        Command::Rekey { recipient } => rekey(&dir, &recipient, &identity()?, io),
    }
}

fn init(
    dir: &Path,
    recipients: &[String],
    identity: impl FnOnce() -> Result<PathBuf>,
    io: &mut Io<'_>,
) -> Result<()> {
    if Store::open(dir).is_ok() {
        return Err(Error::new(&codes::STORE_EXISTS).object(dir.display()));
    }
    if !recipients.is_empty() {
        Store::init(dir, &Recipients::of(recipients)?)?;
        return say(io, &format!("made the store {}", dir.display()));
    }
    let path = identity()?;
    let (public, made) = Identities::load_or_make(&path)?;
    let which = if made {
        format!(
            "made the identity {}\nkeep a copy of it in a safe place: without it nobody can read the store",
            path.display()
        )
    } else {
        format!("used the identity that was there: {}", path.display())
    };
    say(io, &which)?;
    Store::init(dir, &Recipients::of(&public)?)?;
    say(io, &format!("made the store {}", dir.display()))
}

fn put(
    dir: &Path,
    name: &Name,
    file: Option<&Path>,
    fields: &[String],
    io: &mut Io<'_>,
) -> Result<()> {
    let store = Store::open(dir)?; // before anybody types
    let value = if fields.is_empty() {
        value_of(file, io)?
    } else {
        fields_of(fields, io)?
    };
    if value.is_empty() {
        note(io, "the value is empty");
    } else if file.is_none() && fields.is_empty() && is_a_line(&value) {
        note(
            io,
            "the value ends in a newline, which is kept (`printf %s` adds none)",
        );
    }
    let version = store.put(name, &value)?;
    say(io, &format!("put {name}, version {version}"))
}

/// One line of text with its newline: what `echo` gives, and what nobody wants.
fn is_a_line(value: &SecretBytes) -> bool {
    let newlines = value.expose().iter().filter(|byte| **byte == b'\n');
    value.expose().ends_with(b"\n") && newlines.count() == 1
}

/// The value of a file, or of stdin.
fn value_of(file: Option<&Path>, io: &mut Io<'_>) -> Result<SecretBytes> {
    let file = file.filter(|path| *path != Path::new("-"));
    let (what, bytes) = match file {
        Some(path) => (
            path.display().to_string(),
            File::open(path).and_then(|mut file| {
                let expected = file.metadata()?.len();
                read_at_most(&mut file, expected, limits::STORE_VALUE_BYTES)
            }),
        ),
        None => {
            if io.stdin_is_terminal {
                note(
                    io,
                    "type the value, which will be seen on the screen, and end it with Ctrl-D",
                );
            }
            let limit = limits::STORE_VALUE_BYTES;
            ("stdin".to_owned(), read_at_most(io.stdin, 0, limit))
        }
    };
    if file.is_none() && matches!(&bytes, Ok(Some(bytes)) if bytes.is_empty()) {
        return Err(Error::new(&codes::STORE_BAD_VALUE).detail(
            "stdin is closed or empty, and nothing was stored; for an empty value on purpose: \
             `--file /dev/null`, or `--field KEY=@/dev/null`",
        ));
    }
    bytes
        .map_err(|error| {
            Error::new(&codes::CONFIG_UNREADABLE)
                .object(&what)
                .detail("cannot be read")
                .source(error)
        })?
        .map(SecretBytes::new)
        .ok_or_else(|| {
            Error::new(&codes::STORE_TOO_LARGE)
                .object(&what)
                .detail("is larger than 1 MiB, the most that the store takes")
        })
}

/// A JSON object of `KEY=@FILE`s. A message never holds what follows the `=`: it may be a value, given by mistake.
fn fields_of(fields: &[String], io: &mut Io<'_>) -> Result<SecretBytes> {
    let usage = |detail: String| Error::new(&codes::USAGE).detail(detail);
    let mut sources = BTreeMap::new();
    let mut stdin_taken = false;
    for field in fields {
        let (key, source) = field.split_once('=').ok_or_else(|| {
            usage("--field is KEY=@FILE, or KEY=@- for stdin; there is one without `=`".into())
        })?;
        let shown = key.escape_debug();
        document::check_key(key)
            .map_err(|why| usage(format!("--field: the key `{shown}` {why}")))?;
        let path = match source.strip_prefix('@') {
            Some(path) if !path.is_empty() => path,
            None if source == "-" => "-",
            _ => {
                return Err(usage(format!(
                    "--field {shown}: write {shown}=@FILE, or {shown}=@- for stdin; a value is never given on the command line"
                )));
            }
        };
        if path == "-" && std::mem::replace(&mut stdin_taken, true) {
            return Err(usage("--field: only one field can come from stdin".into()));
        }
        if sources.insert(key, path).is_some() {
            return Err(usage(format!("--field {shown} is given twice")));
        }
    }
    let mut values = BTreeMap::new();
    for (key, path) in sources {
        values.insert(key.to_owned(), value_of(Some(Path::new(path)), io)?);
    }
    document::from_fields(&values)
}

fn list(dir: &Path, json: bool, io: &mut Io<'_>) -> Result<()> {
    let mut listing = Store::open(dir)?.list()?;
    if json {
        let entries: Vec<_> = listing
            .entries
            .iter()
            .map(|entry| {
                json!({
                    "name": entry.name.as_str(),
                    "version": entry.version,
                    "kept": entry.kept,
                    "writtenAt": entry.written_at.to_rfc3339(),
                })
            })
            .collect();
        say(io, &pretty(&entries.into())?)?;
    } else if listing.entries.is_empty() {
        note(io, "the store holds no secrets");
    } else {
        let mut rows = vec![["NAME", "VERSION", "KEPT", "WRITTEN"].map(String::from)];
        rows.extend(listing.entries.iter().map(|entry| {
            [
                entry.name.to_string(),
                entry.version.to_string(),
                entry.kept.to_string(),
                entry.written_at.to_rfc3339(),
            ]
        }));
        say(io, &table(&rows))?;
    }
    let last = listing.problems.pop();
    for problem in &listing.problems {
        note(io, &problem.to_string());
    }
    last.map_or(Ok(()), Err)
}

fn history(dir: &Path, name: &Name, json: bool, io: &mut Io<'_>) -> Result<()> {
    let versions = Store::open(dir)?.history(name)?;
    if json {
        let list: Vec<_> = versions
            .iter()
            .enumerate()
            .map(|(index, info)| {
                json!({
                    "version": info.version,
                    "writtenAt": info.written_at.to_rfc3339(),
                    "current": index == 0,
                })
            })
            .collect();
        return say(
            io,
            &pretty(&json!({"name": name.as_str(), "versions": list}))?,
        );
    }
    let mut rows = vec![["VERSION", "WRITTEN", ""].map(String::from)];
    rows.extend(versions.iter().enumerate().map(|(index, info)| {
        [
            info.version.to_string(),
            info.written_at.to_rfc3339(),
            if index == 0 { "current" } else { "" }.to_owned(),
        ]
    }));
    say(io, &table(&rows))
}

fn rollback(dir: &Path, name: &Name, version: u64, identity: &Path, io: &mut Io<'_>) -> Result<()> {
    let store = Store::open(dir)?;
    let keys = match Identities::load(identity) {
        Err(error) if error.code() == &codes::STORE_IDENTITY_MISSING => {
            note(
                io,
                "without an identity here it is not checked whether that version can be read",
            );
            None
        }
        keys => Some(keys?),
    };
    let new = store.rollback(name, version, keys.as_ref())?;
    say(
        io,
        &format!("put {name}, version {new}, with the content of version {version}"),
    )
}

fn rekey(dir: &Path, recipients: &[String], identity: &Path, io: &mut Io<'_>) -> Result<()> {
    let store = Store::open(dir)?;
    let keys = Identities::load(identity)?;
    let given = (!recipients.is_empty()).then(|| Recipients::of(recipients));
    let given = given.transpose()?;
    let rekeyed = store.rekey(given.as_ref(), &keys)?;
    let to = store.recipients()?;
    let ours = keys.public_keys();
    if !to
        .public_keys()
        .any(|key| ours.iter().any(|its| its == key))
    {
        let identity = identity.display();
        note(
            io,
            &format!("{identity} is none of the recipients, and cannot read the store any more"),
        );
    }
    let recipients = to.public_keys().count();
    say(
        io,
        &format!(
            "encrypted {} to {} ({} already)",
            counted(rekeyed.done, "version"),
            counted(recipients, "recipient"),
            rekeyed.already
        ),
    )?;
    for problem in &rekeyed.problems {
        note(io, &problem.to_string());
    }
    match rekeyed.problems.len() {
        0 => Ok(()),
        count => Err(Error::new(&codes::STORE_CORRUPT).detail(format!(
            "{} could not be read, and stayed as they were; mend or remove them, and run rekey again",
            counted(count, "version")
        ))),
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn parse_name(text: &str) -> Result<Name> {
    Name::parse(text).map_err(|why| {
        Error::new(&codes::STORE_BAD_NAME)
            .detail(format!("the name `{}` {why}", text.escape_debug()))
    })
}

fn version(text: &str) -> Result<u64, &'static str> {
    parse_version(text).ok_or("versions are numbers from 1, as `secretfs store history` shows them")
}

/// Aligned columns, two spaces apart, no space at the end of a line.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn pretty(value: &serde_json::Value) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|error| Error::new(&codes::BUG).source(error))
}

/// A line for stdout.
fn say(io: &mut Io<'_>, line: &str) -> Result<()> {
    let result = writeln!(io.stdout, "{line}");
    written(result, io)
}

/// A line for stderr. Nobody can be told if that fails.
fn note(io: &mut Io<'_>, line: &str) {
    let _ = writeln!(io.stderr, "secretfs: {line}");
}

fn written(result: io::Result<()>, io: &mut Io<'_>) -> Result<()> {
    result
        .and_then(|()| io.stdout.flush())
        .map_err(Error::stdout)
}

#[cfg(test)]
mod tests;
