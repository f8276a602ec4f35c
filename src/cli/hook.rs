//! `--on-change CMD`: tells a program that cannot watch files.
//!
//! One command at a time, for a minute at the most. A generation that comes while it runs is told of afterwards, once. A failure is logged and tried
//! again, up to `ATTEMPTS` times or until a newer generation makes it moot; it never ends the mount. The command learns
//! where and which generation, never what.

use std::{io, process::Stdio, sync::Arc, time::Duration};

use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    path::TargetPath,
    render::{Generation, Snapshot},
    sys::process,
};

/// How often one generation is told of.
const ATTEMPTS: u32 = 5;
/// Before the first further attempt; doubled each time.
const RETRY: Duration = Duration::from_secs(1);

/// One that runs longer than this hangs.
const LONGEST: Duration = Duration::from_secs(60);

/// What a follower sees.
pub type Followed = watch::Receiver<Option<Arc<Snapshot>>>;

/// Runs `command` after each generation but the one that is there now. Never returns.
pub async fn run(command: Option<String>, mut followed: Followed, target: &TargetPath) {
    let Some(command) = command else {
        return std::future::pending().await;
    };
    let mut told = current(&mut followed);
    loop {
        if followed.changed().await.is_err() {
            return std::future::pending().await; // the volume is gone; the mount ends by other means
        }
        let generation = current(&mut followed);
        if generation != told {
            tell(&command, target, generation, &mut followed).await;
            told = generation;
        }
    }
}

fn current(followed: &mut Followed) -> Option<Generation> {
    followed
        .borrow_and_update()
        .as_ref()
        .map(|snapshot| snapshot.generation)
}

async fn tell(
    command: &str,
    target: &TargetPath,
    generation: Option<Generation>,
    followed: &mut Followed,
) {
    let number = generation.map_or(0, |generation| generation.0);
    for attempt in 1..=ATTEMPTS {
        match once(command, target, number).await {
            Ok(None) => {
                return tracing::info!(generation = number, attempt, "on-change command done");
            }
            Ok(Some(why)) => tracing::warn!(
                generation = number,
                attempt,
                why,
                "on-change command failed"
            ),
            Err(error) => {
                tracing::warn!(generation = number, attempt, %error, "on-change command not started")
            }
        }
        if attempt < ATTEMPTS {
            tokio::select! {
                () = sleep(RETRY * 2_u32.pow(attempt - 1)) => {}
                changed = followed.changed() => {
                    followed.mark_changed(); // for the loop above
                    if changed.is_ok() { return }
                }
            }
        }
    }
    tracing::error!(
        generation = number,
        attempts = ATTEMPTS,
        "on-change command given up until the next change"
    );
}

/// Runs it once, in a process group of its own; `Some`: why that was a failure. Its output goes to our stderr: stdout has
/// the ready line and nothing else.
async fn once(command: &str, target: &TargetPath, number: u64) -> io::Result<Option<String>> {
    let child = Command::new("sh")
        .args(["-c", command])
        .env("SECRETFS_TARGET", target.as_path())
        .env("SECRETFS_GENERATION", number.to_string())
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .process_group(0)
        .spawn()?;
    let mut group = Group {
        child,
        ended: false,
    };
    match timeout(LONGEST, group.child.wait()).await {
        Ok(status) => {
            group.ended = true;
            let status = status?;
            Ok((!status.success()).then(|| status.to_string()))
        }
        Err(_) => Ok(Some(format!(
            "it ran for more than {} s and was killed",
            LONGEST.as_secs()
        ))),
    }
}

/// A running command. Dropping it, at a timeout or when the mount ends, kills all that it started.
struct Group {
    child: Child,
    ended: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.child.id().filter(|_| !self.ended) {
            process::kill_group(leader);
        }
    }
}
