//! The sections of the settings file: as they are written (`Raw…`, everything optional) and as they are in force.

use super::underlay::{RawSegments, RawTunnel};
use super::uplinks::RawUplink;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

macro_rules! raw {
    ($($name:ident { $($field:ident: $type:ty,)* })*) => {
        $(#[derive(Deserialize, Default)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name { $(pub(super) $field: Option<$type>,)* })*
    };
}

raw! {
    Raw {
        state_dir: PathBuf, run_dir: PathBuf,
        api: RawApi, admin: RawAdmin, switch: RawSwitch, mac: RawMac, vhost: RawVhost, attach: RawAttach,
        uplink: Vec<RawUplink>, tunnel: RawTunnel, segments: RawSegments,
        plugin: RawPlugin, node: RawNode, store: RawStore, identity: RawIdentity, keystone: RawKeystone, quota: RawQuota,
        metrics: RawMetrics,
    }
    RawApi { listen: String, certificate: PathBuf, key: PathBuf, hosts: Vec<String>, peer_connections: u64, strict_essex: bool, }
    RawAdmin { socket: PathBuf, group: String, }
    RawSwitch { workers: toml::Value, poll: PollMode, idle_us: u64, rebalance: bool, arp_suppression: bool, }
    RawMac { age_s: u64, max: u64, }
    RawVhost { dir: PathBuf, role: Role, owner: String, group: String, mode: String, }
    RawAttach { auto: Auto, claim: Claim, }
    RawPlugin { driver: Driver, extensions: toml::Value, }
    RawNode { roles: Vec<NodeRole>, host: String, lease_s: u64, }
    RawStore {
        url: String, seal_key: PathBuf, ca: PathBuf, certificate: PathBuf, key: PathBuf, user: String, password_file: PathBuf,
        prefix: String,
    }
    RawIdentity { mode: IdentityMode, insecure: bool, tokens: PathBuf, policy: String, }
    RawKeystone {
        url: String, user: String, user_domain: String, password_file: PathBuf, project: String, project_domain: String,
        ca: PathBuf, cache_s: u64, timeout_s: u64,
    }
    RawQuota { networks: i64, ports: i64, tenants: String, }
    RawMetrics { listen: String, }
}

macro_rules! choice {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant,)* })*
    };
}

choice! {
    /// When workers sleep.
    PollMode {
        /// After `idle_us` without a frame.
        Adaptive,
        /// Never.
        Always,
    }
    /// Who listens on a vhost-user socket; the switch's role.
    Role {
        /// The switch.
        Server,
        /// QEMU.
        Client,
    }
    /// Which devices are made for attachments nobody plugged.
    Auto {
        /// None.
        None,
        /// A vhost-user socket in `vhost.dir`.
        VhostUser,
        /// A TAP in the daemon's namespace.
        Tap,
    }
    /// Which interface ids a tenant may attach.
    Claim {
        /// Any.
        Any,
        /// Those plugged for the tenant.
        Registered,
    }
    /// Which plugin serves the API.
    Driver {
        /// Drives this switch.
        Native,
        /// Keeps records only.
        Fake,
    }
    /// How the API's clients are known.
    IdentityMode {
        /// Not at all.
        Noauth,
        /// By the tokens of a file.
        Tokens,
        /// By Keystone's tokens.
        Keystone,
    }
    /// A part this node plays.
    NodeRole {
        /// Serves the API.
        Api,
        /// Moves frames.
        Switch,
    }
}

/// On which CPUs workers run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Workers {
    /// As the switch sees fit.
    #[serde(serialize_with = "serialize_auto")]
    Auto,
    /// One worker on each of these.
    Cpus(Vec<usize>),
}

fn serialize_address<S: serde::Serializer>(address: &Option<SocketAddr>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&address.map(|address| address.to_string()).unwrap_or_default())
}

fn serialize_auto<S: serde::Serializer>(to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str("auto")
}

fn serialize_or_all<S: serde::Serializer>(list: &Option<Vec<String>>, to: S) -> Result<S::Ok, S::Error> {
    match list {
        Some(list) => list.serialize(to),
        None => to.serialize_str("all"),
    }
}

/// `[api]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ApiSettings {
    /// Address and port of the API.
    pub(crate) listen: SocketAddr,
    /// The listener's certificate, and after it those that vouch for it; empty: plain HTTP.
    pub(crate) certificate: PathBuf,
    /// Its private key; empty with the certificate.
    pub(crate) key: PathBuf,
    /// Host names accepted besides loopback ones.
    pub(crate) hosts: Vec<String>,
    /// Connections at a time from one address beyond loopback.
    pub(crate) peer_connections: usize,
    /// Reproduce the recorded oddities of 2012.
    pub(crate) strict_essex: bool,
}

impl ApiSettings {
    /// Whether the listener speaks TLS.
    pub(crate) fn has_tls(&self) -> bool {
        !self.certificate.as_os_str().is_empty()
    }
}

/// `[admin]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AdminSettings {
    /// Path of the admin socket.
    pub(crate) socket: PathBuf,
    /// Group that may show and trace; empty: none.
    pub(crate) group: String,
}

/// `[switch]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SwitchSettings {
    /// The workers' CPUs.
    pub(crate) workers: Workers,
    /// When workers sleep.
    pub(crate) poll: PollMode,
    /// Microseconds without a frame before a worker sleeps.
    pub(crate) idle_us: u64,
    /// Move queues between workers by load.
    pub(crate) rebalance: bool,
    /// Answer ARP and ND for known neighbours instead of flooding it.
    pub(crate) arp_suppression: bool,
}

/// `[mac]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MacSettings {
    /// Seconds after which a MAC not seen is forgotten.
    pub(crate) age_s: u32,
    /// Learnt entries at most.
    pub(crate) max: usize,
}

/// `[vhost]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct VhostSettings {
    /// Where automatic sockets go.
    pub(crate) dir: PathBuf,
    /// Role of sockets plugged without one.
    pub(crate) role: Role,
    /// Owner of sockets we make; empty: us.
    pub(crate) owner: String,
    /// Group of sockets we make; empty: ours.
    pub(crate) group: String,
    /// Permission bits of sockets we make, octal.
    pub(crate) mode: String,
}

impl VhostSettings {
    /// The permission bits as a number.
    pub(crate) fn mode_bits(&self) -> u32 {
        super::parse_mode(&self.mode).expect("checked by Settings::parse")
    }
}

/// `[attach]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AttachSettings {
    /// Automatic devices.
    pub(crate) auto: Auto,
    /// Which ids may be attached.
    pub(crate) claim: Claim,
}

/// `[plugin]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PluginSettings {
    /// Which plugin.
    pub(crate) driver: Driver,
    /// The aliases of the API's extensions to serve; `None`, told as "all": those that the plugin can carry.
    #[serde(serialize_with = "serialize_or_all")]
    pub(crate) extensions: Option<Vec<String>>,
}

/// `[node]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NodeSettings {
    /// The parts this node plays.
    pub(crate) roles: Vec<NodeRole>,
    /// This node's name; no other of the same cloud has it.
    pub(crate) host: String,
    /// Seconds after which a node that is heard of no more counts as dead.
    pub(crate) lease_s: u32,
}

impl NodeSettings {
    /// Whether it plays a part.
    pub(crate) fn is(&self, role: NodeRole) -> bool {
        self.roles.contains(&role)
    }
}

/// `[store]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StoreSettings {
    /// Where the state is.
    pub(crate) url: String,
    /// The file of the key that seals secrets in it; not part of it, nor of its backups.
    pub(crate) seal_key: PathBuf,
    /// Certificates that vouch for etcd's.
    pub(crate) ca: PathBuf,
    /// Our certificate, shown to etcd; empty: none.
    pub(crate) certificate: PathBuf,
    /// Its private key; empty with the certificate.
    pub(crate) key: PathBuf,
    /// etcd's user; empty: none.
    pub(crate) user: String,
    /// The file with its password.
    pub(crate) password_file: PathBuf,
    /// What all our keys in etcd begin with.
    pub(crate) prefix: String,
    /// The file of what is this host's alone: all there is, or with etcd its plugs.
    #[serde(skip)]
    pub(crate) file: PathBuf,
}

impl StoreSettings {
    /// The file of a `redb:` store; with etcd, that of this host's plugs.
    pub(crate) fn path(&self) -> &Path {
        &self.file
    }

    /// Whether etcd's password leaves this host as anybody on the way can read it.
    pub(crate) fn password_goes_in_clear(&self) -> bool {
        let urls = self.etcd().unwrap_or_default();
        !self.user.is_empty() && urls.iter().any(|url| api::http_client::leaves_host_in_clear(url))
    }

    /// The URLs of etcd's members; `None`: the state is in a file.
    pub(crate) fn etcd(&self) -> Option<Vec<String>> {
        let urls = self.url.strip_prefix("etcd:")?;
        Some(urls.split(',').map(|url| url.trim().to_owned()).collect())
    }
}

/// `[identity]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct IdentitySettings {
    /// How clients are known.
    pub(crate) mode: IdentityMode,
    /// Serve beyond loopback what should not be: without identity, or without TLS.
    pub(crate) insecure: bool,
    /// The file of tokens, for mode `tokens`.
    pub(crate) tokens: PathBuf,
    /// The file of the policy; empty: as compiled in.
    pub(crate) policy: String,
}

/// `[keystone]`, for mode `keystone`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct KeystoneSettings {
    /// Where it is; empty: nowhere.
    pub(crate) url: String,
    /// The service user by which tokens are validated, and its domain's name.
    pub(crate) user: String,
    pub(crate) user_domain: String,
    /// The file with its password.
    pub(crate) password_file: PathBuf,
    /// The project of its token, and that one's domain's name.
    pub(crate) project: String,
    pub(crate) project_domain: String,
    /// Certificates that vouch for Keystone's.
    pub(crate) ca: PathBuf,
    /// Seconds a valid token is not asked about again: how long a revoked one may still open.
    pub(crate) cache_s: u32,
    /// Seconds that one question may take.
    pub(crate) timeout_s: u32,
}

/// `[metrics]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MetricsSettings {
    /// Where metrics are served over TCP; `None`, in the file "": only on the admin socket.
    #[serde(serialize_with = "serialize_address")]
    pub(crate) listen: Option<SocketAddr>,
}
