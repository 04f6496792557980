//! One SIGBUS handler for the process: a peer that cuts its memory file short loses its port, not our life.
//!
//! A memory file without seals can shrink under our mapping; the next access gets SIGBUS. For ranges registered here the
//! handler sets the range's `dead` flag, maps zeroes over the range and returns, so that the access goes on and reads
//! zeroes. The port's worker or session sees the flag and takes the port down. A fault anywhere else goes to the handler
//! that stood before ours, or kills the process as ever.
//!
//! The whole range is replaced, not only the page: the port is lost either way, and a peer that scattered its buffers could
//! otherwise make one burst fault 16,384 times, a third of a second in all, and use up the process's mappings.
//!
//! What makes it hard: a signal handler may use atomics and raw system calls and nothing else, no lock and no
//! allocation. So the ranges stand in a static table of atomics with [`RANGES_MAX`] entries. Whoever unregisters must
//! not free the flag under a handler that is about to set it: the handler pins the entry, looks again whether it is
//! still live, and unregistering waits for the pin, which lasts one system call.
//!
//! Any thread may register and unregister. **Drop the [`Registration`] first, then unmap**; from the drop on nobody may
//! touch the range, for a fault there is nobody's any more and kills the process. (The other way round the handler could
//! map a page over whatever was mapped there since.)

use crate::ids::PORTS_MAX;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering};

/// Ranges that can be registered at once: memory regions of all peers together. Eight a port is what vhost-user calls the
/// baseline and more than guests have; so a few peers that send long tables leave the others what they need.
pub const RANGES_MAX: usize = 8 * PORTS_MAX;
/// The largest huge page a faulting range may consist of.
const PAGE_MAX: usize = 1 << 30;

/// Why a range was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// There are [`RANGES_MAX`] ranges already.
    #[error("{RANGES_MAX} memory ranges are guarded already")]
    Full,
    /// Not a mapping: the base is not page-aligned, the length is 0, or the end wraps.
    #[error("{len} bytes at {base:#x} are no mapping")]
    NoMapping {
        /// The address given.
        base: usize,
        /// The length given, bytes.
        len: usize,
    },
    /// The signal handler could not be installed.
    #[error("cannot install the SIGBUS handler: {0}")]
    Install(io::Error),
}

/// A guarded range; until it is dropped.
#[must_use = "the range is guarded only as long as this lives"]
#[derive(Debug)]
pub struct Registration {
    index: usize,
    /// Keeps the flag alive that the table points at.
    dead: Arc<AtomicBool>,
}

/// One place of the table.
struct Range {
    /// [`FREE`], [`BUSY`] or [`LIVE`]. The other fields change only while it is `BUSY` and nobody has a pin.
    state: AtomicU8,
    /// Handlers that are looking at the fields.
    pins: AtomicU32,
    base: AtomicUsize,
    end: AtomicUsize,
    dead: AtomicPtr<AtomicBool>,
}

const FREE: u8 = 0;
const BUSY: u8 = 1;
const LIVE: u8 = 2;

static RANGES: [Range; RANGES_MAX] = [const {
    Range {
        state: AtomicU8::new(FREE),
        pins: AtomicU32::new(0),
        base: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        dead: AtomicPtr::new(ptr::null_mut()),
    }
}; RANGES_MAX];

/// Places from the start of the table that were ever used; the handler looks at no others.
static RANGES_USED: AtomicUsize = AtomicUsize::new(0);

/// The base page, bytes. Written before the handler is installed.
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// What stood before our handler.
static EARLIER: OnceLock<libc::sigaction> = OnceLock::new();

/// Guards `len` bytes mapped at `base`: a fault there sets `dead` instead of killing the process.
///
/// The range must be the caller's own mapping, readable and writable; pages of any size up to 1 GiB. `dead` is set with
/// release ordering and never cleared here. The first call installs the process's handler.
///
/// # Errors
/// [`RegisterError`].
pub fn register(base: usize, len: usize, dead: Arc<AtomicBool>) -> Result<Registration, RegisterError> {
    install()?;
    let is_mapping = len > 0 && base != 0 && base.is_multiple_of(PAGE.load(Ordering::Relaxed));
    let end = base.checked_add(len).filter(|_| is_mapping).ok_or(RegisterError::NoMapping { base, len })?;
    for (index, range) in RANGES.iter().enumerate() {
        if range.state.compare_exchange(FREE, BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            range.base.store(base, Ordering::Relaxed);
            range.end.store(end, Ordering::Relaxed);
            range.dead.store(Arc::as_ptr(&dead).cast_mut(), Ordering::Relaxed);
            RANGES_USED.fetch_max(index + 1, Ordering::SeqCst);
            // SeqCst, which includes release: a handler that sees LIVE sees the fields.
            range.state.store(LIVE, Ordering::SeqCst);
            return Ok(Registration { index, dead });
        }
    }
    Err(RegisterError::Full)
}

impl Registration {
    /// Whether a fault has hit the range, or the owner has set the flag.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let range = &RANGES[self.index];
        range.state.store(BUSY, Ordering::SeqCst);
        // Either the handler sees BUSY after its pin, or we see the pin. Both are SeqCst for that.
        while range.pins.load(Ordering::SeqCst) > 0 {
            std::hint::spin_loop();
        }
        range.state.store(FREE, Ordering::Release);
    }
}

/// Installs the handler once for the process.
fn install() -> Result<(), RegisterError> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        PAGE.store(rustix::param::page_size(), Ordering::Relaxed);
        // SAFETY: `sigaction` is plain data, for which all zeroes is a value: no handler, no flags, no signal masked.
        // Why unsafe: rustix has no sigaction, and the C structure has private padding that only zeroing fills.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle as *const () as usize;
        // ONSTACK: a thread may have run on an alternate stack. RESTART: no call of ours is cut short by this.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        let mut earlier = action;
        // SAFETY: both pointers are to structures that live through the calls. The earlier action is stored before the
        // handler that reads it can run. `handle` has the signature that SA_SIGINFO asks for and is async-signal-safe.
        // Why unsafe: installing a signal handler is unsafe by nature; rustix does not offer it.
        let has_failed = unsafe {
            libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut earlier) != 0
                || EARLIER.set(earlier).is_err()
                || libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) != 0
        };
        if has_failed { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)) } else { Ok(()) }
    });
    installed.map_err(|code| RegisterError::Install(io::Error::from_raw_os_error(code)))
}

/// The handler. Uses atomics, `mmap` by rustix's raw system call (which leaves `errno` alone), and, to die, `sigaction`
/// and `raise`: all async-signal-safe.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    // Why unsafe: it comes as a raw pointer, and the address is a member of a C union.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Only a fault has an address; a signal sent by `kill` has a sender there.
    if code > 0 && heal(address) {
        return;
    }
    pass_on(signal, code, info, context);
}

/// Maps zeroes over the registered range that the faulting page is in, if there is one.
fn heal(address: usize) -> bool {
    RANGES[..RANGES_USED.load(Ordering::SeqCst)].iter().any(|range| {
        let covers = || {
            range.state.load(Ordering::SeqCst) == LIVE
                && (range.base.load(Ordering::Relaxed)..range.end.load(Ordering::Relaxed)).contains(&address)
        };
        if !covers() {
            return false;
        }
        range.pins.fetch_add(1, Ordering::SeqCst);
        // Looked at again under the pin: from here on the fields stand still and the flag lives.
        let is_ours = covers();
        if is_ours {
            // First the flag, so that whoever meets a zero of ours can find out why.
            // SAFETY: the entry is LIVE and pinned, so its `Registration` has not finished dropping and still holds the
            // Arc that the pointer came from.
            // Why unsafe: a handler can own nothing; it borrows through the static table.
            unsafe { (*range.dead.load(Ordering::Relaxed)).store(true, Ordering::Release) };
        }
        let is_healed = is_ours && map_zeroes(range, address);
        range.pins.fetch_sub(1, Ordering::SeqCst);
        is_healed
    })
}

/// Puts anonymous zeroes in the place of the whole range, or at least of the page at `address`.
///
/// The whole may be refused where the system counts every mapping against its memory (`vm.overcommit_memory` 2). The
/// page may be a huge one, which cannot be replaced in part: the kernel refuses that (EINVAL) and changes nothing. So
/// sizes are tried upwards, and the one that fits is the page's.
fn map_zeroes(range: &Range, address: usize) -> bool {
    let (base, end) = (range.base.load(Ordering::Relaxed), range.end.load(Ordering::Relaxed));
    // The last page of a range may stick out beyond its length; it is the same mapping's page all the same. A huge page
    // never does: the kernel rounds such mappings up, and their owner registers whole pages.
    let page = PAGE.load(Ordering::Relaxed);
    let end = end.next_multiple_of(page);
    let replace = |start: usize, size: usize| {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the pages lie in a range that its owner mapped, registered as replaceable and has not unregistered
        // (the entry is pinned), so nothing else lives there.
        // Why unsafe: replacing a mapping under running code is what this module is for.
        unsafe { mmap_anonymous(start as *mut _, size, protection, flags) }.is_ok()
    };
    if replace(base, end - base) {
        return true;
    }
    let mut size = page;
    while size <= PAGE_MAX {
        let start = address & !(size - 1);
        if start >= base && start + size <= end && replace(start, size) {
            return true;
        }
        size *= 2;
    }
    false
}

/// Lets a signal that is not ours do what it would have done without us.
fn pass_on(signal: libc::c_int, code: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // `EARLIER` was set before this handler was installed; reading it takes no lock.
    match EARLIER.get() {
        // An ignored `kill` is ignored. An ignored fault would come back for ever; the kernel kills there, and so do we.
        Some(earlier) if earlier.sa_sigaction == libc::SIG_IGN && code <= 0 => return,
        Some(earlier) if ![libc::SIG_DFL, libc::SIG_IGN].contains(&earlier.sa_sigaction) => {
            call(earlier, signal, info, context);
        }
        _ => {
            // SAFETY: a zeroed action is SIG_DFL with no flags; the pointer lives through the call.
            // Why unsafe: a system call that rustix does not offer.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
        }
    }
    // After our return a fault happens again and meets the default. A signal that was sent does not, so it is sent again
    // if the default now stands: Rust's own stack-overflow handler, the usual earlier one, just sets that and returns.
    if code <= 0 {
        // SAFETY: the structure lives through the call; `raise` sends to ourselves.
        // Why unsafe: as above.
        unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, ptr::null(), &raw mut now) == 0 && now.sa_sigaction == libc::SIG_DFL {
                libc::raise(signal);
            }
        }
    }
}

/// Calls the handler that stood before ours.
fn call(earlier: &libc::sigaction, signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type Long = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    type Short = extern "C" fn(libc::c_int);
    let address = earlier.sa_sigaction;
    if earlier.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: neither SIG_DFL nor SIG_IGN, so it is a function, and SA_SIGINFO says of which kind.
        // Why unsafe: C keeps handlers of two kinds in one integer.
        let function = unsafe { std::mem::transmute::<usize, Long>(address) };
        function(signal, info, context);
    } else {
        // SAFETY: as above, without SA_SIGINFO.
        // Why unsafe: as above.
        let function = unsafe { std::mem::transmute::<usize, Short>(address) };
        function(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::mm::{mmap, munmap};
    use std::os::fd::OwnedFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// A shared mapping of a memory file of its own.
    struct Mapping {
        base: usize,
        len: usize,
        file: OwnedFd,
    }

    impl Mapping {
        fn new(pages: usize) -> Mapping {
            let len = pages * rustix::param::page_size();
            let file = memfd_create("sigbus-test", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, len as u64).unwrap();
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping at a place of the kernel's choice touches nobody's memory.
            let base = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, &file, 0) }.unwrap();
            Mapping { base: base as usize, len, file }
        }

        fn read(&self, offset: usize) -> u8 {
            assert!(offset < self.len);
            // SAFETY: inside the mapping, which lives as long as `self`. Beyond the file's end it faults: that is the test.
            unsafe { ((self.base + offset) as *const u8).read_volatile() }
        }

        fn write(&self, offset: usize, byte: u8) {
            assert!(offset < self.len);
            // SAFETY: as for `read`.
            unsafe { ((self.base + offset) as *mut u8).write_volatile(byte) };
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: our own mapping, and nothing refers to it any more.
            unsafe { munmap(self.base as *mut _, self.len) }.unwrap();
        }
    }

    #[test]
    fn memory_cut_short_reads_as_zero_and_marks_only_its_own_range_dead() {
        let (cut, whole) = (Mapping::new(4), Mapping::new(1));
        let flags = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let cut_guard = register(cut.base, cut.len, flags[0].clone()).unwrap();
        let whole_guard = register(whole.base, whole.len, flags[1].clone()).unwrap();
        let page = cut.len / 4;
        cut.write(0, 7);
        cut.write(3 * page, 7);
        whole.write(0, 8);
        ftruncate(&cut.file, page as u64).unwrap();
        assert_eq!(cut.read(0), 7, "what is left of the file stays");
        assert!(!cut_guard.is_dead());
        assert_eq!(cut.read(3 * page + 5), 0);
        assert!(cut_guard.is_dead() && flags[0].load(Ordering::Acquire));
        cut.write(page, 9);
        assert_eq!((cut.read(page), cut.read(page + 1), cut.read(0)), (9, 0, 0), "the whole range is zeroes now");
        assert_eq!(whole.read(0), 8);
        assert!(!whole_guard.is_dead());
        drop((cut_guard, whole_guard));
    }

    #[test]
    fn a_peer_that_scatters_its_pages_costs_one_fault_and_one_mapping() {
        let cut = Mapping::new(4000);
        let guard = register(cut.base, cut.len, Arc::default()).unwrap();
        ftruncate(&cut.file, 0).unwrap();
        let page = cut.len / 4000;
        assert!((0..2000).all(|at| cut.read(2 * at * page) == 0));
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let inside = maps.lines().filter(|line| {
            let start = usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
            (cut.base + 1..cut.base + cut.len).contains(&start)
        });
        assert_eq!(inside.count(), 0, "the range was split");
        assert!(guard.is_dead());
    }

    #[test]
    fn threads_that_fault_at_once_and_ranges_that_come_and_go_do_no_harm() {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    for _ in 0..200 {
                        let mapping = Arc::new(Mapping::new(3));
                        let dead = Arc::new(AtomicBool::new(false));
                        let guard = register(mapping.base, mapping.len, dead.clone()).unwrap();
                        ftruncate(&mapping.file, 0).unwrap();
                        let other = std::thread::spawn({
                            let mapping = mapping.clone();
                            move || mapping.read(0)
                        });
                        assert_eq!((mapping.read(0), mapping.read(mapping.len - 1)), (0, 0));
                        assert_eq!(other.join().unwrap(), 0);
                        assert!(dead.load(Ordering::Acquire));
                        drop(guard);
                        assert_eq!(Arc::strong_count(&dead), 1);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        let dead = Arc::new(AtomicBool::new(false));
        for (base, len) in [(0, 4096), (4096, 0), (4097, 10), (usize::MAX - 4095, 4097)] {
            assert!(
                matches!(register(base, len, dead.clone()), Err(RegisterError::NoMapping { .. })),
                "{base:#x} {len}"
            );
        }
    }

    /// Runs one of the deadly cases below in a process of its own and answers how that ended.
    fn signal_that_killed(case: &str) -> Option<i32> {
        let test = "sigbus::tests::a_fault_that_is_not_ours_kills_the_process_as_ever";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let status = child.args(["--exact", test]).env("SIGBUS_TEST_CASE", case).output().unwrap().status;
        status.signal()
    }

    #[test]
    fn a_fault_that_is_not_ours_kills_the_process_as_ever() {
        let Ok(case) = std::env::var("SIGBUS_TEST_CASE") else {
            for case in ["foreign", "unregistered", "sent"] {
                assert_eq!(signal_that_killed(case), Some(libc::SIGBUS), "{case}");
            }
            assert_eq!(signal_that_killed("ours"), None);
            return;
        };
        let (ours, foreign) = (Mapping::new(1), Mapping::new(1));
        let guard = register(ours.base, ours.len, Arc::default()).unwrap();
        ftruncate(&ours.file, 0).unwrap();
        ftruncate(&foreign.file, 0).unwrap();
        match case.as_str() {
            "foreign" => _ = foreign.read(0),
            "unregistered" => {
                drop(guard);
                ours.read(0);
            }
            "sent" => {
                let own = rustix::process::getpid();
                rustix::process::kill_process(own, rustix::process::Signal::BUS).unwrap();
            }
            _ => assert_eq!(ours.read(0), 0),
        }
    }
}
