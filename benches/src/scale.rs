//! A cloud of many hypervisors over one real etcd: what a change costs until it is in force everywhere, what a node hears and holds,
//! and how long one takes to join.
//!
//! Simulated are the nodes, not what is between them. Some are whole: they have everything in memory, follow, and lower and
//! compile a config of their own for each change that concerns them. A machine has no memory for a thousand of those, so the
//! others only listen, each by a watch of its own, which is what loads etcd. All hosts have live records of themselves and of
//! what is plugged there. Every network has ports on as many hosts as there are ports for it, and the whole nodes are hosts
//! of the same networks, so that each change concerns all of them.

use crate::etcd::Server;
use crate::results::Section;
use anyhow::{Context, Result, ensure};
use api::address_pair::AddressPairs;
use api::cluster::{Cluster, ClusterConfig, Follower, NodeRecord, Wanted};
use api::etcd::Etcd;
use api::etcd::message::Blob;
use api::host::{DeviceSpec, Host, Plug, Scope, SocketRole};
use api::lowering::{Indices, lower};
use api::model::{InterfaceId, Model, NetworkId, OpStatus, PortId};
use api::network_type::SegmentRules;
use api::plugin::Plugin;
use api::plugins::NativePlugin;
use api::plugins::native::Keeper;
use clap::Args;
use pipelines::Standard;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use switch::worker::Pipeline;

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Threads that fill etcd; writes that come together are one transaction.
const FILLERS: usize = 64;

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Hosts
    #[arg(long, default_value_t = 1_000)]
    nodes: usize,
    /// Ports of each
    #[arg(long, default_value_t = 50)]
    ports: usize,
    /// Networks
    #[arg(long, default_value_t = 5_000)]
    networks: usize,
    /// Nodes that are whole; the others only listen
    #[arg(long, default_value_t = 8)]
    whole: usize,
    /// Changes that are timed
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Pause between two of them, ms
    #[arg(long, default_value_t = 50)]
    pause_ms: u64,
    /// etcd's program
    #[arg(long, default_value = "etcd")]
    etcd: PathBuf,
}

/// A host's part in the cloud of that etcd.
fn member(server: &Server, host: usize) -> Result<Arc<Cluster>> {
    let (etcd, prefix, host) = (server.config(), "/qvs".to_owned(), format!("host{host}"));
    let (copy, boots_before) = (None, Vec::new());
    Ok(Arc::new(Cluster::new(ClusterConfig { etcd, prefix, host, lease_s: 600, copy, boots_before })?))
}

/// When each change was in force on a whole node: its host lowers and compiles.
struct Node {
    plugs: BTreeMap<InterfaceId, Plug>,
    indices: Mutex<Indices>,
    in_force: Mutex<Option<Instant>>,
}

impl Host for Node {
    fn put_in_force(&self, model: &Model, scope: Scope<'_>) {
        let mut indices = self.indices.lock().expect("nobody panics with it");
        if let Scope::Parts(touched) = scope
            && !touched.networks.iter().any(|network| indices.networks.contains_key(network))
        {
            return;
        }
        let lowered = lower(model, &self.plugs, &mut indices);
        std::hint::black_box(<Standard as Pipeline>::compile(&lowered.config));
        *self.in_force.lock().expect("nobody panics with it") = Some(Instant::now());
    }

    fn op_status(&self, _model: &Model, _port: &PortId) -> OpStatus {
        OpStatus::Down
    }
}

fn interface(host: usize, port: usize) -> InterfaceId {
    format!("host{host}-vif{port}").into()
}

fn plug(interface: InterfaceId) -> Plug {
    let device = DeviceSpec::VhostUser { path: format!("/run/{interface}"), role: SocketRole::Server };
    Plug::new(interface, device)
}

/// A whole node: all in memory, following.
fn join(server: &Server, host: usize, ports: usize) -> Result<(Arc<NativePlugin>, Arc<Node>, Arc<Cluster>)> {
    let cluster = member(server, host)?;
    let plugs = (0..ports).map(|port| (interface(host, port), plug(interface(host, port)))).collect();
    let node = Arc::new(Node { plugs, indices: Mutex::default(), in_force: Mutex::default() });
    let plugin = NativePlugin::with_segments(Keeper::Cluster(cluster.clone()), node.clone(), SegmentRules::Local)?;
    let plugin = Arc::new(plugin);
    plugin.put_in_force();
    let follower = Arc::downgrade(&(plugin.clone() as Arc<dyn Follower>));
    cluster.follow(follower)?;
    Ok((plugin, node, cluster))
}

fn resident_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("proc_pid_status(5)")?;
    let kib: f64 = line.split_whitespace().next().context("a number")?.parse()?;
    Ok(kib / 1024.0)
}

/// Makes all networks, and all ports with their interfaces; port `at` is of host `at / ports` on network `at % networks`.
fn fill(plugin: &NativePlugin, options: &Options) -> Result<(Vec<NetworkId>, Vec<PortId>)> {
    fn spread<T: Send + Default + Clone>(count: usize, make: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
        let (made, next) = (Mutex::new(vec![T::default(); count]), AtomicUsize::new(0));
        let failed = Mutex::new(Ok(()));
        std::thread::scope(|scope| {
            for _ in 0..FILLERS {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= count {
                            return;
                        }
                        match make(at) {
                            Ok(it) => made.lock().expect("nobody panics with it")[at] = it,
                            Err(error) => *failed.lock().expect("nobody panics with it") = Err(error),
                        }
                    }
                });
            }
        });
        failed.into_inner().expect("nobody panicked")?;
        Ok(made.into_inner().expect("nobody panicked"))
    }
    let networks = spread(options.networks, |_| Ok(Some(plugin.create_network("red", None)?)))?;
    let networks: Vec<NetworkId> = networks.into_iter().flatten().collect();
    let ports = spread(options.nodes * options.ports, |at| {
        let network = &networks[at % networks.len()];
        let port = plugin.create_port_with_pairs("red", network, "ACTIVE", &AddressPairs::default())?;
        plugin.plug_interface("red", network, &port, &interface(at / options.ports, at % options.ports))?;
        Ok(Some(port))
    })?;
    Ok((networks, ports.into_iter().flatten().collect()))
}

/// Has every host say that it lives and what is plugged there.
fn populate(server: &Server, options: &Options) -> Result<()> {
    for host in 0..options.nodes {
        let cluster = member(server, host)?;
        let last = host as u32;
        let tunnel = Some(Ipv4Addr::from(0x0a00_0001 + last).into());
        cluster.live(&NodeRecord { tunnel, ..NodeRecord::default() })?;
        let wanted = Wanted { tenant: None, is_up: true, fixed: Vec::new(), addresses: Vec::new(), learnt: Vec::new() };
        cluster.say(|| (0..options.ports).map(|port| (interface(host, port), wanted.clone())).collect())?;
    }
    Ok(())
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let apart = options.networks / options.ports;
    ensure!(apart * options.ports == options.networks, "networks must be a multiple of the ports of a host");
    ensure!(options.whole * apart < options.nodes + apart, "so many hosts of one network there are not");
    let server = Server::start(&options.etcd, Ipv4Addr::LOCALHOST.into())?;
    let mut section = Section::begin("Many hypervisors (`benches scale`)");
    let begin = Instant::now();
    let first = member(&server, 0)?;
    while first.probe().is_err() {
        ensure!(begin.elapsed() < PATIENCE, "etcd does not serve");
        std::thread::sleep(Duration::from_millis(50));
    }
    let begin = Instant::now();
    let (networks, ports) = {
        let (plugin, _node, cluster) = join(&server, 0, options.ports)?;
        let filled = fill(&plugin, options)?;
        cluster.end();
        filled
    };
    populate(&server, options)?;
    section.line(format!(
        "{} hosts, {} networks, {} ports attached and plugged: written in {:.1} s",
        options.nodes,
        networks.len(),
        ports.len(),
        begin.elapsed().as_secs_f64()
    ));

    let before_mib = resident_mib()?;
    let mut joins = Vec::new();
    let mut nodes = Vec::new();
    for at in 0..options.whole {
        let begin = Instant::now();
        nodes.push(join(&server, at * apart, options.ports)?);
        joins.push(begin.elapsed());
    }
    section.times("a cold join: all read, lowered and compiled", &mut joins);
    section.line(format!("memory of a whole node: {:.0} MiB", (resident_mib()? - before_mib) / options.whole as f64));

    // The others listen.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let from = nodes[0].2.revision() + 1;
    let (heard, bytes) = (Arc::new(Mutex::new(HashMap::<i64, usize>::new())), Arc::new(AtomicU64::new(0)));
    let listeners = options.nodes - options.whole;
    let listening = Arc::new(AtomicUsize::new(0));
    for _ in 0..listeners {
        let etcd = Etcd::new(server.config())?;
        let (heard, bytes, listening) = (heard.clone(), bytes.clone(), listening.clone());
        runtime.spawn(async move {
            // Many ask at once at the start; who is not served in time asks again.
            let mut watch = loop {
                match etcd.watch(&Blob(b"/qvs/".to_vec()), from).await {
                    Ok(watch) => break watch,
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            };
            listening.fetch_add(1, Ordering::Relaxed);
            while let Ok(news) = watch.next().await {
                bytes.fetch_add(news.bytes as u64, Ordering::Relaxed);
                *heard.lock().expect("nobody panics with it").entry(news.revision).or_default() += 1;
            }
        });
    }
    let begin = Instant::now();
    while listening.load(Ordering::Relaxed) < listeners {
        ensure!(begin.elapsed() < PATIENCE * 4, "{} of {listeners} listen", listening.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_millis(20));
    }
    section.line(format!("{listeners} others listen after {:.1} s", begin.elapsed().as_secs_f64()));

    let whole_bytes = |nodes: &[(Arc<NativePlugin>, Arc<Node>, Arc<Cluster>)]| nodes[1].2.watched_bytes();
    let (heard_before, whole_before) = (bytes.load(Ordering::Relaxed), whole_bytes(&nodes));
    let (mut answers, mut in_force, mut all_heard) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..options.changes {
        let port = at % options.ports;
        let (network, id) = (&networks[port % networks.len()], &ports[port]);
        nodes.iter().for_each(|(_, node, _)| *node.in_force.lock().expect("nobody panics with it") = None);
        let plugin = &nodes[0].0;
        let asked = Instant::now();
        match at / options.ports % 2 {
            0 => plugin.unplug_interface("red", network, id)?,
            _ => plugin.plug_interface("red", network, id, &interface(0, port))?,
        }
        let answered = Instant::now();
        answers.push(answered - asked);
        let last = loop {
            let times = nodes.iter().map(|(_, node, _)| *node.in_force.lock().expect("nobody panics with it"));
            match times.collect::<Option<Vec<Instant>>>() {
                Some(times) => break times.into_iter().max().context("there are nodes")?,
                None => ensure!(answered.elapsed() < PATIENCE, "a change has not arrived"),
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        in_force.push(last.saturating_duration_since(answered));
        let revision = nodes[1].2.revision();
        while heard.lock().expect("nobody panics with it").get(&revision).copied().unwrap_or(0) < listeners {
            ensure!(answered.elapsed() < PATIENCE, "a change was not heard by everybody");
            std::thread::sleep(Duration::from_micros(200));
        }
        all_heard.push(answered.elapsed());
        std::thread::sleep(Duration::from_millis(options.pause_ms));
    }
    section.times("a write until it is answered", &mut answers);
    section.times(&format!("from the answer until it is in force on all {} whole nodes", options.whole), &mut in_force);
    section.times(&format!("from the answer until all {listeners} others have heard it"), &mut all_heard);
    section.line(format!(
        "heard by a node: {:.0} bytes a change (a whole node: {:.0})",
        (bytes.load(Ordering::Relaxed) - heard_before) as f64 / listeners.max(1) as f64 / options.changes as f64,
        (whole_bytes(&nodes) - whole_before) as f64 / options.changes as f64
    ));
    runtime.shutdown_background();
    nodes.iter().for_each(|(_, _, cluster)| cluster.end());
    section.write("cloud.md")
}
