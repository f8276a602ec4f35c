//! Calls are counted and timed by method and code, failures by our own code: each once, whatever became of the call.

use std::{sync::atomic::Ordering, time::Duration};

use hyper::Request;
use secretfs::csi::proto::{NodeGetInfoRequest, NodeGetVolumeStatsRequest, ProbeRequest};
use tonic::{body::Body, codegen::Service as _};

use super::{Stage, code};
use crate::{
    metrics::events::counted,
    support::{
        kubelet::{Pod, Volume},
        program::eventually,
        scrape::Scraped,
        scripted::Answer,
    },
};

impl Stage {
    pub fn counted(&self) -> Scraped {
        counted(&self.bed.metrics)
    }

    /// What has been counted since; of calls and errors only.
    pub fn since(&self, before: &Scraped) -> Vec<String> {
        let all = self.counted().since(before).into_iter();
        all.filter(|one| one.starts_with("rpc_") || one.starts_with("errors_"))
            .collect()
    }

    fn volume_of(&self, pod: &str, spec: &str) -> Volume {
        self.kubelet.volume(&Pod::new(pod), "secrets", spec)
    }
}

pub fn call(method: &str, code: &str) -> String {
    format!("rpc_duration_seconds_count{{method=\"{method}\",code=\"{code}\"}} +1")
}

pub fn error(code: &str) -> String {
    format!("errors_total{{code=\"{code}\"}} +1")
}

#[tokio::test]
async fn a_call_is_counted_by_its_code_and_a_failure_by_ours() {
    let stage = Stage::new();
    let publish = |volume: Volume| {
        let (stage, before) = (&stage, stage.counted());
        async move {
            let answer = stage.kubelet.publish(&volume).await;
            (code(&answer), stage.since(&before))
        }
    };
    let (name, good) = ("NodePublishVolume", stage.volume());
    for _ in 0..2 {
        let (_, counted) = publish(good.clone()).await;
        assert_eq!(counted, [call(name, "OK")]);
    }
    let (_, counted) = publish(stage.volume_of("p", "files: 1")).await;
    assert_eq!(
        counted,
        [error("spec.wrong_type"), call(name, "INVALID_ARGUMENT")]
    );
    let absent = "files: [{path: x, from: \"a:absent\"}]";
    let (_, counted) = publish(stage.volume_of("q", absent)).await;
    assert_eq!(
        counted,
        [
            error("backend.not_found"),
            call(name, "FAILED_PRECONDITION")
        ]
    );
    let mut forged = stage.volume_of("r", super::SPEC);
    forged.pod.uid = Pod::new("s").uid;
    let (_, counted) = publish(forged).await;
    assert_eq!(
        counted,
        [error("identity.forged"), call(name, "PERMISSION_DENIED")]
    );

    let before = stage.counted();
    stage.kubelet.unpublish(&good).await.unwrap();
    assert_eq!(stage.since(&before), [call("NodeUnpublishVolume", "OK")]);
}

#[tokio::test]
async fn every_method_has_its_name_and_any_other_is_other() {
    let stage = Stage::new();
    let mut channel = stage.kubelet.connect().await;
    let before = stage.counted();
    let (mut node, mut identity) = (channel.node(), channel.identity());
    node.node_get_info(NodeGetInfoRequest {}).await.unwrap();
    identity.probe(ProbeRequest {}).await.unwrap();
    let unknown = NodeGetVolumeStatsRequest {
        volume_id: "csi-1".into(),
        volume_path: "/x".into(),
        ..Default::default()
    };
    let answer = node.node_get_volume_stats(unknown).await;
    assert!(answer.is_err());
    for path in ["/csi.v1.Node/NodeStageVolume\"} 1\nx", "/x/y", "/"] {
        let Ok(request) = Request::post(format!("http://localhost{path}")).body(Body::empty())
        else {
            continue; // no path of HTTP at all
        };
        channel.call(request).await.unwrap();
    }
    let counted = stage.since(&before);
    let unimplemented = call("other", "UNIMPLEMENTED").replace("+1", "+2");
    assert_eq!(
        counted,
        [
            error("volume.unknown"),
            call("NodeGetInfo", "OK"),
            call("NodeGetVolumeStats", "NOT_FOUND"),
            call("Probe", "OK"),
            unimplemented,
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gives_up_is_counted_as_cancelled() {
    let stage = Stage::new();
    stage.bed.a.answer("db", Answer::Hang);
    let before = stage.counted();
    let mut impatient = stage.kubelet.clone();
    impatient.deadline = Duration::from_millis(20);
    impatient.publish(&stage.volume()).await.unwrap_err();
    let expect = [call("NodePublishVolume", "CANCELLED")];
    let seen = || stage.since(&before) == expect;
    tokio::task::block_in_place(|| eventually("the call is counted", seen));
}

#[tokio::test]
async fn a_panic_is_a_bug_and_internal() {
    let stage = Stage::new();
    let channel = stage.kubelet.connect().await;
    let before = stage.counted();
    stage.clock.armed.store(true, Ordering::Relaxed);
    let answer = stage
        .kubelet
        .send_on(&channel, stage.volume().request())
        .await;
    assert!(answer.is_err());
    assert_eq!(
        stage.since(&before),
        [error("bug"), call("NodePublishVolume", "INTERNAL")]
    );
}
