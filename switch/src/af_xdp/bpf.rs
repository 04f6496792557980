//! The few commands of bpf(2) that an XDP program needs: maps, loading, attaching by a link and being replaced there, and running it
//! for a test.
//!
//! What makes it harder than it looks: the kernel reads a union whose size grew over the years, in which addresses are
//! numbers. So each command lays out its own words here, and nothing else in the house speaks to bpf(2). A link is a
//! descriptor: the program leaves the interface when it is closed, also by the end of a process that was killed.
//! Control side only.

use super::owned;
use super::program::Instruction;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::io;

// linux/bpf.h
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// The program reads frames of several pieces (`BPF_F_XDP_HAS_FRAGS`).
const HAS_FRAGS: u32 = 1 << 5;
// linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Words of `union bpf_attr` that we may use; the kernel takes a union of any size whose unknown end is zero.
const WORDS: usize = 32;

/// `union bpf_attr`: each command's own fields by their place, in words of 32 bits.
#[repr(C, align(8))]
struct Attributes([u32; WORDS]);

impl Attributes {
    fn new(words: &[(usize, u32)]) -> Attributes {
        let mut attributes = Attributes([0; WORDS]);
        for &(at, word) in words {
            attributes.0[at] = word;
        }
        attributes
    }

    /// Writes an address, which takes two words from an even one on.
    fn address(mut self, at: usize, address: *const u8) -> Attributes {
        let bytes = (address as u64).to_ne_bytes();
        let word = |from: usize| u32::from_ne_bytes([bytes[from], bytes[from + 1], bytes[from + 2], bytes[from + 3]]);
        (self.0[at], self.0[at + 1]) = (word(0), word(4));
        self
    }
}

/// # Safety
/// What the attributes point at must be there until the call returns, as long as the command reads or writes it.
unsafe fn bpf(command: libc::c_int, attributes: &mut Attributes) -> io::Result<libc::c_int> {
    // SAFETY: the union is whole and its size is told; what it points at is the caller's promise.
    // Why unsafe: neither libc nor rustix has this call.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.0.as_mut_ptr(), size_of::<Attributes>() as libc::c_uint)
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as libc::c_int) }
}

fn make_map(kind: u32, key_size: usize, value_size: usize, entries: usize) -> io::Result<OwnedFd> {
    let sizes = [(0, kind), (1, key_size as u32), (2, value_size as u32), (3, entries as u32)];
    // SAFETY: the command reads numbers only.
    // Why unsafe: see `bpf`.
    owned(unsafe { bpf(MAP_CREATE, &mut Attributes::new(&sizes))? })
}

fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let attributes = Attributes::new(&[(0, map.as_raw_fd() as u32)]);
    // SAFETY: the kernel reads as many bytes of key and value as the map was made for, which are those of the slices: both
    // callers are in this file and pass arrays of the sizes they made their map with.
    // Why unsafe: see `bpf`.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attributes.address(2, key.as_ptr()).address(4, value.as_ptr()))? };
    Ok(())
}

/// A map from rx queues to sockets (`BPF_MAP_TYPE_XSKMAP`).
pub(super) struct SocketMap(OwnedFd);

impl SocketMap {
    /// An empty map for queues `0..queues`. Needs CAP_BPF.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new(queues: usize) -> io::Result<SocketMap> {
        make_map(MAP_TYPE_XSKMAP, 4, 4, queues).map(SocketMap)
    }

    /// Frames of the queue go to this socket from now on.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn set(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        update(self.0.as_fd(), &queue.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes())
    }

    /// Its number, for a program.
    pub(super) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// A set of keys of [`super::program::KEY_SIZE`] bytes.
pub(super) struct KeySet(OwnedFd);

impl KeySet {
    /// The set of these keys. Needs CAP_BPF.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new(keys: &[[u8; super::program::KEY_SIZE]]) -> io::Result<KeySet> {
        let map = make_map(MAP_TYPE_HASH, super::program::KEY_SIZE, 4, keys.len().max(1))?;
        for key in keys {
            update(map.as_fd(), key, &1u32.to_ne_bytes())?;
        }
        Ok(KeySet(map))
    }

    /// Its number, for a program.
    pub(super) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// A number that a program counts up.
pub(super) struct CountMap(OwnedFd);

impl CountMap {
    /// One of 64 bits, 0. Needs CAP_BPF.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new() -> io::Result<CountMap> {
        make_map(MAP_TYPE_ARRAY, 4, size_of::<u64>(), 1).map(CountMap)
    }

    /// How far it is.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn get(&self) -> io::Result<u64> {
        let (key, mut count) = ([0u8; 4], [0u8; size_of::<u64>()]);
        let attributes = Attributes::new(&[(0, self.0.as_raw_fd() as u32)]).address(2, key.as_ptr());
        let mut attributes = attributes.address(4, count.as_mut_ptr());
        // SAFETY: the kernel reads as many bytes of the key and writes as many of the number as the map was made for, in `new`.
        // Why unsafe: see `bpf`.
        unsafe { bpf(MAP_LOOKUP_ELEM, &mut attributes)? };
        Ok(u64::from_ne_bytes(count))
    }

    /// Its number, for a program.
    pub(super) fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// A loaded XDP program.
pub(super) struct Program(OwnedFd);

impl Program {
    /// Loads it. Needs CAP_BPF and CAP_NET_ADMIN.
    ///
    /// # Errors
    /// The system's; `EINVAL` or `EACCES` if it does not know or does not believe the program.
    pub(super) fn load(instructions: &[Instruction]) -> io::Result<Program> {
        let license = c"Apache-2.0";
        let name = *b"qvs\0";
        let attributes = Attributes::new(&[
            (0, PROG_TYPE_XDP),
            (1, instructions.len() as u32),
            (11, HAS_FRAGS),
            (12, u32::from_ne_bytes(name)),
            (17, ATTACH_XDP),
        ]);
        let mut attributes =
            attributes.address(2, instructions.as_ptr().cast()).address(4, license.as_ptr().cast::<u8>());
        // SAFETY: the kernel reads so many instructions, which are 8 bytes each as its own (`Instruction` is a `u64`), and the
        // license up to its zero. No log is asked for.
        // Why unsafe: see `bpf`.
        owned(unsafe { bpf(PROG_LOAD, &mut attributes)? }).map(Program)
    }

    /// Attaches it to the interface with this index, by its driver or, if that knows no XDP, by the kernel's own stack.
    ///
    /// # Errors
    /// The system's; `EBUSY` if another program is attached.
    pub(super) fn attach(&self, index: u32) -> io::Result<Link> {
        self.attach_as(index, XDP_FLAGS_DRV_MODE).or_else(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EINVAL) => self.attach_generic(index),
            _ => Err(error),
        })
    }

    /// Attaches it to the kernel's own stack, which runs it behind any driver.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn attach_generic(&self, index: u32) -> io::Result<Link> {
        self.attach_as(index, XDP_FLAGS_SKB_MODE)
    }

    fn attach_as(&self, index: u32, mode: u32) -> io::Result<Link> {
        let words = [(0, self.0.as_raw_fd() as u32), (1, index), (2, ATTACH_XDP), (3, mode)];
        // SAFETY: the command reads numbers only.
        // Why unsafe: see `bpf`.
        let link = owned(unsafe { bpf(LINK_CREATE, &mut Attributes::new(&words))? })?;
        Ok(Link { link, is_native: mode == XDP_FLAGS_DRV_MODE })
    }

    /// Runs it over a frame as if queue 0 had received it; answers its verdict and the frame as it left it.
    #[cfg(test)]
    pub(super) fn run(&self, frame: &[u8]) -> io::Result<(u32, Vec<u8>)> {
        const PROG_TEST_RUN: libc::c_int = 10;
        let mut out = vec![0u8; frame.len() + 64];
        let words = [(0, self.0.as_raw_fd() as u32), (2, frame.len() as u32), (3, out.len() as u32)];
        let attributes = Attributes::new(&words).address(4, frame.as_ptr());
        let mut attributes = attributes.address(6, out.as_mut_ptr());
        // SAFETY: the kernel reads so many bytes of the frame and writes at most so many of `out`.
        // Why unsafe: see `bpf`.
        unsafe { bpf(PROG_TEST_RUN, &mut attributes)? };
        out.truncate(attributes.0[3] as usize);
        Ok((attributes.0[1], out))
    }
}

/// A program that is attached for as long as this lives.
pub(super) struct Link {
    link: OwnedFd,
    /// Whether the driver runs it, before the kernel makes a packet of what came.
    pub(super) is_native: bool,
}

impl Link {
    /// Puts another program into the place of this one, so that each frame is looked at by the one or the other.
    ///
    /// # Errors
    /// The system's; the program that was there goes on.
    pub(super) fn replace(&self, program: &Program) -> io::Result<()> {
        let words = [(0, self.link.as_raw_fd() as u32), (1, program.0.as_raw_fd() as u32)];
        // SAFETY: the command reads numbers only.
        // Why unsafe: see `bpf`.
        unsafe { bpf(LINK_UPDATE, &mut Attributes::new(&words))? };
        Ok(())
    }
}
