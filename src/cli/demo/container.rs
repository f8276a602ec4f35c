//! A container as far as a volume is concerned: a mount namespace of its own, with the volume bound into it before anything runs.
//!
//! Its processes are threads. A thread that makes itself a mount namespace hands it on to those that it starts, so one of them
//! does nothing but start the others.

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use super::failed;
use crate::{
    error::{Error, Result, codes},
    sys::{namespace, process},
};

/// What runs inside.
type Job = Box<dyn FnOnce() + Send>;

/// Runs until it is dropped and its processes have ended.
pub struct Container {
    /// Where the volume is, in there.
    pub secrets: PathBuf,
    starter: mpsc::Sender<Job>,
}

impl Container {
    /// With `volume` bound at `at`, as a container's runtime does. Both are directories.
    pub fn start(volume: &Path, at: &Path) -> Result<Self> {
        let (starter, jobs) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        let (from, to) = (volume.to_owned(), at.to_owned());
        thread::spawn(move || {
            let made = process::enter_mount_namespace()
                .and_then(|()| namespace::bind(&from, &to).map_err(Into::into));
            let _ = tell.send(made); // it waits for it
            for job in jobs {
                job();
            }
        });
        let made = told.recv().map_err(|_| gone())?;
        made.map_err(failed("start the container"))?;
        Ok(Self {
            secrets: at.to_owned(),
            starter,
        })
    }

    /// Starts a process in it, which is told where the volume is; its result comes when it ends.
    pub fn start_in<T: Send + 'static>(
        &self,
        process: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> Result<mpsc::Receiver<T>> {
        let (tell, result) = mpsc::channel();
        let secrets = self.secrets.clone();
        let job: Job = Box::new(move || {
            thread::spawn(move || drop(tell.send(process(&secrets)))); // whoever has gone does not want it
        });
        self.starter.send(job).map_err(|_| gone())?;
        Ok(result)
    }

    /// Runs a process in it to its end.
    pub fn run<T: Send + 'static>(
        &self,
        process: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> Result<T> {
        self.start_in(process)?.recv().map_err(|_| gone())
    }
}

/// A process of the container, or all of it, has ended before its time.
pub fn gone() -> Error {
    Error::new(&codes::BUG).detail("the container ended by itself")
}
