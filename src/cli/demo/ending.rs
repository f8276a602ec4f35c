//! The end: the pod goes, and nothing is left.

use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
    sync::{atomic::Ordering, mpsc},
    thread,
    time::Duration,
};

use super::{
    Isolation, Say, Stop, claim, failed,
    stage::{Stage, files_below, view},
};
use crate::error::Result;

/// Prints what to look at, and waits for Ctrl-C.
pub fn keep(stage: &Stage, say: &mut Say<'_>, stop: &Stop) -> Result<()> {
    say.heading("   It is left running. Look at it from another terminal:")?;
    let (dir, target) = (stage.dir.display(), stage.kubelet.target(&stage.volume));
    let pid = stage.plugin.as_ref().map_or(0, super::plugin::Plugin::id);
    let enter = match stage.isolation {
        Isolation::User => format!("nsenter -t {pid} -U -m --preserve-credentials"),
        Isolation::Mount => format!("nsenter -t {pid} -m"),
    };
    let program = fs::read_link("/proc/self/exe").map_err(failed("find this program"))?;
    let (program, target) = (program.display(), target.display());
    say.line(&format!("      DIR={dir}"))?;
    for line in [
        format!("{program} status --socket $DIR/run/admin.sock"),
        format!("{enter} ls -lR {}", stage.shortened(&target.to_string())),
        format!(
            "printf '{{\"username\":\"app\",\"password\":\"new\"}}' | {program} store put demo/db --store $DIR/store"
        ),
        format!(
            "{enter} cat {}/db/url",
            stage.shortened(&target.to_string())
        ),
        format!("{program} refresh --all --socket $DIR/run/admin.sock"),
        "cat $DIR/node.yaml $DIR/node.log".to_owned(),
    ] {
        say.line(&format!("      {line}"))?;
    }
    say.line("      Ctrl-C here ends it.")?;
    while !stop.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Unpublishes as a kubelet does when a pod ends, and shows, one by one, that nothing is left of it.
pub fn show(mut stage: Stage, say: &mut Say<'_>, values: &[String]) -> Result<()> {
    say.heading("6  The pod ends: what is left")?;
    let (ask, answers) = hold_open(&stage)?;
    let answer = stage.kubelet.unpublish(&stage.volume)?;
    say.line(&format!("      NodeUnpublishVolume: {}", answer.shown()))?;
    let target = stage.kubelet.target(&stage.volume);
    claim(
        say,
        answer.is_ok() && view(&target).is_none() && !target.exists(),
        "mount: none at the target, says the kernel, and no directory",
    )?;
    let _ = ask.send(()); // it waits for this
    let (files, held) = answers.recv().map_err(|_| super::container::gone())?;
    let (length, left) = held.unwrap_or_default();
    let text = format!(
        "container: {files} files in its copy of the mount; it holds one open, of {length} bytes: {left} are not zero"
    );
    claim(say, files == 0 && length > 0 && left == 0, &text)?;
    say.line(
        "      (a file held open since before a change keeps that older value until it is closed)",
    )?;
    let records = files_below(&stage.dir.join("run/volumes")).len();
    claim(
        say,
        records == 0,
        &format!("records: {records} in runtimeDir"),
    )?;
    if let Some(plugin) = stage.plugin.take() {
        let status = plugin.end()?;
        claim(
            say,
            status.success(),
            &format!("process: gone, it ended with {status} after SIGTERM"),
        )?;
    }
    let scanned = files_below(&stage.dir);
    let holding = scanned.iter().filter(|path| holds(path, values)).count();
    claim(
        say,
        holding == 0,
        &format!(
            "secret: {} passwords looked for in the {} files on disk (store, configuration, logs), {holding} found",
            values.len(),
            scanned.len()
        ),
    )?;
    let dir = stage.dir.clone();
    drop(stage);
    claim(say, !dir.exists(), "directory: removed")
}

/// What the container finds when it is asked: how many files; and of the file that it holds open how many bytes, and how many that
/// are not zero.
type Found = (usize, Option<(usize, usize)>);

/// Opens a file in the container. No change may be on its way: the wipe finds files by name, and a change takes the name of the old one.
fn hold_open(stage: &Stage) -> Result<(mpsc::Sender<()>, mpsc::Receiver<Found>)> {
    let (ask, asked) = mpsc::channel();
    let (opened, is_open) = mpsc::channel();
    let answers = stage.container()?.start_in(move |secrets| {
        let file = File::open(secrets.join("db/password"));
        let _ = opened.send(()); // it waits for this
        let _ = asked.recv(); // gone or not: it is time
        let mut content = Vec::new();
        let read = file.and_then(|mut file| file.read_to_end(&mut content));
        let left = content.iter().filter(|byte| **byte != 0).count();
        let held = read.ok().map(|length| (length, left));
        (files_below(secrets).len(), held)
    })?;
    is_open.recv().map_err(|_| super::container::gone())?;
    Ok((ask, answers))
}

fn holds(path: &Path, values: &[String]) -> bool {
    let bytes = fs::read(path).unwrap_or_default();
    let is_there = |value: &String| {
        let mut windows = bytes.windows(value.len());
        windows.any(|window| window == value.as_bytes())
    };
    values.iter().any(is_there)
}
