//! From the API's answer on one hypervisor until it is so on the other: two real daemons, each in a namespace, over one real etcd, which
//! syncs to the disk. The wire between them is a veth; networks are VXLAN.
//!
//! A guest of the first host sends a frame every [`PROBE_PAUSE`] to one of the second, whose port is set DOWN and ACTIVE by turns at the
//! first host's API. The time is from the answer until the first frame arrives, or the last; less than nothing counts as nothing:
//! the second host may hear of it before the answer is read. Meanwhile other pairs send numbered frames, one on the
//! same network and one on another, and every one that does not arrive is a loss. Guests are the kernel's UDP over TAPs.

use crate::etcd::Server;
use crate::results::Section;
use crate::store::client::Client;
use crate::xdp::ip;
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use switch::affinity::allowed_cpus;
use switch::netns;

/// Between two frames that tell whether the port carries: so exact is a time.
const PROBE_PAUSE: Duration = Duration::from_micros(200);
/// Between two frames of a pair that must lose none.
const OTHERS_PAUSE: Duration = Duration::from_micros(500);
/// How long none may come until the port carries no more, and how long what was sent last may be on its way.
const QUIET: Duration = Duration::from_millis(60);
/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks for it.
const LOOK_PAUSE: Duration = Duration::from_micros(50);
/// The port that guests send from and to.
const UDP_PORT: u16 = 7000;
/// The bar: the median, over all changes.
const MEDIAN_MAX: Duration = Duration::from_millis(20);

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Changes, half of them to ACTIVE
    #[arg(long, default_value_t = 400)]
    changes: usize,
    /// The daemon's program; the `qvs` beside this one if none is named
    #[arg(long)]
    qvs: Option<PathBuf>,
    /// etcd's program
    #[arg(long, default_value = "etcd")]
    etcd: PathBuf,
}

/// A hypervisor.
struct Host {
    space: OwnedFd,
    program: PathBuf,
    settings: PathBuf,
    api: SocketAddr,
    child: Child,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn within<T: Send>(space: &OwnedFd, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    netns::within(Some(space.as_fd()), work)?
}

/// The underlay's address of a host; they are numbered from 1.
fn underlay(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

/// A guest's MAC and address: those of pair `pair` on host `number`, of which the last pair is on a network of its own.
fn guest(pair: u8, number: u8) -> (String, Ipv4Addr) {
    (format!("02:00:00:00:{pair:02x}:{number:02x}"), Ipv4Addr::new(10, pair, 0, number))
}

/// Its TAP.
fn tap(pair: u8) -> String {
    format!("guest{pair}")
}

impl Host {
    fn start(number: u8, space: OwnedFd, program: &Path, dir: &Path, etcd: &str) -> Result<Host> {
        let own = dir.join(format!("host{number}"));
        std::fs::create_dir(&own)?;
        let (state, run, settings) = (own.join("state"), own.join("run"), own.join("qvs.toml"));
        let api = within(&space, || Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?))?;
        let cpu = *allowed_cpus()?.last().context("a CPU is allowed")?;
        let text = format!(
            "state_dir = {state:?}\nrun_dir = {run:?}\n[api]\nlisten = \"{api}\"\n[switch]\nworkers = [{cpu}]\n\
             [node]\nhost = \"host{number}\"\n[store]\nurl = \"etcd:{etcd}\"\n[[uplink]]\nphysical_network = \"p\"\n\
             interface = \"eth0\"\n[tunnel]\nlocal_ip = \"{}\"\n[segments]\ndefault = \"vxlan\"\n",
            underlay(number)
        );
        std::fs::write(&settings, text)?;
        let log = File::create(own.join("log"))?;
        let child = within(&space, || {
            let mut command = Command::new(program);
            command.args(["run", "--log-level", "warn", "--config"]).arg(&settings).stdin(Stdio::null()).stderr(log);
            command.spawn().with_context(|| program.display().to_string())
        })?;
        let host = Host { space, program: program.to_owned(), settings, api, child };
        let begin = Instant::now();
        while host.client().and_then(|mut client| client.ask("GET", "/", "")).is_err() {
            ensure!(begin.elapsed() < PATIENCE, "host {number} does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(host)
    }

    fn client(&self) -> Result<Client> {
        within(&self.space, || Client::open(self.api))
    }

    /// Plugs the TAP of a pair, and tells it of the other's address, so that nobody asks for it.
    fn plug(&self, pair: u8, number: u8) -> Result<()> {
        let tap = tap(pair);
        let mut command = Command::new(&self.program);
        command.args(["plug", &format!("host{number}-{tap}"), "--tap", &tap, "--config"]).arg(&self.settings);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        let ((mac, address), (other_mac, other)) = (guest(pair, number), guest(pair, 3 - number));
        within(&self.space, || {
            ip(&format!("link set {tap} address {mac}"))?;
            ip(&format!("addr add {address}/24 dev {tap}"))?;
            ip(&format!("neigh add {other} lladdr {other_mac} dev {tap} nud permanent"))
        })
    }
}

/// What tenants ask.
struct Tenant(Client);

impl Tenant {
    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<Option<String>> {
        let answer = self.0.ask(method, &format!("/v1.1/tenants/acme/networks{path}"), body)?;
        ensure!(answer.status < 300, "{method} {path}: {} {}", answer.status, answer.body);
        Ok(answer.id().ok())
    }

    fn network(&mut self) -> Result<String> {
        self.ask("POST", "", r#"{"network": {"name": "n"}}"#)?.context("an id")
    }

    /// A port with this interface plugged; its path.
    fn port(&mut self, network: &str, interface: &str) -> Result<String> {
        let id = self.ask("POST", &format!("/{network}/ports"), r#"{"port": {"state": "ACTIVE"}}"#)?;
        let path = format!("/{network}/ports/{}", id.context("an id")?);
        self.ask("PUT", &format!("{path}/attachment"), &format!(r#"{{"attachment": {{"id": "{interface}"}}}}"#))?;
        Ok(path)
    }

    fn set(&mut self, port: &str, state: &str) -> Result<()> {
        self.ask("PUT", port, &format!(r#"{{"port": {{"state": "{state}"}}}}"#)).map(drop)
    }
}

/// Two guests of which one sends to the other.
struct Pair {
    sent: Arc<AtomicU64>,
    arrived: Arc<AtomicU64>,
    /// When the last one arrived, and the first since this was zero; ns since the epoch of the run.
    last_ns: Arc<AtomicU64>,
    first_ns: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Result<()>>>,
}

impl Pair {
    fn start(hosts: &[Host; 2], pair: u8, pause: Duration, epoch: Instant, is_over: &Arc<AtomicBool>) -> Result<Pair> {
        let socket = |number: u8| {
            let (_, address) = guest(pair, number);
            let (_, other) = guest(pair, 3 - number);
            within(&hosts[usize::from(number) - 1].space, || {
                let socket = UdpSocket::bind((address, UDP_PORT))?;
                socket.connect((other, UDP_PORT))?;
                socket.set_read_timeout(Some(QUIET))?;
                Ok(socket)
            })
        };
        let (sender, receiver) = (socket(1)?, socket(2)?);
        let counter = Arc::<AtomicU64>::default;
        let (sent, arrived, last_ns, first_ns) = (counter(), counter(), counter(), counter());
        let sending = {
            let (sent, is_over) = (sent.clone(), is_over.clone());
            std::thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    sender.send(&sent.fetch_add(1, Ordering::Relaxed).to_be_bytes())?;
                    std::thread::sleep(pause);
                }
                Ok(())
            })
        };
        let receiving = {
            let (arrived, last_ns, first_ns, is_over) =
                (arrived.clone(), last_ns.clone(), first_ns.clone(), is_over.clone());
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                loop {
                    match receiver.recv(&mut buffer) {
                        Ok(_) => {
                            let now_ns = epoch.elapsed().as_nanos() as u64;
                            last_ns.store(now_ns, Ordering::Relaxed);
                            let _ = first_ns.compare_exchange(0, now_ns, Ordering::Relaxed, Ordering::Relaxed);
                            arrived.fetch_add(1, Ordering::Relaxed);
                        }
                        // The read has timed out: what was sent before the end has arrived, or never will.
                        Err(_) if is_over.load(Ordering::Relaxed) => return Ok(()),
                        Err(_) => {}
                    }
                }
            })
        };
        Ok(Pair { sent, arrived, last_ns, first_ns, threads: vec![sending, receiving] })
    }

    /// Waits until frames arrive, or none do.
    fn wait(&self, epoch: Instant, carries: bool) -> Result<()> {
        let begin = Instant::now();
        self.first_ns.store(0, Ordering::Relaxed);
        loop {
            let is_there = self.first_ns.load(Ordering::Relaxed) > 0;
            let last = Duration::from_nanos(self.last_ns.load(Ordering::Relaxed));
            let is_quiet = epoch.elapsed().saturating_sub(last) > QUIET;
            if if carries { is_there } else { is_quiet } {
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "frames {} pass", if carries { "do not" } else { "still" });
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    /// Frames that did not arrive, of all.
    fn end(self) -> Result<(u64, u64)> {
        for thread in self.threads {
            thread.join().expect("no panic")?;
        }
        let sent = self.sent.load(Ordering::Relaxed);
        Ok((sent - self.arrived.load(Ordering::Relaxed), sent))
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let program = match &options.qvs {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("qvs"),
    };
    let [one, two] = [netns::create().context("making a network namespace (run as root)")?, netns::create()?];
    let path = format!("/proc/{}/fd/{}", std::process::id(), two.as_raw_fd());
    within(&one, || ip(&format!("link add eth0 type veth peer name eth0 netns {path}")))?;
    for (space, number) in [(&one, 1), (&two, 2)] {
        within(space, || {
            ip("link set lo up")?;
            ip("link set eth0 mtu 1600 up")?;
            ip(&format!("addr add {}/24 dev eth0", underlay(number)))
        })?;
    }
    let server = within(&one, || Server::start(&options.etcd, underlay(1).into()))?;
    let start = |number, space| Host::start(number, space, &program, server.dir(), &server.url);
    let hosts = [start(1, one)?, start(2, two)?];

    let mut tenant = Tenant(hosts[0].client()?);
    let (lan, other) = (tenant.network()?, tenant.network()?);
    let mut changed = String::new();
    for (pair, network) in [(0, &lan), (1, &lan), (2, &other)] {
        for (host, number) in hosts.iter().zip(1..) {
            host.plug(pair, number)?;
            changed = match tenant.port(network, &format!("host{number}-{}", tap(pair)))? {
                port if (pair, number) == (0, 2) => port,
                _ => changed,
            };
        }
    }
    let (epoch, probing, sending) = (Instant::now(), Arc::default(), Arc::default());
    let probe = Pair::start(&hosts, 0, PROBE_PAUSE, epoch, &probing)?;
    probe.wait(epoch, true)?;
    // Both must carry before a frame is a loss.
    let warm = Arc::default();
    for pair in [1, 2] {
        let pair = Pair::start(&hosts, pair, OTHERS_PAUSE, epoch, &warm)?;
        pair.wait(epoch, true)?;
        warm.store(true, Ordering::Relaxed);
        pair.end()?;
        warm.store(false, Ordering::Relaxed);
    }
    let others = [1, 2].map(|pair| Pair::start(&hosts, pair, OTHERS_PAUSE, epoch, &sending));

    let (mut answers, mut up, mut down) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..options.changes {
        let carries = at % 2 == 1;
        probe.first_ns.store(0, Ordering::Relaxed);
        let asked = Instant::now();
        tenant.set(&changed, if carries { "ACTIVE" } else { "DOWN" })?;
        answers.push(asked.elapsed());
        let answered = epoch.elapsed();
        if carries {
            let begin = Instant::now();
            while probe.first_ns.load(Ordering::Relaxed) == 0 {
                ensure!(begin.elapsed() < PATIENCE, "frames do not pass");
                std::thread::sleep(LOOK_PAUSE);
            }
            up.push(Duration::from_nanos(probe.first_ns.load(Ordering::Relaxed)).saturating_sub(answered));
        } else {
            probe.wait(epoch, false)?;
            down.push(Duration::from_nanos(probe.last_ns.load(Ordering::Relaxed)).saturating_sub(answered));
        }
    }
    probing.store(true, Ordering::Relaxed);
    sending.store(true, Ordering::Relaxed);
    probe.end()?;
    let mut section = Section::begin("Change to effect across hosts (`benches effect`)");
    section.line(format!(
        "two daemons, one etcd that syncs to the disk, VXLAN over a veth; a frame every {PROBE_PAUSE:?}; {} changes",
        options.changes
    ));
    section.times("a change until it is answered", &mut answers);
    section.times("from the answer to ACTIVE until the first frame passes on the other host", &mut up);
    section.times("from the answer to DOWN until the last frame has passed there", &mut down);
    let mut all: Vec<Duration> = up.into_iter().chain(down).collect();
    section.times("both", &mut all);
    let mut lost_in_all = 0;
    for (pair, what) in others.into_iter().zip(["the same network", "another network"]) {
        let (lost, sent) = pair?.end()?;
        section.line(format!("other ports, of {what}: {lost} of {sent} frames lost"));
        lost_in_all += lost;
    }
    let is_met = all[all.len() / 2] < MEDIAN_MAX && lost_in_all == 0;
    section.line(format!("bar (median below {MEDIAN_MAX:?}, none lost): {}", if is_met { "met" } else { "not met" }));
    section.write("cloud.md")
}
