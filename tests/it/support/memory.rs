//! Searches all memory of a process that can be written.
//!
//! The process is stopped for it, so a search is one picture: nothing moves from a place not yet read to one that was.
//! It must be our child: then neither a mark as not dumpable nor a restricted ptrace(2) keeps us out, as ordinary user
//! too, who is root in a user namespace that both are in.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{needles::Needles, program::eventually};

/// A piece of a secret in a process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Name of the secret.
    pub secret: String,
    /// Which form of it, and how many bytes.
    pub form: String,
    pub place: Place,
}

/// What a piece of memory is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// What the allocator hands out, of whichever arena.
    Heap,
    /// The stack of the thread of this name.
    Stack {
        thread: String,
        /// How far above the stack's pointer. Negative: calls that have returned have left it there.
        above: i64,
    },
    /// Variables of the program or of a library, and whatever else has a name.
    Other(String),
}

impl Copy {
    pub fn is_on_a_stack(&self) -> bool {
        matches!(self.place, Place::Stack { .. })
    }
}

/// A range of addresses, of /proc/PID/maps.
struct Mapping {
    start: u64,
    end: u64,
    name: String,
}

/// What a search has looked at.
#[derive(Debug)]
pub struct Picture {
    pub copies: Vec<Copy>,
    /// Names of the threads whose stacks were searched.
    pub threads: Vec<String>,
    /// Bytes that were searched, by what they are for.
    pub heap_bytes: u64,
    pub stack_bytes: u64,
}

impl Picture {
    /// Copies, but those on stacks: how many of each secret.
    pub fn off_stacks(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for copy in self.copies.iter().filter(|copy| !copy.is_on_a_stack()) {
            *counts.entry(copy.secret.as_str()).or_default() += 1;
        }
        counts
    }

    /// Copies on stacks.
    pub fn on_stacks(&self) -> Vec<&Copy> {
        let all = self.copies.iter();
        all.filter(|copy| copy.is_on_a_stack()).collect()
    }
}

/// Goes on when it is dropped.
struct Stopped(Pid);

impl Stopped {
    fn stop(pid: u32) -> Self {
        let process = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(process, Signal::STOP).unwrap();
        let stopped = Self(process);
        eventually("all threads are stopped", || {
            let mut tasks = tasks(pid).into_iter();
            tasks.all(|task| match field(pid, &task, "status", "State:") {
                Some(state) => state.starts_with('T'),
                None => true, // it has ended
            })
        });
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn tasks(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

fn field(pid: u32, task: &str, file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{task}/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().to_owned())
}

/// Stack pointers and names of the threads of a process that is stopped.
fn stacks(pid: u32) -> Vec<(u64, String)> {
    let stack = |task: &String| {
        let name = field(pid, task, "comm", "")?;
        // the number of the call, its arguments, stack pointer, program counter: proc_pid_syscall(5)
        let call = field(pid, task, "syscall", "")?;
        let pointer = call.split(' ').rev().nth(1);
        let pointer = pointer.and_then(|text| text.strip_prefix("0x"));
        let pointer = pointer.unwrap_or_else(|| panic!("the stack of {name}: {call}"));
        Some((u64::from_str_radix(pointer, 16).unwrap(), name))
    };
    tasks(pid).iter().filter_map(stack).collect()
}

/// The mappings that can be written.
fn mappings(pid: u32) -> Vec<Mapping> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut all = Vec::new();
    for line in text.lines() {
        // 7f0000000000-7f0000001000 rw-p 00000000 00:00 0     [heap]
        let words: Vec<_> = line.split_whitespace().collect();
        let (start, end) = words[0].split_once('-').unwrap();
        if words[1].contains('w') {
            all.push(Mapping {
                start: u64::from_str_radix(start, 16).unwrap(),
                end: u64::from_str_radix(end, 16).unwrap(),
                name: words.get(5..).unwrap_or_default().join(" "),
            });
        }
    }
    all
}

/// Searches a child of ours.
pub fn search(pid: u32, needles: &Needles) -> Picture {
    let _stopped = Stopped::stop(pid);
    picture(pid, needles)
}

/// 1. Which mappings can be written, and which of them are stacks: those that a thread's stack pointer points into.
/// 2. Read each as a whole. One that cannot be read fails the test: nobody knows what is in it.
/// 3. Memory without a name that is no stack is the allocator's: an arena, or a block of its own.
fn picture(pid: u32, needles: &Needles) -> Picture {
    let (mappings, stacks) = (mappings(pid), stacks(pid)); // 1
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut picture = Picture {
        copies: Vec::new(),
        threads: stacks.iter().map(|(_, name)| name.clone()).collect(),
        heap_bytes: 0,
        stack_bytes: 0,
    };
    let mut found_stacks = 0;
    for Mapping { start, end, name } in &mappings {
        let length = end - start;
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        let read = memory.read_exact_at(&mut bytes, *start); // 2
        read.unwrap_or_else(|error| panic!("{start:x} {name}: {error}"));
        let inside = |(pointer, _): &&(u64, String)| (*start..*end).contains(pointer);
        let its: Vec<_> = stacks.iter().filter(inside).collect();
        assert!(its.len() <= 1, "two stacks in one mapping: {its:?}");
        let is_heap = its.is_empty() && (name.is_empty() || name == "[heap]");
        found_stacks += its.len();
        match (its.first(), is_heap) {
            (Some(_), _) => picture.stack_bytes += length,
            (None, true) => picture.heap_bytes += length,
            (None, false) => {}
        }
        for found in needles.find(&bytes) {
            let at = start + found.at as u64;
            let place = match its.first() {
                Some((pointer, thread)) => Place::Stack {
                    thread: thread.clone(),
                    above: at.cast_signed() - pointer.cast_signed(),
                },
                None if is_heap => Place::Heap, // 3
                None => Place::Other(name.clone()),
            };
            picture.copies.push(Copy {
                secret: found.secret,
                form: format!("{}, {} bytes", found.form, found.length),
                place,
            });
        }
    }
    assert_eq!(found_stacks, stacks.len(), "a stack was not found");
    picture
}
