//! Frames between two vhost-user ports, both directions at once: what one worker moves.

use crate::alternate::rates;
use crate::frames::{Row, Size};
use crate::options::Options;
use crate::peers::{End, Peer, Switch};
use crate::report::{Figure, Page};

/// Titles of the sections, by which the bars find their figures.
pub(crate) const FRAMES: &str = "Frames between two vhost-user ports";
pub(crate) const LARGE: &str = "Large TCP frames between two vhost-user ports";

/// The rows of the page. 100,000 addresses come last: Open vSwitch takes minutes to forget their flows.
pub(crate) const ROWS: [Row; 13] = [
    Row::split(Size::Wire(64)),
    Row::split(Size::Wire(256)),
    Row::split(Size::Wire(512)),
    Row::split(Size::Wire(1518)),
    Row::split(Size::Imix),
    Row::packed(Size::Wire(64)),
    Row::packed(Size::Wire(256)),
    Row::packed(Size::Wire(512)),
    Row::packed(Size::Wire(1518)),
    Row::packed(Size::Imix),
    Row { macs: 1, ..Row::split(Size::Wire(64)) },
    Row { macs: 100_000, ..Row::split(Size::Wire(64)) },
    Row::split(Size::Tso),
];

/// The tables of rates.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    let rows = options.rows().unwrap_or_else(|| ROWS.to_vec());
    let (large, usual): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.size == Size::Tso);
    if !usual.is_empty() {
        let peers = options.peers(&[Peer::Qvs, Peer::Testpmd, Peer::Ovs, Peer::Yardstick]);
        let switches = Switch::start_all(&peers, [End::Vhost; 2]);
        let how = "One worker, 1,000 addresses and flows a side if not told otherwise. qvs with learning, isolation, guard and \
                   counters on, as `qvs plug` gives it to any port; OVS-DPDK with action NORMAL.";
        rates(page, FRAMES, how, &usual, &switches, options, Figure::Mpps);
    }
    if !large.is_empty() {
        let peers = options.peers(&[Peer::Qvs, Peer::Testpmd, Peer::OvsTso, Peer::Yardstick]);
        let switches = Switch::start_all(&peers, [End::Vhost; 2]);
        let how = "Frames of 65,214 bytes which the receiver takes whole, 28 buffers each.";
        rates(page, LARGE, how, &large, &switches, options, Figure::Gbps);
    }
}

/// The name of one of these rows among the findings.
pub(crate) fn finding(row: Row) -> String {
    let title = if row.size == Size::Tso { LARGE } else { FRAMES };
    format!("{title}: {row}")
}

/// The row at which loss is measured.
pub(crate) const SMALL: Row = Row::split(Size::Wire(64));
