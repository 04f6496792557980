//! Frames between a vhost-user port and a TAP, and between two TAPs: the kernel has a part in each.

use crate::alternate::rates;
use crate::frames::{Row, Size};
use crate::options::Options;
use crate::peers::{End, Peer, Switch};
use crate::report::{Figure, Page};

pub(crate) const MIXED: &str = "Frames between a vhost-user port and a TAP";
pub(crate) const TAPS: &str = "Frames between two TAPs";
pub(crate) const MIXED_LARGE: &str = "Large TCP frames between a vhost-user port and a TAP";
pub(crate) const TAPS_LARGE: &str = "Large TCP frames between two TAPs";

/// The rows of the page, and those between two TAPs, where a frame costs a system call whatever its size.
const ROWS: [Row; 5] = [
    Row::split(Size::Wire(64)),
    Row::split(Size::Wire(256)),
    Row::split(Size::Wire(512)),
    Row::split(Size::Wire(1518)),
    Row::split(Size::Imix),
];
const ROWS_OF_TAPS: [Row; 2] = [ROWS[0], ROWS[3]];
const LARGE: [Row; 1] = [Row::split(Size::Tso)];

/// The tables.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    let rows = options.rows();
    let asked = |usual: &[Row], is_large: bool| {
        let mut rows = rows.clone().unwrap_or_else(|| usual.to_vec());
        rows.retain(|row| (row.size == Size::Tso) == is_large);
        rows
    };
    let mixed =
        "The generator is a guest on one side and a packet socket on the TAP on the other, both directions at once.";
    let taps = "The generator has a packet socket on each TAP; the kernel's bridge has no thread of its own, there the generator \
                writes to and reads from the TAPs, and bridges by the way.";
    let whole = "Frames of 65,214 bytes, which both sides take whole.";

    let usual = "OVS-DPDK takes frames from a TAP by its main thread, here on CPU 0, and gives them to one by its PMD.";
    let peers = [Peer::Qvs, Peer::Ovs, Peer::Bridge];
    let table = Table { title: MIXED, ends: [End::Vhost, End::Tap], peers: &peers[..2], figure: Figure::Mpps };
    table.measure(page, &format!("{mixed} {usual}"), &asked(&ROWS, false), options);
    let table = Table { title: TAPS, ends: [End::Tap; 2], peers: &peers, figure: Figure::Mpps };
    table.measure(page, taps, &asked(&ROWS_OF_TAPS, false), options);

    let peers = [Peer::Qvs, Peer::OvsTso, Peer::Bridge];
    let table = Table { title: MIXED_LARGE, ends: [End::Vhost, End::Tap], peers: &peers[..2], figure: Figure::Gbps };
    table.measure(page, &format!("{mixed} {whole}"), &asked(&LARGE, true), options);
    let table = Table { title: TAPS_LARGE, ends: [End::Tap; 2], peers: &peers, figure: Figure::Gbps };
    table.measure(page, &format!("{taps} {whole}"), &asked(&LARGE, true), options);
}

/// One table of rates.
struct Table<'a> {
    title: &'static str,
    ends: [End<'a>; 2],
    peers: &'a [Peer],
    figure: Figure,
}

impl Table<'_> {
    /// Measures these rows, if there are any.
    fn measure(&self, page: &mut Page, how: &str, rows: &[Row], options: &Options) {
        if !rows.is_empty() {
            let switches = Switch::start_all(&options.peers(self.peers), self.ends);
            rates(page, self.title, how, rows, &switches, options, self.figure);
        }
    }
}
