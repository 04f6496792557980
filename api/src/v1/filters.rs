//! A query as a filter, as Quantum 2012.1 reads it. Pure.
//!
//! A key given twice counts by its last value. Keys nobody knows are ignored beside a known one; alone they let nothing
//! pass.

use crate::plugin::{NetworkFilter, PortFilter};

/// The filter of a list of networks.
pub(super) fn networks(query: &[(String, String)]) -> NetworkFilter {
    let mut filter = NetworkFilter::default();
    let mut known_count = 0;
    for (key, value) in query {
        let place = match key.as_str() {
            "name" => &mut filter.name,
            "op-status" => &mut filter.op_status,
            "port-state" => &mut filter.port_state,
            "port-op-status" => &mut filter.port_op_status,
            "port" => &mut filter.port,
            "attachment" => &mut filter.attachment,
            "has-attachment" => {
                filter.has_attachment = Some(is_true(value));
                known_count += 1;
                continue;
            }
            _ => continue,
        };
        *place = Some(value.clone());
        known_count += 1;
    }
    filter.is_impossible = known_count == 0 && !query.is_empty();
    filter
}

/// The filter of a list of ports.
pub(super) fn ports(query: &[(String, String)]) -> PortFilter {
    let mut filter = PortFilter::default();
    let mut known_count = 0;
    for (key, value) in query {
        let place = match key.as_str() {
            "state" => &mut filter.state,
            "op-status" => &mut filter.op_status,
            "attachment" => &mut filter.attachment,
            "has-attachment" => {
                filter.has_attachment = Some(is_true(value));
                known_count += 1;
                continue;
            }
            _ => continue,
        };
        *place = Some(value.clone());
        known_count += 1;
    }
    filter.is_impossible = known_count == 0 && !query.is_empty();
    filter
}

/// Anything but `true`, in any case, is false.
fn is_true(value: &str) -> bool {
    value.to_lowercase() == "true"
}
