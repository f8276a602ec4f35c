//! Namespaces beside each other at one backend: what hangs or fails for some is not felt by the others.
//!
//! A *town* has namespaces, each with sources that are looked at every minute and, from time to time, a new pod. From the tenth minute
//! on the backend is ill for some of the namespaces, for an hour. How long a request takes is a matter of its source and of how often that has
//! been asked, not of what else goes on, so two towns of one seed differ only by the illness.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use secretfs::{
    backend::Fetched,
    caller::{Caller, Credentials, Identity, PodIdentity, Principal},
    clock::Mono,
    error::{Code, Error, Result, codes},
    limits,
    mount::VolumeId,
    render::Known,
    secret::{Content, Object, SecretBytes, Version},
    source::{
        Effect, Event, SourceKey, SourceView, Terms,
        pool::{Pool, Rules},
    },
    spec::{BackendName, ObjectRef, Share},
};

const EVERY: Duration = Duration::from_secs(60);
const SICK_FROM: u64 = 600;
const SICK_UNTIL: u64 = 4200;
const END: u64 = 4800;

#[derive(Clone, Copy)]
struct Plan {
    namespaces: usize,
    /// Sources of each.
    sources: usize,
    /// Namespaces for which the backend is ill: the first so many.
    sick: usize,
    illness: (Duration, &'static Code),
    seed: u64,
    /// All go on one account.
    one_account: bool,
}

/// Its requests end by their deadline.
const HANGS: (Duration, &Code) = (limits::FETCH_DEADLINE, &codes::BACKEND_TIMEOUT);
const DOWN: (Duration, &Code) = (Duration::from_millis(3), &codes::BACKEND_UNAVAILABLE);

struct One {
    key: SourceKey,
    caller: Caller,
    namespace: usize,
    /// A new pod's; the others are there from the beginning.
    is_new: bool,
    subscribed: Mono,
    /// When it was asked; when it was answered well.
    asked: Vec<Mono>,
    answered: Vec<Mono>,
}

enum What {
    Tick,
    Subscribe(usize),
    Fetched(usize, Result<Fetched>),
}

struct Town {
    plan: Plan,
    pool: Pool,
    now: Mono,
    queue: BTreeMap<(Mono, u64), What>,
    count: u64,
    tick: Option<(Mono, u64)>,
    all: Vec<One>,
    index: HashMap<SourceKey, usize>,
    in_flight: BTreeMap<usize, u32>,
}

fn at(seconds: u64) -> Mono {
    Mono::from_nanos((1_000_000 + seconds) * 1_000_000_000)
}

impl Town {
    fn run(plan: Plan) -> Self {
        let mut town = Self {
            plan,
            pool: Pool::new(Rules {
                salt: plan.seed,
                ..Rules::default()
            }),
            now: at(0),
            queue: BTreeMap::new(),
            count: 0,
            tick: None,
            all: Vec::new(),
            index: HashMap::new(),
            in_flight: BTreeMap::new(),
        };
        let mut rng = fastrand::Rng::with_seed(plan.seed);
        for n in 0..plan.namespaces * plan.sources {
            let begin = at(0).after(Duration::from_millis(rng.u64(..300_000)));
            town.settle(n % plan.namespaces, false, begin);
        }
        for nth in 0..400 {
            let begin = at(SICK_FROM + nth * 9).after(Duration::from_millis(rng.u64(..9000)));
            town.settle(nth as usize % plan.namespaces, true, begin);
        }
        while let Some(((at, _), what)) = town.queue.pop_first() {
            if at >= self::at(END) {
                break;
            }
            town.now = town.now.max(at);
            match what {
                What::Tick => {
                    town.tick = None;
                    town.tell(Event::Tick);
                }
                What::Subscribe(n) => town.subscribe(n),
                What::Fetched(n, result) => {
                    if result.is_ok() {
                        town.all[n].answered.push(town.now);
                    }
                    *town.in_flight.get_mut(&town.all[n].namespace).unwrap() -= 1;
                    town.tell(Event::Fetched(town.all[n].key.clone(), result));
                }
            }
        }
        town
    }

    fn settle(&mut self, namespace: usize, is_new: bool, subscribed: Mono) {
        let n = self.all.len();
        let name: Box<str> = format!("ns{namespace}").into();
        let key = SourceKey {
            object: ObjectRef {
                backend: BackendName::parse("s").unwrap(),
                path: format!("p{n}").into(),
                version: None,
                params: "".into(),
                share: Share::Principal,
            },
            principal: Principal::ServiceAccount {
                namespace: name.clone(),
                name: "a".into(),
                uid: None,
            },
            volume: None,
            epoch: 0,
        };
        let who = Identity::Pod(PodIdentity {
            namespace: name,
            pod: format!("pod{n}").into(),
            pod_uid: format!("uid{n}").into(),
            service_account: "a".into(),
            service_account_uid: None,
        });
        let who = match self.plan.one_account {
            true => Identity::Local { uid: 0 },
            false => who,
        };
        self.index.insert(key.clone(), n);
        self.all.push(One {
            key,
            caller: Arc::new((who, Credentials::default())),
            namespace,
            is_new,
            subscribed,
            asked: Vec::new(),
            answered: Vec::new(),
        });
        self.at(subscribed, What::Subscribe(n));
    }

    fn at(&mut self, at: Mono, what: What) -> (Mono, u64) {
        self.count += 1;
        self.queue.insert((at, self.count), what);
        (at, self.count)
    }

    fn subscribe(&mut self, n: usize) {
        let one = &self.all[n];
        let every = if one.is_new { EVERY * 60 } else { EVERY };
        let event = Event::Subscribe {
            volume: VolumeId::parse(&format!("v{n}")).unwrap(),
            key: one.key.clone(),
            every: Some(every),
            caller: one.caller.clone(),
            pushes: false,
            terms: Terms::default(),
        };
        self.tell(event);
    }

    fn tell(&mut self, event: Event) {
        for effect in self.pool.on(self.now, event) {
            match effect {
                Effect::Fetch { key, have, .. } => self.fetch(self.index[&key], have.is_some()),
                Effect::WakeAt(at) => {
                    if let Some(old) = self.tick.take() {
                        self.queue.remove(&old);
                    }
                    self.tick = Some(self.at(at.max(self.now), What::Tick));
                }
                Effect::Show(_, SourceView { known, .. }) => {
                    assert!(!matches!(known, Known::Absent));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn fetch(&mut self, n: usize, has: bool) {
        let (now, plan) = (self.now, self.plan);
        let one = &mut self.all[n];
        one.asked.push(now);
        let mine = self.in_flight.entry(one.namespace).or_default();
        *mine += 1;
        assert!(*mine <= limits::TENANT_IN_FLIGHT, "too many of one tenant");
        let total: u32 = self.in_flight.values().sum();
        assert!(total <= limits::BACKEND_IN_FLIGHT, "too many of all");
        let is_ill = one.namespace < plan.sick && now >= at(SICK_FROM) && now < at(SICK_UNTIL);
        let nth = one.asked.len() as u64;
        let (wait, result) = if is_ill {
            (plan.illness.0, Err(Error::new(plan.illness.1)))
        } else {
            let seed = plan.seed ^ (n as u64) << 32 ^ nth;
            let millis = fastrand::Rng::with_seed(seed).u64(5..150);
            let object = Object {
                version: Version::new("1".to_owned()),
                content: Content::Bytes(Arc::new(SecretBytes::new(b"x".to_vec()))),
                lease: None,
            };
            let answer = match has {
                true => Fetched::NotModified,
                false => Fetched::Object(object),
            };
            (Duration::from_millis(millis), Ok(answer))
        };
        self.at(now.after(wait), What::Fetched(n, result));
    }

    /// Of the namespaces that are well under this plan: how long each new pod waited for its secret, in milliseconds, sorted.
    fn publishes(&self, sick: usize) -> Vec<u128> {
        let new = self.all.iter().filter(|one| one.is_new);
        let well = new.filter(|one| one.namespace >= sick);
        let waits = well.map(|one| {
            let first = one.answered.first().expect("a new pod got nothing");
            first.since(one.subscribed).as_millis()
        });
        let mut waits: Vec<u128> = waits.collect();
        waits.sort_unstable();
        waits
    }

    /// Of the same: the times between two answers of each source, sorted. A change in the store is seen after that time at most.
    fn refreshes(&self, sick: usize) -> Vec<u128> {
        let old = self.all.iter().filter(|one| !one.is_new);
        let well = old.filter(|one| one.namespace >= sick);
        let gaps = well.flat_map(|one| one.answered.windows(2));
        let mut gaps: Vec<u128> = gaps
            .map(|pair| pair[1].since(pair[0]).as_millis())
            .collect();
        gaps.sort_unstable();
        gaps
    }

    fn asked_between(&self, from: u64, until: u64) -> usize {
        let all = self.all.iter().flat_map(|one| &one.asked);
        all.filter(|asked| **asked >= at(from) && **asked < at(until))
            .count()
    }
}

fn p(percent: usize, sorted: &[u128]) -> u128 {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn ten(sick: usize, seed: u64) -> Plan {
    Plan {
        namespaces: 10,
        sources: 20,
        sick,
        illness: HANGS,
        seed,
        one_account: false,
    }
}

#[test]
fn one_namespace_of_ten_that_hangs_for_an_hour_is_not_felt_by_the_others() {
    for seed in 0..5 {
        let (calm, ill) = (Town::run(ten(0, seed)), Town::run(ten(1, seed)));
        let until = |all: &[Mono]| {
            let before = all.iter().filter(|one| **one < at(SICK_UNTIL));
            before.copied().collect::<Vec<Mono>>()
        };
        for (one, other) in calm.all.iter().zip(&ill.all) {
            if one.namespace >= 1 {
                let of = &one.key.object;
                let (mine, its) = (until(&one.asked), until(&other.asked));
                let first = mine.iter().zip(&its).find(|(a, b)| a != b);
                assert!(mine == its, "seed {seed}: {of}, {first:?}");
                assert!(
                    until(&one.answered) == until(&other.answered),
                    "seed {seed}: {of}"
                );
            }
        }
        // when it is well again all that it has missed goes at once, at the backend's rate, which is everybody's
        let (before, after) = (calm.refreshes(1), ill.refreshes(1));
        assert!(p(100, &after) <= p(100, &before) + 1000, "seed {seed}");
        assert!(p(99, &after) <= p(99, &before) + 5, "seed {seed}");
        let waits = ill.publishes(1);
        assert!(waits.len() > 300 && ill.refreshes(1).len() > 10_000);
        assert!(p(99, &waits) < 150, "seed {seed}: {}", p(99, &waits));
        // who hangs is asked little, and is well again soon
        let hung = ill.all.iter().filter(|one| one.namespace == 0);
        for one in hung.clone().filter(|one| !one.is_new) {
            let well = one.answered.iter().find(|at| **at > self::at(SICK_UNTIL));
            assert!(
                well.is_some_and(|well| *well < at(SICK_UNTIL + 400)),
                "seed {seed}"
            );
        }
        let asked = hung.flat_map(|one| &one.asked);
        let asked = asked.filter(|asked| **asked > at(SICK_FROM + 120) && **asked < at(SICK_UNTIL));
        assert!(asked.count() < 40, "seed {seed}");
    }
}

#[test]
fn three_that_hang_are_hardly_felt() {
    for seed in 0..5 {
        let (calm, ill) = (Town::run(ten(0, seed)), Town::run(ten(3, seed)));
        for (what, calm, ill) in [
            ("publish", calm.publishes(3), ill.publishes(3)),
            ("refresh", calm.refreshes(3), ill.refreshes(3)),
        ] {
            println!(
                "{what}, 3 of 10 hang: p50 {} -> {} ms, p99 {} -> {} ms, most {} -> {} ms",
                p(50, &calm),
                p(50, &ill),
                p(99, &calm),
                p(99, &ill),
                p(100, &calm),
                p(100, &ill)
            );
            assert!(p(50, &ill) <= p(50, &calm) + 5, "seed {seed}: {what}");
            assert!(p(99, &ill) <= p(99, &calm) + 20, "seed {seed}: {what}");
            assert!(p(100, &ill) <= p(100, &calm) + 2000, "seed {seed}: {what}");
        }
    }
}

/// Under a hundredth of what it is asked in health, with the minutes left out in which each tenant finds out, and well within a probe
/// and an interval after it is back.
#[test]
fn a_store_that_is_down_for_every_namespace_is_left_alone() {
    for (namespaces, sources) in [(10, 100), (40, 20), (20, 4)] {
        for illness in [DOWN, HANGS] {
            let plan = Plan {
                namespaces,
                sources,
                sick: namespaces,
                illness,
                seed: 3,
                one_account: false,
            };
            let town = Town::run(plan);
            let asked = town.asked_between(SICK_FROM + 300, SICK_UNTIL);
            let seconds = (SICK_UNTIL - SICK_FROM - 300) as usize;
            let healthy = namespaces * sources * seconds / EVERY.as_secs() as usize;
            // new pods too: a namespace that is new, or was answered last, finds out for itself
            let most = (healthy / 100).max(seconds / 270) + 5;
            println!(
                "{namespaces} x {sources}, {}: {asked} of {healthy}",
                illness.1.name
            );
            assert!(
                asked <= most,
                "{namespaces} x {sources}: {asked} of {healthy}"
            );
            let back = SICK_UNTIL + limits::PROBE_MAX.as_secs() + EVERY.as_secs() + 60;
            for one in town.all.iter().filter(|one| !one.is_new) {
                let well = one.answered.iter().find(|well| **well > at(SICK_UNTIL));
                assert!(
                    well.is_some_and(|well| *well < at(back)),
                    "{}",
                    one.key.object
                );
            }
        }
    }
}

/// The rig: where all go on one account, as if nobody told namespaces apart, the others do feel it.
#[test]
fn without_accounts_of_their_own_the_others_feel_it() {
    let run = |sick| {
        let mut plan = ten(sick, 1);
        plan.one_account = true;
        Town::run(plan)
    };
    let (calm, ill) = (run(0).refreshes(1), run(1).refreshes(1));
    assert!(p(99, &ill) > p(99, &calm) + 5000, "{} ms", p(99, &ill));
}
