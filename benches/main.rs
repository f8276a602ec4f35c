//! The benchmark binary: A (ours) against B (the kubelet's way) in one run, taking turns, so that the machine's mood hits both.
//!
//! `cargo bench --bench bench [-- --json]` measures. Without `--bench`, which `cargo bench` adds, or with `--quick`, it only shows
//! that everything runs and measures something: `cargo test --bench bench`. It mounts, so it starts itself once more
//! in a mount namespace of its own (`unshare`), with a user namespace unless it is root.

mod suite;

use std::{
    fs,
    io::Write,
    process::{Command, ExitCode},
};

use serde_json::{Value, json};

use suite::{Outcome, Row};

#[global_allocator]
static ALLOCATOR: secretfs::sys::alloc::Wiping = secretfs::sys::alloc::Wiping;

const HELP: &str = "\
usage: cargo bench --bench bench [-- OPTIONS]
  --json         one JSON object instead of a table
  --quick        a few rounds of each: shows that it runs, measures nothing
  --only SUITE   this one alone: swap, latency, volume, csi, rest or vault
`vault` needs an OpenBao, named by SECRETFS_BAO: tests/openbao/install prints it.
It needs root, or a user that may make user namespaces.";
/// The copy that runs inside the namespace is started with this.
const INSIDE: &str = "--inside";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| arguments.iter().any(|argument| argument == name);
    let known = ["--json", "--quick", "--bench", "--only", INSIDE];
    let mut only = arguments
        .iter()
        .skip_while(|argument| *argument != "--only");
    let only = only.nth(1);
    if let Some(unknown) = arguments
        .iter()
        .find(|argument| !known.contains(&argument.as_str()) && Some(*argument) != only)
    {
        if unknown == "--help" || unknown == "-h" {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        eprintln!("bench: unknown option {unknown}\n{HELP}");
        return ExitCode::from(2);
    }
    let result = if given(INSIDE) {
        let quick = given("--quick") || !given("--bench");
        measure(only.map(String::as_str), quick, given("--json")).map(|()| 0)
    } else {
        start_inside(&arguments)
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs this program in a mount namespace whose mounts nobody else sees; its exit code.
fn start_inside(arguments: &[String]) -> Outcome<u8> {
    let root = rustix::process::geteuid().is_root();
    let namespaces = if root { "-m" } else { "-Urm" };
    let status = Command::new("unshare")
        .args([namespaces, "--"])
        .arg(std::env::current_exe()?)
        .args(arguments)
        .arg(INSIDE)
        .status()
        .map_err(|error| format!("unshare (util-linux) cannot be started: {error}"))?;
    if !status.success() && !root {
        eprintln!("bench: if `unshare` was refused: run as root, or allow user namespaces");
    }
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1))
}

fn measure(only: Option<&str>, quick: bool, as_json: bool) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let load_before = load()?;
    let rows = suite::run(directory.path(), only, quick)?;
    let machine = json!({
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "cpus": std::thread::available_parallelism()?.get(),
        "loadBefore": load_before,
        "loadAfter": load()?,
        "quick": quick,
    });
    if as_json {
        let rows: Vec<Value> = rows.iter().map(as_value).collect();
        println!("{}", json!({ "machine": machine, "rows": rows }));
        return Ok(());
    }
    Ok(print(&rows, &machine)?)
}

/// The load average of the last minute.
fn load() -> Outcome<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

fn as_value(row: &Row) -> Value {
    json!({
        "name": row.name, "variant": row.variant, "unit": row.unit, "samples": row.samples,
        "p50": row.p50, "p99": row.p99, "max": row.max,
    })
}

fn print(rows: &[Row], machine: &Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let text = |key: &str| machine[key].as_str().unwrap_or_default();
    writeln!(
        out,
        "Linux {}, {} CPUs, load {} before, {} after{}",
        text("kernel"),
        machine["cpus"],
        text("loadBefore"),
        text("loadAfter"),
        if machine["quick"] == true {
            "; quick: shows that it runs, measures nothing"
        } else {
            ""
        }
    )?;
    writeln!(
        out,
        "{:<36} {:<24} {:>6} {:>11} {:>11} {:>11}",
        "", "", "n", "p50", "p99", "max"
    )?;
    let mut last = "";
    for row in rows {
        let name = if row.name == last { "" } else { row.name };
        let [p50, p99, max] = [row.p50, row.p99, row.max].map(|number| shown(number, row.unit));
        writeln!(
            out,
            "{name:<36} {:<24} {:>6} {p50:>11} {p99:>11} {max:>11}",
            row.variant, row.samples
        )?;
        last = row.name;
    }
    Ok(())
}

fn shown(number: f64, unit: &str) -> String {
    match unit {
        "us" if number >= 1e4 => format!("{:.1} ms", number / 1e3),
        "us" => format!("{number:.0} us"),
        "B" if number.abs() >= 1e4 => format!("{:.0} KiB", number / 1024.0),
        _ => format!("{number:.0} {unit}"),
    }
}
