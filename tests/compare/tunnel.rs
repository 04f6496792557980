//! Frames between a guest and another host of the underlay: headers put on one way and taken off the other.

use crate::alternate::rates;
use crate::frames::{Row, Size};
use crate::options::Options;
use crate::peers::{End, Peer, Switch};
use crate::report::{Figure, Page};

/// Title of the section, by which the bars find its figures.
const TITLE: &str = "Frames between a vhost-user port and another host, by VXLAN";

/// The rows of the page.
const ROWS: [Row; 3] = [
    Row::tunnelled(Size::Wire(64)),
    Row::tunnelled(Size::Wire(512)),
    // 1,400 bytes in memory.
    Row::tunnelled(Size::Wire(1404)),
];

/// The table of rates.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    let asked = options.rows().map(|rows| rows.into_iter().map(|row| Row { is_tunnelled: true, ..row }).collect());
    let rows: Vec<Row> = asked.unwrap_or_else(|| ROWS.to_vec());
    let rows: Vec<Row> = rows.into_iter().filter(|row| row.size != Size::Tso).collect();
    let peers = options.peers(&[Peer::Qvs, Peer::Ovs]);
    let switches = Switch::start_all(&peers, [End::Vhost, End::Underlay]);
    let how = "One worker, 1,000 addresses and flows a side. The generator plays a guest on one port and another host with its guests on \
               the other, an uplink over vhost-user; half of the frames get outer headers (IPv4, VXLAN), half lose them. \
               Sizes are those of the inner frames. OVS-DPDK with action NORMAL on a bridge with a VXLAN port and a bridge with the \
               uplink.";
    rates(page, TITLE, how, &rows, &switches, options, Figure::Mpps);
}

/// The name of one of these rows among the findings.
pub(crate) fn finding(row: Row) -> String {
    format!("{TITLE}: {row}")
}
