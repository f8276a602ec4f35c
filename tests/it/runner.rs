//! The runner of sources by itself: what it does with requests, whatever the pool decides.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use secretfs::{
    caller::AsksAs,
    error::codes,
    observe::metrics::Metrics,
    render::Known,
    source::{
        SourceKey, SourceView,
        bell::Bell,
        pool::{Pool, Rules},
        runner::{Sources, Subscription, Wanted},
    },
    spec::{BackendName, ObjectRef, Share},
};
use tokio::sync::watch;

use crate::support::{
    bed::{caller, volume},
    clock::ManualClock,
    scripted::{Answer, Scripted, What, pod},
};

struct Rig {
    clock: Arc<ManualClock>,
    store: Scripted,
    sources: Sources,
    panics: Arc<AtomicU64>,
}

impl Rig {
    fn new() -> Self {
        let (clock, panics) = (ManualClock::new(), Arc::default());
        let pool = Pool::new(Rules::default());
        Self {
            sources: Sources::start(clock.clone(), pool, Arc::clone(&panics), Metrics::default()),
            store: Scripted::default(),
            clock,
            panics,
        }
    }

    fn key(&self, path: &str) -> SourceKey {
        SourceKey {
            object: ObjectRef {
                backend: BackendName::parse("s").unwrap(),
                path: path.into(),
                version: None,
                params: "".into(),
                share: Share::Principal,
            },
            principal: pod("web", "shop").principal(AsksAs::ServiceAccount),
            volume: None,
            epoch: 0,
        }
    }

    async fn subscribe(
        &self,
        id: &str,
        paths: &[&str],
        wake: &Arc<Bell>,
    ) -> Vec<watch::Receiver<SourceView>> {
        let wanted = paths.iter().map(|path| Wanted {
            key: self.key(path),
            every: Some(Duration::from_secs(60)),
            pushes: true,
            optional: false,
            recent: None,
            backend: Arc::new(self.store.clone()),
        });
        let subscription = Subscription {
            volume: volume(id),
            wanted: wanted.collect(),
            caller: caller(pod("web", "shop")),
            wake: wake.clone(),
        };
        self.sources.subscribe(subscription).await.unwrap()
    }
}

fn version(view: &watch::Receiver<SourceView>) -> Option<String> {
    match &view.borrow().known {
        Known::Object(object) => Some(object.version.as_str().to_owned()),
        Known::Unknown | Known::Absent | Known::Withdrawn => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_view_is_shown_to_all_and_everybody_is_woken() {
    let rig = Rig::new();
    rig.store.put("x", "one");
    let (first, second) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    let seen = rig.subscribe("v", &["x"], &first).await;
    rig.clock.settle().await;
    assert_eq!(version(&seen[0]).as_deref(), Some("1"));
    // one who comes later sees it at once, without another request
    let late = rig.subscribe("w", &["x"], &second).await;
    assert_eq!(version(&late[0]).as_deref(), Some("1"));
    assert_eq!(rig.store.count(What::Fetch, "x"), 1);

    first.rung().await; // it was woken by the first value
    let woken = tokio::time::timeout(Duration::ZERO, first.rung()).await;
    assert!(woken.is_err(), "a newcomer is no news for the others");

    rig.store.put("x", "two");
    rig.clock.pass(Duration::from_secs(1)).await;
    first.rung().await;
    second.rung().await;
    assert_eq!(version(&late[0]).as_deref(), Some("2"));

    // after all have left nothing is kept
    let weak = match &late[0].borrow().known {
        Known::Object(object) => Arc::downgrade(object),
        Known::Unknown | Known::Absent | Known::Withdrawn => unreachable!(),
    };
    drop((seen, late));
    rig.sources.unsubscribe(&volume("v"));
    rig.sources.unsubscribe(&volume("w"));
    rig.clock.settle().await;
    assert!(
        weak.upgrade().is_none(),
        "a secret is kept that nobody wants"
    );
    assert_eq!(rig.store.watchers("x"), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_keeps_one_source_lets_go_of_the_others() {
    let rig = Rig::new();
    rig.store.put("x", "one");
    rig.store.put("y", "one");
    let wake = Arc::new(Bell::default());
    let seen = rig.subscribe("v", &["x", "y"], &wake).await;
    rig.clock.settle().await;
    rig.sources.retain(&volume("v"), vec![rig.key("y")]);
    rig.clock.settle().await;
    assert_eq!((rig.store.watchers("x"), rig.store.watchers("y")), (0, 1));
    assert!(
        seen[0].has_changed().is_err(),
        "the channel of a source that is gone is open"
    );
    rig.store.put("y", "two");
    rig.clock.pass(Duration::from_secs(1)).await;
    assert_eq!(version(&seen[1]).as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_left_and_wanted_again_has_one_watch() {
    let rig = Rig::new();
    rig.store.put("x", "one");
    let wake = Arc::new(Bell::default());
    rig.subscribe("v", &["x"], &wake).await;
    rig.clock.settle().await;
    rig.sources.unsubscribe(&volume("v"));
    let seen = rig.subscribe("v", &["x"], &wake).await;
    rig.clock.pass(Duration::from_secs(600)).await;
    assert_eq!(rig.store.watchers("x"), 1);
    assert_eq!(rig.store.count(What::Watch, "x"), 2);
    assert_eq!(version(&seen[0]).as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn a_chatty_watch_fills_no_queue() {
    let rig = Rig::new();
    rig.store.put("x", "one");
    let wake = Arc::new(Bell::default());
    let seen = rig.subscribe("v", &["x"], &wake).await;
    rig.clock.settle().await;
    for n in 0..10_000 {
        rig.store.put("x", &n.to_string());
    }
    rig.clock.pass(Duration::from_secs(1)).await;
    assert_eq!(version(&seen[0]).as_deref(), Some("10001"));
    assert!(rig.store.count(What::Fetch, "x") <= 3);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_panics_fails_its_request_and_is_counted() {
    let rig = Rig::new();
    rig.store.put("good", "one");
    rig.store.answer("bad", Answer::Panic);
    let wake = Arc::new(Bell::default());
    let seen = rig.subscribe("v", &["bad", "good"], &wake).await;
    rig.clock.settle().await;
    let error = seen[0].borrow().error.clone().unwrap();
    assert_eq!(error.code(), &codes::BUG);
    assert!(rig.panics.load(Ordering::Relaxed) >= 1);
    assert_eq!(version(&seen[1]).as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn a_stop_tells_requests_to_end_and_waits_for_them() {
    let rig = Rig::new();
    rig.store.answer("hung", Answer::Hang);
    rig.store
        .answer("deaf", Answer::Deaf(Duration::from_secs(2)));
    rig.store.put("watched", "one");
    let wake = Arc::new(Bell::default());
    let _seen = rig
        .subscribe("v", &["hung", "deaf", "watched"], &wake)
        .await;
    rig.clock.settle().await;
    assert_eq!((rig.store.running(), rig.store.watchers("watched")), (2, 1));
    let sources = rig.sources.clone();
    let stop = tokio::spawn(async move { sources.stop().await });
    rig.clock.settle().await;
    assert_eq!((rig.store.running(), rig.store.watchers("watched")), (1, 0));
    assert!(!stop.is_finished(), "a request was dropped halfway");
    rig.clock.pass(Duration::from_secs(2)).await;
    stop.await.unwrap();
    assert_eq!(rig.store.running(), 0);
    rig.sources.stop().await; // again: no harm
}

#[tokio::test(start_paused = true)]
async fn a_request_has_a_deadline() {
    let rig = Rig::new();
    rig.store.answer("hung", Answer::Hang);
    let wake = Arc::new(Bell::default());
    let seen = rig.subscribe("v", &["hung"], &wake).await;
    rig.clock.pass(Duration::from_secs(29)).await;
    assert!(seen[0].borrow().in_flight);
    rig.clock.pass(Duration::from_secs(1)).await;
    let error = seen[0].borrow().error.clone().unwrap();
    assert_eq!(error.code(), &codes::BACKEND_TIMEOUT);
}
