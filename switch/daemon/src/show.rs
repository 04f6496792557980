//! Printing what the daemon tells: tables for people, JSON for programs.

use crate::cli::What;
use crate::client::ClientError;
use crate::rebalance::{QueueMove, Rebalance};
use crate::table::{NOTHING, Table, or_nothing};
use crate::view::{DropRow, FlowRow, MacRow, NetworkRow, NodeRow, PortRow, QueueRow, QuotaRow, WorkerRow};
use api::quota::Limit;
use serde::de::DeserializeOwned;
use serde::ser::{SerializeSeq, Serializer};
use serde_json::Value;
use std::io::Write;

/// Where rows come from: [`crate::client::ask_rows`], of the daemon that was asked.
pub(crate) trait Source {
    /// Hands on the rows; `visit` says whether it wants more.
    ///
    /// # Errors
    /// [`ClientError`]
    fn rows<T: DeserializeOwned>(self, visit: &mut dyn FnMut(T) -> bool) -> Result<(), ClientError>;
}

/// Writes what `show what` tells, which is no list only of `config`, to `to`. That may be closed: it then gets no more.
///
/// # Errors
/// [`ClientError`]
pub(crate) fn list(what: What, source: impl Source, is_json: bool, to: &mut dyn Write) -> Result<(), ClientError> {
    if is_json {
        return json(source, to);
    }
    let text = match what {
        What::Ports => table(source, PORTS, port)?,
        What::Networks => table(source, NETWORKS, network)?,
        What::Macs => table(source, MACS, mac)?,
        What::Drops => table(source, DROPS, counted)?,
        What::Nodes => nodes(&all(source)?),
        What::Quotas => table(source, QUOTAS, quota)?,
        What::Workers => workers(&all(source)?),
        What::Config => unreachable!("it is no list"),
    };
    let _ = to.write_all(text.as_bytes());
    Ok(())
}

/// The rows of a list that is short.
fn all<T: DeserializeOwned>(source: impl Source) -> Result<Vec<T>, ClientError> {
    let mut rows = Vec::new();
    source.rows(&mut |row| {
        rows.push(row);
        true
    })?;
    Ok(rows)
}

/// The rows as a list of objects. All are taken before one is printed: the daemon does not wait for a pager.
fn json(source: impl Source, to: &mut dyn Write) -> Result<(), ClientError> {
    let mut text = Vec::new();
    let mut printer = serde_json::Serializer::pretty(&mut text);
    let Ok(mut list) = printer.serialize_seq(None) else { return Ok(()) };
    source.rows(&mut |row: Value| list.serialize_element(&row).is_ok())?;
    let _ = list.end();
    text.push(b'\n');
    // Nothing is said of a closed output: whoever closed it knows.
    let _ = to.write_all(&text);
    Ok(())
}

/// The rows as a table: what is kept of them is their cells.
fn table<T: DeserializeOwned>(
    source: impl Source,
    head: &[&str],
    cells: impl Fn(&T) -> Vec<String>,
) -> Result<String, ClientError> {
    let mut table = Table::new(head);
    source.rows(&mut |row: T| {
        table.row(&cells(&row));
        true
    })?;
    Ok(table.text())
}

/// What `show config` tells.
///
/// # Errors
/// None that is known: an object can be written.
pub(crate) fn told_config(answer: &Value, is_json: bool) -> Result<String, serde_json::Error> {
    if is_json { Ok(serde_json::to_string_pretty(answer)? + "\n") } else { Ok(config(answer)) }
}

const PORTS: &[&str] =
    &["INTERFACE", "KIND", "PATH", "PORT", "TENANT", "STATE", "OP-STATUS", "LINK", "RX", "TX", "DROPS", "REASON"];

fn port(row: &PortRow) -> Vec<String> {
    let drops = |flow: &FlowRow| flow.drops.values().sum::<u64>();
    vec![
        or_nothing(&row.interface),
        or_nothing(&row.kind),
        or_nothing(&row.path),
        or_nothing(&row.port),
        or_nothing(&row.tenant),
        or_nothing(&row.state),
        or_nothing(&row.op_status),
        row.link.clone(),
        row.rx.packets.to_string(),
        row.tx.packets.to_string(),
        (drops(&row.rx) + drops(&row.tx)).to_string(),
        if row.reason.is_empty() { NOTHING.into() } else { row.reason.clone() },
    ]
}

const NETWORKS: &[&str] = &["ID", "NAME", "TENANT", "TYPE", "PHYSICAL", "SEGMENT", "MTU", "PORTS"];

fn network(row: &NetworkRow) -> Vec<String> {
    vec![
        row.id.clone(),
        or_nothing(&row.name),
        row.tenant.clone(),
        row.kind.clone(),
        or_nothing(&row.physical_network),
        row.segmentation_id.map_or_else(|| NOTHING.into(), |id| id.to_string()),
        row.mtu.map_or_else(|| NOTHING.into(), |mtu| mtu.to_string()),
        row.ports.len().to_string(),
    ]
}

const MACS: &[&str] = &["NETWORK", "MAC", "INTERFACE", "STATIC", "AGE"];

fn mac(row: &MacRow) -> Vec<String> {
    let interface = row.interface.as_ref().or(row.remote.as_ref());
    vec![
        or_nothing(&row.network),
        row.mac.clone(),
        interface.cloned().unwrap_or_else(|| NOTHING.into()),
        if row.is_static { "yes" } else { "no" }.into(),
        if row.is_static { NOTHING.into() } else { format!("{} s", row.age_s) },
    ]
}

/// The workers, and below them their queues, the busiest first.
fn workers(rows: &[WorkerRow]) -> String {
    let mut table = Table::new(&["WORKER", "CPU", "BUSY", "CYCLES/PACKET", "PACKETS", "BATCH", "SLEEPS", "QUEUES"]);
    for row in rows {
        table.row(&[
            row.worker.to_string(),
            row.cpu.map_or_else(|| "any".into(), |cpu| cpu.to_string()),
            percent(row.busy),
            row.cycles_per_packet.map_or_else(|| NOTHING.into(), |cycles| format!("{cycles:.0}")),
            row.packets.to_string(),
            format!("{:.1}", row.batch),
            row.sleeps.to_string(),
            row.queues.len().to_string(),
        ]);
    }
    let mut text = table.text();
    let mut queues: Vec<(u8, &QueueRow)> =
        rows.iter().flat_map(|row| row.queues.iter().map(|queue| (row.worker, queue))).collect();
    if !queues.is_empty() {
        // Stable: among equals the order of ports and queues stays.
        queues.sort_by(|one, other| one.0.cmp(&other.0).then(other.1.busy.total_cmp(&one.1.busy)));
        let mut table = Table::new(&["WORKER", "INTERFACE", "QUEUE", "BUSY"]);
        for (worker, queue) in queues {
            let cells = [worker.to_string(), queue.interface.clone(), queue.queue.to_string(), percent(queue.busy)];
            table.row(&cells);
        }
        text.push('\n');
        text.push_str(&table.text());
    }
    text
}

const NODES: &[&str] = &["HOST", "ROLES", "TUNNEL", "PHYSICAL", "INTERFACES", "UP"];

/// The hosts, and below them what etcd refuses the one that was asked.
fn nodes(rows: &[NodeRow]) -> String {
    let mut table = Table::new(NODES);
    for row in rows {
        table.row(&node(row));
    }
    let refusals = rows.iter().flat_map(|row| &row.refusals).map(|refusal| format!("{refusal}\n"));
    table.text() + &refusals.collect::<String>()
}

fn node(row: &NodeRow) -> Vec<String> {
    let list = |texts: &[String]| if texts.is_empty() { NOTHING.into() } else { texts.join(",") };
    vec![
        if row.is_self { format!("{} *", row.host) } else { row.host.clone() },
        list(&row.roles),
        or_nothing(&row.tunnel),
        list(&row.physical_networks),
        row.interfaces.to_string(),
        row.up.to_string(),
    ]
}

const QUOTAS: &[&str] = &["TENANT", "NETWORKS", "AT MOST", "PORTS", "AT MOST"];

fn quota(row: &QuotaRow) -> Vec<String> {
    let most = |limit: Limit| limit.count().map_or_else(|| "any".into(), |count| count.to_string());
    let (networks, ports) = (row.networks.to_string(), row.ports.to_string());
    vec![row.tenant.clone(), networks, most(row.networks_max), ports, most(row.ports_max)]
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// What `qvs rebalance` did, or would do.
///
/// # Errors
/// If the answer has not the form it should have: the daemon is of another version.
pub(crate) fn rebalance(answer: Value, is_json: bool) -> Result<String, serde_json::Error> {
    if is_json {
        return Ok(serde_json::to_string_pretty(&answer)? + "\n");
    }
    let Rebalance { moves, before, after } = serde_json::from_value(answer)?;
    let mut text = String::new();
    if moves.is_empty() {
        text.push_str("nothing to move: the load is even, or whole queues cannot make it so\n");
    } else {
        let mut table = Table::new(&["INTERFACE", "QUEUE", "FROM", "TO", "BUSY"]);
        for QueueMove { interface, queue, from, to, busy } in &moves {
            let cells = [interface.clone(), queue.to_string(), from.to_string(), to.to_string(), percent(*busy)];
            table.row(&cells);
        }
        text.push_str(&table.text());
        text.push('\n');
    }
    let mut table = Table::new(&["WORKER", "BUSY BEFORE", "EXPECTED"]);
    for (worker, (before, after)) in std::iter::zip(before, after).enumerate() {
        table.row(&[worker.to_string(), percent(before), percent(after)]);
    }
    text.push_str(&table.text());
    Ok(text)
}

const DROPS: &[&str] = &["INTERFACE", "DIRECTION", "REASON", "COUNT"];

fn counted(row: &DropRow) -> Vec<String> {
    vec![row.interface.clone(), row.direction.clone(), row.reason.clone(), row.count.to_string()]
}

/// `section.key = value`, one a line, in the order of the answer.
fn config(answer: &Value) -> String {
    let mut text = String::new();
    flatten("", answer, &mut text);
    text
}

fn flatten(name: &str, value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(&name, value, text);
            }
        }
        value => {
            text.push_str(name);
            text.push_str(" = ");
            text.push_str(&value.to_string());
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::each_row;
    use serde_json::json;

    impl Source for &Value {
        fn rows<T: DeserializeOwned>(self, visit: &mut dyn FnMut(T) -> bool) -> Result<(), ClientError> {
            let text = json!({ "ok": self }).to_string();
            each_row(text.as_bytes(), visit).map(drop).map_err(ClientError::Form)
        }
    }

    fn render(what: What, answer: &Value, is_json: bool) -> Result<String, ClientError> {
        let mut text = Vec::new();
        list(what, answer, is_json, &mut text)?;
        Ok(String::from_utf8(text).unwrap())
    }

    #[test]
    fn columns_line_up_and_hostile_text_cannot_move_the_cursor() {
        let answer = json!([
            {"network": "n1", "mac": "02:00:00:00:00:01", "port": null, "interface": "a\u{1b}[2J\nb", "remote": null, "static": true, "age_s": 0},
            {"network": null, "mac": "02:00:00:00:00:02", "port": null, "interface": null, "remote": null, "static": false, "age_s": 7},
        ]);
        let text = render(What::Macs, &answer, false).unwrap();
        assert_eq!(
            text,
            "NETWORK  MAC                INTERFACE      STATIC  AGE\n\
             n1       02:00:00:00:00:01  a\\u{1b}[2J\\nb  yes     -\n\
             -        02:00:00:00:00:02  -              no      7 s\n"
        );
    }

    #[test]
    fn quotas_are_told_beside_what_is_used() {
        let answer = json!([{"tenant": "acme", "networks": 2, "networks_max": 20, "ports": 7, "ports_max": -1}]);
        assert_eq!(
            render(What::Quotas, &answer, false).unwrap(),
            "TENANT  NETWORKS  AT MOST  PORTS  AT MOST\n\
             acme    2         20       7      any\n"
        );
    }

    #[test]
    fn config_is_one_key_a_line() {
        let text = told_config(&json!({"generation": 3, "settings": {"api": {"hosts": []}}}), false).unwrap();
        assert_eq!(text, "generation = 3\nsettings.api.hosts = []\n");
    }

    #[test]
    fn workers_are_told_with_their_queues_the_busiest_first() {
        let row = |worker: u8, queues: Value| {
            json!({
                "worker": worker, "cpu": worker, "busy": 0.5, "cycles_per_packet": 61.4, "cpu_mhz": null, "packets": 9,
                "batch": 31.96, "sleeps": 0, "ports": ["a"], "queues": queues,
            })
        };
        let queue = |queue: u16, busy: f64| json!({"interface": "a", "queue": queue, "busy": busy});
        let answer = json!([row(0, json!([queue(0, 0.01), queue(2, 0.49)])), row(1, json!([queue(1, 0.5)]))]);
        assert_eq!(
            render(What::Workers, &answer, false).unwrap(),
            "WORKER  CPU  BUSY    CYCLES/PACKET  PACKETS  BATCH  SLEEPS  QUEUES\n\
             0       0    50.0 %  61             9        32.0   0       2\n\
             1       1    50.0 %  61             9        32.0   0       1\n\
             \n\
             WORKER  INTERFACE  QUEUE  BUSY\n\
             0       a          2      49.0 %\n\
             0       a          0      1.0 %\n\
             1       a          1      50.0 %\n"
        );
    }

    #[test]
    fn moves_are_told_with_the_load_before_and_after() {
        let step = json!({"interface": "a", "queue": 1, "from": 0, "to": 1, "busy": 0.25});
        let answer = json!({"moves": [step], "before": [0.75, 0.25], "after": [0.5, 0.5]});
        assert_eq!(
            rebalance(answer, false).unwrap(),
            "INTERFACE  QUEUE  FROM  TO  BUSY\n\
             a          1      0     1   25.0 %\n\
             \n\
             WORKER  BUSY BEFORE  EXPECTED\n\
             0       75.0 %       50.0 %\n\
             1       25.0 %       50.0 %\n"
        );
        let even = rebalance(json!({"moves": [], "before": [0.1], "after": [0.1]}), false).unwrap();
        assert!(even.starts_with("nothing to move"), "{even}");
    }

    #[test]
    fn json_is_passed_on_as_it_came() {
        let answer = json!([{"anything": 1}]);
        let text = render(What::Ports, &answer, true).unwrap();
        assert_eq!(text, serde_json::to_string_pretty(&answer).unwrap() + "\n");
        assert_eq!(render(What::Ports, &json!([]), true).unwrap(), "[]\n");
        assert!(matches!(render(What::Ports, &answer, false), Err(ClientError::Form(_))));
    }
}
