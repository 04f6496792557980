//! What goes over a vhost-user socket: messages with file descriptors, and the eventfds that came that way.
//!
//! A [`Stream`] cuts the byte stream into messages without ever blocking: a peer that stops in the middle of one keeps its
//! half message waiting and nobody else. The eventfds are shared with a peer that can do anything to them, also clear
//! O_NONBLOCK and fill the counter to its brim, after which a plain write blocks for ever. So they are added to through
//! Linux AIO ([`Aio`]): the kernel adds to an eventfd named in `aio_resfd` when a request completes, and that addition saturates
//! instead of blocking. The request itself is a write of one byte to /dev/null. AIO requests are bounded for the whole host
//! (`fs.aio-max-nr`, 65,536), so only workers have a context of full depth each; all session threads share one, and that of a
//! helper ([`crate::call`]) is small.

use crate::message::{FDS_MAX, HEADER_LEN, Header, MessageError};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// Bytes of a control message that holds [`FDS_MAX`] file descriptors.
const CONTROL_LEN: usize = rustix::cmsg_space!(ScmRights(FDS_MAX));

/// Why no more messages come.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer closed between two messages.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed in the middle of a message.
    #[error("the peer closed the connection in the middle of a message")]
    ClosedInMessage,
    /// More file descriptors than a message can have.
    #[error("a message came with more than {FDS_MAX} file descriptors")]
    TooManyFds,
    /// A header that is none.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What we tried.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

/// A whole message as it came.
#[derive(Debug)]
pub struct Incoming {
    /// Its header; version and size are good.
    pub header: Header,
    /// Its payload, as long as the header says.
    pub payload: Vec<u8>,
    /// The file descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// One connection. Owned by the session's thread.
pub struct Stream {
    socket: OwnedFd,
    head: [u8; HEADER_LEN],
    head_len: usize,
    header: Option<Header>,
    payload: Vec<u8>,
    payload_len: usize,
    fds: Vec<OwnedFd>,
}

impl Stream {
    /// Cuts what comes from `socket`.
    pub fn new(socket: OwnedFd) -> Stream {
        Stream {
            socket,
            head: [0; HEADER_LEN],
            head_len: 0,
            header: None,
            payload: Vec::new(),
            payload_len: 0,
            fds: Vec::new(),
        }
    }

    /// The next whole message; `None` if it has not come yet. Never blocks.
    ///
    /// # Errors
    /// [`StreamError`]; the stream is of no use afterwards.
    pub fn receive(&mut self) -> Result<Option<Incoming>, StreamError> {
        while self.head_len < HEADER_LEN {
            let room = &mut self.head[self.head_len..];
            match receive_some(&self.socket, room, &mut self.fds)? {
                None => return Ok(None),
                Some(0) if self.head_len == 0 => return Err(StreamError::Closed),
                Some(0) => return Err(StreamError::ClosedInMessage),
                Some(count) => self.head_len += count,
            }
        }
        let header = match self.header {
            Some(header) => header,
            None => {
                let header = Header::parse(&self.head)?;
                self.payload = vec![0; header.size as usize];
                *self.header.insert(header)
            }
        };
        while self.payload_len < self.payload.len() {
            let room = &mut self.payload[self.payload_len..];
            match receive_some(&self.socket, room, &mut self.fds)? {
                None => return Ok(None),
                Some(0) => return Err(StreamError::ClosedInMessage),
                Some(count) => self.payload_len += count,
            }
        }
        (self.head_len, self.payload_len, self.header) = (0, 0, None);
        Ok(Some(Incoming { header, payload: std::mem::take(&mut self.payload), fds: std::mem::take(&mut self.fds) }))
    }

    /// Sends as much as the socket takes now; answers how many bytes that was, 0 if it is full.
    ///
    /// # Errors
    /// [`StreamError::Io`], also when the peer is gone.
    pub fn send_some(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, StreamError> {
        let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(StreamError::TooManyFds);
        }
        loop {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(source) => return Err(StreamError::Io { what: "sendmsg", source: source.into() }),
            }
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One recvmsg into `room`; `None` if there is nothing now, `Some(0)` at the end of the stream.
fn receive_some(socket: &OwnedFd, room: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<Option<usize>, StreamError> {
    let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(room)], &mut control, flags) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            // A peer that dies with unread answers of ours resets the connection: no different from closing it.
            Err(Errno::CONNRESET) => return Ok(Some(0)),
            Err(source) => return Err(StreamError::Io { what: "recvmsg", source: source.into() }),
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > FDS_MAX {
        return Err(StreamError::TooManyFds);
    }
    Ok(Some(received.bytes))
}

/// Whether a file descriptor is an eventfd. Anything else that a peer passes for one could block us or never wake us.
pub fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    // Which anonymous file it is shows only in the name of the link.
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::readlink(link, Vec::new()).is_ok_and(|name| name.as_bytes() == b"anon_inode:[eventfd]")
}

/// An eventfd of our own by which one thread wakes another. Adding to it never blocks.
pub struct Wake {
    fd: OwnedFd,
}

impl Wake {
    /// A new one.
    ///
    /// # Errors
    /// If the process has no file descriptor left.
    pub fn new() -> std::io::Result<Wake> {
        Ok(Wake { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Wakes whoever polls it.
    pub fn wake(&self) {
        // It fails only when the counter is full, and then the other side is being woken already.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Takes the wake-ups away.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `struct iocb` of linux/aio_abi.h.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    /// `aio_key` and `aio_rw_flags`, in an order that depends on the byte order; both zero.
    key: [u32; 2],
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<IoEvent>() == 32);

/// `IOCB_CMD_PWRITE`
const COMMAND_PWRITE: u16 = 1;
/// `IOCB_FLAG_RESFD`
const FLAG_RESULT_FD: u32 = 1;
/// Requests that may wait to be reaped in a thread's context.
const AIO_DEPTH: u32 = 128;
/// The same in a helper's context, of which there may be thousands.
const HELPER_AIO_DEPTH: u32 = 2;
/// Requests that are reaped at once, at a quarter of the largest depth.
const AIO_REAP: usize = AIO_DEPTH as usize / 4;

/// What every request writes: one byte, whose value goes nowhere.
static AIO_BYTE: u8 = 0;

/// A kernel AIO context. Each worker has its own, so that it shares no lock and no line.
pub(crate) struct Aio {
    context: libc::c_ulong,
    null: OwnedFd,
    /// Requests that it has room for.
    depth: u32,
    waiting: u32,
}

thread_local! {
    static AIO: RefCell<Option<Aio>> = const { RefCell::new(None) };
}

/// The context of the control side: thousands of sessions would use up what the host has, for QEMU's disks too.
static CONTROL: Mutex<Option<Aio>> = Mutex::new(None);

impl Aio {
    /// Whether the kernel gives us contexts. Makes none for this thread.
    pub(crate) fn is_available() -> bool {
        Aio::with_control(|_| ()).is_some()
    }

    /// Uses the control side's context; `None` if the kernel gives none.
    pub(crate) fn with_control<R>(work: impl FnOnce(&mut Aio) -> R) -> Option<R> {
        let mut slot = CONTROL.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Aio::new(AIO_DEPTH).ok();
        }
        slot.as_mut().map(work)
    }

    /// With room for so many requests.
    fn new(depth: u32) -> std::io::Result<Aio> {
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?.into();
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word to `context`, which is zero as io_setup(2) demands.
        // Why unsafe: no crate of ours wraps AIO, and it is the only way to add to an eventfd without blocking.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, libc::c_long::from(depth), &raw mut context) };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Aio { context, null, depth, waiting: 0 })
    }

    /// Whether this thread has a context.
    #[cfg(test)]
    pub(crate) fn has_own() -> bool {
        AIO.with_borrow(Option::is_some)
    }

    /// Uses this thread's context; `None` if the kernel gives none. Allocates only at a thread's first call.
    pub(crate) fn with_own<R>(work: impl FnOnce(&mut Aio) -> R) -> Option<R> {
        AIO.with_borrow_mut(|slot| {
            if slot.is_none() {
                *slot = Aio::new(AIO_DEPTH).ok();
            }
            slot.as_mut().map(work)
        })
    }

    /// A context of a helper's own.
    ///
    /// # Errors
    /// If the kernel gives none.
    pub(crate) fn for_helper() -> std::io::Result<Aio> {
        Aio::new(HELPER_AIO_DEPTH)
    }

    /// Adds one to an eventfd; answers whether that worked.
    pub(crate) fn submit(&mut self, fd: BorrowedFd<'_>) -> bool {
        // Before it is full, so that a busy thread never runs into that.
        if self.waiting >= self.depth.div_ceil(4) {
            self.reap();
        }
        let mut request = Iocb {
            opcode: COMMAND_PWRITE,
            file: self.null.as_raw_fd() as u32,
            buffer: (&raw const AIO_BYTE) as u64,
            len: 1,
            flags: FLAG_RESULT_FD,
            result_fd: fd.as_raw_fd() as u32,
            ..Iocb::default()
        };
        let mut list = [&raw mut request];
        for _ in 0..2 {
            // SAFETY: the list holds one request, which the kernel copies before it returns; the byte it points at is
            // static. Both file descriptors are open during the call, and the kernel takes its own references.
            // Why unsafe: as in `new`.
            let result =
                unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1 as libc::c_long, list.as_mut_ptr()) };
            if result == 1 {
                self.waiting += 1;
                return true;
            }
            // A full context: make room and try once more.
            self.reap();
        }
        false
    }

    /// Takes completed requests out of the context, as many as there are.
    fn reap(&mut self) {
        let mut events = [IoEvent::default(); AIO_REAP];
        let mut timeout = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes at most `events.len()` events and reads the timeout; with a minimum of 0 and a timeout
        // of zero it does not wait.
        // Why unsafe: as in `new`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0 as libc::c_long,
                events.len() as libc::c_long,
                events.as_mut_ptr(),
                &raw mut timeout,
            )
        };
        self.waiting = self.waiting.saturating_sub(u32::try_from(result).unwrap_or(0));
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context is ours and no request of ours uses memory that goes away.
        // Why unsafe: as in `new`.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Request, protocol};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (Stream, Stream) {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        (Stream::new(one), Stream::new(other))
    }

    fn blocking_eventfd(count: u64) -> OwnedFd {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        if count > 0 {
            rustix::io::write(&fd, &count.to_ne_bytes()).unwrap();
        }
        fd
    }

    #[test]
    fn a_message_that_comes_byte_by_byte_is_put_together_with_its_descriptors() {
        let (mut ours, theirs) = pair();
        let bytes = Request::SetProtocolFeatures(protocol::REPLY_ACK).to_bytes(false);
        let extra = blocking_eventfd(0);
        for (at, byte) in bytes.iter().enumerate() {
            assert!(ours.receive().unwrap().is_none());
            let fds = [extra.as_fd()];
            assert_eq!(theirs.send_some(&[*byte], if at == 0 { &fds } else { &[] }).unwrap(), 1);
        }
        let message = ours.receive().unwrap().unwrap();
        assert_eq!((message.payload.len(), message.fds.len()), (8, 1));
        assert!(is_eventfd(message.fds[0].as_fd()));
        assert!(ours.receive().unwrap().is_none());
    }

    #[test]
    fn a_peer_that_vanishes_in_a_message_is_told_from_one_that_leaves() {
        let (mut ours, theirs) = pair();
        drop(theirs);
        assert!(matches!(ours.receive(), Err(StreamError::Closed)));
        let (mut ours, theirs) = pair();
        theirs.send_some(&[1, 0, 0], &[]).unwrap();
        drop(theirs);
        assert!(matches!(ours.receive(), Err(StreamError::ClosedInMessage)));
    }

    #[test]
    fn descriptors_piled_up_over_one_message_are_refused() {
        let (mut ours, theirs) = pair();
        let extra = blocking_eventfd(0);
        let many = vec![extra.as_fd(); FDS_MAX];
        theirs.send_some(&[1], &many).unwrap();
        theirs.send_some(&[0], &[extra.as_fd()]).unwrap();
        assert!(matches!(ours.receive(), Err(StreamError::TooManyFds)));
    }

    #[test]
    fn what_is_no_eventfd_is_not_taken_for_one() {
        assert!(is_eventfd(blocking_eventfd(0).as_fd()));
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert!(!is_eventfd(pipe.as_fd()));
        let memory = rustix::fs::memfd_create("[eventfd]", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(!is_eventfd(memory.as_fd()));
    }
}
