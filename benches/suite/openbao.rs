//! A real OpenBao, for the suite `vault`: storage in memory, a loopback port that the system chose, a socket file for the suite's own calls, an
//! audit log, and logins of pods by tokens of an issuer that is made here (`jwt`). Killed by its own pid when it is dropped.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::{Method, header::HeaderMap};
use rcgen::{KeyPair, PKCS_ED25519, SigningKey as _};
use secretfs::{
    backend::{
        Cx,
        http::{Address, Ask, Client, Settings, Timeouts, TlsFiles, secret_header},
    },
    clock::{Clock, SystemClock},
    secret::SecretBytes,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Outcome, calls};

/// Names the binary.
const BINARY: &str = "SECRETFS_BAO";
/// Longest that anything may take before the run fails.
const AT_MOST: Duration = Duration::from_secs(30);

/// Whether there is one. Where the suite was asked for, or CI is set, it must be.
pub fn is_there(asked_for: bool) -> Outcome<bool> {
    if std::env::var_os(BINARY).is_some() {
        return Ok(true);
    }
    let message = format!(
        "NOT CHECKED: THE BENCHMARK `vault`: {BINARY} names no OpenBao (see tests/openbao/install)"
    );
    if asked_for || std::env::var_os("CI").is_some() {
        return Err(message.into());
    }
    eprintln!("{message}");
    Ok(false)
}

/// The plugin's own HTTP client, with nothing around it.
pub struct Http(Client);

impl Http {
    fn new(address: &str) -> Outcome<Self> {
        Ok(Self(Client::new(Settings {
            address: Address::parse(address)?,
            tls: TlsFiles::default(),
            proxy: None,
            redirects: Vec::new(),
            timeouts: Timeouts::default(),
        })))
    }

    /// One request that must succeed; what it brings.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Option<Value>,
    ) -> Outcome<SecretBytes> {
        let mut headers = HeaderMap::new();
        if !token.is_empty() {
            headers.insert("x-vault-token", secret_header(token.as_bytes())?);
        }
        let clock = Arc::new(SystemClock);
        let cx = Cx {
            deadline: clock.now().after(AT_MOST),
            cancel: CancellationToken::new(),
            clock,
        };
        let ask = Ask {
            method,
            path_and_query: format!("/v1/{path}"),
            headers,
            body: body.map(|body| body.to_string().into_bytes()),
        };
        let answer = self.0.send(&cx, ask).await?;
        match answer.status.is_success() {
            true => Ok(answer.body),
            false => Err(format!("{path}: {}", answer.status).into()),
        }
    }

    /// A read.
    pub async fn read(&self, path: &str, token: &str) -> Outcome<()> {
        self.call(Method::GET, path, token, None).await.map(drop)
    }

    /// A login of a pod; the token that it brings.
    pub async fn log_in(&self, jwt: &str) -> Outcome<String> {
        let body = Some(json!({"jwt": jwt, "role": "bench"}));
        let made = self.call(Method::POST, "auth/jwt/login", "", body).await?;
        let made: Value = serde_json::from_slice(made.expose())?;
        text(&made["auth"]["client_token"])
    }
}

/// See the module.
pub struct Server {
    child: Child,
    dir: PathBuf,
    /// Where it listens, as a backend's `address`.
    pub address: String,
    own: Http,
    root: String,
    issuer: KeyPair,
}

impl Server {
    /// Up and unsealed, with KV version 2 at `secret`, of which every account may read what is below `bench/`.
    pub async fn start(dir: &Path) -> Outcome<Self> {
        fs::create_dir_all(dir)?;
        let socket = dir.join("bao.sock");
        let file = dir.join("bao.hcl");
        let config = format!(
            "storage \"inmem\" {{}}\nlistener \"tcp\" {{\n address = \"127.0.0.1:0\"\n tls_disable = true\n}}\n\
             listener \"unix\" {{ address = {socket:?} }}\napi_addr = \"http://127.0.0.1:1\"\n\
             audit \"file\" \"to-file\" {{\n options {{\n file_path = {:?}\n }}\n}}\n",
            dir.join("audit"),
        );
        fs::write(&file, config)?;
        let binary = std::env::var_os(BINARY).ok_or("no OpenBao")?;
        let mut child = Command::new(binary)
            .args(["server", "-config"])
            .arg(&file)
            .env_clear()
            .env("HOME", dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let port = port(&mut child);
        let mut server = Self {
            child,
            dir: dir.to_owned(),
            address: String::new(),
            own: Http::new(&format!("unix://{}", socket.display()))?,
            root: String::new(),
            issuer: KeyPair::generate_for(&PKCS_ED25519)?,
        };
        server.address = format!("http://127.0.0.1:{}", port?);
        server.set_up().await?;
        Ok(server)
    }

    async fn set_up(&mut self) -> Outcome<()> {
        let shares = json!({"secret_shares": 1, "secret_threshold": 1});
        let made = self.eventually("sys/init", shares).await?;
        let made: Value = serde_json::from_slice(made.expose())?;
        self.root = text(&made["root_token"])?;
        self.post("sys/unseal", json!({"key": made["keys"][0]}))
            .await?;
        let kv = json!({"type": "kv", "options": {"version": "2"}});
        self.eventually("sys/mounts/secret", kv).await?;
        let read = json!({"capabilities": ["read"]});
        let rules = json!({"secret/data/bench/*": read, "secret/metadata/bench/*": read});
        let policy = json!({"policy": json!({"path": rules}).to_string()});
        self.post("sys/policies/acl/bench", policy).await?;
        self.post("sys/auth/jwt", json!({"type": "jwt"})).await?;
        let key = self.issuer.public_key_pem();
        let keys = json!({"jwt_validation_pubkeys": [key], "jwt_supported_algs": ["EdDSA"]});
        self.post("auth/jwt/config", keys).await?;
        let role = json!({
            "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"], "token_policies": ["bench"], "token_ttl": "1h",
        });
        self.post("auth/jwt/role/bench", role).await?;
        let first = json!({"data": {}});
        self.eventually("secret/data/first", first).await.map(drop)
    }

    /// A client of its own, by the network.
    pub fn client(&self) -> Outcome<Http> {
        Http::new(&self.address)
    }

    /// A new version of `bench/NAME`: two fields.
    pub async fn put(&self, name: &str, round: usize) -> Outcome<()> {
        let data = json!({"data": {"user": "bench", "password": format!("{round:032}")}});
        let path = format!("secret/data/bench/{name}");
        self.post(&path, data).await.map(drop)
    }

    /// The token of pod `number`, of account `account`, for this server.
    pub fn jwt(&self, number: usize, account: usize) -> Outcome<String> {
        let now = SystemClock.wall().as_millis() / 1000;
        let name = calls::account(account);
        let claims = json!({
            "iss": "bench", "aud": ["vault"], "sub": format!("system:serviceaccount:bench:{name}"),
            "exp": now + 3600, "iat": now, "nbf": now,
            "kubernetes.io": {
                "namespace": "bench",
                "pod": {"name": format!("pod-{number}"), "uid": calls::uid(number)},
                "serviceaccount": {"name": name, "uid": calls::account_uid(account)},
            },
        });
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let unsigned = format!("{}.{}", part(json!({"alg": "EdDSA"})), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.issuer.sign(unsigned.as_bytes())?);
        Ok(format!("{unsigned}.{signature}"))
    }

    /// What it writes down from now on.
    pub fn audit(&self) -> Outcome<Audit> {
        let mut file = File::open(self.dir.join("audit"))?;
        file.seek(SeekFrom::End(0))?;
        Ok(Audit(file))
    }

    async fn post(&self, path: &str, body: Value) -> Outcome<SecretBytes> {
        self.own
            .call(Method::POST, path, &self.root, Some(body))
            .await
    }

    /// As [`Self::post`], until it succeeds: after a start, or when an engine is new, it takes a moment.
    async fn eventually(&self, path: &str, body: Value) -> Outcome<SecretBytes> {
        let until = SystemClock.now().after(AT_MOST);
        loop {
            match self.post(path, body.clone()).await {
                Err(_) if SystemClock.now() < until => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                ended => return ended,
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where it has begun to listen. Its output is read to the end, so that it never waits for us.
fn port(child: &mut Child) -> Outcome<u16> {
    let mut said = BufReader::new(child.stdout.take().ok_or("no stdout")?);
    let (mut line, mut cluster) = (String::new(), None);
    // the address itself is shown as it was asked for, the one next to it as it is
    while !line.contains("server started") {
        line.clear();
        if said.read_line(&mut line)? == 0 {
            return Err("OpenBao has ended".into());
        }
        if let Some((_, rest)) = line.split_once("cluster address: \"127.0.0.1:") {
            let digits = rest.split('"').next().unwrap_or_default();
            cluster = digits.parse::<u16>().ok();
        }
    }
    thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    Ok(cluster.ok_or("OpenBao does not say where it listens")? - 1)
}

fn text(value: &Value) -> Outcome<String> {
    Ok(value.as_str().ok_or("not as OpenBao answers")?.to_owned())
}

/// A request, or its answer, as the audit log has it.
pub struct Noted {
    /// Which of the two.
    pub is_answer: bool,
    /// By the wall clock.
    pub at: jiff::Timestamp,
    /// Below `/v1/`.
    pub path: String,
}

/// The audit log, from a point on. A request and its answer are in it before the answer goes out.
pub struct Audit(File);

impl Audit {
    /// What has been written since the last call.
    pub fn noted(&mut self) -> Outcome<Vec<Noted>> {
        #[derive(Deserialize)]
        struct Line {
            #[serde(rename = "type")]
            kind: String,
            time: String,
            request: Request,
        }
        #[derive(Deserialize)]
        struct Request {
            path: String,
        }
        let mut text = String::new();
        self.0.read_to_string(&mut text)?;
        let noted = text.lines().map(|line| {
            let Line {
                kind,
                time,
                request,
            } = serde_json::from_str(line)?;
            Ok(Noted {
                is_answer: kind == "response",
                at: time.parse()?,
                path: request.path,
            })
        });
        noted.collect()
    }

    /// The paths of the requests since the last call.
    pub fn requests(&mut self) -> Outcome<Vec<String>> {
        let noted = self.noted()?.into_iter();
        let requests = noted.filter(|one| !one.is_answer);
        Ok(requests.map(|one| one.path).collect())
    }
}
