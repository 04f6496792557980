//! The settings file: TOML, every key optional, every unknown key refused with file and line.
//!
//! Two steps. Serde reads the text into [`Raw`], which knows keys and types. [`Settings::parse`] then derives what is unset,
//! checks values, and refuses those that ask for something this version cannot do: a setting that is silently without
//! effect is worse than none. Both kinds of fault name the line. What depends on the host (CPUs, users, groups) is
//! checked only where it is used, because clients read the same file to find the daemon.

mod bond;
mod quota;
mod sections;
mod source;
mod store;
mod underlay;
mod uplinks;

use api::server::Limits;
pub(crate) use bond::BondUplink;
pub(crate) use quota::QuotaSettings;
pub(crate) use sections::*;
use serde::Serialize;
use source::Source;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use store::{check_shared, resolve_node, resolve_store};
use switch::ids::WORKERS_MAX;
pub(crate) use underlay::*;
pub(crate) use uplinks::*;

/// Where the settings are if no file is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/qvs/qvs.toml";
/// Longest path of a UNIX socket, bytes: `sun_path` less its NUL (unix(7)).
pub(crate) const SOCKET_PATH_MAX: usize = 107;
/// Longest idle time before a worker sleeps, microseconds: a second of burning a core for nothing is enough.
const IDLE_US_MAX: u64 = 1_000_000;
/// Most MAC entries: 16 Mi of them take 512 MiB.
const MAC_ENTRIES_MAX: u64 = 1 << 24;
/// Longest MAC age, seconds (IEEE 802.1Q-2018 table 8-6 allows up to 1,000,000).
const MAC_AGE_S_MAX: u64 = 1_000_000;

/// Longest time that a token is not asked about again, seconds.
const CACHE_S_MAX: u64 = 86_400;
/// Longest time a client may wait for Keystone, seconds; clients give up after a minute or so.
const KEYSTONE_TIMEOUT_S_MAX: u64 = 60;

/// A settings file that cannot be used; its text is the one line the user sees.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The file cannot be read.
    #[error("{file}: {source}")]
    Unreadable {
        /// Its path.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key or value that is wrong.
    #[error("{file}:{line}: {message}")]
    Fault {
        /// Its path.
        file: String,
        /// 1-based.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
}

/// The settings in force: nothing is unset.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    /// What must survive a reboot.
    pub(crate) state_dir: PathBuf,
    /// Sockets and locks.
    pub(crate) run_dir: PathBuf,
    /// `[api]`
    pub(crate) api: ApiSettings,
    /// `[admin]`
    pub(crate) admin: AdminSettings,
    /// `[switch]`
    pub(crate) switch: SwitchSettings,
    /// `[mac]`
    pub(crate) mac: MacSettings,
    /// `[vhost]`
    pub(crate) vhost: VhostSettings,
    /// `[attach]`
    pub(crate) attach: AttachSettings,
    /// `[[uplink]]`
    pub(crate) uplink: Vec<UplinkSettings>,
    /// `[tunnel]`
    pub(crate) tunnel: TunnelSettings,
    /// `[segments]`
    pub(crate) segments: SegmentsSettings,
    /// `[plugin]`
    pub(crate) plugin: PluginSettings,
    /// `[node]`
    pub(crate) node: NodeSettings,
    /// `[store]`
    pub(crate) store: StoreSettings,
    /// `[identity]`
    pub(crate) identity: IdentitySettings,
    /// `[keystone]`
    pub(crate) keystone: KeystoneSettings,
    /// `[quota]`
    pub(crate) quota: QuotaSettings,
    /// `[metrics]`
    pub(crate) metrics: MetricsSettings,
    #[serde(skip)]
    source: Source,
}

impl Settings {
    /// Whether tokens and the service user's password leave this host as anybody on the way can read them.
    pub(crate) fn keystone_is_asked_in_clear(&self) -> bool {
        self.identity.mode == IdentityMode::Keystone && api::http_client::leaves_host_in_clear(&self.keystone.url)
    }

    /// Reads `file`; without one [`DEFAULT_FILE`] if it is there, else the defaults.
    ///
    /// # Errors
    /// [`SettingsError`]: the program exits with status 2.
    pub(crate) fn load(file: Option<&Path>) -> Result<Settings, SettingsError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Settings::parse(&text, &name),
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Settings::parse("", "(no settings file)")
            }
            Err(source) => Err(SettingsError::Unreadable { file: name, source }),
        }
    }

    /// Reads settings from `text`; `file` is their name in messages.
    ///
    /// # Errors
    /// [`SettingsError::Fault`] for the first thing that is wrong.
    pub(crate) fn parse(text: &str, file: &str) -> Result<Settings, SettingsError> {
        let source = Source { file: file.to_owned(), text: text.to_owned() };
        let raw: Raw = toml::from_str(text).map_err(|error| SettingsError::Fault {
            file: file.to_owned(),
            line: source.line_at(error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', " "),
        })?;
        resolve(raw, source)
    }

    /// A fault of `section.key` that only the host could show.
    pub(crate) fn fault(&self, section: &str, key: &str, message: impl fmt::Display) -> SettingsError {
        self.source.fault(section, key, message)
    }

    /// The CPUs of the workers.
    ///
    /// # Errors
    /// If one of them is outside `allowed`.
    pub(crate) fn worker_cpus(&self, allowed: &[usize], auto: &[usize]) -> Result<Vec<usize>, SettingsError> {
        match &self.switch.workers {
            Workers::Auto => Ok(auto.to_vec()),
            Workers::Cpus(cpus) => match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
                Some(cpu) => Err(self.fault(
                    "switch",
                    "workers",
                    format!("CPU {cpu} is outside the allowed set {allowed:?} (taskset, cgroup cpuset)"),
                )),
                None => Ok(cpus.clone()),
            },
        }
    }
}

fn resolve(raw: Raw, source: Source) -> Result<Settings, SettingsError> {
    let api = raw.api.unwrap_or_default();
    let admin = raw.admin.unwrap_or_default();
    let switch = raw.switch.unwrap_or_default();
    let mac = raw.mac.unwrap_or_default();
    let vhost = raw.vhost.unwrap_or_default();
    let attach = raw.attach.unwrap_or_default();
    let node = raw.node.unwrap_or_default();
    let identity = raw.identity.unwrap_or_default();

    let state_dir = raw.state_dir.unwrap_or_else(|| "/var/lib/qvs".into());
    let run_dir = raw.run_dir.unwrap_or_else(|| "/run/qvs".into());
    let socket = admin.socket.unwrap_or_else(|| run_dir.join("admin.sock"));
    let dir = vhost.dir.unwrap_or_else(|| run_dir.join("vhost"));
    for (section, key, path) in
        [("", "state_dir", &state_dir), ("", "run_dir", &run_dir), ("admin", "socket", &socket), ("vhost", "dir", &dir)]
    {
        check_path(path).map_err(|message| source.fault(section, key, message))?;
    }
    check_socket_path(&socket).map_err(|message| source.fault("admin", "socket", message))?;
    let store = resolve_store(raw.store.unwrap_or_default(), &state_dir, &source)?;

    let knows_clients = identity.mode.is_some_and(|mode| mode != IdentityMode::Noauth);
    if api.strict_essex == Some(true) && knows_clients {
        // An update then writes whole rows, ids included, as the original let everybody.
        let message =
            "recordings are replayed without identity, and with it tenants would write over each other's networks";
        return Err(source.fault("api", "strict_essex", message));
    }

    let uplink = resolve_uplinks(raw.uplink.unwrap_or_default(), &source)?;
    let tunnel = resolve_tunnel(raw.tunnel.unwrap_or_default(), &uplink, &source)?;
    let segments = resolve_segments(raw.segments.unwrap_or_default(), &uplink, &tunnel, &source)?;

    let settings = Settings {
        uplink,
        tunnel,
        segments,
        api: resolve_api(api, &identity, &source)?,
        admin: AdminSettings { socket, group: admin.group.unwrap_or_default() },
        switch: resolve_switch(switch, &source)?,
        mac: MacSettings {
            age_s: bounded("mac", "age_s", mac.age_s.unwrap_or(300), 1, MAC_AGE_S_MAX, &source)? as u32,
            max: bounded("mac", "max", mac.max.unwrap_or(131_072), 1, MAC_ENTRIES_MAX, &source)? as usize,
        },
        vhost: resolve_vhost(dir, vhost.role, vhost.owner, vhost.group, vhost.mode, &source)?,
        attach: resolve_attach(&attach, identity.mode, &source)?,
        plugin: resolve_plugin(raw.plugin.unwrap_or_default(), &source)?,
        node: resolve_node(node, store.etcd().is_some(), &source)?,
        store,
        keystone: resolve_keystone(raw.keystone.unwrap_or_default(), &identity, &state_dir, &source)?,
        quota: QuotaSettings::resolve(
            raw.quota.unwrap_or_default(),
            identity.mode.unwrap_or(IdentityMode::Noauth),
            &source,
        )?,
        identity: resolve_identity(identity, &state_dir, &source)?,
        metrics: MetricsSettings {
            listen: match raw.metrics.unwrap_or_default().listen.as_deref() {
                None | Some("") => None,
                Some(text) => Some(parse_address("metrics", text, &source)?),
            },
        },
        state_dir,
        run_dir,
        source,
    };
    check_shared(&settings)?;
    Ok(settings)
}

fn resolve_api(raw: RawApi, identity: &RawIdentity, source: &Source) -> Result<ApiSettings, SettingsError> {
    let listen = parse_address("api", raw.listen.as_deref().unwrap_or("127.0.0.1:9696"), source)?;
    let strict_essex = raw.strict_essex.unwrap_or(false);
    if strict_essex && !listen.ip().is_loopback() {
        let message =
            format!("the original's oddities are for replaying recordings, on loopback only; {listen} is not");
        return Err(source.fault("api", "strict_essex", message));
    }
    let (certificate, key) = (raw.certificate.unwrap_or_default(), raw.key.unwrap_or_default());
    for (name, path, other, its) in
        [("certificate", &certificate, "key", &key), ("key", &key, "certificate", &certificate)]
    {
        if !path.as_os_str().is_empty() {
            check_path(path).map_err(|message| source.fault("api", name, message))?;
            if its.as_os_str().is_empty() {
                return Err(source.fault("api", name, format!("TLS needs both: set api.{other} too")));
            }
        }
    }
    let connections_max = Limits::default().connections as u64;
    let peer_connections = raw.peer_connections.unwrap_or(Limits::default().peer_connections as u64);
    let api = ApiSettings {
        listen,
        certificate,
        key,
        hosts: raw.hosts.unwrap_or_default(),
        peer_connections: bounded("api", "peer_connections", peer_connections, 1, connections_max, source)? as usize,
        strict_essex,
    };
    let is_for_everybody = identity.mode.unwrap_or(IdentityMode::Noauth) == IdentityMode::Noauth;
    if !listen.ip().is_loopback() && identity.insecure != Some(true) {
        if !api.has_tls() {
            let message = format!(
                "{listen} is not loopback, and without TLS everybody on the way may read and change what is said; set api.certificate and api.key, or identity.insecure = true if that is meant"
            );
            return Err(source.fault("api", "listen", message));
        }
        if is_for_everybody {
            let message = format!(
                "{listen} is not loopback, and without identity everybody who reaches it may do everything; set identity.mode, or identity.insecure = true if that is meant"
            );
            return Err(source.fault("api", "listen", message));
        }
    }
    Ok(api)
}

fn resolve_switch(raw: RawSwitch, source: &Source) -> Result<SwitchSettings, SettingsError> {
    let workers = match raw.workers {
        None => Workers::Auto,
        Some(value) => parse_workers(&value).map_err(|message| source.fault("switch", "workers", message))?,
    };
    Ok(SwitchSettings {
        workers,
        poll: raw.poll.unwrap_or(PollMode::Adaptive),
        idle_us: bounded("switch", "idle_us", raw.idle_us.unwrap_or(200), 0, IDLE_US_MAX, source)?,
        rebalance: raw.rebalance.unwrap_or(false),
        arp_suppression: raw.arp_suppression.unwrap_or(true),
    })
}

fn parse_workers(value: &toml::Value) -> Result<Workers, String> {
    let list = match value {
        toml::Value::String(text) if text == "auto" => return Ok(Workers::Auto),
        toml::Value::Array(list) => list,
        _ => return Err("must be \"auto\" or a list of CPU numbers".into()),
    };
    let mut cpus = Vec::new();
    for item in list {
        let cpu = item.as_integer().and_then(|cpu| usize::try_from(cpu).ok());
        let cpu = cpu.ok_or_else(|| format!("{item} is no CPU number"))?;
        if cpus.contains(&cpu) {
            return Err(format!("CPU {cpu} is named twice"));
        }
        cpus.push(cpu);
    }
    match cpus.len() {
        0 => Err("the list is empty; a switch has at least one worker".into()),
        count if count > WORKERS_MAX => {
            Err(format!("{count} workers are more than the {WORKERS_MAX} a switch can have"))
        }
        _ => Ok(Workers::Cpus(cpus)),
    }
}

fn resolve_vhost(
    dir: PathBuf,
    role: Option<Role>,
    owner: Option<String>,
    group: Option<String>,
    mode: Option<String>,
    source: &Source,
) -> Result<VhostSettings, SettingsError> {
    let mode = mode.unwrap_or_else(|| "0660".into());
    if parse_mode(&mode).is_none() {
        return Err(source.fault("vhost", "mode", format!("{mode:?} is no octal mode of 0000 to 0777")));
    }
    Ok(VhostSettings {
        dir,
        role: role.unwrap_or(Role::Server),
        owner: owner.unwrap_or_default(),
        group: group.unwrap_or_default(),
        mode,
    })
}

fn parse_mode(text: &str) -> Option<u32> {
    let is_octal = (1..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    is_octal.then(|| u32::from_str_radix(text, 8).ok()).flatten().filter(|&mode| mode <= 0o777)
}

fn resolve_attach(
    raw: &RawAttach,
    mode: Option<IdentityMode>,
    source: &Source,
) -> Result<AttachSettings, SettingsError> {
    let has_identity = mode.is_some_and(|mode| mode != IdentityMode::Noauth);
    if raw.claim == Some(Claim::Registered) && !has_identity {
        return Err(source.fault("attach", "claim", "\"registered\" needs identity: set identity.mode"));
    }
    let claim = raw.claim.unwrap_or(if has_identity { Claim::Registered } else { Claim::Any });
    Ok(AttachSettings { auto: raw.auto.unwrap_or(Auto::None), claim })
}

fn resolve_plugin(raw: RawPlugin, source: &Source) -> Result<PluginSettings, SettingsError> {
    let extensions = match raw.extensions {
        None => None,
        Some(toml::Value::String(text)) if text == "all" => None,
        Some(value) => Some(
            value
                .try_into()
                .map_err(|_| source.fault("plugin", "extensions", "must be \"all\" or a list of aliases"))?,
        ),
    };
    Ok(PluginSettings { driver: raw.driver.unwrap_or(Driver::Native), extensions })
}

fn resolve_identity(raw: RawIdentity, state_dir: &Path, source: &Source) -> Result<IdentitySettings, SettingsError> {
    let tokens = raw.tokens.unwrap_or_else(|| state_dir.join("tokens.toml"));
    check_path(&tokens).map_err(|message| source.fault("identity", "tokens", message))?;
    let policy = raw.policy.unwrap_or_default();
    if !policy.is_empty() {
        check_path(Path::new(&policy)).map_err(|message| source.fault("identity", "policy", message))?;
    }
    let mode = raw.mode.unwrap_or(IdentityMode::Noauth);
    Ok(IdentitySettings { mode, insecure: raw.insecure.unwrap_or(false), tokens, policy })
}

fn resolve_keystone(
    raw: RawKeystone,
    identity: &RawIdentity,
    state_dir: &Path,
    source: &Source,
) -> Result<KeystoneSettings, SettingsError> {
    let url = raw.url.unwrap_or_default();
    if url.is_empty() && identity.mode == Some(IdentityMode::Keystone) {
        return Err(source.fault("identity", "mode", "\"keystone\" needs keystone.url"));
    }
    let password_file = raw.password_file.unwrap_or_else(|| state_dir.join("keystone-password"));
    let ca = raw.ca.unwrap_or_else(|| "/etc/ssl/certs/ca-certificates.crt".into());
    for (key, path) in [("password_file", &password_file), ("ca", &ca)] {
        check_path(path).map_err(|message| source.fault("keystone", key, message))?;
    }
    let cache_s = bounded("keystone", "cache_s", raw.cache_s.unwrap_or(300), 0, CACHE_S_MAX, source)?;
    let timeout_s = bounded("keystone", "timeout_s", raw.timeout_s.unwrap_or(5), 1, KEYSTONE_TIMEOUT_S_MAX, source)?;
    Ok(KeystoneSettings {
        url,
        user: raw.user.unwrap_or_else(|| "qvs".into()),
        user_domain: raw.user_domain.unwrap_or_else(|| "Default".into()),
        password_file,
        project: raw.project.unwrap_or_else(|| "service".into()),
        project_domain: raw.project_domain.unwrap_or_else(|| "Default".into()),
        ca,
        cache_s: cache_s as u32,
        timeout_s: timeout_s as u32,
    })
}

fn parse_address(section: &str, text: &str, source: &Source) -> Result<SocketAddr, SettingsError> {
    text.parse().map_err(|_| {
        source.fault(section, "listen", format!("{text:?} must be an IP address and a port, like 127.0.0.1:9696"))
    })
}

fn bounded(section: &str, key: &str, value: u64, least: u64, most: u64, source: &Source) -> Result<u64, SettingsError> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(source.fault(section, key, format!("{value} must be {least} to {most}")))
}

/// Whether a path is absolute and spelt in one way only: what is compared as text must not have two texts.
pub(crate) fn check_path(path: &Path) -> Result<(), String> {
    let is_plain = path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
    let has_nul = path.as_os_str().as_encoded_bytes().contains(&0);
    if is_plain && !has_nul { Ok(()) } else { Err(format!("{path:?} must be an absolute path without . or ..")) }
}

/// Whether a path can be a UNIX socket's.
pub(crate) fn check_socket_path(path: &Path) -> Result<(), String> {
    check_path(path)?;
    match path.as_os_str().len() {
        len if len > SOCKET_PATH_MAX => {
            Err(format!("{path:?} has {len} bytes; a socket's path has at most {SOCKET_PATH_MAX}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
