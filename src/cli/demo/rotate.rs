//! Rotations one by one: put, and what a watcher of the directory sees.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{atomic::Ordering, mpsc},
    thread,
    time::Duration,
};

use inotify::{Inotify, WatchMask};

use super::{
    Say, Stop, failed,
    stage::{Stage, database, password, short},
};
use crate::{
    clock::{Clock, Mono, SystemClock},
    error::{Error, Result, codes},
};

/// How many.
const ROTATIONS: u32 = 5;
/// Longer than this, and something is broken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two, for whoever reads along.
const PAUSE: Duration = Duration::from_millis(300);

/// A watcher's callback: when it was told, and what it then read.
struct Told {
    at: Mono,
    read_at: Mono,
    content: Vec<u8>,
}

/// Shows them. Returns every password that was put, so that the ending can look for them.
pub fn show(stage: &Stage, say: &mut Say<'_>, stop: &Stop) -> Result<Vec<String>> {
    say.heading(
        "3  New values: put into the store, watched in the volume (inotify on the directory)",
    )?;
    say.line(
        "       put done   watcher told   new content read   db/password (SHA-256, shortened)",
    )?;
    let callbacks = watch(&stage.target, stage.target.join("db/password"))?;
    let clock = SystemClock;
    let mut before = read(&stage.target.join("db/password"))?;
    let mut put = vec![String::from_utf8_lossy(&before).into_owned()];
    for number in 1..=ROTATIONS {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let value = password()?;
        let start = clock.now();
        stage.put("demo/db", &database(&value))?;
        let done = clock.now();
        let told = wait_for(&callbacks, value.as_bytes())?;
        let ms = |at: Mono| format!("{:.1} ms", at.since(start).as_secs_f64() * 1000.0);
        let (old, new) = (short(&before), short(value.as_bytes()));
        say.line(&format!(
            "  {number}  {:>10}   {:>12}   {:>16}   {old} -> {new}",
            ms(done),
            ms(told.at),
            ms(told.read_at)
        ))?;
        before = value.clone().into_bytes();
        put.push(value);
        thread::sleep(PAUSE);
    }
    say.line("      (from the call of put; it returns when the disk has the value, which the watcher need not wait for)")?;
    Ok(put)
}

/// A watcher as an application has one: on the directory, acting on the event that names `..data`.
fn watch(dir: &Path, file: PathBuf) -> Result<mpsc::Receiver<Told>> {
    let mut inotify = Inotify::init().map_err(failed("start inotify"))?;
    inotify
        .watches()
        .add(dir, WatchMask::MOVED_TO)
        .map_err(failed("watch the volume"))?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let Ok(events) = inotify.read_events_blocking(&mut buffer) else {
                return;
            };
            let swapped = events
                .into_iter()
                .any(|event| event.name.is_some_and(|name| name == "..data"));
            let at = SystemClock.now();
            let content = fs::read(&file).unwrap_or_default();
            if swapped
                && send
                    .send(Told {
                        at,
                        read_at: SystemClock.now(),
                        content,
                    })
                    .is_err()
            {
                return;
            }
        }
    });
    Ok(receive)
}

fn wait_for(callbacks: &mpsc::Receiver<Told>, value: &[u8]) -> Result<Told> {
    while let Ok(told) = callbacks.recv_timeout(PATIENCE) {
        if told.content == value {
            return Ok(told);
        }
    }
    Err(Error::new(&codes::BUG).detail("the watcher was not told of a new value within 5 s"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(failed("read a mounted file"))
}
