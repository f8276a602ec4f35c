//! The conformance suite of backends, run by each of them. A new backend is one more [`Subject`] here.

use std::sync::Arc;

use secretfs::{
    backend::{self, Backend},
    secret::SecretBytes,
    store::{Identities, Name, Recipients, Store},
};
use serde_json::{Value, json};

use crate::{
    support::{
        backend_conformance::{Subject, conforms},
        bao::Bao,
        scripted::Scripted,
    },
    vault::bed,
};

struct Embedded {
    root: tempfile::TempDir,
    store: Store,
}

impl Subject for Embedded {
    fn backend(&self) -> Arc<dyn Backend> {
        backend::store::open(self.store.dir(), self.root.path().join("identity"))
    }

    fn put(&self, path: &str, json: &str) {
        let value = SecretBytes::new(json.as_bytes().to_vec());
        self.store.put(&Name::parse(path).unwrap(), &value).unwrap();
    }

    fn remove(&self, path: &str) -> bool {
        self.store.remove(&Name::parse(path).unwrap()).unwrap();
        true
    }
}

#[tokio::test]
async fn the_embedded_store_conforms() {
    let root = tempfile::tempdir().unwrap();
    let (public, _) = Identities::load_or_make(&root.path().join("identity")).unwrap();
    let store = Store::init(root.path().join("store"), &Recipients::of(&public).unwrap()).unwrap();
    conforms(&Embedded { root, store }).await;
}

impl Subject for Scripted {
    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(self.clone())
    }

    fn put(&self, path: &str, json: &str) {
        Scripted::put(self, path, json);
    }

    fn remove(&self, _: &str) -> bool {
        false
    }
}

#[tokio::test]
async fn the_scripted_backend_conforms() {
    conforms(&Scripted::default()).await;
}

struct Kv {
    bao: Bao,
    version: u8,
}

impl Subject for Kv {
    fn backend(&self) -> Arc<dyn Backend> {
        let file = self.bao.file("root", &self.bao.root);
        let address = self.bao.address();
        bed::backend(&format!(
            "address: \"{address}\", auth: {{method: token, file: {file:?}}}"
        ))
    }

    fn put(&self, path: &str, json: &str) {
        let data: Value = serde_json::from_str(json).unwrap();
        match self.version {
            2 => drop(self.bao.put(path, data)),
            _ => drop(self.bao.ok(&format!("old/{path}"), data)),
        }
    }

    fn remove(&self, path: &str) -> bool {
        let place = if self.version == 2 {
            "secret/data"
        } else {
            "old"
        };
        let (status, _) = self
            .bao
            .call("DELETE", &format!("{place}/{path}"), &json!(null));
        status == 204
    }

    fn below(&self) -> &'static str {
        if self.version == 2 { "secret/" } else { "old/" }
    }
}

#[tokio::test]
async fn vault_conforms_with_both_versions_of_kv() {
    for version in [1, 2] {
        let Some(bao) = Bao::start() else { return };
        conforms(&Kv { bao, version }).await;
    }
}
