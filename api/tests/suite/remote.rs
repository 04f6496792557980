//! What tenants see of a device, and what a device sees of the plugin, one scene after another.

use crate::rig::{Scratch, open_store};
use crate::unreliable::PACE;
use api::address_pair::{AddressPair, AddressPairs};
use api::model::{AdminState, NetworkId, OpStatus, PortId};
use api::plugin::{NetworkFilter, Plugin, Ports};
use api::plugins::RemotePlugin;
use api::plugins::remote::{Contents, Device, DeviceError, DeviceNetwork, FoundPort, Keeps, Pace, Step, Taken};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// No audit comes in between.
const UNAUDITED: Pace = Pace { audit: Duration::from_secs(3600), ..PACE };

/// What the device does with the next calls.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum Doing {
    #[default]
    Obeys,
    /// Calls wait until it does something else.
    Hangs,
    Away,
    /// Its driver is broken.
    Panics,
    /// Takes steps and does nothing.
    Starts,
    /// Will have nothing to do with this port or network.
    Refuses(Arc<str>),
}

#[derive(Default)]
struct Inner {
    doing: Doing,
    contents: Contents,
    /// Steps that it answered.
    steps: Vec<Step>,
    /// Calls that came, whatever became of them.
    call_count: usize,
}

#[derive(Default)]
struct Scripted {
    inner: Mutex<Inner>,
    changed: Condvar,
    is_simple: bool,
}

#[derive(Clone)]
struct Handle(Arc<Scripted>);

impl Scripted {
    fn becomes(&self, doing: Doing) {
        self.inner.lock().unwrap().doing = doing;
        self.changed.notify_all();
    }

    fn steps(&self) -> Vec<Step> {
        self.inner.lock().unwrap().steps.clone()
    }

    /// Waits for so many more calls than there were.
    fn wait_for_calls(&self, count: usize) {
        let inner = self.inner.lock().unwrap();
        let wanted = inner.call_count + count;
        let waited = self.changed.wait_timeout_while(inner, PATIENCE, |inner| inner.call_count < wanted);
        assert!(!waited.unwrap().1.timed_out(), "the device is not called");
    }

    /// Counts a call and says what is to become of it.
    fn enter(&self) -> (std::sync::MutexGuard<'_, Inner>, Doing) {
        let mut inner = self.inner.lock().unwrap();
        inner.call_count += 1;
        self.changed.notify_all();
        let inner = self.changed.wait_while(inner, |inner| inner.doing == Doing::Hangs).unwrap();
        let doing = inner.doing.clone();
        if doing == Doing::Panics {
            drop(inner);
            panic!("a test breaks the driver");
        }
        (inner, doing)
    }
}

impl Device for Handle {
    fn contents(&self) -> Result<Contents, DeviceError> {
        let (inner, doing) = self.0.enter();
        if doing == Doing::Away {
            Err(DeviceError::Unavailable { why: "away".into() })
        } else {
            Ok(inner.contents.clone())
        }
    }

    fn apply(&self, step: &Step) -> Result<Taken, DeviceError> {
        let (mut inner, doing) = self.0.enter();
        let (Step::PutNetwork(id, _) | Step::RemoveNetwork(id) | Step::PutPort(id, _) | Step::RemovePort(id)) = step;
        match doing {
            Doing::Away => return Err(DeviceError::Unavailable { why: "away".into() }),
            Doing::Refuses(it) if it == *id => return Err(DeviceError::Refused { why: "no".into() }),
            _ => {}
        }
        inner.steps.push(step.clone());
        if doing == Doing::Starts {
            return Ok(Taken::Started);
        }
        match step.clone() {
            Step::PutNetwork(..) if self.0.is_simple => {}
            Step::PutNetwork(id, network) => drop(inner.contents.networks.insert(id, network)),
            Step::PutPort(id, port) => {
                let is_up = port.is_active();
                inner.contents.ports.insert(id, FoundPort { port, is_up });
            }
            Step::RemovePort(id) => drop(inner.contents.ports.remove(&id)),
            Step::RemoveNetwork(id) => drop(inner.contents.networks.remove(&id)),
        }
        Ok(Taken::Done)
    }

    fn keeps(&self) -> Keeps {
        let keeps = !self.0.is_simple;
        Keeps { networks: keeps, tenants: keeps, names: keeps, pairs: keeps }
    }
}

struct Scene {
    plugin: RemotePlugin,
    device: Arc<Scripted>,
    _scratch: Scratch,
}

impl Scene {
    fn new(pace: Pace) -> Scene {
        Scene::of(Scripted::default(), pace)
    }

    fn of(device: Scripted, pace: Pace) -> Scene {
        let (scratch, device) = (Scratch::new(), Arc::new(device));
        let store = open_store(&scratch.store());
        let plugin = RemotePlugin::start(store, Handle(device.clone()), pace).unwrap();
        Scene { plugin, device, _scratch: scratch }
    }

    /// A network with an attached, active port.
    fn plugged(&self, attachment: &str) -> (NetworkId, PortId) {
        let network = self.plugin.create_network("red", Some("n".into())).unwrap();
        let port = self.plugin.create_port("red", &network, "ACTIVE").unwrap();
        self.plugin.plug_interface("red", &network, &port, attachment).unwrap();
        (network, port)
    }

    fn status(&self, network: &str, port: &str) -> [OpStatus; 2] {
        let found = self.plugin.get_network_details("red", network, Ports::Omitted).unwrap();
        [found.op_status, self.plugin.get_port_details("red", network, port).unwrap().op_status]
    }

    fn settle(&self) {
        assert!(self.plugin.wait_until_driven(PATIENCE), "{:?}", self.device.steps());
    }
}

#[test]
fn tenants_write_and_read_while_the_device_hangs_and_see_provisioning_until_it_has_all() {
    let scene = Scene::new(PACE);
    scene.settle();
    scene.device.becomes(Doing::Hangs);
    let (network, port) = scene.plugged("vif");
    assert_eq!(scene.status(&network, &port), [OpStatus::Provisioning; 2]);
    assert_eq!(scene.plugin.get_all_networks("red", &NetworkFilter::default()).unwrap().len(), 1);
    assert!(!scene.plugin.wait_until_driven(Duration::ZERO));
    scene.device.becomes(Doing::Obeys);
    scene.settle();
    assert_eq!(scene.status(&network, &port), [OpStatus::Up; 2]);
}

#[test]
fn a_driver_that_panics_is_asked_again_and_loses_nothing() {
    let scene = Scene::new(PACE);
    let (network, port) = scene.plugged("vif");
    scene.settle();
    scene.device.becomes(Doing::Panics);
    let (second, other) = scene.plugged("vif-2");
    scene.device.wait_for_calls(4);
    assert_eq!(scene.status(&network, &port), [OpStatus::Unknown; 2]);
    assert_eq!(scene.status(&second, &other), [OpStatus::Provisioning; 2]);
    scene.device.becomes(Doing::Obeys);
    scene.settle();
    for (network, port) in [(network, port), (second, other)] {
        assert_eq!(scene.status(&network, &port), [OpStatus::Up; 2]);
    }
}

#[test]
fn what_the_device_only_started_is_provisioning_until_it_shows_it() {
    let scene = Scene::new(UNAUDITED);
    scene.device.becomes(Doing::Starts);
    let (network, port) = scene.plugged("vif");
    // A step or two, then readings that do not show it.
    scene.device.wait_for_calls(6);
    assert_eq!(scene.status(&network, &port), [OpStatus::Provisioning; 2]);
    {
        let mut inner = scene.device.inner.lock().unwrap();
        let name = Some("n".into());
        inner.contents.networks.insert(network.clone(), DeviceNetwork { tenant: "red".into(), name });
        let put = |step: &Step| if let Step::PutPort(_, port) = step { Some(port.clone()) } else { None };
        let port_as_told = inner.steps.iter().rev().find_map(put).unwrap();
        inner.contents.ports.insert(port.clone(), FoundPort { port: port_as_told, is_up: true });
    }
    scene.settle();
    assert_eq!(scene.status(&network, &port), [OpStatus::Up; 2]);
}

#[test]
fn what_a_port_may_send_from_is_told_to_the_device_and_mended_if_it_can_tell_it_again() {
    for is_simple in [false, true] {
        let scene = Scene::of(Scripted { is_simple, ..Scripted::default() }, PACE);
        let network = scene.plugin.create_network("red", None).unwrap();
        let pairs: AddressPairs = [AddressPair::new("02:00:00:00:00:01", None).unwrap()].into();
        let port = scene.plugin.create_port_with_pairs("red", &network, "ACTIVE", &pairs).unwrap();
        scene.settle();
        let has = || scene.device.inner.lock().unwrap().contents.ports[&port].port.pairs.clone();
        assert_eq!(has(), pairs);
        scene.device.inner.lock().unwrap().contents.ports.get_mut(&port).unwrap().port.pairs = [].into();
        scene.plugin.read_device_again();
        scene.settle();
        assert_eq!(has().len(), usize::from(!is_simple));
    }
}

#[test]
fn what_the_device_lost_before_it_was_done_is_done_again() {
    let scene = Scene::new(UNAUDITED);
    scene.device.becomes(Doing::Starts);
    let (network, port) = scene.plugged("vif");
    scene.device.wait_for_calls(6);
    // It forgot what it had taken, and takes steps at once now.
    scene.device.becomes(Doing::Obeys);
    scene.settle();
    assert_eq!(scene.status(&network, &port), [OpStatus::Up; 2]);
}

#[test]
fn what_the_device_refuses_is_down_while_others_go_on_and_is_tried_again_when_it_changes() {
    let scene = Scene::new(UNAUDITED);
    let (network, port) = scene.plugged("vif");
    scene.settle();
    scene.device.becomes(Doing::Refuses(port.clone()));
    scene.plugin.update_port("red", &network, &port, "DOWN").unwrap();
    scene.plugin.update_port("red", &network, &port, "ACTIVE").unwrap();
    let (other_network, other) = scene.plugged("vif2");
    scene.settle();
    assert_eq!(scene.status(&network, &port), [OpStatus::Up, OpStatus::Down]);
    assert_eq!(scene.status(&other_network, &other), [OpStatus::Up; 2]);
    scene.device.becomes(Doing::Obeys);
    scene.plugin.update_port("red", &network, &port, "ACTIVE").unwrap();
    scene.settle();
    assert_eq!(scene.status(&network, &port), [OpStatus::Up; 2]);
}

#[test]
fn what_a_lost_device_had_is_unknown_until_it_is_back() {
    let scene = Scene::new(PACE);
    let (network, port) = scene.plugged("vif");
    scene.settle();
    scene.device.becomes(Doing::Away);
    // The second call comes after the first was taken in.
    scene.device.wait_for_calls(2);
    assert_eq!(scene.status(&network, &port), [OpStatus::Unknown; 2]);
    scene.device.becomes(Doing::Obeys);
    scene.settle();
    assert_eq!(scene.status(&network, &port), [OpStatus::Up; 2]);
}

#[test]
fn steps_come_in_an_order_in_which_no_port_is_without_its_network() {
    let scene = Scene::new(UNAUDITED);
    let gone: Vec<_> = (0..6).map(|at| scene.plugged(&format!("old{at}"))).collect();
    scene.settle();
    // The device hangs in some call, and all this waits for one round.
    scene.device.becomes(Doing::Hangs);
    scene.plugin.read_device_again();
    for (network, port) in &gone {
        scene.plugin.unplug_interface("red", network, port).unwrap();
        scene.plugin.delete_network("red", network).unwrap();
    }
    let made: Vec<_> = (0..6).map(|at| scene.plugged(&format!("new{at}"))).collect();
    scene.device.becomes(Doing::Obeys);
    scene.settle();
    let mut there = Vec::new();
    let mut ports: Vec<(PortId, NetworkId)> = Vec::new();
    for step in scene.device.steps() {
        match step {
            Step::PutNetwork(id, _) => there.push(id),
            Step::PutPort(id, port) => {
                assert!(there.contains(&port.network), "a port came before its network");
                ports.push((id, port.network));
            }
            Step::RemovePort(id) => ports.retain(|(port, _)| *port != id),
            Step::RemoveNetwork(id) => {
                assert!(!ports.iter().any(|(_, network)| *network == id), "a network went before its ports");
                there.retain(|network| *network != id);
            }
        }
    }
    assert_eq!(there.len(), made.len());
}

#[test]
fn one_change_among_many_things_is_one_step() {
    let scene = Scene::new(UNAUDITED);
    let (network, port) = scene.plugged("vif");
    for _ in 0..50 {
        scene.plugin.create_port("red", &network, "ACTIVE").unwrap();
    }
    scene.settle();
    let before = scene.device.steps().len();
    scene.plugin.update_port("red", &network, &port, "DOWN").unwrap();
    scene.settle();
    match &scene.device.steps()[before..] {
        [Step::PutPort(id, found)] => assert_eq!((id, found.state), (&port, AdminState::Down)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_that_cannot_tell_its_networks_again_is_given_each_once() {
    let scene = Scene::of(Scripted { is_simple: true, ..Scripted::default() }, PACE);
    let (network, port) = scene.plugged("vif");
    scene.settle();
    assert_eq!(scene.status(&network, &port), [OpStatus::Up; 2]);
    let before = scene.device.steps().len();
    scene.device.wait_for_calls(4);
    assert_eq!(scene.device.steps().len(), before, "audits found something to do");
}
