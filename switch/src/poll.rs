//! A worker's thread: rounds for ever, and sleep when there is nothing to do.
//!
//! A poll-mode switch that never sleeps costs a core on an idle hypervisor; one that sleeps too readily pays a wake-up for
//! every frame. So an idle worker first polls on for a while, then asks every device it owns to wake it, looks once more
//! (a frame that came between the last look and the asking would be lost otherwise), and waits on one epoll instance.
//!
//! How long it polls before sleeping follows what waiting was worth: a sleep shorter than the idle time says that
//! polling on would have been better and doubles it, up to the settings' `idle_us`; a longer one halves it. At a
//! thousand frames a second a worker therefore sleeps between frames and does not burn a fifth of its core.
//!
//! To ask an empty TAP costs a system call a round. So a worker watches such queues with a second epoll instance, which it
//! asks once in [`LOOK_ROUNDS`] rounds and before and after it sleeps; they doze while they are empty ([`Port::watched`]), and rounds
//! pass them by, so that any number of idle TAPs costs a busy worker next to nothing.
//!
//! Kick descriptors are shared with guests: they are watched edge-triggered and never read. The epoll instance is made
//! anew when the snapshot changed, so that no descriptor of a gone session stays in it. Owned by the worker's thread.

use crate::clock::Clock;
use crate::port::Port;
use crate::publish::{RxQueue, Snapshot};
use crate::worker::{LONG_ROUND_NS, Pipeline, Worker};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// When a worker sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Poll {
    /// Never: the lowest latency, one core each.
    Always,
    /// After being idle for at most `idle`.
    Adaptive {
        /// Longest time to poll in vain before sleeping.
        idle: Duration,
    },
}

/// Shortest time to poll in vain before sleeping: about what a sleep and a wake-up cost.
const SPIN_MIN: Duration = Duration::from_micros(5);
/// Longest sleep while an owned queue has nothing that could wake us.
const BLIND_SLEEP: Duration = Duration::from_millis(1);
/// Events taken from epoll at once. Which ones they are does not matter: all queues are polled afterwards.
const EVENTS: usize = 16;
/// Rounds between two looks at the queues that may doze. A look costs as much as one empty TAP, a round of full bursts about
/// two microseconds: so looking costs little of a busy worker's time, and a frame waits a few ten microseconds for it.
const LOOK_ROUNDS: u32 = 16;
/// For a look that does not wait.
const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Marks the worker's own wake-up in the epoll set.
const WAKE: u64 = u64::MAX;

/// Wakes one worker out of its sleep: a publication, a command, the end.
#[derive(Debug)]
pub struct Wake {
    fd: OwnedFd,
}

impl Wake {
    /// A new one.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn new() -> io::Result<Wake> {
        Ok(Wake { fd: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)? })
    }

    /// Wakes the worker, or keeps it from falling asleep next.
    pub fn wake(&self) {
        // A full counter is awake already; nothing else can fail on a descriptor of our own.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Takes back all wake-ups so far.
    pub fn drain(&self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.fd, &mut count);
    }
}

/// Readable while there is a wake-up that nobody drained.
impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs `worker` until `stop` is set; the caller wakes it then.
pub fn run<P: Pipeline>(mut worker: Worker<P>, poll: Poll, wake: &Wake, stop: &AtomicBool, clock: Clock) {
    let mut sleeper = Sleeper { epoll: None, generation: 0 };
    let index = worker.index().as_usize();
    let mut watch = Watch::default();
    let mut rounds = 0u32;
    let ledger = worker.ledger().clone();
    worker.time_queues(clock);
    let idle = match poll {
        Poll::Always => None,
        Poll::Adaptive { idle } => Some(idle.max(SPIN_MIN)),
    };
    let mut spin = idle.unwrap_or_default();
    let mut now = clock.now();
    let mut idle_since = now;
    while !stop.load(Ordering::Relaxed) {
        let taken = worker.step(now);
        let after = clock.now();
        ledger.rounds.add(1);
        // Also if it found nothing: a mere look at a ring takes long where its pages have to be found anew.
        if after.ns - now.ns > LONG_ROUND_NS {
            worker.note_long_round();
        }
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(LOOK_ROUNDS) {
            watch.look(&mut worker, index);
        }
        if taken > 0 {
            ledger.busy_rounds.add(1);
            ledger.busy_ns.add(after.ns - now.ns);
            idle_since = after;
        } else if let Some(idle) = idle
            && u128::from(after.ns - idle_since.ns) >= spin.as_nanos()
        {
            // A queue that is roused keeps the worker awake: its frames were here before it would have slept.
            if !watch.look(&mut worker, index) {
                sleeper.sleep(&mut worker, wake);
                ledger.sleeps.add(1);
                watch.look(&mut worker, index);
            }
            let woken = clock.now();
            let slept = Duration::from_nanos(woken.ns - after.ns);
            spin = if slept < idle { (spin * 2).min(idle) } else { (spin / 2).max(SPIN_MIN) };
            idle_since = woken;
            now = woken;
            continue;
        }
        now = after;
    }
}

/// Watches the queues of one worker that may doze.
#[derive(Default)]
struct Watch {
    epoll: Option<OwnedFd>,
    /// The snapshot that was last looked at.
    generation: Option<u64>,
    /// The queues in the epoll instance, each with the generation its port's object stands there since.
    queues: Vec<(RxQueue, u64)>,
}

impl Watch {
    /// Rouses the queues that have something; answers whether there are any.
    fn look<P: Pipeline>(&mut self, worker: &mut Worker<P>, index: usize) -> bool {
        let snapshot = worker.snapshot();
        // Who is watched anew was roused by that.
        let is_other = self.generation != Some(snapshot.generation) && self.follow(snapshot, index);
        let has_some = self.rouse(snapshot);
        if is_other || has_some {
            worker.rouse();
        }
        has_some
    }

    /// Rouses the queues of which epoll tells; answers whether it told of any.
    fn rouse<T>(&self, snapshot: &Snapshot<T>) -> bool {
        let Some(epoll) = &self.epoll else { return false };
        let mut has_some = false;
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
        // As many as there are: an event that the sleeping epoll instance has told is not told again there.
        for _ in 0..=self.queues.len() / EVENTS {
            let Ok((events, _)) = epoll::wait(epoll, &mut events, Some(&NO_TIME)) else { break };
            for event in &*events {
                let queue = self.queues.get(event.data.u64() as usize);
                if let Some((rx, port)) = queue.and_then(|&(rx, _)| Some((rx, port_of(snapshot, rx)?))) {
                    port.rouse(rx.queue);
                    has_some = true;
                }
            }
            if events.len() < EVENTS {
                break;
            }
        }
        has_some
    }

    /// Makes the epoll instance anew if the queues that may doze are others than before. Anything that a new one finds
    /// readable it tells, so no frame is missed in between. Answers whether they are others.
    fn follow<T>(&mut self, snapshot: &Snapshot<T>, worker: usize) -> bool {
        self.generation = Some(snapshot.generation);
        let since = |rx: RxQueue| snapshot.since.get(rx.port.as_usize()).copied().unwrap_or_default();
        let owned = snapshot.rx[worker].iter().filter(|&&rx| port_of(snapshot, rx).is_some_and(Port::may_doze));
        let queues: Vec<_> = owned.map(|&rx| (rx, since(rx))).collect();
        if queues == self.queues {
            return false;
        }
        self.queues = queues;
        self.epoll = if self.queues.is_empty() { None } else { epoll::create(epoll::CreateFlags::CLOEXEC).ok() };
        for (at, &(rx, _)) in self.queues.iter().enumerate() {
            let Some(port) = port_of(snapshot, rx) else { continue };
            let flags = EventFlags::IN | EventFlags::ET;
            let is_watched = match (&self.epoll, port.wake_fd(rx.queue)) {
                (Some(epoll), Some(fd)) => epoll::add(epoll, fd, EventData::new_u64(at as u64), flags).is_ok(),
                // No descriptors left, most likely: the queue is polled as any other.
                _ => false,
            };
            port.watched(rx.queue, is_watched);
        }
        true
    }
}

fn port_of<T>(snapshot: &Snapshot<T>, rx: RxQueue) -> Option<&dyn Port> {
    snapshot.place(rx.port)?.port.as_deref()
}

/// The epoll instance of one worker.
struct Sleeper {
    epoll: Option<OwnedFd>,
    /// The snapshot whose descriptors are in it.
    generation: u64,
}

impl Sleeper {
    /// Sleeps until a device or somebody else has something; comes back at once if there is something already.
    fn sleep<P: Pipeline>(&mut self, worker: &mut Worker<P>, wake: &Wake) {
        let index = worker.index().as_usize();
        let snapshot = worker.snapshot();
        if (self.epoll.is_none() || self.generation != snapshot.generation)
            && self.watch(snapshot, index, wake).is_err()
        {
            // No descriptors left, most likely: sleep blindly rather than burn the core or fail.
            self.epoll = None;
        }
        let mut is_pending = false;
        let mut is_blind = self.epoll.is_none();
        for rx in &snapshot.rx[index] {
            if let Some(port) = snapshot.place(rx.port).and_then(|place| place.port.as_ref()) {
                is_pending |= port.arm(rx.queue);
                is_blind |= port.is_blind(rx.queue);
            }
        }
        if !is_pending {
            let timeout = is_blind.then_some(BLIND_SLEEP);
            match &self.epoll {
                Some(epoll) => wait(epoll, timeout, wake),
                None => std::thread::sleep(BLIND_SLEEP),
            }
        }
        for rx in &snapshot.rx[index] {
            if let Some(port) = snapshot.place(rx.port).and_then(|place| place.port.as_ref()) {
                port.disarm(rx.queue);
            }
        }
    }

    /// Puts everything that can wake this worker into a fresh epoll instance.
    fn watch<T>(&mut self, snapshot: &Snapshot<T>, worker: usize, wake: &Wake) -> Result<(), Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake.fd, EventData::new_u64(WAKE), EventFlags::IN)?;
        for rx in &snapshot.rx[worker] {
            let port = snapshot.place(rx.port).and_then(|place| place.port.as_ref());
            let fds = port.map(|port| [port.wake_fd(rx.queue), port.tx_wake_fd(rx.queue)]);
            for fd in fds.into_iter().flatten().flatten() {
                match epoll::add(&epoll, fd, EventData::new_u64(0), EventFlags::IN | EventFlags::ET) {
                    // A guest may name one descriptor for several queues.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        self.epoll = Some(epoll);
        self.generation = snapshot.generation;
        Ok(())
    }
}

fn wait(epoll: &OwnedFd, timeout: Option<Duration>, wake: &Wake) {
    let timeout = timeout.map(|time| Timespec { tv_sec: 0, tv_nsec: i64::from(time.subsec_nanos()) });
    let mut events = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
    // An interrupted or failed wait is a wake-up: the queues are polled and the worker sleeps again.
    if let Ok((events, _)) = epoll::wait(epoll, &mut events, timeout.as_ref())
        && events.iter().any(|event| event.data.u64() == WAKE)
    {
        wake.drain();
    }
}

/// Spawns the thread of a worker, pinned to `cpu` if one is given.
///
/// # Errors
/// If the thread cannot be made or the CPU is not among those allowed.
pub fn spawn<P: Pipeline>(
    worker: Worker<P>,
    cpu: Option<usize>,
    poll: Poll,
    wake: Arc<Wake>,
    stop: Arc<AtomicBool>,
    clock: Clock,
) -> io::Result<std::thread::JoinHandle<()>> {
    let (report, pinned) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name(format!("worker-{}", worker.index())).spawn(move || {
        let outcome = cpu.map_or(Ok(()), crate::affinity::pin);
        let is_pinned = outcome.is_ok();
        let _ = report.send(outcome);
        if is_pinned {
            run(worker, poll, &wake, &stop, clock);
        }
    })?;
    match pinned.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the worker thread ended at its start")),
    }
}
