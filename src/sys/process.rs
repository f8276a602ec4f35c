//! What a process does to itself before it starts a thread (design decision 14), and what it asks of its children.

use std::{
    fs, io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use rustix::{
    io::Errno,
    process::{
        DumpableBehavior, Resource, Rlimit, getegid, geteuid, getrlimit, set_dumpable_behavior,
        setrlimit,
    },
    thread::{
        CapabilitySet, CapabilitySets, UnshareFlags, capability_is_in_bounding_set,
        remove_capability_from_bounding_set,
    },
};

/// Makes a user namespace, in which we are root, and a mount namespace.
///
/// Before any thread: in a threaded process the kernel refuses (EINVAL). Before [`seal`]: the maps of a process that is not
/// dumpable belong to root (EACCES).
///
/// # Errors
/// EPERM where the system forbids user namespaces to ordinary users; ENOSPC where it limits their number.
pub fn enter_user_namespace() -> io::Result<()> {
    enter_user_namespace_as((0, 0))
}

/// As [`enter_user_namespace`], but user and group have the same numbers inside as outside. We may mount there until we execute a
/// program; the program has no capability, unless we are root.
///
/// # Errors
/// As there.
pub fn enter_user_namespace_as_oneself() -> io::Result<()> {
    enter_user_namespace_as((geteuid().as_raw(), getegid().as_raw()))
}

fn enter_user_namespace_as(inside: (u32, u32)) -> io::Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: neither flag touches descriptors or memory that other code relies on; a new mount namespace begins as a copy.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)? };
    fs::write("/proc/self/setgroups", "deny")?; // gid_map is refused without it (user_namespaces(7))
    fs::write("/proc/self/uid_map", format!("{} {uid} 1", inside.0))?;
    fs::write("/proc/self/gid_map", format!("{} {gid} 1", inside.1))?;
    make_mounts_private()
}

/// Makes a mount namespace of our own, so that no mount of ours is seen elsewhere or outlives us.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn enter_mount_namespace() -> io::Result<()> {
    super::namespace::unshare_mounts()?;
    make_mounts_private()
}

fn make_mounts_private() -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags as P, mount_change};
    Ok(mount_change("/", P::PRIVATE | P::REC)?)
}

/// Whether we may mount here.
pub fn may_mount() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// No core file, and no other process of this user may read our memory.
///
/// # Errors
/// Those of setrlimit and prctl; none is expected.
pub fn seal() -> io::Result<()> {
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// A limit for core files that a user's program is to have.
#[derive(Clone, Copy)]
pub struct CoreLimit(Rlimit);

impl CoreLimit {
    /// Puts it in force. Only calls that are allowed between fork and exec.
    ///
    /// # Errors
    /// Those of setrlimit; none is expected: [`seal_until_exec`] left the hard limit alone.
    pub fn restore(self) -> io::Result<()> {
        Ok(setrlimit(Resource::Core, self.0)?)
    }
}

/// As [`seal`], for a process in whose place, or below which, a user's program will run: the hard limit stays, and what was in force is
/// given back. (That we are not dumpable ends at execve by itself.)
///
/// # Errors
/// As there.
pub fn seal_until_exec() -> io::Result<CoreLimit> {
    let before = getrlimit(Resource::Core);
    let none = Rlimit {
        current: Some(0),
        maximum: before.maximum,
    };
    setrlimit(Resource::Core, none)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(CoreLimit(before))
}

/// Whether this user may execute a file.
pub fn may_execute(path: &std::path::Path) -> bool {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    path.is_file() && accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

/// What mounts and their files need (docs/hardening.md has each with what fails without it): to mount; to give a file to its pod's user;
/// to read an identity of another user's, and to overwrite a file that nobody may write.
const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE);

/// Drops all capabilities but those that a mount and its files need.
///
/// `final_for_children`: also from the bounding set, and no_new_privs, so that nothing regains them. Not for a process that runs a user's
/// own commands: they keep what the user has.
///
/// # Errors
/// Those of capset and prctl; none is expected.
pub fn drop_privileges(final_for_children: bool) -> io::Result<()> {
    if final_for_children {
        limit_bounding_set()?; // first: it takes a capability that goes with the others
    }
    let have = rustix::thread::capabilities(None)?;
    let keep = have.permitted.intersection(KEPT);
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(), // and with it the ambient set
    };
    rustix::thread::set_capabilities(None, sets)?;
    if final_for_children {
        rustix::thread::set_no_new_privs(true)?;
    }
    Ok(())
}

/// Takes out of the bounding set what is not kept, whatever this kernel knows. Without CAP_SETPCAP it stays as it is: as the container's
/// runtime has made it, which then gave us few capabilities anyway.
fn limit_bounding_set() -> io::Result<()> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(one) {
            Ok(true) if !KEPT.contains(one) => {}
            Ok(_) => continue,
            Err(Errno::INVAL) => break, // the kernel knows no more
            Err(errno) => return Err(errno.into()),
        }
        match remove_capability_from_bounding_set(one) {
            Err(Errno::PERM) => {
                tracing::debug!("without CAP_SETPCAP the bounding set stays as it is");
                break;
            }
            result => result?,
        }
    }
    Ok(())
}

/// As many open files as the system allows: each volume holds some. Shells and runtimes give a soft limit of 1024 for the sake of
/// programs that use select(2).
///
/// # Errors
/// Those of setrlimit; none is expected.
pub fn raise_file_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

/// Takes over a descriptor that our parent left open under this number, as `--ready-fd` names it.
///
/// # Errors
/// EBADF if it is not open, or is one of the three standard ones.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: `fcntl(F_GETFD)` takes any number and touches nothing.
    let open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
    if number <= 2 || !open {
        return Err(Errno::BADF.into());
    }
    // SAFETY: it is open, as just seen. Called before anything else of ours is opened under a number that the parent chose,
    // and once for each number: so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether we are in a user namespace other than the system's first. Without /proc: not.
pub fn in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !is_full(&map))
}

/// Whether a `uid_map` maps every id to itself, as only the first user namespace does.
fn is_full(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// The effective user.
pub fn uid() -> u32 {
    geteuid().as_raw()
}

/// The effective user as those outside our user namespace see him. The same as [`uid`] without one.
pub fn outer_uid() -> u32 {
    // lines of (first id inside, first id outside, how many): user_namespaces(7)
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let inner = u64::from(uid());
    let outer = map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (first, outside, count) = (
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
        );
        let offset = inner.checked_sub(first).filter(|offset| *offset < count)?;
        u32::try_from(outside + offset).ok()
    });
    outer.unwrap_or_else(uid)
}

/// Rows and columns of the terminal that stdout is, as it is now; no end of them where it does not say.
pub fn terminal_size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row.into(), size.ws_col.into()),
        _ => (usize::MAX, usize::MAX),
    }
}

/// SIGKILL for a process group that this process made.
pub fn kill_group(leader: u32) {
    use rustix::process::{Pid, Signal, kill_process_group};
    if let Some(pid) = i32::try_from(leader).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, Signal::KILL); // all of it may have ended
    }
}

/// The kernel's release, such as `6.18.44`.
pub fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// The host's name. In a pod it is the pod's, unless the pod is in the host's network.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// SIGTERM for a child. One that has ended by itself is as good.
pub fn terminate(child: &std::process::Child) {
    use rustix::process::{Pid, Signal, kill_process};
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Locks an open file for this process alone, as long as it stays open (flock). `false`: another has it.
///
/// # Errors
/// Those of flock(2) but for the one that says that another has it.
pub fn try_lock(file: &fs::File) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, flock};
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// [`try_lock`], but waits until nobody else has it. Blocks its thread.
///
/// # Errors
/// Those of flock(2).
pub fn lock(file: &fs::File) -> io::Result<()> {
    use rustix::fs::{FlockOperation, flock};
    loop {
        match flock(file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_user_namespace_maps_every_id_to_itself() {
        assert!(is_full("         0          0 4294967295\n"));
        for map in [
            "",
            "0 1000 1\n",
            "0 0 4294967294\n",
            "0 0 1000\n1000 1000 4294966295\n",
        ] {
            assert!(!is_full(map), "{map:?}");
        }
    }
}
