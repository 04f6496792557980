//! The networking API at the size of a cloud: what a list, a write, a start and a crowd of clients cost when the store is
//! full, each beside what it is held against.
//!
//! Lists and writes are measured in this process over loopback, in alternation with their counterparts, because only the
//! ratio means anything on a machine that is shared and a disk that is not ours. Start, memory and the clients are those of a
//! `qvs` of its own ([`daemon`]), which moves frames meanwhile ([`beside`]). Nothing here asserts; the bars stand in the text
//! that is printed.

mod beside;
mod client;
mod crowd;
mod daemon;
mod hostile;
mod pair;

use anyhow::{Context, Result, ensure};
use api::host::{Host, Scope};
use api::model::{AdminState, Change, LogicalPort, Model, Network, OpStatus, PortId};
use api::plugins::NativePlugin;
use api::server::{ServerConfig, serve};
use api::store::Store;
use clap::Args;
use client::Client;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Networks of each tenant.
const PER_TENANT: usize = 100;
/// Records in one commit while the store is filled.
const FILL: usize = 2_000;

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Networks in the store, 100 a tenant
    #[arg(long, default_value_t = 10_000)]
    networks: usize,
    /// Ports in the store, spread over the networks, all attached
    #[arg(long, default_value_t = 100_000)]
    ports: usize,
    /// How often a list or a write is timed
    #[arg(long, default_value_t = 300)]
    rounds: usize,
    /// Clients at the same time
    #[arg(long, default_value_t = 500)]
    clients: usize,
    /// How long they go on, seconds; as long again hostile ones, and nobody
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The daemon's program [default: beside this one]
    #[arg(long)]
    qvs: Option<PathBuf>,
    /// Where the stores are made, on the disk in question [default: the directory for temporary files]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// A host that carries nothing, so that the API alone is measured.
struct NoHost;

impl Host for NoHost {
    fn put_in_force(&self, _model: &Model, _scope: Scope<'_>) {}

    fn op_status(&self, _model: &Model, _port: &PortId) -> OpStatus {
        OpStatus::Down
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir).join(format!("qvs-scale-{}", std::process::id()));
    let outcome = run_in(&dir, options);
    let _ = std::fs::remove_dir_all(&dir);
    outcome
}

fn run_in(dir: &Path, options: &Options) -> Result<()> {
    let path = dir.join("state/state.redb");
    let begin = Instant::now();
    fill(&path, options.networks, options.ports)?;
    println!(
        "{} networks and {} ports written in {:.1} s, {} MiB",
        options.networks,
        options.ports,
        begin.elapsed().as_secs_f64(),
        std::fs::metadata(&path)?.len() >> 20
    );
    let small = dir.join("small.redb");
    fill(&small, PER_TENANT, 0)?;
    lists_and_writes(&path, &small, options.rounds)?;
    let mut qvs = daemon::start(dir, options.qvs.as_deref())?;
    println!("{}", qvs.started);
    beside::run(&qvs, options.clients, Duration::from_secs(options.seconds))?;
    qvs.stop()
}

fn tenant(at: usize) -> String {
    format!("tenant{at}")
}

/// Makes a store of so many networks, each tenant with its hundred, and so many ports.
fn fill(path: &Path, networks: usize, ports: usize) -> Result<()> {
    let store = Store::open(path)?;
    let uuid = |kind: usize, at: usize| format!("{kind:08x}-0000-4000-8000-{at:012x}");
    let network = |at: usize| {
        Change::PutNetwork(Network {
            id: uuid(1, at).into(),
            tenant: tenant(at / PER_TENANT).into(),
            name: Some(format!("network {at}").into()),
            network_type: Default::default(),
            serial: at as u64,
        })
    };
    let port = |at: usize| {
        Change::PutPort(LogicalPort {
            id: uuid(2, at).into(),
            network: uuid(1, at % networks).into(),
            state: AdminState::Active,
            attachment: Some(uuid(3, at).into()),
            pairs: [].into(),
            serial: (networks + at) as u64,
        })
    };
    let changes: Vec<Change> = (0..networks).map(network).chain((0..ports).map(port)).collect();
    changes.chunks(FILL).try_for_each(|chunk| store.commit(chunk))?;
    Ok(())
}

/// A server in this process over a store; it lets the store go when dropped.
struct Here {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Here {
    fn start(store: Arc<Store>) -> Result<Here> {
        let plugin = Arc::new(NativePlugin::new(store, Arc::new(NoHost))?);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let stopped = async { drop(stopped.await) };
        let thread = std::thread::spawn(move || {
            runtime.block_on(serve(listener, ServerConfig::default(), plugin, stopped)).expect("loopback serves");
        });
        Ok(Here { address, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It panicked only if the listener failed, which the clients have told already.
            let _ = thread.join();
        }
    }
}

fn lists_and_writes(full: &Path, small: &Path, rounds: usize) -> Result<()> {
    let full = Arc::new(Store::open(full)?);
    let (serving_full, serving_small) = (Here::start(full.clone())?, Here::start(Arc::new(Store::open(small)?))?);
    let (mut of_full, mut of_small) = (Client::open(serving_full.address)?, Client::open(serving_small.address)?);
    let networks = format!("/v1.1/tenants/{}/networks", tenant(0));

    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (client, times) in [&mut of_full, &mut of_small].into_iter().zip(&mut times) {
            let begin = Instant::now();
            let answer = client.ask("GET", &format!("{networks}/detail.json"), "")?;
            times.push(begin.elapsed());
            ensure!(answer.body.matches("\"id\"").count() == PER_TENANT, "{}", answer.body);
        }
    }
    let [full_list, small_list] = times.map(median);
    println!(
        "list of a tenant's {PER_TENANT} networks: {}",
        beside(full_list, small_list, "an otherwise empty store", 1.0)
    );

    let [mut bare, mut network, mut port] = [const { Vec::new() }; 3];
    for at in 0..rounds {
        let id = format!("bare{at}");
        let record = Network {
            id: id.as_str().into(),
            tenant: "nobody".into(),
            name: None,
            network_type: Default::default(),
            serial: 1 << 40,
        };
        bare.push(timed(|| Ok(full.commit(&[Change::PutNetwork(record.clone())])?))?);
        full.commit(&[Change::RemoveNetwork(id.as_str().into())])?;
        let mut made = String::new();
        network.push(timed(|| {
            made = of_full.ask("POST", &format!("{networks}.json"), r#"{"network": {"name": "n"}}"#)?.id()?;
            Ok(())
        })?);
        port.push(timed(|| {
            of_full.ask("POST", &format!("{networks}/{made}/ports.json"), r#"{"port": {}}"#)?.id().map(drop)
        })?);
        of_full.ask("DELETE", &format!("{networks}/{made}.json"), "")?;
    }
    let [bare, network, port] = [bare, network, port].map(median);
    println!("create of a network: {}", beside(network, bare, "a bare commit", 2.0));
    println!("create of a port: {}", beside(port, bare, "a bare commit", 2.0));
    Ok(())
}

fn timed(what: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begin = Instant::now();
    what().context("while it was timed")?;
    Ok(begin.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn beside(ours: Duration, theirs: Duration, what: &str, bar: f64) -> String {
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    format!("{:.3} ms, {:.2} times that of {what} ({:.3} ms; bar {bar:.1})", ms(ours), ratio, ms(theirs))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
