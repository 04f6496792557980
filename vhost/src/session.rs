//! One session: what the messages of a connected peer do to its device.
//!
//! A state machine without I/O: a message with its file descriptors goes in, an answer or the end of the session comes out.
//! The one rule that orders everything: what workers can see never changes. Before a message touches a ring or the
//! memory that is in use, the [`RingSet`] is withdrawn from its place, which returns when no worker holds it; then the
//! change is made; then the answer goes out; and a new set is published as soon as a ring is whole and enabled.
//! Owned by the session's thread; a peer that makes us wait makes nobody else wait.

use crate::memory::{GuestMemory, MemoryError};
use crate::message::{
    Code, F_PROTOCOL_FEATURES, MessageError, Reply, Request, RingAddresses, RingFd, RingState, parse, protocol,
};
use crate::net::{Dialect, OFFERED};
use crate::port::{Alarm, Fault, Queue, RingSet, announcement};
use crate::ring::{RingError, SplitRing};
use crate::socket::{Call, Incoming, Wake, is_eventfd};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use switch::port::Place;

/// Protocol features offered.
const PROTOCOL_OFFERED: u64 =
    protocol::MQ | protocol::RARP | protocol::REPLY_ACK | protocol::NET_MTU | protocol::STATUS;
/// Queue pairs a guest can have.
const QUEUE_PAIRS: u64 = 1;
/// The rings of a pair.
const RINGS: usize = 2;
/// Ring 0: the guest receives by it.
const RECEIVE: usize = 0;
/// Ring 1: the guest sends by it.
const SEND: usize = 1;

/// Why a session ends from our side.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// Bytes that are no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A memory table that cannot be.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A ring that cannot be.
    #[error("ring {index}: {source}")]
    Ring {
        /// Which ring.
        index: usize,
        /// Why not.
        source: RingError,
    },
    /// A ring we do not have.
    #[error("{code:?} names ring {index}; there are {RINGS}")]
    NoSuchRing {
        /// The message.
        code: Code,
        /// The ring it names.
        index: u32,
    },
    /// Features we did not offer.
    #[error("{code:?} chooses features {given:#x} that were not offered")]
    NotOffered {
        /// The message.
        code: Code,
        /// The foreign bits.
        given: u64,
    },
    /// A file descriptor that is no eventfd.
    #[error("{code:?} came with a file descriptor that is no eventfd")]
    NotAnEventfd {
        /// The message.
        code: Code,
    },
    /// A memory file was cut short under us.
    #[error("memory file was cut short")]
    MemoryCutShort,
}

/// What the session looks like from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SessionView {
    /// The peer has asked for our features.
    pub(crate) has_read_features: bool,
    /// Both rings run.
    pub(crate) is_running: bool,
}

/// Bytes to send back, if any.
pub(crate) type Answer = Option<Vec<u8>>;

/// One ring, as far as the peer has told us about it.
#[derive(Default)]
struct Setup {
    size: u32,
    addresses: Option<RingAddresses>,
    base: u16,
    /// `Some` from SET_VRING_KICK on, which starts the ring; without a file descriptor it is only polled.
    kick: Option<Option<Arc<OwnedFd>>>,
    call: Option<Arc<Call>>,
    error: Option<Call>,
    is_enabled: bool,
    is_broken: bool,
}

impl Setup {
    fn is_whole(&self) -> bool {
        self.size > 0 && self.addresses.is_some() && self.kick.is_some() && !self.is_broken
    }
}

/// The state of one connection.
pub(crate) struct Session {
    place: Arc<dyn Place>,
    wake: Arc<Wake>,
    mtu: u16,
    features: u64,
    protocol: u64,
    status: u64,
    has_read_features: bool,
    memory: Option<Arc<GuestMemory>>,
    rings: [Setup; RINGS],
    published: Option<Arc<RingSet>>,
    announce: Arc<AtomicU64>,
    note: String,
    /// Said once a session: a peer decides how often it sends what we would log.
    has_warned_of_mtu: bool,
}

impl Session {
    /// A fresh connection. Puts an idle port at the place, so that frames for the guest are counted as `not_ready`.
    pub(crate) fn new(place: Arc<dyn Place>, wake: Arc<Wake>, mtu: u16) -> Session {
        let mut session = Session {
            place,
            wake,
            mtu,
            features: 0,
            protocol: 0,
            status: 0,
            has_read_features: false,
            memory: None,
            rings: Default::default(),
            published: None,
            announce: Arc::default(),
            note: String::new(),
            has_warned_of_mtu: false,
        };
        session.publish([None, None]);
        session
    }

    /// What it looks like from outside now.
    pub(crate) fn view(&self) -> SessionView {
        SessionView {
            has_read_features: self.has_read_features,
            is_running: self.published.as_ref().is_some_and(|set| set.send().is_some() && set.receive().is_some()),
        }
    }

    /// Something a reader should know though the session goes on; empty if there is nothing.
    pub(crate) fn note(&self) -> &str {
        &self.note
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
        match result {
            Ok(Some(reply)) if has_reply || wants_ack => Ok(Some(reply.to_bytes(code))),
            Ok(None) if wants_ack => Ok(Some(Reply::Number(0).to_bytes(code))),
            Ok(_) => Ok(None),
            Err(error) => Err((error, wants_ack.then(|| Reply::Number(1).to_bytes(code)))),
        }
    }

    /// Ends the session: when this returns, no worker holds anything of the guest's.
    pub(crate) fn close(&mut self) {
        self.stop();
        self.place.withdraw();
        self.memory = None;
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
        let broken = [
            (RECEIVE, Fault::ReceiveRing, "the guest's receive ring"),
            (SEND, Fault::SendRing, "the guest's send ring"),
        ];
        let broken = broken.map(|(index, fault, name)| (index, set.alarm().has(fault), name));
        for (index, is_broken, name) in broken {
            if is_broken && !self.rings[index].is_broken {
                self.stop();
                self.rings[index].is_broken = true;
                self.note = format!("{name} stopped: its available index is ahead by more than the ring holds");
                if let Some(error) = &self.rings[index].error {
                    error.signal_from_control();
                }
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
            Request::GetQueueNum => return Ok(Some(Reply::Number(QUEUE_PAIRS))),
            Request::SetOwner => {}
            Request::ResetOwner => {
                self.stop();
                self.rings = Default::default();
                self.memory = None;
                self.features = 0;
            }
            Request::SetMemTable(table) => {
                self.stop();
                // The old table goes first: a guest whose memory fills the bound can still change it.
                self.memory = None;
                self.memory = Some(Arc::new(GuestMemory::map(&table, &fds)?));
            }
            Request::SetVringNum(RingState { index, value }) => {
                self.setup(code, index)?;
                self.stop();
                self.setup(code, index)?.size = value;
            }
            Request::SetVringAddr(addresses) => {
                self.setup(code, addresses.index)?;
                self.stop();
                self.setup(code, addresses.index)?.addresses = Some(addresses);
            }
            Request::SetVringBase(RingState { index, value }) => {
                self.setup(code, index)?;
                self.stop();
                self.setup(code, index)?.base = value as u16;
            }
            Request::GetVringBase(index) => {
                self.setup(code, index)?;
                self.stop();
                let setup = self.setup(code, index)?;
                // The ring is stopped until another kick is set (specification, "Starting and stopping rings").
                setup.kick = None;
                setup.is_broken = false;
                let value = u32::from(setup.base);
                self.start()?;
                return Ok(Some(Reply::Ring(RingState { index, value })));
            }
            Request::SetVringKick(ring) => {
                self.setup(code, u32::from(ring.index))?;
                let kick = one_eventfd(code, ring, fds)?.map(Arc::new);
                self.stop();
                // Without protocol features there is no message to enable a ring (same section).
                let is_enabled = self.features & F_PROTOCOL_FEATURES == 0;
                let setup = self.setup(code, u32::from(ring.index))?;
                setup.kick = Some(kick);
                setup.is_enabled |= is_enabled;
            }
            Request::SetVringCall(ring) => {
                let call = one_eventfd(code, ring, fds)?.map(|fd| Arc::new(Call::new(fd)));
                self.setup(code, u32::from(ring.index))?.call = call.clone();
                if let Some(queue) = self.published_queue(usize::from(ring.index)) {
                    queue.set_call(call);
                    self.interrupt(usize::from(ring.index));
                }
            }
            Request::SetVringErr(ring) => {
                let error = one_eventfd(code, ring, fds)?.map(Call::new);
                self.setup(code, u32::from(ring.index))?.error = error;
            }
            Request::SetVringEnable { index, is_enabled } => {
                if self.setup(code, index)?.is_enabled != is_enabled {
                    self.stop();
                    self.setup(code, index)?.is_enabled = is_enabled;
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
                if mtu > u64::from(self.mtu) && !std::mem::replace(&mut self.has_warned_of_mtu, true) {
                    tracing::warn!(mtu, port_mtu = self.mtu, "the guest is given a larger MTU than its port has");
                }
            }
            Request::SetStatus(status) => {
                // Zero is the driver's reset of the device (virtio 1.2 section 2.1).
                if status == 0 {
                    self.stop();
                    for setup in &mut self.rings {
                        setup.kick = None;
                        setup.is_broken = false;
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

    fn published_queue(&self, index: usize) -> Option<&Queue> {
        let set = self.published.as_ref()?;
        if index == RECEIVE { set.receive() } else { set.send() }
    }

    /// Takes the rings away from the workers, if they have any, and notes where each stopped.
    fn stop(&mut self) {
        let Some(set) = &self.published else { return };
        if set.send().is_none() && set.receive().is_none() {
            return;
        }
        self.place.withdraw();
        for index in 0..RINGS {
            if let Some(position) = self.published_queue(index).map(Queue::position) {
                self.rings[index].base = position;
            }
        }
        self.published = None;
    }

    /// Gives the workers the rings that can run, if that is a change.
    fn start(&mut self) -> Result<(), SessionError> {
        let can_run = [RECEIVE, SEND].map(|index| {
            let setup = &self.rings[index];
            self.memory.is_some() && setup.is_whole() && setup.is_enabled
        });
        let runs = [RECEIVE, SEND].map(|index| self.published_queue(index).is_some());
        if self.published.is_some() && runs == can_run {
            return Ok(());
        }
        self.stop();
        let mut queues = [None, None];
        for index in [RECEIVE, SEND] {
            if can_run[index] {
                queues[index] = Some(self.queue(index)?);
            }
        }
        self.publish(queues);
        for index in [RECEIVE, SEND] {
            if can_run[index] {
                self.interrupt(index);
            }
        }
        if self.view().is_running {
            self.note.clear();
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

    fn queue(&mut self, index: usize) -> Result<Queue, SessionError> {
        let setup = &mut self.rings[index];
        let memory = self.memory.clone().expect("only asked for when there is memory");
        let addresses = setup.addresses.as_ref().expect("only asked for a ring that is whole");
        let ring = |source| SessionError::Ring { index, source };
        let split = SplitRing::new(memory, addresses, setup.size).map_err(ring)?;
        let used = split.used_index();
        if used != setup.base {
            // A switch that died took chains it never gave back. We know no better than the used ring which they were.
            tracing::debug!(ring = index, base = setup.base, used, "resuming where the used ring stands");
            setup.base = used;
        }
        Ok(Queue::new(split, setup.kick.clone().flatten(), setup.call.clone()))
    }

    fn publish(&mut self, queues: [Option<Queue>; RINGS]) {
        let [receive, send] = queues;
        let dialect = Dialect::new(self.features);
        let alarm = Alarm::new(self.wake.clone());
        let set = Arc::new(RingSet::new(send, receive, dialect, alarm, self.announce.clone()));
        self.place.publish(set.clone());
        self.published = Some(set);
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
