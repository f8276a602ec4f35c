//! `secretfs node --config FILE`: the CSI node plugin.
//!
//! 1. The configuration is read; all its problems are told at once.
//! 2. Privileges are dropped to those that mounts need, and system calls to those that serving needs.
//! 3. The lock of runtimeDir is taken: one instance serves a node, another one waits for its end.
//! 4. What a former process left is taken over.
//! 5. The sockets are bound and served, until SIGTERM; then what is in flight ends. Mounts stay.

mod doors;
mod lock;
mod plugin;
mod serve;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use plugin::Plugin;

use crate::{
    backend::registry,
    cli::{check, load, signals::Signals},
    config::{Config, Env},
    error::{Error, Result, codes},
    kube::Way,
    observe::log,
    sys::{process, seccomp, stack::Clean},
};

/// Runs the CSI node plugin.
///
/// Serves the kubelet's calls on the socket that the configuration names, in the foreground, until SIGTERM. Prints one line when it
/// serves. SIGHUP reads the configuration again. Mounts stay when it ends or is killed; the next one takes them over. A second
/// one on the same node waits until the first has ended.
#[derive(clap::Args, Debug)]
pub struct NodeArgs {
    /// The node's configuration (YAML); see docs/reference/config.md
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs `node`, until a signal ends it.
///
/// # Errors
/// Whatever keeps it from serving.
pub fn run(args: &NodeArgs, env: &Env, out: &mut dyn Write) -> Result<ExitCode> {
    let Some(config) = read(&args.config, env)? else {
        return Ok(super::input_wrong()); // 1
    };
    log::follow(config.log_level);
    let way = config.kubernetes.then(|| Way::find(env)).transpose()?;
    if !process::may_mount() {
        return Err(Error::new(&codes::MOUNT_NOT_PERMITTED));
    }
    let io = |step| move |error| Error::new(&codes::NODE_IO).step(step).source(error);
    process::raise_file_limit().map_err(io("raise the limit on open files"))?;
    process::drop_privileges(true).map_err(io("drop privileges"))?; // 2
    seccomp::install().map_err(io("install the system call filter"))?;
    tracing::trace!("privileges are dropped");
    let runtime = super::runtime()?;
    let ended = runtime.block_on(Clean::new(plugin(config, &args.config, env, way, out)));
    runtime.shutdown_background(); // a request that hangs must not keep us
    ended.map(|()| ExitCode::SUCCESS)
}

/// The configuration in `file`; `None`: it has problems, which were printed on stderr.
fn read(file: &Path, env: &Env) -> Result<Option<Config>> {
    let (name, text) = check::read(file)?;
    match Config::parse(&text, env, &registry::problems) {
        Ok(config) => Ok(Some(config)),
        Err(problems) => {
            load::report(&name, &text, &problems);
            Ok(None)
        }
    }
}

async fn plugin(
    config: Config,
    file: &Path,
    env: &Env,
    way: Option<Way>,
    out: &mut dyn Write,
) -> Result<()> {
    let mut signals = Signals::listen()?; // also while we wait: to process 1 of a container they mean nothing else
    let _lock = tokio::select! {
        lock = lock::take(&config.runtime_dir) => lock?, // 3
        () = signals.ended() => return Ok(()),
    };
    let plugin = Plugin::start(config, file, env, way).await?;
    let restored = plugin.volumes.restore().await; // 4
    serve::serve(plugin, restored, file, &mut signals, out).await // 5
}
