//! The backend `vault` in `secretfs node`, a process of its own, against bare HTTP requests by the same client to the same OpenBao, taking turns.
//!
//! Each account and each secret is used by one sample of one side only, so nothing is known of it before. All requests that the server has written
//! down are compared with those that there should be: one too many, by anybody at any time, ends the run.

mod memory;
mod rotation;

use std::{fs, path::Path, process::Child, time::Duration};

use secretfs::{
    clock::{Clock, SystemClock},
    csi::client::Channel,
};

use super::{
    Outcome, calls,
    csi::Bed,
    openbao::{Audit, Http, Server},
    rest,
    row::Row,
};

/// The account whose pods come once it is logged in.
const KNOWN: usize = 1;
/// Unit of counts.
const REQUESTS: &str = "requests";
/// After so many requests to the store the plugin rests: its rate is limited (`BACKEND_BURST`, `BACKEND_PER_SECOND`).
const UNTIL_REST: usize = 20;
/// In which so many may be made again.
const REST: Duration = Duration::from_millis(1100);

/// All of it. Goals: a rotation of 100 volumes within 50 ms and a request; no request for what is known.
pub fn run(at: &Path, quick: bool) -> Outcome<Vec<Row>> {
    let rounds = |full: usize| if quick { 5 } else { full };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let server = Server::start(&at.join("openbao")).await?;
        let line = format!(
            "  vault: {{kind: vault, address: \"{}\", audience: vault, auth: {{method: jwt, role: bench}}}}\n",
            server.address
        );
        let bed = Bed::with(&at.join("vault"), &line)?;
        let rest = Duration::from_millis(if quick { 100 } else { 10_000 });
        let memory = memory::run(&bed, &server, rounds(1_000), rest).await?;
        let mut node = Node::start(&bed, &server).await?;
        let count = rounds(200);
        let mut rows = Vec::from(node.new_account(count).await?);
        rows.extend(node.new_secret(count).await?);
        rows.extend(node.known_secret(count).await?);
        rows.extend(rotation::run(&mut node, rounds(100), rounds(50)).await?);
        node.stop().await?;
        bed.close()?;
        rows.extend(memory);
        let (counts, rows): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| row.unit == REQUESTS);
        Ok(rows.into_iter().chain(counts).collect())
    })
}

/// The plugin, the server that it asks, and B.
struct Node<'a> {
    bed: &'a Bed,
    server: &'a Server,
    child: Child,
    audit: Audit,
    bare: Http,
    /// B's login, of the account [`KNOWN`].
    token: String,
    /// Volumes that were published, each by its number.
    published: Vec<usize>,
    /// Requests of the plugin since its last rest.
    asked: usize,
}

/// A volume of two files, whose secret is looked at once an hour.
fn spec(secret: &str) -> String {
    let file =
        |field| format!("  - {{path: {field}, from: \"vault:secret/bench/{secret}#{field}\"}}\n");
    format!(
        "refreshInterval: 1h\nfiles:\n{}{}",
        file("user"),
        file("password")
    )
}

/// The API's path of a secret's value.
fn data(secret: &str) -> String {
    format!("secret/data/bench/{secret}")
}

impl<'a> Node<'a> {
    /// Ready, with one volume of the account [`KNOWN`]: which engine is where is known, connections are made, on both sides.
    async fn start(bed: &'a Bed, server: &'a Server) -> Outcome<Self> {
        server.put("known", 0).await?;
        let (child, bare) = (rest::start(bed)?, server.client()?);
        let token = bare.log_in(&server.jwt(0, KNOWN)?).await?;
        let mut node = Self {
            bed,
            server,
            child,
            audit: server.audit()?,
            bare,
            token,
            published: Vec::new(),
            asked: 0,
        };
        node.publish(KNOWN, "known").await?;
        let mount = "sys/internal/ui/mounts/secret/bench/known";
        node.requests(&["auth/jwt/login", mount, &data("known")])?;
        Ok(node)
    }

    async fn stop(mut self) -> Outcome<()> {
        self.unpublish(0).await?;
        rest::stop(self.child)
    }

    /// One more pod of this account, with this secret: how long it took, and its files are there. A kubelet too connects for each call.
    async fn publish(&mut self, account: usize, secret: &str) -> Outcome<Duration> {
        let number = self.published.len();
        let (kubelet, jwt) = (&self.bed.kubelet, self.server.jwt(number, account)?);
        calls::make_directories(kubelet, number)?;
        let request = calls::publish_as(kubelet, number, spec(secret), account, &jwt);
        let channel = Channel::connect(&self.bed.config.endpoint).await?;
        let begun = SystemClock.now();
        channel.node().node_publish_volume(request).await?;
        let took = SystemClock.now().since(begun);
        self.published.push(number);
        if self.password(number)?.len() != 32 {
            return Err("a volume without its files".into());
        }
        Ok(took)
    }

    fn password(&self, number: usize) -> Outcome<String> {
        let target = calls::target(&self.bed.kubelet, number);
        Ok(fs::read_to_string(target.join("password"))?)
    }

    /// Takes down all volumes but the first `kept`.
    async fn unpublish(&mut self, kept: usize) -> Outcome<()> {
        let channel = Channel::connect(&self.bed.config.endpoint).await?;
        for number in self.published.drain(kept..) {
            let request = calls::unpublish(&self.bed.kubelet, number);
            channel.node().node_unpublish_volume(request).await?;
        }
        Ok(())
    }

    /// These requests and no other were made since the last call; how many they are.
    fn requests<S: AsRef<str>>(&mut self, expected: &[S]) -> Outcome<f64> {
        let found = self.audit.requests()?;
        let expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
        match found == expected {
            true => Ok(found.len() as f64),
            false => Err(format!("requests: {found:?} instead of {expected:?}").into()),
        }
    }

    /// Before the plugin asks its store once more.
    async fn rest(&mut self) {
        self.asked += 1;
        if self.asked.is_multiple_of(UNTIL_REST) {
            tokio::time::sleep(REST).await;
        }
    }

    /// The first volume of an account that the node does not know. B logs in and reads.
    async fn new_account(&mut self, count: usize) -> Outcome<[Row; 3]> {
        let mut samples = Samples::default();
        for round in 0..count {
            let (ours, bare) = (format!("cold-a-{round}"), format!("cold-b-{round}"));
            self.prepare(&[&ours, &bare]).await?;
            samples.a.push(self.publish(10_000 + round, &ours).await?);
            let requests = self.requests(&["auth/jwt/login", &data(&ours)])?;
            samples.requests.push(requests);
            let jwt = self.server.jwt(round, 20_000 + round)?;
            let begun = SystemClock.now();
            let token = self.bare.log_in(&jwt).await?;
            self.bare.read(&data(&bare), &token).await?;
            samples.b.push(SystemClock.now().since(begun));
            self.requests(&["auth/jwt/login", &data(&bare)])?;
        }
        self.unpublish(1).await?;
        Ok(samples.rows([
            "publish, an account new to the node",
            "B bare login, read",
            "A an account new to it",
        ]))
    }

    /// A secret that the node does not know, of an account that is logged in. B reads.
    async fn new_secret(&mut self, count: usize) -> Outcome<[Row; 3]> {
        let mut samples = Samples::default();
        for round in 0..count {
            let (ours, bare) = (format!("new-a-{round}"), format!("new-b-{round}"));
            self.prepare(&[&ours, &bare]).await?;
            samples.a.push(self.publish(KNOWN, &ours).await?);
            samples.requests.push(self.requests(&[data(&ours)])?);
            samples.b.push(self.read(&bare).await?);
        }
        self.unpublish(1).await?;
        Ok(samples.rows([
            "publish, a secret new to the node",
            "B bare read",
            "A a secret new to it",
        ]))
    }

    /// A secret that the node knows: no request. B reads.
    async fn known_secret(&mut self, count: usize) -> Outcome<[Row; 3]> {
        let mut samples = Samples::default();
        for _ in 0..count {
            samples.a.push(self.publish(KNOWN, "known").await?);
            samples.requests.push(self.requests::<&str>(&[])?);
            samples.b.push(self.read("known").await?);
        }
        self.unpublish(1).await?;
        Ok(samples.rows([
            "publish, a secret the node knows",
            "B bare read",
            "A a secret it knows",
        ]))
    }

    /// Puts secrets that nobody knows.
    async fn prepare(&mut self, secrets: &[&str]) -> Outcome<()> {
        self.rest().await;
        for secret in secrets {
            self.server.put(secret, 0).await?;
        }
        self.requests(&secrets.iter().map(|one| data(one)).collect::<Vec<_>>())
            .map(drop)
    }

    /// B: one read by the login of [`KNOWN`].
    async fn read(&mut self, secret: &str) -> Outcome<Duration> {
        let begun = SystemClock.now();
        self.bare.read(&data(secret), &self.token).await?;
        let took = SystemClock.now().since(begun);
        self.requests(&[&data(secret)])?;
        Ok(took)
    }
}

#[derive(Default)]
struct Samples {
    a: Vec<Duration>,
    b: Vec<Duration>,
    /// Of A, by the server's audit log.
    requests: Vec<f64>,
}

impl Samples {
    fn rows(self, [name, bare, counted]: [&'static str; 3]) -> [Row; 3] {
        [
            Row::times(name, "A secretfs node", &self.a),
            Row::times(name, bare, &self.b),
            Row::of("requests in a publish", counted, REQUESTS, self.requests),
        ]
    }
}
