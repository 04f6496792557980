//! The Link Aggregation Control Protocol (IEEE 802.1AX-2014 section 6.4) over the links of one bond: pure, without clock or sockets.
//!
//! What makes it hard is that both ends decide by what they heard of each other, and either may be old, wrong or gone. So each link
//! keeps what its partner said last and for how long that holds; a link carries frames only while both ends say they are in step
//! and, to send, the other says it takes them. The machines of the standard are here by their names, but for the parts that
//! depend on nothing: Receive ([`Receive`]), Selection ([`Lacp::select`]), Mux ([`Mux`], independent control), Periodic and Transmit.
//!
//! A partner that speaks no LACP is no partner: without one the bond carries nothing. Links to several partners at a time are a
//! cable in the wrong hole: those of one of them are used, of the one that has most. What comes from ourselves is a
//! loop and not heard. Bounds: [`LINKS_MAX`](switch::bond::LINKS_MAX) links; [`SENT_MAX`] LACPDUs a second and link.

use pipelines::wire::lacp::{Lacpdu, PortInfo, PortState};
use std::time::{Duration, Instant};
use switch::bond::Links;
use switch::ids::MacAddr;

/// Between two LACPDUs to a partner that forgets us after 3 s, and to one that does after 90 (section 6.4.4).
const FAST_PERIODIC: Duration = Duration::from_secs(1);
const SLOW_PERIODIC: Duration = Duration::from_secs(30);
/// How long what a partner said holds (section 6.4.4).
const SHORT_TIMEOUT: Duration = Duration::from_secs(3);
const LONG_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a link waits for others before it joins (section 6.4.4).
const AGGREGATE_WAIT: Duration = Duration::from_secs(2);
/// LACPDUs in any [`FAST_PERIODIC`] (section 6.4.16).
const SENT_MAX: usize = 3;
/// Our priorities: what the bonding driver of Linux and Open vSwitch have unless told.
const SYSTEM_PRIORITY: u16 = 65_535;
const PORT_PRIORITY: u16 = 255;
/// The key of all links of a bond.
const KEY: u16 = 1;

/// How long a partner may be silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rate {
    /// 90 s; it is asked to speak every 30.
    Slow,
    /// 3 s; every second.
    Fast,
}

/// The Receive machine's states (section 6.4.12).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Receive {
    /// The link is down.
    Disabled,
    /// What the partner said is too old; he has until then.
    Expired(Instant),
    /// Nobody is there.
    Defaulted,
    /// What he said holds until then.
    Current(Instant),
}

/// The Mux machine's states (section 6.4.15).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
enum Mux {
    Detached,
    /// Until then.
    Waiting(Instant),
    Attached,
    Collecting,
    Distributing,
}

/// One link.
struct Link {
    actor: PortInfo,
    partner: PortInfo,
    receive: Receive,
    mux: Mux,
    is_selected: bool,
    /// There is something to tell.
    need_to_transmit: bool,
    /// When the next LACPDU is due in any case; `None`: none is.
    periodic: Option<Instant>,
    /// When the last ones were sent, oldest first.
    sent: [Option<Instant>; SENT_MAX],
}

/// How a link does, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LinkView {
    /// Whether the partner is heard.
    pub(crate) is_current: bool,
    /// The partner's system.
    pub(crate) partner: MacAddr,
    /// Ours and the partner's state octets.
    pub(crate) states: [u8; 2],
}

/// The protocol over all links of a bond.
pub(crate) struct Lacp {
    links: Vec<Link>,
}

impl Lacp {
    /// Over so many links, all of them down, of the system with this MAC.
    pub(crate) fn new(system: MacAddr, links: usize, rate: Rate) -> Lacp {
        let state = PortState::ACTIVE
            .with(PortState::SHORT_TIMEOUT, rate == Rate::Fast)
            .with(PortState::AGGREGATION, true)
            .with(PortState::DEFAULTED, true);
        let link = |number: usize| Link {
            actor: PortInfo {
                system_priority: SYSTEM_PRIORITY,
                system,
                key: KEY,
                port_priority: PORT_PRIORITY,
                port: number as u16 + 1,
                state,
            },
            partner: PortInfo::default(),
            receive: Receive::Disabled,
            mux: Mux::Detached,
            is_selected: false,
            need_to_transmit: false,
            periodic: None,
            sent: [None; SENT_MAX],
        };
        Lacp { links: (0..links).map(link).collect() }
    }

    /// A link has a carrier, or none.
    pub(crate) fn set_link(&mut self, number: usize, is_up: bool, now: Instant) {
        let link = &mut self.links[number];
        match (link.receive, is_up) {
            (Receive::Disabled, true) => link.expire(now),
            (Receive::Disabled, false) | (_, true) => {}
            (_, false) => {
                link.receive = Receive::Disabled;
                link.partner.state = link.partner.state.with(PortState::SYNCHRONIZATION, false);
                link.periodic = None;
            }
        }
    }

    /// An LACPDU came by a link.
    pub(crate) fn heard(&mut self, number: usize, pdu: &Lacpdu, now: Instant) {
        let link = &mut self.links[number];
        let is_loop = pdu.actor.system == link.actor.system;
        if link.receive == Receive::Disabled || is_loop {
            return;
        }
        // update_NTT: he takes us for what we are not.
        let told = PortState(0x0f);
        let as_told = |info: &PortInfo| PortInfo { state: PortState(info.state.0 & told.0), ..*info };
        link.need_to_transmit |= as_told(&pdu.partner) != as_told(&link.actor);
        // recordPDU: he is in step if what he is in step with is us, or he cannot be aggregated at all.
        let is_us = PortInfo { state: PortState::default(), ..pdu.partner }
            == PortInfo { state: PortState::default(), ..link.actor }
            && pdu.partner.state.has(PortState::AGGREGATION);
        let is_alone = !pdu.actor.state.has(PortState::AGGREGATION);
        let is_in_step = pdu.actor.state.has(PortState::SYNCHRONIZATION) && (is_us || is_alone);
        link.partner = PortInfo { state: pdu.actor.state.with(PortState::SYNCHRONIZATION, is_in_step), ..pdu.actor };
        let is_short = link.actor.state.has(PortState::SHORT_TIMEOUT);
        link.receive = Receive::Current(now + if is_short { SHORT_TIMEOUT } else { LONG_TIMEOUT });
        link.set(PortState::EXPIRED, false);
        link.set(PortState::DEFAULTED, false);
    }

    /// Lets time pass; answers what to send by which link.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<(usize, Lacpdu)> {
        for link in &mut self.links {
            match link.receive {
                Receive::Current(until) if until <= now => link.expire(now),
                Receive::Expired(until) if until <= now => {
                    link.receive = Receive::Defaulted;
                    link.partner = PortInfo::default();
                    link.set(PortState::EXPIRED, false);
                    link.set(PortState::DEFAULTED, true);
                }
                _ => {}
            }
        }
        self.select();
        let mut out = Vec::new();
        for (number, link) in self.links.iter_mut().enumerate() {
            while link.step_mux(now) {}
            link.step_periodic(now);
            if link.need_to_transmit && link.receive != Receive::Disabled && link.may_send(now) {
                link.need_to_transmit = false;
                out.push((number, Lacpdu { actor: link.actor, partner: link.partner }));
            }
        }
        out
    }

    /// When [`Lacp::tick`] has something to do next, if nothing comes before.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let of_link = |link: &Link| {
            let receive = match link.receive {
                Receive::Current(until) | Receive::Expired(until) => Some(until),
                Receive::Disabled | Receive::Defaulted => None,
            };
            let mux = match link.mux {
                Mux::Waiting(until) => Some(until),
                _ => None,
            };
            // What was held back goes when the oldest of the last ones is old enough.
            // Of a link that is down nothing goes.
            let is_held = link.need_to_transmit && link.receive != Receive::Disabled;
            let held = is_held.then(|| link.sent[0].map_or(now, |sent| sent + FAST_PERIODIC));
            [receive, mux, link.periodic, held]
        };
        self.links.iter().flat_map(of_link).flatten().min()
    }

    /// By which links frames may be sent, and by which received.
    pub(crate) fn usable(&self) -> [Links; 2] {
        let with = |least: Mux| {
            let usable = self.links.iter().enumerate().filter(|(_, link)| link.is_up() && link.mux >= least);
            usable.fold(0, |links, (number, _)| links | 1 << number)
        };
        [with(Mux::Distributing), with(Mux::Collecting)]
    }

    /// How the links do.
    pub(crate) fn views(&self) -> Vec<LinkView> {
        let view = |link: &Link| LinkView {
            is_current: matches!(link.receive, Receive::Current(_)),
            partner: link.partner.system,
            states: [link.actor.state.0, link.partner.state.0],
        };
        self.links.iter().map(view).collect()
    }

    /// Selection (section 6.4.14): the links to one partner and key, of which there are most, and among as many the first.
    fn select(&mut self) {
        // A partner's port that is not to be aggregated is a group by itself (section 6.3.5), told by its number.
        let group = |link: &Link| {
            let partner = &link.partner;
            let alone = (!partner.state.has(PortState::AGGREGATION)).then_some(partner.port);
            // Who was never heard is nobody.
            let is_partner = link.is_up() && !partner.system.is_zero();
            is_partner.then_some((partner.system_priority, partner.system, partner.key, alone))
        };
        let count = |wanted| self.links.iter().filter(|link| group(link) == Some(wanted)).count();
        let mut best = None;
        for candidate in self.links.iter().filter_map(group) {
            let size = count(candidate);
            if best.is_none_or(|(_, most)| size > most) {
                best = Some((candidate, size));
            }
        }
        for link in &mut self.links {
            link.is_selected = best.is_some_and(|(best, _)| group(link) == Some(best));
        }
    }
}

impl Link {
    fn set(&mut self, bits: PortState, is_set: bool) {
        self.actor.state = self.actor.state.with(bits, is_set);
    }

    /// Whether there is a partner who may still be there.
    fn is_up(&self) -> bool {
        matches!(self.receive, Receive::Current(_) | Receive::Expired(_))
    }

    /// To EXPIRED: the partner is asked to speak, and has until a short timeout.
    fn expire(&mut self, now: Instant) {
        self.receive = Receive::Expired(now + SHORT_TIMEOUT);
        self.partner.state =
            self.partner.state.with(PortState::SYNCHRONIZATION, false).with(PortState::SHORT_TIMEOUT, true);
        self.set(PortState::EXPIRED, true);
        self.need_to_transmit = true;
    }

    /// One step of the Mux machine; false if it stays where it is.
    fn step_mux(&mut self, now: Instant) -> bool {
        let is_in_step = self.partner.state.has(PortState::SYNCHRONIZATION);
        let next = match self.mux {
            _ if !self.is_selected => Mux::Detached,
            Mux::Detached => Mux::Waiting(now + AGGREGATE_WAIT),
            Mux::Waiting(until) if until <= now => Mux::Attached,
            Mux::Attached if is_in_step => Mux::Collecting,
            Mux::Collecting | Mux::Distributing if !is_in_step => Mux::Attached,
            Mux::Collecting if self.partner.state.has(PortState::COLLECTING) => Mux::Distributing,
            Mux::Distributing if !self.partner.state.has(PortState::COLLECTING) => Mux::Collecting,
            stays => stays,
        };
        if next == self.mux {
            return false;
        }
        self.mux = next;
        self.set(PortState::SYNCHRONIZATION, next >= Mux::Attached);
        self.set(PortState::COLLECTING, next >= Mux::Collecting);
        self.set(PortState::DISTRIBUTING, next >= Mux::Distributing);
        self.need_to_transmit = true;
        true
    }

    /// The Periodic machine (section 6.4.13).
    fn step_periodic(&mut self, now: Instant) {
        if self.receive == Receive::Disabled {
            return;
        }
        let is_short = self.partner.state.has(PortState::SHORT_TIMEOUT);
        let period = if is_short { FAST_PERIODIC } else { SLOW_PERIODIC };
        match self.periodic {
            Some(due) if due <= now => {
                self.need_to_transmit = true;
                self.periodic = Some(now + period);
            }
            Some(due) => self.periodic = Some(due.min(now + period)),
            None => self.periodic = Some(now + period),
        }
    }

    /// Whether one more may be sent now; notes that it is.
    fn may_send(&mut self, now: Instant) -> bool {
        let may = self.sent[0].is_none_or(|sent| now.saturating_duration_since(sent) >= FAST_PERIODIC);
        if may {
            self.sent.rotate_left(1);
            self.sent[SENT_MAX - 1] = Some(now);
        }
        may
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests;
