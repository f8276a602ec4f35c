//! Everything in any order: publishes, updates, rotations, outages, lost mounts, panics, restarts, unpublishes.
//!
//! Whatever happens on the way, a reader never sees a value that the store never had, nor two values of one secret at once;
//! and when the trouble is over, what is published is current and what is not has left nothing behind.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use secretfs::{clock::Clock as _, error::codes, spec::VolumeSpec, volume::VolumeState};

use crate::support::{
    bed::{Bed, Fault, request, spec, target, volume},
    scripted::{Answer, Leases, What},
};

const SEEDS: u64 = 50;
const STEPS: usize = 200;
const IDS: [&str; 3] = ["v0", "v1", "v2"];

/// A run, and what is to hold at its end.
struct Run {
    bed: Bed,
    rng: fastrand::Rng,
    /// What was asked for last; an unanswered or failed publish may be either.
    wanted: BTreeMap<&'static str, Arc<VolumeSpec>>,
    puts: usize,
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_readers_see_whole_sets_and_all_ends_well() {
    let seeds: Vec<u64> = match std::env::var("SECRETFS_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..SEEDS).collect(),
    };
    let (mut rotations, runs) = (0, seeds.len());
    for seed in seeds {
        println!("seed {seed} (alone: SECRETFS_SEED={seed})");
        let mut run = Run::new(seed);
        for _ in 0..STEPS {
            run.step().await;
            run.check_readers();
        }
        rotations += run.end_well().await;
    }
    let many = runs as u64 / 2; // none for one alone
    assert!(rotations >= many, "hardly anything rotated: {rotations}");
}

impl Run {
    fn new(seed: u64) -> Self {
        let bed = Bed::new();
        bed.b.script("creds", |script| {
            script.leases = Some(Leases {
                renewable: true,
                ttl: Duration::from_secs(300),
                max_ttl: Duration::from_secs(900),
            });
        });
        bed.b.put("creds", "");
        bed.a.script("pushed", |script| script.pushes = true);
        bed.a.put("db", "value 0");
        bed.a.put("pushed", "value 0");
        Self {
            bed,
            rng: fastrand::Rng::with_seed(seed),
            wanted: BTreeMap::new(),
            puts: 0,
        }
    }

    fn a_spec(&mut self) -> Arc<VolumeSpec> {
        // `x` and `y` are of one secret: they must always be equal
        match self.rng.u8(0..3) {
            0 => spec(&["x < a:db", "y < a:db", "z < a:pushed"]),
            1 => spec(&["x < a:db", "y < a:db", "user < ~b:creds"]),
            _ => spec(&["z < a:pushed", "w < a:pushed", "user < ~b:creds"]),
        }
    }

    async fn step(&mut self) {
        let id = IDS[self.rng.usize(0..IDS.len())];
        let op = self.rng.u8(0..20);
        match op {
            0..=2 => {
                let spec = self.a_spec();
                drop(self.bed.begin(request(id, &spec))); // nobody waits for it
                self.bed.clock.settle().await;
                self.wanted.insert(id, spec);
            }
            3..=5 => {
                if let Some(spec) = self.wanted.get(id).cloned() {
                    drop(self.bed.begin(request(id, &spec)));
                    self.bed.clock.settle().await;
                }
            }
            6 => {
                if self.bed.unpublish(id).await.is_ok() {
                    assert!(self.bed.shown(id).is_none());
                    self.wanted.remove(id);
                }
            }
            7..=9 => {
                self.puts += 1;
                let path = if self.rng.bool() { "db" } else { "pushed" };
                self.bed.a.put(path, &format!("value {}", self.puts));
            }
            10 => self.trouble(),
            11 => self.heal(),
            12 => self.bed.mounts.lose(&target(id)),
            13 => {
                let fault = [Fault::Error(&codes::MOUNT_NO_SPACE), Fault::Panic];
                self.bed.faults.arm(fault[self.rng.usize(0..2)]);
            }
            14 => {
                let (bed, fault) = (&mut self.bed, self.rng.bool());
                if fault {
                    bed.restart().await;
                } else {
                    bed.clock.jump(Duration::from_secs(3600));
                }
            }
            15 => drop(tokio::spawn({
                let volumes = self.bed.volumes.clone();
                async move { volumes.refresh(&volume(id)).await }
            })),
            _ => self.bed.pass_ms(self.rng.u64(1..90_000)).await,
        }
        self.bed.clock.settle().await;
    }

    fn trouble(&mut self) {
        let pause = self.rng.bool().then(|| Duration::from_secs(20));
        let answer = match self.rng.u8(0..5) {
            0 => Answer::Fail(&codes::BACKEND_UNAVAILABLE, pause),
            1 => Answer::Fail(&codes::BACKEND_PERMISSION_DENIED, None),
            2 => Answer::Hang,
            3 => Answer::Panic,
            _ => Answer::Slow(Duration::from_millis(self.rng.u64(1..40_000))),
        };
        if self.rng.bool() {
            self.bed.a.answer("db", answer);
        } else {
            self.bed.b.answer("creds", answer);
        }
    }

    fn heal(&self) {
        self.bed.a.answer("db", Answer::Value);
        self.bed.b.answer("creds", Answer::Value);
    }

    fn check_readers(&self) {
        for id in IDS {
            let read = |file| self.bed.read(id, file);
            for (one, other) in [("x", "y"), ("z", "w")] {
                if let (Some(one), Some(other)) = (read(one), read(other)) {
                    assert_eq!(one, other, "{id}: two generations in one set");
                }
            }
            for file in ["x", "z"] {
                if let Some(text) = read(file) {
                    let value: usize = text["value ".len()..].parse().unwrap();
                    assert!(value <= self.puts);
                }
            }
        }
    }

    /// 1. The trouble ends; what is wanted is published again, as the kubelet does.
    /// 2. After an hour it is current.
    /// 3. It is unpublished; nothing is left.
    async fn end_well(mut self) -> u64 {
        self.heal(); // 1
        self.bed.faults.disarm();
        self.bed.pass(3600).await;
        for _ in 0..2 {
            for (id, spec) in self.wanted.clone() {
                let published = self.bed.begin(request(id, &spec));
                self.bed.pass(100).await;
                let result = published.await.unwrap();
                if !result
                    .as_ref()
                    .is_err_and(|error| error.code() == &codes::VOLUME_CLOSED)
                {
                    result.unwrap();
                    continue;
                }
                self.bed.unpublish(id).await.unwrap(); // one that failed before
                self.wanted.remove(id);
            }
        }
        self.bed.a.put("db", "value 0");
        self.bed.a.put("pushed", "value 0");
        self.bed.pass(3600).await; // 2
        let mut rotations = 0;
        for (id, spec) in &self.wanted {
            let status = self.bed.status(id).unwrap();
            let good = matches!(status.state, VolumeState::Fresh | VolumeState::Lost);
            assert!(good && status.error.is_none(), "{status:?}");
            let files = self.bed.shown(id).unwrap().files;
            assert_eq!(files.0.len(), spec.files.len(), "{id}");
            for file in ["x", "z"] {
                assert!(
                    self.bed.read(id, file).is_none_or(|text| text == "value 0"),
                    "{id}"
                );
            }
            if let Some(user) = self.bed.read(id, "user") {
                let lease = &self.bed.b.leases()[user["user-".len()..].parse::<usize>().unwrap()];
                assert!(lease.revoked_at.is_none() && lease.expires_at > self.bed.clock.now());
            }
            rotations += self.bed.shown(id).unwrap().swaps;
        }
        for id in IDS {
            self.bed.unpublish(id).await.unwrap(); // 3
            assert!(self.bed.shown(id).is_none());
        }
        assert!(self.bed.volumes.status().is_empty());
        self.bed.pass(60).await;
        let asked = self.bed.a.asked().len() + self.bed.b.asked().len();
        self.bed.pass(3600).await;
        assert_eq!(
            self.bed.a.asked().len() + self.bed.b.asked().len(),
            asked,
            "still asked"
        );
        assert_eq!((self.bed.a.running(), self.bed.b.running()), (0, 0));
        assert_eq!(self.bed.a.watchers("pushed"), 0);
        let now = self.bed.clock.now();
        for lease in self.bed.b.leases() {
            let over = lease.revoked_at.is_some() || lease.expires_at <= now;
            assert!(over, "a lease that nobody knows: {lease:?}");
        }
        assert!(self.bed.a.count(What::Fetch, "db") > 0 || self.wanted.is_empty());
        rotations
    }
}
