//! `secretfs exec`: runs a program with secrets in its environment, or with a mount that only it sees.
//!
//! 1. A namespace of our own, for `--mount`, and the process is sealed: before any thread.
//! 2. The program is looked for: nothing is fetched for one that is not there.
//! 3. The files: of a directory (`dir`), or of a volume of our own (`volume`). `names` makes variables of them.
//! 4. Without anything to watch we become the program, and nothing of us is left. Else `supervise` runs it below us.
//!
//! Does not: interpret a value, put one in an argument or a log, or show it to anybody but the program.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use crate::{
    cli::{load, mount},
    config::Env,
    error::{Error, Result, codes},
    spec::times,
    sys::{
        child::{self, Before, Heard, Signal, Signals},
        process,
    },
};

mod dir;
mod names;
mod program;
mod supervise;
mod volume;

use dir::Dir;
use names::{Named, Naming, Variables};
use program::Program;
use supervise::{Manner, OnChange, Source};
use volume::Volume;

/// Our own failure.
const FAILED: u8 = 125;
/// The program is there and cannot be run.
const CANNOT_RUN: u8 = 126;
/// There is no such program.
const NOT_FOUND: u8 = 127;

/// Runs a program with secrets in its environment, or in a mount that only it sees.
///
/// The files of DIR, or of the volume that SPEC describes, become variables: `db/password` is DB_PASSWORD. The program also gets the
/// variables that secretfs was started with; where both have a name, the secret wins. Nothing is written to disk, and no root is needed.
///
/// secretfs becomes the program, unless there is something to watch (--restart-on-change, --signal, --mount): then it stays as its parent,
/// passes signals on, and ends as the program ends. Exit code 125: secretfs failed; 126: the program cannot be run; 127: there is no such
/// program; 2: the input is wrong; else the program's own, or 128+N after signal N.
///
/// Prefer files where the program can read them: an environment is inherited by every child process, and often printed or dumped. See
/// docs/exec.md.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["from", "spec"])))]
pub struct ExecArgs {
    /// Take the files below DIR: a mounted volume, a Kubernetes Secret volume, or any directory
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Fetch what this spec (YAML) describes; see docs/reference/spec.md
    #[arg(long, value_name = "SPEC")]
    spec: Option<PathBuf>,
    /// Mount the spec's volume at TARGET, an existing directory, for the program alone; its files rotate, and it gets no variables
    #[arg(
        long,
        value_name = "TARGET",
        requires = "spec",
        conflicts_with = "from"
    )]
    mount: Option<PathBuf>,
    /// The node's configuration; without it there is one backend, `store`, the embedded store
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    config: Option<PathBuf>,
    #[command(flatten)]
    store: load::StoreFlags,
    /// Begin each variable's name with PREFIX
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true, conflicts_with_all = ["env", "mount"])]
    prefix: String,
    /// Pass the file PATH as the variable NAME, and only the files that are named so; repeatable
    #[arg(long, value_name = "NAME=PATH", value_parser = Named::parse, conflicts_with = "mount")]
    env: Vec<Named>,
    /// Pass on none of the variables that secretfs was started with
    #[arg(long)]
    only: bool,
    /// With --only: pass this one on all the same; repeatable
    #[arg(long, value_name = "NAME", requires = "only")]
    keep: Vec<String>,
    /// End the program with SIGTERM when the content changes, and start it again with the new values
    #[arg(long, group = "on_change")]
    restart_on_change: bool,
    /// Send this signal to the program when the content changes: HUP, INT, QUIT, TERM, USR1, USR2, WINCH
    ///
    /// Its variables stay as they are: for a program that reads the files of --mount or --from itself, or that ends at a good moment.
    #[arg(long, value_name = "SIGNAL", value_parser = signal, group = "on_change")]
    signal: Option<Signal>,
    /// Wait so long after a change; further ones are then dealt with at once [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "on_change")]
    delay: Option<Duration>,
    /// Wait at most so much longer, by chance, so that not all replicas restart together [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "on_change")]
    jitter: Option<Duration>,
    /// Between SIGTERM and SIGKILL of a restart [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "restart_on_change")]
    grace: Option<Duration>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

fn signal(text: &str) -> Result<Signal, String> {
    let names = Signal::PASSED_ON.map(|signal| signal.name).join(", ");
    Signal::parse(text).ok_or_else(|| format!("it is none of {names}"))
}

fn duration(text: &str) -> Result<Duration, String> {
    times::duration(text).ok_or_else(|| "it is not a time such as 30s, 5m or 1h".to_owned())
}

impl ExecArgs {
    fn manner(&self) -> Manner {
        Manner {
            on_change: match self.signal {
                Some(signal) => OnChange::Signal(signal),
                None if self.restart_on_change => OnChange::Restart,
                None => OnChange::Nothing,
            },
            delay: self.delay.unwrap_or_default(),
            jitter: self.jitter.unwrap_or_default(),
            grace: self.grace.unwrap_or(Duration::from_secs(10)),
        }
    }

    fn naming(&self) -> Naming {
        if self.env.is_empty() {
            let prefix = self.prefix.clone();
            Naming::Rule { prefix }
        } else {
            Naming::List(self.env.clone())
        }
    }

    /// What no single option says.
    fn check(&self) -> Result<()> {
        let wrong = |why: &str| Err(Error::new(&codes::USAGE).detail(why));
        if self.from.is_some() && (self.store.store.is_some() || self.store.identity.is_some()) {
            return wrong("--store and --identity go with --spec; --from asks no store");
        }
        if self.only
            && let Some(name) = self.keep.iter().find(|name| names::is_name(name).is_err())
        {
            let name = name.escape_debug();
            return wrong(&format!("--keep {name}: it is no name of a variable"));
        }
        Ok(())
    }
}

/// Runs `exec`. Does not return where we become the program.
///
/// # Errors
/// Whatever keeps the program from being run.
pub fn run(args: &ExecArgs, env: &Env) -> Result<ExitCode> {
    args.check()?;
    if args.mount.is_some() {
        isolate()?; // 1
    }
    tracing::trace!("sealed, but for the program's own limits");
    let core = process::seal_until_exec().map_err(failed("seal the process"))?;
    let manner = args.manner();
    let watching = args.mount.is_some() || manner.on_change != OnChange::Nothing;
    let kept = args.only.then_some(&args.keep[..]);
    let before = Before { core, mask: None };
    let program = Program::find(&args.command, kept, env, before)?; // 2
    let Some(origin) = origin(args, env)? else {
        return Ok(super::input_wrong());
    };
    if watching {
        return watch(args, program, origin, manner); // 3, 4
    }
    let variables = once(origin, &args.naming())?; // 3
    Err(program.become_it(&variables)) // 4
}

/// Where files come from, before any is read.
enum Origin {
    Dir(Dir),
    Volume(Box<Volume>),
}

fn origin(args: &ExecArgs, env: &Env) -> Result<Option<Origin>> {
    match (&args.from, &args.spec) {
        (Some(dir), _) => Ok(Some(Origin::Dir(Dir::open(dir, child::longest_string())?))),
        (None, Some(spec)) => {
            let node = load::node(args.config.as_deref(), &args.store, env)?;
            let Some(node) = node else { return Ok(None) };
            let target = args.mount.as_deref().map(mount::target).transpose()?;
            let volume = Volume::of(spec, node, target)?;
            Ok(volume.map(|volume| Origin::Volume(Box::new(volume))))
        }
        (None, None) => Err(Error::new(&codes::BUG).detail("neither --from nor --spec")),
    }
}

/// The variables, and nothing that goes on.
fn once(origin: Origin, naming: &Naming) -> Result<Variables> {
    let files = match origin {
        Origin::Dir(dir) => dir.read(naming)?,
        Origin::Volume(volume) => {
            let runtime = super::runtime()?;
            let files = runtime.block_on(async {
                let served = volume.serve().await?;
                let files = served.files(naming);
                served.leave().await;
                files
            });
            runtime.shutdown_background();
            files?
        }
    };
    Variables::of(naming, &files, child::longest_string())
}

/// Runs the program below us, until it ends. Capabilities stay as they are: root's program may become another user, and still gets our signals.
fn watch(args: &ExecArgs, program: Program, origin: Origin, manner: Manner) -> Result<ExitCode> {
    let blocked = child::block().map_err(failed("block signals"))?; // before any thread
    let program = program.with_mask(blocked.before());
    let runtime = super::runtime()?;
    let code = runtime.block_on(async {
        let mut signals = Signals::listen(&blocked).map_err(failed("listen for signals"))?;
        let source = async {
            let naming = args.naming();
            Ok::<_, Error>(match origin {
                Origin::Dir(dir) => {
                    let watch = dir.watch()?; // before the first read: no change is missed
                    Source::Dir(dir, watch, naming)
                }
                Origin::Volume(volume) => match volume.target().is_some() {
                    true => Source::Mounted(volume.serve().await?),
                    false => Source::Memory(volume.serve().await?, naming),
                },
            })
        };
        let source = tokio::select! {
            source = source => source?,
            code = unwanted(&mut signals) => return code,
        };
        supervise::run(&program, source, &mut signals, manner).await
    });
    runtime.shutdown_background(); // a request that hangs must not keep us
    code.map(ExitCode::from)
}

/// Returns when a signal comes that ends us before there is a program to have it.
async fn unwanted(signals: &mut Signals) -> Result<u8> {
    loop {
        let heard = signals.next().await.map_err(failed("listen for signals"))?;
        if let Heard::Signal { signal, .. } = heard
            && [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP].contains(&signal)
            && !signal.is_ignored()
        {
            return Ok(signal.exit_code());
        }
    }
}

/// Mounts of our own; for an ordinary user in a user namespace, in which he is who he was.
fn isolate() -> Result<()> {
    let ordinary = process::uid() != 0 || !process::may_mount();
    if ordinary {
        process::enter_user_namespace_as_oneself().map_err(super::no_namespace)
    } else {
        process::enter_mount_namespace().map_err(super::no_namespace)
    }
}

fn failed(step: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::new(&codes::NODE_IO).step(step).source(error)
}

/// The exit code of an error: the contract's, which are those of env(1) and its like.
pub fn exit_code(error: &Error) -> u8 {
    match error.code() {
        code if *code == codes::EXEC_NOT_FOUND => NOT_FOUND,
        code if *code == codes::EXEC_CANNOT_RUN => CANNOT_RUN,
        _ => match super::exit_code(error.kind()) {
            1 => FAILED,
            wrong_input => wrong_input,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_exit_code() {
        for code in codes::ALL {
            let expect = match code.name {
                "exec.not_found" => 127,
                "exec.cannot_run" => 126,
                _ if code.kind == crate::error::ErrorKind::InvalidSpec => 2,
                _ => 125,
            };
            assert_eq!(exit_code(&Error::new(code)), expect, "{}", code.name);
        }
    }
}
