//! A disk that does not come back: nobody waits who only reads, and nothing gets lost that comes in between.

use super::*;
use switch::ids::PORTS_MAX;

/// A store whose disk takes as long as the test wants.
pub(super) struct SlowStore {
    store: Store,
    disk: Mutex<Disk>,
    changed: Condvar,
}

#[derive(Default)]
struct Disk {
    is_stuck: bool,
    waiting: usize,
}

impl SlowStore {
    pub(super) fn over(store: Store) -> SlowStore {
        SlowStore { store, disk: Mutex::default(), changed: Condvar::new() }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }

    fn be_stuck(&self, is_stuck: bool) {
        self.disk().is_stuck = is_stuck;
        self.changed.notify_all();
    }

    fn until_somebody_waits(&self) {
        let is_idle = |disk: &mut Disk| disk.waiting == 0;
        let waited = self.changed.wait_timeout_while(self.disk(), Duration::from_secs(10), is_idle).unwrap();
        assert!(!waited.1.timed_out(), "nobody writes");
    }

    fn wait(&self) {
        let mut disk = self.disk();
        disk.waiting += 1;
        self.changed.notify_all();
        let mut disk = self.changed.wait_while(disk, |disk| disk.is_stuck).unwrap();
        disk.waiting -= 1;
    }
}

impl PlugStore for SlowStore {
    fn plugs(&self) -> Result<BTreeMap<InterfaceId, Plug>, StoreError> {
        self.store.plugs()
    }

    fn put_plug(&self, plug: &Plug) -> Result<(), StoreError> {
        self.wait();
        self.store.put_plug(plug)
    }

    fn remove_plug(&self, interface: &str) -> Result<(), StoreError> {
        self.wait();
        self.store.remove_plug(interface).map(drop)
    }
}

#[test]
fn while_a_plug_waits_for_the_disk_whoever_reads_is_answered() {
    let rig = Rig::new("disk", Auto::VhostUser);
    rig.control.plug(request("vm", "t1")).unwrap();
    rig.attach("net", "red", &["vm"]);
    let model = rig.tenants.snapshot();
    let writes: [(&str, &(dyn Fn() + Sync)); 5] = [
        ("plug", &|| drop(rig.control.plug(request("new", "t2")).unwrap())),
        ("replug", &|| {
            let macs = vec!["02:00:00:00:00:01".to_owned()];
            rig.control.plug(PlugRequest { macs, replace: true, ..request("vm", "t1") }).unwrap();
        }),
        ("note", &|| rig.control.note_made(&"vm".into(), Some("there".into())).unwrap()),
        ("unplug", &|| rig.control.unplug("new").unwrap()),
        ("automatic", &|| rig.attach("other", "blue", &["auto"])),
    ];
    for (what, write) in writes {
        rig.store.be_stuck(true);
        std::thread::scope(|scope| {
            scope.spawn(write);
            rig.store.until_somebody_waits();
            let (tell, told) = std::sync::mpsc::channel();
            let (control, model) = (&rig.control, &model);
            scope.spawn(move || {
                let status = control.op_status(model, &"vm".into());
                tell.send((status, control.port_stats(model, &"vm".into()), control.view().interfaces.len())).unwrap();
            });
            let answer = told.recv_timeout(Duration::from_secs(10));
            rig.store.be_stuck(false);
            assert_eq!(answer.map(|(status, ..)| status), Ok(OpStatus::Up), "{what}");
        });
    }
    assert_eq!(rig.store.store.plugs().unwrap().keys().map(|id| &**id).collect::<Vec<_>>(), ["auto", "vm"]);
    let vm = rig.store.store.plugs().unwrap()["vm"].clone();
    assert_eq!((vm.made.as_deref(), vm.macs.len()), (Some("there"), 1));
    assert_eq!(rig.op_status("vm"), OpStatus::Up);
}

#[test]
fn an_operator_who_comes_while_an_automatic_plug_waits_for_the_disk_gets_the_interface() {
    let rig = Rig::new("overtaken", Auto::VhostUser);
    rig.store.be_stuck(true);
    std::thread::scope(|scope| {
        scope.spawn(|| rig.attach("net", "red", &["vm"]));
        rig.store.until_somebody_waits();
        let plugged = scope.spawn(|| rig.control.plug(request("vm", "t1")));
        rig.until("the operator", |rig| rig.control.state().reserved.is_some());
        rig.store.be_stuck(false);
        plugged.join().unwrap().unwrap();
    });
    assert!(!rig.control.view().interfaces["vm"].plug.is_automatic);
    assert!(!rig.store.store.plugs().unwrap()["vm"].is_automatic);
    assert_eq!(rig.op_status("vm"), OpStatus::Up);
}

#[test]
fn an_automatic_plug_leaves_the_last_port_to_an_operator_whose_plug_is_on_its_way_to_the_disk() {
    let rig = Rig::new("last", Auto::VhostUser);
    rig.attach("net", "red", &["auto"]);
    let model = rig.tenants.snapshot();
    rig.tenants.apply(&[Change::RemovePort("auto".into())]);
    rig.until("its end", |rig| rig.control.state().plugs.is_empty());
    let made = rig.control.store_automatic(&model, Scope::All);
    assert_eq!(made.len(), 1);
    let other = |at: usize| {
        let device = DeviceSpec::Tap { name: format!("p{at}"), netns: None, queues: 1 };
        (InterfaceId::from(format!("p{at}")), Plug::new(format!("p{at}"), device))
    };
    rig.control.state().plugs.extend((1..PORTS_MAX).map(other));
    rig.store.be_stuck(true);
    std::thread::scope(|scope| {
        let operator = scope.spawn(|| rig.control.plug(request("vm", "t1")));
        rig.store.until_somebody_waits();
        let mut state = rig.control.state();
        let left_out = rig.control.follow_attachments(&mut state, &model, Scope::All, made);
        let counts = (left_out.len(), state.plugs.len());
        // So many devices need not be opened for this.
        state.plugs.clear();
        drop(state);
        rig.store.be_stuck(false);
        operator.join().unwrap().unwrap();
        assert_eq!(counts, (1, PORTS_MAX - 1));
    });
}
