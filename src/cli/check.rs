//! `secretfs check`: every problem of a spec or a configuration at once, each with its place and its fix.
//!
//! With `--fetch` the secrets are fetched and rendered, and what would be written is listed: paths, sizes, modes, versions.
//! Never a value. What fails then is a problem too, at its place in the spec: each secret, each file. Exit code: 0 nothing is
//! wrong, 1 only stores failed (one did not answer, or has no such secret), 2 the input is wrong.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    backend::{Cx, Fetched, Want, registry::Registry},
    caller::{Credentials, Identity},
    clock::Clock,
    config::{CheckBackend, Config, Env},
    error::{Error, ErrorKind, Result, codes},
    limits,
    render::{FileContent, FileSet, render_all},
    secret::Known,
    spec::{self, ObjectRef, Part, Place, Problem, Setting, Span, VolumeSpec, read::shown},
};

/// Check a spec, or the node's configuration, and name every problem at once.
#[derive(clap::Args, Debug)]
pub struct CheckArgs {
    /// The spec to check.
    #[arg(value_name = "SPEC", required_unless_present = "config")]
    pub spec: Option<PathBuf>,
    /// The node's configuration: checked too, and its backends are those that the spec may name.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Fetch the secrets and list what would be written: paths, sizes, modes and versions, no values.
    #[arg(long, requires = "spec")]
    pub fetch: bool,
    /// One JSON object on stdout, for programs.
    #[arg(long)]
    pub json: bool,
}

/// What `check` needs of the program around it.
pub struct World<'w> {
    /// The environment.
    pub env: &'w Env,
    /// Reads a backend's settings.
    pub check_backend: CheckBackend<'w>,
    /// Makes the backends of a configuration.
    pub registry: &'w dyn Fn(&Config) -> Result<Registry>,
    /// For deadlines.
    pub clock: Arc<dyn Clock>,
    /// Who asks.
    pub who: Identity,
}

/// Runs it; the exit code. Results go to `out`.
///
/// # Errors
/// A file cannot be read, a backend cannot be made, `out` cannot be written.
pub async fn run(args: &CheckArgs, world: &World<'_>, out: &mut (dyn Write + Send)) -> Result<u8> {
    let report = examine(args, world).await?;
    tracing::trace!(problems = report.problems(), "checked");
    let written = if args.json {
        writeln!(out, "{}", report.json())
    } else {
        report.write(out)
    };
    written.map_err(Error::stdout)?;
    Ok(report.exit_code())
}

/// What was found.
#[derive(Default)]
struct Report {
    texts: Vec<Checked>,
    fetched: Fetch,
}

/// What became of the fetch.
#[derive(Default)]
enum Fetch {
    /// There was none.
    #[default]
    No,
    /// What would be written.
    Done(Written),
    /// The problems of the spec say what failed.
    Failed,
}

/// One text and its problems.
struct Checked {
    file: String,
    text: String,
    problems: Vec<Problem>,
    /// What is in it, when nothing is wrong.
    summary: String,
}

/// What would be written.
struct Written {
    /// Secret and version; `None`: the store has none.
    secrets: Vec<(String, Option<String>)>,
    files: FileSet,
}

async fn examine(args: &CheckArgs, world: &World<'_>) -> Result<Report> {
    let mut report = Report::default();
    let config = match &args.config {
        Some(path) => {
            let (file, text) = read(path)?;
            let parsed = Config::parse(&text, world.env, world.check_backend);
            let summary = parsed.as_ref().map_or(String::new(), |config| {
                count(config.backends.len(), "backend")
                    + ", "
                    + &count(config.policy.len(), "line")
                    + " of policy"
            });
            let (config, problems) = split(parsed);
            report.texts.push(Checked {
                file,
                text,
                problems,
                summary,
            });
            config
        }
        None => local(world.env)?,
    };
    let Some(path) = &args.spec else {
        return Ok(report);
    };
    // With a wrong configuration the spec is checked without its backends: what is wrong there has been said.
    let registry = config.as_ref().map(world.registry).transpose()?;
    let limits = config
        .as_ref()
        .map(|config| config.volume_limits)
        .unwrap_or_default();
    let (file, text) = read(path)?;
    let setting = Setting {
        place: Place::Local,
        limits,
    };
    let parsed = spec::parse(&text, &setting, &|object| match &registry {
        Some(registry) => registry.check(object),
        None => Ok(spec::Facts {
            pushes: true,
            versions: true,
        }),
    });
    let summary = parsed.as_ref().map_or(String::new(), |spec| {
        format!(
            "{} from {}",
            count(spec.files.len(), "file"),
            count(spec.objects.len(), "secret")
        )
    });
    let (spec, mut problems) = split(parsed);
    if let (true, Some(spec), Some(registry)) = (args.fetch, spec, registry) {
        let pass = fetch(&spec, &registry, world).await?;
        report.fetched = match outcome(&spec, &text, pass) {
            Ok(written) => Fetch::Done(written),
            Err(failures) => {
                problems = failures;
                Fetch::Failed
            }
        };
    }
    report.texts.push(Checked {
        file,
        text,
        problems,
        summary,
    });
    Ok(report)
}

fn split<T>(parsed: Result<T, Vec<Problem>>) -> (Option<T>, Vec<Problem>) {
    match parsed {
        Ok(value) => (Some(value), Vec::new()),
        Err(problems) => (None, problems),
    }
}

fn local(env: &Env) -> Result<Option<Config>> {
    let place = env.store_dir(None).zip(env.identity_file(None));
    let (store, identity) = place.ok_or_else(|| {
        Error::new(&codes::USAGE)
            .detail("HOME is not set, so name the store: SECRETFS_STORE, SECRETFS_IDENTITY")
    })?;
    Ok(Some(Config::local(&store, &identity)))
}

/// A file's name as shown, and its text. What is not UTF-8 is replaced: the parser then points at it.
///
/// # Errors
/// `config.unreadable`.
pub fn read(path: &Path) -> Result<(String, String)> {
    let file = shown(&path.display().to_string());
    let unreadable = |error: io::Error| {
        Error::new(&codes::CONFIG_UNREADABLE)
            .object(&file)
            .source(error)
    };
    let mut bytes = Vec::new();
    let most = limits::SPEC_BYTES as u64 + 1; // one more than the parser takes
    let opened = std::fs::File::open(path).map_err(unreadable)?;
    io::Read::read_to_end(&mut io::Read::take(opened, most), &mut bytes).map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|_| {
        Error::new(&codes::CONFIG_UNREADABLE)
            .object(&file)
            .detail("the file is not UTF-8 text")
    })?;
    Ok((file, text))
}

/// What one pass over the stores gave.
struct Pass {
    /// Of each of the spec's objects.
    known: Vec<Known>,
    secrets: Vec<(String, Option<String>)>,
    /// Objects that could not be fetched, by index.
    failures: Vec<(usize, Error)>,
}

/// Fetches each object once, at most [`limits::BACKEND_IN_FLIGHT`] at a time from one backend, and all within one deadline.
async fn fetch(spec: &VolumeSpec, registry: &Registry, world: &World<'_>) -> Result<Pass> {
    let deadline = world.clock.now().after(limits::FETCH_DEADLINE);
    let mut rooms = BTreeMap::new();
    let mut tasks = Vec::new();
    for object in &spec.objects {
        let backend = registry.backend(&object.backend).ok_or_else(|| {
            Error::new(&codes::BUG).detail("a reference without a backend was accepted")
        })?;
        let room = rooms
            .entry(&object.backend)
            .or_insert_with(|| Arc::new(Semaphore::new(limits::BACKEND_IN_FLIGHT as usize)));
        let (room, backend) = (Arc::clone(room), Arc::clone(backend));
        let (object, who) = (object.clone(), world.who.clone());
        let cx = Cx {
            deadline,
            cancel: CancellationToken::new(),
            clock: Arc::clone(&world.clock),
        };
        tasks.push(tokio::spawn(async move {
            let _place = room.acquire().await;
            let proof = Credentials::default();
            let want = Want {
                object: &object,
                who: &who,
                proof: &proof,
                have: None,
            };
            backend.fetch(&cx, want).await
        }));
    }
    let mut pass = Pass {
        known: Vec::new(),
        secrets: Vec::new(),
        failures: Vec::new(),
    };
    for (index, (task, object)) in tasks.into_iter().zip(&spec.objects).enumerate() {
        let answer = task
            .await
            .unwrap_or_else(|_| Err(Error::new(&codes::BUG).detail("the backend has panicked")));
        pass.add(index, object, answer);
    }
    Ok(pass)
}

impl Pass {
    fn add(&mut self, index: usize, object: &ObjectRef, answer: Result<Fetched>) {
        let failure = match answer {
            Ok(Fetched::Object(found)) => {
                let version = found.version.as_str().to_owned();
                self.secrets.push((object.to_string(), Some(version)));
                self.known.push(Known::Object(Arc::new(found)));
                return;
            }
            Err(error) if error.kind() == ErrorKind::SecretNotFound => {
                self.secrets.push((object.to_string(), None));
                self.known.push(Known::Absent);
                return;
            }
            Ok(Fetched::NotModified) => Error::new(&codes::BUG)
                .detail("the backend says that nothing changed, to a first question"),
            Err(error) => error,
        };
        self.known.push(Known::Unknown);
        self.failures.push((index, failure.object(object)));
    }
}

/// What would be written; or what failed, at its place in `text`: each secret that was not fetched, each file that cannot be
/// made of those that were.
fn outcome(spec: &VolumeSpec, text: &str, pass: Pass) -> Result<Written, Vec<Problem>> {
    let (files, failures) = render_all(spec, &pass.known);
    if failures.is_empty() && pass.failures.is_empty() {
        return Ok(Written {
            secrets: pass.secrets,
            files,
        });
    }
    let places = &spec.places;
    let fetches = pass
        .failures
        .iter()
        .map(|(index, error)| (places.objects.get(*index), 0, error));
    let renders = failures
        .iter()
        .map(|failure| (places.files.get(failure.rule), failure.line, &failure.error));
    let problem = |(part, line, error): (Option<&Part>, u32, &Error)| Problem {
        code: error.code(),
        at: part.map_or(Span::default(), |part| part.shown_at(text, line)),
        field: part.map_or(String::new(), |part| part.field.clone()),
        message: error.to_string(),
        help: match error.kind() {
            // The table's fix speaks of a mount, which does ask again.
            ErrorKind::Unavailable | ErrorKind::Timeout => {
                Some("it was asked once: try again".to_owned())
            }
            _ => None,
        },
    };
    let mut problems: Vec<_> = fetches.chain(renders).map(problem).collect();
    problems.sort_by_key(|problem| (problem.at.line, problem.at.column));
    Err(problems)
}

impl Report {
    fn problems(&self) -> usize {
        self.texts
            .iter()
            .map(|checked| checked.problems.len())
            .sum()
    }

    /// As everywhere: a text that does not parse is wrong input; what failed later says by its kind whose fault it is. The
    /// worst counts.
    fn exit_code(&self) -> u8 {
        match &self.fetched {
            _ if self.problems() == 0 => 0,
            Fetch::Failed => self
                .texts
                .iter()
                .flat_map(|checked| &checked.problems)
                .map(|problem| super::exit_code(problem.code.kind))
                .max()
                .unwrap_or(0),
            Fetch::No | Fetch::Done(_) => 2,
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for checked in &self.texts {
            out.write_all(show(&checked.file, &checked.text, &checked.problems).as_bytes())?;
        }
        let fetched = match &self.fetched {
            Fetch::No => ", nothing was fetched",
            Fetch::Done(_) | Fetch::Failed => "",
        };
        match self.problems() {
            0 => {
                for checked in &self.texts {
                    writeln!(out, "{}: {}, no problem", checked.file, checked.summary)?;
                }
            }
            problems => writeln!(out, "{}{fetched}", count(problems, "problem"))?,
        }
        if let Fetch::Done(written) = &self.fetched {
            written.write(out)?;
        }
        Ok(())
    }

    fn json(&self) -> serde_json::Value {
        let problems: Vec<_> = self
            .texts
            .iter()
            .flat_map(|checked| {
                checked.problems.iter().map(|problem| {
                    json!({
                        "file": checked.file,
                        "line": problem.at.line,
                        "column": problem.at.column,
                        "length": problem.at.length,
                        "field": problem.field,
                        "code": problem.code.name,
                        "message": problem.message,
                        "help": problem.help.as_deref().unwrap_or(problem.code.fix),
                    })
                })
            })
            .collect();
        let mut report = json!({"problems": problems});
        if let Fetch::Done(written) = &self.fetched {
            report["secrets"] = written
                .secrets
                .iter()
                .map(|(name, version)| json!({"secret": name, "version": version}))
                .collect();
            report["files"] = written
                .rows()
                .map(|(path, mode, bytes)| json!({"path": path, "mode": mode, "bytes": bytes}))
                .collect();
        }
        report
    }
}

impl Written {
    fn rows(&self) -> impl Iterator<Item = (String, String, usize)> {
        self.files.iter().map(|(path, file)| {
            let bytes = match &file.content {
                FileContent::New(bytes) => bytes.len(),
                FileContent::Keep => 0,
            };
            (path.to_string(), file.mode.to_string(), bytes)
        })
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let width = |texts: &mut dyn Iterator<Item = usize>, least: usize| {
            texts.max().unwrap_or(0).max(least)
        };
        let first = width(
            &mut self.secrets.iter().map(|(name, _)| name.chars().count()),
            6,
        );
        writeln!(out, "\n{:first$}  VERSION", "SECRET")?;
        for (name, version) in &self.secrets {
            writeln!(
                out,
                "{name:first$}  {}",
                version.as_deref().unwrap_or("absent")
            )?;
        }
        let rows: Vec<_> = self.rows().collect();
        let first = width(&mut rows.iter().map(|(path, ..)| path.chars().count()), 4);
        writeln!(out, "\n{:first$}  MODE  BYTES", "PATH")?;
        for (path, mode, bytes) in rows {
            writeln!(out, "{path:first$}  {mode}  {bytes}")?;
        }
        Ok(())
    }
}

/// Column at which a problem's code stands, after its help.
const CODE_COLUMN: usize = 80;
/// Characters of a source line that are shown.
const LINE_SHOWN: usize = 120;

/// Problems as a person reads them: where, what, the line itself, the fix, the code.
pub fn show(file: &str, text: &str, problems: &[Problem]) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    for problem in problems {
        let at = problem.at;
        let message = &problem.message;
        if at.line == 0 {
            out.push_str(&format!("{file}: {message}\n"));
        } else {
            out.push_str(&format!("{file}:{}:{}: {message}\n", at.line, at.column));
        }
        let line = lines
            .get(at.line.saturating_sub(1) as usize)
            .copied()
            .unwrap_or("");
        let column = at.column.saturating_sub(1) as usize;
        // A long line is shown from a little before the place.
        let skipped = if column + 20 > LINE_SHOWN {
            column - 20
        } else {
            0
        };
        let source: String = line
            .chars()
            .skip(skipped)
            .take(LINE_SHOWN)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let room = source
            .chars()
            .count()
            .saturating_sub(column - skipped)
            .max(1);
        let carets = (at.length as usize).clamp(1, room);
        let help = problem.help.as_deref().unwrap_or(problem.code.fix);
        let under = format!(
            "    | {}{} {help}",
            " ".repeat(column - skipped),
            "^".repeat(carets)
        );
        let pad = CODE_COLUMN.saturating_sub(under.chars().count()).max(1);
        if at.line > 0 {
            out.push_str(&format!("{:>3} | {}\n", at.line, source.trim_end()));
        }
        out.push_str(&format!(
            "{under}{}{}\n",
            " ".repeat(pad),
            problem.code.name
        ));
    }
    out
}

/// `1 file`, `2 files`.
pub fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}
