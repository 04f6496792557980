//! A slow, obvious switch that reads the config itself, against the real one, frame by frame and counter by counter.
//!
//! It knows nothing of tables, batches or the MAC table. Two steps lie further apart than a port's silence, so that
//! addresses may always move; ageing is out of the picture. What claims come to is parse's own matter (its tests): here
//! the oracle covers who receives what.

use super::frames::honest_frame;
use super::rig::{Input, Outcome, Rig, config, mac, port};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use switch::batch::BURST;
use switch::config::{Config, PortConfig};
use switch::ids::{MacAddr, NetworkIndex, PortIndex};
use switch::ledger::DropReason;
use switch::mac_table::MOVE_SILENCE_S;
use switch::worker::Now;

struct Oracle<'a> {
    config: &'a Config,
    learnt: HashMap<(NetworkIndex, MacAddr), PortIndex>,
}

/// A frame that got in.
struct Admitted {
    network: NetworkIndex,
    destination: MacAddr,
    payload_len: usize,
}

/// Where a copy of a frame ends up: received by a port, or dropped at a port on its way in (true) or out.
type End = Result<PortIndex, (PortIndex, bool, DropReason)>;

impl Oracle<'_> {
    fn members(&self, network: NetworkIndex) -> impl Iterator<Item = &PortConfig> {
        self.config.ports().iter().filter(move |member| member.network == Some(network))
    }

    fn fixed(&self, network: NetworkIndex, mac: MacAddr) -> Option<PortIndex> {
        self.members(network).find(|member| member.macs.contains(&mac)).map(|member| member.index)
    }

    /// Whether the frame gets in; if so, its source is learnt.
    fn admit(&mut self, ingress: PortIndex, bytes: &[u8]) -> Result<Admitted, DropReason> {
        let mut header_len = 14;
        while header_len < 22 && matches!(bytes.get(header_len - 2..header_len), Some([0x81, 0x00] | [0x88, 0xa8])) {
            header_len += 4;
        }
        if bytes.len() < header_len {
            return Err(DropReason::Truncated);
        }
        let port = self.config.port(ingress).unwrap();
        let network = port.network.ok_or(DropReason::NoNetwork)?;
        if !port.is_admin_up {
            return Err(DropReason::PortAdminDown);
        }
        let payload_len = bytes.len() - header_len;
        if payload_len > usize::from(port.mtu) {
            return Err(DropReason::OverMtu);
        }
        let destination = MacAddr(bytes[..6].try_into().unwrap());
        let source = MacAddr(bytes[6..12].try_into().unwrap());
        if source.0[0] % 2 == 1 || source.0 == [0; 6] {
            return Err(DropReason::BadSourceMac);
        }
        let mut may_send = port.macs.iter().chain(&port.allowed_macs).peekable();
        if may_send.peek().is_some() && may_send.all(|&mac| mac != source) {
            return Err(DropReason::SpoofedMac);
        }
        if destination.0[..5] == [1, 0x80, 0xc2, 0, 0] && destination.0[5] < 16 {
            return Err(DropReason::LinkLocalMulticast);
        }
        if self.fixed(network, source).is_none() {
            self.learnt.insert((network, source), ingress);
        }
        Ok(Admitted { network, destination, payload_len })
    }

    /// Where each copy ends up.
    fn deliver(&self, ingress: PortIndex, frame: &Admitted) -> Vec<End> {
        let &Admitted { network, destination, payload_len } = frame;
        let drop = |reason| vec![Err((ingress, true, reason))];
        let home = self.fixed(network, destination).or_else(|| self.learnt.get(&(network, destination)).copied());
        let arrive = |member: &PortConfig| {
            if payload_len > usize::from(member.mtu) {
                Err((member.index, false, DropReason::OverMtu))
            } else {
                Ok(member.index)
            }
        };
        match home {
            Some(home) if home == ingress => drop(DropReason::Reflection),
            Some(home) => {
                let home = self.config.port(home).unwrap();
                if home.is_admin_up {
                    vec![arrive(home)]
                } else {
                    vec![Err((home.index, false, DropReason::PortAdminDown))]
                }
            }
            None => {
                let receives = |member: &&PortConfig| member.is_admin_up && member.index != ingress;
                let copies: Vec<_> = self.members(network).filter(receives).map(arrive).collect();
                if copies.is_empty() { drop(DropReason::NoReceiver) } else { copies }
            }
        }
    }

    /// One burst: all its sources are learnt before any of its destinations is looked up.
    fn step(&mut self, ingress: PortIndex, frames: &[Vec<u8>]) -> Outcome {
        let admitted: Vec<_> = frames.iter().map(|frame| self.admit(ingress, frame)).collect();
        let mut received: BTreeMap<PortIndex, Vec<Vec<u8>>> = BTreeMap::new();
        let mut drops: BTreeMap<(PortIndex, bool, usize), u64> = BTreeMap::new();
        for (frame, admitted) in frames.iter().zip(&admitted) {
            let ends = match admitted {
                Ok(admitted) => self.deliver(ingress, admitted),
                Err(reason) => vec![Err((ingress, true, *reason))],
            };
            for end in ends {
                match end {
                    Ok(port) => received.entry(port).or_default().push(frame.clone()),
                    // Ways in are listed before ways out.
                    Err((port, is_rx, reason)) => *drops.entry((port, !is_rx, reason as usize)).or_default() += 1,
                }
            }
        }
        Outcome {
            received: received
                .into_iter()
                .flat_map(|(port, frames)| frames.into_iter().map(move |frame| (port.0, frame)))
                .collect(),
            drops: drops
                .into_iter()
                .map(|((port, is_tx, reason), count)| (port.0, !is_tx, DropReason::ALL[reason].name(), count))
                .collect(),
        }
    }
}

prop_compose! {
    fn any_port(index: u16)(network in prop_oneof![1 => Just(None), 5 => (1..4u16).prop_map(Some)],
                            is_admin_up in prop::bool::weighted(0.85),
                            mtu in prop_oneof![4 => Just(1500u16), 1 => Just(576), 1 => Just(9000)],
                            is_fixed in prop::bool::weighted(0.2),
                            allowed in prop_oneof![3 => Just(vec![]), 1 => proptest::collection::vec(0..8u8, 1..4)])
                            -> PortConfig {
        // MACs 0 to 7 are in use; each may be fixed for one port only.
        let macs = if is_fixed && index < 4 { vec![mac(index as u8), mac(index as u8 + 4)] } else { Vec::new() };
        let allowed_macs = allowed.into_iter().map(mac).collect();
        PortConfig { is_admin_up, mtu, macs, allowed_macs, ..port(index, network) }
    }
}

fn any_config() -> impl Strategy<Value = Config> {
    (0..8u16).map(any_port).collect::<Vec<_>>().prop_map(config)
}

prop_compose! {
    fn any_step()(ingress in 0..8u16, frames in proptest::collection::vec(honest_frame(), 1..=BURST), cut in 0..200usize)
        -> (PortIndex, Vec<Vec<u8>>) {
        let mut frames: Vec<Vec<u8>> = frames.iter().map(super::frames::Frame::bytes).collect();
        frames[0].truncate(cut.max(1));
        (PortIndex(ingress), frames)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn oracle_agrees_on_who_receives_what(config in any_config(), steps in proptest::collection::vec(any_step(), 1..12)) {
        let mut rig = Rig::new(config.clone());
        let mut oracle = Oracle { config: &config, learnt: HashMap::new() };
        for (round, (ingress, frames)) in steps.into_iter().enumerate() {
            let now = Now { ns: (round as u64 + 1) * u64::from(MOVE_SILENCE_S + 2) * 1_000_000_000 };
            let expected = oracle.step(ingress, &frames);
            let inputs = frames.into_iter().map(Input::from).collect();
            prop_assert_eq!(rig.step(now, ingress, inputs), expected);
        }
    }
}

#[test]
fn a_flood_reaches_every_other_member_once_and_an_answer_comes_back_alone() {
    let ports = vec![port(0, Some(1)), port(1, Some(1)), port(2, Some(1)), port(3, Some(2))];
    let mut rig = Rig::new(config(ports));
    let ask = super::frames::Frame::arp().from(mac(1)).to(MacAddr::BROADCAST).bytes();
    let outcome = rig.step(Now::default(), PortIndex(0), vec![ask.clone().into()]);
    assert_eq!(outcome, Outcome { received: vec![(1, ask.clone()), (2, ask)], drops: vec![] });
    let answer = super::frames::Frame::arp().from(mac(2)).to(mac(1)).bytes();
    let outcome = rig.step(Now::default(), PortIndex(1), vec![answer.clone().into()]);
    assert_eq!(outcome, Outcome { received: vec![(0, answer)], drops: vec![] });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Invariant 2, with a MAC table that lags behind: ports change networks and nothing is flushed.
    #[test]
    fn no_frame_crosses_networks_while_ports_move(
        configs in proptest::collection::vec(any_config(), 2..5),
        steps in proptest::collection::vec(any_step(), 2..12),
    ) {
        let mut rig = Rig::new(configs[0].clone());
        for (round, (ingress, frames)) in steps.into_iter().enumerate() {
            let config = &configs[round % configs.len()];
            rig.reconfigure(config.clone());
            let now = Now { ns: round as u64 * 1_000_000_000 };
            let network = |port: u16| config.port(PortIndex(port)).unwrap().network;
            let outcome = rig.step(now, ingress, frames.into_iter().map(Input::from).collect());
            for (receiver, _) in outcome.received {
                prop_assert!(receiver != ingress.0 && network(receiver).is_some());
                prop_assert_eq!(network(receiver), network(ingress.0));
            }
        }
    }
}
