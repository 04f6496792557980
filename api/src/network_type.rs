//! How a network is carried beyond its host, and which VLAN or VNI a new one gets.
//!
//! A network made by v1.x gets what the operator's settings say ([`SegmentRules`]): the lowest number of a range that no
//! network has. It is chosen with the write that makes the network and kept in its record, so that two writers never get
//! the same, and changed settings leave the networks that are there as they were. In a cloud of many hosts VLANs go round instead:
//! nobody can tell whose frames with a tag are, and a host that is cut off may send some of a network that is gone. Pure.
//!
//! Bounds: a VLAN range has 4,094 numbers and is walked; of VNIs there are millions, so the model remembers up to where
//! they are taken ([`crate::model::Model::vni_hint`]).

use crate::model::{Model, Text};
use crate::plugin::NoSegmentFree;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use switch::underlay::{TunnelKind, VlanId, Vni};

/// How a network is carried.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum NetworkType {
    /// Within one host.
    #[default]
    Local,
    /// As a VLAN of a physical network.
    Vlan {
        /// The physical network.
        physical_network: Text,
        /// Its id there.
        vlan: VlanId,
    },
    /// By tunnels between hosts.
    Tunnel {
        /// How frames are wrapped.
        kind: TunnelKind,
        /// Its number there.
        vni: Vni,
    },
}

/// What two networks may not have in common. A VNI is one network's, whatever the kind of tunnel.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Segment {
    /// A VLAN of a physical network.
    Vlan(Text, VlanId),
    /// A number of tunnels.
    Vni(Vni),
}

impl Segment {
    /// Its name, in the store.
    pub(crate) fn name(&self) -> String {
        match self {
            Segment::Vlan(physical_network, vlan) => format!("vlan/{physical_network}/{}", vlan.get()),
            Segment::Vni(vni) => format!("vni/{}", vni.get()),
        }
    }

    /// The segment of this name.
    pub(crate) fn from_name(name: &str) -> Option<Segment> {
        let (kind, rest) = name.split_once('/')?;
        match kind {
            "vni" => rest.parse().ok().and_then(Vni::new).map(Segment::Vni),
            "vlan" => {
                let (physical_network, id) = rest.rsplit_once('/')?;
                let vlan = id.parse().ok().and_then(VlanId::new)?;
                Some(Segment::Vlan(physical_network.into(), vlan))
            }
            _ => None,
        }
    }
}

impl NetworkType {
    /// Whether it stays within one host.
    pub fn is_local(&self) -> bool {
        *self == NetworkType::Local
    }

    /// Its name in settings, the store and `show`.
    pub fn name(&self) -> &'static str {
        match self {
            NetworkType::Local => "local",
            NetworkType::Vlan { .. } => "vlan",
            NetworkType::Tunnel { kind, .. } => kind.name(),
        }
    }

    /// The physical network of a VLAN.
    pub fn physical_network(&self) -> Option<&str> {
        match self {
            NetworkType::Vlan { physical_network, .. } => Some(physical_network),
            NetworkType::Local | NetworkType::Tunnel { .. } => None,
        }
    }

    /// VLAN id or VNI.
    pub fn segmentation_id(&self) -> Option<u32> {
        match self {
            NetworkType::Local => None,
            NetworkType::Vlan { vlan, .. } => Some(vlan.get().into()),
            NetworkType::Tunnel { vni, .. } => Some(vni.get()),
        }
    }

    /// What no other network may have; `None`: it has nothing of the kind.
    pub fn segment(&self) -> Option<Segment> {
        match self {
            NetworkType::Local => None,
            NetworkType::Vlan { physical_network, vlan } => Some(Segment::Vlan(physical_network.clone(), *vlan)),
            NetworkType::Tunnel { vni, .. } => Some(Segment::Vni(*vni)),
        }
    }
}

/// A network's type as it is written in the store.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(rename = "type")]
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    physical_network: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segmentation_id: Option<u32>,
}

/// Why fields are no network's type.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "a network of type {name:?} with physical network {physical_network:?} and segmentation id {segmentation_id:?} cannot be"
)]
pub struct BadNetworkType {
    name: String,
    physical_network: Option<Text>,
    segmentation_id: Option<u32>,
}

impl TryFrom<Written> for NetworkType {
    type Error = BadNetworkType;

    fn try_from(written: Written) -> Result<NetworkType, BadNetworkType> {
        let Written { name, physical_network, segmentation_id } = written;
        let kind = TunnelKind::ALL.into_iter().find(|kind| kind.name() == name);
        let read = match (&*name, kind, &physical_network, segmentation_id) {
            ("local", _, None, None) => Some(NetworkType::Local),
            ("vlan", _, Some(physical_network), Some(id)) => u16::try_from(id)
                .ok()
                .and_then(VlanId::new)
                .map(|vlan| NetworkType::Vlan { physical_network: physical_network.clone(), vlan }),
            (_, Some(kind), None, Some(id)) => Vni::new(id).map(|vni| NetworkType::Tunnel { kind, vni }),
            _ => None,
        };
        read.ok_or(BadNetworkType { name, physical_network, segmentation_id })
    }
}

impl From<NetworkType> for Written {
    fn from(it: NetworkType) -> Written {
        Written {
            name: it.name().to_owned(),
            physical_network: it.physical_network().map(Text::from),
            segmentation_id: it.segmentation_id(),
        }
    }
}

/// What a network gets that nobody chose a type for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum SegmentRules {
    /// It stays within one host.
    #[default]
    Local,
    /// A VLAN of one of these ranges, the first of them that has one.
    Vlan(Vec<VlanRange>),
    /// A VNI of this range.
    Tunnel(TunnelKind, RangeInclusive<u32>),
}

/// VLAN ids of one physical network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VlanRange {
    /// The physical network.
    pub physical_network: Text,
    /// The ids.
    pub ids: RangeInclusive<u16>,
}

impl SegmentRules {
    /// The type of a network that is about to be made, where no network may have a number that `is_withheld`. VLANs are looked at
    /// from `last` on, which comes last itself; `None`: from the first one on.
    ///
    /// # Errors
    /// [`NoSegmentFree`] if there is no other that no network has.
    pub fn allot(
        &self,
        model: &Model,
        last: Option<(&Text, VlanId)>,
        is_withheld: impl Fn(&Segment) -> bool,
    ) -> Result<NetworkType, NoSegmentFree> {
        let free = |segment: Segment| !model.by_segment.contains_key(&segment) && !is_withheld(&segment);
        let found = match self {
            SegmentRules::Local => Some(NetworkType::Local),
            SegmentRules::Vlan(ranges) => {
                let of = |range: &VlanRange| range.ids.clone().filter_map(VlanId::new);
                let all = || ranges.iter().flat_map(|range| of(range).map(move |vlan| (&range.physical_network, vlan)));
                let first = last.and_then(|last| all().position(|vlan| vlan == last)).map_or(0, |last| last + 1);
                let mut vlans = all().skip(first).chain(all().take(first));
                let found = vlans.find(|(name, vlan)| free(Segment::Vlan((*name).clone(), *vlan)));
                found.map(|(name, vlan)| NetworkType::Vlan { physical_network: name.clone(), vlan })
            }
            SegmentRules::Tunnel(kind, range) => {
                let first = model.vni_hint().max(*range.start());
                let mut vnis = (first..=*range.end()).chain(*range.start()..=*range.end()).filter_map(Vni::new);
                let vni = vnis.find(|&vni| free(Segment::Vni(vni)));
                vni.map(|vni| NetworkType::Tunnel { kind: *kind, vni })
            }
        };
        found.ok_or_else(|| NoSegmentFree { kind: self.name().into() })
    }

    /// The type of a network with this segment, if these rules have it.
    pub(crate) fn with(&self, segment: &Segment) -> Option<NetworkType> {
        match (self, segment) {
            (SegmentRules::Vlan(ranges), Segment::Vlan(name, vlan)) => {
                let has = |range: &VlanRange| range.physical_network == *name && range.ids.contains(&vlan.get());
                let physical_network = name.clone();
                ranges.iter().any(has).then_some(NetworkType::Vlan { physical_network, vlan: *vlan })
            }
            (SegmentRules::Tunnel(kind, range), Segment::Vni(vni)) => {
                range.contains(&vni.get()).then_some(NetworkType::Tunnel { kind: *kind, vni: *vni })
            }
            _ => None,
        }
    }

    /// The name of the type of networks that it makes.
    pub fn name(&self) -> &'static str {
        match self {
            SegmentRules::Local => "local",
            SegmentRules::Vlan(_) => "vlan",
            SegmentRules::Tunnel(kind, _) => kind.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, Network};

    fn put(model: &mut Model, rules: &SegmentRules) -> Option<u32> {
        put_after(model, rules, None)
    }

    fn put_after(model: &mut Model, rules: &SegmentRules, last: Option<(&Text, VlanId)>) -> Option<u32> {
        let network_type = rules.allot(model, last, |_| false).ok()?;
        let serial = model.next_serial();
        let id = format!("n{}", network_type.segmentation_id().unwrap_or_default()).into();
        let network = Network { id, tenant: "red".into(), name: None, network_type, serial };
        let told = network.network_type.segmentation_id();
        model.apply(&Change::PutNetwork(network));
        told
    }

    fn ranges(text: &[(&str, RangeInclusive<u16>)]) -> SegmentRules {
        let range = |(name, ids): &(&str, RangeInclusive<u16>)| VlanRange {
            physical_network: (*name).into(),
            ids: ids.clone(),
        };
        SegmentRules::Vlan(text.iter().map(range).collect())
    }

    #[test]
    fn the_lowest_free_number_is_next_and_a_freed_one_comes_again() {
        for rules in [SegmentRules::Tunnel(TunnelKind::Vxlan, 5..=8), ranges(&[("p", 5..=8)])] {
            let mut model = Model::default();
            assert_eq!([0; 3].map(|_| put(&mut model, &rules)), [Some(5), Some(6), Some(7)]);
            model.apply(&Change::RemoveNetwork("n6".into()));
            model.apply(&Change::RemoveNetwork("n5".into()));
            assert_eq!([0; 4].map(|_| put(&mut model, &rules)), [Some(5), Some(6), Some(8), None]);
            assert!(rules.allot(&model, None, |_| false).is_err());
        }
    }

    #[test]
    fn vlans_that_go_round_come_again_last_though_their_networks_are_gone() {
        let next = |model: &mut Model| {
            let before = model.clone();
            put_after(model, &ranges(&[("p", 5..=7), ("q", 8..=9)]), before.last_vlan())
        };
        let mut model = Model::default();
        for vlan in [5, 6, 7] {
            assert_eq!(next(&mut model), Some(vlan));
            model.apply(&Change::RemoveNetwork(format!("n{vlan}").into()));
        }
        assert_eq!([0; 6].map(|_| next(&mut model)), [Some(8), Some(9), Some(5), Some(6), Some(7), None]);
        // Who starts now goes on behind the newest that is there, whatever the order in which he finds them.
        model.apply(&Change::RemoveNetwork("n7".into()));
        let networks = model.networks.values().cloned().collect();
        let mut model = Model::from_records(networks, Vec::new()).unwrap();
        assert_eq!(model.last_vlan().map(|(_, vlan)| vlan.get()), Some(6));
        assert_eq!(next(&mut model), Some(7));
    }

    #[test]
    fn a_number_that_is_withheld_is_no_networks() {
        for rules in [SegmentRules::Tunnel(TunnelKind::Vxlan, 5..=7), ranges(&[("p", 5..=7)])] {
            let mut model = Model::default();
            put(&mut model, &rules);
            let withheld = rules.allot(&model, None, |_| false).unwrap().segment().unwrap();
            let allotted = rules.allot(&model, None, |segment| *segment == withheld).unwrap();
            assert_eq!(allotted.segmentation_id(), Some(7));
            assert!(rules.allot(&model, None, |_| true).is_err());
            assert_eq!(rules.with(&withheld).unwrap().segment(), Some(withheld));
        }
        let rules = ranges(&[("p", 5..=7)]);
        for name in ["vlan/p/8", "vlan/q/5", "vni/5"] {
            assert_eq!(rules.with(&Segment::from_name(name).unwrap()), None, "{name}");
        }
    }

    #[test]
    fn names_of_segments_are_read_as_they_are_written() {
        let vlan = VlanId::new(4094).unwrap();
        for segment in
            [Segment::Vni(Vni::new(5).unwrap()), Segment::Vlan("a/b".into(), vlan), Segment::Vlan("".into(), vlan)]
        {
            assert_eq!(Segment::from_name(&segment.name()), Some(segment));
        }
        for name in ["", "vni", "vni/", "vni/x", "vni/99999999", "vlan/5", "vlan/p/4095", "gre/5"] {
            assert_eq!(Segment::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn ranges_are_used_up_in_the_order_given_and_ids_may_repeat_on_another_physical_network() {
        let mut model = Model::default();
        let rules = ranges(&[("b", 9..=9), ("a", 9..=9)]);
        for name in ["b", "a"] {
            let network_type = rules.allot(&model, None, |_| false).unwrap();
            assert_eq!((network_type.physical_network(), network_type.segmentation_id()), (Some(name), Some(9)));
            let serial = model.next_serial();
            let network = Network { id: name.into(), tenant: "red".into(), name: None, network_type, serial };
            model.apply(&Change::PutNetwork(network));
        }
        assert!(rules.allot(&model, None, |_| false).is_err());
    }

    #[test]
    fn a_vni_is_one_networks_whatever_the_kind_of_tunnel() {
        let mut model = Model::default();
        assert_eq!(put(&mut model, &SegmentRules::Tunnel(TunnelKind::Vxlan, 5..=6)), Some(5));
        assert_eq!(put(&mut model, &SegmentRules::Tunnel(TunnelKind::Gre, 5..=6)), Some(6));
    }

    #[test]
    fn a_number_below_one_that_was_chosen_is_found_when_those_above_are_gone() {
        let mut model = Model::default();
        let serial = model.next_serial();
        let network_type = NetworkType::Tunnel { kind: TunnelKind::Gre, vni: Vni::new(8).unwrap() };
        let network = Network { id: "n8".into(), tenant: "red".into(), name: None, network_type, serial };
        model.apply(&Change::PutNetwork(network));
        let rules = SegmentRules::Tunnel(TunnelKind::Gre, 5..=8);
        assert_eq!([0; 4].map(|_| put(&mut model, &rules)), [Some(5), Some(6), Some(7), None]);
    }

    #[test]
    fn a_type_is_read_as_it_was_written_and_one_that_cannot_be_is_refused() {
        let vlan = NetworkType::Vlan { physical_network: "p".into(), vlan: VlanId::new(7).unwrap() };
        let tunnel = NetworkType::Tunnel { kind: TunnelKind::Geneve, vni: Vni::new(7000).unwrap() };
        for it in [NetworkType::Local, vlan, tunnel] {
            let text = serde_json::to_string(&it).unwrap();
            assert_eq!(serde_json::from_str::<NetworkType>(&text).unwrap(), it, "{text}");
        }
        for text in [
            r#"{"type": "vlan", "physical_network": "p", "segmentation_id": 4095}"#,
            r#"{"type": "vlan", "segmentation_id": 5}"#,
            r#"{"type": "vxlan", "segmentation_id": 0}"#,
            r#"{"type": "local", "segmentation_id": 1}"#,
            r#"{"type": "flat"}"#,
        ] {
            assert!(serde_json::from_str::<NetworkType>(text).is_err(), "{text}");
        }
    }
}
