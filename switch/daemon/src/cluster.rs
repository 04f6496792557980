//! Taking part in a cloud of several hosts, as the settings have it.

use crate::admin::door::Door;
use crate::control::Control;
use crate::control::cluster::SAY_PAUSE;
use crate::notify::notify;
use crate::service::Daemon;
use crate::settings::{NodeRole, Settings};
use anyhow::Context;
use api::cluster::{Cluster, ClusterConfig, ClusterError, NodeRecord};
use api::etcd::{EtcdConfig, EtcdConfigError, EtcdError};
use api::http_client::EndpointError;
use api::model::Text;
use api::store::{Store, StoreError};
use api::watched::Rights;
use pipelines::Standard;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Pause between two tries to read what there is, at the start.
const READ_PAUSE: Duration = Duration::from_millis(500);
/// How long what follows us at boot waits with us for etcd: longer than one that starts with this host takes. Then READY is
/// said, for nothing that can be back is missing: the guests that libvirt starts after us may be those that etcd runs in.
const READY_AFTER: Duration = Duration::from_secs(15);

/// Earlier starts of this host that its own store names: of those since one ended in order, only some can seem to live.
const BOOTS_MAX: usize = 16;
/// Under which kind and key the store has them.
pub(crate) const BOOTS: (&str, &str) = ("node", "boots");

/// Our part in the cloud that the settings name; `None`: this host is alone. `own` is the store of this host alone.
///
/// # Errors
/// What is wrong with the settings or the files they name; what `own` said.
pub(crate) fn of(settings: &Settings, rights: Rights, own: &Store) -> anyhow::Result<Option<Arc<Cluster>>> {
    let store = &settings.store;
    let Some(endpoints) = store.etcd() else { return Ok(None) };
    let boots_before = boots(own)?;
    let has_identity = !store.certificate.as_os_str().is_empty();
    let config = ClusterConfig {
        etcd: EtcdConfig {
            endpoints,
            ca: store.ca.clone(),
            identity: has_identity.then(|| (store.certificate.clone(), store.key.clone())),
            user: (!store.user.is_empty()).then(|| (store.user.clone(), store.password_file.clone())),
            rights,
        },
        prefix: store.prefix.clone(),
        host: settings.node.host.clone(),
        lease_s: settings.node.lease_s,
        copy: Some(settings.state_dir.join("cloud.copy")),
        boots_before: boots_before.clone(),
    };
    let cluster = Cluster::new(config).map_err(|error| {
        let key = match &error {
            ClusterError::Config(EtcdConfigError::File(file)) if file.path() == store.key => "key",
            ClusterError::Config(EtcdConfigError::File(_)) => "password_file",
            ClusterError::Config(EtcdConfigError::Endpoint(EndpointError::Certificates { path, .. })) => {
                let is = |file: &std::path::Path| file.display().to_string() == *path;
                if is(&store.certificate) {
                    "certificate"
                } else if is(&store.key) {
                    "key"
                } else {
                    "ca"
                }
            }
            ClusterError::Config(EtcdConfigError::Endpoint(_)) | ClusterError::Thread(_) => "url",
        };
        settings.fault("store", key, error)
    })?;
    let first = (boots_before.len() + 1).saturating_sub(BOOTS_MAX);
    let boots: Vec<&Text> = boots_before.iter().chain([cluster.boot()]).skip(first).collect();
    own.put_extra(BOOTS.0, BOOTS.1, &serde_json::to_vec(&boots).expect("texts"))?;
    Ok(Some(Arc::new(cluster)))
}

/// Earlier starts of this host, the last one last.
fn boots(own: &Store) -> Result<Vec<Text>, StoreError> {
    // What is none of ours names nobody.
    let known = own.extras(BOOTS.0)?.remove(BOOTS.1).and_then(|value| serde_json::from_slice(&value).ok());
    Ok(known.unwrap_or_default())
}

/// Waits until what there is can be read, or, if etcd is away, takes what this host knew last; false: we are asked to end
/// meanwhile. What is wrong with it is told, to who asks at the `door` too, and once more looked at: it may be mended.
///
/// # Errors
/// If there is no thread to be had.
pub(crate) fn wait(
    runtime: &Runtime,
    cluster: &Arc<Cluster>,
    asked_to_end: &mut (impl Future<Output = ()> + Unpin),
    door: &mut Door,
) -> anyhow::Result<bool> {
    let (begin, mut is_ready) = (Instant::now(), false);
    let (mut told, mut has_tried_copy) = (String::new(), false);
    loop {
        let reader = cluster.clone();
        let read = runtime.spawn_blocking(move || reader.probe());
        let read = runtime.block_on(async {
            tokio::select! {
                read = read => Some(read),
                () = &mut *asked_to_end => None,
            }
        });
        let Some(read) = read else { return Ok(false) };
        match read.context("reading etcd")? {
            Ok(()) => return Ok(true),
            // What etcd says and cannot be used is no reason to believe something older, nor that it does not know us.
            Err(StoreError::Etcd(EtcdError::Unreachable(_) | EtcdError::Unanswered(_)))
                if !std::mem::replace(&mut has_tried_copy, true) && cluster.remember() =>
            {
                return Ok(true);
            }
            Err(error) => {
                // On one line, whatever etcd said.
                let error = error.to_string().replace('\n', " ");
                if error != told {
                    tracing::error!(error, "the state cannot be read from etcd; trying again");
                    door.answer_meanwhile(format!("the daemon waits for etcd: {error}"))
                        .context("serving the admin socket")?;
                    notify(&format!("STATUS=waiting for etcd: {error}"));
                    told = error;
                }
                if !is_ready && begin.elapsed() >= READY_AFTER {
                    is_ready = true;
                    notify("READY=1");
                }
            }
        }
        let is_ended = runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(READ_PAUSE) => false,
                () = &mut *asked_to_end => true,
            }
        });
        if is_ended {
            return Ok(false);
        }
    }
}

/// Says again and again that we live and what is plugged here.
pub(crate) fn start(daemon: &Arc<Daemon<Standard>>) -> std::io::Result<()> {
    let settings = &daemon.settings;
    let role = |role: &NodeRole| if *role == NodeRole::Api { "api".to_owned() } else { "switch".to_owned() };
    let node = NodeRecord {
        tunnel: settings.tunnel.local_ip,
        physical_networks: settings.uplink.iter().map(|uplink| uplink.physical_network.clone()).collect(),
        roles: settings.node.roles.iter().map(role).collect(),
        ..NodeRecord::default()
    };
    let control: std::sync::Weak<Control<Standard>> = Arc::downgrade(&daemon.control);
    std::thread::Builder::new().name("cluster".into()).spawn(move || {
        while let Some(control) = control.upgrade() {
            control.say(&node);
            drop(control);
            std::thread::sleep(SAY_PAUSE);
        }
    })?;
    Ok(())
}
