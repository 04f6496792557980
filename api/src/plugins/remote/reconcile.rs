//! Makes a device what tenants want, again and again.
//!
//! The state is what is *wanted*, as committed, and the set of things in doubt, *dirty*. A round of the thread reads the
//! device if there is a reason to (the start, no answer to a step, a while gone by, somebody's hint), marks what differs
//! as dirty, and then does a step for each dirty thing. A thing is clean when the device said that its step is done and
//! nobody wants something else since. So a step that failed half way, a device that forgot or came back with foreign
//! things, and a restart of this program are one case: read, compare, repair.
//!
//! What makes it hard is that tenants write and read meanwhile. The state is under a lock that nobody holds during a
//! call to the device or a comparison: that looks at a copy of what is wanted, which costs nothing. Memory: an id for each
//! thing that is dirty or up, and one [`Contents`] while it is compared.

use super::device::{Contents, Device, DeviceNetwork, DevicePort, Step, Taken};
use super::{DeviceError, Keeps};
use crate::model::{Change, LogicalPort, Model, Network, NetworkId, OpStatus, PortId};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Readings of the contents after which something that the device started and does not show is done again.
const STARTED_READINGS_MAX: u32 = 10;

/// How long the thread waits, and for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// After the first call without an answer; doubled each time up to `retry_max`.
    pub retry_min: Duration,
    /// The longest pause before the device is tried again.
    pub retry_max: Duration,
    /// Between readings while the device is at something.
    pub poll: Duration,
    /// Between readings while all is in order.
    pub audit: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(30),
            poll: Duration::from_millis(500),
            audit: Duration::from_secs(60),
        }
    }
}

/// A network or a port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Key {
    Network(NetworkId),
    Port(PortId),
}

/// The order of steps within a round: nothing is on a network that is not there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    RemovePorts,
    PutNetworks,
    PutPorts,
    RemoveNetworks,
}

#[derive(Default)]
struct State {
    wanted: Model,
    /// What the device may not have as it is wanted.
    dirty: BTreeSet<Key>,
    /// What the device is at, with the readings since that did not show it.
    started: BTreeMap<Key, u32>,
    /// What the device refused when it was asked last.
    refused: BTreeSet<Key>,
    /// The ports that the device says are up.
    up: HashSet<PortId>,
    /// The last call to the device was answered.
    is_reachable: bool,
}

/// What the thread is told, and what it tells those who wait for it.
#[derive(Default)]
struct Signal {
    is_work: bool,
    is_reading_asked: bool,
    is_stopping: bool,
    /// A round is under way.
    is_busy: bool,
    /// Rounds that ended, by which waiting threads know that it is worth another look.
    round_count: u64,
}

struct Shared {
    device: Box<dyn Device>,
    pace: Pace,
    state: RwLock<State>,
    signal: Mutex<Signal>,
    signalled: Condvar,
}

/// The thread and what it shares.
pub(super) struct Reconciler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Reconciler {
    /// Starts to make `device` what `model` says.
    pub(super) fn start(device: Box<dyn Device>, pace: Pace, model: &Model) -> io::Result<Reconciler> {
        let mut state = State::default();
        state.want_all(model);
        let signal = Signal { is_work: true, ..Signal::default() };
        let shared = Arc::new(Shared {
            device,
            pace,
            state: RwLock::new(state),
            signal: Mutex::new(signal),
            signalled: Condvar::new(),
        });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("reconcile".into()).spawn(move || of_thread.run())?;
        Ok(Reconciler { shared, thread: Some(thread) })
    }

    /// These changes are durable.
    pub(super) fn want(&self, changes: &[Change]) {
        {
            let mut state = self.shared.write();
            changes.iter().for_each(|change| state.want(change));
        }
        self.shared.tell(|signal| signal.is_work = true);
    }

    /// This is durable, whatever was wanted before.
    pub(super) fn want_all(&self, model: &Model) {
        self.shared.write().want_all(model);
        self.shared.tell(|signal| signal.is_work = true);
    }

    /// There is a reason to read the device's contents.
    pub(super) fn read_again(&self) {
        self.shared.tell(|signal| (signal.is_work, signal.is_reading_asked) = (true, true));
    }

    /// Waits until nothing is in doubt.
    pub(super) fn wait_until_settled(&self, time_max: Duration) -> bool {
        let begin = Instant::now();
        let mut signal = self.shared.signal();
        loop {
            if !signal.is_work && !signal.is_busy && self.shared.read().is_settled() {
                return true;
            }
            let Some(left) = time_max.checked_sub(begin.elapsed()) else { return false };
            let seen = signal.round_count;
            let waited = self.shared.signalled.wait_timeout_while(signal, left, |signal| signal.round_count == seen);
            signal = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn port_status(&self, id: &PortId) -> OpStatus {
        let state = self.shared.read();
        let is_active = || state.wanted.ports.get(id).is_some_and(|port| wanted_port(port).is_active());
        let is_up = || state.up.contains(id) && is_active();
        state.status(&Key::Port(id.clone()), is_up)
    }

    pub(super) fn network_status(&self, id: &NetworkId) -> OpStatus {
        self.shared.read().status(&Key::Network(id.clone()), || true)
    }
}

impl Drop for Reconciler {
    fn drop(&mut self) {
        self.shared.tell(|signal| signal.is_stopping = true);
        if let Some(thread) = self.thread.take() {
            // The plugin goes away, however the thread ended.
            let _ = thread.join();
        }
    }
}

impl State {
    fn want(&mut self, change: &Change) {
        self.wanted.apply(change);
        self.doubt(match change {
            Change::PutNetwork(Network { id, .. }) | Change::RemoveNetwork(id) => Key::Network(id.clone()),
            Change::PutPort(LogicalPort { id, .. }) | Change::RemovePort(id) => Key::Port(id.clone()),
        });
    }

    fn want_all(&mut self, model: &Model) {
        let before = std::mem::replace(&mut self.wanted, model.clone());
        let networks = before.networks.keys().chain(model.networks.keys());
        let networks = networks.filter(|&id| before.networks.get(id) != model.networks.get(id));
        let mut keys: BTreeSet<Key> = networks.cloned().map(Key::Network).collect();
        let ports = before.ports.keys().chain(model.ports.keys());
        let ports = ports.filter(|&id| before.ports.get(id) != model.ports.get(id));
        keys.extend(ports.cloned().map(Key::Port));
        keys.into_iter().for_each(|key| self.doubt(key));
    }

    /// Somebody wants something new of this thing.
    fn doubt(&mut self, key: Key) {
        self.started.remove(&key);
        self.refused.remove(&key);
        self.dirty.insert(key);
    }

    fn is_settled(&self) -> bool {
        self.is_reachable && self.dirty.is_empty() && self.started.is_empty()
    }

    fn status(&self, key: &Key, is_up: impl FnOnce() -> bool) -> OpStatus {
        if self.refused.contains(key) {
            OpStatus::Down
        } else if self.dirty.contains(key) || self.started.contains_key(key) {
            OpStatus::Provisioning
        } else if !self.is_reachable {
            OpStatus::Unknown
        } else if is_up() {
            OpStatus::Up
        } else {
            OpStatus::Down
        }
    }

    fn phase(&self, key: &Key) -> Phase {
        match key {
            Key::Network(id) if self.wanted.networks.get(id).is_some() => Phase::PutNetworks,
            Key::Network(_) => Phase::RemoveNetworks,
            Key::Port(id) if self.wanted.ports.get(id).is_some() => Phase::PutPorts,
            Key::Port(_) => Phase::RemovePorts,
        }
    }

    fn step(&self, key: &Key) -> Step {
        match key {
            Key::Network(id) => match self.wanted.networks.get(id) {
                Some(network) => Step::PutNetwork(id.clone(), wanted_network(network)),
                None => Step::RemoveNetwork(id.clone()),
            },
            Key::Port(id) => match self.wanted.ports.get(id) {
                Some(port) => Step::PutPort(id.clone(), wanted_port(port)),
                None => Step::RemovePort(id.clone()),
            },
        }
    }

    /// Takes in what a reading found and in what it `differs`, as far as it still does.
    fn take_in(&mut self, found: &Contents, differs: Vec<Key>, keeps: Keeps) {
        self.is_reachable = true;
        self.up = found.ports.iter().filter(|(_, port)| port.is_up).map(|(id, _)| id.clone()).collect();
        let in_doubt: Vec<Key> = self.dirty.iter().chain(self.started.keys()).chain(&self.refused).cloned().collect();
        for key in in_doubt {
            if !keeps.tells(&key) {
                // It cannot be seen; if it was refused, it is tried again.
                self.dirty.insert(key);
            } else if agrees(&self.wanted, &key, found, keeps) {
                self.dirty.remove(&key);
                self.started.remove(&key);
                self.refused.remove(&key);
            }
        }
        for key in differs {
            match self.started.get_mut(&key) {
                Some(readings) if *readings < STARTED_READINGS_MAX => *readings += 1,
                _ => {
                    self.started.remove(&key);
                    self.dirty.insert(key);
                }
            }
        }
    }
}

impl Keeps {
    fn tells(self, key: &Key) -> bool {
        self.networks || matches!(key, Key::Port(_))
    }
}

/// What a round that went well left.
enum Left {
    /// Nothing.
    Nothing,
    /// The device is at something.
    Started,
    /// Somebody wrote meanwhile.
    Dirty,
}

impl Shared {
    fn run(&self) {
        let mut failure_count = 0;
        let mut reading_at = Instant::now();
        while let Some(is_reading_due) = self.begin(reading_at) {
            // A driver that panicked gave no answer, and is asked again; in a program that aborts by a panic, as qvs does, it ends that.
            let round = catch_unwind(AssertUnwindSafe(|| self.round(is_reading_due)));
            let outcome = round.unwrap_or_else(|_| Err(self.lost(DeviceError::Unavailable { why: "panic".into() })));
            let now = Instant::now();
            match outcome {
                Err(_) => {
                    let pause = self.pace.retry_min.saturating_mul(1 << failure_count.min(16));
                    reading_at = now + pause.min(self.pace.retry_max);
                    failure_count += 1;
                }
                Ok(ref left) => {
                    failure_count = 0;
                    if is_reading_due {
                        reading_at = now + self.pace.audit;
                    }
                    if matches!(left, Left::Started) {
                        reading_at = reading_at.min(now + self.pace.poll);
                    }
                }
            }
            self.rest(&outcome, reading_at.saturating_duration_since(now));
        }
    }

    /// Begins a round; whether the device is to be read. `None`: the plugin is gone.
    fn begin(&self, reading_at: Instant) -> Option<bool> {
        let mut signal = self.signal();
        if signal.is_stopping {
            return None;
        }
        (signal.is_work, signal.is_busy) = (false, true);
        Some(std::mem::take(&mut signal.is_reading_asked) || Instant::now() >= reading_at)
    }

    /// Ends a round, and waits until there is reason for another.
    fn rest(&self, outcome: &Result<Left, DeviceError>, pause: Duration) {
        let mut signal = self.signal();
        signal.round_count += 1;
        signal.is_busy = false;
        self.signalled.notify_all();
        if matches!(outcome, Ok(Left::Dirty)) {
            return;
        }
        // A device that did not answer gets its pause, whatever tenants write meanwhile.
        let is_failed = outcome.is_err();
        let goes_on =
            |signal: &mut Signal| !signal.is_stopping && !signal.is_reading_asked && (is_failed || !signal.is_work);
        drop(self.signalled.wait_timeout_while(signal, pause, goes_on));
    }

    /// Reads the device if that is due, then does what is dirty.
    fn round(&self, is_reading_due: bool) -> Result<Left, DeviceError> {
        if is_reading_due {
            let found = self.device.contents().map_err(|error| self.lost(error))?;
            let keeps = self.device.keeps();
            let differs = self.compare(&found, keeps);
            let mut state = self.write();
            if !state.is_reachable {
                tracing::info!(differences = differs.len(), "the device answers");
            } else if !differs.is_empty() {
                tracing::info!(differences = differs.len(), "the device differs from what is wanted");
            }
            state.take_in(&found, differs, keeps);
        }
        for (phase, key) in self.plan() {
            if self.signal().is_stopping {
                break;
            }
            let step = {
                let state = self.read();
                // What somebody wants otherwise by now has its turn in the next round, in the order of then.
                if state.phase(&key) != phase || !state.dirty.contains(&key) {
                    continue;
                }
                state.step(&key)
            };
            self.ended(&key, &step, self.device.apply(&step))?;
        }
        let state = self.read();
        Ok(match (state.dirty.is_empty(), state.started.is_empty()) {
            (false, _) => Left::Dirty,
            (true, false) => Left::Started,
            (true, true) => Left::Nothing,
        })
    }

    /// Everything in which the device differs from what is wanted.
    fn compare(&self, found: &Contents, keeps: Keeps) -> Vec<Key> {
        let wanted = self.read().wanted.clone();
        let networks = wanted.networks.keys();
        let foreign = found.networks.keys().filter(|&id| wanted.networks.get(id).is_none());
        let networks = networks.chain(foreign).cloned().map(Key::Network).filter(|key| keeps.tells(key));
        let foreign = found.ports.keys().filter(|&id| wanted.ports.get(id).is_none());
        let ports = wanted.ports.keys().chain(foreign).cloned().map(Key::Port);
        networks.chain(ports).filter(|key| !agrees(&wanted, key, found, keeps)).collect()
    }

    /// What is dirty, in the order in which it is to be done.
    fn plan(&self) -> Vec<(Phase, Key)> {
        let state = self.read();
        let mut plan: Vec<(Phase, Key)> = state.dirty.iter().map(|key| (state.phase(key), key.clone())).collect();
        plan.sort_unstable();
        plan
    }

    /// Takes in what became of a step.
    fn ended(&self, key: &Key, step: &Step, outcome: Result<Taken, DeviceError>) -> Result<(), DeviceError> {
        let mut state = self.write();
        let is_wanted = state.step(key) == *step;
        match outcome {
            Err(error @ DeviceError::Unavailable { .. }) => {
                drop(state);
                return Err(self.lost(error));
            }
            // Somebody wants something else of it by now: it stays dirty.
            _ if !is_wanted => {}
            Err(DeviceError::Refused { why }) => {
                state.dirty.remove(key);
                if state.refused.insert(key.clone()) {
                    tracing::warn!(?key, %why, "the device refuses something; it is tried again later");
                }
            }
            Ok(taken) => {
                state.dirty.remove(key);
                state.refused.remove(key);
                if taken == Taken::Started && self.device.keeps().tells(key) {
                    state.started.insert(key.clone(), 0);
                }
                match step {
                    Step::PutPort(id, port) if taken == Taken::Done && port.is_active() => {
                        state.up.insert(id.clone());
                    }
                    Step::PutPort(id, _) | Step::RemovePort(id) => {
                        state.up.remove(id);
                    }
                    Step::PutNetwork(..) | Step::RemoveNetwork(_) => {}
                }
            }
        }
        Ok(())
    }

    /// The device did not answer.
    fn lost(&self, error: DeviceError) -> DeviceError {
        let was_reachable = std::mem::take(&mut self.write().is_reachable);
        if was_reachable {
            tracing::warn!(%error, "the device is lost; it is tried again until it is back");
        } else {
            tracing::debug!(%error, "the device is still lost");
        }
        error
    }

    fn tell(&self, say: impl FnOnce(&mut Signal)) {
        say(&mut self.signal());
        self.signalled.notify_all();
    }

    // A thread that panicked with one of these locks leaves sets whose members are looked at one by one.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self) -> MutexGuard<'_, Signal> {
        self.signal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the device has this thing as it is wanted.
fn agrees(wanted: &Model, key: &Key, found: &Contents, keeps: Keeps) -> bool {
    match key {
        Key::Network(id) => match (wanted.networks.get(id).map(wanted_network), found.networks.get(id)) {
            (Some(wanted), Some(found)) => {
                (!keeps.tenants || wanted.tenant == found.tenant) && (!keeps.names || wanted.name == found.name)
            }
            (wanted, found) => wanted.is_none() && found.is_none(),
        },
        Key::Port(id) => match (wanted.ports.get(id).map(wanted_port), found.ports.get(id)) {
            (Some(wanted), Some(found)) => {
                let pairs = if keeps.pairs { &found.port.pairs } else { &wanted.pairs }.clone();
                wanted == DevicePort { pairs, ..found.port.clone() }
            }
            (wanted, found) => wanted.is_none() && found.is_none(),
        },
    }
}

fn wanted_network(network: &Network) -> DeviceNetwork {
    DeviceNetwork { tenant: network.tenant.clone(), name: network.name.clone() }
}

fn wanted_port(port: &LogicalPort) -> DevicePort {
    DevicePort {
        network: port.network.clone(),
        state: port.state,
        attachment: port.attachment.clone(),
        pairs: port.pairs.clone(),
    }
}
