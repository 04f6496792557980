//! The yardstick as a program: two sockets, one thread that polls.

use anyhow::{Context, Result};
use benches::rig::backend_config;
use benches::yardstick::{FlatMacs, Seat, Yardstick};
use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use switch::affinity::{allowed_cpus, pin};
use vhost::backend::Backend;
use vhost::port::RingSet;
use vhost::ring::{Layout, PackedRing, SplitRing};

/// Pause between two looks for guests while there are not two.
const PAUSE: Duration = Duration::from_millis(1);

/// Serves until the process is killed.
pub(crate) fn run(sockets: &[PathBuf], cpu: Option<usize>, stations: u32) -> Result<()> {
    let cpu = cpu.or(allowed_cpus()?.last().copied()).context("no CPU is allowed")?;
    let seats = [Arc::new(Seat::default()), Arc::new(Seat::default())];
    let mut backends = Vec::new();
    for (socket, seat) in sockets.iter().zip(&seats) {
        let path = std::path::absolute(socket)?;
        backends.push(Backend::start(backend_config(path), seat.clone())?);
    }
    // The sessions' threads are not to share the CPU that polls, so this one alone goes there.
    pin(cpu)?;
    println!("serving {} and {} on CPU {cpu}", sockets[0].display(), sockets[1].display());
    let macs = Arc::new(FlatMacs::of_stations(stations));
    loop {
        serve(&macs, &seats);
        std::thread::sleep(PAUSE);
    }
}

/// Serves both guests until the rings of one are wanted by its session.
fn serve(macs: &Arc<FlatMacs>, seats: &[Arc<Seat>; 2]) {
    let held = [seats[0].hold(), seats[1].hold()];
    let (Some(one), Some(other)) = (&*held[0], &*held[1]) else { return };
    let ports: [&dyn Any; 2] = [&**one, &**other];
    serve_as::<SplitRing>(macs, ports, seats);
    serve_as::<PackedRing>(macs, ports, seats);
}

/// The same for two guests whose rings have the layout `L`; does nothing for others.
fn serve_as<L: Layout>(macs: &Arc<FlatMacs>, ports: [&dyn Any; 2], seats: &[Arc<Seat>; 2]) {
    let [Some(one), Some(other)] = ports.map(|port| port.downcast_ref::<RingSet<L>>()) else { return };
    let Some(mut yardstick) = Yardstick::new(macs.clone(), [one, other]) else { return };
    while !seats[0].is_wanted() && !seats[1].is_wanted() {
        yardstick.step([one, other]);
    }
}
