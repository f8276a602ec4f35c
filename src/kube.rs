//! The one Kubernetes client: reads and watches our CSIDriver object, writes Events, and nothing else.
//!
//! A [`Way`] says where the API server is and where our proof lies; [`Kube`] asks it. Every call has an end: [`limits::KUBE_CALL`] for an
//! answer, [`limits::KUBE_WATCH`] for a watch, which the server is asked to end by itself before; and every answer ends at
//! [`limits::KUBE_ANSWER_BYTES`], however much the server says. The token file and the CA file are read
//! again every minute (`kube` does it), and at once when the token is refused, so what the kubelet rotates needs no restart. TLS is rustls with aws-lc-rs, which `kube` makes
//! the process's provider; `ring` is not in the tree.
//!
//! What RBAC must allow: `get`, `list` and `watch` on `csidrivers` with our object's name as `resourceNames` (the API server takes the name
//! from the field selector `metadata.name=`, which each list and watch here has), and `create` on `events` of `events.k8s.io`.
//!
//! Does not: read the environment (`config` does; proxies named there are not used), retry (who asks knows when), judge the object
//! (`csi::driver_object`), or show what the server's answer or a kubeconfig says: causes are told in our own words.

pub mod reports;

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use ::kube::{
    Api, Client, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
    client::{AuthError, Body as KubeBody},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError, LoadDataError},
};
use futures_util::{StreamExt, stream::BoxStream};
use http_body_util::Limited;
use hyper::{Request, Response};
use k8s_openapi::api::storage::v1::CSIDriver;
use tower_service::Service;

use crate::{
    clock::{Clock, Mono},
    config::Env,
    error::{Error, Result, codes},
    limits,
};

/// Where Kubernetes puts a pod's service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The way to an API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// As a pod: the service account's `token` and `ca.crt`.
    InCluster {
        /// `KUBERNETES_SERVICE_HOST`.
        host: String,
        /// `KUBERNETES_SERVICE_PORT`.
        port: u16,
        /// The directory that holds both files.
        account: PathBuf,
    },
    /// As a kubeconfig says.
    Kubeconfig(PathBuf),
}

impl Way {
    /// The way that the environment shows: a pod's, else a kubeconfig's.
    ///
    /// # Errors
    /// `kubernetes.unreachable`: it shows none.
    pub fn find(env: &Env) -> Result<Self> {
        match (&env.kubernetes, &env.kubeconfig) {
            (Some((host, port)), _) => Ok(Self::InCluster {
                host: host.clone(),
                port: *port,
                account: ACCOUNT.into(),
            }),
            (None, Some(file)) => Ok(Self::Kubeconfig(file.clone())),
            (None, None) => Err(Error::new(&codes::KUBERNETES_UNREACHABLE).detail(
                "there is no API server to be found: neither KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, which every pod has, \
                 nor KUBECONFIG is set; where there is no Kubernetes, set `kubernetes: off`",
            )),
        }
    }

    async fn config(&self) -> Result<::kube::Config> {
        let mut config = match self {
            Self::InCluster {
                host,
                port,
                account,
            } => in_cluster(host, *port, account)?,
            Self::Kubeconfig(file) => from_file(file).await?,
        };
        config.connect_timeout = Some(limits::KUBE_CONNECT);
        config.write_timeout = Some(limits::KUBE_CALL);
        config.default_retry = false;
        Ok(config)
    }
}

fn in_cluster(host: &str, port: u16, account: &Path) -> Result<::kube::Config> {
    let address = match host.parse::<std::net::IpAddr>() {
        Ok(ip) => format!("https://{}", std::net::SocketAddr::new(ip, port)),
        Err(_) => format!("https://{host}:{port}"),
    };
    let uri = address.parse().map_err(|_| {
        Error::new(&codes::KUBERNETES_UNREACHABLE).detail("KUBERNETES_SERVICE_HOST is not a host")
    })?;
    let mut config = ::kube::Config::new(uri);
    config.root_cert_file = Some(account.join("ca.crt"));
    config.root_cert = Some(Vec::new()); // nobody else: without it the system's are loaded first, and an image from scratch has none
    config.auth_info = AuthInfo {
        token_file: Some(account.join("token").display().to_string()),
        ..AuthInfo::default()
    };
    Ok(config)
}

async fn from_file(file: &Path) -> Result<::kube::Config> {
    let wrong = |error: KubeconfigError| {
        Error::new(&codes::KUBERNETES_UNREACHABLE)
            .object(file.display())
            .detail(kubeconfig_problem(&error))
    };
    let read = Kubeconfig::read_from(file).map_err(wrong)?;
    let own_proxy = read
        .clusters
        .iter()
        .filter_map(|named| named.cluster.as_ref())
        .any(|cluster| cluster.proxy_url.is_some());
    let loaded = ::kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    let mut config = loaded.map_err(wrong)?;
    if own_proxy && config.proxy_url.is_some() {
        return Err(Error::new(&codes::KUBERNETES_UNREACHABLE)
            .object(file.display())
            .detail("it names a proxy, and proxies are not supported"));
    }
    config.proxy_url = None; // `kube` has taken it from the environment
    Ok(config)
}

/// A kubeconfig's problem without its text: a parser's message may quote a token.
fn kubeconfig_problem(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(cause, _) => format!("it cannot be read ({cause})"),
        KubeconfigError::LoadCertificateAuthority(LoadDataError::ReadFile(cause, file))
        | KubeconfigError::LoadClientCertificate(LoadDataError::ReadFile(cause, file))
        | KubeconfigError::LoadClientKey(LoadDataError::ReadFile(cause, file)) => {
            format!(
                "it names {}, which cannot be read ({cause})",
                file.display()
            )
        }
        KubeconfigError::CurrentContextNotSet => "it has no current-context".to_owned(),
        KubeconfigError::LoadContext(_) => "its current-context is not there".to_owned(),
        KubeconfigError::LoadClusterOfContext(_) => {
            "the cluster of its current-context is not there".to_owned()
        }
        KubeconfigError::MissingClusterUrl => "its cluster has no `server`".to_owned(),
        _ => "it is not a valid kubeconfig".to_owned(),
    }
}

/// The client. Cloned freely; all clones are one.
#[derive(Clone)]
pub struct Kube {
    way: Way,
    client: Arc<RwLock<Client>>,
    clock: Arc<dyn Clock>,
}

/// What a watch says of the object.
#[derive(Debug)]
pub enum Change {
    /// It is so now.
    Is(Box<CSIDriver>),
    /// It has been deleted.
    Gone,
}

impl Kube {
    /// A client for this way. Nothing is asked yet; files that the way names are read.
    ///
    /// # Errors
    /// `kubernetes.unreachable`: they cannot be.
    pub async fn open(way: &Way, clock: Arc<dyn Clock>) -> Result<Self> {
        Ok(Self {
            client: Arc::new(RwLock::new(client(way).await?)),
            way: way.clone(),
            clock,
        })
    }

    fn client(&self) -> Client {
        let client = self.client.read();
        client.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads all files of the way again, at once: the token was refused. If they cannot be read, all stays as it is.
    async fn reopen(&self) {
        if let Ok(fresh) = client(&self.way).await {
            *self.client.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
    }

    /// The CSIDriver object of this name, `None` if there is none, and the version from which to watch it.
    ///
    /// A list, not a get: only a list has a version that a watch may begin from. The object's own may be so old that the server has
    /// forgotten what came after it.
    ///
    /// # Errors
    /// `kubernetes.unreachable`.
    pub async fn driver(&self, name: &str) -> Result<(Option<CSIDriver>, String)> {
        let params = ListParams::default().fields(&only(name));
        let api: Api<CSIDriver> = Api::all(self.client());
        let list = self.within("read it", api.list(&params)).await;
        let list = list.map_err(|error| error.object(format!("CSIDriver {name}")))?;
        let version = list.metadata.resource_version.unwrap_or_default();
        let found = list.items.into_iter().find(|one| one.name_any() == name);
        Ok((found, version))
    }

    /// Watches it from `version` on.
    ///
    /// # Errors
    /// `kubernetes.unreachable`.
    pub async fn watch_driver(&self, name: &str, version: &str) -> Result<Watch> {
        let shorter = Duration::from_secs(fastrand::u64(0..=limits::KUBE_WATCH_SPREAD.as_secs()));
        let asked = limits::KUBE_WATCH.saturating_sub(shorter);
        let seconds = u32::try_from(asked.as_secs()).unwrap_or(u32::MAX);
        let params = WatchParams::default().fields(&only(name)).timeout(seconds);
        let api: Api<CSIDriver> = Api::all(self.client());
        let until = self.clock.now().after(asked + limits::KUBE_CALL);
        let stream = self.within("watch it", api.watch(&params, version)).await;
        Ok(Watch {
            stream: stream
                .map_err(|error| error.object(format!("CSIDriver {name}")))?
                .boxed(),
            name: name.to_owned(),
            clock: self.clock.clone(),
            until,
        })
    }

    /// Waits for a call, but not for ever.
    async fn within<T>(
        &self,
        step: &'static str,
        call: impl Future<Output = Result<T, ::kube::Error>>,
    ) -> Result<T> {
        tracing::trace!(step, "the API server is asked");
        let at = self.clock.now().after(limits::KUBE_CALL);
        let error = tokio::select! {
            biased;
            done = call => match done {
                Ok(done) => return Ok(done),
                Err(error) => error,
            },
            () = self.clock.sleep_until(at) => {
                let seconds = limits::KUBE_CALL.as_secs();
                return Err(Error::new(&codes::KUBERNETES_UNREACHABLE)
                    .step(step)
                    .detail(format!("the API server did not answer within {seconds} s")));
            }
        };
        if matches!(&error, ::kube::Error::Api(status) if status.code == 401) {
            self.reopen().await;
        }
        Err(unreachable(step, &error))
    }
}

async fn client(way: &Way) -> Result<Client> {
    let client = Client::try_from(way.config().await?)
        .map_err(|error| Error::new(&codes::KUBERNETES_UNREACHABLE).detail(problem(&error)))?;
    let namespace = client.default_namespace().to_owned();
    Ok(Client::new(Bounded(client), namespace))
}

/// A client whose answers end at [`limits::KUBE_ANSWER_BYTES`]: the library collects an answer, or a line of a watch, whole.
struct Bounded(Client);

impl Service<Request<KubeBody>> for Bounded {
    type Response = Response<Limited<KubeBody>>;
    type Error = ::kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ::kube::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ::kube::Error>> {
        Poll::Ready(Ok(())) // the client waits itself
    }

    fn call(&mut self, request: Request<KubeBody>) -> Self::Future {
        let client = self.0.clone();
        Box::pin(async move {
            let answer = client.send(request).await?;
            Ok(answer.map(|body| Limited::new(body, limits::KUBE_ANSWER_BYTES)))
        })
    }
}

fn only(name: &str) -> String {
    format!("metadata.name={name}")
}

/// A running watch of the CSIDriver object. Dropping it ends it.
pub struct Watch {
    stream: BoxStream<'static, Result<WatchEvent<CSIDriver>, ::kube::Error>>,
    name: String,
    clock: Arc<dyn Clock>,
    until: Mono,
}

impl Watch {
    /// The next change; `None` when the watch is over, as each is after some minutes: read the object and watch it anew.
    /// May be dropped while it waits.
    ///
    /// # Errors
    /// `kubernetes.unreachable`: the watch broke, or the version it began from is too old (410). Likewise.
    pub async fn next(&mut self) -> Result<Option<Change>> {
        loop {
            let event = tokio::select! {
                biased;
                event = self.stream.next() => event,
                () = self.clock.sleep_until(self.until) => None,
            };
            match event.transpose() {
                Ok(None) => return Ok(None),
                Ok(Some(WatchEvent::Bookmark(_))) => {}
                Ok(Some(WatchEvent::Added(one) | WatchEvent::Modified(one))) => {
                    if one.name_any() == self.name {
                        return Ok(Some(Change::Is(Box::new(one))));
                    }
                }
                Ok(Some(WatchEvent::Deleted(one))) => {
                    if one.name_any() == self.name {
                        return Ok(Some(Change::Gone));
                    }
                }
                Ok(Some(WatchEvent::Error(status))) => {
                    return Err(unreachable("watch it", &::kube::Error::Api(status)));
                }
                Err(error) => return Err(unreachable("watch it", &error)),
            }
        }
    }
}

fn unreachable(step: &'static str, error: &::kube::Error) -> Error {
    let told = Error::new(&codes::KUBERNETES_UNREACHABLE)
        .step(step)
        .detail(problem(error));
    let wait = match error {
        ::kube::Error::Api(status) => status.details.as_ref().map(|d| d.retry_after_seconds),
        _ => None,
    };
    match wait.filter(|seconds| *seconds > 0) {
        Some(seconds) => told.retry_after(Duration::from_secs(seconds.into())),
        None => told,
    }
}

/// What went wrong, in our words and the system's: no answer's text, no file's content, no helper program's output.
fn problem(error: &::kube::Error) -> String {
    match error {
        ::kube::Error::Api(status) => match status.code {
            401 => "401: the API server does not believe our token".to_owned(),
            403 => "403: our service account may not do this".to_owned(),
            410 => "410: the server has forgotten the version that was watched".to_owned(),
            code => format!("the API server answered {code}"),
        },
        ::kube::Error::Auth(AuthError::ReadTokenFile(cause, file)) => {
            format!("the token file {} cannot be read ({cause})", file.display())
        }
        ::kube::Error::Auth(_) => "our credentials cannot be used".to_owned(),
        ::kube::Error::SerdeError(_) | ::kube::Error::FromUtf8(_) => {
            "the answer is not an API server's".to_owned()
        }
        other => {
            let mut deepest: &dyn std::error::Error = other;
            while let Some(below) = deepest.source() {
                deepest = below;
            }
            if deepest.is::<hyper::http::header::InvalidHeaderValue>() {
                return "our token is not one line of text (a line break at the end counts)"
                    .to_owned();
            }
            // `Limited` says so, and the library may have wrapped it as an error of a stream
            if deepest.to_string().ends_with("length limit exceeded") {
                return "the API server's answer is longer than 4 MiB".to_owned();
            }
            format!("the API server cannot be reached ({deepest})")
        }
    }
}
