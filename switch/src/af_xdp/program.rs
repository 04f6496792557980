//! The XDP program of a device: which of its frames are ours. It is put together here, instruction by instruction, so that no
//! compiler for it is needed to build or to run the switch.
//!
//! A plugged device gives us [`Steering::Everything`]. An uplink shares its interface with the host: only what was
//! configured is taken ([`Steering::Only`]), found by one look into a set for the frame's VLAN and one for its tunnel;
//! all else, ARP and neighbour discovery of the host's addresses among it, goes on to the host. Fragments go there too,
//! for a later one does not tell its port. A frame of a queue that we have no socket for goes to the host.
//!
//! What makes it harder than it looks: the kernel's verifier must see that every byte is inside the frame before it is read,
//! on each way that leads there. The tests run the program in the kernel over frames and hold it against a plain reading.

use super::bpf::{KeySet, Program, SocketMap};
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
    /// VLANs, by the outermost tag (IEEE 802.1Q or 802.1ad). Frames with a priority tag (VLAN 0) are untagged.
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unclaimed {
    /// It is dropped: for tests, which have no socket.
    #[cfg(test)]
    Drop,
    /// The host gets it.
    Pass,
}

#[cfg(feature = "testing")]
pub(super) const DROP: i32 = 1;
pub(super) const PASS: i32 = 2;

impl Unclaimed {
    fn action(self) -> i32 {
        match self {
            #[cfg(test)]
            Unclaimed::Drop => 1,
            Unclaimed::Pass => PASS,
        }
    }
}

/// A loaded program and the set it looks into.
pub(super) struct Steered {
    pub(super) program: Program,
    _keys: Option<KeySet>,
}

/// Loads the program for `steering`.
///
/// # Errors
/// The system's: `EPERM` without CAP_BPF and CAP_NET_ADMIN.
pub(super) fn load(steering: &Steering, sockets: &SocketMap, unclaimed: Unclaimed) -> io::Result<Steered> {
    match steering {
        Steering::Everything => {
            let program = Program::load(&everything(sockets, unclaimed))?;
            Ok(Steered { program, _keys: None })
        }
        Steering::Exclusive(_) => {
            let program = Program::load(&exclusive(sockets, unclaimed))?;
            Ok(Steered { program, _keys: None })
        }
        Steering::Only(ours) => {
            let keys = KeySet::new(&ours.keys())?;
            let program = Program::load(&only(sockets, &keys, unclaimed))?;
            Ok(Steered { program, _keys: Some(keys) })
        }
    }
}

/// An instruction as the kernel reads it: operation, registers, offset and number.
pub(super) type Instruction = u64;

/// A register. R0: what a call answers; R1 to R5: what it is asked; R6 to R9 survive it; R10: the end of the stack.
type Register = u8;
const R0: Register = 0;
const R1: Register = 1;
const R2: Register = 2;
const R3: Register = 3;
const R4: Register = 4;
const R6: Register = 6;
const R7: Register = 7;
const R8: Register = 8;
const R9: Register = 9;
const R10: Register = 10;

/// How many bytes are loaded or stored (`BPF_B`, `BPF_H`, `BPF_W`, `BPF_DW`).
#[derive(Clone, Copy)]
enum Size {
    One = 0x10,
    Two = 0x08,
    Four = 0x00,
    Eight = 0x18,
}

/// A place in the program that is jumped to; where it is may be said later.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Label(usize);

// Offsets in `struct xdp_md`, and functions of the kernel (linux/bpf.h).
const MD_DATA: i16 = 0;
const MD_DATA_END: i16 = 4;
const MD_RX_QUEUE_INDEX: i16 = 16;
const CALL_MAP_LOOKUP: i32 = 1;
const CALL_REDIRECT_MAP: i32 = 51;
/// Where the key is built, from the end of the stack.
const KEY: i16 = -(KEY_SIZE as i16);

/// Puts instructions behind each other.
#[derive(Default)]
struct Assembler {
    instructions: Vec<Instruction>,
    /// By label: the instruction it stands before.
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn put(&mut self, operation: u8, to: Register, from: Register, offset: i16, number: i32) {
        let registers = from << 4 | to;
        let low = [operation, registers, offset.to_ne_bytes()[0], offset.to_ne_bytes()[1]];
        let number = number.to_ne_bytes();
        let bytes = [low[0], low[1], low[2], low[3], number[0], number[1], number[2], number[3]];
        self.instructions.push(u64::from_ne_bytes(bytes));
    }

    fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    fn here(&mut self, label: Label) {
        self.labels[label.0] = Some(self.instructions.len());
    }

    fn set(&mut self, to: Register, number: i32) {
        self.put(0xb7, to, 0, 0, number);
    }

    fn copy(&mut self, to: Register, from: Register) {
        self.put(0xbf, to, from, 0, 0);
    }

    fn add(&mut self, to: Register, number: i32) {
        self.put(0x07, to, 0, 0, number);
    }

    fn and(&mut self, to: Register, number: i32) {
        self.put(0x57, to, 0, 0, number);
    }

    /// Makes host byte order of 16 bits in network byte order.
    fn be16_to_host(&mut self, to: Register) {
        self.put(0xdc, to, 0, 0, 16);
    }

    fn load(&mut self, size: Size, to: Register, from: Register, offset: i16) {
        self.put(0x61 | size as u8, to, from, offset, 0);
    }

    fn store(&mut self, size: Size, to: Register, offset: i16, from: Register) {
        self.put(0x63 | size as u8, to, from, offset, 0);
    }

    fn store_number(&mut self, size: Size, to: Register, offset: i16, number: i32) {
        self.put(0x62 | size as u8, to, 0, offset, number);
    }

    /// The address of a map, by its descriptor; takes two instructions.
    fn map(&mut self, to: Register, descriptor: i32) {
        const PSEUDO_MAP_FD: u8 = 1;
        self.put(0x18, to, PSEUDO_MAP_FD, 0, descriptor);
        self.put(0, 0, 0, 0, 0);
    }

    fn call(&mut self, function: i32) {
        self.put(0x85, 0, 0, 0, function);
    }

    fn exit(&mut self) {
        self.put(0x95, 0, 0, 0, 0);
    }

    fn jump(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.put(0x05, 0, 0, 0, 0);
    }

    fn jump_if_equal(&mut self, register: Register, number: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.put(0x15, register, 0, 0, number);
    }

    fn jump_unless_equal(&mut self, register: Register, number: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.put(0x55, register, 0, 0, number);
    }

    fn jump_if_above(&mut self, one: Register, other: Register, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.put(0x2d, one, other, 0, 0);
    }

    /// Goes to `label` unless `len` bytes from `start` on are inside the frame.
    fn need(&mut self, start: Register, len: i32, label: Label) {
        self.copy(R2, start);
        self.add(R2, len);
        self.jump_if_above(R2, R8, label);
    }

    /// Gives the frame to the socket of its queue and ends.
    fn redirect(&mut self, sockets: &SocketMap, unclaimed: Unclaimed) {
        self.load(Size::Four, R2, R6, MD_RX_QUEUE_INDEX);
        self.map(R1, sockets.number());
        self.set(R3, unclaimed.action());
        self.call(CALL_REDIRECT_MAP);
        self.exit();
    }

    /// Both ends of a program: here frames are ours, and there the host's.
    fn end(&mut self, ours: Label, pass: Label, sockets: &SocketMap, unclaimed: Unclaimed) {
        self.here(ours);
        self.redirect(sockets, unclaimed);
        self.here(pass);
        self.set(R0, PASS);
        self.exit();
    }

    /// Looks for the key; R0 is not zero if it is there.
    fn look(&mut self, keys: &KeySet) {
        self.map(R1, keys.number());
        self.copy(R2, R10);
        self.add(R2, i32::from(KEY));
        self.call(CALL_MAP_LOOKUP);
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let to = self.labels[label.0].expect("every label stands somewhere");
            let offset = i16::try_from(to as i64 - at as i64 - 1).expect("a short program");
            self.instructions[at] |= u64::from(offset.cast_unsigned()) << 16;
        }
        self.instructions
    }
}

/// The program that takes every frame.
fn everything(sockets: &SocketMap, unclaimed: Unclaimed) -> Vec<Instruction> {
    let mut program = Assembler::default();
    program.copy(R6, R1);
    program.redirect(sockets, unclaimed);
    program.finish()
}

/// The program that takes every frame but those of the Slow Protocols (IEEE 802.3 annex 57A), which are for whoever speaks LACP on
/// the interface: our own control side, by a socket of the host's.
fn exclusive(sockets: &SocketMap, unclaimed: Unclaimed) -> Vec<Instruction> {
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
fn only(sockets: &SocketMap, keys: &KeySet, unclaimed: Unclaimed) -> Vec<Instruction> {
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
    asm.jump_if_equal(R3, wire(0x88a8), tagged);
    asm.jump(network);

    asm.here(tagged);
    asm.need(R7, 18, pass);
    asm.load(Size::Two, R4, R7, 14);
    asm.be16_to_host(R4);
    asm.and(R4, 0xfff);
    asm.store(Size::Two, R10, KEY + 2, R4);
    asm.store_number(Size::One, R10, KEY, i32::from(KIND_VLAN));
    asm.look(keys);
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
    asm.look(keys);
    asm.jump_if_equal(R0, 0, pass);

    asm.end(ours, pass, sockets, unclaimed);
    program.finish()
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
