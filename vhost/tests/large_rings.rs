//! Rings of the largest size there is, filled to the last entry and emptied again, until indices of 16 bits and wrap counters
//! have gone round twice, by a switch that stops, and one that ends and begins anew, on the way.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{QUEUE, TestPlace, backend_config, drops, frame, socket_path, until};
use std::sync::Arc;
use std::time::Duration;
use switch::ledger::DropReason;
use switch::port::{Device, Link};
use vhost::backend::{Backend, BackendConfig, Role};
use vhost::driver::{Driver, DriverConfig};
use vhost::net::{F_EVENT_IDX, F_IN_ORDER, F_RING_PACKED};

/// Entries.
const SIZE: u16 = 32_768;
/// Times that a ring is filled: a 16-bit index turns over every second time, and so does a wrap counter come back.
const LAPS: u32 = 5;
/// Frames besides, each time, so that every lap begins elsewhere.
const MORE: u32 = 6_777;
/// Frames that are under way, each way, when the switch ends.
const UNDER_WAY: u32 = 3_000;
/// Frames that a worker sends at a time.
const BURST: usize = 32;
/// How long a signal that must come is waited for.
const SOON: Duration = Duration::from_secs(20);

struct Rig {
    driver: Driver,
    backend: Option<Backend>,
    config: BackendConfig,
    place: Arc<TestPlace>,
    /// Frames that the guest has sent, and those of them that the switch has taken.
    sent: u32,
    taken: u32,
    /// Frames that the switch has sent, and those of them that have arrived.
    delivered: u32,
    arrived: u32,
}

impl Rig {
    fn new(features: u64) -> Rig {
        let socket = socket_path();
        let mut wanted = DriverConfig::new(&socket);
        wanted.features |= features;
        wanted.queue_size = SIZE;
        (wanted.send_buffer_len, wanted.receive_buffer_len) = (128, 128);
        wanted.is_order_trusted = false;
        let state_file = Some(socket.with_extension("state"));
        let config = BackendConfig { state_file, ..backend_config(Role::Server, socket) };
        let (place, driver) = (Arc::new(TestPlace::default()), Driver::new(wanted).unwrap());
        let backend = Some(Backend::start(config.clone(), place.clone()).unwrap());
        let mut rig = Rig { driver, backend, config, place, sent: 0, taken: 0, delivered: 0, arrived: 0 };
        rig.driver.start().unwrap();
        rig.wait_for_link();
        rig
    }

    fn wait_for_link(&self) {
        let backend = self.backend.as_ref().unwrap();
        until("the rings run", || backend.state().link == Link::Up);
    }

    /// The guest sends; answers how many fitted.
    fn send(&mut self, count: u32) -> u32 {
        let frames: Vec<Vec<u8>> = (self.sent..self.sent + count).map(|number| frame(number, 60)).collect();
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let fitted = self.driver.sender.send_burst(&frames) as u32;
        self.sent += fitted;
        fitted
    }

    /// The switch takes what the guest has sent, but `left`.
    fn take(&mut self, left: u32) {
        while self.taken + left < self.sent {
            let (frames, tally) = self.place.round();
            assert!(!frames.is_empty() && tally.dropped == 0, "frame {} of {} is missing", self.taken, self.sent);
            for (bytes, _) in frames {
                assert_eq!(bytes, frame(self.taken, 60), "from the guest");
                self.taken += 1;
            }
        }
    }

    /// The switch sends; answers how many fitted.
    fn deliver(&mut self, count: u32) -> u32 {
        let numbers: Vec<u32> = (self.delivered..self.delivered + count).collect();
        for numbers in numbers.chunks(BURST) {
            let frames: Vec<Vec<u8>> = numbers.iter().map(|&number| frame(number, 60)).collect();
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            let tally = self.place.send(&frames);
            assert!(drops(&tally).iter().all(|(reason, _)| *reason == DropReason::RxRingFull), "{:?}", drops(&tally));
            self.delivered += tally.packets;
        }
        self.delivered - numbers[0]
    }

    /// The guest takes what has arrived, which is all that was sent to it.
    fn receive(&mut self) {
        self.driver.receiver.recv_burst(usize::MAX, |_, bytes| {
            assert_eq!(bytes, frame(self.arrived, 60), "to the guest");
            self.arrived += 1;
        });
        assert_eq!(self.arrived, self.delivered);
    }

    /// Both rings to the last entry, and empty again.
    fn lap(&mut self) {
        let size = u32::from(SIZE);
        assert_eq!(self.send(size + 1), size, "as many as there are entries");
        assert_eq!(self.deliver(size + 1), size, "as many as there are entries");
        self.take(0);
        self.receive();
        assert!(self.place.round().0.is_empty(), "there is no more");
        assert_eq!((self.send(MORE), self.deliver(MORE)), (MORE, MORE));
        self.take(0);
        self.receive();
    }

    /// Each side sleeps, and is woken by the other.
    fn signals(&mut self) {
        let port = self.place.port().unwrap();
        let kick = port.wake_fd(QUEUE).unwrap();
        let is_kicked = || {
            let limit = rustix::event::Timespec { tv_sec: SOON.as_secs() as _, tv_nsec: 0 };
            let mut fds = [rustix::event::PollFd::new(&kick, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&limit)).unwrap() > 0 && rustix::io::read(kick, &mut [0; 8]).is_ok()
        };
        while self.driver.receiver.ring.wait_for_interrupt(Duration::ZERO) {}
        self.driver.receiver.ring.set_interrupts(true);
        assert_eq!(self.deliver(1), 1);
        assert!(self.driver.receiver.ring.wait_for_interrupt(SOON), "the guest sleeps");
        self.driver.receiver.ring.set_interrupts(false);
        self.receive();
        // A kick from before is none for what comes now.
        let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
        assert!(is_kicked() && !port.arm(QUEUE), "there is nothing yet");
        assert_eq!(self.send(1), 1);
        assert!(is_kicked(), "the switch sleeps");
        port.disarm(QUEUE);
        self.take(0);
    }

    /// A switch that ends, and one that begins, with frames under way both ways. The guest's frontend knows no better than
    /// QEMU where the rings stand.
    fn restart(&mut self) {
        assert_eq!((self.send(UNDER_WAY), self.deliver(UNDER_WAY)), (UNDER_WAY, UNDER_WAY));
        self.take(UNDER_WAY / 2);
        drop(self.backend.take());
        self.backend = Some(Backend::start(self.config.clone(), self.place.clone()).unwrap());
        self.driver.resume_blindly().unwrap();
        self.wait_for_link();
        self.receive();
        self.take(0);
    }

    /// The rings stop, say where they stand, and go on.
    fn stop(&mut self) {
        assert_eq!((self.send(UNDER_WAY), self.deliver(UNDER_WAY)), (UNDER_WAY, UNDER_WAY));
        self.take(UNDER_WAY / 2);
        let stood = self.driver.stop_rings().unwrap();
        let expected: Vec<u32> = (0..2).map(|index| self.driver.ring(index).base()).collect();
        assert_eq!(expected, stood, "both sides say the same");
        self.driver.start_rings().unwrap();
        self.wait_for_link();
        self.receive();
        self.take(0);
    }
}

fn go_round(features: u64) {
    let mut rig = Rig::new(features);
    for lap in 0..LAPS {
        rig.lap();
        rig.signals();
        if lap % 2 == 0 { rig.restart() } else { rig.stop() }
    }
    assert!(rig.sent.min(rig.delivered) > 4 * u32::from(SIZE), "round twice");
    assert_eq!((rig.driver.sender.ring.faults(), rig.driver.receiver.ring.faults()), (0, 0));
    assert_eq!(rig.driver.sender.free(), SIZE, "every buffer is back");
    rig.backend.take().unwrap().remove();
}

#[test]
fn split_rings_of_the_largest_size_go_round_twice_and_outlive_their_switch() {
    go_round(0);
}

#[test]
fn split_rings_of_the_largest_size_with_event_indices_do_as_well() {
    go_round(F_EVENT_IDX | F_IN_ORDER);
}

#[test]
fn packed_rings_of_the_largest_size_go_round_twice_and_outlive_their_switch() {
    go_round(F_RING_PACKED);
}

#[test]
fn packed_rings_of_the_largest_size_with_event_indices_do_as_well() {
    go_round(F_RING_PACKED | F_EVENT_IDX | F_IN_ORDER);
}
