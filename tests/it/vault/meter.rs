//! Stands before a server and counts what reaches it, whether or not it can answer: a server that is sealed, or that refuses for a quota, writes
//! no audit log.

use std::{
    io,
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::fake::read;

/// See the module. Its threads end with the test process; nobody else knows its port.
pub struct Meter {
    port: u16,
    server: Arc<AtomicU16>,
    seen: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Meter {
    /// Before the server at this port.
    pub fn new(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let meter = Self {
            port: listener.local_addr().unwrap().port(),
            server: Arc::new(AtomicU16::new(server)),
            seen: Arc::default(),
        };
        let (server, seen) = (meter.server.clone(), meter.seen.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (server, seen) = (server.clone(), seen.clone());
                thread::spawn(move || carry(client, &server, &seen));
            }
        });
        meter
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The server has moved.
    pub fn leads_to(&self, server: u16) {
        self.server.store(server, Ordering::Relaxed);
    }

    /// How many requests there were so far.
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// How many come in a second, as seen for so long.
    pub fn rate(&self, time: Duration) -> f64 {
        let (start, before) = (Instant::now(), self.count());
        while start.elapsed() < time {
            thread::park_timeout(Duration::from_millis(10));
        }
        (self.count() - before) as f64 / start.elapsed().as_secs_f64()
    }

    /// After the first `skipped`: the most that came within one second, of those whose request line has `part` in it.
    pub fn peak(&self, skipped: usize, part: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        let later = seen.iter().skip(skipped);
        let times: Vec<_> = later
            .filter(|(_, line)| line.contains(part))
            .map(|(at, _)| *at)
            .collect();
        let within = |from: &Instant| {
            let end = *from + Duration::from_secs(1);
            times.iter().filter(|at| (from..&end).contains(at)).count()
        };
        times.iter().map(within).max().unwrap_or_default()
    }
}

/// One connection: requests are counted as they pass, answers pass as they are. Without a server it ends.
fn carry(mut client: TcpStream, server: &AtomicU16, seen: &Mutex<Vec<(Instant, String)>>) {
    let mut there: Option<TcpStream> = None;
    while let Some(request) = read(&mut client) {
        let line = request.lines().next().unwrap_or_default().to_owned();
        seen.lock().unwrap().push((Instant::now(), line));
        if there.is_none() {
            let connected = TcpStream::connect(("127.0.0.1", server.load(Ordering::Relaxed)));
            let Ok(connected) = connected else { break };
            let (from, to) = (connected.try_clone(), client.try_clone());
            let (mut from, mut to) = (from.unwrap(), to.unwrap());
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            there = Some(connected);
        }
        let sent = there
            .as_mut()
            .map(|there| io::Write::write_all(there, request.as_bytes()));
        if !matches!(sent, Some(Ok(()))) {
            break;
        }
    }
    for end in there.iter().chain([&client]) {
        let _ = end.shutdown(Shutdown::Both);
    }
}
