//! What must hold of everything that a reader ever sees. The first word of a complaint names the check.

use std::{collections::BTreeMap, time::Duration};

use secretfs::clock::Mono;

use super::{
    pods::{Call, Pod, Who},
    store::{Asked, Good, Stores, Value},
    world::STORES,
};

pub type Verdict = Result<(), String>;

/// How often what is checked has happened at all.
#[derive(Default, Debug)]
pub struct Figures {
    /// Values given to a pod that came which the store had confirmed recently enough.
    pub cached: u64,
    /// Others: asked for by the pod's own proof first (after a refusal by another's, once), or by a request that was under way.
    pub by_own: u64,
    pub joined: u64,
    /// Of `by_own`: there was a value that was too old.
    pub too_old: u64,
    /// Pods whose account was made again under them.
    pub moved: u64,
    pub refused: u64,
    /// Moments at which pods of two accounts of one name were served.
    pub namesakes: u64,
    pub restarts: u64,
    /// Values that replaced one of an older version, and one of the former configuration.
    pub rotated: u64,
    pub reloaded: u64,
}

impl Figures {
    pub fn add(&mut self, other: &Self) {
        let pairs = self.all_mut().into_iter().zip(other.all());
        pairs.for_each(|(mine, other)| *mine += other);
    }

    /// A check that had nothing to look at has checked nothing.
    pub fn has_seen_everything(&self) {
        assert!(self.all().into_iter().all(|one| one > 0), "{self:?}");
    }

    fn all(&self) -> [u64; 10] {
        [
            self.cached,
            self.by_own,
            self.joined,
            self.too_old,
            self.moved,
            self.refused,
            self.namesakes,
            self.restarts,
            self.rotated,
            self.reloaded,
        ]
    }

    fn all_mut(&mut self) -> [&mut u64; 10] {
        [
            &mut self.cached,
            &mut self.by_own,
            &mut self.joined,
            &mut self.too_old,
            &mut self.moved,
            &mut self.refused,
            &mut self.namesakes,
            &mut self.restarts,
            &mut self.rotated,
            &mut self.reloaded,
        ]
    }
}

/// A set of files that a pod is shown at a moment.
///
/// 1. All of them are of one principal: as whom the pod is served, or as whom it asks now. It never goes back to the former one.
/// 2. Each is what its name says, from a store that was configured when the pod asked, or a later one.
/// 3. None is older than what it has seen of the same.
/// 4. What it did not have before was confirmed recently enough when it asked; else its own proof came first.
pub fn shown(
    pod: &mut Pod,
    at: Mono,
    files: &BTreeMap<String, String>,
    stores: &Stores,
    figures: &mut Figures,
) -> Verdict {
    let values = files
        .iter()
        .map(|(name, text)| (name.clone(), stores.value(text)));
    let values: BTreeMap<String, Value> = values.collect();
    let is_all_of = |who: &Who| values.values().all(|value| who.owns(value));
    let is_former = pod.is_served && is_all_of(&pod.who);
    let asks = pod.call.as_ref().map(|call| call.who.clone());
    let asks = asks.filter(|asks| is_all_of(asks)); // 1
    let is_back = pod.has_moved && asks.is_none();
    if is_back || !(asks.is_some() || is_former) {
        return Err(format!("principal: {} is shown {values:?}", pod.id));
    }
    pod.has_moved |= !is_former;
    for (name, value) in &values {
        is_as_named(name, value)?; // 2
        let store = STORES.iter().position(|store| store.0 == value.key.store);
        let seen = pod.shown.get(name);
        let floor = match (&pod.call, seen) {
            (_, Some(seen)) => seen.key.epoch,
            (Some(call), None) => call.epochs[store.unwrap_or_default()],
            (None, None) => 0,
        };
        if value.key.epoch < floor {
            return Err(format!("store: {} is shown {value:?}", pod.id));
        }
        match seen.filter(|seen| seen.key.principal == value.key.principal) {
            Some(seen) => is_later(pod, seen, value, figures)?, // 3
            None => {
                let call = pod.call.as_ref();
                let call = call.ok_or_else(|| format!("files: {} did not ask", pod.id))?;
                given(&pod.id, call, value, at, stores, figures)?; // 4
            }
        }
    }
    pod.shown = values;
    Ok(())
}

fn is_as_named(name: &str, value: &Value) -> Verdict {
    let key = &value.key;
    match name == format!("{}-{}-{}", key.store, key.path, key.role) {
        true => Ok(()),
        false => Err(format!("role: {name} is {value:?}")),
    }
}

fn is_later(pod: &Pod, seen: &Value, value: &Value, figures: &mut Figures) -> Verdict {
    if value.version < seen.version {
        return Err(format!("version: {} saw {seen:?}, now {value:?}", pod.id));
    }
    figures.rotated += u64::from(value.version > seen.version);
    figures.reloaded += u64::from(value.key.epoch > seen.key.epoch);
    Ok(())
}

/// Whether a pod that asked then may be given this now. Said of the age is what was said of the request's answer: what was under way when
/// it asked is as good as what is asked for it.
fn given(
    id: &str,
    call: &Call,
    value: &Value,
    now: Mono,
    stores: &Stores,
    figures: &mut Figures,
) -> Verdict {
    let state = stores.lock();
    let is_same = |one: &&Asked| one.life == state.life && one.key == value.key;
    let asked: Vec<&Asked> = state.asked.iter().filter(is_same).collect();
    let since = call.at.as_nanos();
    let since = since.saturating_sub(call.wants.interval.as_nanos() as u64);
    let (recent, old): (Vec<&Asked>, Vec<&Asked>) = asked
        .iter()
        .filter(|one| one.good.is_some_and(|good| good.at <= now))
        .partition(|one| one.good.is_some_and(|good| good.at.as_nanos() >= since));
    let any = |test: &dyn Fn(&Asked, Good) -> bool| {
        let mut all = recent.iter().filter_map(|one| Some((*one, one.good?)));
        all.any(|(one, good)| test(one, good))
    };
    let is_own = |one: &Asked| one.moment > call.moment && one.serial >= call.serial;
    let why = if !any(&|_, good| good.version == value.version) {
        "age"
    } else if any(&|_, good| good.moment < call.moment) {
        figures.cached += 1;
        return Ok(());
    } else if any(&|one, _| one.moment < call.moment) {
        figures.joined += 1;
        return Ok(());
    } else if asked.iter().any(|one| is_own(one)) {
        figures.by_own += 1;
        figures.too_old += u64::from(!old.is_empty());
        return Ok(());
    } else {
        "own"
    };
    Err(format!(
        "{why}: {id}, who asked at {:?} by {}, is shown {value:?}",
        call.at, call.serial
    ))
}

/// All is well, and has been for long: a pod that is served sees what the store says now.
pub fn current(pod: &Pod, stores: &Stores, epochs: [u64; 2], waited: Duration) -> Verdict {
    if !pod.is_served {
        return Err(format!(
            "current: {} is not served after {waited:?}",
            pod.id
        ));
    }
    let state = stores.lock();
    for (name, value) in &pod.shown {
        let store = STORES.iter().position(|store| store.0 == value.key.store);
        let epoch = epochs[store.unwrap_or_default()];
        if value.key.epoch != epoch {
            return Err(format!(
                "store: {} is shown {value:?}, of a former one",
                pod.id
            ));
        }
        if value.version != state.versions[&value.key.path] {
            return Err(format!("current: {} is shown {name} {value:?}", pod.id));
        }
    }
    Ok(())
}
