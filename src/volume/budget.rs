//! What volumes take of this machine's memory, and whose they are: the totals of pods, namespaces and the node. Pure.
//!
//! The pages of a tmpfs are charged to us, never to the pod that reads them, so what counts is what the kernel would let it hold
//! (its `size=`), not what it holds at the moment. A volume is *admitted* before anything is fetched for it, and *charged* before
//! its mount is made or grown. A volume that is there already is *adopted*: it is counted whatever it takes, also beyond a limit,
//! because its pages are there whether we count them or not; then new ones are refused. A charge that is refused changes nothing.
//!
//! Limits are given with each call: they may change at any time. A user of this machine is not a tenant: nothing is counted for him.
//! `ledger` is the one lock around it.

use std::collections::{BTreeMap, HashMap};

use crate::{
    caller::{Identity, Name, Uid},
    config::NodeLimits,
    error::{Error, Result, codes},
    mount::VolumeId,
};

/// All that is counted.
#[derive(Default, Debug)]
pub struct Budget {
    volumes: BTreeMap<VolumeId, Charge>,
    pods: HashMap<Uid, u32>,
    namespaces: HashMap<Name, u64>,
    node: u64,
}

#[derive(Debug)]
struct Charge {
    pod: Uid,
    namespace: Name,
    bytes: u64,
}

impl Budget {
    /// Lets a volume in, which takes nothing yet. One that is in already stays in.
    ///
    /// # Errors
    /// `limit.exceeded`: the pod has as many volumes as it may, or its namespace or the node is full.
    pub fn admit(&mut self, id: &VolumeId, who: &Identity, limits: &NodeLimits) -> Result<()> {
        let Identity::Pod(pod) = who else {
            return Ok(());
        };
        if self.volumes.contains_key(id) {
            return Ok(());
        }
        let volumes = self.pods.get(&pod.pod_uid).copied().unwrap_or(0);
        if volumes >= limits.volumes_per_pod {
            let of = format!("pod {}/{}", pod.namespace, pod.pod);
            let limit = ("volumesPerPod", limits.volumes_per_pod.into());
            return Err(exceeded(id, limit, "volumes", volumes.into(), &of));
        }
        self.has_room(id, &pod.namespace, 1, limits)?;
        self.enter(id, &pod.pod_uid, &pod.namespace);
        Ok(())
    }

    /// The volume's mount may hold so many bytes from now on, as a whole.
    ///
    /// # Errors
    /// `limit.exceeded`; what it was charged before stays. To be charged less, or as much as before, is never refused.
    pub fn charge(&mut self, id: &VolumeId, bytes: u64, limits: &NodeLimits) -> Result<()> {
        let Some(charge) = self.volumes.get(id) else {
            return Ok(()); // not a tenant's
        };
        if let Some(more) = bytes.checked_sub(charge.bytes).filter(|more| *more > 0) {
            let namespace = charge.namespace.clone();
            self.has_room(id, &namespace, more, limits)?;
        }
        self.set(id, bytes);
        Ok(())
    }

    /// Counts a volume that is mounted, whatever it takes. Whose it is may be told later (`None`): till then it counts for the
    /// node alone, that is, for a namespace without a name.
    pub fn adopt(&mut self, id: &VolumeId, who: Option<&Identity>, bytes: u64) {
        let pod = match who {
            Some(Identity::Pod(pod)) => (&*pod.pod_uid, &*pod.namespace),
            Some(Identity::Local { .. }) => return,
            None => ("", ""),
        };
        if self
            .volumes
            .get(id)
            .is_some_and(|charge| *charge.pod != *pod.0)
        {
            self.release(id);
        }
        if !self.volumes.contains_key(id) {
            self.enter(id, pod.0, pod.1);
        }
        self.set(id, bytes);
    }

    /// The volume is gone. Again is no error.
    pub fn release(&mut self, id: &VolumeId) {
        self.set(id, 0);
        let Some(charge) = self.volumes.remove(id) else {
            return;
        };
        if let Some(volumes) = self.pods.get_mut(&charge.pod) {
            *volumes = volumes.saturating_sub(1);
            if *volumes == 0 {
                self.pods.remove(&charge.pod);
            }
        }
        let left = self.volumes.values();
        if !left
            .into_iter()
            .any(|one| one.namespace == charge.namespace)
        {
            self.namespaces.remove(&charge.namespace);
        }
    }

    /// Bytes charged to a namespace.
    pub fn of_namespace(&self, namespace: &str) -> u64 {
        self.namespaces.get(namespace).copied().unwrap_or(0)
    }

    /// Bytes charged to all.
    pub fn of_node(&self) -> u64 {
        self.node
    }

    /// Volumes of a pod.
    pub fn of_pod(&self, uid: &str) -> u32 {
        self.pods.get(uid).copied().unwrap_or(0)
    }

    fn enter(&mut self, id: &VolumeId, pod: &str, namespace: &str) {
        let charge = Charge {
            pod: pod.into(),
            namespace: namespace.into(),
            bytes: 0,
        };
        self.volumes.insert(id.clone(), charge);
        *self.pods.entry(pod.into()).or_default() += 1;
    }

    fn set(&mut self, id: &VolumeId, bytes: u64) {
        let Some(charge) = self.volumes.get_mut(id) else {
            return;
        };
        let before = std::mem::replace(&mut charge.bytes, bytes);
        let namespace = self.namespaces.entry(charge.namespace.clone()).or_default();
        for total in [namespace, &mut self.node] {
            *total = total.saturating_sub(before).saturating_add(bytes);
        }
    }

    fn has_room(
        &self,
        id: &VolumeId,
        namespace: &Name,
        more: u64,
        limits: &NodeLimits,
    ) -> Result<()> {
        let taken = self.of_namespace(namespace);
        if taken.saturating_add(more) > limits.bytes_per_namespace {
            let limit = ("bytesPerNamespace", limits.bytes_per_namespace);
            let of = format!("namespace {namespace}");
            return Err(exceeded(id, limit, "bytes", taken, &of));
        }
        if self.node.saturating_add(more) > limits.bytes_per_node {
            let limit = ("bytesPerNode", limits.bytes_per_node);
            return Err(exceeded(id, limit, "bytes", self.node, "all namespaces"));
        }
        Ok(())
    }
}

fn exceeded(id: &VolumeId, (limit, value): (&str, u64), unit: &str, taken: u64, of: &str) -> Error {
    Error::new(&codes::LIMIT_EXCEEDED)
        .object(id)
        .detail(format!(
            "limits.{limit} is {value} {unit}, and {taken} are taken by {of}"
        ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::PodIdentity;

    const LIMITS: NodeLimits = NodeLimits {
        volumes_per_pod: 2,
        bytes_per_namespace: 100,
        bytes_per_node: 150,
    };

    fn id(n: u64) -> VolumeId {
        VolumeId::parse(&format!("v{n}")).unwrap()
    }

    fn pod(namespace: &str, name: &str) -> Identity {
        Identity::Pod(PodIdentity {
            namespace: namespace.into(),
            pod: name.into(),
            pod_uid: format!("{namespace}-{name}").into(),
            service_account: "default".into(),
            service_account_uid: None,
        })
    }

    enum Do {
        Admit(&'static str),
        Charge(u64),
        Adopt(&'static str, u64),
        Release,
    }
    use Do::{Admit, Adopt, Charge, Release};

    /// What is done to one budget, in turn, and what comes of it: "" or a part of the error's text.
    const ROWS: &[(u64, Do, &str)] = &[
        (1, Admit("a/p"), ""),
        (1, Admit("a/p"), ""), // again
        (2, Admit("a/p"), ""),
        (
            3,
            Admit("a/p"),
            "limits.volumesPerPod is 2 volumes, and 2 are taken by pod a/p",
        ),
        (3, Admit("a/q"), ""),
        (1, Charge(60), ""),
        (
            2,
            Charge(41),
            "limits.bytesPerNamespace is 100 bytes, and 60 are taken by namespace a",
        ),
        (2, Charge(40), ""),
        (2, Charge(40), ""), // as before
        (
            4,
            Admit("a/r"),
            "limits.bytesPerNamespace is 100 bytes, and 100 are taken by namespace a",
        ),
        (4, Admit("b/p"), ""),
        (
            4,
            Charge(51),
            "limits.bytesPerNode is 150 bytes, and 100 are taken by all namespaces",
        ),
        (4, Charge(50), ""),
        (5, Admit("c/p"), "limits.bytesPerNode is 150 bytes, and 150"),
        (1, Charge(10), ""), // less
        (5, Admit("c/p"), ""),
        (6, Adopt("c/p", 1000), ""), // beyond: it is there
        (
            5,
            Charge(1),
            "limits.bytesPerNamespace is 100 bytes, and 1000",
        ),
        (4, Charge(51), "limits.bytesPerNode is 150 bytes, and 1100"),
        (6, Charge(900), ""),
        (6, Release, ""),
        (6, Release, ""), // again
        (5, Charge(1), ""),
    ];

    #[test]
    fn each_limit_names_itself_its_value_what_is_taken_and_whose() {
        let mut budget = Budget::default();
        for (row, (volume, what, expect)) in ROWS.iter().enumerate() {
            let who = |text: &str| {
                let (namespace, name) = text.split_once('/').unwrap();
                pod(namespace, name)
            };
            let result = match what {
                Admit(text) => budget.admit(&id(*volume), &who(text), &LIMITS),
                Charge(bytes) => budget.charge(&id(*volume), *bytes, &LIMITS),
                Adopt(text, bytes) => {
                    budget.adopt(&id(*volume), Some(&who(text)), *bytes);
                    Ok(())
                }
                Release => {
                    budget.release(&id(*volume));
                    Ok(())
                }
            };
            match result {
                Ok(()) => assert_eq!(*expect, "", "row {row}"),
                Err(error) => {
                    assert_eq!(error.code(), &codes::LIMIT_EXCEEDED);
                    let (text, of) = (error.to_string(), format!("v{volume}: {expect}"));
                    assert!(
                        !expect.is_empty() && text.starts_with(&of),
                        "row {row}: {text}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_local_user_is_not_counted() {
        let mut budget = Budget::default();
        let (who, none) = (
            Identity::Local { uid: 0 },
            NodeLimits {
                volumes_per_pod: 0,
                bytes_per_namespace: 0,
                bytes_per_node: 0,
            },
        );
        budget.admit(&id(1), &who, &none).unwrap();
        budget.charge(&id(1), 1 << 40, &none).unwrap();
        budget.adopt(&id(2), Some(&who), 1 << 40);
        assert_eq!(budget.of_node(), 0);
    }

    /// Random calls beside a plain sum: no charge brings a total over its limit, whatever is adopted; a refusal changes nothing; what is
    /// released is gone, and when all is, nothing is left.
    #[test]
    fn charges_never_exceed_a_limit_and_release_returns_to_zero() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut budget = Budget::default();
            let mut plain: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
            for _ in 0..300 {
                let (n, bytes) = (rng.u64(..20), rng.u64(..80));
                let (namespace, who) = {
                    let namespace = (n % 3) as usize;
                    (
                        namespace,
                        pod(["a", "b", "c"][namespace], &format!("p{}", n % 4)),
                    )
                };
                let sum = |plain: &BTreeMap<u64, (usize, u64)>, of: Option<usize>| -> u64 {
                    let all = plain.values();
                    all.filter(|(one, _)| of.is_none_or(|of| of == *one))
                        .map(|(_, bytes)| bytes)
                        .sum()
                };
                let (before, mine) = (plain.get(&n).copied(), sum(&plain, Some(namespace)));
                match rng.u8(..8) {
                    0..3 => {
                        if budget.admit(&id(n), &who, &LIMITS).is_ok() {
                            plain.entry(n).or_insert((namespace, 0));
                        }
                    }
                    3..6 => {
                        let result = budget.charge(&id(n), bytes, &LIMITS);
                        if let (Ok(()), Some((_, old))) = (&result, before) {
                            plain.insert(n, (namespace, bytes));
                            let grown = bytes > old;
                            assert!(!grown || sum(&plain, Some(namespace)) <= 100, "seed {seed}");
                            assert!(!grown || sum(&plain, None) <= 150, "seed {seed}");
                        } else if let (Err(_), Some((_, old))) = (&result, before) {
                            let more = bytes - old;
                            let full = mine + more > 100 || sum(&plain, None) + more > 150;
                            assert!(full, "seed {seed}: refused without need");
                        }
                    }
                    6 => {
                        budget.adopt(&id(n), Some(&who), bytes);
                        plain.insert(n, (namespace, bytes));
                    }
                    _ => {
                        budget.release(&id(n));
                        plain.remove(&n);
                    }
                }
                for (namespace, name) in ["a", "b", "c"].iter().enumerate() {
                    assert_eq!(budget.of_namespace(name), sum(&plain, Some(namespace)));
                }
                assert_eq!(budget.of_node(), sum(&plain, None), "seed {seed}");
            }
            for n in 0..20 {
                budget.release(&id(n));
            }
            assert!(
                budget.volumes.is_empty() && budget.pods.is_empty(),
                "seed {seed}"
            );
            assert!(
                budget.namespaces.is_empty() && budget.node == 0,
                "seed {seed}"
            );
        }
    }
}
