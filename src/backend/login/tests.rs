use std::{
    sync::atomic::{AtomicU64, AtomicUsize},
    time::Duration,
};

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    caller::{AsksAs, Identity, PodIdentity},
    clock::SystemClock,
};

/// A login, of whom, and when it is good and dead.
struct Token {
    of: Principal,
    good_until: Mono,
    dead_at: Mono,
}

impl Session for Token {
    fn is_good(&self, now: Mono) -> bool {
        now < self.good_until
    }

    fn expires_at(&self) -> Mono {
        self.dead_at
    }
}

fn cx() -> Cx {
    Cx {
        deadline: SystemClock.now().after(Duration::from_secs(20)),
        cancel: CancellationToken::new(),
        clock: Arc::new(SystemClock),
    }
}

fn pod(account: &str, uid: &str, name: &str) -> Identity {
    Identity::Pod(PodIdentity {
        namespace: "n".into(),
        pod: name.into(),
        pod_uid: format!("{name}-uid").into(),
        service_account: account.into(),
        service_account_uid: Some(uid.into()),
    })
}

/// Sessions that nobody has to end.
fn sessions() -> Arc<Sessions<Token>> {
    Arc::new(Sessions::new(Box::new(|_, _| {})))
}

fn key(who: &Identity, role: &str) -> Key {
    Key {
        principal: who.principal(AsksAs::ServiceAccount),
        role: role.into(),
    }
}

fn token(of: &Key, good: u64, dead: u64) -> Token {
    let now = SystemClock.now();
    Token {
        of: of.principal.clone(),
        good_until: now.after(Duration::from_secs(good)),
        dead_at: now.after(Duration::from_secs(dead)),
    }
}

#[tokio::test]
async fn a_hundred_requests_of_one_account_make_one_login() {
    let sessions = sessions();
    let made = Arc::new(AtomicUsize::new(0));
    let mut all = tokio::task::JoinSet::new();
    for number in 0..100 {
        let (sessions, made) = (sessions.clone(), made.clone());
        all.spawn(async move {
            let key = key(&pod("a", "1", &format!("p{number}")), "r");
            let of = key.clone();
            let login = move |_| async move {
                made.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(token(&of, 60, 60))
            };
            sessions.get(&cx(), &key, login).await.is_ok()
        });
    }
    assert!(all.join_all().await.into_iter().all(|good| good));
    assert_eq!(made.load(Ordering::SeqCst), 1);
    assert_eq!(sessions.len(), 1);
}

#[tokio::test]
async fn who_waited_for_a_refused_login_tries_his_own_once() {
    let sessions = sessions();
    let key = key(&pod("a", "1", "p"), "");
    let refuse = |code| async move {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Err(Error::new(code))
    };
    let made = AtomicUsize::new(0);
    let own = |_| {
        made.fetch_add(1, Ordering::SeqCst);
        let of = key.clone();
        async move { Ok(token(&of, 60, 60)) }
    };
    let terms = cx();
    let (first, second) = tokio::join!(
        sessions.get(&terms, &key, |_| refuse(&codes::BACKEND_UNAUTHENTICATED)),
        sessions.get(&terms, &key, own)
    );
    assert!(first.is_err() && second.is_ok());
    sessions.forget(&key, &second.unwrap());
    assert!(sessions.is_empty());
    // an outage meets everybody
    let (first, second) = tokio::join!(
        sessions.get(&terms, &key, |_| refuse(&codes::BACKEND_UNAVAILABLE)),
        sessions.get(&terms, &key, own)
    );
    assert!(first.is_err() && second.is_err());
    assert_eq!(made.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_session_that_lives_stays_while_the_store_cannot_be_asked() {
    let terms = cx();
    let sessions = sessions();
    let key = key(&pod("a", "1", "p"), "");
    let of = key.clone();
    let old = sessions
        .get(&cx(), &key, |_| async move { Ok(token(&of, 0, 60)) })
        .await
        .unwrap();
    for code in [&codes::BACKEND_UNAVAILABLE, &codes::IDENTITY_TOKEN_STALE] {
        let found = sessions.get(&terms, &key, |before| {
            assert!(before.is_some());
            async move { Err(Error::new(code)) }
        });
        assert!(Arc::ptr_eq(&found.await.unwrap(), &old), "{}", code.name);
    }
    let refused = |_| async { Err(Error::new(&codes::BACKEND_UNAUTHENTICATED)) };
    assert!(sessions.get(&terms, &key, refused).await.is_err());
}

#[tokio::test]
async fn a_login_that_panics_leaves_room_for_the_next_one() {
    let terms = cx();
    let sessions = sessions();
    let key = key(&pod("a", "1", "p"), "");
    let found = sessions.get(&terms, &key, |_| async { panic!("as the test says") });
    assert_eq!(found.await.err().unwrap().code().name, "bug");
    let of = key.clone();
    let next = sessions.get(&terms, &key, |_| async move { Ok(token(&of, 60, 60)) });
    assert!(next.await.is_ok());
}

#[tokio::test]
async fn a_login_goes_on_for_others_when_who_began_it_has_gone() {
    let terms = cx();
    let sessions = sessions();
    let key = key(&pod("a", "1", "p"), "");
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let of = key.clone();
    let gone = cx();
    gone.cancel.cancel();
    let first = sessions.get(&gone, &key, |_| async move {
        let _ = wait.await;
        Ok(token(&of, 60, 60))
    });
    assert_eq!(first.await.err().unwrap().code().name, "backend.cancelled");
    go.send(()).unwrap();
    let second = sessions.get(&terms, &key, |_| async { panic!("it is there already") });
    assert!(second.await.is_ok());
}

#[tokio::test]
async fn what_dies_first_goes_when_there_are_too_many() {
    let terms = cx();
    let sessions = sessions();
    let of = |number: usize| key(&pod("a", &number.to_string(), "p"), "");
    for number in 0..=limits::LOGINS {
        let key = of(number);
        let dead = if number == 7 { 50 } else { 100 };
        let made = key.clone();
        let login = |_| async move { Ok(token(&made, 60, dead)) };
        sessions.get(&terms, &key, login).await.unwrap();
    }
    assert_eq!(sessions.len(), limits::LOGINS);
    assert!(!sessions.lock().contains_key(&of(7)));
}

/// A clock that stands still until it is moved.
struct StillClock(watch::Sender<Mono>);

#[async_trait::async_trait]
impl Clock for StillClock {
    fn now(&self) -> Mono {
        *self.0.borrow()
    }

    fn wall(&self) -> crate::clock::Wall {
        crate::clock::Wall::from_millis(0)
    }

    async fn sleep_until(&self, at: Mono) {
        let mut told = self.0.subscribe();
        let _ = told.wait_for(|now| *now >= at).await;
    }
}

#[tokio::test]
async fn a_login_that_nobody_uses_ends_and_one_that_is_used_does_not() {
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = ended.clone();
    let sessions = Arc::new(Sessions::new(Box::new(move |_, _: Arc<Token>| {
        counted.fetch_add(1, Ordering::SeqCst);
    })));
    let clock = Arc::new(StillClock(watch::Sender::new(Mono::from_nanos(0))));
    let terms = Cx {
        deadline: Mono::from_nanos(u64::MAX),
        cancel: CancellationToken::new(),
        clock: clock.clone(),
    };
    let day = |of: &Key| Token {
        of: of.principal.clone(),
        good_until: Mono::from_nanos(u64::MAX),
        dead_at: Mono::from_nanos(u64::MAX),
    };
    let [used, idle] = ["used", "idle"].map(|name| key(&pod(name, "1", "p"), ""));
    for key in [&used, &idle] {
        let made = day(key);
        assert!(
            sessions
                .get(&terms, key, |_| async move { Ok(made) })
                .await
                .is_ok()
        );
    }
    for step in 1..=4_u32 {
        clock
            .0
            .send_replace(Mono::from_nanos(0).after(limits::LOGIN_IDLE * step / 2));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let again = sessions.get(&terms, &used, |_| async { panic!("it is still there") });
        assert!(again.await.is_ok());
    }
    assert_eq!((sessions.len(), ended.load(Ordering::SeqCst)), (1, 1));
    assert!(sessions.lock().contains_key(&used));
}

proptest! {
    /// Whatever the order: what anybody gets is his own, also after an account was deleted and made again under its name.
    #[test]
    fn nobody_is_ever_given_the_session_of_another(steps in prop::collection::vec((0..3_u8, 0..3_u8, 0..2_u8, 0..4_u8), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result: Result<(), TestCaseError> = runtime.block_on(async {
            let sessions = sessions();
            let logins = Arc::new(AtomicU64::new(0));
            let mut asking = Vec::new();
            for (account, uid, role, what) in steps {
                let who = pod(&format!("a{account}"), &format!("u{uid}"), "p");
                let key = key(&who, &format!("r{role}"));
                let (sessions, logins) = (sessions.clone(), logins.clone());
                asking.push(tokio::spawn(async move {
                    let of = key.clone();
                    let login = move |_: Option<Arc<Token>>| async move {
                        logins.fetch_add(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        match what {
                            0 => Err(Error::new(&codes::BACKEND_UNAUTHENTICATED)),
                            1 => Ok(token(&of, 0, 60)),
                            _ => Ok(token(&of, 60, 60)),
                        }
                    };
                    let found = sessions.get(&cx(), &key, login).await;
                    if let (Ok(found), 3) = (&found, what) {
                        sessions.forget(&key, found);
                    }
                    found.map(|found| (found.of.clone(), key.principal))
                }));
                if uid == 0 {
                    tokio::task::yield_now().await;
                }
            }
            for one in asking {
                if let Ok((given, asked)) = one.await.unwrap() {
                    prop_assert_eq!(given, asked);
                }
            }
            Ok(())
        });
        result?;
    }
}
