//! The system calls that a process which serves secrets may make. Nothing else is allowed: each group says what needs it.
//!
//! Built from what the tests make it do (`strace -f -c`), and from what the C library, the standard library and the runtime do on
//! paths that no test reaches: fallbacks on older kernels, memory pressure, the end of a thread, a panic. Calls that tell a process about
//! itself, wait, or handle its own memory and descriptors are given freely; whatever makes a process, a namespace, executable
//! memory or a way into another process is not here.

use libc::c_long;

use super::names;

/// Calls that need no look at their arguments. The kernel keeps these answers in a bitmap (since Linux 5.11).
pub struct Group {
    /// What needs them.
    pub why: &'static str,
    /// Their numbers.
    pub calls: &'static [c_long],
}

/// A call that is allowed with some arguments only.
pub struct Bounded {
    /// What needs it, and what is kept out.
    pub why: &'static str,
    /// Its number.
    pub call: c_long,
    /// Allowed when every test of one of these holds.
    pub when: Vec<Vec<Test>>,
    /// What becomes of it otherwise.
    pub otherwise: Refusal,
}

/// `argument & mask == value`.
#[derive(Clone, Copy)]
pub struct Test {
    /// Which argument, from 0.
    pub argument: u8,
    /// The bits that count: all 64 where the kernel takes a long, the lower 32 where it takes an int.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
}

/// How a call is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// With EPERM, a line in the log, and a count.
    Told,
    /// With this error and nothing else: it is expected, or it is made where a line would cost the process.
    Quiet(i32),
}

/// Given freely. What is called most comes first: before Linux 5.11 each call passes those before it.
#[rustfmt::skip]
pub const FREELY: &[Group] = &[
    Group { why: "the runtime waits and wakes", calls: &[
        libc::SYS_epoll_pwait, libc::SYS_futex, libc::SYS_read, libc::SYS_write, libc::SYS_close, libc::SYS_epoll_ctl,
        libc::SYS_epoll_create1, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_timerfd_create, libc::SYS_timerfd_settime,
        libc::SYS_timerfd_gettime, libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_sched_yield, libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep, libc::SYS_nanosleep, libc::SYS_restart_syscall, libc::SYS_clock_getres,
        libc::SYS_gettimeofday, libc::SYS_getcpu, libc::SYS_futex_waitv, 454, 455, 456, // futex_wake, futex_wait, futex_requeue
    ] },
    Group { why: "files: specs, stores, records, the audit log, a volume's own files", calls: &[
        libc::SYS_openat, libc::SYS_openat2, libc::SYS_statx, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_readv, libc::SYS_writev,
        libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2,
        libc::SYS_lseek, libc::SYS_readlinkat, libc::SYS_getdents64, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_getcwd,
        libc::SYS_mkdirat, libc::SYS_unlinkat, names::RENAMEAT, libc::SYS_renameat2, libc::SYS_symlinkat, libc::SYS_fchmod,
        libc::SYS_fchown, libc::SYS_utimensat, libc::SYS_ftruncate, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_flock,
        libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_umask,
        libc::SYS_fadvise64, libc::SYS_readahead, libc::SYS_close_range,
    ] },
    Group { why: "io::copy of the standard library", calls: &[
        libc::SYS_copy_file_range, libc::SYS_sendfile, libc::SYS_splice,
    ] },
    Group { why: "a store that tells of its changes", calls: &[
        libc::SYS_inotify_init1, libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch,
    ] },
    Group { why: "mounts: made without a path, attached, looked at, taken down. Not mount(2), whose arguments lie in memory, where no filter sees them", calls: &[
        libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick, libc::SYS_mount_setattr, libc::SYS_open_tree,
        libc::SYS_move_mount, libc::SYS_umount2, 457, 458, // statmount, listmount
    ] },
    Group { why: "sockets that are there: the kubelet's, people's, the API server's, stores', a name server's", calls: &[
        libc::SYS_accept4, libc::SYS_accept, libc::SYS_bind, libc::SYS_listen, libc::SYS_connect, libc::SYS_shutdown,
        libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt, libc::SYS_sendto,
        libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_sendmmsg, libc::SYS_recvmmsg,
    ] },
    Group { why: "memory that is not executable; mlock keeps it out of swap", calls: &[
        libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_msync, libc::SYS_mincore, libc::SYS_mlock,
        libc::SYS_mlock2, libc::SYS_mlockall, libc::SYS_munlock, libc::SYS_munlockall, libc::SYS_membarrier, 462, // mseal
    ] },
    Group { why: "threads begin and end", calls: &[
        libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_set_tid_address, libc::SYS_rseq, libc::SYS_exit,
        libc::SYS_exit_group, libc::SYS_sched_getaffinity, libc::SYS_sched_getscheduler, libc::SYS_sched_getparam,
        libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min,
    ] },
    Group { why: "signals to ourselves", calls: &[
        libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending,
        libc::SYS_rt_sigsuspend, libc::SYS_rt_sigtimedwait, libc::SYS_sigaltstack,
    ] },
    Group { why: "random numbers", calls: &[libc::SYS_getrandom] },
    Group { why: "what a process may know of itself and its machine", calls: &[
        libc::SYS_getpid, libc::SYS_gettid, libc::SYS_getppid, libc::SYS_getpgid, libc::SYS_getsid, libc::SYS_getuid, libc::SYS_geteuid,
        libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getgroups, libc::SYS_capget,
        libc::SYS_getpriority, libc::SYS_getrusage, libc::SYS_times, libc::SYS_sysinfo, libc::SYS_uname,
    ] },
    #[cfg(target_arch = "x86_64")]
    Group { why: "older names of the above, which C libraries still use on x86_64", calls: &[
        libc::SYS_epoll_wait, libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_mkdir,
        libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_symlink, libc::SYS_poll, libc::SYS_select, libc::SYS_pipe,
        libc::SYS_dup2, libc::SYS_eventfd, libc::SYS_epoll_create, libc::SYS_inotify_init, libc::SYS_getdents, libc::SYS_time,
        libc::SYS_getpgrp, libc::SYS_getrlimit, libc::SYS_pause,
    ] },
];

/// Whether this build never loads code after its start: a static one. A dynamic glibc loads parts of its resolver when a name is
/// first looked up (all of it before glibc 2.34, modules that nsswitch.conf names since).
const IS_STATIC: bool = cfg!(any(target_feature = "crt-static", target_env = "musl"));

/// What every thread of a process shares; without one of these a clone is something else.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD) as u64;
/// What a C library may ask for besides, for its own bookkeeping. 0x400000 is CLONE_DETACHED, which musl sets and Linux ignores.
const THREAD_TOO: u64 = (libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_SETTID
    | libc::CLONE_CHILD_CLEARTID
    | 0x40_0000) as u64;

/// Commands of ioctl(2) that are used on files and sockets.
#[rustfmt::skip]
const IOCTLS: &[u32] = &[
    0x5421, // FIONBIO: the standard library's set_nonblocking
    0x5451, // FIOCLEX: close on exec
    0x541b, // FIONREAD: how much waits
    0x5401, 0x802c_542a, // TCGETS, TCGETS2: is it a terminal
    0x5413, // TIOCGWINSZ: how wide is it
    0x8933, // SIOCGIFINDEX: a name server's address with a zone
];

/// Commands of fcntl(2) that are used. Not those that have a signal sent, to whatever process: F_SETOWN, F_SETOWN_EX, F_SETSIG.
const FCNTLS: &[u32] = &[
    libc::F_DUPFD as u32,
    libc::F_DUPFD_CLOEXEC as u32,
    libc::F_GETFD as u32,
    libc::F_SETFD as u32,
    libc::F_GETFL as u32,
    libc::F_GETLK as u32,
    libc::F_SETLK as u32,
    libc::F_SETLKW as u32,
    libc::F_OFD_GETLK as u32,
    libc::F_OFD_SETLK as u32,
    libc::F_OFD_SETLKW as u32,
    libc::F_GETPIPE_SZ as u32,
];

/// Options of prctl(2): a thread's name, a mapping's name, and what only tells.
const PRCTLS: &[u32] = &[
    libc::PR_SET_NAME as u32,
    libc::PR_GET_NAME as u32,
    libc::PR_SET_VMA as u32,
    libc::PR_GET_DUMPABLE as u32,
    libc::PR_GET_SECCOMP as u32,
    libc::PR_GET_NO_NEW_PRIVS as u32,
    libc::PR_CAPBSET_READ as u32,
    PR_GET_AUXV as u32,
];
/// linux/prctl.h, since Linux 6.4: what the kernel told this program at its start; `rustix` asks for it.
const PR_GET_AUXV: i32 = 0x4155_5856;

/// Allowed with some arguments only, for the process `pid`.
pub fn bounded(pid: u32) -> Vec<Bounded> {
    let told = |call, why, when| Bounded {
        why,
        call,
        when,
        otherwise: Refusal::Told,
    };
    vec![
        told(
            libc::SYS_mmap,
            "memory; nothing that can be written becomes executable, and a static build maps nothing executable at all",
            executable(),
        ),
        told(
            libc::SYS_mprotect,
            "guard pages, what a loaded library writes once; never executable",
            vec![vec![without(2, libc::PROT_EXEC)]],
        ),
        Bounded {
            why: "threads of this process; no process, no namespace. The C library blocks all signals around it, and a blocked SIGSYS \
                  ends the process: so it is refused without a line",
            call: libc::SYS_clone,
            when: vec![vec![Test {
                argument: 0,
                mask: !THREAD_TOO,
                value: THREAD,
            }]],
            otherwise: Refusal::Quiet(libc::EPERM),
        },
        Bounded {
            why: "its flags lie in memory, where no filter sees them: the C library falls back on clone",
            call: libc::SYS_clone3,
            when: Vec::new(),
            otherwise: Refusal::Quiet(libc::ENOSYS),
        },
        told(
            libc::SYS_socket,
            "the kinds of sockets in use; netlink for the resolver, which asks what addresses there are",
            sockets(),
        ),
        told(
            libc::SYS_socketpair,
            "the runtime's own wake-ups",
            vec![vec![is(0, libc::AF_UNIX as u32)]],
        ),
        told(
            libc::SYS_fcntl,
            "descriptors are copied, made non-blocking, locked; none that has a signal sent",
            fcntls(),
        ),
        told(
            libc::SYS_ioctl,
            "what is asked of files and sockets",
            one_of(1, IOCTLS),
        ),
        told(
            libc::SYS_prctl,
            "names, and what only tells; nothing that undoes the seal",
            one_of(0, PRCTLS),
        ),
        told(
            libc::SYS_prlimit64,
            "what our own limits are",
            [0, pid].map(|whose| vec![is(0, whose), all(2, 0)]).into(),
        ),
        told(
            libc::SYS_tgkill,
            "abort(3): a signal to a thread of ours",
            vec![vec![is(0, pid)]],
        ),
    ]
}

/// mmap(2): nothing executable; or code of a file, which nobody writes through this mapping.
fn executable() -> Vec<Vec<Test>> {
    let mut when = vec![vec![without(2, libc::PROT_EXEC)]];
    if !IS_STATIC {
        let code = Test {
            argument: 2,
            mask: (libc::PROT_EXEC | libc::PROT_WRITE) as u64,
            value: libc::PROT_EXEC as u64,
        };
        when.push(vec![code, without(3, libc::MAP_ANONYMOUS)]);
    }
    when
}

/// This argument is one of these.
fn one_of(argument: u8, values: &[u32]) -> Vec<Vec<Test>> {
    let test = |value: &u32| vec![is(argument, *value)];
    values.iter().map(test).collect()
}

fn fcntls() -> Vec<Vec<Test>> {
    let mut when = one_of(1, FCNTLS);
    when.push(vec![is(1, libc::F_SETFL as u32), without(2, libc::O_ASYNC)]);
    when
}

fn sockets() -> Vec<Vec<Test>> {
    let domain = |domain: i32| is(0, domain as u32);
    vec![
        vec![domain(libc::AF_UNIX)],
        vec![domain(libc::AF_INET)],
        vec![domain(libc::AF_INET6)],
        vec![domain(libc::AF_NETLINK), is(2, libc::NETLINK_ROUTE as u32)],
    ]
}

/// An argument of 32 bits is this.
const fn is(argument: u8, value: u32) -> Test {
    Test {
        argument,
        mask: u32::MAX as u64,
        value: value as u64,
    }
}

/// An argument of 64 bits is this.
const fn all(argument: u8, value: u64) -> Test {
    Test {
        argument,
        mask: u64::MAX,
        value,
    }
}

/// An argument has none of these bits.
const fn without(argument: u8, bits: i32) -> Test {
    Test {
        argument,
        mask: bits as u64,
        value: 0,
    }
}
