//! The world around the volumes: a kubelet, accounts that come and go, two stores. Each step is one thing that happens, and all work that
//! follows from it; then `checks` looks at what was shown.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use secretfs::{
    backend::{Backend, registry::Registry},
    caller::AsksAs,
    clock::Clock as _,
    error::Error,
    limits,
    mount::memory::MemoryMounter,
    spec::BackendName,
    volume::Settings,
};

use super::{
    checks::{self, Figures, Verdict},
    faults::Fault,
    mounts::Watched,
    pods::{Call, Pod, Wants, Who},
    store::{Asking, Mood, PATHS, ROLES, Stores},
};
use crate::support::bed::{Bed, volume};

/// Their names, and how wide they share.
pub const STORES: [(&str, AsksAs); 2] = [("a", AsksAs::ServiceAccount), ("b", AsksAs::Pod)];

const NAMESPACES: [&str; 2] = ["n0", "n1"];
const ACCOUNTS: [&str; 2] = ["s0", "s1"];
const INTERVALS_S: [u64; 3] = [20, 60, 300];
const PODS: usize = 6;
const STEPS: usize = 100;
/// Longer than any interval, wait after a failure, or wait of a breaker.
const LONG: Duration = Duration::from_secs(8 * 90);

pub struct World {
    bed: Bed,
    mounts: Watched,
    stores: Stores,
    rng: fastrand::Rng,
    fault: Option<Fault>,
    pods: BTreeMap<u64, Pod>,
    /// The uid of each account, by namespace and name.
    accounts: [[u64; 2]; 2],
    /// Of each store.
    epochs: [u64; 2],
    /// Numbers accounts, pods, tokens and configurations as they come.
    count: u64,
    seed: u64,
    steps: Vec<String>,
    pub figures: Figures,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, steps) = (self.seed, self.steps.join("\n  "));
            println!("SECRETFS_PRINCIPALS_SEED={seed} fails at the last of:\n  {steps}");
        }
    }
}

impl World {
    pub fn new(seed: u64, fault: Option<Fault>) -> Self {
        let memory = MemoryMounter::default();
        let mounts = Watched::new(memory.clone());
        let bed = Bed::with_records_on(Arc::new(mounts.clone()), memory);
        mounts.go_by(bed.clock.clone());
        let stores = Stores::new(seed, fault);
        let mut world = Self {
            bed,
            mounts,
            stores,
            rng: fastrand::Rng::with_seed(seed),
            fault,
            pods: BTreeMap::new(),
            accounts: [[1, 2], [3, 4]],
            epochs: [0, 0],
            count: 100,
            seed,
            steps: Vec::new(),
            figures: Figures::default(),
        };
        for store in 0..STORES.len() {
            world.reload(store);
        }
        world
    }

    /// What happens; then all is well, and everybody sees what is current.
    pub async fn run(&mut self) -> Verdict {
        for _ in 0..STEPS {
            self.step().await?;
            self.settle().await?;
        }
        self.end_well().await
    }

    async fn step(&mut self) -> Verdict {
        match self.rng.u8(0..48) {
            0..=7 => self.come(),
            8..=12 => self.call_again(),
            13..=15 => self.want_something_else(),
            16..=18 => return self.leave().await,
            19..=23 => {
                let path = self.any(&PATHS);
                self.note(format_args!("{path} rotates"));
                self.stores.rotate(path);
            }
            24..=26 => self.rights_change(),
            27 => self.token_is_void(),
            28..=30 => {
                let account = self.an_account();
                self.account_is_made_again(account);
            }
            31 => {
                let mood = self.any(&[Mood::Down, Mood::Slow, Mood::Slow]);
                self.be(mood);
            }
            32..=33 => self.be(Mood::Up),
            34..=36 => {
                self.note("a held answer goes");
                self.stores.release();
            }
            37 => {
                let store = self.rng.usize(..STORES.len());
                self.reload(store);
            }
            38 => self.restart().await,
            39 => self.person_asks(),
            40 => self.give_up(),
            41 => {
                let by = Duration::from_secs(self.rng.u64(1..1000));
                self.note(format_args!("sleeps for {by:?}"));
                self.bed.clock.jump(by);
            }
            _ => {
                let longest = self.any(&[1_000, 20_000, 120_000]);
                let ms = self.rng.u64(1..longest);
                self.note(format_args!("{ms} ms pass"));
                self.bed.pass_ms(ms).await;
            }
        }
        Ok(())
    }

    fn any<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.rng.usize(..all.len())]
    }

    fn a_pod(&mut self) -> Option<u64> {
        let all: Vec<u64> = self.pods.keys().copied().collect();
        (!all.is_empty()).then(|| self.any(&all))
    }

    fn note(&mut self, what: impl std::fmt::Display) {
        let ms = self.bed.clock.now_ms();
        self.steps.push(format!("{ms} {what}"));
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    // --- the kubelet

    fn come(&mut self) {
        if self.pods.len() >= PODS {
            return;
        }
        let (account, wants) = (self.an_account(), self.something());
        self.come_as(account, wants);
    }

    /// A pod of that account, in its present incarnation.
    pub fn come_as(&mut self, (namespace, account): (usize, usize), wants: Wants) -> u64 {
        let number = self.next();
        let who = Who {
            namespace: NAMESPACES[namespace].into(),
            account: ACCOUNTS[account].into(),
            account_uid: format!("u{}", self.accounts[namespace][account]),
            pod_uid: format!("p{number}"),
        };
        let pod = Pod {
            id: format!("v{number}"),
            who: who.clone(),
            wants: wants.clone(),
            is_served: false,
            call: None,
            shown: BTreeMap::new(),
            has_moved: false,
        };
        self.pods.insert(number, pod);
        self.call(number, who, wants);
        number
    }

    /// One of them is chosen more often: most of what can go wrong needs two who have something in common.
    fn an_account(&mut self) -> (usize, usize) {
        match self.rng.bool() {
            true => (0, 0),
            false => (self.rng.usize(..2), self.rng.usize(..2)),
        }
    }

    fn something(&mut self) -> Wants {
        let many = self.rng.usize(1..=3);
        let [by_account, by_pod] = [STORES[0].0, STORES[1].0];
        let stores = [by_account, by_account, by_account, by_pod];
        let roles = [ROLES[0], ROLES[0], ROLES[1]];
        let mut one = || (self.any(&stores), self.any(&PATHS), self.any(&roles));
        let files = std::iter::repeat_with(&mut one).take(many).collect();
        let interval = Duration::from_secs(self.any(&INTERVALS_S));
        Wants { files, interval }
    }

    pub fn call(&mut self, number: u64, who: Who, wants: Wants) {
        let (serial, now) = (self.next(), self.bed.clock.wall());
        self.note(format_args!(
            "v{number} asks by {serial}: {who:?} {wants:?}"
        ));
        let Some(pod) = self.pods.get_mut(&number).filter(|pod| pod.call.is_none()) else {
            return; // the kubelet makes one call at a time
        };
        let caller = who.caller(serial, now, self.fault);
        let request = pod.request(&wants, caller, self.fault);
        pod.call = Some(Call {
            at: self.bed.clock.now(),
            moment: self.stores.lock().moment(),
            serial,
            who,
            wants,
            epochs: self.epochs,
            answer: self.bed.begin(request),
        });
    }

    /// With a fresh token: of the account that has the name now, or of the former one, as long as the kubelet knows no other.
    fn call_again(&mut self) {
        let Some(number) = self.a_pod() else { return };
        let (mut who, wants) = self.pods[&number].asks();
        if self.rng.bool() {
            who = self.who_now(number);
        }
        self.call(number, who, wants);
    }

    /// As whom the kubelet's next token for the pod says that it runs.
    pub fn who_now(&self, number: u64) -> Who {
        let (mut who, _) = self.pods[&number].asks();
        let at = |all: &[&str], name: &str| all.iter().position(|one| *one == name);
        let namespace = at(&NAMESPACES, &who.namespace).unwrap_or_default();
        let account = at(&ACCOUNTS, &who.account).unwrap_or_default();
        who.account_uid = format!("u{}", self.accounts[namespace][account]);
        who
    }

    fn want_something_else(&mut self) {
        let Some(number) = self.a_pod() else { return };
        let wants = self.something();
        let (who, _) = self.pods[&number].asks();
        self.call(number, who, wants);
    }

    fn give_up(&mut self) {
        let Some(number) = self.a_pod() else { return };
        self.note(format_args!("v{number} is not waited for any more"));
        let call = self.pods.get_mut(&number).and_then(|pod| pod.call.take());
        if let Some(call) = call {
            call.answer.abort();
        }
    }

    async fn leave(&mut self) -> Verdict {
        let Some(number) = self.a_pod() else {
            return Ok(());
        };
        self.note(format_args!("v{number} leaves"));
        let Some(pod) = self.pods.remove(&number) else {
            return Ok(());
        };
        if self.rng.bool() {
            self.stores.lock().void.insert(pod.who.pod_uid.clone());
        }
        let result = self.bed.unpublish(&pod.id).await;
        result.map_err(|error| format!("files: {} stays: {error}", pod.id))?;
        match self.bed.shown(&pod.id) {
            Some(_) => Err(format!("files: {} is gone, and shown some", pod.id)),
            None => Ok(()),
        }
    }

    fn person_asks(&mut self) {
        let Some(number) = self.a_pod() else { return };
        self.note(format_args!("a person refreshes v{number}"));
        let (volumes, id) = (self.bed.volumes.clone(), volume(&self.pods[&number].id));
        tokio::spawn(async move { volumes.refresh(&id).await });
    }

    // --- accounts and stores

    pub fn account_is_made_again(&mut self, (namespace, account): (usize, usize)) {
        let uid = self.next();
        let former = std::mem::replace(&mut self.accounts[namespace][account], uid);
        self.note(format_args!("u{former} is u{uid} now"));
    }

    fn rights_change(&mut self) {
        let Some(number) = self.a_pod() else { return };
        let (path, whose) = (self.any(&PATHS), self.rng.bool());
        let (who, _) = self.pods[&number].asks();
        let uid = if whose { who.account_uid } else { who.pod_uid };
        self.note(format_args!("{uid} gains or loses {path}"));
        let one = (uid, path.to_owned());
        let mut state = self.stores.lock();
        if !state.denied.remove(&one) {
            state.denied.insert(one);
        }
    }

    fn token_is_void(&mut self) {
        let Some(number) = self.a_pod() else { return };
        self.note(format_args!(
            "tokens of p{number} are void, or not any more"
        ));
        let uid = format!("p{number}");
        let mut state = self.stores.lock();
        if !state.void.remove(&uid) {
            state.void.insert(uid);
        }
    }

    pub fn be(&mut self, mood: Mood) {
        self.note(format_args!("{mood:?}"));
        self.stores.lock().mood = mood;
    }

    /// One store is configured anew.
    pub fn reload(&mut self, store: usize) {
        let (name, share_by) = STORES[store];
        let epoch = self.next();
        self.note(format_args!("{name} is of epoch {epoch}"));
        let former = std::mem::replace(&mut self.epochs[store], epoch);
        let answers = match self.fault {
            Some(Fault::KeepsTheStore) if former > 0 => former,
            _ => epoch,
        };
        let asking = Asking {
            stores: self.stores.clone(),
            name,
            epoch: answers,
            share_by,
        };
        let backend: Arc<dyn Backend> = Arc::new(asking);
        let mut settings = Settings::clone(&self.bed.settings.borrow());
        let name = BackendName::parse(name).unwrap();
        settings.registry = Registry::clone(&settings.registry).with(name, backend);
        self.bed.settings.send_replace(Arc::new(settings));
    }

    /// The process ends, whatever is under way; another takes over.
    async fn restart(&mut self) {
        self.note("restart");
        self.figures.restarts += 1;
        self.stores.lock().life += 1;
        let (clock, mounts) = (self.bed.clock.clone(), Arc::new(self.mounts.clone()));
        let stops = async {
            for _ in 0..2 {
                clock.settle().await;
                clock.jump(limits::STOP_GRACE); // for requests that do not end when they are told to
            }
        };
        tokio::join!(self.bed.restart_on(mounts), stops);
        self.bed.volumes.restore().await;
    }

    // --- looking

    /// 1. What the stores have to complain of.
    /// 2. What was shown, in its order.
    /// 3. Calls that have been answered.
    /// 4. What is shown now.
    async fn look(&mut self) -> Verdict {
        if let Some(complaint) = self.stores.lock().complaints.pop() {
            return Err(complaint); // 1
        }
        for seen in self.mounts.seen() {
            let name = seen.target.as_path().file_name().unwrap();
            let name = name.to_str().unwrap();
            let Some(pod) = self.pods.values_mut().find(|pod| pod.id == *name) else {
                continue; // it has left
            };
            let (stores, figures) = (&self.stores, &mut self.figures);
            checks::shown(pod, seen.at, &seen.files, stores, figures)?; // 2
        }
        for pod in self.pods.values_mut() {
            let done = pod.call.take_if(|call| call.answer.is_finished());
            if let Some(mut call) = done {
                let result = (&mut call.answer).await.unwrap(); // 3
                let refusal = result.as_ref().map_or_else(Some, |ok| ok.refused.as_ref());
                self.figures.refused += u64::from(refusal.is_some_and(Error::is_denial));
                let code = refusal.map_or("ok", |error| error.code().name);
                self.steps.push(format!("{} is told: {code}", pod.id));
                let is_another = pod.is_served && call.who != pod.who;
                let is_taken = pod.answered(call, &result);
                self.figures.moved += u64::from(is_another && is_taken);
            }
            if pod.call.is_none() {
                pod.is_consistent()?; // 4
            }
        }
        let served: Vec<&Who> = self.served().map(|pod| &pod.who).collect();
        let is_namesake = |a: &Who, b: &Who| {
            a.namespace == b.namespace && a.account == b.account && a.account_uid != b.account_uid
        };
        let found = served
            .iter()
            .any(|a| served.iter().any(|b| is_namesake(a, b)));
        self.figures.namesakes += u64::from(found);
        Ok(())
    }

    fn served(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().filter(|pod| pod.is_served)
    }

    /// All work of the moment is done.
    pub async fn settle(&mut self) -> Verdict {
        self.bed.clock.settle().await;
        self.look().await
    }

    pub async fn pass(&mut self, by: Duration) -> Verdict {
        self.bed.clock.pass(by).await;
        self.look().await
    }

    /// 1. The trouble ends, and what waits is answered.
    /// 2. Everything changes a last time; the kubelet calls as it always does.
    /// 3. Everybody sees it.
    /// 4. All leave. Nobody asks any more.
    async fn end_well(&mut self) -> Verdict {
        self.note("all is well");
        {
            let mut state = self.stores.lock();
            state.mood = Mood::Up; // 1
            state.denied.clear();
            state.void.clear();
        }
        while self.stores.release() {}
        self.pass(Duration::from_secs(120)).await?;
        for path in PATHS {
            self.stores.rotate(path); // 2
        }
        let began = self.bed.clock.now();
        while self.bed.clock.now().since(began) < LONG {
            let numbers: Vec<u64> = self.pods.keys().copied().collect();
            for number in numbers {
                let (who, wants) = self.pods[&number].asks();
                self.call(number, who, wants);
                self.settle().await?; // who comes at the same time may be asked for by another's proof
            }
            self.pass(Duration::from_secs(90)).await?;
        }
        for pod in self.pods.values() {
            checks::current(pod, &self.stores, self.epochs, LONG)?; // 3
        }
        while !self.pods.is_empty() {
            self.leave().await?; // 4
        }
        self.pass(Duration::from_secs(60)).await?;
        let asked = self.asked();
        self.pass(LONG).await?;
        match self.asked() == asked {
            true => Ok(()),
            false => Err("current: nobody wants anything, and it is asked for".into()),
        }
    }

    fn asked(&self) -> usize {
        self.stores.lock().asked.len()
    }
}
