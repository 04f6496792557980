//! One session: what the messages of a connected peer do to its device.
//!
//! A state machine without I/O: a message with its file descriptors goes in, an answer or the end of the session comes out.
//! The one rule that orders everything: what workers can see never changes. Before a message touches a ring or the
//! memory that is in use, the [`RingSet`] is withdrawn from its place, which returns when no worker holds it; then the
//! change is made; then the answer goes out; and a new set is published as soon as a ring is whole. Switching a ring on
//! and off is no change in that sense: a set lets that be done under the workers' hands.
//! Owned by the session's thread; a peer that makes us wait makes nobody else wait.

mod error;
mod keep;
mod setup;
#[cfg(test)]
mod tests;

pub(crate) use error::SessionError;

use crate::call::{Call, Calls, NUMBERS, Pace};
use crate::memory::{Area, DirtyLog, GuestMemory, MemoryError};
use crate::message::{
    Code, F_PROTOCOL_FEATURES, InflightInfo, REGIONS_MAX, RING_LOG, Reply, Request, RingFd, RingState, parse, protocol,
};
use crate::net::{Dialect, F_LOG_ALL, F_RING_PACKED, OFFERED};
use crate::port::{Alarm, Fault, PAIRS_MAX, Queue, RingSet, Rings, Steering, Use, announcement};
use crate::ring::split::used_ring_len;
use crate::ring::{Layout, PackedRing, SplitRing, Terms};
use crate::socket::{Incoming, Wake, is_eventfd};
use crate::state_file::StateFile;
use setup::Setup;
use std::cell::{Cell, OnceCell};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use switch::port::Place;

/// Protocol features offered.
const PROTOCOL_OFFERED: u64 = protocol::MQ
    | protocol::RARP
    | protocol::REPLY_ACK
    | protocol::NET_MTU
    | protocol::LOG_SHMFD
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;
/// Rings a guest can have. Ring 2n is the one that pair n of the guest receives by, ring 2n + 1 the one it sends by.
const RINGS: usize = 2 * PAIRS_MAX;
const _: () = assert!(2 * RINGS <= NUMBERS, "a call for each ring, and one for its errors");

/// What the session looks like from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SessionView {
    /// The peer has asked for our features.
    pub(crate) has_read_features: bool,
    /// A ring of each direction runs, and none that the guest has switched on has been stopped for what the guest did.
    pub(crate) is_running: bool,
}

/// A message to send back.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// The file descriptors that go along.
    pub(crate) fds: Vec<OwnedFd>,
}

/// What to send back, if anything.
pub(crate) type Answer = Option<Outgoing>;

/// The state of one connection.
pub(crate) struct Session {
    place: Arc<dyn Place>,
    wake: Arc<Wake>,
    calls: Arc<Calls>,
    mtu: Arc<AtomicU16>,
    features: u64,
    protocol: u64,
    status: u64,
    has_read_features: bool,
    memory: Option<Arc<GuestMemory>>,
    log: Option<Arc<DirtyLog>>,
    /// The area in which the frontend keeps for us where rings stand, and the entries of each ring it is for.
    inflight: Option<(Arc<Area>, InflightInfo)>,
    /// The file of an area that was just made and goes with the answer.
    inflight_file: Option<OwnedFd>,
    /// Our own file for the same, and what it is once it was needed; `None` in it: it cannot be had.
    state_path: Option<PathBuf>,
    state_file: OnceCell<Option<StateFile>>,
    rings: [Setup; RINGS],
    published: Option<Arc<dyn Rings>>,
    /// What is known of the flows of a guest of several pairs.
    steering: Option<Arc<Steering>>,
    announce: Arc<AtomicU64>,
    /// Whether the log has anything about this session. Each thing is said once then: a peer decides how often it sends what we would
    /// log.
    is_told: bool,
    has_warned_of_mtu: bool,
    /// Bit n: how ring n went on was said.
    told_rings: Cell<u32>,
}

impl Session {
    /// A fresh connection. Puts an idle port at the place, so that frames for the guest are counted as `not_ready`.
    pub(crate) fn new(
        place: Arc<dyn Place>,
        wake: Arc<Wake>,
        pace: Arc<Pace>,
        mtu: Arc<AtomicU16>,
        state_path: Option<PathBuf>,
        is_told: bool,
    ) -> Session {
        let mut session = Session {
            place,
            wake,
            calls: Calls::new(pace),
            mtu,
            features: 0,
            protocol: 0,
            status: 0,
            has_read_features: false,
            memory: None,
            log: None,
            inflight: None,
            inflight_file: None,
            state_path,
            state_file: OnceCell::new(),
            rings: Default::default(),
            published: None,
            steering: None,
            announce: Arc::default(),
            is_told,
            has_warned_of_mtu: false,
            told_rings: Cell::new(0),
        };
        session.publish::<SplitRing>(Vec::new());
        session
    }

    /// What it looks like from outside now.
    pub(crate) fn view(&self) -> SessionView {
        SessionView {
            has_read_features: self.has_read_features,
            is_running: self.published.as_ref().is_some_and(|set| set.is_running()) && self.stopped().next().is_none(),
        }
    }

    /// Something a reader should know though the session goes on: each ring that had to be stopped, and why; empty if there is
    /// nothing.
    pub(crate) fn note(&self) -> String {
        let sentences: Vec<String> =
            self.stopped().map(|(ring, why)| format!("{} stopped: {why}", name(ring))).collect();
        sentences.join("; ")
    }

    /// The rings that had to be stopped and that the guest has not given up: what it puts there goes nowhere.
    fn stopped(&self) -> impl Iterator<Item = (usize, &'static str)> + '_ {
        let rings = self.rings.iter().enumerate().filter(|(_, setup)| setup.usage == Use::On);
        rings.filter_map(|(index, setup)| Some((index, setup.broken?)))
    }

    /// Lets one message act; answers the bytes to send back, if any.
    ///
    /// # Errors
    /// What the message did wrong and, if it wanted one, the answer that says no; the session is over.
    pub(crate) fn handle(&mut self, message: Incoming) -> Result<Answer, (SessionError, Answer)> {
        let Incoming { header, payload, fds } = message;
        let request = parse(&header, &payload, fds.len()).map_err(|error| (error.into(), None))?;
        let (code, has_reply) = (request.code(), request.has_reply());
        let wants_ack = !has_reply && header.needs_reply();
        let result = self.apply(request, fds);
        // Looked up afterwards: SET_PROTOCOL_FEATURES itself may be the message that agrees on it.
        let wants_ack = wants_ack && self.protocol & protocol::REPLY_ACK != 0;
        let fds = self.inflight_file.take().into_iter().collect();
        let answer = |reply: Reply| Outgoing { bytes: reply.to_bytes(code), fds };
        match result {
            Ok(Some(reply)) if has_reply || wants_ack => Ok(Some(answer(reply))),
            Ok(None) if wants_ack => Ok(Some(answer(Reply::Number(0)))),
            Ok(_) => Ok(None),
            Err(error) => Err((error, wants_ack.then(|| answer(Reply::Number(1))))),
        }
    }

    /// Ends the session: when this returns, no worker holds anything of the guest's.
    pub(crate) fn close(&mut self) {
        self.stop();
        self.place.withdraw();
        self.memory = None;
        self.log = None;
        self.inflight = None;
    }

    /// Looks after what workers found wrong.
    ///
    /// # Errors
    /// If the session cannot go on.
    pub(crate) fn look_after_faults(&mut self) -> Result<(), SessionError> {
        let Some(set) = &self.published else { return Ok(()) };
        if set.alarm().has(Fault::Memory) || self.memory.as_ref().is_some_and(|memory| memory.is_dead()) {
            return Err(SessionError::MemoryCutShort);
        }
        if self.log.as_ref().is_some_and(|log| log.is_dead()) {
            return Err(SessionError::LogCutShort);
        }
        let broken: Vec<usize> = (0..RINGS)
            .filter(|&index| set.alarm().has(Fault::Ring(index as u8)) && self.rings[index].broken.is_none())
            .collect();
        for index in broken {
            self.stop();
            self.rings[index].broken = Some(match self.features & F_RING_PACKED {
                0 => "its available index is ahead by more than the ring holds",
                _ => "a chain in it has no end that a frame's could have, or was taken back",
            });
            if let Some(error) = &self.rings[index].error {
                error.signal_from_control();
            }
        }
        self.start()
    }

    fn apply(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Option<Reply>, SessionError> {
        let code = request.code();
        match request {
            Request::GetFeatures => {
                self.has_read_features = true;
                return Ok(Some(Reply::Number(OFFERED)));
            }
            Request::SetFeatures(features) => self.set_features(features)?,
            Request::GetProtocolFeatures => return Ok(Some(Reply::Number(PROTOCOL_OFFERED))),
            Request::SetProtocolFeatures(features) => {
                self.protocol = offered(code, features, PROTOCOL_OFFERED)?;
            }
            Request::GetQueueNum => return Ok(Some(Reply::Number(PAIRS_MAX as u64))),
            Request::SetOwner => {}
            // The older message "disables all rings"; forgetting more than that has led to bugs (specification).
            Request::ResetOwner => {
                self.stop();
                self.forget_driver();
                for setup in &mut self.rings {
                    setup.kick = None;
                    setup.broken = None;
                    setup.usage = Use::Still;
                }
            }
            Request::ResetDevice => {
                self.stop();
                self.forget_driver();
                // The memory stays, and so do the eventfds we signal: a frontend that hands regions over one by one takes
                // them for known, and QEMU sends its calls once.
                for setup in &mut self.rings {
                    let (call, error) = (setup.call.take(), setup.error.take());
                    *setup = Setup { call, error, ..Setup::default() };
                }
                (self.features, self.status) = (0, 0);
            }
            Request::SetMemTable(table) => {
                self.stop();
                // The old table goes first: a guest whose memory fills the bound can still change it.
                self.memory = None;
                self.memory = Some(Arc::new(GuestMemory::map(&table, &fds)?));
            }
            Request::GetMaxMemSlots => return Ok(Some(Reply::Number(REGIONS_MAX as u64))),
            // QEMU before 8.0 says this once for each pair of queues, and the reverse too: what is there already is no news.
            Request::AddMemReg(region)
                if let (Some(memory), [file]) = (&self.memory, &fds[..])
                    && memory.has(&region, file) => {}
            Request::AddMemReg(region) => {
                let memory = match (&self.memory, &fds[..]) {
                    (Some(memory), [file]) => memory.with(&region, file)?,
                    (_, files) => GuestMemory::map(&[region], files)?,
                };
                self.stop();
                self.memory = Some(Arc::new(memory));
            }
            Request::RemMemReg(region) => {
                if let Some(memory) = self.memory.as_ref().filter(|memory| memory.touches(&region)) {
                    let memory = memory.without(&region)?;
                    self.stop();
                    self.memory = memory.last_address().map(|_| Arc::new(memory));
                }
            }
            Request::SetLogBase(info) => {
                let log = DirtyLog::map(&info, fds.first().expect("parse counted the file descriptors"))?;
                self.stop();
                self.log = Some(Arc::new(log));
                self.start()?;
                return Ok(Some(Reply::Number(0)));
            }
            // A frontend that wants to be told of the log's changes would be told of every burst; QEMU never asks for it.
            Request::SetLogFd => {
                if !fds.iter().all(|fd| is_eventfd(fd.as_fd())) {
                    return Err(SessionError::NotAnEventfd { code });
                }
            }
            Request::SetVringEndian(_) => return Err(SessionError::NotAgreed { code }),
            Request::GetInflightFd(_) | Request::SetInflightFd(_) if self.protocol & protocol::INFLIGHT_SHMFD == 0 => {
                return Err(SessionError::NotAgreed { code });
            }
            Request::GetInflightFd(wish) => return Ok(Some(Reply::Inflight(self.make_inflight(wish)?))),
            Request::SetInflightFd(info) => {
                self.take_inflight(info, fds.first().expect("parse counted the file descriptors"))?;
            }
            Request::SetVringNum(RingState { index, value }) => {
                self.still(code, index)?.size = value;
            }
            Request::SetVringAddr(addresses) => {
                self.still(code, addresses.index)?.addresses = Some(addresses);
            }
            Request::SetVringBase(RingState { index, value }) => {
                let setup = self.still(code, index)?;
                (setup.base, setup.told_base, setup.is_base_ours) = (value, value, false);
            }
            Request::GetVringBase(index) => {
                let setup = self.still(code, index)?;
                // The ring is stopped until another kick is set (specification, "Starting and stopping rings").
                setup.kick = None;
                setup.broken = None;
                let value = setup.base;
                // From now on the frontend knows.
                self.forget(index as usize);
                self.start()?;
                return Ok(Some(Reply::Ring(RingState { index, value })));
            }
            Request::SetVringKick(ring) => {
                let kick = one_eventfd(code, ring, fds)?.map(Arc::new);
                let has_enable = self.features & F_PROTOCOL_FEATURES != 0;
                let setup = self.still(code, u32::from(ring.index))?;
                setup.kick = Some(kick);
                if !has_enable {
                    // Without protocol features there is no message to enable a ring (same section).
                    setup.usage = Use::On;
                }
            }
            Request::SetVringCall(ring) => {
                let call = self.call_of(code, ring, fds, 0)?;
                self.setup(code, u32::from(ring.index))?.call.clone_from(&call);
                if let Some(set) = self.published.as_ref().filter(|set| set.has(usize::from(ring.index))) {
                    set.set_call(usize::from(ring.index), call);
                    self.interrupt(usize::from(ring.index));
                }
            }
            Request::SetVringErr(ring) => {
                let error = self.call_of(code, ring, fds, RINGS)?;
                self.setup(code, u32::from(ring.index))?.error = error;
            }
            Request::SetVringEnable { index, is_enabled } => {
                let setup = self.setup(code, index)?;
                let usage = match (is_enabled, setup.usage) {
                    (true, _) => Use::On,
                    (false, Use::Still) => Use::Still,
                    (false, Use::On | Use::Discard) => Use::Discard,
                };
                if std::mem::replace(&mut setup.usage, usage) != usage {
                    self.switch(index as usize);
                }
            }
            Request::SendRarp(mac) => {
                self.announce.store(announcement(mac), Ordering::Relaxed);
                if let Some(set) = &self.published {
                    // Workers that sleep wake up for a publication, be it of the same set.
                    self.place.publish(set.clone());
                }
            }
            Request::NetSetMtu(mtu) => {
                // Virtio 1.2 section 5.1.4.1: 68 to 65,535. A no is not the end: the frontend may live without.
                if !(68..=65_535).contains(&mtu) {
                    return Ok(Some(Reply::Number(1)));
                }
                let port_mtu = self.mtu.load(Ordering::Relaxed);
                if mtu > u64::from(port_mtu) && self.is_told && !std::mem::replace(&mut self.has_warned_of_mtu, true) {
                    tracing::warn!(mtu, port_mtu, "the guest is given a larger MTU than its port has");
                }
            }
            Request::SetStatus(status) => {
                // Zero is the driver's reset of the device (virtio 1.2 section 2.1).
                if status == 0 {
                    self.stop();
                    self.forget_driver();
                    for setup in &mut self.rings {
                        setup.kick = None;
                        setup.broken = None;
                    }
                }
                self.status = status;
            }
            Request::GetStatus => return Ok(Some(Reply::Number(self.status))),
        }
        self.start()?;
        Ok(None)
    }

    fn set_features(&mut self, features: u64) -> Result<(), SessionError> {
        let features = offered(Code::SetFeatures, features, OFFERED)?;
        if features != self.features {
            self.stop();
            self.features = features;
        }
        Ok(())
    }

    fn setup(&mut self, code: Code, index: u32) -> Result<&mut Setup, SessionError> {
        self.rings.get_mut(index as usize).ok_or(SessionError::NoSuchRing { code, index })
    }

    /// What the eventfd of a message is signalled by, if it has one; `first` is the number of ring 0's.
    fn call_of(
        &mut self,
        code: Code,
        ring: RingFd,
        fds: Vec<OwnedFd>,
        first: usize,
    ) -> Result<Option<Arc<Call>>, SessionError> {
        let fd = one_eventfd(code, ring, fds)?;
        self.setup(code, u32::from(ring.index))?;
        let number = first + usize::from(ring.index);
        if fd.is_none() {
            self.calls.forget(number);
        }
        Ok(fd.map(|fd| self.calls.call(number, fd)))
    }

    /// The setup of a ring that no worker uses any more, so that it can be changed.
    fn still(&mut self, code: Code, index: u32) -> Result<&mut Setup, SessionError> {
        self.setup(code, index)?;
        if self.is_published(index as usize) {
            self.stop();
        }
        self.setup(code, index)
    }

    /// Whether workers have that ring.
    fn is_published(&self, index: usize) -> bool {
        self.published.as_ref().is_some_and(|set| set.has(index))
    }

    /// Makes a ring that workers have what its setup says; the others do not notice.
    fn switch(&self, index: usize) {
        let Some(set) = self.published.as_ref().filter(|set| set.has(index)) else { return };
        set.switch(index, self.rings[index].usage);
        if self.rings[index].usage != Use::Still {
            self.interrupt(index);
            // Workers that sleep wake up for a publication, be it of the same set.
            self.place.publish(set.clone());
        }
    }

    /// Takes the rings away from the workers, if they have any, and notes where each stopped.
    fn stop(&mut self) {
        let Some(set) = self.published.take_if(|set| (0..RINGS).any(|index| set.has(index))) else { return };
        self.place.withdraw();
        for (index, setup) in self.rings.iter_mut().enumerate() {
            if let Some(position) = set.position(index) {
                (setup.base, setup.is_base_ours) = (position, true);
            }
        }
    }

    /// Gives the workers the rings that can run, if that is a change.
    fn start(&mut self) -> Result<(), SessionError> {
        let can_run = |index: usize| self.memory.is_some() && self.rings[index].is_whole();
        if self.published.is_some() && (0..RINGS).all(|ring| can_run(ring) == self.is_published(ring)) {
            return Ok(());
        }
        let wanted: Vec<usize> = (0..RINGS).filter(|&ring| can_run(ring)).collect();
        self.stop();
        self.check_log(&wanted)?;
        if self.features & F_RING_PACKED != 0 {
            self.put_in_force::<PackedRing>(&wanted)?;
        } else {
            self.put_in_force::<SplitRing>(&wanted)?;
        }
        for &index in &wanted {
            self.interrupt(index);
        }
        Ok(())
    }

    /// Whether writes are to be logged, and where: the frontend agreed on it and gave a log.
    fn active_log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref().filter(|_| self.features & F_LOG_ALL != 0)
    }

    /// Whether the log has room for all memory and for the used rings, which may be logged elsewhere than they lie.
    fn check_log(&self, rings: &[usize]) -> Result<(), MemoryError> {
        let Some(log) = self.active_log() else { return Ok(()) };
        let memory = self.memory.as_ref().and_then(|memory| memory.last_address());
        memory.map_or(Ok(()), |last| log.check_covers(last))?;
        for setup in rings.iter().map(|&index| &self.rings[index]) {
            if let Some(addresses) = setup.addresses.filter(|addresses| addresses.flags & RING_LOG != 0) {
                // Of a packed ring, this is the address of the word about kicks; its descriptors lie in the memory.
                let len = if self.features & F_RING_PACKED != 0 { 4 } else { used_ring_len(setup.size) };
                log.check_covers(addresses.log.saturating_add(len - 1))?;
            }
        }
        Ok(())
    }

    /// Interrupts the guest for a ring once, whatever it holds. What was used before may have gone to the call before, which
    /// nobody listens to any more (QEMU exchanges calls without waiting for us), or to none, if a switch died before it
    /// signalled. A guest that waits for that would wait until the next frame; one interrupt too many does no harm.
    fn interrupt(&self, index: usize) {
        if let Some(call) = &self.rings[index].call {
            call.signal_from_control();
        }
    }

    /// Gives the workers these rings.
    fn put_in_force<L: Layout>(&mut self, rings: &[usize]) -> Result<(), SessionError> {
        let queues = rings.iter().map(|&index| Ok((index, self.queue::<L>(index)?)));
        let queues = queues.collect::<Result<Vec<_>, SessionError>>()?;
        self.publish(queues);
        Ok(())
    }

    fn queue<L: Layout>(&self, index: usize) -> Result<Queue<L>, SessionError> {
        let setup = &self.rings[index];
        let memory = self.memory.clone().expect("only asked for when there is memory");
        let addresses = setup.addresses.as_ref().expect("only asked for a ring that is whole");
        let (kick, call) = (setup.kick.clone().flatten(), setup.call.clone());
        let failed = |source| SessionError::Ring { index, source };
        let mut ring = L::find(memory, addresses, setup.size, Terms::new(self.features)).map_err(failed)?;
        if addresses.flags & RING_LOG != 0
            && let Some(log) = self.active_log()
        {
            ring.log_to(log, addresses);
        }
        let base = self.keep(index, &mut ring)?;
        let queue = Queue::new(ring, base, index as u8, kick, call).map_err(failed)?;
        if queue.position() != setup.base {
            // A switch that died took chains it never gave back. We know no better than the ring which they were.
            tracing::debug!(
                ring = index,
                base = setup.base,
                position = queue.position(),
                "resuming where the ring stands"
            );
        }
        Ok(queue)
    }

    /// The driver begins anew, or another one does: what was known of the one before is no more so.
    fn forget_driver(&mut self) {
        self.forget_all();
        self.steering = None;
    }

    fn publish<L: Layout>(&mut self, queues: Vec<(usize, Queue<L>)>) {
        let dialect = Dialect::new(self.features);
        let alarm = Alarm::new(self.wake.clone());
        let set = RingSet::new(queues, dialect, alarm, self.announce.clone());
        let log = self.active_log().cloned();
        let set = Arc::new(set.with_steering(&mut self.steering).with_log(log));
        for (index, setup) in self.rings.iter().enumerate() {
            set.switch(index, setup.usage);
        }
        self.place.publish(set.clone());
        self.published = Some(set);
    }
}

/// What a ring is to its guest.
fn name(index: usize) -> String {
    let direction = if index.is_multiple_of(2) { "receive" } else { "send" };
    match index / 2 {
        0 => format!("the guest's {direction} ring"),
        pair => format!("the guest's {direction} ring {pair}"),
    }
}

fn offered(code: Code, given: u64, offered: u64) -> Result<u64, SessionError> {
    match given & !offered {
        0 => Ok(given),
        given => Err(SessionError::NotOffered { code, given }),
    }
}

/// The eventfd of a message that may have one.
fn one_eventfd(code: Code, ring: RingFd, fds: Vec<OwnedFd>) -> Result<Option<OwnedFd>, SessionError> {
    let fd = fds.into_iter().next();
    debug_assert_eq!(fd.is_some(), ring.has_fd, "parse counted the file descriptors");
    match fd {
        Some(fd) if !is_eventfd(fd.as_fd()) => Err(SessionError::NotAnEventfd { code }),
        fd => Ok(fd),
    }
}
