//! What an uplink's program costs the host whose interface it shares: TCP from the far end of a veth to the host's own address,
//! through the program that takes only what is ours, beside the least that can be attached, a program that passes
//! everything, and beside none at all.
//!
//! The three run in the driver (native mode), one after the other, in alternation. Sender and receiver are the kernel's own TCP on the
//! CPUs that there are. Frames of ours do not come meanwhile; the program looks for them in each frame. What the mode itself
//! costs, a veth's far end cutting its TCP to the MTU, is the difference between the last two. Needs root.

use crate::results::Section;
use crate::xdp::{ALTERNATIONS_MIN, ip};
use anyhow::{Context, Result, ensure};
use benches::cost::median_of;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use switch::af_xdp::bare::Passing;
use switch::af_xdp::program::{Carrier, Ours, Steering, TunnelEnd};
use switch::device::{DeviceConfig, Driver, HostDevice};
use switch::ids::PortIndex;
use switch::netns;

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Bytes that are written and read at a time.
const CHUNK: usize = 128 << 10;
/// The bar: part of what the program that passes everything leaves.
const SHARE_MIN: f64 = 0.95;

/// What is attached to the host's interface.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attached {
    Nothing,
    Passing,
    Uplink,
}

/// Prints a table, and writes it to the page.
pub(crate) fn run(alternations: usize, milliseconds: u64) -> Result<()> {
    let host = netns::create().context("making a network namespace (run as root)")?;
    let far = netns::create()?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&far));
    within(&host, || {
        ip(&format!("link add up0 type veth peer name eth0 netns {path}"))?;
        ip("link set up0 up")?;
        ip(&format!("addr add {HOST}/24 dev up0"))
    })??;
    within(&far, || {
        ip("link set eth0 up")?;
        ip(&format!("addr add {FAR}/24 dev eth0"))
    })??;
    let run = Duration::from_millis(milliseconds);
    let mut rows = [
        ("no program", Attached::Nothing, Vec::new()),
        ("one that passes all", Attached::Passing, Vec::new()),
        ("an uplink's", Attached::Uplink, Vec::new()),
    ];
    for _ in 0..alternations {
        for (_, attached, rates) in &mut rows {
            rates.push(measure(&host, &far, *attached, run)?);
        }
    }
    let mut section = Section::begin("The host's own TCP beside an uplink (`benches host`)");
    section
        .line(format!("TCP to the host, native mode, Gbit/s, medians of {alternations} alternating runs of {run:?}"));
    let mut medians = Vec::new();
    for (label, _, rates) in &mut rows {
        let median = median_of(rates).context("it ran")?;
        section.line(format!("{label:<22} {median:>7.3}   {:.3} .. {:.3}", rates[0], rates[rates.len() - 1]));
        medians.push(median);
    }
    let (mode, share) = (medians[1] / medians[0], medians[2] / medians[1]);
    section.line(format!("the mode leaves {mode:.3} of what there is without a program"));
    let verdict = if share >= SHARE_MIN { "met" } else { "not met" };
    section.line(format!("bar ({share:.3} of one that passes all, at least {SHARE_MIN}): {verdict}"));
    if alternations >= ALTERNATIONS_MIN { section.write("uplink.md") } else { Ok(()) }
}

fn within<T: Send>(space: &OwnedFd, work: impl FnOnce() -> T + Send) -> Result<T> {
    Ok(netns::within(Some(space.as_fd()), work)?)
}

/// What holds a program while it is measured.
enum Holder {
    None,
    Passing(#[expect(dead_code, reason = "it is held")] Passing),
    Uplink(#[expect(dead_code, reason = "it is held")] Box<HostDevice>),
}

fn attach(host: &OwnedFd, attached: Attached) -> Result<Holder> {
    match attached {
        Attached::Nothing => Ok(Holder::None),
        Attached::Passing => Ok(Holder::Passing(within(host, || Passing::open("up0"))??)),
        Attached::Uplink => {
            let (switch, _worker) = benches::rig::two_ports();
            let end = |port| TunnelEnd { local: IpAddr::V4(HOST), carrier: Carrier::Udp(port) };
            let gre = TunnelEnd { local: IpAddr::V4(HOST), carrier: Carrier::Gre };
            let ours = Ours { vlans: (100..200).collect(), tunnels: [end(4789), end(6081), gre].into() };
            let config = DeviceConfig {
                name: "up0".to_owned(),
                netns: Some(host.try_clone()?),
                driver: Some(Driver::AfXdp),
                steering: Steering::Only(ours),
            };
            // The kernel lets go of the queue some time after the socket of the run before was closed.
            let deadline = Instant::now() + Duration::from_secs(5);
            loop {
                match HostDevice::open(config_again(&config)?, switch.place(PortIndex(0))) {
                    Ok(device) => return Ok(Holder::Uplink(Box::new(device))),
                    Err(error) => ensure!(Instant::now() < deadline, "{error}"),
                }
            }
        }
    }
}

fn config_again(config: &DeviceConfig) -> Result<DeviceConfig> {
    Ok(DeviceConfig {
        name: config.name.clone(),
        netns: config.netns.as_ref().map(OwnedFd::try_clone).transpose()?,
        driver: config.driver,
        steering: config.steering.clone(),
    })
}

/// Gbit/s of payload.
fn measure(host: &OwnedFd, far: &OwnedFd, attached: Attached, run: Duration) -> Result<f64> {
    let _holder = attach(host, attached)?;
    let listener = within(host, || TcpListener::bind((HOST, 0)))??;
    let address = listener.local_addr()?;
    let mut sender = within(far, || TcpStream::connect(address))??;
    let (mut receiver, _) = listener.accept()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let sending = {
        let is_over = is_over.clone();
        std::thread::spawn(move || -> Result<()> {
            let chunk = vec![7; CHUNK];
            while !is_over.load(Ordering::Relaxed) {
                sender.write_all(&chunk)?;
            }
            Ok(())
        })
    };
    let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
    let begun = Instant::now();
    while begun.elapsed() < run {
        bytes += receiver.read(&mut buffer)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    is_over.store(true, Ordering::Relaxed);
    // What is still written finds a reader until the sender has seen that it is over.
    while receiver.read(&mut buffer)? > 0 {}
    sending.join().expect("no panic")?;
    Ok(bytes as f64 * 8.0 / seconds / 1e9)
}
