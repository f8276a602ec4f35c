//! Rotations one by one: put, and what a watcher in the container sees. In the middle of them the plugin is killed.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use inotify::{Inotify, WatchMask};

use super::{
    Say, Stop, claim,
    container::gone,
    failed,
    plugin::Plugin,
    stage::{Stage, View, database, password, short, view},
};
use crate::{
    clock::{Clock, Mono, SystemClock},
    error::{Error, Result, codes},
};

/// How many, besides the one that nobody serves.
const ROTATIONS: u32 = 5;
/// After this one the plugin is killed.
const KILLED_AFTER: u32 = 3;
/// Longer than this, and something is broken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two, for whoever reads along.
const PAUSE: Duration = Duration::from_millis(300);
/// How long nobody serves: a kubelet takes longer to start a container again.
const OUTAGE: Duration = Duration::from_millis(500);
/// What is watched and read.
const FILE: &str = "db/password";

/// A watcher's callback: when it was told, and what it then read.
struct Told {
    at: Mono,
    read_at: Mono,
    content: Vec<u8>,
}

/// What the reader has seen so far.
#[derive(Default)]
struct Reader {
    reads: AtomicU64,
    failed: AtomicU64,
    ended: AtomicBool,
}

/// The rotations so far.
struct Rotations<'a> {
    stage: &'a mut Stage,
    callbacks: mpsc::Receiver<Told>,
    /// Every password that was put.
    put: Vec<String>,
}

/// Shows them. Returns every password that was put, so that the ending can look for them.
pub fn show(stage: &mut Stage, say: &mut Say<'_>, stop: &Stop) -> Result<Vec<String>> {
    say.heading(
        "4  New values: put into the store, watched in the container (inotify on the directory)",
    )?;
    say.line(
        "       put done   watcher told   new content read   db/password (SHA-256, shortened)",
    )?;
    let container = stage.container()?;
    let callbacks = container.run(watch)??;
    let first = container.run(|secrets| fs::read(secrets.join(FILE)))?;
    let first = first.map_err(failed("read a mounted file"))?;
    let reader = Arc::new(Reader::default());
    let reading = reader.clone();
    let read = container.start_in(move |secrets| read_on(&secrets.join(FILE), &reading))?;
    let mut rotations = Rotations {
        stage,
        callbacks,
        put: vec![String::from_utf8_lossy(&first).into_owned()],
    };
    let shown = rotations.show(&reader, say, stop);
    reader.ended.store(true, Ordering::SeqCst);
    read.recv().map_err(|_| gone())?;
    shown?;
    let (reads, failed) = reader.counts();
    let text = format!("a reader read {FILE} {reads} times meanwhile, {failed} failed");
    claim(say, reads > 0 && failed == 0, &text)?;
    Ok(rotations.put)
}

impl Rotations<'_> {
    fn show(&mut self, reader: &Reader, say: &mut Say<'_>, stop: &Stop) -> Result<()> {
        for number in 1..=ROTATIONS {
            if stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.rotate(number, say)?;
            thread::sleep(PAUSE);
            if number == KILLED_AFTER && !stop.load(Ordering::SeqCst) {
                self.kill(reader, say)?;
            }
        }
        say.line("      (from the call of put; it returns when the disk has the value, which the watcher need not wait for)")
    }

    fn rotate(&mut self, number: u32, say: &mut Say<'_>) -> Result<()> {
        let clock = SystemClock;
        let start = clock.now();
        let (value, change) = self.put()?;
        let done = clock.now();
        let told = wait_for(&self.callbacks, value.as_bytes())?;
        let ms = |at: Mono| format!("{:.1} ms", at.since(start).as_secs_f64() * 1000.0);
        say.line(&format!(
            "  {number}  {:>10}   {:>12}   {:>16}   {change}",
            ms(done),
            ms(told.at),
            ms(told.read_at)
        ))
    }

    /// A new password, and how the change is shown.
    fn put(&mut self) -> Result<(String, String)> {
        let value = password()?;
        let before = self.put.last().map(|before| short(before.as_bytes()));
        self.stage.put("demo/db", &database(&value))?;
        self.put.push(value.clone());
        let (old, new) = (before.unwrap_or_default(), short(value.as_bytes()));
        Ok((value, format!("{old} -> {new}")))
    }

    /// `kill -9`, a new value that nobody delivers, and a new process that does.
    fn kill(&mut self, reader: &Reader, say: &mut Say<'_>) -> Result<()> {
        let Some(plugin) = self.stage.plugin.take() else {
            return Err(Error::new(&codes::BUG).detail("there is no plugin to kill"));
        };
        let clock = SystemClock;
        let before = self.mounts()?;
        say.line(&format!("\n      kill -9 {} (the plugin)", plugin.id()))?;
        let killed = clock.now();
        plugin.kill()?;
        let (reads, failed) = reader.counts();
        let (value, change) = self.put()?;
        say.line(&format!(
            "      nobody serves; a put all the same: {change}"
        ))?;
        thread::sleep(OUTAGE);
        let unseen = self.callbacks.try_recv().is_err();
        let started = clock.now();
        let plugin = Plugin::start(&self.stage.dir)?;
        let ready = clock.now();
        let (later_reads, later_failed) = reader.counts();
        say.line(&format!(
            "      a new process {}: {}",
            plugin.id(),
            self.stage.shortened(&plugin.ready)
        ))?;
        self.stage.plugin = Some(plugin);
        let told = wait_for(&self.callbacks, value.as_bytes())?;
        let ms = |at: Mono, since: Mono| at.since(since).as_secs_f64() * 1000.0;
        let (reads, failed) = (later_reads - reads, later_failed - failed);
        let without = ms(ready, killed);
        let text = format!(
            "{without:.0} ms without a plugin: {reads} reads in the container, {failed} failed; no event"
        );
        claim(say, reads > 0 && failed == 0 && unseen, &text)?;
        let (arrived, ready) = (ms(told.at, started), ms(ready, started));
        say.good(&format!(
            "{arrived:.0} ms after its start the new process had delivered that put (ready after {ready:.0} ms)"
        ))?;
        let after = self.mounts()?;
        let same = |(before, after): (&View, &View)| before.id == after.id && after.layers == 1;
        claim(
            say,
            before.iter().zip(&after).all(same),
            &format!(
                "the same mounts as before, one layer each: {} on the node, {} in the container\n",
                after[0].id, after[1].id
            ),
        )
    }

    /// The volume's mount on the node, and the container's.
    fn mounts(&self) -> Result<[View; 2]> {
        let node = view(&self.stage.kubelet.target(&self.stage.volume));
        let container = self.stage.container()?.run(view)?;
        match (node, container) {
            (Some(node), Some(container)) => Ok([node, container]),
            _ => Err(Error::new(&codes::BUG).detail("the volume is not mounted any more")),
        }
    }
}

impl Reader {
    /// Reads, and those that failed.
    fn counts(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        (count(&self.reads), count(&self.failed))
    }
}

/// A program that needs its password about every millisecond.
fn read_on(file: &Path, reader: &Reader) {
    while !reader.ended.load(Ordering::SeqCst) {
        let whole = fs::read(file).is_ok_and(|content| content.len() == 48);
        reader.reads.fetch_add(1, Ordering::SeqCst);
        reader.failed.fetch_add(u64::from(!whole), Ordering::SeqCst);
        thread::sleep(Duration::from_millis(1));
    }
}

/// A watcher as an application has one: on the directory, acting on the event that names `..data`.
fn watch(dir: &Path) -> Result<mpsc::Receiver<Told>> {
    let mut inotify = Inotify::init().map_err(failed("start inotify"))?;
    inotify
        .watches()
        .add(dir, WatchMask::MOVED_TO)
        .map_err(failed("watch the volume"))?;
    let (send, receive) = mpsc::channel();
    let file = dir.join(FILE);
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
