//! A server in trouble gets fewer requests, pods keep what they have, and when it is back it gets no more than it can bear: with a real server that
//! refuses for a quota, has died, is sealed, or hangs. The rates are printed.
//!
//! Each test goes through the same: a hundred sources of two tenants, each asked every six seconds; the fault; pods that come meanwhile; the end of
//! the fault, and another value of each secret. How rarely a store that is down is asked follows from the sources
//! (`schedule::probe_cap`): here every seven and a half seconds in the end.

use std::time::{Duration, Instant};

use secretfs::{limits, volume::VolumeState};
use serde_json::{Value, json};

use super::{
    crowd::{Crowd, Path, spec},
    fake::token_review,
    meter::Meter,
};
use crate::support::{
    bao::Bao,
    kubelet::{Pod, Volume},
    program::eventually,
};

/// Namespace and account.
const ACCOUNTS: [(&str, &str); 2] = [("bank", "api"), ("shop", "web")];
/// Secrets of an account.
const OBJECTS: usize = 50;
const EVERY: Duration = Duration::from_secs(6);
/// Longest wait between two probes that follows from this.
const PROBE: Duration = Duration::from_millis(7500);
/// Fetches that can reach the store within a second: a full burst, a second's worth, and what the network held up, of two tenants.
const HERD: usize = limits::BACKEND_BURST as usize
    + limits::BACKEND_PER_SECOND as usize
    + 2 * limits::TENANT_IN_FLIGHT as usize;

fn paths((namespace, account): (&str, &str)) -> Vec<Path> {
    let path = |number| format!("{namespace}/{account}/s{number}");
    (0..OBJECTS).map(path).collect()
}

/// Pods that read, and a server that is counted.
struct Steady {
    crowd: Crowd,
    meter: Meter,
    /// Two for each account.
    volumes: Vec<Volume>,
}

impl Steady {
    fn new(bao: Bao, of_backend: &str) -> Self {
        let meter = Meter::new(bao.port);
        let settings = format!(", kv: {{secret: 2}}{of_backend}");
        let crowd = Crowd::new(
            bao,
            Crowd::node(),
            token_review(),
            &["bank", "shop"],
            &meter.address(),
            ("", &settings),
        );
        let mut steady = Self {
            crowd,
            meter,
            volumes: Vec::new(),
        };
        steady.put_all("first");
        for account in ACCOUNTS {
            for pod in ["0", "1"] {
                let volume = steady.volume(account, pod, &paths(account));
                steady.volumes.push(volume);
            }
        }
        steady.crowd.publish_all(&steady.volumes);
        steady
    }

    fn volume(&self, account: (&str, &str), pod: &str, paths: &[Path]) -> Volume {
        let pod = Pod::of(&format!("{}-{pod}", account.1), account.0, account.1);
        self.crowd.volume(&pod, "v", &spec("6s", paths))
    }

    fn put_all(&self, value: &str) {
        for path in ACCOUNTS.into_iter().flat_map(paths) {
            self.crowd.bao.put(&path, json!({"v": value}));
        }
    }

    /// Whether all files of all pods are there with this value.
    fn shows(&self, value: &str) -> bool {
        let all = |volume: &Volume| {
            (0..OBJECTS).all(|number| volume.file(&format!("f{number}")) == value)
        };
        self.volumes.iter().all(all)
    }

    /// Whether all volumes are in this state, with this error's code.
    fn are(&self, state: VolumeState, code: Option<&str>) -> bool {
        let status = self.crowd.status();
        self.volumes.iter().all(|volume| {
            let one = &status[&volume.id];
            one.state == state && one.error.as_ref().map(|error| &*error.code) == code
        })
    }

    /// Ten pods come that want what there is not. Each must hear one of these codes; how long it took, and how many requests there were.
    #[track_caller]
    fn newcomers(&self, codes: &[&str]) -> (Duration, usize) {
        let newcomer = |number: usize| {
            let (namespace, account) = ACCOUNTS[number % ACCOUNTS.len()];
            let path = format!("{namespace}/{account}/new{number}");
            self.volume((namespace, account), &format!("new{number}"), &[path])
        };
        let volumes: Vec<_> = (0..10).map(newcomer).collect();
        let (start, before) = (Instant::now(), self.meter.count());
        for answer in self.crowd.publish(&volumes) {
            let refused = answer.unwrap_err();
            let told = |code: &&str| refused.message().contains(&format!("[{code}]"));
            assert!(codes.iter().any(told), "{refused}");
        }
        (start.elapsed(), self.meter.count() - before)
    }

    /// Goes through a fault, in which volumes say the first of these codes; what new pods may hear besides.
    ///
    /// 1. All is well, for an interval.
    /// 2. The fault: all volumes say so, and there are not more requests than before while it is found out.
    /// 3. Files stay, little is asked, and new pods hear why they cannot start.
    /// 4. Its end: all files show what has changed, and no second was too much for the server.
    #[track_caller]
    fn through(
        mut self,
        codes: &[&str],
        begin: impl FnOnce(&mut Bao, &Meter),
        end: impl FnOnce(&mut Bao, &Meter),
    ) {
        let code = codes[0];
        let before = self.meter.rate(EVERY); // 1
        begin(&mut self.crowd.bao, &self.meter); // 2
        let at_first = self.meter.rate(EVERY);
        eventually("all volumes are stale", || {
            self.are(VolumeState::Stale, Some(code))
        });
        let during = self.meter.rate(EVERY); // 3
        let (took, more) = self.newcomers(codes);
        assert!(self.shows("first"), "files have changed");
        assert!(self.are(VolumeState::Stale, Some(code)));
        let at = self.meter.count();
        end(&mut self.crowd.bao, &self.meter); // 4
        let start = Instant::now();
        self.put_all("second");
        eventually("somebody is answered", || {
            let mut files = self.volumes.iter().map(|one| one.file("f0"));
            files.any(|value| value == "second")
        });
        let answered = start.elapsed();
        eventually("all files show what has changed", || self.shows("second"));
        let recovered = start.elapsed();
        eventually("all is well", || self.are(VolumeState::Fresh, None));
        let after = self.meter.rate(EVERY);
        let fetches = self.meter.peak(at, "/secret/metadata/");
        let requests = self.meter.peak(at, "");
        eprintln!(
            "{code}: requests/s {before:.1} before, {at_first:.1} at first, {during:.1} then, {after:.1} after; ten new pods failed in {took:.1?}, \
             with {more} requests; after its end answers in {answered:.1?}, all files new in {recovered:.1?}, \
             at most {fetches} fetches and {requests} requests in one second"
        );
        let probes = match codes {
            [_] => 4, // two, each with a look at the server's health
            _ => HERD,
        };
        assert!(before > 10.0 && at_first < before && during < before / 3.0);
        assert!(took < PROBE * 2 && more <= probes);
        assert!(fetches <= HERD && requests <= 2 * HERD);
        assert!(after > before / 2.0);
        self.crowd.end(&self.volumes);
    }
}

#[test]
fn a_server_that_is_sealed_is_asked_rarely_and_recovers_without_a_herd() {
    let Some(bao) = Bao::start() else { return };
    let steady = Steady::new(bao, "");
    steady.through(
        &["vault.sealed"],
        |bao, _| bao.seal(),
        |bao, _| bao.unseal(),
    );
}

#[test]
fn a_server_that_dies_and_is_started_anew_likewise() {
    let Some(bao) = Bao::lasting() else { return };
    let steady = Steady::new(bao, "");
    steady.through(
        &["backend.answer_cut"], // by what stands before it
        |bao, _| bao.kill(),
        |bao, meter| {
            bao.restart();
            meter.leads_to(bao.port);
        },
    );
}

#[test]
fn a_server_that_hangs_likewise() {
    let Some(bao) = Bao::start() else { return };
    let steady = Steady::new(bao, ", timeouts: {answer: 2s}");
    steady.through(
        &["backend.timeout"],
        |bao, _| bao.freeze(),
        |bao, _| bao.thaw(),
    );
}

#[test]
fn a_server_with_a_quota_is_left_alone_for_as_long_as_it_says() {
    let Some(bao) = Bao::start() else { return };
    bao.ok(
        "sys/quotas/config",
        json!({"enable_rate_limit_response_headers": true}),
    );
    let steady = Steady::new(bao, "");
    let quota = json!({"path": "secret", "rate": 1, "interval": "1s", "block_interval": "8s"});
    steady.through(
        &["backend.throttled", "backend.not_found"], // one request in eight seconds is answered
        |bao, _| drop(bao.ok("sys/quotas/rate-limit/few", quota)),
        |bao, _| {
            let (status, _) = bao.call("DELETE", "sys/quotas/rate-limit/few", &Value::Null);
            assert_eq!(status, 204);
        },
    );
}
