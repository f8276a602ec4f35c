//! From a refresh, after the value has changed, and from the moment the server answers with the new value, by its audit log, to the moment at which the
//! last volume's files are swapped, by inotify.

use std::{collections::HashMap, mem::MaybeUninit, sync::mpsc, thread, time::Duration};

use hyper::Method;
use jiff::Timestamp;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use secretfs::{
    cli::{client, rundir},
    clock::{Clock, Mono, SystemClock},
};

use super::{
    super::{Outcome, calls, row::Row},
    KNOWN, Node, REQUESTS, data,
};

/// Longest wait for a swap: the rate of requests is limited.
const AT_MOST: Duration = Duration::from_secs(30);
/// Between two rounds, so that the plugin's requests stay below their rate.
const REST: Duration = Duration::from_millis(200);
/// After which the plugin may ask as often at once as it ever may.
const LONG_REST: Duration = Duration::from_secs(3);

/// One secret for all volumes, and then one for each of them.
pub async fn run(node: &mut Node<'_>, volumes: usize, rounds: usize) -> Outcome<Vec<Row>> {
    let mut rows = shared(node, volumes, rounds).await?;
    rows.extend(apart(node, volumes, rounds.div_ceil(10)).await?);
    Ok(rows)
}

/// 1. Change the value.
/// 2. Have one volume refreshed, which asks for all of them: a look at the metadata, and a read.
/// 3. Wait for the last swap. B makes the two requests.
async fn shared(node: &mut Node<'_>, volumes: usize, rounds: usize) -> Outcome<Vec<Row>> {
    node.server.put("shared", 0).await?;
    for _ in 0..volumes {
        node.publish(KNOWN, "shared").await?;
    }
    let swaps = Swaps::of(node)?;
    let metadata = "secret/metadata/bench/shared";
    let [mut all, mut answered, mut first, mut bare] = [const { Vec::new() }; 4];
    let mut requests = Vec::new();
    for round in 1..=rounds {
        tokio::time::sleep(REST).await;
        node.server.put("shared", round).await?; // 1
        node.audit.noted()?;
        let begun = SystemClock.now();
        let one = format!("/v1/volumes/{}/refresh", calls::volume_id(1));
        refresh(node, &one).await?; // 2
        let swapped = swaps.all()?; // 3
        let noted = node.audit.noted()?;
        let answer = noted
            .iter()
            .rfind(|one| one.is_answer && one.path == data("shared"));
        let answer = answer.ok_or("the new value was not read")?.at;
        let count = noted.iter().filter(|one| !one.is_answer).count();
        requests.push(count as f64);
        let &(last, at) = swapped.values().max().ok_or("no swap")?;
        let &(_, earliest) = swapped.values().min().ok_or("no swap")?;
        all.push(last.since(begun));
        answered.push(at.duration_since(answer).unsigned_abs());
        first.push(earliest.duration_since(answer).unsigned_abs());
        has_come(node, round)?;
        let begun = SystemClock.now();
        node.bare.read(metadata, &node.token).await?;
        node.bare.read(&data("shared"), &node.token).await?;
        bare.push(SystemClock.now().since(begun));
    }
    node.audit.noted()?;
    refresh(node, "/v1/refresh").await?;
    let of_all = node.audit.requests()?.len() as f64;
    node.unpublish(1).await?;
    let name = "rotation, 100 volumes, one secret";
    let count = "requests in a rotation";
    Ok(vec![
        Row::times(name, "A refresh -> last swap", &all),
        Row::times(name, "A answer -> first swap", &first),
        Row::times(name, "A answer -> last swap", &answered),
        Row::times(name, "B its 2 requests, bare", &bare),
        Row::of(count, "A one secret", REQUESTS, requests),
        Row::of(count, "A no change, all asked", REQUESTS, vec![of_all]),
    ])
}

/// The same with a secret for each volume, all of which are refreshed. What each has to itself is from its answer to its swap.
async fn apart(node: &mut Node<'_>, volumes: usize, rounds: usize) -> Outcome<Vec<Row>> {
    let secrets: Vec<String> = (1..=volumes)
        .map(|number| format!("own-{number}"))
        .collect();
    for secret in &secrets {
        node.rest().await;
        node.server.put(secret, 0).await?;
        node.publish(KNOWN, secret).await?;
    }
    let swaps = Swaps::of(node)?;
    let [mut all, mut each, mut bare] = [const { Vec::new() }; 3];
    let mut requests = Vec::new();
    for round in 1..=rounds {
        for secret in &secrets {
            node.server.put(secret, round).await?;
        }
        tokio::time::sleep(LONG_REST.min(REST * volumes as u32)).await;
        node.audit.noted()?;
        let begun = SystemClock.now();
        refresh(node, "/v1/refresh").await?;
        let swapped = swaps.all()?;
        let noted = node.audit.noted()?;
        let answers = noted.iter().filter(|one| one.is_answer);
        let answers: HashMap<&str, Timestamp> =
            answers.map(|one| (one.path.as_str(), one.at)).collect();
        requests.push(noted.iter().filter(|one| !one.is_answer).count() as f64);
        let mut last = begun;
        for (number, (at, by_wall)) in swapped {
            let answer = answers.get(data(&format!("own-{number}")).as_str());
            each.push(
                by_wall
                    .duration_since(*answer.ok_or("a value was not read")?)
                    .unsigned_abs(),
            );
            last = last.max(at);
        }
        all.push(last.since(begun));
        has_come(node, round)?;
        let begun = SystemClock.now();
        for secret in &secrets {
            let metadata = format!("secret/metadata/bench/{secret}");
            node.bare.read(&metadata, &node.token).await?;
            node.bare.read(&data(secret), &node.token).await?;
        }
        bare.push(SystemClock.now().since(begun));
    }
    node.unpublish(1).await?;
    let name = "rotation, 100 volumes, 100 secrets";
    Ok(vec![
        Row::times(name, "A refresh -> last swap", &all),
        Row::times(name, "A its answer -> its swap", &each),
        Row::times(name, "B 200 requests, bare", &bare),
        Row::of(
            "requests in a rotation",
            "A 100 secrets",
            REQUESTS,
            requests,
        ),
    ])
}

async fn refresh(node: &Node<'_>, path: &str) -> Outcome<()> {
    let socket = rundir::node_socket(&node.bed.config.runtime_dir);
    client::ask(&socket, Method::POST, path).await?;
    Ok(())
}

/// All volumes but the first show the value of this round.
fn has_come(node: &Node<'_>, round: usize) -> Outcome<()> {
    for number in node.published.iter().skip(1) {
        if node.password(*number)? != format!("{round:032}") {
            return Err(
                format!("volume {number} shows another value than that of round {round}").into(),
            );
        }
    }
    Ok(())
}

/// When something was seen, by both clocks.
type Seen = (Mono, Timestamp);

/// Hears of swaps in a thread of its own, by one inotify queue.
struct Swaps {
    heard: mpsc::Receiver<(usize, Seen)>,
    volumes: usize,
}

impl Swaps {
    /// Of all volumes but the first. The thread ends when the last of them is unmounted.
    fn of(node: &Node<'_>) -> Outcome<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC)?;
        let mut watched = HashMap::new();
        for number in node.published.iter().skip(1) {
            let target = calls::target(&node.bed.kubelet, *number);
            watched.insert(
                inotify::add_watch(&queue, target, WatchFlags::MOVED_TO)?,
                *number,
            );
        }
        let volumes = watched.len();
        let (send, heard) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 64 << 10];
            let mut events = inotify::Reader::new(&queue, &mut buffer);
            while !watched.is_empty() {
                let Ok(event) = events.next() else { break };
                let seen = (SystemClock.now(), Timestamp::now());
                if event.events().contains(inotify::ReadFlags::IGNORED) {
                    watched.remove(&event.wd());
                } else if event
                    .file_name()
                    .is_some_and(|name| name.to_bytes() == b"..data")
                    && let Some(number) = watched.get(&event.wd())
                    && send.send((*number, seen)).is_err()
                {
                    break;
                }
            }
        });
        Ok(Self { heard, volumes })
    }

    /// Waits until each volume has been swapped once; none may be twice.
    fn all(&self) -> Outcome<HashMap<usize, Seen>> {
        let mut swapped = HashMap::new();
        while swapped.len() < self.volumes {
            let (number, seen) = self.heard.recv_timeout(AT_MOST)?;
            if swapped.insert(number, seen).is_some() {
                return Err(format!("volume {number} was swapped twice").into());
            }
        }
        Ok(swapped)
    }
}
