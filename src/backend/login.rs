//! Logins, shared by all requests of one principal in one role, and by nobody else.
//!
//! A *session* is what a store gave for a proof: a token with its life. [`Sessions`] keeps one for each [`Key`]. Whoever needs one gets the one
//! that is there, if it is still good; else one request logs in and all others of the same key wait for it (single flight). The login is a
//! task of its own: it does not end because the one who began it is not wanted any more.
//!
//! Only [`Identity::principal`](crate::caller::Identity::principal) makes a principal, so no session is ever another's: not of a pod of another
//! service account, nor of an account that was deleted and made again under its name, which has another uid.
//!
//! A login that is refused is the refusal of one proof: who has waited for it then tries his own, once.
//!
//! A session that nobody has used for [`limits::LOGIN_IDLE`] goes, out of our memory and, by whom it was made, out of the store: the pods that it was
//! for have probably gone.
//!
//! Does not: know how to log in, when a session is good, or what it holds.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::watch;

use crate::{
    backend::Cx,
    caller::Principal,
    clock::{Clock, Mono},
    error::{Error, ErrorKind, Result, codes},
    limits,
};

/// Whose session.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// As whom the store sees us.
    pub principal: Principal,
    /// In which of its roles; "" where the method has none.
    pub role: Box<str>,
}

/// What a login brings.
pub trait Session: Send + Sync + 'static {
    /// Whether it may be used as it is; if not, it is renewed or made anew first.
    fn is_good(&self, now: Mono) -> bool;
    /// When it dies.
    fn expires_at(&self) -> Mono;
}

type Outcome<S> = Option<Result<Arc<S>>>;

enum Slot<S> {
    /// The last session, good or not, and when it was used last.
    Here(Arc<S>, Mono),
    /// Somebody logs in.
    Coming(watch::Receiver<Outcome<S>>),
}

/// Ends a session that nobody uses any more.
pub type End<S> = Box<dyn Fn(&Arc<dyn Clock>, Arc<S>) + Send + Sync>;

/// The sessions of one backend.
pub struct Sessions<S> {
    slots: Mutex<HashMap<Key, Slot<S>>>,
    end: End<S>,
    /// Somebody waits for what nobody uses.
    tidying: AtomicBool,
}

/// What a request finds.
enum Found<S> {
    Good(Arc<S>),
    /// Another one's login.
    Coming(watch::Receiver<Outcome<S>>),
    /// Its own: where to say how it ended, where to hear it, and the session that is no longer good.
    Mine(
        watch::Sender<Outcome<S>>,
        watch::Receiver<Outcome<S>>,
        Option<Arc<S>>,
    ),
}

impl<S: Session> Sessions<S> {
    /// None yet. `end` is called, outside of any request, with each that nobody has used for long.
    pub fn new(end: End<S>) -> Self {
        Self {
            slots: Mutex::new(HashMap::new()),
            end,
            tidying: AtomicBool::new(false),
        }
    }

    /// The session of `key`. Where there is no good one, `login` makes it of the one that there was; it is called once at most.
    ///
    /// # Errors
    /// Those of the login, `backend.timeout`, `backend.cancelled`.
    pub async fn get<F>(
        self: &Arc<Self>,
        cx: &Cx,
        key: &Key,
        login: impl FnOnce(Option<Arc<S>>) -> F,
    ) -> Result<Arc<S>>
    where
        F: Future<Output = Result<S>> + Send + 'static,
    {
        let mut waited = false;
        loop {
            match self.look(cx.clock.now(), key) {
                Found::Good(session) => return Ok(session),
                Found::Coming(mut coming) => match end(cx, &mut coming).await {
                    Err(error) if is_refusal(&error) && !waited => waited = true,
                    ended => return ended,
                },
                Found::Mine(told, mut coming, before) => {
                    let clock = cx.clock.clone();
                    self.begin(key.clone(), told, login(before.clone()), before, clock);
                    return end(cx, &mut coming).await;
                }
            }
        }
    }

    /// The store says that this session is dead: the next request logs in.
    pub fn forget(&self, key: &Key, dead: &Arc<S>) {
        let mut slots = self.lock();
        if matches!(slots.get(key), Some(Slot::Here(here, _)) if Arc::ptr_eq(here, dead)) {
            slots.remove(key);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn look(&self, now: Mono, key: &Key) -> Found<S> {
        let mut slots = self.lock();
        let before = match slots.get_mut(key) {
            Some(Slot::Here(session, used)) if session.is_good(now) => {
                *used = now;
                return Found::Good(session.clone());
            }
            Some(Slot::Coming(coming)) => return Found::Coming(coming.clone()),
            Some(Slot::Here(session, _)) => Some(session.clone()),
            None => None,
        };
        make_room(&mut slots, now);
        let (told, coming) = watch::channel(None);
        slots.insert(key.clone(), Slot::Coming(coming.clone()));
        Found::Mine(told, coming, before)
    }

    fn begin<F>(
        self: &Arc<Self>,
        key: Key,
        told: watch::Sender<Outcome<S>>,
        login: F,
        before: Option<Arc<S>>,
        clock: Arc<dyn Clock>,
    ) where
        F: Future<Output = Result<S>> + Send + 'static,
    {
        tracing::trace!(role = %key.role, "a login");
        let place = Place {
            sessions: self.clone(),
            key: Some(key),
            before: before.clone(),
            clock: clock.clone(),
        };
        let sessions = Arc::downgrade(self);
        tokio::spawn(async move {
            let alive = |session: &Arc<S>| session.expires_at() > clock.now();
            let outcome = match (login.await, before.filter(alive)) {
                (Ok(session), _) => Ok(Arc::new(session)),
                (Err(error), Some(before)) if passes(&error) => Ok(before),
                (Err(error), _) => Err(error),
            };
            place.take(outcome.as_ref().ok().cloned());
            told.send_replace(Some(outcome));
            if let Some(sessions) = sessions.upgrade()
                && !sessions.tidying.swap(true, Ordering::AcqRel)
            {
                tokio::spawn(tidy(Arc::downgrade(&sessions), clock));
            }
        });
    }

    /// Takes out what nobody has used for long; when to look again. `None`: there is nothing left, and nobody tidies any more.
    fn unused(&self, now: Mono) -> (Vec<Arc<S>>, Option<Mono>) {
        let mut slots = self.lock();
        let (mut unused, mut next) = (Vec::new(), None::<Mono>);
        slots.retain(|_, slot| {
            let until = match slot {
                Slot::Here(_, used) => used.after(limits::LOGIN_IDLE),
                Slot::Coming(_) => now.after(limits::LOGIN_IDLE),
            };
            match slot {
                Slot::Here(session, _) if until <= now => unused.push(session.clone()),
                Slot::Here(..) | Slot::Coming(_) => {
                    next = Some(next.map_or(until, |next| next.min(until)));
                    return true;
                }
            }
            false
        });
        if next.is_none() {
            self.tidying.store(false, Ordering::Release); // under the lock: who puts one in later finds it so
        }
        (unused, next)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Slot<S>>> {
        // every change is one call of the map
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot of a login under way: it never stays behind, also when the login panics.
struct Place<S: Session> {
    sessions: Arc<Sessions<S>>,
    key: Option<Key>,
    before: Option<Arc<S>>,
    clock: Arc<dyn Clock>,
}

impl<S: Session> Place<S> {
    /// Puts a session into it. Without one, the one before stays: it may live for a while.
    fn take(mut self, session: Option<Arc<S>>) {
        self.put(session);
    }

    fn put(&mut self, session: Option<Arc<S>>) {
        let Some(key) = self.key.take() else {
            return;
        };
        let mut slots = self.sessions.lock();
        match session.or_else(|| self.before.take()) {
            Some(session) => slots.insert(key, Slot::Here(session, self.clock.now())),
            None => slots.remove(&key),
        };
    }
}

impl<S: Session> Drop for Place<S> {
    fn drop(&mut self) {
        self.put(None);
    }
}

/// Ends what nobody has used for long, as long as there is anything.
async fn tidy<S: Session>(sessions: Weak<Sessions<S>>, clock: Arc<dyn Clock>) {
    while let Some(sessions) = sessions.upgrade() {
        let (unused, next) = sessions.unused(clock.now());
        for session in unused {
            tracing::trace!("a login that nobody uses ends");
            (sessions.end)(&clock, session);
        }
        drop(sessions);
        let Some(next) = next else {
            return;
        };
        clock.sleep_until(next).await;
    }
}

/// What has died goes; if it is still too much, what dies first.
fn make_room<S: Session>(slots: &mut HashMap<Key, Slot<S>>, now: Mono) {
    slots.retain(|_, slot| !matches!(slot, Slot::Here(session, _) if session.expires_at() <= now));
    if slots.len() < limits::LOGINS {
        return;
    }
    let here = slots.iter().filter_map(|(key, slot)| match slot {
        Slot::Here(session, _) => Some((session.expires_at(), key.clone())),
        Slot::Coming(_) => None,
    });
    if let Some((_, key)) = here.min_by_key(|(at, _)| *at) {
        slots.remove(&key);
    }
}

/// A refusal is about the proof that was shown; everything else would meet the next one as well.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unauthenticated | ErrorKind::PermissionDenied
    )
}

/// What says nothing against a session that still lives: the store cannot be asked, or the proof has not come yet.
fn passes(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Unauthenticated => *error.code() == codes::IDENTITY_TOKEN_STALE,
        kind => kind != ErrorKind::PermissionDenied,
    }
}

async fn end<S>(cx: &Cx, coming: &mut watch::Receiver<Outcome<S>>) -> Result<Arc<S>> {
    tokio::select! {
        biased;
        ended = coming.wait_for(Option::is_some) => match ended {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(Error::new(&codes::BUG))),
            Err(_) => Err(Error::new(&codes::BUG).detail("a login panicked")),
        },
        () = cx.cancel.cancelled() => Err(Error::new(&codes::BACKEND_CANCELLED)),
        () = cx.clock.sleep_until(cx.deadline) => Err(Error::new(&codes::BACKEND_TIMEOUT)),
    }
}

#[cfg(test)]
mod tests;
