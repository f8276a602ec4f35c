//! What the demo is played on: a directory with a store, a plugin, a kubelet, and a pod with its container.

use std::{
    fs,
    io::Read,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{
    Isolation, Say, claim,
    container::Container,
    failed,
    kubelet::{Kubelet, Pod, Volume},
    plugin::Plugin,
};
use crate::{
    error::{Error, Result, codes},
    secret::SecretBytes,
    store::{Identities, Name, Recipients, Store},
    sys::namespace,
};

/// The spec of the pod's volume.
const SPEC: &str = r#"sources:
  db: store:demo/db
files:
  - path: db/password
    from: db#password
  - path: db/url
    template: |
      postgres://{{ db.username }}:{{ db.password | urlencode }}@db.internal/app
  - path: app.json
    from: store:demo/app
  - path: tls/tls.crt
    from: store:demo/tls#tls.crt
  - path: tls/tls.key
    from: store:demo/tls#tls.key
    mode: "0400"
"#;

/// Dropping it ends the plugin and removes the directory.
pub struct Stage {
    /// All files of the demo, as the kernel names it.
    pub dir: PathBuf,
    /// Where the values are put.
    pub store: Store,
    /// See [`Isolation`].
    pub isolation: Isolation,
    /// Calls the plugin.
    pub kubelet: Kubelet,
    /// `secretfs node`.
    pub plugin: Option<Plugin>,
    /// The volume of the pod that may read.
    pub volume: Volume,
    /// The pod's container.
    pub container: Option<Container>,
}

impl Stage {
    /// Makes the directory, and the store with its first values.
    pub fn build(world: super::World<'_>, say: &mut Say<'_>) -> Result<Self> {
        let dir = world
            .tmp
            .join(format!("secretfs-demo-{}", short(&random(16)?)));
        make_dir(&dir)?;
        let dir = dir
            .canonicalize()
            .map_err(failed("find the demo's directory"))?;
        let (keys, _) = Identities::load_or_make(&dir.join("identity.age"))?;
        let store = Store::init(dir.join("store"), &Recipients::of(&keys)?)?;
        let kubelet = Kubelet {
            socket: dir.join("kubelet/plugins/csi.secretfs.dev/csi.sock"),
            dir: dir.join("kubelet"),
            runtime: world.runtime,
            trace: world.trace,
        };
        let stage = Self {
            dir,
            store,
            isolation: world.isolation,
            kubelet,
            plugin: None,
            volume: volume("shop", "web-1")?,
            container: None,
        };
        for sub in ["kubelet", "container"] {
            make_dir(&stage.dir.join(sub))?;
        }
        say.heading(
            "1  An encrypted store, with a database password, a JSON document and a TLS key pair",
        )?;
        say.line(&format!(
            "      in {}, $DIR from here on",
            stage.dir.display()
        ))?;
        stage.put("demo/db", &database(&password()?))?;
        stage.put(
            "demo/app",
            json!({ "featureFlags": ["a", "b"], "apiToken": password()? })
                .to_string()
                .as_bytes(),
        )?;
        stage.put("demo/tls", &tls()?)?;
        for file in files_below(&stage.dir.join("store/secrets")) {
            let shown = file.strip_prefix(&stage.dir).unwrap_or(&file).display();
            say.line(&format!("      {shown}  {}", first_line(&file)))?;
        }
        Ok(stage)
    }

    /// Starts the plugin, as its DaemonSet does, and registers it.
    pub fn serve(&mut self, say: &mut Say<'_>) -> Result<()> {
        say.heading("2  The plugin of a node: `secretfs node --config node.yaml`")?;
        let config = self.config();
        fs::write(self.dir.join("node.yaml"), &config).map_err(failed("write node.yaml"))?;
        for line in config.lines() {
            say.line(&format!("      {}", self.shortened(line)))?;
        }
        // on a node the kubelet's directory is on a shared mount: what the plugin mounts there, others see
        namespace::make_shared(&self.kubelet.dir)
            .map_err(|errno| failed("share the kubelet's directory")(errno.into()))?;
        let plugin = Plugin::start(&self.dir)?;
        say.line(&format!("\n      {}", self.shortened(&plugin.ready)))?;
        self.plugin = Some(plugin);
        let answer = self.kubelet.register()?.ok("NodeGetInfo")?;
        say.line(&format!("      NodeGetInfo: {}", answer.shown()))
    }

    /// A pod starts, and another one that may not.
    pub fn publish(&mut self, say: &mut Say<'_>) -> Result<()> {
        say.heading("3  A pod starts: its volume, and the calls that a kubelet makes for it")?;
        for line in manifest(&self.volume) {
            say.line(&format!("      {line}"))?;
        }
        let answer = self.kubelet.publish(&self.volume)?;
        let answer = answer.ok("NodePublishVolume")?;
        let again = self.kubelet.publish_again(&self.volume)?;
        let again = again.ok("NodePublishVolume, the second time,")?;
        say.line(&format!("\n      NodePublishVolume: {}", answer.shown()))?;
        say.line(&format!(
            "      the same again, as kubelets do soon after: {}",
            again.shown()
        ))?;
        let target = self.kubelet.target(&self.volume);
        let container = Container::start(&target, &self.dir.join("container"))?;
        let inside = container.run(|secrets| (view(secrets), listed(secrets)))?;
        self.container = Some(container);
        let (view, files) = inside;
        let view = view.map(|view| view.shown).unwrap_or_default();
        say.line("\n      in the container, which has mounts of its own:")?;
        say.line(&format!("      {view}"))?;
        for (mode, length, path) in files {
            say.line(&format!("      {mode:04o}  {length:>5} bytes  {path}"))?;
        }
        self.refused(say)
    }

    /// A pod that no line of the policy allows.
    fn refused(&self, say: &mut Say<'_>) -> Result<()> {
        let other = volume("guest", "curious")?;
        let answer = self.kubelet.publish(&other)?;
        let nothing = !self.kubelet.target(&other).exists();
        self.kubelet.forget(&other);
        say.line("\n      a pod of the namespace `guest` asks for the same:")?;
        say.line(&format!("      NodePublishVolume: {}", answer.shown()))?;
        say.line(&format!("      {}", answer.message))?;
        claim(
            say,
            answer.code == "PermissionDenied" && nothing,
            "refused, and nothing was mounted",
        )
    }

    fn config(&self) -> String {
        let quoted = |path: &str| json!(self.dir.join(path)).to_string();
        let endpoint = json!(format!("unix://{}", self.kubelet.socket.display()));
        format!(
            r#"node: demo
endpoint: {endpoint}
kubeletDir: {}
runtimeDir: {}
registration: false   # no kubelet here to register with
kubernetes: "off"     # and no API server
http: ""
audit: {{file: {}}}
backends:
  store: {{kind: store, path: {}, identity: {}}}
policy:               # who may read what; nobody else may read anything
  - {{namespaces: [shop], serviceAccounts: [web], allow: ["store:demo/**"]}}
"#,
            quoted("kubelet"),
            quoted("run"),
            quoted("audit.jsonl"),
            quoted("store"),
            quoted("identity.age"),
        )
    }

    /// A text without the long name of the demo's directory.
    pub fn shortened(&self, text: &str) -> String {
        text.replace(&*self.dir.to_string_lossy(), "$DIR")
    }

    /// The container, which runs from stage 3 on.
    pub fn container(&self) -> Result<&Container> {
        self.container.as_ref().ok_or_else(super::container::gone)
    }

    /// A new version of a secret.
    pub fn put(&self, name: &str, value: &[u8]) -> Result<()> {
        let name = Name::parse(name).map_err(|reason| {
            Error::new(&codes::STORE_BAD_NAME)
                .object(name)
                .detail(reason)
        })?;
        self.store
            .put(&name, &SecretBytes::new(value.to_vec()))
            .map(drop)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.container = None;
        self.plugin = None; // waits for its end
        let _ = namespace::detach(&self.kubelet.dir); // it may not be shared yet
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A mount as the kernel's own table shows it, to whoever asks.
pub struct View {
    /// Its number, the same as long as it lives.
    pub id: String,
    /// How many are at this place.
    pub layers: usize,
    /// Type, flags, source and options of the topmost.
    pub shown: String,
}

/// What is mounted at `place`, in the mount namespace of the calling thread.
pub fn view(place: &Path) -> Option<View> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").ok()?;
    let at_place = |line: &&str| line.split(' ').nth(4) == place.to_str();
    let line = table.lines().rfind(at_place)?;
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let (id, flags) = (fields.next()?, fields.nth(4)?);
    let mut parts = file_system.split(' ');
    let (kind, source, options) = (parts.next()?, parts.next()?, parts.next()?);
    Some(View {
        id: id.to_owned(),
        layers: table.lines().filter(at_place).count(),
        shown: format!("{kind} {flags} ({source}; {options})"),
    })
}

/// Mode, length and name of all files below `dir`.
fn listed(dir: &Path) -> Vec<(u32, u64, String)> {
    let listed = files_below(dir).into_iter().filter_map(|path| {
        let found = fs::metadata(&path).ok()?;
        let name = path.strip_prefix(dir).ok()?.display().to_string();
        Some((found.mode() & 0o777, found.len(), name))
    });
    listed.collect()
}

/// The demo's volume, of a pod in this namespace.
fn volume(namespace: &'static str, pod: &'static str) -> Result<Volume> {
    let bytes = hex(&random(16)?);
    let cut = |from, to| bytes.get(from..to).unwrap_or_default();
    let uid = [cut(0, 8), cut(8, 12), cut(12, 16), cut(16, 20), cut(20, 32)].join("-");
    Ok(Volume {
        pod: Pod {
            namespace,
            name: pod,
            account: "web",
            uid,
        },
        name: "secrets",
        spec: SPEC,
    })
}

/// The volume as it stands in the pod's manifest.
fn manifest(volume: &Volume) -> Vec<String> {
    let pod = &volume.pod;
    let head = format!(
        r#"metadata: {{namespace: {}, name: {}}}
spec:
  serviceAccountName: {}
  volumes:
    - name: {}
      csi:
        driver: csi.secretfs.dev
        readOnly: true
        volumeAttributes:
          spec: |"#,
        pod.namespace, pod.name, pod.account, volume.name
    );
    let spec = volume
        .spec
        .lines()
        .map(|line| format!("            {line}"));
    head.lines().map(str::to_owned).chain(spec).collect()
}

fn make_dir(dir: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().mode(0o700).create(dir);
    made.map_err(failed("make the demo's directory"))
}

/// All regular files below `dir`, the layout's own names left out, sorted.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b"..") {
                continue;
            }
            if path.is_dir() {
                open.push(path)
            } else {
                found.push(path)
            }
        }
    }
    found.sort();
    found
}

/// The document of the database secret.
pub fn database(password: &str) -> Vec<u8> {
    json!({ "username": "app", "password": password })
        .to_string()
        .into_bytes()
}

/// 24 random bytes in hex.
pub fn password() -> Result<String> {
    Ok(hex(&random(24)?))
}

fn tls() -> Result<Vec<u8>> {
    let made = rcgen::generate_simple_self_signed(vec!["app.demo".to_owned()]);
    let pair = made.map_err(|error| {
        Error::new(&codes::BUG)
            .step("make a TLS key pair")
            .source(error)
    })?;
    let fields = json!({ "tls.crt": pair.cert.pem(), "tls.key": pair.signing_key.serialize_pem() });
    Ok(fields.to_string().into_bytes())
}

fn random(length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(failed("read /dev/urandom"))?;
    Ok(bytes)
}

/// What is shown in place of a value: the first eight digits of its SHA-256.
pub fn short(value: &[u8]) -> String {
    hex(&Sha256::digest(value).as_slice()[..4])
}

/// As hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn first_line(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let text: String = String::from_utf8_lossy(line).chars().take(40).collect();
    format!("({} bytes, begins with `{text}`)", bytes.len())
}
