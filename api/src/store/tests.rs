//! The store from outside: what it writes it reads back, what it cannot honour it refuses, and a failed write changes nothing.

use super::*;
use crate::host::DeviceSpec;
use crate::model::{AdminState, LogicalPort, Network};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        Scratch(std::env::temp_dir().join(format!("qvs-store-{}", uuid::Uuid::new_v4())))
    }

    fn file(&self) -> PathBuf {
        self.0.join("state.redb")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn network(id: &str, serial: u64) -> Network {
    Network { id: id.into(), tenant: "red".into(), name: Some("réseau".into()), serial }
}

fn port(id: &str, network: &str, serial: u64) -> LogicalPort {
    LogicalPort {
        id: id.into(),
        network: network.into(),
        state: AdminState::Active,
        attachment: Some(format!("vif/{id}").into()),
        serial,
    }
}

#[test]
fn what_was_committed_is_there_after_reopening_and_only_its_owner_may_read_it() {
    let scratch = Scratch::new();
    let written = {
        let store = Store::open(&scratch.file()).unwrap();
        store.commit(&[Change::PutNetwork(network("n", 0)), Change::PutPort(port("p", "n", 1))]).unwrap();
        store.commit(&[Change::PutNetwork(network("gone", 2))]).unwrap();
        store.commit(&[Change::RemoveNetwork("gone".into())]).unwrap();
        store.load().unwrap()
    };
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&scratch.file()), 0o600);
    assert_eq!(mode(&scratch.0), 0o700);
    let model = Store::open(&scratch.file()).unwrap().load().unwrap();
    assert_eq!(model.networks, written.networks);
    assert_eq!(model.ports["p"], port("p", "n", 1));
    assert_eq!(model.next_serial(), 2);
}

#[test]
fn plugs_are_listed_replaced_and_removed() {
    let scratch = Scratch::new();
    let store = Store::open(&scratch.file()).unwrap();
    let plug = |mtu| Plug {
        interface: "vm1".into(),
        device: DeviceSpec::Tap { name: "tap0".to_owned(), netns: None, queues: 1 },
        macs: vec!["02:00:00:00:00:01".to_owned()],
        mtu,
        tenant: Some("red".to_owned()),
        is_automatic: false,
        made: None,
    };
    store.put_plug(&plug(None)).unwrap();
    store.put_plug(&plug(Some(9000))).unwrap();
    assert_eq!(store.plugs().unwrap().into_values().collect::<Vec<_>>(), [plug(Some(9000))]);
    assert!(store.remove_plug("vm1").unwrap());
    assert!(!store.remove_plug("vm1").unwrap());
    assert!(store.plugs().unwrap().is_empty());
}

#[test]
fn a_second_opener_is_told_who_holds_the_store() {
    let scratch = Scratch::new();
    let _first = Store::open(&scratch.file()).unwrap();
    match Store::open(&scratch.file()).err().unwrap() {
        StoreError::InUse { pid, .. } => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other}"),
    }
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    drop(Store::open(&scratch.file()).unwrap());
    let newer = |database: &Database| {
        write_durably(database, |transaction| {
            transaction.open_table(META)?.insert(SCHEMA_KEY, SCHEMA_VERSION + 1)?;
            Ok(())
        })
    };
    newer(&Database::create(scratch.file()).unwrap()).unwrap();
    for _ in 0..2 {
        let error = Store::open(&scratch.file()).err().unwrap();
        assert!(matches!(error, StoreError::NewerSchema { found } if found == SCHEMA_VERSION + 1), "{error}");
    }
}

#[test]
fn a_record_of_another_version_is_named_not_guessed_at() {
    let scratch = Scratch::new();
    drop(Store::open(&scratch.file()).unwrap());
    let database = Database::create(scratch.file()).unwrap();
    write_durably(&database, |transaction| {
        transaction.open_table(PORTS)?.insert("p", b"\x02{}".as_slice())?;
        Ok(())
    })
    .unwrap();
    drop(database);
    let error = Store::open(&scratch.file()).unwrap().load().unwrap_err();
    assert!(error.to_string().contains("record \"p\" of table ports"), "{error}");
}

#[test]
fn a_half_made_store_of_a_killed_process_is_made_anew() {
    let scratch = Scratch::new();
    std::fs::create_dir(&scratch.0).unwrap();
    std::fs::write(scratch.0.join("state.redb.new"), b"half").unwrap();
    std::fs::write(scratch.0.join("state.redb.pid"), b"1\n").unwrap();
    assert!(Store::open(&scratch.file()).unwrap().load().unwrap().networks.is_empty());
}

/// Memory that outlives the database on it, and fails to write when told.
#[derive(Clone, Debug)]
struct Disk {
    memory: Arc<InMemoryBackend>,
    is_full: Arc<AtomicBool>,
}

impl Disk {
    fn check(&self) -> io::Result<()> {
        if self.is_full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.memory.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.memory.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.memory.write(offset, data)
    }
}

#[test]
fn a_full_disk_fails_the_write_and_the_store_works_again_once_there_is_room() {
    let disk = Disk { memory: Arc::new(InMemoryBackend::new()), is_full: Arc::default() };
    let opened = disk.clone();
    let store =
        Store::with_opener(Box::new(move || Ok(Database::builder().create_with_backend(opened.clone())?))).unwrap();
    store.commit(&[Change::PutNetwork(network("before", 0))]).unwrap();
    disk.is_full.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        assert!(matches!(store.commit(&[Change::PutNetwork(network("lost", 1))]), Err(StoreError::Database(_))));
    }
    disk.is_full.store(false, Ordering::Relaxed);
    store.commit(&[Change::PutNetwork(network("after", 2))]).unwrap();
    let model = store.load().unwrap();
    assert_eq!(model.networks.len(), 2, "{:?}", model.networks.keys());
    assert!(model.networks.contains_key("before") && model.networks.contains_key("after"));
}
