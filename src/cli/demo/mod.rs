//! `secretfs demo`: the whole path of a node on one machine, with nothing prepared and nothing left.
//!
//! The store, the plugin, the calls on its socket and the watcher are the real ones: `secretfs node` runs as a child in a mount
//! namespace of its own, the kubelet is played by `kubelet`, a container is a third mount namespace with the volume bound into
//! it, and what is printed was measured. All of it happens in a mount namespace of the demo's own; for an ordinary user, in a
//! user namespace too.

use std::{
    cell::RefCell,
    fs::File,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::runtime::Handle;

use crate::{
    cli::signals::Signals,
    config::Env,
    error::{Error, Result, codes},
    sys::process,
};

mod container;
mod kubelet;
mod plugin;

mod burst;
mod ending;
mod rotate;
mod stage;

/// Shows all of it on this machine: a store, the node plugin, a pod's volume, rotations, a kill; then cleans up.
///
/// Needs no preparation and no privileges: an ordinary user gets a namespace of his own.
#[derive(clap::Args, Debug)]
pub struct DemoArgs {
    /// Leave it running at the end, and say what to look at
    #[arg(long)]
    keep: bool,
    /// Write the calls to the plugin and its answers there, one JSON object a line, without secrets
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// Set by Ctrl-C; looked at between any two steps.
type Stop = Arc<AtomicBool>;

/// What the demo has found and been given.
struct World<'a> {
    tmp: &'a Path,
    isolation: Isolation,
    runtime: Handle,
    trace: Option<RefCell<File>>,
}

/// Runs `demo`.
///
/// # Errors
/// Whatever failed, and whatever did not hold; what was made is removed all the same.
pub fn run(args: &DemoArgs, env: &Env, out: &mut dyn Write) -> Result<()> {
    let mut say = Say {
        out,
        colour: std::io::stdout().is_terminal() && !env.no_color,
    };
    let trace = args.trace.as_deref().map(kubelet::open_trace).transpose()?;
    let isolation = isolate()?; // before any thread
    super::seal()?; // after the namespace's maps are written
    let stop = Stop::default();
    let runtime = super::runtime()?;
    let mut signals = runtime.block_on(async { Signals::listen() })?;
    let flag = stop.clone();
    runtime.spawn(async move {
        signals.again().await; // whichever it is
        flag.store(true, Ordering::SeqCst);
    });
    let world = World {
        tmp: &env.tmp,
        isolation,
        runtime: runtime.handle().clone(),
        trace,
    };
    let result = show(args, world, &mut say, &stop);
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
}

fn isolate() -> Result<Isolation> {
    if process::uid() != 0 || !process::may_mount() {
        process::enter_user_namespace().map_err(super::no_namespace)?;
        return Ok(Isolation::User);
    }
    process::enter_mount_namespace().map_err(super::no_namespace)?;
    Ok(Isolation::Mount)
}

fn show(args: &DemoArgs, world: World<'_>, say: &mut Say<'_>, stop: &Stop) -> Result<()> {
    let mut stage = stage::Stage::build(world, say)?;
    stage.serve(say)?;
    stage.publish(say)?;
    let rotated = rotate::show(&mut stage, say, stop)?;
    if !stop.load(Ordering::SeqCst) {
        burst::show(&stage, say, stop)?;
    }
    if args.keep && !stop.load(Ordering::SeqCst) {
        ending::keep(&stage, say, stop)?;
    }
    ending::show(stage, say, &rotated)
}

/// Says it if it holds, and fails if not.
fn claim(say: &mut Say<'_>, holds: bool, text: &str) -> Result<()> {
    if holds {
        say.good(text)
    } else {
        Err(Error::new(&codes::BUG).detail(format!("this does not hold: {text}")))
    }
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
