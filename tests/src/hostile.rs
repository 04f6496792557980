//! A guest that misbehaves on purpose, one class of misbehaviour at a time, and a polite one of equal load to compare with: it
//! takes as much CPU time and has the switch take as many frames from it.
//!
//! Each turn of it is a burst of wrongs followed by what a driver would have to do to go on, so that the switch sees the
//! class again and again and not one broken ring that lies still. A guest whose session was ended connects anew. Turns
//! begin at a fixed rate, the same for all classes and for the polite guest, as far as the wrongs leave time for it.

mod punch;

use crate::chance::Chance;
use punch::{Puncher, punch};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::ftruncate;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use switch::offload::VNET_HEADER_MRG_LEN;
use vhost::chain::{Descriptor, INDIRECT, NEXT, WRITE};
use vhost::driver::packed::{AVAIL, PackedDescriptor, USED};
use vhost::driver::{Driver, DriverConfig, DriverError, GUEST_BASE, Ring, Shape, Used};
use vhost::message::Request;
use vhost::net::{F_INDIRECT_DESC, F_MRG_RXBUF, F_RING_PACKED};

/// Time from the beginning of one turn to that of the next.
const TURN: Duration = Duration::from_micros(200);
/// Chains posted, or frames sent, in a turn.
const BURST: u16 = 32;
/// Bursts that a polite guest may be behind, whose ring was full or whose thread had no CPU.
const OWED_MAX: f64 = 8.0;
/// Bursts that it sends in one turn at most, so that they do not follow each other for long.
const CATCH_UP: usize = 4;
/// Kicks of a storm in a turn.
const KICKS: usize = 200;
/// Pause before a new connection: a guest takes longer to boot, and making its memory should not be most of its work.
const BOOT: Duration = Duration::from_millis(5);
/// Words scribbled in a turn.
const WORDS: usize = 64;
/// Descriptors of a frame that is legal and dear: one for the header, and one for each byte.
const WIDTH: u16 = 61;
/// Bytes of a good frame.
const FRAME_LEN: u32 = 60;
/// A page of memory, bytes.
const PAGE: usize = 4096;

/// What a guest does to its switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Nothing wrong: bursts of good frames.
    Polite,
    /// Every kind of descriptor that virtio forbids, in both directions.
    BadDescriptors,
    /// The available index jumps by more than the ring holds; a packed ring, which has none, is one chain without end.
    IndexJumps,
    /// Features are agreed on anew, and rings stopped and started, while frames are under way.
    Renegotiation,
    /// Kicks without a reason, and interrupts asked for with an eventfd that is full.
    KickStorm,
    /// Memory is removed, and its file cut short, while frames are under way.
    MemoryRemoved,
    /// Random words in descriptor tables, rings and indices.
    Scribbling,
    /// Good frames of which each byte has a descriptor of its own.
    WideChains,
    /// Frames in memory that nobody has touched: the switch is the first, and waits for the kernel.
    UntouchedMemory,
    /// The same while another thread takes the pages away again, all the time: who touches one then waits until the kernel is done.
    PunchedMemory,
}

impl Class {
    /// All that is wrong.
    pub const HOSTILE: [Class; 9] = [
        Class::BadDescriptors,
        Class::IndexJumps,
        Class::Renegotiation,
        Class::KickStorm,
        Class::MemoryRemoved,
        Class::Scribbling,
        Class::WideChains,
        Class::UntouchedMemory,
        Class::PunchedMemory,
    ];
}

/// How much a guest does besides its class.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Load {
    /// Part of a CPU that it takes at least, in thousandths: what is missing is burnt.
    pub cpu_permille: u64,
    /// Frames a second that a polite guest sends, in bursts, as far as turns allow.
    pub frames: f64,
    /// Times a second that a polite guest makes memory for a guest, touches it as a driver does and gives it back, without a switch
    /// that would know of it: what a guest that connects anew does to the caches by itself.
    pub boots: f64,
}

impl Load {
    /// No more CPU time than it needs, and a burst in every turn.
    pub const FULL: Load = Load { cpu_permille: 0, frames: f64::INFINITY, boots: 0.0 };

    /// Bursts of a polite guest in the time of a turn; one at most.
    fn bursts(self) -> f64 {
        (self.frames * TURN.as_secs_f64() / f64::from(BURST)).min(1.0)
    }
}

/// What a guest got to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Deeds {
    /// Turns.
    pub turns: u64,
    /// Connections, the first included.
    pub sessions: u64,
    /// Part of a CPU it took, in thousandths.
    pub cpu_permille: u64,
}

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().expect("a thread's CPU time is not negative")
}

/// Misbehaves at the socket, with these features besides those of any driver, until it is over.
///
/// # Panics
/// If there is no memory for a guest.
pub fn misbehave(path: &Path, class: Class, features: u64, load: Load, is_over: &AtomicBool) -> Deeds {
    let (begun, cpu_before) = (Instant::now(), cpu_time());
    let share = load.cpu_permille as f64 / 1000.0;
    let burner = Burner { begun, cpu_before, share };
    let (path, chance, deeds) = (path.to_owned(), Chance::new(1), Deeds::default());
    let boots = load.boots * TURN.as_secs_f64();
    let mut guest = Guest {
        path,
        class,
        features,
        chance,
        deeds,
        burner,
        bursts: load.bursts(),
        owed: 0.0,
        posted: 0,
        boots,
        boots_owed: 0.0,
        helped_ns: Arc::default(),
    };
    while !is_over.load(Ordering::Relaxed) {
        let mut driver = guest.driver();
        let begun = driver.start();
        guest.deeds.sessions += 1;
        guest.posted = 0;
        // The switch may end a session for good reason at any message; the next one begins anew.
        if begun.and_then(|()| guest.session(&mut driver, is_over)).is_err() {
            driver.disconnect();
        }
        std::thread::sleep(BOOT);
    }
    let helped = Duration::from_nanos(guest.helped_ns.load(Ordering::Relaxed));
    let cpu = (cpu_time() - cpu_before + helped).as_secs_f64() / begun.elapsed().as_secs_f64();
    Deeds { cpu_permille: (cpu * 1000.0) as u64, ..guest.deeds }
}

/// Brings a thread's CPU time up to a share.
struct Burner {
    begun: Instant,
    cpu_before: Duration,
    share: f64,
}

impl Burner {
    /// Burns what is missing; no more than a turn's time at once.
    fn burn(&self) {
        let begun = Instant::now();
        while (cpu_time() - self.cpu_before).as_secs_f64() < self.share * self.begun.elapsed().as_secs_f64()
            && begun.elapsed() < 2 * TURN
        {
            std::hint::spin_loop();
        }
    }
}

struct Guest {
    path: PathBuf,
    class: Class,
    features: u64,
    chance: Chance,
    deeds: Deeds,
    burner: Burner,
    /// Bursts of a polite guest in the time of a turn, and how many it owes.
    bursts: f64,
    owed: f64,
    /// Frames that a guest posted by hand and did not get back.
    posted: u64,
    /// How often it makes memory in the time of a turn, and how often it owes that.
    boots: f64,
    boots_owed: f64,
    /// CPU time that other threads of it took, ns.
    helped_ns: Arc<AtomicU64>,
}

impl Guest {
    fn driver(&self) -> Driver {
        let mut config = DriverConfig::new(&self.path);
        config.features |= self.features;
        match self.class {
            Class::WideChains => {
                config.features |= F_INDIRECT_DESC;
                config.send_shape = Shape::indirect(WIDTH);
            }
            Class::UntouchedMemory => config.send_buffer_len = PAGE,
            Class::PunchedMemory => config.send_buffer_len = 64 * PAGE,
            _ => (),
        }
        Driver::new(config).expect("there is memory for a guest")
    }

    fn is_packed(&self) -> bool {
        self.features & F_RING_PACKED != 0
    }

    /// One connection's misbehaviour.
    fn session(&mut self, driver: &mut Driver, is_over: &AtomicBool) -> Result<(), DriverError> {
        let class = self.class;
        let full = eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor is left");
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("an empty eventfd takes it");
        if class == Class::KickStorm {
            for index in 0..2 {
                let fd = vhost::message::RingFd { index, has_fd: true };
                driver.tell(&Request::SetVringCall(fd), &[full.as_fd()])?;
            }
            driver.sender.ring.set_interrupts(true);
            driver.receiver.ring.set_interrupts(true);
        }
        let _puncher = (class == Class::PunchedMemory).then(|| Puncher::start(driver, self.helped_ns.clone()));
        let (mut due, mut counted) = (Instant::now(), Instant::now());
        while !is_over.load(Ordering::Relaxed) {
            let left = due.saturating_duration_since(Instant::now());
            std::thread::sleep(left);
            due += TURN;
            self.deeds.turns += 1;
            self.burner.burn();
            match class {
                Class::Polite => {
                    // Turns come late where its thread shares a CPU, and what its ring had no room for it sends later.
                    let turns = counted.elapsed().as_secs_f64() / TURN.as_secs_f64();
                    counted = Instant::now();
                    self.owed = (self.owed + self.bursts * turns).min(OWED_MAX);
                    for _ in 0..CATCH_UP {
                        if self.owed >= 1.0 {
                            self.owed -= self.talk(driver) as f64 / f64::from(BURST);
                        }
                    }
                    self.boots_owed += self.boots * turns;
                    if self.boots_owed >= 1.0 {
                        self.boots_owed = 0.0;
                        self.driver().receiver.post_all();
                    }
                }
                Class::BadDescriptors if self.is_packed() => self.post_bad_packed(driver)?,
                Class::BadDescriptors => self.post_bad(driver),
                Class::IndexJumps => self.jump(driver)?,
                Class::Renegotiation => self.renegotiate(driver)?,
                Class::KickStorm => {
                    for _ in 0..KICKS {
                        driver.sender.ring.kick();
                        driver.receiver.ring.kick();
                    }
                    self.talk(driver);
                }
                Class::MemoryRemoved => self.remove_memory(driver)?,
                Class::Scribbling => self.scribble(driver)?,
                Class::WideChains => _ = self.talk(driver),
                Class::UntouchedMemory | Class::PunchedMemory => self.send_untouched(driver),
            }
            if class == Class::Scribbling && self.deeds.turns.is_multiple_of(64) {
                // Its rings have stopped by now.
                return Ok(());
            }
        }
        Ok(())
    }

    /// A burst of good frames to itself, which the switch looks up and drops, and whatever arrived; answers how many were sent.
    fn talk(&mut self, driver: &mut Driver) -> usize {
        let mut frame = [0; FRAME_LEN as usize];
        frame[..14].copy_from_slice(&[2, 0, 0, 0, 0xee, 1, 2, 0, 0, 0, 0xee, 1, 0x88, 0xb5]);
        let sent = driver.sender.send_burst(&[&frame[..]; BURST as usize]);
        driver.receiver.drain(BURST);
        sent
    }

    /// A burst of chains of which each is forbidden in its own way.
    fn post_bad(&mut self, driver: &mut Driver) {
        let len = driver.memory().len() as u64;
        for _ in 0..BURST {
            for is_send in [true, false] {
                let ring = if is_send { &mut driver.sender.ring } else { &mut driver.receiver.ring };
                // No more than the ring holds: that would be another class.
                if ring.next().wrapping_sub(ring.used_index()) >= ring.size() / 2 {
                    continue;
                }
                let slot = self.chance.below(usize::from(ring.size())) as u16;
                let here = ring.buffer_address(slot);
                let right = if is_send { 0 } else { WRITE };
                let (address, size, flags, next) = match self.chance.below(11) {
                    0 => (here, 100, right | NEXT, slot),
                    1 => (here, 100, right | NEXT, ring.size()),
                    2 => (here, 100, right ^ WRITE, 0),
                    3 => (0, 100, right, 0),
                    4 => (u64::MAX - 10, 100, right, 0),
                    5 => (GUEST_BASE + len - 50, 100, right, 0),
                    6 => (here, u32::MAX, right, 0),
                    7 => (here, 0, right, 0),
                    8 => (here, 16, INDIRECT | NEXT, 0),
                    9 => (here, 17, INDIRECT, 0),
                    _ => (0, 16, INDIRECT, 0),
                };
                ring.put_descriptor(slot, Descriptor { address, len: size, flags, next });
                let head = if self.chance.below(16) == 0 { u16::MAX } else { slot };
                ring.put_available(ring.next(), head);
                ring.set_available_index(ring.next().wrapping_add(1));
            }
        }
    }

    /// The same in packed rings, and now and then both from the start again: a chain that is given back leaves entries behind
    /// its first that look as if they were still the switch's.
    fn post_bad_packed(&mut self, driver: &mut Driver) -> Result<(), DriverError> {
        let len = driver.memory().len() as u64;
        for _ in 0..BURST {
            for is_send in [true, false] {
                let ring = if is_send { &mut driver.sender.ring } else { &mut driver.receiver.ring };
                let (at, size) = (ring.packed().next(), ring.size());
                let now = ring.packed().entry(at.index).flags & (AVAIL | USED);
                // What the switch has not given back is of the lap before.
                if now == available(!at.wrap) {
                    continue;
                }
                let (here, right) = (ring.buffer_address(at.index), if is_send { 0 } else { WRITE });
                let (address, size_of, flags) = match self.chance.below(9) {
                    0 => (here, 100, right | NEXT),
                    1 => (here, 100, right ^ WRITE),
                    2 => (0, 100, right),
                    3 => (u64::MAX - 10, 100, right),
                    4 => (GUEST_BASE + len - 50, 100, right),
                    5 => (here, u32::MAX, right),
                    6 => (here, 0, right),
                    7 => (here, 17, INDIRECT),
                    _ => (0, 16, INDIRECT),
                };
                let bad = PackedDescriptor { address, len: size_of, id: at.index, flags: flags | available(at.wrap) };
                ring.packed().put(at.index, bad);
                ring.packed_mut().set_next(at.plus(1, size));
            }
        }
        if self.deeds.turns.is_multiple_of(16) { restart(driver) } else { Ok(()) }
    }

    /// A jump of one ring's index, and both rings from the start again.
    fn jump(&mut self, driver: &mut Driver) -> Result<(), DriverError> {
        self.talk(driver);
        let is_packed = self.is_packed();
        let ring = if self.chance.below(2) == 0 { &mut driver.sender.ring } else { &mut driver.receiver.ring };
        if is_packed {
            link_all(ring);
            return if self.chance.below(4) > 0 { Ok(()) } else { restart(driver) };
        }
        let jump = ring.size() + 1 + self.chance.below(usize::from(u16::MAX - ring.size() - 1)) as u16;
        ring.set_available_index(ring.next().wrapping_add(jump));
        if self.chance.below(4) > 0 {
            return Ok(());
        }
        restart(driver)
    }

    /// Other features while rings run, and rings stopped and started with frames in them.
    fn renegotiate(&mut self, driver: &mut Driver) -> Result<(), DriverError> {
        self.talk(driver);
        let features = driver.features ^ if self.chance.below(2) == 0 { F_MRG_RXBUF } else { 0 };
        driver.tell(&Request::SetFeatures(features), &[])?;
        self.talk(driver);
        driver.stop_rings()?;
        driver.start_rings()
    }

    /// The table of memory set anew under the rings, or its file cut short where the buffers begin, or altogether.
    fn remove_memory(&mut self, driver: &mut Driver) -> Result<(), DriverError> {
        self.talk(driver);
        match self.chance.below(4) {
            0 | 1 => driver.set_memory_table(),
            2 => driver.tell(&Request::SetMemTable(Vec::new()), &[]),
            _ => {
                let keep = if self.chance.below(2) == 0 { driver.receiver.ring.buffer_at(0) as u64 } else { 0 };
                // Our own mapping is gone with it: nothing here may touch it any more.
                driver.sender.ring.kick();
                ftruncate(driver.memory().file(), keep).expect("it is our own file");
                std::thread::sleep(TURN);
                Err(DriverError::NotConnected)
            }
        }
    }

    /// A burst of frames, zeros all of them, from pages that are made when they are read.
    fn send_untouched(&mut self, driver: &mut Driver) {
        let memory = driver.memory().clone();
        let ring = &mut driver.sender.ring;
        let mut used = [Used::default(); 2 * BURST as usize];
        let back = ring.take_used(&mut used) as u64;
        self.posted -= back.min(self.posted);
        if self.posted + u64::from(BURST) > used.len() as u64 {
            return;
        }
        let first = self.deeds.turns as u16 % (ring.slots() / BURST) * BURST;
        punch(&memory, ring.buffer_at(first), usize::from(BURST) * ring.buffer_len());
        for slot in first..first + BURST {
            let (address, len) = (ring.buffer_address(slot), FRAME_LEN + VNET_HEADER_MRG_LEN as u32);
            ring.post_chain(slot, &[Descriptor { address, len, flags: 0, next: 0 }]);
        }
        self.posted += u64::from(BURST);
    }

    /// Random words where the rings are, now and then in an index.
    fn scribble(&mut self, driver: &mut Driver) -> Result<(), DriverError> {
        let rings = driver.receiver.ring.buffer_at(0).min(driver.sender.ring.buffer_at(0));
        let memory = driver.memory().clone();
        for _ in 0..WORDS {
            let at = self.chance.below(rings / 2) * 2;
            let value = if self.chance.below(2) == 0 { self.chance.below(8) as u16 } else { self.chance.bits() as u16 };
            memory.word(at).store(value, Ordering::Relaxed);
        }
        if self.is_packed() {
            self.scribble_entries(&mut driver.sender.ring);
        } else {
            let next = driver.sender.ring.next();
            driver.sender.ring.set_available_index(next.wrapping_add(8));
        }
        driver.receiver.ring.kick();
        // A packed ring that was stopped by one of them would be read no more.
        if self.is_packed() && self.deeds.turns.is_multiple_of(4) { restart(driver) } else { Ok(()) }
    }

    /// Random words in the entries of a packed ring that the switch looks at next, which show as available: it reads no others.
    /// The first word is the address' lowest part or all of it, so that some lie in memory.
    fn scribble_entries(&mut self, ring: &mut Ring) {
        for left in (0..8).rev() {
            let (at, size) = (ring.packed().next(), ring.size());
            let here = ring.buffer_address(at.index);
            let address =
                if self.chance.below(2) == 0 { here ^ self.chance.bits() & 0xffff } else { self.chance.bits() };
            let len = (self.chance.bits() >> self.chance.below(64)) as u32;
            // The last ends its chain, or where the next turn's begin would be anybody's guess.
            let none = AVAIL | USED | if left == 0 { NEXT } else { 0 };
            let flags = self.chance.bits() as u16 & self.chance.bits() as u16 & !none | available(at.wrap);
            ring.packed().put(at.index, PackedDescriptor { address, len, id: self.chance.bits() as u16, flags });
            ring.packed_mut().set_next(at.plus(1, size));
        }
    }
}

/// Both rings from the start again.
fn restart(driver: &mut Driver) -> Result<(), DriverError> {
    driver.stop_rings()?;
    driver.sender.ring.reset();
    driver.receiver.ring.reset();
    driver.receiver.post_all();
    driver.start_rings()
}

/// Makes all of a packed ring one chain without end.
fn link_all(ring: &Ring) {
    for index in 0..ring.size() {
        let entry = ring.packed().entry(index);
        // One that was given back becomes one of the next lap.
        let turn = if (entry.flags & AVAIL != 0) == (entry.flags & USED != 0) { AVAIL } else { 0 };
        ring.packed().put(index, PackedDescriptor { flags: entry.flags ^ turn | NEXT, ..entry });
    }
}

/// The flags of a descriptor of a packed ring that is available on a lap.
fn available(wrap: bool) -> u16 {
    if wrap { AVAIL } else { USED }
}
