//! A network interface that somebody else made and keeps: a veth end of a container, a TAP that QEMU or Nova holds, a NIC.
//!
//! What makes it harder than it looks: it comes and goes as others like. We open it when it is there, follow what becomes of
//! it ([`crate::link`]), and say that it is gone when it was deleted, renamed or moved away, so that its keeper waits for the
//! next one of its name. Nothing of it is ours: addresses, MTU and whether it is up are left alone. What was switched on
//! for us ends with our descriptors, whatever becomes of the process. Its queues can become more or fewer under a port by AF_XDP;
//! its keeper then opens it anew ([`HostDevice::is_outdated`]).
//!
//! Control side only. Descriptors keep its namespace alive, so that one that loses its name is told too.

mod counting;

use crate::af_packet::port::PacketPort;
use crate::af_xdp::port::{XdpConfig, XdpPort};
use crate::af_xdp::program::Steering;
use crate::af_xdp::queue_watch::QueueWatch;
use crate::interface::InterfaceError;
use crate::link::{LinkStatus, LinkWatch};
use crate::netns::{self, Origin};
use crate::port::{Device, DeviceState, Link, Place, Port};
use crate::sync::{AtomicU32, Ordering};
pub use counting::{Counting, LinkCounters};
use rustix::fd::{AsFd, OwnedFd};
use std::io;
use std::sync::Arc;

/// How the frames of a device are moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// Packet sockets, which keep partial checksums and uncut TCP.
    AfPacket,
    /// AF_XDP, which takes frames before the host's stack makes packets of them; checksums and cuts are made in software.
    AfXdp,
}

impl Driver {
    /// Its name in `plug --driver`.
    pub fn name(self) -> &'static str {
        match self {
            Driver::AfPacket => "af_packet",
            Driver::AfXdp => "af_xdp",
        }
    }
}

/// What is needed to open a device.
#[derive(Debug)]
pub struct DeviceConfig {
    /// Interface name.
    pub name: String,
    /// The network namespace it lives in; `None`: the caller's.
    pub netns: Option<OwnedFd>,
    /// How its frames are moved; `None`: as suits its kind.
    pub driver: Option<Driver>,
    /// Which of its frames are ours, and which go on to the host. By packet sockets all come, and the host gets them too.
    pub steering: Steering,
}

/// An open device's control side. Dropping it withdraws the port and closes what was opened.
pub struct HostDevice {
    watch: LinkWatch,
    counting: Arc<Counting>,
    driver: Driver,
    /// Where a port that must know it is told the MTU.
    mtu: Option<Arc<AtomicU32>>,
    /// How the driver does it; empty if there is nothing to tell.
    mode: &'static str,
    /// Whether VLAN tags of received frames are lost.
    are_tags_lost: bool,
    /// Of a port that has a socket on each.
    queue_watch: Option<Arc<QueueWatch>>,
    origin: Option<Origin>,
    place: Arc<dyn Place>,
}

impl HostDevice {
    /// Opens the device and publishes its port at `place`. Needs CAP_NET_RAW and CAP_NET_ADMIN, CAP_SYS_ADMIN to enter
    /// `config.netns`, and for AF_XDP CAP_BPF and CAP_IPC_LOCK.
    ///
    /// # Errors
    /// [`InterfaceError`]; the caller retries.
    pub fn open(config: DeviceConfig, place: Arc<dyn Place>) -> Result<HostDevice, InterfaceError> {
        let io = |what| move |source: io::Error| InterfaceError::Io { what, source };
        let DeviceConfig { name, netns, driver, steering } = config;
        let netns = netns.as_ref().map(AsFd::as_fd);
        let origin = netns.and_then(Origin::of);
        let absent = || InterfaceError::NoInterface { name: name.clone() };
        let (watch, counting, driver, opened) = netns::within(netns, || {
            let watch = LinkWatch::open(&name).map_err(io("asking for the interface"))?.ok_or_else(absent)?;
            let status = watch.status().ok_or_else(absent)?;
            if !status.is_ethernet {
                return Err(InterfaceError::NotEthernet { name: name.clone() });
            }
            let driver = driver.unwrap_or_else(|| suits(&status, &steering));
            let opened = match driver {
                Driver::AfPacket => {
                    let port = PacketPort::open(&name)?;
                    // Between the two looks another may have taken the name.
                    if port.interface_index() != status.index {
                        return Err(absent());
                    }
                    Opened { port: Arc::new(port), mtu: None, mode: "", are_tags_lost: false, queue_watch: None }
                }
                Driver::AfXdp => {
                    let port = XdpPort::open(&status, &XdpConfig { steering, is_generic: false })?;
                    let (mtu, mode, are_tags_lost) = (Some(port.mtu()), port.mode(), port.are_tags_lost());
                    let queue_watch = Some(port.queue_watch().clone());
                    Opened { port: Arc::new(port), mtu, mode, are_tags_lost, queue_watch }
                }
            };
            let counting = Counting::open(status.index, opened.queue_watch.clone());
            let counting = counting.map_err(io("asking for the interface's counters"))?;
            Ok((watch, Arc::new(counting), driver, opened))
        })
        .map_err(io("entering the network namespace (needs CAP_SYS_ADMIN)"))??;
        let Opened { port, mtu, mode, are_tags_lost, queue_watch } = opened;
        place.publish(port);
        Ok(HostDevice { watch, counting, driver, mtu, mode, are_tags_lost, queue_watch, origin, place })
    }

    /// How its frames are moved.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// By whom the driver's program is run and who copies; empty for a driver without.
    pub fn mode(&self) -> &'static str {
        self.mode
    }

    /// Whether the device takes VLAN tags out of the frames it receives and does not let itself be told otherwise, so that by AF_XDP
    /// they are lost.
    pub fn are_tags_lost(&self) -> bool {
        self.are_tags_lost
    }

    /// How the interface is now; `None` if it is gone for ever, or its namespace is. A port that must know the MTU follows it by
    /// this look.
    pub fn status(&self) -> Option<LinkStatus> {
        let status = self.watch.status().filter(|_| self.has_namespace());
        if let (Some(status), Some(mtu)) = (&status, &self.mtu) {
            mtu.store(status.mtu, Ordering::Relaxed);
        }
        status
    }

    /// What is counted at the interface, for somebody to look at once in a while.
    pub fn counting(&self) -> &Arc<Counting> {
        &self.counting
    }

    /// Whether it is another than it was opened as, by the last look at [`HostDevice::counting`]: its port misses some of its queues,
    /// or has some that are no more, until it is opened anew. What [`Device::state`] tells then says more.
    pub fn is_outdated(&self) -> bool {
        self.change().is_some()
    }

    fn change(&self) -> Option<String> {
        self.queue_watch.as_ref().and_then(|watch| watch.change())
    }

    fn has_namespace(&self) -> bool {
        self.origin.as_ref().is_none_or(Origin::is_there)
    }
}

/// A port, and what its control side needs of it.
struct Opened {
    port: Arc<dyn Port>,
    mtu: Option<Arc<AtomicU32>>,
    mode: &'static str,
    are_tags_lost: bool,
    queue_watch: Option<Arc<QueueWatch>>,
}

/// The driver that suits an interface. One of software hands over checksums that are left to do and TCP uncut, which packet
/// sockets keep; an uplink of hardware has neither, and shares its frames with the host.
fn suits(status: &LinkStatus, steering: &Steering) -> Driver {
    let is_uplink = *steering != Steering::Everything;
    if is_uplink && status.kind.is_empty() { Driver::AfXdp } else { Driver::AfPacket }
}

impl Drop for HostDevice {
    fn drop(&mut self) {
        self.place.withdraw();
    }
}

impl Device for HostDevice {
    fn state(&self) -> DeviceState {
        let down = |is_ready, reason: &str| DeviceState { is_ready, link: Link::Down, reason: reason.to_owned() };
        match (self.watch.status(), self.change()) {
            _ if !self.has_namespace() => down(false, "the network namespace is gone"),
            (None, _) => down(false, "the device is gone"),
            (Some(_), Some(change)) => down(false, &change),
            (Some(status), None) if !status.is_up => down(false, "the interface is down"),
            (Some(status), None) if !status.has_carrier => down(true, "the interface has no carrier"),
            (Some(_), None) => DeviceState { is_ready: true, link: Link::Up, reason: String::new() },
        }
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
