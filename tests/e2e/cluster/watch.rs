//! Watches a volume as a program in the container does: on the container's own mount.

use std::{ffi::OsString, io::ErrorKind, path::PathBuf};

use inotify::{EventMask, Inotify, WatchMask};

use super::processes;

/// What is told of a pod's `/secrets`, and of the generation that is there at the beginning. Reads are not.
pub struct Watch {
    inotify: Inotify,
}

impl Watch {
    /// Of the pod with this uid, which runs.
    #[track_caller]
    pub fn new(uid: &str) -> Self {
        let secrets = root(uid).join("secrets");
        let inotify = Inotify::init().unwrap();
        let changes = WatchMask::MODIFY
            | WatchMask::ATTRIB
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        for path in [secrets.clone(), secrets.join("..data")] {
            inotify.watches().add(&path, changes).unwrap();
        }
        Self { inotify }
    }

    /// What has been told since the last time.
    pub fn told(&mut self) -> Vec<(EventMask, Option<OsString>)> {
        let mut buffer = [0; 4096];
        let mut told = Vec::new();
        loop {
            match self.inotify.read_events(&mut buffer) {
                Ok(events) => {
                    told.extend(events.map(|event| (event.mask, event.name.map(OsString::from))))
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return told,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// The root directory of a container of this pod.
#[track_caller]
fn root(uid: &str) -> PathBuf {
    let mut roots = processes(uid).map(|process| process.join("root"));
    let found = roots.find(|root| root.join("secrets").is_dir());
    found.expect("a process of the pod")
}
