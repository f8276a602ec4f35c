//! Totals of pods, namespaces and the node.

use secretfs::volume::VolumeState;

use super::{change, pod, publish};
use crate::support::{
    bed::{Bed, code, spec},
    scripted::What,
};

/// What a volume with one small file may hold: three sets of one page, and sixteen pages of air.
const SMALL: u64 = 19 * 4096;

#[tokio::test(start_paused = true)]
async fn a_namespace_at_its_limit_is_refused_before_anything_is_fetched() {
    let bed = Bed::new();
    change(&bed, |settings| {
        settings.node_limits.bytes_per_namespace = 3 * SMALL;
    })
    .await;
    bed.a.put("db", "one");
    bed.a.put("more", "one");
    let (full, other) = (pod("full", "p"), pod("other", "p"));
    let (small, more) = (spec(&["x < a:db"]), spec(&["x < a:more"]));
    for id in ["v0", "v1", "v2"] {
        publish(&bed, &full, id, &small).await.unwrap();
    }
    let refused = publish(&bed, &full, "v3", &more).await;
    assert_eq!(code(&refused), "limit.exceeded");
    let told = refused.unwrap_err().to_string();
    for part in ["v3", "limits.bytesPerNamespace", "233472", "namespace full"] {
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(bed.a.count(What::Fetch, "more"), 0, "it was fetched first");
    assert!(bed.status("v3").is_none() && bed.shown("v3").is_none());
    publish(&bed, &other, "o", &more).await.unwrap();

    // who goes makes room
    bed.unpublish("v0").await.unwrap();
    bed.clock.settle().await;
    publish(&bed, &full, "v3", &more).await.unwrap();
    // one that finds no room only after it was fetched leaves nothing either
    bed.unpublish("v3").await.unwrap();
    bed.a.put("large", &"x".repeat(100_000));
    let refused = publish(&bed, &full, "v4", &spec(&["x < a:large"])).await;
    assert_eq!(code(&refused), "limit.exceeded");
    assert!(bed.status("v4").is_none() && bed.shown("v4").is_none());
    publish(&bed, &full, "v5", &small).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rotation_beyond_the_limit_keeps_the_files_and_says_so() {
    let bed = Bed::new();
    change(&bed, |settings| {
        settings.node_limits.bytes_per_node = 4 * SMALL;
    })
    .await;
    let who = pod("a", "p");
    bed.a.put("db", "small");
    bed.a.put("other", "one");
    publish(&bed, &who, "v", &spec(&["x < a:db", "y < a:other"]))
        .await
        .unwrap();
    bed.a.put("db", &"x".repeat(400_000));
    bed.pass(70).await;
    assert_eq!(bed.read("v", "x").unwrap(), "small");
    assert_eq!(bed.trouble("v").unwrap(), "limit.exceeded");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Stale);
    // a larger limit is enough
    change(&bed, |settings| {
        settings.node_limits.bytes_per_node = 1 << 30;
    })
    .await;
    bed.pass(130).await;
    assert_eq!(bed.read("v", "x").unwrap().len(), 400_000);
    assert_eq!(bed.trouble("v"), None);
}

#[tokio::test(start_paused = true)]
async fn a_pod_has_so_many_volumes_and_what_is_mounted_counts_first() {
    let mut bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    let (pod_a, pod_b) = (pod("a", "p"), pod("a", "q"));
    for nth in 0..16 {
        let id = format!("v{nth}");
        publish(&bed, &pod_a, &id, &spec).await.unwrap();
    }
    let refused = publish(&bed, &pod_a, "v16", &spec).await;
    assert_eq!(code(&refused), "limit.exceeded");
    assert!(refused.unwrap_err().to_string().contains("pod a/p"));
    publish(&bed, &pod_b, "w", &spec).await.unwrap();
    publish(&bed, &pod_a, "v3", &spec).await.unwrap(); // again

    // another process, under tighter limits: what is there is served; what is new is not
    bed.restart().await;
    change(&bed, |settings| {
        settings.node_limits.volumes_per_pod = 2;
        settings.node_limits.bytes_per_namespace = 3 * SMALL;
    })
    .await;
    for nth in 0..16 {
        let id = format!("v{nth}");
        publish(&bed, &pod_a, &id, &spec).await.unwrap();
    }
    let refused = publish(&bed, &pod_a, "v17", &spec).await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("volumesPerPod is 2")
    );
    let refused = publish(&bed, &pod("a", "r"), "v18", &spec).await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("bytesPerNamespace")
    );
    bed.a.put("db", "two");
    bed.pass(70).await;
    assert_eq!(
        bed.read("v15", "x").unwrap(),
        "two",
        "adopted and not kept current"
    );
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_fails_gives_its_place_back() {
    let bed = Bed::new();
    change(&bed, |settings| settings.node_limits.volumes_per_pod = 1).await;
    let who = pod("a", "p");
    bed.a.put("db", "one");
    for _ in 0..3 {
        let failed = publish(&bed, &who, "v", &spec(&["x < a:missing"])).await;
        assert_eq!(code(&failed), "backend.not_found");
    }
    publish(&bed, &who, "w", &spec(&["x < a:db"]))
        .await
        .unwrap();
}
