//! The calls of the clients of that time: the original client library in its two formats, and
//! Nova's QuantumManager.

use crate::rig::{Answer, DRIVERS, Format, Server, Version};
use crate::tree;
use serde_json::{Value, json};

/// The original client: a suffix and a Content-Type on every call, no Accept, and an exception for what it does not expect.
struct Client<'a> {
    server: &'a Server,
    version: Version,
    format: Format,
}

impl Client<'_> {
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let body = body.map(|body| match self.format {
            Format::Json => body.to_string(),
            Format::Xml => tree::to_xml(body, true),
        });
        let answer = self.answer(method, path, body.as_deref());
        assert!(matches!(answer.status, 200 | 202 | 204), "{method} {path}: {answer:?}");
        match (answer.status, self.format) {
            (204, _) => Value::Null,
            (_, Format::Json) => answer.json(),
            (_, Format::Xml) => {
                tree::from_xml(&answer.body, &format!("http://openstack.org/quantum/api{}", self.version.prefix()))
            }
        }
    }

    fn answer(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        let (path, query) =
            path.split_once('?').map_or((path, String::new()), |(path, query)| (path, format!("?{query}")));
        let name = self.format.name();
        let path = format!("{}/tenants/acme{path}.{name}{query}", self.version.prefix());
        self.server.ask_with(method, &path, &[&format!("Content-Type: application/{name}")], body)
    }
}

#[test]
fn every_command_of_the_original_client_works_in_both_versions_and_formats() {
    for driver in DRIVERS {
        for version in Version::ALL {
            for format in [Format::Json, Format::Xml] {
                let server = Server::start(driver);
                run_every_command(&Client { server: &server, version, format });
            }
        }
    }
}

fn run_every_command(client: &Client<'_>) {
    let made = client.call("POST", "/networks", Some(&json!({"network": {"name": "net"}})));
    let network = made["network"]["id"].as_str().unwrap().to_owned();
    let item = format!("/networks/{network}");
    assert_eq!(client.call("GET", "/networks", None), json!({"networks": [{"id": network}]}));
    assert_eq!(client.call("GET", "/networks/detail", None)["networks"][0]["name"], "net");
    // The command line adds the id to what is to be changed.
    client.call("PUT", &item, Some(&json!({"network": {"name": "new", "id": network}})));
    assert_eq!(client.call("GET", &item, None)["network"]["name"], "new");
    let port = client.call("POST", &format!("{item}/ports"), None)["port"]["id"].as_str().unwrap().to_owned();
    let port_item = format!("{item}/ports/{port}");
    assert_eq!(client.call("GET", &format!("{item}/ports"), None), json!({"ports": [{"id": port}]}));
    assert_eq!(client.call("GET", &format!("{item}/ports/detail"), None)["ports"][0]["state"], "DOWN");
    client.call("PUT", &port_item, Some(&json!({"port": {"state": "ACTIVE", "id": port}})));
    assert_eq!(client.call("GET", &port_item, None)["port"]["state"], "ACTIVE");
    let attachment = format!("{port_item}/attachment");
    client.call("PUT", &attachment, Some(&json!({"attachment": {"id": "vif & <1>"}})));
    assert_eq!(client.call("GET", &attachment, None), json!({"attachment": {"id": "vif & <1>"}}));
    assert_eq!(client.call("GET", &format!("{port_item}/detail"), None)["port"]["attachment"]["id"], "vif & <1>");
    let detail = client.call("GET", &format!("{item}/detail"), None);
    assert_eq!(detail["network"]["ports"][0]["attachment"]["id"], "vif & <1>");
    let refused = client.answer("DELETE", &port_item, None);
    let status = if client.version == Version::V1_0 { 432 } else { 409 };
    assert_eq!(refused.status, status, "{refused:?}");
    client.call("DELETE", &attachment, None);
    assert_eq!(client.call("GET", &attachment, None), json!({"attachment": {}}));
    client.call("DELETE", &port_item, None);
    client.call("DELETE", &item, None);
    assert_eq!(client.call("GET", "/networks", None), json!({"networks": []}));
}

#[test]
fn novas_calls_find_their_networks_plug_their_interfaces_and_clean_up() {
    const GATEWAY: &str = "gw-0123456789a";
    for driver in DRIVERS {
        let server = Server::start(driver);
        let nova = Client { server: &server, version: Version::V1_1, format: Format::Json };
        let body = json!({"network": {"name": "private", "nova_id": "nova"}});
        let network = nova.call("POST", "/networks", Some(&body))["network"]["id"].as_str().unwrap().to_owned();
        let item = format!("/networks/{network}");
        // "Does it exist?" is a plain show; not found has three statuses.
        assert_eq!(nova.call("GET", &item, None)["network"]["id"], network.as_str());
        assert_eq!(nova.answer("GET", "/networks/nothing", None).status, 404);
        let mut ports = Vec::new();
        for interface in ["1f7c9a2e-0000-4000-8000-000000000001", GATEWAY] {
            let body = json!({"port": {
                "state": "ACTIVE", "vm_id": "i-1", "rxtx_factor": 1.0, "nova_id": "nova",
                "allowed_address_pairs": [{"mac_address": "02:00:00:00:00:01", "ip_address": "10.0.0.2"}],
            }});
            let port =
                nova.call("POST", &format!("{item}/ports"), Some(&body))["port"]["id"].as_str().unwrap().to_owned();
            let attachment = format!("{item}/ports/{port}/attachment");
            nova.call("PUT", &attachment, Some(&json!({"attachment": {"id": interface}})));
            // Exactly one port, or none, has an attachment.
            let found = nova.call("GET", &format!("{item}/ports?attachment={interface}"), None);
            assert_eq!(found, json!({"ports": [{"id": port}]}));
            ports.push(port);
        }
        assert_eq!(nova.call("GET", &format!("{item}/ports?attachment=unknown"), None), json!({"ports": []}));
        assert_eq!(nova.answer("DELETE", &item, None).status, 409);
        // Every port of the list is asked for its attachment; one without has no id.
        nova.call("DELETE", &format!("{item}/ports/{}/attachment", ports[0]), None);
        let listed = nova.call("GET", &format!("{item}/ports"), None);
        let ids = listed["ports"].as_array().unwrap().iter().map(|port| port["id"].as_str().unwrap());
        let attachments: Vec<_> = ids
            .map(|id| nova.call("GET", &format!("{item}/ports/{id}/attachment"), None)["attachment"]["id"].clone())
            .collect();
        assert_eq!(attachments, [Value::Null, json!(GATEWAY)]);
        nova.call("DELETE", &format!("{item}/ports/{}", ports[0]), None);
        nova.call("DELETE", &format!("{item}/ports/{}/attachment", ports[1]), None);
        nova.call("DELETE", &format!("{item}/ports/{}", ports[1]), None);
        nova.call("DELETE", &item, None);
    }
}
