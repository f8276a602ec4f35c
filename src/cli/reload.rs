//! The configuration of a running `secretfs node`, taken over when its file changes.
//!
//! A file is looked at again when it or what leads to it changes: it is written in place, replaced by a rename, or a ConfigMap's `..data`
//! is swapped. So its directory is watched as well as itself and the directory that its links lead to; SIGHUP says "look" where
//! no watch sees it. Only a text that stays the same for a moment counts.
//!
//! A new configuration holds as a whole or not at all. One that cannot be read, has problems or changes what cannot change is told
//! in the log, each problem with its line and its fix, and the running one stays. What applies a change is the caller's.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use inotify::WatchMask;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    backend::registry,
    cli::check,
    clock::{Clock, Wall},
    config::{self, Change, Config, Env},
    error::{Error, Result, codes},
    limits,
    observe::log,
    spec::Problem,
    sys::inotify::Watcher,
};

/// A new configuration to apply.
#[derive(Debug)]
pub struct Reload {
    /// All of it.
    pub config: Config,
    /// What of it is different; not empty.
    pub change: Change,
}

/// How the last look ended.
#[derive(Clone, Debug)]
pub struct LastReload {
    /// How many texts were judged since the start.
    pub judged: u64,
    /// The running configuration is what the file says.
    pub successful: bool,
    /// When it was so last.
    pub successful_at: Wall,
    /// Why not.
    pub error: Option<Error>,
    /// All problems of the refused text.
    pub problems: Vec<Problem>,
}

/// Follows a configuration's file.
pub struct Reloader {
    file: PathBuf,
    env: Env,
    clock: Arc<dyn Clock>,
    running: Config,
    /// What was running before, and since when what the file said was.
    before: Option<(Config, Wall)>,
    /// The text that was judged last.
    judged: Option<String>,
    /// Something has changed since then. True at first: the file may have changed since it was read for the start.
    dirty: bool,
    watcher: Option<Watcher>,
    /// The directory is not watched.
    blind: bool,
    hangup: Signal,
    last: watch::Sender<LastReload>,
}

impl Reloader {
    /// Follows `file`, which said `initial`. Within a runtime. From now on SIGHUP does not end the process, and the log's level is
    /// what the configuration says.
    ///
    /// # Errors
    /// `node.io`: signals cannot be listened to.
    pub fn new(file: PathBuf, initial: Config, env: Env, clock: Arc<dyn Clock>) -> Result<Self> {
        let hangup = signal(SignalKind::hangup()).map_err(|error| {
            Error::new(&codes::NODE_IO)
                .step("listen for SIGHUP")
                .source(error)
        })?;
        log::follow(initial.log_level);
        let last = watch::Sender::new(LastReload {
            judged: 0,
            successful: true,
            successful_at: clock.wall(),
            error: None,
            problems: Vec::new(),
        });
        Ok(Self {
            file,
            env,
            clock,
            running: initial,
            before: None,
            judged: None,
            dirty: true,
            watcher: None,
            blind: false,
            hangup,
            last,
        })
    }

    /// How the last look ended, now and from now on.
    pub fn last(&self) -> watch::Receiver<LastReload> {
        self.last.subscribe()
    }

    /// Waits for a configuration that changes something and may. Dropping the future loses nothing. The log's level has been
    /// changed already; the rest is the caller's.
    ///
    /// 1. Wait until something has happened.
    /// 2. Wait until the text stays the same.
    /// 3. Judge it, unless it was judged before.
    pub async fn next(&mut self) -> Reload {
        loop {
            if !self.dirty {
                self.something().await; // 1
                self.dirty = true;
            }
            let text = self.settled().await; // 2
            self.dirty = false;
            if let Some(reload) = self.judge(text) {
                return reload; // 3
            }
        }
    }

    /// What [`Self::next`] gave last could not be applied: nothing of it is in force, and the configuration before is the running one. SIGHUP tries
    /// again.
    pub fn withdraw(&mut self, error: Error) {
        let Some((former, successful_at)) = self.before.take() else {
            return;
        };
        tracing::error!(%error, "the new configuration cannot be applied; the running one stays");
        log::follow(former.log_level);
        self.running = former;
        self.last.send_modify(|last| {
            last.successful = false;
            last.successful_at = successful_at;
            last.error = Some(error);
        });
    }

    async fn something(&mut self) {
        let Self {
            watcher,
            clock,
            hangup,
            blind,
            ..
        } = self;
        let seen = async {
            match watcher {
                Some(watcher) => watcher.events().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let poll = async {
            if *blind {
                let at = clock.now().after(limits::RELOAD_POLL);
                clock.sleep_until(at).await;
            } else {
                std::future::pending().await
            }
        };
        let (works, asked) = tokio::select! {
            works = seen => (works, false),
            _ = hangup.recv() => (true, true),
            () = poll => (true, false),
        };
        if !works {
            self.watcher = None; // it is made anew
        }
        if asked {
            self.judged = None; // what was said of it is said again
        }
    }

    async fn settled(&mut self) -> Result<(String, String)> {
        let mut before = None;
        loop {
            self.watch(); // before reading, so that no change falls between
            let text = read(&self.file);
            let now = text.as_ref().ok().map(|(_, text)| text.clone());
            if before.as_ref() == Some(&now) {
                return text;
            }
            before = Some(now);
            let at = self.clock.now().after(limits::RELOAD_SETTLE);
            self.clock.sleep_until(at).await;
        }
    }

    /// Watches what leads to the file, as it is now; what is watched already stays so.
    fn watch(&mut self) {
        if self.watcher.is_none() {
            self.watcher = Watcher::new().ok();
        }
        let dir = parent(&self.file);
        let real = self.file.canonicalize().ok();
        let entries = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE_SELF
            | WatchMask::DELETE_SELF;
        let Some(watcher) = &self.watcher else {
            self.blind = true;
            return;
        };
        self.blind = watcher.add(&dir, entries).is_err();
        if let Some(real) = real {
            // no failure of these two is told: the file may just go, and what replaces it is seen above
            let _ = watcher.add(&parent(&real), entries);
            let _ = watcher.add(&real, WatchMask::CLOSE_WRITE | WatchMask::ATTRIB);
        }
    }

    fn judge(&mut self, text: Result<(String, String)>) -> Option<Reload> {
        let (file, text) = match text {
            Ok(read) => read,
            Err(error) => {
                self.unreadable(error);
                return None;
            }
        };
        if self.judged.as_ref() == Some(&text) {
            return None;
        }
        let parsed = Config::parse(&text, &self.env, &registry::problems);
        let judged = parsed.and_then(|new| Ok((config::change(&self.running, &new)?, new)));
        self.judged = Some(text);
        let (change, new) = match judged {
            Ok(good) => good,
            Err(problems) => {
                self.refuse(&file, problems);
                return None;
            }
        };
        let former = std::mem::replace(&mut self.running, new.clone());
        self.before = Some((former, self.last.borrow().successful_at));
        let now = self.clock.wall();
        self.last.send_modify(|last| {
            last.judged += 1;
            last.successful = true;
            last.successful_at = now;
            last.error = None;
            last.problems.clear();
        });
        if change.is_empty() {
            tracing::info!(
                file,
                "the configuration was read; nothing of it has changed"
            );
            return None;
        }
        log::follow(new.log_level);
        let Change {
            backends,
            policy,
            limits,
            log_level,
        } = change;
        tracing::info!(
            file,
            backends,
            policy,
            limits,
            log_level,
            "the configuration has changed"
        );
        Some(Reload {
            config: new,
            change,
        })
    }

    fn unreadable(&mut self, error: Error) {
        self.judged = None; // when it is back it is judged, and this is over
        if self.last.borrow().error.is_none() {
            let file = self.file.display();
            tracing::error!(%file, %error, "the configuration cannot be read; the running one stays");
        }
        self.last.send_modify(|last| {
            last.successful = false;
            last.error = Some(error);
            last.problems.clear();
        });
    }

    fn refuse(&mut self, file: &str, problems: Vec<Problem>) {
        for problem in &problems {
            tracing::error!(
                place = format!("{file}:{}:{}", problem.at.line, problem.at.column),
                field = problem.field,
                problem = problem.message,
                fix = problem.help.as_deref().unwrap_or(problem.code.fix),
                code = problem.code.name,
                "the new configuration is wrong"
            );
        }
        let count = problems.len();
        tracing::error!(
            file,
            problems = count,
            "the new configuration is refused; the running one stays"
        );
        self.last.send_modify(|last| {
            last.judged += 1;
            last.successful = false;
            last.error = None;
            last.problems = problems;
        });
    }
}

/// A pipe (`--config <(...)`) cannot be read again: to open it could wait without end.
fn read(path: &Path) -> Result<(String, String)> {
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return Err(Error::new(&codes::CONFIG_UNREADABLE)
            .object(path.display())
            .detail("it is not a file, so its changes cannot be followed"));
    }
    check::read(path)
}

/// The directory of a path, which may be relative.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
