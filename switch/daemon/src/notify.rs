//! Telling systemd how we are: sd_notify(3), which is one datagram to the socket named in `NOTIFY_SOCKET`.
//!
//! Nothing here can fail the daemon: who started us without systemd has no such socket.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `message`, like `READY=1`, if somebody asked to be told.
pub(crate) fn notify(message: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return };
    if let Err(error) = send(path.as_bytes(), message) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// `path` begins with `@` where the socket is in the abstract namespace (unix(7)).
fn send(path: &[u8], message: &str) -> std::io::Result<()> {
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold us up.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reaches_an_abstract_socket_and_one_with_a_path() {
        let name = format!("qvs-notify-{}", std::process::id());
        let receiver = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(format!("@{name}").as_bytes(), "READY=1").unwrap();
        let mut room = [0; 32];
        let count = receiver.recv(&mut room).unwrap();
        assert_eq!(&room[..count], b"READY=1");

        let path = std::env::temp_dir().join(&name);
        let receiver = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str().as_bytes(), "STOPPING=1").unwrap();
        let count = receiver.recv(&mut room).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(&room[..count], b"STOPPING=1");
    }
}
