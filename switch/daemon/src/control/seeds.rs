//! Addresses that other hosts have learnt, and what becomes of them when something else is told. Pure.
//!
//! One that is told is planted in the MAC table as if it were heard from there, and so is held there for as long as a station must
//! be silent before it may move. One that nobody tells of any more at a peer must therefore be forgotten there: its interface was
//! unplugged, and may be plugged elsewhere a moment later. Where two hosts tell of one address, both may hear it, and nothing is
//! forgotten: whose it is then is for the table to judge, as of any address that comes from two ports.
//!
//! Bound: so many addresses of an interface as its host may tell ([`api::cluster::MACS_MAX`]).

use std::collections::{HashMap, HashSet};
use switch::ids::{MacAddr, NetworkIndex, PortIndex};

/// An address of a network, and the peer behind which it is.
pub(super) type Seed = (NetworkIndex, MacAddr, PortIndex);

/// An address that a host has learnt.
#[derive(Clone, Copy)]
pub(super) struct Told {
    /// On which network.
    pub(super) network: NetworkIndex,
    /// The address.
    pub(super) mac: MacAddr,
    /// The revision of what was told.
    pub(super) revision: i64,
    /// The peer that leads there; `None`: it is here, or no tunnel leads there.
    pub(super) peer: Option<PortIndex>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Seeds {
    told: HashSet<Seed>,
    /// Of several that tell of an address, the one that said so last.
    planted: Vec<Seed>,
}

impl Seeds {
    /// These are told now, and no others; answers those that are told no more.
    pub(super) fn follow(&mut self, all: impl Iterator<Item = Told>) -> Vec<Seed> {
        let mut told = HashSet::new();
        // One that was told here is planted nowhere else.
        let mut newest: HashMap<(NetworkIndex, MacAddr), (i64, Option<PortIndex>)> = HashMap::new();
        for Told { network, mac, revision, peer } in all {
            told.extend(peer.map(|peer| (network, mac, peer)));
            let newest = newest.entry((network, mac)).or_insert((revision, peer));
            if newest.0 < revision {
                *newest = (revision, peer);
            }
        }
        let seed = |((network, mac), (_, peer)): (_, (i64, Option<PortIndex>))| Some((network, mac, peer?));
        self.planted = newest.into_iter().filter_map(seed).collect();
        let before = std::mem::replace(&mut self.told, told);
        before.difference(&self.told).copied().collect()
    }

    /// Those to be planted.
    pub(super) fn planted(&self) -> &[Seed] {
        &self.planted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: NetworkIndex = NetworkIndex(3);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn at(peer: u16) -> Seed {
        (NETWORK, MAC, PortIndex(peer))
    }

    fn told(revision: i64, peer: Option<u16>) -> Told {
        Told { network: NETWORK, mac: MAC, revision, peer: peer.map(PortIndex) }
    }

    #[test]
    fn an_address_is_planted_where_it_was_told_last_and_forgotten_where_nobody_tells_of_it_any_more() {
        let mut seeds = Seeds::default();
        let mut follow = |all: &[Told]| {
            let gone = seeds.follow(all.iter().copied());
            (gone, seeds.planted().to_vec())
        };
        assert_eq!(follow(&[told(5, Some(7))]), (vec![], vec![at(7)]));
        assert_eq!(follow(&[told(5, Some(7))]), (vec![], vec![at(7)]));
        assert_eq!(follow(&[told(5, Some(7)), told(6, Some(8))]), (vec![], vec![at(8)]), "both hear it");
        assert_eq!(follow(&[told(6, Some(8))]), (vec![at(7)], vec![at(8)]), "it was planted there before");
        assert_eq!(follow(&[told(9, Some(7))]), (vec![at(8)], vec![at(7)]), "it moved between two looks");
        assert_eq!(follow(&[told(9, Some(7)), told(10, None)]), (vec![], vec![]), "it is heard here");
        assert_eq!(follow(&[]), (vec![at(7)], vec![]));
    }
}
