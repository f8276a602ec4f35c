//! `secretfs mount SPEC TARGET`: one volume in the foreground, without Kubernetes.
//!
//! 1. Everything that can be wrong with the input is found before anything is touched: flags, configuration, spec.
//! 2. The target's lock is taken: one process serves one target. Privileges are dropped, and system calls limited, unless it runs CMD.
//! 3. The volume is published (a leftover of a killed process is taken over), and one line says so.
//! 4. Signals, the admin socket and the stores drive it from there on, until SIGTERM or SIGINT unmounts it.

use std::{
    io::Write,
    os::fd::{OwnedFd, RawFd},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};

use crate::{
    admin::{Admin, http},
    caller::{Credentials, Identity},
    cli::{hook, load, rundir, signals::Signals},
    config::Env,
    error::{Error, Result, codes},
    path::{TargetPath, VolumeId},
    sys::{process, seccomp},
    volume::{AskedSpec, Placing, PublishRequest, Published, Volumes},
};

/// Mounts a volume at TARGET and keeps it current, in the foreground.
///
/// Prints one line when the files are there. A change in the embedded store reaches them within milliseconds, any other store
/// is asked each refreshInterval; SIGHUP or `secretfs refresh` ask now. SIGTERM and SIGINT unmount. If the process is
/// killed the files stay, and the next `secretfs mount` on TARGET takes them over.
///
/// Needs CAP_SYS_ADMIN: run it as root, or in a user namespace: `unshare -Urm secretfs mount ...`
#[derive(clap::Args, Debug)]
pub struct MountArgs {
    /// The volume's spec (YAML); see docs/reference/spec.md
    spec: PathBuf,
    /// An existing directory
    target: PathBuf,
    /// The node's configuration; without it there is one backend, `store`, the embedded store
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    store: load::StoreFlags,
    /// Write the ready line to this descriptor as well, and close it
    #[arg(long, value_name = "N")]
    ready_fd: Option<RawFd>,
    /// Run CMD by `sh -c` after each change
    ///
    /// It learns SECRETFS_TARGET and SECRETFS_GENERATION, and its output goes to stderr. A command that fails, or runs for more than
    /// a minute, is tried again up to four times; it never ends the mount.
    #[arg(long, value_name = "CMD")]
    on_change: Option<String>,
}

/// Runs `mount`, until a signal ends it.
///
/// # Errors
/// Whatever keeps the volume from being mounted. Later failures are logged and shown by `status`, never fatal.
pub fn run(args: &MountArgs, env: &Env, out: &mut dyn Write) -> Result<ExitCode> {
    let ready_fd = args.ready_fd.map(ready_descriptor).transpose()?; // before we open anything
    let node = load::node(args.config.as_deref(), &args.store, env)?; // 1
    let Some(node) = node else {
        return Ok(super::input_wrong());
    };
    let Some(spec) = load::spec(&args.spec, &node)? else {
        return Ok(super::input_wrong());
    };
    let target = target(&args.target)?;
    let id = volume_id(&target)?;
    if !process::may_mount() {
        return Err(Error::new(&codes::MOUNT_NOT_PERMITTED).object(&target));
    }
    let dir = rundir::own(env)?;
    let lock = rundir::Lock::take(&dir, &id, &target)?; // 2
    let io = |step| move |error| Error::new(&codes::NODE_IO).step(step).source(error);
    let starts_nothing = args.on_change.is_none();
    process::drop_privileges(starts_nothing).map_err(io("drop privileges"))?;
    if starts_nothing {
        seccomp::install().map_err(io("install the system call filter"))?;
    }

    let caller = Arc::new((
        Identity::Local {
            uid: process::uid(),
        },
        Credentials::default(),
    ));
    let request = PublishRequest {
        id,
        target,
        spec: AskedSpec::Parsed(spec),
        caller,
        placing: Placing::default(),
    };
    let audit = node.audit()?;
    let runtime = super::runtime()?;
    let served = runtime.block_on(async {
        let volumes = Volumes::start(load::parts(node.registry, audit.clone()));
        let served = serve(&volumes, request, &dir, args.on_change.clone(), |line| {
            announce(line, ready_fd, out)
        })
        .await;
        volumes.shutdown().await;
        served
    });
    runtime.shutdown_background(); // a request that hangs must not keep us
    audit.flush();
    drop(lock);
    served.map(|()| ExitCode::SUCCESS)
}

/// Publishes, serves until a signal, and unpublishes.
async fn serve(
    volumes: &Volumes,
    request: PublishRequest,
    dir: &Path,
    on_change: Option<String>,
    announce: impl FnOnce(&str) -> Result<()>,
) -> Result<()> {
    let (id, target) = (request.id.clone(), request.target.clone());
    let mut signals = Signals::listen()?; // before the mount: a signal must not leave it behind
    tracing::trace!(volume_id = %id, %target, "the volume is published");
    let published = tokio::select! {
        published = volumes.publish(request) => Some(published?), // 3
        () = signals.ended() => None,
    };
    let ended = match published {
        None => Ok(()),
        Some(published) => {
            let serving = async {
                let socket = rundir::bind(&rundir::socket(dir, &id), "bind the admin socket")?;
                let listener = rundir::listen(&socket)?;
                announce(&ready_line(&published, &target))?;
                let followed = volumes.follow(&id).await?;
                tokio::select! { // 4
                    never = http::serve(listener, Admin::new(volumes.clone())) => match never {},
                    () = hook::run(on_change, followed, &target) => Ok(()),
                    () = obey(&mut signals, volumes, &id) => Ok(()),
                }
            };
            serving.await
        }
    };
    ended.and(volumes.unpublish(&id, Some(target), false).await)
}

fn ready_line(published: &Published, target: &TargetPath) -> String {
    let files = match published.files {
        Some(1) => "1 file".to_owned(),
        Some(files) => format!("{files} files"),
        None => "taken over".to_owned(),
    };
    format!(
        "ready: {files} at {target}, generation {}\n",
        published.generation.0
    )
}

/// The ready line, on stdout and on the descriptor of `--ready-fd`.
fn announce(line: &str, ready_fd: Option<OwnedFd>, out: &mut dyn Write) -> Result<()> {
    let written = out
        .write_all(line.as_bytes())
        .and_then(|()| out.flush())
        .and_then(|()| match ready_fd {
            Some(fd) => std::fs::File::from(fd).write_all(line.as_bytes()),
            None => Ok(()),
        });
    written.map_err(|error| {
        Error::new(&codes::NODE_IO)
            .step("write the ready line")
            .source(error)
    })
}

fn ready_descriptor(number: RawFd) -> Result<OwnedFd> {
    let refused =
        |why: &str| Error::new(&codes::USAGE).detail(format!("--ready-fd {number} {why}"));
    if number <= 2 {
        return Err(refused(
            "is a standard stream; the ready line is on stdout already, so use 3 or higher",
        ));
    }
    process::inherited_fd(number).map_err(|error| {
        refused("is not a descriptor that was left open for this program").source(error)
    })
}

/// TARGET without symbolic links, so that one directory is one target.
pub fn target(path: &Path) -> Result<TargetPath> {
    let missing = || Error::new(&codes::MOUNT_NO_TARGET).object(path.display());
    let real = path
        .canonicalize()
        .map_err(|error| missing().source(error))?;
    if !real.is_dir() {
        return Err(missing());
    }
    TargetPath::parse(&real).map_err(|reason| {
        Error::new(&codes::USAGE)
            .object(real.display())
            .detail(format!("it {reason}; use another target"))
    })
}

/// The id of a volume that no kubelet names: one per target.
fn volume_id(target: &TargetPath) -> Result<VolumeId> {
    let hash = Sha256::digest(target.as_path().as_os_str().as_encoded_bytes());
    let hex: String = hash
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    VolumeId::parse(&format!("local-{hex}"))
        .ok_or_else(|| Error::new(&codes::BUG).detail("a volume id that is not one"))
}

/// SIGTERM and SIGINT end, SIGHUP refreshes.
async fn obey(signals: &mut Signals, volumes: &Volumes, id: &VolumeId) {
    while signals.again().await {
        if let Err(error) = volumes.refresh(id).await {
            tracing::warn!(volume_id = %id, code = error.code().name, %error, "refresh failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_target_has_one_id() {
        let id = |path: &str| volume_id(&TargetPath::parse(Path::new(path)).unwrap()).unwrap();
        assert_eq!(id("/run/app"), id("/run//app/"));
        assert_ne!(id("/run/app"), id("/run/app2"));
        assert!(id("/run/app").as_str().starts_with("local-"));
    }
}
