//! The TCP sockets that the daemon listens on: the API's and that of the metrics.
//!
//! At boot an address may come later than we do: nobody has set it yet, or IPv6 still asks whether it is somebody else's
//! (RFC 4862 section 5.4). Guests must not be without a network for that, so it is bound all the same (ip(7),
//! IP_FREEBIND) and answers as soon as it is there.

use anyhow::anyhow;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// Connections that may wait to be accepted, as the standard library has it.
const BACKLOG: i32 = 4096;

/// Listens for `what` on an address, which this host need not have yet; that is logged.
///
/// # Errors
/// The line to print.
pub(crate) fn open(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    let failed = |error: io::Error| anyhow!("{what} cannot listen on {address}: {error}");
    match TcpListener::bind(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            let listener = bind_ahead(address).map_err(|error| failed(error.into()))?;
            tracing::warn!(%address, "{what} cannot be reached yet: no interface of this host has the address");
            Ok(listener)
        }
        bound => bound.map_err(failed),
    }
}

/// Binds an address that no interface has.
fn bind_ahead(address: SocketAddr) -> rustix::io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    match address {
        SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_freebind(&socket, true)?,
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_comes_later_is_listened_on_and_one_that_is_taken_is_not() {
        let later = open("192.0.2.77:0".parse().unwrap(), "the API").unwrap();
        assert_eq!(later.local_addr().unwrap().ip().to_string(), "192.0.2.77");
        if TcpListener::bind("[::1]:0").is_ok() {
            assert!(open("[2001:db8::77]:0".parse().unwrap(), "the API").is_ok());
        }
        let here = open("127.0.0.1:0".parse().unwrap(), "the API").unwrap();
        let error = open(here.local_addr().unwrap(), "the API").unwrap_err().to_string();
        assert!(error.starts_with("the API cannot listen on 127.0.0.1:"), "{error}");
    }
}
