//! What extensions keep for tenants: port profiles, QoS levels, credentials. In memory, and in the store if there is one.
//!
//! A record is JSON under its kind and id. All are read once at start; a write is durable before it is answered, and those
//! who read never wait for it. Writers of all kinds take turns. A tenant has at most [`RECORDS_MAX`] of a kind, so that
//! nobody fills the memory.

use crate::model::Text;
use crate::plugin::StoreFailed;
use crate::store::{Store, StoreError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Records of one kind that a tenant may have.
pub(super) const RECORDS_MAX: usize = 1024;

/// Something a tenant has, with when it was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Record<T> {
    /// The owner.
    pub(super) tenant: Text,
    /// Position in creation order.
    serial: u64,
    /// What it is.
    #[serde(flatten)]
    pub(super) it: T,
}

/// The records of one kind, by id.
pub(super) struct Records<T> {
    kind: &'static str,
    store: Option<Arc<Store>>,
    all: RwLock<BTreeMap<Text, Record<T>>>,
    turn: Mutex<()>,
}

/// Why a record is not written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NotKept {
    /// The tenant has none of this id.
    NotFound,
    /// The tenant has [`RECORDS_MAX`].
    TooMany,
    /// What the store said.
    StoreFailed(StoreFailed),
}

impl<T: Clone + Serialize + DeserializeOwned> Records<T> {
    /// None, kept in memory only.
    pub(super) fn none(kind: &'static str) -> Records<T> {
        Records { kind, store: None, all: RwLock::default(), turn: Mutex::default() }
    }

    /// The records of a kind as the store has them; without a store none, and they are kept in memory only.
    ///
    /// # Errors
    /// What the store said; [`StoreError::BadRecord`] for one that cannot be read.
    pub(super) fn load(kind: &'static str, store: Option<&Arc<Store>>) -> Result<Records<T>, StoreError> {
        let mut all = BTreeMap::new();
        for (key, value) in store.map(|store| store.extras(kind)).transpose()?.into_iter().flatten() {
            let record = serde_json::from_slice(&value).map_err(|error| StoreError::BadRecord {
                table: kind,
                key: key.clone(),
                why: error.to_string(),
            })?;
            all.insert(Text::from(key), record);
        }
        Ok(Records { store: store.cloned(), all: RwLock::new(all), ..Records::none(kind) })
    }

    /// A tenant's, in creation order.
    pub(super) fn of(&self, tenant: &str) -> Vec<(Text, T)> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = all.iter().filter(|(_, record)| &*record.tenant == tenant).collect();
        found.sort_unstable_by_key(|(_, record)| record.serial);
        found.into_iter().map(|(id, record)| (id.clone(), record.it.clone())).collect()
    }

    /// The tenant's record of this id; nobody else's.
    pub(super) fn get(&self, tenant: &str, id: &str) -> Option<T> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.get(id).filter(|record| &*record.tenant == tenant).map(|record| record.it.clone())
    }

    /// Keeps something new and returns its id. `make` is given the id.
    pub(super) fn create(&self, tenant: &str, make: impl FnOnce(&str) -> T) -> Result<Text, NotKept> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, serial) = {
            let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
            let count = all.values().filter(|record| &*record.tenant == tenant).count();
            (count, all.values().map(|record| record.serial + 1).max().unwrap_or_default())
        };
        if count >= RECORDS_MAX {
            return Err(NotKept::TooMany);
        }
        let id = Text::from(uuid::Uuid::new_v4().as_hyphenated().to_string());
        let record = Record { tenant: tenant.into(), serial, it: make(&id) };
        self.put(id.clone(), record)?;
        Ok(id)
    }

    /// Changes the tenant's record of this id and returns it as it is now.
    pub(super) fn update(&self, tenant: &str, id: &str, change: impl FnOnce(&mut T)) -> Result<T, NotKept> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut record = {
            let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
            all.get(id).filter(|record| &*record.tenant == tenant).cloned().ok_or(NotKept::NotFound)?
        };
        change(&mut record.it);
        let it = record.it.clone();
        self.put(id.into(), record)?;
        Ok(it)
    }

    /// Removes the tenant's record of this id.
    pub(super) fn remove(&self, tenant: &str, id: &str) -> Result<(), NotKept> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.get(tenant, id).ok_or(NotKept::NotFound)?;
        if let Some(store) = &self.store {
            store.remove_extra(self.kind, id).map_err(|error| failed(&error))?;
        }
        self.all.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(())
    }

    fn put(&self, id: Text, record: Record<T>) -> Result<(), NotKept> {
        if let Some(store) = &self.store {
            let value = serde_json::to_vec(&record).expect("records have only text keys");
            store.put_extra(self.kind, &id, &value).map_err(|error| failed(&error))?;
        }
        self.all.write().unwrap_or_else(PoisonError::into_inner).insert(id, record);
        Ok(())
    }
}

fn failed(error: &StoreError) -> NotKept {
    NotKept::StoreFailed(StoreFailed { why: error.to_string().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(records: &Records<String>, tenant: &str) -> Vec<String> {
        records.of(tenant).into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn a_tenant_has_its_own_records_in_the_order_in_which_they_were_made() {
        let records: Records<String> = Records::load("names", None).unwrap();
        for name in ["c", "a", "b"] {
            records.create("red", |_| name.to_owned()).unwrap();
        }
        let id = records.create("blue", |_| "x".to_owned()).unwrap();
        assert_eq!(
            (names(&records, "red"), names(&records, "blue")),
            (vec!["c".into(), "a".into(), "b".into()], vec!["x".into()])
        );
        assert_eq!(records.get("red", &id), None);
        assert_eq!(records.update("red", &id, |name| name.push('y')), Err(NotKept::NotFound));
        assert_eq!(records.remove("red", &id), Err(NotKept::NotFound));
        assert_eq!(records.update("blue", &id, |name| name.push('y')), Ok("xy".to_owned()));
        assert_eq!(records.remove("blue", &id), Ok(()));
        assert_eq!(records.get("blue", &id), None);
    }

    #[test]
    fn a_tenant_with_too_many_records_gets_no_more_and_others_do() {
        let records: Records<u32> = Records::load("numbers", None).unwrap();
        (0..RECORDS_MAX).for_each(|at| drop(records.create("red", |_| at as u32).unwrap()));
        assert_eq!(records.create("red", |_| 0), Err(NotKept::TooMany));
        records.create("blue", |_| 0).unwrap();
    }
}
