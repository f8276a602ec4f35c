//! By whose proof a source is asked, when the store refuses one.

use super::*;
use crate::caller::PodIdentity;

const DENIED: &crate::error::Code = &codes::BACKEND_PERMISSION_DENIED;

fn pod(name: &str) -> Caller {
    let pod = PodIdentity {
        namespace: "shop".into(),
        pod: name.into(),
        pod_uid: name.into(),
        service_account: "web".into(),
        service_account_uid: Some("u1".into()),
    };
    Arc::new((Identity::Pod(pod), Credentials::default()))
}

fn shared() -> SourceKey {
    SourceKey {
        principal: Principal::ServiceAccount {
            namespace: "shop".into(),
            name: "web".into(),
            uid: Some("u1".into()),
        },
        ..key("x")
    }
}

/// Two pods of one account share a source.
struct Two(Rig);

impl Two {
    /// They know version 1.
    fn new(key: &SourceKey) -> Self {
        let mut rig = Rig::new();
        for name in ["a", "b"] {
            rig.on(Event::Subscribe {
                volume: volume(name),
                key: key.clone(),
                every: Some(MINUTE),
                caller: pod(name),
                pushes: false,
                terms: Terms::default(),
            });
        }
        rig.on(Event::Fetched(key.clone(), object("1", None)));
        Self(rig)
    }

    /// By whose proof the store is asked.
    fn asked(said: &Said) -> Option<String> {
        said.0.iter().find_map(|effect| match effect {
            Effect::Fetch { caller, .. } => match &caller.0 {
                Identity::Pod(pod) => Some(pod.pod.to_string()),
                Identity::Local { .. } => None,
            },
            _ => None,
        })
    }

    /// At the next moment.
    fn next(&mut self) -> Option<String> {
        Self::asked(&self.0.next())
    }

    /// The store answers; who is asked by at once.
    fn answer(&mut self, key: &SourceKey, result: Result<Fetched>) -> (Said, Option<String>) {
        let said = self.0.on(Event::Fetched(key.clone(), result));
        let asked = Self::asked(&said);
        (said, asked)
    }
}

#[test]
fn a_refusal_counts_when_a_second_pod_of_the_account_is_refused_too() {
    let mut two = Two::new(&shared());
    assert_eq!(two.next().as_deref(), Some("b"), "the freshest");
    let (said, asked) = two.answer(&shared(), fail(DENIED));
    assert_eq!(asked.as_deref(), Some("a"), "at once");
    assert!(said.view().error.is_none(), "it does not count yet");
    let (said, asked) = two.answer(&shared(), fail(DENIED));
    assert_eq!(asked, None);
    assert_eq!(said.view().error.as_ref().unwrap().code(), DENIED);
    // from now on one request at a time, by turns
    for who in ["b", "a", "b"] {
        assert_eq!(two.next().as_deref(), Some(who));
        assert_eq!(two.answer(&shared(), fail(DENIED)).1, None);
    }
}

#[test]
fn a_proof_that_was_refused_is_not_shown_again_until_it_is_another() {
    let mut two = Two::new(&shared());
    two.next();
    two.answer(&shared(), fail(DENIED));
    let (said, asked) = two.answer(&shared(), object("2", None));
    assert_eq!(asked, None);
    assert!(said.view().error.is_none());
    assert_eq!(two.next().as_deref(), Some("a"), "the good one");
    two.answer(&shared(), Ok(Fetched::NotModified));
    two.0.on(Event::Credentials(volume("b"), pod("b")));
    assert_eq!(two.next().as_deref(), Some("b"), "fresh again");
}

#[test]
fn nobody_else_is_asked_for_a_lone_pod_or_where_the_proof_is_not_the_stores_matter() {
    let mut two = Two::new(&shared());
    two.0.on(Event::Unsubscribe(volume("b")));
    assert_eq!(two.next().as_deref(), Some("a"));
    let (said, asked) = two.answer(&shared(), fail(DENIED));
    assert_eq!(asked, None);
    assert_eq!(said.view().error.as_ref().unwrap().code(), DENIED);
    for (key, code) in [
        (key("x"), DENIED), // asked as the node
        (shared(), &codes::BACKEND_UNAVAILABLE),
        (shared(), &codes::IDENTITY_TOKEN_STALE),
    ] {
        let mut two = Two::new(&key);
        two.next();
        let (said, asked) = two.answer(&key, fail(code));
        assert_eq!(asked, None, "{}", code.name);
        assert_eq!(said.view().error.as_ref().unwrap().code(), code);
    }
}
