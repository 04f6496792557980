//! A switch that is killed at any moment and started again: what becomes of the guest's buffers, and of its frames.
//!
//! The switch is this very program, run once more as a child that gives every frame back to its sender, and killed by
//! SIGKILL under load. The guest knows no better than QEMU where its rings stand. Seeded; a death falls where it falls.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{ROUND, TestPlace, backend_config, frame, socket_path, until};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use switch::offload::VNET_HEADER_MRG_LEN;
use vhost::backend::{Backend, BackendConfig, Role};
use vhost::driver::{Driver, DriverConfig, PATIENCE, Shape};
use vhost::message::protocol;
use vhost::net::{F_IN_ORDER, F_RING_PACKED};

/// Names the socket to the child.
const SOCKET: &str = "QVS_CRASH_SOCKET";
/// Names our own file to it, if it is to have one.
const STATE: &str = "QVS_CRASH_STATE";
/// Deaths of each switch.
const DEATHS: u32 = 12;

#[test]
fn the_child_of_the_other_tests() {
    let Ok(path) = std::env::var(SOCKET) else { return };
    let place = Arc::new(TestPlace::default());
    let config = backend_config(Role::Server, path.into());
    let state_file = std::env::var(STATE).ok().map(Into::into);
    let _backend = Backend::start(BackendConfig { state_file, ..config }, place.clone()).unwrap();
    // Until it is killed, or its parent is gone.
    let parent = std::os::unix::process::parent_id();
    // Most of its life is between what it takes and what it gives, and so are most of its deaths.
    let pause = || std::thread::sleep(Duration::from_micros(50));
    while std::os::unix::process::parent_id() == parent {
        for _ in 0..1000 {
            if place.echo(pause) == 0 {
                std::thread::yield_now();
            }
        }
    }
}

struct Switch(Child);

impl Switch {
    fn start(socket: &Path, state: Option<&Path>) -> Switch {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "the_child_of_the_other_tests"]).env(SOCKET, socket).stdout(Stdio::null());
        if let Some(state) = state {
            command.env(STATE, state);
        }
        Switch(command.spawn().unwrap())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// What came back.
#[derive(Default)]
struct Seen {
    /// By number of the frame.
    counts: Vec<u32>,
    /// Frames that came.
    distinct: usize,
    /// Frames that came once more, by the number of switches that had died by then.
    repeats: Vec<u32>,
}

impl Seen {
    /// Frames that did not come yet.
    fn missing(&self) -> usize {
        self.counts.len() - self.distinct
    }
}

/// The guest, and how much it has under way.
struct Guest {
    driver: Driver,
    frame_len: usize,
    /// Frames that its receive ring holds.
    room: usize,
    seen: Seen,
}

impl Guest {
    fn new(config: DriverConfig) -> Guest {
        let frame_len = if config.receive_buffer_len < 256 { 700 } else { 200 };
        let buffers = (VNET_HEADER_MRG_LEN + frame_len).div_ceil(config.receive_buffer_len);
        let driver = Driver::new(config).unwrap();
        let room = usize::from(driver.receiver.ring.slots()) / buffers;
        Guest { driver, frame_len, room, seen: Seen { repeats: vec![0], ..Seen::default() } }
    }

    /// Sends up to `max` frames, as many as there are buffers for; answers how many.
    fn send(&mut self, max: usize) -> usize {
        let first = self.seen.counts.len() as u32;
        let frames: Vec<Vec<u8>> = (0..max as u32).map(|at| frame(first + at, self.frame_len)).collect();
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let sent = self.driver.sender.send_burst(&frames);
        self.seen.counts.resize(self.seen.counts.len() + sent, 0);
        sent
    }

    fn receive(&mut self) -> usize {
        let (seen, frame_len) = (&mut self.seen, self.frame_len);
        self.driver.receiver.recv_burst(64, |_, bytes| {
            // A buffer that was given back empty is no frame.
            if bytes.is_empty() {
                return;
            }
            let number = u32::from_be_bytes(bytes[14..18].try_into().unwrap());
            assert_eq!(bytes, frame(number, frame_len), "frame {number} is whole");
            let count = &mut seen.counts[number as usize];
            *count += 1;
            seen.distinct += usize::from(*count == 1);
            *seen.repeats.last_mut().unwrap() += u32::from(*count > 1);
        })
    }

    /// Frames the switch has not given back.
    fn under_way(&mut self) -> usize {
        usize::from(self.driver.sender.ring.slots() - self.driver.sender.free())
    }

    /// Sends and receives for a while; answers whether anything came back.
    fn traffic(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut has_received = false;
        while Instant::now() < end {
            // Several rounds, and so few that the echoes always fit, those that a death repeats too.
            if self.seen.missing() + 8 <= self.room - ROUND {
                self.send(8);
            }
            has_received |= self.receive() > 0;
        }
        has_received
    }

    /// The same until something came back.
    fn flowing(&mut self, time: Duration) {
        let end = Instant::now() + PATIENCE;
        while !self.traffic(time) {
            assert!(Instant::now() < end, "nothing comes back after {} deaths", self.seen.repeats.len() - 1);
        }
    }

    /// Waits until every send buffer is back.
    fn wait_for_senders(&mut self, is_receiving: bool) {
        let end = Instant::now() + PATIENCE;
        while self.under_way() > 0 {
            assert!(Instant::now() < end, "{} send buffers do not come back", self.under_way());
            if is_receiving {
                self.receive();
            }
        }
    }
}

fn die_and_go_on(name: &str, has_state_file: bool, config: impl FnOnce(&mut DriverConfig)) {
    let socket = socket_path();
    let state = socket.with_extension("state");
    let state = has_state_file.then_some(state.as_path());
    let mut wanted = DriverConfig::new(&socket);
    wanted.is_order_trusted = false;
    config(&mut wanted);
    let mut guest = Guest::new(wanted);
    let seed = std::env::var("QVS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed_1234_5678u64);
    println!("{name}: QVS_SEED={seed}");
    let mut random = Random(seed);
    let mut switch = Switch::start(&socket, state);
    guest.driver.start().unwrap();
    for _ in 0..DEATHS {
        guest.flowing(Duration::from_micros(4000 + random.below(8000)));
        drop(switch);
        // The guest goes on meanwhile.
        guest.traffic(Duration::from_micros(random.below(2000)));
        while guest.receive() > 0 {}
        guest.seen.repeats.push(0);
        switch = Switch::start(&socket, state);
        guest.driver.resume_blindly().unwrap();
    }
    guest.flowing(Duration::from_millis(20));
    // Every buffer of both rings comes back, each once.
    guest.wait_for_senders(true);
    while guest.receive() > 0 {}
    let faults = (guest.driver.sender.ring.faults(), guest.driver.receiver.ring.faults());
    assert_eq!(faults, (0, 0), "{name}: none came back twice");
    let lost = guest.seen.missing();
    let Seen { counts, repeats, .. } = &guest.seen;
    println!("{name}: {} frames, {lost} lost, repeated after each death: {repeats:?}", counts.len());
    // And all of those the guest receives by are there: the ring holds as many frames as ever.
    let before = guest.seen.counts.len();
    while guest.seen.counts.len() < before + guest.room {
        guest.send(before + guest.room - guest.seen.counts.len());
        guest.wait_for_senders(false);
    }
    while guest.receive() > 0 {}
    let wrong = guest.seen.counts[before..].iter().filter(|count| **count != 1).count();
    assert_eq!(wrong, 0, "{name}: once nobody dies, none of a ring full of frames is lost or doubled");
    // What was taken and not given back is taken again. None is lost: frames are with the receiver before they are given
    // back to the sender.
    assert_eq!(lost, 0, "{name}");
    assert_eq!(guest.seen.repeats[0], 0, "{name}");
    let most = guest.seen.repeats.iter().max().unwrap();
    assert!(*most as usize <= ROUND, "{name}: a death repeats what was taken in a round at most");
    if let Some(state) = state {
        std::fs::remove_file(state).unwrap();
    }
}

#[test]
fn split_rings_go_on_at_the_used_index() {
    die_and_go_on("split", false, |_| {});
}

#[test]
fn split_rings_with_an_inflight_area_go_on_as_well() {
    die_and_go_on("split, inflight", false, |config| config.protocol |= protocol::INFLIGHT_SHMFD);
}

#[test]
fn packed_rings_go_on_where_the_inflight_area_says() {
    die_and_go_on("packed, inflight", false, |config| {
        config.features |= F_RING_PACKED;
        config.protocol |= protocol::INFLIGHT_SHMFD;
    });
}

#[test]
fn packed_rings_go_on_where_our_own_file_says() {
    die_and_go_on("packed", true, |config| config.features |= F_RING_PACKED);
}

#[test]
fn packed_rings_of_long_chains_and_merged_frames_go_on_as_well() {
    die_and_go_on("packed, chains", true, |config| {
        config.features |= F_RING_PACKED;
        (config.send_shape, config.receive_shape) = (Shape::linked(3), Shape::linked(2));
        config.receive_buffer_len = 250;
        // A ring full of frames takes all of its buffers.
        config.queue_size = 768;
    });
}

#[test]
fn packed_rings_in_order_go_on_as_well() {
    die_and_go_on("packed, in order", true, |config| config.features |= F_RING_PACKED | F_IN_ORDER);
}

/// A guest with packed rings and a switch with a file of its own, both in this process.
fn packed_pair() -> (Driver, BackendConfig, Arc<TestPlace>) {
    let socket = socket_path();
    let state_file = Some(socket.with_extension("state"));
    let mut wanted = DriverConfig::new(&socket);
    wanted.features |= F_RING_PACKED;
    let config = BackendConfig { state_file, ..backend_config(Role::Server, socket) };
    (Driver::new(wanted).unwrap(), config, Arc::default())
}

fn frame_goes_round(driver: &mut Driver, place: &TestPlace, number: u32) {
    let sent = frame(number, 100);
    assert_eq!(driver.sender.send_burst(&[&sent]), 1);
    let mut received = Vec::new();
    until("a frame comes back", || {
        place.echo(|| {});
        driver.receiver.recv_burst(9, |_, bytes| received.push(bytes.to_vec())) > 0
    });
    assert_eq!(received, [sent]);
}

#[test]
fn a_guest_that_began_anew_is_served_from_the_beginning_whether_or_not_a_switch_ran() {
    let (mut driver, config, place) = packed_pair();
    let mut backend = Backend::start(config.clone(), place.clone()).unwrap();
    driver.start().unwrap();
    for round in 0..6 {
        for number in 0..7 {
            frame_goes_round(&mut driver, &place, number);
        }
        let has_stopped = round % 2 == 0;
        if has_stopped {
            driver.stop_rings().unwrap();
        }
        drop(backend);
        for ring in [&mut driver.sender.ring, &mut driver.receiver.ring] {
            ring.reset();
        }
        driver.receiver.post_all();
        backend = Backend::start(config.clone(), place.clone()).unwrap();
        // Where it was before is of no interest to a guest that begins: its frontend says so, or does not know better.
        if has_stopped { driver.resume().unwrap() } else { driver.resume_blindly().unwrap() }
    }
    backend.remove();
}

#[test]
fn what_is_written_down_of_a_port_stays_when_it_is_closed_and_goes_when_it_is_removed() {
    let (mut driver, config, place) = packed_pair();
    let state_file = config.state_file.clone().unwrap();
    let backend = Backend::start(config.clone(), place.clone()).unwrap();
    assert!(!state_file.exists(), "not before it is needed");
    driver.start().unwrap();
    frame_goes_round(&mut driver, &place, 1);
    drop(backend);
    assert!(state_file.exists());
    let backend = Backend::start(config, place.clone()).unwrap();
    driver.resume_blindly().unwrap();
    frame_goes_round(&mut driver, &place, 2);
    backend.remove();
    assert!(!state_file.exists());
}
