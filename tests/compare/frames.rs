//! What is sent: a row of the tables of frames, and its words for the load generator.

use clap::ValueEnum;
use std::fmt;
use std::str::FromStr;

/// The other host of an underlay as the generator plays it on the second port: network, its addresses and the switch's.
pub(crate) const FAR_HOST: &str = "1=5000,02:00:00:00:00:02/172.16.0.2,02:00:00:00:00:01/172.16.0.1";

/// Addresses a side where a row does not tell.
pub(crate) const MACS_USUAL: u32 = 1000;

/// One kind of traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) size: Size,
    /// Addresses, and flows, a side.
    pub(crate) macs: u32,
    pub(crate) ring: Layout,
    /// The second port's frames go in VXLAN; sizes are those of the inner ones.
    pub(crate) is_tunnelled: bool,
}

/// How long frames are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Size {
    /// All of so many bytes on the wire, with check sequence.
    Wire(u32),
    /// 7 of 64, 4 of 594 and 1 of 1,518.
    Imix,
    /// TCP frames of 64 KB that the device is to cut.
    Tso,
}

/// How a ring is laid out (virtio 1.2 sections 2.7 and 2.8).
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layout {
    Split,
    Packed,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        match text {
            "imix" => Ok(Size::Imix),
            "tso" => Ok(Size::Tso),
            _ => match text.parse() {
                Ok(bytes @ 64..=1518) => Ok(Size::Wire(bytes)),
                _ => Err("a size is 64 to 1518 bytes, imix, or tso".to_owned()),
            },
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Wire(bytes) => write!(f, "{bytes} B"),
            Size::Imix => f.write_str("IMIX"),
            Size::Tso => f.write_str("64 KB TSO"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ring = if self.ring == Layout::Packed { ", packed" } else { "" };
        let ring = format!("{ring}{}", if self.is_tunnelled { ", VXLAN" } else { "" });
        match self.macs {
            MACS_USUAL => write!(f, "{}{ring}", self.size),
            1 => write!(f, "{}, 1 MAC{ring}", self.size),
            macs if macs % 1000 == 0 => write!(f, "{}, {}k MACs{ring}", self.size, macs / 1000),
            macs => write!(f, "{}, {macs} MACs{ring}", self.size),
        }
    }
}

impl Row {
    /// A row of split rings and 1,000 addresses.
    pub(crate) const fn split(size: Size) -> Row {
        Row { size, macs: MACS_USUAL, ring: Layout::Split, is_tunnelled: false }
    }

    /// A row of packed rings and 1,000 addresses.
    pub(crate) const fn packed(size: Size) -> Row {
        Row { ring: Layout::Packed, ..Row::split(size) }
    }

    /// A row of split rings and 1,000 addresses, behind VXLAN on one side.
    pub(crate) const fn tunnelled(size: Size) -> Row {
        Row { is_tunnelled: true, ..Row::split(size) }
    }

    /// The generator's words for it.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words = vec!["--macs".to_owned(), self.macs.to_string()];
        match self.size {
            Size::Wire(bytes) => words.extend(["--frame-sizes".to_owned(), bytes.to_string()]),
            Size::Imix => words.extend(["--frame-sizes", "imix"].map(str::to_owned)),
            Size::Tso => words.push("--tso".to_owned()),
        }
        if self.is_tunnelled {
            words.extend(["--vxlan", FAR_HOST].map(str::to_owned));
        }
        words.extend((self.ring == Layout::Packed).then(|| "--packed".to_owned()));
        words
    }

    /// The same for a measurement of so many seconds.
    pub(crate) fn words_for(&self, seconds: f64) -> Vec<String> {
        let mut words = self.words();
        words.extend(["--seconds", &seconds.to_string(), "--discard-off-cpu"].map(str::to_owned));
        words
    }
}
