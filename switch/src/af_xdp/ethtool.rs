//! What only the ethtool interface tells of a network interface, and the one thing of it that must be switched off: VLAN tags that
//! the device takes out of received frames.
//!
//! An XDP program and an AF_XDP socket see a frame's bytes and nothing beside them, so a tag that the device puts beside is lost,
//! and with it the frame's network. The offload is switched on again when the port goes; after a kill it stays off, which
//! costs the host a move of four bytes a tagged frame. A far end of software that leaves its tags to a device (a veth whose
//! peer has `tx-vlan-offload`) is nothing that this end can switch. Control side only.

use super::{EthtoolCommand, ethtool};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;

/// `ETH_FLAG_RXVLAN` (linux/ethtool.h).
const RX_VLAN: u32 = 1 << 8;

/// An interface, by its name in the namespace of the thread that opened it.
pub(super) struct Ethtool {
    socket: OwnedFd,
    name: String,
}

impl Ethtool {
    /// # Errors
    /// The system's.
    pub(super) fn open(name: &str) -> io::Result<Ethtool> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Ethtool { socket, name: name.to_owned() })
    }

    /// Queues that the interface has in use, to receive and to send by.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if its driver does not tell.
    pub(super) fn queues(&self) -> io::Result<[u32; 2]> {
        // struct ethtool_channels: command, four maxima, then rx, tx, other and combined channels in use.
        let words = ethtool(self.socket.as_fd(), &self.name, EthtoolCommand::GetChannels, 0)?;
        Ok([words[5].saturating_add(words[8]), words[6].saturating_add(words[8])])
    }

    fn flags(&self) -> io::Result<u32> {
        Ok(ethtool(self.socket.as_fd(), &self.name, EthtoolCommand::GetFlags, 0)?[1])
    }

    /// Switches the device's taking out of tags on or off; answers whether it is on now.
    fn set_rx_vlan(&self, is_on: bool) -> io::Result<bool> {
        let flags = self.flags()?;
        let wanted = if is_on { flags | RX_VLAN } else { flags & !RX_VLAN };
        // What it does not let itself be told shows in the answer.
        let _ = ethtool(self.socket.as_fd(), &self.name, EthtoolCommand::SetFlags, wanted);
        Ok(self.flags()? & RX_VLAN != 0)
    }
}

/// Tags stay in the frames of an interface while this lives, and longer if it did not take any out before.
pub(super) struct TagsStay {
    ethtool: Ethtool,
    was_on: bool,
}

impl TagsStay {
    /// Has the interface leave tags where they are; `None` if it does not let itself be told.
    pub(super) fn begin(ethtool: Ethtool) -> Option<TagsStay> {
        // A driver without flags has no such offload.
        let was_on = ethtool.flags().is_ok_and(|flags| flags & RX_VLAN != 0);
        let is_on = was_on && ethtool.set_rx_vlan(false).unwrap_or(true);
        (!is_on).then_some(TagsStay { ethtool, was_on })
    }
}

impl Drop for TagsStay {
    fn drop(&mut self) {
        if self.was_on {
            // It may be gone.
            let _ = self.ethtool.set_rx_vlan(true);
        }
    }
}
