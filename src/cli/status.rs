//! `secretfs status` and `secretfs refresh`.

use std::{
    fmt::Write as _,
    io::{IsTerminal, Write},
    path::PathBuf,
    time::Duration,
};

use hyper::Method;

use crate::{
    backend::registry,
    cli::{
        check,
        client::{self, About, Objection},
        rundir,
        table::Table,
    },
    config::{Config, Env},
    error::{Error, Result, codes},
    mount::mountinfo::Mounts,
    volume::{VolumeState, VolumeStatus},
};

/// Shows the volumes that are served on this machine.
///
/// Asks every `secretfs mount` of this user, and the node plugin if there is one: at /run/secretfs, or where --config says. CHECKED is
/// when the store last confirmed the content, NEXT when it is asked again. A volume that is not `fresh` says why.
#[derive(clap::Args, Debug)]
pub struct StatusArgs {
    /// One JSON document: {"nodes": [...], "volumes": [...]}
    #[arg(long)]
    json: bool,
    /// Again every second, until interrupted
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    at: At,
}

/// Asks the stores now instead of at the next interval.
///
/// Without an argument: all volumes, if only one is served; else name it, or use --all. Waits for the answer of the stores.
#[derive(clap::Args, Debug)]
pub struct RefreshArgs {
    /// A target directory or a volume's id
    #[arg(value_name = "TARGET|VOLUME_ID", conflicts_with = "all")]
    volume: Option<String>,
    /// Every volume
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    at: At,
}

/// Whom to ask.
#[derive(clap::Args, Debug)]
pub struct At {
    /// Ask this admin socket only
    #[arg(long, value_name = "SOCKET", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// Ask only the node plugin that runs with this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl At {
    /// The one socket that was named, if one was.
    fn only(&self, env: &Env) -> Result<Option<PathBuf>> {
        let Some(file) = &self.config else {
            return Ok(self.socket.clone());
        };
        let (name, text) = check::read(file)?;
        match Config::parse(&text, env, &registry::problems) {
            Ok(config) => Ok(Some(rundir::node_socket(&config.runtime_dir))),
            Err(problems) => {
                eprint!("{}", check::show(&name, &text, &problems));
                Err(Error::new(&codes::CONFIG_INVALID).object(name))
            }
        }
    }
}

/// What all sockets answered.
#[derive(Default)]
struct Answers {
    nodes: Vec<About>,
    volumes: Vec<Found>,
}

/// A volume, and the socket that answered for it.
struct Found {
    socket: PathBuf,
    status: VolumeStatus,
}

/// Runs `status`.
///
/// # Errors
/// `admin.unreachable` when a socket was named and nobody answers there.
pub async fn status(args: &StatusArgs, env: &Env, out: &mut dyn Write) -> Result<()> {
    let only = args.at.only(env)?;
    loop {
        let found = gather(env, only.as_ref()).await?;
        let volumes: Vec<_> = found.volumes.iter().map(|found| &found.status).collect();
        let text = if args.json {
            json(&found.nodes, &volumes)
        } else {
            heads(&found.nodes) + &render(&volumes) + &leftovers(&volumes)
        };
        let clear = if args.watch && !args.json && std::io::stdout().is_terminal() {
            "\x1b[H\x1b[2J"
        } else {
            ""
        };
        write!(out, "{clear}{text}")
            .and_then(|()| out.flush())
            .map_err(Error::stdout)?;
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Runs `refresh`.
///
/// # Errors
/// `volume.unknown`, `usage`, or what the stores answered.
pub async fn refresh(args: &RefreshArgs, env: &Env, out: &mut dyn Write) -> Result<()> {
    let only = args.at.only(env)?;
    let found = gather(env, only.as_ref()).await?.volumes;
    let chosen = choose(&found, args)?;
    let mut first_failure = None;
    for found in chosen {
        let path = format!("/v1/volumes/{}/refresh", found.status.id);
        match client::ask(&found.socket, Method::POST, &path).await {
            Ok(volumes) => {
                for volume in volumes {
                    writeln!(
                        out,
                        "{}: generation {}, {}",
                        volume.target,
                        volume.generation,
                        state(&volume)
                    )
                    .map_err(Error::stdout)?;
                }
            }
            Err(error) => {
                let error = error.object(&found.status.target);
                first_failure.get_or_insert(error);
            }
        }
    }
    first_failure.map_or(Ok(()), Err)
}

fn choose<'a>(found: &'a [Found], args: &RefreshArgs) -> Result<Vec<&'a Found>> {
    let Some(wanted) = &args.volume else {
        return match found {
            [] => Err(Error::new(&codes::ADMIN_UNREACHABLE)
                .detail("no secretfs is serving a volume here")),
            [one] => Ok(vec![one]),
            all if args.all => Ok(all.iter().collect()),
            _ => Err(Error::new(&codes::USAGE)
                .detail("several volumes are served: name one, or use --all")),
        };
    };
    let canonical = std::fs::canonicalize(wanted).ok();
    let is_it = |found: &&Found| {
        found.status.id == *wanted
            || found.status.target == *wanted
            || canonical
                .as_ref()
                .is_some_and(|path| path.as_os_str() == found.status.target.as_str())
    };
    let chosen: Vec<_> = found.iter().filter(is_it).collect();
    if chosen.is_empty() {
        Err(Error::new(&codes::VOLUME_UNKNOWN).object(wanted))
    } else {
        Ok(chosen)
    }
}

/// All volumes of all sockets. A socket that a killed process left behind is no error, unless it was named.
async fn gather(env: &Env, only: Option<&PathBuf>) -> Result<Answers> {
    let sockets = only.map_or_else(|| rundir::sockets(env), |socket| vec![socket.clone()]);
    let mut all = Answers::default();
    for socket in sockets {
        match client::ask(&socket, Method::GET, "/v1/volumes").await {
            Ok(volumes) => {
                all.nodes.extend(client::node(&socket).await);
                all.volumes.extend(volumes.into_iter().map(|status| Found {
                    socket: socket.clone(),
                    status,
                }));
            }
            Err(error) if only.is_some() => return Err(error),
            Err(error) => tracing::debug!(%error, "no answer"),
        }
    }
    Ok(all)
}

fn json(nodes: &[About], volumes: &[&VolumeStatus]) -> String {
    let nodes: Vec<_> = nodes.iter().map(|node| &node.all).collect();
    let all = serde_json::json!({ "nodes": nodes, "volumes": volumes });
    format!("{all}\n")
}

/// What is to be known of the plugin before its volumes.
fn heads(nodes: &[About]) -> String {
    let mut text = String::new();
    for node in nodes {
        let ready = if node.objections.is_empty() {
            "ready"
        } else {
            "not ready"
        };
        let _ = writeln!(text, "node {}, driver {}, {ready}", node.node, node.driver);
        for Objection { part, message, fix } in &node.objections {
            let _ = writeln!(text, "  {part}: {message}\n    {fix}");
        }
        if node.kubernetes == "off" {
            let _ = writeln!(
                text,
                "  kubernetes: off: identities are not held against our CSIDriver object"
            );
        }
        if let Some(error) = &node.config.error {
            let _ = writeln!(
                text,
                "  {} has changed and is not in force: {error}",
                node.config.file
            );
        }
    }
    text
}

fn render(volumes: &[&VolumeStatus]) -> String {
    if volumes.is_empty() {
        return "no volume is served by this user's secretfs\n".into();
    }
    let mut table = Table::new(&[
        "VOLUME",
        "TARGET",
        "MOUNT",
        "GENERATION",
        "CHECKED",
        "NEXT",
        "STATE",
    ]);
    let mut volumes = volumes.to_vec();
    volumes.sort_by_key(|volume| (&volume.owner, &volume.target));
    for volume in volumes {
        let swap = volume.usage.as_ref().is_some_and(|usage| usage.swappable);
        let mount = format!(
            "{:?}{}",
            volume.mount,
            if swap { " (swappable)" } else { "" }
        )
        .to_lowercase();
        table.row([
            if volume.owner.contains('/') {
                volume.owner.clone()
            } else {
                volume.id.clone()
            },
            place(&volume.target).to_owned(),
            mount,
            volume.generation.to_string(),
            volume
                .checked_seconds_ago
                .map_or("never".into(), |seconds| format!("{} ago", span(seconds))),
            volume
                .next_in_seconds
                .map_or("on push".into(), |seconds| format!("in {}", span(seconds))),
            state(volume),
        ]);
    }
    table.to_string()
}

/// Mounts of `secretfs mount` that no process serves: what a killed one left.
fn leftovers(volumes: &[&VolumeStatus]) -> String {
    let table = std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    let mounts = Mounts::parse(&table);
    let ours = mounts
        .iter()
        .filter_map(|mount| Some((mount.volume()?, mount.mount_point.display())));
    let left = ours.filter(|(id, _)| {
        id.as_str().starts_with("local-") && volumes.iter().all(|volume| volume.id != id.as_str())
    });
    let line = |(_, target)| {
        format!(
            "{target} is mounted and nobody serves it: `secretfs mount SPEC {target}` takes it over, `umount {target}` ends it\n"
        )
    };
    left.map(line).collect()
}

/// A target as it is shown: of one that a kubelet chose, what the pod's author calls the volume.
fn place(target: &str) -> &str {
    let named = target
        .strip_suffix("/mount")
        .and_then(|target| target.rsplit_once("/volumes/kubernetes.io~csi/"));
    named.map_or(target, |(_, name)| name)
}

/// `fresh`, or the state with its reason.
fn state(volume: &VolumeStatus) -> String {
    let name = match volume.state {
        VolumeState::Fresh => "fresh",
        VolumeState::Stale => "stale",
        VolumeState::WaitingForToken => "waiting_for_token",
        VolumeState::Denied => "denied",
        VolumeState::Lost => "lost",
        VolumeState::Adopted => "adopted",
    };
    match &volume.error {
        None => name.into(),
        Some(error) => {
            let since = error
                .since
                .as_ref()
                .map_or(String::new(), |since| format!(" since {since}"));
            format!("{name}: {}{since}", error.message)
        }
    }
}

/// `4s`, `12m`, `3h`, `2d`: one unit is enough to see whether something is wrong.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 0.95 => format!("{:.0}ms", s * 1000.0),
        s if s < 90.0 => format!("{s:.0}s"),
        s if s < 5400.0 => format!("{:.0}m", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3600.0),
        s => format!("{:.0}d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelets_target_is_shown_by_the_name_that_the_pod_has_for_it() {
        let uid = "d2a0cf6e-4a7c-4c1f-8f0a-5b0c8d7e6f50";
        let kubelets = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/db/mount");
        assert_eq!(place(&kubelets), "db");
        assert_eq!(place("/run/app/mount"), "/run/app/mount");
    }

    #[test]
    fn a_time_span_has_one_unit() {
        for (seconds, text) in [
            (0.2, "200ms"),
            (4.2, "4s"),
            (89.0, "89s"),
            (720.0, "12m"),
            (7200.0, "2h"),
            (864_000.0, "10d"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
