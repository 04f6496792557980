//! The command line, and what it means once everything in it is known to fit together.

use crate::engine::{Manner, Way};
use crate::latency::Which;
use crate::order::Order;
use crate::template;
use crate::traffic::{self, PORTS_MAX, SIZE_MAX, SIZES, STATIONS_MAX, Shape, TAGS_MAX, Tag};
use crate::tunnel::Tunnel;
use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;
pub(crate) use values::PortName;
use values::{FrameSizes, OrderName, RateName, VlanTag};

mod values;

/// Interruptions from which on a window is disturbed, where frames move without system calls, ns.
const OFF_CPU_NS: u64 = 20_000;
/// The same where every burst is system calls, or large frames to copy.
const OFF_CPU_SLOW_NS: u64 = 500_000;
/// Bytes of the frame check sequence, which a size on a wire includes and a buffer does not.
const CHECK_SEQUENCE: usize = 4;

/// Generates frames between ports of a switch and counts what arrives.
///
/// Plays one guest at each port: sends, receives, and tells loss, reordering, duplicates, frames at the wrong port, and
/// delays, as text or as one JSON object a measurement. A port is a vhost-user socket (a path), a TAP made for the time of
/// the run (tap:NAME), or a network interface of the host by a packet socket (packet:NAME) or by AF_XDP, which takes it away
/// from the host's stack meanwhile (xdp:NAME); in another network namespace by tap:NETNS/NAME and so on. Without --rate it
/// sends as fast as it can.
#[derive(Parser, Debug, Serialize)]
#[command(
    version,
    after_help = "Rates: 1.5Mpps, 800kpps, 10Gbit/s; bits are those on a wire, with preamble and gap.\n\
    Sizes: --size counts bytes in memory, --frame-sizes bytes on a wire, which are 4 more.\n\
    Exit codes: 0 measured, 1 failed, 2 wrong usage."
)]
pub(crate) struct Arguments {
    /// The ports, each a guest: PATH of a vhost-user socket, tap:[NETNS/]NAME, packet:[NETNS/]NAME
    /// or xdp:[NETNS/]NAME
    #[arg(value_name = "PORT")]
    pub(crate) ports: Vec<PortName>,
    /// Listen on the sockets, as QEMU does for a switch that connects (OVS-DPDK's dpdkvhostuserclient)
    #[arg(long, help_heading = "Ports")]
    pub(crate) listen: bool,
    /// Entries of each ring; a power of two. A sender uses only as many buffers as hold whole laps of its stations and flows
    #[arg(long, default_value_t = 1024, help_heading = "Ports")]
    pub(crate) ring: u16,
    /// Use huge pages of 2 MiB for the guests' memory
    #[arg(long, help_heading = "Ports")]
    pub(crate) huge_pages: bool,
    /// Packed rings (virtio 1.1)
    #[arg(long, help_heading = "Ports")]
    pub(crate) packed: bool,
    /// Buffers come back in order (VIRTIO_F_IN_ORDER)
    #[arg(long, help_heading = "Ports")]
    pub(crate) in_order: bool,
    /// A frame fits one receive buffer (without VIRTIO_NET_F_MRG_RXBUF)
    #[arg(long, help_heading = "Ports")]
    pub(crate) no_mergeable: bool,
    /// Pairs of queues of each guest; each sends streams of its own. A switch that deals flows out to a receiver's pairs keeps the
    /// order of each flow, not of a stream, so frames of a stream with several flows may count as reordered
    #[arg(long, default_value_t = 1, value_name = "COUNT", help_heading = "Ports")]
    pub(crate) queues: u16,
    /// Bytes of L3 payload that a TAP is made for
    #[arg(long, default_value_t = 1500, help_heading = "Ports")]
    pub(crate) mtu: u16,

    /// Bytes of each frame, without the frame check sequence; 60 is the shortest Ethernet frame
    #[arg(long, default_value_t = 60, help_heading = "Frames", conflicts_with = "frame_sizes")]
    pub(crate) size: usize,
    /// Sizes with the check sequence, sent in turns: 64,512,1518, or imix (7 of 64, 4 of 594, 1 of 1518)
    #[arg(long, value_name = "LIST", help_heading = "Frames")]
    pub(crate) frame_sizes: Option<FrameSizes>,
    /// VLAN tag ID or ID:PRIORITY; given twice, the first is the outer one (802.1ad)
    #[arg(long, value_name = "TAG", help_heading = "Frames")]
    pub(crate) vlan: Vec<VlanTag>,
    /// Send the frames of a capture (pcap or pcapng), signed at their ends, instead of our own
    #[arg(long, value_name = "FILE", help_heading = "Frames", conflicts_with_all = ["size", "frame_sizes", "vlan", "tso"])]
    pub(crate) template: Option<PathBuf>,
    /// The port of this number, from 0, plays another host of the underlay: PORT=VNI,MAC/ADDRESS,MAC/ADDRESS, its own MAC and IPv4
    /// address and then the switch's. Its frames go in VXLAN (RFC 7348); all else that is told of frames is meant of the inner ones
    #[arg(long, value_name = "TUNNEL", help_heading = "Frames", conflicts_with_all = ["template", "tso", "ceiling"])]
    pub(crate) vxlan: Option<Tunnel>,
    /// Large TCP frames that the device is to cut (vhost-user and TAP), of so many bytes in memory
    #[arg(long, value_name = "BYTES", num_args = 0..=1, default_missing_value = "65214", help_heading = "Frames", conflicts_with_all = ["size", "frame_sizes"])]
    pub(crate) tso: Option<usize>,
    /// Bytes of payload that the device puts into each segment of a large frame
    #[arg(long, default_value_t = 1448, help_heading = "Frames")]
    pub(crate) segment_size: u16,
    /// Give each frame a payload of its own and look at it at the other end; slower
    #[arg(long, help_heading = "Frames")]
    pub(crate) verify: bool,

    /// Stations (MAC addresses) that send, and that are sent to, at each port: 1 to 1,000,000
    #[arg(long, default_value_t = 1000, help_heading = "Flows")]
    pub(crate) macs: u32,
    /// Stations that send at each port, if not --macs
    #[arg(long, value_name = "COUNT", help_heading = "Flows")]
    pub(crate) source_macs: Option<u32>,
    /// Stations that are sent to at each port, if not --macs
    #[arg(long, value_name = "COUNT", help_heading = "Flows")]
    pub(crate) destination_macs: Option<u32>,
    /// 5-tuples of each stream, if not --macs: 1 to 1,000,000
    #[arg(long, help_heading = "Flows")]
    pub(crate) flows: Option<u32>,
    /// The order of stations and flows: round-robin, random, zipf or zipf:EXPONENT
    #[arg(long, default_value = "round-robin", help_heading = "Flows")]
    pub(crate) order: OrderName,
    /// What random orders begin with
    #[arg(long, default_value_t = 1, help_heading = "Flows")]
    pub(crate) seed: u64,
    /// Which port sends to which
    #[arg(long, value_enum, default_value_t = Pattern::Pairs, help_heading = "Flows")]
    pub(crate) pattern: Pattern,
    /// Of two ports that send to each other, only the first sends
    #[arg(long, help_heading = "Flows")]
    pub(crate) one_way: bool,

    /// What each stream sends, in frames or in bits on a wire a second; without it as much as goes
    #[arg(long, help_heading = "Load")]
    pub(crate) rate: Option<RateName>,
    /// Frames posted to a ring at a time, at most
    #[arg(long, default_value_t = 32, help_heading = "Load")]
    pub(crate) burst: u16,
    /// With --rate: frames that leave back to back, once so many are due
    #[arg(long, default_value_t = 1, help_heading = "Load")]
    pub(crate) train: u16,
    /// Send one frame at a time, there and back, and measure its delay
    #[arg(long, help_heading = "Load", conflicts_with_all = ["rate", "search"])]
    pub(crate) ping_pong: bool,
    /// Search the highest rate without loss (RFC 2544 section 26.1)
    #[arg(long, help_heading = "Load", conflicts_with = "rate")]
    pub(crate) search: bool,
    /// With --search: part of the frames that may get lost
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", help_heading = "Load")]
    pub(crate) loss_tolerance: f64,
    /// With --search: stop when the rate is known to this part of itself
    #[arg(long, default_value_t = 0.01, value_name = "SHARE", help_heading = "Load")]
    pub(crate) resolution: f64,

    /// Seconds before counting starts: the switch learns
    #[arg(long, default_value_t = 0.5, value_name = "SECONDS", help_heading = "Measurement")]
    pub(crate) warm_up: f64,
    /// Seconds of each measurement, or of each trial of a search
    #[arg(long, default_value_t = 2.0, help_heading = "Measurement")]
    pub(crate) seconds: f64,
    /// Measurements, one after another
    #[arg(long, default_value_t = 1, value_name = "COUNT", help_heading = "Measurement")]
    pub(crate) repeat: u32,
    /// Whose delays are noted; if not told: all with --rate, otherwise sampled
    #[arg(long, value_enum, help_heading = "Measurement")]
    pub(crate) latency: Option<Which>,
    /// Leave out windows of 1 ms in which this program was off its CPU
    #[arg(long, help_heading = "Measurement")]
    pub(crate) discard_off_cpu: bool,
    /// From how many microseconds on it counts as off its CPU; if not told: 20, or 500 with ports of the kernel
    /// or large frames
    #[arg(long, value_name = "MICROSECONDS", help_heading = "Measurement")]
    pub(crate) off_cpu_us: Option<u64>,
    /// The CPU to run on
    #[arg(long, help_heading = "Measurement")]
    pub(crate) cpu: Option<usize>,
    /// No line of progress every second on standard error
    #[arg(long, short, help_heading = "Measurement")]
    pub(crate) quiet: bool,
    /// Print one JSON object a measurement instead of text
    #[arg(long, help_heading = "Measurement")]
    pub(crate) json: bool,
    /// Measure this program instead of a switch: against memory in its own thread
    #[arg(long, help_heading = "Measurement", conflicts_with = "ports")]
    pub(crate) ceiling: bool,
}

/// Which port sends to which.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pattern {
    /// The first and the second to each other, the third and the fourth, …
    Pairs,
    /// All to the first
    FanIn,
    /// Each to each
    Mesh,
}

/// What the command line means.
pub(crate) struct Plan {
    pub(crate) ways: Vec<Way>,
    pub(crate) shape: Shape,
    pub(crate) manner: Manner,
    pub(crate) sources: u32,
    pub(crate) destinations: u32,
    pub(crate) flows: u32,
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

impl Arguments {
    /// How many ports play; a ceiling has two ends.
    fn port_count(&self) -> usize {
        if self.ceiling { 2 } else { self.ports.len() }
    }

    /// Who sends to whom.
    fn ways(&self) -> Result<Vec<Way>> {
        let count = self.port_count();
        ensure!((2..=PORTS_MAX).contains(&count), "2 to {PORTS_MAX} ports, not {count}");
        let way = |from, to| Way { from, to, queue: 0 };
        let ways: Vec<Way> = match self.pattern {
            Pattern::Pairs => {
                ensure!(count.is_multiple_of(2), "pairs need an even number of ports, not {count}");
                let both = (0..count).step_by(2).flat_map(|at| [way(at, at + 1), way(at + 1, at)]);
                both.filter(|way| !self.one_way || way.from < way.to).collect()
            }
            Pattern::FanIn => (1..count).map(|from| way(from, 0)).collect(),
            Pattern::Mesh => {
                let all = (0..count).flat_map(|from| (0..count).map(move |to| way(from, to)));
                all.filter(|way| way.from != way.to && (!self.one_way || way.from < way.to)).collect()
            }
        };
        let queues = 0..usize::from(self.queues);
        Ok(ways.into_iter().flat_map(|way| queues.clone().map(move |queue| Way { queue, ..way })).collect())
    }

    fn shape(&self) -> Result<Shape> {
        ensure!(self.vlan.len() <= TAGS_MAX, "at most {TAGS_MAX} VLAN tags");
        let tags: Vec<Tag> = self
            .vlan
            .iter()
            .enumerate()
            .map(|(at, tag)| Tag {
                protocol: if at + 1 < self.vlan.len() { 0x88a8 } else { 0x8100 },
                control: u16::from(tag.priority) << 13 | tag.id,
            })
            .collect();
        let templates = match &self.template {
            Some(path) => template::read(path, *SIZES.end())?,
            None => Vec::new(),
        };
        let sizes = match (&self.frame_sizes, self.tso) {
            (_, Some(size)) => vec![size],
            (Some(sizes), None) => sizes.0.iter().map(|size| size.saturating_sub(CHECK_SEQUENCE)).collect(),
            (None, None) => vec![self.size],
        };
        let sizes = if templates.is_empty() {
            sizes
        } else {
            templates.iter().map(|template| template.bytes().len()).collect()
        };
        let shape = Shape {
            sizes,
            tags,
            segment_size: self.tso.map(|_| self.segment_size),
            tunnel: self.vxlan,
            templates: templates.into(),
            is_verified: self.verify,
            filler: traffic::filler(),
        };
        if let Some(tunnel) = self.vxlan {
            let is_guest = |port: &PortName| matches!(port, PortName::Vhost(_));
            ensure!(
                self.ports.get(tunnel.port).is_some_and(is_guest),
                "--vxlan: there is no vhost-user port number {}",
                tunnel.port
            );
        }
        let most = if self.tso.is_some() { SIZE_MAX } else { *SIZES.end() };
        let range = shape.size_min()..=most;
        if let Some(wrong) = shape.sizes.iter().find(|size| !range.contains(size)) {
            anyhow::bail!("a frame of this kind has {range:?} bytes without the check sequence, not {wrong}");
        }
        if self.tso.is_some() {
            ensure!((1..=9000).contains(&self.segment_size), "a segment has 1 to 9000 bytes of payload");
            ensure!(
                !self.ports.iter().any(|port| matches!(port, PortName::Xdp { .. })),
                "AF_XDP (xdp:) takes no large frames"
            );
        }
        Ok(shape)
    }

    /// What all of it means.
    ///
    /// # Errors
    /// What does not fit together.
    pub(crate) fn plan(&self) -> Result<Plan> {
        let ways = self.ways()?;
        let shape = self.shape()?;
        let sources = self.source_macs.unwrap_or(self.macs);
        let destinations = self.destination_macs.unwrap_or(self.macs);
        let flows = self.flows.unwrap_or(self.macs);
        for (what, count) in [("source addresses", sources), ("destination addresses", destinations), ("flows", flows)]
        {
            ensure!((1..=STATIONS_MAX).contains(&count), "1 to {STATIONS_MAX} {what}, not {count}");
        }
        ensure!(
            self.ring.is_power_of_two() && (2..=32_768).contains(&self.ring),
            "a ring has 2 to 32768 entries, a power of two"
        );
        ensure!(
            (1..=self.ring).contains(&self.burst) && (1..=self.ring).contains(&self.train),
            "a burst has 1 to {} frames, as a ring",
            self.ring
        );
        let is_guest = |port: &PortName| matches!(port, PortName::Vhost(_));
        ensure!((1..=128).contains(&self.queues), "1 to 128 queues");
        ensure!(self.queues == 1 || self.ports.iter().all(is_guest), "only vhost-user ports have several queues");
        ensure!((0.0..1.0).contains(&self.loss_tolerance), "a loss tolerance is a share from 0 to 1");
        ensure!(self.resolution > 0.0 && self.resolution < 1.0, "a resolution is a share between 0 and 1");
        let mean = shape.sizes.iter().sum::<usize>() as f64 / shape.sizes.len() as f64;
        let rate = self.rate.map(|rate| rate.0.frames(mean));
        let is_slow = !self.ports.iter().all(is_guest) || self.tso.is_some();
        let off_cpu_ns =
            self.off_cpu_us.map_or(if is_slow { OFF_CPU_SLOW_NS } else { OFF_CPU_NS }, |micros| micros * 1000);
        let seconds = |value: f64| Duration::try_from_secs_f64(value).context("a time in seconds");
        let manner = Manner {
            burst: usize::from(self.burst),
            train: usize::from(self.train),
            rate,
            which: self.latency.unwrap_or(if rate.is_some() { Which::All } else { Which::Sampled }),
            off_cpu_ns,
            is_discarding: self.discard_off_cpu,
            has_progress: !self.quiet,
        };
        let (warm_up, time) = (seconds(self.warm_up)?, seconds(self.seconds)?);
        Ok(Plan { ways, shape, manner, sources, destinations, flows, warm_up, time })
    }

    /// The order of one stream.
    pub(crate) fn order_of(&self, plan: &Plan, stream: u16) -> Order {
        let (sources, destinations, flows) = (plan.sources, plan.destinations, plan.flows);
        let seed = self.seed.wrapping_add(u64::from(stream) << 32);
        match self.order {
            OrderName::RoundRobin => Order::round_robin(sources, destinations, flows),
            OrderName::Random => Order::random(sources, destinations, flows, seed),
            OrderName::Zipf(exponent) => Order::zipf(sources, destinations, flows, exponent, seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(words: &str) -> Result<Plan> {
        let words = std::iter::once("pktgen").chain(words.split_whitespace());
        Arguments::try_parse_from(words)?.plan()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
        // A large frame unless told otherwise: 45 whole segments, as many as an IPv4 packet can have.
        assert_eq!(plan("a b --tso").unwrap().shape.sizes, [14 + 20 + 20 + 45 * 1448]);
    }

    #[test]
    fn imix_is_seven_to_four_to_one_and_leaves_the_check_sequence_out() {
        let plan = plan("a b --frame-sizes imix").unwrap();
        let count = |size| plan.shape.sizes.iter().filter(|&&known| known == size).count();
        assert_eq!((count(60), count(590), count(1514), plan.shape.sizes.len()), (7, 4, 1, 12));
    }

    #[test]
    fn patterns_say_who_sends_to_whom() {
        let ways = |words| plan(words).unwrap().ways.iter().map(|way| (way.from, way.to)).collect::<Vec<_>>();
        assert_eq!(ways("a b c d"), [(0, 1), (1, 0), (2, 3), (3, 2)]);
        assert_eq!(ways("a b --one-way"), [(0, 1)]);
        assert_eq!(ways("a b c --pattern fan-in"), [(1, 0), (2, 0)]);
        assert_eq!(ways("a b c --pattern mesh").len(), 6);
        assert_eq!(ways("a b --one-way --queues 3"), [(0, 1); 3]);
        assert_eq!(ways("--ceiling"), [(0, 1), (1, 0)]);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        for wrong in [
            "",
            "a",
            "a b c",
            "a b --size 59",
            "a b --size 61 --vlan 1",
            "a b --size 1523",
            "a b --macs 0",
            "a b --macs 1000001",
            "a b --ring 1000",
            "a b --ring 64 --burst 65",
            "a b --vlan 1 --vlan 2 --vlan 3",
            "a b --vlan 4095",
            "a b --rate fast",
            "a b --order sorted",
            "a b --rate 1pps --search",
            "a xdp:b --tso",
            "a packet:b --vxlan 1=5,02:00:00:00:00:02/10.0.0.2,02:00:00:00:00:01/10.0.0.1",
            "a b --vxlan 2=5,02:00:00:00:00:02/10.0.0.2,02:00:00:00:00:01/10.0.0.1",
            "a tap:b --queues 2",
            "a b --queues 0",
            "a b --size 60 --frame-sizes imix",
            "a b --seconds -1",
            "a b --loss-tolerance 1",
        ] {
            assert!(plan(wrong).is_err(), "{wrong}");
        }
    }
}
