//! Stage 4, bridge: learns where the source lives, looks the destination up, forwards or floods within the network.
//!
//! What makes it hard: the MAC table is larger than the caches, so each frame's addresses are hashed and their slots prefetched
//! as it passes, and [`answer`] resolves them at the end of the batch. Guests send bursts to one peer: an address equal to the
//! one before it is not looked up again. And the table may lag behind the config by a moment: what it says of a port
//! counts only if that port is on the packet's network now; otherwise the address is unknown (defence in depth for
//! invariant 2, no frame crosses networks).
//!
//! As bridges do: the source of a frame to 01:80:C2:00:00:0X is not learnt, that of any other frame is, delivered or
//! not. A refused or full table is no reason to drop. A flood goes to the network's other members whose state is
//! up; a member that is down is no member and is not counted (an operator who took a port down does not want its drops to
//! grow with every ARP). A unicast to a port that is down is dropped and counted there.
//! A question for a neighbour of whom the control plane told is answered instead of flooded ([`crate::neighbour::suppression`]).
//! Who sends to another host what is too long for the way there is told so ([`crate::too_long`]).
//! A port with fixed MACs teaches nothing: guard lets only those pass, and they are in the table as static entries.
//!
//! Config read: neighbours, members of networks, network, state and MTU of the egress port; from the shared MAC table: addresses.
//! Drop reasons, at the ingress: `link_local_multicast`, `reflection`, `no_receiver`, `split_horizon`; at the egress: `port_admin_down`,
//! `over_mtu`, `tagged_on_native`, `flood_limited`.

mod trace;

use crate::neighbour::suppression;
use crate::parse::l3_len;
use crate::stage::{Notes, Scope, Stage, Stop};
use crate::tables::{Member, PortKind, Tables};
use crate::too_long;
use std::ops::Range;
use switch::batch::{BURST, Batch};
use switch::ids::{MacBits, NetworkIndex, PORTS_MAX, PortIndex};
use switch::ledger::DropReason;
use switch::mac_table::{BurstView, Learned, Probe};
use switch::packet::Packet;
use switch::worker::Egress;

/// The stage.
pub const STAGE: Stage = Stage { name: "bridge", run, trace: trace::trace };

/// What the stage asks about a frame.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The port it came in by.
    pub ingress: PortIndex,
    /// Its network.
    pub network: NetworkIndex,
    /// Whom it is for.
    pub destination: MacBits,
    /// Bytes behind its Ethernet header and tags, of one segment if it will be cut.
    pub l3_len: usize,
    /// Whether it begins with a tag.
    pub is_tagged: bool,
}

impl Question {
    fn about(packet: &Packet, ingress: PortIndex, destination: MacBits) -> Question {
        let (network, l3_len, is_tagged) = (packet.network, l3_len(packet), packet.headers.vlan_count > 0);
        Question { ingress, network, destination, l3_len, is_tagged }
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// To one port.
    Forward(PortIndex),
    /// To each member of the network for which [`decide_copy`] says so.
    Flood,
    /// Dropped before it gets anywhere.
    Drop(DropReason),
    /// Dropped before the port it is bound for.
    DropAt(PortIndex, DropReason),
}

/// Whether a frame is to be dropped before anything is learnt from it.
#[inline]
pub fn is_unforwardable(destination: MacBits) -> bool {
    destination.is_link_local_group()
}

/// Decides about one frame. `known` is where the MAC table says that its destination lives.
#[inline]
pub fn decide(tables: &Tables, question: &Question, known: Option<PortIndex>) -> Verdict {
    if question.destination.is_group() {
        let is_unforwardable = is_unforwardable(question.destination);
        return if is_unforwardable { Verdict::Drop(DropReason::LinkLocalMulticast) } else { Verdict::Flood };
    }
    let Some(port) = known else { return Verdict::Flood };
    if port == question.ingress {
        return Verdict::Drop(DropReason::Reflection);
    }
    let entry = tables.port(port);
    if entry.kind == PortKind::FarEnd {
        return decide_far(tables, question, port);
    }
    if entry.network != Some(question.network) {
        return Verdict::Flood;
    }
    if !entry.is_admin_up {
        return Verdict::DropAt(port, DropReason::PortAdminDown);
    }
    if entry.kind == PortKind::Trunk && question.is_tagged {
        return Verdict::DropAt(port, DropReason::TaggedOnNative);
    }
    if question.l3_len > usize::from(entry.mtu) {
        return Verdict::DropAt(port, DropReason::OverMtu);
    }
    Verdict::Forward(port)
}

/// Decides about a frame to an address on another host. Hosts send to all others by themselves, so none passes on for another
/// (split horizon).
fn decide_far(tables: &Tables, question: &Question, far_end: PortIndex) -> Verdict {
    let Some(mtu) = way_mtu(tables, far_end, question.network) else { return Verdict::Flood };
    if tables.port(question.ingress).kind == PortKind::FarEnd {
        return Verdict::Drop(DropReason::SplitHorizon);
    }
    if question.l3_len > usize::from(mtu) {
        return Verdict::DropAt(far_end, DropReason::OverMtu);
    }
    Verdict::Forward(far_end)
}

/// Bytes behind an Ethernet header that frames of a network may have on their way to a far end; `None`: it is none of theirs.
fn way_mtu(tables: &Tables, far_end: PortIndex, network: NetworkIndex) -> Option<u16> {
    let entry = tables.port(far_end);
    match entry.network {
        Some(its) => (its == network).then_some(entry.mtu),
        None => tables.underlay.mtu(far_end, network),
    }
}

/// Decides about the copy of a flood for one member; `None` where none is made.
#[inline]
pub fn decide_copy(tables: &Tables, question: &Question, member: Member) -> Option<Verdict> {
    if member.port == question.ingress {
        None
    } else if question.l3_len > usize::from(member.mtu) {
        Some(Verdict::DropAt(member.port, DropReason::OverMtu))
    } else if question.is_tagged && tables.port(member.port).kind == PortKind::Trunk {
        Some(Verdict::DropAt(member.port, DropReason::TaggedOnNative))
    } else {
        Some(Verdict::Forward(member.port))
    }
}

/// Hashes the frame's addresses and sends for their lines of the table.
#[inline(always)]
fn run(scope: &Scope<'_>, _packet: &mut Packet, notes: &mut Notes) -> Result<(), Stop> {
    let [from, to] = [notes.source, notes.destination].map(|mac| scope.macs.probe(mac));
    if scope.port.learns {
        scope.macs.prefetch(&from);
    }
    scope.macs.prefetch(&to);
    notes.probes = [from, to];
    Ok(())
}

/// Which packets of a batch are to be answered; their probes are the batch's.
#[derive(Default)]
pub struct Questions {
    /// Bit n: packet n of the batch passed.
    passed: u64,
    /// No packet before this one did.
    first: usize,
}

const _: () = assert!(BURST <= u64::BITS as usize, "a bit for each packet");

impl Questions {
    /// Has `pass` judge each packet of a range, and asks about those that it lets through.
    #[inline(always)]
    pub fn ask(
        batch: &mut Batch<'_>,
        range: Range<usize>,
        mut pass: impl FnMut(&mut Packet) -> Result<Notes, Stop>,
    ) -> Questions {
        let (mut passed, first) = (0u64, range.start);
        let (packets, probes) = batch.packets_and_probes_mut();
        let probes = probes[range.clone()].iter_mut();
        for (at, (packet, probes)) in packets[range].iter_mut().zip(probes).enumerate() {
            if let Ok(notes) = pass(packet) {
                *probes = notes.probes;
                passed |= 1 << at;
            }
        }
        Questions { passed: passed.checked_shl(first as u32).unwrap_or(0), first }
    }

    /// Those of a range of packets that did not pass.
    #[inline]
    pub fn stopped(&self, range: Range<usize>) -> Bits {
        Bits(!self.passed & first_bits(range.end) & !first_bits(range.start))
    }

    /// Asks about a packet that passes after all.
    #[inline]
    pub fn ask_late(&mut self, batch: &mut Batch<'_>, index: usize, notes: &Notes) {
        batch.packets_and_probes_mut().1[index] = notes.probes;
        self.passed |= 1 << index;
    }

    /// Whether all packets of the batch passed.
    #[inline]
    fn are_all(&self, batch: &Batch<'_>) -> bool {
        self.passed == first_bits(batch.len())
    }

    /// Calls `each` for the packets that passed, in order, with their probes. `ALL`: those are all of the batch.
    #[inline(always)]
    fn for_each<const ALL: bool>(&self, batch: &Batch<'_>, mut each: impl FnMut(usize, &[Probe; 2])) {
        let first = if ALL { 0 } else { self.first };
        let mut left = self.passed >> first;
        for (at, probes) in batch.probes().get(first..).unwrap_or_default().iter().enumerate() {
            let index = first + at;
            // Behind the last of a run there may be as many packets of other runs.
            if !ALL && left == 0 {
                return;
            }
            if ALL || left & 1 == 1 {
                each(index, probes);
            }
            left >>= 1;
        }
    }
}

/// The numbers of the bits that are set, from the lowest.
pub struct Bits(u64);

impl Bits {
    /// Those of this word.
    #[inline]
    pub fn of(word: u64) -> Bits {
        Bits(word)
    }
}

impl Iterator for Bits {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let lowest = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (lowest < u64::BITS).then_some(lowest as usize)
    }
}

/// The lowest `count` bits.
#[inline]
fn first_bits(count: usize) -> u64 {
    u64::MAX.checked_shr(u64::BITS - count as u32).unwrap_or(0)
}

/// Decides about every packet that passed.
///
/// The sources of the whole burst are learnt before its destinations are looked up. A frame to an address that a later one of
/// the same burst comes from is thus a reflection, as it would be a moment later.
#[inline(always)]
pub fn answer(scope: &Scope<'_>, batch: &mut Batch<'_>, questions: &Questions, egress: &mut Egress<'_>) {
    // Classify drops all packets of a port on no network.
    if questions.passed == 0 {
        return;
    }
    // Behind a far end are many stations: that one speaks keeps no other there.
    if scope.port.kind.is_here() {
        scope.context.mac_table.heard(scope.ingress, scope.context.now);
    }
    let mut ports = [NOWHERE; BURST];
    let are_all = questions.are_all(batch);
    let find = match (are_all, scope.port.learns) {
        (true, true) => find::<true, true>,
        (true, false) => find::<true, false>,
        (false, true) => find::<false, true>,
        (false, false) => find::<false, false>,
    };
    let mut found = find(scope.macs, batch, questions, &mut ports);
    if found.news != 0 && learn(scope.macs, batch, Bits(found.news)) {
        found = find(scope.macs, batch, questions, &mut ports);
    }
    if let Some(port) = found.only_port
        && are_all
        && open_mtu(scope, port).is_some_and(|mtu| mtu >= usize::from(scope.port.mtu))
    {
        // What came in is short enough to go out.
        egress.forward_all(batch.len(), batch.bytes(), port);
    } else {
        forward(scope, batch, questions, &ports, egress);
    }
}

/// Learns the sources of some packets; answers whether that changed where an address lives.
#[inline(never)]
fn learn(macs: BurstView<'_>, batch: &Batch<'_>, packets: Bits) -> bool {
    let mut is_changed = false;
    // Guests send bursts from one address.
    let mut last = Probe::default();
    for packet in packets {
        let [from, to] = &batch.probes()[packet];
        if !from.is_like(&last) && !is_unforwardable(to.mac()) {
            is_changed |= matches!(macs.learn(from), Learned::New | Learned::Moved);
            last = *from;
        }
    }
    is_changed
}

/// In the place of a port: an address that the table does not know.
const NOWHERE: PortIndex = PortIndex(u16::MAX);
const _: () = assert!(PORTS_MAX <= NOWHERE.0 as usize);

/// What [`find`] found.
struct Found {
    /// The one port where all destinations live.
    only_port: Option<PortIndex>,
    /// Bit n: packet n may come from an address of which the table says something else, or nothing.
    news: u64,
}

/// Looks up where the destinations live and, if the port learns, whether the sources are known there: in one go, for nearly
/// always they are.
#[inline(never)]
fn find<const ALL: bool, const LEARNS: bool>(
    macs: BurstView<'_>,
    batch: &Batch<'_>,
    questions: &Questions,
    ports: &mut [PortIndex; BURST],
) -> Found {
    let (mut last_from, mut last_to) = Default::default();
    let (mut known, mut is_news, mut news) = (NOWHERE, false, 0);
    // The bits that all ports have, and those that any has.
    let (mut all, mut any) = (u16::MAX, 0);
    questions.for_each::<ALL>(batch, |index, [from, to]| {
        if LEARNS {
            if !from.is_like(&last_from) {
                is_news = !macs.is_known(from);
                last_from = *from;
            }
            news |= u64::from(is_news) << index;
        }
        if !to.is_like(&last_to) {
            known = macs.lookup_fresh(to).unwrap_or_else(|| find_slowly(&macs, to));
            last_to = *to;
        }
        (all, any) = (all & known.0, any | known.0);
        ports[index] = known;
    });
    Found { only_port: (all == any && known != NOWHERE).then_some(known), news }
}

#[inline(never)]
fn find_slowly(macs: &BurstView<'_>, to: &Probe) -> PortIndex {
    macs.lookup(to).unwrap_or(NOWHERE)
}

/// Bytes behind an Ethernet header that may go to a port; `None` unless frames of the batch may go there at all.
#[inline]
fn open_mtu(scope: &Scope<'_>, port: PortIndex) -> Option<usize> {
    if port == NOWHERE {
        return None;
    }
    let entry = scope.tables.port(port);
    // What goes to a trunk is looked at for tags, one by one.
    let is_plain = entry.kind != PortKind::Trunk;
    let is_open = entry.network == scope.port.network && entry.is_admin_up && port != scope.ingress && is_plain;
    if is_open { Some(usize::from(entry.mtu)) } else { far_mtu(scope, port) }
}

/// The same for another host, which is a far end of many networks.
#[inline(never)]
fn far_mtu(scope: &Scope<'_>, port: PortIndex) -> Option<usize> {
    let is_from_here = scope.port.kind.is_here();
    scope
        .port
        .network
        .filter(|_| is_from_here)
        .and_then(|network| scope.tables.underlay.mtu(port, network))
        .map(usize::from)
}

/// Forwards packets that are not all for one port.
#[inline(never)]
fn forward(
    scope: &Scope<'_>,
    batch: &mut Batch<'_>,
    questions: &Questions,
    ports: &[PortIndex; BURST],
    egress: &mut Egress<'_>,
) {
    // The port that was found open last, and what may go there.
    let mut gate: Option<(PortIndex, usize)> = None;
    // Bit n: packet n asks for a neighbour that is known; its sender is to be told that it is too long.
    let (mut asked, mut too_long) = (0u64, 0u64);
    questions.for_each::<false>(batch, |index, [_, to]| {
        let (packet, known) = (&batch.packets()[index], ports[index]);
        if gate.is_none_or(|(port, _)| port != known)
            && let Some(mtu) = open_mtu(scope, known)
        {
            gate = Some((known, mtu));
        }
        let len = packet.len();
        match gate {
            Some((port, mtu)) if port == known && len - usize::from(packet.headers.l3_offset) <= mtu => {
                egress.forward(index, len, port);
            }
            _ => {
                let known = (known != NOWHERE).then_some(known);
                match answer_slowly(scope, index, packet, to.mac(), known, egress) {
                    Outcome::Done => {}
                    Outcome::Asked => asked |= 1 << index,
                    Outcome::TooLong => too_long |= 1 << index,
                }
            }
        }
    });
    for index in Bits(asked) {
        let is_answered = suppression::decide(&scope.tables.neighbours, &batch.packets()[index])
            .is_some_and(|question| question.answer(batch, index));
        if is_answered {
            egress.answer(index, batch.packets()[index].len(), scope.ingress);
        } else {
            egress.drop_ingress(scope.ingress, DropReason::HeadersTooLong);
        }
    }
    for index in Bits(too_long) {
        let way_mtu = |network| way_mtu(scope.tables, ports[index], network);
        let Some(mtu) = scope.port.network.and_then(way_mtu) else { continue };
        if too_long::answer(&scope.tables.told, scope.ingress, scope.context.now, batch, index, mtu) {
            egress.answer(index, batch.packets()[index].len(), scope.ingress);
        }
    }
}

/// What [`answer_slowly`] did.
#[derive(PartialEq, Eq)]
enum Outcome {
    /// The packet has its outcome.
    Done,
    /// It asks for a neighbour that is known, and is to be made into the answer.
    Asked,
    /// It was dropped, and its sender is to be told.
    TooLong,
}

/// Whatever is not plainly forwarded to one port.
#[inline(never)]
fn answer_slowly(
    scope: &Scope<'_>,
    index: usize,
    packet: &Packet,
    destination: MacBits,
    known: Option<PortIndex>,
    egress: &mut Egress<'_>,
) -> Outcome {
    let question = Question::about(packet, scope.ingress, destination);
    match decide(scope.tables, &question, known) {
        Verdict::Forward(port) => egress.forward(index, packet.len(), port),
        Verdict::Flood if asks(scope, packet, destination).is_some() => return Outcome::Asked,
        Verdict::Flood => flood(scope, &question, index, packet.len(), egress),
        Verdict::Drop(reason) => egress.drop_ingress(scope.ingress, reason),
        Verdict::DropAt(port, reason) => {
            egress.drop_egress(port, reason);
            if too_long::is_told(scope, &question, port, reason) {
                return Outcome::TooLong;
            }
        }
    }
    Outcome::Done
}

/// The question of a frame that is answered instead of flooded: of a port of this host only, for another host answers its own.
fn asks(scope: &Scope<'_>, packet: &Packet, destination: MacBits) -> Option<suppression::Question> {
    let may_ask = destination.is_group() && scope.port.kind.is_here();
    if may_ask { suppression::decide(&scope.tables.neighbours, packet) } else { None }
}

#[inline(never)]
fn flood(scope: &Scope<'_>, question: &Question, index: usize, len: usize, egress: &mut Egress<'_>) {
    let mut has_receiver = false;
    // What came from another host goes to none: each sends to all by itself.
    let is_from_here = scope.port.kind.is_here();
    let far_members = if is_from_here { scope.tables.far_members(question.network) } else { &[] };
    for members in [scope.tables.members(question.network), far_members] {
        for &member in members {
            let Some(verdict) = decide_copy(scope.tables, question, member) else { continue };
            has_receiver = true;
            match verdict {
                Verdict::DropAt(port, reason) => egress.drop_egress(port, reason),
                _ if egress.copy(index, len, member.port) => {}
                _ => egress.drop_egress(member.port, DropReason::FloodLimited),
            }
        }
    }
    if !has_receiver {
        egress.drop_ingress(scope.ingress, DropReason::NoReceiver);
    }
}

#[cfg(test)]
mod tests;
