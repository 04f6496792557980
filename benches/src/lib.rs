//! What the benches of a whole round stand on, and the test that a round allocates nothing.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails here")]

use pipelines::Standard;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use switch::config::{Config, MTU_DEFAULT, NetworkConfig, PortConfig};
use switch::ids::{NetworkIndex, PortIndex};
use switch::poll::Poll;
use switch::switch::{Switch, SwitchConfig, WorkerSpec};
use switch::worker::{Now, Worker};
use vhost::backend::{Backend, BackendConfig, Role};
use vhost::driver::{Driver, DriverConfig};

/// Addresses on each side.
const STATIONS: usize = 1000;
const RING: u16 = 1024;
/// An odd number of cache lines, as in real pools.
const BUFFER: usize = 2048 + 256 + 64;
/// The moment at which all rounds happen.
pub const NOW: Now = Now { ns: 5_000_000_000 };

/// One worker without a thread and two guests whose rings it serves.
pub struct Rig {
    worker: Worker<Standard>,
    drivers: [Driver; 2],
    _backends: [Backend; 2],
    _switch: Arc<Switch<Standard>>,
}

fn frames(side: u8, size: usize) -> Vec<Vec<u8>> {
    let station = |side: u8, number: usize| {
        let [high, low] = (number as u16).to_be_bytes();
        [2, 0, 0, side, high, low]
    };
    let frame = |number: usize| {
        let mut frame = station(1 - side, (7 * number + 3) % STATIONS).to_vec();
        frame.extend(station(side, number));
        let length = (size - 14) as u16;
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, side, 0, number as u8, 10, 1 - side, 0, 7]);
        frame.extend([4, 0, 4, 0]);
        frame.extend((length - 20).to_be_bytes());
        frame.resize(size, 0);
        frame
    };
    (0..STATIONS).map(frame).collect()
}

impl Rig {
    /// Sets it up with frames of `size` bytes in the guests' send buffers; every address is learnt.
    ///
    /// # Panics
    /// If the machine has no memory or descriptors for it.
    pub fn new(size: usize) -> Rig {
        let config =
            SwitchConfig { workers: vec![WorkerSpec::default()], poll: Poll::Always, mac_max: 131_072, mac_age_s: 300 };
        let switch = Switch::<Standard>::new(&config).unwrap();
        let network = NetworkConfig { index: NetworkIndex(1), id: "bench".into() };
        let port = |index| PortConfig {
            index: PortIndex(index),
            interface: format!("if{index}").into(),
            network: Some(NetworkIndex(1)),
            is_admin_up: true,
            mtu: MTU_DEFAULT,
            macs: vec![],
        };
        switch.apply(Config::new(vec![network], vec![port(0), port(1)]).unwrap());
        let mut worker = switch.take_workers().pop().unwrap();
        let directory = std::env::temp_dir().join(format!("qvs-bench-{}-{size}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let paths = [directory.join("a"), directory.join("b")];
        let backends = [0, 1].map(|at: usize| {
            let config = BackendConfig {
                path: paths[at].clone(),
                role: Role::Server,
                mtu: MTU_DEFAULT,
                owner: (None, None),
                mode: 0o600,
                peer_uids: vec![],
                state_file: None,
            };
            Backend::start(config, switch.place(PortIndex(at as u16))).unwrap()
        });
        // The sessions wait for the worker to let go of what they replace, so it must turn while they are set up.
        let is_set_up = AtomicBool::new(false);
        let drivers = std::thread::scope(|scope| {
            let setting_up = scope.spawn(|| {
                let drivers = [0, 1].map(|at: usize| {
                    let config = DriverConfig {
                        queue_size: RING,
                        receive_buffer_len: BUFFER,
                        send_buffer_len: BUFFER,
                        ..DriverConfig::new(&paths[at])
                    };
                    let mut driver = Driver::new(config).unwrap();
                    driver.sender.fill_all(&frames(at as u8, size));
                    driver.start().unwrap();
                    driver
                });
                is_set_up.store(true, Ordering::Release);
                drivers
            });
            while !is_set_up.load(Ordering::Acquire) {
                worker.step(NOW);
            }
            setting_up.join().unwrap()
        });
        let _ = std::fs::remove_dir_all(&directory);
        let mut rig = Rig { worker, drivers, _backends: backends, _switch: switch };
        for _ in 0..200 {
            rig.round();
        }
        rig
    }

    /// The worker, to step it alone.
    pub fn worker(&mut self) -> &mut Worker<Standard> {
        &mut self.worker
    }

    /// Each side offers 32 frames.
    pub fn offer(&mut self) {
        for driver in &mut self.drivers {
            driver.sender.post(32);
        }
    }

    /// Each side takes what it got.
    pub fn take(&mut self) {
        for driver in &mut self.drivers {
            driver.receiver.drain(64);
        }
    }

    /// Each side sends 32 frames, the worker moves them, each side takes them; answers how many the worker moved.
    pub fn round(&mut self) -> usize {
        self.offer();
        let moved = self.worker.step(NOW);
        self.take();
        moved
    }
}
