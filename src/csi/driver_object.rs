//! Our own CSIDriver object: whether the kubelet, by what it says, tells us truly who asks.
//!
//! A pod's author can write every `csi.storage.k8s.io/` key himself. The kubelet overwrites them, and sends tokens, only as the CSIDriver object
//! says. So the object is read and watched, and nothing is published before it was seen to be good, or once it was seen to be bad.
//!
//! [`judge`] is the whole judgement, pure. [`Watching`] keeps it current: the part `csidriver` of [`Readiness`], and where tokens are in
//! [`Expect`]. **The last judgement stays while the API server cannot be asked**: then nothing can have told the kubelet either, which goes by the
//! last object that it saw, as we do; and an outage of the control plane must not become one of the pods. Before the first one we are not ready.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec};
use tokio::sync::watch;

use crate::{
    clock::{Clock, Mono},
    csi::context::{Expect, TokensIn},
    error::{Error, Result, codes},
    kube::{Change, Kube},
    limits,
    observe::ready::Readiness,
};

/// The part of [`Readiness`] that this module owns.
pub const PART: &str = "csidriver";

/// Whether publishes may go by this object, and where the kubelet then puts tokens. `audiences`: those that configured backends name;
/// `""` is the API server's own.
///
/// # Errors
/// `driver.object`: all that is wrong, each with the line to set.
pub fn judge(object: &CSIDriver, audiences: &BTreeSet<String>) -> Result<TokensIn> {
    let spec = &object.spec;
    let mut problems = Vec::new();
    let mut must = |good: bool, line: &str| {
        if !good {
            problems.push(format!("set `{line}`"));
        }
    };
    must(spec.pod_info_on_mount == Some(true), "podInfoOnMount: true");
    let modes = spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
    must(modes == ["Ephemeral"], "volumeLifecycleModes: [Ephemeral]");
    must(
        spec.requires_republish == Some(true),
        "requiresRepublish: true",
    );
    let asked = requested(spec);
    let missing: Vec<&str> = audiences
        .iter()
        .map(String::as_str)
        .filter(|audience| !asked.contains(audience))
        .collect();
    if !missing.is_empty() {
        let lines = missing.iter().map(|one| format!("{{audience: {one:?}}}"));
        let lines: Vec<String> = lines.collect();
        problems.push(format!("add to `tokenRequests`: {}", lines.join(", ")));
    }
    if !problems.is_empty() {
        return Err(Error::new(&codes::DRIVER_OBJECT)
            .object(format!("CSIDriver {}", name(object)))
            .detail(problems.join("; ")));
    }
    Ok(match spec.service_account_token_in_secrets {
        _ if asked.is_empty() => TokensIn::Nowhere,
        Some(true) => TokensIn::Secrets,
        Some(false) | None => TokensIn::Context,
    })
}

/// What is not wrong but could be better, for the log.
pub fn advice(object: &CSIDriver, audiences: &BTreeSet<String>) -> Vec<String> {
    let spec = &object.spec;
    let mut advice = Vec::new();
    if spec.attach_required != Some(false) {
        advice.push("set `attachRequired: false`: there is nothing to attach".to_owned());
    }
    let unused = requested(spec);
    for audience in unused.iter().filter(|one| !audiences.contains(**one)) {
        advice.push(format!(
            "remove {audience:?} from `tokenRequests`: no backend uses such a token"
        ));
    }
    advice
}

fn requested(spec: &CSIDriverSpec) -> BTreeSet<&str> {
    let requests = spec.token_requests.iter().flatten();
    requests.map(|request| request.audience.as_str()).collect()
}

fn name(object: &CSIDriver) -> &str {
    object.metadata.name.as_deref().unwrap_or("?")
}

/// Keeps the judgement current.
pub struct Watching {
    /// The way to the API server.
    pub kube: Kube,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The object's name: the driver's.
    pub driver: String,
    /// What backends need.
    pub audiences: watch::Receiver<BTreeSet<String>>,
    /// Where the judgement is shown.
    pub readiness: Readiness,
    /// Where tokens are, for publishes to be held against.
    pub expect: watch::Sender<Expect>,
    /// Whether there has been a judgement.
    pub heard: watch::Sender<bool>,
}

/// What is known of the object.
enum Known {
    /// The API server was not heard yet.
    Nothing,
    Absent,
    Object(Box<CSIDriver>),
}

/// What the loop remembers.
struct State {
    known: Known,
    /// The judgement that the log has: "" is good.
    told: Option<String>,
    /// The log has it that the API server cannot be asked.
    complained: bool,
    failures: u32,
}

impl Watching {
    /// Not ready from now on, until the object was seen to be good. The future that it gives never ends; it may be dropped.
    pub fn start(self) -> impl Future<Output = ()> + Send {
        let unheard = Error::new(&codes::KUBERNETES_UNREACHABLE)
            .object(format!("CSIDriver {}", self.driver))
            .detail("it has not been read yet");
        self.readiness.set(PART, Err(unheard));
        self.run()
    }

    /// 1. Read the object and judge it.
    /// 2. Watch it from there, and judge each change and each new set of audiences, until the watch ends: each does after some
    ///    minutes.
    /// 3. Wait: less than a second after a watch that ended in time, else longer with each failure. Then 1.
    ///
    /// Reading anew costs one small request per watch, and makes a version that is too old (410) nothing special.
    async fn run(mut self) {
        let mut state = State {
            known: Known::Nothing,
            told: None,
            complained: false,
            failures: 0,
        };
        loop {
            let began = self.clock.now();
            let ended = self.round(&mut state).await; // 1, 2
            let wait = self.wait(&mut state, began, ended); // 3
            self.clock.sleep_until(self.clock.now().after(wait)).await;
        }
    }

    async fn round(&mut self, state: &mut State) -> Result<()> {
        let (found, version) = self.kube.driver(&self.driver).await?; // 1
        state.known = found.map_or(Known::Absent, |one| Known::Object(Box::new(one)));
        self.show(state);
        let mut watch = self.kube.watch_driver(&self.driver, &version).await?; // 2
        if std::mem::take(&mut state.complained) {
            tracing::info!("the API server answers again");
        }
        loop {
            tokio::select! {
                change = watch.next() => match change? {
                    Some(Change::Is(object)) => state.known = Known::Object(object),
                    Some(Change::Gone) => state.known = Known::Absent,
                    None => return Ok(()),
                },
                Ok(()) = self.audiences.changed() => {}
            }
            self.show(state);
        }
    }

    /// How long to wait before the next round. By chance half to the whole of it: thousand nodes lose one API server together.
    fn wait(&self, state: &mut State, began: Mono, ended: Result<()>) -> Duration {
        let lasted = self.clock.now().since(began) >= limits::KUBE_RETRY_MAX;
        if lasted {
            state.failures = 0;
        }
        let doubled = limits::KUBE_RETRY_FIRST * 2_u32.saturating_pow(state.failures.min(10));
        if !lasted || ended.is_err() {
            state.failures = state.failures.saturating_add(1);
        }
        let asked = match ended {
            Ok(()) => Duration::ZERO,
            Err(error) => self.complain(state, error),
        };
        let longest = limits::KUBE_RETRY_MAX;
        let wait = doubled.min(longest).mul_f64(0.5 + fastrand::f64() / 2.0);
        wait.max(asked.min(longest))
    }

    /// The API server could not be asked; how long it wants to be left alone.
    fn complain(&self, state: &mut State, error: Error) -> Duration {
        let asked = error.wait().unwrap_or_default();
        if !std::mem::replace(&mut state.complained, true) {
            tracing::warn!(%error, "the API server cannot be asked for the CSIDriver object; what was last judged stays");
        }
        if let Known::Nothing = state.known {
            self.readiness.set(PART, Err(error));
        }
        asked
    }

    /// Judges what is known, and shows it. Where tokens are is shown first: no publish finds us ready and looks in the wrong place.
    fn show(&mut self, state: &mut State) {
        let audiences = self.audiences.borrow_and_update().clone();
        let judged = match &state.known {
            Known::Nothing => return,
            Known::Absent => Err(Error::new(&codes::DRIVER_OBJECT)
                .object(format!("CSIDriver {}", self.driver))
                .detail("there is no such object")),
            Known::Object(object) => judge(object, &audiences),
        };
        if let Ok(tokens_in) = judged {
            self.expect.send_if_modified(|expect| {
                let old = std::mem::replace(&mut expect.tokens_in, tokens_in);
                old != tokens_in
            });
        }
        let told = judged.as_ref().err().map(ToString::to_string);
        let told = told.unwrap_or_default();
        self.readiness.set(PART, judged.map(drop));
        self.heard.send_replace(true);
        if state.told.as_ref() == Some(&told) {
            return;
        }
        match &state.known {
            Known::Object(object) if told.is_empty() => {
                tracing::info!("the CSIDriver object is as it must be");
                for advice in advice(object, &audiences) {
                    tracing::info!(advice, "the CSIDriver object could be better");
                }
            }
            _ => tracing::warn!(
                error = told,
                "nothing is published: the CSIDriver object is not as it must be"
            ),
        }
        state.told = Some(told);
    }
}
