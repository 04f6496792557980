//! Which kinds of frames were compared with the kernel's: what chance chooses must not leave a kind out.

use super::Sample;
use std::collections::BTreeMap;
use switch::offload::GSO_ECN;

/// How many, by kind.
#[derive(Default)]
pub(super) struct Compared(BTreeMap<String, usize>);

impl Compared {
    pub(super) fn add(&mut self, sample: &Sample) {
        let gso_type = sample.claim.gso_type;
        let is_tcp = sample.claim.csum_offset == 16;
        let is_ipv4 = sample.frame[12 + 4 * sample.vlan_count..][..2] == [8, 0];
        let name = format!(
            "{}{} over {}, {} tags",
            if is_tcp { "TCP" } else { "UDP" },
            if gso_type & GSO_ECN != 0 { " with ECN" } else { "" },
            if is_ipv4 { "IPv4" } else { "IPv6" },
            sample.vlan_count,
        );
        *self.0.entry(name).or_default() += 1;
    }

    /// Each protocol over each version of IP with each number of tags; `has_ecn`, also TCP that told of congestion.
    pub(super) fn assert_all(&self, has_ecn: bool, vlan_max: usize) {
        println!("{:?}", self.0);
        let protocols = ["TCP", "UDP", "TCP with ECN"];
        for protocol in &protocols[..if has_ecn { 3 } else { 2 }] {
            for (version, tags) in (0..=vlan_max).flat_map(|tags| [("IPv4", tags), ("IPv6", tags)]) {
                let name = format!("{protocol} over {version}, {tags} tags");
                assert!(self.0.contains_key(&name), "{name} among {:?}", self.0);
            }
        }
    }
}
