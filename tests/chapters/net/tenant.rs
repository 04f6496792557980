//! The tenants' commands, `qvs net|port|attach`, as a user types them, against the running daemon.

use super::SOON;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use tests::daemon::{Daemon, program};
use tests::namespace::Namespace;
use tests::process::TempDir;

/// A tenant's shell: the environment of its commands.
struct Shell<'a> {
    daemon: &'a Daemon,
    tenant: &'a str,
    token: Option<String>,
}

impl Shell<'_> {
    fn qvs(&self, line: &str) -> Output {
        let mut command = Command::new(program());
        command.args(line.split_whitespace()).env("QVS_URL", format!("http://{}", self.daemon.api()));
        command.env("QVS_TENANT", self.tenant).env_remove("QVS_TOKEN").env_remove("QVS_CACERT");
        command.envs(self.token.as_ref().map(|token| ("QVS_TOKEN", token))).output().unwrap()
    }

    /// What a command that must succeed printed, without the last line's end.
    fn must(&self, line: &str) -> String {
        let output = self.qvs(line);
        assert!(output.status.success(), "qvs {line}: {output:?}\n{}", self.daemon.log_tail());
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.must(&format!("{line} --json"))).unwrap()
    }

    /// The one line of a command that must be refused.
    fn refused(&self, line: &str) -> String {
        let output = self.qvs(line);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "qvs {line}: {said}");
        assert!(said.starts_with("qvs: ") && said.lines().count() == 1 && output.stdout.is_empty(), "{line}: {said}");
        said.trim_end().to_owned()
    }
}

#[test]
fn a_tenant_connects_two_interfaces_with_the_commands_alone() {
    let daemon = Daemon::start("");
    let shell = Shell { daemon: &daemon, tenant: "acme?", token: None };
    let spaces = ["one", "two"].map(Namespace::new);
    for space in &spaces {
        daemon.must(&format!("plug {0} --tap tap0 --netns {0}", space.name()));
    }
    let network = shell.must("net create blue");
    let first = shell.must("port create blue --attach one");
    let second = shell.must("port create blue --down");
    assert_eq!(shell.must(&format!("attach plug blue {second} two")), "attached");
    assert_eq!(shell.must("port up blue two"), "ACTIVE");
    daemon.wait_up(&["one", "two"]);
    for (space, address) in spaces.iter().zip(["10.0.0.1/24", "10.0.0.2/24"]) {
        space.address("tap0", address);
    }
    assert!(spaces[0].pings_within("10.0.0.2", SOON), "{}", daemon.log_tail());

    let table = format!(
        "ID{0:34}  NAME  OP-STATUS\n{network}  blue  UP\n\nID{0:34}  STATE   OP-STATUS  ATTACHMENT\n\
         {first}  ACTIVE  UP         one\n{second}  ACTIVE  UP         two",
        ""
    );
    assert_eq!(shell.must("net show blue"), table);
    assert_eq!(shell.json("net list --attachment two")[0]["id"], *network);
    assert_eq!(shell.json("net list --name green").as_array().unwrap().len(), 0);
    assert_eq!(shell.json("port list")[1]["network"]["id"], *network);
    assert_eq!(shell.json("port list blue --attachment two")[0]["id"], *second);
    assert_eq!(shell.json("port show blue one")["attachment"]["id"], "one");
    assert_eq!(shell.must(&format!("attach show blue {first}")), "one");

    let allowed = |interface: &str| daemon.interface(interface)["allowed_macs"].clone();
    assert_eq!(shell.must("port allow blue one 02:00:00:00:00:01,10.0.0.1 02:00:00:00:00:02"), "2 allowed");
    assert_eq!(allowed("one"), json!(["02:00:00:00:00:01", "02:00:00:00:00:02"]));
    assert!(shell.refused("port allow blue one 02:00").contains("has a mac_address that is no station's"));
    assert_eq!(shell.must("port allow blue one"), "0 allowed");
    assert_eq!((allowed("one"), shell.json("port show blue one")["state"].clone()), (json!([]), json!("ACTIVE")));
    shell.must("port create blue --attach three --allow 02:00:00:00:00:03,fe80::1/64");
    assert_eq!(allowed("three"), json!(["02:00:00:00:00:03"]));

    assert_eq!(shell.must("port down blue two"), "DOWN");
    assert_eq!(shell.json(&format!("port show blue {second}"))["state"], "DOWN");
    assert!(!spaces[0].pings("10.0.0.2"));
    assert!(shell.refused("net delete blue").contains("one or more attachments plugged into its ports"));
    for name in ["one", "two", "three"] {
        assert_eq!(shell.must(&format!("attach unplug blue {name}")), "detached");
    }
    assert_eq!(shell.must(&format!("attach show blue {first}")), "");
    assert_eq!(shell.must("net rename blue green"), "renamed");
    assert_eq!(shell.must(&format!("port delete green {first}")), "deleted");
    assert_eq!(shell.must("net delete green"), "deleted");
    assert_eq!(shell.must("net list"), "ID  NAME  OP-STATUS");
}

#[test]
fn a_word_that_means_nothing_or_several_things_is_refused_and_nothing_is_changed() {
    let daemon = Daemon::start("");
    let shell = Shell { daemon: &daemon, tenant: "red", token: None };
    let (first, second) = (shell.must("net create twin"), shell.must("net create twin"));
    let said = shell.refused("net delete twin");
    assert!(said.contains(&first) && said.contains(&second) && said.ends_with("give the id"), "{said}");
    // A network named like another's id is only told apart by its own.
    let namesake = shell.must(&format!("net create {first}"));
    let said = shell.refused(&format!("net delete {first}"));
    assert!(said.contains(&format!("{namesake}, {first}")), "{said}");
    assert_eq!(shell.must(&format!("net delete {namesake}")), "deleted");
    assert_eq!(shell.must(&format!("net delete {first}")), "deleted");
    assert_eq!(shell.json("net list").as_array().unwrap().len(), 1);

    assert_eq!(shell.refused("net show a/b"), "qvs: no network is called \"a/b\"");
    assert_eq!(shell.refused("net show blue"), "qvs: Network blue could not be found");
    for word in ["detail", "new", "a.b"] {
        assert_eq!(shell.refused(&format!("net show {word}")), format!("qvs: no network is called {word:?}"));
    }
    assert!(shell.refused("port show twin nobody").contains("Port nobody could not be found on network"));
    // A foreign tenant's is as absent as none.
    let blue = Shell { daemon: &daemon, tenant: "blue", token: None };
    assert!(blue.refused(&format!("net show {second}")).contains("could not be found"));

    shell.must("port create twin --attach vif");
    let said = shell.refused("port create twin --attach vif");
    assert!(said.contains("The attachment is already plugged into port"), "{said}");
    assert_eq!(shell.json("port list twin").as_array().unwrap().len(), 1, "the port was not left behind");
    let usage = shell.qvs("net show");
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn a_token_comes_from_the_environment_or_a_file_that_others_cannot_read() {
    let dir = TempDir::new();
    let settings = dir.join("token.toml");
    std::fs::write(&settings, format!("state_dir = {:?}\n", dir.join("state"))).unwrap();
    let made = Command::new(program()).args(["token", "red", "--config"]).arg(&settings).output().unwrap();
    let token = String::from_utf8(made.stdout).unwrap().trim_end().to_owned();
    let daemon = Daemon::start_in(dir, "[identity]\nmode = \"tokens\"");
    let mut shell = Shell { daemon: &daemon, tenant: "red", token: None };
    assert!(shell.refused("net list").contains("set QVS_TOKEN"));
    let file = daemon.path("token");
    std::fs::write(&file, &token).unwrap();
    let from_file = format!("net list --token-file {}", file.display());
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    assert_eq!(shell.must(&from_file), "ID  NAME  OP-STATUS");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(shell.qvs(&from_file).status.code(), Some(2));

    shell.token = Some(token);
    assert_eq!(shell.must("net create n").len(), 36);
    assert_eq!(shell.refused("net list --tenant blue"), "qvs: The token is not for the tenant of this address.");
    shell.token = Some("nonsense".to_owned());
    assert!(shell.refused("net list").contains("does not take the token"));
}
