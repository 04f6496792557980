//! Uplinks of several interfaces: `interface = ["eth1", "eth2"]` and how they are bonded. The words are those of Linux's
//! bonding driver where it has any.

use super::SettingsError;
use super::uplinks::{Faults, OwnEnd};
use crate::bond::Mode;
use crate::bond::lacp::Rate;
use api::host::{DeviceDriver, INTERFACE_NAME_MAX};
use serde::{Deserialize, Serialize};
use switch::bond::{HashPolicy, LINKS_MAX};

/// One interface, or several.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    /// One.
    One(String),
    /// Several.
    More(Vec<String>),
}

/// How links are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BondMode {
    /// The first that has a carrier, until it has none.
    ActiveBackup,
    /// Those that the other end agrees to (IEEE 802.1AX; Linux: 802.3ad).
    Lacp,
}

/// How often the other end is asked to speak, and how long it may be silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LacpRate {
    /// Every 30 s; 90 s.
    Slow,
    /// Every second; 3 s.
    Fast,
}

/// By what of a frame a link is chosen where several send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum XmitHashPolicy {
    /// MAC addresses and EtherType.
    #[serde(rename = "layer2")]
    Layer2,
    /// And IP addresses.
    #[serde(rename = "layer2+3")]
    Layer23,
    /// IP addresses and ports.
    #[serde(rename = "layer3+4")]
    Layer34,
}

/// An uplink of several interfaces.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BondUplink {
    /// Their names.
    #[serde(rename = "interface")]
    pub(crate) interfaces: Vec<String>,
    /// How links are chosen.
    #[serde(rename = "bond")]
    pub(crate) mode: BondMode,
    /// How quick LACP is.
    pub(crate) lacp_rate: LacpRate,
    /// How frames spread.
    pub(crate) xmit_hash_policy: XmitHashPolicy,
    /// Whether the host's kernel has no use for them.
    pub(crate) exclusive: bool,
    /// How their frames are moved; `None`: as suits their kind.
    pub(crate) driver: Option<DeviceDriver>,
    /// Our end there, if the kernel has none.
    #[serde(flatten)]
    pub(crate) end: Option<OwnEnd>,
}

impl BondUplink {
    /// By what links are used.
    pub(crate) fn mode(&self) -> Mode {
        match (self.mode, self.lacp_rate) {
            (BondMode::ActiveBackup, _) => Mode::ActiveBackup,
            (BondMode::Lacp, LacpRate::Slow) => Mode::Lacp(Rate::Slow),
            (BondMode::Lacp, LacpRate::Fast) => Mode::Lacp(Rate::Fast),
        }
    }

    /// How frames spread.
    pub(crate) fn policy(&self) -> HashPolicy {
        match self.xmit_hash_policy {
            XmitHashPolicy::Layer2 => HashPolicy::Layer2,
            XmitHashPolicy::Layer23 => HashPolicy::Layer23,
            XmitHashPolicy::Layer34 => HashPolicy::Layer34,
        }
    }
}

/// What `interface` and the keys of bonds say together.
pub(super) enum Interfaces {
    /// One interface.
    One(String),
    /// A bond.
    Bond {
        /// Its interfaces.
        interfaces: Vec<String>,
        /// And what is said of them.
        mode: BondMode,
        lacp_rate: LacpRate,
        xmit_hash_policy: XmitHashPolicy,
    },
}

pub(super) fn resolve_bond(
    interface: OneOrMore,
    mode: Option<BondMode>,
    lacp_rate: Option<LacpRate>,
    xmit_hash_policy: Option<XmitHashPolicy>,
    fault: Faults<'_>,
) -> Result<Interfaces, SettingsError> {
    let interfaces = match interface {
        OneOrMore::One(interface) => {
            if mode.is_some() || lacp_rate.is_some() || xmit_hash_policy.is_some() {
                return Err(fault(
                    "bond",
                    "is for uplinks of several interfaces: interface = [\"eth1\", \"eth2\"]".into(),
                ));
            }
            check_interface(&interface, fault)?;
            return Ok(Interfaces::One(interface));
        }
        OneOrMore::More(interfaces) => interfaces,
    };
    if !(2..=LINKS_MAX).contains(&interfaces.len()) {
        return Err(fault("interface", format!("a bond has 2 to {LINKS_MAX} interfaces, not {}", interfaces.len())));
    }
    interfaces.iter().try_for_each(|interface| check_interface(interface, fault))?;
    let Some(mode) = mode else {
        return Err(fault("interface", "several need bond = \"active-backup\" or \"lacp\"".into()));
    };
    if mode == BondMode::ActiveBackup {
        if lacp_rate.is_some() {
            return Err(fault("lacp_rate", "is for bond = \"lacp\"".into()));
        }
        if xmit_hash_policy.is_some() {
            return Err(fault("xmit_hash_policy", "is for bond = \"lacp\": otherwise one link sends".into()));
        }
    }
    Ok(Interfaces::Bond {
        interfaces,
        mode,
        lacp_rate: lacp_rate.unwrap_or(LacpRate::Slow),
        xmit_hash_policy: xmit_hash_policy.unwrap_or(XmitHashPolicy::Layer34),
    })
}

fn check_interface(interface: &str, fault: Faults<'_>) -> Result<(), SettingsError> {
    let is_name = (1..=INTERFACE_NAME_MAX).contains(&interface.len())
        && interface.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
        && interface != "."
        && interface != "..";
    if is_name { Ok(()) } else { Err(fault("interface", format!("{interface:?} is no name of an interface"))) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::super::{Settings, UplinkDevice};

    fn parse(keys: &str) -> Result<Settings, String> {
        let text = format!("[[uplink]]\nphysical_network = \"physnet1\"\n{keys}\n");
        Settings::parse(&text, "qvs.toml").map_err(|error| error.to_string())
    }

    #[test]
    fn a_bond_is_read_with_its_defaults_and_printed_as_it_can_be_read_again() {
        let settings = parse("interface = [\"eth1\", \"eth2\"]\nbond = \"lacp\"\nlacp_rate = \"fast\"").unwrap();
        let printed = toml::to_string(&settings.uplink[0].device).unwrap();
        for line in ["interface = [\"eth1\", \"eth2\"]", "bond = \"lacp\"", "lacp_rate = \"fast\"", "\"layer3+4\""] {
            assert!(printed.contains(line), "{printed}");
        }
        assert!(matches!(&settings.uplink[0].device, UplinkDevice::Bond(bond) if bond.interfaces == ["eth1", "eth2"]));
    }

    #[test]
    fn a_bond_that_is_the_switchs_alone_has_tags_and_an_address_like_any_uplink() {
        let keys = "interface = [\"eth1\", \"eth2\"]\nbond = \"active-backup\"\nservice_vlan = 500\nunderlay_vlan = 50\n\
                    address = \"172.16.0.1/24\"";
        let error = parse(keys).map(drop).unwrap_err();
        assert!(error.contains("needs exclusive = true"), "{error}");
        let settings = parse(&format!("{keys}\nexclusive = true")).unwrap();
        let uplink = &settings.uplink[0];
        assert_eq!(uplink.own_end().unwrap().address.to_string(), "172.16.0.1/24");
        let tags = uplink.tags();
        assert_eq!([tags.service, tags.underlay].map(|id| id.unwrap().get()), [500, 50]);
    }

    #[test]
    fn what_does_not_fit_together_is_refused_with_its_reason() {
        for (keys, reason) in [
            ("interface = [\"eth1\"]\nbond = \"lacp\"", "2 to 8"),
            ("interface = [\"eth1\", \"eth2\"]", "several need bond"),
            ("interface = [\"eth1\", \"eth1\"]\nbond = \"lacp\"", "an uplink already"),
            ("interface = [\"eth1\", \"a/b\"]\nbond = \"lacp\"", "no name of an interface"),
            ("interface = \"eth1\"\nbond = \"lacp\"", "several interfaces"),
            ("interface = [\"eth1\", \"eth2\"]\nbond = \"active-backup\"\nlacp_rate = \"fast\"", "is for bond"),
            ("vhost_user = \"/run/nic\"\nbond = \"lacp\"", "several interfaces"),
            (
                "interface = [\"eth1\", \"eth2\"]\nbond = \"lacp\"\n[tunnel]\nlocal_ip = \"10.0.0.1\"",
                "give the bond this address",
            ),
        ] {
            let error = parse(keys).map(drop).unwrap_err();
            assert!(error.contains(reason), "{keys}: {error}");
        }
    }
}
