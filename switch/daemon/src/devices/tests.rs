//! The supervisor with pretend devices.

use super::testing::*;
use super::*;

const SOON: Duration = Duration::from_secs(5);

fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < SOON, "{what} never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn slot(interface: &str) -> Arc<Slot> {
    Slot::new(tap_plug(interface, "t0"), PortIndex(0), Arc::new(NoPlace))
}

#[test]
fn a_device_that_is_not_there_is_retried_until_it_is_and_the_reason_is_told() {
    let opener = Arc::new(FakeOpener::default());
    opener.refuse("vm1", "namespace is gone", false);
    let supervisor = Supervisor::spawn(opener.clone()).unwrap();
    let slot = slot("vm1");
    supervisor.start(slot.clone());
    assert!(slot.wait_attempted(SOON));
    assert_eq!((slot.state().is_ready, slot.state().reason.as_str()), (false, "namespace is gone"));
    opener.refusals.lock().unwrap().clear();
    until("the device", || slot.state().is_ready);
    supervisor.shutdown();
    assert_eq!(opener.events(), ["open vm1", "close vm1"]);
}

#[test]
fn a_device_gets_what_its_network_lets_through_when_it_is_told_and_when_it_is_opened_but_not_over_its_own() {
    let opener = Arc::new(FakeOpener::default());
    let supervisor = Supervisor::spawn(opener.clone()).unwrap();
    let [slot, own] = [slot("vm1"), slot("vm2")];
    own.set_plug(Plug { mtu: Some(1400), ..tap_plug("vm2", "t1") });
    supervisor.start(slot.clone());
    supervisor.start(own.clone());
    // What is said again is no news.
    [1450, 1450, 1350].into_iter().for_each(|mtu| supervisor.tell_mtu(&slot, mtu));
    supervisor.tell_mtu(&own, 1450);
    until("the device", || opener.mtus.lock().unwrap().len() == 4);
    opener.lost.store(true, std::sync::atomic::Ordering::Relaxed);
    until("it is opened anew", || opener.mtus.lock().unwrap().len() >= 6);
    supervisor.shutdown();
    let mut mtus = opener.mtus.lock().unwrap().clone();
    let again = mtus.split_off(4);
    assert!(again.contains(&Some(1350)), "{again:?}");
    assert_eq!((slot.mtu(), own.mtu()), (Some(1350), Some(1400)));
    assert!(mtus.contains(&Some(1400)) && mtus.iter().all(|mtu| *mtu != Some(1500)), "{mtus:?}");
}

#[test]
fn an_mtu_that_could_not_be_set_is_set_when_it_is_told_again() {
    let opener = Arc::new(FakeOpener::default());
    let supervisor = Supervisor::spawn(opener.clone()).unwrap();
    let slot = slot("vm1");
    supervisor.start(slot.clone());
    assert!(slot.wait_attempted(SOON));
    opener.is_stubborn.store(true, std::sync::atomic::Ordering::Relaxed);
    supervisor.tell_mtu(&slot, 1450);
    until("it is tried", || opener.mtus.lock().unwrap().len() == 2);
    until("it is forgotten", || slot.mtu().is_none());
    supervisor.tell_mtu(&slot, 1450);
    until("it is tried again", || opener.mtus.lock().unwrap().len() == 3);
    supervisor.shutdown();
}

#[test]
fn one_absent_device_does_not_hold_up_the_others() {
    let opener = Arc::new(FakeOpener::default());
    opener.refuse("gone", "no such namespace", false);
    let supervisor = Supervisor::spawn(opener.clone()).unwrap();
    let (gone, here) = (slot("gone"), slot("here"));
    supervisor.start(gone.clone());
    supervisor.start(here.clone());
    let (sender, tried) = channel();
    supervisor.when_tried(move || sender.send(()).unwrap());
    tried.recv_timeout(SOON).unwrap();
    assert!(here.state().is_ready && !gone.state().is_ready);
    supervisor.shutdown();
}

#[test]
fn a_removed_device_is_gone_before_the_caller_hears_of_it_and_is_not_retried() {
    let opener = Arc::new(FakeOpener::default());
    let supervisor = Supervisor::spawn(opener.clone()).unwrap();
    let slot = slot("vm1");
    supervisor.start(slot.clone());
    let (sender, stopped) = channel();
    let events = opener.events.clone();
    supervisor.stop(slot, true, move || sender.send(events.lock().unwrap().clone()).unwrap());
    let events = stopped.recv_timeout(SOON).unwrap();
    assert_eq!(events, ["open vm1", "remove vm1", "close vm1"]);
    supervisor.shutdown();
    assert_eq!(opener.events().len(), 3);
}

#[test]
fn a_lost_device_is_closed_and_opened_anew() {
    let opener = Arc::new(FakeOpener::default());
    let supervisor = Supervisor::spawn(opener.clone()).unwrap();
    supervisor.start(slot("vm1"));
    until("the device", || opener.events().len() == 1);
    opener.lost.store(true, std::sync::atomic::Ordering::Relaxed);
    until("the second opening", || opener.events() == ["open vm1", "close vm1", "open vm1"]);
    supervisor.shutdown();
}
