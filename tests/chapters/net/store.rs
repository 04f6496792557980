//! The store from outside: a disk that is full, and a store that a newer program wrote.

use redb::{Database, TableDefinition};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::daemon::{Daemon, program};
use tests::http::Tenant;
use tests::process::TempDir;

/// Bytes of the disk.
const DISK_BYTES: usize = 8 << 20;
/// More networks than a full disk takes into what the store has already.
const NETWORKS_MAX: usize = 5_000;

/// A disk of its own for a directory; gone with the test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> SmallDisk {
        fs::create_dir(&at).unwrap();
        let options = CString::new(format!("size={DISK_BYTES},mode=0700")).unwrap();
        mount("none", &at, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).expect("run as root");
        SmallDisk(at)
    }

    /// Takes all room that is left; answers the file that has it.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Makes networks until one is refused; answers the names of those that were acknowledged.
fn create_until_refused(tenant: &Tenant, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for serial in 0..NETWORKS_MAX {
        let name = format!("{prefix}-{serial:-<900}");
        let answer = tenant.try_request("POST", "networks", Some(&json!({"network": {"name": name}}))).unwrap();
        match answer.status {
            202 => names.insert(name),
            503 => {
                let kind = answer.json()["QuantumError"]["type"].clone();
                assert_eq!(kind, "ServiceUnavailable");
                let again = answer.headers.iter().any(|line| line.to_ascii_lowercase().starts_with("retry-after:"));
                assert!(again, "it says when to come back: {:?}", answer.headers);
                return names;
            }
            other => panic!("{other}: {answer:?}"),
        };
    }
    panic!("the disk never was full");
}

fn names_of(tenant: &Tenant) -> BTreeSet<String> {
    let list = tenant.request("GET", "networks/detail", None, 200).json();
    let name = |network: &serde_json::Value| network["name"].as_str().unwrap().to_owned();
    list["networks"].as_array().unwrap().iter().map(name).collect()
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room_and_loses_nothing_acknowledged() {
    let dir = TempDir::new();
    let disk = SmallDisk::mount(dir.join("state"));
    let mut daemon = Daemon::start_in(dir, "");
    let tenant = daemon.tenant("red");
    tenant.network("before");
    let ballast = disk.fill();
    let mut acknowledged = create_until_refused(&tenant, "full");
    acknowledged.insert("before".to_owned());
    // Reads go on, and tell what was acknowledged; a write that was refused may be there or not, as it says.
    assert!(names_of(&tenant).is_superset(&acknowledged));
    for _ in 0..3 {
        tenant.request("POST", "networks", Some(&json!({"network": {"name": "x".repeat(900)}})), 503);
    }
    daemon.assert_alive();
    fs::remove_file(ballast).unwrap();
    tenant.network("after");
    acknowledged.insert("after".to_owned());
    assert!(names_of(&tenant).is_superset(&acknowledged), "the service goes on");
    daemon.kill_and_restart();
    let found = names_of(&daemon.tenant("red"));
    assert!(found.is_superset(&acknowledged), "missing: {:?}", acknowledged.difference(&found).collect::<Vec<_>>());
    daemon.kill();
    drop(disk);
}

#[test]
fn a_store_that_a_newer_program_wrote_ends_the_daemon_with_1_and_keeps_what_is_in_it() {
    let mut daemon = Daemon::start("");
    daemon.tenant("red").network("kept");
    daemon.stop();
    let store = daemon.path("state").join("state.redb");
    let known = set_schema(&store, u64::from(u32::MAX));
    let output = Command::new(program()).args(["run", "--config"]).arg(daemon.path("qvs.toml")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("4294967295") && text.contains("newer"), "{text}");
    set_schema(&store, known);
    daemon.start_again();
    assert_eq!(names_of(&daemon.tenant("red")), BTreeSet::from(["kept".to_owned()]));
}

/// Writes another version of the schema into a store; answers the one that was there.
fn set_schema(store: &Path, version: u64) -> u64 {
    let database = Database::create(store).unwrap();
    let transaction = database.begin_write().unwrap();
    let before = {
        let mut meta = transaction.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap();
        meta.insert("schema", version).unwrap().unwrap().value()
    };
    transaction.commit().unwrap();
    before
}
