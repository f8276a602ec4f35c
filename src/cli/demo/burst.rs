//! Many rotations at once, under readers that check every byte.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Say, Stop, claim,
    container::{Container, gone},
    stage::{Stage, password, short},
};
use crate::{
    clock::{Clock, SystemClock},
    error::{Error, Result, codes},
};

/// Rotations, unless the time is up before.
const ROTATIONS: u32 = 200;
/// On a slow disk there are fewer.
const TIME: Duration = Duration::from_secs(8);
/// Reader threads.
const READERS: usize = 4;
/// What they read.
const FILE: &str = "app.json";

/// What one reader saw.
#[derive(Default)]
struct Seen {
    reads: u64,
    torn: u64,
    missing: u64,
    numbers: BTreeSet<u64>,
}

/// Shows them.
pub fn show(stage: &Stage, say: &mut Say<'_>, stop: &Stop) -> Result<()> {
    say.heading("5  A burst of rotations, with four readers that check what they read")?;
    stage.put("demo/app", &document(0)?)?;
    let container = stage.container()?;
    arrived(container, 0)?;
    let ended = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let ended = ended.clone();
            container.start_in(move |secrets| reader(&secrets.join(FILE), &ended))
        })
        .collect();
    let put = put(stage, stop).and_then(|(rotations, took)| {
        arrived(container, u64::from(rotations))?; // the last one; readers may skip others
        Ok((rotations, took))
    });
    ended.store(true, Ordering::SeqCst);
    let mut all = Seen::default();
    for reader in readers {
        let seen = reader?.recv().map_err(|_| gone())?;
        all.reads += seen.reads;
        all.torn += seen.torn;
        all.missing += seen.missing;
        all.numbers.extend(seen.numbers);
    }
    let (rotations, took) = put?;
    say.line(&format!(
        "      {rotations} puts in {:.1} s; {} reads by {READERS} readers, {} versions seen",
        took.as_secs_f64(),
        all.reads,
        all.numbers.len()
    ))?;
    let (torn, missing) = (all.torn, all.missing);
    let text = format!("{torn} torn reads, {missing} missing files");
    claim(say, torn + missing == 0 && all.reads > 0, &text)
}

/// Waits until the container reads this document.
fn arrived(container: &Container, number: u64) -> Result<()> {
    let is_there = container.run(move |secrets| {
        let clock = SystemClock;
        let start = clock.now();
        while check(&fs::read(secrets.join(FILE)).unwrap_or_default()) != Some(number) {
            if clock.now().since(start) > TIME {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    })?;
    let late = || Error::new(&codes::BUG).detail(format!("document {number} did not arrive"));
    is_there.then_some(()).ok_or_else(late)
}

/// How many, and how long that took.
fn put(stage: &Stage, stop: &Stop) -> Result<(u32, Duration)> {
    let clock = SystemClock;
    let start = clock.now();
    let mut rotations = 0;
    while rotations < ROTATIONS && clock.now().since(start) < TIME && !stop.load(Ordering::SeqCst) {
        stage.put("demo/app", &document(u64::from(rotations) + 1)?)?;
        rotations += 1;
    }
    Ok((rotations, clock.now().since(start)))
}

/// A document that says of itself whether it is whole; its size changes with its number.
fn document(number: u64) -> Result<Vec<u8>> {
    let token = password()?.repeat(1 + usize::try_from(number % 40).unwrap_or(0));
    Ok(
        json!({ "number": number, "token": token, "check": short(token.as_bytes()) })
            .to_string()
            .into_bytes(),
    )
}

/// Its number, if it is whole.
fn check(bytes: &[u8]) -> Option<u64> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let token = value.get("token")?.as_str()?;
    let whole = value.get("check")?.as_str()? == short(token.as_bytes());
    value.get("number")?.as_u64().filter(|_| whole)
}

fn reader(file: &Path, ended: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !ended.load(Ordering::SeqCst) {
        seen.reads += 1;
        match fs::read(file) {
            Err(_) => seen.missing += 1,
            Ok(bytes) => match check(&bytes) {
                Some(number) => drop(seen.numbers.insert(number)),
                None => seen.torn += 1,
            },
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_document_is_noticed() {
        let whole = document(7).unwrap();
        assert_eq!(check(&whole), Some(7));
        let mut torn = whole.clone();
        let middle = torn.iter().rposition(|byte| byte.is_ascii_digit()).unwrap();
        torn[middle - 20] ^= 1;
        assert_eq!(check(&torn), None);
        assert_eq!(check(&whole[..whole.len() / 2]), None);
    }
}
