//! Two hypervisors of ours whose uplinks are vhost-user sockets: one listens, the other connects, and a driver of ours carries
//! frames from one to the other, as the process that has the NIC does.

use super::super::SOON;
use super::passes_everything;
use crate::topology::attached_tap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use tests::daemon::Daemon;
use tests::namespace::Namespace;
use tests::process::{TempDir, wait_until};
use vhost::driver::{Driver, DriverConfig};

/// Frames taken at a time.
const BURST: usize = 32;

/// Carries frames between two sockets until it is dropped.
struct Relay {
    thread: Option<JoinHandle<()>>,
    is_over: &'static AtomicBool,
}

impl Relay {
    /// Between the socket of one that listens and that of one that connects.
    fn new(listening: std::path::PathBuf, connecting: std::path::PathBuf) -> Relay {
        let is_over: &'static AtomicBool = Box::leak(Box::default());
        let mut drivers = [(listening, false), (connecting, true)]
            .map(|(path, is_listening)| Driver::new(DriverConfig { is_listening, ..DriverConfig::new(path) }).unwrap());
        let run = move || {
            drivers.iter_mut().for_each(|driver| driver.start().unwrap());
            let [one, two] = &mut drivers;
            while !is_over.load(Ordering::Relaxed) {
                let carry = |from: &mut Driver, to: &mut Driver| {
                    from.receiver.recv_burst(BURST, |header, frame| {
                        // One that finds no room is lost, as on a wire.
                        let _ = to.sender.send_with(header, frame);
                    })
                };
                if carry(one, two) + carry(two, one) == 0 {
                    std::thread::yield_now();
                }
            }
        };
        Relay { thread: Some(std::thread::spawn(run)), is_over }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().expect("it is joined once").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the relay panicked");
    }
}

#[test]
fn hosts_with_sockets_for_uplinks_are_one_network_by_tunnels_in_a_vlan_and_by_vlans_in_a_service_tag() {
    let tunnels = |own, other| {
        format!(
            "address = \"172.16.0.{own}/24\"\nunderlay_vlan = 50\nmtu = 1600\n[tunnel]\nlocal_ip = \"172.16.0.{own}\"\n\
             peers = [\"172.16.0.{other}\"]\n[segments]\ndefault = \"vxlan\""
        )
    };
    let vlans = |_, _| {
        "service_vlan = 500\nnative_vlan = 101\nmtu = 1600\n[segments]\ndefault = \"vlan\"\nvlan = \"p:100-101\""
            .to_owned()
    };
    for (way, settings) in [("tunnel", &tunnels as &dyn Fn(u8, u8) -> String), ("vlan", &vlans)] {
        let dir = TempDir::new();
        let sockets = ["listening", "connecting"].map(|name| dir.join(name));
        let relay = Relay::new(sockets[0].clone(), sockets[1].clone());
        let spaces = [["qv-1r", "qv-1b"], ["qv-2r", "qv-2b"]].map(|names| names.map(Namespace::new));
        let daemons: Vec<Daemon> = [("server", 1, 2), ("client", 2, 1)]
            .into_iter()
            .zip(&sockets)
            .map(|((role, own, other), socket)| {
                let rest = settings(own, other);
                Daemon::start(&format!(
                    "[[uplink]]\nphysical_network = \"p\"\nvhost_user = {socket:?}\nrole = \"{role}\"\n{rest}"
                ))
            })
            .collect();
        for (at, (daemon, spaces)) in daemons.iter().zip(&spaces).enumerate() {
            for (space, tenant) in spaces.iter().zip(["red", "blue"]) {
                let tenant = daemon.tenant(tenant);
                let network = tenant.network("lan");
                attached_tap(daemon, &tenant, &network, space.name(), space, &format!("10.9.0.{}/24", at + 1));
            }
        }
        let ways = if way == "tunnel" { ["tunnel:172.16.0.2", "tunnel:172.16.0.1"] } else { ["uplink:p"; 2] };
        for (daemon, way) in daemons.iter().zip(ways) {
            wait_until(&format!("{way} is up"), SOON, || daemon.interface(way)["link"] == "up");
        }
        for which in [0, 1] {
            passes_everything(&spaces[0][which], "10.9.0.1", &spaces[1][which], "10.9.0.2", &daemons[0]);
        }
        drop(daemons);
        drop(relay);
    }
}
