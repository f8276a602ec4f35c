//! Many rotations at once, under readers that check every byte.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Say, Stop,
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
    say.heading("4  A burst of rotations, with four readers that check what they read")?;
    stage.put("demo/app", &document(0)?)?;
    let file = stage.target.join("app.json");
    let clock = SystemClock;
    let start = clock.now();
    while check(&fs::read(&file).unwrap_or_default()).is_none() {
        if clock.now().since(start) > TIME {
            return Err(
                Error::new(&codes::BUG).detail("the first document of the burst did not arrive")
            );
        }
        thread::sleep(Duration::from_millis(1));
    }
    let ended = AtomicBool::new(false);
    let (rotations, took, seen) = thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| scope.spawn(|| reader(&file, &ended)))
            .collect();
        let start = clock.now();
        let mut rotations = 0;
        let mut outcome = Ok(());
        while rotations < ROTATIONS
            && clock.now().since(start) < TIME
            && !stop.load(Ordering::SeqCst)
        {
            outcome = document(u64::from(rotations) + 1)
                .and_then(|document| stage.put("demo/app", &document));
            if outcome.is_err() {
                break;
            }
            rotations += 1;
        }
        let took = clock.now().since(start);
        ended.store(true, Ordering::SeqCst);
        let mut all = Seen::default();
        for seen in readers.into_iter().filter_map(|reader| reader.join().ok()) {
            all.reads += seen.reads;
            all.torn += seen.torn;
            all.missing += seen.missing;
            all.numbers.extend(seen.numbers);
        }
        outcome.map(|()| (rotations, took, all))
    })?;
    say.line(&format!(
        "      {rotations} puts in {:.1} s; {} reads by {READERS} readers, {} versions seen",
        took.as_secs_f64(),
        seen.reads,
        seen.numbers.len()
    ))?;
    if seen.torn + seen.missing > 0 {
        let what = format!(
            "{} torn reads and {} missing files in the burst",
            seen.torn, seen.missing
        );
        return Err(Error::new(&codes::BUG).detail(what));
    }
    say.good("0 torn reads, 0 missing files")
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
