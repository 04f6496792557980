//! `qvs plug`, of which most is how to name a device.

use super::Daemon;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `qvs plug`
#[derive(Args, Debug)]
#[command(after_help = "\
A plug is durable: the daemon brings the device back after every restart, and retries for ever until it is there. It may \
come before or after the tenant's attachment. The same command twice is done once; other arguments for the same id, or \
the same device for another id, need --replace. A TAP keeps its addresses then, unless it changes from one queue to several \
or back, for which it is made anew.

A device (--device) is left as it is: its addresses, MTU and whether it is up are its owner's. It may come, go and come \
again. Its port is UP while it is there and up. By packet sockets (--driver af_packet, the default) the host's own stack \
still hears what comes in by it, checksums stay unfinished and TCP uncut. By AF_XDP (--driver af_xdp) the switch takes all \
frames before the host's stack sees them: less work for each frame, but checksums and cuts are made in software. It needs \
CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF and CAP_IPC_LOCK; frames of an interface with more than 16 queues cannot all be taken, so \
it is refused.

A trunk carries several networks to one guest: its own interface id is what goes without a tag, and each `qvs plug ID --parent TRUNK --vlan N` is another interface, for tenants to attach like any other, whose frames have tag N on the trunk's device and none on their network. A frame with a tag of no such VLAN is dropped, and so is one that a tenant of the untagged network put a tag on.

--role is always the SWITCH's role. libvirt's <source mode=...> and Nova's vhostuser_mode are QEMU's role, the opposite:
  qvs --role server  =  libvirt mode='client'   the switch listens, QEMU connects (QEMU's reconnect= survives our restart)
  qvs --role client  =  libvirt mode='server'   QEMU listens, the switch connects and reconnects; if it does not run as root, to
                                                sockets that its group may open: below /run/qvs-qemu with the packaged unit

Examples:
  qvs plug vm1-eth0 --vhost-user /run/qvs/vhost/vm1 --mac 52:54:00:00:00:01
  qvs plug web --tap tap-web --netns web --tenant red
  qvs plug box --device veth-box
  qvs plug lan --device eth1 --driver af_xdp
  qvs plug fw-red --parent firewall --vlan 100")]
#[group(skip)]
pub(crate) struct PlugArgs {
    /// Interface id: the text a tenant plugs as attachment
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// The VLAN of --parent: its frames have this tag there, and none on the network
    #[arg(long, value_name = "N", requires = "parent")]
    pub(crate) vlan: Option<u16>,
    /// The switch's role on the socket [default: vhost.role of the settings]
    #[arg(long, value_enum, conflicts_with_all = ["tap", "device", "parent"])]
    pub(crate) role: Option<RoleArg>,
    /// Namespace of the TAP or device: a name of `ip netns`, or a path, which the daemon's user must be able to open [default: the daemon's own]
    #[arg(long, value_name = "NAME|PATH", conflicts_with_all = ["vhost_user", "parent"])]
    pub(crate) netns: Option<String>,
    /// Queues of the TAP each way, 1 to 16: the kernel spreads its flows over them, the switch its workers [default: 1]
    #[arg(long, value_name = "N", conflicts_with_all = ["vhost_user", "device", "parent"])]
    pub(crate) queues: Option<u16>,
    /// How the frames of the device are moved [default: af_packet]
    #[arg(long, value_enum, conflicts_with_all = ["vhost_user", "tap", "parent"])]
    pub(crate) driver: Option<DriverArg>,
    /// A source MAC the interface may use; may be repeated [default: any, learnt]
    #[arg(long, value_name = "MAC")]
    pub(crate) mac: Vec<String>,
    /// An address that the interface has with its one --mac; may be repeated. Others on its network who ask for it (ARP, ND) are
    /// answered by the switch. Not for routers of IPv6
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip: Vec<String>,
    /// Bytes of L3 payload a frame may have, 68 to 65521 [default: what its network lets through, at most 1500; of a device, what it has]
    #[arg(long, value_name = "N")]
    pub(crate) mtu: Option<u16>,
    /// The only tenant whose networks the interface may join [default: any]
    #[arg(long, value_name = "T")]
    pub(crate) tenant: Option<String>,
    /// Take the place of what conflicts
    #[arg(long)]
    pub(crate) replace: bool,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

/// The device of a plug: exactly one.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct DeviceArgs {
    /// A vhost-user socket: absolute, at most 107 bytes
    #[arg(long, value_name = "PATH")]
    pub(crate) vhost_user: Option<PathBuf>,
    /// A TAP that the daemon makes: at most 15 bytes
    #[arg(long, value_name = "NAME")]
    pub(crate) tap: Option<String>,
    /// An interface that is there or will be, made by somebody else: a veth end, QEMU's TAP, a NIC
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// A VLAN (--vlan) of the device that this other interface is plugged with, which becomes a trunk by it
    #[arg(long, value_name = "ID", requires = "vlan")]
    pub(crate) parent: Option<String>,
}

/// How the frames of a device are moved.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DriverArg {
    /// Packet sockets: checksums and large frames stay as they are
    #[value(name = "af_packet")]
    AfPacket,
    /// AF_XDP: frames come before the host's stack sees them; checksums and cuts are made in software
    #[value(name = "af_xdp")]
    AfXdp,
}

/// Who listens on a vhost-user socket.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RoleArg {
    /// The switch listens, QEMU connects (libvirt: mode='client')
    Server,
    /// QEMU listens, the switch connects (libvirt: mode='server')
    Client,
}
