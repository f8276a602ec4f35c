//! `secretfs demo`: the whole path on one machine, with nothing prepared and nothing left.
//!
//! The store, the mount process and the watcher are the real ones: `secretfs mount` runs as a child, the watcher is inotify, and
//! what is printed was measured. As an ordinary user all of it happens in a user and mount namespace of its own.

use std::{
    io::{IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    config::Env,
    error::{Error, Result, codes},
    sys::process,
};

mod burst;
mod ending;
mod rotate;
mod stage;

/// Shows all of it on this machine: a store, a mount, a watcher, rotations; then cleans up.
///
/// Needs no preparation and no privileges: an ordinary user gets a namespace of his own.
#[derive(clap::Args, Debug)]
pub struct DemoArgs {
    /// Leave it running at the end, and say what to look at
    #[arg(long)]
    keep: bool,
}

/// Set by Ctrl-C; looked at between any two steps.
type Stop = Arc<AtomicBool>;

/// Runs `demo`.
///
/// # Errors
/// Whatever failed; what was made is removed all the same.
pub fn run(args: &DemoArgs, env: &Env, out: &mut dyn Write) -> Result<()> {
    let mut say = Say {
        out,
        colour: std::io::stdout().is_terminal() && !env.no_color,
    };
    let isolated = isolate(args.keep)?; // before any thread
    super::seal()?; // after the namespace's maps are written
    let stop = Stop::default();
    let runtime = super::runtime()?;
    let flag = stop.clone();
    runtime.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            flag.store(true, Ordering::SeqCst);
        }
    });
    let result = show(args, env, &mut say, isolated, &stop);
    runtime.shutdown_background();
    result
}

/// How this demo is kept apart from the rest of the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Isolation {
    /// A user and a mount namespace.
    User,
    /// A mount namespace.
    Mount,
    /// None: root asked for `--keep` and wants to look at it from another terminal.
    None,
}

fn isolate(keep: bool) -> Result<Isolation> {
    let refused = |error: std::io::Error| {
        Error::new(&codes::NODE_NAMESPACE)
            .detail(
                "this user may not make a user namespace; run the demo as root, or allow it with \
                 `sysctl kernel.unprivileged_userns_clone=1` (Debian), \
                 `sysctl kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu) or \
                 `sysctl user.max_user_namespaces=1000`; in a container, with `--privileged`",
            )
            .source(error)
    };
    if process::uid() != 0 || !process::may_mount() {
        process::enter_user_namespace().map_err(refused)?;
        return Ok(Isolation::User);
    }
    if keep {
        return Ok(Isolation::None);
    }
    process::enter_mount_namespace().map_err(refused)?;
    Ok(Isolation::Mount)
}

fn show(
    args: &DemoArgs,
    env: &Env,
    say: &mut Say<'_>,
    isolation: Isolation,
    stop: &Stop,
) -> Result<()> {
    let mut stage = stage::Stage::build(env, say, isolation)?;
    stage.mount(say)?;
    let rotated = rotate::show(&stage, say, stop)?;
    if !stop.load(Ordering::SeqCst) {
        burst::show(&stage, say, stop)?;
    }
    if args.keep && !stop.load(Ordering::SeqCst) {
        ending::keep(&stage, say, stop)?;
    }
    ending::show(stage, say, &rotated)
}

/// Printing, with colour on a terminal only.
struct Say<'a> {
    out: &'a mut dyn Write,
    colour: bool,
}

impl Say<'_> {
    fn heading(&mut self, text: &str) -> Result<()> {
        let (on, off) = if self.colour {
            ("\x1b[1;36m", "\x1b[0m")
        } else {
            ("", "")
        };
        self.line(&format!("\n{on}{text}{off}"))
    }

    fn good(&mut self, text: &str) -> Result<()> {
        let (on, off) = if self.colour {
            ("\x1b[32m", "\x1b[0m")
        } else {
            ("", "")
        };
        self.line(&format!("  {on}ok{off}  {text}"))
    }

    fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "{text}")
            .and_then(|()| self.out.flush())
            .map_err(|error| {
                Error::new(&codes::NODE_IO)
                    .object("standard output")
                    .source(error)
            })
    }
}

/// `std::io::Error` -> ours, with the step that failed.
fn failed(step: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::new(&codes::NODE_IO).step(step).source(error)
}
