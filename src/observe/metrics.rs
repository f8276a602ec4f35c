//! Metrics: numbers for whoever watches many nodes (contract section 5).
//!
//! `table` has each with its unit and labels; `cells` count; `text` writes. A [`Metrics`] is handed to the parts, which count what
//! happens by adding to an atomic or two. What merely is (volumes, memory, leases) is looked at when somebody scrapes, as a
//! [`Moment`]; nobody scrapes, nothing is done. A backend that leaves the configuration keeps its series until the process ends, because
//! a counter that goes away and comes back is a reset that never was.
//!
//! Panics are the one number that belongs to the process: [`log::panics`](super::log::panics).

mod cells;
pub mod table;
mod text;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

pub use text::CONTENT_TYPE;

use self::{
    cells::{Calls, Codes, Count, Histogram, counts},
    table::{
        GRPC_CODES, LOOKUPS, METHODS, MOUNTS, NOT_MODIFIED, OK, OPERATIONS, OTHER, REMOVALS,
        ROTATIONS, STATES, TIMED,
    },
    text::Text,
};
use crate::{clock::Wall, error::Code, spec::BackendName};

/// What has been counted so far. Cloned freely; all clones are one. The default counts for nobody.
#[derive(Clone, Default, Debug)]
pub struct Metrics(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    calls: Calls,
    errors: Codes,
    rotations: Box<[Count]>,
    rotation_duration: Histogram,
    /// 0: nobody asks the kubelet; 1: not registered; 2: registered.
    registered: AtomicU8,
    backends: RwLock<BTreeMap<BackendName, Arc<BackendMeter>>>,
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            calls: Calls::new(),
            errors: Codes::default(),
            rotations: counts(ROTATIONS.len()),
            rotation_duration: Histogram::new(table::SWAPS),
            registered: AtomicU8::new(0),
            backends: RwLock::default(),
        }
    }
}

/// How a rotation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rotation {
    /// Readers see other files.
    Ok,
    /// The files are the same.
    Unchanged,
    /// Readers keep what they had.
    Failed,
}

/// A kind of request to a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// For an object.
    Fetch,
    /// For more time of a lease.
    Renew,
    /// For the end of a lease.
    Revoke,
    /// For word of changes.
    Watch,
}

impl Operation {
    /// As the label says it.
    pub fn name(self) -> &'static str {
        OPERATIONS.get(self as usize).copied().unwrap_or_default()
    }
}

/// How a volume found a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// Known already.
    Hit,
    /// The store has to be asked.
    Miss,
    /// Another volume waits for it as well.
    Shared,
}

/// Why a secret's files were removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removal {
    /// It is refused.
    Denied,
    /// The store has it no more.
    Deleted,
}

/// What is when somebody scrapes.
#[derive(Clone, Debug)]
pub struct Moment {
    /// What runs: version and commit.
    pub build: [&'static str; 2],
    /// Volumes by mount and state.
    pub volumes: BTreeMap<(&'static str, &'static str), u64>,
    /// See [`table::OLDEST_CONTENT`].
    pub oldest: Option<Wall>,
    /// Bytes by kind; what is not known is not there.
    pub memory: Vec<(&'static str, u64)>,
    /// Leases by backend.
    pub leases: BTreeMap<BackendName, u64>,
    /// Audit records lost.
    pub audit_dropped: u64,
    /// Whether the configuration's file is in force.
    pub reload_successful: bool,
    /// When it was last.
    pub reloaded_at: Wall,
}

impl Metrics {
    /// A CSI call was answered, or given up. `code` is gRPC's number.
    pub fn call(&self, method: Option<&str>, code: usize, took: Duration) {
        let all = METHODS.iter();
        let at = method.and_then(|method| all.clone().position(|one| *one == method));
        let at = at.or_else(|| all.clone().position(|one| *one == OTHER));
        if let Some(cell) = at.and_then(|at| self.0.calls.at(at, code)) {
            let histogram = cell.get_or_init(|| Histogram::new(table::REQUESTS));
            histogram.observe(took);
        }
    }

    /// Something failed: see [`table::ERRORS`].
    pub fn failed(&self, code: &Code) {
        self.0.errors.of(code).inspect(|count| count.add());
    }

    /// A volume was rendered anew; `took`: since the change was known.
    pub fn rotated(&self, rotation: Rotation, took: Duration) {
        self.0.rotations.get(rotation as usize).inspect(|c| c.add());
        if rotation == Rotation::Ok {
            self.0.rotation_duration.observe(took);
        }
    }

    /// Whether the kubelet has registered us. Until this is called nobody asks it to.
    pub fn registered(&self, registered: bool) {
        self.0.registered.store(1 + u8::from(registered), Relaxed);
    }

    /// The meter of this backend. Its series are there from now on.
    pub fn backend(&self, name: &BackendName) -> Arc<BackendMeter> {
        let backends = self.0.backends.read();
        let found = backends.unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = found.get(name) {
            return meter.clone();
        }
        drop(found);
        let backends = self.0.backends.write();
        let mut backends = backends.unwrap_or_else(PoisonError::into_inner);
        backends.entry(name.clone()).or_default().clone()
    }

    /// All of it, as Prometheus reads it.
    pub fn text(&self, moment: &Moment) -> String {
        let mut text = Text::default();
        self.write_state(&mut text, moment);
        self.write_work(&mut text);
        self.write_backends(&mut text, moment);
        self.write_trouble(&mut text, moment);
        text.into_string()
    }

    fn write_state(&self, text: &mut Text, moment: &Moment) {
        text.family(&table::BUILD_INFO).sample(&moment.build, 1);
        let mut family = text.family(&table::KUBELET_REGISTERED);
        match self.0.registered.load(Relaxed) {
            0 => {}
            state => family.sample(&[], state - 1),
        }
        let mut family = text.family(&table::VOLUMES);
        for (mount, state) in MOUNTS
            .iter()
            .flat_map(|mount| STATES.iter().map(move |state| (*mount, *state)))
        {
            let number = moment.volumes.get(&(mount, state)).unwrap_or(&0);
            family.sample(&[mount, state], number);
        }
        let mut family = text.family(&table::OLDEST_CONTENT);
        if let Some(at) = moment.oldest {
            family.sample(&[], seconds(at));
        }
        let mut family = text.family(&table::MEMORY_BYTES);
        for (kind, bytes) in &moment.memory {
            family.sample(&[kind], bytes);
        }
    }

    fn write_work(&self, text: &mut Text) {
        let mut family = text.family(&table::RPC_DURATION);
        let none = Histogram::new(table::REQUESTS);
        for (method, name) in METHODS.iter().enumerate() {
            for (code, code_name) in GRPC_CODES.iter().enumerate() {
                let cell = self.0.calls.at(method, code);
                let first = (code == 0 && *name != OTHER).then_some(&none);
                if let Some(histogram) = cell.and_then(|cell| cell.get()).or(first) {
                    family.histogram(&[name, code_name], histogram);
                }
            }
        }
        let mut family = text.family(&table::ROTATIONS_TOTAL);
        for (result, count) in ROTATIONS.iter().zip(&self.0.rotations) {
            family.sample(&[result], count.value());
        }
        let mut family = text.family(&table::ROTATION_DURATION);
        family.histogram(&[], &self.0.rotation_duration);
    }

    fn write_backends(&self, text: &mut Text, moment: &Moment) {
        let backends = {
            let backends = self.0.backends.read();
            backends.unwrap_or_else(PoisonError::into_inner).clone()
        };
        let mut family = text.family(&table::BACKEND_REQUESTS);
        for (name, meter) in &backends {
            for (nth, (operation, ends)) in OPERATIONS.iter().zip(&meter.requests).enumerate() {
                for (result, count) in ends.all() {
                    let first = nth == 0 && result == OK;
                    if first || count > 0 {
                        family.sample(&[name.as_str(), operation, result], count);
                    }
                }
            }
        }
        let mut family = text.family(&table::BACKEND_DURATION);
        for (name, meter) in &backends {
            for (operation, histogram) in TIMED.iter().zip(&meter.durations) {
                family.histogram(&[name.as_str(), operation], histogram);
            }
        }
        let mut family = text.family(&table::CACHE_REQUESTS);
        for (name, meter) in &backends {
            for (result, count) in LOOKUPS.iter().zip(&meter.lookups) {
                family.sample(&[name.as_str(), result], count.value());
            }
        }
        let mut family = text.family(&table::SECRETS_REMOVED);
        for (name, meter) in &backends {
            for (reason, count) in REMOVALS.iter().zip(&meter.removals) {
                family.sample(&[name.as_str(), reason], count.value());
            }
        }
        let mut family = text.family(&table::LEASES);
        for name in backends.keys() {
            let leases = moment.leases.get(name).unwrap_or(&0);
            family.sample(&[name.as_str()], leases);
        }
    }

    fn write_trouble(&self, text: &mut Text, moment: &Moment) {
        let mut family = text.family(&table::ERRORS);
        for (code, count) in self.0.errors.all() {
            family.sample(&[code], count);
        }
        let panics = super::log::panics();
        text.family(&table::PANICS).sample(&[], panics);
        let dropped = moment.audit_dropped;
        text.family(&table::AUDIT_DROPPED).sample(&[], dropped);
        let successful = u8::from(moment.reload_successful);
        text.family(&table::RELOAD_SUCCESSFUL)
            .sample(&[], successful);
        let at = seconds(moment.reloaded_at);
        text.family(&table::RELOAD_TIMESTAMP).sample(&[], at);
    }
}

/// Unix time, to the millisecond.
fn seconds(at: Wall) -> f64 {
    at.as_millis() as f64 / 1000.0
}

/// What is counted of one backend.
#[derive(Debug)]
pub struct BackendMeter {
    requests: [Ends; OPERATIONS.len()],
    durations: [Histogram; TIMED.len()],
    lookups: [Count; LOOKUPS.len()],
    removals: [Count; REMOVALS.len()],
}

impl Default for BackendMeter {
    fn default() -> Self {
        Self {
            requests: Default::default(),
            durations: std::array::from_fn(|_| Histogram::new(table::REQUESTS)),
            lookups: Default::default(),
            removals: Default::default(),
        }
    }
}

/// The ends of one kind of request.
#[derive(Default, Debug)]
struct Ends {
    ok: Count,
    not_modified: Count,
    failed: Codes,
}

impl Ends {
    fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let good = [
            (OK, self.ok.value()),
            (NOT_MODIFIED, self.not_modified.value()),
        ];
        good.into_iter().chain(self.failed.all())
    }
}

/// How a request to a store ended.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// It brought what was asked for.
    Ok,
    /// It brought nothing new.
    NotModified,
    /// It failed.
    Failed(&'static Code),
}

impl BackendMeter {
    /// A request has ended.
    pub fn request(&self, operation: Operation, end: End, took: Duration) {
        if let Some(ends) = self.requests.get(operation as usize) {
            match end {
                End::Ok => ends.ok.add(),
                End::NotModified => ends.not_modified.add(),
                End::Failed(code) => drop(ends.failed.of(code).inspect(|count| count.add())),
            }
        }
        if let Some(histogram) = self.durations.get(operation as usize) {
            histogram.observe(took); // none of a watch
        }
    }

    /// A volume wanted a source.
    pub fn lookup(&self, lookup: Lookup) {
        self.lookups.get(lookup as usize).inspect(|c| c.add());
    }

    /// A mounted volume lost a secret.
    pub fn removed(&self, removal: Removal) {
        self.removals.get(removal as usize).inspect(|c| c.add());
    }
}
