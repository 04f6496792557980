//! Backups: what was written comes back, and what is no whole backup is not taken for one.

use super::*;
use crate::address_pair::AddressPair;
use crate::host::{DeviceSpec, SocketRole};
use crate::store::tests::{Scratch, network, port};
use switch::underlay::VlanId;

fn backup() -> Backup {
    let plug = Plug {
        interface: "vm1".into(),
        device: DeviceSpec::Tap { name: "tap0".to_owned(), netns: Some("blue".to_owned()), queues: 2 },
        macs: vec!["02:00:00:00:00:01".to_owned()],
        addresses: Vec::new(),
        mtu: Some(9000),
        tenant: Some("red".to_owned()),
        is_automatic: false,
        made: Some("here".to_owned()),
    };
    let pair = |mac, ip| AddressPair::new(mac, ip).unwrap();
    let pairs = [pair("02:00:00:00:00:01", Some("10.0.0.1")), pair("00:00:5e:00:01:07", None)].into();
    let extra = |kind: &str, key: &str, value: &[u8]| ((kind.to_owned(), key.to_owned()), value.to_vec());
    Backup {
        networks: vec![network("n", 0), Network { name: None, ..network("m\n\"é", 3) }],
        ports: vec![
            LogicalPort { pairs, ..port("p", "n", 1) },
            LogicalPort { attachment: None, state: AdminState::Down, ..port("q", "n", 2) },
        ],
        plugs: vec![plug],
        extras: BTreeMap::from([extra("a", "1", b"{\"text\": 1}"), extra("a", "2", b"\xff\x00")]),
    }
}

fn text(backup: &Backup) -> String {
    let mut out = Vec::new();
    backup.write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn read(text: &str) -> Result<Backup, BackupError> {
    Backup::read(&mut text.as_bytes())
}

#[test]
fn a_store_comes_back_whole_from_its_text() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let store = Store::open(&here.file()).unwrap();
    store.import(&backup(), false).unwrap();
    let exported = store.export().unwrap();
    assert_eq!(exported, backup());
    let other = Store::open(&there.file()).unwrap();
    other.import(&read(&text(&exported)).unwrap(), false).unwrap();
    assert_eq!(other.export().unwrap(), backup());
    assert_eq!(other.load().unwrap().next_serial(), 4);
}

#[test]
fn a_store_that_holds_something_is_replaced_only_if_that_is_said() {
    let scratch = Scratch::new();
    let store = Store::open(&scratch.file()).unwrap();
    store.put_extra("kind", "key", b"").unwrap();
    let refused = store.import(&backup(), false);
    assert!(matches!(refused, Err(StoreError::NotEmpty { records: 1 })), "{refused:?}");
    assert_eq!(store.export().unwrap().len(), 1);
    store.import(&backup(), true).unwrap();
    assert_eq!(store.export().unwrap(), backup());
}

#[test]
fn a_text_that_was_cut_anywhere_is_refused() {
    let whole = text(&backup());
    for (cut, _) in whole.char_indices().filter(|(cut, _)| *cut + 1 < whole.len()) {
        assert!(read(&whole[..cut]).is_err(), "{cut}: {}", &whole[..cut]);
    }
    let lines: Vec<&str> = whole.lines().collect();
    for left_out in 0..lines.len() {
        let rest: Vec<&str> =
            lines.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, line)| *line).collect();
        assert!(read(&rest.join("\n")).is_err(), "{}", lines[left_out]);
    }
}

#[test]
fn what_is_wrong_with_a_text_is_told_with_its_line() {
    let told = |text: &str| read(text).unwrap_err().to_string();
    let head = r#"{"store":{"format":"qvs-store","version":1}}"#;
    let network = r#"{"network":{"id":"n","tenant":"t","name":null,"serial":0}}"#;
    let port = |id: &str, network: &str, serial: usize| {
        format!(
            r#"{{"port":{{"id":"{id}","network":"{network}","state":"ACTIVE","attachment":"vif","serial":{serial}}}}}"#
        )
    };
    for none in ["", "\n", "qvs", "{}", network, r#"{"store":{"format":"other","version":1}}"#] {
        assert!(told(none).starts_with("this is no backup"), "{none}");
    }
    assert!(Backup::read(&mut b"\xff\n".as_slice()).unwrap_err().to_string().starts_with("this is no backup"));
    let newer = told(r#"{"store":{"format":"qvs-store","version":2}}"#);
    assert!(newer.starts_with("the backup has version 2"), "{newer}");
    assert!(told(&format!("{head}\n{network}\npie")).starts_with("line 3: "));
    assert!(told(&format!("{head}\n{head}")).starts_with("line 2: "));
    assert!(told(&format!("{head}\n{{\"end\":{{\"records\":0}}}}\n{network}")).starts_with("line 3: comes after"));
    let end = |records: usize| format!("{{\"end\":{{\"records\":{records}}}}}");
    let orphan = told(&format!("{head}\n{}\n{}", port("p", "x", 1), end(1)));
    assert!(orphan.starts_with("the backup contradicts itself: port p is on network x"), "{orphan}");
    let twice = told(&format!("{head}\n{network}\n{}\n{}\n{}", port("p", "n", 1), port("q", "n", 2), end(3)));
    assert!(twice.contains("is plugged into ports"), "{twice}");
    let serial = told(&format!("{head}\n{network}\n{}\n{}", port("p", "n", 0), end(2)));
    assert!(serial.contains("serial 0 comes twice"), "{serial}");
    for high in [u64::MAX, SERIAL_MAX + 1] {
        let last = network.replace("\"serial\":0", &format!("\"serial\":{high}"));
        let told = told(&format!("{head}\n{last}\n{}", end(1)));
        assert!(told.contains(&format!("serial {high} is more than")), "{told}");
    }
    let other = network.replace("\"serial\":0", "\"serial\":1");
    let same = told(&format!("{head}\n{network}\n{other}\n{}", end(2)));
    assert!(same.contains("network n comes twice"), "{same}");
    assert!(read(&format!("{head}\n{}", end(0))).unwrap().is_empty());
}

#[test]
fn plugs_that_nobody_could_have_plugged_are_refused() {
    let tap = |name: &str| DeviceSpec::Tap { name: name.to_owned(), netns: None, queues: 1 };
    let socket = |path: &str| DeviceSpec::VhostUser { path: path.to_owned(), role: SocketRole::Server };
    let vlan = |id| DeviceSpec::Vlan { parent: "trunk".into(), vlan: VlanId::new(id).unwrap() };
    let told = |plugs: &[Plug]| {
        let scratch = Scratch::new();
        let backup = Backup { plugs: plugs.to_vec(), ..Backup::default() };
        let refused = read(&text(&backup)).err().map(|error| error.to_string());
        let stored = Store::open(&scratch.file()).unwrap().import(&backup, false);
        assert_eq!(stored.is_err(), refused.is_some(), "{refused:?}");
        refused.unwrap_or_default()
    };
    let one = Plug::new("one", tap("t"));
    for (second, why) in [
        (Plug::new("one", tap("u")), "interface \"one\" is plugged twice"),
        (Plug::new("two", tap("t")), "interfaces \"one\" and \"two\" have one device, \"t\""),
        (Plug::new("two", DeviceSpec::Device { name: "t".to_owned(), netns: None, driver: None }), "have one device"),
        (Plug::new("", tap("u")), "with an id that is empty"),
        (Plug::new("a\0b", tap("u")), "with an id"),
        (Plug::new("x".repeat(TEXT_BYTES_MAX + 1), tap("u")), "with an id"),
        (Plug::new("two", tap("")), "with a device"),
        (Plug::new("two", socket("/a\0b")), "with a path"),
        (Plug { tenant: Some(String::new()), ..Plug::new("two", tap("u")) }, "with a tenant"),
        (Plug { macs: vec![String::new()], ..Plug::new("two", tap("u")) }, "with a MAC"),
    ] {
        let told = told(&[one.clone(), second]);
        assert!(told.contains(why), "{told} is not about {why}");
    }
    for (first, second) in [(socket("/s"), socket("/s")), (vlan(7), vlan(7))] {
        assert!(told(&[Plug::new("a", first), Plug::new("b", second)]).contains("have one device"));
    }
    let elsewhere = DeviceSpec::Tap { name: "t".to_owned(), netns: Some("blue".to_owned()), queues: 1 };
    assert_eq!(told(&[one.clone(), Plug::new("two", elsewhere), Plug::new("three", socket("t"))]), "");
    assert_eq!(told(&[Plug::new("trunk", tap("t")), Plug::new("b", vlan(7)), Plug::new("c", vlan(8))]), "");
}
