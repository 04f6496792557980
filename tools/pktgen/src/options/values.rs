//! Words of the command line that are more than a number: ports, sizes, tags, orders and rates as they are written.

use crate::pace::Rate;
use serde::{Serialize, Serializer};
use std::path::PathBuf;
use std::str::FromStr;

/// IMIX as used here: 7 frames of 64 bytes, 4 of 594 and 1 of 1518, check sequence included, spread over the cycle.
const IMIX: [usize; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64];

/// A port as given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum PortName {
    /// A vhost-user socket.
    Vhost(PathBuf),
    /// A TAP of our own, in a namespace or in ours.
    Tap { netns: Option<String>, name: String },
    /// An interface of the host by a packet socket, in a namespace or in ours.
    Packet { netns: Option<String>, name: String },
    /// The same by AF_XDP sockets.
    Xdp { netns: Option<String>, name: String },
}

impl FromStr for PortName {
    type Err = String;

    fn from_str(text: &str) -> Result<PortName, String> {
        let placed = |name: &str| match name.rsplit_once('/') {
            Some((netns, name)) => (Some(netns.to_owned()), name.to_owned()),
            None => (None, name.to_owned()),
        };
        match text.split_once(':') {
            Some(("tap", name)) => Ok(placed(name)).map(|(netns, name)| PortName::Tap { netns, name }),
            Some(("packet", name)) => Ok(placed(name)).map(|(netns, name)| PortName::Packet { netns, name }),
            Some(("xdp", name)) => Ok(placed(name)).map(|(netns, name)| PortName::Xdp { netns, name }),
            Some(("vhost", path)) => Ok(PortName::Vhost(path.into())),
            _ => Ok(PortName::Vhost(text.into())),
        }
    }
}

impl std::fmt::Display for PortName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, netns, name) = match self {
            PortName::Vhost(path) => return write!(f, "vhost:{}", path.display()),
            PortName::Tap { netns, name } => ("tap", netns, name),
            PortName::Packet { netns, name } => ("packet", netns, name),
            PortName::Xdp { netns, name } => ("xdp", netns, name),
        };
        match netns {
            Some(netns) => write!(f, "{kind}:{netns}/{name}"),
            None => write!(f, "{kind}:{name}"),
        }
    }
}

impl Serialize for PortName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Sizes on a wire, in turns.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct FrameSizes(pub(crate) Vec<usize>);

impl FromStr for FrameSizes {
    type Err = String;

    fn from_str(text: &str) -> Result<FrameSizes, String> {
        if text.eq_ignore_ascii_case("imix") {
            return Ok(FrameSizes(IMIX.to_vec()));
        }
        let sizes: Result<Vec<usize>, _> = text.split(',').map(|size| size.trim().parse()).collect();
        match sizes {
            Ok(sizes) if sizes.len() <= usize::from(u8::MAX) => Ok(FrameSizes(sizes)),
            Ok(_) => Err("more than 255 sizes".to_owned()),
            Err(_) => Err(format!("{text:?} is neither a list of sizes nor imix")),
        }
    }
}

/// A tag as given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct VlanTag {
    pub(crate) id: u16,
    pub(crate) priority: u8,
}

impl FromStr for VlanTag {
    type Err = String;

    fn from_str(text: &str) -> Result<VlanTag, String> {
        let (id, priority) = text.split_once(':').unwrap_or((text, "0"));
        match (id.parse(), priority.parse()) {
            (Ok(id @ 0..=4094), Ok(priority @ 0..=7)) => Ok(VlanTag { id, priority }),
            _ => Err("a tag is ID or ID:PRIORITY, 0 to 4094 and 0 to 7".to_owned()),
        }
    }
}

/// An order as given.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum OrderName {
    /// Each in turn.
    RoundRobin,
    /// All equally likely.
    Random,
    /// A few have most, with this exponent.
    Zipf(f64),
}

impl FromStr for OrderName {
    type Err = String;

    fn from_str(text: &str) -> Result<OrderName, String> {
        match text.split_once(':').unwrap_or((text, "1")) {
            ("round-robin", "1") => Ok(OrderName::RoundRobin),
            ("random", "1") => Ok(OrderName::Random),
            ("zipf", exponent) => match exponent.parse::<f64>() {
                Ok(exponent) if (0.0..=10.0).contains(&exponent) => Ok(OrderName::Zipf(exponent)),
                _ => Err("an exponent is a number from 0 to 10".to_owned()),
            },
            _ => Err("an order is round-robin, random or zipf[:EXPONENT]".to_owned()),
        }
    }
}

impl Serialize for OrderName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            OrderName::RoundRobin => serializer.serialize_str("round-robin"),
            OrderName::Random => serializer.serialize_str("random"),
            OrderName::Zipf(exponent) => serializer.collect_str(&format_args!("zipf:{exponent}")),
        }
    }
}

/// A rate as given.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct RateName(pub(crate) Rate);

impl FromStr for RateName {
    type Err = String;

    fn from_str(text: &str) -> Result<RateName, String> {
        text.parse().map(RateName)
    }
}

impl Serialize for RateName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Rate::Frames(frames) => serializer.collect_str(&format_args!("{frames}pps")),
            Rate::Bits(bits) => serializer.collect_str(&format_args!("{bits}bit/s")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_namespaces_of_ports_are_told_by_their_names() {
        let port = |text: &str| text.parse::<PortName>().unwrap();
        let names = ["vhost:x/y", "tap:t0", "packet:eth0", "xdp:eth0", "packet:/run/netns/blue/tap0"];
        assert_eq!(names.map(|name| port(name).to_string()), names);
        assert_eq!(port("x/y"), port("vhost:x/y"));
        assert_eq!(port("tap:red/t0"), PortName::Tap { netns: Some("red".to_owned()), name: "t0".to_owned() });
    }
}
