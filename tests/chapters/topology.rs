//! The scene of most chapters: two tenants, each with a network of two TAPs in namespaces, all with the same addresses.

use std::collections::BTreeMap;
use tests::daemon::Daemon;
use tests::http::Tenant;
use tests::namespace::Namespace;

/// Plugs a TAP `tap0` in a namespace as `interface`, attaches it to a new port and gives it an address; answers the port.
pub(crate) fn attached_tap(
    daemon: &Daemon,
    tenant: &Tenant,
    network: &str,
    interface: &str,
    namespace: &Namespace,
    address: &str,
) -> String {
    daemon.must(&format!("plug {interface} --tap tap0 --netns {}", namespace.name()));
    let port = tenant.attached_port(network, interface);
    namespace.address("tap0", address);
    port
}

/// Tenants red and blue: interfaces, namespaces and ports are called `red-1`, `red-2`, `blue-1`, `blue-2`; those with a 1 have
/// 10.0.0.1, those with a 2 have 10.0.0.2.
pub(crate) struct TwoTenants {
    pub(crate) daemon: Daemon,
    pub(crate) red: Tenant,
    pub(crate) blue: Tenant,
    pub(crate) red_network: String,
    pub(crate) blue_network: String,
    namespaces: BTreeMap<&'static str, Namespace>,
    ports: BTreeMap<&'static str, String>,
}

impl TwoTenants {
    /// Builds it; all ports are UP.
    pub(crate) fn new() -> TwoTenants {
        let daemon = Daemon::start("");
        let (red, blue) = (daemon.tenant("red"), daemon.tenant("blue"));
        // The same name on purpose.
        let (red_network, blue_network) = (red.network("lan"), blue.network("lan"));
        let mut namespaces = BTreeMap::new();
        let mut ports = BTreeMap::new();
        for (tenant, network, name, address) in [
            (&red, &red_network, "red-1", "10.0.0.1/24"),
            (&red, &red_network, "red-2", "10.0.0.2/24"),
            (&blue, &blue_network, "blue-1", "10.0.0.1/24"),
            (&blue, &blue_network, "blue-2", "10.0.0.2/24"),
        ] {
            let namespace = Namespace::new(name);
            ports.insert(name, attached_tap(&daemon, tenant, network, name, &namespace, address));
            namespaces.insert(name, namespace);
        }
        daemon.wait_up(&["red-1", "red-2", "blue-1", "blue-2"]);
        TwoTenants { daemon, red, blue, red_network, blue_network, namespaces, ports }
    }

    pub(crate) fn namespace(&self, name: &str) -> &Namespace {
        &self.namespaces[name]
    }

    pub(crate) fn port(&self, name: &str) -> &str {
        &self.ports[name]
    }

    /// The tenant and network of an interface.
    pub(crate) fn owner(&self, name: &str) -> (&Tenant, &str) {
        if name.starts_with("red") { (&self.red, &self.red_network) } else { (&self.blue, &self.blue_network) }
    }
}
