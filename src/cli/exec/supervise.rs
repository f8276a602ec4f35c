//! Runs a program below us, and restarts or tells it when its secrets change.
//!
//! The program is in our process group: what the terminal sends it gets from the terminal, `^Z` stops both of us. A signal that somebody sends
//! to us alone is passed on. We end when the program ends, with its code, unless we have ended it ourselves, to start it anew. A change that
//! cannot be read changes nothing: the program goes on with the values that it has.

use std::{pin::Pin, time::Duration};

use tokio::time::{Sleep, sleep, timeout};

use super::{
    dir::{Dir, Watch},
    names::{Naming, Variables},
    program::Program,
    volume::Served,
};
use crate::{
    error::{Error, Result, codes},
    sys::{
        child::{self, Ended, Heard, Signal, Signals},
        stack,
    },
};

/// Longest that the program's exit code waits for the end of the volume: a mount goes with us in any case.
const END: Duration = Duration::from_secs(5);

/// What happens when the content has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnChange {
    /// Nothing: the program watches its files.
    Nothing,
    /// The program is ended and started again.
    Restart,
    /// It gets this.
    Signal(Signal),
}

/// How a change is dealt with.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// What is done.
    pub on_change: OnChange,
    /// Before it.
    pub delay: Duration,
    /// At most so much more before it, by chance.
    pub jitter: Duration,
    /// Between TERM and KILL.
    pub grace: Duration,
}

/// Where secrets come from, for as long as the program runs.
pub enum Source {
    /// A directory that is watched.
    Dir(Dir, Watch, Naming),
    /// A volume in memory.
    Memory(Served, Naming),
    /// A mounted volume: the program gets files, and no variables.
    Mounted(Served),
}

/// What a source has now: the variables, and what is equal for equal content.
struct Set {
    variables: Variables,
    mark: [u8; 32],
}

impl Source {
    fn read(&self) -> Result<Set> {
        let longest = child::longest_string();
        let files = match self {
            Self::Dir(dir, _, naming) => dir.read(naming).map(|files| (files, naming)),
            Self::Memory(served, naming) => served.files(naming).map(|files| (files, naming)),
            Self::Mounted(served) => {
                let mut mark = [0; 32];
                mark[..8].copy_from_slice(&served.generation().to_le_bytes());
                let variables = Variables::none();
                return Ok(Set { variables, mark });
            }
        };
        let (files, naming) = files?;
        let variables = Variables::of(naming, &files, longest)?;
        let mark = stack::clean(|| variables.digest());
        Ok(Set { variables, mark })
    }

    async fn changed(&mut self) {
        match self {
            Self::Dir(_, watch, _) => watch.changed().await,
            Self::Memory(served, _) | Self::Mounted(served) => served.changed().await,
        }
    }

    async fn end(self) {
        match self {
            Self::Dir(..) => {}
            Self::Memory(served, _) | Self::Mounted(served) => served.end().await,
        }
    }
}

/// Runs `program` until it ends by itself; the exit code for that.
///
/// # Errors
/// Why it cannot be started.
pub async fn run(
    program: &Program,
    source: Source,
    signals: &mut Signals,
    manner: Manner,
) -> Result<u8> {
    let mut supervisor = Supervisor {
        program,
        source,
        manner,
        child: 0,
        shown: [0; 32],
        phase: Phase::Running,
        ending: false,
    };
    let ended = supervisor.whole_life(signals).await;
    if timeout(END, supervisor.source.end()).await.is_err() {
        tracing::warn!("the volume has not ended in time, and is left as it is");
    }
    ended.map(Ended::exit_code)
}

enum Phase {
    Running,
    /// Something has changed, and is looked at after a while.
    Changed(Pin<Box<Sleep>>),
    /// The program is to end, for this one to begin; killed if it takes too long.
    Stopping(Set, Pin<Box<Sleep>>),
    /// It was killed for it.
    Killed(Set),
}

struct Supervisor<'a> {
    program: &'a Program,
    source: Source,
    manner: Manner,
    /// Its process id.
    child: u32,
    /// The mark of what the program has, or was told of.
    shown: [u8; 32],
    phase: Phase,
    /// Somebody wants it to end: it is not started again.
    ending: bool,
}

impl Supervisor<'_> {
    async fn whole_life(&mut self, signals: &mut Signals) -> Result<Ended> {
        let first = self.source.read()?;
        self.start(first)?;
        loop {
            let may_change = self.manner.on_change != OnChange::Nothing
                && matches!(self.phase, Phase::Running)
                && !self.ending;
            tokio::select! {
                heard = signals.next() => match heard.map_err(failed)? {
                    Heard::Signal { signal, to_us_alone } => self.pass_on(signal, to_us_alone),
                    Heard::Child => if let Some(ended) = self.ended()? {
                        return Ok(ended);
                    }
                },
                () = self.source.changed(), if may_change => {
                    let by_chance = self.manner.jitter.mul_f64(fastrand::f64());
                    let wait = self.manner.delay.saturating_add(by_chance);
                    self.phase = Phase::Changed(Box::pin(sleep(wait)));
                }
                () = due(&mut self.phase) => self.go_on(),
            }
        }
    }

    /// From here on no copy of the values is ours, but where the source is a volume in memory.
    fn start(&mut self, set: Set) -> Result<()> {
        self.child = self.program.start(&set.variables)?;
        self.shown = set.mark;
        self.phase = Phase::Running;
        tracing::debug!(pid = self.child, "the program runs");
        Ok(())
    }

    fn pass_on(&mut self, signal: Signal, to_us_alone: bool) {
        let between = matches!(self.phase, Phase::Stopping(..) | Phase::Killed(_));
        // `^C` need not end a program; while we are ending it for another one it means us
        self.ending |= signal == Signal::TERM
            || between && [Signal::INT, Signal::QUIT].contains(&signal) && !signal.is_ignored();
        if to_us_alone {
            tracing::debug!(signal = signal.name, "a signal is passed on");
            child::send(self.child, signal);
        }
    }

    /// `Some`: the program has ended, and so do we.
    fn ended(&mut self) -> Result<Option<Ended>> {
        while let Some((pid, ended)) = child::reap() {
            if pid != self.child {
                continue; // an orphan, if we are the first process of a container
            }
            match std::mem::replace(&mut self.phase, Phase::Running) {
                Phase::Stopping(next, _) | Phase::Killed(next) if !self.ending => {
                    self.start(next)?;
                }
                _ => return Ok(Some(ended)),
            }
        }
        Ok(None)
    }

    /// What was waited for is due.
    fn go_on(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Running) {
            Phase::Changed(_) if self.ending => {}
            Phase::Changed(_) => self.look(),
            Phase::Stopping(next, _) => {
                tracing::warn!(
                    pid = self.child,
                    "the program has not ended in time and is killed"
                );
                child::send(self.child, Signal::KILL);
                self.phase = Phase::Killed(next);
            }
            same => self.phase = same,
        }
    }

    /// Reads what there is now, and acts if it is not what the program has.
    fn look(&mut self) {
        let next = match self.source.read() {
            Ok(next) if next.mark != self.shown => next,
            Ok(_) => return tracing::debug!("nothing has changed"),
            Err(error) => {
                return tracing::warn!(code = error.code().name, %error, "a change cannot be used; the program keeps what it has");
            }
        };
        match self.manner.on_change {
            OnChange::Nothing => {}
            OnChange::Signal(signal) => {
                tracing::info!(
                    signal = signal.name,
                    "the content has changed: the program is told"
                );
                self.shown = next.mark;
                child::send(self.child, signal);
            }
            OnChange::Restart => {
                tracing::info!("the content has changed: the program is started again");
                child::send(self.child, Signal::TERM);
                self.phase = Phase::Stopping(next, Box::pin(sleep(self.manner.grace)));
            }
        }
    }
}

/// Returns when the phase's time is over; never, if it has none.
async fn due(phase: &mut Phase) {
    match phase {
        Phase::Changed(time) | Phase::Stopping(_, time) => time.await,
        Phase::Running | Phase::Killed(_) => std::future::pending().await,
    }
}

fn failed(error: std::io::Error) -> Error {
    let error = Error::new(&codes::NODE_IO).source(error);
    error.step("listen for signals")
}
