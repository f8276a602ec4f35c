//! What of failing calls is told, and when: on a clock that the test moves.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use secretfs::limits;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt, registry};

use super::{Pod, SPEC, Stage};
use crate::support::hearing::hear;

/// What was told at `warn`, in this thread.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<Vec<Line>>>);

#[derive(Clone, Default, Debug)]
struct Line {
    message: String,
    volume: String,
    calls: u64,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "volume_id" {
            self.volume = value.to_owned();
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "calls" {
            self.calls = value;
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}

impl<S: Subscriber> Layer<S> for Told {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= Level::WARN {
            let mut line = Line::default();
            event.record(&mut line);
            self.0.lock().unwrap().push(line);
        }
    }
}

impl Told {
    pub fn start() -> (Self, DefaultGuard) {
        let told = Self::default();
        let guard = hear(registry().with(told.clone()));
        (told, guard)
    }

    /// Ids of the volumes whose failures were told one by one.
    pub fn one_by_one(&self) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        let failed = lines
            .iter()
            .filter(|line| line.message == "a CSI call failed");
        failed.map(|line| line.volume.clone()).collect()
    }

    /// The numbers of those that were not.
    fn rest(&self) -> Vec<u64> {
        let lines = self.0.lock().unwrap();
        let more = lines.iter().filter(|line| line.calls > 0);
        more.map(|line| line.calls).collect()
    }
}

async fn fails(stage: &Stage, pod: &str, times: u32) -> String {
    let mut volume = stage.kubelet.volume(&Pod::new(pod), "secrets", SPEC);
    volume.read_only = false;
    for _ in 0..times {
        stage.kubelet.publish(&volume).await.unwrap_err();
    }
    volume.id
}

#[tokio::test]
async fn one_pod_hides_no_other_and_the_rest_is_told_when_the_failures_have_stopped() {
    let (told, _guard) = Told::start();
    let stage = Stage::new();
    let minute = limits::WARN_INTERVAL;
    let noisy = fails(&stage, "noisy", 200).await;
    let quiet = fails(&stage, "quiet", 1).await;
    let few = limits::CSI_WARNINGS_OF_ONE as usize;
    let mut expect = vec![noisy.clone(); few];
    expect.push(quiet);
    assert_eq!(told.one_by_one(), expect);
    assert_eq!(told.rest(), [] as [u64; 0], "the minute is not over");
    assert_eq!(
        stage.bed.clock.next_sleeper().map(|at| at.as_nanos()),
        Some((Duration::from_secs(1000) + minute).as_nanos() as u64),
        "one timer waits, for the end of the minute"
    );
    stage.bed.clock.jump(minute);
    while told.rest().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(told.rest(), [200 - few as u64]);
    assert_eq!(stage.bed.clock.next_sleeper(), None, "and then none does");
    fails(&stage, "noisy", 1).await;
    assert_eq!(told.one_by_one().len(), few + 2, "a new minute");
}
