//! The end: nothing is left.

use std::{fs, path::Path, sync::atomic::Ordering, thread, time::Duration};

use super::{
    Isolation, Say, Stop, failed,
    stage::{Stage, files_below},
};
use crate::{
    error::{Error, Result, codes},
    sys::process,
};

/// Prints what to look at, and waits for Ctrl-C.
pub fn keep(stage: &Stage, say: &mut Say<'_>, stop: &Stop) -> Result<()> {
    say.heading("5  It is left running. Look at it from another terminal:")?;
    let (dir, target) = (stage.dir.display(), stage.target.display());
    let enter = match stage.isolation {
        Isolation::User => {
            let pid = stage.child.as_ref().map_or(0, std::process::Child::id);
            format!("nsenter -t {pid} -U -m --preserve-credentials ")
        }
        Isolation::Mount | Isolation::None => String::new(),
    };
    let program = fs::read_link("/proc/self/exe").map_err(failed("find this program"))?;
    let program = program.display();
    say.line(&format!("      {enter}ls -lR {target}"))?;
    say.line(&format!("      {enter}cat {target}/db/url"))?;
    say.line(&format!("      XDG_RUNTIME_DIR={dir}/run {program} status"))?;
    say.line(&format!(
        "      printf '{{\"username\":\"app\",\"password\":\"new\"}}' | {program} store put demo/db --store {dir}/store"
    ))?;
    say.line("      Ctrl-C here ends it.")?;
    while !stop.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Ends the mount and shows, one by one, that nothing is left of it.
pub fn show(mut stage: Stage, say: &mut Say<'_>, values: &[String]) -> Result<()> {
    say.heading("The end: SIGTERM to `secretfs mount`, and what is left")?;
    let Some(mut child) = stage.child.take() else {
        return Ok(());
    };
    process::terminate(&child);
    let status = child.wait().map_err(failed("wait for secretfs mount"))?;
    claim(
        say,
        status.success(),
        &format!("process: gone, it ended with {status}"),
    )?;
    claim(
        say,
        stage.kernel_view().is_none(),
        "mount: none at the target, says the kernel",
    )?;
    let files = files_below(&stage.target);
    claim(
        say,
        files.is_empty(),
        &format!("target: {} files in the directory below", files.len()),
    )?;
    let holding = files_holding(&stage.dir, values);
    let scanned = files_below(&stage.dir).len();
    claim(
        say,
        holding == 0,
        &format!(
            "secret: {} passwords looked for in the {scanned} files on disk (store, spec, locks), {holding} found",
            values.len()
        ),
    )?;
    let dir = stage.dir.clone();
    drop(stage);
    claim(say, !dir.exists(), "directory: removed")
}

/// Says it if it holds, and fails if not.
fn claim(say: &mut Say<'_>, holds: bool, text: &str) -> Result<()> {
    if holds {
        say.good(text)
    } else {
        Err(Error::new(&codes::BUG).detail(format!("this does not hold: {text}")))
    }
}

fn files_holding(dir: &Path, values: &[String]) -> usize {
    let holds = |path: &std::path::PathBuf| {
        let bytes = fs::read(path).unwrap_or_default();
        values.iter().any(|value| {
            bytes
                .windows(value.len())
                .any(|window| window == value.as_bytes())
        })
    };
    files_below(dir).iter().filter(|path| holds(path)).count()
}
