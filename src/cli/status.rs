//! `secretfs status` and `secretfs refresh`.

pub mod show;
mod watch;

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
};

use futures_util::future::join_all;
use hyper::Method;
use serde::Serialize;
use watch::Watch;

use crate::{
    backend::registry,
    cli::{
        check,
        client::{self, About},
        rundir,
    },
    config::{Config, Env},
    error::{Error, Result, codes},
    volume::VolumeStatus,
};

/// Shows the volumes that are served on this machine.
///
/// Asks every `secretfs mount` of this user, and the node plugin if there is one: at /run/secretfs, or where --config says. The worst
/// comes first; what is not `fresh` says since when, why and what to do (docs/reference/status.md). CHECKED is when the store last
/// confirmed the content, NEXT when it is asked again.
///
/// Exit code: 0 whatever state the volumes are in, 1 if nobody answers at a socket that is there or is named or serves a node plugin's
/// volumes that are mounted, 2 if the command line or the configuration is wrong.
#[derive(clap::Args, Debug)]
pub struct StatusArgs {
    /// One JSON document: {"nodes": [...], "volumes": [...], "unreachable": [...]}
    #[arg(long)]
    json: bool,
    /// Look every second, until interrupted: on a terminal the table again, else a line (--json: a document) for what changes
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
    /// Those that are there, or should be, and gave none: a plugin that is dead.
    unreachable: Vec<Silent>,
}

/// A socket that is there or should be, and why it does not answer.
struct Silent {
    socket: PathBuf,
    error: Error,
}

/// A volume, and the socket that answered for it.
struct Found {
    socket: PathBuf,
    status: VolumeStatus,
}

/// Runs `status`.
///
/// # Errors
/// `admin.unreachable` when nobody answers at a socket that was named, or that is there, or nobody serves a node plugin's volumes that are
/// mounted; what the others answer is shown all the same.
pub async fn status(args: &StatusArgs, env: &Env, out: &mut dyn Write) -> Result<()> {
    let only = args.at.only(env)?;
    let found = gather(env, only.as_ref()).await?;
    if !args.watch {
        let shown = match args.json {
            true => json(&found, &found.statuses().collect::<Vec<_>>()),
            false => text(&found),
        };
        let written = out.write_all(shown.as_bytes()).and_then(|()| out.flush());
        written.map_err(Error::stdout)?;
        return found.first_silence().map_or(Ok(()), Err);
    }
    let mut watch = Watch::new(args.json, std::io::stdout().is_terminal());
    let mut seen = Ok(found);
    loop {
        watch.show(seen, out)?;
        tokio::time::sleep(watch::EVERY).await;
        seen = gather(env, only.as_ref()).await;
    }
}

/// Runs `refresh`.
///
/// # Errors
/// `volume.unknown`, `usage`, or what the stores answered.
pub async fn refresh(args: &RefreshArgs, env: &Env, out: &mut dyn Write) -> Result<()> {
    let only = args.at.only(env)?;
    let answers = gather(env, only.as_ref()).await?;
    let silence = answers.first_silence();
    let found = answers.volumes;
    if let (true, Some(error)) = (found.is_empty(), &silence) {
        return Err(error.clone());
    }
    let chosen = choose(&found, args)?;
    let mut first_failure = silence.filter(|_| args.all);
    for (socket, volumes) in by_socket(&chosen) {
        let (refreshed, failed) = refresh_at(socket, &volumes).await;
        for volume in refreshed {
            writeln!(
                out,
                "{}: generation {}, {}",
                volume.target,
                volume.generation,
                state(&volume)
            )
            .map_err(Error::stdout)?;
        }
        first_failure = first_failure.or(failed);
    }
    first_failure.map_or(Ok(()), Err)
}

fn by_socket<'f>(chosen: &[&'f Found]) -> BTreeMap<&'f Path, Vec<&'f VolumeStatus>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for found in chosen {
        let of_socket = all.entry(found.socket.as_path()).or_default();
        of_socket.push(&found.status);
    }
    all
}

/// Asks for several volumes at once, so that what they share is fetched once. What to show of them, and what failed.
async fn refresh_at(
    socket: &Path,
    volumes: &[&VolumeStatus],
) -> (Vec<VolumeStatus>, Option<Error>) {
    let path = match volumes {
        [one] => format!("/v1/volumes/{}/refresh", one.id),
        _ => "/v1/refresh".to_owned(),
    };
    let error = match client::ask(socket, Method::POST, &path).await {
        Ok(refreshed) => return (refreshed, None),
        Err(error) => error,
    };
    let [one] = volumes else {
        let now = client::ask(socket, Method::GET, "/v1/volumes").await;
        return (now.unwrap_or_default(), Some(error));
    };
    let is_named = error.to_string().contains(&one.target);
    let error = if is_named {
        error
    } else {
        error.object(&one.target)
    };
    (Vec::new(), Some(error))
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

/// All volumes of all sockets. One that a killed `secretfs mount` left behind is no error where its mount has gone too, unless it was named.
async fn gather(env: &Env, only: Option<&PathBuf>) -> Result<Answers> {
    let sockets = only.map_or_else(|| rundir::sockets(env), |socket| vec![socket.clone()]);
    let mut all = Answers::default();
    // beside each other: one that does not answer keeps the others waiting once, not each in turn
    let asked = sockets.into_iter().map(async |socket| {
        tracing::trace!(socket = %socket.display(), "asked for its volumes");
        let volumes = client::ask(&socket, Method::GET, "/v1/volumes").await;
        let node = match volumes {
            Ok(_) => client::node(&socket).await,
            Err(_) => None,
        };
        (socket, volumes, node)
    });
    for (socket, volumes, node) in join_all(asked).await {
        match volumes {
            Ok(volumes) => {
                all.nodes.extend(node);
                all.volumes.extend(volumes.into_iter().map(|status| Found {
                    socket: socket.clone(),
                    status,
                }));
            }
            Err(error) if only.is_some() => return Err(error),
            Err(error) if !socket.exists() || is_leftover(&socket) => {
                tracing::debug!(%error, "no answer");
            }
            Err(error) => all.unreachable.push(Silent { socket, error }),
        }
    }
    if only.is_none() && all.nodes.is_empty() {
        all.unreachable.extend(stopped_plugin(&all));
    }
    Ok(all)
}

/// A node plugin that has ended, or never began: its socket is not there, and volumes of one are.
fn stopped_plugin(all: &Answers) -> Option<Silent> {
    let is_told = |silent: &Silent| rundir::volume_of(&silent.socket).is_none();
    if all.unreachable.iter().any(is_told) {
        return None;
    }
    let socket = rundir::default_node_socket();
    let is_there = socket.try_exists().unwrap_or(true); // who may not look knows nothing of it
    let count = if is_there {
        0
    } else {
        show::unserved(&all.statuses().collect::<Vec<_>>())
    };
    (count > 0).then(|| {
        let what = format_args!(
            "a node plugin's volumes are mounted here ({count}) and none answers; pods read on, and nobody refreshes what they read. One that \
             runs elsewhere is named with --config or --socket"
        );
        let error = Error::new(&codes::ADMIN_UNREACHABLE).object(socket.display());
        Silent { error: error.detail(what), socket }
    })
}

/// Whether it is the socket of a `secretfs mount` whose mount is not there: nobody misses it.
fn is_leftover(socket: &Path) -> bool {
    rundir::volume_of(socket).is_some_and(|id| !show::is_mounted(id))
}

impl Answers {
    fn statuses(&self) -> impl Iterator<Item = &VolumeStatus> {
        self.volumes.iter().map(|found| &found.status)
    }

    fn first_silence(&self) -> Option<Error> {
        self.unreachable.first().map(|silent| silent.error.clone())
    }
}

impl Silent {
    /// As it is shown, and compared by `--watch`.
    fn line(&self) -> String {
        format!("no answer: {}", self.error)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "socket": self.socket.to_string_lossy(),
            "code": self.error.code().name,
            "message": self.error.to_string(),
        })
    }
}

fn json(found: &Answers, volumes: &[impl Serialize]) -> String {
    let nodes: Vec<_> = found.nodes.iter().map(|node| &node.all).collect();
    let unreachable: Vec<_> = found.unreachable.iter().map(Silent::json).collect();
    let all = serde_json::json!({ "nodes": nodes, "volumes": volumes, "unreachable": unreachable });
    format!("{all}\n")
}

fn text(found: &Answers) -> String {
    let volumes: Vec<_> = found.statuses().collect();
    let mut text = show::heads(&found.nodes);
    for silent in &found.unreachable {
        text += &format!("{}\n", silent.line());
    }
    if found.unreachable.is_empty() || !volumes.is_empty() {
        text += &show::table(&volumes);
    }
    text + &show::leftovers(&volumes)
}

/// What is confirmed: its state, and why it is not as it should be.
fn state(volume: &VolumeStatus) -> String {
    let name = volume.state.name();
    match &volume.error {
        None => name.into(),
        Some(error) => format!("{name}: {}", error.message),
    }
}
