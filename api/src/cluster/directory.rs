//! Which hosts live and which interfaces are plugged on them, as they say themselves in etcd. Pure.
//!
//! All of it is under the hosts' leases: what is said of a host that died goes with its lease. An interface is on one host; who
//! plugged it first has it as long as he lives and does not unplug it ([`super::node`]). What a host says is believed, but
//! only what can be: a record that cannot be read is as one that is not there, and is logged.

use crate::etcd::message::Revision;
use crate::model::{InterfaceId, Text};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use switch::ids::MacAddr;

/// Addresses of one interface that its host tells the others; frames to more of them are flooded.
pub const MACS_MAX: usize = 64;
/// IP addresses of one interface that its host tells the others; more it cannot be plugged with.
const ADDRESSES_MAX: usize = 64;

/// A host that lives.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Which start of it: another one each time.
    pub boot: Text,
    /// Its end of tunnels; `None`: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<IpAddr>,
    /// The physical networks that its uplinks are on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub physical_networks: Vec<String>,
    /// The parts it plays.
    #[serde(default)]
    pub roles: Vec<String>,
}

/// An interface that is plugged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlugRecord {
    /// On which host.
    pub host: Text,
    /// In which start of it.
    pub boot: Text,
    /// The only tenant whose networks it may join; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Whether its host carries it: op-status.
    pub is_up: bool,
    /// The addresses that are fixed for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "macs")]
    pub fixed: Vec<MacAddr>,
    /// The IP addresses that it has with its one fixed address, by its operator's word.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "addresses")]
    pub addresses: Vec<IpAddr>,
    /// Addresses that were learnt from its frames, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "macs")]
    pub learnt: Vec<MacAddr>,
}

/// As many as may be, and none that no host has.
fn addresses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpAddr>, D::Error> {
    let mut addresses = Vec::<IpAddr>::deserialize(from)?;
    addresses.truncate(ADDRESSES_MAX);
    addresses.retain(|address| !address.is_unspecified() && !address.is_multicast());
    Ok(addresses)
}

/// Addresses as text. Group addresses and zero are no station's and are left out.
mod macs {
    use super::{MACS_MAX, MacAddr};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(macs: &[MacAddr], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(macs.iter().map(MacAddr::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<MacAddr>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let mut macs = Vec::new();
        for text in texts.iter().take(MACS_MAX) {
            let mac: MacAddr = text.parse().map_err(|_| D::Error::custom("no MAC address"))?;
            macs.extend((!mac.is_group() && !mac.is_zero()).then_some(mac));
        }
        Ok(macs)
    }
}

/// A plug and when it was written last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plugged {
    /// What is said.
    pub record: PlugRecord,
    /// Since when.
    pub revision: Revision,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    nodes: HashMap<Text, (NodeRecord, Revision)>,
    plugs: HashMap<InterfaceId, Plugged>,
    by_host: HashMap<Text, BTreeSet<InterfaceId>>,
    /// All that happened up to this revision is in it, for the watch told it or it was read.
    told: Revision,
}

impl Directory {
    /// A host that lives.
    pub fn node(&self, host: &str) -> Option<&NodeRecord> {
        self.nodes.get(host).map(|(node, _)| node)
    }

    /// When it was said last that a host lives.
    pub(super) fn node_since(&self, host: &str) -> Option<Revision> {
        self.nodes.get(host).map(|(_, revision)| *revision)
    }

    /// All hosts that live, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (&Text, &NodeRecord)> {
        self.nodes.iter().map(|(host, (node, _))| (host, node))
    }

    /// The same, and the revision of what they say.
    pub(super) fn nodes_since(&self) -> impl Iterator<Item = (&Text, &NodeRecord, Revision)> {
        self.nodes.iter().map(|(host, (node, revision))| (host, node, *revision))
    }

    /// All plugged interfaces, in no order.
    pub(super) fn plugs(&self) -> impl Iterator<Item = (&InterfaceId, &Plugged)> {
        self.plugs.iter()
    }

    /// Where an interface is plugged.
    pub fn plug(&self, interface: &str) -> Option<&Plugged> {
        self.plugs.get(interface)
    }

    /// The interfaces plugged on a host, in order.
    pub fn plugs_of(&self, host: &str) -> impl Iterator<Item = &InterfaceId> {
        self.by_host.get(host).into_iter().flatten()
    }

    /// How many interfaces are plugged in all.
    pub fn plug_count(&self) -> usize {
        self.plugs.len()
    }

    /// All up to this revision is in it.
    pub(super) fn told_up_to(&mut self, revision: Revision) {
        self.told = self.told.max(revision);
    }

    /// What etcd answered us that we said of ourselves: news only before the watch has told it, for what the watch told since may be that
    /// it is gone again.
    pub(super) fn put_own_node(&mut self, host: &str, node: NodeRecord, revision: Revision) {
        if revision > self.told {
            self.enter_node(host, Some(node), revision, &mut Vec::new());
        }
    }

    /// The same of a plug of ours.
    pub(super) fn put_own_plug(&mut self, interface: &str, record: Option<PlugRecord>, revision: Revision) {
        if revision > self.told {
            self.enter_plug(interface, record, revision, &mut Vec::new());
        }
    }

    /// A host said something else of itself, or is gone. Adds the interfaces that this concerns to `touched`.
    pub(super) fn put_node(
        &mut self,
        host: &str,
        node: Option<NodeRecord>,
        revision: Revision,
        touched: &mut Vec<InterfaceId>,
    ) {
        self.told_up_to(revision);
        self.enter_node(host, node, revision, touched);
    }

    fn enter_node(&mut self, host: &str, node: Option<NodeRecord>, revision: Revision, touched: &mut Vec<InterfaceId>) {
        if self.nodes.get(host).is_some_and(|(_, known)| *known > revision) {
            return;
        }
        let before = match node {
            Some(node) => {
                let tunnel = node.tunnel;
                let before = self.nodes.insert(host.into(), (node, revision));
                if before.as_ref().map(|(before, _)| before.tunnel) == Some(tunnel) {
                    return;
                }
                before
            }
            None => self.nodes.remove(host),
        };
        drop(before);
        touched.extend(self.by_host.get(host).into_iter().flatten().cloned());
    }

    /// A plug is another, or gone. Adds the interface to `touched` if that makes a difference to other hosts.
    pub(super) fn put_plug(
        &mut self,
        interface: &str,
        record: Option<PlugRecord>,
        revision: Revision,
        touched: &mut Vec<InterfaceId>,
    ) {
        self.told_up_to(revision);
        self.enter_plug(interface, record, revision, touched);
    }

    fn enter_plug(
        &mut self,
        interface: &str,
        record: Option<PlugRecord>,
        revision: Revision,
        touched: &mut Vec<InterfaceId>,
    ) {
        let before = self.plugs.get(interface);
        if before.is_some_and(|before| before.revision > revision) {
            return;
        }
        let is_the_same = |before: &Plugged, now: &PlugRecord| {
            let of = |record: &PlugRecord| {
                let of_host = (record.host.clone(), record.tenant.clone());
                (of_host, record.fixed.clone(), record.addresses.clone(), record.learnt.clone())
            };
            of(&before.record) == of(now)
        };
        let is_touched = match (before, &record) {
            (Some(before), Some(now)) => !is_the_same(before, now),
            (None, None) => false,
            _ => true,
        };
        let before = before.map(|before| before.record.host.clone());
        let interface: InterfaceId = interface.into();
        if let Some(host) = before
            && let Some(plugs) = self.by_host.get_mut(&host)
        {
            plugs.remove(&interface);
            if plugs.is_empty() {
                self.by_host.remove(&host);
            }
        }
        match record {
            Some(record) => {
                self.by_host.entry(record.host.clone()).or_default().insert(interface.clone());
                self.plugs.insert(interface.clone(), Plugged { record, revision });
            }
            None => drop(self.plugs.remove(&interface)),
        }
        if is_touched {
            touched.push(interface);
        }
    }

    /// The interfaces that one of two directories tells otherwise than the other.
    pub(super) fn differences(&self, other: &Directory) -> Vec<InterfaceId> {
        let host_of = |directory: &Directory, plug: &Plugged| {
            let tunnel = directory.node(&plug.record.host).and_then(|node| node.tunnel);
            let PlugRecord { host, boot: _, tenant, is_up: _, fixed, addresses, learnt } = plug.record.clone();
            (host, tunnel, tenant, fixed, addresses, learnt)
        };
        let mut found = Vec::new();
        for (interface, plug) in &self.plugs {
            let now = other.plugs.get(interface).map(|now| host_of(other, now));
            if now.as_ref() != Some(&host_of(self, plug)) {
                found.push(interface.clone());
            }
        }
        found.extend(other.plugs.keys().filter(|interface| !self.plugs.contains_key(*interface)).cloned());
        found
    }
}

/// What a fuzzer has hosts say: these bytes of a host, of an interface of it, and of another's.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_noise(bytes: &[u8]) {
    use super::follow::tell_directory;
    use super::key::Key;
    let (mut directory, mut touched) = (Directory::default(), Vec::new());
    for (at, key) in [Key::Node("a"), Key::Plug("vm"), Key::Plug("other"), Key::Plug("vm")].into_iter().enumerate() {
        tell_directory(&mut directory, key, Some(bytes), at as Revision, &mut touched);
    }
    for (interface, plug) in &directory.plugs {
        assert!(plug.record.fixed.len() <= MACS_MAX && plug.record.learnt.len() <= MACS_MAX);
        let is_station = |mac: &MacAddr| !mac.is_group() && !mac.is_zero();
        assert!(plug.record.fixed.iter().chain(&plug.record.learnt).all(is_station));
        assert!(directory.plugs_of(&plug.record.host).any(|it| it == interface));
    }
    assert!(directory.differences(&Directory::default()).len() == directory.plug_count());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_noise_of_a_host_is_more_than_passed_over(cuts in prop::collection::vec(any::<(u16, u8)>(), 0..4)) {
            for text in [
                r#"{"boot":"b","tunnel":"192.0.2.1","physical_networks":["p"],"roles":["api"]}"#,
                r#"{"host":"a","boot":"b","tenant":"t","is_up":true,"fixed":["02:00:00:00:00:01"],"learnt":["02:00:00:00:00:02"]}"#,
            ] {
                let mut bytes = text.as_bytes().to_vec();
                for &(at, byte) in &cuts {
                    let at = usize::from(at) % bytes.len();
                    bytes[at] = byte;
                }
                read_noise(&bytes);
            }
        }
    }

    fn plug(host: &str) -> PlugRecord {
        let learnt = vec![MacAddr([2, 0, 0, 0, 0, 7])];
        let (fixed, addresses) = (Vec::new(), Vec::new());
        PlugRecord { host: host.into(), boot: "b".into(), tenant: None, is_up: false, fixed, addresses, learnt }
    }

    #[test]
    fn an_interface_is_on_the_host_that_said_so_last_and_op_status_touches_nobody() {
        let mut directory = Directory::default();
        let mut touched = Vec::new();
        directory.put_plug("vm", Some(plug("a")), 5, &mut touched);
        assert_eq!(std::mem::take(&mut touched), ["vm".into()]);
        directory.put_plug("vm", Some(PlugRecord { is_up: true, boot: "c".into(), ..plug("a") }), 6, &mut touched);
        assert!(touched.is_empty());
        let told = PlugRecord { addresses: vec![[10, 0, 0, 1].into()], ..plug("a") };
        directory.put_plug("vm", Some(told), 6, &mut touched);
        assert_eq!(std::mem::take(&mut touched), ["vm".into()], "who asks for them is answered otherwise");
        directory.put_plug("vm", Some(plug("b")), 5, &mut touched);
        assert!(touched.is_empty(), "older news");
        directory.put_plug("vm", Some(plug("b")), 7, &mut touched);
        assert_eq!((directory.plugs_of("a").count(), directory.plugs_of("b").count()), (0, 1));
        directory.put_plug("vm", None, 8, &mut touched);
        assert_eq!((touched.len(), directory.plug_count(), directory.plugs_of("b").count()), (2, 0, 0));
    }

    #[test]
    fn an_answer_to_what_we_said_does_not_bring_back_what_the_watch_told_as_gone() {
        let mut directory = Directory::default();
        let mut touched = Vec::new();
        directory.put_own_node("a", NodeRecord::default(), 5);
        directory.put_own_plug("vm", Some(plug("a")), 6);
        assert!(directory.node("a").is_some() && directory.plug("vm").is_some(), "before the watch tells it");
        directory.put_own_plug("vm", None, 7);
        assert!(directory.plug("vm").is_none());
        // The lease ended, which the watch told before we heard the answer of what we had said under it.
        directory.put_node("a", None, 10, &mut touched);
        directory.put_plug("vm", None, 10, &mut touched);
        directory.put_own_node("a", NodeRecord::default(), 9);
        directory.put_own_plug("vm", Some(plug("a")), 8);
        assert!(directory.node("a").is_none() && directory.plug("vm").is_none(), "what is gone came back");
        assert_eq!(directory.plugs_of("a").count(), 0);
        directory.put_own_plug("vm", Some(plug("a")), 11);
        assert!(directory.plug("vm").is_some(), "what came after that is news");
    }

    #[test]
    fn a_host_that_comes_or_goes_touches_what_is_plugged_there() {
        let mut directory = Directory::default();
        let mut touched = Vec::new();
        directory.put_plug("vm", Some(plug("a")), 1, &mut touched);
        touched.clear();
        let node = NodeRecord { tunnel: Some("192.0.2.1".parse().unwrap()), ..NodeRecord::default() };
        directory.put_node("a", Some(node.clone()), 2, &mut touched);
        directory.put_node("a", Some(NodeRecord { boot: "again".into(), ..node }), 3, &mut touched);
        directory.put_node("a", None, 4, &mut touched);
        assert_eq!(touched, ["vm".into(), "vm".into()]);
    }

    #[test]
    fn directories_differ_in_what_is_plugged_elsewhere_or_for_another_tenant_and_not_in_op_status() {
        let told = |record: PlugRecord| {
            let mut directory = Directory::default();
            directory.put_plug("vm", Some(record), 1, &mut Vec::new());
            directory
        };
        let known = told(plug("a"));
        let differs = |record| !known.differences(&told(record)).is_empty();
        assert!(!differs(PlugRecord { is_up: true, boot: "c".into(), ..plug("a") }));
        assert!(differs(plug("b")));
        assert!(differs(PlugRecord { tenant: Some("red".to_owned()), ..plug("a") }));
        assert!(differs(PlugRecord { fixed: plug("a").learnt, ..plug("a") }));
        assert_eq!(known.differences(&Directory::default()), ["vm".into()]);
    }

    #[test]
    fn addresses_that_no_station_has_are_left_out_and_too_many_too() {
        let text = r#"{"host":"a","boot":"b","is_up":true,"fixed":["01:00:00:00:00:01","02:00:00:00:00:01","00:00:00:00:00:00"]}"#;
        let record: PlugRecord = serde_json::from_str(text).unwrap();
        assert_eq!(record.fixed, [MacAddr([2, 0, 0, 0, 0, 1])]);
        let text = text.replace("\"fixed\"", "\"addresses\":[\"10.0.0.1\",\"224.0.0.1\",\"::\",\"fd00::1\"],\"fixed\"");
        let record: PlugRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(record.addresses, ["10.0.0.1", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap()));
        let many: Vec<String> = (0..200).map(|at| format!("02:00:00:00:00:{at:02x}")).collect();
        let text =
            format!(r#"{{"host":"a","boot":"b","is_up":true,"learnt":{}}}"#, serde_json::to_string(&many).unwrap());
        assert_eq!(serde_json::from_str::<PlugRecord>(&text).unwrap().learnt.len(), MACS_MAX);
        assert!(serde_json::from_str::<PlugRecord>(&text.replace("02:00:00:00:00:00", "x")).is_err());
    }
}
