//! The audit log: one JSON line for each delivery, denial and removal (contract section 5; docs/reference/audit.md).
//!
//! A [`Record`] says who, what, which version, when; never a value, or a length or hash of one. It becomes a line when it is handed
//! over, with the time of that moment, and waits in a bounded queue for a thread of its own that writes: no publish waits for a disk
//! or for whoever reads our stdout.
//!
//! A delivery is told once it has happened, and no sooner: [`Audit::reserve`] before the files can be read, [`Places::deliver`] after. A
//! reservation that is dropped says nothing.
//!
//! When the queue is full or the log cannot be written, `onFailure` decides. `drop`: what is lost is counted ([`Audit::dropped`]), and
//! nothing ever waits. `deny`: [`Audit::reserve`] lets a delivery begin only when every record before it has been written; it waits for that, at
//! most [`limits::AUDIT_LATE`], and then refuses, until the log works again. What was accepted is kept and written then. So what can be missing
//! after a kill, or while the log stands still, are the deliveries that were under way at that moment, and no others. A line is on record when the
//! kernel has it: nothing is synced.
//!
//! A file is only ever appended to. One that was renamed away (logrotate) is left, and a new one begun, with mode 0600.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use serde::Serialize;

use crate::{
    caller::Identity,
    clock::{Clock, Mono},
    config,
    error::{Code, Error, Result, codes},
    limits,
    path::VolumeId,
    spec::ObjectRef,
};

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A version of a secret is readable in a volume.
    Deliver,
    /// Somebody was refused.
    Deny,
    /// A volume's files are gone.
    Remove,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Record {
    /// What happened.
    pub what: What,
    /// The volume's id, as it was called.
    pub volume: String,
    /// Who; `None`: not known (a forged or missing identity).
    pub who: Option<Identity>,
    /// Which secret; `None`: it is about the whole volume.
    pub secret: Option<Secret>,
    /// The version that was delivered or removed.
    pub version: Option<String>,
    /// Where on this node: the volume's target.
    pub path: Option<String>,
    /// Why.
    pub code: Option<&'static Code>,
}

/// A secret's name, without the version or the field that a spec may name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Secret {
    /// The backend, by its name in the configuration.
    pub backend: String,
    /// What the backend knows it by.
    pub path: String,
}

impl From<&ObjectRef> for Secret {
    fn from(object: &ObjectRef) -> Self {
        Self {
            backend: object.backend.to_string(),
            path: object.path.to_string(),
        }
    }
}

impl Record {
    /// About a whole volume, of which nothing else is known.
    pub fn new(what: What, volume: &VolumeId) -> Self {
        Self {
            what,
            volume: volume.to_string(),
            who: None,
            secret: None,
            version: None,
            path: None,
            code: None,
        }
    }

    /// How it ended, in a word.
    fn result(&self) -> &'static str {
        match self.what {
            What::Deny => "denied",
            What::Remove if self.code == Some(&codes::MOUNT_GONE) => "lost",
            What::Deliver | What::Remove => "ok",
        }
    }
}

/// The way to the log. Cloned freely; the thread ends with the last one.
#[derive(Clone, Default)]
pub struct Audit(Option<Arc<Way>>);

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "Audit"
        } else {
            "Audit(off)"
        })
    }
}

struct Way {
    clock: Arc<dyn Clock>,
    deliveries: bool,
    queue: Arc<Queue>,
}

impl Audit {
    /// No log.
    pub fn off() -> Self {
        Self(None)
    }

    /// Opens the log that the configuration names, and starts its thread.
    ///
    /// # Errors
    /// `node.io`: the file cannot be opened, or there is no thread to be had.
    pub fn start(config: &config::Audit, clock: Arc<dyn Clock>) -> Result<Self> {
        let sink = match &config.file {
            None => io::stdout().as_fd().try_clone_to_owned().map(|fd| Sink {
                path: None,
                file: Some(File::from(fd)),
                torn: false,
            }),
            Some(path) => open(path).map(|file| Sink {
                path: Some(path.clone()),
                file: Some(file),
                torn: false,
            }),
        };
        let object = config
            .file
            .as_ref()
            .map_or("stdout".into(), |path| path.to_string_lossy());
        let io = |step| {
            let object = object.clone();
            move |error| {
                Error::new(&codes::NODE_IO)
                    .object(object)
                    .step(step)
                    .source(error)
            }
        };
        let sink = sink.map_err(io("open the audit log"))?;
        let queue = Arc::new(Queue {
            keep: config.deny_on_failure,
            state: Mutex::default(),
            more: Condvar::new(),
            drained: Condvar::new(),
        });
        let (its, time) = (queue.clone(), clock.clone());
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || its.write_all(sink, &*time))
            .map_err(io("start the thread of the audit log"))?;
        Ok(Self(Some(Arc::new(Way {
            clock,
            deliveries: config.deliveries,
            queue,
        }))))
    }

    /// Hands a denial or a removal over; never waits. It happens in any case: a record for which there is no room counts as dropped.
    pub fn record(&self, record: &Record) {
        if let Some(way) = &self.0 {
            let line = line(record, &way.clock.wall().to_rfc3339());
            way.queue.push(line, way.clock.now());
        }
    }

    /// Sees to it that so many deliveries can be put on record: before the files can be read. Waits only with `onFailure: deny`, and blocks
    /// its thread then.
    ///
    /// # Errors
    /// `audit.unavailable`, with `onFailure: deny` only: the deliveries must not be.
    pub fn reserve(&self, deliveries: usize) -> Result<Places> {
        let way = self.0.as_ref().filter(|way| way.deliveries);
        let reserved = match way {
            Some(way) if way.queue.keep && deliveries > 0 => {
                way.queue.reserve(deliveries, way.clock.now())?;
                deliveries
            }
            _ => 0,
        };
        Ok(Places {
            way: way.cloned(),
            reserved,
        })
    }

    /// Records that are in no log, since the start.
    pub fn dropped(&self) -> u64 {
        let way = self.0.as_ref();
        way.map_or(0, |way| way.queue.state().dropped)
    }

    /// Waits until all that was handed over is written, at most for [`limits::AUDIT_FLUSH`]. Blocks: for the end of a process, and
    /// for tests. Whether nothing waits any more; what still does counts as dropped.
    pub fn flush(&self) -> bool {
        let Some(way) = &self.0 else {
            return true;
        };
        let waiting = |state: &mut State| !state.waiting.is_empty();
        let drained = &way.queue.drained;
        let waited = drained.wait_timeout_while(way.queue.state(), limits::AUDIT_FLUSH, waiting);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let left = state.waiting.len() as u64;
        state.dropped += left;
        state.waiting.clear();
        drop(state);
        if left > 0 {
            tracing::warn!(
                records = left,
                "the last audit records could not be written"
            );
        }
        left == 0
    }
}

/// Room for deliveries that are about to happen. Dropped: they did not.
#[must_use]
pub struct Places {
    way: Option<Arc<Way>>,
    reserved: usize,
}

impl Places {
    /// They have happened.
    pub fn deliver(self, records: &[Record]) {
        let Some(way) = &self.way else {
            return;
        };
        let (time, now) = (way.clock.wall().to_rfc3339(), way.clock.now());
        for record in records {
            let line = line(record, &time);
            match way.queue.keep {
                true => way.queue.keep(line),
                false => way.queue.push(line, now),
            }
        }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if let Some(way) = self.way.as_ref().filter(|_| self.reserved > 0) {
            way.queue.state().reserved -= self.reserved;
            way.queue.drained.notify_all();
        }
    }
}

/// The thread is told to write what waits, and to end.
impl Drop for Way {
    fn drop(&mut self) {
        self.queue.state().closed = true;
        self.queue.more.notify_all();
    }
}

/// What waits for the thread.
struct Queue {
    /// `onFailure: deny`: what was accepted is tried again until it is written.
    keep: bool,
    state: Mutex<State>,
    /// Something for the thread to do.
    more: Condvar,
    /// The thread wrote something, or could not; or places were given back.
    drained: Condvar,
}

#[derive(Default)]
struct State {
    /// The first one is being written.
    waiting: VecDeque<Arc<[u8]>>,
    /// Places that are taken by deliveries under way.
    reserved: usize,
    /// Somebody has waited in vain for the first one to be written: nobody else does, until it is.
    stuck: bool,
    /// Why the last write failed; `None`: it did not.
    failure: Option<String>,
    dropped: u64,
    told: Option<Mono>,
    untold: u64,
    closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line, if there is room.
    fn push(&self, line: Arc<[u8]>, now: Mono) {
        let mut state = self.state();
        if state.waiting.len() + state.reserved < limits::AUDIT_WAITING {
            state.waiting.push_back(line);
            self.more.notify_one();
            return;
        }
        self.more.notify_one(); // it tries again now, and not when its pause is over
        state.dropped += 1;
        let complaint = state.complain(now);
        drop(state);
        complain(complaint, "too many records wait to be written", self.keep);
    }

    /// Takes a line for which a place was reserved.
    fn keep(&self, line: Arc<[u8]>) {
        self.state().waiting.push_back(line);
        self.more.notify_one();
    }

    /// Takes so many places, once every line before has been written and there is room. More than there ever is has it alone.
    fn reserve(&self, places: usize, now: Mono) -> Result<()> {
        let must_wait = |state: &mut State| {
            let crowded = state.reserved > 0 && state.reserved + places > limits::AUDIT_WAITING;
            state.failure.is_none() && !state.stuck && (!state.waiting.is_empty() || crowded)
        };
        self.more.notify_one(); // after a failure it tries again now
        let waited = self
            .drained
            .wait_timeout_while(self.state(), limits::AUDIT_LATE, must_wait);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        let why = match &state.failure {
            Some(failure) => failure.clone(),
            None if waited.timed_out() && state.waiting.is_empty() => {
                "too many deliveries are under way".to_owned()
            }
            None if waited.timed_out() || state.stuck => {
                state.stuck = true;
                "a record has waited too long to be written".to_owned()
            }
            None => {
                state.reserved += places;
                return Ok(());
            }
        };
        let complaint = state.complain(now);
        drop(state);
        complain(complaint, &why, self.keep);
        Err(Error::new(&codes::AUDIT_UNAVAILABLE).detail(why))
    }

    /// The thread: writes line after line, until nobody can hand over any more.
    ///
    /// 1. Wait for a line. It stays at the head of the queue while it is written, so that `flush` sees it.
    /// 2. Write it, without the lock.
    /// 3. Written: it is done. Not: it is dropped and the next one tried, or (`keep`) tried again after a pause, which ends early
    ///    when somebody hands a record over.
    fn write_all(&self, mut sink: Sink, clock: &dyn Clock) {
        loop {
            let idle = |state: &mut State| state.waiting.is_empty() && !state.closed;
            let waited = self.more.wait_while(self.state(), idle); // 1
            let state = waited.unwrap_or_else(PoisonError::into_inner);
            let Some(line) = state.waiting.front().cloned() else {
                return; // closed, and all is written
            };
            drop(state);
            let written = sink.write(&line); // 2
            tracing::trace!(ok = written.is_ok(), "an audit record was written");
            let mut state = self.state();
            let failed = match written {
                Ok(()) => {
                    state.finish(&line);
                    if state.failure.take().is_some() && state.told.is_some() {
                        tracing::warn!(dropped = state.dropped, "the audit log works again");
                    }
                    None
                }
                Err(error) => Some(error.to_string()),
            };
            let Some(why) = failed else {
                self.drained.notify_all();
                continue;
            };
            state.failure = Some(why.clone()); // 3
            if !self.keep {
                state.finish(&line);
                state.dropped += 1;
            }
            let complaint = state.complain(clock.now());
            self.drained.notify_all();
            let closed = state.closed;
            if self.keep && !closed {
                let _ = self.more.wait_timeout(state, limits::AUDIT_RETRY);
            } else {
                drop(state);
            }
            complain(complaint, &why, self.keep);
            if self.keep && closed {
                return;
            }
        }
    }
}

impl State {
    /// `line` is no longer to be written. It may be gone already: a flush has given it up.
    fn finish(&mut self, line: &Arc<[u8]>) {
        self.stuck = false;
        let first = self.waiting.front();
        if first.is_some_and(|first| Arc::ptr_eq(first, line)) {
            self.waiting.pop_front();
        }
    }

    /// One more that is not on record. `Some`: worth a line in the log, for so many.
    fn complain(&mut self, now: Mono) -> Option<u64> {
        self.untold += 1;
        let due = |told: Mono| now.since(told) >= limits::WARN_INTERVAL;
        if !self.told.is_none_or(due) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

fn complain(records: Option<u64>, why: &str, keep: bool) {
    let Some(records) = records else {
        return;
    };
    if keep {
        tracing::error!(
            records,
            why,
            "the audit log cannot be written; deliveries are refused"
        );
    } else {
        tracing::warn!(
            records,
            why,
            "the audit log cannot be written; records are dropped"
        );
    }
}

/// Where lines go.
struct Sink {
    /// `None`: a stream, which is never opened anew.
    path: Option<PathBuf>,
    file: Option<File>,
    /// A line was written in part: the next one begins on a line of its own.
    torn: bool,
}

impl Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if let Some(path) = &self.path {
            let here = |file: &File| {
                let (there, ours) = (path.metadata().ok()?, file.metadata().ok()?);
                Some((there.dev(), there.ino()) == (ours.dev(), ours.ino()))
            };
            if self.file.as_ref().and_then(here) != Some(true) {
                self.file = Some(open(path)?);
                self.torn = false;
            }
        }
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        if self.torn {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    self.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// For reading too: so the opening of a FIFO that nobody reads does not wait (fifo(7)).
fn open(path: &std::path::Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).append(true).create(true).mode(0o600);
    options.open(path)
}

#[derive(Serialize)]
struct Line<'r> {
    time: &'r str,
    event: What,
    volume: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Pod<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'r str>,
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod<'r> {
    namespace: &'r str,
    name: &'r str,
    uid: &'r str,
    service_account: &'r str,
}

fn line(record: &Record, time: &str) -> Arc<[u8]> {
    let (pod, uid) = match &record.who {
        None => (None, None),
        Some(Identity::Local { uid }) => (None, Some(*uid)),
        Some(Identity::Pod(pod)) => {
            let pod = Pod {
                namespace: &pod.namespace,
                name: &pod.pod,
                uid: &pod.pod_uid,
                service_account: &pod.service_account,
            };
            (Some(pod), None)
        }
    };
    let secret = record.secret.as_ref();
    let line = Line {
        time,
        event: record.what,
        volume: &record.volume,
        pod,
        uid,
        backend: secret.map(|secret| secret.backend.as_str()),
        secret: secret.map(|secret| secret.path.as_str()),
        version: record.version.as_deref(),
        path: record.path.as_deref(),
        result: record.result(),
        code: record.code.map(|code| code.name),
    };
    let mut bytes = serde_json::to_vec(&line).unwrap_or_default(); // text and numbers: it cannot fail
    bytes.push(b'\n');
    bytes.into()
}
