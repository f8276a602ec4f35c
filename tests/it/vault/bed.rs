//! A server, a backend made of a configuration, and who asks.

use std::{sync::Arc, time::Duration};

use secretfs::{
    backend::{
        Backend, Cx, Fetched, Want,
        registry::{Registry, problems},
    },
    caller::{Credentials, Identity},
    clock::{Clock, SystemClock},
    config::{Config, Env},
    error::{Error, Result},
    secret::{Content, Object},
    spec::{self, BackendName, ObjectRef, Setting},
};
use tokio_util::sync::CancellationToken;

/// The backend `vault` of these settings (YAML, in one line).
#[track_caller]
pub fn backend(settings: &str) -> Arc<dyn Backend> {
    let text = format!("backends: {{vault: {{kind: vault, {settings}}}}}\n");
    let config = Config::parse(&text, &Env::default(), &problems).unwrap();
    let registry = Registry::build(&config, 1).unwrap();
    registry
        .backend(&BackendName::parse("vault").unwrap())
        .unwrap()
        .clone()
}

/// What is wrong with these settings, each problem's field and message.
pub fn wrong(settings: &str) -> Vec<(String, String)> {
    let text = format!("backends: {{vault: {{kind: vault, {settings}}}}}\n");
    let found = Config::parse(&text, &Env::default(), &problems);
    let found = found.err().unwrap_or_default();
    found
        .into_iter()
        .map(|problem| (problem.field, problem.message))
        .collect()
}

/// The object of a `from`, as a spec's reader makes it for this backend.
#[track_caller]
pub fn object(backend: &dyn Backend, from: &str) -> ObjectRef {
    read(backend, from).unwrap_or_else(|said| panic!("{from}: {said}"))
}

/// The same, or what is said against it.
pub fn read(backend: &dyn Backend, from: &str) -> std::result::Result<ObjectRef, String> {
    let text = format!("files: [{{path: a, from: {from}}}]");
    let parsed = spec::parse(&text, &Setting::local(), &|object| {
        backend.check(object)?;
        Ok(spec::Facts {
            pushes: false,
            versions: backend.has_versions(),
        })
    });
    parsed
        .map(|spec| spec.objects[0].clone())
        .map_err(|problems| format!("[{}] {}", problems[0].code.name, problems[0].message))
}

/// The terms of a request: ten seconds.
pub fn cx() -> Cx {
    let clock = Arc::new(SystemClock);
    Cx {
        deadline: clock.now().after(Duration::from_secs(10)),
        cancel: CancellationToken::new(),
        clock,
    }
}

/// A user of this machine, without any proof.
pub fn local() -> (Identity, Credentials) {
    (Identity::Local { uid: 0 }, Credentials::default())
}

/// Asks, as a local user.
pub async fn fetch(backend: &dyn Backend, from: &str, have: Option<&Object>) -> Result<Fetched> {
    fetch_as(backend, from, have, &local()).await
}

/// Asks.
pub async fn fetch_as(
    backend: &dyn Backend,
    from: &str,
    have: Option<&Object>,
    caller: &(Identity, Credentials),
) -> Result<Fetched> {
    let object = object(backend, from);
    let want = Want {
        object: &object,
        who: &caller.0,
        proof: &caller.1,
        have,
    };
    backend.fetch(&cx(), want).await
}

/// Asks, and there must be something new.
#[track_caller]
pub fn is_new(fetched: Result<Fetched>) -> Object {
    match fetched.unwrap() {
        Fetched::Object(object) => object,
        Fetched::NotModified => panic!("not modified"),
    }
}

/// An object's JSON.
pub fn json(object: &Object) -> serde_json::Value {
    let Content::Bytes(bytes) = &object.content else {
        panic!("fields")
    };
    serde_json::from_slice(bytes.expose()).unwrap()
}

/// Asks, and it must fail with this code, of which the error is.
#[track_caller]
pub fn is_error(fetched: Result<Fetched>, code: &str) -> Error {
    let error = fetched.map(drop).unwrap_err();
    assert_eq!(error.code().name, code, "{error}");
    error
}
