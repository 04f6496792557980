//! The store on a disk that is full, or that dies in the middle of a write: whatever was acknowledged is there afterwards,
//! and the store goes on as soon as it can.
//!
//! The disk keeps what was written since the last sync apart. When it dies, any part of that may be on it, the last write
//! torn; what was synced is. Every point of a script of commits is tried, each with several fates.

use super::{network, port};
use crate::model::Change;
use crate::store::{Store, StoreError, schema};
use redb::{Database, StorageBackend};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes redb writes in one go may be torn at these.
const SECTOR: usize = 512;
/// Fates tried at each point.
const FATES: u64 = 4;

#[derive(Clone, Debug)]
enum Step {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// What the disk does to a step that would change it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Works,
    /// Takes this many steps, then refuses this many.
    Full {
        after: usize,
        times: usize,
    },
    /// Takes this many steps and is dead from then on.
    Dies {
        after: usize,
    },
}

#[derive(Debug)]
struct State {
    synced: Vec<u8>,
    seen: Vec<u8>,
    unsynced: Vec<Step>,
    steps: usize,
    mood: Mood,
}

#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<State>>);

fn apply(bytes: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Length(len) => bytes.resize(*len, 0),
        Step::Write(offset, data) => {
            if bytes.len() < offset + data.len() {
                bytes.resize(offset + data.len(), 0);
            }
            bytes[*offset..offset + data.len()].copy_from_slice(data);
        }
    }
}

impl Disk {
    fn new(synced: Vec<u8>, mood: Mood) -> Disk {
        Disk(Arc::new(Mutex::new(State { seen: synced.clone(), synced, unsynced: Vec::new(), steps: 0, mood })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn open(&self) -> Result<Store, StoreError> {
        let disk = self.clone();
        Store::with_opener(Box::new(move || {
            let database = Database::builder().create_with_backend(disk.clone())?;
            if schema::look(&database)? == schema::Found::Nothing {
                schema::make(&database)?;
            }
            Ok(database)
        }))
    }

    /// What is found on it after it died, for one fate of what was not synced.
    fn remains(&self, mut fate: u64) -> Vec<u8> {
        let state = self.state();
        let mut bytes = state.synced.clone();
        for step in &state.unsynced {
            fate = fate.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match (step, fate >> 62) {
                (_, 0) => {}
                (Step::Write(offset, data), 1) => {
                    let sectors = data.len().div_ceil(SECTOR);
                    let torn = (SECTOR * ((fate >> 32) as usize % (sectors + 1))).min(data.len());
                    apply(&mut bytes, &Step::Write(*offset, data[..torn].to_vec()));
                }
                (step, _) => apply(&mut bytes, step),
            }
        }
        bytes
    }
}

impl State {
    fn change(&mut self, step: Option<Step>) -> io::Result<()> {
        self.steps += 1;
        let at = self.steps - 1;
        match self.mood {
            Mood::Full { after, times } if (after..after + times).contains(&at) => {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Mood::Dies { after } if at >= after => return Err(io::Error::other("the disk died")),
            _ => {}
        }
        match step {
            Some(step) => {
                apply(&mut self.seen, &step);
                self.unsynced.push(step);
            }
            None => {
                self.synced = self.seen.clone();
                self.unsynced.clear();
            }
        }
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let range = offset as usize..offset as usize + out.len();
        out.copy_from_slice(state.seen.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state().change(Some(Step::Length(len as usize)))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.state().change(None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.state().change(Some(Step::Write(offset as usize, data.to_vec())))
    }
}

/// The disk as a store leaves it that holds one network, so that scripts begin where a daemon's life does.
fn used_disk() -> Vec<u8> {
    let disk = Disk::new(Vec::new(), Mood::Works);
    disk.open().unwrap().commit(&[Change::PutNetwork(network("first", 0))]).unwrap();
    disk.state().seen.clone()
}

/// The changes of one commit: a network with a port, so that half of it would show.
fn changes(at: u64) -> [Change; 2] {
    let id = format!("n{at}");
    [Change::PutNetwork(network(&id, 2 * at + 1)), Change::PutPort(port(&format!("p{at}"), &id, 2 * at + 2))]
}

/// Checks what a store holds, by the outcomes of the commits.
fn check(store: &Store, outcomes: &[bool], what: &str) {
    let model = store.load().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(model.networks.contains_key("first"), "{what}");
    for (at, is_acknowledged) in outcomes.iter().enumerate() {
        let has = (model.networks.contains_key(&*format!("n{at}")), model.ports.contains_key(&*format!("p{at}")));
        assert!(has == (true, true) || !is_acknowledged, "{what}: acknowledged commit {at} was lost: {has:?}");
        assert_eq!(has.0, has.1, "{what}: half of commit {at} is there");
    }
}

#[test]
fn a_disk_that_dies_at_any_point_loses_no_acknowledged_write() {
    let used = used_disk();
    for after in 0.. {
        let disk = Disk::new(used.clone(), Mood::Dies { after });
        let mut outcomes = Vec::new();
        if let Ok(store) = disk.open() {
            outcomes.extend((0..4).map(|at| store.commit(&changes(at)).is_ok()));
        }
        for fate in 0..FATES {
            let what = format!("dead after step {after}, fate {fate}");
            let found = Disk::new(disk.remains(fate + 1), Mood::Works);
            check(&found.open().unwrap_or_else(|error| panic!("{what}: {error}")), &outcomes, &what);
        }
        if outcomes == [true; 4] {
            assert!(after > 12, "the script has more steps than that");
            return;
        }
    }
}

#[test]
fn a_disk_that_is_full_at_any_point_fails_the_write_and_the_store_goes_on_once_there_is_room() {
    let used = used_disk();
    for (after, times) in (0..).flat_map(|after| [(after, 1), (after, 7)]) {
        let what = format!("full after step {after}, {times} times");
        let disk = Disk::new(used.clone(), Mood::Works);
        let store = disk.open().unwrap();
        let begin = disk.state().steps;
        disk.state().mood = Mood::Full { after: begin + after, times };
        let outcomes: Vec<bool> = (0..4)
            .map(|at| match store.commit(&changes(at)) {
                Ok(()) => true,
                Err(error) => {
                    assert!(error.to_string().contains("the store failed: "), "{what}: {error}");
                    false
                }
            })
            .collect();
        disk.state().mood = Mood::Works;
        store.commit(&changes(4)).unwrap_or_else(|error| panic!("{what}: there is room again: {error}"));
        let all = [&*outcomes, &[true]].concat();
        check(&store, &all, &what);
        drop(store);
        check(&disk.open().unwrap(), &all, &what);
        if outcomes == [true; 4] {
            assert!(after > 12, "the script has more steps than that");
            return;
        }
    }
}
