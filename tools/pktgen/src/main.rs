//! `pktgen`: a load generator and sink that plays two guests of a switch over vhost-user.
//!
//! It fills every send buffer once with a frame of its own and afterwards only moves ring indices, so that one core can
//! outrun the switch on another. Both guests send at once to each other's addresses; what arrives is counted at the sink,
//! in a window that opens when the switch has learnt the addresses. It works with any vhost-user backend: ours, OVS-DPDK,
//! DPDK's testpmd.

mod frames;
mod run;

use anyhow::{Result, ensure};
use clap::Parser;
use std::path::PathBuf;
use std::time::Duration;

/// Two guests that send to each other as fast as they can, and what arrived.
#[derive(Parser, Debug)]
#[command(version, about)]
struct Arguments {
    /// The socket of the first guest's port.
    first: PathBuf,
    /// The socket of the second guest's port.
    second: PathBuf,
    /// Listen on the sockets, as QEMU does for a switch that connects (OVS-DPDK's dpdkvhostuserclient).
    #[arg(long)]
    listen: bool,
    /// Bytes of each frame, without the frame check sequence; 60 is the shortest Ethernet frame.
    #[arg(long, default_value_t = 60)]
    size: usize,
    /// Addresses on each side; at most the ring size.
    #[arg(long, default_value_t = 1000)]
    macs: usize,
    /// Entries of each ring; a power of two.
    #[arg(long, default_value_t = 1024)]
    ring: u16,
    /// Frames posted to a ring at a time.
    #[arg(long, default_value_t = 32)]
    burst: u16,
    /// Only the first guest sends.
    #[arg(long)]
    one_way: bool,
    /// Seconds before counting starts: the switch learns.
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Measurements, one after another.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// The CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// Use huge pages of 2 MiB for the guests' memory.
    #[arg(long)]
    huge_pages: bool,
    /// Print one JSON object a measurement instead of text.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(frames::SIZES.contains(&arguments.size), "a frame has {:?} bytes", frames::SIZES);
    ensure!(
        (1..=usize::from(arguments.ring)).contains(&arguments.macs),
        "1 to {} addresses: every ring entry has a frame of its own",
        arguments.ring
    );
    if let Some(cpu) = arguments.cpu {
        switch::affinity::pin(cpu)?;
    }
    let mut pair = run::Pair::connect(&arguments)?;
    let seconds = |value: f64| Duration::try_from_secs_f64(value);
    pair.run(seconds(arguments.warm_up)?);
    for _ in 0..arguments.repeat {
        let report = pair.run(seconds(arguments.seconds)?);
        if arguments.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            println!("{report}");
        }
    }
    Ok(())
}
