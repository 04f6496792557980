//! The settings file: TOML, every key optional, every unknown key refused with file and line.
//!
//! Two steps. Serde reads the text into [`Raw`], which knows keys and types. [`Settings::parse`] then derives what is unset,
//! checks values, and refuses those that ask for something this version cannot do: a setting that is silently without
//! effect is worse than none. Both kinds of fault name the line. What depends on the host (CPUs, users, groups) is
//! checked only where it is used, because clients read the same file to find the daemon.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use switch::ids::WORKERS_MAX;

/// Where the settings are if no file is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/qvs/qvs.toml";
/// Longest path of a UNIX socket, bytes: `sun_path` less its NUL (unix(7)).
pub(crate) const SOCKET_PATH_MAX: usize = 107;
/// Longest idle time before a worker sleeps, microseconds: a second of burning a core for nothing is enough.
const IDLE_US_MAX: u64 = 1_000_000;
/// Most MAC entries: 16 Mi entries of 16 bytes are 256 MiB.
const MAC_ENTRIES_MAX: u64 = 1 << 24;
/// Longest MAC age, seconds (IEEE 802.1Q-2018 table 8-6 allows up to 1,000,000).
const MAC_AGE_S_MAX: u64 = 1_000_000;

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

/// The text settings came from, kept to tell the line of a fault found later.
#[derive(Clone, Debug, Default)]
struct Source {
    file: String,
    text: String,
}

impl Source {
    fn line_at(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
    }

    /// The line of `section.key`, or of a top-level key if `section` is empty; 1 if the file does not name it.
    fn line_of(&self, section: &str, key: &str) -> usize {
        let offset = toml::de::DeTable::parse(&self.text).ok().and_then(|root| {
            let table = root.get_ref();
            let table = if section.is_empty() { table } else { table.get(section)?.get_ref().as_table()? };
            table.keys().find(|name| name.get_ref() == key).map(|name| name.span().start)
        });
        offset.map_or(1, |offset| self.line_at(offset))
    }

    fn fault(&self, section: &str, key: &str, message: impl fmt::Display) -> SettingsError {
        let name = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
        SettingsError::Fault {
            file: self.file.clone(),
            line: self.line_of(section, key),
            message: format!("{name}: {message}"),
        }
    }
}

macro_rules! raw {
    ($($name:ident { $($field:ident: $type:ty,)* })*) => {
        $(#[derive(Deserialize, Default)]
        #[serde(default, deny_unknown_fields)]
        struct $name { $($field: Option<$type>,)* })*
    };
}

raw! {
    Raw {
        state_dir: PathBuf, run_dir: PathBuf,
        api: RawApi, admin: RawAdmin, switch: RawSwitch, mac: RawMac, vhost: RawVhost, attach: RawAttach,
        plugin: RawPlugin, node: RawNode, store: RawStore, identity: RawIdentity, metrics: RawMetrics,
    }
    RawApi { listen: String, hosts: Vec<String>, strict_essex: bool, }
    RawAdmin { socket: PathBuf, group: String, }
    RawSwitch { workers: toml::Value, poll: PollMode, idle_us: u64, rebalance: bool, }
    RawMac { age_s: u64, max: u64, }
    RawVhost { dir: PathBuf, role: Role, owner: String, group: String, mode: String, }
    RawAttach { auto: Auto, claim: Claim, }
    RawPlugin { driver: Driver, }
    RawNode { roles: Vec<NodeRole>, host: String, }
    RawStore { url: String, }
    RawIdentity { mode: String, insecure: bool, }
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

/// `[api]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ApiSettings {
    /// Address and port of the API.
    pub(crate) listen: SocketAddr,
    /// Host names accepted besides loopback ones.
    pub(crate) hosts: Vec<String>,
    /// Reproduce the recorded oddities of 2012.
    pub(crate) strict_essex: bool,
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
        parse_mode(&self.mode).expect("checked by Settings::parse")
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
}

/// `[node]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NodeSettings {
    /// The parts this node plays.
    pub(crate) roles: Vec<NodeRole>,
    /// This node's name.
    pub(crate) host: String,
}

/// `[store]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StoreSettings {
    /// Where the state is.
    pub(crate) url: String,
}

impl StoreSettings {
    /// The file of a `redb:` store.
    pub(crate) fn path(&self) -> &Path {
        Path::new(self.url.strip_prefix("redb:").expect("checked by Settings::parse"))
    }
}

/// `[identity]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct IdentitySettings {
    /// How clients are known.
    pub(crate) mode: String,
    /// Serve without identity beyond loopback.
    pub(crate) insecure: bool,
}

/// `[metrics]`
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MetricsSettings {
    /// Where metrics are served over TCP; `None`, in the file "": only on the admin socket.
    #[serde(serialize_with = "serialize_address")]
    pub(crate) listen: Option<SocketAddr>,
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
    /// `[plugin]`
    pub(crate) plugin: PluginSettings,
    /// `[node]`
    pub(crate) node: NodeSettings,
    /// `[store]`
    pub(crate) store: StoreSettings,
    /// `[identity]`
    pub(crate) identity: IdentitySettings,
    /// `[metrics]`
    pub(crate) metrics: MetricsSettings,
    #[serde(skip)]
    source: Source,
}

impl Settings {
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
    let url = raw.store.unwrap_or_default().url;
    let url = url.unwrap_or_else(|| format!("redb:{}", state_dir.join("state.redb").display()));
    for (section, key, path) in
        [("", "state_dir", &state_dir), ("", "run_dir", &run_dir), ("admin", "socket", &socket), ("vhost", "dir", &dir)]
    {
        check_path(path).map_err(|message| source.fault(section, key, message))?;
    }
    check_socket_path(&socket).map_err(|message| source.fault("admin", "socket", message))?;

    Ok(Settings {
        api: resolve_api(api, identity.insecure.unwrap_or(false), &source)?,
        admin: AdminSettings { socket, group: admin.group.unwrap_or_default() },
        switch: resolve_switch(switch, &source)?,
        mac: MacSettings {
            age_s: bounded("mac", "age_s", mac.age_s.unwrap_or(300), 1, MAC_AGE_S_MAX, &source)? as u32,
            max: bounded("mac", "max", mac.max.unwrap_or(131_072), 1, MAC_ENTRIES_MAX, &source)? as usize,
        },
        vhost: resolve_vhost(dir, vhost.role, vhost.owner, vhost.group, vhost.mode, &source)?,
        attach: resolve_attach(&attach, &source)?,
        plugin: PluginSettings { driver: raw.plugin.unwrap_or_default().driver.unwrap_or(Driver::Native) },
        node: resolve_node(node, &source)?,
        store: resolve_store(url, &source)?,
        identity: resolve_identity(identity, &source)?,
        metrics: MetricsSettings {
            listen: match raw.metrics.unwrap_or_default().listen.as_deref() {
                None | Some("") => None,
                Some(text) => Some(parse_address("metrics", text, &source)?),
            },
        },
        state_dir,
        run_dir,
        source,
    })
}

fn resolve_api(raw: RawApi, is_insecure: bool, source: &Source) -> Result<ApiSettings, SettingsError> {
    let listen = parse_address("api", raw.listen.as_deref().unwrap_or("127.0.0.1:9696"), source)?;
    if raw.strict_essex == Some(true) {
        return Err(source.fault("api", "strict_essex", "this version does not have it yet; only false works"));
    }
    if !listen.ip().is_loopback() && !is_insecure {
        return Err(source.fault(
            "api",
            "listen",
            format!("{listen} is not loopback, and without identity everybody who reaches it may do everything; set identity.insecure = true if that is meant"),
        ));
    }
    Ok(ApiSettings { listen, hosts: raw.hosts.unwrap_or_default(), strict_essex: false })
}

fn resolve_switch(raw: RawSwitch, source: &Source) -> Result<SwitchSettings, SettingsError> {
    if raw.rebalance == Some(true) {
        return Err(source.fault("switch", "rebalance", "this version does not have it yet; only false works"));
    }
    let workers = match raw.workers {
        None => Workers::Auto,
        Some(value) => parse_workers(&value).map_err(|message| source.fault("switch", "workers", message))?,
    };
    Ok(SwitchSettings {
        workers,
        poll: raw.poll.unwrap_or(PollMode::Adaptive),
        idle_us: bounded("switch", "idle_us", raw.idle_us.unwrap_or(200), 0, IDLE_US_MAX, source)?,
        rebalance: false,
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

fn resolve_attach(raw: &RawAttach, source: &Source) -> Result<AttachSettings, SettingsError> {
    if raw.claim == Some(Claim::Registered) {
        return Err(source.fault("attach", "claim", "\"registered\" needs identity, which this version does not have"));
    }
    Ok(AttachSettings { auto: raw.auto.unwrap_or(Auto::None), claim: Claim::Any })
}

fn resolve_node(raw: RawNode, source: &Source) -> Result<NodeSettings, SettingsError> {
    let roles = raw.roles.unwrap_or_else(|| vec![NodeRole::Api, NodeRole::Switch]);
    let is_whole = roles.len() == 2 && roles.contains(&NodeRole::Api) && roles.contains(&NodeRole::Switch);
    if !is_whole {
        return Err(source.fault("node", "roles", "this version has one node that is both: [\"api\", \"switch\"]"));
    }
    let host = match raw.host {
        Some(host) if host.is_empty() || host.contains('\0') => {
            return Err(source.fault("node", "host", "must be a name"));
        }
        Some(host) => host,
        None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    Ok(NodeSettings { roles, host })
}

fn resolve_store(url: String, source: &Source) -> Result<StoreSettings, SettingsError> {
    let fault = |message: String| source.fault("store", "url", message);
    match url.split_once(':') {
        Some(("redb", path)) => {
            check_path(Path::new(path)).map_err(fault)?;
            Ok(StoreSettings { url })
        }
        Some(("etcd", _)) => Err(fault("this version has no etcd store yet; use redb:PATH".into())),
        _ => Err(fault(format!("{url:?} must be redb: and an absolute path"))),
    }
}

fn resolve_identity(raw: RawIdentity, source: &Source) -> Result<IdentitySettings, SettingsError> {
    let mode = raw.mode.unwrap_or_else(|| "noauth".into());
    if mode != "noauth" {
        return Err(source.fault("identity", "mode", format!("{mode:?}: this version has only \"noauth\"")));
    }
    Ok(IdentitySettings { mode, insecure: raw.insecure.unwrap_or(false) })
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
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        Settings::parse(text, "qvs.toml").expect_err(text).to_string()
    }

    #[test]
    fn an_empty_file_gives_the_contract_s_defaults() {
        let settings = Settings::parse("", "qvs.toml").unwrap();
        assert_eq!(settings.api.listen.to_string(), "127.0.0.1:9696");
        assert_eq!(settings.admin.socket, Path::new("/run/qvs/admin.sock"));
        assert_eq!(settings.vhost.dir, Path::new("/run/qvs/vhost"));
        assert_eq!(settings.vhost.mode_bits(), 0o660);
        assert_eq!(settings.vhost.role, Role::Server);
        assert_eq!(settings.store.path(), Path::new("/var/lib/qvs/state.redb"));
        assert_eq!(settings.switch.workers, Workers::Auto);
        assert_eq!((settings.switch.poll, settings.switch.idle_us), (PollMode::Adaptive, 200));
        assert_eq!((settings.mac.age_s, settings.mac.max), (300, 131_072));
        assert_eq!((settings.attach.auto, settings.attach.claim), (Auto::None, Claim::Any));
        assert_eq!(settings.plugin.driver, Driver::Native);
        assert!(!settings.node.host.is_empty());
        assert_eq!(settings.metrics.listen, None);
    }

    #[test]
    fn sockets_and_store_follow_the_directories_unless_set() {
        let text = "state_dir = \"/s\"\nrun_dir = \"/r\"\n[vhost]\ndir = \"/v\"\n";
        let settings = Settings::parse(text, "qvs.toml").unwrap();
        assert_eq!(settings.admin.socket, Path::new("/r/admin.sock"));
        assert_eq!(settings.vhost.dir, Path::new("/v"));
        assert_eq!(settings.store.url, "redb:/s/state.redb");
    }

    #[test]
    fn every_key_of_the_contract_is_known() {
        let text = r#"
            state_dir = "/s"
            run_dir = "/r"
            [api]
            listen = "[::1]:0"
            hosts = ["cloud.example"]
            strict_essex = false
            [admin]
            socket = "/r/a.sock"
            group = "adm"
            [switch]
            workers = [0, 3]
            poll = "always"
            idle_us = 0
            rebalance = false
            [mac]
            age_s = 10
            max = 100
            [vhost]
            dir = "/v"
            role = "client"
            owner = "nobody"
            group = "65534"
            mode = "600"
            [attach]
            auto = "vhost-user"
            claim = "any"
            [plugin]
            driver = "fake"
            [node]
            roles = ["switch", "api"]
            host = "node-1"
            [store]
            url = "redb:/s/x.redb"
            [identity]
            mode = "noauth"
            insecure = true
            [metrics]
            listen = "127.0.0.1:9100"
        "#;
        let settings = Settings::parse(text, "qvs.toml").unwrap();
        assert_eq!(settings.switch.workers, Workers::Cpus(vec![0, 3]));
        assert_eq!(settings.attach.auto, Auto::VhostUser);
        assert_eq!(settings.vhost.mode_bits(), 0o600);
        assert!(settings.identity.insecure);
        let json = serde_json::to_value(&settings).unwrap();
        assert_eq!(json["switch"]["workers"], serde_json::json!([0, 3]));
        assert_eq!(json["attach"]["auto"], "vhost-user");
    }

    #[test]
    fn faults_name_file_line_and_key() {
        for (text, expected) in [
            ("[api]\nlisten_on = 1\n", "qvs.toml:2: unknown field `listen_on`"),
            ("statedir = \"/x\"", "qvs.toml:1: unknown field `statedir`"),
            ("\n[swich]\n", "qvs.toml:2: unknown field `swich`"),
            ("[api]\n\nlisten = 5", "qvs.toml:3: invalid type: integer `5`"),
            ("[api\n", "qvs.toml:1: "),
            ("[api]\nlisten = \"localhost:1\"", "qvs.toml:2: api.listen: \"localhost:1\" must be an IP address"),
            ("[api]\nlisten = \"0.0.0.0:9696\"", "qvs.toml:2: api.listen: 0.0.0.0:9696 is not loopback"),
            ("[api]\nstrict_essex = true", "qvs.toml:2: api.strict_essex: this version does not have it yet"),
            ("[switch]\nrebalance = true", "qvs.toml:2: switch.rebalance: this version does not have it yet"),
            ("[switch]\nworkers = []", "qvs.toml:2: switch.workers: the list is empty"),
            ("[switch]\nworkers = [1, 1]", "qvs.toml:2: switch.workers: CPU 1 is named twice"),
            ("[switch]\nworkers = [-1]", "qvs.toml:2: switch.workers: -1 is no CPU number"),
            ("[switch]\nworkers = 2", "qvs.toml:2: switch.workers: must be \"auto\" or a list"),
            ("[switch]\npoll = \"never\"", "qvs.toml:2: unknown variant `never`"),
            ("[switch]\nidle_us = 2000000", "qvs.toml:2: switch.idle_us: 2000000 must be 0 to 1000000"),
            ("[mac]\nmax = 0", "qvs.toml:2: mac.max: 0 must be 1 to"),
            ("[mac]\nage_s = -3", "qvs.toml:2: invalid value: integer `-3`"),
            ("[vhost]\nmode = \"0999\"", "qvs.toml:2: vhost.mode: \"0999\" is no octal mode"),
            ("[vhost]\nmode = \"4755\"", "qvs.toml:2: vhost.mode: \"4755\" is no octal mode"),
            ("[vhost]\ndir = \"v\"", "qvs.toml:2: vhost.dir: \"v\" must be an absolute path"),
            ("state_dir = \"/a/../b\"", "qvs.toml:1: state_dir: \"/a/../b\" must be an absolute path"),
            ("[attach]\nclaim = \"registered\"", "qvs.toml:2: attach.claim: \"registered\" needs identity"),
            ("[node]\nroles = [\"api\"]", "qvs.toml:2: node.roles: this version has one node"),
            ("[store]\nurl = \"etcd://x\"", "qvs.toml:2: store.url: this version has no etcd store yet"),
            ("[store]\nurl = \"/x\"", "qvs.toml:2: store.url: \"/x\" must be redb: and an absolute path"),
            ("[identity]\nmode = \"keystone\"", "qvs.toml:2: identity.mode: \"keystone\": this version has only"),
        ] {
            let message = fault(text);
            assert!(message.starts_with(expected), "{text:?} said {message:?}");
            assert!(!message.contains('\n'), "{message:?}");
        }
    }

    #[test]
    fn a_socket_path_that_the_kernel_would_cut_is_refused() {
        let text = format!("run_dir = \"/{}\"", "x".repeat(100));
        assert!(fault(&text).contains("a socket's path has at most 107"));
    }

    #[test]
    fn a_worker_outside_the_allowed_cpus_is_refused_with_its_line() {
        let settings = Settings::parse("[switch]\nworkers = [0, 9]", "qvs.toml").unwrap();
        let message = settings.worker_cpus(&[0, 1], &[1]).unwrap_err().to_string();
        assert!(
            message.starts_with("qvs.toml:2: switch.workers: CPU 9 is outside the allowed set [0, 1]"),
            "{message}"
        );
        let auto = Settings::parse("", "qvs.toml").unwrap();
        assert_eq!(auto.worker_cpus(&[0, 1], &[1]).unwrap(), [1]);
    }
}
