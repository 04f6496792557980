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

use crate::ids::MacAddr;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::size_of;
use std::time::Duration;

/// Bytes of the hardware address of an Ethernet interface.
const MAC_SIZE: usize = 6;
/// Asks for every protocol (`ETH_P_ALL`), in network byte order as packet(7) wants it.
const EVERY_PROTOCOL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Most frames of one call of [`RawSocket::send_burst`] and [`RawSocket::receive_burst`]: their headers lie on the stack.
pub const BURST_MAX: usize = 64;

/// Why a raw socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum RawSocketError {
    /// There is no interface of that name in the calling thread's namespace.
    #[error("no interface named {name:?} in this network namespace")]
    NoInterface {
        /// The name as given.
        name: String,
    },
    /// The interface does not speak Ethernet, so its frames have no MAC addresses.
    #[error("interface {name:?} is not an Ethernet interface")]
    NotEthernet {
        /// The name as given.
        name: String,
    },
    /// The system said no; without CAP_NET_RAW this is `EPERM`.
    #[error("{what}: {source}")]
    Io {
        /// What we tried.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

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
    /// [`RawSocketError`]: no such interface, not an Ethernet one, or the system's refusal.
    pub fn open(interface: &str) -> Result<RawSocket, RawSocketError> {
        let io = |what| move |source: io::Error| RawSocketError::Io { what, source };
        // Protocol 0 hears nothing, so no frame of another interface slips in before `bind`.
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map_err(|e| io("opening a packet socket")(e.into()))?;
        let index = match rustix::net::netdevice::name_to_index(&socket, interface) {
            Ok(index) => index,
            Err(rustix::io::Errno::NODEV) => return Err(RawSocketError::NoInterface { name: interface.to_owned() }),
            Err(e) => return Err(io("looking up the interface")(e.into())),
        };
        bind(socket.as_fd(), index).map_err(io("binding the packet socket"))?;
        let address = local_address(socket.as_fd()).map_err(io("asking for the interface's address"))?;
        if address.sll_hatype != libc::ARPHRD_ETHER || usize::from(address.sll_halen) != MAC_SIZE {
            return Err(RawSocketError::NotEthernet { name: interface.to_owned() });
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
        self.switch_on(libc::PACKET_IGNORE_OUTGOING)
    }

    /// Switches one of the options on that are a C int.
    fn switch_on(&self, option: libc::c_int) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the option's value is one readable C int, and its size is the one given; the fd is open, we own it.
        // Why unsafe: no safe crate of ours knows these options.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Puts a `virtio_net_hdr` of 10 bytes, little-endian, before every frame in both directions (`PACKET_VNET_HDR`): the
    /// kernel then takes and gives large frames and partial checksums.
    ///
    /// # Errors
    /// The system's.
    pub fn use_vnet_header(&self) -> io::Result<()> {
        self.switch_on(libc::PACKET_VNET_HDR)
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

    /// Hands frames straight to the device, past the interface's queueing discipline (`PACKET_QDISC_BYPASS`, Linux 3.14): what
    /// the device has no room for is refused at once instead of waiting.
    ///
    /// # Errors
    /// The system's.
    pub fn bypass_queueing(&self) -> io::Result<()> {
        self.switch_on(libc::PACKET_QDISC_BYPASS)
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

/// Binds the packet socket to the interface with this index, for every protocol.
fn bind(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut address = link_address();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns;
    use rustix::fs::{Mode, OFlags};
    use std::time::Instant;

    const RIGHTS: &str = "these tests make a network namespace: run them as root";
    /// Long enough for a frame to cross the kernel on a busy machine.
    const SOON: Duration = Duration::from_secs(2);

    /// Runs `body` in a new network namespace with nothing but its loopback interface, which is down.
    fn in_new_namespace<R: Send>(body: impl FnOnce() -> R + Send) -> R {
        let namespace = netns::create().expect(RIGHTS);
        netns::within(Some(namespace.as_fd()), body).expect(RIGHTS)
    }

    /// A TAP without vnet header in the calling thread's namespace, up: what is written to it, the interface receives.
    fn tap(name: &str) -> OwnedFd {
        let tap = rustix::fs::open("/dev/net/tun", OFlags::RDWR, Mode::empty()).expect("these tests need /dev/net/tun");
        let control = netns::control_socket().unwrap();
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

    fn frame(mark: u8) -> Vec<u8> {
        let mut frame = vec![mark; 60];
        frame[..14].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, mark, 0x88, 0xb5]);
        frame
    }

    /// The first frame of ours that the socket gets within `timeout`; an interface that comes up also talks by itself.
    fn next(socket: &RawSocket, timeout: Duration) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        let begun = Instant::now();
        while let Some(left) = timeout.checked_sub(begun.elapsed()) {
            if let Some(len) = socket.receive(&mut buffer, left).unwrap()
                && buffer[12..14] == [0x88, 0xb5]
            {
                return Some(buffer[..len].to_vec());
            }
        }
        None
    }

    #[test]
    fn frames_come_in_and_go_out_whole() {
        in_new_namespace(|| {
            let tap = tap("qvs-t");
            let socket = RawSocket::open("qvs-t").unwrap();
            assert!(!socket.mac().is_zero() && !socket.mac().is_group());
            rustix::io::write(&tap, &frame(1)).unwrap();
            assert_eq!(next(&socket, SOON), Some(frame(1)));
            socket.send(&frame(2)).unwrap();
            let mut buffer = [0; 2048];
            loop {
                let len = rustix::io::read(&tap, &mut buffer).unwrap();
                if buffer[12..14] == [0x88, 0xb5] {
                    assert_eq!(buffer[..len], frame(2));
                    break;
                }
            }
            assert_eq!(socket.lost().unwrap(), 0);
        });
    }

    #[test]
    fn bursts_come_in_and_go_out_whole_and_in_order() {
        in_new_namespace(|| {
            let tap = tap("qvs-t");
            let socket = RawSocket::open("qvs-t").unwrap();
            socket.ignore_outgoing().unwrap();
            socket.bypass_queueing().unwrap();
            let frames: Vec<_> = (0..BURST_MAX as u8 + 1).map(frame).collect();
            let slices: Vec<_> = frames.iter().map(|frame| IoSlice::new(frame)).collect();
            let sent = socket.send_burst(&slices).unwrap();
            assert!((1..=BURST_MAX).contains(&sent), "{sent}");
            let mut buffer = [0; 2048];
            let mut went = Vec::new();
            while went.len() < sent {
                let len = rustix::io::read(&tap, &mut buffer).unwrap();
                went.extend((buffer[12..14] == [0x88, 0xb5]).then(|| buffer[..len].to_vec()));
            }
            assert_eq!(went, frames[..sent]);

            for frame in &frames[..3] {
                rustix::io::write(&tap, frame).unwrap();
            }
            let (mut room, mut sizes, mut came) = ([[0; 40]; 8], [0; 8], Vec::new());
            while came.len() < 3 {
                let mut buffers = room.each_mut().map(|buffer| IoSliceMut::new(buffer));
                let count = socket.receive_burst(&mut buffers, &mut sizes).unwrap();
                let ours = (0..count).filter(|&at| room[at][12..14] == [0x88, 0xb5]);
                came.extend(ours.map(|at| (room[at].to_vec(), sizes[at])));
            }
            let expected: Vec<_> = frames[..3].iter().map(|frame| (frame[..40].to_vec(), 60)).collect();
            assert_eq!(came, expected, "cut, and their sizes told whole");
        });
    }

    #[test]
    fn own_frames_are_shown_unless_left_out() {
        in_new_namespace(|| {
            let _tap = tap("qvs-t");
            let sender = RawSocket::open("qvs-t").unwrap();
            let (all, others) = (RawSocket::open("qvs-t").unwrap(), RawSocket::open("qvs-t").unwrap());
            others.ignore_outgoing().unwrap();
            sender.send(&frame(3)).unwrap();
            assert_eq!(next(&all, SOON), Some(frame(3)));
            assert_eq!(next(&others, Duration::from_millis(50)), None);
        });
    }

    #[test]
    fn a_partial_checksum_comes_and_goes_in_a_vnet_header() {
        in_new_namespace(|| {
            let tap = tap("qvs-t");
            let (sender, receiver) = (RawSocket::open("qvs-t").unwrap(), RawSocket::open("qvs-t").unwrap());
            sender.use_vnet_header().unwrap();
            receiver.use_vnet_header().unwrap();
            // From byte 20 on, to be written to bytes 20 and 21, which hold the sum of nothing yet.
            let mut bytes = frame(5);
            bytes[20..22].fill(0);
            let header = [1, 0, 0, 0, 0, 0, 20, 0, 0, 0];
            sender.send(&[&header[..], &bytes].concat()).unwrap();
            // The device takes no partial checksums, so the kernel completes this one: 19 words of 0x0505.
            bytes[20..22].copy_from_slice(&(!(19 * 0x0505u16)).to_be_bytes());
            let mut buffer = [0; 2048];
            loop {
                let len = rustix::io::read(&tap, &mut buffer).unwrap();
                if buffer[12..14] == [0x88, 0xb5] {
                    assert_eq!(buffer[..len], bytes);
                    break;
                }
            }
            rustix::io::write(&tap, &bytes).unwrap();
            loop {
                let len = receiver.receive(&mut buffer, SOON).unwrap().expect("a frame");
                if buffer[22..24] == [0x88, 0xb5] && buffer[10..len] == bytes {
                    break;
                }
            }
        });
    }

    #[test]
    fn a_full_buffer_counts_what_it_lost() {
        in_new_namespace(|| {
            let tap = tap("qvs-t");
            let socket = RawSocket::open("qvs-t").unwrap();
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
            for _ in 0..100 {
                rustix::io::write(&tap, &frame(4)).unwrap();
            }
            let lost = socket.lost().unwrap();
            assert!((1..=100).contains(&lost), "{lost}");
            assert_eq!(socket.lost().unwrap(), 0, "a loss is told once");
        });
    }

    #[test]
    fn a_name_that_no_interface_has_is_refused_by_name() {
        let error = in_new_namespace(|| RawSocket::open("qvs-none").unwrap_err());
        assert_eq!(error.to_string(), r#"no interface named "qvs-none" in this network namespace"#);
    }

    #[test]
    fn an_interface_that_is_not_ethernet_is_refused() {
        // Loopback is ARPHRD_LOOPBACK.
        let error = in_new_namespace(|| RawSocket::open("lo").unwrap_err());
        assert!(matches!(error, RawSocketError::NotEthernet { .. }), "{error}");
    }

    #[test]
    fn a_name_too_long_for_an_interface_is_refused_without_a_panic() {
        let error = in_new_namespace(|| RawSocket::open("an-interface-name-longer-than-the-kernel-takes").unwrap_err());
        assert!(matches!(error, RawSocketError::NoInterface { .. } | RawSocketError::Io { .. }), "{error}");
    }
}
