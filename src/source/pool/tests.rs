//! Single steps of the pool. Whole days are in `tests/it/pool`.

mod proofs;
mod tenants;
mod terms;

use super::*;
use crate::{
    caller::{Credentials, Identity, Principal},
    error::codes,
    secret::Known,
    secret::{Content, SecretBytes},
    source::SourceView,
    spec::{ObjectRef, Share},
};

const SEC: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn at(seconds: f64) -> Mono {
    Mono::from_nanos((seconds * 1e9) as u64)
}

fn key(path: &str) -> SourceKey {
    SourceKey {
        object: ObjectRef {
            backend: BackendName::parse("store").unwrap(),
            path: path.into(),
            version: None,
            params: "".into(),
            share: Share::Principal,
        },
        principal: Principal::Local(1),
        volume: None,
        epoch: 0,
    }
}

fn volume(name: &str) -> VolumeId {
    VolumeId::parse(name).unwrap()
}

fn caller() -> Caller {
    Arc::new((Identity::Local { uid: 1 }, Credentials::default()))
}

fn lease(handle: &str, expires_at: f64, renewable: bool) -> Lease {
    Lease {
        expires_at: at(expires_at),
        renewable,
        handle: Arc::new(SecretBytes::new(handle.as_bytes().to_vec())),
    }
}

fn object(version: &str, lease: Option<Lease>) -> Result<Fetched> {
    Ok(Fetched::Object(Object {
        version: Version::new(version),
        content: Content::Bytes(Arc::new(SecretBytes::new(version.into()))),
        lease,
    }))
}

fn fail(code: &'static crate::error::Code) -> Result<Fetched> {
    Err(Error::new(code))
}

/// A pool at a moment.
struct Rig {
    pool: Pool,
    now: f64,
    /// Of the subscribers to come.
    terms: Terms,
}

impl Rig {
    fn new() -> Self {
        Self {
            pool: Pool::new(Rules::default()),
            now: 1000.0,
            terms: Terms::default(),
        }
    }

    fn on(&mut self, event: Event) -> Said {
        Said(self.pool.on(at(self.now), event))
    }

    fn subscribe(&mut self, name: &str, path: &str, every: Option<Duration>) -> Said {
        self.subscribe_to(name, path, every, false)
    }

    fn subscribe_to(
        &mut self,
        name: &str,
        path: &str,
        every: Option<Duration>,
        pushes: bool,
    ) -> Said {
        self.on(Event::Subscribe {
            volume: volume(name),
            key: key(path),
            every,
            caller: caller(),
            pushes,
            terms: self.terms,
        })
    }

    /// A person asks, at this moment.
    fn refresh(&mut self, name: &str) -> Said {
        self.on(Event::Refresh(volume(name), at(self.now)))
    }

    fn fetched(&mut self, path: &str, result: Result<Fetched>) -> Said {
        self.on(Event::Fetched(key(path), result))
    }

    fn applied(&mut self, name: &str, path: &str, version: &str) -> Said {
        self.on(Event::Applied(
            volume(name),
            key(path),
            Version::new(version),
        ))
    }

    /// Goes on to the next moment at which the pool says something other than "wake me".
    fn next(&mut self) -> Said {
        for _ in 0..100 {
            let Some((wake, _)) = self.pool.alarms.first() else {
                return Said(Vec::new());
            };
            self.now = wake.as_nanos() as f64 / 1e9 + 1e-6;
            let said = self.on(Event::Tick);
            if !said.words().is_empty() {
                return said;
            }
        }
        panic!("it wakes for nothing")
    }
}

struct Said(Vec<Effect>);

impl Said {
    /// Effects as words, without shows and wake-ups.
    fn words(&self) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|effect| match effect {
                Effect::Fetch {
                    key, urgency, have, ..
                } => Some(format!(
                    "fetch {} {urgency:?} {}",
                    key.object.path,
                    if have.is_some() { "again" } else { "anew" }
                )),
                Effect::Renew { lease, .. } => Some(format!("renew {}", name(lease))),
                Effect::Revoke { lease, .. } => Some(format!("revoke {}", name(lease))),
                Effect::Watch { key, .. } => Some(format!("watch {}", key.object.path)),
                Effect::Cancel(key) => Some(format!("cancel {}", key.object.path)),
                Effect::Show(..) | Effect::WakeAt(_) => None,
            })
            .collect()
    }

    fn view(&self) -> &SourceView {
        let shown = self.0.iter().find_map(|effect| match effect {
            Effect::Show(_, view) => Some(view),
            _ => None,
        });
        shown.expect("nothing shown")
    }
}

fn name(lease: &Lease) -> String {
    String::from_utf8(lease.handle.expose().to_vec()).unwrap()
}

#[test]
fn the_first_subscriber_fetches_and_the_others_share() {
    let mut rig = Rig::new();
    let said = rig.subscribe("a", "x", Some(MINUTE));
    assert_eq!(said.words(), ["fetch x Publish anew"]);
    assert!(said.view().in_flight);
    let said = rig.subscribe("b", "x", Some(MINUTE));
    assert!(said.words().is_empty());
    assert!(said.view().in_flight, "shown at once");
    let said = rig.fetched("x", object("1", None));
    assert!(matches!(said.view().known, Known::Object(_)) && !said.view().in_flight);
    let said = rig.subscribe("c", "x", Some(MINUTE * 5));
    assert!(said.words().is_empty());
    assert!(matches!(said.view().known, Known::Object(_)));
    assert_eq!(rig.next().words(), ["fetch x Refresh again"]);
    assert!((1050.0..=1060.0).contains(&rig.now), "{}", rig.now);
    let said = rig.fetched("x", Ok(Fetched::NotModified));
    assert_eq!(said.view().checked_at, Some(at(rig.now)));
}

#[test]
fn the_shortest_interval_counts_and_none_is_asked_only_on_demand() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", None);
    rig.fetched("x", object("1", None));
    assert!(rig.next().words().is_empty(), "nothing is due");
    assert_eq!(rig.refresh("a").words(), ["fetch x Publish again"]);
    rig.fetched("x", object("1", None));
    rig.subscribe("b", "x", Some(MINUTE * 10));
    rig.subscribe("c", "x", Some(MINUTE));
    rig.next();
    assert!((1050.0..=1060.0).contains(&rig.now), "{}", rig.now);
    rig.fetched("x", object("1", None));
    rig.on(Event::Unsubscribe(volume("c")));
    rig.next();
    rig.fetched("x", object("1", None));
    let before = rig.now;
    rig.next();
    assert!((540.0..=600.0).contains(&(rig.now - before)), "{}", rig.now);
}

#[test]
fn hints_are_merged_and_one_during_a_fetch_asks_once_more() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", None);
    for _ in 0..3 {
        assert!(rig.on(Event::Hint(key("x"))).words().is_empty());
    }
    rig.now += 1.0;
    let said = rig.fetched("x", object("1", None));
    assert_eq!(said.words(), ["fetch x Refresh again"]);
    rig.fetched("x", object("2", None));
    assert!(rig.next().words().is_empty());
    rig.now += 1.0;
    assert_eq!(
        rig.on(Event::Hint(key("x"))).words(),
        ["fetch x Refresh again"]
    );
    rig.now += 0.01;
    rig.on(Event::Hint(key("x")));
    assert!(
        rig.fetched("x", object("3", None)).words().is_empty(),
        "too soon"
    );
    assert_eq!(rig.next().words(), ["fetch x Refresh again"]);
}

#[test]
fn a_good_value_outlives_errors_and_the_time_of_trouble_is_shown() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", Some(MINUTE));
    rig.fetched("x", object("1", None));
    for code in [
        &codes::BACKEND_UNAVAILABLE,
        &codes::BACKEND_NOT_FOUND,
        &codes::BACKEND_PERMISSION_DENIED,
    ] {
        rig.next();
        let said = rig.fetched("x", fail(code));
        let view = said.view();
        assert!(matches!(&view.known, Known::Object(o) if o.version.as_str() == "1"));
        assert_eq!(view.error.as_ref().unwrap().code(), code);
        assert_eq!(view.checked_at, Some(at(1000.0)));
        assert!(view.failing_since < Some(at(1062.0)), "the first failure");
    }
    rig.next();
    let said = rig.fetched("x", Ok(Fetched::NotModified));
    assert!(said.view().error.is_none() && said.view().failing_since.is_none());
}

#[test]
fn with_nothing_known_no_such_secret_is_absent_and_denied_is_unknown() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", Some(MINUTE));
    let said = rig.fetched("x", fail(&codes::BACKEND_NOT_FOUND));
    assert!(matches!(said.view().known, Known::Absent) && said.view().error.is_none());
    rig.subscribe("a", "y", Some(MINUTE));
    let said = rig.fetched("y", fail(&codes::BACKEND_PERMISSION_DENIED));
    assert!(matches!(said.view().known, Known::Unknown) && said.view().error.is_some());
    assert!(said.view().next_at.unwrap() > at(rig.now));
}

#[test]
fn a_stale_token_waits_for_credentials_without_backoff() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", Some(MINUTE));
    rig.fetched("x", fail(&codes::IDENTITY_TOKEN_STALE));
    assert!(rig.next().words().is_empty(), "it does not ask by itself");
    let said = rig.on(Event::Credentials(volume("a"), caller()));
    assert_eq!(said.words().len(), 1, "{:?}", said.words());
    rig.fetched("x", object("1", None));
    let said = rig.on(Event::Credentials(volume("a"), caller()));
    assert!(said.words().is_empty(), "a republish never fetches");
}

#[test]
fn the_freshest_proof_of_those_who_are_still_there_is_used() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", Some(MINUTE));
    rig.subscribe("b", "x", Some(MINUTE));
    rig.fetched("x", object("1", None));
    let (fresh, fresher) = (caller(), caller());
    rig.on(Event::Credentials(volume("a"), fresh.clone()));
    rig.on(Event::Credentials(volume("b"), fresher.clone()));
    let who = |said: &Said| {
        said.0.iter().find_map(|effect| match effect {
            Effect::Fetch { caller, .. } => Some(caller.clone()),
            _ => None,
        })
    };
    assert!(Arc::ptr_eq(&who(&rig.next()).unwrap(), &fresher));
    rig.fetched("x", object("1", None));
    rig.on(Event::Unsubscribe(volume("b")));
    assert!(Arc::ptr_eq(&who(&rig.next()).unwrap(), &fresh));
}

#[test]
fn the_last_one_out_cancels_and_a_lease_that_still_comes_is_revoked() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", Some(MINUTE));
    rig.subscribe("b", "x", Some(MINUTE));
    assert!(rig.on(Event::Unsubscribe(volume("a"))).words().is_empty());
    let said = rig.on(Event::Retain(volume("b"), vec![key("y")]));
    assert_eq!(said.words(), ["cancel x"]);
    let said = rig.fetched("x", object("1", Some(lease("L", 5000.0, true))));
    assert_eq!(said.words(), ["revoke L"]);
    rig.on(Event::Revoked(
        key("x"),
        Err(Error::new(&codes::BACKEND_UNAVAILABLE)),
    ));
    assert_eq!(rig.next().words(), ["revoke L"], "tried again");
    rig.on(Event::Revoked(key("x"), Ok(())));
    assert!(rig.pool.sources.is_empty() && rig.pool.ids.is_empty() && rig.pool.alarms.is_empty());
}

#[test]
fn coming_back_while_the_cancelled_fetch_is_out_waits_for_it() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", Some(MINUTE));
    rig.on(Event::Unsubscribe(volume("a")));
    assert!(rig.subscribe("a", "x", Some(MINUTE)).words().is_empty());
    let said = rig.fetched("x", fail(&codes::BACKEND_CANCELLED));
    assert_eq!(said.words(), ["fetch x Publish anew"]);
    assert!(said.view().error.is_none());
}

#[test]
fn a_cancelled_fetch_that_was_throttled_still_says_when_to_ask() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", Some(MINUTE));
    rig.on(Event::Unsubscribe(volume("a")));
    rig.subscribe("a", "x", Some(MINUTE));
    let wait = Error::new(&codes::BACKEND_THROTTLED).retry_after(SEC * 50);
    assert!(rig.fetched("x", Err(wait)).words().is_empty());
    assert_eq!(rig.next().words(), ["fetch x Publish anew"]);
    assert!(rig.now >= 1050.0, "{}", rig.now);
}

#[test]
fn coming_back_to_a_cancelled_fetch_that_still_answers_goes_on_as_usual() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", Some(MINUTE));
    rig.on(Event::Unsubscribe(volume("a")));
    rig.subscribe("a", "x", Some(MINUTE));
    let said = rig.fetched("x", object("1", None));
    assert!(matches!(said.view().known, Known::Object(_)) && said.words().is_empty());
    assert_eq!(rig.next().words(), ["fetch x Refresh again"]);
    assert!((1050.0..=1060.0).contains(&rig.now), "{}", rig.now);
}

#[test]
fn proof_that_came_while_stale_proof_was_refused_is_used_at_once() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", Some(MINUTE));
    rig.on(Event::Credentials(volume("a"), caller()));
    let said = rig.fetched("x", fail(&codes::IDENTITY_TOKEN_STALE));
    assert_eq!(said.words(), ["fetch x Refresh anew"]);
    let said = rig.fetched("x", fail(&codes::IDENTITY_TOKEN_STALE));
    assert!(said.words().is_empty());
}

#[test]
fn leases_are_renewed_and_replaced_before_they_die() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", None);
    rig.fetched("x", object("1", Some(lease("L", 1900.0, true))));
    rig.applied("a", "x", "1");
    assert_eq!(rig.next().words(), ["renew L"]);
    assert!((1540.0..=1601.0).contains(&rig.now), "{}", rig.now);
    rig.on(Event::Renewed(key("x"), Ok(lease("L", 2500.0, true))));
    assert_eq!(rig.next().words(), ["renew L"]);
    assert!((2100.0..=2200.0).contains(&rig.now), "{}", rig.now);
    rig.on(Event::Renewed(key("x"), Ok(lease("L", 2500.0, true))));
    assert_eq!(rig.next().words(), ["fetch x Upkeep anew"]);
    assert!(rig.now < 2400.0, "{}", rig.now);
    rig.fetched("x", object("2", Some(lease("M", 9000.0, false))));
    assert_eq!(rig.applied("a", "x", "1").words().len(), 0);
    let applied = rig.now;
    rig.applied("a", "x", "2");
    assert_eq!(rig.next().words(), ["revoke L"]);
    let overlap = limits::LEASE_OVERLAP.as_secs_f64();
    assert!(
        (overlap..overlap + 0.1).contains(&(rig.now - applied)),
        "the overlap"
    );
    rig.on(Event::Revoked(key("x"), Ok(())));
    assert_eq!(rig.next().words(), ["fetch x Upkeep anew"], "final");
    assert!(rig.now < 7000.0, "{}", rig.now);
}

#[test]
fn a_renewal_that_fails_for_a_moment_is_tried_again_one_refused_replaces() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", None);
    rig.fetched("x", object("1", Some(lease("L", 1900.0, true))));
    rig.next();
    let down = Err(Error::new(&codes::BACKEND_UNAVAILABLE));
    rig.on(Event::Renewed(key("x"), down));
    assert_eq!(rig.next().words(), ["renew L"]);
    let denied = Err(Error::new(&codes::BACKEND_PERMISSION_DENIED));
    let said = rig.on(Event::Renewed(key("x"), denied));
    assert_eq!(said.words(), ["fetch x Upkeep anew"]);
}

#[test]
fn an_old_lease_waits_for_the_slowest_reader_and_is_let_go_when_he_leaves() {
    let mut rig = Rig::new();
    rig.subscribe("a", "x", None);
    rig.subscribe("b", "x", None);
    rig.fetched("x", object("1", Some(lease("L", 90_000.0, false))));
    rig.applied("a", "x", "1");
    rig.applied("b", "x", "1");
    rig.now += 1.0;
    rig.on(Event::Hint(key("x")));
    rig.fetched("x", object("2", Some(lease("M", 90_000.0, false))));
    rig.applied("a", "x", "2");
    rig.now += 100.0;
    assert!(rig.on(Event::Tick).words().is_empty());
    rig.on(Event::Unsubscribe(volume("b")));
    assert_eq!(rig.next().words(), ["revoke L"]);
}

#[test]
fn a_found_lease_is_renewed_for_a_subscriber_and_revoked_without_one() {
    let mut rig = Rig::new();
    rig.on(Event::Found(key("x"), lease("L", 1300.0, true)));
    rig.on(Event::Found(key("y"), lease("M", 9000.0, true)));
    rig.subscribe("a", "x", None);
    rig.fetched("x", fail(&codes::BACKEND_PERMISSION_DENIED));
    let mut seen = Vec::new();
    while rig.now < 1250.0 {
        for word in rig.next().words() {
            match word.split_once(' ').unwrap() {
                ("renew", _) => drop(rig.on(Event::Renewed(
                    key("x"),
                    Ok(lease("L", rig.now + 300.0, true)),
                ))),
                ("revoke", _) => drop(rig.on(Event::Revoked(key("y"), Ok(())))),
                _ => drop(rig.fetched("x", fail(&codes::BACKEND_PERMISSION_DENIED))),
            }
            seen.push(word);
        }
    }
    assert!(seen.contains(&"renew L".to_owned()), "{seen:?}");
    assert!(seen.contains(&"revoke M".to_owned()), "{seen:?}");
    rig.subscribe("b", "x", None);
    rig.now += 5.0;
    rig.refresh("a");
    rig.fetched("x", object("1", Some(lease("N", 90_000.0, false))));
    rig.applied("a", "x", "1");
    rig.applied("b", "x", "1");
    assert_eq!(rig.next().words(), ["revoke L"], "readers have a newer one");
}

#[test]
fn a_watch_is_started_once_and_again_after_it_broke_with_one_fetch() {
    let mut rig = Rig::new();
    let said = rig.subscribe_to("a", "x", None, true);
    assert_eq!(said.words(), ["watch x", "fetch x Publish anew"]);
    assert!(rig.subscribe_to("b", "x", None, true).words().is_empty());
    rig.fetched("x", object("1", None));
    rig.on(Event::WatchEnded(key("x"), Ok(())));
    assert_eq!(rig.next().words(), ["watch x", "fetch x Refresh again"]);
    assert!(rig.now >= 1001.0);
    rig.fetched("x", object("1", None));
    rig.on(Event::Unsubscribe(volume("a")));
    assert_eq!(
        rig.on(Event::Unsubscribe(volume("b"))).words(),
        ["cancel x"]
    );
    rig.on(Event::WatchEnded(key("x"), Ok(()))); // late, of nothing
    let said = rig.subscribe_to("a", "x", None, true);
    assert_eq!(said.words(), ["watch x", "fetch x Publish anew"]);
}

#[test]
fn with_the_breaker_open_newcomers_are_told_why_and_a_person_gets_through_once() {
    let mut rig = Rig::new();
    for path in ["a", "b", "c", "d", "e"] {
        rig.subscribe("v", path, Some(MINUTE));
        rig.fetched(path, fail(&codes::BACKEND_UNAVAILABLE));
    }
    for _ in 0..5 {
        for word in rig.next().words() {
            let path = word.split(' ').nth(1).unwrap().to_owned();
            rig.fetched(&path, fail(&codes::BACKEND_TIMEOUT));
        }
    }
    let said = rig.subscribe("w", "new", Some(MINUTE));
    assert!(said.words().is_empty(), "{:?}", said.words());
    let error = said.view().error.clone().unwrap();
    assert_eq!(error.code(), &codes::BACKEND_TIMEOUT);
    assert!(error.to_string().contains("store:new"), "{error}");
    let said = rig.refresh("v");
    assert_eq!(said.words(), ["fetch a Publish anew"], "one probe");
    let said = rig.fetched("a", fail(&codes::BACKEND_UNAVAILABLE));
    assert!(said.words().is_empty(), "{:?}", said.words());
    rig.refresh("v");
    let said = rig.fetched("a", object("1", None));
    assert!(said.words().len() >= 4, "all come: {:?}", said.words());
}

#[test]
fn what_a_person_wants_of_many_volumes_is_asked_once_for_all_of_them() {
    let mut rig = Rig::new();
    for name in ["a", "b", "c"] {
        rig.subscribe(name, "x", Some(MINUTE));
    }
    rig.fetched("x", object("1", None));
    let refresh = |rig: &mut Rig, name: &str, since: f64| {
        rig.now += 0.1;
        rig.on(Event::Refresh(volume(name), at(since))).words()
    };
    let since = rig.now;
    assert_eq!(
        refresh(&mut rig, "a", since),
        ["fetch x Publish again"],
        "it went out before he asked"
    );
    assert!(refresh(&mut rig, "b", since).is_empty());
    let said = rig.fetched("x", object("1", None));
    assert!(said.words().is_empty(), "{:?}", said.words());
    assert!(refresh(&mut rig, "c", since).is_empty());
    let later = rig.now;
    assert_eq!(refresh(&mut rig, "c", later), ["fetch x Publish again"]);
}

#[test]
fn a_wake_up_is_asked_for_when_it_changes_and_after_every_tick() {
    let mut rig = Rig::new();
    let wakes = |said: &Said| {
        let all = said.0.iter();
        all.filter(|effect| matches!(effect, Effect::WakeAt(_)))
            .count()
    };
    rig.subscribe("a", "x", Some(MINUTE));
    assert_eq!(wakes(&rig.fetched("x", object("1", None))), 1);
    assert_eq!(wakes(&rig.subscribe("b", "x", Some(MINUTE))), 0);
    assert_eq!(wakes(&rig.on(Event::Tick)), 1);
    rig.now += SEC.as_secs_f64();
    assert_eq!(wakes(&rig.applied("a", "x", "1")), 0);
}
