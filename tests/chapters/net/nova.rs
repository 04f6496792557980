//! Nova's side of the Essex release: its calls in their order, on a host that makes the devices its guests expect.

use super::SOON;
use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::process::{output_of, wait_until};

/// An interface of a guest, the device that Nova looks for, and the gateway's, which is plugged by its name.
const INTERFACE: &str = "1f7c9a2e-0000-4000-8000-000000000001";
const DEVICE: &str = "tap1f7c9a2e-00";
const GATEWAY: &str = "gw-0123456789a";

fn has_device(name: &str) -> bool {
    output_of("ip", &["-o", "link"]).split([':', ' ']).any(|word| word == name)
}

#[test]
fn novas_calls_make_the_devices_it_names_and_take_them_away_again() {
    let daemon = Daemon::start("[attach]\nauto = \"tap\"");
    let nova = daemon.tenant("project");
    let told =
        |method: &str, path: &str, body: Option<Value>, status| nova.request(method, path, body.as_ref(), status);
    let made =
        told("POST", "networks.json", Some(json!({"network": {"name": "private", "nova_id": "nova"}})), 202).json();
    let network = format!("networks/{}", made["network"]["id"].as_str().unwrap());
    // Whether it exists is asked by showing it.
    told("GET", &format!("{network}.json"), None, 200);
    told("GET", "networks/none.json", None, 404);

    let mut ports = Vec::new();
    for interface in [INTERFACE, GATEWAY] {
        let pairs = json!([{"mac_address": "02:00:00:00:00:01", "ip_address": "10.0.0.2"}]);
        let port = json!({
            "state": "ACTIVE", "vm_id": "i-1", "rxtx_factor": 1.0, "nova_id": "nova", "allowed_address_pairs": pairs,
        });
        let made = told("POST", &format!("{network}/ports.json"), Some(json!({"port": port})), 202).json();
        let port = format!("{network}/ports/{}", made["port"]["id"].as_str().unwrap());
        let attachment = json!({"attachment": {"id": interface}});
        told("PUT", &format!("{port}/attachment.json"), Some(attachment), 204);
        let found = told("GET", &format!("{network}/ports.json?attachment={interface}"), None, 200).json();
        assert_eq!(found, json!({"ports": [{"id": made["port"]["id"]}]}));
        ports.push(port);
    }
    daemon.wait_up(&[INTERFACE, GATEWAY]);
    for (interface, device) in [(INTERFACE, DEVICE), (GATEWAY, GATEWAY)] {
        assert_eq!(daemon.interface(interface)["path"], device);
        assert!(has_device(device), "{device}");
    }
    told("DELETE", &format!("{network}.json"), None, 409);

    // Of all ports the attachments are asked for; where there is none there is no id.
    told("DELETE", &format!("{}/attachment.json", ports[0]), None, 204);
    wait_until("the guest's device is gone", SOON, || !has_device(DEVICE));
    let attachments: Vec<_> = ports
        .iter()
        .map(|port| told("GET", &format!("{port}/attachment.json"), None, 200).json()["attachment"]["id"].clone())
        .collect();
    assert_eq!(attachments, [Value::Null, json!(GATEWAY)]);
    assert!(has_device(GATEWAY), "the gateway's stays");
    told("DELETE", &format!("{}.json", ports[0]), None, 204);
    // The gateway's own port is Nova's to clear before the network goes.
    told("DELETE", &format!("{}/attachment.json", ports[1]), None, 204);
    told("DELETE", &format!("{}.json", ports[1]), None, 204);
    told("DELETE", &format!("{network}.json"), None, 204);
    wait_until("no device is left", SOON, || !has_device(GATEWAY));
}
