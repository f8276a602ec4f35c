//! A node's life with random secrets and tokens: all that can happen to them, so that afterwards one can look where they are.
//!
//! Every value is registered with the [`Needles`] under a name: `raw 3` is the third version of the secret `raw`, `token of api-0 2`
//! the signature in the second token of that pod, `claim of api-0 2` an id among its claims.

use std::{fs, path::Path};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use secretfs::{
    csi::proto::NodePublishVolumeRequest,
    secret::SecretBytes,
    store::{Name, Store},
};
use serde_json::json;
use tonic::Status;

use super::{
    kubelet::{FAR, FakeKubelet, Pod, TOKENS, Volume, jwt, tokens},
    needles::Needles,
    program::eventually,
};
use crate::node::bed::{NodeBed, get};

/// Every way from a secret into a file.
const EVERYTHING: &str = r##"
sources: {db: store:doc}
files:
  - {path: raw, from: store:raw}
  - {path: password, from: db#password}
  - {path: deep, from: "db#/nested/key"}
  - {path: url, template: "postgres://{{ db.user }}:{{ db.password | urlencode }}@db/app"}
  - {path: encoded, template: "{{ db.password | b64encode }} {{ db.password | hex }}"}
  - {path: quoted, template: "{{ db.password | shellquote }} {{ db | tojson }}"}
  - {path: .env, from: db, format: dotenv}
  - {path: all.json, from: db, format: json}
  - {path: all.yaml, from: db, format: yaml}
  - {path: all.properties, from: db, format: properties}
  - {path: each/, from: "db#*"}
  - {path: decoded, from: store:coded, decode: base64}
"##;
const ONE: &str = "files: [{path: raw, from: store:raw}]";
/// Secrets of which each version is new.
pub const SECRETS: [&str; 4] = ["raw", "password", "deep", "coded"];

/// Files that fail on a value, and the code that says so.
const FAILING: [(&str, &str); 7] = [
    ("from: store:doc#none", "render.no_field"),
    ("from: store:text#field", "render."),
    ("from: store:text\n    decode: base64", "render."),
    ("from: store:doc#password\n    decode: hex", "render."),
    ("template: '{{ doc.password | b64decode }}'", "render."),
    ("from: store:broken", "store.corrupt"),
    ("from: store:none", "backend.not_found"),
];

/// See the module.
pub struct Session {
    pub node: NodeBed,
    pub kubelet: FakeKubelet,
    pub store: Store,
    pub needles: Needles,
    random: fastrand::Rng,
    /// How many versions of the secrets there were.
    versions: usize,
    /// How many other values there were.
    others: usize,
    /// The newest value of each of the secrets.
    latest: Vec<String>,
}

impl Session {
    /// With a store that holds one version of each secret.
    pub fn new(node: NodeBed) -> Self {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        node.configure(
            "policy: [{namespaces: [payments], serviceAccounts: [api], allow: [\"store:**\"]}]",
        );
        let kubelet = FakeKubelet {
            socket: node.csi(),
            ..FakeKubelet::new(&node.bed.path("k"))
        };
        let mut session = Self {
            kubelet,
            store: Store::open(node.bed.path("store")).unwrap(),
            node,
            needles: Needles::default(),
            random: fastrand::Rng::with_seed(seed),
            versions: 0,
            others: 0,
            latest: Vec::new(),
        };
        session.put_all();
        session
    }

    /// A new value: three times 16 letters and digits, with something between that quotes and escapes are made for.
    pub fn canary(&mut self, name: &str) -> String {
        self.canary_with(name, ['/', '%'])
    }

    fn canary_with(&mut self, name: &str, between: [char; 2]) -> String {
        let random = &mut self.random;
        let mut part = || (0..16).map(|_| random.alphanumeric()).collect::<String>();
        let [first, second] = between;
        let value = format!("{}{first}{}{second}{}", part(), part(), part());
        self.needles.add(name, value.as_bytes());
        value
    }

    pub fn put(&self, name: &str, value: &str) {
        let value = SecretBytes::new(value.as_bytes().to_vec());
        self.store.put(&Name::parse(name).unwrap(), &value).unwrap();
    }

    /// A new version of each secret.
    pub fn put_all(&mut self) {
        self.versions += 1;
        let names = SECRETS.map(|name| format!("{name} {}", self.versions));
        self.latest = names.map(|name| self.canary(&name)).to_vec();
        let [raw, password, deep, coded] = &self.latest[..] else {
            unreachable!("one for each of SECRETS")
        };
        let doc = json!({"user": "app", "password": password, "nested": {"key": deep}});
        self.put("raw", raw);
        self.put("doc", &doc.to_string());
        self.put("coded", &STANDARD.encode(coded));
    }

    /// Names of the versions that are the newest.
    pub fn newest(&self) -> [String; 4] {
        SECRETS.map(|name| format!("{name} {}", self.versions))
    }

    /// A volume with every kind of file, and one of another pod with one.
    pub fn volumes(&self) -> [Volume; 2] {
        [("api-0", EVERYTHING), ("api-1", ONE)].map(|(pod, spec)| self.volume(pod, spec))
    }

    pub fn volume(&self, pod: &str, spec: &str) -> Volume {
        let pod = Pod::of(pod, "payments", "api");
        self.kubelet.volume(&pod, "v", spec)
    }

    /// A token of `pod`; its name is among the needles.
    fn token(&mut self, pod: &Pod) -> String {
        self.others += 1;
        let name = format!("of {} {}", pod.name, self.others);
        let mut claims = pod.claims("store", FAR);
        claims["jti"] = self.canary(&format!("claim {name}")).into();
        let signature = self.canary_with(&format!("token {name}"), ['_', '-']);
        let unsigned = jwt(&claims);
        let (unsigned, _) = unsigned.rsplit_once('.').unwrap();
        format!("{unsigned}.{signature}")
    }

    /// Names of what came with the last publish.
    pub fn last_proof(&self, volume: &Volume) -> Vec<String> {
        let pod = &volume.pod.name;
        let kinds = match pod.ends_with('1') {
            true => &["claim", "token", "secret"][..],
            false => &["claim", "token"],
        };
        let name = |kind: &&str| format!("{kind} of {pod} {}", self.others);
        kinds.iter().map(name).collect()
    }

    /// A publish with a new token, in `volume_context`, or with the pod's number odd in `secrets`, beside another secret.
    pub fn request(&mut self, volume: &Volume) -> NodePublishVolumeRequest {
        let token = self.token(&volume.pod);
        let given = tokens(&[("store", token)]);
        let mut request = volume.request();
        if volume.pod.name.ends_with('1') {
            let name = format!("secret of {} {}", volume.pod.name, self.others);
            let secret = self.canary(&name);
            request.secrets.insert("key".into(), secret);
            request.secrets.insert(TOKENS.into(), given);
        } else {
            request.volume_context.insert(TOKENS.into(), given);
        }
        request
    }

    pub fn send(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.node.runtime.block_on(self.kubelet.send(request))
    }

    /// Publishes, with a new token.
    pub fn publish(&mut self, volume: &Volume) -> Result<(), Status> {
        let request = self.request(volume);
        self.send(request)
    }

    pub fn unpublish(&self, volume: &Volume) {
        let gone = self.node.runtime.block_on(self.kubelet.unpublish(volume));
        gone.unwrap();
        assert!(!volume.target.exists());
    }

    /// Waits until the files show what is newest.
    #[track_caller]
    pub fn settled(&self, volumes: &[Volume]) {
        let [raw, password, deep, coded] = &self.latest[..] else {
            unreachable!("one for each of SECRETS")
        };
        eventually("the files show what was put", || {
            volumes.iter().all(|volume| {
                let all = volume.pod.name == "api-0";
                let rest = [("password", password), ("deep", deep), ("decoded", coded)];
                let shows = |(file, value): (&str, &String)| volume.file(file) == *value;
                shows(("raw", raw)) && (!all || rest.into_iter().all(shows))
            })
        });
    }

    /// Everything that can go wrong with a value or a token. Nothing is left of it.
    pub fn failures(&mut self) {
        self.failing_files();
        self.refused_tokens();
        let stranger = Pod::of("api-6", "strangers", "api");
        let stranger = self.kubelet.volume(&stranger, "v", ONE);
        self.fails(&stranger, "policy.denied");
    }

    /// Publishes, and it must fail with this code.
    #[track_caller]
    fn fails(&mut self, volume: &Volume, code: &str) {
        let request = self.request(volume);
        self.is_refused(request, code);
        assert!(!volume.target.exists(), "{code}: something is left");
    }

    #[track_caller]
    fn is_refused(&self, request: NodePublishVolumeRequest, code: &str) {
        let status = self.send(request).unwrap_err();
        let message = status.message();
        assert!(message.contains(&format!("[{code}")), "{code}: {message}");
    }

    fn failing_files(&mut self) {
        let text = self.canary("text");
        self.put("text", &text);
        let broken = self.canary("broken");
        self.put("broken", &broken);
        damage(&self.store, "broken");
        for (file, code) in FAILING {
            let doc = match file.contains("{{") {
                true => "sources: {doc: store:doc}\n",
                false => "",
            };
            let spec = format!("{doc}files:\n  - path: a\n    {file}\n");
            let volume = self.volume("api-4", &spec);
            self.fails(&volume, code);
        }
    }

    /// Tokens of another pod, tokens that are none, and a JSON that ends too early.
    fn refused_tokens(&mut self) {
        let volume = self.volume("api-2", ONE);
        let other = Pod::of("api-3", "payments", "api");
        let forged = tokens(&[("store", self.token(&other))]);
        let garbage = tokens(&[("store", self.canary("garbage"))]);
        let half = {
            let whole = tokens(&[("store", self.token(&volume.pod))]);
            whole[..whole.len() - 40].to_owned()
        };
        let claims = format!(
            "{{\"jti\":\"{}\",\"aud\":7}}",
            self.canary("claims of nobody")
        );
        let odd = tokens(&[("store", format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims)))]);
        for (given, code) in [
            (forged, "identity.forged"),
            (garbage, "csi.bad_request"),
            (half, "csi.bad_request"),
            (odd, "csi.bad_request"),
        ] {
            let mut request = volume.request();
            request.volume_context.insert(TOKENS.into(), given);
            self.is_refused(request, code);
        }
    }

    /// A value that cannot be shown comes, and the one before it stays; then one that can.
    pub fn bad_rotation(&mut self, volume: &Volume) {
        let before = volume.file("password");
        let text = self.canary(&format!("no document {}", self.versions));
        self.put("doc", &text);
        eventually("the volume says what is wrong", || {
            let (_, body) = get(&self.node.admin(), "/v1/volumes");
            body.contains("render.")
        });
        assert_eq!(volume.file("password"), before);
        self.put_all();
        self.settled(std::slice::from_ref(volume));
    }
}

/// Changes a byte of what is encrypted in the newest version of a secret.
fn damage(store: &Store, name: &str) {
    let dir = store.secret_dir(&Name::parse(name).unwrap());
    let newest = super::sandbox::names(&dir).pop().unwrap();
    let file = dir.join(newest);
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
}

/// The private key in an identity file: the line, and the 32 bytes that it is made of.
pub fn identity(file: &Path) -> (String, Vec<u8>) {
    let text = fs::read_to_string(file).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("AGE-SECRET-KEY-1"));
    let line = line.unwrap().to_owned();
    // Bech32 (BIP 173): after the last `1` five bits a character, the last six are a checksum
    let symbols = "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L";
    let data = line.rsplit_once('1').unwrap().1;
    let bits: Vec<_> = data[..data.len() - 6]
        .chars()
        .flat_map(|symbol| {
            let value = symbols.find(symbol).unwrap();
            (0..5).rev().map(move |bit| value >> bit & 1)
        })
        .collect();
    let byte = |bits: &[usize]| bits.iter().fold(0, |byte, bit| byte << 1 | *bit);
    let bytes = bits.chunks_exact(8).map(byte);
    (
        line,
        bytes.map(|byte| u8::try_from(byte).unwrap()).collect(),
    )
}
