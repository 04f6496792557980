//! The XDP program of a device: which of its frames are ours. It is put together here, instruction by instruction, so that no
//! compiler for it is needed to build or to run the switch.
//!
//! A plugged device gives us [`Steering::Everything`]. An uplink shares its interface with the host: only what was
//! configured is taken ([`Steering::Only`]), found by one look into a set for the frame's VLAN and one for its tunnel;
//! all else, ARP and neighbour discovery of the host's addresses among it, goes on to the host. Fragments go there too,
//! for a later one does not tell its port. A frame of ours that comes by a queue without a socket goes to the host only until each
//! queue has one: a queue that is added later must not show a tenant's frames to the host, so they are dropped and counted.
//!
//! What makes it harder than it looks: the kernel's verifier must see that every byte is inside the frame before it is read,
//! on each way that leads there. The tests run the program in the kernel over frames and hold it against a plain reading.

mod assembler;

use super::bpf::{CountMap, KeySet, Program, SocketMap};
pub(super) use assembler::Instruction;
use assembler::{Assembler, Label, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Register, Size};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

/// Which frames of an interface come to the switch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Steering {
    /// All.
    #[default]
    Everything,
    /// All but LACP's and the like, and tunnels end here: their inner frames are looked at for what their senders left to do.
    Exclusive(Ours),
    /// These; the host gets the others.
    Only(Ours),
}

impl Steering {
    /// UDP ports of the tunnels that end here.
    pub(super) fn tunnel_ports(&self) -> Vec<u16> {
        let (Steering::Exclusive(ours) | Steering::Only(ours)) = self else { return Vec::new() };
        let port = |end: &TunnelEnd| match end.carrier {
            Carrier::Udp(port) => Some(port),
            Carrier::Gre => None,
        };
        let ports: BTreeSet<u16> = ours.tunnels.iter().filter_map(port).collect();
        ports.into_iter().collect()
    }

    /// Whether frames with VLAN tags can be ours.
    pub(super) fn has_tags(&self) -> bool {
        match self {
            Steering::Everything | Steering::Exclusive(_) => true,
            Steering::Only(ours) => !ours.vlans.is_empty(),
        }
    }

    /// Whether tunnels end here.
    pub(super) fn has_tunnels(&self) -> bool {
        matches!(self, Steering::Exclusive(ours) | Steering::Only(ours) if !ours.tunnels.is_empty())
    }
}

/// What of an interface is ours.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ours {
    /// VLANs, by the outermost tag if that is one of IEEE 802.1Q; the numbers of service tags (802.1ad) are others. Frames with a
    /// priority tag (VLAN 0) are untagged.
    pub vlans: BTreeSet<u16>,
    /// Ends of tunnels.
    pub tunnels: BTreeSet<TunnelEnd>,
}

/// Where tunnels of ours end. Those on an interface that the host shares have no tag, or one of priority alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TunnelEnd {
    /// Our address.
    pub local: IpAddr,
    /// What carries them.
    pub carrier: Carrier,
}

/// What carries a tunnel on top of IP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Carrier {
    /// UDP to this port (RFC 7348, RFC 8926).
    Udp(u16),
    /// GRE (RFC 2784).
    Gre,
}

/// Most VLANs and tunnels together.
const KEYS_MAX: usize = 4096 + 64;
/// Bytes of a key: kind, IP protocol, VLAN (host byte order), port (network byte order), IP version, nothing, address (an IPv4
/// one in its last four bytes).
pub(super) const KEY_SIZE: usize = 24;
const KIND_VLAN: u8 = 1;
const KIND_TUNNEL: u8 = 2;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_GRE: u8 = 47;

impl Ours {
    /// The keys that the program looks for; at most [`KEYS_MAX`] of them.
    fn keys(&self) -> Vec<[u8; KEY_SIZE]> {
        let vlan_key = |vlan: &u16| {
            let mut key = [0; KEY_SIZE];
            key[0] = KIND_VLAN;
            key[2..4].copy_from_slice(&vlan.to_ne_bytes());
            key
        };
        let tunnel_key = |end: &TunnelEnd| {
            let mut key = [0; KEY_SIZE];
            let (protocol, port) = match end.carrier {
                Carrier::Udp(port) => (PROTOCOL_UDP, port),
                Carrier::Gre => (PROTOCOL_GRE, 0),
            };
            (key[0], key[1]) = (KIND_TUNNEL, protocol);
            key[4..6].copy_from_slice(&port.to_be_bytes());
            match end.local {
                IpAddr::V4(address) => {
                    key[6] = 4;
                    key[20..].copy_from_slice(&address.octets());
                }
                IpAddr::V6(address) => {
                    key[6] = 6;
                    key[8..].copy_from_slice(&address.octets());
                }
            }
            key
        };
        let vlans = self.vlans.iter().map(vlan_key);
        vlans.chain(self.tunnels.iter().map(tunnel_key)).take(KEYS_MAX).collect()
    }
}

/// What becomes of a frame that is ours and has no socket (`enum xdp_action`).
#[derive(Clone, Copy)]
pub(super) enum Unclaimed<'a> {
    /// The host gets it.
    Pass,
    /// It is dropped, and counted here.
    Drop(&'a CountMap),
}

pub(super) const DROP: i32 = 1;
pub(super) const PASS: i32 = 2;
const REDIRECT: i32 = 4;

/// A loaded program and the set it looks into.
pub(super) struct Steered {
    pub(super) program: Program,
    keys: Option<KeySet>,
}

impl Steered {
    /// A program for the same `steering` and set.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn again(
        self,
        steering: &Steering,
        sockets: &SocketMap,
        unclaimed: Unclaimed<'_>,
    ) -> io::Result<Steered> {
        let program = Program::load(&program(steering, sockets, self.keys.as_ref(), unclaimed))?;
        Ok(Steered { program, keys: self.keys })
    }
}

/// Loads the program for `steering`.
///
/// # Errors
/// The system's: `EPERM` without CAP_BPF and CAP_NET_ADMIN.
pub(super) fn load(steering: &Steering, sockets: &SocketMap, unclaimed: Unclaimed<'_>) -> io::Result<Steered> {
    let keys = match steering {
        Steering::Everything | Steering::Exclusive(_) => None,
        Steering::Only(ours) => Some(KeySet::new(&ours.keys())?),
    };
    let program = Program::load(&program(steering, sockets, keys.as_ref(), unclaimed))?;
    Ok(Steered { program, keys })
}

fn program(
    steering: &Steering,
    sockets: &SocketMap,
    keys: Option<&KeySet>,
    unclaimed: Unclaimed<'_>,
) -> Vec<Instruction> {
    match (steering, keys) {
        (Steering::Everything, _) => everything(sockets, unclaimed),
        (Steering::Exclusive(_), _) => exclusive(sockets, unclaimed),
        (Steering::Only(_), keys) => only(sockets, keys.expect("`load` made the set"), unclaimed),
    }
}

// Offsets in `struct xdp_md`, and functions of the kernel (linux/bpf.h).
const MD_DATA: i16 = 0;
const MD_DATA_END: i16 = 4;
const MD_RX_QUEUE_INDEX: i16 = 16;
const CALL_MAP_LOOKUP: i32 = 1;
const CALL_REDIRECT_MAP: i32 = 51;
/// Where the key is built, from the end of the stack.
const KEY: i16 = -(KEY_SIZE as i16);

impl Assembler {
    /// Goes to `label` unless `len` bytes from `start` on are inside the frame.
    fn need(&mut self, start: Register, len: i32, label: Label) {
        self.copy(R2, start);
        self.add(R2, len);
        self.jump_if_above(R2, R8, label);
    }

    /// Gives the frame to the socket of its queue and ends.
    fn redirect(&mut self, sockets: &SocketMap, unclaimed: Unclaimed<'_>) {
        self.load(Size::Four, R2, R6, MD_RX_QUEUE_INDEX);
        self.map(R1, sockets.number());
        // What the call answers if the queue has none.
        self.set(R3, if matches!(unclaimed, Unclaimed::Pass) { PASS } else { DROP });
        self.call(CALL_REDIRECT_MAP);
        if let Unclaimed::Drop(count) = unclaimed {
            let end = self.label();
            self.jump_if_equal(R0, REDIRECT, end);
            self.store_number(Size::Four, R10, KEY, 0);
            self.look(count.number());
            let is_counted = self.label();
            self.jump_if_equal(R0, 0, is_counted);
            self.set(R1, 1);
            self.add_there(R0, R1);
            self.here(is_counted);
            self.set(R0, DROP);
            self.here(end);
        }
        self.exit();
    }

    /// Both ends of a program: here frames are ours, and there the host's.
    fn end(&mut self, ours: Label, pass: Label, sockets: &SocketMap, unclaimed: Unclaimed<'_>) {
        self.here(ours);
        self.redirect(sockets, unclaimed);
        self.here(pass);
        self.set(R0, PASS);
        self.exit();
    }

    /// Looks for the key in the map of this number; R0 is where its value lies, or zero.
    fn look(&mut self, map: i32) {
        self.map(R1, map);
        self.copy(R2, R10);
        self.add(R2, i32::from(KEY));
        self.call(CALL_MAP_LOOKUP);
    }
}

/// The program that takes every frame.
fn everything(sockets: &SocketMap, unclaimed: Unclaimed<'_>) -> Vec<Instruction> {
    let mut program = Assembler::default();
    program.copy(R6, R1);
    program.redirect(sockets, unclaimed);
    program.finish()
}

/// The program that takes every frame but those of the Slow Protocols (IEEE 802.3 annex 57A), which are for whoever speaks LACP on
/// the interface: our own control side, by a socket of the host's.
fn exclusive(sockets: &SocketMap, unclaimed: Unclaimed<'_>) -> Vec<Instruction> {
    let mut program = Assembler::default();
    let asm = &mut program;
    let [ours, pass] = std::array::from_fn(|_| asm.label());
    asm.copy(R6, R1);
    asm.load(Size::Four, R7, R6, MD_DATA);
    asm.load(Size::Four, R8, R6, MD_DATA_END);
    asm.need(R7, 14, ours);
    asm.load(Size::Two, R3, R7, 12);
    asm.jump_if_equal(R3, wire(0x8809), pass);
    asm.end(ours, pass, sockets, unclaimed);
    program.finish()
}

/// A program that does the same with every frame (`enum xdp_action`).
#[cfg(feature = "testing")]
pub(super) fn always(action: i32) -> Vec<Instruction> {
    let mut program = Assembler::default();
    program.set(R0, action);
    program.exit();
    program.finish()
}

/// 16 bits in network byte order, as a load of this machine sees them.
fn wire(number: u16) -> i32 {
    i32::from(number.to_be())
}

/// The program that takes the frames whose key is in the set.
fn only(sockets: &SocketMap, keys: &KeySet, unclaimed: Unclaimed<'_>) -> Vec<Instruction> {
    let mut program = Assembler::default();
    let asm = &mut program;
    let [tagged, network, ipv4, ipv6, transport, gre, ours, pass] = std::array::from_fn(|_| asm.label());
    asm.copy(R6, R1);
    asm.load(Size::Four, R7, R6, MD_DATA);
    asm.load(Size::Four, R8, R6, MD_DATA_END);
    for at in [0, 8, 16] {
        asm.store_number(Size::Eight, R10, KEY + at, 0);
    }
    // R3: EtherType. R9: where the header behind it begins.
    asm.need(R7, 14, pass);
    asm.load(Size::Two, R3, R7, 12);
    asm.copy(R9, R7);
    asm.add(R9, 14);
    asm.jump_if_equal(R3, wire(0x8100), tagged);
    asm.jump(network);

    asm.here(tagged);
    asm.need(R7, 18, pass);
    asm.load(Size::Two, R4, R7, 14);
    asm.be16_to_host(R4);
    asm.and(R4, 0xfff);
    asm.store(Size::Two, R10, KEY + 2, R4);
    asm.store_number(Size::One, R10, KEY, i32::from(KIND_VLAN));
    asm.look(keys.number());
    asm.jump_unless_equal(R0, 0, ours);
    asm.load(Size::Two, R3, R7, 16);
    asm.copy(R9, R7);
    asm.add(R9, 18);

    asm.here(network);
    asm.store_number(Size::One, R10, KEY, i32::from(KIND_TUNNEL));
    asm.jump_if_equal(R3, wire(0x0800), ipv4);
    asm.jump_if_equal(R3, wire(0x86dd), ipv6);
    asm.jump(pass);

    asm.here(ipv4);
    asm.need(R9, 20, pass);
    // Neither more fragments nor an offset.
    asm.load(Size::Two, R4, R9, 6);
    asm.and(R4, wire(0x3fff));
    asm.jump_unless_equal(R4, 0, pass);
    asm.store_number(Size::One, R10, KEY + 6, 4);
    asm.load(Size::Four, R4, R9, 16);
    asm.store(Size::Four, R10, KEY + 20, R4);
    asm.load(Size::One, R3, R9, 9);
    asm.load(Size::One, R4, R9, 0);
    asm.and(R4, 0xf);
    // Each length by itself: to add what is not known beforehand to a pointer into a frame takes CAP_PERFMON.
    for words in 5..=15 {
        let next = asm.label();
        asm.jump_unless_equal(R4, words, next);
        asm.add(R9, 4 * words);
        asm.jump(transport);
        asm.here(next);
    }
    asm.jump(pass);

    asm.here(ipv6);
    asm.need(R9, 40, pass);
    asm.store_number(Size::One, R10, KEY + 6, 6);
    for (from, to) in [(24, 8), (32, 16)] {
        asm.load(Size::Eight, R4, R9, from);
        asm.store(Size::Eight, R10, KEY + to, R4);
    }
    asm.load(Size::One, R3, R9, 6);
    asm.add(R9, 40);

    asm.here(transport);
    asm.store(Size::One, R10, KEY + 1, R3);
    asm.jump_if_equal(R3, i32::from(PROTOCOL_GRE), gre);
    asm.jump_unless_equal(R3, i32::from(PROTOCOL_UDP), pass);
    asm.need(R9, 8, pass);
    asm.load(Size::Two, R4, R9, 2);
    asm.store(Size::Two, R10, KEY + 4, R4);

    asm.here(gre);
    asm.look(keys.number());
    asm.jump_if_equal(R0, 0, pass);

    asm.end(ours, pass, sockets, unclaimed);
    program.finish()
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
