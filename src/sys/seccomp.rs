//! The system call filter (design decision 14): what a process that serves secrets cannot do, whoever has taken it over.
//!
//! `allowed` is the list, `program` makes the kernel's program of it, `names` says what a number means. A call that is not on the
//! list fails: EPERM, or ENOSYS if it is newer than this version. It is told in one line on stderr and counted, and the process lives: a call that was
//! forgotten, or that a new C library makes, costs one operation and not the secrets of a node (so do container runtimes; Chromium and OpenSSH
//! kill, but theirs are processes that somebody starts again). There is no switch: what an attacker could turn off protects
//! nobody. Only a call by another architecture's convention, which we never make, ends the process.
//!
//! Not by a crate: `seccompiler` knows two answers for a filter, and this needs five; what it would spare is the hundred lines of `program`.

mod allowed;
mod names;
mod program;

use std::{
    io::{self, Write as _},
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use libc::{c_int, c_uint, c_void};

/// `SYS_SECCOMP` of asm-generic/siginfo.h: the kernel's own SIGSYS, and not one that somebody sent.
const BY_FILTER: c_int = 1;
/// Longest line.
const LINE_BYTES: usize = 256;

/// How often each call was refused; the last one counts all that this version does not know.
static REFUSED: [AtomicU32; names::NEWEST as usize + 2] =
    [const { AtomicU32::new(0) }; names::NEWEST as usize + 2];
static REFUSED_IN_ALL: AtomicU64 = AtomicU64::new(0);
static AS_JSON: AtomicBool = AtomicBool::new(false);

/// How many calls were refused and told since [`install`].
pub fn refused() -> u64 {
    REFUSED_IN_ALL.load(Ordering::Relaxed)
}

/// Whether a line about a refused call is a JSON object, as the rest of the log may be.
pub fn tell_as_json(json: bool) {
    AS_JSON.store(json, Ordering::Relaxed);
}

/// What is allowed, for people: names of calls, and what needs them. Those of the second list only with some arguments.
pub fn explain() -> [Vec<(Vec<&'static str>, &'static str)>; 2] {
    let name = |call: &libc::c_long| {
        let name = u32::try_from(*call).ok().and_then(names::name);
        name.unwrap_or("unknown")
    };
    let freely = allowed::FREELY.iter();
    let freely = freely.map(|group| (group.calls.iter().map(name).collect(), group.why));
    let bounded = allowed::bounded(std::process::id()).into_iter();
    let bounded = bounded.map(|call| (vec![name(&call.call)], call.why));
    [freely.collect(), bounded.collect()]
}

/// From now on this process, with all its threads, makes the listed system calls only. For good.
///
/// Before it: no_new_privs, or the kernel refuses.
///
/// # Errors
/// Those of sigaction(2) and seccomp(2): EINVAL and ENOSYS from a kernel that has no filters, EACCES without no_new_privs.
pub fn install() -> io::Result<()> {
    let bounded = allowed::bounded(std::process::id());
    let program = program::assemble(&bounded, allowed::FREELY);
    handle()?;
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `filter` leads to `len` instructions, which the kernel copies and does not change; both outlive the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const filter,
        )
    };
    match rc {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!(
            "thread {thread} has a filter of its own"
        ))),
    }
}

/// Lets [`tell`] answer the kernel's signal.
fn handle() -> io::Result<()> {
    // SAFETY: only integers, pointers and a set of signals, for all of which zero is a value.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    action.sa_sigaction = tell as extern "C" fn(c_int, *mut Told, *mut c_void) as usize;
    // SAFETY: `action` is initialised; `tell` has the form that SA_SIGINFO asks for, and does only what a handler may.
    let rc = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `siginfo_t` of a SIGSYS (asm-generic/siginfo.h), which the C library's type does not show.
#[repr(C)]
struct Told {
    signal: c_int,
    /// What the filter's answer carries: the error that the call is to have.
    errno: c_int,
    code: c_int,
    call_address: *const c_void,
    number: c_int,
    architecture: c_uint,
}

/// Answers a refused call: counts it, says so, and makes it fail.
///
/// A signal handler: it allocates nothing, takes no lock, and leaves `errno` to the call that failed. What interrupts a thread anywhere may
/// do no more (signal-safety(7)).
///
/// Each call is told at its first, second, fourth, eighth... time, so that a loop does not fill the log.
extern "C" fn tell(_: c_int, told: *mut Told, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO the signal's `siginfo_t`, which for this signal has the form of `Told`
    // (checked by `the_kernels_layout`).
    let told = unsafe { &*told };
    if told.code != BY_FILTER {
        return; // somebody sent it: nothing was refused
    }
    let number = told.number.cast_unsigned();
    REFUSED_IN_ALL.fetch_add(1, Ordering::Relaxed);
    let slot = REFUSED.get(number as usize).or(REFUSED.last());
    let times = slot.map_or(1, |times| {
        times.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    });
    if times.is_power_of_two() {
        let mut line = [0; LINE_BYTES];
        let line = say(&mut line, number, told.errno, times);
        let _ = rustix::io::write(io::stderr(), line); // the raw call, not the C library's: it leaves errno alone
    }
    // SAFETY: the third argument of such a handler is the interrupted thread's `ucontext_t`, which the handler may change.
    fail(unsafe { &mut *context.cast() }, told.errno);
}

/// The line, within `buffer`.
fn say(buffer: &mut [u8; LINE_BYTES], number: u32, errno: c_int, times: u32) -> &[u8] {
    let name = names::name(number).unwrap_or("unknown");
    let error = match errno {
        libc::ENOSYS => "ENOSYS",
        _ => "EPERM",
    };
    let mut rest = &mut buffer[..];
    let _ = if AS_JSON.load(Ordering::Relaxed) {
        writeln!(
            rest,
            r#"{{"level":"ERROR","message":"a system call was refused","call":"{name}","number":{number},"error":"{error}","times":{times}}}"#
        )
    } else {
        writeln!(
            rest,
            "secretfs: a system call was refused: {name} (number {number}) failed with {error}, {times} in all; see docs/hardening.md"
        )
    }; // what is longer than the buffer is cut: nothing is, as `a_line_names_the_call` shows
    let left = rest.len();
    &buffer[..LINE_BYTES - left]
}

/// Makes the interrupted call return this error.
fn fail(context: &mut libc::ucontext_t, errno: c_int) {
    #[cfg(target_arch = "x86_64")]
    {
        context.uc_mcontext.gregs[libc::REG_RAX as usize] = -libc::greg_t::from(errno);
    }
    #[cfg(target_arch = "aarch64")]
    {
        context.uc_mcontext.regs[0] = i64::from(-errno).cast_unsigned();
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn the_kernels_layout() {
        assert_eq!(offset_of!(Told, errno), 4);
        assert_eq!(offset_of!(Told, code), 8);
        assert_eq!(offset_of!(Told, call_address), 16);
        assert_eq!(offset_of!(Told, number), 24);
        assert_eq!(offset_of!(Told, architecture), 28);
        assert!(size_of::<Told>() <= size_of::<libc::siginfo_t>());
    }

    #[test]
    fn a_line_names_the_call() {
        let mut buffer = [0; LINE_BYTES];
        let ptrace = u32::try_from(libc::SYS_ptrace).unwrap();
        let line = say(&mut buffer, ptrace, libc::EPERM, 4);
        let expect = format!(
            "secretfs: a system call was refused: ptrace (number {ptrace}) failed with EPERM, 4 in all; see docs/hardening.md\n"
        );
        assert_eq!(str::from_utf8(line).unwrap(), expect);
        let longest = (0..=names::NEWEST).max_by_key(|number| names::name(*number).map(str::len));
        for number in [longest.unwrap(), u32::MAX] {
            let mut buffer = [0; LINE_BYTES];
            let line = say(&mut buffer, number, libc::ENOSYS, u32::MAX);
            assert_eq!(line.last(), Some(&b'\n'), "cut: {line:?}");
        }
    }
}
