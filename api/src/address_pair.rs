//! `allowed_address_pairs`: which addresses a port may send from, as Nova of that time tells on its creation.
//!
//! The MACs are enforced by the data plane: a port with pairs sends from their MACs and those of its plug, and from no
//! other. The IP addresses are kept for the day when senders' addresses are checked too. Pure.

use crate::model::TEXT_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use switch::ids::MacAddr;

/// Pairs of one port: Nova sends one for each address of an interface.
pub const PAIRS_MAX: usize = 64;

/// The pairs of a port; none: it may send from any MAC that its plug allows.
pub type AddressPairs = Arc<[AddressPair]>;

/// A MAC, and an address used with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct AddressPair {
    mac: MacAddr,
    ip: Option<IpPrefix>,
}

/// The addresses that begin with the same bits; of full length: one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpPrefix {
    address: IpAddr,
    len: u8,
}

/// Why a text is no pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPair {
    /// Not six bytes in hexadecimal with colons, or a group's address, or zero.
    #[error("has a mac_address that is no station's")]
    Mac,
    /// Neither an IPv4 nor an IPv6 address, with or without a prefix's length.
    #[error("has an ip_address that is none")]
    Ip,
}

/// A pair as it is written on the wire and in the store.
#[derive(Serialize, Deserialize)]
struct Written {
    mac_address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip_address: Option<String>,
}

impl AddressPair {
    /// The pair of these texts.
    ///
    /// # Errors
    /// [`BadPair`]
    pub fn new(mac: &str, ip: Option<&str>) -> Result<AddressPair, BadPair> {
        let mac: MacAddr = mac.parse().map_err(|_| BadPair::Mac)?;
        if mac.is_group() || mac.is_zero() {
            return Err(BadPair::Mac);
        }
        Ok(AddressPair { mac, ip: ip.map(str::parse).transpose()? })
    }

    /// A station's address.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// An IP address or a prefix of them; `None`: any.
    pub fn ip(&self) -> Option<IpPrefix> {
        self.ip
    }
}

impl TryFrom<Written> for AddressPair {
    type Error = BadPair;

    fn try_from(written: Written) -> Result<AddressPair, BadPair> {
        AddressPair::new(&written.mac_address, written.ip_address.as_deref())
    }
}

impl From<AddressPair> for Written {
    fn from(pair: AddressPair) -> Written {
        Written { mac_address: pair.mac.to_string(), ip_address: pair.ip.map(|ip| ip.to_string()) }
    }
}

impl FromStr for IpPrefix {
    type Err = BadPair;

    fn from_str(text: &str) -> Result<IpPrefix, BadPair> {
        let (address, len) = text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
        let address: IpAddr = address.parse().map_err(|_| BadPair::Ip)?;
        let len_max = len_max(&address);
        let len = match len {
            None => len_max,
            Some(len) if len.bytes().all(|digit| digit.is_ascii_digit()) => len.parse().map_err(|_| BadPair::Ip)?,
            Some(_) => return Err(BadPair::Ip),
        };
        if len <= len_max { Ok(IpPrefix { address, len }) } else { Err(BadPair::Ip) }
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.len == len_max(&self.address) {
            true => self.address.fmt(out),
            false => write!(out, "{}/{}", self.address, self.len),
        }
    }
}

fn len_max(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The pairs that a body's attribute lists: null is an empty list.
///
/// # Errors
/// One clause saying what is wrong, for a sentence that begins with the attribute's name.
pub fn read(attribute: &serde_json::Value) -> Result<AddressPairs, String> {
    use serde_json::Value;
    let text = |pair: &serde_json::Map<String, Value>, key: &str| match pair.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= TEXT_BYTES_MAX => Ok(Some(text.clone())),
        Some(_) => Err(format!("has a {key} that is no text")),
    };
    let list = match attribute {
        Value::Null => return Ok(AddressPairs::default()),
        Value::Array(list) if list.len() <= PAIRS_MAX => list,
        Value::Array(_) => return Err(format!("has more than {PAIRS_MAX} pairs")),
        _ => return Err("is no list".to_owned()),
    };
    let pairs = list.iter().map(|pair| {
        let pair = pair.as_object().ok_or("has a pair that is no object")?;
        let mac = text(pair, "mac_address")?.ok_or("has a pair without mac_address")?;
        AddressPair::new(&mac, text(pair, "ip_address")?.as_deref()).map_err(|bad| bad.to_string())
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pairs_are_read_as_nova_sends_them_and_written_alike() {
        let sent = json!([
            {"mac_address": "02:16:3E:00:00:01", "ip_address": "10.0.0.7"},
            {"mac_address": "02:16:3e:00:00:01", "ip_address": "fe80::16:3eff:fe00:1"},
            {"mac_address": "00:00:5e:00:01:07", "ip_address": "192.0.2.0/24", "more": 1},
            {"mac_address": "02:16:3e:00:00:02", "ip_address": null},
        ]);
        let pairs = read(&sent).unwrap();
        let written = serde_json::to_value(&pairs).unwrap();
        assert_eq!(
            written,
            json!([
                {"mac_address": "02:16:3e:00:00:01", "ip_address": "10.0.0.7"},
                {"mac_address": "02:16:3e:00:00:01", "ip_address": "fe80::16:3eff:fe00:1"},
                {"mac_address": "00:00:5e:00:01:07", "ip_address": "192.0.2.0/24"},
                {"mac_address": "02:16:3e:00:00:02"},
            ])
        );
        assert_eq!(read(&written).unwrap(), pairs);
        assert_eq!(serde_json::from_value::<AddressPairs>(written).unwrap(), pairs);
        assert_eq!(read(&json!(null)).unwrap().len() + read(&json!([])).unwrap().len(), 0);
    }

    #[test]
    fn what_is_no_list_of_pairs_is_refused_with_the_reason() {
        let one = |mac: &str, ip: &str| json!([{"mac_address": mac, "ip_address": ip}]);
        let good = "02:00:00:00:00:01";
        for (attribute, why) in [
            (json!("x"), "is no list"),
            (json!({}), "is no list"),
            (json!(["x"]), "no object"),
            (json!([{}]), "without mac_address"),
            (json!([{"mac_address": 2}]), "no text"),
            (json!([{"mac_address": good, "ip_address": ["10.0.0.1"]}]), "no text"),
            (one("02:00:00:00:00", "10.0.0.1"), "no station's"),
            (one("01:00:00:00:00:01", "10.0.0.1"), "no station's"),
            (one("00:00:00:00:00:00", "10.0.0.1"), "no station's"),
            (one(good, ""), "ip_address"),
            (one(good, "10.0.0"), "ip_address"),
            (one(good, "10.0.0.1/33"), "ip_address"),
            (one(good, "10.0.0.1/+8"), "ip_address"),
            (one(good, "10.0.0.1/"), "ip_address"),
            (one(good, "::1/129"), "ip_address"),
            (json!(vec![json!({"mac_address": good}); PAIRS_MAX + 1]), "more than 64"),
        ] {
            let said = read(&attribute).unwrap_err();
            assert!(said.contains(why), "{attribute}: {said}");
        }
        assert_eq!(read(&json!(vec![json!({"mac_address": good}); PAIRS_MAX])).unwrap().len(), PAIRS_MAX);
    }
}
