//! Two drivers on one thread: post, drain, count.

use crate::{Arguments, frames};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};
use vhost::driver::{Driver, DriverConfig};

/// Turns between two looks at the clock: some ten microseconds.
const TURNS: u32 = 64;
/// Bytes of a buffer: room for the virtio header and the longest frame, at an odd number of cache lines as in real
/// pools of packets: buffers a power of two apart would all fall into the same few sets of a cache.
const BUFFER: usize = 2048 + 256 + 64;
/// Bytes a frame takes on a wire besides those in memory: preamble, check sequence and gap (IEEE 802.3).
const WIRE_OVERHEAD: f64 = 24.0;

/// Two guests.
pub(crate) struct Pair {
    drivers: [Driver; 2],
    burst: u16,
    is_one_way: bool,
    size: usize,
}

/// What happened in one window.
#[derive(Serialize, Debug)]
pub(crate) struct Report {
    /// Length of the window.
    seconds: f64,
    /// Bytes of each frame, without the check sequence.
    size: usize,
    /// Frames handed to the switch.
    sent: u64,
    /// Frames that came out of it, both directions together.
    received: u64,
    /// Received frames a second, millions.
    mpps: f64,
    /// The same as bits on a wire, with preamble, check sequence and gap, 10^9 a second.
    wire_gbps: f64,
    /// Part of the frames sent that did not arrive; slightly off by those still on their way.
    loss: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.2} Mpps received ({:.2} Gb/s on a wire), {} bytes, loss {:.4}, {:.1} s",
            self.mpps, self.wire_gbps, self.size, self.loss, self.seconds
        )
    }
}

impl Pair {
    pub(crate) fn connect(arguments: &Arguments) -> Result<Pair> {
        let driver = |path: &Path, side: u8| -> Result<Driver> {
            let mut config = DriverConfig::new(path);
            config.is_listening = arguments.listen;
            config.queue_size = arguments.ring;
            config.receive_buffer_len = BUFFER;
            config.send_buffer_len = BUFFER;
            config.is_huge = arguments.huge_pages;
            let mut driver = Driver::new(config)?;
            driver.sender.fill_all(&frames::frames(side, arguments.size, arguments.macs));
            Ok(driver)
        };
        // Both sockets exist before either side waits: the switch connects to them in any order.
        let mut drivers = [driver(&arguments.first, 0)?, driver(&arguments.second, 1)?];
        for (driver, path) in drivers.iter_mut().zip([&arguments.first, &arguments.second]) {
            driver.start().with_context(|| format!("{} does not come up", path.display()))?;
        }
        Ok(Pair { drivers, burst: arguments.burst, is_one_way: arguments.one_way, size: arguments.size })
    }

    /// Sends and counts for `time`.
    pub(crate) fn run(&mut self, time: Duration) -> Report {
        let (mut sent, mut received) = (0u64, 0u64);
        let start = Instant::now();
        loop {
            for _ in 0..TURNS {
                let [first, second] = &mut self.drivers;
                sent += u64::from(first.sender.post(self.burst));
                received += u64::from(second.receiver.drain(2 * self.burst).0);
                if !self.is_one_way {
                    sent += u64::from(second.sender.post(self.burst));
                }
                received += u64::from(first.receiver.drain(2 * self.burst).0);
            }
            let elapsed = start.elapsed();
            if elapsed >= time {
                let seconds = elapsed.as_secs_f64();
                let rate = received as f64 / seconds;
                return Report {
                    seconds,
                    size: self.size,
                    sent,
                    received,
                    mpps: rate / 1e6,
                    wire_gbps: rate * (self.size as f64 + WIRE_OVERHEAD) * 8.0 / 1e9,
                    loss: 1.0 - received as f64 / (sent as f64).max(1.0),
                };
            }
        }
    }
}
