//! The devices of this host: opened, retried for ever, watched and closed, on one thread of their own.
//!
//! Opening may take long or fail for days (a namespace that is not there yet), and closing waits for the workers. So nobody
//! else waits for either: the control side hands orders to the supervisor thread and reads each [`Slot`]'s condition.
//! Orders are taken first come, first served, so a stop sent after a start finds the device started.
//! Bounds: a pause of 50 ms to 1 s between two attempts for one device; a look at the running ones once a second.
//! Locks: a slot's condition is a leaf; nothing else is locked while it is held.

use api::host::{DeviceSpec, Plug};
use api::model::InterfaceId;
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use switch::device::{Counting, LinkCounters};
use switch::ids::{MacAddr, PortIndex};
use switch::port::{Device, DeviceState, Link, Place};

/// Pause after the first failed attempt; doubled after each further one.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest pause between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Pause between two looks at the running devices.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// What came and went on a device that peers connect to, since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Connections {
    /// Sessions that began.
    pub(crate) sessions: u64,
    /// Connections that were turned away: a second one, or of a user who may not.
    pub(crate) refused: u64,
}

/// What a device of somebody else's is, which nobody told us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    /// Bytes of L3 payload; `None`: it is gone.
    pub(crate) mtu: Option<u32>,
    /// Its hardware address; zero if it has none.
    pub(crate) mac: MacAddr,
    /// Its number in its namespace; 0: it is gone.
    pub(crate) link_index: u32,
    /// How its frames are moved.
    pub(crate) driver: &'static str,
    /// How the driver does it; empty if there is nothing to tell.
    pub(crate) mode: &'static str,
    /// What the kernel counted there, up to a moment ago; `None`: it is gone.
    pub(crate) counters: Option<LinkCounters>,
}

/// An open device as the supervisor keeps it.
pub(crate) trait Running: Device {
    /// Whether it is beyond repair and must be opened anew.
    fn is_lost(&self) -> bool;

    /// The MTU that a device of somebody else's has now, and how its frames are moved; `None`: a device of ours.
    fn found(&self) -> Option<Found> {
        None
    }

    /// What the kernel counts there, to be looked at by the supervisor.
    fn counting(&self) -> Option<Arc<Counting>> {
        None
    }

    /// Connections so far; `None` if nobody connects to a device of this kind.
    fn connections(&self) -> Option<Connections> {
        None
    }

    /// Whoever is behind it should send no longer packets from now on, bytes of L3 payload. False: that is none of ours to say.
    ///
    /// # Errors
    /// One line; what held before holds on.
    fn set_mtu(&self, _mtu: u16) -> Result<bool, String> {
        Ok(false)
    }

    /// Closes it and removes from the host what we made for it.
    fn remove(self: Box<Self>);
}

/// Why a device could not be opened; it will be tried again.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct OpenError {
    /// One line for people.
    pub(crate) reason: String,
    /// The name belongs to something that is not ours: waiting is not likely to help.
    pub(crate) is_name_taken: bool,
}

/// Opens devices; the one seam where tests put devices of their own.
pub(crate) trait Opener: Send + Sync {
    /// Opens the device of a plug; its port is published at `place`.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was left behind.
    fn open(&self, plug: &Plug, place: Arc<dyn Place>) -> Result<Box<dyn Running>, OpenError>;

    /// Forgets what is written down of a plug that is removed and whose device is not open.
    fn forget(&self, _plug: &Plug) {}
}

/// The host side of one plug, from its start to its stop.
pub(crate) struct Slot {
    /// The interface id.
    pub(crate) interface: InterfaceId,
    /// Its port index.
    pub(crate) index: PortIndex,
    place: Arc<dyn Place>,
    condition: Mutex<Condition>,
    attempted: Condvar,
}

struct Condition {
    /// As it is to be opened at the next attempt.
    plug: Plug,
    /// What its network lets through, where the plug has no MTU of its own; `None`: nobody has told.
    mtu: Option<u16>,
    running: Option<Box<dyn Running>>,
    /// Why it is not running; empty before the first attempt.
    reason: String,
    is_name_taken: bool,
    attempts: u64,
    is_stopped: bool,
}

impl Slot {
    /// A slot whose device is not open yet.
    pub(crate) fn new(plug: Plug, index: PortIndex, place: Arc<dyn Place>) -> Arc<Slot> {
        Arc::new(Slot {
            interface: plug.interface.clone(),
            index,
            place,
            condition: Mutex::new(Condition {
                plug,
                mtu: None,
                running: None,
                reason: String::new(),
                is_name_taken: false,
                attempts: 0,
                is_stopped: false,
            }),
            attempted: Condvar::new(),
        })
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device's condition now; before it is open, why it is not.
    pub(crate) fn state(&self) -> DeviceState {
        let condition = self.condition();
        match &condition.running {
            Some(running) => running.state(),
            None => DeviceState { is_ready: false, link: Link::Down, reason: condition.reason.clone() },
        }
    }

    /// Connections to the device; `None` if there are none to tell of.
    pub(crate) fn connections(&self) -> Option<Connections> {
        self.condition().running.as_ref().and_then(|running| running.connections())
    }

    /// What was found out of a device of somebody else's; `None` while it is not open.
    pub(crate) fn found(&self) -> Option<Found> {
        self.condition().running.as_ref().and_then(|running| running.found())
    }

    /// What the next attempt opens.
    pub(crate) fn set_plug(&self, plug: Plug) {
        self.condition().plug = plug;
    }

    /// The MTU that the device has or will have, if it was told one.
    pub(crate) fn mtu(&self) -> Option<u16> {
        let condition = self.condition();
        condition.plug.mtu.or(condition.mtu)
    }

    /// Notes what the network of a device without an MTU of its own lets through; answers whether that is news.
    fn note_mtu(&self, mtu: u16) -> bool {
        let mut condition = self.condition();
        condition.plug.mtu.is_none() && condition.mtu.replace(mtu) != Some(mtu)
    }

    /// Gives the device, if it is open, the MTU that was noted. One that could not be set is news again when it is told next.
    fn give_mtu(&self) {
        let mut condition = self.condition();
        if let (Some(running), None, Some(mtu)) = (&condition.running, condition.plug.mtu, condition.mtu) {
            match running.set_mtu(mtu) {
                Ok(true) => tracing::info!(interface = &*self.interface, mtu, "its network lets through no more"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(interface = &*self.interface, mtu, error, "the MTU could not be set");
                    condition.mtu = None;
                }
            }
        }
    }

    /// Whether the last attempt failed because the name belongs to something else.
    pub(crate) fn is_name_taken(&self) -> bool {
        self.condition().is_name_taken
    }

    /// Waits for the end of the first attempt; answers whether it came within `limit`.
    pub(crate) fn wait_attempted(&self, limit: Duration) -> bool {
        let waited = self.attempted.wait_timeout_while(self.condition(), limit, |condition| condition.attempts == 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.attempts > 0
    }

    /// One attempt to open. Answers whether the device now runs or no longer has to.
    fn attempt(&self, opener: &dyn Opener) -> bool {
        let plug = {
            let condition = self.condition();
            if condition.is_stopped || condition.running.is_some() {
                return true;
            }
            Plug { mtu: condition.plug.mtu.or(condition.mtu), ..condition.plug.clone() }
        };
        let result = opener.open(&plug, self.place.clone());
        let mut condition = self.condition();
        condition.attempts += 1;
        let is_done = match result {
            Ok(running) => {
                tracing::info!(interface = &*self.interface, port = self.index.0, "device is open");
                condition.running = Some(running);
                condition.reason.clear();
                condition.is_name_taken = false;
                true
            }
            Err(error) => {
                if condition.reason != error.reason {
                    tracing::warn!(
                        interface = &*self.interface,
                        reason = error.reason,
                        "device is not there; retrying"
                    );
                }
                condition.reason = error.reason;
                condition.is_name_taken = error.is_name_taken;
                false
            }
        };
        self.attempted.notify_all();
        is_done
    }

    /// Looks at what the kernel counts. Not under the lock: the kernel may be busy with the interface.
    fn count(&self) {
        let counting = self.condition().running.as_ref().and_then(|running| running.counting());
        if let Some(counting) = counting {
            counting.look();
        }
    }

    /// Closes the device if it is beyond repair; answers whether it must be opened anew.
    fn close_if_lost(&self) -> bool {
        let lost = {
            let mut condition = self.condition();
            if !condition.running.as_ref().is_some_and(|running| running.is_lost()) {
                return false;
            }
            let lost = condition.running.take();
            condition.reason = lost.as_ref().map(|running| running.state().reason).unwrap_or_default();
            tracing::warn!(interface = &*self.interface, reason = condition.reason, "device is lost; opening it anew");
            lost
        };
        // Outside the lock: closing waits for the workers.
        drop(lost);
        true
    }

    fn stop(&self, is_removal: bool, opener: &dyn Opener) {
        let (running, plug) = {
            let mut condition = self.condition();
            condition.is_stopped = true;
            condition.reason.clear();
            (condition.running.take(), condition.plug.clone())
        };
        match running {
            Some(running) if is_removal => running.remove(),
            Some(running) => drop(running),
            // Not open, but a device of ours may still be there: take hold of it once to remove it.
            None if is_removal => {
                if plug.made.is_some()
                    && let Ok(running) = opener.open(&plug, self.place.clone())
                {
                    running.remove();
                }
                opener.forget(&plug);
            }
            None => {}
        }
    }
}

/// What the supervisor is asked to do.
enum Order {
    Start(Arc<Slot>),
    Stop { slot: Arc<Slot>, is_removal: bool, then: Box<dyn FnOnce() + Send> },
    GiveMtu(Arc<Slot>),
    Mark(Box<dyn FnOnce() + Send>),
    Quit,
}

/// The control side's end of the supervisor thread.
pub(crate) struct Supervisor {
    orders: Sender<Order>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Supervisor {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn spawn(opener: Arc<dyn Opener>) -> std::io::Result<Supervisor> {
        let (orders, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name("devices".into())
            .spawn(move || Shift { opener, inbox, slots: HashMap::new(), due: Vec::new() }.run())?;
        Ok(Supervisor { orders, thread: Mutex::new(Some(thread)) })
    }

    fn send(&self, order: Order) {
        // After `shutdown` nobody listens, and nothing needs to be done any more.
        let _ = self.orders.send(order);
    }

    /// Opens the slot's device, now and again until it is there.
    pub(crate) fn start(&self, slot: Arc<Slot>) {
        self.send(Order::Start(slot));
    }

    /// Tells the slot's device what its network lets through, now if it is open and when it is opened else.
    pub(crate) fn tell_mtu(&self, slot: &Arc<Slot>, mtu: u16) {
        if slot.note_mtu(mtu) {
            self.send(Order::GiveMtu(slot.clone()));
        }
    }

    /// Closes the slot's device, removes it if asked, then calls `then` on the supervisor thread.
    pub(crate) fn stop(&self, slot: Arc<Slot>, is_removal: bool, then: impl FnOnce() + Send + 'static) {
        self.send(Order::Stop { slot, is_removal, then: Box::new(then) });
    }

    /// Calls `then` when all orders given before have been tried once.
    pub(crate) fn when_tried(&self, then: impl FnOnce() + Send + 'static) {
        self.send(Order::Mark(Box::new(then)));
    }

    /// Closes all devices, removes none, and ends the thread.
    pub(crate) fn shutdown(&self) {
        self.send(Order::Quit);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            thread.join().expect("the supervisor does not panic: the process aborts if it does");
        }
    }
}

/// A device that is waiting for its next attempt.
struct Due {
    at: Instant,
    pause: Duration,
    slot: Arc<Slot>,
}

/// The supervisor thread's own state.
struct Shift {
    opener: Arc<dyn Opener>,
    inbox: Receiver<Order>,
    /// Started and not stopped.
    slots: HashMap<InterfaceId, Arc<Slot>>,
    due: Vec<Due>,
}

impl Shift {
    fn run(mut self) {
        let mut next_watch = Instant::now() + WATCH_PAUSE;
        loop {
            let order = if self.slots.is_empty() {
                self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                let wake = self.due.iter().map(|due| due.at).min().unwrap_or(next_watch).min(next_watch);
                self.inbox.recv_timeout(wake.saturating_duration_since(Instant::now()))
            };
            match order {
                Ok(Order::Start(slot)) => {
                    self.slots.insert(slot.interface.clone(), slot.clone());
                    self.try_open(slot, RETRY_MIN);
                }
                Ok(Order::Stop { slot, is_removal, then }) => {
                    slot.stop(is_removal, &*self.opener);
                    self.due.retain(|due| !Arc::ptr_eq(&due.slot, &slot));
                    if self.slots.get(&slot.interface).is_some_and(|known| Arc::ptr_eq(known, &slot)) {
                        self.slots.remove(&slot.interface);
                    }
                    then();
                }
                Ok(Order::GiveMtu(slot)) => slot.give_mtu(),
                Ok(Order::Mark(then)) => then(),
                Ok(Order::Quit) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            for due in self.due.extract_if(.., |due| due.at <= now).collect::<Vec<_>>() {
                self.try_open(due.slot, due.pause);
            }
            if now >= next_watch {
                next_watch = now + WATCH_PAUSE;
                self.slots.values().for_each(|slot| slot.count());
                let lost: Vec<_> = self.slots.values().filter(|slot| slot.close_if_lost()).cloned().collect();
                for slot in lost {
                    self.try_open(slot, RETRY_MIN);
                }
            }
        }
        for slot in self.slots.values() {
            slot.stop(false, &*self.opener);
        }
    }

    fn try_open(&mut self, slot: Arc<Slot>, pause: Duration) {
        if !slot.attempt(&*self.opener) {
            self.due.push(Due { at: Instant::now() + pause, pause: (pause * 2).min(RETRY_MAX), slot });
        }
    }
}

/// The device of a plug as people know it: a path or an interface name.
pub(crate) fn device_name(device: &DeviceSpec) -> &str {
    match device {
        DeviceSpec::VhostUser { path, .. } => path,
        DeviceSpec::Tap { name, .. } | DeviceSpec::Device { name, .. } => name,
        DeviceSpec::Vlan { parent, .. } => parent,
    }
}

/// The interface that a device is, if it is one: its name and namespace.
fn interface(device: &DeviceSpec) -> Option<(&str, Option<&str>)> {
    match device {
        DeviceSpec::VhostUser { .. } | DeviceSpec::Vlan { .. } => None,
        DeviceSpec::Tap { name, netns, .. } | DeviceSpec::Device { name, netns, .. } => Some((name, netns.as_deref())),
    }
}

/// Whether two plugs mean one device.
pub(crate) fn is_same_device(one: &DeviceSpec, other: &DeviceSpec) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other) && do_clash(one, other)
}

/// Whether two plugs would fight over one device, each as a device of its own kind: a TAP that we make is an interface too.
pub(crate) fn do_clash(one: &DeviceSpec, other: &DeviceSpec) -> bool {
    match (one, other) {
        (DeviceSpec::VhostUser { path, .. }, DeviceSpec::VhostUser { path: second, .. }) => path == second,
        (DeviceSpec::Vlan { .. }, DeviceSpec::Vlan { .. }) => one == other,
        _ => interface(one).is_some_and(|one| interface(other) == Some(one)),
    }
}

/// Whether a device that we made as `one` cannot be opened as `other`, which is the same device: a TAP is of one queue or of
/// several for its whole life.
pub(crate) fn must_be_remade(one: &DeviceSpec, other: &DeviceSpec) -> bool {
    match (one, other) {
        (DeviceSpec::Tap { queues, .. }, DeviceSpec::Tap { queues: wanted, .. }) => (*queues > 1) != (*wanted > 1),
        _ => false,
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
