//! A store that hangs, and callers who do not wait for it.

use std::{
    fs,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, Mode, OFlags};
use tonic::Code;

use crate::support::{
    machine::{Machine, assert_complete, kill},
    program::eventually,
};

/// The store's identity is a pipe that nobody writes to.
struct Hanging {
    identity: PathBuf,
    saved: PathBuf,
    pipe: Option<OwnedFd>,
}

impl Hanging {
    fn store_of(machine: &Machine) -> Self {
        let identity = machine.node.bed.path("identity.age");
        let saved = machine.node.bed.path("identity.saved");
        let pipe = machine.node.bed.path("pipe");
        if !saved.exists() {
            fs::copy(&identity, &saved).unwrap();
        }
        rustix::fs::mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
        fs::rename(&pipe, &identity).unwrap();
        Self {
            identity,
            saved,
            pipe: None,
        }
    }

    /// Whether a request waits for it: a pipe that opens for writing has a reader.
    fn is_asked(&mut self) -> bool {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        self.pipe = rustix::fs::open(&self.identity, flags, Mode::empty()).ok();
        self.pipe.is_some()
    }

    /// The store works again; what waits fails.
    fn end(mut self) {
        self.is_asked();
        let whole = self.saved.with_extension("whole");
        fs::copy(&self.saved, &whole).unwrap();
        fs::rename(whole, &self.identity).unwrap();
    }
}

#[test]
fn a_caller_that_gives_up_leaves_nothing_and_comes_again() {
    let machine = Machine::new();
    let volumes = machine.volumes(1);
    let mut running = machine.start(0);
    for _ in 0..3 {
        let hanging = Hanging::store_of(&machine);
        let mut impatient = machine.kubelet.clone();
        impatient.deadline = Duration::from_millis(200);
        let call = impatient.publish(&volumes[0]);
        let code = machine.node.runtime.block_on(call).unwrap_err().code();
        let not_final = [Code::DeadlineExceeded, Code::Cancelled];
        assert!(not_final.contains(&code), "{code}");
        eventually("nothing is served", || machine.all_status().is_empty());
        machine.nothing_is_left(&volumes);
        hanging.end();
    }
    machine.publish_all(&volumes);
    assert_complete(&volumes[0]);
    machine.unpublish_all(&volumes);
    running.stop();
}

#[test]
fn an_unpublish_does_not_wait_for_the_store() {
    let machine = Machine::new();
    let mut volumes = machine.volumes(2);
    volumes[1] = volumes[1]
        .clone()
        .with_spec("files: [{path: a, from: \"store:b@1\"}]");
    let mut running = machine.start(0);
    machine.publish(&volumes[0]).unwrap();
    let mut hanging = Hanging::store_of(&machine);
    let (kubelet, volume) = (machine.kubelet.clone(), volumes[1].clone());
    let call = async move { kubelet.publish(&volume).await };
    let call = machine.node.runtime.spawn(call);
    eventually("the store is asked", || hanging.is_asked());
    for volume in &volumes {
        let asked_at = Instant::now();
        machine.unpublish(volume).unwrap();
        let took = asked_at.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    let answer = machine.node.runtime.block_on(call).unwrap();
    assert_eq!(answer.unwrap_err().code(), Code::Aborted);
    machine.nothing_is_left(&volumes);
    hanging.end();

    let volumes = machine.volumes(2);
    machine.publish_all(&volumes);
    volumes.iter().for_each(assert_complete);
    machine.unpublish_all(&volumes);
    running.stop();
}

#[test]
fn killed_while_the_store_hangs_nothing_is_left_and_the_kubelet_comes_again() {
    let machine = Machine::new();
    let volumes = machine.volumes(1);
    let mut running = machine.start(0);
    let mut hanging = Hanging::store_of(&machine);
    let (kubelet, volume) = (machine.kubelet.clone(), volumes[0].clone());
    let call = async move { kubelet.publish(&volume).await };
    let call = machine.node.runtime.spawn(call);
    eventually("the store is asked", || hanging.is_asked());
    kill(&mut running);
    machine.node.runtime.block_on(call).unwrap().unwrap_err();
    machine.nothing_is_left(&volumes);
    hanging.end();
    let mut running = machine.start(0);
    machine.publish_all(&volumes);
    assert_complete(&volumes[0]);
    machine.unpublish_all(&volumes);
    running.stop();
}
