//! How a guest is interrupted: the eventfds that its frontend gave for that, and a way to signal them that holds no worker.
//!
//! The eventfds are shared with a peer that can do anything to them: clear O_NONBLOCK and fill the counter to its brim, after which
//! a plain write blocks for ever, or have a million wait for one, all of whom the kernel tells in the signaller's time. So a
//! [`Call`] signals through Linux AIO, which never blocks ([`crate::socket`]), and how long that takes is noted ([`Pace`]), for a port
//! and not for an eventfd, of which a peer may give one after the other. Where the kernel has no AIO, or signals of a port's peer take
//! long, a session has a helper thread, which takes its time in its peer's stead. A port found slow has another chance later: the
//! host may have been at fault.
//!
//! Owned by the session, which makes calls; workers signal by them. Bounds: [`NUMBERS`] calls a session, one helper a session, and
//! [`HELPERS_MAX`] a port, for one may be left behind, blocked, where the kernel has no AIO for it either.

mod pace;

pub use pace::Pace;

use crate::socket::Aio;
use arc_swap::ArcSwapOption;
use pace::SLOW_NS;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;
use std::time::Duration;
use switch::clock::thread_ns;

/// Calls that a session can have at once: each has a number below.
pub const NUMBERS: usize = u64::BITS as usize;

/// All calls of one session.
pub struct Calls {
    pace: Arc<Pace>,
    lines: Arc<Lines>,
    helper: OnceLock<Helper>,
    /// A thread found no AIO to signal with: if there is a helper it is the one to signal.
    lacks_aio: AtomicBool,
    /// Held by who starts the helper.
    starting: Mutex<()>,
    /// Signals since the system refused a thread; 0: it has not.
    failures: AtomicU32,
}

/// What a session's helper works on.
struct Lines {
    fds: [ArcSwapOption<OwnedFd>; NUMBERS],
    /// Bit n: number n is to be signalled.
    due: AtomicU64,
    stop: AtomicBool,
}

/// The eventfd by which a guest is interrupted, and a way to signal it that cannot block.
pub struct Call {
    calls: Arc<Calls>,
    fd: Arc<OwnedFd>,
    number: u8,
}

impl Calls {
    /// Of a session at a port of which this is known.
    pub fn new(pace: Arc<Pace>) -> Arc<Calls> {
        pace.review();
        let fds = std::array::from_fn(|_| ArcSwapOption::empty());
        Arc::new(Calls {
            pace,
            lines: Arc::new(Lines { fds, due: AtomicU64::new(0), stop: AtomicBool::new(false) }),
            helper: OnceLock::new(),
            lacks_aio: AtomicBool::new(false),
            starting: Mutex::new(()),
            failures: AtomicU32::new(0),
        })
    }

    /// Takes over a file descriptor that [`is_eventfd`](crate::socket::is_eventfd), in place of the one before of that number.
    pub fn call(self: &Arc<Calls>, number: usize, fd: OwnedFd) -> Arc<Call> {
        let fd = Arc::new(fd);
        self.lines.fds[number].store(Some(fd.clone()));
        if !Aio::is_available() {
            self.lacks_aio.store(true, Ordering::Relaxed);
        }
        if self.pace.is_slow() || self.lacks_aio.load(Ordering::Relaxed) {
            // Here, on the session's thread, so that no worker has to.
            self.start_helper();
        }
        Arc::new(Call { calls: self.clone(), fd, number: number as u8 })
    }

    /// There is no call of that number any more.
    pub fn forget(&self, number: usize) {
        self.lines.fds[number].store(None);
    }

    /// Whether signals are the helper's business.
    #[inline]
    fn is_left_to_helper(&self) -> bool {
        self.pace.is_slow() || (self.lacks_aio.load(Ordering::Relaxed) && self.helper.get().is_some())
    }

    /// Has the helper signal a number; false if there may be none to do it ([`Self::start_helper`]).
    fn leave_to_helper(&self, number: u8) -> bool {
        self.lines.due.fetch_or(1 << number, Ordering::Relaxed);
        // Either we see the helper that another thread has just started, or it sees what is due.
        fence(Ordering::SeqCst);
        match self.helper.get() {
            Some(helper) => helper.thread.unpark(),
            None => return self.start_helper(),
        }
        true
    }

    /// Starts the helper if there is none; false if the system refuses, which is asked now and then, or may refuse another thread that
    /// asks just now. If it would be one too many of this port, its peers blocked those before, and wait for them.
    #[cold]
    fn start_helper(&self) -> bool {
        let Ok(_starting) = self.starting.try_lock() else { return false };
        if self.helper.get().is_some() {
            return true;
        }
        let failures = self.failures.load(Ordering::Relaxed);
        if !failures.is_multiple_of(RETRY_FAILURES) {
            self.failures.store(failures.wrapping_add(1), Ordering::Relaxed);
            return false;
        }
        let Some(seat) = Seat::take(&self.pace) else { return true };
        let Ok(helper) = Helper::start(seat, self.lines.clone()) else {
            self.failures.store(failures.wrapping_add(1), Ordering::Relaxed);
            return false;
        };
        let helper = self.helper.get_or_init(|| helper);
        fence(Ordering::SeqCst);
        helper.thread.unpark();
        true
    }

    /// As if signals to this peer had been found to take long.
    #[cfg(test)]
    pub(crate) fn be_slow(&self) {
        (0..2).for_each(|_| self.pace.note(pace::FAR_TOO_SLOW_NS));
    }

    /// Whether there is a helper.
    #[cfg(test)]
    pub(crate) fn has_helper(&self) -> bool {
        self.helper.get().is_some()
    }
}

impl Call {
    /// Interrupts the guest. Costs about a write, never blocks, and may be called from any thread.
    #[inline]
    pub fn signal(&self) {
        if !self.leave_to_helper() && !Aio::with_own(|aio| self.submit(aio)).unwrap_or(false) {
            self.signal_slowly();
        }
    }

    /// The same for a session's thread: by the context that all of them share, under a lock that is held for a write.
    pub fn signal_from_control(&self) {
        if !self.leave_to_helper() && !Aio::with_control(|aio| self.submit(aio)).unwrap_or(false) {
            self.signal_slowly();
        }
    }

    /// Has the helper signal, if that is its business. If there is none to be had it goes on as it was: slowly, but the guest is
    /// interrupted.
    #[inline]
    fn leave_to_helper(&self) -> bool {
        self.calls.is_left_to_helper() && self.calls.leave_to_helper(self.number)
    }

    fn submit(&self, aio: &mut Aio) -> bool {
        self.calls.pace.timed(|| aio.submit(self.fd.as_fd()))
    }

    /// By the helper: the kernel refuses this thread a context of its own.
    #[cold]
    fn signal_slowly(&self) {
        self.calls.lacks_aio.store(true, Ordering::Relaxed);
        self.calls.leave_to_helper(self.number);
    }
}

/// A thread that signals the eventfds of one session and may take its time for it, away from the CPUs of workers. It ends with its
/// session's calls. Where the kernel has no AIO for it either it may be blocked then, and stays behind until the peer reads its own
/// eventfd.
struct Helper {
    thread: Thread,
    lines: Arc<Lines>,
}

/// Helper threads of a port at once: the present session's, and some left behind. A peer that blocks one after another ends with
/// nobody to interrupt it.
const HELPERS_MAX: usize = 8;
/// Signals after which a thread that the system refused is asked for again.
const RETRY_FAILURES: u32 = 64;
/// After a slow signal a helper rests so many times as long as that took of its CPU, which is one of the control side's.
const REST_TIMES: u64 = 10;
/// But no longer, ns. Meanwhile signals to an eventfd become one, and none is lost.
const REST_NS_MAX: u64 = 1_000_000_000;

/// How long a helper rests after a signal that took so much of its time.
fn rest_after(took_ns: u64) -> Option<Duration> {
    (took_ns > SLOW_NS).then(|| Duration::from_nanos(took_ns.saturating_mul(REST_TIMES).min(REST_NS_MAX)))
}

/// One of a port's [`HELPERS_MAX`] places; free again when dropped.
struct Seat(Arc<Pace>);

impl Seat {
    fn take(pace: &Arc<Pace>) -> Option<Seat> {
        let seat = Seat(pace.clone());
        (pace.helpers.fetch_add(1, Ordering::Relaxed) < HELPERS_MAX).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.helpers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Helper {
    fn start(seat: Seat, lines: Arc<Lines>) -> std::io::Result<Helper> {
        let ours = lines.clone();
        let handle = std::thread::Builder::new().name("vhost-call".into()).spawn(move || {
            // First of all: a worker may have started it, which it must not disturb.
            let _ = switch::affinity::as_the_first();
            ours.signal_what_is_due(&seat.0);
        })?;
        Ok(Helper { thread: handle.thread().clone(), lines })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.lines.stop.store(true, Ordering::Release);
        // One that stays behind keeps no eventfd but the one that it is blocked in.
        self.lines.fds.iter().for_each(|fd| fd.store(None));
        self.thread.unpark();
    }
}

impl Lines {
    /// The life of a helper.
    fn signal_what_is_due(&self, pace: &Pace) {
        let mut aio = Aio::for_helper().ok();
        loop {
            pace.review();
            let mut due = self.due.swap(0, Ordering::AcqRel);
            while due != 0 && !self.stop.load(Ordering::Acquire) {
                let number = due.trailing_zeros() as usize;
                due &= due - 1;
                let Some(fd) = self.fds[number].load_full() else { continue };
                let begun_ns = thread_ns();
                if !aio.as_mut().is_some_and(|aio| aio.submit(fd.as_fd())) {
                    let _ = rustix::io::write(&fd, &1u64.to_ne_bytes());
                }
                drop(fd);
                if let Some(rest) = rest_after(thread_ns().saturating_sub(begun_ns)) {
                    std::thread::sleep(rest);
                }
            }
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::time::Instant;

    fn blocking_eventfd(count: u64) -> OwnedFd {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        if count > 0 {
            rustix::io::write(&fd, &count.to_ne_bytes()).unwrap();
        }
        fd
    }

    fn count_of(fd: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        rustix::io::read(fd, &mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn call_to(calls: &Arc<Calls>, fd: &OwnedFd) -> Arc<Call> {
        calls.call(0, fd.try_clone().unwrap())
    }

    /// Has the caller signal, and no helper, even where what else goes on made signals take long.
    fn be_direct(call: &Call) {
        call.calls.pace.review_at(u64::MAX);
    }

    /// Calls that a helper signals.
    fn by_helper() -> Arc<Calls> {
        let calls = Calls::new(Arc::default());
        calls.lacks_aio.store(true, Ordering::Relaxed);
        assert!(calls.start_helper() && calls.has_helper());
        calls
    }

    #[test]
    fn a_call_adds_to_the_eventfd_for_as_long_as_you_like() {
        let fd = blocking_eventfd(0);
        let calls = Calls::new(Arc::default());
        let call = call_to(&calls, &fd);
        assert!(!calls.has_helper(), "this kernel has AIO");
        for _ in 0..1000 {
            be_direct(&call);
            call.signal();
        }
        assert_eq!(count_of(&fd), 1000);
    }

    #[test]
    fn calls_of_a_session_thread_take_no_context_for_that_thread() {
        let fd = blocking_eventfd(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let call = call_to(&Calls::new(Arc::default()), &fd);
                for _ in 0..1000 {
                    be_direct(&call);
                    call.signal_from_control();
                }
                assert!(!Aio::has_own());
            });
        });
        assert_eq!(count_of(&fd), 1000);
    }

    #[test]
    fn a_port_that_is_tried_again_is_signalled_at_once_though_there_is_a_helper() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let calls = Calls::new(Arc::default());
        let call = call_to(&calls, &fd);
        calls.be_slow();
        assert!(calls.start_helper());
        calls.pace.review_at(u64::MAX);
        call.signal();
        assert_eq!(count_of(&fd), 1);
    }

    #[test]
    fn a_signal_is_not_left_to_a_helper_that_another_thread_may_fail_to_start() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let calls = Calls::new(Arc::default());
        let call = call_to(&calls, &fd);
        calls.be_slow();
        let _starting = calls.starting.lock().unwrap();
        call.signal();
        assert_eq!(count_of(&fd), 1);
    }

    #[test]
    fn a_helper_that_stays_behind_keeps_no_eventfds() {
        let calls = by_helper();
        let call = calls.call(1, blocking_eventfd(0));
        let (lines, fd) = (calls.lines.clone(), Arc::downgrade(&call.fd));
        drop((calls, call));
        assert!(fd.upgrade().is_none() && lines.stop.load(Ordering::Relaxed));
    }

    #[test]
    fn a_helper_rests_after_a_slow_signal_ten_times_as_long_as_that_took_but_no_more_than_a_second() {
        assert_eq!(rest_after(SLOW_NS), None);
        assert_eq!(rest_after(1_000_000), Some(Duration::from_millis(10)));
        assert_eq!(rest_after(100_000_001), Some(Duration::from_secs(1)));
        assert_eq!(rest_after(u64::MAX), Some(Duration::from_secs(1)));
    }

    #[test]
    fn what_one_eventfd_showed_is_known_of_all_of_that_port_in_later_sessions_too() {
        let pace = Arc::<Pace>::default();
        let fds = [blocking_eventfd(0), blocking_eventfd(0)];
        let calls = Calls::new(pace.clone());
        let [one, other] = [0, 1].map(|at: usize| calls.call(at, fds[at].try_clone().unwrap()));
        // As a worker's thread finds out.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                switch::affinity::pin(*switch::affinity::allowed_cpus().unwrap().last().unwrap()).unwrap();
                (0..2).for_each(|_| pace.note(pace::FAR_TOO_SLOW_NS));
                one.signal();
            });
        });
        assert!(calls.has_helper());
        assert_eq!(count_of(&fds[0]), 1, "waits for it");
        other.signal_from_control();
        assert_eq!(count_of(&fds[1]), 1);
        let of_thread = |id: &str| {
            // It may have ended meanwhile.
            let status = std::fs::read_to_string(format!("/proc/self/task/{id}/status")).ok()?;
            let line = |name: &str| Some(status.lines().find(|line| line.starts_with(name))?.to_owned());
            Some((line("Name:")?, line("Cpus_allowed_list:")?))
        };
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let ids = threads.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let first = of_thread(&std::process::id().to_string()).unwrap().1;
        let helpers: Vec<String> =
            ids.filter_map(|id| of_thread(&id)).filter(|of| of.0.ends_with("vhost-call")).map(|of| of.1).collect();
        assert!(!helpers.is_empty() && helpers.iter().all(|cpus| *cpus == first), "{helpers:?}, {first}");

        let next = Calls::new(pace);
        let _call = next.call(0, blocking_eventfd(0));
        assert!(next.has_helper(), "before a worker signals");
    }

    #[test]
    fn a_saturated_blocking_eventfd_does_not_block_a_call() {
        let fd = blocking_eventfd(u64::MAX - 1);
        for calls in [Calls::new(Arc::default()), by_helper()] {
            let call = call_to(&calls, &fd);
            let start = Instant::now();
            for _ in 0..1000 {
                call.signal();
                call.signal_from_control();
            }
            assert!(start.elapsed() < Duration::from_secs(20));
        }
        // Frees the helper that is blocked in its write.
        count_of(&fd);
    }

    #[test]
    fn a_ports_helpers_are_bounded_and_their_places_free_again() {
        let pace = Arc::<Pace>::default();
        let seats: Vec<Seat> = (0..HELPERS_MAX).map(|_| Seat::take(&pace).unwrap()).collect();
        assert!(Seat::take(&pace).is_none());
        let fd = blocking_eventfd(0);
        let calls = Calls::new(pace.clone());
        let call = call_to(&calls, &fd);
        calls.be_slow();
        call.signal();
        assert!(!calls.has_helper(), "its peers have enough of them waiting");
        let other = Calls::new(Arc::default());
        other.be_slow();
        call_to(&other, &fd).signal();
        assert!(other.has_helper(), "which is no other port's business");
        assert_eq!(count_of(&fd), 1);
        drop(seats);
        call.signal();
        assert!(calls.has_helper(), "it is tried again");
        assert_eq!(count_of(&fd), 1);
    }

    #[test]
    fn a_helper_signals_every_number_and_ends_with_its_session() {
        let pace = Arc::<Pace>::default();
        let calls = Calls::new(pace.clone());
        assert!(calls.start_helper());
        let fds: Vec<OwnedFd> = (0..NUMBERS).map(|_| blocking_eventfd(0)).collect();
        let all: Vec<_> = fds.iter().enumerate().map(|(at, fd)| calls.call(at, fd.try_clone().unwrap())).collect();
        all.iter().for_each(|call| call.signal());
        fds.iter().for_each(|fd| assert!(count_of(fd) >= 1));
        drop((calls, all));
        let deadline = Instant::now() + Duration::from_secs(20);
        while pace.helpers.load(Ordering::Relaxed) > 0 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
