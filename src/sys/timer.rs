//! A timer on CLOCK_BOOTTIME for the runtime.

use std::{io, os::fd::OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor that becomes readable once CLOCK_BOOTTIME reaches `nanos` (at once, if it has).
///
/// # Errors
/// EMFILE and the like, or no runtime.
pub fn boottime(nanos: u64) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
    let nanos = nanos.max(1); // zero would disarm it
    let it_value = Timespec {
        tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: (nanos % 1_000_000_000) as _,
    };
    let it_interval = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    timerfd_settime(
        &timer,
        TimerfdTimerFlags::ABSTIME,
        &Itimerspec {
            it_interval,
            it_value,
        },
    )?;
    // SAFETY: the `OwnedFd` is moved into the result, which neither replaces nor closes it before it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
    Ok(registered?)
}
