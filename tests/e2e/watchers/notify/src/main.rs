//! Watches as programs in Rust do, with notify. usage: secretfs-watch-notify MODE DIR FILE
//!
//! Prints `ready`, then per callback: nanoseconds of the wall clock, event, first word of the content.

use std::{
    error::Error,
    fs,
    path::Path,
    sync::mpsc,
    time::{SystemTime, UNIX_EPOCH},
};

use notify::{Event, EventKind, RecursiveMode, Watcher, event::ModifyKind};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mode, dir, name] = &args[..] else {
        return Err("usage: MODE DIR FILE".into());
    };
    let (dir, file) = (Path::new(dir), Path::new(dir).join(name));
    let target = if mode == "dir" { dir } else { &file };

    let (sender, events) = mpsc::channel();
    let mut watcher = notify::recommended_watcher(sender)?;
    watcher.watch(target, RecursiveMode::NonRecursive)?;
    println!("ready");
    for event in events {
        let event: Event = event?;
        match &**mode {
            // the directory: a rename that names ..data
            "dir" if names_data(&event) => report(&event, &file),
            "dir" => {}
            // the file, set once; our own reads are Access events
            "file" if !event.kind.is_access() => report(&event, &file),
            "file" => {}
            // the file, watched again once it is removed
            "file-again" if event.kind.is_remove() => {
                watcher.watch(&file, RecursiveMode::NonRecursive)?;
                report(&event, &file);
            }
            "file-again" => {}
            _ => return Err(format!("unknown mode {mode}").into()),
        }
    }
    Ok(())
}

fn names_data(event: &Event) -> bool {
    let renamed = matches!(event.kind, EventKind::Modify(ModifyKind::Name(_)));
    renamed && event.paths.iter().any(|path| path.ends_with("..data"))
}

fn report(event: &Event, file: &Path) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let text = fs::read_to_string(file).unwrap_or_else(|_| "unreadable".into());
    let word = text.lines().next().unwrap_or("empty");
    let kind = format!("{:?}", event.kind).replace(' ', "");
    println!("{} {kind} {word}", now.as_nanos());
}
