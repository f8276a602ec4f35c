//! The audit log: one JSON line for each delivery, denial and removal (contract section 5).
//!
//! A [`Record`] says who, what, which version, when; never a value, or a length or hash of one. It becomes a line when it is handed
//! over, with the time of that moment, and waits in a bounded queue for a thread of its own that writes: no publish waits for a disk
//! or for whoever reads our stdout.
//!
//! When the queue is full or the log cannot be written, `onFailure` decides. `drop`: what is lost is counted ([`Audit::dropped`]).
//! `deny`: no further delivery is let through ([`Audit::record`] refuses it) until the log works again, and what waits is kept and
//! written then. The same when a record has waited for [`limits::AUDIT_LATE`]: whoever reads our stdout has stopped. A line is on record when the kernel has it: nothing is synced, and a kill loses what still waits.
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
    /// The secret, `backend:path`; "" where it is about the whole volume.
    pub secret: String,
    /// The version delivered.
    pub version: Option<String>,
    /// Why not.
    pub code: Option<&'static Code>,
}

impl Record {
    /// Somebody was refused a volume, because of this error.
    pub fn denial(volume: &VolumeId, who: Option<Identity>, error: &Error) -> Self {
        Self {
            what: What::Deny,
            volume: volume.to_string(),
            who,
            secret: String::new(),
            version: None,
            code: Some(error.code()),
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

    /// Hands a record over; never waits.
    ///
    /// # Errors
    /// `audit.unavailable`, with `onFailure: deny` only: a delivery must not be. A denial or removal happens all the same, and its
    /// record counts as dropped.
    pub fn record(&self, record: Record) -> Result<()> {
        let Some(way) = &self.0 else {
            return Ok(());
        };
        if record.what == What::Deliver && !way.deliveries {
            return Ok(());
        }
        let line = line(&record, &way.clock.wall().to_rfc3339());
        way.queue
            .push(line, record.what == What::Deliver, way.clock.now())
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
    /// The thread wrote something, or could not.
    drained: Condvar,
}

#[derive(Default)]
struct State {
    /// The first one is being written.
    waiting: VecDeque<Arc<[u8]>>,
    /// When the first one became the first.
    since: Option<Mono>,
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

    fn push(&self, line: Arc<[u8]>, delivery: bool, now: Mono) -> Result<()> {
        let mut state = self.state();
        let must_be = self.keep && delivery;
        let full = state.waiting.len() >= limits::AUDIT_WAITING;
        let late = |since: Mono| now.since(since) > limits::AUDIT_LATE;
        let why = match &state.failure {
            Some(failure) if must_be => Some(failure.clone()),
            _ if must_be && state.since.is_some_and(late) => {
                Some("a record has waited too long to be written".to_owned())
            }
            _ if full => Some("too many records wait to be written".to_owned()),
            _ => None,
        };
        let Some(why) = why else {
            if state.waiting.is_empty() {
                state.since = Some(now);
            }
            state.waiting.push_back(line);
            self.more.notify_one();
            return Ok(());
        };
        self.more.notify_one(); // it tries again now, and not when its pause is over
        if !must_be {
            state.dropped += 1;
        }
        let complaint = state.complain(now);
        drop(state);
        complain(complaint, &why, self.keep);
        if self.keep {
            return Err(Error::new(&codes::AUDIT_UNAVAILABLE).detail(why));
        }
        Ok(())
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
            let mut state = self.state();
            let failed = match written {
                Ok(()) => {
                    state.finish(&line, clock.now());
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
                state.finish(&line, clock.now());
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
    fn finish(&mut self, line: &Arc<[u8]>, now: Mono) {
        let first = self.waiting.front();
        if first.is_some_and(|first| Arc::ptr_eq(first, line)) {
            self.waiting.pop_front();
            self.since = (!self.waiting.is_empty()).then_some(now);
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
    let secret = record.secret.split_once(':');
    let line = Line {
        time,
        event: record.what,
        volume: &record.volume,
        pod,
        uid,
        backend: secret.map(|(backend, _)| backend),
        secret: secret.map(|(_, path)| path),
        version: record.version.as_deref(),
        result: match record.what {
            What::Deny => "denied",
            What::Deliver | What::Remove => "ok",
        },
        code: record.code.map(|code| code.name),
    };
    let mut bytes = serde_json::to_vec(&line).unwrap_or_default(); // text and numbers: it cannot fail
    bytes.push(b'\n');
    bytes.into()
}
