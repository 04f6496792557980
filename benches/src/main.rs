//! What is measured without criterion, one command each: where the cycles of a frame go, the instructions of the hot
//! paths, two workers beside one, the API over a full store, and the yardstick as a program that a generator can be pointed
//! at.
//!
//! `cargo run --release -p benches -- --help`. The yardstick needs a generator and the store a `qvs`; the others need no
//! other program and no privileges.

mod cycles;
mod effect;
mod etcd;
mod host;
mod locks;
mod paths;
mod ratchet;
mod results;
mod scale;
mod serve;
mod store;
mod workers;
mod xdp;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// What is measured without criterion.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Where the cycles of a frame go, part by part, beside the yardstick; instructions too if valgrind is installed.
    /// Frames of 60 bytes are written to benches/results/cycles.md
    Cycles(Cycles),
    /// Count the instructions of the hot paths and hold them against benches/ratchet.txt; QVS_BLESS=1 writes it anew
    Ratchet,
    /// Two workers beside one, each driving its own pair of guests
    Workers {
        /// Bytes of a frame, without the check sequence
        #[arg(default_value_t = 60)]
        frame_len: usize,
    },
    /// Serve two guests by the yardstick's loop until killed
    Yardstick {
        /// The sockets to listen on
        #[arg(num_args = 2, required = true)]
        sockets: Vec<PathBuf>,
        /// The CPU to poll on; the last one allowed if none is named
        #[arg(long)]
        cpu: Option<usize>,
        /// Addresses of each guest, numbered as those of pktgen
        #[arg(long, default_value_t = benches::rig::STATIONS)]
        stations: u32,
    },
    /// The switch between two AF_XDP ports on veth beside its peers and a forwarder that looks at nothing; needs root
    Xdp(xdp::Options),
    /// The host's own TCP beside an uplink's XDP program, through one that passes everything, and without; needs root
    Host {
        /// Runs of each; fewer than 5 are only printed
        #[arg(long, default_value_t = 7)]
        alternations: usize,
        /// Time of one run, ms
        #[arg(long, default_value_t = 1000)]
        milliseconds: u64,
    },
    /// The networking API over a full store: lists, writes, start, memory, and a crowd of clients
    Store(store::Options),
    /// Two hypervisors over one etcd: from the API's answer on one until the frame passes on the other; needs etcd and root
    Effect(effect::Options),
    /// Many hypervisors over one etcd: change to effect, bytes watched, memory and a cold join; needs etcd
    Scale(scale::Options),
    /// Run the hot paths, for valgrind to count
    #[command(hide = true)]
    Paths,
}

/// How a ring is laid out (virtio 1.2 sections 2.7 and 2.8).
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Rings {
    Split,
    Packed,
}

#[derive(Args, Clone)]
struct Cycles {
    /// Bytes of a frame, without the check sequence
    #[arg(default_value_t = cycles::FRAME_LEN)]
    frame_len: usize,
    /// Play the guests on the first CPU and the switch on the last, as a generator would; two idle CPUs are needed
    #[arg(long)]
    two_cores: bool,
    /// Rings of this layout only
    #[arg(long, value_enum)]
    rings: Option<Rings>,
    /// Run the parts and measure nothing, for valgrind to count
    #[arg(long, hide = true)]
    bare: bool,
}

fn main() -> Result<()> {
    match Cli::parse().what {
        What::Cycles(options) => cycles::run(&options),
        What::Ratchet => ratchet::run(),
        What::Workers { frame_len } => workers::run(frame_len),
        What::Xdp(options) => xdp::run(&options),
        What::Host { alternations, milliseconds } => host::run(alternations, milliseconds),
        What::Yardstick { sockets, cpu, stations } => serve::run(&sockets, cpu, stations),
        What::Store(options) => store::run(&options),
        What::Effect(options) => effect::run(&options),
        What::Scale(options) => scale::run(&options),
        What::Paths => {
            paths::run_all();
            Ok(())
        }
    }
}
