//! All that hosts share, as of one revision: how it is put together from what stands at each key, and taken apart again.
//!
//! The same keys and values come from etcd and from a host's own copy ([`super::copy`]), so there is one way to read them. What
//! cannot be read of tenants' records spoils the whole; what a host says of itself and cannot be read is left out.

use super::directory::Directory;
use super::follow::tell_directory;
use super::freed::{Mark, Marks};
use super::key::{Key, Keys};
use super::tenants::{Extra, Extras, Head, check_head};
use crate::etcd::message::{Blob, Revision};
use crate::etcd::watch::Event;
use crate::model::{LogicalPort, Model, Network};
use crate::network_type::Segment;
use crate::store::{StoreError, records};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was read at once.
pub(crate) struct Everything {
    pub(crate) model: Arc<Model>,
    pub(crate) extras: Extras,
    pub(crate) directory: Directory,
    pub(crate) freed: Marks,
    /// The write that the model is of.
    pub(crate) head: Head,
    /// What was written last of what there is.
    pub(crate) last: Option<Event>,
    /// All that happened up to it is told.
    pub(crate) revision: Revision,
}

/// What was read so far, key by key.
pub(super) struct Gathering<'a> {
    keys: &'a Keys,
    networks: Vec<Network>,
    ports: Vec<LogicalPort>,
    extras: BTreeMap<(String, String), Extra>,
    directory: Directory,
    freed: Marks,
    head: Head,
    last: Option<Event>,
    bad: Option<StoreError>,
}

impl Gathering<'_> {
    pub(super) fn of(keys: &Keys) -> Gathering<'_> {
        Gathering {
            keys,
            networks: Vec::new(),
            ports: Vec::new(),
            extras: BTreeMap::new(),
            directory: Directory::default(),
            freed: Marks::default(),
            head: Head::default(),
            last: None,
            bad: None,
        }
    }

    /// Takes what stands at a key since `revision`.
    pub(super) fn take(&mut self, key: &Blob, value: &[u8], revision: Revision) {
        // Of one write the last key, which is `writer` where there is one, and so like no other's.
        if self.last.as_ref().is_none_or(|last| last.revision <= revision) {
            self.last = Some(Event { key: key.clone(), value: Some(value.to_vec()), revision });
        }
        let read = match self.keys.read(key) {
            Some(Key::Head) => {
                self.head = Head { revision, value: value.to_vec() };
                check_head(value)
            }
            Some(Key::Network(id)) => records::network(id, value).map(|network| self.networks.push(network)),
            Some(Key::Port(id)) => records::port(id, value).map(|port| self.ports.push(port)),
            Some(Key::Extra(kind, id)) => {
                let extra = Extra { value: value.to_vec(), revision };
                self.extras.insert((kind.to_owned(), id.to_owned()), extra);
                Ok(())
            }
            Some(Key::Freed(text)) => {
                self.freed.extend(Segment::from_name(text).map(|segment| (segment, Mark::read(value, revision))));
                Ok(())
            }
            Some(key) => {
                tell_directory(&mut self.directory, key, Some(value), revision, &mut Vec::new());
                Ok(())
            }
            None => Ok(()),
        };
        self.bad = self.bad.take().or(read.err());
    }

    /// All of it, as of `revision`.
    ///
    /// # Errors
    /// [`StoreError`]: a record cannot be read, or they contradict each other.
    pub(super) fn finish(self, revision: Revision) -> Result<Everything, StoreError> {
        let Gathering { networks, ports, extras, mut directory, freed, head, last, bad, .. } = self;
        if let Some(error) = bad {
            return Err(error);
        }
        let model = Arc::new(Model::from_records(networks, ports)?);
        directory.told_up_to(revision);
        Ok(Everything { model, extras: Extras::new(extras, revision), directory, freed, head, last, revision })
    }
}

impl Everything {
    /// Hands out what stands at each key, networks before ports. Tenants' networks and ports are told to be of the revision of
    /// the head: which write each was of is not kept, and nobody asks.
    pub(super) fn each<E>(
        &self,
        keys: &Keys,
        mut each: impl FnMut(Blob, &[u8], Revision) -> Result<(), E>,
    ) -> Result<(), E> {
        fn text(record: &impl serde::Serialize) -> Vec<u8> {
            serde_json::to_vec(record).expect("records have only text keys")
        }
        let head = self.head.revision;
        if head > 0 {
            each(keys.of(Key::Head), &self.head.value, head)?;
        }
        for network in self.model.networks.values() {
            each(keys.of(Key::Network(&network.id)), &records::of_network(network), head)?;
        }
        for port in self.model.ports.values() {
            each(keys.of(Key::Port(&port.id)), &records::of_port(port), head)?;
        }
        for ((kind, id), extra) in self.extras.iter() {
            each(keys.of(Key::Extra(kind, id)), &extra.value, extra.revision)?;
        }
        for (host, node, revision) in self.directory.nodes_since() {
            each(keys.of(Key::Node(host)), &text(node), revision)?;
        }
        for (interface, plug) in self.directory.plugs() {
            each(keys.of(Key::Plug(interface)), &text(&plug.record), plug.revision)?;
        }
        Ok(())
    }
}
