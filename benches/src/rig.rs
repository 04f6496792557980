//! A switch and its guests in one process: workers without threads, stepped by hand, and drivers beside them.
//!
//! Guests come in pairs that send to each other, [`STATIONS`] addresses each, all learnt before anything is measured. A
//! pair's rings are polled by one worker, so that a thread can drive a worker and its pair and nothing crosses threads but
//! what the switch shares. Port numbers: the first guest of each pair, then the second of each.

use crate::yardstick::{FlatMacs, Seat, Yardstick};
use pipelines::Standard;
use pipelines::tables::Tables;
use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use switch::batch::BURST;
use switch::config::{Config, MTU_DEFAULT, NetworkConfig, PortConfig};
use switch::ids::{NetworkIndex, PortIndex};
use switch::poll::Poll;
use switch::port::Place;
use switch::publish::Snapshot;
use switch::switch::{Switch, SwitchConfig, WorkerSpec};
use switch::worker::{Now, Worker};
use vhost::backend::{Backend, BackendConfig, Role};
use vhost::driver::{Driver, DriverConfig};
use vhost::net::{F_MQ, F_RING_PACKED};
use vhost::port::RingSet;
use vhost::ring::Layout as RingLayout;

/// Addresses of each guest.
pub const STATIONS: u32 = 1000;
/// Frames that one guest offers in a round.
pub const OFFER: u16 = BURST as u16;
/// Entries of each ring.
const RING: u16 = 1024;
/// An odd number of cache lines, as in real pools.
const BUFFER: usize = 2048 + 256 + 64;
/// Rounds of a pair before it counts as warm: every buffer was used and every address learnt.
const WARM_UP: usize = 200;
/// The moment at which all rounds happen.
pub const NOW: Now = Now { ns: 5_000_000_000 };

/// Who is on which network, and who sends to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Each pair has a network of its own.
    Apart,
    /// All pairs are on one network.
    Together,
    /// All are on one network, and the first guest of every pair sends to the second guest of the first pair.
    ToOneGuest,
}

/// What a rig is like.
#[derive(Clone, Copy, Debug)]
pub struct RigConfig {
    /// Bytes of each frame, without the check sequence.
    pub frame_len: usize,
    /// Pairs of guests, and workers.
    pub pairs: usize,
    /// Networks and destinations.
    pub layout: Layout,
    /// Features of the guests' devices besides those every guest has.
    pub features: u64,
    /// Pairs of rings of each guest, which share what it offers.
    pub ring_pairs: u16,
}

impl RigConfig {
    /// One worker and one pair with split rings.
    pub fn new(frame_len: usize) -> RigConfig {
        RigConfig { frame_len, pairs: 1, layout: Layout::Apart, features: 0, ring_pairs: 1 }
    }
}

/// The address of a station: the generator `pktgen` has the same.
pub fn station(port: u32, number: u32) -> [u8; 6] {
    let [_, high, middle, low] = (port << 20 | number).to_be_bytes();
    [2, 0, 0, high, middle, low]
}

/// UDP over IPv4 from each of a port's stations to one of another's.
pub fn frames(from: u32, to: u32, len: usize) -> Vec<Vec<u8>> {
    let frame = |number: u32| {
        let peer = (7 * number + 3) % STATIONS;
        let (source, destination) = (station(from, number), station(to, peer));
        let mut frame = [destination, source].concat();
        let length = (len - 14) as u16;
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10]);
        frame.extend(&source[3..]);
        frame.push(10);
        frame.extend(&destination[3..]);
        frame.extend([4, 0, 4, 0]);
        frame.extend((length - 20).to_be_bytes());
        frame.resize(len, 0);
        frame
    };
    (0..STATIONS).map(frame).collect()
}

/// A guest: the driver, and the backend that serves it.
pub struct Guest {
    /// The guest's side.
    pub driver: Driver,
    _backend: Backend,
}

impl Guest {
    /// Connects a guest to a place, with `frames` in the send buffers of each of its pairs of rings. Returns when these run.
    ///
    /// # Panics
    /// If the machine has no memory or descriptors for it.
    pub fn connect(place: Arc<dyn Place>, frames: &[Vec<u8>], features: u64, ring_pairs: u16) -> Guest {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("qvs-bench-{}-{number}", std::process::id()));
        let backend = Backend::start(backend_config(path.clone()), place).unwrap();
        let longest = frames.iter().map(Vec::len).max().unwrap_or(0);
        let mut config = DriverConfig {
            queue_size: RING,
            receive_buffer_len: BUFFER,
            // An odd number of cache lines here too.
            send_buffer_len: BUFFER.max((longest + 13).next_multiple_of(128) + 64),
            buffer_offset: 52,
            ..DriverConfig::new(path)
        };
        config.features |= features | if ring_pairs > 1 { F_MQ } else { 0 };
        config.pairs = ring_pairs;
        let mut driver = Driver::new(config).unwrap();
        driver.pairs().for_each(|(sender, _)| sender.fill_all(frames));
        driver.start().unwrap();
        Guest { driver, _backend: backend }
    }

    /// Offers frames.
    #[inline]
    pub fn offer(&mut self) {
        let share = OFFER / self.driver.pair_count() as u16;
        self.driver.pairs().for_each(|(sender, _)| {
            sender.post(share);
        });
    }

    /// Takes what came; answers how many frames, if none needed several buffers.
    #[inline]
    pub fn take(&mut self) -> u16 {
        self.driver.pairs().map(|(_, receiver)| receiver.drain(4 * OFFER).0).sum()
    }
}

/// A vhost-user socket that we listen on.
pub fn backend_config(path: PathBuf) -> BackendConfig {
    BackendConfig {
        path,
        role: Role::Server,
        mtu: MTU_DEFAULT,
        owner: (None, None),
        mode: 0o600,
        peer_uids: vec![],
        state_file: None,
    }
}

/// A worker and the pair of guests it serves. On cache lines of its own, as a worker that runs in its own thread is.
#[repr(align(128))]
pub struct Half {
    /// The worker.
    pub worker: Worker<Standard>,
    /// Its guests.
    pub guests: [Guest; 2],
}

impl Half {
    /// Each guest sends a burst, the worker moves them, each guest takes what it got; answers how many the worker moved.
    #[inline]
    pub fn round(&mut self) -> usize {
        self.guests.iter_mut().for_each(Guest::offer);
        let moved = self.worker.step(NOW);
        self.guests.iter_mut().for_each(|guest| {
            guest.take();
        });
        moved
    }
}

/// A switch without threads and the guests whose rings it serves.
pub struct Rig {
    /// By pair.
    pub halves: Vec<Half>,
    switch: Arc<Switch<Standard>>,
}

impl Rig {
    /// One worker and one pair whose frames have `size` bytes.
    ///
    /// # Panics
    /// If the machine has no memory or descriptors for it.
    pub fn new(size: usize) -> Rig {
        Rig::with(RigConfig::new(size))
    }

    /// Sets it up; every address is learnt.
    ///
    /// # Panics
    /// As [`Rig::new`].
    pub fn with(config: RigConfig) -> Rig {
        let RigConfig { frame_len, pairs, layout, features, ring_pairs } = config;
        let (switch, mut workers) = switch(pairs, layout);
        // The sessions wait for the workers to let go of what they replace, so these must turn while they are set up.
        let is_set_up = AtomicBool::new(false);
        let mut guests = std::thread::scope(|scope| {
            let setting_up = scope.spawn(|| {
                let guest = |port: usize| {
                    let peer = if port < pairs { port + pairs } else { port - pairs };
                    let peer = if layout == Layout::ToOneGuest && port < pairs { pairs } else { peer };
                    let place = switch.place(PortIndex(port as u16));
                    Guest::connect(place, &frames(port as u32, peer as u32, frame_len), features, ring_pairs)
                };
                let guests: Vec<_> = (0..2 * pairs).map(guest).collect();
                is_set_up.store(true, Ordering::Release);
                guests
            });
            while !is_set_up.load(Ordering::Acquire) {
                for worker in &mut workers {
                    worker.step(NOW);
                }
            }
            setting_up.join().unwrap()
        });
        let second = guests.split_off(pairs);
        let guests = guests.into_iter().zip(second);
        let mut halves: Vec<Half> = workers
            .into_iter()
            .zip(guests)
            .map(|(worker, (first, second))| Half { worker, guests: [first, second] })
            .collect();
        for _ in 0..WARM_UP {
            halves.iter_mut().for_each(|half| {
                half.round();
            });
        }
        Rig { halves, switch }
    }

    /// What is in force.
    pub fn snapshot(&self) -> Arc<Snapshot<Tables>> {
        self.switch.snapshot()
    }

    /// The switch.
    pub fn switch(&self) -> Arc<Switch<Standard>> {
        self.switch.clone()
    }

    /// The first worker, to step it alone.
    pub fn worker(&mut self) -> &mut Worker<Standard> {
        &mut self.halves[0].worker
    }

    /// Each side of the first pair offers a burst.
    pub fn offer(&mut self) {
        self.halves[0].guests.iter_mut().for_each(Guest::offer);
    }

    /// Each side of the first pair takes what it got.
    pub fn take(&mut self) {
        self.halves[0].guests.iter_mut().for_each(|guest| {
            guest.take();
        });
    }

    /// One round of the first pair and its worker.
    pub fn round(&mut self) -> usize {
        self.halves[0].round()
    }
}

impl Drop for Rig {
    /// First all workers, then the guests: a session that ends waits for the workers to let go of its rings.
    fn drop(&mut self) {
        let (workers, guests): (Vec<_>, Vec<_>) = self.halves.drain(..).map(|half| (half.worker, half.guests)).unzip();
        drop(workers);
        drop(guests);
    }
}

/// A switch of one network with two ports, at which nothing stands yet, and its worker.
pub fn two_ports() -> (Arc<Switch<Standard>>, Worker<Standard>) {
    let (switch, mut workers) = switch(1, Layout::Apart);
    let worker = workers.pop().expect("one pair has one worker");
    (switch, worker)
}

/// The yardstick and its pair of guests, whose rings have the layout `L`.
pub struct Bare<L: RingLayout> {
    /// The guests.
    pub guests: [Guest; 2],
    /// Their rings.
    pub rings: [Arc<RingSet<L>>; 2],
    /// The loop.
    pub yardstick: Yardstick<L>,
}

impl<L: RingLayout> Bare<L> {
    /// The same frames as in [`Rig::new`].
    ///
    /// # Panics
    /// As [`Rig::new`].
    pub fn new(frame_len: usize) -> Bare<L> {
        let seats = [Arc::new(Seat::default()), Arc::new(Seat::default())];
        let features = layout_features(L::IS_PACKED);
        let guests = [0u32, 1]
            .map(|port| Guest::connect(seats[port as usize].clone(), &frames(port, 1 - port, frame_len), features, 1));
        let rings = seats.map(|seat| {
            let port = seat.hold().clone().expect("a guest that is connected has rings");
            (port as Arc<dyn Any + Send + Sync>).downcast::<RingSet<L>>().expect("its rings have the layout asked for")
        });
        let macs = Arc::new(FlatMacs::of_stations(STATIONS));
        let yardstick = Yardstick::new(macs, [&rings[0], &rings[1]]).expect("all rings are there");
        Bare { guests, rings, yardstick }
    }
}

/// What a guest chooses for rings of one layout or the other.
pub fn layout_features(is_packed: bool) -> u64 {
    if is_packed { F_RING_PACKED } else { 0 }
}

/// A switch with a worker for each pair and all ports configured.
fn switch(pairs: usize, layout: Layout) -> (Arc<Switch<Standard>>, Vec<Worker<Standard>>) {
    let workers = vec![WorkerSpec::default(); pairs];
    let config = SwitchConfig { workers, poll: Poll::Always, mac_max: 131_072, mac_age_s: 300 };
    let switch = Switch::<Standard>::new(&config).unwrap();
    let network = |index| NetworkConfig { index: NetworkIndex(index), id: format!("bench{index}").into() };
    let port = |index: u16| PortConfig {
        index: PortIndex(index),
        interface: format!("if{index}").into(),
        network: Some(NetworkIndex(if layout == Layout::Apart { index % pairs as u16 } else { 0 })),
        is_admin_up: true,
        mtu: MTU_DEFAULT,
        macs: vec![],
        allowed_macs: Vec::new(),
    };
    let pairs = pairs as u16;
    let networks = (0..pairs).map(network).collect();
    switch.apply(Config::new(networks, (0..2 * pairs).map(port).collect()).unwrap());
    let workers = switch.take_workers();
    (switch, workers)
}
