//! A user's program in our place, or below us: what it gets from us, the signals between us, and its end.
//!
//! The signals that are passed on are blocked in all our threads and read from a signalfd(2): it says who sent each one. What the
//! terminal sends (`^C`, a new size, a hangup) goes to the whole foreground group, so the program has it already.

use std::{
    io,
    mem::MaybeUninit,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    ptr,
};

use libc::{c_int, sigset_t};
use rustix::{
    io::Errno,
    process::{Pid, WaitOptions, kill_process, wait},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::process::CoreLimit;

/// A signal that can be named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signal {
    number: c_int,
    /// Without `SIG`.
    pub name: &'static str,
}

const fn signal(number: c_int, name: &'static str) -> Signal {
    Signal { number, name }
}

impl Signal {
    /// Asks a program to end.
    pub const TERM: Self = signal(libc::SIGTERM, "TERM");
    /// What `^C` sends.
    pub const INT: Self = signal(libc::SIGINT, "INT");
    /// What `^\` sends.
    pub const QUIT: Self = signal(libc::SIGQUIT, "QUIT");
    /// The terminal is gone; to a server: read your files again.
    pub const HUP: Self = signal(libc::SIGHUP, "HUP");
    /// Ends a program, whatever it says.
    pub const KILL: Self = signal(libc::SIGKILL, "KILL");
    /// Those that are passed on.
    pub const PASSED_ON: [Self; 7] = [
        Self::HUP,
        Self::INT,
        Self::QUIT,
        Self::TERM,
        signal(libc::SIGUSR1, "USR1"),
        signal(libc::SIGUSR2, "USR2"),
        signal(libc::SIGWINCH, "WINCH"),
    ];

    /// By its name, with or without `SIG`: one of those that are passed on.
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        Self::PASSED_ON
            .into_iter()
            .find(|signal| signal.name == name)
    }

    /// Whether whoever started us wanted it to be ignored.
    pub fn is_ignored(self) -> bool {
        is_ignored(self.number).unwrap_or_default() // no error is known for the number of a signal
    }

    /// The exit code that tells of an end by this signal.
    pub fn exit_code(self) -> u8 {
        Ended::Signal(self.number).exit_code()
    }
}

/// How a program ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// By itself.
    Code(u8),
    /// By the signal with this number.
    Signal(c_int),
}

impl Ended {
    /// As shells have it: the program's own, or 128 and the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(u8::MAX),
        }
    }
}

/// What a signalfd has told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// A child has ended or stopped: look with [`reap`].
    Child,
    /// A signal; `to_us_alone` is false where the kernel sent it, to every process of the terminal's foreground group.
    Signal {
        /// Which.
        signal: Signal,
        /// A program sent it.
        to_us_alone: bool,
    },
}

/// Signals that are blocked in this thread, and in those that it starts, so that [`Signals`] reads them.
pub struct Blocked {
    set: sigset_t,
    /// What was blocked before.
    before: sigset_t,
}

impl Blocked {
    /// What was blocked before, for a program that we start.
    pub fn before(&self) -> Mask {
        Mask(self.before)
    }
}

/// Which signals are blocked.
#[derive(Clone, Copy)]
pub struct Mask(sigset_t);

/// Blocks the signals that are passed on, and SIGCHLD. One that is ignored comes too, for a program that has a handler for it; it stays
/// ignored in a program that has none: nohup(1), and shells with `&`, want that.
///
/// Call it before any thread is started.
///
/// # Errors
/// Those of sigaction(2) and sigprocmask(2); none is expected.
pub fn block() -> io::Result<Blocked> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: it writes a set to where the pointer leads, which is room for one.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    // SAFETY: the call before has initialised it.
    let mut set = unsafe { set.assume_init() };
    for signal in Signal::PASSED_ON {
        // SAFETY: `set` is initialised, and the number is one of a signal.
        check(unsafe { libc::sigaddset(&raw mut set, signal.number) })?;
    }
    if is_ignored(libc::SIGCHLD)? {
        // SAFETY: no handler is set, only the default action; without it the kernel would reap children before we can ask.
        let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        if before == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: as above.
    check(unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) })?;
    let mut before = MaybeUninit::uninit();
    // SAFETY: `set` is initialised; the old mask is written to where the pointer leads, which is room for one.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr()) })?;
    // SAFETY: the call before has initialised it.
    let before = unsafe { before.assume_init() };
    Ok(Blocked { set, before })
}

fn check(rc: c_int) -> io::Result<c_int> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc)
    }
}

fn is_ignored(number: c_int) -> io::Result<bool> {
    // SAFETY: only integers, pointers and a set of signals, for all of which zero is a value.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: nothing is set; the action is written to where the pointer leads, which is room for one.
    check(unsafe { libc::sigaction(number, ptr::null(), &raw mut action) })?;
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

/// Blocked signals, as they come.
pub struct Signals(AsyncFd<OwnedFd>);

/// Bytes of a `signalfd_siginfo`: signalfd(2).
const INFO_BYTES: usize = size_of::<libc::signalfd_siginfo>();

impl Signals {
    /// Reads them from now on, those included that came since they were blocked. Call it inside a runtime.
    ///
    /// # Errors
    /// EMFILE and the like.
    pub fn listen(blocked: &Blocked) -> io::Result<Self> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set is initialised, and outlives the call, which makes a new descriptor.
        let fd = check(unsafe { libc::signalfd(-1, &raw const blocked.set, flags) })?;
        // SAFETY: the kernel has just made it for us; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the `OwnedFd` is moved into the `AsyncFd`, which neither replaces nor closes it before it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self(fd))
    }

    /// The next one. Losing the future loses none.
    ///
    /// # Errors
    /// Of the read.
    pub async fn next(&mut self) -> io::Result<Heard> {
        loop {
            let mut guard = self.0.readable_mut().await?;
            let read = guard.try_io(|fd| {
                let mut info = [0; INFO_BYTES];
                let read = rustix::io::read(fd.get_ref(), &mut info)?;
                Ok((read == INFO_BYTES).then_some(info))
            });
            match read {
                Ok(Ok(Some(info))) => {
                    if let Some(heard) = heard(&info) {
                        return Ok(heard);
                    }
                }
                Ok(Err(error)) => return Err(error),
                Ok(Ok(None)) | Err(_) => {}
            }
        }
    }
}

/// `ssi_signo` is the first word, `ssi_code` the third. A code above zero is the kernel's (SI_KERNEL), the others are of those who call
/// kill(2) and its like.
fn heard(info: &[u8; INFO_BYTES]) -> Option<Heard> {
    let word = |at: usize| {
        let bytes = info.get(at..at + 4)?.try_into().ok()?;
        Some(c_int::from_ne_bytes(bytes))
    };
    let (number, code) = (word(0)?, word(8)?);
    if number == libc::SIGCHLD {
        return Some(Heard::Child);
    }
    let signal = Signal::PASSED_ON
        .into_iter()
        .find(|signal| signal.number == number)?;
    Some(Heard::Signal {
        signal,
        to_us_alone: code <= 0,
    })
}

/// Sends a signal to a child that [`reap`] has not told of yet. One that has just ended is as good.
pub fn send(child: u32, signal: Signal) {
    let pid = i32::try_from(child).ok().and_then(Pid::from_raw);
    // SAFETY: `number` is one of a signal of Linux, none that the C library keeps for itself.
    let signal = unsafe { rustix::process::Signal::from_raw_unchecked(signal.number) };
    if let Some(pid) = pid {
        let _ = kill_process(pid, signal);
    }
}

/// Bytes of the longest string that execve(2) takes, its end included: MAX_ARG_STRLEN.
pub fn longest_string() -> usize {
    usize::try_from(super::fs::page_bytes() * 32).unwrap_or(usize::MAX)
}

/// A child that has ended since, any: as the first process of a container we also inherit those whose parents are gone. For a program that
/// waits for its children in no other way.
pub fn reap() -> Option<(u32, Ended)> {
    loop {
        let (pid, status) = match wait(WaitOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Err(Errno::INTR) => continue,
            Ok(None) | Err(_) => return None, // ECHILD: none is left
        };
        let code = status
            .exit_status()
            .and_then(|code| u8::try_from(code).ok());
        let ended = match (code, status.terminating_signal()) {
            (Some(code), _) => Ended::Code(code),
            (None, Some(number)) => Ended::Signal(number),
            (None, None) => continue,
        };
        return Some((pid.as_raw_pid().unsigned_abs(), ended));
    }
}

/// What we have changed in ourselves and a user's program is to have as it was.
#[derive(Clone, Copy)]
pub struct Before {
    /// The limit for core files.
    pub core: CoreLimit,
    /// Blocked signals; `None`: they are as they were.
    pub mask: Option<Mask>,
}

impl Before {
    /// Lets `command` have it. (The standard library does the same for SIGPIPE, which it ignores in us.)
    pub fn give_back(self, command: &mut Command) {
        let restore = move || {
            self.core.restore()?;
            match self.mask {
                None => Ok(()),
                // SAFETY: the set came from the kernel; the old mask is not asked for.
                Some(Mask(set)) => check(unsafe {
                    libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut())
                })
                .map(drop),
            }
        };
        // SAFETY: between fork and exec it makes two system calls, and allocates nothing: errors are numbers.
        unsafe { command.pre_exec(restore) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_and_a_code() {
        for (text, expect) in [
            ("HUP", Some(129)),
            ("SIGHUP", Some(129)),
            ("sigusr1", Some(138)),
            ("term", Some(143)),
            ("KILL", None),
            ("1", None),
            ("", None),
            ("SIG", None),
        ] {
            let code = Signal::parse(text).map(Signal::exit_code);
            assert_eq!(code, expect, "{text}");
        }
    }

    #[test]
    fn what_the_kernel_sends_was_not_for_us_alone() {
        assert_eq!(std::mem::offset_of!(libc::signalfd_siginfo, ssi_signo), 0);
        assert_eq!(std::mem::offset_of!(libc::signalfd_siginfo, ssi_code), 8);
        for (number, code, expect) in [
            (libc::SIGINT, 0, Some(true)),                // kill(2)
            (libc::SIGINT, libc::SI_QUEUE, Some(true)),   // sigqueue(3)
            (libc::SIGINT, libc::SI_TKILL, Some(true)),   // tgkill(2)
            (libc::SIGINT, libc::SI_KERNEL, Some(false)), // the terminal
            (libc::SIGSEGV, 1, None),
        ] {
            let mut info = [0; INFO_BYTES];
            info[..4].copy_from_slice(&number.to_ne_bytes());
            info[8..12].copy_from_slice(&code.to_ne_bytes());
            let alone = heard(&info).map(|heard| match heard {
                Heard::Signal { to_us_alone, .. } => to_us_alone,
                Heard::Child => panic!("{number} is no SIGCHLD"),
            });
            assert_eq!(alone, expect, "{number} {code}");
        }
    }
}
