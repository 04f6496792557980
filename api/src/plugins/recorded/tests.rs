//! Recorded over a store in memory that fails when told.

use super::*;
use crate::quota::Limit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

/// A store in memory that fails when told: after the change was written, or before.
#[derive(Default)]
pub(super) struct Failing {
    pub(super) disk: Mutex<Model>,
    pub(super) is_failing: AtomicBool,
    /// The next commit fails, and is not written.
    pub(super) is_failing_once: AtomicBool,
    /// Commits panic.
    pub(super) is_breaking: AtomicBool,
    pub(super) is_written_before_failing: AtomicBool,
    pub(super) is_unreadable: AtomicBool,
    /// Putting in force panics.
    pub(super) is_unable: AtomicBool,
    pub(super) in_force_count: AtomicUsize,
    /// How often everything was put in force.
    pub(super) all_in_force_count: AtomicUsize,
    pub(super) commit_count: AtomicUsize,
    /// How often an op-status was asked for.
    pub(super) status_count: AtomicUsize,
    /// So many commits more find that others were faster.
    pub(super) outrun_count: AtomicUsize,
    /// How far others have come, and how far they are part of the state.
    pub(super) present: AtomicI64,
    pub(super) place: AtomicI64,
    /// Held by a test to hold up commits.
    pub(super) gate: Mutex<()>,
}

impl Failing {
    fn error() -> StoreError {
        StoreError::File { path: "disk".into(), source: std::io::ErrorKind::StorageFull.into() }
    }
}

impl Backing for Arc<Failing> {
    fn place(&self) -> i64 {
        self.place.load(Ordering::Relaxed)
    }

    fn present(&self) -> Result<i64, StoreError> {
        match self.is_unreadable.load(Ordering::Relaxed) {
            true => Err(Failing::error()),
            false => Ok(self.present.load(Ordering::Relaxed)),
        }
    }

    fn commit(&self, _before: &Model, changes: &[Change]) -> Result<(), StoreError> {
        self.commit_count.fetch_add(1, Ordering::Relaxed);
        drop(self.gate.lock());
        if self.outrun_count.load(Ordering::Relaxed) > 0 {
            self.outrun_count.fetch_sub(1, Ordering::Relaxed);
            return Err(StoreError::Outrun);
        }
        assert!(!self.is_breaking.load(Ordering::Relaxed), "a test breaks it");
        let is_failing = self.is_failing.load(Ordering::Relaxed) || self.is_failing_once.swap(false, Ordering::Relaxed);
        if !is_failing || self.is_written_before_failing.load(Ordering::Relaxed) {
            changes.iter().for_each(|change| self.disk.lock().unwrap().apply(change));
        }
        if is_failing { Err(Failing::error()) } else { Ok(()) }
    }

    fn reload(&self) -> Result<Option<Model>, StoreError> {
        if self.is_unreadable.load(Ordering::Relaxed) {
            return Err(Failing::error());
        }
        Ok(Some(self.disk.lock().unwrap().clone()))
    }

    fn put_in_force(&self, _model: &Model, scope: Scope<'_>) {
        assert!(!self.is_unable.load(Ordering::Relaxed), "a test breaks it");
        self.in_force_count.fetch_add(1, Ordering::Relaxed);
        if let Scope::All = scope {
            self.all_in_force_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn op_status(&self, _model: &Model, _port: &LogicalPort) -> OpStatus {
        self.status_count.fetch_add(1, Ordering::Relaxed);
        OpStatus::Unknown
    }

    fn check_plug<'a>(
        &self,
        model: &'a Model,
        network: &Network,
        port: &str,
        _attachment: &str,
    ) -> Result<&'a LogicalPort, PlugInterfaceError> {
        Ok(port_on(model, network, port)?)
    }
}

fn plugin() -> (Recorded<Arc<Failing>>, Arc<Failing>) {
    let backing = Arc::new(Failing::default());
    (Recorded::over(backing.clone(), Model::default()), backing)
}

fn names(plugin: &impl Plugin) -> Vec<String> {
    let networks = plugin.get_all_networks("red", &NetworkFilter::default()).unwrap();
    networks.into_iter().filter_map(|network| network.name).map(|name| name.to_string()).collect()
}

#[test]
fn a_write_the_store_refused_is_neither_seen_nor_in_force() {
    let (plugin, backing) = plugin();
    plugin.create_network("red", Some("kept".into())).unwrap();
    backing.is_failing.store(true, Ordering::Relaxed);
    let refused = plugin.create_network("red", Some("lost".into()));
    assert!(matches!(refused, Err(CreateNetworkError::StoreFailed(_))), "{refused:?}");
    assert_eq!(names(&plugin), ["kept"]);
    assert_eq!(backing.in_force_count.load(Ordering::Relaxed), 1);
    backing.is_failing.store(false, Ordering::Relaxed);
    plugin.create_network("red", Some("after".into())).unwrap();
    assert_eq!(names(&plugin), ["kept", "after"]);
}

#[test]
fn a_write_that_failed_after_it_reached_the_disk_is_seen_and_in_force() {
    let (plugin, backing) = plugin();
    backing.is_failing.store(true, Ordering::Relaxed);
    backing.is_written_before_failing.store(true, Ordering::Relaxed);
    assert!(plugin.create_network("red", Some("there".into())).is_err());
    assert_eq!(names(&plugin), ["there"]);
    assert_eq!(backing.in_force_count.load(Ordering::Relaxed), 1);
}

#[test]
fn after_a_failure_nothing_is_written_before_the_state_was_read_back() {
    let (plugin, backing) = plugin();
    backing.is_failing.store(true, Ordering::Relaxed);
    backing.is_written_before_failing.store(true, Ordering::Relaxed);
    backing.is_unreadable.store(true, Ordering::Relaxed);
    assert!(plugin.create_network("red", Some("first".into())).is_err());
    assert_eq!(names(&plugin), Vec::<String>::new(), "reads go on with what is known");
    backing.is_failing.store(false, Ordering::Relaxed);
    assert!(plugin.create_network("red", Some("refused".into())).is_err());
    backing.is_unreadable.store(false, Ordering::Relaxed);
    plugin.create_network("red", Some("second".into())).unwrap();
    assert_eq!(names(&plugin), ["first", "second"]);
}

#[test]
fn what_broke_off_on_its_way_into_force_is_there_before_anything_else_is_written() {
    let (plugin, backing) = plugin();
    let breaks_off = |act: &dyn Fn()| catch_unwind(AssertUnwindSafe(act)).is_err();
    let all_count = || backing.all_in_force_count.load(Ordering::Relaxed);
    backing.is_unable.store(true, Ordering::Relaxed);
    assert!(breaks_off(&|| drop(plugin.create_network("red", Some("first".into())))));
    assert_eq!(names(&plugin), ["first"], "it is durable, and told");
    // As long as that cannot be put in force, nothing is put on top of it.
    assert!(breaks_off(&|| drop(plugin.create_network("red", Some("refused".into())))));
    assert_eq!((names(&plugin), all_count()), (vec!["first".to_owned()], 0));
    backing.is_unable.store(false, Ordering::Relaxed);
    plugin.create_network("red", Some("second".into())).unwrap();
    assert_eq!((names(&plugin), all_count()), (vec!["first".to_owned(), "second".to_owned()], 1));
    // The same when it was the operator's turn.
    backing.is_unable.store(true, Ordering::Relaxed);
    assert!(breaks_off(&|| plugin.put_in_force()));
    backing.is_unable.store(false, Ordering::Relaxed);
    plugin.create_network("red", Some("third".into())).unwrap();
    assert_eq!(all_count(), 2);
    plugin.create_network("red", Some("fourth".into())).unwrap();
    assert_eq!(all_count(), 2, "once is enough");
}

fn port_counts(plugin: &impl Plugin, networks: &[NetworkId]) -> Vec<usize> {
    let count = |network: &NetworkId| plugin.get_all_ports("red", network, &PortFilter::default()).unwrap().len();
    networks.iter().map(count).collect()
}

#[test]
fn ports_made_by_one_call_are_committed_and_put_in_force_once_or_not_at_all() {
    let (plugin, backing) = plugin();
    let networks = [0; 2].map(|_| plugin.create_network("red", None).unwrap());
    let named = [&networks[0], &networks[1], &networks[0]].map(Clone::clone);
    let counts = || [&backing.commit_count, &backing.in_force_count].map(|count| count.load(Ordering::Relaxed));
    let [commits, in_force] = counts();
    let made = plugin.create_ports("red", &named, "ACTIVE").unwrap();
    assert_eq!(counts(), [commits + 1, in_force + 1]);
    assert_eq!(port_counts(&plugin, &networks), [2, 1]);
    for (network, port) in std::iter::zip(&named, &made) {
        assert_eq!(plugin.get_port_details("red", network, port).unwrap().state, AdminState::Active);
    }
    backing.is_failing_once.store(true, Ordering::Relaxed);
    assert!(matches!(plugin.create_ports("red", &named, "ACTIVE"), Err(CreatePortError::StoreFailed(_))));
    assert_eq!(port_counts(&plugin, &networks), [2, 1]);
    let held = backing.gate.lock().unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| plugin.create_ports("red", &named, "DOWN"));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(port_counts(&plugin, &networks), [2, 1], "none is seen before all are durable");
        drop(held);
        writer.join().unwrap().unwrap();
    });
    assert_eq!(port_counts(&plugin, &networks), [4, 2]);
    // What is not there is told before what is wrong, whichever comes first in the list.
    let nowhere = [networks[0].clone(), "nowhere".into()];
    assert!(matches!(plugin.create_ports("red", &nowhere, "BAD"), Err(CreatePortError::NetworkNotFound(_))));
}

#[test]
fn a_filter_by_a_port_or_what_is_plugged_looks_at_no_other_port_and_at_no_status_that_it_does_not_name() {
    let (plugin, backing) = plugin();
    let [empty, small, large] = [0; 3].map(|_| plugin.create_network("red", None).unwrap());
    let ports = plugin.create_ports("red", &vec![large.clone(); 50], "ACTIVE").unwrap();
    let down = plugin.create_port("red", &small, "DOWN").unwrap();
    plugin.plug_interface("red", &large, &ports[7], "vif").unwrap();
    let text = |text: &str| Some(text.to_owned());
    let networks = |filter: NetworkFilter| {
        let before = backing.status_count.load(Ordering::Relaxed);
        let found = plugin.get_all_networks("red", &filter).unwrap();
        let found: Vec<_> = found.into_iter().map(|network| network.id).collect();
        (found, backing.status_count.load(Ordering::Relaxed) - before)
    };
    let any = NetworkFilter::default;
    let only = |network: &NetworkId| vec![network.clone()];
    assert_eq!(networks(NetworkFilter { attachment: text("vif"), ..any() }), (only(&large), 0));
    assert_eq!(networks(NetworkFilter { port: text(&down), ..any() }), (only(&small), 0));
    assert_eq!(networks(NetworkFilter { port: text(&down), attachment: text("vif"), ..any() }), (vec![], 0));
    assert_eq!(networks(NetworkFilter { port: text(&ports[1]), attachment: text("vif"), ..any() }), (only(&large), 0));
    assert_eq!(networks(NetworkFilter { attachment: text("other"), ..any() }), (vec![], 0));
    assert_eq!(networks(NetworkFilter { port_state: text("DOWN"), ..any() }), (only(&small), 0));
    assert_eq!(networks(NetworkFilter { has_attachment: Some(false), ..any() }), (vec![empty, small.clone()], 0));
    assert_eq!(networks(NetworkFilter { port_op_status: text("UNKNOWN"), ..any() }), (vec![small, large.clone()], 2));
    let listed = |network: &NetworkId, filter: PortFilter| {
        let before = backing.status_count.load(Ordering::Relaxed);
        let found = plugin.get_all_ports("red", network, &filter).unwrap();
        let found: Vec<_> = found.into_iter().map(|port| port.id).collect();
        (found, backing.status_count.load(Ordering::Relaxed) - before)
    };
    let plugged = PortFilter { attachment: text("vif"), ..PortFilter::default() };
    assert_eq!(listed(&large, plugged.clone()), (vec![ports[7].clone()], 1));
    assert_eq!(listed(&large, PortFilter { state: text("DOWN"), ..plugged.clone() }), (vec![], 1));
    let other = plugin.create_network("red", None).unwrap();
    assert_eq!(listed(&other, plugged), (vec![], 0));
}

#[test]
fn what_could_not_be_stored_uses_up_no_quota() {
    let (plugin, backing) = plugin();
    let one = Quota { networks: Limit::at_most(1), ports: Limit::at_most(2) };
    let plugin = plugin.with_quotas(Arc::new(Quotas::for_all(one)));
    backing.is_failing_once.store(true, Ordering::Relaxed);
    assert!(matches!(plugin.create_network("red", None), Err(CreateNetworkError::StoreFailed(_))));
    let network = plugin.create_network("red", None).unwrap();
    assert!(matches!(plugin.create_network("red", None), Err(CreateNetworkError::OverQuota(_))));
    let three = [0; 3].map(|_| network.clone());
    let Err(CreatePortError::OverQuota(told)) = plugin.create_ports("red", &three, "DOWN") else {
        panic!("two at most")
    };
    assert_eq!((told.used, told.limit, told.asked), (0, 2, 3));
    plugin.create_ports("red", &three[..2], "DOWN").unwrap();
    assert!(plugin.create_port("red", &network, "DOWN").is_err());
}

#[test]
fn readers_do_not_wait_for_a_commit() {
    let (plugin, backing) = plugin();
    plugin.create_network("red", Some("before".into())).unwrap();
    let held = backing.gate.lock().unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| plugin.create_network("red", Some("slow".into())));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(names(&plugin), ["before"]);
        assert!(!writer.is_finished());
        drop(held);
    });
    assert_eq!(names(&plugin), ["before", "slow"]);
}
