//! A real OpenBao (`tests/openbao`), one for a test: storage in memory, or in a directory where it is to be started anew; a loopback port that the
//! system chose, a socket file for the test's own calls, an audit log. Killed by its own pid when it is dropped.
//!
//! Which binary, `tests/run` says in SECRETFS_BAO. Without it a test says `NOT CHECKED` and ends; where CI is set, it fails.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use super::{certs::Authority, program::eventually};

/// See the module.
pub struct Bao {
    child: Child,
    binary: OsString,
    dir: tempfile::TempDir,
    /// Where it listens.
    pub port: u16,
    /// May do everything.
    pub root: String,
    key: String,
    tls: bool,
}

/// Certificates for a server, in files.
#[derive(Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Whose client certificates are asked for.
    pub clients: Option<PathBuf>,
}

impl Bao {
    /// Up, unsealed, with KV version 2 at `secret` and version 1 at `old`. `None`: there is no OpenBao here, which has been said.
    #[track_caller]
    pub fn start() -> Option<Self> {
        let bao = Self::sealed(None)?;
        Some(bao.ready())
    }

    /// The same with TLS.
    #[track_caller]
    pub fn with_tls(files: &Files) -> Option<Self> {
        let bao = Self::sealed(Some(files))?;
        Some(bao.ready())
    }

    /// [`Self::start`] with storage that outlives the process: see [`Self::restart`].
    #[track_caller]
    pub fn lasting() -> Option<Self> {
        let bao = Self::up(None, true)?;
        Some(bao.ready())
    }

    /// Up, and never initialized.
    #[track_caller]
    pub fn sealed(tls: Option<&Files>) -> Option<Self> {
        Self::up(tls, false)
    }

    #[track_caller]
    fn up(tls: Option<&Files>, lasting: bool) -> Option<Self> {
        let Some(binary) = std::env::var_os("SECRETFS_BAO") else {
            let message = "NOT CHECKED: THE BACKEND `vault` AGAINST A REAL SERVER: SECRETFS_BAO names no OpenBao (see tests/openbao/install)";
            assert!(std::env::var_os("CI").is_none(), "{message}");
            eprintln!("{message}");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let listener = match tls {
            None => "tls_disable = true".to_owned(),
            Some(files) => {
                let clients = files.clients.as_ref().map_or(String::new(), |ca| {
                    format!(
                        "\n tls_client_ca_file = {ca:?}\n tls_require_and_verify_client_cert = true"
                    )
                });
                format!(
                    "tls_cert_file = {:?}\n tls_key_file = {:?}{clients}",
                    files.certificate, files.key
                )
            }
        };
        let storage = match lasting {
            false => "storage \"inmem\" {}".to_owned(),
            true => {
                let path = dir.path().join("storage");
                fs::create_dir(&path).unwrap();
                format!(
                    "storage \"raft\" {{\n path = {path:?}\n node_id = \"one\"\n}}\ncluster_addr = \"http://127.0.0.1:2\""
                )
            }
        };
        let config = format!(
            "{storage}\nlistener \"tcp\" {{\n address = \"127.0.0.1:0\"\n {listener}\n}}\nlistener \"unix\" {{ address = {:?} }}\n\
             api_addr = \"http://127.0.0.1:1\"\naudit \"file\" \"to-file\" {{\n options {{\n file_path = {:?}\n }}\n}}\n",
            dir.path().join("bao.sock"),
            dir.path().join("audit"),
        );
        fs::write(dir.path().join("bao.hcl"), config).unwrap();
        let (child, port) = run(&binary, dir.path());
        Some(Self {
            child,
            binary,
            dir,
            port,
            root: String::new(),
            key: String::new(),
            tls: tls.is_some(),
        })
    }

    /// Kills it, as a machine that dies does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        fs::remove_file(self.dir.path().join("bao.sock")).unwrap();
    }

    /// Starts it again after [`Self::kill`], at another port, with all that it held, and unseals it.
    pub fn restart(&mut self) {
        (self.child, self.port) = run(&self.binary, self.dir.path());
        self.unseal();
    }

    fn ready(mut self) -> Self {
        let made = self.ok(
            "sys/init",
            json!({"secret_shares": 1, "secret_threshold": 1}),
        );
        self.key = made["keys"][0].as_str().unwrap().to_owned();
        self.root = made["root_token"].as_str().unwrap().to_owned();
        self.unseal();
        self.ok(
            "sys/mounts/secret",
            json!({"type": "kv", "options": {"version": "2"}}),
        );
        self.ok(
            "sys/mounts/old",
            json!({"type": "kv", "options": {"version": "1"}}),
        );
        eventually("KV is ready", || {
            self.call("POST", "secret/data/first", &json!({"data": {}}))
                .0
                == 200
        });
        self
    }

    pub fn unseal(&self) {
        self.ok("sys/unseal", json!({"key": self.key}));
        eventually("it is unsealed and active", || {
            self.call("GET", "sys/health", &Value::Null).0 == 200
        });
    }

    pub fn seal(&self) {
        self.ok("sys/seal", json!({}));
        eventually("it is sealed", || {
            self.call("GET", "sys/health", &Value::Null).0 == 503
        });
    }

    /// Stops answering, without closing anything; SIGCONT at the end.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
        // each of its threads stops when it hears of it
        let (pid, stops) = (self.pid(), rustix::process::WaitOptions::UNTRACED);
        rustix::process::waitpid(Some(pid), stops).unwrap();
    }

    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn pid(&self) -> rustix::process::Pid {
        let pid = i32::try_from(self.child.id()).unwrap();
        rustix::process::Pid::from_raw(pid).unwrap()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// As a backend's `address`.
    pub fn address(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Its socket file, as an `address`.
    pub fn socket(&self) -> String {
        format!("unix://{}", self.dir.path().join("bao.sock").display())
    }

    /// A file with this in it; its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A call as root, by the socket file; status and body.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.call_with(method, path, body, &[])
    }

    pub fn call_with(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.dir.path().join("bao.sock")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let more: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        write!(
            stream,
            "{method} /v1/{path} HTTP/1.0\r\nHost: bao\r\nX-Vault-Token: {}\r\n{more}Content-Length: {}\r\n\r\n{body}",
            self.root,
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// A POST as root that must succeed; its answer.
    #[track_caller]
    pub fn ok(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.call("POST", path, &body);
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    /// A new version of a secret of KV 2.
    #[track_caller]
    pub fn put(&self, path: &str, data: Value) -> u64 {
        let answer = self.ok(&format!("secret/data/{path}"), json!({"data": data}));
        answer["data"]["version"].as_u64().unwrap()
    }

    /// A policy of these lines.
    pub fn policy(&self, name: &str, paths: &[(&str, &[&str])]) {
        let rules: serde_json::Map<String, Value> = paths
            .iter()
            .map(|(path, can)| ((*path).to_owned(), json!({"capabilities": can})))
            .collect();
        let policy = json!({"path": rules}).to_string();
        self.ok(
            &format!("sys/policies/acl/{name}"),
            json!({"policy": policy}),
        );
    }

    /// A token with these policies.
    pub fn token(&self, policies: &[&str], ttl: &str) -> String {
        let body = json!({"policies": policies, "ttl": ttl, "renewable": true});
        let made = self.ok("auth/token/create", body);
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// Logins of pods, by the TokenReview of this address.
    pub fn with_kubernetes(&self, cluster: &str) {
        self.ok("sys/auth/kubernetes", json!({"type": "kubernetes"}));
        let ca = Authority::new(self.dir.path(), "cluster").file;
        let ca = fs::read_to_string(ca).unwrap(); // it is demanded, also where nothing is signed by it
        let config = json!({"kubernetes_host": cluster, "kubernetes_ca_cert": ca, "disable_local_ca_jwt": true});
        self.ok("auth/kubernetes/config", config);
    }

    /// How many requests of this path there were, by the audit log.
    pub fn requests(&self, path: &str) -> usize {
        let log = fs::read_to_string(self.dir.path().join("audit")).unwrap_or_default();
        let wanted = format!("\"path\":{path:?}");
        let lines = log
            .lines()
            .filter(|line| line.contains("\"type\":\"request\""));
        lines.filter(|line| line.contains(&wanted)).count()
    }

    /// All requests but root's and the server's own, by the audit log: operation and path, and how many there were.
    pub fn audited(&self) -> BTreeMap<String, usize> {
        let log = fs::read_to_string(self.dir.path().join("audit")).unwrap();
        let lines = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line:?}")));
        let others = lines
            .filter(|line| line["type"] == "request" && line["auth"]["display_name"] != "root")
            .filter(|line| line["request"]["path"] != "sys/audit/test"); // when it starts
        let mut counts = BTreeMap::new();
        for line in others {
            let request = &line["request"];
            let [operation, path] =
                [&request["operation"], &request["path"]].map(|part| part.as_str().unwrap());
            *counts.entry(format!("{operation} {path}")).or_default() += 1;
        }
        counts
    }
}

/// Starts it with the configuration in this directory; its port.
fn run(binary: &OsStr, dir: &Path) -> (Child, u16) {
    let mut child = Command::new(binary)
        .args(["server", "-config"])
        .arg(dir.join("bao.hcl"))
        .env_clear()
        .env("HOME", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut port = None;
    let mut line = String::new();
    // the address itself is shown as it was asked for, the one next to it as it is
    while !line.contains("server started") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "OpenBao has ended");
        if let Some((_, rest)) = line.split_once("cluster address: \"127.0.0.1:") {
            port = rest.split('"').next().unwrap().parse::<u16>().ok();
        }
    }
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    eventually("OpenBao answers", || dir.join("bao.sock").exists());
    (child, port.unwrap() - 1)
}

impl Drop for Bao {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
