//! The filter as the kernel takes it: a program for its packet filter, which looks at a call's architecture, number and arguments.
//!
//! A list that is walked from the top, because it is easy to check: each entry is a comparison of the number and an answer. Since Linux 5.11
//! the kernel walks it once for each number whose answer depends on nothing else; the few others stand first.

use libc::sock_filter;

use super::{
    allowed::{Bounded, Group, Refusal, Test},
    names,
};

/// `AUDIT_ARCH_*` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
pub const ARCHITECTURE: u32 = 0xc000_003e;
/// `AUDIT_ARCH_*` of linux/audit.h.
#[cfg(target_arch = "aarch64")]
pub const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(not(all(
    target_endian = "little",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
compile_error!("the system call filter knows x86_64 and aarch64");

// Where things are in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IS_MORE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The program.
///
/// 1. A call by another architecture's convention (32-bit code) is never ours: the process ends.
/// 2. Calls that depend on their arguments.
/// 3. Calls that are given freely.
/// 4. A call that is newer than this version: as an older kernel would, so that a C library falls back, but told.
/// 5. The rest: refused, and told.
pub fn assemble(bounded: &[Bounded], freely: &[Group]) -> Vec<sock_filter> {
    let mut program = vec![
        statement(LOAD, ARCH),
        jump(IS, ARCHITECTURE, 1, 0),
        statement(ANSWER, libc::SECCOMP_RET_KILL_PROCESS), // 1
        statement(LOAD, NUMBER),
    ];
    for call in bounded {
        let body = body(call); // 2
        program.push(jump(IS, number(call.call), 0, length(&body)));
        program.extend(body);
    }
    for call in freely.iter().flat_map(|group| group.calls) {
        program.push(jump(IS, number(*call), 0, 1)); // 3
        program.push(statement(ANSWER, libc::SECCOMP_RET_ALLOW));
    }
    program.extend([
        jump(IS_MORE, names::NEWEST, 0, 1),
        statement(ANSWER, told(libc::ENOSYS)), // 4
        statement(ANSWER, told(libc::EPERM)),  // 5
    ]);
    program
}

/// The answer by which the process itself tells, with the error that the call is to have.
fn told(errno: i32) -> u32 {
    libc::SECCOMP_RET_TRAP | data(errno)
}

fn data(errno: i32) -> u32 {
    errno as u32 & libc::SECCOMP_RET_DATA
}

/// What follows a number that has been found. Always answers.
fn body(call: &Bounded) -> Vec<sock_filter> {
    let mut body: Vec<_> = call.when.iter().flat_map(|tests| one_of(tests)).collect();
    let refused = match call.otherwise {
        Refusal::Told => told(libc::EPERM),
        Refusal::Quiet(errno) => libc::SECCOMP_RET_ERRNO | data(errno),
    };
    body.push(statement(ANSWER, refused));
    body
}

/// Answers when all of the tests hold; else what follows is next.
fn one_of(tests: &[Test]) -> Vec<sock_filter> {
    let mut halves = Vec::new();
    for test in tests {
        let at = ARGUMENTS + 8 * u32::from(test.argument);
        for (at, shift) in [(at, 0), (at + 4, 32)] {
            let (mask, value) = ((test.mask >> shift) as u32, (test.value >> shift) as u32);
            if mask != 0 {
                halves.push((at, mask, value)); // little-endian: the lower half comes first
            }
        }
    }
    let mut block = Vec::new();
    for (nth, (at, mask, value)) in halves.iter().enumerate() {
        let after = halves.len() - 1 - nth;
        let skipped = 3 * after + 1; // the other halves, and the answer
        block.push(statement(LOAD, *at));
        block.push(statement(AND, *mask));
        block.push(jump(IS, *value, 0, skipped as u8));
    }
    block.push(statement(ANSWER, libc::SECCOMP_RET_ALLOW));
    block
}

fn number(call: libc::c_long) -> u32 {
    call as u32
}

/// How far a jump over `block` leads: 255 at most, which `every_known_call_has_the_answer_of_the_tables` would see exceeded.
fn length(block: &[sock_filter]) -> u8 {
    block.len() as u8
}

fn statement(code: u16, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::{super::allowed, *};

    const PID: u32 = 4242;

    /// What the program answers: the kernel's interpreter for the few instructions that we use.
    fn answer(program: &[sock_filter], number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [0_u8; 64];
        data[..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&ARCHITECTURE.to_le_bytes());
        for (nth, argument) in arguments.iter().enumerate() {
            data[16 + 8 * nth..24 + 8 * nth].copy_from_slice(&argument.to_le_bytes());
        }
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let step = program[at];
            at += 1;
            match step.code {
                LOAD => {
                    let place = step.k as usize;
                    accumulator = u32::from_le_bytes(data[place..place + 4].try_into().unwrap());
                }
                AND => accumulator &= step.k,
                IS if accumulator == step.k => at += usize::from(step.jt),
                IS => at += usize::from(step.jf),
                IS_MORE if accumulator > step.k => at += usize::from(step.jt),
                IS_MORE => at += usize::from(step.jf),
                ANSWER => return step.k,
                code => panic!("no such instruction: {code:#x}"),
            }
        }
    }

    fn program() -> Vec<sock_filter> {
        assemble(&allowed::bounded(PID), allowed::FREELY)
    }

    #[test]
    fn every_known_call_has_the_answer_of_the_tables() {
        let program = program();
        assert!(program.len() < 4096, "BPF_MAXINSNS");
        let free: Vec<u32> = allowed::FREELY
            .iter()
            .flat_map(|group| group.calls)
            .map(|call| number(*call))
            .collect();
        let bounded = allowed::bounded(PID);
        for call in &bounded {
            let body = body(call);
            assert!(body.len() < 256, "{}: the jump is too long", call.why);
        }
        let odd = [0xffff_ffff_ffff_ffff_u64; 6];
        for number in (0..=names::NEWEST + 100).chain([0x4000_0000, u32::MAX]) {
            let bounded = bounded.iter().find(|call| call.call as u32 == number);
            let expect = match bounded.map(|call| call.otherwise) {
                Some(Refusal::Told) => told(libc::EPERM),
                Some(Refusal::Quiet(errno)) => libc::SECCOMP_RET_ERRNO | data(errno),
                None if free.contains(&number) => libc::SECCOMP_RET_ALLOW,
                None if number > names::NEWEST => told(libc::ENOSYS),
                None => told(libc::EPERM),
            };
            assert_eq!(answer(&program, number, odd), expect, "call {number}");
        }
    }

    #[test]
    fn no_call_is_listed_twice_and_each_has_a_name() {
        let free = allowed::FREELY.iter().flat_map(|group| group.calls);
        let bounded = allowed::bounded(PID);
        let mut all: Vec<u32> = free.map(|call| number(*call)).collect();
        all.extend(bounded.iter().map(|call| number(call.call)));
        for call in &all {
            assert!(names::name(*call).is_some(), "{call}");
            assert_eq!(
                all.iter().filter(|other| *other == call).count(),
                1,
                "{call}"
            );
        }
    }

    #[test]
    fn arguments_decide() {
        const UNIX: u64 = libc::AF_UNIX as u64;
        const INET6: u64 = libc::AF_INET6 as u64;
        const NETLINK: u64 = libc::AF_NETLINK as u64;
        const READ: u64 = libc::PROT_READ as u64;
        const WRITE: u64 = libc::PROT_WRITE as u64;
        const EXEC: u64 = libc::PROT_EXEC as u64;
        const PRIVATE: u64 = libc::MAP_PRIVATE as u64;
        const ANONYMOUS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        const JUNK: u64 = 0xdead_beef_0000_0000; // above an int the kernel sees nothing
        const GLIBC: u64 = 0x003d_0f00; // flags of a thread, as glibc 2.36 and musl 1.2 make it
        const MUSL: u64 = 0x007d_0f00;
        let pid = u64::from(PID);
        let program = program();
        #[rustfmt::skip]
        let rows: &[(libc::c_long, &[u64], bool)] = &[
            (libc::SYS_mmap, &[0, 4096, READ | WRITE, ANONYMOUS], true),
            (libc::SYS_mmap, &[0, 4096, READ | WRITE | EXEC, ANONYMOUS], false),
            (libc::SYS_mmap, &[0, 4096, READ | EXEC, ANONYMOUS], false),
            (libc::SYS_mmap, &[0, 4096, READ | WRITE | EXEC, PRIVATE, 3], false),
            (libc::SYS_mmap, &[0, 4096, READ | EXEC, PRIVATE, 3], cfg!(not(any(target_feature = "crt-static", target_env = "musl")))),
            (libc::SYS_mprotect, &[0, 4096, READ | WRITE], true),
            (libc::SYS_mprotect, &[0, 4096, READ | EXEC], false),
            (libc::SYS_clone, &[GLIBC], true),
            (libc::SYS_clone, &[MUSL], true),
            (libc::SYS_clone, &[GLIBC | 1 << 32], false),
            (libc::SYS_clone, &[GLIBC | libc::CLONE_NEWUSER as u64], false),
            (libc::SYS_clone, &[GLIBC | libc::CLONE_NEWNS as u64], false),
            (libc::SYS_clone, &[GLIBC & !(libc::CLONE_THREAD as u64)], false),
            (libc::SYS_clone, &[libc::SIGCHLD as u64], false),
            (libc::SYS_clone, &[(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as u64], false),
            (libc::SYS_socket, &[UNIX], true),
            (libc::SYS_socket, &[INET6 | JUNK], true),
            (libc::SYS_socket, &[NETLINK, 3, 0], true),
            (libc::SYS_socket, &[NETLINK, 3, libc::NETLINK_AUDIT as u64], false),
            (libc::SYS_socket, &[libc::AF_PACKET as u64], false),
            (libc::SYS_socket, &[libc::AF_ALG as u64], false),
            (libc::SYS_socket, &[libc::AF_VSOCK as u64], false),
            (libc::SYS_socketpair, &[UNIX], true),
            (libc::SYS_socketpair, &[INET6], false),
            (libc::SYS_ioctl, &[3, 0x5421], true),
            (libc::SYS_ioctl, &[3, 0x5412], false), // TIOCSTI: puts words into a terminal's mouth
            (libc::SYS_prctl, &[libc::PR_SET_NAME as u64], true),
            (libc::SYS_prctl, &[0x4155_5856, 0x1000, 512], true), // PR_GET_AUXV
            (libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1], false),
            (libc::SYS_prctl, &[libc::PR_SET_PTRACER as u64, u64::MAX], false),
            (libc::SYS_prctl, &[libc::PR_SET_MM as u64], false),
            (libc::SYS_prlimit64, &[0, 7, 0, 0x1000], true),
            (libc::SYS_prlimit64, &[pid, 7, 0, 0x1000], true),
            (libc::SYS_prlimit64, &[0, 4, 0x1000, 0], false),
            (libc::SYS_prlimit64, &[0, 4, 1 << 40, 0], false),
            (libc::SYS_prlimit64, &[1, 7, 0, 0x1000], false),
            (libc::SYS_tgkill, &[pid, 7, 6], true),
            (libc::SYS_tgkill, &[1, 1, 9], false),
        ];
        for (call, given, allowed) in rows {
            let mut arguments = [0; 6];
            arguments[..given.len()].copy_from_slice(given);
            let answer = answer(&program, number(*call), arguments);
            let name = names::name(number(*call)).unwrap();
            assert_eq!(
                answer == libc::SECCOMP_RET_ALLOW,
                *allowed,
                "{name} {given:x?}: {answer:#x}"
            );
        }
    }

    #[test]
    fn what_leads_out_is_not_listed() {
        let program = program();
        for call in [
            "execve",
            "execveat",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "bpf",
            "perf_event_open",
            "userfaultfd",
            "keyctl",
            "add_key",
            "request_key",
            "io_uring_setup",
            "io_uring_enter",
            "setns",
            "unshare",
            "pivot_root",
            "chroot",
            "mount",
            "init_module",
            "finit_module",
            "delete_module",
            "kexec_load",
            "open_by_handle_at",
            "personality",
            "memfd_create",
            "seccomp",
            "capset",
            "setuid",
            "setresuid",
            "kill",
            "tkill",
            "pidfd_open",
            "pidfd_getfd",
            "process_madvise",
            "mknodat",
            "fanotify_init",
            "reboot",
            "swapon",
            "settimeofday",
            "clock_settime",
            "sethostname",
            "acct",
            "syslog",
            "quotactl",
            "open_tree_attr",
            "linkat",
            "setxattr",
            "shmat",
            "remap_file_pages",
            "pkey_mprotect",
        ] {
            let numbers = 0..=names::NEWEST;
            let number = numbers
                .into_iter()
                .find(|number| names::name(*number) == Some(call));
            let number = number.unwrap_or_else(|| panic!("{call} has no number"));
            assert_eq!(
                answer(&program, number, [0; 6]),
                told(libc::EPERM),
                "{call}"
            );
        }
    }

    #[test]
    fn another_architectures_call_ends_the_process() {
        assert_eq!(program()[1].k, ARCHITECTURE);
        assert_eq!((program()[1].jt, program()[1].jf), (1, 0));
        assert_eq!(program()[2].k, libc::SECCOMP_RET_KILL_PROCESS);
    }
}
