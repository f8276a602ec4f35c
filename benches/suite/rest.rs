//! What the plugin costs while nothing happens: memory, wake-ups and CPU of `secretfs node` in a process of its own.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use secretfs::{csi::client::Channel, sys::process};

use super::{Outcome, calls, csi::Bed, row::Row};

/// Volumes at which memory is looked at, and at which the plugin is watched at rest.
const SIZES: [usize; 4] = [0, 5, 100, 500];

/// Goals: 12 MiB at 0, 14 at 100, 20 at 500; no more wake-ups with 500 than with 5.
pub fn run(at: &Path, most: usize, rest: Duration) -> Outcome<Vec<Row>> {
    let bed = Bed::new(&at.join("rest"))?;
    let child = start(&bed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // a connection on which nothing is said is closed: one for each time that something is
    let connect = || runtime.block_on(Channel::connect(&bed.config.endpoint));
    let (mut rows, mut done) = (Vec::new(), 0);
    for size in SIZES.map(|size| size.min(most)) {
        let channel = connect()?;
        for number in done..size {
            calls::make_directories(&bed.kubelet, number)?;
            let request = calls::publish(&bed.kubelet, number);
            runtime.block_on(channel.node().node_publish_volume(request))?;
        }
        done = size;
        drop(channel);
        rows.extend(at_rest(child.id(), size, rest)?);
    }
    let channel = connect()?;
    for number in 0..done {
        runtime.block_on(
            channel
                .node()
                .node_unpublish_volume(calls::unpublish(&bed.kubelet, number)),
        )?;
    }
    stop(child)?;
    bed.close()?;
    Ok(rows)
}

/// `secretfs node`, ready.
pub fn start(bed: &Bed) -> Outcome<Child> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_secretfs"))
        .args(["node", "--config"])
        .arg(bed.config_file())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ready = String::new();
    BufReader::new(child.stdout.take().ok_or("no stdout")?).read_line(&mut ready)?;
    if !ready.starts_with("ready") {
        return Err("secretfs node did not get ready".into());
    }
    Ok(child)
}

/// Ends it.
pub fn stop(mut child: Child) -> Outcome<()> {
    process::terminate(&child);
    match child.wait()?.success() {
        true => Ok(()),
        false => Err("secretfs node did not end well".into()),
    }
}

/// After what the last publishes left to do is done: memory, then wake-ups and CPU over `rest`.
fn at_rest(pid: u32, size: usize, rest: Duration) -> Outcome<Vec<Row>> {
    thread::sleep(rest / 2);
    let before = Usage::of(pid)?;
    thread::sleep(rest);
    let after = Usage::of(pid)?;
    let variant = match size {
        0 => "0 volumes",
        5 => "5 volumes",
        100 => "100 volumes",
        _ => "500 volumes",
    };
    let [wakeups, cpu_ns] = after.since(&before);
    let cpu = cpu_ns / 1e3;
    Ok(vec![
        Row::of(
            "memory of secretfs node (RSS)",
            variant,
            "B",
            vec![after.rss as f64],
        ),
        Row::of("wake-ups at rest", variant, "times", vec![wakeups]),
        Row::of("CPU at rest", variant, "us", vec![cpu]),
    ])
}

struct Usage {
    rss: u64,
    /// Of each thread: how often it gave up its CPU by itself, that is, woke before; and nanoseconds on a CPU.
    threads: BTreeMap<OsString, [u64; 2]>,
}

impl Usage {
    fn of(pid: u32) -> Outcome<Self> {
        let number = |text: &str, key: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).unwrap_or_default()
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mut usage = Self {
            rss: number(&status, "VmRSS:") * 1024,
            threads: BTreeMap::new(),
        };
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = thread?;
            let thread = entry.path();
            let (Ok(status), Ok(times)) = (
                fs::read_to_string(thread.join("status")),
                fs::read_to_string(thread.join("schedstat")),
            ) else {
                continue; // it has just ended
            };
            let switches = number(&status, "voluntary_ctxt_switches:");
            let cpu = number(&times, "");
            usage.threads.insert(entry.file_name(), [switches, cpu]);
        }
        Ok(usage)
    }

    /// What has been used since; of a thread that has ended in between, nothing is known.
    fn since(&self, before: &Self) -> [f64; 2] {
        [0, 1].map(|what| {
            let used = self.threads.iter().map(|(thread, now)| {
                let before = before.threads.get(thread);
                now[what] - before.map_or(0, |before| before[what])
            });
            used.sum::<u64>() as f64
        })
    }
}
