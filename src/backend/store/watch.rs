//! Tells of changes in a store, by inotify: one instance for all objects of a store, however many are watched.
//!
//! Four kinds of directories are watched, each for what would otherwise be missed:
//!
//! ```text
//! the store's parent (or the nearest directory above that is there)   the store, or a way to it, comes or goes
//! the store          `secrets`, `store.json` come or go
//! secrets/           a secret's directory comes or goes
//! secrets/a%b/       a version comes or goes
//! ```
//!
//! A change of the first three makes everything above anew: watches are on inodes, and the path may lead to others now.
//! Everybody is told then, and also when his watch begins, because what changed before it was seen by nobody.
//!
//! A *listener* is one running `watch`. The first one starts the hub, a task that owns the inotify instance; the hub ends
//! when the last one has left. No lock is held across an await.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use inotify::{EventMask, EventOwned, WatchDescriptor, WatchMask};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Result, codes},
    store::{self, Name},
    sys::inotify::Watcher,
};

/// How often the way to the store may change while it is being watched, before we give up.
const TRIES: usize = 64;

/// Changes of one store.
pub struct Tidings {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    /// A listener came or left.
    changed: Notify,
}

#[derive(Default)]
struct State {
    hub_runs: bool,
    next_id: u64,
    listeners: BTreeMap<u64, Listener>,
}

struct Listener {
    name: Name,
    /// Whether it has been told that its watch has begun.
    begun: bool,
    failure: Option<Error>,
    wake: Arc<Notify>,
}

/// A listener's place in the list; it leaves with this.
struct Seat<'a> {
    shared: &'a Shared,
    id: u64,
    wake: Arc<Notify>,
}

impl Tidings {
    /// Of the store at `dir`, which need not be there.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            shared: Arc::new(Shared {
                dir,
                state: Mutex::default(),
                changed: Notify::new(),
            }),
        }
    }

    /// Calls `hint` once at the beginning and after each change of the secret, several changes at once being one, until
    /// it is cancelled.
    ///
    /// # Errors
    /// `store.io`: there is no more inotify to be had, or a directory may not be read.
    pub async fn watch(
        &self,
        name: &Name,
        cancel: &CancellationToken,
        hint: &(dyn Fn() + Send + Sync),
    ) -> Result<()> {
        let seat = self.take_seat(name);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = seat.wake.notified() => {}
            }
            match self.shared.failure(seat.id) {
                Some(error) => return Err(error),
                None => hint(),
            }
        }
    }

    fn take_seat(&self, name: &Name) -> Seat<'_> {
        tracing::trace!(%name, "a watch of the store begins");
        let wake = Arc::new(Notify::new());
        let mut state = self.shared.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.listeners.insert(
            id,
            Listener {
                name: name.clone(),
                begun: false,
                failure: None,
                wake: wake.clone(),
            },
        );
        if !std::mem::replace(&mut state.hub_runs, true) {
            tokio::spawn(run_hub(self.shared.clone()));
        }
        drop(state);
        self.shared.changed.notify_one();
        Seat {
            shared: &self.shared,
            id,
            wake,
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.shared.lock().listeners.remove(&self.id);
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // nothing that can panic happens under it
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self, id: u64) -> Option<Error> {
        self.lock().listeners.get(&id)?.failure.clone()
    }

    /// The names that are listened to; `None`, and the hub counts as ended, if there is none.
    fn wanted(&self) -> Option<BTreeSet<Name>> {
        let mut state = self.lock();
        let listening = state.listeners.values().filter(|its| its.failure.is_none());
        let names: BTreeSet<_> = listening.map(|its| its.name.clone()).collect();
        state.hub_runs = !names.is_empty();
        state.hub_runs.then_some(names)
    }

    /// Tells the listeners to these names that their watch has begun. One who came meanwhile is not among them, and has
    /// rung `changed`.
    fn begin(&self, followed: &BTreeSet<Name>) {
        let mut state = self.lock();
        let listeners = state.listeners.values_mut();
        for its in listeners.filter(|its| followed.contains(&its.name)) {
            if !std::mem::replace(&mut its.begun, true) {
                its.wake.notify_one();
            }
        }
    }

    fn tell(&self, seen: &Seen) {
        for its in self.lock().listeners.values() {
            if seen.anew || seen.names.contains(&its.name) {
                its.wake.notify_one();
            }
        }
    }

    /// Ends all watches with this error.
    fn fail(&self, error: &Error) {
        let mut state = self.lock();
        state.hub_runs = false;
        for its in state.listeners.values_mut() {
            its.failure = Some(error.clone());
            its.wake.notify_one();
        }
    }
}

async fn run_hub(shared: Arc<Shared>) {
    if let Err(error) = serve(&shared).await {
        let limit = match error.raw_os_error() {
            Some(code) if code == rustix::io::Errno::MFILE.raw_os_error() => {
                " (raise fs.inotify.max_user_instances)"
            }
            Some(code) if code == rustix::io::Errno::NOSPC.raw_os_error() => {
                " (raise fs.inotify.max_user_watches)"
            }
            _ => "",
        };
        let error = Error::new(&codes::STORE_IO)
            .object(shared.dir.display())
            .detail(format!("the store cannot be watched for changes{limit}"))
            .source(error);
        shared.fail(&error);
    }
}

/// 1. Watch the way to the store, and the store.
/// 2. Watch each secret that somebody listens to, and tell those who have not been told yet.
/// 3. Wait for events or for another set of listeners. Tell whom it concerns; begin anew if the way has changed.
async fn serve(shared: &Shared) -> io::Result<()> {
    let mut eyes = Eyes::new(&shared.dir)?; // 1
    while let Some(wanted) = shared.wanted() {
        eyes.follow(&wanted)?; // 2
        shared.begin(&wanted);
        let events = tokio::select! { // 3
            () = shared.changed.notified() => continue,
            events = eyes.watcher.events() => events?,
        };
        let mut seen = Seen::default();
        for event in events {
            eyes.interpret(event, &mut seen);
        }
        if seen.anew {
            eyes = Eyes::new(&shared.dir)?;
            if let Some(wanted) = shared.wanted() {
                eyes.follow(&wanted)?;
            }
        }
        shared.tell(&seen);
    }
    Ok(())
}

/// What some events mean.
#[derive(Default)]
struct Seen {
    /// The way to the store has changed; so may everything.
    anew: bool,
    /// Secrets that have changed.
    names: BTreeSet<Name>,
}

/// What is watched.
struct Eyes {
    watcher: Watcher,
    dir: PathBuf,
    places: HashMap<WatchDescriptor, Place>,
    /// The secrets that are followed, with their watch if their directory is there.
    secrets: BTreeMap<Name, Option<WatchDescriptor>>,
}

/// What is at a watch.
enum Place {
    /// A directory above: this entry leads to the store.
    Above(OsString),
    /// The store's own directory.
    Store,
    /// The directory of all secrets.
    Secrets,
    /// A secret's.
    Secret(Name),
}

impl Eyes {
    fn new(dir: &Path) -> io::Result<Self> {
        let mut eyes = Self {
            watcher: Watcher::new()?,
            dir: dir.into(),
            places: HashMap::new(),
            secrets: BTreeMap::new(),
        };
        // From above to below: whatever is exchanged meanwhile is exchanged within a directory that is watched by then.
        eyes.watch_above()?;
        eyes.add(&eyes.dir.clone(), Place::Store)?;
        eyes.add(&eyes.dir.join("secrets"), Place::Secrets)?;
        Ok(eyes)
    }

    /// Watches the store's parent, or the nearest directory above that is there.
    fn watch_above(&mut self) -> io::Result<()> {
        let dir = self.dir.clone();
        'again: for _ in 0..TRIES {
            let mut below = dir.as_path();
            loop {
                let Some(entry) = below.file_name() else {
                    return Ok(()); // `/`, or `..`: nothing above that could be exchanged
                };
                let above = match below.parent() {
                    Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                    Some(parent) => parent,
                    None => return Ok(()),
                };
                if self.add(above, Place::Above(entry.into()))?.is_none() {
                    below = above;
                } else if below == dir || !below.exists() {
                    return Ok(());
                } else {
                    continue 'again; // it has come to be since we looked for it
                }
            }
        }
        Err(io::Error::other("the way to the store keeps changing"))
    }

    /// Watches the secrets that are wanted, and no others.
    fn follow(&mut self, wanted: &BTreeSet<Name>) -> io::Result<()> {
        let dropped: Vec<_> = self
            .secrets
            .keys()
            .filter(|name| !wanted.contains(*name))
            .cloned()
            .collect();
        for name in dropped {
            self.forget(&name);
        }
        for name in wanted {
            if !self.secrets.contains_key(name) {
                let path = store::secret_dir(&self.dir, name);
                let watch = self.add(&path, Place::Secret(name.clone()))?;
                self.secrets.insert(name.clone(), watch);
            }
        }
        Ok(())
    }

    /// Ends the watch of a secret's directory, so that `follow` looks for it anew.
    fn forget(&mut self, name: &Name) {
        if let Some(watch) = self.secrets.remove(name).flatten() {
            self.places.remove(&watch);
            self.watcher.remove(watch);
        }
    }

    /// Watches a directory; `None` if it is not there.
    fn add(&mut self, path: &Path, place: Place) -> io::Result<Option<WatchDescriptor>> {
        let mask = WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        match self.watcher.add(path, mask) {
            Ok(watch) => {
                self.places.insert(watch.clone(), place);
                Ok(Some(watch))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn interpret(&mut self, event: EventOwned, seen: &mut Seen) {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            seen.anew = true;
            return;
        }
        let Some(place) = self.places.get(&event.wd) else {
            return; // of a watch that we have ended
        };
        let ended =
            EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT;
        let ended = event.mask.intersects(ended);
        let entry = event.name.unwrap_or_default();
        match place {
            Place::Above(way) => seen.anew |= ended || entry == *way,
            Place::Store => seen.anew |= ended || entry == "secrets" || entry == "store.json",
            Place::Secrets => {
                seen.anew |= ended;
                let name = entry.to_str().and_then(Name::from_dir);
                if let Some(name) = name.filter(|name| self.secrets.contains_key(name)) {
                    self.forget(&name);
                    seen.names.insert(name);
                }
            }
            Place::Secret(name) => {
                let name = name.clone();
                if ended {
                    self.forget(&name);
                }
                let entry = entry.to_string_lossy();
                if ended || entry.ends_with(".age") || entry.ends_with(".removed") {
                    seen.names.insert(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GUARD: Duration = Duration::from_secs(20);

    /// What the next events mean.
    async fn next(eyes: &mut Eyes) -> Seen {
        let mut seen = Seen::default();
        for event in eyes.watcher.events().await.unwrap() {
            eyes.interpret(event, &mut seen);
        }
        seen
    }

    #[tokio::test]
    async fn only_what_is_listened_to_is_seen_and_a_change_of_the_way_is_seen_by_all() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("above/store");
        std::fs::create_dir_all(dir.join("secrets/a%b")).unwrap();
        let name = |text| Name::parse(text).unwrap();
        let mut eyes = Eyes::new(&dir).unwrap();
        let wanted = [name("a/b"), name("none/yet")].into();
        eyes.follow(&wanted).unwrap();
        assert_eq!(eyes.places.len(), 4);

        // not ours: other secrets, the lock, `.new`, files beside the store
        for path in [
            "../x",
            ".lock",
            ".new",
            "secrets/other",
            "secrets/a%b/notes",
        ] {
            std::fs::write(dir.join(path), b"").unwrap();
        }
        let seen = next(&mut eyes).await;
        assert!(!seen.anew && seen.names.is_empty(), "{:?}", seen.names);

        std::fs::write(dir.join("secrets/a%b/1.age"), b"").unwrap();
        let seen = next(&mut eyes).await;
        assert!(!seen.anew);
        assert_eq!(seen.names, [name("a/b")].into());

        std::fs::create_dir(dir.join("secrets/none%yet")).unwrap();
        let seen = next(&mut eyes).await;
        assert_eq!(seen.names, [name("none/yet")].into());
        eyes.follow(&wanted).unwrap();
        assert_eq!(eyes.places.len(), 5, "the new directory is watched");

        eyes.follow(&[name("a/b")].into()).unwrap();
        assert_eq!(eyes.places.len(), 4, "and not any more");

        std::fs::rename(dir.join("secrets"), dir.join("elsewhere")).unwrap();
        assert!(next(&mut eyes).await.anew);
        std::fs::rename(&dir, root.path().join("above/other")).unwrap();
        assert!(next(&mut eyes).await.anew);
    }

    #[tokio::test]
    async fn the_nearest_directory_above_is_watched_until_the_store_is_there() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("one/two/store");
        let mut eyes = Eyes::new(&dir).unwrap();
        assert_eq!(eyes.places.len(), 1);
        std::fs::create_dir(root.path().join("unrelated")).unwrap();
        assert!(!next(&mut eyes).await.anew);
        for path in ["one", "one/two", "one/two/store", "one/two/store/secrets"] {
            std::fs::create_dir(root.path().join(path)).unwrap();
            assert!(next(&mut eyes).await.anew, "{path}");
            eyes = Eyes::new(&dir).unwrap();
        }
        assert_eq!(eyes.places.len(), 3);
    }

    #[tokio::test]
    async fn the_hub_ends_with_the_last_listener_and_begins_with_the_next() {
        let root = tempfile::tempdir().unwrap();
        let tidings = Tidings::new(root.path().into());
        let name = Name::parse("a").unwrap();
        for _ in 0..3 {
            let cancel = CancellationToken::new();
            let hint = || cancel.cancel();
            let watch = tidings.watch(&name, &cancel, &hint);
            tokio::time::timeout(GUARD, watch).await.unwrap().unwrap();
            let ended = async {
                while tidings.shared.lock().hub_runs {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(GUARD, ended)
                .await
                .expect("it runs on");
            assert!(tidings.shared.lock().listeners.is_empty());
        }
    }

    #[tokio::test]
    async fn a_failure_ends_every_watch_and_the_next_one_begins_anew() {
        let root = tempfile::tempdir().unwrap();
        let tidings = Tidings::new(root.path().into());
        let name = Name::parse("a").unwrap();
        let (cancel, began) = (CancellationToken::new(), Notify::new());
        let hint = || began.notify_one();
        let fail = async {
            began.notified().await;
            tidings.shared.fail(&Error::new(&codes::STORE_IO));
        };
        let both = async { tokio::join!(tidings.watch(&name, &cancel, &hint), fail) };
        let (watched, ()) = tokio::time::timeout(GUARD, both).await.unwrap();
        assert_eq!(watched.unwrap_err().code(), &codes::STORE_IO);
        let again = || cancel.cancel();
        let watch = tidings.watch(&name, &cancel, &again);
        tokio::time::timeout(GUARD, watch).await.unwrap().unwrap();
    }

    #[test]
    fn only_those_who_are_followed_are_told_that_their_watch_has_begun() {
        let name = |text: &str| Name::parse(text).unwrap();
        let shared = Shared {
            dir: PathBuf::new(),
            state: Mutex::default(),
            changed: Notify::new(),
        };
        for (id, text) in ["a", "late"].into_iter().enumerate() {
            let listener = Listener {
                name: name(text),
                begun: false,
                failure: None,
                wake: Arc::default(),
            };
            shared.lock().listeners.insert(id as u64, listener);
        }
        let begun = || -> Vec<bool> { shared.lock().listeners.values().map(|l| l.begun).collect() };
        shared.begin(&BTreeSet::from([name("a")]));
        assert_eq!(begun(), [true, false], "a change before it is lost");
        shared.begin(&BTreeSet::from([name("a"), name("late")]));
        assert_eq!(begun(), [true, true]);
    }
}
