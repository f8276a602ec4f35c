//! What moves which number: volumes, sources and stores on a clock that the test moves.

use std::{
    collections::BTreeMap,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use secretfs::{
    admin::scrape::{Scrape, Scraped as Parts},
    backend::{Backend, Cx, Want, instrumented::Instrumented},
    caller::Credentials,
    clock::{Clock as _, Wall},
    error::codes,
    observe::{
        audit::Audit,
        log,
        metrics::{Lookup, Metrics, Moment},
    },
    secret::{Lease, SecretBytes},
    spec::{BackendName, Refresh},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    bed::{Bed, Fault, asked, code, refused, request, request_as, spec, spec_every, volume},
    clock::ManualClock,
    scrape::Scraped,
    scripted::{Answer, AskedWho, Leases, Scripted, pod},
};

/// What was counted, of a node on which nothing is.
pub fn counted(metrics: &Metrics) -> Scraped {
    let scraped = Scraped::parse(&metrics.text(&Moment {
        build: ["1", "c"],
        volumes: BTreeMap::new(),
        oldest: None,
        memory: Vec::new(),
        leases: BTreeMap::new(),
        audit_dropped: 0,
        reload_successful: true,
        reloaded_at: Wall::from_millis(0),
    }));
    scraped.is_of_the_table();
    scraped
}

/// The whole answer for a bed.
async fn scrape(bed: &Bed) -> Scraped {
    let scraped = Scraped::parse(&scraper(bed).text().await);
    scraped.is_of_the_table();
    scraped
}

fn scraper(bed: &Bed) -> Scrape {
    Scrape::new(Parts {
        metrics: bed.metrics.clone(),
        volumes: bed.volumes.clone(),
        audit: Audit::off(),
        commit: "c",
        config: Box::new(|| (true, Wall::from_millis(0))),
    })
}

/// What `act` moves.
async fn moved(bed: &Bed, act: impl Future<Output = ()>) -> Vec<String> {
    let before = counted(&bed.metrics);
    act.await;
    counted(&bed.metrics).since(&before)
}

// --- stores

/// A store that is counted, and the object `db` of it.
struct Counted {
    clock: Arc<ManualClock>,
    script: Scripted,
    backend: Arc<dyn Backend>,
    metrics: Metrics,
}

impl Counted {
    fn new() -> Self {
        let (script, metrics) = (Scripted::default(), Metrics::default());
        let name = BackendName::parse("a").unwrap();
        let meter = metrics.backend(&name);
        Self {
            clock: ManualClock::new(),
            backend: Arc::new(Instrumented::new(name, Arc::new(script.clone()), meter)),
            script,
            metrics,
        }
    }

    fn cx(&self) -> Cx {
        Cx {
            deadline: self.clock.now().after(Duration::from_secs(30)),
            cancel: CancellationToken::new(),
            clock: self.clock.clone(),
        }
    }

    /// One request in a task of its own, as the runner makes it; what it moves.
    async fn request<F>(&self, request: impl FnOnce(Arc<dyn Backend>, Cx) -> F) -> Vec<String>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let before = counted(&self.metrics);
        let _ = tokio::spawn(request(self.backend.clone(), self.cx())).await; // an error: it panicked
        counted(&self.metrics).since(&before)
    }

    async fn fetch(&self) -> Vec<String> {
        let fetch = |backend: Arc<dyn Backend>, cx| async move {
            let (who, spec) = (pod("web", "shop"), spec(&["x < a:db"]));
            let want = Want {
                object: &spec.objects[0],
                who: &who,
                proof: &Credentials::default(),
                have: None,
            };
            let _ = backend.fetch(&cx, want).await;
        };
        self.request(fetch).await
    }
}

#[tokio::test(start_paused = true)]
async fn each_request_to_a_store_is_counted_once_by_what_came_of_it() {
    let store = Counted::new();
    let fetched = |result: &str| {
        [
            "backend_request_duration_seconds_count{backend=\"a\",operation=\"fetch\"} +1".into(),
            format!(
                "backend_requests_total{{backend=\"a\",operation=\"fetch\",result=\"{result}\"}} +1"
            ),
        ]
    };
    assert_eq!(store.fetch().await, fetched("backend.not_found"));
    store.script.put("db", "one");
    assert_eq!(store.fetch().await, fetched("ok"));
    let down = Answer::Fail(&codes::BACKEND_THROTTLED, None);
    store.script.answer("db", down);
    assert_eq!(store.fetch().await, fetched("backend.throttled"));
    store.script.answer("db", Answer::Panic);
    assert_eq!(store.fetch().await, fetched("bug"));

    let lease = |clock: &ManualClock| Lease {
        expires_at: clock.now().after(Duration::from_secs(60)),
        renewable: true,
        handle: Arc::new(SecretBytes::new(b"0".to_vec())),
    };
    store.script.script("db", |script| {
        (script.answer, script.leases) = (
            Answer::Value,
            Some(Leases {
                renewable: true,
                ttl: Duration::from_secs(60),
                max_ttl: Duration::from_secs(60),
            }),
        );
    });
    assert_eq!(store.fetch().await, fetched("ok"));
    let held = lease(&store.clock);
    let renewed = store.request(|backend, cx| async move { drop(backend.renew(&cx, &held).await) });
    let held = lease(&store.clock);
    assert_eq!(
        renewed.await,
        [
            "backend_request_duration_seconds_count{backend=\"a\",operation=\"renew\"} +1",
            "backend_requests_total{backend=\"a\",operation=\"renew\",result=\"ok\"} +1",
        ]
    );
    let revoked =
        store.request(|backend, cx| async move { drop(backend.revoke(&cx, &held).await) });
    assert_eq!(
        revoked.await,
        [
            "backend_request_duration_seconds_count{backend=\"a\",operation=\"revoke\"} +1",
            "backend_requests_total{backend=\"a\",operation=\"revoke\",result=\"ok\"} +1",
        ]
    );
    let watch = |backend: Arc<dyn Backend>, cx: Cx| async move {
        let (who, spec) = (pod("web", "shop"), spec(&["x < a:none"]));
        let want = Want {
            object: &spec.objects[0],
            who: &who,
            proof: &Credentials::default(),
            have: None,
        };
        let _ = backend.watch(&cx, want, &|| {}).await;
    };
    assert_eq!(
        store.request(watch).await,
        [
            "backend_requests_total{backend=\"a\",operation=\"watch\",result=\"backend.not_found\"} +1"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_the_time_that_it_takes() {
    let store = Counted::new();
    store.script.put("db", "one");
    let slow = Duration::from_millis(30);
    store.script.answer("db", Answer::Slow(slow));
    let (fetched, ()) = tokio::join!(store.fetch(), store.clock.pass(slow));
    assert_eq!(fetched.len(), 2);
    let all = counted(&store.metrics);
    let name = "secretfs_backend_request_duration_seconds";
    let labels = "backend=\"a\",operation=\"fetch\"";
    let bucket = |le: &str| all.value(&format!("{name}_bucket{{{labels},le=\"{le}\"}}"));
    assert_eq!((bucket("0.025"), bucket("0.05")), (0.0, 1.0));
    assert_eq!(all.value(&format!("{name}_sum{{{labels}}}")), 0.03);
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_found_missing_or_shared() {
    let bed = Bed::new();
    let found = |result: &str, times: u8| {
        format!("cache_requests_total{{backend=\"a\",result=\"{result}\"}} +{times}")
    };
    bed.a.put("db", "one");
    let x = spec(&["x < a:db"]);
    let publish = |id: &'static str| async {
        bed.publish(id, &x).await.unwrap();
    };
    assert_eq!(moved(&bed, publish("v")).await, [found("miss", 1)]);
    assert_eq!(moved(&bed, publish("w")).await, [found("hit", 1)]);
    assert_eq!(
        moved(&bed, publish("w")).await,
        [] as [&str; 0],
        "a republish"
    );

    bed.a.put("slow", "one");
    bed.a.answer("slow", Answer::Slow(Duration::from_secs(1)));
    let slow = spec(&["x < a:slow"]);
    let at_once = async {
        let begun = ["1", "2", "3"].map(|id| bed.begin(request(id, &slow)));
        bed.pass(2).await;
        for one in begun {
            one.await.unwrap().unwrap();
        }
    };
    assert_eq!(
        moved(&bed, at_once).await,
        [found("miss", 1), found("shared", 2)]
    );
    // somebody else may not use it
    let other = async {
        let other = request_as(pod("web", "other"), "o", &x);
        bed.volumes.publish(other).await.unwrap();
    };
    assert_eq!(moved(&bed, other).await, [found("miss", 1)]);
}

#[tokio::test(start_paused = true)]
async fn leases_are_counted_while_they_are_held() {
    let bed = Bed::new();
    bed.a.put("creds", "");
    bed.a.script("creds", |script| {
        script.leases = Some(Leases {
            renewable: true,
            ttl: Duration::from_secs(3600),
            max_ttl: Duration::from_secs(36_000),
        });
    });
    let own = spec(&["x < ~a:creds"]);
    for (id, held) in [("v", 1.0), ("w", 2.0)] {
        bed.publish(id, &own).await.unwrap();
        let scraped = scrape(&bed).await;
        assert_eq!(scraped.value("secretfs_leases{backend=\"a\"}"), held);
    }
    bed.unpublish("v").await.unwrap();
    bed.pass(1).await;
    let scraped = scrape(&bed).await;
    assert_eq!(scraped.value("secretfs_leases{backend=\"a\"}"), 1.0);
}

// --- volumes

#[tokio::test(start_paused = true)]
async fn a_rotation_is_counted_by_its_end_and_timed_from_when_the_change_was_known() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    let refresh = || async {
        let _ = bed.volumes.refresh(&volume("v")).await;
        bed.clock.settle().await;
    };
    assert_eq!(moved(&bed, refresh()).await, [] as [&str; 0]);
    bed.a.put("db", "two");
    let ended_well = [
        "rotation_duration_seconds_count +1",
        "rotations_total{result=\"ok\"} +1",
    ];
    assert_eq!(moved(&bed, refresh()).await, ended_well);
    let sum = "secretfs_rotation_duration_seconds_sum";
    assert_eq!(
        counted(&bed.metrics).value(sum),
        0.0,
        "the clock stood still"
    );
    bed.a.put("db", "two"); // another version of the same bytes
    assert_eq!(
        moved(&bed, refresh()).await,
        ["rotations_total{result=\"unchanged\"} +1"]
    );

    bed.faults.arm(Fault::Error(&codes::MOUNT_NO_SPACE));
    bed.a.put("db", "three");
    assert_eq!(
        moved(&bed, refresh()).await,
        [
            "errors_total{code=\"mount.no_space\"} +1",
            "rotations_total{result=\"failed\"} +1"
        ]
    );
    assert_eq!(moved(&bed, bed.pass(1)).await, ended_well, "tried again");
    assert_eq!(
        counted(&bed.metrics).value(sum),
        1.0,
        "with the second until then"
    );
    assert_eq!(bed.read("v", "x").unwrap(), "three");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_counted_once_for_each_time_that_it_happens() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    bed.publish("w", &spec(&["x < a:db"])).await.unwrap();
    let down = Answer::Fail(&codes::BACKEND_UNAVAILABLE, None);
    bed.a.answer("db", down);
    let once = async { drop(bed.volumes.refresh_all().await) };
    assert_eq!(
        moved(&bed, once).await,
        ["errors_total{code=\"backend.unavailable\"} +2"],
        "for each volume"
    );
    // what is looked at and called again in between is no failure of its own
    let calls = async {
        bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
        bed.pass_ms(10).await;
    };
    assert_eq!(moved(&bed, calls).await, [] as [&str; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_spec_that_is_refused_under_a_mounted_volume_is_counted_once() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let good = "files: [{path: x, from: a:db}]";
    bed.volumes.publish(asked("v", good)).await.unwrap();
    let bad = "files: [{path: x, from: a:db, colour: red}]";
    let refuse = || async {
        let published = bed.volumes.publish(asked("v", bad)).await;
        let published = published.map_err(Into::into);
        assert_eq!(refused(&published), "spec.unknown_key");
        bed.clock.settle().await;
    };
    let all = moved(&bed, refuse()).await;
    assert_eq!(all, ["errors_total{code=\"spec.unknown_key\"} +1"]);
    for _ in 0..3 {
        assert_eq!(moved(&bed, refuse()).await, [] as [&str; 0]);
    }
}

/// Volumes in this state, and since when the oldest content is known, in seconds before now.
async fn seen(bed: &Bed, state: &str) -> (f64, Option<f64>) {
    let scraped = scrape(bed).await;
    let volumes = format!("secretfs_volumes{{mount=\"tmpfs\",state=\"{state}\"}}");
    let oldest = scraped.find("secretfs_oldest_content_timestamp_seconds");
    let now = bed.clock.wall().as_millis() as f64 / 1000.0;
    let age = oldest.map(|at| ((now - at) * 1000.0).round() / 1000.0);
    (scraped.value(&volumes), age)
}

#[tokio::test(start_paused = true)]
async fn states_and_the_age_of_content_are_those_of_the_moment() {
    let bed = Bed::new();
    assert_eq!(seen(&bed, "fresh").await, (0.0, None));
    bed.a.put("db", "one");
    bed.b.put("key", "two");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    bed.publish("w", &spec(&["x < b:key"])).await.unwrap();
    assert_eq!(seen(&bed, "fresh").await, (2.0, Some(0.0)));
    let denied = Answer::Fail(&codes::BACKEND_PERMISSION_DENIED, None);
    bed.a.answer("db", denied);
    bed.pass(600).await;
    assert_eq!(seen(&bed, "denied").await, (1.0, Some(600.0)));
    assert_eq!(seen(&bed, "fresh").await.0, 1.0);
    bed.clock.step_wall(-3600);
    assert_eq!(
        seen(&bed, "fresh").await.1,
        Some(600.0),
        "an age, shown by the wall clock of now"
    );
    bed.unpublish("v").await.unwrap();
    let (fresh, age) = seen(&bed, "fresh").await;
    assert!(
        fresh == 1.0 && age.is_some_and(|age| age <= 66.0),
        "{age:?}"
    );
    bed.unpublish("w").await.unwrap();
    assert_eq!(seen(&bed, "fresh").await, (0.0, None));
}

#[tokio::test(start_paused = true)]
async fn content_that_no_clock_asks_for_does_not_age_unless_it_is_in_doubt() {
    let bed = Bed::new();
    bed.a.script("db", |script| script.pushes = true);
    bed.a.put("db", "one");
    let never = spec_every(Refresh::Never, &["x < a:db"]);
    bed.publish("v", &never).await.unwrap();
    bed.pass(3600).await;
    assert_eq!(seen(&bed, "fresh").await, (1.0, None));
    let down = Answer::Fail(&codes::BACKEND_UNAVAILABLE, None);
    bed.a.answer("db", down);
    bed.a.put("db", "two");
    bed.pass(600).await;
    let (stale, age) = seen(&bed, "stale").await;
    assert!(
        stale == 1.0 && age.is_some_and(|age| age >= 600.0),
        "{age:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_content_is_as_old_as_the_process_at_least() {
    let mut bed = Bed::with_records();
    bed.a.put("db", "one");
    let text = "files: [{path: x, from: a:db}]";
    bed.volumes.publish(asked("v", text)).await.unwrap();
    let down = Answer::Fail(&codes::BACKEND_UNAVAILABLE, None);
    bed.a.answer("db", down);
    bed.pass(100).await;
    bed.restart().await;
    bed.volumes.restore().await;
    bed.pass(600).await;
    assert_eq!(seen(&bed, "stale").await, (1.0, Some(600.0)));
    bed.a.answer("db", Answer::Value);
    bed.volumes.refresh(&volume("v")).await.unwrap();
    assert_eq!(seen(&bed, "fresh").await, (1.0, Some(0.0)));

    // a mount of which nothing is known but that it is there
    bed.restart().await;
    for record in std::fs::read_dir(bed.records()).unwrap() {
        std::fs::remove_file(record.unwrap().path()).unwrap();
    }
    bed.volumes.restore().await;
    bed.pass(60).await;
    assert_eq!(seen(&bed, "adopted").await, (1.0, Some(60.0)));
}

#[tokio::test(start_paused = true)]
async fn memory_is_that_of_all_volumes_and_of_the_process() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    for id in ["v", "w"] {
        bed.publish(id, &spec(&["x < a:db"])).await.unwrap();
    }
    let scraped = scrape(&bed).await;
    let bytes = |kind: &str| scraped.value(&format!("secretfs_memory_bytes{{kind=\"{kind}\"}}"));
    let used: u64 = ["v", "w"]
        .map(|id| bed.status(id).unwrap().usage.unwrap().bytes)
        .iter()
        .sum();
    assert_eq!(bytes("tmpfs_used"), used as f64);
    assert!(used > 0 && bytes("resident") > 1e6);
    assert!(bytes("tmpfs_promised") <= bytes("limit"));
}

// --- panics

/// Set in a child that is this test again.
const CHILD: &str = "SECRETFS_TEST_PANICS";

/// The hook belongs to the process, so the panics are another process's.
#[test]
fn each_panic_is_counted_once_wherever_it_is_caught() {
    if std::env::var_os(CHILD).is_none() {
        let name = "metrics::events::each_panic_is_counted_once_wherever_it_is_caught";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(CHILD, "1")
            .output();
        let output = output.unwrap();
        let says = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{says}");
        assert!(says.contains("1 passed"), "{says}");
        return;
    }
    log::hide_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(async {
        let bed = Bed::new();
        bed.a.put("db", "one");
        let x = spec(&["x < a:db"]);
        let panics = |bed: &Bed| {
            let all = counted(&bed.metrics).value("secretfs_panics_total");
            assert_eq!(all, bed.volumes.panics() as f64);
            all
        };
        assert_eq!(panics(&bed), 0.0);
        bed.faults.arm(Fault::Panic); // in a call on a mount
        assert_eq!(code(&bed.publish("v", &x).await), "bug");
        assert_eq!(panics(&bed), 1.0);
        bed.a.answer("p", Answer::Panic); // in a store's request
        assert_eq!(code(&bed.publish("p", &spec(&["x < a:p"])).await), "bug");
        assert_eq!(panics(&bed), 2.0);
        bed.a.when_asked_who(AskedWho::Panic); // in a volume's task
        assert_eq!(code(&bed.publish("t", &x).await), "bug");
        assert_eq!(panics(&bed), 3.0);
    });
}

// --- the cost

/// How long a scrape takes, at its best of some: others use this machine too.
#[tokio::test(start_paused = true)]
async fn a_scrape_of_500_volumes_is_cheap() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let x = spec(&["x < a:db", "y < a:db", "z < a:db"]);
    for n in 0..500 {
        let who = pod(&format!("web-{n}"), "shop");
        let publish = request_as(who, &format!("v{n}"), &x);
        bed.volumes.publish(publish).await.unwrap();
    }
    let scraper = scraper(&bed);
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let begun = Instant::now();
        let text = scraper.text().await;
        best = best.min(begun.elapsed());
        assert!(text.contains("secretfs_volumes{mount=\"tmpfs\",state=\"fresh\"} 500\n"));
    }
    println!("a scrape of 500 volumes: {best:?}");
    assert!(best < Duration::from_millis(5), "{best:?}");
}

/// What counting adds to a publish: its call, and the look-up of a secret.
#[test]
fn counting_costs_a_publish_next_to_nothing() {
    let (metrics, name) = (Metrics::default(), BackendName::parse("a").unwrap());
    let (took, times) = (Duration::from_millis(1), 10_000);
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let begun = Instant::now();
        for _ in 0..times {
            metrics.call(Some("NodePublishVolume"), 0, took);
            metrics.backend(&name).lookup(Lookup::Hit);
        }
        best = best.min(begun.elapsed() / times);
    }
    println!("to count a publish: {best:?}");
    assert!(best < Duration::from_micros(5), "{best:?}");
}
