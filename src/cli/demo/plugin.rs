//! The plugin of the demo: `secretfs node` as a child, in a mount namespace of its own, as its container would have.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::failed;
use crate::{
    error::{Error, Result, codes},
    sys::{namespace, process},
};

/// Longer than this, and it does not get ready any more.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of its log that are shown when it fails.
const LOG_SHOWN: usize = 2000;

/// A process that serves. Dropping it ends it with SIGTERM.
pub struct Plugin {
    child: Option<Child>,
    /// The line with which it said that it serves.
    pub ready: String,
}

impl Plugin {
    /// Starts it with `node.yaml` of the demo's directory, and waits until it serves.
    pub fn start(dir: &Path) -> Result<Self> {
        let log = dir.join("node.log");
        let opened = fs::File::options().create(true).append(true).open(&log);
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["node", "--config", "node.yaml"])
            .current_dir(dir)
            .process_group(0) // Ctrl-C is for the demo, which ends it
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(opened.map_err(failed("open the plugin's log"))?);
        // a thread with mounts of its own, a copy of ours, hands them on to what it starts
        let started = thread::spawn(move || {
            namespace::unshare_mounts()?;
            command.spawn()
        });
        let started = started.join().map_err(|_| Error::new(&codes::BUG))?;
        let mut child = started.map_err(failed("start secretfs node"))?;
        let stdout = child.stdout.take();
        let mut plugin = Self {
            child: Some(child),
            ready: String::new(),
        };
        let (tell, told) = mpsc::channel();
        if let Some(stdout) = stdout {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(|line| line.ok()) {
                    let _ = tell.send(line); // all but the first line are for nobody
                }
            });
        }
        plugin.ready = told.recv_timeout(PATIENCE).unwrap_or_default();
        if plugin.ready.starts_with("ready") {
            return Ok(plugin);
        }
        let log = fs::read(&log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_SHOWN)..]).into_owned();
        Err(Error::new(&codes::NODE_IO).detail(format!(
            "secretfs node did not get ready; it said: {} {}",
            plugin.ready,
            log.trim()
        )))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// `kill -9`, and waits until it is dead.
    pub fn kill(mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let killed = child.kill().and_then(|()| child.wait());
        killed.map(drop).map_err(failed("kill secretfs node"))
    }

    /// SIGTERM, and waits for its end.
    pub fn end(mut self) -> Result<ExitStatus> {
        let Some(mut child) = self.child.take() else {
            return Err(Error::new(&codes::BUG).detail("there is no plugin to end"));
        };
        process::terminate(&child);
        child.wait().map_err(failed("wait for secretfs node"))
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::terminate(&child);
            let _ = child.wait(); // nothing is left to be done about it
        }
    }
}
