//! The switch with its real pipeline, driven by chance: frames, config changes, reconnects and time, from one seed.
//!
//! Two workers are stepped by hand in a random order over ports in memory. After every step the books must balance
//! (invariant 1), every frame that came out must come from the same network and never from a port that may not speak
//! (invariant 2), no port sees a frame twice or its own, and what must be delivered is. The same seed gives the same run;
//! a failure prints it. `QVS_SEED` runs one seed, `QVS_STEPS` sets how long.

use pipelines::Standard;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use switch::config::{Config, MTU_DEFAULT, NetworkConfig, PortConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex};
use switch::offload::{EgressOffloads, OffloadClaim};
use switch::poll::Poll;
use switch::switch::{Switch, SwitchConfig, WorkerSpec};
use switch::testing::{Limits, MemoryPort};
use switch::worker::{Now, Worker};

/// Ports of the simulated switch.
const PORTS: u16 = 12;
/// Networks they are dealt to.
const NETWORKS: u16 = 3;
/// Where a frame's serial number stands: behind Ethernet and an experimental EtherType (IEEE 802, 0x88B5).
const SERIAL_AT: usize = 14;

/// xorshift64*: enough chance for a simulation, and the same on every machine.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 33) % bound
    }

    fn is(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the simulation wants of one port.
#[derive(Clone)]
struct Wish {
    network: Option<u16>,
    is_admin_up: bool,
    macs: Vec<MacAddr>,
}

/// A frame on its way: where it came in, and who must get it, if that is certain.
struct Sent {
    from: u16,
    bytes: Vec<u8>,
}

struct World {
    seed: u64,
    chance: Chance,
    switch: Arc<Switch<Standard>>,
    workers: Vec<Worker<Standard>>,
    ports: Vec<Arc<MemoryPort>>,
    wishes: Vec<Wish>,
    now: Now,
    serial: u32,
    /// Frames put in and not yet taken by a worker, by serial.
    waiting: BTreeMap<u32, Sent>,
    log: u64,
}

fn station(port: u16, number: u64) -> MacAddr {
    MacAddr([0x02, 0, 0, 0, port as u8, number as u8])
}

impl World {
    fn new(seed: u64) -> World {
        let config =
            SwitchConfig { workers: vec![WorkerSpec::default(); 2], poll: Poll::Always, mac_max: 64, mac_age_s: 30 };
        let switch = Switch::new(&config).unwrap();
        let workers = switch.take_workers();
        let wish = Wish { network: None, is_admin_up: true, macs: vec![] };
        let mut world = World {
            seed,
            chance: Chance(seed | 1),
            switch,
            workers,
            ports: vec![],
            wishes: vec![wish; usize::from(PORTS)],
            now: Now { ns: 1_000_000_000 },
            serial: 0,
            waiting: BTreeMap::new(),
            log: 0,
        };
        for port in 0..PORTS {
            let device = world.device();
            world.switch.place(PortIndex(port)).publish(device.clone());
            world.ports.push(device);
            world.wishes[usize::from(port)].network = Some(port % NETWORKS);
        }
        world.apply();
        world
    }

    fn device(&mut self) -> Arc<MemoryPort> {
        let is_able = self.chance.is(50);
        let offloads = EgressOffloads { checksum: is_able, tso4: is_able, tso6: is_able, ecn: is_able, uso: false };
        let burst = if self.chance.is(30) { Some(1 + self.chance.below(4) as usize) } else { None };
        let head = if self.chance.is(30) { Some(14 + self.chance.below(60) as usize) } else { None };
        MemoryPort::with(Limits { offloads, room: None, burst, head, ..Limits::default() })
    }

    fn apply(&mut self) {
        let networks =
            (0..NETWORKS).map(|index| NetworkConfig { index: NetworkIndex(index), id: format!("n{index}").into() });
        let port = |(index, wish): (usize, &Wish)| PortConfig {
            index: PortIndex(index as u16),
            interface: format!("if{index}").into(),
            network: wish.network.map(NetworkIndex),
            is_admin_up: wish.is_admin_up,
            mtu: MTU_DEFAULT,
            macs: wish.macs.clone(),
            allowed_macs: Vec::new(),
        };
        let ports = self.wishes.iter().enumerate().map(port).collect();
        self.switch.apply(Config::new(networks.collect(), ports).unwrap());
    }

    /// One frame from a random port: honest, forged, broken or large, by chance.
    fn inject(&mut self) {
        let from = self.chance.below(u64::from(PORTS)) as u16;
        let destination = match self.chance.below(10) {
            0..2 => MacAddr::BROADCAST,
            2 => MacAddr([0x33, 0x33, 0, 0, 0, 1]),
            3 => MacAddr([0x01, 0x80, 0xc2, 0, 0, self.chance.below(16) as u8]),
            4 => station(200, self.chance.below(8)),
            _ => station(self.chance.below(u64::from(PORTS)) as u16, self.chance.below(3)),
        };
        let source = match self.chance.below(10) {
            0 => station(self.chance.below(u64::from(PORTS)) as u16, self.chance.below(3)),
            1 => MacAddr([0xff, 0, 0, 0, 0, 1]),
            _ => station(from, self.chance.below(3)),
        };
        let len = match self.chance.below(20) {
            0 => 18 + self.chance.below(4) as usize,
            1 => 1400 + self.chance.below(300) as usize,
            _ => 60 + self.chance.below(400) as usize,
        };
        let mut bytes = Vec::with_capacity(len);
        bytes.extend(destination.0);
        bytes.extend(source.0);
        bytes.extend([0x88, 0xb5]);
        self.serial += 1;
        bytes.extend(self.serial.to_be_bytes());
        while bytes.len() < len {
            bytes.push(self.chance.next() as u8);
        }
        let claim = if self.chance.is(5) {
            OffloadClaim { flags: 1, gso_type: self.chance.next() as u8, csum_start: 14, ..OffloadClaim::default() }
        } else {
            OffloadClaim::default()
        };
        self.ports[usize::from(from)].inject_with(&bytes, claim);
        self.waiting.insert(self.serial, Sent { from, bytes });
    }

    /// Changes one wish at random and puts it in force.
    fn change(&mut self) {
        let port = self.chance.below(u64::from(PORTS)) as usize;
        match self.chance.below(4) {
            0 => {
                self.wishes[port].network =
                    if self.chance.is(80) { Some(self.chance.below(u64::from(NETWORKS)) as u16) } else { None };
            }
            1 => self.wishes[port].is_admin_up = self.chance.is(70),
            2 => self.wishes[port].macs = if self.chance.is(50) { vec![station(port as u16, 0)] } else { vec![] },
            _ => {
                // A reconnect: frames still waiting in the old device are lost with it.
                let device = self.device();
                self.switch.place(PortIndex(port as u16)).publish(device.clone());
                self.ports[port] = device;
                self.waiting.retain(|_, sent| usize::from(sent.from) != port);
            }
        }
        self.apply();
    }

    fn may_speak(&self, sent: &Sent) -> bool {
        let wish = &self.wishes[usize::from(sent.from)];
        let source = MacAddr(sent.bytes[6..12].try_into().unwrap());
        wish.network.is_some()
            && wish.is_admin_up
            && !source.is_group()
            && (wish.macs.is_empty() || wish.macs.contains(&source))
            && sent.bytes.len() <= usize::from(MTU_DEFAULT) + 14
    }

    /// One round of one worker, and everything that must hold after it.
    fn step(&mut self) {
        let worker = self.chance.below(2) as usize;
        let before = self.switch.balance();
        self.workers[worker].step(self.now);
        let balance = self.switch.balance();
        assert!(balance.balances(), "seed {}: {balance:?}", self.seed);
        for worker in &self.workers {
            assert!(worker.ledger().balance().balances(), "seed {}: one worker's books", self.seed);
        }
        let mut delivered: BTreeMap<u32, HashSet<u16>> = BTreeMap::new();
        for port in 0..PORTS {
            for frame in self.ports[usize::from(port)].collect() {
                let serial = u32::from_be_bytes(frame.bytes[SERIAL_AT..SERIAL_AT + 4].try_into().unwrap());
                self.log = self.log.wrapping_mul(31).wrapping_add(u64::from(serial) << 8 | u64::from(port));
                let seed = self.seed;
                let sent = self.waiting.get(&serial).unwrap_or_else(|| panic!("seed {seed}: frame {serial} repeats"));
                assert!(self.may_speak(sent), "seed {seed}: {serial} came from a port that may not speak");
                assert_ne!(sent.from, port, "seed {seed}: {serial} was reflected");
                let to = &self.wishes[usize::from(port)];
                assert_eq!(
                    to.network,
                    self.wishes[usize::from(sent.from)].network,
                    "seed {seed}: {serial} crossed networks"
                );
                assert!(to.is_admin_up, "seed {seed}: {serial} reached a port that is down");
                assert_eq!(frame.bytes, sent.bytes, "seed {seed}: {serial} was changed");
                assert!(delivered.entry(serial).or_default().insert(port), "seed {seed}: {serial} came twice");
            }
        }
        // A broadcast that came out anywhere came out everywhere it must.
        for (serial, ports) in &delivered {
            let sent = &self.waiting[serial];
            if sent.bytes[..6] == MacAddr::BROADCAST.0 {
                let network = self.wishes[usize::from(sent.from)].network;
                let members = (0..PORTS).filter(|&port| {
                    let wish = &self.wishes[usize::from(port)];
                    port != sent.from && wish.network == network && wish.is_admin_up
                });
                assert_eq!(members.count(), ports.len(), "seed {}: broadcast {serial} missed a member", self.seed);
            }
        }
        let sent: u64 = delivered.values().map(|ports| ports.len() as u64).sum();
        assert_eq!(balance.sent - before.sent, sent, "seed {}: the books and the ports differ", self.seed);
        for serial in delivered.keys() {
            self.waiting.remove(serial);
        }
    }

    fn run(mut self, steps: u64) -> u64 {
        for _ in 0..steps {
            match self.chance.below(100) {
                0..60 => self.inject(),
                60..64 => self.change(),
                64..66 => self.now.ns += self.chance.below(20_000_000_000),
                66 => self.switch.mac_table().sweep(self.now, |_, _| true),
                _ => self.step(),
            }
            self.now.ns += self.chance.below(1_000_000);
        }
        let balance = self.switch.balance();
        assert!(balance.sent > steps / 10, "seed {}: hardly anything moved: {balance:?}", self.seed);
        self.log
    }
}

/// Twenty seeds, or as many as fit the time of a soak.
mod soaked {
    use super::World;
    use std::time::Instant;
    use tests::process::soak_time;

    #[test]
    fn any_seed_keeps_networks_apart_and_the_books_balanced() {
        let steps = std::env::var("QVS_STEPS").map_or(20_000, |text| text.parse().expect("QVS_STEPS is a number"));
        if let Ok(seed) = std::env::var("QVS_SEED") {
            World::new(seed.parse().expect("QVS_SEED is a number")).run(steps);
            return;
        }
        let (begin, time) = (Instant::now(), soak_time());
        for seed in 1u64.. {
            if time.map_or(seed > 20, |time| begin.elapsed() > time) {
                break;
            }
            World::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).run(steps);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(World::new(42).run(5_000), World::new(42).run(5_000));
}
