//! A wire between hosts as bad as one likes: a relay between the ends of veths that loses, delays and reorders frames by chance.
//!
//! It is one thread with a packet socket on each end. A frame goes where its destination was heard, or everywhere. What is chosen by
//! chance is chosen by a seed, frame by frame in the order of their coming; what was lost is kept, so that a test can say of each
//! frame where it went. Ends must have no offloads: frames come whole and with their checksums.

use crate::chance::Chance;
use crate::namespace::Namespace;
use rustix::event::{PollFd, PollFlags, poll};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use switch::af_packet::{BURST_MAX, RawSocket};

/// Bytes of the longest frame.
const FRAME_MAX: usize = 2048;
/// Bytes of frames that may wait to be read from one end.
const END_BUFFER: usize = 16 << 20;
/// Longest wait for a frame before the relay looks whether it is to end.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// How bad a wire is.
#[derive(Clone, Copy, Debug)]
pub struct Mischief {
    /// Of a thousand frames so many are lost.
    pub lost: usize,
    /// Of a thousand so many are overtaken: they take [`Mischief::late`] longer.
    pub overtaken: usize,
    /// How much longer.
    pub late: Duration,
    /// How long every frame takes.
    pub delay: Duration,
    /// What chance begins from.
    pub seed: u64,
}

/// What became of frames.
#[derive(Default)]
struct Fates {
    lost: Mutex<Vec<Vec<u8>>>,
    overtaken: Mutex<usize>,
}

/// A relay under way; it ends when dropped.
pub struct Wire {
    is_over: Arc<AtomicBool>,
    fates: Arc<Fates>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Wire").field("overtaken", &self.overtaken()).finish_non_exhaustive()
    }
}

impl Wire {
    /// One between these interfaces of a namespace, which are up.
    ///
    /// # Panics
    /// If packet sockets are not allowed.
    pub fn new(space: &Namespace, ends: &[String], mischief: Mischief) -> Wire {
        let open = |name: &String| {
            let socket = RawSocket::open(name).expect("the interface is there");
            socket.ignore_outgoing().expect("Linux 4.20");
            socket.set_receive_buffer(END_BUFFER).expect("CAP_NET_ADMIN");
            socket
        };
        let sockets: Vec<RawSocket> = space.inside(|| ends.iter().map(open).collect());
        let (is_over, fates) = (Arc::<AtomicBool>::default(), Arc::<Fates>::default());
        let thread = {
            let (is_over, fates) = (is_over.clone(), fates.clone());
            std::thread::spawn(move || relay(&sockets, mischief, &is_over, &fates))
        };
        Wire { is_over, fates, thread: Some(thread) }
    }

    /// Lost frames of which `is_it` is true.
    pub fn lost(&self, is_it: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let lost = self.fates.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.iter().filter(|frame| is_it(frame)).cloned().collect()
    }

    /// How many frames were overtaken so far.
    pub fn overtaken(&self) -> usize {
        *self.fates.overtaken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            assert!(outcome.is_ok() || std::thread::panicking(), "the relay panicked");
        }
    }
}

/// A frame on its way: when it arrives, which of all it is, at which ends, and its bytes.
type OnItsWay = Reverse<(Instant, usize, Vec<usize>, Vec<u8>)>;

fn relay(sockets: &[RawSocket], mischief: Mischief, is_over: &AtomicBool, fates: &Fates) {
    let mut chance = Chance::new(mischief.seed);
    let mut happens = |of_thousand: usize| chance.below(1000) < of_thousand;
    let mut stations: HashMap<[u8; 6], usize> = HashMap::new();
    let mut on_their_way: BinaryHeap<OnItsWay> = BinaryHeap::new();
    let mut buffers = vec![[0; FRAME_MAX]; BURST_MAX];
    let mut count = 0;
    while !is_over.load(Ordering::Relaxed) {
        let next = on_their_way.peek().map(|Reverse((due, ..))| due.saturating_duration_since(Instant::now()));
        let wait = next.map_or(LOOK_AFTER, |next| next.min(LOOK_AFTER));
        let mut fds: Vec<PollFd<'_>> =
            sockets.iter().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)).collect();
        let wait = wait.try_into().expect("some milliseconds");
        poll(&mut fds, Some(&wait)).expect("packet sockets can be polled");
        for (end, socket) in sockets.iter().enumerate() {
            let mut sizes = [0; BURST_MAX];
            let mut slots: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            // An interface that was set down says so once.
            let came = socket.receive_burst(&mut slots, &mut sizes).unwrap_or_default();
            assert_eq!(socket.lost().unwrap_or_default(), 0, "the relay is too slow");
            for (frame, &size) in buffers.iter().zip(&sizes).take(came) {
                assert!(size <= FRAME_MAX, "a frame of {size} bytes: offloads are on");
                let frame = frame[..size].to_vec();
                let mac = |at: usize| <[u8; 6]>::try_from(&frame[at..at + 6]).expect("six bytes");
                stations.insert(mac(6), end);
                let others = || (0..sockets.len()).filter(|other| *other != end).collect();
                let to = stations.get(&mac(0)).map_or_else(others, |&to| vec![to]);
                if happens(mischief.lost) {
                    fates.lost.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
                    continue;
                }
                let mut due = Instant::now() + mischief.delay;
                if happens(mischief.overtaken) {
                    due += mischief.late;
                    *fates.overtaken.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                }
                count += 1;
                on_their_way.push(Reverse((due, count, to, frame)));
            }
        }
        while let Some(first) = on_their_way.peek_mut() {
            if first.0.0 > Instant::now() {
                break;
            }
            let Reverse((_, _, to, frame)) = std::collections::binary_heap::PeekMut::pop(first);
            for end in to {
                // One that is down, or gone with its host, takes none.
                let _ = sockets[end].send(&frame);
            }
        }
    }
}
