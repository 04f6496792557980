//! What a client sees of a plugin whose backend is away or fails.

use crate::rig::{Scratch, Server};
use api::model::{NetworkId, PortId, Text};
use api::plugin::{
    BackendFailed, BackendUnavailable, CreateNetworkError, CreatePortError, DeleteNetworkError, DeletePortError,
    GetAllNetworksError, GetAllPortsError, GetNetworkError, GetPortError, NetworkDetails, NetworkFilter,
    PlugInterfaceError, Plugin, PortDetails, PortFilter, Ports, UnplugInterfaceError, UpdateNetworkError,
    UpdatePortError,
};
use api::server::ServerConfig;
use std::sync::Arc;

/// A proxy without records whose backend is away for one tenant and fails for every other.
struct Proxy;

fn fail<T, E: From<BackendUnavailable> + From<BackendFailed>>(tenant: &str) -> Result<T, E> {
    match tenant {
        "away" => Err(BackendUnavailable { why: "no route to the controller".into() }.into()),
        _ => Err(BackendFailed { why: "the controller said 500".into() }.into()),
    }
}

impl Plugin for Proxy {
    fn get_all_networks(&self, tenant: &str, _: &NetworkFilter) -> Result<Vec<NetworkDetails>, GetAllNetworksError> {
        fail(tenant)
    }

    fn create_network(&self, tenant: &str, _: Option<Text>) -> Result<NetworkId, CreateNetworkError> {
        fail(tenant)
    }

    fn delete_network(&self, tenant: &str, _: &str) -> Result<(), DeleteNetworkError> {
        fail(tenant)
    }

    fn get_network_details(&self, tenant: &str, _: &str, _: Ports) -> Result<NetworkDetails, GetNetworkError> {
        fail(tenant)
    }

    fn update_network(&self, tenant: &str, _: &str, _: Option<Text>) -> Result<(), UpdateNetworkError> {
        fail(tenant)
    }

    fn get_all_ports(&self, tenant: &str, _: &str, _: &PortFilter) -> Result<Vec<PortDetails>, GetAllPortsError> {
        fail(tenant)
    }

    fn create_port(&self, tenant: &str, _: &str, _: &str) -> Result<PortId, CreatePortError> {
        fail(tenant)
    }

    fn update_port(&self, tenant: &str, _: &str, _: &str, _: &str) -> Result<(), UpdatePortError> {
        fail(tenant)
    }

    fn delete_port(&self, tenant: &str, _: &str, _: &str) -> Result<(), DeletePortError> {
        fail(tenant)
    }

    fn get_port_details(&self, tenant: &str, _: &str, _: &str) -> Result<PortDetails, GetPortError> {
        fail(tenant)
    }

    fn plug_interface(&self, tenant: &str, _: &str, _: &str, _: &str) -> Result<(), PlugInterfaceError> {
        fail(tenant)
    }

    fn unplug_interface(&self, tenant: &str, _: &str, _: &str) -> Result<(), UnplugInterfaceError> {
        fail(tenant)
    }
}

/// Every operation, below a tenant.
const OPERATIONS: &[(&str, &str, Option<&str>)] = &[
    ("GET", "networks", None),
    ("GET", "networks/detail", None),
    ("POST", "networks", Some(r#"{"network": {"name": "n"}}"#)),
    ("GET", "networks/N", None),
    ("GET", "networks/N/detail", None),
    ("PUT", "networks/N", Some(r#"{"network": {"name": "n"}}"#)),
    ("DELETE", "networks/N", None),
    ("GET", "networks/N/ports", None),
    ("GET", "networks/N/ports/detail", None),
    ("POST", "networks/N/ports", None),
    ("GET", "networks/N/ports/P", None),
    ("GET", "networks/N/ports/P/detail", None),
    ("PUT", "networks/N/ports/P", Some(r#"{"port": {"state": "ACTIVE"}}"#)),
    ("DELETE", "networks/N/ports/P", None),
    ("GET", "networks/N/ports/P/attachment", None),
    ("PUT", "networks/N/ports/P/attachment", Some(r#"{"attachment": {"id": "vif"}}"#)),
    ("DELETE", "networks/N/ports/P/attachment", None),
];

#[test]
fn a_backend_that_is_away_gets_503_with_when_to_ask_again_and_one_that_failed_502() {
    let server = Server::over(Arc::new(Proxy), ServerConfig::default(), Scratch::new());
    for (method, path, body) in OPERATIONS {
        let away = server.ask(method, &format!("/v1.1/tenants/away/{path}"), *body);
        assert_eq!((away.status, away.header("retry-after")), (503, Some("5")), "{method} {path}");
        assert_eq!(away.json()["QuantumError"]["type"], "ServiceUnavailable", "{method} {path}");
        assert_eq!(away.json()["QuantumError"]["detail"], "no route to the controller", "{method} {path}");
        let broken = server.ask(method, &format!("/v1.1/tenants/broken/{path}"), *body);
        assert_eq!((broken.status, broken.header("retry-after")), (502, None), "{method} {path}");
        assert_eq!(broken.json()["QuantumError"]["type"], "PluginFault", "{method} {path}");
    }
}
