//! The memory that AF_XDP sockets of several ports have in common, so that a frame goes from one to another without a copy.
//!
//! One registration cannot be shared without sharing its mode and its rings, so the same memory is registered with each socket
//! apart: each keeps its own mode, and an address of one is an address of all. A pool has [`SEATS`] seats, one for a queue,
//! each with as many frames as its rings take both ways. What makes it hard is that frames change hands: a sender gives one of
//! its own for each that it takes over, so a seat always has as many, but not the same. Which ones, each frame's entry in a
//! table tells; so when a queue is closed, its seat is free with all that it had, wherever that lay.
//!
//! The kernel may still read a frame that was on its way out when the socket was closed, for as long as the device takes to
//! send it. So a seat rests for [`REST_NS`] before it is given to another.
//!
//! Pools are kept while a queue has a seat. Control side, but for [`Seat::note`]. Bounds: a pool pins the memory of all its
//! seats, [`SEATS`] x [`SEAT_FRAMES`] frames, 64 MiB of small frames or 128 of large ones.

use super::RING_LEN;
use super::frames::{Frame, Layout};
use crate::clock::Clock;
use crate::pool::Area;
use crate::sync::{AtomicU8, Ordering};
use crate::worker::Now;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Queues that can have one pool in common.
const SEATS: usize = 8;
/// Frames of a seat: as many each way as a ring has entries.
const SEAT_FRAMES: u32 = 2 * RING_LEN;
/// How long a seat that was left is given to nobody.
const REST_NS: u64 = 1_000_000_000;

/// All pools in use.
static POOLS: Mutex<Vec<Weak<Pool>>> = Mutex::new(Vec::new());

struct Pool {
    area: Arc<Area>,
    layout: Layout,
    /// By frame: the seat that has it.
    holders: Box<[AtomicU8]>,
    seats: Mutex<[State; SEATS]>,
    clock: Clock,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Taken,
    Left(Now),
}

impl Pool {
    fn new(frame_size: u32) -> io::Result<Pool> {
        let layout = Layout { frame_size, count: SEATS as u32 * SEAT_FRAMES };
        let area = Arc::new(Area::huge(layout.bytes())?);
        let holders = (0..layout.count).map(|frame| AtomicU8::new((frame / SEAT_FRAMES) as u8)).collect();
        Ok(Pool { area, layout, holders, seats: Mutex::new([State::Free; SEATS]), clock: Clock::default() })
    }

    /// Takes as many seats, or none.
    fn take(self: &Arc<Pool>, count: usize, now: Now) -> Option<Vec<Seat>> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = |state: &State| match state {
            State::Free => true,
            State::Left(since) => now.ns.saturating_sub(since.ns) >= REST_NS,
            State::Taken => false,
        };
        let free: Vec<usize> = (0..SEATS).filter(|&seat| is_free(&seats[seat])).take(count).collect();
        (free.len() == count).then(|| {
            let take = |seat| {
                seats[seat] = State::Taken;
                Seat { pool: self.clone(), number: seat as u8 }
            };
            free.into_iter().map(take).collect()
        })
    }
}

/// The place of one queue in a pool. Its frames are its own until it is dropped, which is after the socket is closed.
pub(super) struct Seat {
    pool: Arc<Pool>,
    number: u8,
}

impl Seat {
    /// Seats for so many queues with frames of this size: in one pool, if they are not too many for any.
    ///
    /// # Errors
    /// The system's, if it has no memory.
    pub(super) fn take(count: usize, frame_size: u32) -> io::Result<Vec<Seat>> {
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        let mut taken = Vec::new();
        while taken.len() < count {
            let wanted = (count - taken.len()).min(SEATS);
            let known = pools.iter().filter_map(Weak::upgrade).filter(|pool| pool.layout.frame_size == frame_size);
            let seats = match known.filter_map(|pool| pool.take(wanted, pool.clock.now())).next() {
                Some(seats) => seats,
                None => {
                    let pool = Arc::new(Pool::new(frame_size)?);
                    pools.push(Arc::downgrade(&pool));
                    pool.take(wanted, pool.clock.now()).expect("a new pool is empty")
                }
            };
            taken.extend(seats);
        }
        Ok(taken)
    }

    /// The memory, for registration.
    pub(super) fn area(&self) -> &Arc<Area> {
        &self.pool.area
    }

    /// How it is cut into frames.
    pub(super) fn layout(&self) -> Layout {
        self.pool.layout
    }

    /// Its frames: those to receive by, and those to send by. To be asked once in the seat's life, by whoever took it.
    pub(super) fn frames(&self) -> [Vec<Frame>; 2] {
        let mut all = Frame::numbered(0..self.pool.layout.count);
        let mut number = 0;
        all.retain(|_| {
            number += 1;
            self.pool.holders[number - 1].load(Ordering::Relaxed) == self.number
        });
        assert!(all.len() == SEAT_FRAMES as usize, "each seat has as many frames as ever");
        let sending = all.split_off(RING_LEN as usize);
        [all, sending]
    }

    /// Notes that this seat's queue gave `given` to that of `other`, of the same pool, for `taken`.
    #[inline]
    pub(super) fn note(&self, other: &Seat, taken: &Frame, given: &Frame) {
        // Relaxed: it is read when both queues have ended.
        self.pool.holders[taken.number()].store(self.number, Ordering::Relaxed);
        self.pool.holders[given.number()].store(other.number, Ordering::Relaxed);
    }

    /// Whether two queues can exchange frames.
    #[inline]
    pub(super) fn is_beside(&self, other: &Seat) -> bool {
        Arc::ptr_eq(&self.pool, &other.pool)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.pool.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats[usize::from(self.number)] = State::Left(self.pool.clock.now());
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;

    /// A size that no device of other tests has.
    const ODD_SIZE: u32 = 512;

    #[test]
    fn seats_are_taken_beside_each_other_and_a_seat_that_was_left_rests() {
        let one = Seat::take(3, ODD_SIZE).unwrap();
        let other = Seat::take(5, ODD_SIZE).unwrap();
        assert!(one.iter().chain(&other).all(|seat| seat.is_beside(&one[0])));
        let apart = Seat::take(1, ODD_SIZE).unwrap();
        assert!(!apart[0].is_beside(&one[0]), "more than there are seats");
        assert!(!Seat::take(1, 2 * ODD_SIZE).unwrap()[0].is_beside(&apart[0]), "frames of another size");
        let pool = one[0].pool.clone();
        drop(one);
        let now = pool.clock.now();
        let later = Now { ns: now.ns + REST_NS };
        assert!(pool.take(1, now).is_none(), "given to another at once");
        assert!(pool.take(4, later).is_none(), "more than were left");
        let again = pool.take(3, later).unwrap();
        assert_eq!(again.iter().map(|seat| seat.number).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(Seat::take(20, ODD_SIZE).unwrap().len(), 20, "over several pools");
    }

    #[test]
    fn a_seat_has_as_many_frames_as_ever_and_those_it_was_given() {
        let pool = Arc::new(Pool::new(ODD_SIZE).unwrap());
        let seats = pool.take(2, Now::default()).unwrap();
        let [mut first, _] = seats[0].frames();
        let [mut second, _] = seats[1].frames();
        let (mine, theirs) = (first.pop().unwrap(), second.pop().unwrap());
        let numbers = [mine.number(), theirs.number()];
        seats[0].note(&seats[1], &theirs, &mine);
        drop(seats);
        let seats = pool.take(2, Now { ns: pool.clock.now().ns + REST_NS }).unwrap();
        for (seat, number, gone) in [(&seats[0], numbers[1], numbers[0]), (&seats[1], numbers[0], numbers[1])] {
            let all: Vec<usize> = seat.frames().iter().flatten().map(Frame::number).collect();
            assert_eq!(all.len(), SEAT_FRAMES as usize);
            assert!(all.contains(&number) && !all.contains(&gone));
        }
    }
}
