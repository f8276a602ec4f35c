//! Calls: publish, republish, update, refresh, unpublish, restart; twice, at once, and by callers who go away.

use std::{
    future::{Future as _, poll_fn},
    task::Poll,
    time::Duration,
};

use secretfs::{
    error::codes,
    path::Mode,
    render::Generation,
    volume::{Placing, VolumeState},
};

use crate::support::{
    bed::{Bed, code, refused, request, request_as, spec, target, volume},
    scripted::{Answer, What, pod},
};

#[tokio::test(start_paused = true)]
async fn a_publish_waits_for_every_source_and_then_all_files_are_there() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.b.put("key", "two");
    bed.b.answer("key", Answer::Slow(Duration::from_secs(3)));
    let publish = bed.begin(request("v", &spec(&["x < a:db", "y/z < b:key"])));
    bed.pass_ms(2_999).await;
    assert!(!publish.is_finished());
    assert!(bed.shown("v").is_none(), "half a volume was mounted");
    bed.pass_ms(1).await;
    let published = publish.await.unwrap().unwrap();
    assert_eq!(published.generation, Generation(1));
    assert_eq!((published.files, published.adopted), (Some(2), false));
    assert!(published.refused.is_none());
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    assert_eq!(bed.read("v", "y/z").unwrap(), "two");
    let status = bed.status("v").unwrap();
    assert_eq!((status.state, status.generation), (VolumeState::Fresh, 1));
    assert_eq!(status.owner, "shop/web");
    assert_eq!(status.sources[1].version.as_deref(), Some("1"));
    assert!(status.changed_at.is_some() && status.usage.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_fails_leaves_nothing_behind() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let result = bed.publish("v", &spec(&["x < a:db", "y < b:none"])).await;
    assert_eq!(code(&result), "backend.not_found");
    assert!(bed.shown("v").is_none());
    assert!(bed.volumes.status().is_empty());
    let asked = bed.a.asked().len();
    bed.pass(3600).await;
    assert_eq!(bed.a.asked().len(), asked, "somebody still asks");
    assert_eq!(
        code(&bed.volumes.refresh(&volume("v")).await),
        "volume.unknown"
    );
    // and it can be asked for again
    bed.b.put("none", "two");
    bed.publish("v", &spec(&["x < a:db", "y < b:none"]))
        .await
        .unwrap();
    assert_eq!(bed.read("v", "y").unwrap(), "two");
}

#[tokio::test(start_paused = true)]
async fn an_optional_file_may_be_absent_and_come_later() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db", "y? < b:later"]);
    bed.publish("v", &spec).await.unwrap();
    assert_eq!(
        (bed.read("v", "x").is_some(), bed.read("v", "y")),
        (true, None)
    );
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
    bed.pass(3600).await;
    let status = bed.status("v").unwrap();
    assert!(status.checked_seconds_ago.unwrap() <= 66.0, "{status:?}");
    bed.b.put("later", "two");
    bed.pass(67).await;
    assert_eq!(bed.read("v", "y").unwrap(), "two");
}

#[tokio::test(start_paused = true)]
async fn a_removed_secret_takes_an_optional_file_along_and_no_other() {
    let bed = Bed::new();
    bed.a.put("must", "one");
    bed.b.put("may", "one");
    let spec = spec(&["x < a:must", "y? < b:may"]);
    bed.publish("v", &spec).await.unwrap();
    for store in [&bed.a, &bed.b] {
        let gone = Answer::Fail(&codes::BACKEND_NOT_FOUND, None);
        store.answer("may", gone.clone());
        store.answer("must", gone);
    }
    bed.pass(67).await;
    assert_eq!(bed.read("v", "y"), None);
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    assert_eq!(bed.trouble("v").unwrap(), "backend.not_found");
    bed.a.answer("must", Answer::Value);
    bed.pass(67).await;
    let status = bed.status("v").unwrap();
    assert_eq!(status.state, VolumeState::Fresh, "{status:?}");
    bed.b.answer("may", Answer::Value);
    bed.pass(67).await;
    assert_eq!(bed.read("v", "y").unwrap(), "one");
}

#[tokio::test(start_paused = true)]
async fn a_republish_asks_no_store_and_does_not_wait_for_one() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.publish("v", &spec).await.unwrap();
    bed.a.answer("db", Answer::Hang);
    let asked = bed.a.asked().len();
    for _ in 0..5 {
        let again = bed.publish("v", &spec).await.unwrap(); // the clock stands still
        assert_eq!((again.generation, again.files), (Generation(1), Some(1)));
    }
    assert_eq!(bed.a.asked().len(), asked);
    assert_eq!(bed.shown("v").unwrap().swaps, 0);
}

#[tokio::test(start_paused = true)]
async fn another_spec_is_the_next_generation_or_nothing_changes() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.b.put("key", "two");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();

    let bad = bed.publish("v", &spec(&["x < a:db", "y < b:none"])).await;
    assert_eq!(refused(&bad), "backend.not_found");
    assert_eq!(bed.trouble("v").unwrap(), "backend.not_found");
    let bad = bed.publish("v", &spec(&["y < b:key#field"])).await;
    assert_eq!(refused(&bad), "render.not_fields");
    assert_eq!(bed.trouble("v").unwrap(), "render.not_fields");
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    bed.a.put("db", "one more"); // the old rules are still in force
    bed.pass(120).await;
    assert_eq!(bed.read("v", "x").unwrap(), "one more");
    assert_eq!(bed.read("v", "y"), None);

    let good = bed.publish("v", &spec(&["y < b:key"])).await.unwrap();
    assert_eq!(good.generation, Generation(3));
    assert_eq!(
        (bed.read("v", "x"), bed.read("v", "y").as_deref()),
        (None, Some("two"))
    );
    let asked = bed.a.asked().len();
    bed.pass(600).await;
    assert_eq!(bed.a.asked().len(), asked, "the old source is still asked");
}

#[tokio::test(start_paused = true)]
async fn an_update_whose_store_hangs_stops_neither_rotation_nor_republish() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.b.put("key", "two");
    bed.b.answer("key", Answer::Hang);
    let old = spec(&["x < a:db"]);
    bed.publish("v", &old).await.unwrap();
    let update = bed.begin(request("v", &spec(&["x < a:db", "y < b:key"])));
    bed.clock.settle().await;
    bed.a.put("db", "new");
    bed.volumes.refresh(&volume("v")).await.unwrap();
    assert_eq!(bed.read("v", "x").unwrap(), "new");
    assert_eq!(code(&bed.publish("v", &old).await), "mount.busy");
    bed.pass(31).await;
    assert_eq!(refused(&update.await.unwrap()), "backend.timeout");
    let old = bed.publish("v", &old).await;
    assert_eq!(refused(&old), "ok");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn of_two_publishes_at_once_the_second_is_busy() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.a.answer("db", Answer::Slow(Duration::from_secs(1)));
    let spec = spec(&["x < a:db"]);
    let first = bed.begin(request("v", &spec));
    bed.clock.settle().await;
    let mut elsewhere = request("v", &spec);
    elsewhere.target = target("elsewhere");
    let other = crate::support::bed::spec(&["y < a:db"]);
    for second in [request("v", &spec), request("v", &other), elsewhere] {
        let refused = bed.volumes.publish(second).await.unwrap_err();
        assert_eq!(refused.error.code(), &codes::MOUNT_BUSY);
        assert!(!refused.served);
    }
    bed.pass(1).await;
    first.await.unwrap().unwrap();
    assert_eq!(bed.a.count(What::Fetch, "db"), 1);
    // and where a volume is served
    bed.a.put("key", "two");
    bed.a.answer("key", Answer::Slow(Duration::from_secs(1)));
    let update = bed.begin(request("v", &crate::support::bed::spec(&["y < a:key"])));
    bed.clock.settle().await;
    let refused = bed.volumes.publish(request("v", &spec)).await.unwrap_err();
    assert!(refused.served && refused.error.code() == &codes::MOUNT_BUSY);
    bed.pass(1).await;
    update.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ours_is_refused_and_left_alone() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.mounts.occupy(&target("v"));
    assert_eq!(code(&bed.publish("v", &spec).await), "mount.foreign");
    bed.unpublish("v").await.unwrap();
    assert_eq!(
        code(&bed.publish("v", &spec).await),
        "mount.foreign",
        "it was unmounted"
    );
    assert!(bed.a.asked().is_empty());

    bed.publish("w", &spec).await.unwrap();
    let mut elsewhere = request("w", &spec);
    elsewhere.target = target("elsewhere");
    let elsewhere = bed.volumes.publish(elsewhere).await;
    assert_eq!(code(&elsewhere), "volume.elsewhere");
    assert!(elsewhere.unwrap_err().served);
    for change in [
        |placing: &mut Placing| placing.group = Some(7),
        |placing: &mut Placing| placing.context = Some("a_t".into()),
        |placing: &mut Placing| placing.make_target = true,
    ] {
        let mut otherwise = request("w", &spec);
        change(&mut otherwise.placing);
        let otherwise = bed.volumes.publish(otherwise).await;
        assert_eq!(code(&otherwise), "volume.elsewhere");
    }
    let mut anothers = request("u", &spec);
    anothers.target = target("w");
    assert_eq!(code(&bed.volumes.publish(anothers).await), "mount.held");
    let (u, w) = (volume("u"), target("w"));
    bed.volumes.unpublish(&u, Some(w), true).await.unwrap();
    assert_eq!(
        bed.read("w", "x").unwrap(),
        "one",
        "another volume's mount was taken down"
    );
}

#[tokio::test(start_paused = true)]
async fn unpublish_takes_all_down_and_may_be_called_again() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    let mut follow = bed.volumes.follow(&volume("v")).await.unwrap();
    assert!(follow.borrow_and_update().is_some());
    bed.unpublish("v").await.unwrap();
    assert!(bed.shown("v").is_none() && bed.volumes.status().is_empty());
    assert!(
        follow.borrow_and_update().is_none(),
        "a follower still has the files"
    );
    bed.unpublish("v").await.unwrap();
    bed.volumes
        .unpublish(&volume("never-seen"), None, true)
        .await
        .unwrap();
    let asked = bed.a.asked().len();
    bed.pass(3600).await;
    assert_eq!(bed.a.asked().len(), asked);
    // and it can be published again
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    assert_eq!(bed.read("v", "x").unwrap(), "one");
}

#[tokio::test(start_paused = true)]
async fn unpublish_overtakes_a_publish_that_hangs() {
    let bed = Bed::new();
    bed.a.answer("db", Answer::Hang);
    let publish = bed.begin(request("v", &spec(&["x < a:db"])));
    bed.pass(5).await;
    assert_eq!(bed.a.running(), 1);
    bed.unpublish("v").await.unwrap(); // the clock stands still
    assert_eq!(code(&publish.await.unwrap()), "volume.closed");
    bed.clock.settle().await;
    assert_eq!(bed.a.running(), 0, "the request was not told to end");
}

#[tokio::test(start_paused = true)]
async fn a_caller_may_go_away_at_any_moment() {
    // Goal: of a publish whose caller drops it after its nth poll nothing is left, or a whole volume; and it can be called again.
    // Method: n = 0, 1, 2 ... until the publish is over before the nth poll; first of a volume, then of its second spec.
    let mut ended = [0, 0];
    for (polls, update) in (0..20).flat_map(|polls| [(polls, false), (polls, true)]) {
        let told = format!("dropped after {polls} polls, update: {update}");
        let bed = Bed::new();
        bed.a.put("db", "one");
        bed.a.put("key", "two");
        let (first, second) = (spec(&["x < a:db"]), spec(&["x < a:db", "y < a:key"]));
        if update {
            bed.publish("v", &first).await.unwrap();
        }
        let slow = Answer::Slow(Duration::from_millis(5));
        bed.a.answer("key", slow);
        let asked = bed.a.asked().len();
        let mut is_over = false;
        {
            let mut publish = std::pin::pin!(bed.volumes.publish(request("v", &second)));
            for _ in 0..polls {
                let poll = poll_fn(|cx| Poll::Ready(publish.as_mut().poll(cx))).await;
                if let Poll::Ready(published) = poll {
                    assert!(published.unwrap().refused.is_none());
                    is_over = true;
                    ended[usize::from(update)] += 1;
                    break;
                }
                bed.pass_ms(1).await;
            }
        }
        bed.clock.settle().await; // at once: no timer has to come
        let files = bed.shown("v").map(|shown| shown.files.0.len());
        let attached = polls >= 5; // 5 ms have passed
        assert!(attached || !is_over);
        match (attached, update) {
            (true, _) => assert_eq!(files, Some(2), "{told}"),
            (false, true) => assert_eq!(files, Some(1), "{told}"),
            (false, false) => assert_eq!(files, None, "{told}"),
        }
        assert_eq!(bed.status("v").is_some(), attached || update, "{told}");
        assert_eq!(bed.a.running(), 0, "{told}: its request goes on");
        if !attached {
            let asked = bed.a.count(What::Fetch, "key");
            bed.pass(600).await;
            assert_eq!(bed.a.count(What::Fetch, "key"), asked, "{told}");
        }
        assert!(polls == 0 || bed.a.asked().len() > asked, "{told}");
        let again = bed.begin(request("v", &second));
        bed.pass_ms(50).await;
        assert!(again.await.unwrap().unwrap().refused.is_none());
        assert_eq!(bed.read("v", "y").unwrap(), "two", "{told}");
        bed.unpublish("v").await.unwrap();
        assert!(bed.shown("v").is_none());
    }
    for ended in ended {
        assert!(
            (5..20).contains(&ended),
            "the loop did not reach the end of a publish: {ended}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn callers_of_unpublish_may_go_away_too() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    for polls in 0..3 {
        bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
        {
            let mut unpublish = std::pin::pin!(bed.unpublish("v"));
            for _ in 0..polls {
                if poll_fn(|cx| Poll::Ready(unpublish.as_mut().poll(cx)))
                    .await
                    .is_ready()
                {
                    break;
                }
                bed.clock.settle().await;
            }
        }
        bed.clock.settle().await;
        assert_eq!(
            bed.shown("v").is_none(),
            polls > 0,
            "dropped after {polls} polls"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn leftovers_are_served_as_they_are_and_completed_when_the_stores_answer() {
    let mut bed = Bed::new();
    bed.a.put("db", "one");
    bed.b.put("key", "two");
    let spec = spec(&["x < a:db", "y < b:key"]);
    bed.publish("v", &spec).await.unwrap();
    bed.restart().await;
    assert_eq!(bed.read("v", "x").unwrap(), "one", "the mount did not stay");

    bed.a.put("db", "one more");
    let down = Answer::Fail(&secretfs::error::codes::BACKEND_UNAVAILABLE, None);
    bed.b.answer("key", Answer::Hang);
    let adopted = bed.publish("v", &spec).await.unwrap(); // the clock stands still
    assert!(adopted.adopted && adopted.files.is_none());
    assert_eq!(adopted.generation, Generation(1));
    let status = bed.status("v").unwrap();
    assert_eq!(status.state, VolumeState::Adopted);

    // the source that answers is current, the other file stays
    bed.pass(1).await;
    assert_eq!(bed.read("v", "x").unwrap(), "one more");
    assert_eq!(bed.read("v", "y").unwrap(), "two");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Adopted);
    bed.b.answer("key", down);
    bed.pass(60).await;
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Stale);
    assert_eq!(bed.trouble("v").unwrap(), "backend.unavailable");
    assert!(bed.publish("v", &spec).await.unwrap().adopted);

    bed.b.answer("key", Answer::Value);
    bed.b.put("key", "two more");
    bed.pass(3600).await;
    assert_eq!(bed.read("v", "y").unwrap(), "two more");
    let status = bed.status("v").unwrap();
    assert_eq!(
        (status.state, status.error.is_none()),
        (VolumeState::Fresh, true)
    );
    assert_eq!(status.generation, bed.shown("v").unwrap().generation.0);
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_leftover_is_not_swapped() {
    let mut bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.publish("v", &spec).await.unwrap();
    bed.restart().await;
    bed.publish("v", &spec).await.unwrap();
    bed.pass(1).await;
    let shown = bed.shown("v").unwrap();
    assert_eq!((shown.swaps, shown.generation), (0, Generation(1)));
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
    let follow = bed.volumes.follow(&volume("v")).await.unwrap();
    assert_eq!(follow.borrow().as_ref().unwrap().files.len(), 1);
    bed.unpublish("v").await.unwrap();
    assert!(bed.shown("v").is_none());
}

#[tokio::test(start_paused = true)]
async fn leftovers_that_nobody_publishes_again_can_be_unpublished() {
    let mut bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    bed.restart().await;
    bed.volumes
        .unpublish(&volume("v"), None, true)
        .await
        .unwrap(); // unknown, and nobody says where
    assert!(bed.shown("v").is_some());
    bed.unpublish("v").await.unwrap();
    assert!(bed.shown("v").is_none());
    assert!(bed.volumes.status().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refresh_returns_when_readers_see_what_came() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    bed.publish("w", &spec(&["x < a:db"])).await.unwrap();
    bed.a.put("db", "two");
    bed.volumes.refresh(&volume("v")).await.unwrap();
    assert_eq!(bed.read("v", "x").unwrap(), "two");
    bed.a.put("db", "three");
    let all = bed.volumes.refresh_all().await;
    assert!(
        all.len() == 2 && all.iter().all(|(_, result)| result.is_ok()),
        "{all:?}"
    );
    assert_eq!(bed.read("w", "x").unwrap(), "three");
    let down = Answer::Fail(&secretfs::error::codes::BACKEND_UNAVAILABLE, None);
    bed.a.answer("db", down);
    let failed = bed.volumes.refresh(&volume("v")).await;
    assert_eq!(code(&failed), "backend.unavailable");
    assert_eq!(
        code(&bed.volumes.refresh(&volume("none")).await),
        "volume.unknown"
    );
}

#[tokio::test(start_paused = true)]
async fn followers_get_each_generation() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    let mut follow = bed.volumes.follow(&volume("v")).await.unwrap();
    for (generation, text) in [(2, "two"), (3, "three")] {
        follow.borrow_and_update();
        bed.a.put("db", text);
        bed.volumes.refresh(&volume("v")).await.unwrap();
        assert!(follow.has_changed().unwrap());
        let snapshot = follow.borrow_and_update().clone().unwrap();
        assert_eq!(snapshot.generation, Generation(generation));
    }
    bed.volumes.refresh(&volume("v")).await.unwrap();
    assert!(!follow.has_changed().unwrap(), "told of nothing");
    assert_eq!(
        code(&bed.volumes.follow(&volume("none")).await),
        "volume.unknown"
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_leaves_the_mounts_and_ends_the_requests() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.b.answer("key", Answer::Hang);
    let spec_of_v = spec(&["x < a:db"]);
    bed.publish("v", &spec_of_v).await.unwrap();
    let publish = bed.begin(request("w", &spec(&["y < b:key"])));
    bed.clock.settle().await;
    bed.volumes.shutdown().await; // the clock stands still
    assert_eq!(code(&publish.await.unwrap()), "volume.stopped");
    assert_eq!(bed.b.running(), 0);
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    assert_eq!(code(&bed.publish("v", &spec_of_v).await), "volume.stopped");
    assert_eq!(code(&bed.unpublish("v").await), "volume.stopped");
    let asked = bed.a.asked().len();
    bed.pass(3600).await;
    assert_eq!(bed.a.asked().len(), asked);
    bed.volumes.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn unequal_principals_never_share_and_another_caller_is_an_update() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    for (id, pod_name, account) in [("v", "web", "shop"), ("w", "job", "other")] {
        let request = request_as(pod(pod_name, account), id, &spec);
        bed.volumes.publish(request).await.unwrap();
    }
    let who: Vec<_> = bed.a.asked().into_iter().map(|asked| asked.who).collect();
    assert_eq!(who, ["shop/web", "shop/job"]);

    bed.volumes
        .publish(request_as(pod("web", "third"), "v", &spec))
        .await
        .unwrap();
    assert_eq!(bed.a.count(What::Fetch, "db"), 3);
    bed.clock.settle().await;
    assert_eq!(bed.read("v", "x").unwrap(), "one");
}

#[tokio::test(start_paused = true)]
async fn a_new_configuration_is_a_new_source_at_once_and_a_republish_finds_it() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.publish("v", &spec).await.unwrap();
    bed.reconfigure(1);
    bed.pass_ms(10).await;
    assert_eq!(bed.a.count(What::Fetch, "db"), 2);
    bed.publish("v", &spec).await.unwrap();
    assert_eq!(bed.a.count(What::Fetch, "db"), 2);
    assert_eq!(bed.shown("v").unwrap().swaps, 0);
}

#[tokio::test(start_paused = true)]
async fn fields_become_files_with_their_modes() {
    let bed = Bed::new();
    let mode = Mode::literal(0o400);
    bed.a.put_fields(
        "tls",
        &[("tls.crt", "cert", None), ("tls.key", "key", Some(mode))],
    );
    bed.publish("v", &spec(&["/ < a:tls#*", "only < a:tls#tls.crt"]))
        .await
        .unwrap();
    assert_eq!(
        bed.a.count(What::Fetch, "tls"),
        1,
        "fetched once for two rules"
    );
    let files = bed.shown("v").unwrap().files;
    let seen: Vec<_> = files
        .0
        .iter()
        .map(|(path, file)| (path.as_str().to_owned(), file.mode.bits()))
        .collect();
    let expect = [("only", 0o444), ("tls.crt", 0o444), ("tls.key", 0o400)];
    assert_eq!(seen, expect.map(|(path, mode)| (path.to_owned(), mode)));
    // a field more is a file more, one less a file less
    bed.a
        .put_fields("tls", &[("ca.crt", "ca", None), ("tls.crt", "cert", None)]);
    bed.volumes.refresh(&volume("v")).await.unwrap();
    assert_eq!(bed.read("v", "ca.crt").unwrap(), "ca");
    assert_eq!(bed.read("v", "tls.key"), None);
}
