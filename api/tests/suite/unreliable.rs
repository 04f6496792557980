//! A device that fails in every way there is: before a step, after it, in the middle of it; that is slow, refuses, forgets
//! everything, and comes back with things nobody asked for.

use api::model::{AdminState, NetworkId, PortId};
use api::plugin::conformance::{Carried, CarriedPort};
use api::plugins::remote::{Contents, Device, DeviceError, DeviceNetwork, DevicePort, FoundPort, Pace, Step, Taken};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Pauses for tests: all short, and the audit too, so that nobody waits for it.
pub(crate) const PACE: Pace = Pace {
    retry_min: Duration::from_millis(1),
    retry_max: Duration::from_millis(4),
    poll: Duration::from_millis(1),
    audit: Duration::from_millis(10),
};

/// What the next calls come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Mood {
    #[default]
    Fine,
    /// Nothing is done, and no answer comes.
    Away,
    /// The step is done, and no answer comes.
    Mute,
    /// A part of the step is done, and no answer comes.
    Half,
    /// Steps are taken, and done two readings later.
    Slow,
    Refusing,
}

#[derive(Default, Debug)]
struct Inner {
    contents: Contents,
    mood: Mood,
    /// Calls until the mood is fine again.
    calls_left: u64,
    /// Steps taken and not done, with the readings until they are.
    at_it: Vec<(u32, Step)>,
}

/// The device.
#[derive(Default, Debug)]
pub(crate) struct Unreliable(Mutex<Inner>);

/// What a plugin owns of it.
pub(crate) struct Handle(pub(crate) Arc<Unreliable>);

impl Unreliable {
    /// All is well from now on, though things may be lost.
    pub(crate) fn recover(&self) {
        let mut inner = self.0.lock().unwrap();
        inner.mood = Mood::Fine;
        inner.calls_left = 0;
    }

    pub(crate) fn disturb(&self, dice: u64) {
        let mut inner = self.0.lock().unwrap();
        inner.calls_left = 1 + (dice >> 8) % 12;
        inner.mood = match dice % 8 {
            0 => Mood::Away,
            1 => Mood::Mute,
            2 => Mood::Half,
            3 | 4 => Mood::Slow,
            5 => Mood::Refusing,
            6 => {
                inner.contents = Contents::default();
                inner.at_it.clear();
                Mood::Fine
            }
            _ => {
                inner.take_foreign_things();
                Mood::Away
            }
        };
    }

    pub(crate) fn carried(&self) -> Carried {
        let inner = self.0.lock().unwrap();
        let port = |(id, found): (&PortId, &FoundPort)| {
            let DevicePort { network, state, attachment, .. } = found.port.clone();
            (id.clone(), CarriedPort { network, state, attachment })
        };
        Carried {
            networks: inner.contents.networks.keys().cloned().collect(),
            ports: inner.contents.ports.iter().map(port).collect(),
        }
    }
}

impl Inner {
    fn mood(&mut self) -> Mood {
        if self.calls_left == 0 {
            return Mood::Fine;
        }
        self.calls_left -= 1;
        self.mood
    }

    /// Somebody else was here: a network and a port nobody knows, and one of ours that is not as it was.
    fn take_foreign_things(&mut self) {
        let network: NetworkId = "foreign".into();
        let foreign = DeviceNetwork { tenant: "green".into(), name: None };
        self.contents.networks.insert(network.clone(), foreign);
        let attachment = Some("vif0".into());
        let port = DevicePort { network, state: AdminState::Active, attachment, pairs: [].into() };
        self.contents.ports.insert("foreign".into(), FoundPort { port: port.clone(), is_up: true });
        if let Some(ours) = self.contents.ports.values_mut().next() {
            *ours = FoundPort { port, is_up: true };
        }
        if let Some(ours) = self.contents.networks.values_mut().next() {
            ours.name = Some("renamed".into());
        }
    }

    fn bring_about(&mut self, step: &Step, is_whole: bool) {
        match step.clone() {
            Step::PutNetwork(id, network) => {
                let name = network.name.filter(|_| is_whole);
                self.contents.networks.insert(id, DeviceNetwork { name, ..network });
            }
            Step::PutPort(id, port) => {
                let attachment = port.attachment.filter(|_| is_whole);
                let port = DevicePort { attachment, ..port };
                let is_up = port.is_active();
                self.contents.ports.insert(id, FoundPort { port, is_up });
            }
            Step::RemovePort(id) => {
                self.contents.ports.remove(&id);
            }
            Step::RemoveNetwork(id) => {
                self.contents.networks.remove(&id);
            }
        }
    }
}

impl Device for Handle {
    fn contents(&self) -> Result<Contents, DeviceError> {
        let mut inner = self.0.0.lock().unwrap();
        if matches!(inner.mood(), Mood::Away | Mood::Mute) {
            return Err(DeviceError::Unavailable { why: "away".into() });
        }
        let contents = inner.contents.clone();
        for (readings_left, step) in std::mem::take(&mut inner.at_it) {
            match readings_left {
                0 => inner.bring_about(&step, true),
                left => inner.at_it.push((left - 1, step)),
            }
        }
        Ok(contents)
    }

    fn apply(&self, step: &Step) -> Result<Taken, DeviceError> {
        let mut inner = self.0.0.lock().unwrap();
        // What is asked last is what counts.
        inner.at_it.retain(|(_, waiting)| !is_of_one_thing(waiting, step));
        let unavailable = || Err(DeviceError::Unavailable { why: "no answer".into() });
        match inner.mood() {
            Mood::Fine => {
                inner.bring_about(step, true);
                Ok(Taken::Done)
            }
            Mood::Away => unavailable(),
            Mood::Mute => {
                inner.bring_about(step, true);
                unavailable()
            }
            Mood::Half => {
                inner.bring_about(step, false);
                unavailable()
            }
            Mood::Slow => {
                inner.at_it.push((1, step.clone()));
                Ok(Taken::Started)
            }
            Mood::Refusing => Err(DeviceError::Refused { why: "not today".into() }),
        }
    }
}

fn is_of_one_thing(one: &Step, other: &Step) -> bool {
    fn thing(step: &Step) -> (bool, &str) {
        match step {
            Step::PutNetwork(id, _) | Step::RemoveNetwork(id) => (true, id),
            Step::PutPort(id, _) | Step::RemovePort(id) => (false, id),
        }
    }
    thing(one) == thing(other)
}
