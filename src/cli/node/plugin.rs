//! The parts of a node plugin, put together: who mounts, who may read, who tells, and what of it changes while it runs.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use tokio::{sync::watch, time::timeout};

use crate::{
    admin::scrape::{Scrape, Scraped},
    backend::registry::Registry,
    cli::{
        reload::{Reload, Reloader},
        version,
    },
    clock::{Clock, SystemClock},
    config::{Config, Env},
    csi::{
        context::{Expect, TokensIn},
        driver_object::Watching,
        log::RpcLog,
        node::Node,
        plugin_info::PluginInfo,
        server::Services,
    },
    error::Result,
    kube::{Kube, Way, reports::Writer},
    limits,
    mount::{Root, tmpfs::TmpfsMounter},
    observe::{audit::Audit, events::Events, metrics::Metrics, ready::Readiness},
    policy::Policy,
    source::pool::Rules,
    sys::{fs::RealFs, process},
    volume::{Mounters, Parts, Settings, Volumes, record::Records},
};

/// A node plugin, before it is served.
pub struct Plugin {
    pub config: Config,
    pub node: String,
    pub volumes: Volumes,
    pub readiness: Readiness,
    pub audit: Audit,
    pub metrics: Metrics,
    pub reloader: Reloader,
    expect: watch::Receiver<Expect>,
    heard: watch::Receiver<bool>,
    settings: watch::Sender<Arc<Settings>>,
    /// Of tokens that backends need.
    audiences: watch::Sender<BTreeSet<String>>,
}

impl Plugin {
    /// Puts the parts together. `way`: how the API server is reached, if it is to be. Call it inside a runtime.
    ///
    /// # Errors
    /// `node.io`, `kubernetes.unreachable`, those of the backends' settings.
    pub async fn start(config: Config, file: &Path, env: &Env, way: Option<Way>) -> Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let node = config.node.clone().unwrap_or_else(process::host_name);
        let readiness = Readiness::default();
        tracing::trace!(node, "the plugin is put together");
        let mounter = TmpfsMounter::new(Arc::new(RealFs)).below(Root {
            dir: config.kubelet_dir.clone(),
            shared: config.require_propagation,
        });
        let propagation = mounter.clone();
        readiness.ask("propagation", move || propagation.propagates());
        let audit = Audit::start(&config.audit, clock.clone())?;
        let metrics = Metrics::default();
        let registry = Registry::rebuild(&Registry::counting(metrics.clone()), &config)?;
        let audiences = watch::Sender::new(registry.audiences());
        let expect = watch::Sender::new(Expect {
            kubelet_dir: config.kubelet_dir.clone(),
            tokens_in: TokensIn::Either,
        });
        let expected = expect.subscribe();
        let heard = watch::Sender::new(way.is_none());
        let heard_of = heard.subscribe();
        let events = match way {
            None => Events::off(),
            Some(way) => in_cluster(
                node.clone(),
                Watching {
                    kube: Kube::open(&way, clock.clone()).await?,
                    clock: clock.clone(),
                    driver: config.driver.clone(),
                    audiences: audiences.subscribe(),
                    readiness: readiness.clone(),
                    expect,
                    heard,
                },
            ),
        };
        let settings = settings(&config, registry);
        let settings = watch::Sender::new(Arc::new(settings));
        let volumes = Volumes::start(Parts {
            clock: clock.clone(),
            settings: settings.subscribe(),
            mounters: Mounters {
                tmpfs: Arc::new(mounter),
            },
            rules: Rules::default(),
            records: Records::below(&config.runtime_dir),
            events,
            audit: audit.clone(),
            metrics: metrics.clone(),
        });
        let reloader = Reloader::new(file.to_owned(), config.clone(), env.clone(), clock)?;
        Ok(Self {
            config,
            node,
            volumes,
            readiness,
            audit,
            metrics,
            reloader,
            expect: expected,
            heard: heard_of,
            settings,
            audiences,
        })
    }

    /// Until the CSIDriver object has been judged; a moment at most, and none where it is not asked for.
    pub async fn heard(&self) {
        let mut heard = self.heard.clone();
        let _ = timeout(limits::NODE_HEARD, heard.wait_for(|heard| *heard)).await;
    }

    /// The CSI services.
    pub fn services(&self) -> Services {
        let node = Node {
            node: self.node.clone(),
            volumes: self.volumes.clone(),
            expect: self.expect.clone(),
            readiness: self.readiness.clone(),
            audit: self.audit.clone(),
            log: RpcLog::new(Arc::new(SystemClock)).counting(self.metrics.clone()),
        };
        let info = PluginInfo::new(self.config.driver.clone(), self.readiness.clone());
        Services::new(Arc::new(info), Arc::new(node))
            .measured(Arc::new(SystemClock), self.metrics.clone())
    }

    /// What a scrape looks at.
    pub fn scrape(&self) -> Scrape {
        let last = self.reloader.last();
        let config = move || {
            let last = last.borrow();
            (last.successful, last.successful_at)
        };
        Scrape::new(Scraped {
            metrics: self.metrics.clone(),
            volumes: self.volumes.clone(),
            audit: self.audit.clone(),
            commit: version::COMMIT,
            config: Box::new(config),
        })
    }

    /// Applies a changed configuration, all of it or, if a backend cannot be made, nothing. A backend whose settings are as they were stays,
    /// with its sources.
    pub fn apply(&mut self, reload: &Reload) {
        let before = self.settings.borrow().clone();
        match Registry::rebuild(&before.registry, &reload.config) {
            Ok(registry) => {
                self.audiences.send_replace(registry.audiences());
                let settings = settings(&reload.config, registry);
                self.settings.send_replace(Arc::new(settings));
            }
            Err(error) => self.reloader.withdraw(error),
        }
    }
}

/// From now on Events are written, and the CSIDriver object is watched.
fn in_cluster(node: String, watching: Watching) -> Events {
    let (events, queue) = Events::channel();
    let writer = Writer {
        kube: watching.kube.clone(),
        driver: watching.driver.clone(),
        node,
        counts: events.counts(),
    };
    tokio::spawn(writer.run(queue));
    tokio::spawn(watching.start());
    events
}

/// What the configuration says of volumes.
fn settings(config: &Config, registry: Registry) -> Settings {
    Settings {
        registry,
        policy: Policy::new(config.policy.clone()),
        volume_limits: config.volume_limits,
        node_limits: config.node_limits,
    }
}
