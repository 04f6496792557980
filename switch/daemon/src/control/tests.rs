//! The control with pretend devices, a real store and a switch whose workers stand still.

mod disk;

use super::*;
use crate::devices::device_name;
use crate::devices::testing::FakeOpener;
use crate::opener::MadeBook;
use crate::plugs::DeviceRequest;
use api::model::{AdminState, Change, LogicalPort, Network, Touched};
use api::plugin::{Flow, PortStats};
use api::store::Store;
use disk::SlowStore;
use pipelines::Standard;
use std::time::Instant;
use switch::ids::WorkerIndex;
use switch::ledger::{DropReason, Tally};
use switch::poll::Poll;
use switch::switch::{SwitchConfig, WorkerSpec};

/// A model that tests change by hand, in the plugin's place.
struct FakeTenants {
    model: Mutex<Arc<Model>>,
    control: Weak<Control<Standard>>,
}

impl FakeTenants {
    fn apply(&self, changes: &[Change]) {
        let mut model = self.model.lock().unwrap();
        let mut touched = Touched::default();
        for change in changes {
            model.touch(change, &mut touched);
            Arc::make_mut(&mut model).apply(change);
        }
        self.control.upgrade().unwrap().put_in_force(&model, Scope::Parts(&touched));
    }
}

impl Tenants for FakeTenants {
    fn snapshot(&self) -> Arc<Model> {
        self.model.lock().unwrap().clone()
    }

    fn put_in_force(&self) {
        let model = self.model.lock().unwrap();
        if let Some(control) = self.control.upgrade() {
            control.put_in_force(&model, Scope::All);
        }
    }
}

/// A directory that goes with the last rig over it.
struct Scratch(PathBuf);

impl std::ops::Deref for Scratch {
    type Target = PathBuf;

    fn deref(&self) -> &PathBuf {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Rig {
    directory: Arc<Scratch>,
    opener: Arc<FakeOpener>,
    control: Arc<Control<Standard>>,
    tenants: Arc<FakeTenants>,
    store: Arc<SlowStore>,
}

impl Rig {
    fn new(name: &str, auto: Auto) -> Rig {
        let directory = std::env::temp_dir().join(format!("qvs-control-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        Rig::over(Arc::new(Scratch(directory)), auto)
    }

    fn over(directory: Arc<Scratch>, auto: Auto) -> Rig {
        let config = SwitchConfig {
            workers: vec![WorkerSpec::default()],
            poll: Poll::Adaptive { idle: Duration::from_micros(200) },
            mac_max: 1024,
            mac_age_s: 300,
        };
        let switch = Switch::new(&config).unwrap();
        let store = Store::open(&directory.join("state.redb")).unwrap();
        let store = Arc::new(SlowStore::over(store));
        let opener = Arc::new(FakeOpener::default());
        let supervisor = Supervisor::spawn(opener.clone()).unwrap();
        let rules = DeviceRules {
            auto,
            vhost_dir: directory.0.clone(),
            role: Role::Server,
            has_arp_suppression: true,
            carries: true,
        };
        let control = Control::new(switch, store.clone(), supervisor, rules).unwrap();
        let tenants = Arc::new(FakeTenants { model: Mutex::default(), control: Arc::downgrade(&control) });
        control.start(tenants.clone(), || {});
        Rig { directory, opener, control, tenants, store }
    }

    /// The same host after a restart; the tenants' state is empty.
    fn restart(self) -> Rig {
        let directory = self.directory.clone();
        drop(self);
        Rig::over(directory, Auto::None)
    }

    /// A network with one port each; the port's id is the attachment's.
    fn attach(&self, network: &str, tenant: &str, attachments: &[&str]) {
        let mut changes = vec![Change::PutNetwork(Network {
            id: network.into(),
            tenant: tenant.into(),
            name: None,
            network_type: Default::default(),
            serial: 1,
        })];
        changes.extend(attachments.iter().enumerate().map(|(at, attachment)| {
            Change::PutPort(LogicalPort {
                id: (*attachment).into(),
                network: network.into(),
                state: AdminState::Active,
                attachment: Some((*attachment).into()),
                pairs: [].into(),
                serial: 2 + at as u64,
            })
        }));
        self.tenants.apply(&changes);
    }

    fn set(&self, port: &str, change: impl FnOnce(&mut LogicalPort)) {
        let mut port = self.tenants.snapshot().ports[port].clone();
        change(&mut port);
        self.tenants.apply(&[Change::PutPort(port)]);
    }

    fn op_status(&self, port: &str) -> OpStatus {
        self.control.op_status(&self.tenants.snapshot(), &port.into())
    }

    fn network_of(&self, interface: &str) -> Option<String> {
        let config = self.control.switch().snapshot().config.clone();
        let port = config.ports().iter().find(|port| &*port.interface == interface)?;
        port.network.and_then(|network| config.network(network)).map(|network| network.id.to_string())
    }

    fn until(&self, what: &str, is_so: impl Fn(&Rig) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            assert!(start.elapsed() < Duration::from_secs(5), "{what} never came");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.control.shutdown();
    }
}

fn request(interface: &str, tap: &str) -> PlugRequest {
    PlugRequest {
        interface: interface.into(),
        device: DeviceRequest::Tap { name: tap.into(), netns: None, queues: None },
        macs: Vec::new(),
        addresses: Vec::new(),
        mtu: None,
        tenant: None,
        replace: false,
    }
}

#[test]
fn a_plug_joins_its_network_whether_it_comes_before_or_after_the_attachment() {
    let rig = Rig::new("order", Auto::None);
    rig.control.plug(request("before", "t1")).unwrap();
    assert_eq!(rig.network_of("before"), None);
    rig.attach("net", "red", &["before", "after"]);
    assert_eq!(rig.network_of("before").as_deref(), Some("net"));
    assert_eq!((rig.op_status("before"), rig.op_status("after")), (OpStatus::Up, OpStatus::Down));
    rig.control.plug(request("after", "t2")).unwrap();
    assert_eq!(rig.network_of("after").as_deref(), Some("net"));
    assert_eq!(rig.op_status("after"), OpStatus::Up);
}

#[test]
fn what_concerns_no_interface_of_this_host_costs_no_publication() {
    let rig = Rig::new("scope", Auto::None);
    rig.control.plug(request("here", "t1")).unwrap();
    rig.attach("net", "red", &["elsewhere", "here"]);
    assert_eq!(rig.network_of("here").as_deref(), Some("net"));
    let generation = || rig.control.switch().snapshot().generation;
    let before = generation();
    rig.set("elsewhere", |port| port.state = AdminState::Down);
    rig.set("elsewhere", |port| port.attachment = None);
    rig.tenants.apply(&[Change::PutNetwork(Network {
        id: "other".into(),
        tenant: "red".into(),
        name: None,
        network_type: Default::default(),
        serial: 9,
    })]);
    assert_eq!(generation(), before);
    rig.set("here", |port| port.attachment = None);
    assert_eq!(rig.network_of("here"), None);
    assert!(generation() > before);
}

#[test]
fn op_status_follows_state_attachment_plug_and_device() {
    let rig = Rig::new("status", Auto::None);
    rig.opener.refuse("absent", "not there", false);
    rig.attach("net", "red", &["vm", "absent"]);
    rig.control.plug(request("vm", "t1")).unwrap();
    let device = rig.control.plug(request("absent", "t2")).unwrap();
    assert_eq!((device.is_ready, device.reason.as_str()), (false, "not there"));
    assert_eq!((rig.op_status("vm"), rig.op_status("absent")), (OpStatus::Up, OpStatus::Down));
    rig.set("vm", |port| port.state = AdminState::Down);
    assert_eq!(rig.op_status("vm"), OpStatus::Down);
    assert!(rig.opener.events().iter().all(|event| !event.starts_with("close")), "DOWN keeps the device");
    rig.set("vm", |port| port.state = AdminState::Active);
    assert_eq!(rig.op_status("vm"), OpStatus::Up);
    rig.set("vm", |port| port.attachment = None);
    assert_eq!((rig.op_status("vm"), rig.network_of("vm")), (OpStatus::Down, None));
    assert_eq!(rig.control.view().interfaces.len(), 2, "detaching leaves a manual plug in place");
}

#[test]
fn other_hosts_are_told_that_an_interface_is_up_while_it_is_on_its_network() {
    let rig = Rig::new("told", Auto::None);
    rig.control.plug(request("vm", "t1")).unwrap();
    let is_up = || rig.control.wanted()["vm"].is_up;
    assert!(!is_up(), "it is on none");
    rig.attach("net", "red", &["vm"]);
    assert!(is_up());
    rig.set("vm", |port| port.attachment = None);
    assert!(!is_up());
}

#[test]
fn a_plug_of_another_tenant_stays_off_the_network() {
    let rig = Rig::new("claim", Auto::None);
    rig.attach("net", "red", &["vm"]);
    rig.control.plug(PlugRequest { tenant: Some("blue".into()), ..request("vm", "t1") }).unwrap();
    assert_eq!((rig.op_status("vm"), rig.network_of("vm")), (OpStatus::Down, None));
    assert_eq!(rig.control.view().interfaces["vm"].unbound.unwrap().reason(), "claimed-by-other");
    rig.control.plug(PlugRequest { tenant: Some("red".into()), replace: true, ..request("vm", "t1") }).unwrap();
    assert_eq!(rig.op_status("vm"), OpStatus::Up);
    assert_eq!(rig.opener.events(), ["open vm"], "a change of tenant does not touch the device");
}

#[test]
fn port_stats_are_the_ledgers_and_those_of_an_interface_kept_off_the_network_are_nobodys() {
    let rig = Rig::new("stats", Auto::None);
    rig.attach("net", "red", &["vm", "absent"]);
    rig.control.plug(request("vm", "t1")).unwrap();
    let index = rig.control.view().interfaces["vm"].index.unwrap();
    let mut tally = Tally::default();
    tally.moved(100);
    tally.moved(60);
    tally.drop(DropReason::SpoofedMac);
    rig.control.switch().snapshot().place(index).unwrap().ledger.of(WorkerIndex(0)).rx.add(&tally);
    let stats = |port: &str| rig.control.port_stats(&rig.tenants.snapshot(), &port.into()).unwrap();
    let rx = Flow { packets: 2, bytes: 160, drops: 1 };
    assert_eq!(stats("vm"), PortStats { rx, tx: Flow::default() });
    assert_eq!(stats("absent"), PortStats::default());
    rig.control.plug(PlugRequest { tenant: Some("blue".into()), replace: true, ..request("vm", "t1") }).unwrap();
    assert_eq!(stats("vm"), PortStats::default());
}

#[test]
fn the_device_of_a_port_is_its_plugs_and_of_an_interface_kept_off_the_network_nobodys() {
    let rig = Rig::new("device", Auto::VhostUser);
    rig.control.plug(request("vm", "t1")).unwrap();
    rig.attach("net", "red", &["vm", "auto", "un safe"]);
    let device = |port: &str| rig.control.port_device(&rig.tenants.snapshot(), &port.into());
    assert_eq!(device("vm").as_deref(), Some("t1"));
    assert_eq!(device("auto").as_deref(), rig.directory.join("vhuauto").to_str());
    assert_eq!(device("un safe").as_deref(), Some(""), "none can be made");
    rig.control.plug(PlugRequest { tenant: Some("blue".into()), replace: true, ..request("vm", "t1") }).unwrap();
    assert_eq!(device("vm"), None);
}

#[test]
fn plugging_is_idempotent_and_conflicts_need_replace() {
    let rig = Rig::new("replace", Auto::None);
    rig.control.plug(request("one", "t1")).unwrap();
    rig.control.plug(request("one", "t1")).unwrap();
    assert_eq!(rig.opener.events(), ["open one"]);
    assert!(matches!(rig.control.plug(request("one", "t2")), Err(PlugError::OtherArguments { .. })));
    assert!(matches!(rig.control.plug(request("two", "t1")), Err(PlugError::DeviceTaken { .. })));

    rig.control.plug(PlugRequest { replace: true, ..request("two", "t1") }).unwrap();
    assert_eq!(rig.control.view().interfaces.keys().map(|id| &**id).collect::<Vec<_>>(), ["two"]);
    assert_eq!(rig.opener.events(), ["open one", "remove one", "close one", "open two"]);

    let index = rig.control.view().interfaces["two"].index;
    rig.control.plug(PlugRequest { replace: true, ..request("two", "t9") }).unwrap();
    assert_eq!(rig.opener.events()[4..], ["remove two", "close two", "open two"]);
    assert_eq!(rig.control.view().interfaces["two"].index, index, "an interface keeps its index and counters");

    rig.control.plug(PlugRequest { replace: true, mtu: Some(9000), ..request("two", "t9") }).unwrap();
    assert_eq!(rig.opener.events()[7..], ["close two", "open two"], "another MTU reopens and does not remove");
}

#[test]
fn a_name_that_is_not_ours_is_refused_and_leaves_no_plug() {
    let rig = Rig::new("foreign", Auto::None);
    rig.opener.refuse("vm", "an interface named \"eth0\" exists already and is not ours", true);
    assert!(matches!(rig.control.plug(request("vm", "eth0")), Err(PlugError::NotOurs(_))));
    assert!(rig.control.view().interfaces.is_empty());
    let path = rig.directory.join("file");
    std::fs::write(&path, "").unwrap();
    let device = DeviceRequest::VhostUser { path: path.to_str().unwrap().into(), role: None };
    assert!(matches!(rig.control.plug(PlugRequest { device, ..request("vm", "") }), Err(PlugError::NotOurs(_))));
    assert!(path.exists());
    let rig = rig.restart();
    assert!(rig.control.view().interfaces.is_empty());
}

#[test]
fn a_refused_replacement_takes_nothing_away() {
    let rig = Rig::new("refused", Auto::None);
    rig.control.plug(request("vm", "t1")).unwrap();
    let refused = rig.control.plug(PlugRequest { replace: true, ..request("vm", "lo") });
    assert!(matches!(refused, Err(PlugError::NotOurs(_))), "{refused:?}");
    assert_eq!(rig.opener.events(), ["open vm"]);
    assert_eq!(device_name(&rig.control.view().interfaces["vm"].plug.device), "t1");
}

#[test]
fn unplugging_removes_the_device_keeps_the_attachment_and_is_an_error_twice() {
    let rig = Rig::new("unplug", Auto::None);
    rig.attach("net", "red", &["vm"]);
    rig.control.plug(request("vm", "t1")).unwrap();
    rig.control.unplug("vm").unwrap();
    assert_eq!(rig.opener.events(), ["open vm", "remove vm", "close vm"]);
    assert_eq!(rig.op_status("vm"), OpStatus::Down);
    assert!(rig.tenants.snapshot().port_by_attachment("vm").is_some());
    assert!(rig.control.switch().snapshot().config.ports().is_empty());
    assert_eq!(rig.control.unplug("vm"), Err(PlugError::Unknown("vm".into())));
    rig.control.plug(request("vm", "t1")).unwrap();
    assert_eq!(rig.op_status("vm"), OpStatus::Up);
}

#[test]
fn plugs_come_back_after_a_restart_and_unplugged_ones_do_not() {
    let rig = Rig::new("restart", Auto::None);
    rig.control.plug(PlugRequest { macs: vec!["02:00:00:00:00:01".into()], ..request("stays", "t1") }).unwrap();
    rig.control.plug(request("goes", "t2")).unwrap();
    rig.control.note_made(&"stays".into(), Some("here".into())).unwrap();
    rig.control.unplug("goes").unwrap();
    let rig = rig.restart();
    rig.until("the device", |rig| rig.opener.events() == ["open stays"]);
    let view = rig.control.view();
    let plug = &view.interfaces["stays"].plug;
    assert_eq!(plug.macs, ["02:00:00:00:00:01"]);
    assert_eq!(plug.made.as_deref(), Some("here"));
    assert_eq!(view.interfaces.len(), 1);
}

#[test]
fn automatic_devices_come_and_go_with_their_attachment() {
    let rig = Rig::new("auto", Auto::VhostUser);
    rig.attach("net", "red", &["0123456789abcdef", "../evil"]);
    rig.until("the device", |rig| rig.op_status("0123456789abcdef") == OpStatus::Up);
    let view = rig.control.view();
    let plug = &view.interfaces["0123456789abcdef"].plug;
    assert!(plug.is_automatic);
    assert_eq!(device_name(&plug.device), rig.directory.join("vhu0123456789a").to_str().unwrap());
    assert_eq!(view.no_device["../evil"], NoDevice::UnsafeName);
    assert_eq!(rig.op_status("../evil"), OpStatus::Down);

    rig.set("0123456789abcdef", |port| port.attachment = None);
    rig.until("its end", |rig| rig.control.view().interfaces.is_empty());
    assert!(rig.opener.events().contains(&"remove 0123456789abcdef".to_owned()));
    // The plug is struck out first; the config without it follows.
    rig.until("the config", |rig| rig.control.switch().snapshot().config.ports().is_empty());
}

#[test]
fn a_name_that_is_taken_gets_no_device_until_it_is_free() {
    let rig = Rig::new("taken", Auto::VhostUser);
    std::fs::write(rig.directory.join("vhuvm"), "somebody's").unwrap();
    rig.attach("net", "red", &["vm"]);
    assert_eq!(rig.control.view().no_device["vm"], NoDevice::NameTaken);
    std::fs::remove_file(rig.directory.join("vhuvm")).unwrap();
    rig.control.housekeep();
    rig.until("the device", |rig| rig.op_status("vm") == OpStatus::Up);
}

#[test]
fn an_operator_s_plug_takes_the_place_of_an_automatic_one_and_then_stays() {
    let rig = Rig::new("adopt", Auto::VhostUser);
    rig.attach("net", "red", &["vm"]);
    rig.until("the device", |rig| rig.op_status("vm") == OpStatus::Up);
    rig.control.plug(PlugRequest { replace: true, ..request("vm", "t1") }).unwrap();
    rig.set("vm", |port| port.attachment = None);
    let view = rig.control.view();
    assert!(!view.interfaces["vm"].plug.is_automatic);
}

#[test]
fn an_automatic_device_goes_with_its_attachment_and_not_by_unplugging() {
    let rig = Rig::new("stays", Auto::VhostUser);
    rig.attach("net", "red", &["vm"]);
    rig.until("the device", |rig| rig.op_status("vm") == OpStatus::Up);
    assert_eq!(rig.control.unplug("vm"), Err(PlugError::Automatic("vm".into())));
    assert_eq!(rig.opener.events(), ["open vm"]);
}

#[test]
fn an_operator_s_plug_may_take_the_device_of_an_automatic_one() {
    let rig = Rig::new("takes", Auto::VhostUser);
    rig.attach("net", "red", &["vm"]);
    rig.until("the device", |rig| rig.op_status("vm") == OpStatus::Up);
    let path = rig.directory.join("vhuvm").to_str().unwrap().to_owned();
    let device = DeviceRequest::VhostUser { path: path.clone(), role: None };
    rig.control.plug(PlugRequest { device, replace: true, ..request("mine", "") }).unwrap();
    let view = rig.control.view();
    assert_eq!(device_name(&view.interfaces["mine"].plug.device), path);
    assert!(!view.interfaces.contains_key("vm"));
    assert_eq!(view.no_device["vm"], NoDevice::NameTaken);
}

#[test]
fn unplugging_an_operator_s_plug_makes_room_for_an_automatic_one() {
    let rig = Rig::new("back", Auto::VhostUser);
    rig.control.plug(request("vm", "t1")).unwrap();
    rig.attach("net", "red", &["vm"]);
    rig.control.unplug("vm").unwrap();
    rig.until("the automatic device", |rig| rig.op_status("vm") == OpStatus::Up);
    assert!(rig.control.view().interfaces["vm"].plug.is_automatic);
}

#[test]
fn a_plug_that_was_acknowledged_stays_while_its_automatic_predecessor_goes() {
    let rig = Rig::new("race", Auto::VhostUser);
    rig.attach("net", "red", &["vm"]);
    let ends = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                rig.set("vm", |port| port.attachment = None);
                rig.set("vm", |port| port.attachment = Some("vm".into()));
                // So that the other thread gets the locks too.
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..40 {
                rig.control.plug(PlugRequest { replace: true, ..request("vm", "t1") }).unwrap();
                let view = rig.control.view();
                let interface = view.interfaces.get("vm").unwrap_or_else(|| panic!("gone in round {round}"));
                assert!(!interface.plug.is_automatic && interface.device.is_ready, "round {round}");
                rig.control.unplug("vm").unwrap();
            }
        }));
        ends.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_freed_index_carries_nothing_over_to_its_next_owner() {
    let rig = Rig::new("index", Auto::None);
    rig.control.plug(request("one", "t1")).unwrap();
    let index = rig.control.view().interfaces["one"].index.unwrap();
    let ledger = rig.control.switch().ledger(index).unwrap();
    ledger.of(switch::ids::WorkerIndex(0)).rx.drop(switch::ledger::DropReason::Truncated);
    rig.control.unplug("one").unwrap();
    assert!(rig.control.switch().ledger(index).is_none());
    for (interface, tap) in [("two", "t2"), ("three", "t3")] {
        rig.control.plug(request(interface, tap)).unwrap();
        let index = rig.control.view().interfaces[interface].index.unwrap();
        let ledger = rig.control.switch().ledger(index).unwrap();
        assert_eq!(ledger.rx().drops().count(), 0);
    }
}
