use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    caller::{Credentials, Identity},
    clock::{Clock, Mono, Wall},
    spec::{BackendName, Share},
    store::Recipients,
};

/// Stands still, but for a sleep, which runs `asleep` and is over.
struct DreamClock {
    asleep: Box<dyn Fn() + Send + Sync>,
    sleeps: AtomicUsize,
}

#[async_trait]
impl Clock for DreamClock {
    fn now(&self) -> Mono {
        Mono::from_nanos(1)
    }
    fn wall(&self) -> Wall {
        Wall::from_millis(0)
    }
    async fn sleep_until(&self, at: Mono) {
        if at == FAR {
            std::future::pending::<()>().await;
        }
        self.sleeps.fetch_add(1, Ordering::SeqCst);
        (self.asleep)();
    }
}

const FAR: Mono = Mono::from_nanos(u64::MAX);
const GUARD: Duration = Duration::from_secs(20);

struct Bed {
    root: tempfile::TempDir,
    backend: Arc<dyn Backend>,
    cancel: CancellationToken,
}

impl Bed {
    fn empty() -> Self {
        let root = tempfile::tempdir().unwrap();
        let backend = open(root.path().join("at/store"), root.path().join("identity"));
        Self {
            root,
            backend,
            cancel: CancellationToken::new(),
        }
    }

    fn new() -> Self {
        let bed = Self::empty();
        bed.init();
        bed
    }

    fn dir(&self) -> std::path::PathBuf {
        self.root.path().join("at/store")
    }

    fn identity(&self) -> std::path::PathBuf {
        self.root.path().join("identity")
    }

    fn init(&self) {
        let (public, _) = Identities::load_or_make(&self.identity()).unwrap();
        Store::init(self.dir(), &Recipients::of(&public).unwrap()).unwrap();
    }

    fn put(&self, name: &str, value: &str) -> u64 {
        put_at(&self.dir(), name, value)
    }

    async fn fetch(&self, object: &str, have: Option<&Object>) -> Result<Fetched> {
        self.fetch_asleep(object, have, || panic!("nothing to sleep for"))
            .await
    }

    /// A fetch, with what happens while it waits for the store to settle.
    async fn fetch_asleep(
        &self,
        object: &str,
        have: Option<&Object>,
        asleep: impl Fn() + Send + Sync + 'static,
    ) -> Result<Fetched> {
        let clock = Arc::new(DreamClock {
            asleep: Box::new(asleep),
            sleeps: AtomicUsize::new(0),
        });
        let fetched = fetch(&*self.backend, &self.cx(clock.clone()), object, have).await;
        assert!(clock.sleeps.load(Ordering::SeqCst) <= 1);
        fetched
    }

    fn cx(&self, clock: Arc<dyn Clock>) -> Cx {
        Cx {
            deadline: FAR,
            cancel: self.cancel.clone(),
            clock,
        }
    }

    async fn object(&self, object: &str, have: Option<&Object>) -> Object {
        match self.fetch(object, have).await.unwrap() {
            Fetched::Object(object) => object,
            Fetched::NotModified => panic!("not modified"),
        }
    }

    /// Starts a watch; its hints come out of the channel, its end out of the task.
    fn watch(
        &self,
        object: &str,
    ) -> (
        mpsc::UnboundedReceiver<()>,
        tokio::task::JoinHandle<Result<()>>,
    ) {
        let (tell, hints) = mpsc::unbounded_channel();
        let backend = self.backend.clone();
        let object = reference(object);
        let cx = self.cx(Arc::new(crate::clock::SystemClock));
        let watching = tokio::spawn(async move {
            let want = Want {
                object: &object,
                who: &Identity::Local { uid: 0 },
                proof: &Credentials::default(),
                have: None,
            };
            backend
                .watch(&cx, want, &move || tell.send(()).unwrap())
                .await
        });
        (hints, watching)
    }
}

fn put_at(dir: &Path, name: &str, value: &str) -> u64 {
    let value = SecretBytes::new(value.as_bytes().to_vec());
    let name = Name::parse(name).unwrap();
    Store::open(dir).unwrap().put(&name, &value).unwrap()
}

async fn fetch(
    backend: &dyn Backend,
    cx: &Cx,
    object: &str,
    have: Option<&Object>,
) -> Result<Fetched> {
    let want = Want {
        object: &reference(object),
        who: &Identity::Local { uid: 0 },
        proof: &Credentials::new(Vec::new(), BTreeMap::new()),
        have,
    };
    backend.fetch(cx, want).await
}

/// `path` or `path@version`.
fn reference(text: &str) -> ObjectRef {
    let (path, version) = match text.rsplit_once('@') {
        Some((path, version)) => (path, Some(version.into())),
        None => (text, None),
    };
    ObjectRef {
        backend: BackendName::parse("store").unwrap(),
        path: path.into(),
        version,
        params: "".into(),
        share: Share::Principal,
    }
}

fn shown(object: &Object) -> (&str, String) {
    match &object.content {
        Content::Bytes(bytes) => (
            object.version.as_str(),
            String::from_utf8_lossy(bytes.expose()).into(),
        ),
        Content::Fields(_) => panic!("fields"),
    }
}

fn code(fetched: Result<Fetched>) -> &'static str {
    fetched.map(drop).unwrap_err().code().name
}

async fn hint(hints: &mut mpsc::UnboundedReceiver<()>) {
    tokio::time::timeout(GUARD, hints.recv())
        .await
        .expect("no hint came")
        .expect("the watch ended");
}

#[tokio::test]
async fn a_fetch_brings_the_bytes_and_the_number_and_nothing_when_that_is_known() {
    let bed = Bed::new();
    bed.put("payments/db", "one");
    let first = bed.object("payments/db", None).await;
    assert_eq!(shown(&first), ("1", "one".into()));
    // known: not even the identity is needed
    fs::rename(bed.identity(), bed.root.path().join("away")).unwrap();
    let again = bed.fetch("payments/db", Some(&first)).await.unwrap();
    assert!(matches!(again, Fetched::NotModified));
    bed.put("payments/db", "two");
    assert_eq!(
        code(bed.fetch("payments/db", Some(&first)).await),
        "store.identity_missing"
    );
    fs::rename(bed.root.path().join("away"), bed.identity()).unwrap();
    let second = bed.object("payments/db", Some(&first)).await;
    assert_eq!(shown(&second), ("2", "two".into()));
    assert_eq!(
        shown(&bed.object("payments/db@1", None).await),
        ("1", "one".into())
    );
    assert_eq!(
        code(bed.fetch("payments/db@9", None).await),
        "store.no_version"
    );
    assert_eq!(code(bed.fetch("nobody", None).await), "backend.not_found");
    bed.put("bob@example.com", "mail");
    assert_eq!(shown(&bed.object("bob@example.com", None).await).1, "mail");
}

#[tokio::test]
async fn a_store_that_is_gone_or_unreadable_is_no_missing_secret() {
    let bed = Bed::new();
    bed.put("a", "1");
    let have = bed.object("a", None).await;
    let file = bed.dir().join("secrets/a/2.age");
    fs::write(&file, b"junk").unwrap();
    let error = bed.fetch("a", Some(&have)).await.unwrap_err();
    assert_eq!(error.code().name, "store.corrupt");
    assert!(error.to_string().contains("secrets/a/2.age"), "{error}");
    fs::set_permissions(bed.identity(), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(code(bed.fetch("a@1", None).await), "store.identity_mode");
    fs::rename(bed.dir(), bed.root.path().join("away")).unwrap();
    assert_eq!(code(bed.fetch("a", Some(&have)).await), "store.missing");
    assert_eq!(code(bed.fetch("a", None).await), "store.missing");
}

#[tokio::test]
async fn a_removal_counts_at_once() {
    let bed = Bed::new();
    bed.put("a", "1");
    let have = bed.object("a", None).await;
    let name = Name::parse("a").unwrap();
    Store::open(bed.dir()).unwrap().remove(&name).unwrap();
    assert_eq!(code(bed.fetch("a", Some(&have)).await), "backend.not_found");
}

#[tokio::test]
async fn what_vanishes_or_goes_back_counts_only_if_it_still_stands_later() {
    for (kept, lost) in [(None, "secrets/a"), (Some("1"), "secrets/a/2.age")] {
        let bed = Bed::new();
        bed.put("a", "one");
        bed.put("a", "two");
        let have = bed.object("a", None).await;
        let (path, away) = (bed.dir().join(lost), bed.root.path().join("away"));
        fs::rename(&path, &away).unwrap();
        // it comes back meanwhile
        let back = (path.clone(), away.clone());
        let fetched = bed
            .fetch_asleep("a", Some(&have), move || {
                fs::rename(&back.1, &back.0).unwrap()
            })
            .await;
        assert!(matches!(fetched.unwrap(), Fetched::NotModified), "{lost}");
        // the store goes as well: it was being deleted
        fs::rename(&path, &away).unwrap();
        let manifest = bed.dir().join("store.json");
        let (from, to) = (manifest.clone(), bed.root.path().join("manifest"));
        let fetched = bed
            .fetch_asleep("a", Some(&have), move || fs::rename(&from, &to).unwrap())
            .await;
        assert_eq!(code(fetched), "store.missing", "{lost}");
        fs::rename(bed.root.path().join("manifest"), &manifest).unwrap();
        // it stays away: so it is
        let fetched = bed.fetch_asleep("a", Some(&have), || {}).await;
        match (kept, fetched) {
            (None, fetched) => assert_eq!(code(fetched), "backend.not_found"),
            (Some(number), Ok(Fetched::Object(object))) => {
                assert_eq!(shown(&object), (number, "one".into()));
            }
            (_, other) => panic!("{lost}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_same_number_in_a_store_made_anew_is_another_value() {
    let bed = Bed::new();
    bed.put("a", "old store");
    let have = bed.object("a", None).await;
    fs::remove_dir_all(bed.dir()).unwrap();
    bed.init();
    bed.put("a", "new store");
    let object = bed.object("a", Some(&have)).await;
    assert_eq!(shown(&object), ("1", "new store".into()));
    let again = bed.fetch("a", Some(&object)).await.unwrap();
    assert!(matches!(again, Fetched::NotModified));
}

#[tokio::test]
async fn a_fetch_ends_with_its_cancellation_and_its_deadline() {
    let bed = Bed::new();
    bed.put("a", "1");
    let mut cx = bed.cx(Arc::new(crate::clock::SystemClock));
    cx.deadline = Mono::from_nanos(1);
    assert_eq!(
        code(fetch(&*bed.backend, &cx, "a", None).await),
        "backend.timeout"
    );
    bed.cancel.cancel();
    assert_eq!(code(bed.fetch("a", None).await), "backend.cancelled");
}

#[test]
fn references_are_checked_as_names_are() {
    let bed = Bed::empty();
    for (text, problem) in [
        ("a/b", None),
        ("a@7", None),
        ("bob@example.com", None),
        ("bob@example.com@3", None),
        ("a@07", Some("@07")),
        ("a@0", Some("@0")),
        ("a//b", Some("empty segment")),
        ("../a", Some("`..`")),
        ("a%b", Some("`%`")),
    ] {
        match (bed.backend.check(&reference(text)), problem) {
            (Ok(()), None) => {}
            (Err(found), Some(part)) => {
                assert_eq!(found.code, &codes::SPEC_BAD_REFERENCE);
                assert!(found.message.contains(part), "{text}: {}", found.message);
                assert!(found.help.is_some());
            }
            (found, _) => panic!("{text}: {found:?}"),
        }
    }
    let mut with_params = reference("a");
    with_params.params = r#"{"method":"write"}"#.into();
    assert!(bed.backend.check(&with_params).is_err());
    assert!(bed.backend.pushes(&reference("a")));
    assert_eq!(bed.backend.asks_as(&reference("a")), AsksAs::Node);
}

#[tokio::test]
async fn a_watch_hints_at_its_beginning_and_after_each_change() {
    let bed = Bed::new();
    let (mut new, _) = bed.watch("not/yet");
    hint(&mut new).await;
    bed.put("not/yet", "1"); // a new directory
    hint(&mut new).await;
    for value in ["2", "3"] {
        while new.try_recv().is_ok() {}
        bed.put("not/yet", value); // a file in it
        hint(&mut new).await;
    }
    let (mut second, watching) = bed.watch("not/yet@1");
    hint(&mut second).await;
    while new.try_recv().is_ok() {}
    let name = Name::parse("not/yet").unwrap();
    Store::open(bed.dir()).unwrap().remove(&name).unwrap();
    hint(&mut new).await;
    hint(&mut second).await;
    bed.cancel.cancel();
    tokio::time::timeout(GUARD, watching)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_watch_outlives_the_store_and_everything_above_it() {
    let bed = Bed::empty();
    let (mut hints, watching) = bed.watch("a");
    hint(&mut hints).await;
    for round in 1..=3 {
        bed.init();
        bed.put("a", "new");
        // the hints go on until the value is there to be fetched, and the last one comes after it
        loop {
            hint(&mut hints).await;
            if let Ok(Fetched::Object(object)) = bed.fetch("a", None).await {
                assert_eq!(shown(&object), ("1", "new".into()), "round {round}");
                break;
            }
        }
        bed.put("a", "newer");
        loop {
            hint(&mut hints).await;
            if shown(&bed.object("a", None).await).0 == "2" {
                break;
            }
        }
        let gone = [
            bed.dir(),
            bed.dir().join("secrets"),
            bed.root.path().join("at"),
        ];
        fs::remove_dir_all(&gone[round - 1]).unwrap();
        if round == 2 {
            fs::remove_dir_all(bed.dir()).unwrap();
        }
        loop {
            hint(&mut hints).await;
            if bed.fetch("a", None).await.is_err() && !bed.dir().exists() {
                break;
            }
        }
    }
    bed.cancel.cancel();
    tokio::time::timeout(GUARD, watching)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
