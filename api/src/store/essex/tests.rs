//! Dumps of the original's database: both programs' ways of writing one, and what is not taken over.

use super::*;
use crate::network_type::VlanRange;
use proptest::prelude::*;
use switch::underlay::TunnelKind;

const BY_SQLITE: &str = r#"PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE networks (
	uuid VARCHAR(255) NOT NULL, 
	tenant_id VARCHAR(255) NOT NULL, 
	name VARCHAR(255), 
	op_status VARCHAR(16), 
	PRIMARY KEY (uuid)
);
INSERT INTO networks VALUES('n1','acme','the ''blue'' one; (really)','ACTIVE');
INSERT INTO "networks" VALUES('n2','other',NULL,'UP');
CREATE TABLE ports (
	uuid VARCHAR(255) NOT NULL, 
	network_id VARCHAR(255) NOT NULL, 
	interface_id VARCHAR(255), 
	state VARCHAR(8), 
	op_status VARCHAR(16), 
	PRIMARY KEY (uuid), 
	FOREIGN KEY(network_id) REFERENCES networks (uuid)
);
INSERT INTO ports VALUES('p1','n1','vif\n1','ACTIVE','UP');
INSERT INTO ports VALUES('p2','n2','','DOWN','DOWN');
INSERT INTO ports VALUES('p3','gone','vif-3','DOWN','DOWN');
INSERT INTO ports VALUES('p4','n2','vif-4(detached)',NULL,'DOWN');
CREATE TABLE vlan_bindings (vlan_id INTEGER NOT NULL, network_id VARCHAR(255), PRIMARY KEY (vlan_id));
INSERT INTO vlan_bindings VALUES(1,'n1');
COMMIT;
"#;

const BY_MYSQL: &str = r"-- MySQL dump 10.13  Distrib 5.5
/*!40101 SET NAMES utf8 */;
DROP TABLE IF EXISTS `networks`;
CREATE TABLE `networks` (
  `uuid` varchar(255) NOT NULL,
  `tenant_id` varchar(255) NOT NULL,
  `name` varchar(255) DEFAULT NULL,
  `op_status` enum('UP','DOWN') DEFAULT NULL,
  PRIMARY KEY (`uuid`),
  KEY `name` (`name`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8;
LOCK TABLES `networks` WRITE;
INSERT INTO `networks` VALUES ('n1','acme','it\'s \\ réseau','UP'),('n2','other',NULL,'UP');
UNLOCK TABLES;
INSERT INTO `ports` (`state`, `uuid`, `network_id`, `interface_id`, `op_status`) VALUES ('ACTIVE','p1','n1','vif-1',NULL);
-- Dump completed on 2012-04-05
";

fn read(dump: &str) -> Result<Essex, EssexError> {
    Essex::read(dump.as_bytes(), &SegmentRules::Local)
}

#[test]
fn a_dump_by_sqlite_is_taken_over_with_its_ids_and_what_is_left_out_is_told() {
    let essex = read(BY_SQLITE).unwrap();
    let network = |id: &str, tenant: &str, name: Option<&str>, serial| Network {
        id: id.into(),
        tenant: tenant.into(),
        name: name.map(Into::into),
        network_type: Default::default(),
        serial,
    };
    let networks = [network("n1", "acme", Some("the 'blue' one; (really)"), 0), network("n2", "other", None, 1)];
    assert_eq!(essex.backup.networks, networks);
    let ports: Vec<_> = essex
        .backup
        .ports
        .iter()
        .map(|port| (&*port.id, &*port.network, port.state, port.attachment.as_deref(), port.serial))
        .collect();
    assert_eq!(
        ports,
        [
            ("p1", "n1", AdminState::Active, Some("vif\\n1"), 2),
            ("p2", "n2", AdminState::Down, None, 3),
            ("p4", "n2", AdminState::Down, None, 4)
        ]
    );
    assert_eq!(
        essex.notes,
        [
            "port p3 is left out: its network gone is gone",
            "port p4 has no attachment: \"vif-4(detached)\" was unplugged",
            "1 VLAN bindings are left out: networks get segments by the settings ([segments])",
            "every network stays within one host: segments.default is \"local\"",
        ]
    );
    let counts: Vec<_> = essex.by_tenant().into_iter().collect();
    assert_eq!(counts, [("acme".into(), (1, 1)), ("other".into(), (1, 2))]);
}

#[test]
fn a_dump_by_mysql_is_taken_over_whatever_the_order_of_its_columns() {
    let essex = read(BY_MYSQL).unwrap();
    let names: Vec<_> = essex.backup.networks.iter().map(|network| network.name.as_deref()).collect();
    assert_eq!(names, [Some("it's \\ réseau"), None]);
    let port = &essex.backup.ports[0];
    assert_eq!((&*port.id, port.attachment.as_deref(), port.state), ("p1", Some("vif-1"), AdminState::Active));
    assert_eq!(essex.notes, ["every network stays within one host: segments.default is \"local\""]);
}

#[test]
fn networks_that_are_taken_over_get_the_segments_that_new_ones_would_and_too_few_are_told() {
    let range = VlanRange { physical_network: "p".into(), ids: 7..=8 };
    for rules in [SegmentRules::Tunnel(TunnelKind::Vxlan, 7..=8), SegmentRules::Vlan(vec![range])] {
        let essex = Essex::read(BY_SQLITE.as_bytes(), &rules).unwrap();
        let told = |network: &Network| (network.network_type.name(), network.network_type.segmentation_id());
        let types: Vec<_> = essex.backup.networks.iter().map(told).collect();
        assert_eq!(types, [(rules.name(), Some(7)), (rules.name(), Some(8))]);
        essex.backup.check().unwrap();
        assert!(!essex.notes.iter().any(|note| note.contains("within one host")), "{:?}", essex.notes);
    }
    let told = Essex::read(BY_SQLITE.as_bytes(), &SegmentRules::Tunnel(TunnelKind::Gre, 7..=7)).unwrap_err();
    let expected = "the database has 2 networks and the settings have segments of type gre for 1 of them: widen the range in [segments]";
    assert_eq!(told.to_string(), expected);
}

#[test]
fn a_text_with_line_ends_is_taken_over_from_a_dump_by_sqlite() {
    for (value, wanted) in [
        (r"replace('a\nb','\n',char(10))", "a\nb"),
        (r"replace(replace('x\012y\r\n','\r',char(13)),'\012',char(10))", "x\ny\r\\n"),
        (r"unistr('a\u000a\\\+01f600\00e9')", "a\n\\\u{1f600}é"),
        ("'replace(x'", "replace(x"),
    ] {
        let essex = read(&BY_SQLITE.replace("'the ''blue'' one; (really)'", value)).unwrap();
        assert_eq!(essex.backup.networks[0].name.as_deref(), Some(wanted), "{value}");
    }
}

#[test]
fn what_wrote_a_dump_is_told_by_its_head_and_not_by_what_a_tenant_named() {
    let mariadb = BY_MYSQL.replace("-- MySQL dump", "/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump");
    assert_eq!(read(&mariadb).unwrap(), read(BY_MYSQL).unwrap());
    let (cut, _) = mariadb.split_once("INSERT INTO `ports`").unwrap();
    assert!(read(cut).is_err(), "the ports are missing");
    let named = cut.replace("it\\'s", "\\n-- Dump completed on");
    assert!(read(&named).is_err(), "a name ends no dump");
    for name in ["/*!", "-- MySQL dump", "\n-- MariaDB dump\n"] {
        let essex = read(&BY_SQLITE.replace("'acme'", &format!("'{name}'"))).unwrap();
        assert_eq!(essex.backup.ports[0].attachment.as_deref(), Some("vif\\n1"), "{name}");
    }
    let bare =
        BY_MYSQL.replace("-- MySQL dump 10.13  Distrib 5.5\n", "").replace("-- Dump completed on 2012-04-05\n", "");
    assert_eq!(read(&bare).unwrap(), read(BY_MYSQL).unwrap(), "mysqldump --skip-comments");
}

#[test]
fn what_cannot_be_taken_over_is_refused_with_its_line() {
    let told = |dump: &str| read(dump).unwrap_err().to_string();
    assert!(Essex::read(b"\xff", &SegmentRules::Local).unwrap_err().to_string().starts_with("this is no SQL dump"));
    assert!(told("").contains("no row of a table networks"));
    assert!(told("INSERT INTO networks VALUES('a');").starts_with("line 1: the table's columns were not named"));
    for (from, to, why) in [
        ("'p2','n2','','DOWN'", "'p2','n2','','SLEEPING'", "line 22: port p2 has state \"SLEEPING\""),
        ("'p2','n2',''", "'p1','n2',''", "the database contradicts itself: port p1 comes twice"),
        ("'p2','n2',''", "'p2','n2','vif\\n1'", "the database contradicts itself: attachment"),
        ("'p2','n2',''", "'p2',NULL,''", "line 22: network_id is missing"),
        ("'p2','n2',''", "'p2','n2'", "line 22: 4 values for 5 columns"),
        ("'p2','n2',''", "'p2','n2',replace('a','b','c')", "line 22: only plain values are understood"),
        ("'p2','n2',''", "'p2','n2',replace('a','b',char(55296))", "line 22: only plain values are understood"),
        ("'p2','n2',''", "'p2','n2',replace('a','b',char(10)", "line 22: only plain values are understood"),
        ("'p2','n2',''", "'p2','n2',unistr('\\u00')", "line 22: only plain values are understood"),
        ("'p2','n2',''", "'p2','n2',lower('a')", "line 22: only plain values are understood"),
        ("COMMIT;\n", "COMMIT", "line 27: the dump is cut off"),
        ("COMMIT;\n", "", "the dump is cut off"),
        ("1,'n1'", "1,'n1", "the dump is cut off"),
    ] {
        let message = told(&BY_SQLITE.replace(from, to));
        assert!(message.contains(why), "{to}: {message}");
    }
    assert!(told(&BY_MYSQL.replace("-- Dump completed", "--")).contains("the dump is cut off"));
    let nested = format!("{}'a'{}", "replace(".repeat(5), ",'a',char(10))".repeat(5));
    assert!(told(&BY_SQLITE.replace("'p2','n2',''", &format!("'p2','n2',{nested}"))).contains("only plain values"));
    for rest in ["INSERT INTO networks VALUES ('b','t')", "SELECT '"] {
        let bare = "CREATE TABLE networks (uuid x, tenant_id y); INSERT INTO networks VALUES ('a','t');";
        assert_eq!(told(&format!("{bare} {rest}")), "line 1: the dump is cut off");
        assert_eq!(read(bare).unwrap().backup.len(), 1);
    }
    let long = BY_SQLITE.replace("other", &"x".repeat(TEXT_BYTES_MAX + 1));
    assert!(told(&long).contains("tenant_id has 1025 bytes"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "INSERT INTO", "CREATE TABLE", "networks", "ports", "(", ")", ",", ";", "'", "\"", "`", "[", "]", "VALUES", "NULL",
            "uuid", "--", "\n", "/*", "*/", "\\", "é", "1", " ", "'n'", "IF NOT EXISTS", "/*!", "replace(", "unistr('\\", "char(",
            "-- MySQL dump",
        ]), 0..40)
    ) {
        let _ = read(&pieces.concat());
    }
}

#[test]
fn a_dump_that_was_cut_anywhere_is_refused() {
    for dump in [BY_SQLITE, BY_MYSQL] {
        let end = dump.rfind(['T', 'D']).unwrap();
        for (cut, _) in dump.char_indices().filter(|(cut, _)| *cut < end) {
            assert!(read(&dump[..cut]).is_err(), "{cut}: {}", &dump[..cut]);
        }
    }
}
