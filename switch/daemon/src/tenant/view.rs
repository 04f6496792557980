//! What the API told, for people as tables and for programs as JSON. Pure.
//!
//! JSON is what the API said, without the key around it; a port in a list of several networks is told with its network.

use crate::cli::FormArgs;
use crate::table::{NOTHING, Table};
use serde_json::{Value, json};

/// A list.
pub(super) fn list(objects: &[Value], form: &FormArgs, table: fn(&[Value]) -> String) -> String {
    if form.json { pretty(&objects.into()) } else { table(objects) }
}

/// One object.
pub(super) fn one(object: &Value, form: &FormArgs, table: impl Fn(&Value) -> String) -> String {
    if form.json { pretty(object) } else { table(object) }
}

/// The id of what was made: alone on its line, for a script.
pub(super) fn made(id: &str, form: &FormArgs) -> String {
    if form.json { pretty(&json!({"id": id})) } else { format!("{id}\n") }
}

/// A port as the API tells it within its network, with the network's id and name.
pub(super) fn port_of(port: &Value, network: &Value) -> Value {
    let mut port = port.clone();
    if let Some(fields) = port.as_object_mut() {
        fields.insert("network".to_owned(), json!({"id": network["id"], "name": network["name"]}));
    }
    port
}

/// A table of networks.
pub(super) fn networks(networks: &[Value]) -> String {
    let mut table = Table::new(&["ID", "NAME", "OP-STATUS"]);
    for network in networks {
        table.row(&["id", "name", "op-status"].map(|key| cell(&network[key])));
    }
    table.text()
}

/// A network and, below it, its ports.
pub(super) fn network_and_ports(network: &Value) -> String {
    let head = networks(std::slice::from_ref(network));
    match network["ports"].as_array() {
        Some(list) if !list.is_empty() => format!("{head}\n{}", ports(list)),
        _ => head,
    }
}

/// A table of ports; the network is told if the first has it with it.
pub(super) fn ports(ports: &[Value]) -> String {
    let has_network = ports.first().is_some_and(|port| port.get("network").is_some());
    let mut heads = vec!["ID", "STATE", "OP-STATUS", "ATTACHMENT"];
    if has_network {
        heads.push("NETWORK");
    }
    let mut table = Table::new(&heads);
    for port in ports {
        let mut cells = ["id", "state", "op-status"].map(|key| cell(&port[key])).to_vec();
        cells.push(cell(&port["attachment"]["id"]));
        if has_network {
            let network = &port["network"];
            cells.push(cell(network["name"].as_str().map_or(&network["id"], |_| &network["name"])));
        }
        table.row(&cells);
    }
    table.text()
}

/// The id of an attachment; nothing if there is none.
pub(super) fn attachment(attachment: &Value) -> String {
    attachment["id"].as_str().map_or_else(String::new, |id| format!("{}\n", crate::table::printable(id)))
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.into(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: FormArgs = FormArgs { json: false };
    const JSON: FormArgs = FormArgs { json: true };

    fn network() -> Value {
        json!({"id": "n1", "name": "blue", "op-status": "UP", "ports": [
            {"id": "p1", "state": "ACTIVE", "op-status": "DOWN", "attachment": {"id": "vif\u{1b}[2J"}},
            {"id": "p2", "state": "DOWN", "op-status": "DOWN"},
        ]})
    }

    #[test]
    fn networks_are_told_in_columns_and_one_with_its_ports_below() {
        let list_of = [network(), json!({"id": "n22", "name": null, "op-status": "UP"})];
        assert_eq!(
            list(&list_of, &TABLE, networks),
            "ID   NAME  OP-STATUS\n\
             n1   blue  UP\n\
             n22  -     UP\n"
        );
        assert_eq!(
            one(&network(), &TABLE, network_and_ports),
            "ID  NAME  OP-STATUS\n\
             n1  blue  UP\n\
             \n\
             ID  STATE   OP-STATUS  ATTACHMENT\n\
             p1  ACTIVE  DOWN       vif\\u{1b}[2J\n\
             p2  DOWN    DOWN       -\n"
        );
        let empty = json!({"id": "n1", "name": "blue", "op-status": "UP", "ports": []});
        assert_eq!(one(&empty, &TABLE, network_and_ports), "ID  NAME  OP-STATUS\nn1  blue  UP\n");
    }

    #[test]
    fn ports_of_several_networks_are_told_with_the_network_by_name_or_else_by_id() {
        let unnamed = json!({"id": "n2", "name": null});
        let port = json!({"id": "p", "state": "ACTIVE", "op-status": "UP"});
        let both = [port_of(&port, &network()), port_of(&port, &unnamed)];
        assert_eq!(
            list(&both, &TABLE, ports),
            "ID  STATE   OP-STATUS  ATTACHMENT  NETWORK\n\
             p   ACTIVE  UP         -           blue\n\
             p   ACTIVE  UP         -           n2\n"
        );
        let told: Value = serde_json::from_str(&list(&both, &JSON, ports)).unwrap();
        assert_eq!(told[0]["network"], json!({"id": "n1", "name": "blue"}));
        assert_eq!(list(&[], &TABLE, ports), "ID  STATE  OP-STATUS  ATTACHMENT\n");
    }

    #[test]
    fn what_was_made_is_its_id_alone() {
        assert_eq!(made("n1", &TABLE), "n1\n");
        assert_eq!(made("n1", &JSON), "{\n  \"id\": \"n1\"\n}\n");
        assert_eq!(attachment(&json!({})), "");
        assert_eq!(attachment(&json!({"id": "vif\n"})), "vif\\n\n");
    }
}
