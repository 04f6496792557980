//! TCP between two stations behind TAPs of two hypervisors, with VXLAN between them.
//!
//! A hypervisor is a namespace with a switch, the wire between two is a veth, and each has one CPU for all that it does: its switch shares
//! that with its station, as on a machine of one core. So who polls while there is nothing to do takes from its own guest, and
//! what the daemons cost stands beside what they move. Each switch is measured by packet sockets and by AF_XDP on the wire.

use crate::alternate::ratio;
use crate::guests::cpu_seconds;
use crate::options::Options;
use crate::peers::{Peer, Switch};
use crate::report::{Figure, Page, Sample, load};
use crate::tap::{offloads, received, serve};
use ::tests::daemon::{Daemon, last_cpu};
use ::tests::namespace::{Namespace, ip};
use ::tests::ovs::{DPDK, Ovs};
use ::tests::process::{Child, TempDir, wait_until};
use std::path::Path;
use std::time::Duration;

/// The row's name among the findings: each switch by the faster of its ways.
pub(crate) const ROW: &str = "TCP over VXLAN, TAP to TAP";
/// Seconds of each transfer.
const SECONDS: u32 = 3;
/// The hypervisors' addresses on the wire, and the stations'.
const UNDERLAY: [&str; 2] = ["172.31.80.1", "172.31.80.2"];
const STATIONS: [&str; 2] = ["10.9.0.1", "10.9.0.2"];
const SOON: Duration = Duration::from_secs(10);

/// A switch, and how it is on the wire.
#[derive(Clone, Copy)]
struct Way {
    peer: Peer,
    is_af_xdp: bool,
}

impl Way {
    fn driver(self) -> &'static str {
        if self.is_af_xdp { "AF_XDP" } else { "AF_PACKET" }
    }
}

/// A hypervisor and its station. Dropped in this order: an interface goes before its namespace.
struct Host {
    switch: Switch,
    station: Namespace,
    _space: Namespace,
    cpu: usize,
}

impl Host {
    fn start(way: Way, at: usize, space: Namespace, station: Namespace) -> Host {
        let cpu = [0, last_cpu()][at];
        // Threads of a process that is started here begin on this CPU.
        let switch = space.inside(|| {
            switch::affinity::pin(cpu).expect("it is ours");
            let ends = [UNDERLAY[at], UNDERLAY[1 - at]];
            match way.peer {
                Peer::Qvs => qvs(way, ends, &station),
                _ => ovs(way, cpu, ends, &station),
            }
        });
        switch.resume();
        station.address(&switch.ports[0], &format!("{}/24", STATIONS[at]));
        station.must(&format!("ip link set {} up", switch.ports[0]));
        Host { switch, station, _space: space, cpu }
    }
}

/// Ours, with the settings that it has by default.
fn qvs(way: Way, [own, other]: [&str; 2], station: &Namespace) -> Switch {
    let driver = if way.is_af_xdp { "af_xdp" } else { "af_packet" };
    let daemon = Daemon::start(&format!(
        "[[uplink]]\nphysical_network = \"physnet1\"\ninterface = \"eth0\"\ndriver = \"{driver}\"\n\
         [tunnel]\nlocal_ip = \"{own}\"\npeers = [\"{other}\"]\n[segments]\ndefault = \"vxlan\"\nvni = \"5000-5009\""
    ));
    daemon.must(&format!("plug guest --tap tap0 --netns {}", station.name()));
    let tenant = daemon.tenant("compare");
    tenant.attached_port(&tenant.network("lan"), "guest");
    daemon.wait_up(&["guest"]);
    Switch::of_host(way.peer, ["tap0", "eth0"], daemon.id(), daemon)
}

/// Open vSwitch: a bridge with an internal port, which is its TAP, and the tunnel, and one with the wire. By AF_XDP the wire has a PMD;
/// everything else is the main thread's.
fn ovs(way: Way, cpu: usize, [own, other]: [&str; 2], station: &Namespace) -> Switch {
    let mask = 1u64 << cpu;
    let before = format!(
        "set Open_vSwitch . other_config:dpdk-init=true other_config:dpdk-extra=--in-memory other_config:dpdk-socket-mem=64 \
         other_config:pmd-cpu-mask={mask:#x} other_config:dpdk-lcore-mask={mask:#x}"
    );
    let ovs = Ovs::start(DPDK, &before, &["br0", "wire"]);
    ovs.set("add-port br0 tap0 -- set Interface tap0 type=internal");
    let kind = if way.is_af_xdp { "type=afxdp options:xdp-mode=native" } else { "type=system" };
    ovs.set(&format!("add-port wire eth0 -- set Interface eth0 {kind} -- set Interface wire mtu_request=1600"));
    ip("addr flush dev eth0");
    ip(&format!("addr add {own}/24 dev wire"));
    ip("link set wire up");
    ovs.set(&format!(
        "add-port br0 tun0 -- set Interface tun0 type=vxlan options:remote_ip={other} options:local_ip={own} options:key=5000"
    ));
    ip(&format!("link set tap0 netns {}", station.name()));
    Switch::of_host(way.peer, ["tap0", "eth0"], ovs.id(), ovs)
}

/// Two hypervisors; the second's station serves.
struct Rig {
    way: Way,
    hosts: [Host; 2],
    _server: Child,
    gbps: Sample,
    cpu_seconds: Sample,
    cpu_seconds_per_gb: Sample,
}

impl Rig {
    fn start(way: Way, dir: &Path) -> Rig {
        let name = format!("{:?}-{}", way.peer, way.driver()).to_lowercase();
        let [one, two] = ["a", "b"].map(|host| Namespace::new(&format!("{name}-{host}")));
        ip(&format!("link add eth0 netns {} type veth peer name eth0 netns {}", one.name(), two.name()));
        for (space, address) in [&one, &two].into_iter().zip(UNDERLAY) {
            space.must(&format!(
                "ip link set lo up && ip link set eth0 mtu 1600 up && ip addr add {address}/24 dev eth0"
            ));
        }
        let [first, second] = ["ga", "gb"].map(|guest| Namespace::new(&format!("{name}-{guest}")));
        let hosts = [Host::start(way, 0, one, first), Host::start(way, 1, two, second)];
        let server = serve(&hosts[1].station, hosts[1].cpu, dir);
        wait_until(&format!("{name} forwards"), SOON, || hosts[0].station.pings(STATIONS[1]));
        let rig = Rig {
            way,
            hosts,
            _server: server,
            gbps: Sample::default(),
            cpu_seconds: Sample::default(),
            cpu_seconds_per_gb: Sample::default(),
        };
        rig.each(Switch::stop);
        rig
    }

    fn each(&self, what: impl Fn(&Switch)) {
        self.hosts.iter().for_each(|host| what(&host.switch));
    }

    /// CPU seconds that both daemons have used.
    fn used(&self) -> f64 {
        self.hosts.iter().map(|host| cpu_seconds(host.switch.id())).sum()
    }

    fn transfer(&mut self) {
        self.each(Switch::resume);
        let before = self.used();
        let [talker, _] = &self.hosts;
        let command = format!("taskset -c {} iperf3 -J -c {} -t {SECONDS}", talker.cpu, STATIONS[1]);
        // One that stalls ends as a failure.
        let output = String::from_utf8_lossy(&talker.station.run(&command).stdout).into_owned();
        let used = self.used() - before;
        self.each(Switch::stop);
        let bits = received(&output, "bits_per_second");
        let bytes = received(&output, "bytes").filter(|_| bits.is_some());
        self.gbps.add_turn(bits.map(|bits| bits / 1e9));
        self.cpu_seconds.add_turn(bytes.map(|_| used));
        self.cpu_seconds_per_gb.add_turn(bytes.map(|bytes| used / (bytes / 1e9)));
    }
}

/// The table of TCP rates.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    page.table(
        "TCP between TAPs of two hypervisors, by VXLAN",
        &format!(
            "One connection of iperf3 between two namespaces, each behind the TAP of a switch of its own; the wire is a veth with an MTU of \
             1,600. Each hypervisor has one CPU for its switch (one worker, or the main thread and with AF_XDP one PMD) and its station. \
             qvs with its default settings, so its workers sleep when idle. OVS-DPDK with its datapath in userspace, action NORMAL, \
             internal ports; 3.1 takes no large frames over tunnels, so userspace-tso-enable is off. Large frames are cut before \
             they go on the wire: by the switch if they are left to it, or else by the station's kernel. Checksums within a tunnel are left \
             to the wire's interface by qvs with a packet socket, and by nobody else. CPU seconds are those of both daemons, in a transfer and by GB received. {} alternations of \
             {SECONDS} s.",
            options.rounds
        ),
        "| switch | on the wire by | Gbit/s | qvs, by its faster way, to it | CPU s | CPU s per GB | left to the switch | load |",
    );
    let dir = TempDir::new();
    let ways = options.peers(&[Peer::Qvs, Peer::Ovs]).into_iter();
    let ways = ways.flat_map(|peer| [false, true].map(|is_af_xdp| Way { peer, is_af_xdp }));
    let mut rigs: Vec<Rig> = ways.map(|way| Rig::start(way, dir.path())).collect();
    for _ in 0..options.rounds {
        rigs.iter_mut().for_each(Rig::transfer);
    }
    for peer in [Peer::Qvs, Peer::Ovs] {
        let own = rigs.iter().filter(|rig| rig.way.peer == peer && !rig.gbps.is_empty());
        let fastest = own.max_by(|one, other| one.gbps.median().total_cmp(&other.gbps.median()));
        fastest.into_iter().for_each(|rig| page.keep(ROW, Figure::Gbps, peer, &rig.gbps));
    }
    let ours = page.found(ROW, Figure::Gbps, Peer::Qvs).cloned().unwrap_or_default();
    for rig in &rigs {
        let Host { switch, station, .. } = &rig.hosts[0];
        page.line(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            rig.way.peer,
            rig.way.driver(),
            rig.gbps.brief(2),
            ratio(&ours, &rig.gbps),
            rig.cpu_seconds.brief(2),
            rig.cpu_seconds_per_gb.brief(2),
            offloads(station, &switch.ports[0]),
            load()
        ));
    }
}
