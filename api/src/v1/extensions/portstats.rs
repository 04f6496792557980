//! `portstats`: what passed a port, by the counters of the switch.
//!
//! As in `qvs show ports`, *rx* is what the switch received from the port's interface and *tx* what it sent to it; errors
//! are frames that were dropped on that way. A port without an interface has passed nothing. Of one whose interface is plugged on
//! another host only that host can tell: the version's 503.

use super::{Extension, legacy};
use crate::document::Value;
use crate::plugin::Flow;
use crate::v1::route::Row;
use crate::v1::{Answer, Call, Handler, Refusal};

const STATS: &str = "/extensions/ovs/tenants/{tenant}/networks/{network}/ports/{port}/stats";
/// The original took any id for the one there is.
const STATS_BY_ID: &str = "/extensions/ovs/tenants/{tenant}/networks/{network}/ports/{port}/stats/{any}";
const ROWS: &[Row<Handler>] = &[Row::new("GET", STATS, show), Row::new("GET", STATS_BY_ID, show)];

pub(super) const EXTENSION: Extension = Extension {
    name: "Port Statistics",
    alias: "portstats",
    description: "Port Statistics",
    namespace: "http://docs.openstack.org/ext/portstats/api/v1.0",
    updated: "2011-12-20T10:00:00-00:00",
    is_for: |plugin, _| plugin.counts_ports(),
    rows: ROWS,
    actions: &[],
    amendments: &[],
};

fn show(call: &Call<'_>) -> Result<Answer, Refusal> {
    let stats = call.plugin.get_port_stats(call.tenant(), call.network(), call.port())?;
    let fields = |[packets, bytes, errors]: [&'static str; 3], flow: Flow| {
        [
            (packets, Value::Number(flow.packets)),
            (bytes, Value::Number(flow.bytes)),
            (errors, Value::Number(flow.drops)),
        ]
    };
    let rx = fields(["rx_packets", "rx_bytes", "rx_errors"], stats.rx);
    let tx = fields(["tx_packets", "tx_bytes", "tx_errors"], stats.tx);
    Ok(legacy::told("stats", Value::Object(rx.into_iter().chain(tx).collect()), call))
}
