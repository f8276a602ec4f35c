//! The world around the pool: it does what effects say, in virtual time, and tells `checks` what it sees.

mod effects;
mod looks;
mod volumes;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use secretfs::{
    backend::Fetched,
    caller::{Caller, Credentials, Identity, Principal},
    clock::{Mono, Wall},
    error::Result,
    mount::VolumeId,
    secret::Lease,
    source::{
        Event, SourceKey,
        pool::{Pool, Rules},
    },
    spec::{BackendName, ObjectRef, Share},
};

use super::{
    checks::{Figures, Seen, Verdict, Watched},
    faults::Fault,
    store::{self, Given, Life, Stretch},
};

pub struct Size {
    pub sources: usize,
    pub volumes: usize,
    pub principals: u32,
    pub stores: usize,
    pub seconds: u64,
}

/// A source of this world.
pub struct Source {
    pub key: SourceKey,
    pub uid: u32,
    pub store: usize,
    pub every: Option<Duration>,
    pub life: Life,
    pub pushes: bool,
    rotation: u64,
    pub seen: Seen,
    /// Who subscribes, at what interval.
    subscribers: BTreeMap<usize, Option<Duration>>,
    /// Version that each subscriber's readers see.
    applied: BTreeMap<usize, u64>,
    watching: Option<u64>,
    shown: Option<u64>,
}

struct Volume {
    id: VolumeId,
    uid: u32,
    wants: Vec<usize>,
    on: bool,
}

pub struct Store {
    pub watched: Watched,
    script: Vec<Stretch>,
    next: usize,
    /// Sum of 1/interval, and the shortest interval, of what is subscribed to.
    rate: f64,
    shortest: Duration,
}

enum What {
    Tick,
    Fetched(usize, Result<Fetched>),
    Renewed(usize, Result<Lease>),
    Revoked(usize, Result<()>),
    WatchEnded(usize, u64, Result<()>),
    Rotate(usize),
    Hint(usize),
    Volume(usize),
    Retain(usize),
    Person(usize),
    Stale(u32),
    Credentials(usize),
    Applied(usize, usize, u64),
    Turn(usize),
    WallStep,
    Sweep,
}

pub struct World {
    pub rng: fastrand::Rng,
    pub fault: Option<Fault>,
    pub now: Mono,
    /// Told to nobody: the pool has no way to ask.
    pub wall: Wall,
    pub suspends: Vec<(Mono, Mono)>,
    pub wall_steps: Vec<(Mono, i64)>,
    awake_since: Mono,
    swept_at: Mono,
    end: Mono,
    pool: Pool,
    queue: BTreeMap<(Mono, u64), What>,
    count: u64,
    tick: Option<(Mono, u64)>,
    pub sources: Vec<Source>,
    index: HashMap<SourceKey, usize>,
    volumes: Vec<Volume>,
    pub stores: Vec<Store>,
    callers: Vec<Caller>,
    stale_until: Vec<Mono>,
    leases: Vec<Given>,
    live: BTreeSet<usize>,
    pub figures: Figures,
    /// A hash of all effects and their times.
    pub trace: u64,
}

const START: u64 = 1_000_000;
pub const INTERVALS: [u64; 6] = [60, 120, 300, 900, 1800, 3600];

fn seconds(n: u64) -> Mono {
    Mono::from_nanos((START + n) * 1_000_000_000)
}

fn caller(uid: u32) -> Caller {
    Arc::new((Identity::Local { uid }, Credentials::default()))
}

impl World {
    pub fn new(seed: u64, size: Size) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let start = seconds(0);
        let mut sources = Vec::new();
        for n in 0..size.sources {
            sources.push(make_source(&mut rng, n, &size));
        }
        let index = (0..).zip(&sources).map(|(n, s)| (s.key.clone(), n));
        let index = index.collect();
        let volumes = (0..size.volumes).map(|n| make_volume(&mut rng, n, &sources, &size));
        let volumes = volumes.collect();
        let stores = (0..size.stores).map(|_| Store {
            watched: Watched::new(start),
            script: store::script(&mut rng, start, size.seconds),
            next: 0,
            rate: 0.0,
            shortest: Duration::MAX,
        });
        let stores = stores.collect();
        let days = size.seconds.div_ceil(24 * 3600);
        let mut suspends = Vec::new();
        let mut wall_steps = Vec::new();
        for day in 0..days {
            let from = day * 24 * 3600 + rng.u64(600..14 * 3600);
            if rng.bool() {
                suspends.push((seconds(from), seconds(from + rng.u64(600..9 * 3600))));
            }
            let step = rng.i64(-7_200_000..7_200_000);
            wall_steps.push((seconds(day * 24 * 3600 + rng.u64(..86_400)), step));
        }
        Self {
            rng,
            fault: None,
            now: start,
            wall: Wall::from_millis(1_700_000_000_000),
            suspends,
            wall_steps,
            awake_since: start,
            swept_at: start,
            end: seconds(size.seconds),
            pool: Pool::new(Rules::default()),
            queue: BTreeMap::new(),
            count: 0,
            tick: None,
            sources,
            index,
            volumes,
            stores,
            callers: (0..size.principals).map(caller).collect(),
            stale_until: vec![start; size.principals as usize],
            leases: Vec::new(),
            live: BTreeSet::new(),
            figures: Figures::default(),
            trace: 0,
        }
    }

    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.pool = Pool::new(fault.rules());
        self.fault = Some(fault);
        self
    }

    /// Days pass; then all volumes leave, stores are well, and no lease is left.
    pub fn run(mut self) -> Result<Figures, String> {
        self.begin();
        while let Some(((at, number), what)) = self.queue.pop_first() {
            if at >= self.end {
                self.queue.insert((at, number), what);
                break;
            }
            self.reach(at);
            self.happen(what)?;
        }
        self.finish()?;
        self.figures.leases = self.leases.len() as u64;
        Ok(self.figures)
    }

    /// Goes on until then, for a closer look.
    pub fn until(mut self, end: Mono) -> Result<Self, String> {
        self.end = end;
        self.begin();
        while let Some(((at, _), what)) = self.queue.pop_first() {
            if at >= self.end {
                break;
            }
            self.reach(at);
            self.happen(what)?;
        }
        Ok(self)
    }

    /// Stores that are never ill.
    pub fn heal(&mut self) {
        for store in &mut self.stores {
            store.script.truncate(1);
        }
    }

    fn begin(&mut self) {
        for n in 0..self.volumes.len() {
            let at = self.rng.u64(..3600);
            self.at(seconds(at), What::Volume(n));
            let at = self.rng.u64(..24 * 3600);
            self.at(seconds(at), What::Person(n));
            let at = self.rng.u64(..48 * 3600);
            self.at(seconds(at), What::Retain(n));
        }
        for n in 0..self.sources.len() {
            if self.sources[n].pushes {
                let at = self.sources[n].rotation;
                self.at(seconds(at), What::Rotate(n));
            }
        }
        for n in 0..self.stores.len() {
            self.at(self.stores[n].script[0].from, What::Turn(n));
        }
        for uid in 0..self.callers.len() as u32 {
            let at = self.rng.u64(..24 * 3600);
            self.at(seconds(at), What::Stale(uid));
        }
        for n in 0..self.wall_steps.len() {
            self.at(self.wall_steps[n].0, What::WallStep);
        }
        self.at(seconds(1), What::Sweep);
    }

    /// Time passes, except for a machine that sleeps: what happens meanwhile is noticed when it wakes.
    fn reach(&mut self, at: Mono) {
        let mut at = at.max(self.now);
        if let Some((_, until)) = self.suspends.iter().find(|(a, b)| *a <= at && at < *b) {
            at = *until;
            if self.awake_since < at {
                self.figures.suspends += 1;
                self.awake_since = at;
            }
        }
        let passed = at.since(self.now).as_millis() as i64;
        self.wall = Wall::from_millis(self.wall.as_millis() + passed);
        self.now = at;
    }

    fn at(&mut self, at: Mono, what: What) -> (Mono, u64) {
        self.count += 1;
        self.queue.insert((at, self.count), what);
        (at, self.count)
    }

    fn later(&mut self, millis: std::ops::Range<u64>, what: What) {
        let at = self.now.after(Duration::from_millis(self.rng.u64(millis)));
        self.at(at, what);
    }

    fn happen(&mut self, what: What) -> Verdict {
        match what {
            What::Tick => {
                self.tick = None;
                self.tell(Event::Tick)
            }
            What::Fetched(n, result) => self.fetched(n, result),
            What::Renewed(n, result) => {
                self.sources[n].seen.renewing -= 1;
                self.ended(n, result.is_ok());
                self.tell(Event::Renewed(self.sources[n].key.clone(), result))
            }
            What::Revoked(n, result) => {
                self.sources[n].seen.revoking -= 1;
                self.ended(n, result.is_ok());
                self.tell(Event::Revoked(self.sources[n].key.clone(), result))
            }
            What::WatchEnded(n, watch, result) => {
                if self.sources[n].watching != Some(watch) {
                    return Ok(());
                }
                self.sources[n].watching = None;
                self.tell(Event::WatchEnded(self.sources[n].key.clone(), result))
            }
            What::Rotate(n) => {
                if self.sources[n].watching.is_some() {
                    self.later(5..50, What::Hint(n));
                }
                let at = self
                    .now
                    .after(Duration::from_secs(self.sources[n].rotation));
                self.at(at, What::Rotate(n));
                Ok(())
            }
            What::Hint(n) => self.tell(Event::Hint(self.sources[n].key.clone())),
            What::Volume(n) => self.volume(n),
            What::Retain(n) => self.retain(n),
            What::Person(n) => self.person(n),
            What::Stale(uid) => self.stale(uid),
            What::Credentials(n) => self.credentials(n),
            What::Applied(volume, n, version) => self.applied(volume, n, version),
            What::Turn(n) => self.turn(n),
            What::WallStep => {
                let step = self.wall_steps.pop().map_or(0, |(_, step)| step);
                self.wall = Wall::from_millis(self.wall.as_millis() + step);
                Ok(())
            }
            What::Sweep => self.sweep(),
        }
    }
}

fn make_source(rng: &mut fastrand::Rng, n: usize, size: &Size) -> Source {
    let uid = rng.u32(..size.principals);
    let store = rng.usize(..size.stores);
    let life = match n % 10 {
        0 | 5 => Life::Renewable,
        1 => Life::Final,
        _ => Life::Plain,
    };
    let pushes = n % 4 == 2;
    let alone = n.is_multiple_of(10);
    let every = Duration::from_secs(INTERVALS[rng.usize(..INTERVALS.len())]);
    let id = VolumeId::parse(&format!("v{}", n % size.volumes)).unwrap();
    Source {
        key: SourceKey {
            object: ObjectRef {
                backend: BackendName::parse(&format!("s{store}")).unwrap(),
                // principals ask for the same objects
                path: format!("p{}-{life:?}-{}", n / 4, n % 4 * usize::from(alone)).into(),
                version: None,
                params: format!("{n}").into(),
                share: if alone {
                    Share::Volume
                } else {
                    Share::Principal
                },
            },
            principal: Principal::Local(uid),
            volume: alone.then_some(id),
            epoch: 0,
        },
        uid,
        store,
        every: (n % 8 != 2).then_some(every),
        life,
        pushes,
        rotation: rng.u64(600..36_000),
        seen: Seen::default(),
        subscribers: BTreeMap::new(),
        applied: BTreeMap::new(),
        watching: None,
        shown: None,
    }
}

/// A volume wants up to four of its principal's sources.
fn make_volume(rng: &mut fastrand::Rng, n: usize, sources: &[Source], size: &Size) -> Volume {
    let id = VolumeId::parse(&format!("v{n}")).unwrap();
    let start = rng.usize(..sources.len());
    let own = sources
        .iter()
        .position(|one| one.key.volume.as_ref() == Some(&id));
    let uid = own.map_or(rng.u32(..size.principals), |own| sources[own].uid);
    let mine = (0..sources.len())
        .map(|step| (start + step) % sources.len())
        .filter(|&one| sources[one].uid == uid && sources[one].key.volume.is_none());
    let mut wants: Vec<usize> = own.into_iter().chain(mine).take(4).collect();
    if wants.is_empty() {
        let any = sources.iter().position(|one| one.key.volume.is_none());
        wants.extend(any);
    }
    let uid = wants.first().map_or(uid, |&one| sources[one].uid);
    Volume {
        id,
        uid,
        wants,
        on: false,
    }
}
