//! Whom a backend believes, and as whom it shows itself: rustls with aws-lc-rs, from PEM files.
//!
//! The files are read for each new connection and looked at again only where they have changed, so what rotates needs no restart.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::fault::Fault;
use crate::{limits, secret::SecretBytes, sys::stack};

/// Where the system's certificate authorities are, where no file is named: Debian's place, which other distributions link to.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Files of a backend's TLS. All paths absolute.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TlsFiles {
    /// Certificate authorities that are believed, and no other; without it the system's.
    pub ca: Option<PathBuf>,
    /// The name that the server's certificate must be for, where that is not the address's host.
    pub server_name: Option<String>,
    /// Our certificate with its chain, and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The configuration made of the files as they were last read.
#[derive(Default)]
pub(super) struct Tls {
    last: Mutex<Option<Last>>,
}

struct Last {
    texts: Texts,
    config: Arc<ClientConfig>,
}

struct Texts {
    ca: SecretBytes,
    client: Option<(SecretBytes, SecretBytes)>,
}

impl Texts {
    fn read(files: &TlsFiles) -> Result<Self, Fault> {
        let ca = files.ca.as_deref().unwrap_or(Path::new(SYSTEM_ROOTS));
        let client = files
            .client
            .as_ref()
            .map(|(certificate, key)| Ok::<_, Fault>((read(certificate)?, read(key)?)));
        Ok(Self {
            ca: read(ca)?,
            client: client.transpose()?,
        })
    }

    fn same(&self, other: &Self) -> bool {
        let client = match (&self.client, &other.client) {
            (Some(a), Some(b)) => a.0.same(&b.0) && a.1.same(&b.1),
            (None, None) => true,
            _ => false,
        };
        client && self.ca.same(&other.ca)
    }
}

impl Tls {
    /// The configuration of the files as they are now. Blocks for as long as reading them takes.
    pub(super) fn config(&self, files: &TlsFiles) -> Result<Arc<ClientConfig>, Fault> {
        let texts = Texts::read(files)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.as_ref().filter(|last| last.texts.same(&texts)) {
            return Ok(last.config.clone());
        }
        tracing::trace!("TLS files are read anew");
        let config = stack::clean(|| make(files, &texts))?; // a key was on it
        *last = Some(Last {
            texts,
            config: config.clone(),
        });
        Ok(config)
    }
}

fn make(files: &TlsFiles, texts: &Texts) -> Result<Arc<ClientConfig>, Fault> {
    let wrong = |file: &Path, what| Fault::File(file.to_owned(), what);
    let ca = files.ca.as_deref().unwrap_or(Path::new(SYSTEM_ROOTS));
    let mut roots = RootCertStore::empty();
    for one in CertificateDer::pem_slice_iter(texts.ca.expose()) {
        let one = one.map_err(|_| wrong(ca, "is not PEM"))?;
        match (roots.add(one), &files.ca) {
            (Ok(()), _) | (Err(_), None) => {} // of the system's some are always too old
            (Err(_), Some(_)) => return Err(wrong(ca, "holds what is no certificate authority")),
        }
    }
    if roots.is_empty() {
        return Err(wrong(ca, "holds no certificate"));
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Fault::Tls)?
        .with_root_certificates(roots);
    let mut config = match (&files.client, &texts.client) {
        (Some((certificate, key)), Some((chain, secret))) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.expose()).collect();
            let chain = chain.map_err(|_| wrong(certificate, "is not PEM"))?;
            if chain.is_empty() {
                return Err(wrong(certificate, "holds no certificate"));
            }
            let secret = PrivateKeyDer::from_pem_slice(secret.expose())
                .map_err(|_| wrong(key, "holds no private key in PEM"))?;
            let made = builder.with_client_auth_cert(chain, secret);
            made.map_err(|_| wrong(key, "is not the key of the certificate"))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read(file: &Path) -> Result<SecretBytes, Fault> {
    let unreadable = |_| Fault::File(file.to_owned(), "cannot be read");
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    let mut bytes = Vec::new();
    let most = limits::BACKEND_PEM_BYTES;
    opened
        .take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(Fault::File(file.to_owned(), "is longer than 1 MiB"));
    }
    Ok(SecretBytes::new(bytes))
}
