//! The store from outside: what it writes it reads back, what it cannot honour it refuses, and a failed write changes nothing.

use super::schema::{META, SCHEMA_KEY};
use super::*;
use crate::host::DeviceSpec;
use crate::model::{AdminState, LogicalPort, Network};
use std::os::unix::fs::PermissionsExt;

/// A directory that goes when the test ends.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Scratch {
        Scratch(std::env::temp_dir().join(format!("qvs-store-{}", uuid::Uuid::new_v4())))
    }

    pub(super) fn file(&self) -> PathBuf {
        self.0.join("state.redb")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn network(id: &str, serial: u64) -> Network {
    Network {
        id: id.into(),
        tenant: "red".into(),
        name: Some("réseau".into()),
        network_type: Default::default(),
        serial,
    }
}

pub(super) fn port(id: &str, network: &str, serial: u64) -> LogicalPort {
    LogicalPort {
        id: id.into(),
        network: network.into(),
        state: AdminState::Active,
        attachment: Some(format!("vif/{id}").into()),
        pairs: [].into(),
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
        addresses: Vec::new(),
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
    set_schema(&scratch.file(), SCHEMA_VERSION + 1);
    for _ in 0..2 {
        let error = Store::open(&scratch.file()).err().unwrap();
        assert!(matches!(error, StoreError::NewerSchema { found } if found == SCHEMA_VERSION + 1), "{error}");
    }
    set_schema(&scratch.file(), 0);
    let error = Store::open(&scratch.file()).err().unwrap();
    assert!(error.to_string().contains("there never was a version 0"), "{error}");
}

fn set_schema(path: &Path, version: u64) {
    let database = Database::create(path).unwrap();
    write_durably(&database, |transaction| {
        transaction.open_table(META)?.insert(SCHEMA_KEY, version)?;
        Ok(())
    })
    .unwrap();
}

/// A store as the program wrote it that knew only schema 1, as hexdump shows it: an offset and 32 bytes a line, `*` for
/// more lines like the last.
const SCHEMA_1: &str = include_str!("tests/schema_1.hex");

fn put_schema_1(path: &Path) {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
    let mut bytes: Vec<u8> = Vec::new();
    let mut last: Vec<u8> = Vec::new();
    for line in SCHEMA_1.lines().filter(|line| *line != "*") {
        let (offset, text) = line.split_once(' ').unwrap_or((line, ""));
        let offset = usize::from_str_radix(offset, 16).unwrap();
        while bytes.len() < offset {
            bytes.extend_from_slice(&last);
        }
        last = text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
        bytes.extend_from_slice(&last);
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_store_of_schema_1_is_migrated_with_all_it_holds_and_kept_aside() {
    let scratch = Scratch::new();
    put_schema_1(&scratch.file());
    for _ in 0..2 {
        let store = Store::open(&scratch.file()).unwrap();
        let model = store.load().unwrap();
        assert_eq!(model.networks_of("red").count(), 1);
        let network = model.networks_of("blue").next().unwrap();
        assert_eq!((&*network.id, network.name.as_deref()), ("c0ffee00-0000-4000-8000-000000000003", None));
        let port = model.port_by_attachment("vif/6d7a3a58-8a53-4c17-8d5d-2f2f0b1f3c02").unwrap();
        assert_eq!((port.state, port.serial, model.next_serial()), (AdminState::Active, 1, 3));
        assert_eq!(store.plugs().unwrap()["vm1"].mtu, Some(9000));
        store.put_extra("kind", "key", b"value").unwrap();
    }
    let kept = scratch.0.join("state.redb.schema-1");
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(schema_of(&kept), schema::Found::Older(1));
    std::fs::rename(&kept, scratch.file()).unwrap();
    assert_eq!(Store::open(&scratch.file()).unwrap().load().unwrap().networks.len(), 2, "the kept file is a store");
}

#[test]
fn who_only_looks_at_a_store_of_schema_1_sees_it_as_it_will_be_and_it_stays_as_it_is() {
    let scratch = Scratch::new();
    put_schema_1(&scratch.file());
    for _ in 0..2 {
        let looked = Store::look(&scratch.file()).unwrap();
        assert_eq!((looked.networks.len(), looked.ports.len(), looked.plugs.len()), (2, 1, 1));
    }
    assert_eq!(schema_of(&scratch.file()), schema::Found::Older(1));
    let found: Vec<_> = std::fs::read_dir(&scratch.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(found.len() == 2 && found.contains(&"state.redb.pid".into()), "{found:?}");
    let looked = Store::look(&scratch.file()).unwrap();
    assert_eq!(Store::open(&scratch.file()).unwrap().export().unwrap(), looked);
    assert_eq!(Store::look(&scratch.file()).unwrap(), looked);
}

#[test]
fn a_symbolic_link_in_the_place_of_a_store_or_its_pid_file_is_refused_and_what_it_names_is_as_it_was() {
    for name in ["state.redb", "state.redb.pid"] {
        let scratch = Scratch::new();
        drop(Store::open(&scratch.file()).unwrap());
        let link = scratch.0.join(name);
        let elsewhere = scratch.0.join("elsewhere");
        std::fs::rename(&link, &elsewhere).unwrap();
        std::fs::write(&elsewhere, b"precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        for error in [Store::open(&scratch.file()).err(), Store::look(&scratch.file()).err()] {
            let error = error.unwrap().to_string();
            assert_eq!(error, format!("{}: this is a symbolic link, and none is followed here", link.display()));
        }
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"precious");
    }
}

#[test]
fn a_migration_that_cannot_keep_the_old_file_changes_nothing() {
    let scratch = Scratch::new();
    put_schema_1(&scratch.file());
    // A directory in the way, which is neither removed nor replaced.
    std::fs::create_dir_all(scratch.0.join("state.redb.schema-1/full")).unwrap();
    let error = Store::open(&scratch.file()).err().unwrap();
    assert!(error.to_string().contains("state.redb.schema-1"), "{error}");
    assert_eq!(schema_of(&scratch.file()), schema::Found::Older(1));
}

fn schema_of(path: &Path) -> schema::Found {
    schema::look(&Database::create(path).unwrap()).unwrap()
}

#[test]
fn extras_are_kept_by_kind_and_key() {
    let scratch = Scratch::new();
    let store = Store::open(&scratch.file()).unwrap();
    for (kind, key, value) in [("a", "1", "x"), ("a", "2", "y"), ("aa", "1", "z"), ("a", "1", "w")] {
        store.put_extra(kind, key, value.as_bytes()).unwrap();
    }
    let found = store.extras("a").unwrap();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [("1".into(), b"w".to_vec()), ("2".into(), b"y".to_vec())]);
    assert!(store.remove_extra("a", "1").unwrap());
    assert!(!store.remove_extra("a", "1").unwrap());
    assert_eq!(store.extras("a").unwrap().len(), 1);
    assert_eq!(store.extras("aa").unwrap().len(), 1);
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
fn what_a_tenant_is_told_of_a_failure_names_no_path_address_or_record() {
    let io = || io::Error::other("secret");
    for error in [
        StoreError::File { path: "secret".into(), source: io() },
        StoreError::BadRecord { table: "ports", key: "secret".to_owned(), why: "secret".to_owned() },
        StoreError::Inconsistent(Inconsistent::NetworkTwice { network: "secret".into() }),
        StoreError::Etcd(EtcdError::Unreachable("secret".to_owned())),
        StoreError::Etcd(EtcdError::Refused { code: 7, message: "secret".to_owned() }),
        StoreError::from(redb::StorageError::Io(io())),
    ] {
        assert!(error.to_string().contains("secret"));
        assert!(!error.in_public().contains("secret"), "{error}");
    }
}

#[test]
fn a_half_made_store_of_a_killed_process_is_made_anew() {
    let scratch = Scratch::new();
    std::fs::create_dir(&scratch.0).unwrap();
    std::fs::write(scratch.0.join("state.redb.new"), b"half").unwrap();
    std::fs::write(scratch.0.join("state.redb.pid"), b"1\n").unwrap();
    assert!(Store::open(&scratch.file()).unwrap().load().unwrap().networks.is_empty());
}

mod disk;
