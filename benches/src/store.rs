//! The networking API at the size of a cloud: what a list, a write, a start and a crowd of clients cost when the store is
//! full, each beside what it is held against.
//!
//! Lists and writes are measured in this process over loopback, in alternation with their counterparts, because only the
//! ratio means anything on a machine that is shared and a disk that is not ours. Start, memory and the clients are those of a
//! `qvs` of its own ([`daemon`]), which moves frames meanwhile ([`beside`]); those of operators' views of another, which has all
//! its ports ([`views`]). Nothing here asserts; the bars stand beside the figures ([`report`]).

mod beside;
pub(crate) mod client;
mod crowd;
mod daemon;
mod hostile;
mod pair;
mod report;
mod views;

use anyhow::{Context, Result, ensure};
use api::host::{Host, Scope};
use api::model::{AdminState, Change, LogicalPort, Model, Network, OpStatus, PortId};
use api::plugins::NativePlugin;
use api::server::{ServerConfig, serve};
use api::store::Store;
use clap::Args;
use client::Client;
use report::Report;
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
/// What the bars are for: networks, ports, clients, seconds.
const WHOLE: (usize, usize, usize, u64) = (10_000, 100_000, 500, 60);
/// Pieces into which what is timed is cut, each with medians of its own.
const PIECES: usize = 10;

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Networks in the store, 100 a tenant
    #[arg(long, default_value_t = WHOLE.0)]
    networks: usize,
    /// Ports in the store, spread over the networks, all attached
    #[arg(long, default_value_t = WHOLE.1)]
    ports: usize,
    /// How often a list or a write is timed
    #[arg(long, default_value_t = 300)]
    rounds: usize,
    /// Clients at the same time
    #[arg(long, default_value_t = WHOLE.2)]
    clients: usize,
    /// How long they go on, seconds; as long again hostile ones, and nobody
    #[arg(long, default_value_t = WHOLE.3)]
    seconds: u64,
    /// Only time lists and writes; no daemon, no clients
    #[arg(long)]
    lists: bool,
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
    let mut report = Report::default();
    lists_and_writes(&path, &small, options.rounds, &mut report)?;
    if options.lists {
        return Ok(());
    }
    let mut qvs = daemon::start(dir, options.qvs.as_deref())?;
    report.bar(
        "start, until it answers",
        "below 2 s",
        format!("{:.2} s, {}", qvs.start_s, qvs.memory()?),
        qvs.start_s < 2.0,
    );
    beside::run(&qvs, options.clients, Duration::from_secs(options.seconds), &mut report)?;
    qvs.stop()?;
    views::plug_all(&path, dir)?;
    let mut qvs = daemon::start(dir, options.qvs.as_deref())?;
    views::run(&qvs, &mut report)?;
    qvs.stop()?;
    if (options.networks, options.ports, options.clients, options.seconds) == WHOLE {
        report.write(HOW)?;
    }
    Ok(())
}

/// How the page's figures were taken.
const HOW: &str = "With 10,000 networks, 100 a tenant, and 100,000 attached ports in the store. Lists and writes over \
    loopback in one process, each in turn with what it is held against, in ten pieces: the median of their medians, in brackets the least \
    and the most. Clients on one CPU, the switch's one worker on the other. Views of a switch with all its ports, VLANs of one trunk: \
    the median of nine. Written by `benches -- store`.";

fn tenant(at: usize) -> String {
    format!("tenant{at}")
}

/// An id as random as real ones are: what is read in their order comes in no order of tenants. The factor is odd, so that no two
/// are alike.
fn uuid(kind: usize, at: usize) -> String {
    format!("{:08x}-0000-4000-8000-{kind:04x}{at:08x}", (at as u32).wrapping_mul(0x9e37_79b1))
}

/// The interface that is attached to a port of the store.
fn interface(at: usize) -> String {
    uuid(3, at)
}

/// Makes a store of so many networks, each tenant with its hundred, and so many ports.
fn fill(path: &Path, networks: usize, ports: usize) -> Result<()> {
    let store = Store::open(path)?;
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
            attachment: Some(interface(at).into()),
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

fn lists_and_writes(full: &Path, small: &Path, rounds: usize, report: &mut Report) -> Result<()> {
    let full = Arc::new(Store::open(full)?);
    let (serving_full, serving_small) = (Here::start(full.clone())?, Here::start(Arc::new(Store::open(small)?))?);
    let (mut of_full, mut of_small) = (Client::open(serving_full.address)?, Client::open(serving_small.address)?);
    let networks = format!("/v1.1/tenants/{}/networks", tenant(0));

    let list = |client: &mut Client| {
        let begin = Instant::now();
        let answer = client.ask("GET", &format!("{networks}/detail.json"), "")?;
        let took = begin.elapsed();
        ensure!(answer.body.matches("\"id\"").count() == PER_TENANT, "{}", answer.body);
        Ok(took)
    };
    let mut lists = Beside::default();
    for round in 0..rounds {
        // In turn who is first: the second finds the processor busy with the first.
        let (mine, theirs) = if round % 2 == 0 {
            (list(&mut of_full)?, list(&mut of_small)?)
        } else {
            let theirs = list(&mut of_small)?;
            (list(&mut of_full)?, theirs)
        };
        lists.add(mine, theirs);
    }
    let (text, ratio) = lists.told("an otherwise empty store");
    report.bar(&format!("list of a tenant's {PER_TENANT} networks"), "at most 1 time", text, ratio <= 1.005);

    let [mut network, mut port] = [const { Beside { ours: Vec::new(), theirs: Vec::new() } }; 2];
    for at in 0..rounds {
        let id = format!("bare{at}");
        let record = Network {
            id: id.as_str().into(),
            tenant: "nobody".into(),
            name: None,
            network_type: Default::default(),
            serial: 1 << 40,
        };
        let bare = timed(|| Ok(full.commit(&[Change::PutNetwork(record.clone())])?))?;
        full.commit(&[Change::RemoveNetwork(id.as_str().into())])?;
        let mut made = String::new();
        let took = timed(|| {
            made = of_full.ask("POST", &format!("{networks}.json"), r#"{"network": {"name": "n"}}"#)?.id()?;
            Ok(())
        })?;
        network.add(took, bare);
        let took =
            timed(|| of_full.ask("POST", &format!("{networks}/{made}/ports.json"), r#"{"port": {}}"#)?.id().map(drop))?;
        port.add(took, bare);
        of_full.ask("DELETE", &format!("{networks}/{made}.json"), "")?;
    }
    for (what, times) in [("create of a network", network), ("create of a port", port)] {
        let (text, ratio) = times.told("a bare commit");
        report.bar(what, "at most 2 times", text, ratio <= 2.0);
    }
    Ok(())
}

fn timed(what: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begin = Instant::now();
    what().context("while it was timed")?;
    Ok(begin.elapsed())
}

/// Times of two things, taken in turn.
#[derive(Default)]
struct Beside {
    ours: Vec<Duration>,
    theirs: Vec<Duration>,
}

impl Beside {
    fn add(&mut self, ours: Duration, theirs: Duration) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    /// Both in words, and the ratio: the median of those of the pieces' medians.
    fn told(&self, what: &str) -> (String, f64) {
        let piece = self.ours.len().div_ceil(PIECES).max(1);
        let pieces = self.ours.chunks(piece).zip(self.theirs.chunks(piece));
        let mut ratios: Vec<f64> =
            pieces.map(|(ours, theirs)| median(ours).as_secs_f64() / median(theirs).as_secs_f64()).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let at = |at: usize| ratios.get(at).copied().unwrap_or(f64::NAN);
        let (ratio, least, most) = (at(ratios.len() / 2), at(0), at(ratios.len().saturating_sub(1)));
        let (ours, theirs) = (ms(median(&self.ours)), ms(median(&self.theirs)));
        (format!("{ours:.3} ms, {ratio:.2} ({least:.2}–{most:.2}) times that of {what}, {theirs:.3} ms"), ratio)
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
