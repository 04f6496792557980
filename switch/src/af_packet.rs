//! A raw packet socket on one named interface: whole Ethernet frames out and in, past the host's own network stack.
//!
//! What makes it harder than it looks: a packet socket belongs to the namespace of the thread that made it, sees nothing
//! of an interface before it is bound to it (and everything of all interfaces if it listens too early), and also shows
//! what the host itself sends. So we make the socket deaf (protocol 0), bind it to the one interface for all protocols,
//! and offer to leave the host's own frames out.
//!
//! Once open, the socket stays in its namespace, whatever thread uses it: any thread may own it. Its bounds are the
//! kernel's: a full receive buffer loses frames, which [`RawSocket::lost`] counts.
//! The interface must be up: the kernel reports one that is down as `ENETDOWN` on the next receive, once.
//!
//! What a port does with such sockets is in [`port`]; its bursts are received and sent here ([`Inbox`], [`send_packets`]),
//! because they hand the kernel addresses.

pub(crate) mod port;
pub mod too_big;

use crate::batch::{BURST, Batch};
use crate::ids::MacAddr;
use crate::interface::InterfaceError;
use crate::offload::{VNET_HEADER_LEN, VNET_HEADER_MRG_LEN};
use crate::packet::{Packet, SEGMENTS_MAX};
use crate::pool::Area;
use crate::segment::Segment;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of the hardware address of an Ethernet interface.
const MAC_SIZE: usize = 6;
/// Asks for every protocol (`ETH_P_ALL`), in network byte order as packet(7) wants it.
const EVERY_PROTOCOL: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Hears nothing.
const NO_PROTOCOL: u16 = 0;
/// `PACKET_MR_MULTICAST` and `PACKET_MR_PROMISC` (linux/if_packet.h)
const PACKET_MR_MULTICAST: u16 = 0;
const PACKET_MR_PROMISC: u16 = 1;

/// Most frames of one call of [`RawSocket::send_burst`] and [`RawSocket::receive_burst`]: their headers lie on the stack.
pub const BURST_MAX: usize = 64;

/// A packet socket (`AF_PACKET`, `SOCK_RAW`) bound to one Ethernet interface, for all protocols.
#[derive(Debug)]
pub struct RawSocket {
    socket: OwnedFd,
    mac: MacAddr,
    index: u32,
}

impl RawSocket {
    /// Opens a socket on `interface` in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`InterfaceError`]: no such interface, not an Ethernet one, or the system's refusal.
    pub fn open(interface: &str) -> Result<RawSocket, InterfaceError> {
        RawSocket::open_prepared(interface, EVERY_PROTOCOL, |_| Ok(()))
    }

    /// Opens a socket that hears only frames of one EtherType, also those that are sent to `group`.
    ///
    /// # Errors
    /// As [`RawSocket::open`].
    pub fn open_group(interface: &str, ethertype: u16, group: MacAddr) -> Result<RawSocket, InterfaceError> {
        let socket = RawSocket::open_prepared(interface, ethertype.to_be(), |_| Ok(()))?;
        socket.join(PACKET_MR_MULTICAST, &group.0, "listening for a group")?;
        Ok(socket)
    }

    /// The same with options that hold from the first frame on.
    fn open_prepared(
        interface: &str,
        protocol: u16,
        prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<RawSocket, InterfaceError> {
        let io = |what| move |source: io::Error| InterfaceError::Io { what, source };
        // Protocol 0 hears nothing, so no frame of another interface slips in before `bind`.
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map_err(|e| io("opening a packet socket")(e.into()))?;
        let index = match rustix::net::netdevice::name_to_index(&socket, interface) {
            Ok(index) => index,
            Err(rustix::io::Errno::NODEV) => return Err(InterfaceError::NoInterface { name: interface.to_owned() }),
            Err(e) => return Err(io("looking up the interface")(e.into())),
        };
        prepare(socket.as_fd()).map_err(io("setting up the packet socket"))?;
        bind(socket.as_fd(), index, protocol).map_err(io("binding the packet socket"))?;
        let address = local_address(socket.as_fd()).map_err(io("asking for the interface's address"))?;
        if address.sll_hatype != libc::ARPHRD_ETHER || usize::from(address.sll_halen) != MAC_SIZE {
            return Err(InterfaceError::NotEthernet { name: interface.to_owned() });
        }
        let mut mac = [0; MAC_SIZE];
        mac.copy_from_slice(&address.sll_addr[..MAC_SIZE]);
        Ok(RawSocket { socket, mac: MacAddr(mac), index })
    }

    /// Leaves out what this host itself sends through the interface (`PACKET_IGNORE_OUTGOING`, Linux 4.20).
    ///
    /// # Errors
    /// The system's, from a kernel that is older.
    pub fn ignore_outgoing(&self) -> io::Result<()> {
        switch_on(self.as_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING)
    }

    /// Puts a `virtio_net_hdr` of 10 bytes, little-endian, before every frame in both directions (`PACKET_VNET_HDR`): the
    /// kernel then takes and gives large frames and partial checksums.
    ///
    /// # Errors
    /// The system's.
    pub fn use_vnet_header(&self) -> io::Result<()> {
        switch_on(self.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR)
    }

    /// Makes the receive buffer `bytes` large, beyond the system's limit. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// The system's.
    pub fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_recv_buffer_size_force(&self.socket, bytes)?)
    }

    /// The interface's MAC address when the socket was opened.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// The interface's index in its namespace; it stays the same for as long as the interface lives.
    pub fn interface_index(&self) -> u32 {
        self.index
    }

    /// Sends one frame, Ethernet header first and without FCS. Waits while the interface's queue is full.
    ///
    /// # Errors
    /// The system's: `EMSGSIZE` for a frame above the MTU, `ENETDOWN` if the interface is down, `ENXIO` if it is gone.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // A packet socket takes a frame whole or not at all, so the count says nothing new.
        rustix::net::send(&self.socket, frame, SendFlags::empty())?;
        Ok(())
    }

    /// Waits up to `timeout` for a frame, puts its first bytes into `buffer` and returns how many bytes that are.
    ///
    /// A frame longer than `buffer` is cut. `None`: no frame came in time. The kernel has taken an outer VLAN tag out.
    ///
    /// # Errors
    /// The system's: `ENETDOWN` once after the interface went down or away.
    pub fn receive(&self, buffer: &mut [u8], timeout: Duration) -> io::Result<Option<usize>> {
        if !self.wait(timeout)? {
            return Ok(None);
        }
        match rustix::net::recv(&self.socket, buffer, RecvFlags::DONTWAIT) {
            Ok((taken, _)) => Ok(Some(taken)),
            // Another owner of the socket may have taken the frame between the two calls.
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The next frame without waiting, put into `buffer` as [`RawSocket::receive`] does it, and whether it came to the interface itself.
    /// One of a VLAN comes, without its tag, to whoever asked for the EtherType behind that; the kernel tells it as somebody else's, or
    /// as that of an interface for the VLAN.
    ///
    /// # Errors
    /// As [`RawSocket::receive`].
    pub fn receive_own(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
        let mut from = link_address();
        let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel writes at most as many bytes to the buffer as it has, and at most `len`, its size, to the struct behind
        // the pointer, of which any bytes are legal. Why unsafe: rustix has no link-layer address.
        let taken = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
                (&raw mut from).cast(),
                &raw mut len,
            )
        };
        let taken = moved(taken as libc::c_int)?;
        let is_own = from.sll_ifindex.cast_unsigned() == self.index && from.sll_pkttype != libc::PACKET_OTHERHOST;
        Ok((taken > 0).then_some((taken, is_own)))
    }

    /// Hands frames straight to the device, past the interface's queueing discipline (`PACKET_QDISC_BYPASS`, Linux 3.14): what
    /// the device has no room for is refused at once instead of waiting.
    ///
    /// # Errors
    /// The system's.
    pub fn bypass_queueing(&self) -> io::Result<()> {
        switch_on(self.as_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS)
    }

    /// Sends the first of `frames`, at most [`BURST_MAX`], in one system call and without waiting; answers how many went.
    ///
    /// # Errors
    /// The system's, if not even the first went and not for want of room: see [`RawSocket::send`].
    pub fn send_burst(&self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut messages = [EMPTY_MESSAGE; BURST_MAX];
        let count = frames.len().min(BURST_MAX);
        for (message, frame) in messages.iter_mut().zip(frames) {
            message.msg_hdr.msg_iov = std::ptr::from_ref(frame).cast_mut().cast();
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: `count` messages are initialised and name no memory but one `IoSlice` each, which is a `struct iovec` by
        // its documentation and outlives the call; the kernel writes only the messages' lengths.
        // Why unsafe: rustix has no such call.
        let sent = unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT)
        };
        moved(sent)
    }

    /// Puts the frames that are there, one into each of the first of `buffers`, in one system call and without waiting;
    /// answers how many there were, at most [`BURST_MAX`], and writes their sizes to `sizes`.
    ///
    /// A frame longer than its buffer is cut; its size is told whole. The kernel has taken an outer VLAN tag out.
    ///
    /// # Errors
    /// The system's: `ENETDOWN` once after the interface went down or away.
    pub fn receive_burst(&self, buffers: &mut [IoSliceMut<'_>], sizes: &mut [usize]) -> io::Result<usize> {
        let mut messages = [EMPTY_MESSAGE; BURST_MAX];
        let count = buffers.len().min(sizes.len()).min(BURST_MAX);
        for (message, buffer) in messages.iter_mut().zip(&mut *buffers) {
            message.msg_hdr.msg_iov = std::ptr::from_mut(buffer).cast();
            message.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: `count` messages are initialised and name no memory but one `IoSliceMut` each, which is a `struct iovec`
        // by its documentation, is borrowed exclusively and outlives the call.
        // Why unsafe: rustix has no such call.
        let received = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
                std::ptr::null_mut(),
            )
        };
        let received = moved(received)?;
        for (size, message) in sizes.iter_mut().zip(&messages[..received]) {
            *size = message.msg_len as usize;
        }
        Ok(received)
    }

    /// Has the interface take the frames for all addresses, not only its own, as long as the socket lives.
    fn listen_for_all(&self) -> Result<(), InterfaceError> {
        self.join(PACKET_MR_PROMISC, &[], "listening for all addresses")
    }

    /// Has the interface take more than the frames for its own address, as long as the socket lives.
    fn join(&self, kind: u16, address: &[u8], what: &'static str) -> Result<(), InterfaceError> {
        // `struct packet_mreq`: index, type, length of the address, the address in eight bytes.
        let mut membership = [0; 16];
        membership[..4].copy_from_slice(&self.index.to_ne_bytes());
        membership[4..6].copy_from_slice(&kind.to_ne_bytes());
        membership[6..8].copy_from_slice(&(address.len() as u16).to_ne_bytes());
        membership[8..8 + address.len()].copy_from_slice(address);
        set_option(self.as_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)
            .map_err(|source| InterfaceError::Io { what, source })
    }

    /// How many frames the kernel lost because the receive buffer was full, since the last call.
    ///
    /// # Errors
    /// The system's.
    pub fn lost(&self) -> io::Result<u32> {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes, the size of the plain C struct behind the pointer.
        // Why unsafe: no safe crate of ours knows this option.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut len,
            )
        };
        if result == 0 { Ok(statistics.tp_drops) } else { Err(io::Error::last_os_error()) }
    }

    /// Whether a frame (or an error) is there within `timeout`.
    fn wait(&self, timeout: Duration) -> io::Result<bool> {
        // Longer than the clock can say is for ever.
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            // A signal came first: to the caller this is a time-out that came early.
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Has an interface take the frames for all addresses, for as long as it lives (`PACKET_MR_PROMISC`).
pub(crate) struct Promiscuity {
    _socket: RawSocket,
}

impl Promiscuity {
    /// Of the interface of that name in the calling thread's namespace, which must have this index. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub(crate) fn open(interface: &str, index: u32) -> Result<Promiscuity, InterfaceError> {
        let socket = RawSocket::open_prepared(interface, NO_PROTOCOL, |_| Ok(()))?;
        if socket.index != index {
            return Err(InterfaceError::NoInterface { name: interface.to_owned() });
        }
        socket.listen_for_all()?;
        Ok(Promiscuity { _socket: socket })
    }
}

/// A message without address, memory or control data.
// SAFETY: all zeros is a legal `mmsghdr`: null pointers with lengths of zero.
// Why unsafe: the struct has private padding and no constructor.
const EMPTY_MESSAGE: libc::mmsghdr = unsafe { std::mem::zeroed() };

/// What a call that moves many frames answered: that there was no room or no frame means none.
fn moved(answer: libc::c_int) -> io::Result<usize> {
    usize::try_from(answer).or_else(|_| match io::Error::last_os_error() {
        // ENOBUFS: the device refused a frame.
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR)) => Ok(0),
        error => Err(error),
    })
}

/// Switches an option on that is a C int.
fn switch_on(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    set_option(socket, level, option, &1i32.to_ne_bytes())
}

/// Sets an option from the bytes of its C type.
fn set_option(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads at most the length given of the value, which is a slice of that length.
    // Why unsafe: no safe crate of ours knows these options.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), value.len() as libc::socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes any socket deaf: what comes for it is dropped before it is queued, and still is nobody else's to refuse.
///
/// # Errors
/// The system's.
pub fn deafen(socket: BorrowedFd<'_>) -> io::Result<()> {
    // BPF_RET | BPF_K, 0: keep no byte.
    let mut program = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads `filter`, whose size is given, and the one instruction it points to, and copies both; it
    // keeps no pointer.
    // Why unsafe: the option's value holds a pointer, and no safe crate of ours knows it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An empty link-layer address: the kernel reads and writes it whole.
fn link_address() -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: EVERY_PROTOCOL,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// Binds the packet socket to the interface with this index, for a protocol or for every one.
fn bind(socket: BorrowedFd<'_>, index: u32, protocol: u16) -> io::Result<()> {
    let mut address = link_address();
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the pointer is to a whole `sockaddr_ll` that outlives the call, and the length is its size.
    // Why unsafe: rustix has no link-layer address.
    let result = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the socket is bound to; for a packet socket this carries the interface's hardware address.
fn local_address(socket: BorrowedFd<'_>) -> io::Result<libc::sockaddr_ll> {
    let mut address = link_address();
    let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of the struct behind the pointer, and any bytes are a
    // legal `sockaddr_ll`. Why unsafe: rustix has no link-layer address.
    let result = unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut len) };
    if result == 0 { Ok(address) } else { Err(io::Error::last_os_error()) }
}

/// What the kernel tells of a frame besides its bytes (`struct tpacket_auxdata`, packet(7)), in a control message, and how
/// many frames it lost (`SO_RXQ_OVFL`, socket(7)), in another: header and value of each, aligned.
#[repr(C, align(8))]
struct Control([u8; CONTROL_SIZE]);

/// Bytes of `struct cmsghdr`, of `struct tpacket_auxdata`, and of both messages.
const CONTROL_HEADER: usize = size_of::<libc::cmsghdr>();
const AUXDATA_SIZE: usize = 20;
const CONTROL_SIZE: usize = CONTROL_HEADER + AUXDATA_SIZE.next_multiple_of(8) + CONTROL_HEADER + 8;
// linux/if_packet.h
const PACKET_AUXDATA: libc::c_int = 8;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
/// The TPID of a tag of which nothing is said (IEEE 802.1Q).
const TPID_DEFAULT: u16 = 0x8100;

/// A frame in an [`Inbox`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Arrival {
    /// Bytes written to its slot, vnet header included.
    len: usize,
    /// Whether it was longer than its slot.
    is_cut: bool,
    /// The outermost VLAN tag, TPID and control information, if the kernel took it out of the frame.
    tag: Option<(u16, u16)>,
    /// Frames lost since the socket was opened; `None`: none, or not told.
    lost: Option<u32>,
}

/// Where a burst is received to: slots of an area, each with its control messages.
struct Inbox {
    /// Keeps the memory that `pieces` point into.
    _area: Arc<Area>,
    /// Made anew for each call, of the elements of the same number of the other two.
    messages: Box<[libc::mmsghdr; BURST]>,
    pieces: Box<[libc::iovec; BURST]>,
    controls: Box<[Control; BURST]>,
}

// SAFETY: its pointers lead to memory that it owns itself, wherever it goes.
// Why unsafe: raw pointers are not `Send` by default.
unsafe impl Send for Inbox {}

impl Inbox {
    /// An inbox with a slot of `size` bytes at `offset` of every `stride` bytes of the area.
    fn new(area: Arc<Area>, offset: usize, size: usize, stride: usize) -> Inbox {
        assert!(offset + (BURST - 1) * stride + size <= area.len(), "the slots lie inside their area");
        let mut pieces = Box::new([libc::iovec { iov_base: std::ptr::null_mut(), iov_len: size }; BURST]);
        for (slot, piece) in pieces.iter_mut().enumerate() {
            piece.iov_base = area.as_ptr().wrapping_add(offset + slot * stride).cast();
        }
        let controls = Box::new([const { Control([0; CONTROL_SIZE]) }; BURST]);
        Inbox { _area: area, messages: Box::new([EMPTY_MESSAGE; BURST]), pieces, controls }
    }

    /// Receives what is there, at most `count` frames, without waiting, to the first slots; answers how many.
    fn receive(&mut self, socket: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
        let count = count.min(BURST);
        for ((message, piece), control) in
            self.messages.iter_mut().zip(&mut *self.pieces).zip(&mut *self.controls).take(count)
        {
            message.msg_hdr.msg_iov = &raw mut *piece;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = CONTROL_SIZE as _;
        }
        // SAFETY: the first `count` messages name a slot each, which is inside the area (checked by `new`) that we keep, and
        // control memory of our own of the size told. No reference covers the area; whoever reads it does so by segments.
        // Why unsafe: rustix has no such call, and no slice may cover memory that others look at meanwhile.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.messages.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// What the last [`Inbox::receive`] put into a slot.
    fn arrival(&self, slot: usize) -> Arrival {
        let message = &self.messages[slot];
        let told = message.msg_hdr.msg_controllen.min(CONTROL_SIZE);
        let mut arrival = Arrival {
            len: message.msg_len as usize,
            is_cut: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            tag: None,
            lost: None,
        };
        for (level, kind, value) in controls(&self.controls[slot].0[..told]) {
            match (level, kind) {
                (libc::SOL_PACKET, PACKET_AUXDATA) if value.len() >= AUXDATA_SIZE => {
                    let status = word(value, 0);
                    let [tci, tpid] = [16, 18].map(|at| u16::from_ne_bytes([value[at], value[at + 1]]));
                    let tpid = if status & TP_STATUS_VLAN_TPID_VALID != 0 { tpid } else { TPID_DEFAULT };
                    arrival.tag = (status & TP_STATUS_VLAN_VALID != 0).then_some((tpid, tci));
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) if value.len() >= 4 => arrival.lost = Some(word(value, 0)),
                _ => {}
            }
        }
        arrival
    }
}

/// The control messages of a received frame: level, type and value.
fn controls(mut bytes: &[u8]) -> impl Iterator<Item = (libc::c_int, libc::c_int, &[u8])> {
    std::iter::from_fn(move || {
        // A `size_t` and two ints (cmsg(3)).
        let len = usize::from_ne_bytes(*bytes.get(..CONTROL_HEADER)?.first_chunk()?);
        let [level, kind] = [CONTROL_HEADER - 8, CONTROL_HEADER - 4].map(|at| word(bytes, at).cast_signed());
        let value = bytes.get(CONTROL_HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
        Some((level, kind, value))
    })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Most frames of one call of [`send_packets`], and most pieces they may have together: what is told to the kernel lies on the
/// stack.
const SEND_FRAMES: usize = 32;
const SEND_PIECES: usize = 128;
const _: () = assert!(SEND_PIECES >= 2 + SEGMENTS_MAX, "every frame fits");

/// Sends the first of the picked packets, each behind its vnet header, without waiting; answers how many went, at least one.
///
/// # Errors
/// The system's, for the first one.
fn send_packets(socket: BorrowedFd<'_>, batch: &Batch<'_>, picks: &[u8]) -> io::Result<usize> {
    send_frames(socket, picks.iter().map(|&pick| batch.look(usize::from(pick))))
}

/// The same for any frames: head and tail of each.
fn send_frames<'p, 'r: 'p>(
    socket: BorrowedFd<'_>,
    frames: impl Iterator<Item = (&'p Packet, &'p [Segment<'r>])>,
) -> io::Result<usize> {
    const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut headers = [[0u8; VNET_HEADER_MRG_LEN]; SEND_FRAMES];
    let mut pieces = [EMPTY; SEND_PIECES];
    let mut messages = [EMPTY_MESSAGE; SEND_FRAMES];
    let mut room = &mut pieces[..];
    let mut count = 0;
    for ((packet, tail), (header, message)) in frames.zip(headers.iter_mut().zip(&mut messages)) {
        let len = 2 + tail.len();
        if len > room.len() {
            break;
        }
        let (own, rest) = std::mem::take(&mut room).split_at_mut(len);
        room = rest;
        *header = packet.offload.to_bytes();
        own[0] = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: VNET_HEADER_LEN };
        let head = packet.head();
        own[1] = libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
        for (piece, segment) in own[2..].iter_mut().zip(tail) {
            let base = segment.as_ptr().cast_mut().cast();
            *piece = libc::iovec { iov_base: base, iov_len: segment.len() as usize };
        }
        message.msg_hdr.msg_iov = own.as_mut_ptr();
        message.msg_hdr.msg_iovlen = len as _;
        count += 1;
    }
    // SAFETY: the first `count` messages name pieces above, each in a part of its own, which lead to a header above, a
    // packet's head and segments that are mapped for `'r`; all of them outlive the call, which only reads them. Where a guest
    // has cut its memory file short under us the kernel answers EFAULT and sends nothing.
    // Why unsafe: tails may be shared with another process, so no slice may cover them; rustix has no such call.
    let sent = unsafe {
        libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT as _)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A TAP without vnet header in the calling thread's namespace, up: what is written to it, the interface receives.
#[cfg(test)]
fn bare_tap(name: &str) -> OwnedFd {
    use rustix::fs::{Mode, OFlags};
    let tap = rustix::fs::open("/dev/net/tun", OFlags::RDWR, Mode::empty()).expect("these tests need /dev/net/tun");
    let control = crate::netns::control_socket().unwrap();
    let flags = |flags: libc::c_int| {
        // SAFETY: all zeros is a legal `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        request
    };
    // SAFETY: both calls take a pointer to a whole `ifreq` that outlives them.
    unsafe {
        assert_eq!(libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &flags(libc::IFF_TAP | libc::IFF_NO_PI)), 0);
        assert_eq!(libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &flags(libc::IFF_UP)), 0);
    }
    tap
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
