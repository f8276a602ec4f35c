//! What every backend must do, whatever its store: one suite, and a [`Subject`] for each.

use std::{sync::Arc, time::Duration};

use secretfs::{
    backend::{Backend, Cx, Fetched, Want},
    caller::{Credentials, Identity},
    clock::{Clock, Mono, SystemClock},
    error::{ErrorKind, Result},
    secret::{Content, Object},
    spec::{BackendName, ObjectRef, Share},
};
use tokio_util::sync::CancellationToken;

/// A store and the backend that reads it.
pub trait Subject: Sync {
    fn backend(&self) -> Arc<dyn Backend>;
    /// A new version of a secret, one JSON object.
    fn put(&self, path: &str, json: &str);
    /// The secret goes, as its owner would remove it. `false`: this store cannot do that.
    fn remove(&self, path: &str) -> bool;
    /// Where in the store there may be secrets: put before each path.
    fn below(&self) -> &'static str {
        ""
    }
}

const VALUE: [&str; 2] = [r#"{"p":"kanarie-one"}"#, r#"{"p":"kanarie-two"}"#];

/// All of it.
pub async fn conforms(subject: &dyn Subject) {
    let backend = subject.backend();
    absent(subject, &*backend).await;
    a_life(subject, &*backend).await;
    many_at_once(subject, &*backend).await;
    ends_in_time(subject, &*backend).await;
    checks_as_it_fetches(subject, &*backend).await;
}

fn object(subject: &dyn Subject, path: &str) -> ObjectRef {
    ObjectRef {
        backend: BackendName::parse("subject").unwrap(),
        path: format!("{}{path}", subject.below()).into(),
        version: None,
        params: "".into(),
        share: Share::Principal,
    }
}

fn cx() -> Cx {
    Cx {
        deadline: SystemClock.now().after(Duration::from_secs(10)),
        cancel: CancellationToken::new(),
        clock: Arc::new(SystemClock),
    }
}

async fn ask(
    backend: &dyn Backend,
    cx: &Cx,
    object: &ObjectRef,
    have: Option<&Object>,
) -> Result<Fetched> {
    let (who, proof) = (Identity::Local { uid: 0 }, Credentials::default());
    let want = Want {
        object,
        who: &who,
        proof: &proof,
        have,
    };
    let result = backend.fetch(cx, want).await;
    let shown = format!("{result:?}");
    assert!(!shown.contains("kanarie"), "a value is shown: {shown}");
    result
}

/// What must be something new.
#[track_caller]
fn new(fetched: Result<Fetched>) -> Object {
    match fetched.unwrap() {
        Fetched::Object(object) => object,
        Fetched::NotModified => panic!("not modified"),
    }
}

fn bytes(object: &Object) -> &[u8] {
    match &object.content {
        Content::Bytes(bytes) => bytes.expose(),
        Content::Fields(_) => panic!("fields"),
    }
}

/// What is not there is told so, to whoever asks again as well.
async fn absent(subject: &dyn Subject, backend: &dyn Backend) {
    for _ in 0..2 {
        let error = ask(backend, &cx(), &object(subject, "none"), None)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SecretNotFound, "{error}");
    }
}

/// 1. The first answer is the value, under a version that has a name.
/// 2. The same again is "not modified", and without something in hand the value again under the same version, where the store has them.
/// 3. A new value has another version; also with the oldest in hand.
/// 4. Gone is "not found", with and without something in hand.
async fn a_life(subject: &dyn Subject, backend: &dyn Backend) {
    let object = object(subject, "life/db");
    subject.put("life/db", VALUE[0]);
    let first = new(ask(backend, &cx(), &object, None).await); // 1
    assert_eq!(bytes(&first), VALUE[0].as_bytes());
    assert!(!first.version.as_str().is_empty() && first.lease.is_none());
    let again = ask(backend, &cx(), &object, Some(&first)).await; // 2
    assert!(matches!(again, Ok(Fetched::NotModified)), "{again:?}");
    let anew = new(ask(backend, &cx(), &object, None).await);
    assert_eq!(bytes(&anew), VALUE[0].as_bytes());
    subject.put("life/db", VALUE[1]);
    let second = new(ask(backend, &cx(), &object, Some(&first)).await); // 3
    assert_eq!(bytes(&second), VALUE[1].as_bytes());
    assert_ne!(second.version, first.version);
    if subject.remove("life/db") {
        for have in [None, Some(&second)] {
            let error = ask(backend, &cx(), &object, have).await.unwrap_err(); // 4
            assert_eq!(error.kind(), ErrorKind::SecretNotFound, "{error}");
        }
    }
}

/// Requests do not disturb each other.
async fn many_at_once(subject: &dyn Subject, backend: &dyn Backend) {
    for number in 0..4 {
        subject.put(
            &format!("many/{number}"),
            &format!("{{\"n\":\"{number}\"}}"),
        );
    }
    let all = (0..32).map(|number| async move {
        let number = number % 4;
        let object = object(subject, &format!("many/{number}"));
        let found = new(ask(backend, &cx(), &object, None).await);
        assert_eq!(bytes(&found), format!("{{\"n\":\"{number}\"}}").as_bytes());
    });
    futures_util::future::join_all(all).await;
}

/// Nobody wants it any more, or it is too late: it returns by itself, whatever it says.
async fn ends_in_time(subject: &dyn Subject, backend: &dyn Backend) {
    let object = object(subject, "many/0");
    let late = Cx {
        deadline: Mono::from_nanos(1),
        ..cx()
    };
    let gone = cx();
    gone.cancel.cancel();
    for terms in [late, gone] {
        let ended =
            tokio::time::timeout(Duration::from_secs(5), ask(backend, &terms, &object, None)).await;
        if let Err(error) = ended.expect("it goes on") {
            let kind = error.kind();
            assert!(
                matches!(kind, ErrorKind::Timeout | ErrorKind::Unavailable),
                "{error}"
            );
        }
    }
    assert!(
        ask(backend, &cx(), &object, None).await.is_ok(),
        "the next one is answered"
    );
}

/// What `check` refuses is not fetched, and is refused in the same words.
async fn checks_as_it_fetches(subject: &dyn Subject, backend: &dyn Backend) {
    let good = object(subject, "many/0");
    assert!(backend.check(&good).is_ok());
    let odd = ObjectRef {
        params: r#"{"method":"explode"}"#.into(),
        ..good
    };
    if let Err(problem) = backend.check(&odd) {
        let error = ask(backend, &cx(), &odd, None).await.unwrap_err();
        assert_eq!(error.code().name, problem.code.name);
        assert!(error.to_string().contains(&problem.message), "{error}");
    }
}
