//! Limits of pods, namespaces and the node, on the built program: who has reached one hears so, all others go on.

use tonic::{Code, Status};

use crate::support::{
    kubelet::{Pod, Volume},
    machine::{Machine, SPEC, assert_complete, kill, until_shows},
};

fn volume(machine: &Machine, namespace: &str, pod: &str, name: &str) -> Volume {
    let pod = Pod::of(pod, namespace, "api");
    machine.kubelet.volume(&pod, name, SPEC)
}

#[track_caller]
fn assert_exceeded(machine: &Machine, volume: &Volume, limit: &str) {
    let refused: Status = machine.publish(volume).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let message = refused.message();
    assert!(
        message.contains(limit) && message.contains("[limit.exceeded]"),
        "{message}"
    );
    assert!(!volume.target.exists(), "something is left");
    assert!(machine.status(volume).is_none());
}

/// What one volume is counted as.
fn size_of_one(machine: &Machine) -> u64 {
    let one = volume(machine, "shop", "measure", "v");
    let mut running = machine.start(0);
    machine.publish(&one).unwrap();
    let bytes = machine.status(&one).unwrap().usage.unwrap().bytes_capacity;
    machine.unpublish_all(&[one]);
    running.stop();
    bytes
}

/// One limit, reached by two volumes; a third one, and those whom it does not concern.
fn reached(limit: &str, per_unit: bool, third: (&str, &str), others: &[(&str, &str)]) {
    let machine = Machine::new();
    let value = match per_unit {
        true => 2,
        false => size_of_one(&machine) * 5 / 2,
    };
    machine
        .node
        .configure(&format!("limits: {{{limit}: {value}}}"));
    let mut running = machine.start(0);
    let two = ["first", "second"].map(|name| volume(&machine, "payments", "api-0", name));
    let third = volume(&machine, third.0, third.1, "third");
    let others: Vec<_> = others
        .iter()
        .map(|(namespace, pod)| volume(&machine, namespace, pod, "other"))
        .collect();
    machine.publish_all(&two);
    assert_exceeded(&machine, &third, limit);
    machine.publish_all(&others);
    machine.put_all(2);
    for volume in two.iter().chain(&others) {
        machine.publish(volume).unwrap();
        until_shows(volume, 2);
    }
    // those that are there are counted before anybody comes
    kill(&mut running);
    running = machine.start(2 + others.len());
    assert_exceeded(&machine, &third, limit);
    machine.unpublish(&two[0]).unwrap();
    machine.publish(&third).unwrap();
    assert_complete(&third);
    let first = volume(&machine, "payments", "api-0", "first");
    match limit {
        "volumesPerPod" => {} // the pod has room again: the third one may be another's
        _ => assert_exceeded(&machine, &first, limit),
    }
    let all: Vec<_> = two.into_iter().chain([third]).chain(others).collect();
    machine.unpublish_all(&all);
    running.stop();
}

#[test]
fn a_pod_with_all_the_volumes_it_may_have() {
    let others = [("payments", "api-1"), ("shop", "api-0")];
    reached("volumesPerPod", true, ("payments", "api-0"), &others);
}

#[test]
fn a_namespace_with_all_the_bytes_it_may_have() {
    let others = [("shop", "web-0"), ("shop", "web-1")];
    reached("bytesPerNamespace", false, ("payments", "api-7"), &others);
}

#[test]
fn a_node_with_all_the_bytes_it_may_have() {
    reached("bytesPerNode", false, ("shop", "web-0"), &[]);
}

#[test]
fn what_is_there_stays_when_a_limit_is_lowered_and_is_counted() {
    let machine = Machine::new();
    let size = size_of_one(&machine);
    let mut running = machine.start(0);
    let three = ["a", "b", "c"].map(|name| volume(&machine, "payments", "api-0", name));
    machine.publish_all(&three);
    kill(&mut running);
    let limit = size * 3 / 2;
    machine
        .node
        .configure(&format!("limits: {{bytesPerNamespace: {limit}}}"));
    let mut running = machine.start(3);
    machine.put_all(2);
    three.iter().for_each(|one| until_shows(one, 2));
    machine.publish_all(&three);
    let new = volume(&machine, "payments", "api-1", "new");
    for one in &three {
        assert_exceeded(&machine, &new, "bytesPerNamespace");
        machine.unpublish(one).unwrap();
    }
    machine.publish(&new).unwrap();
    machine.unpublish_all(&[new]);
    running.stop();
}
