//! The configuration changes while volumes are mounted.

use std::{fs, path::Path, sync::Arc, time::Duration};

use secretfs::{
    backend::registry::{self, Registry},
    config::{Config, Env},
    mount::{memory::MemoryMounter, tmpfs::TmpfsMounter},
    policy::{Pattern, Policy, PolicyLine},
    secret::SecretBytes,
    spec::{BackendName, Refresh},
    store::{Name, Store, keys::Identities, keys::Recipients},
    volume::{Settings, VolumeState},
};

use super::{change, pod, publish};
use crate::support::{
    bed::{Bed, request_as, spec, spec_every},
    sandbox::Sandbox,
    scripted::{Answer, AskedWho, Leases, Scripted, What},
};

fn name(text: &str) -> BackendName {
    BackendName::parse(text).unwrap()
}

/// Puts another backend in the place of `b`.
async fn replace_b(bed: &Bed, by: &Scripted) {
    change(bed, |settings| {
        let registry = std::mem::take(&mut settings.registry);
        settings.registry = registry.with(name("b"), Arc::new(by.clone()));
    })
    .await;
}

fn allowing(pattern: &str) -> Policy {
    Policy::new(vec![PolicyLine {
        namespaces: vec!["n".into()],
        service_accounts: vec!["*".into()],
        allow: vec![(name("b"), Pattern::parse(pattern).unwrap())],
    }])
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_changed_is_followed_and_the_others_are_not_asked() {
    let bed = Bed::new();
    bed.a.put("x", "kept");
    bed.b.put("y", "old");
    let spec = spec(&["x < a:x", "y < b:y"]);
    let who = pod("n", "p");
    publish(&bed, &who, "v", &spec).await.unwrap();
    let asked = bed.a.count(What::Fetch, "x");
    let new = Scripted::default();
    new.put("y", "new");
    new.answer("y", Answer::Slow(Duration::from_secs(5)));
    replace_b(&bed, &new).await;
    assert_eq!(new.running(), 1, "it waits for a republish");
    bed.pass(4).await;
    assert_eq!(
        bed.read("v", "y").unwrap(),
        "old",
        "before the new one has answered"
    );
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
    bed.pass(2).await;
    assert_eq!(bed.read("v", "y").unwrap(), "new");
    assert_eq!(
        bed.a.count(What::Fetch, "x"),
        asked,
        "nothing had changed there"
    );
    let before = bed.b.asked().len();
    bed.pass(300).await;
    assert_eq!(bed.b.asked().len(), before, "the old one is asked");
    // a republish finds all settled
    let swaps = bed.shown("v").unwrap().swaps;
    let asked = new.count(What::Fetch, "y");
    publish(&bed, &who, "v", &spec).await.unwrap();
    assert_eq!(new.count(What::Fetch, "y"), asked);
    assert_eq!(bed.shown("v").unwrap().swaps, swaps);
}

#[tokio::test(start_paused = true)]
async fn a_new_backend_that_fails_leaves_the_files_and_is_mended_by_the_next_change() {
    let bed = Bed::new();
    bed.b.put("y", "old");
    publish(&bed, &pod("n", "p"), "v", &spec(&["y < b:y"]))
        .await
        .unwrap();
    replace_b(&bed, &Scripted::default()).await; // it has nothing
    bed.pass(300).await;
    assert_eq!(bed.read("v", "y").unwrap(), "old");
    assert_eq!(bed.trouble("v").unwrap(), "backend.not_found");
    let mended = Scripted::default();
    mended.put("y", "new");
    replace_b(&bed, &mended).await;
    bed.pass(1).await;
    assert_eq!(bed.read("v", "y").unwrap(), "new");
    assert_eq!(bed.trouble("v"), None);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_denies_keeps_the_files_asks_no_more_and_goes_on_when_it_allows() {
    let bed = Bed::new();
    bed.b.when_asked_who(AskedWho::Node);
    bed.a.put("x", "one");
    bed.b.put("y", "one");
    change(&bed, |settings| settings.policy = allowing("**")).await;
    let (spec, who) = (spec(&["x < a:x", "y < b:y"]), pod("n", "p"));
    publish(&bed, &who, "v", &spec).await.unwrap();

    change(&bed, |settings| settings.policy = allowing("other")).await;
    let asked = bed.b.asked().len();
    bed.a.put("x", "two");
    bed.b.put("y", "two");
    for _ in 0..3 {
        bed.pass(100).await;
        publish(&bed, &who, "v", &spec).await.unwrap(); // the kubelet's republish
        assert_eq!(bed.read("v", "y").unwrap(), "one");
        assert_eq!(bed.trouble("v").unwrap(), "policy.denied");
        assert_eq!(bed.status("v").unwrap().state, VolumeState::Denied);
    }
    assert_eq!(bed.read("v", "x").unwrap(), "two", "the others go on");
    assert_eq!(bed.b.asked().len(), asked, "it is asked all the same");
    // nothing that matters to it has changed
    let since = bed.status("v").unwrap().error.unwrap().since;
    change(&bed, |settings| settings.policy = allowing("another")).await;
    assert_eq!(bed.status("v").unwrap().error.unwrap().since, since);
    // a new volume is refused
    let refused = publish(&bed, &pod("n", "q"), "w", &spec).await;
    assert_eq!(refused.unwrap_err().code().name, "policy.denied");

    change(&bed, |settings| settings.policy = allowing("**")).await;
    bed.pass(1).await;
    assert_eq!(bed.read("v", "y").unwrap(), "two");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_backend_removed_and_put_back_goes_on() {
    let bed = Bed::new();
    bed.b.script("y", |script| script.pushes = true);
    bed.b.put("y", "one");
    let (spec, who) = (spec_every(Refresh::Never, &["y < b:y"]), pod("n", "p"));
    publish(&bed, &who, "v", &spec).await.unwrap();
    let with = bed.settings.borrow().registry.clone();
    change(&bed, |settings| {
        let registry = std::mem::take(&mut settings.registry);
        settings.registry = registry.without(&name("b"));
    })
    .await;
    assert_eq!(bed.b.watchers("y"), 0, "it is watched all the same");
    bed.b.put("y", "two");
    bed.pass(100).await;
    publish(&bed, &who, "v", &spec).await.unwrap();
    assert_eq!(bed.read("v", "y").unwrap(), "one");
    assert_eq!(bed.trouble("v").unwrap(), "policy.unknown_backend");
    let told = bed.status("v").unwrap().error.unwrap().message;
    assert!(
        told.contains("no longer in the node's configuration"),
        "{told}"
    );
    change(&bed, |settings| settings.registry = with).await;
    bed.pass(1).await;
    assert_eq!(bed.read("v", "y").unwrap(), "two");
    assert_eq!(bed.trouble("v"), None);
    assert_eq!(bed.b.watchers("y"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_the_former_backend_lives_until_its_successor_is_shown() {
    let bed = Bed::new();
    let leases = Some(Leases {
        renewable: true,
        ttl: Duration::from_secs(600),
        max_ttl: Duration::from_secs(6000),
    });
    bed.b.put("y", "any");
    bed.b.script("y", |script| script.leases = leases);
    publish(&bed, &pod("n", "p"), "v", &spec(&["y < b:y"]))
        .await
        .unwrap();
    let new = Scripted::default();
    new.put("y", "fixed");
    new.answer("y", Answer::Slow(Duration::from_secs(20)));
    replace_b(&bed, &new).await;
    bed.pass(19).await;
    assert_eq!(bed.read("v", "y").unwrap(), "user-0");
    assert!(bed.b.leases()[0].revoked_at.is_none(), "readers see it");
    bed.pass(2).await;
    assert_eq!(bed.read("v", "y").unwrap(), "fixed");
    assert!(bed.b.leases()[0].revoked_at.is_some(), "nobody needs it");
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_waits_ends_by_what_it_began_with_and_then_follows() {
    let bed = Bed::new();
    bed.b.put("y", "old");
    bed.b.answer("y", Answer::Slow(Duration::from_secs(10)));
    let task = bed.begin(request_as(pod("n", "p"), "v", &spec(&["y < b:y"])));
    bed.pass(1).await;
    let new = Scripted::default();
    new.put("y", "new");
    replace_b(&bed, &new).await;
    bed.pass(10).await;
    task.await.unwrap().unwrap();
    assert_eq!(bed.read("v", "y").unwrap(), "new");
}

// --- the embedded store, on real mounts

fn store(dir: &Path, value: &str) {
    let (public, _) = Identities::load_or_make(&dir.with_extension("age")).unwrap();
    let store = Store::init(dir, &Recipients::of(&public).unwrap()).unwrap();
    let secret = SecretBytes::new(value.as_bytes().to_vec());
    store.put(&Name::parse("db").unwrap(), &secret).unwrap();
}

fn config(stores: &[(&str, &Path)]) -> Config {
    let mut text = "backends:\n".to_owned();
    for (name, dir) in stores {
        let (path, identity) = (dir.display(), dir.with_extension("age"));
        let identity = identity.display();
        text += &format!("  {name}: {{kind: store, path: {path}, identity: {identity}}}\n");
    }
    Config::parse(&text, &Env::default(), &registry::problems).unwrap()
}

#[test]
fn only_what_changed_is_built_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two, three) = (
        dir.path().join("one"),
        dir.path().join("two"),
        dir.path().join("three"),
    );
    let first = Registry::build(&config(&[("a", &one), ("b", &two)]), 0).unwrap();
    let epoch = |registry: &Registry, of: &str| registry.named(&name(of)).map(|named| named.1);
    assert_eq!((epoch(&first, "a"), epoch(&first, "b")), (Some(0), Some(0)));
    // another order, another style, another line
    let again = Registry::rebuild(&first, &config(&[("b", &three), ("a", &one)])).unwrap();
    assert_eq!((epoch(&again, "a"), epoch(&again, "b")), (Some(0), Some(1)));
    let same = |one: &Registry, other: &Registry, of: &str| {
        let of = name(of);
        Arc::ptr_eq(one.backend(&of).unwrap(), other.backend(&of).unwrap())
    };
    assert!(same(&first, &again, "a") && !same(&first, &again, "b"));
    let without = Registry::rebuild(&again, &config(&[("a", &one)])).unwrap();
    assert_eq!(epoch(&without, "b"), None);
    let back = Registry::rebuild(&without, &config(&[("a", &one), ("b", &three)])).unwrap();
    assert_eq!((epoch(&back, "a"), epoch(&back, "b")), (Some(0), Some(3)));
}

#[test]
fn a_mounted_volume_goes_over_to_another_store() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("secrets");
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    store(&one, "from one");
    store(&two, "from two");
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let bed = Bed::on(Arc::new(TmpfsMounter::default()), MemoryMounter::default());
        let old = Registry::build(&config(&[("s", &one)]), 7).unwrap();
        let allow = Policy::new(vec![PolicyLine {
            namespaces: vec!["*".into()],
            service_accounts: vec!["*".into()],
            allow: vec![(name("s"), Pattern::parse("**").unwrap())],
        }]);
        bed.settings.send_replace(Arc::new(Settings {
            registry: old.clone(),
            policy: allow,
            ..Settings::default()
        }));
        let mut request = request_as(pod("n", "p"), "v", &spec(&["x < s:db"]));
        request.target = target.clone();
        bed.volumes.publish(request).await.unwrap();
        let read = || fs::read_to_string(target.as_path().join("x")).unwrap();
        assert_eq!(read(), "from one");
        let new = Registry::rebuild(&old, &config(&[("s", &two)])).unwrap();
        change(&bed, |settings| settings.registry = new).await;
        bed.pass(2).await;
        assert_eq!(read(), "from two");
        change(&bed, |settings| settings.policy = Policy::default()).await;
        bed.pass(2).await;
        assert_eq!(read(), "from two");
        assert_eq!(bed.trouble("v").unwrap(), "policy.denied");
        bed.unpublish_at(&target).await.unwrap();
    });
    assert!(sandbox.layers(&target).is_empty());
}
