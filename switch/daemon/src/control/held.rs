//! The ports of tunnels, held. On an interface the host's kernel would answer our peers that nobody listens to their tunnels. So the
//! ports are held by sockets that nobody reads, which also keeps others off them.

use pipelines::wire::geneve;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use switch::af_packet::deafen;

/// Sockets that keep the kernel from refusing what is for our tunnels.
pub(super) struct Held {
    _udp: Vec<UdpSocket>,
    _gre: Option<OwnedFd>,
}

impl Held {
    /// # Errors
    /// The system's, as that another program has a port.
    pub(super) fn open(local: IpAddr, port_vxlan: u16) -> std::io::Result<Held> {
        let mut udp = Vec::new();
        for port in [port_vxlan, geneve::PORT] {
            let socket = UdpSocket::bind(SocketAddr::new(local, port))?;
            deafen(socket.as_fd())?;
            udp.push(socket);
        }
        let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let protocol = Protocol::from_raw(std::num::NonZeroU32::new(47).expect("GRE's number"));
        let gre = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol));
        if let Ok(gre) = &gre {
            rustix::net::bind(gre, &SocketAddr::new(local, 0))?;
            deafen(gre.as_fd())?;
        }
        Ok(Held { _udp: udp, _gre: gre.ok() })
    }
}
