//! An inotify instance for the runtime.

use std::{io, path::Path};

use inotify::{EventOwned, Inotify, WatchDescriptor, WatchMask};
use tokio::io::{Interest, unix::AsyncFd};

/// Bytes of events that are read at once: some hundred.
const BUFFER_BYTES: usize = 16 << 10;

/// An inotify instance. Dropping it ends all its watches.
pub struct Watcher {
    fd: AsyncFd<Inotify>,
    buffer: Vec<u8>,
}

impl Watcher {
    /// A new instance, within a runtime.
    ///
    /// # Errors
    /// EMFILE: the user's limit, `fs.inotify.max_user_instances`.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        // SAFETY: `Inotify` owns its descriptor and never exchanges it; it is moved into the `AsyncFd`, which this struct
        // keeps to itself: no method of ours replaces, closes or hands it out before both are dropped.
        let fd = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?;
        Ok(Self {
            fd,
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Watches a path; the same descriptor as before if its inode is watched already.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, EACCES; ENOSPC: the user's limit, `fs.inotify.max_user_watches`.
    pub fn add(&self, path: &Path, mask: WatchMask) -> io::Result<WatchDescriptor> {
        self.fd.get_ref().watches().add(path, mask)
    }

    /// Ends a watch; one that has ended by itself is no error.
    pub fn remove(&self, watch: WatchDescriptor) {
        let _ = self.fd.get_ref().watches().remove(watch);
    }

    /// The next events, at least one. Losing the future loses no event.
    ///
    /// # Errors
    /// Of the read.
    pub async fn events(&mut self) -> io::Result<Vec<EventOwned>> {
        let buffer = &mut self.buffer;
        loop {
            let mut guard = self.fd.readable_mut().await?;
            let read = guard.try_io(|fd| {
                let events = fd.get_mut().read_events(buffer)?;
                Ok(events.map(|event| event.to_owned()).collect())
            });
            if let Ok(result) = read {
                return result;
            }
        }
    }
}
