//! Serving a node plugin, and stopping it.

use std::{convert::Infallible, future::pending, io::Write, path::Path, pin::pin};

use tokio::time::timeout;

use super::{doors::Doors, plugin::Plugin};
use crate::{
    admin::{
        Admin, ConfigState, NodeView,
        health::Health,
        http::{self, Answers, Listener},
    },
    cli::signals::Signals,
    csi::{
        registration::{Registered, Registration},
        server::{self, Services},
    },
    error::{Error, Result, codes},
    limits,
    observe::{metrics::Metrics, ready::Readiness},
    volume::Restored,
};

/// Serves until a signal ends it.
///
/// 1. Bind all sockets; serve; say so, once the API server has been heard or keeps us waiting.
/// 2. Serve, and follow the configuration, until SIGTERM or SIGINT.
/// 3. Stop, while all is still served. A second signal ends it at once.
///
/// # Errors
/// Whatever keeps it from serving.
pub async fn serve(
    mut plugin: Plugin,
    restored: Restored,
    file: &Path,
    signals: &mut Signals,
    out: &mut dyn Write,
) -> Result<()> {
    let doors = Doors::open(&plugin.config)?; // 1
    let services = plugin.services();
    let admin = Admin::new(plugin.volumes.clone()).of_node(view(&plugin, &doors, file));
    let registration = Registration::new(&plugin.config.driver, &plugin.config.endpoint);
    let (admin_door, http_door) = (doors.admin()?, doors.http()?);
    let (readiness, metrics) = (plugin.readiness.clone(), plugin.metrics.clone());
    let health = Health::new(readiness.clone(), plugin.scrape());
    if doors.registration().is_some() {
        // before anybody can ask
        readiness.note("registration", Err(Error::new(&codes::CSI_NOT_REGISTERED)));
        metrics.registered(false);
    }
    let mut serving = pin!(async {
        tokio::select! {
            ended = server::serve(doors.csi(), services.clone()) => ended,
            ended = register(&doors, &registration, &readiness, &metrics) => ended,
            never = at(admin_door, admin) => match never {},
            never = at(http_door, health) => match never {},
        }
    });
    tokio::select! { // a moment later the line would say more than "not asked yet"
        ended = &mut serving => return ended,
        () = plugin.heard() => {}
        () = signals.ended() => return Ok(()),
    }
    out.write_all(ready_line(&plugin, restored, &doors).as_bytes())
        .and_then(|()| out.flush())
        .map_err(Error::stdout)?;
    tokio::select! { // 2
        ended = &mut serving => return ended,
        never = follow(&mut plugin) => match never {},
        () = signals.ended() => {}
    }
    tokio::select! { // 3
        ended = &mut serving => ended,
        () = stop(&plugin, &services) => Ok(()),
        () = signals.ended() => Ok(()),
    }
}

/// Applies what changes in the configuration's file; SIGHUP looks at it as well.
async fn follow(plugin: &mut Plugin) -> Infallible {
    loop {
        let reload = plugin.reloader.next().await;
        plugin.apply(&reload);
    }
}

/// 1. Refuse new publishes; unpublishes, and all else, are answered as before.
/// 2. Wait for the calls in flight.
/// 3. End the volumes' tasks and the requests to stores: a publish that still waits is answered `volume.stopped`.
/// 4. Let the last answers out, and the last audit records.
async fn stop(plugin: &Plugin, services: &Services) {
    let stopping = Err(Error::new(&codes::VOLUME_STOPPED));
    plugin.readiness.set("stopping", stopping); // 1
    tracing::info!("stopping");
    if timeout(limits::NODE_DRAIN, services.idle()).await.is_err() {
        tracing::warn!("calls are still in flight"); // 2
    }
    plugin.volumes.shutdown().await; // 3
    let _ = timeout(limits::NODE_CLOSE, services.close()).await; // 4
    let audit = plugin.audit.clone();
    let _ = tokio::task::spawn_blocking(move || audit.flush()).await;
}

/// Answers the kubelet's registration, if it is to be, and shows what came of it. Publishes do not wait for it: who sends one knows us.
async fn register(
    doors: &Doors,
    registration: &Registration,
    readiness: &Readiness,
    metrics: &Metrics,
) -> Result<()> {
    let Some(socket) = doors.registration() else {
        return pending().await;
    };
    let mut state = registration.state();
    let told = async {
        loop {
            let registered = match &*state.borrow_and_update() {
                Registered::Yes => Ok(()),
                Registered::Unasked => Err(Error::new(&codes::CSI_NOT_REGISTERED)),
                Registered::No(why) => Err(Error::new(&codes::CSI_NOT_REGISTERED).detail(why)),
            };
            metrics.registered(registered.is_ok());
            readiness.note("registration", registered);
            if state.changed().await.is_err() {
                return pending().await;
            }
        }
    };
    tokio::select! {
        ended = registration.serve(socket) => ended,
        never = told => never,
    }
}

/// What a door that is not there would serve is never asked for.
async fn at(listener: Option<Listener>, answers: impl Answers) -> Infallible {
    match listener {
        None => pending().await,
        Some(listener) => http::serve(listener, answers).await,
    }
}

fn view(plugin: &Plugin, doors: &Doors, file: &Path) -> NodeView {
    let (file, last) = (file.to_owned(), plugin.reloader.last());
    let config = move || {
        let last = last.borrow();
        let problem = last.problems.first().map(|first| {
            let (line, count) = (first.at.line, last.problems.len());
            format!("line {line}: {} ({count} in all)", first.message)
        });
        ConfigState {
            file: file.clone(),
            loaded_at: last.successful_at,
            error: last.error.as_ref().map(ToString::to_string).or(problem),
        }
    };
    NodeView {
        driver: plugin.config.driver.clone(),
        node: plugin.node.clone(),
        readiness: plugin.readiness.clone(),
        kubernetes: plugin.config.kubernetes,
        http: doors.http_address(),
        scrape: plugin.scrape(),
        config: Box::new(config),
    }
}

/// The one line on stdout: whether publishes would work, and what is served where.
fn ready_line(plugin: &Plugin, restored: Restored, doors: &Doors) -> String {
    let head = match plugin.readiness.probe() {
        Ok(()) => "ready: ".to_owned(),
        Err(error) => format!("not ready ({error}): "),
    };
    let (driver, node) = (&plugin.config.driver, &plugin.node);
    let restored = match restored.restored + restored.held {
        1 => "1 volume".to_owned(),
        volumes => format!("{volumes} volumes"),
    };
    let http = doors.http_address();
    let http = http.map_or(String::new(), |address| format!(", http {address}"));
    let endpoint = doors.endpoint();
    format!("{head}{driver} on {node}, {restored} restored, {endpoint}{http}\n")
}
