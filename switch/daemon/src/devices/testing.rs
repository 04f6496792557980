//! Devices that exist in memory only.
use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// Opens pretend devices, or says why not.
#[derive(Default)]
pub(crate) struct FakeOpener {
    /// What `open` answers for these interfaces instead of a device.
    pub(crate) refusals: Mutex<HashMap<InterfaceId, (String, bool)>>,
    /// Everything that happened, in order.
    pub(crate) events: Arc<Mutex<Vec<String>>>,
    /// Whether the devices given out are lost.
    pub(crate) lost: Arc<AtomicBool>,
    /// The MTUs that devices were opened with or given, in order.
    pub(crate) mtus: Arc<Mutex<Vec<Option<u16>>>>,
    /// Whether devices refuse another MTU.
    pub(crate) is_stubborn: Arc<AtomicBool>,
}

struct FakeDevice {
    interface: InterfaceId,
    events: Arc<Mutex<Vec<String>>>,
    lost: Arc<AtomicBool>,
    mtus: Arc<Mutex<Vec<Option<u16>>>>,
    is_stubborn: Arc<AtomicBool>,
}

impl FakeOpener {
    pub(crate) fn refuse(&self, interface: &str, reason: &str, is_name_taken: bool) {
        self.refusals.lock().unwrap().insert(interface.into(), (reason.into(), is_name_taken));
    }

    pub(crate) fn events(&self) -> Vec<String> {
        self.events.lock().unwrap().clone()
    }
}

impl Opener for FakeOpener {
    fn open(&self, plug: &Plug, _place: Arc<dyn Place>) -> Result<Box<dyn Running>, OpenError> {
        if let Some((reason, is_name_taken)) = self.refusals.lock().unwrap().get(&plug.interface) {
            return Err(OpenError { reason: reason.clone(), is_name_taken: *is_name_taken });
        }
        self.lost.store(false, Ordering::Relaxed);
        self.events.lock().unwrap().push(format!("open {}", plug.interface));
        self.mtus.lock().unwrap().push(plug.mtu);
        let (events, lost, mtus) = (self.events.clone(), self.lost.clone(), self.mtus.clone());
        let is_stubborn = self.is_stubborn.clone();
        Ok(Box::new(FakeDevice { interface: plug.interface.clone(), events, lost, mtus, is_stubborn }))
    }
}

impl Device for FakeDevice {
    fn state(&self) -> DeviceState {
        DeviceState { is_ready: true, link: Link::Up, reason: String::new() }
    }
}

impl Running for FakeDevice {
    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    fn set_mtu(&self, mtu: u16) -> Result<bool, String> {
        self.mtus.lock().unwrap().push(Some(mtu));
        if self.is_stubborn.load(Ordering::Relaxed) { Err("not now".into()) } else { Ok(true) }
    }

    fn remove(self: Box<Self>) {
        self.events.lock().unwrap().push(format!("remove {}", self.interface));
    }
}

impl Drop for FakeDevice {
    fn drop(&mut self) {
        self.events.lock().unwrap().push(format!("close {}", self.interface));
    }
}

/// A place where nobody looks.
pub(crate) struct NoPlace;

impl Place for NoPlace {
    fn publish(&self, _port: Arc<dyn switch::port::Port>) {}
    fn withdraw(&self) {}
}

/// A plug of a TAP without further wishes.
pub(crate) fn tap_plug(interface: &str, name: &str) -> Plug {
    Plug::new(interface, DeviceSpec::Tap { name: name.into(), netns: None, queues: 1 })
}
