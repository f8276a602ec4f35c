//! Kubernetes Events: written once, counted, and at a pace; a server that does not take them delays nobody.

use std::{sync::Arc, time::Duration};

use secretfs::{
    caller::PodIdentity,
    kube::reports::Writer,
    limits,
    observe::events::{Counts, Event, Events},
};

use crate::{
    kube::Rig,
    support::{
        apiserver::{ApiServer, Call, Fault},
        program::eventually,
    },
};

fn event(pod: &str, message: &str) -> Event {
    Event {
        about: PodIdentity {
            namespace: "shop".into(),
            pod: pod.into(),
            pod_uid: format!("uid-of-{pod}").into(),
            service_account: "web".into(),
            service_account_uid: None,
        },
        mended: false,
        reason: "SecretStale",
        message: message.into(),
    }
}

/// A writer that runs.
fn started() -> (Rig, Events, Arc<Counts>) {
    let rig = Rig::new(ApiServer::up);
    let (events, queue) = Events::channel();
    let counts = events.counts();
    let writer = Writer {
        kube: rig.kube(&rig.kubeconfig()).unwrap(),
        driver: "csi.secretfs.dev".to_owned(),
        node: "n".repeat(200),
        counts: counts.clone(),
    };
    rig.runtime.spawn(writer.run(queue));
    (rig, events, counts)
}

fn sums(counts: &Counts) -> (u64, u64, u64) {
    (counts.written(), counts.repeated(), counts.dropped())
}

#[test]
fn an_event_is_about_the_pod_and_written_once() {
    let (rig, events, counts) = started();
    let one = event("web-0", "store: connection refused");
    for _ in 0..3 {
        events.tell(one.clone());
    }
    eventually("the count", || sums(&counts) == (1, 2, 0));
    let written = rig.server.events();
    assert_eq!(written.len(), 1);
    let written = &written[0];
    let regarding = &written["regarding"];
    for (found, expect) in [
        (&regarding["apiVersion"], "v1"),
        (&regarding["kind"], "Pod"),
        (&regarding["namespace"], "shop"),
        (&regarding["name"], "web-0"),
        (&regarding["uid"], "uid-of-web-0"),
        (&written["type"], "Warning"),
        (&written["reason"], "SecretStale"),
        (&written["note"], "store: connection refused"),
        (&written["reportingController"], "csi.secretfs.dev"),
        (&written["reportingInstance"], &"n".repeat(128)),
        (&written["eventTime"], "2026-11-24T06:00:00.000000Z"),
    ] {
        assert_eq!(found, expect, "{written}");
    }
    rig.clock.jump(limits::EVENT_REPEAT);
    events.tell(one);
    eventually("another", || counts.written() == 2);
    let note = rig.server.events()[1]["note"].as_str().unwrap().to_owned();
    assert_eq!(
        note,
        "store: connection refused (2 more times since this was last told)"
    );
}

#[test]
fn what_the_server_would_refuse_for_its_size_is_cut() {
    let (rig, events, counts) = started();
    let long = event(
        &format!("{}-{}", "p".repeat(235), "q".repeat(17)),
        &"ä".repeat(2000),
    );
    events.tell(long.clone());
    eventually("the first", || counts.written() == 1);
    events.tell(long.clone());
    eventually("the second", || counts.repeated() == 1);
    rig.clock.jump(limits::EVENT_REPEAT);
    events.tell(long);
    eventually("all", || counts.written() == 2);
    let written = rig.server.events();
    let note = |nth: usize| written[nth]["note"].as_str().unwrap();
    assert_eq!(note(0), "ä".repeat(512));
    assert!(
        note(1).ends_with(" (1 more times since this was last told)"),
        "{}",
        note(1)
    );
    assert_eq!(counts.dropped(), 0);
}

#[test]
fn a_storm_is_cut_to_a_burst_and_the_rest_is_counted() {
    let (rig, events, counts) = started();
    let burst = u64::from(limits::EVENT_BURST);
    for nth in 0..200 {
        events.tell(event(&format!("web-{nth}"), "store: connection refused"));
    }
    eventually("all", || counts.written() + counts.dropped() == 200);
    assert_eq!(sums(&counts), (burst, 0, 200 - burst));
    rig.clock.jump(limits::EVENT_INTERVAL * 2);
    for nth in 100..110 {
        events.tell(event(&format!("web-{nth}"), "store: connection refused"));
    }
    eventually("all", || counts.written() + counts.dropped() == 210);
    assert_eq!(counts.written(), burst + 2);
    assert_eq!(rig.server.events().len() as u64, burst + 2);
}

#[test]
fn a_server_that_hangs_or_refuses_loses_events_and_delays_nobody() {
    let (rig, events, counts) = started();
    rig.server.fail_always(Call::PostEvent, Some(Fault::Hang));
    events.tell(event("web-0", "first"));
    eventually("the post", || rig.server.asked(Call::PostEvent).len() == 1);
    for nth in 0..limits::EVENTS_WAITING + 10 {
        events.tell(event("web-1", &nth.to_string())); // returns at once
    }
    assert_eq!(counts.dropped(), 10, "there is room for so many only");
    rig.server
        .fail_always(Call::PostEvent, Some(Fault::Status(403)));
    rig.skip(limits::KUBE_CALL); // the first is given up, the others are refused
    let all = 11 + limits::EVENTS_WAITING as u64;
    eventually("all", || counts.dropped() == all);
    assert_eq!(rig.server.events().len(), 0);
    let asked = rig.server.asked(Call::PostEvent).len();
    assert!(
        asked <= limits::EVENT_BURST as usize + 10,
        "{asked} requests"
    );
    // what was not written is not taken for told
    rig.server.fail_always(Call::PostEvent, None);
    rig.clock.jump(Duration::from_secs(1));
    events.tell(event("web-0", "first"));
    eventually("it", || sums(&counts) == (1, 0, all)); // after the server has it
    assert_eq!(rig.server.events().len(), 1);
}

#[test]
fn the_writer_ends_with_the_last_way_to_it_and_off_writes_nothing() {
    let rig = Rig::new(ApiServer::up);
    let (events, queue) = Events::channel();
    let writer = Writer {
        kube: rig.kube(&rig.kubeconfig()).unwrap(),
        driver: "csi.secretfs.dev".to_owned(),
        node: "n1".to_owned(),
        counts: events.counts(),
    };
    events.tell(event("web-0", "last words"));
    drop(events);
    Events::off().tell(event("web-0", "nobody hears"));
    rig.runtime.block_on(writer.run(queue));
    let written = rig.server.events();
    assert_eq!(written.len(), 1, "what waits is still written");
    assert_eq!(written[0]["note"], "last words");
}
