//! Writes Events about pods, one after the other, at the pace that a [`Sieve`] sets.
//!
//! They are events.k8s.io/v1, not core/v1: the API server keeps both as one object, so `kubectl describe pod` and `kubectl get events` show
//! them alike, and the newer group checks all that we send and needs no second permission. An event that the server does not take is
//! counted and forgotten; the next of its kind is tried again.

use std::sync::Arc;

use ::kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event as Written},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use tokio::sync::mpsc;

use super::Kube;
use crate::{
    clock::Wall,
    error::Result,
    limits,
    observe::events::{Counts, Event, Sieve, Verdict},
};

/// Longest name of an object, and of what Kubernetes calls a reporting instance.
const NAME_BYTES: usize = 253;
const INSTANCE_BYTES: usize = 128;
/// Bytes that make an event's name unique: a dot and a number.
const SUFFIX_BYTES: usize = 17;

/// Who writes.
#[derive(Clone)]
pub struct Writer {
    /// The way to the API server.
    pub kube: Kube,
    /// The CSI driver's name.
    pub driver: String,
    /// The node's.
    pub node: String,
    /// What became of them.
    pub counts: Arc<Counts>,
}

impl Writer {
    /// Writes until the last way to `queue` is gone. May be dropped at any time.
    pub async fn run(self, mut queue: mpsc::Receiver<Event>) {
        let mut sieve = Sieve::default();
        let mut failing = false;
        while let Some(event) = queue.recv().await {
            let untold = match sieve.judge(self.kube.clock.now(), &event) {
                Verdict::Write { untold } => untold,
                Verdict::Repeated => {
                    self.counts.add_repeated();
                    continue;
                }
                Verdict::TooMany => {
                    self.counts.add_dropped();
                    continue;
                }
            };
            match self.write(&event, untold).await {
                Ok(()) => {
                    self.counts.add_written();
                    if std::mem::take(&mut failing) {
                        tracing::info!("events are written again");
                    }
                }
                Err(error) => {
                    self.counts.add_dropped();
                    sieve.forget(&event);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "events cannot be written");
                    }
                }
            }
        }
    }

    async fn write(&self, event: &Event, untold: u64) -> Result<()> {
        let body = self.body(event, untold, self.kube.clock.wall());
        let api: Api<Written> = Api::namespaced(self.kube.client(), &event.about.namespace);
        let params = PostParams::default();
        let done = api.create(&params, &body);
        self.kube.within("write an event", done).await.map(drop)
    }

    /// The event as the API server wants it. All of these fields are required there.
    fn body(&self, event: &Event, untold: u64, now: Wall) -> Written {
        let pod = &event.about;
        let stem = cut(&pod.pod, NAME_BYTES - SUFFIX_BYTES)
            .trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let mut note = event.message.clone();
        if untold > 0 {
            let more = format!(" ({untold} more times since this was last told)");
            note.truncate(cut(&note, limits::EVENT_NOTE_BYTES - more.len()).len());
            note.push_str(&more);
        }
        Written {
            metadata: ObjectMeta {
                namespace: Some(pod.namespace.to_string()),
                name: Some(format!("{stem}.{:016x}", fastrand::u64(..))),
                ..ObjectMeta::default()
            },
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(pod.namespace.to_string()),
                name: Some(pod.pod.to_string()),
                uid: Some(pod.pod_uid.to_string()),
                ..ObjectReference::default()
            }),
            event_time: Timestamp::from_millisecond(now.as_millis())
                .ok()
                .map(MicroTime),
            type_: Some(if event.mended { "Normal" } else { "Warning" }.to_owned()),
            reason: Some(event.reason.to_owned()),
            action: Some("ServeSecrets".to_owned()),
            note: Some(cut(&note, limits::EVENT_NOTE_BYTES).to_owned()),
            reporting_controller: Some(self.driver.clone()),
            reporting_instance: Some(cut(&self.node, INSTANCE_BYTES).to_owned()),
            ..Written::default()
        }
    }
}

/// The longest beginning of `text` that has at most so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
