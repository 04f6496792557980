//! Opening the real devices of a plug: vhost-user sockets, TAPs, and interfaces that somebody else made.
//!
//! The hard part is to take only what is ours. A TAP outlives us, so after a restart a device of the wanted name is there and
//! must be reopened; but a stranger's device of that name must not be touched. So before a TAP is made we write down where
//! ([`MadeBook`]): boot and namespace; and before a socket is made, its directory. Only what is found there again is taken;
//! anywhere else it is made exclusively. As
//! this is written before the device is made, kill -9 at any moment leaves no device that nobody knows.
//! Owned by the supervisor thread.

use crate::devices::{Connections, Found, OpenError, Opener, Running};
use crate::naming::UPLINK_PREFIX;
use api::host::{DeviceDriver, DeviceSpec, Plug, SocketRole};
use api::model::InterfaceId;
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use switch::af_xdp::program::Steering;
use switch::config::MTU_DEFAULT;
use switch::device::{Counting, DeviceConfig, Driver, HostDevice};
use switch::netns;
use switch::port::{Device, Place};
use switch::tap::{Tap, TapConfig, TapError};
use vhost::backend::{Backend, BackendConfig, Role, state_path};

/// Where it is written down, durably, which TAPs and sockets are ours.
pub(crate) trait MadeBook: Send + Sync {
    /// Notes where the TAP of a plug is about to be made, or that it is not there (`None`).
    ///
    /// # Errors
    /// One line if it could not be made durable.
    fn note_made(&self, interface: &InterfaceId, made: Option<String>) -> Result<(), String>;
}

/// How sockets that we make are owned.
#[derive(Clone, Debug, Default)]
pub(crate) struct SocketRights {
    /// Owner and group; `None`: ours.
    pub(crate) owner: (Option<u32>, Option<u32>),
    /// Permission bits.
    pub(crate) mode: u32,
}

/// Opens the devices of this host.
pub(crate) struct HostOpener {
    rights: SocketRights,
    /// Where the files lie that tell where packed rings stand.
    rings_dir: PathBuf,
    boot: String,
    book: OnceLock<Weak<dyn MadeBook>>,
    /// Which frames of an uplink's interface are ours; all of any other's.
    steering: OnceLock<Vec<(DeviceSpec, Steering)>>,
    /// TAPs whose making was written down in this run and then failed: what has their name meanwhile is not ours.
    unmade: Mutex<HashSet<InterfaceId>>,
}

impl HostOpener {
    /// An opener; [`HostOpener::keep_book`] before the first TAP.
    pub(crate) fn new(rights: SocketRights, rings_dir: PathBuf) -> HostOpener {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.trim().to_owned();
        let (book, steering) = (OnceLock::new(), OnceLock::new());
        HostOpener { rights, rings_dir, boot, book, steering, unmade: Mutex::default() }
    }

    /// Which frames of the uplinks are ours; before the first of them is opened.
    pub(crate) fn steer(&self, steering: Vec<(DeviceSpec, Steering)>) {
        assert!(self.steering.set(steering).is_ok(), "it is told once");
    }

    /// Which frames of a device are ours.
    fn steering_of(&self, device: &DeviceSpec) -> Steering {
        let known = self.steering.get().into_iter().flatten().find(|(uplink, _)| uplink == device);
        known.map_or(Steering::Everything, |(_, steering)| steering.clone())
    }

    /// Where TAPs are written down.
    pub(crate) fn keep_book(&self, book: Weak<dyn MadeBook>) {
        assert!(self.book.set(book).is_ok(), "one book is kept");
    }

    fn note(&self, interface: &InterfaceId, made: Option<String>) -> Result<(), OpenError> {
        match self.book.get().and_then(Weak::upgrade) {
            Some(book) => book.note_made(interface, made).map_err(failed),
            None => Err(failed("the daemon is shutting down")),
        }
    }

    fn open_tap(
        &self,
        plug: &Plug,
        name: &str,
        netns: Option<&str>,
        queues: u16,
        place: Arc<dyn Place>,
    ) -> Result<Box<dyn Running>, OpenError> {
        let handle = match netns {
            Some(path) => netns::open(path).map_err(|error| namespace_failed(path, &error))?,
            None => netns::own().map_err(|error| namespace_failed("/proc/self/ns/net", &error))?,
        };
        let here = self.whereabouts(&handle).map_err(failed)?;
        let mut unmade = self.unmade.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = plug.made.as_deref() == Some(&here) && !unmade.contains(&plug.interface);
        if !is_ours {
            let is_taken = netns::has_interface(netns.map(|_| handle.as_fd()), name)
                .map_err(|error| namespace_failed(netns.unwrap_or("our own"), &error))?;
            if is_taken {
                return Err(OpenError { reason: interface_in_the_way(name), is_name_taken: true });
            }
            if plug.made.as_deref() != Some(&here) {
                self.note(&plug.interface, Some(here))?;
            }
        }
        let config =
            TapConfig { name: name.to_owned(), netns: netns.map(|_| handle), mtu: plug.mtu, queues, reopen: is_ours };
        match Tap::open(config, place) {
            Ok(tap) => {
                unmade.remove(&plug.interface);
                Ok(Box::new(tap))
            }
            Err(error) => {
                if !is_ours {
                    unmade.insert(plug.interface.clone());
                }
                let is_name_taken = matches!(error, TapError::NameTaken { .. });
                Err(OpenError { reason: error.to_string(), is_name_taken })
            }
        }
    }

    fn open_socket(
        &self,
        plug: &Plug,
        path: &str,
        role: SocketRole,
        place: Arc<dyn Place>,
    ) -> Result<Box<dyn Running>, OpenError> {
        let role = match role {
            SocketRole::Server => {
                self.take_path(plug, path)?;
                Role::Server
            }
            SocketRole::Client => Role::Client,
        };
        let config = BackendConfig {
            path: PathBuf::from(path),
            role,
            mtu: plug.mtu.unwrap_or(MTU_DEFAULT),
            owner: self.rights.owner,
            mode: self.rights.mode,
            peer_uids: self.rights.owner.0.into_iter().collect(),
            state_file: Some(state_path(&self.rings_dir, Path::new(path))),
        };
        let backend = Backend::start(config, place).map_err(|error| failed(error.to_string()))?;
        Ok(Box::new(backend))
    }

    /// Makes sure that what may lie at a socket's path is what we made there. Like a TAP, a socket outlives kill -9, and
    /// nothing about it tells whose it was; so its directory is written down before it is made.
    fn take_path(&self, plug: &Plug, path: &str) -> Result<(), OpenError> {
        if plug.interface.starts_with(UPLINK_PREFIX) {
            // The settings say at every start whose it is; one that somebody listens on the backend leaves alone.
            return Ok(());
        }
        let directory = Path::new(path).parent().unwrap_or(Path::new("/"));
        let stat = rustix::fs::stat(directory)
            .map_err(|error| failed(format!("the socket's directory {}: {error}", directory.display())))?;
        let here = format!("{}:{}", stat.st_dev, stat.st_ino);
        if plug.made.as_deref() == Some(&here) {
            return Ok(());
        }
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(failed(format!("{path} exists already and is not ours")));
        }
        self.note(&plug.interface, Some(here))
    }

    /// This boot and this namespace: a TAP never outlives the one and never leaves the other by itself.
    fn whereabouts(&self, netns: &OwnedFd) -> Result<String, String> {
        let stat = rustix::fs::fstat(netns).map_err(|error| format!("looking at the namespace: {error}"))?;
        Ok(format!("{}/{}:{}", self.boot, stat.st_dev, stat.st_ino))
    }
}

fn open_device(
    name: &str,
    netns: Option<&str>,
    driver: Option<DeviceDriver>,
    steering: Steering,
    place: Arc<dyn Place>,
) -> Result<Box<dyn Running>, OpenError> {
    let handle = netns.map(|path| netns::open(path).map_err(|error| namespace_failed(path, &error))).transpose()?;
    let driver = driver.map(|driver| match driver {
        DeviceDriver::AfPacket => Driver::AfPacket,
        DeviceDriver::AfXdp => Driver::AfXdp,
    });
    let config = DeviceConfig { name: name.to_owned(), netns: handle, driver, steering };
    let device = HostDevice::open(config, place).map_err(|error| failed(error.to_string()))?;
    if device.are_tags_lost() {
        tracing::warn!(
            device = name,
            "the device takes VLAN tags out of frames (rx-vlan-offload) and cannot be told not to: by AF_XDP they are lost"
        );
    }
    Ok(Box::new(device))
}

fn failed(reason: impl Into<String>) -> OpenError {
    OpenError { reason: reason.into(), is_name_taken: false }
}

fn namespace_failed(path: &str, error: &std::io::Error) -> OpenError {
    match error.kind() {
        std::io::ErrorKind::NotFound => failed(format!("the network namespace {path} is gone")),
        _ => failed(format!("network namespace {path}: {error}")),
    }
}

/// Whether a device that no plug has could be made; what stands in the way otherwise, in one line. Whose socket a socket
/// is, the backend finds out; a namespace that cannot be entered yet is waited for.
pub(crate) fn check_is_free(device: &DeviceSpec) -> Result<(), String> {
    match device {
        DeviceSpec::VhostUser { path, role: SocketRole::Server } => match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => Err(format!("{path:?} exists already and is no socket")),
            _ => Ok(()),
        },
        // Somebody else's in any case.
        DeviceSpec::VhostUser { role: SocketRole::Client, .. }
        | DeviceSpec::Device { .. }
        | DeviceSpec::Vlan { .. } => Ok(()),
        DeviceSpec::Tap { name, netns, .. } => {
            let Ok(netns) = netns.as_deref().map(netns::open).transpose() else { return Ok(()) };
            match netns::has_interface(netns.as_ref().map(AsFd::as_fd), name) {
                Ok(true) => Err(interface_in_the_way(name)),
                _ => Ok(()),
            }
        }
    }
}

fn interface_in_the_way(name: &str) -> String {
    format!("an interface named {name:?} exists already and is not ours")
}

impl Opener for HostOpener {
    fn open(&self, plug: &Plug, place: Arc<dyn Place>) -> Result<Box<dyn Running>, OpenError> {
        match &plug.device {
            DeviceSpec::Tap { name, netns, queues } => self.open_tap(plug, name, netns.as_deref(), *queues, place),
            DeviceSpec::VhostUser { path, role } => self.open_socket(plug, path, *role, place),
            DeviceSpec::Device { name, netns, driver } => {
                open_device(name, netns.as_deref(), *driver, self.steering_of(&plug.device), place)
            }
            DeviceSpec::Vlan { parent, .. } => Err(failed(format!("its device is that of {parent:?}"))),
        }
    }

    fn forget(&self, plug: &Plug) {
        if let DeviceSpec::VhostUser { path, .. } = &plug.device {
            // It is there only if a guest had packed rings when a switch before this one ran.
            let _ = std::fs::remove_file(state_path(&self.rings_dir, Path::new(path)));
        }
    }
}

impl Running for Tap {
    fn is_lost(&self) -> bool {
        !self.state().is_ready
    }

    fn set_mtu(&self, mtu: u16) -> Result<bool, String> {
        Tap::set_mtu(self, mtu).map(|()| true).map_err(|error| error.to_string())
    }

    fn remove(self: Box<Self>) {
        Tap::remove(*self);
    }
}

impl Running for HostDevice {
    fn is_lost(&self) -> bool {
        self.status().is_none() || self.is_outdated()
    }

    fn found(&self) -> Option<Found> {
        let status = self.status();
        Some(Found {
            mtu: status.as_ref().map(|status| status.mtu),
            mac: status.as_ref().map(|status| status.mac).unwrap_or_default(),
            link_index: status.map_or(0, |status| status.index),
            driver: self.driver().name(),
            mode: self.mode(),
            counters: HostDevice::counting(self).last(),
        })
    }

    fn counting(&self) -> Option<Arc<Counting>> {
        Some(HostDevice::counting(self).clone())
    }

    /// Nothing of it is ours.
    fn remove(self: Box<Self>) {}
}

impl Running for Backend {
    /// A backend mends itself, its thread accepts or connects again for ever; but not a socket whose file was removed.
    fn is_lost(&self) -> bool {
        self.has_lost_socket()
    }

    /// The frontend has told the guest its own; a later one is held against this.
    fn set_mtu(&self, mtu: u16) -> Result<bool, String> {
        Backend::set_mtu(self, mtu);
        Ok(true)
    }

    fn connections(&self) -> Option<Connections> {
        let counters = self.counters();
        Some(Connections { sessions: counters.sessions, refused: counters.refused })
    }

    fn remove(self: Box<Self>) {
        Backend::remove(*self);
    }
}
