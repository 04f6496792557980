//! What extensions keep for tenants: port profiles, QoS levels, credentials. In memory, and in the store if there is one.
//!
//! A record is JSON under its kind and id. All are read at start, and again when another host has changed something; a write
//! is durable before it is answered, and those who read never wait for it. Writers of a kind take turns; one who meets a
//! change of the same record by another host is refused and may ask again. A tenant has at most [`RECORDS_MAX`] of a kind, and these
//! have at most [`BYTES_MAX`] together, whatever is in them, so that nobody fills memory or store; API servers that write at
//! the same moment may together exceed that by one record each.

use crate::etcd::message::Revision;
use crate::model::Text;
use crate::plugin::StoreFailed;
use crate::plugins::native::Keeper;
use crate::store::StoreError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// Records of one kind that a tenant may have.
pub(super) const RECORDS_MAX: usize = 1024;
/// Bytes of JSON that they may have together: a kilobyte each, or profiles with some ten thousand ports.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// Something a tenant has, with when it was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Record<T> {
    /// The owner.
    pub(super) tenant: Text,
    /// Position in creation order.
    serial: u64,
    /// Bytes that it has in the store.
    #[serde(skip)]
    bytes: usize,
    /// When it was written, of those shared with other hosts.
    #[serde(skip)]
    revision: Revision,
    /// What it is.
    #[serde(flatten)]
    pub(super) it: T,
}

/// The records of one kind, by id.
pub(super) struct Records<T> {
    kind: &'static str,
    keeper: Option<Keeper>,
    all: RwLock<All<T>>,
    turn: Mutex<()>,
    /// Held by the one who reads all again.
    reading: Mutex<()>,
    /// A write to our own store failed: what is in memory may differ from what is there.
    is_stale: AtomicBool,
}

struct All<T> {
    by_id: BTreeMap<Text, Record<T>>,
    /// Whose they are, in creation order: tenant, serial, id.
    by_tenant: BTreeSet<(Text, u64, Text)>,
    /// How much each tenant has that has any.
    held: HashMap<Text, Held>,
    next_serial: u64,
    /// What it is of, of what is shared with other hosts ([`crate::cluster::Cluster::extras_changed`]).
    changed: u64,
}

impl<T> Default for All<T> {
    fn default() -> All<T> {
        All { by_id: BTreeMap::new(), by_tenant: BTreeSet::new(), held: HashMap::new(), next_serial: 0, changed: 0 }
    }
}

/// What a tenant has of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Held {
    records: usize,
    bytes: usize,
}

impl<T> All<T> {
    fn put(&mut self, id: Text, record: Record<T>) {
        self.remove(&id);
        self.next_serial = self.next_serial.max(record.serial.saturating_add(1));
        let held = self.held.entry(record.tenant.clone()).or_default();
        held.records += 1;
        held.bytes += record.bytes;
        self.by_tenant.insert((record.tenant.clone(), record.serial, id.clone()));
        self.by_id.insert(id, record);
    }

    fn remove(&mut self, id: &str) {
        let Some((id, record)) = self.by_id.remove_entry(id) else { return };
        self.by_tenant.remove(&(record.tenant.clone(), record.serial, id));
        let Some(held) = self.held.get_mut(&record.tenant) else { return };
        held.records -= 1;
        held.bytes -= record.bytes;
        if held.records == 0 {
            self.held.remove(&record.tenant);
        }
    }

    /// The tenant's record of this id; nobody else's.
    fn of(&self, tenant: &str, id: &str) -> Option<&Record<T>> {
        self.by_id.get(id).filter(|record| &*record.tenant == tenant)
    }

    fn held(&self, tenant: &str) -> Held {
        self.held.get(tenant).copied().unwrap_or_default()
    }
}

/// Why a record is not written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NotKept {
    /// The tenant has none of this id.
    NotFound,
    /// The tenant would have more than [`RECORDS_MAX`] or [`BYTES_MAX`].
    TooMany,
    /// What the store said.
    StoreFailed(StoreFailed),
}

impl<T: Clone + Serialize + DeserializeOwned> Records<T> {
    /// None, kept in memory only.
    pub(super) fn none(kind: &'static str) -> Records<T> {
        Records {
            kind,
            keeper: None,
            all: RwLock::default(),
            turn: Mutex::default(),
            reading: Mutex::default(),
            is_stale: AtomicBool::new(false),
        }
    }

    /// The records of a kind as they are kept; without a keeper none, and they are in memory only.
    ///
    /// # Errors
    /// What the store said; [`StoreError::BadRecord`] for one that cannot be read.
    pub(super) fn load(kind: &'static str, keeper: Option<&Keeper>) -> Result<Records<T>, StoreError> {
        let records = Records { keeper: keeper.cloned(), ..Records::none(kind) };
        let all = records.read_all()?;
        Ok(Records { all: RwLock::new(all), ..records })
    }

    /// All that is kept.
    fn read_all(&self) -> Result<All<T>, StoreError> {
        let mut all = All::default();
        let mut put = |id: String, value: &[u8], revision: Revision| {
            let record: Record<T> = serde_json::from_slice(value).map_err(|error| StoreError::BadRecord {
                table: self.kind,
                key: id.clone(),
                why: error.to_string(),
            })?;
            all.put(Text::from(id), Record { bytes: value.len(), revision, ..record });
            Ok::<_, StoreError>(())
        };
        match &self.keeper {
            None => {}
            Some(Keeper::Store(store)) => {
                store.extras(self.kind)?.into_iter().try_for_each(|(id, value)| put(id, &value, 0))?;
            }
            Some(Keeper::Cluster(cluster)) => {
                // Before the records are looked at: what changes meanwhile is read once more.
                let changed = cluster.extras_changed(self.kind);
                let mut extras = cluster.extras(self.kind).into_iter();
                extras.try_for_each(|(id, extra)| put(id, &extra.value, extra.revision))?;
                all.changed = changed;
            }
        }
        Ok(all)
    }

    /// A tenant's, in creation order.
    pub(super) fn of(&self, tenant: &str) -> Vec<(Text, T)> {
        let all = self.all();
        let first = (Text::from(tenant), 0, Text::from(""));
        let own = all.by_tenant.range(first..).take_while(|(of, ..)| &**of == tenant);
        own.filter_map(|(_, _, id)| Some((id.clone(), all.by_id.get(id)?.it.clone()))).collect()
    }

    /// The tenant's record of this id; nobody else's.
    pub(super) fn get(&self, tenant: &str, id: &str) -> Option<T> {
        self.all().of(tenant, id).map(|record| record.it.clone())
    }

    /// Any one record, whoever's it is.
    pub(super) fn any(&self) -> Option<(Text, T)> {
        self.all().by_id.iter().next().map(|(id, record)| (id.clone(), record.it.clone()))
    }

    /// Keeps something new and returns its id. `make` is given the id.
    pub(super) fn create(&self, tenant: &str, make: impl FnOnce(&str) -> T) -> Result<Text, NotKept> {
        let _turn = self.turn();
        let (held, serial) = {
            let all = self.all();
            (all.held(tenant), all.next_serial)
        };
        if held.records >= RECORDS_MAX {
            return Err(NotKept::TooMany);
        }
        let id = Text::from(uuid::Uuid::new_v4().as_hyphenated().to_string());
        let record = Record { tenant: tenant.into(), serial, bytes: 0, revision: 0, it: make(&id) };
        self.put(id.clone(), record)?;
        Ok(id)
    }

    /// Changes the tenant's record of this id and returns it as it is now.
    pub(super) fn update(&self, tenant: &str, id: &str, change: impl FnOnce(&mut T)) -> Result<T, NotKept> {
        let _turn = self.turn();
        let mut record = self.all().of(tenant, id).cloned().ok_or(NotKept::NotFound)?;
        change(&mut record.it);
        let it = record.it.clone();
        self.put(id.into(), record)?;
        Ok(it)
    }

    /// Removes the tenant's record of this id.
    pub(super) fn remove(&self, tenant: &str, id: &str) -> Result<(), NotKept> {
        let _turn = self.turn();
        let revision = self.all().of(tenant, id).map(|record| record.revision).ok_or(NotKept::NotFound)?;
        match &self.keeper {
            None => {}
            Some(Keeper::Store(store)) => drop(store.remove_extra(self.kind, id).map_err(|error| self.unsure(&error))?),
            // The next who reads finds it so.
            Some(Keeper::Cluster(cluster)) => {
                return cluster.put_extra(self.kind, id, None, revision).map_err(|error| failed(&error));
            }
        }
        self.all.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(())
    }

    /// Writes a record in the place of what has its id. The caller has the turn.
    fn put(&self, id: Text, mut record: Record<T>) -> Result<(), NotKept> {
        let value = serde_json::to_vec(&record).expect("records have only text keys");
        record.bytes = value.len();
        let (old, held) = {
            let all = self.all();
            (all.by_id.get(&id).map_or(0, |old| old.bytes), all.held(&record.tenant).bytes)
        };
        // What takes less than before is never refused.
        if record.bytes > old && held - old + record.bytes > BYTES_MAX {
            return Err(NotKept::TooMany);
        }
        match &self.keeper {
            None => {}
            Some(Keeper::Store(store)) => {
                store.put_extra(self.kind, &id, &value).map_err(|error| self.unsure(&error))?;
            }
            // The next who reads finds it so.
            Some(Keeper::Cluster(cluster)) => {
                let kept = cluster.put_extra(self.kind, &id, Some(&value), record.revision);
                return kept.map_err(|error| failed(&error));
            }
        }
        self.all.write().unwrap_or_else(PoisonError::into_inner).put(id, record);
        Ok(())
    }

    /// A write to our own store failed, and may be there all the same: who comes next reads.
    fn unsure(&self, error: &StoreError) -> NotKept {
        self.is_stale.store(true, Ordering::Release);
        failed(error)
    }

    /// All there are; read again if another host has changed something, or nobody knows whether a write of ours is there.
    fn all(&self) -> RwLockReadGuard<'_, All<T>> {
        if let Some(all) = self.newest() {
            return all;
        }
        // One reads them; who came meanwhile finds them read.
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(all) = self.newest() {
            return all;
        }
        // Held while they are read: a writer whose record is in the store waits with putting it here, so that what is read before
        // that is never put over it.
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let was_stale = self.is_stale.swap(false, Ordering::Acquire);
        match self.read_all() {
            Ok(now) => *all = now,
            Err(error) => {
                tracing::error!(%error, "what extensions keep cannot be read again");
                self.is_stale.fetch_or(was_stale, Ordering::Release);
            }
        }
        drop(all);
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// All there are, unless another host has changed something.
    fn newest(&self) -> Option<RwLockReadGuard<'_, All<T>>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let is_newest = match &self.keeper {
            Some(Keeper::Cluster(cluster)) => all.changed == cluster.extras_changed(self.kind),
            _ => !self.is_stale.load(Ordering::Acquire),
        };
        is_newest.then_some(all)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(error: &StoreError) -> NotKept {
    tracing::warn!(%error, "a write of an extension was not confirmed");
    NotKept::StoreFailed(StoreFailed { why: error.in_public().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
    struct Named {
        name: String,
    }

    fn named(name: &str) -> Named {
        Named { name: name.to_owned() }
    }

    fn names(records: &Records<Named>, tenant: &str) -> Vec<String> {
        records.of(tenant).into_iter().map(|(_, it)| it.name).collect()
    }

    #[test]
    fn a_tenant_has_its_own_records_in_the_order_in_which_they_were_made() {
        let records: Records<Named> = Records::load("names", None).unwrap();
        for name in ["c", "a", "b"] {
            records.create("red", |_| named(name)).unwrap();
        }
        let id = records.create("blue", |_| named("x")).unwrap();
        assert_eq!(
            (names(&records, "red"), names(&records, "blue")),
            (vec!["c".into(), "a".into(), "b".into()], vec!["x".into()])
        );
        assert_eq!(records.get("red", &id), None);
        assert_eq!(records.update("red", &id, |it| it.name.push('y')), Err(NotKept::NotFound));
        assert_eq!(records.remove("red", &id), Err(NotKept::NotFound));
        assert_eq!(records.update("blue", &id, |it| it.name.push('y')), Ok(named("xy")));
        assert_eq!(records.remove("blue", &id), Ok(()));
        assert_eq!(records.get("blue", &id), None);
    }

    #[test]
    fn after_a_write_of_which_nobody_knows_whether_it_is_there_the_store_is_asked() {
        let directory = std::env::temp_dir().join(format!("qvs-records-{}", uuid::Uuid::new_v4()));
        let store = std::sync::Arc::new(crate::store::Store::open(&directory.join("state.redb")).unwrap());
        let records: Records<Named> = Records::load("names", Some(&Keeper::Store(store.clone()))).unwrap();
        let id = records.create("red", |_| named("a")).unwrap();
        let written = store.extras("names").unwrap()[&*id].clone();
        store
            .put_extra("names", "another", &String::from_utf8(written).unwrap().replace("\"a\"", "\"b\"").into_bytes())
            .unwrap();
        assert_eq!(names(&records, "red"), ["a"]);
        let told = records.unsure(&StoreError::Outrun);
        assert!(matches!(told, NotKept::StoreFailed(_)), "{told:?}");
        let mut found = names(&records, "red");
        found.sort();
        assert_eq!(found, ["a", "b"]);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_tenant_with_too_many_records_gets_no_more_and_others_do() {
        let records: Records<Named> = Records::load("numbers", None).unwrap();
        (0..RECORDS_MAX).for_each(|at| drop(records.create("red", |_| named(&at.to_string())).unwrap()));
        assert_eq!(records.create("red", |_| named("0")), Err(NotKept::TooMany));
        records.create("blue", |_| named("0")).unwrap();
    }

    #[test]
    fn a_tenant_s_records_have_a_bound_of_bytes_and_what_makes_them_smaller_is_never_refused() {
        let records: Records<Named> = Records::load("names", None).unwrap();
        let long = "x".repeat(BYTES_MAX / 4);
        let ids: Vec<_> = (0..3).map(|_| records.create("red", |_| named(&long)).unwrap()).collect();
        assert_eq!(records.create("red", |_| named(&long)), Err(NotKept::TooMany));
        let grown = |it: &mut Named| it.name.push_str(&long);
        assert_eq!(records.update("red", &ids[0], grown), Err(NotKept::TooMany));
        assert_eq!(records.get("red", &ids[0]).unwrap().name.len(), long.len());
        records.create("blue", |_| named(&long)).unwrap();
        records.update("red", &ids[0], |it| it.name.truncate(10)).unwrap();
        records.create("red", |_| named(&long)).unwrap();
        records.remove("red", &ids[1]).unwrap();
        records.create("red", |_| named(&long)).unwrap();
        ids.iter().for_each(|id| drop(records.remove("red", id)));
        assert_eq!(records.all().held("red").records, 2);
    }
}
