//! Where the state is and which part this node plays in it: `[store]` and `[node]`, and what cannot be where hosts share it.

use super::sections::{RawNode, RawStore};
use super::{
    Auto, Driver, NodeRole, NodeSettings, Settings, SettingsError, Source, StoreSettings, bounded, check_path,
};
use api::http_client::Authority;
use std::path::{Path, PathBuf};

/// Shortest lease, seconds: it is kept alive every third of it, and etcd may take three seconds to answer.
const LEASE_S_MIN: u64 = 6;
/// Longest lease, seconds: so long a dead node's ports are UP.
const LEASE_S_MAX: u64 = 600;
/// What cannot be where several hosts share the state.
pub(super) fn check_shared(settings: &Settings) -> Result<(), SettingsError> {
    let Settings { store, attach, plugin, node, uplink, .. } = settings;
    if store.etcd().is_none() {
        return Ok(());
    }
    if attach.auto != Auto::None {
        let message =
            "with store.url \"etcd:…\" every host would make a device for every attachment; plug where it is to be";
        return Err(settings.fault("attach", "auto", message));
    }
    if plugin.driver == Driver::Fake {
        return Err(settings.fault("plugin", "driver", "\"fake\" keeps records in memory, not in etcd"));
    }
    if !node.is(NodeRole::Switch) && !uplink.is_empty() {
        return Err(settings.fault("node", "roles", "an uplink is for a node with role \"switch\""));
    }
    Ok(())
}

pub(super) fn resolve_node(raw: RawNode, is_shared: bool, source: &Source) -> Result<NodeSettings, SettingsError> {
    let roles = raw.roles.unwrap_or_else(|| vec![NodeRole::Api, NodeRole::Switch]);
    let is_whole = roles.contains(&NodeRole::Api) && roles.contains(&NodeRole::Switch);
    if roles.is_empty() || (roles.len() > 1 && !is_whole) || roles.len() > 2 {
        return Err(source.fault("node", "roles", "must be \"api\", \"switch\" or both, each once"));
    }
    if !is_whole && !is_shared {
        return Err(source.fault("node", "roles", "a node that is not both shares its state: set store.url to etcd:…"));
    }
    let host = match raw.host {
        Some(host) if host.is_empty() || host.contains(['\0', '/']) => {
            return Err(source.fault("node", "host", "must be a name"));
        }
        Some(host) => host,
        None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    let lease_s = bounded("node", "lease_s", raw.lease_s.unwrap_or(10), LEASE_S_MIN, LEASE_S_MAX, source)? as u32;
    Ok(NodeSettings { roles, host, lease_s })
}

pub(super) fn resolve_store(raw: RawStore, state_dir: &Path, source: &Source) -> Result<StoreSettings, SettingsError> {
    let fault = |key, message: String| source.fault("store", key, message);
    let own_file = state_dir.join("state.redb");
    let url = raw.url.unwrap_or_else(|| format!("redb:{}", own_file.display()));
    let is_given = [
        ("ca", raw.ca.is_some()),
        ("certificate", raw.certificate.is_some()),
        ("key", raw.key.is_some()),
        ("user", raw.user.is_some()),
        ("password_file", raw.password_file.is_some()),
        ("prefix", raw.prefix.is_some()),
    ];
    let mut store = StoreSettings {
        seal_key: raw.seal_key.unwrap_or_else(|| state_dir.join("seal.key")),
        ca: raw.ca.unwrap_or_else(|| "/etc/ssl/certs/ca-certificates.crt".into()),
        certificate: raw.certificate.unwrap_or_default(),
        key: raw.key.unwrap_or_default(),
        user: raw.user.unwrap_or_default(),
        password_file: raw.password_file.unwrap_or_else(|| state_dir.join("etcd-password")),
        prefix: raw.prefix.unwrap_or_else(|| "/qvs".into()),
        file: own_file,
        url,
    };
    let is_set = |path: &PathBuf| !path.as_os_str().is_empty();
    for (key, path) in [("seal_key", &store.seal_key), ("ca", &store.ca), ("password_file", &store.password_file)] {
        check_path(path).map_err(|message| fault(key, message))?;
    }
    for (key, path, other, its) in
        [("certificate", &store.certificate, "key", &store.key), ("key", &store.key, "certificate", &store.certificate)]
    {
        if is_set(path) {
            check_path(path).map_err(|message| fault(key, message))?;
            if !is_set(its) {
                return Err(fault(key, format!("a certificate needs both: set store.{other} too")));
            }
        }
    }
    if !store.prefix.starts_with('/') || store.prefix.ends_with('/') || store.prefix.contains('\0') {
        return Err(fault("prefix", format!("{:?} must begin with a slash and end with none", store.prefix)));
    }
    match store.url.split_once(':') {
        Some(("redb", path)) => {
            check_path(Path::new(path)).map_err(|message| fault("url", message))?;
            if let Some((key, _)) = is_given.into_iter().find(|(_, is_given)| *is_given) {
                return Err(fault(key, "is for store.url \"etcd:…\"".into()));
            }
            store.file = path.into();
            Ok(store)
        }
        Some(("etcd", _)) => {
            for url in store.etcd().unwrap_or_default() {
                let is_url = url.strip_prefix("http://").or(url.strip_prefix("https://")).is_some_and(|rest| {
                    !rest.is_empty() && !rest.contains(['/', '?', '#', '@']) && rest.parse::<Authority>().is_ok()
                });
                if !is_url {
                    let message = format!("{url:?} must be like http://192.0.2.1:2379 or https://etcd1.example:2379");
                    return Err(fault("url", message));
                }
            }
            Ok(store)
        }
        _ => Err(fault("url", format!("{:?} must be redb: and an absolute path, or etcd: and URLs", store.url))),
    }
}
