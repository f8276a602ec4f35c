//! An OpenBao in the cluster's network, that asks the cluster's own API server whose a token is.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use super::{Cluster, eventually, fed};

/// The bed has a network of its own: nobody else has this port.
const PORT: u16 = 8200;

/// Initialized, unsealed, with KV version 2 at `secret` and the login method `kubernetes`. It ends with this.
pub struct Bao<'c> {
    cluster: &'c Cluster,
    dir: PathBuf,
    server: Option<Child>,
    key: String,
    root: String,
}

impl<'c> Bao<'c> {
    pub fn start(cluster: &'c Cluster) -> Self {
        let dir = cluster.scratch().join("bao");
        fs::create_dir_all(dir.join("data")).unwrap();
        let config = format!(
            "storage \"raft\" {{\n path = {:?}\n node_id = \"n1\"\n}}\nlistener \"tcp\" {{\n address = \"0.0.0.0:{PORT}\"\n tls_disable = true\n}}\n\
             api_addr = \"http://127.0.0.1:{PORT}\"\ncluster_addr = \"http://127.0.0.1:{}\"\n",
            dir.join("data"),
            PORT + 1
        );
        fs::write(dir.join("bao.hcl"), config).unwrap();
        let mut bao = Self {
            cluster,
            dir,
            server: None,
            key: String::new(),
            root: String::new(),
        };
        bao.resume_sealed();
        let made = bao.call(&[
            "operator",
            "init",
            "-key-shares=1",
            "-key-threshold=1",
            "-format=json",
        ]);
        let made: Value = serde_json::from_str(&made).unwrap();
        bao.key = made["unseal_keys_b64"][0].as_str().unwrap().to_owned();
        bao.root = made["root_token"].as_str().unwrap().to_owned();
        bao.unseal();
        bao.call(&["secrets", "enable", "-path=secret", "-version=2", "kv"]);
        bao.trust_the_cluster();
        bao
    }

    /// As docs/backends/vault.md says: TokenReview, with an account that may ask for it.
    fn trust_the_cluster(&self) {
        let account = ["-n", "kube-system", "create", "serviceaccount", "bao"];
        self.cluster.kubectl(&account);
        let binding = [
            "create",
            "clusterrolebinding",
            "bao",
            "--clusterrole=system:auth-delegator",
        ];
        self.cluster
            .kubectl(&[&binding[..], &["--serviceaccount=kube-system:bao"]].concat());
        let reviewer = self
            .cluster
            .kubectl(&["-n", "kube-system", "create", "token", "bao"]);
        let server = self.cluster.kubectl(&[
            "config",
            "view",
            "--minify",
            "-o",
            "jsonpath={.clusters[0].cluster.server}",
        ]);
        self.call(&["auth", "enable", "kubernetes"]);
        self.call(&[
            "write",
            "auth/kubernetes/config",
            &format!("kubernetes_host={server}"),
            &format!(
                "kubernetes_ca_cert=@{}/pki/ca.crt",
                self.cluster.bed.display()
            ),
            &format!("token_reviewer_jwt={reviewer}"),
            "disable_local_ca_jwt=true",
        ]);
    }

    /// Where pods and the plugin reach it.
    pub fn address(&self) -> String {
        let node = self.cluster.get_json(&["node", "n1"]).unwrap();
        let addresses = node["status"]["addresses"].as_array().unwrap();
        let internal = addresses.iter().find(|one| one["type"] == "InternalIP");
        format!(
            "http://{}:{PORT}",
            internal.unwrap()["address"].as_str().unwrap()
        )
    }

    /// The account `name` of `namespace`, and nobody else, may read what is below `secret/<namespace>/`.
    pub fn let_read(&self, namespace: &str, name: &str) {
        let rules: String = ["data", "metadata"]
            .iter()
            .map(|kind| {
                format!("path \"secret/{kind}/{namespace}/*\" {{ capabilities = [\"read\"] }}\n")
            })
            .collect();
        let file = self.dir.join("policy.hcl");
        fs::write(&file, rules).unwrap();
        self.call(&["policy", "write", "app", file.to_str().unwrap()]);
        self.call(&[
            "write",
            "auth/kubernetes/role/app",
            "audience=vault",
            &format!("bound_service_account_names={name}"),
            &format!("bound_service_account_namespaces={namespace}"),
            "token_policies=app",
            "token_ttl=1h",
        ]);
    }

    /// Another version of the secret `a` of a namespace.
    pub fn put(&self, namespace: &str, word: &str) {
        let secret = format!("{namespace}/a");
        self.call(&[
            "kv",
            "put",
            "-mount=secret",
            &secret,
            &format!("word={word}"),
        ]);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// Starts it (again): it is sealed then.
    pub fn resume_sealed(&mut self) {
        let log = fs::File::create(self.dir.join("log")).unwrap();
        let server = self
            .command()
            .args(["server", "-config"])
            .arg(self.dir.join("bao.hcl"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.server = Some(server.unwrap());
        // 2: it is sealed
        let answers = || fed(self.command().arg("status"), "").status.code() == Some(2);
        eventually("OpenBao answers", || answers().then_some(()), || self.log());
    }

    /// Unseals it, and waits until it leads.
    pub fn unseal(&self) {
        self.call(&["operator", "unseal", &self.key]);
        let leads = || {
            let said = fed(self.command().arg("status"), "");
            String::from_utf8_lossy(&said.stdout).contains("Active Since")
        };
        eventually("OpenBao leads", || leads().then_some(()), || self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// `bao` in the bed's network. Only that is entered: killing the child kills it.
    fn command(&self) -> Command {
        let bao = std::env::var("SECRETFS_BAO").expect("run tests/e2e/run");
        let mut command = Command::new("nsenter");
        command
            .args(["--target", self.cluster.get("BED_PID"), "--net", &bao])
            .env("BAO_ADDR", format!("http://127.0.0.1:{PORT}"))
            .env("BAO_TOKEN", &self.root)
            .env("HOME", &self.dir);
        command
    }

    /// What `bao` printed. It must work.
    #[track_caller]
    pub fn call(&self, arguments: &[&str]) -> String {
        let output = fed(self.command().args(arguments), "");
        assert!(
            output.status.success(),
            "bao {:?}: {}",
            arguments[..2].join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Bao<'_> {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.dir);
        for object in [
            "clusterrolebinding/bao",
            "-n=kube-system serviceaccount/bao",
        ] {
            let arguments: Vec<&str> = object.split(' ').collect();
            self.cluster.try_kubectl(
                &[&["delete", "--ignore-not-found"], &arguments[..]].concat(),
                "",
            );
        }
    }
}
