//! `qvs run`: puts the parts together, serves, and takes them apart again.
//!
//! Order matters. Locks and listeners come first, so that a second daemon changes nothing before it is told who holds them.
//! Then the config is in force and the API serves; devices open meanwhile on their own thread, and the service manager
//! hears READY when each was tried. At the end requests in flight are answered, then workers and devices end; a watchdog
//! ends the process if that takes too long. tokio runs the API and signals only; workers are plain threads.

use crate::accounts;
use crate::admin::AdminSocket;
use crate::admin::door::Door;
use crate::capture::serve::Captures;
use crate::cli::RunArgs;
use crate::cluster;
use crate::control::{Control, DeviceRules, Tenants};
use crate::devices::Supervisor;
use crate::directories;
use crate::identity;
use crate::listener;
use crate::load::Load;
use crate::logs;
use crate::notify::notify;
use crate::opener::{HostOpener, MadeBook, SocketRights};
use crate::rebalance::Rebalancer;
use crate::scrape;
use crate::service::Daemon;
use crate::settings::{Driver, NodeRole, PollMode, Settings, SettingsError};
use crate::steering;
use crate::tls;
use anyhow::Context;
use api::cluster::Follower;
use api::host::{Host, Scope};
use api::model::Model;
use api::plugin::Plugin;
use api::plugins::native::Keeper;
use api::plugins::{FakePlugin, NativePlugin};
use api::quota::Quotas;
use api::sealed::SealKey;
use api::server::{Claims, Limits, ServerConfig, serve};
use api::store::{Store, StoreError};
use api::v1::{Dialect, Extensions, ExtensionsConfig, ExtensionsError};
use api::watched::Rights;
use pipelines::Standard;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use switch::affinity;
use switch::poll::Poll;
use switch::switch::{Switch, SwitchConfig, WorkerSpec};

/// The whole time from SIGTERM to the end, with some to spare of the 5 s that `qvs run --help` promises.
const SHUTDOWN_MAX: Duration = Duration::from_millis(4500);
/// Of that, how long requests in flight may take.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Pause between two rounds of housekeeping.
const HOUSEKEEPING_PAUSE: Duration = Duration::from_secs(1);
/// Threads of the API's runtime; calls that block run on others.
const API_THREADS: usize = 2;
/// Threads for calls that block, beyond one for each connection. They come as they are needed and go when idle.
const API_THREADS_SPARE: usize = 64;
/// How long a store that another process has is waited for: `qvs check` looks into it for a moment, a daemon stays.
const STORE_WAIT: Duration = Duration::from_secs(1);
/// Pause between two tries to open it.
const STORE_PAUSE: Duration = Duration::from_millis(50);

/// Why the daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The settings are wrong: exit status 2.
    #[error("{0}")]
    Settings(#[from] SettingsError),
    /// Anything else: exit status 1.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// The tenants' side over either plugin.
struct TenantsOf<T> {
    plugin: Arc<T>,
    put_in_force: Box<dyn Fn(&T) + Send + Sync>,
    snapshot: fn(&T) -> Arc<Model>,
    is_always_up: bool,
}

impl<T: Send + Sync> Tenants for TenantsOf<T> {
    fn snapshot(&self) -> Arc<Model> {
        (self.snapshot)(&self.plugin)
    }

    fn put_in_force(&self) {
        (self.put_in_force)(&self.plugin);
    }

    fn is_always_up(&self) -> bool {
        self.is_always_up
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// [`RunError`]; its text is the one line to print.
pub(crate) fn run(args: &RunArgs) -> Result<(), RunError> {
    let begin = Instant::now();
    rustix::thread::set_no_new_privs(true).context("setting no_new_privs")?;
    let settings = Settings::load(args.config.as_deref())?;
    logs::start(args.log, args.log_level);
    raise_file_limit();
    let allowed = affinity::allowed_cpus().context("asking for the allowed CPUs")?;
    let auto = affinity::cpus_auto().context("asking for the allowed CPUs")?;
    let cpus = settings.worker_cpus(&allowed, &auto)?;
    // Before any thread is started, for all of them shall inherit it; workers pin themselves.
    affinity::leave(&cpus).context("keeping off the workers' CPUs")?;
    // First of all that takes time: from here on a signal ends the daemon in good order, with status 0.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(API_THREADS)
        .max_blocking_threads(Limits::default().connections + API_THREADS_SPARE)
        .thread_name("api")
        .enable_all()
        .build()
        .context("starting the API's threads")?;
    let mut asked_to_end = {
        let _guard = runtime.enter();
        Box::pin(signals().context("catching signals")?)
    };

    let admin_group = id_of(&settings, "admin", "group", &settings.admin.group, accounts::gid)?;
    let rights = SocketRights {
        owner: (
            id_of(&settings, "vhost", "owner", &settings.vhost.owner, accounts::uid)?,
            id_of(&settings, "vhost", "group", &settings.vhost.group, accounts::gid)?,
        ),
        mode: settings.vhost.mode_bits(),
    };
    let identity = identity::mode(&settings, Rights::OwnerOnly)?;
    let tls = tls::of(&settings, Rights::OwnerOnly)?;
    if tls.as_ref().is_some_and(api::tls::Tls::is_authority) {
        tracing::warn!(path = %settings.api.certificate.display(), "{}", tls::AUTHORITY);
    }
    let quotas = Arc::new(settings.quotas()?);
    directories::make(&settings, admin_group, rights.owner.1)?;

    let admin_socket = AdminSocket::bind(&settings.admin.socket, admin_group).map_err(anyhow::Error::from)?;
    let mut door = Door::new(admin_socket);
    let store = Arc::new(open_store(settings.store.path(), STORE_WAIT).map_err(anyhow::Error::from)?);
    let cluster = cluster::of(&settings, Rights::OwnerOnly, &store)?;
    let api = settings.node.is(NodeRole::Api).then(|| listener::open(settings.api.listen, "the API")).transpose()?;
    let api_address = api.as_ref().map(TcpListener::local_addr).transpose().context("the API's listener")?;
    let metrics = settings.metrics.listen.map(|address| listener::open(address, "metrics")).transpose()?;
    let metrics_address = metrics.as_ref().map(TcpListener::local_addr).transpose().context("the metrics' listener")?;

    let switch: Arc<Switch<Standard>> = Switch::new(&SwitchConfig {
        workers: cpus.iter().map(|&cpu| WorkerSpec { cpu: Some(cpu) }).collect(),
        poll: match settings.switch.poll {
            PollMode::Always => Poll::Always,
            PollMode::Adaptive => Poll::Adaptive { idle: Duration::from_micros(settings.switch.idle_us) },
        },
        mac_max: settings.mac.max,
        mac_age_s: settings.mac.age_s,
    })
    .context("making the switch")?;
    let (bytes, pages) = switch.mac_table().memory();
    tracing::info!(mib = bytes >> 20, pages = pages.name(), "the MAC table has its memory");
    let opener = Arc::new(HostOpener::new(rights, directories::rings_dir(&settings)));
    let supervisor = Supervisor::spawn(opener.clone()).context("starting a thread")?;
    let rules = DeviceRules {
        auto: settings.attach.auto,
        vhost_dir: settings.vhost.dir.clone(),
        role: settings.vhost.role,
        has_arp_suppression: settings.switch.arp_suppression,
        carries: settings.node.is(NodeRole::Switch),
    };
    let control = Control::new(switch.clone(), store.clone(), supervisor, rules).map_err(anyhow::Error::from)?;
    control.lead_out(&settings.uplink, &settings.tunnel, &settings.segments);
    let book: Weak<dyn MadeBook> = Arc::downgrade(&(control.clone() as Arc<dyn MadeBook>));
    opener.keep_book(book);
    let keeper = match &cluster {
        None => Keeper::Store(store),
        Some(cluster) => {
            control.join(cluster.clone());
            if !cluster::wait(&runtime, cluster, &mut asked_to_end, &mut door)? {
                return Ok(());
            }
            Keeper::Cluster(cluster.clone())
        }
    };
    let (plugin, tenants) = make_plugin(&settings, keeper.clone(), &control, &quotas)?;
    let stored = tenants.snapshot();
    opener.steer(steering::of_uplinks(&settings.uplink, &settings.tunnel, &settings.segments, &stored));

    let kept = ExtensionsConfig {
        named: settings.plugin.extensions.clone(),
        // The fake plugin keeps nothing, and neither does what belongs to its networks.
        keeper: (settings.plugin.driver == Driver::Native).then_some(keeper),
        key: Some(SealKey::open(&settings.store.seal_key).map_err(anyhow::Error::from)?),
        host: settings.node.host.clone(),
        // Asked for by name, where recordings are replayed, and nowhere else.
        has_foxnsox: settings.api.strict_essex && settings.plugin.extensions.is_some(),
    };
    let extensions = Extensions::new(&*plugin, kept).map_err(|error| match error {
        ExtensionsError::Unknown { .. } => {
            RunError::Settings(settings.fault("plugin", "extensions", error.to_string()))
        }
        ExtensionsError::Store(_) => {
            RunError::Failed(anyhow::Error::from(error).context("reading what extensions keep"))
        }
    })?;

    if !extensions.opens_secrets() {
        let key = settings.store.seal_key.display();
        tracing::warn!(%key, "the seal key does not open the credentials that are kept: put the one back that sealed them");
    }

    if settings.node.is(NodeRole::Switch) {
        switch.start().context("starting the workers")?;
    }
    let load = Load::new(cpus.iter().map(|&cpu| Some(cpu)));
    let server = ServerConfig {
        hosts: settings.api.hosts.clone(),
        is_insecure: settings.identity.insecure,
        tls: tls.map(Arc::new),
        identity,
        claims: Some(Claims { claim: settings.attach.claim.into(), registry: control.clone() }),
        dialect: if settings.api.strict_essex { Dialect::StrictEssex } else { Dialect::Plain },
        extensions: Arc::new(extensions),
        limits: Limits {
            shutdown_time: ANSWER_MAX,
            peer_connections: settings.api.peer_connections,
            ..Limits::default()
        },
    };
    let captures = Captures::default();
    let daemon = Arc::new(Daemon {
        control: control.clone(),
        quotas,
        load,
        rebalancer: Rebalancer::default(),
        captures,
        settings,
        api_address,
        metrics_address,
    });
    let served = door.open(daemon.clone()).context("serving the admin socket")?;
    if let Some(listener) = metrics {
        scrape::serve(listener, daemon.clone()).context("serving metrics")?;
    }
    if let Some(api_address) =
        api_address.filter(|address| daemon.settings.identity.insecure && address.ip().is_loopback())
    {
        // Beyond loopback the API's server says it.
        tracing::warn!(api = %api_address, "identity.insecure is set: it would let the API listen beyond loopback");
    }

    if let Some(address) = metrics_address.filter(|address| !address.ip().is_loopback()) {
        tracing::warn!(%address, "metrics are told in clear to anybody who reaches them: metrics.listen");
    }
    if daemon.settings.store.password_goes_in_clear() {
        tracing::warn!("etcd's user and password, and all that is said, go to etcd in clear: store.url");
    }
    if daemon.settings.keystone_is_asked_in_clear() {
        let url = &daemon.settings.keystone.url;
        tracing::warn!(url, "tokens and the service user's password go to Keystone in clear: keystone.url");
    }

    control.start(tenants, move || {
        let ready_ms = begin.elapsed().as_millis() as u64;
        tracing::info!(ready_ms, "ready: every device was tried");
        notify("READY=1\nSTATUS=switching");
    });
    let serving_us = begin.elapsed().as_micros() as u64;
    tracing::info!(
        api = api_address.map(tracing::field::display), tls = daemon.settings.api.has_tls(),
        admin = %daemon.settings.admin.socket.display(), workers = ?cpus, serving_us,
        pid = std::process::id(), "serving"
    );
    if daemon.settings.switch.rebalance && cpus.len() == 1 {
        tracing::info!("switch.rebalance has nothing to do: there is one worker");
    }
    start_housekeeping(&daemon).context("starting a thread")?;
    if daemon.control.has_uplinks() {
        start_following(&daemon).context("starting a thread")?;
    }
    if cluster.is_some() {
        cluster::start(&daemon).context("starting a thread")?;
    }

    let outcome = runtime.block_on(async {
        let shutdown = async {
            asked_to_end.await;
            tracing::info!("asked to end");
            notify("STOPPING=1");
            start_watchdog();
        };
        match api {
            Some(api) => serve(api, server, plugin, shutdown).await,
            None => {
                shutdown.await;
                Ok(())
            }
        }
    });
    drop(served);
    if let Some(cluster) = cluster {
        cluster.end();
    }
    switch.stop();
    control.shutdown();
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome.context("serving the API")?;
    tracing::info!("done");
    Ok(())
}

fn make_plugin(
    settings: &Settings,
    keeper: Keeper,
    control: &Arc<Control<Standard>>,
    quotas: &Arc<Quotas>,
) -> anyhow::Result<(Arc<dyn Plugin>, Arc<dyn Tenants>)> {
    Ok(match settings.plugin.driver {
        Driver::Native => {
            let plugin = NativePlugin::with_segments(keeper.clone(), control.clone(), settings.segments.rules())?;
            let plugin = Arc::new(plugin.with_quotas(quotas.clone()));
            if let Keeper::Cluster(cluster) = keeper {
                let follower = Arc::downgrade(&(plugin.clone() as Arc<dyn Follower>));
                cluster.follow(follower).context("starting a thread")?;
            }
            let tenants = TenantsOf {
                plugin: plugin.clone(),
                put_in_force: Box::new(NativePlugin::put_in_force),
                snapshot: NativePlugin::snapshot,
                is_always_up: false,
            };
            (plugin, Arc::new(tenants))
        }
        Driver::Fake => {
            let plugin = Arc::new(FakePlugin::default());
            // Records only: interfaces are carried by the switch, but on no network.
            let host = control.clone();
            let tenants = TenantsOf {
                plugin: plugin.clone(),
                put_in_force: Box::new(move |_| host.put_in_force(&Model::default(), Scope::All)),
                snapshot: FakePlugin::snapshot,
                is_always_up: true,
            };
            (plugin, Arc::new(tenants))
        }
    })
}

/// An account of the settings as a number; empty: none.
fn id_of(
    settings: &Settings,
    section: &str,
    key: &str,
    name: &str,
    resolve: fn(&str) -> Result<u32, String>,
) -> Result<Option<u32>, SettingsError> {
    match name {
        "" => Ok(None),
        name => resolve(name).map(Some).map_err(|message| settings.fault(section, key, message)),
    }
}

/// Each port needs some descriptors; take all that the system lets us have.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Ready when SIGTERM or SIGINT came.
fn signals() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// `qvs run --help` promises an end within 5 s, whatever hangs.
fn start_watchdog() {
    let spawned = std::thread::Builder::new().name("watchdog".into()).spawn(|| {
        std::thread::sleep(SHUTDOWN_MAX);
        tracing::warn!("something is still busy; ending all the same");
        std::process::exit(0);
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no watchdog for the shutdown");
    }
}

/// Once a second: MAC ages, retired snapshots, load and who bears it, automatic devices without a name.
fn start_housekeeping(daemon: &Arc<Daemon<Standard>>) -> std::io::Result<()> {
    let daemon = Arc::downgrade(daemon);
    std::thread::Builder::new().name("housekeeping".into()).spawn(move || {
        while let Some(daemon) = daemon.upgrade() {
            let switch = daemon.control.switch();
            switch.housekeep();
            daemon.load.sample(&switch.worker_reports());
            if daemon.settings.switch.rebalance {
                daemon.rebalancer.tick(switch, &daemon.load);
            }
            daemon.control.housekeep();
            drop(daemon);
            std::thread::sleep(HOUSEKEEPING_PAUSE);
        }
    })?;
    Ok(())
}

/// Follows uplinks, routes and neighbours.
fn start_following(daemon: &Arc<Daemon<Standard>>) -> std::io::Result<()> {
    let daemon = Arc::downgrade(daemon);
    std::thread::Builder::new().name("underlay".into()).spawn(move || {
        while let Some(daemon) = daemon.upgrade() {
            let pause = daemon.control.follow_underlay();
            let changed = daemon.control.underlay_changed();
            drop(daemon);
            changed.sleep(pause);
        }
    })?;
    Ok(())
}

/// Opens the store; waits as long for who only looks into it.
fn open_store(path: &Path, wait: Duration) -> Result<Store, StoreError> {
    let end = Instant::now() + wait;
    loop {
        match Store::open(path) {
            Err(StoreError::InUse { .. }) if Instant::now() < end => std::thread::sleep(STORE_PAUSE),
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_somebody_looks_into_is_waited_for_and_one_that_is_another_s_is_not_for_long() {
        let dir = std::env::temp_dir().join(format!("qvs-store-wait-{}", std::process::id()));
        let path = dir.join("state.redb");
        let held = Store::open(&path).unwrap();
        assert!(matches!(open_store(&path, STORE_WAIT), Err(StoreError::InUse { .. })));
        let looks = std::thread::spawn(move || {
            std::thread::sleep(STORE_WAIT / 4);
            drop(held);
        });
        open_store(&path, Duration::from_secs(20)).unwrap();
        looks.join().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
