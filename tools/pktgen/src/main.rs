//! `pktgen`: a load generator and sink that plays the guests of a switch.
//!
//! It fills every send buffer once with a frame of its own and afterwards only writes what differs from frame to frame
//! (addresses, number, time), so that one core can outrun the switch on another. Every frame is numbered; what arrives is
//! counted by stream, and what does not, comes late, twice, or to somebody else is told. It works with any vhost-user
//! backend (ours, OVS-DPDK, DPDK's testpmd), and with TAPs and network interfaces for what the kernel forwards.
//!
//! Where to start reading: [`engine`] (the loop), [`traffic`] (what is sent), [`arrivals`] (what is counted).

#![forbid(unsafe_code)]

mod arrivals;
mod engine;
mod latency;
mod link;
mod options;
mod order;
mod pace;
mod report;
mod search;
mod sequence;
mod signature;
mod template;
mod traffic;
mod tunnel;

use anyhow::{Context, Result};
use clap::Parser;
use engine::Engine;
use link::Link;
use link::memory::MemoryLink;
use link::packet::PacketLink;
use link::tap::TapLink;
use link::vhost::VhostLink;
use link::xdp::XdpLink;
use options::{Arguments, Plan, PortName};
use report::Report;
use search::{Found, Goal};
use serde::Serialize;

/// A measurement with the search that led to it.
#[derive(Serialize)]
struct Searched<'a> {
    /// The search.
    search: &'a Found,
    /// The last trial that passed; absent if none did.
    #[serde(flatten)]
    report: Option<Report<'a>>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let plan = arguments.plan().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        std::process::exit(2)
    });
    if let Some(cpu) = arguments.cpu {
        switch::affinity::pin(cpu)?;
    }
    let links = links(&arguments, &plan)?;
    let order = |stream| arguments.order_of(&plan, stream);
    let mut engine = Engine::new(links, &plan.ways, &plan.shape, plan.manner, order);
    engine.announce(plan.destinations)?;
    engine.run(plan.warm_up)?;
    for _ in 0..arguments.repeat {
        measure(&mut engine, &arguments, &plan)?;
    }
    Ok(())
}

/// One measurement, told.
fn measure(engine: &mut Engine, arguments: &Arguments, plan: &Plan) -> Result<()> {
    if arguments.search {
        let goal = Goal { loss_tolerance: arguments.loss_tolerance, resolution: arguments.resolution, time: plan.time };
        let (found, best) = goal.search(engine)?;
        let asked = (found.throughput_mpps > 0.0).then(|| found.throughput_mpps * 1e6 / engine.stream_count() as f64);
        let report = best.map(|measured| Report::new(&measured, arguments, asked, engine.agreed()));
        if arguments.json {
            println!("{}", serde_json::to_string(&Searched { search: &found, report })?);
        } else {
            for trial in &found.trials {
                println!(
                    "{:.3} Mpps offered, {:.3} received, loss {:.6}: {}",
                    trial.offered_mpps,
                    trial.received_mpps,
                    trial.loss,
                    match (trial.has_passed, trial.is_offered) {
                        (true, true) => "passed",
                        (true, false) => "passed, but less was offered than should be",
                        (false, _) => "failed",
                    }
                );
            }
            let limit = if found.is_limited_by_generator { ", or more: this program could not offer more" } else { "" };
            println!("throughput {:.3} Mpps{limit}", found.throughput_mpps);
            if let Some(report) = report {
                println!("{report}");
            }
        }
        return Ok(());
    }
    let measured = if arguments.ping_pong { engine.ping_pong(plan.time)? } else { engine.run(plan.time)? };
    let report = Report::new(&measured, arguments, plan.manner.rate, engine.agreed());
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}

/// Opens the ports.
fn links(arguments: &Arguments, plan: &Plan) -> Result<Vec<Link>> {
    if arguments.ceiling {
        return Ok(MemoryLink::pair(plan.shape.size_max(), &plan.shape.filler, None).map(Link::Memory).into());
    }
    // All sockets exist before any side waits: a switch connects to them in any order.
    let mut links = Vec::new();
    for port in &arguments.ports {
        links.push(match port {
            PortName::Vhost(path) => Link::Vhost(Box::new(VhostLink::new(path, arguments, &plan.shape)?)),
            PortName::Tap { netns, name } => {
                let tap = TapLink::new(netns.as_deref(), name, arguments.mtu, &plan.shape);
                Link::Tap(tap.with_context(|| port.to_string())?)
            }
            PortName::Packet { netns, name } => {
                let packet = PacketLink::new(netns.as_deref(), name, &plan.shape);
                Link::Packet(Box::new(packet.with_context(|| port.to_string())?))
            }
            PortName::Xdp { netns, name } => {
                let xdp = XdpLink::new(netns.as_deref(), name, &plan.shape);
                Link::Xdp(Box::new(xdp.with_context(|| port.to_string())?))
            }
        });
    }
    for (link, port) in links.iter_mut().zip(&arguments.ports) {
        link.start(arguments).with_context(|| format!("{port} does not come up"))?;
    }
    Ok(links)
}
