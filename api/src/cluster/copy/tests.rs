//! What a copy is good for, and that no other file is.

use super::*;
use crate::address_pair::AddressPairs;
use crate::cluster::directory::{NodeRecord, PlugRecord};
use crate::cluster::key::Key;
use crate::model::{AdminState, Change, LogicalPort, Model, Network};
use crate::network_type::NetworkType;
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;

/// A directory that goes with the test.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        let path = std::env::temp_dir().join(format!("qvs-copy-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).unwrap();
        Place(path)
    }

    fn copy(&self) -> PathBuf {
        self.0.join("cloud.copy")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn members() -> Vec<String> {
    vec!["http://192.0.2.1:2379".to_owned(), "http://192.0.2.2:2379".to_owned()]
}

fn everything() -> Everything {
    let mut model = Model::default();
    model.apply(&Change::PutNetwork(Network {
        id: "n".into(),
        tenant: "red".into(),
        name: Some("l\u{e4}n\n".into()),
        network_type: NetworkType::Local,
        serial: 3,
    }));
    model.apply(&Change::PutPort(LogicalPort {
        id: "p".into(),
        network: "n".into(),
        state: AdminState::Active,
        attachment: Some("vm/1".into()),
        pairs: AddressPairs::default(),
        serial: 4,
    }));
    let mut directory = super::super::Directory::default();
    let node = NodeRecord { tunnel: Some("192.0.2.9".parse().unwrap()), ..NodeRecord::default() };
    directory.put_node("h", Some(node), 5, &mut Vec::new());
    let plug = PlugRecord {
        host: "h".into(),
        boot: "b".into(),
        tenant: None,
        is_up: true,
        fixed: Vec::new(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        learnt: vec!["02:00:00:00:00:01".parse().unwrap()],
    };
    directory.put_plug("vm/1", Some(plug), 6, &mut Vec::new());
    let mut extras = super::super::tenants::Extras::default();
    extras.put("qos", "a/b", Some(&[0, 255, 10]), 7);
    let head = super::super::tenants::Head { revision: 8, value: br#"{"schema":1,"write":"w"}"#.to_vec() };
    Everything { model: Arc::new(model), extras, directory, freed: HashMap::new(), head, last: None, revision: 9 }
}

/// All that stands at each key.
fn all(everything: &Everything, keys: &Keys) -> Vec<(Blob, Vec<u8>, Revision)> {
    let mut all = Vec::new();
    let each = |key, value: &[u8], revision| {
        all.push((key, value.to_vec(), revision));
        Ok::<_, std::convert::Infallible>(())
    };
    everything.each(keys, each).unwrap();
    all
}

#[test]
fn what_was_written_is_read_and_only_the_owner_may() {
    let (place, keys) = (Place::new(), Keys::below("/qvs"));
    // What an earlier writer left half done, for all to read, is no hindrance.
    std::fs::write(place.0.join("cloud.copy.new"), "half").unwrap();
    for _ in 0..2 {
        write(&place.copy(), &keys, &members(), &everything()).unwrap();
    }
    let mode = std::fs::metadata(place.copy()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(&place.0).unwrap().count(), 1);
    // One member that is the same is enough.
    let read = read(&place.copy(), &keys, &members()[1..]).unwrap();
    assert_eq!(all(&read, &keys), all(&everything(), &keys));
    assert_eq!((read.revision, read.head), (9, everything().head));
}

#[test]
fn a_copy_that_is_torn_changed_or_of_another_cloud_is_not_read() {
    let (place, keys) = (Place::new(), Keys::below("/qvs"));
    write(&place.copy(), &keys, &members(), &everything()).unwrap();
    let bytes = std::fs::read(place.copy()).unwrap();
    for len in 0..bytes.len() {
        assert!(matches!(parse(&bytes[..len], &keys, &members()), Err(CopyError::Torn)), "{len} bytes");
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(parse(&changed, &keys, &members()).is_err(), "byte {at}");
    }
    let other = parse(&bytes, &Keys::below("/other"), &members());
    assert!(matches!(other, Err(CopyError::Another { .. })));
    let other = parse(&bytes, &keys, &["http://192.0.2.3:2379".to_owned()]);
    assert!(matches!(other, Err(CopyError::Another { .. })));

    std::fs::set_permissions(place.copy(), std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(read(&place.copy(), &keys, &members()), Err(CopyError::NotOurs)));
    assert!(matches!(read(&place.0, &keys, &members()), Err(CopyError::NotOurs)));
}

#[test]
fn a_copy_of_another_version_or_with_records_that_contradict_each_other_is_not_read() {
    let vouch = |text: &str| {
        let mut context = Context::new(&SHA256);
        context.update(text.as_bytes());
        format!("{text}{}\n", hex::encode(context.finish().as_ref())).into_bytes()
    };
    let title = |version: u32| {
        format!(
            r#"{{"qvs":"{KIND}","version":{version},"prefix":"/qvs/","members":{:?},"revision":1}}{}"#,
            members(),
            "\n"
        )
    };
    let keys = Keys::below("/qvs");
    assert!(parse(&vouch(&title(1)), &keys, &members()).is_ok());
    assert!(matches!(parse(&vouch(&title(2)), &keys, &members()), Err(CopyError::Version { found: 2 })));
    assert!(matches!(parse(&vouch("{\"port\": 1}\n"), &keys, &members()), Err(CopyError::Torn)));
    let of_nothing = serde_json::to_string(&Line(keys.of(Key::Network("n")), 1, Blob(b"x".to_vec()))).unwrap();
    let spoilt = vouch(&format!("{}{of_nothing}\n", title(1)));
    assert!(matches!(parse(&spoilt, &keys, &members()), Err(CopyError::Record(_))));
}
