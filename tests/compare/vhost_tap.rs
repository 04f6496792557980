//! Frames between a vhost-user port and a TAP, and between two TAPs: the kernel has a part in each.

use crate::alternate::rates;
use crate::frames::{Row, Size};
use crate::options::Options;
use crate::peers::{End, Peer, Switch};
use crate::report::{Figure, Page};

pub(crate) const MIXED: &str = "Frames between a vhost-user port and a TAP";
pub(crate) const TAPS: &str = "Frames between two TAPs";

/// The rows of the page, and those between two TAPs, where a frame costs a system call whatever its size.
const ROWS: [Row; 5] = [
    Row::split(Size::Wire(64)),
    Row::split(Size::Wire(256)),
    Row::split(Size::Wire(512)),
    Row::split(Size::Wire(1518)),
    Row::split(Size::Imix),
];
const ROWS_OF_TAPS: [Row; 2] = [ROWS[0], ROWS[3]];

/// Both tables.
pub(crate) fn measure(page: &mut Page, options: &Options) {
    let rows = |usual: &[Row]| {
        let mut rows = options.rows().unwrap_or_else(|| usual.to_vec());
        // What leaves through a packet socket is no large frame.
        rows.retain(|row| row.size != Size::Tso);
        rows
    };
    let switches = Switch::start_all(&options.peers(&[Peer::Qvs, Peer::Ovs]), [End::Vhost, End::Tap]);
    let how = "The generator is a guest on one side and a packet socket on the TAP on the other, both directions at once. \
               OVS-DPDK takes frames from a TAP by its main thread, here on CPU 0, and gives them to one by its PMD.";
    rates(page, MIXED, how, &rows(&ROWS), &switches, options, Figure::Mpps);
    drop(switches);
    let switches = Switch::start_all(&options.peers(&[Peer::Qvs, Peer::Ovs, Peer::Bridge]), [End::Tap; 2]);
    let how = "The generator has a packet socket on each TAP; the kernel's bridge has no thread of its own, there the generator \
               writes to and reads from the TAPs, and bridges by the way.";
    rates(page, TAPS, how, &rows(&ROWS_OF_TAPS), &switches, options, Figure::Mpps);
}
