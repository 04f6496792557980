//! Hosts that share an etcd: who has which name, and which interface is on which.

use super::SOON;
use super::shared::{daemon, networks};
use serde_json::{Value, json};
use tests::daemon::Daemon;
use tests::etcd::{Etcd as Server, Relay, Way};
use tests::process::wait_until;

#[test]
fn an_interface_is_on_one_host_until_that_unplugs_it_or_dies() {
    let server = Server::start();
    let [mut a, b] = ["a", "b"].map(|host| daemon(&server.url(), host, ""));
    // Who is not registered yet claims nothing.
    wait_until("both live", SOON, || a.show("nodes").as_array().unwrap().len() == 2);
    let socket = |daemon: &Daemon| format!("plug vm1 --vhost-user {}", daemon.path("vm1.sock").display());
    a.must(&socket(&a));
    let refused = b.command(&socket(&b));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("is plugged on host \"a\""), "{text}");
    // Its op-status is told by every API.
    let (red_a, red_b) = (a.tenant("red"), b.tenant("red"));
    let network = red_a.network("lan");
    let port = red_a.attached_port(&network, "vm1");
    wait_until("b tells UP", SOON, || {
        let answer = red_b.try_request("GET", &format!("networks/{network}/ports/{port}"), None).unwrap();
        answer.status == 200 && answer.json()["port"]["op-status"] == "UP"
    });
    a.must("unplug vm1");
    b.must(&socket(&b));
    wait_until("a tells UP", SOON, || red_a.op_status(&network, &port) == "UP");
    b.must("unplug vm1");
    a.must(&socket(&a));
    // Killed and back within its lease it has it still; killed for good it does not.
    a.kill_and_restart();
    wait_until("it is up again", SOON, || red_b.op_status(&network, &port) == "UP");
    a.kill();
    wait_until("b tells DOWN when the lease ends", SOON, || red_b.op_status(&network, &port) == "DOWN");
    b.must(&socket(&b));
    wait_until("b tells UP", SOON, || red_b.op_status(&network, &port) == "UP");
    // Back again, it plugs what it had plugged, and is told whose that is now.
    a.start_again();
    wait_until("a knows", SOON, || a.interface("vm1")["reason"] == "plugged-elsewhere");
    assert_eq!(b.interface("vm1")["op_status"], "UP");
}

#[test]
fn a_host_that_is_killed_and_comes_back_by_another_name_has_what_is_plugged_there() {
    let server = Server::start();
    // Longer than this test takes.
    let settings =
        |host: &str| format!("[store]\nurl = \"etcd:{}\"\n[node]\nhost = \"{host}\"\nlease_s = 120", server.url());
    let [mut a, b] = ["a", "b"].map(|host| Daemon::start(&settings(host)));
    a.must(&format!("plug vm1 --vhost-user {}", a.path("vm1.sock").display()));
    let red = b.tenant("red");
    let network = red.network("lan");
    let port = red.attached_port(&network, "vm1");
    let plugs = |host: &str| {
        let nodes = b.show("nodes");
        nodes.as_array().unwrap().iter().find(|row| row["host"] == host).map(|row| row["interfaces"].clone())
    };
    wait_until("it is UP", SOON, || red.op_status(&network, &port) == "UP" && plugs("a") == Some(json!(1)));
    a.kill();
    let path = a.path("qvs.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("host = \"a\"", "host = \"z\"")).unwrap();
    a.start_again();
    wait_until("it is there by its new name", SOON, || {
        plugs("z") == Some(json!(1)) && a.interface("vm1")["op_status"] == "UP"
    });
    assert_eq!(plugs("a"), Some(json!(0)), "the old name lives on, for the time of its lease");
    // When that ends, nothing of the new one goes with it.
    let found = server.ask("/v3/kv/range", &json!({"key": "L3F2cy9ub2RlL2E="}));
    server.ask("/v3/lease/revoke", &json!({"ID": found["kvs"][0]["lease"]}));
    wait_until("the old name is gone", SOON, || plugs("a").is_none());
    assert_eq!((plugs("z"), &*red.op_status(&network, &port)), (Some(json!(1)), "UP"));
}

#[test]
fn a_host_that_etcd_refuses_warns_of_it_once_and_tells_it_as_long_as_it_goes_on() {
    let server = Server::start();
    let a = daemon(&server.url(), "a", "");
    wait_until("it lives", SOON, || a.show("nodes").as_array().unwrap().len() == 1);
    // From now on etcd asks who is there. It does not ask whom it tells already; but a watch that is silent is begun anew.
    super::want_users(&server);
    let why = "following what changes: etcd refuses: etcdserver: user name is empty (code 3)";
    let refusals = || a.show("nodes")[0]["refusals"].clone();
    wait_until("it is told", SOON, || refusals() == json!([why]));
    let text = a.must("show nodes");
    assert!(text.lines().any(|line| line == why), "{text}");
    let count = |what: &str| a.log_tail().matches(what).count();
    wait_until("it is refused again and again", SOON, || count("it begins anew error=etcd refuses") > 3);
    assert_eq!(count(why), 1, "{}", a.log_tail());
}

#[test]
fn a_node_of_one_role_serves_no_api_or_carries_nothing() {
    let server = Server::start();
    let api = daemon(&server.url(), "a", "");
    let only = |role: &str| format!("roles = [\"{role}\"]\n");
    let b = daemon(&server.url(), "b", &only("api"));
    let refused = b.command(&format!("plug vm1 --vhost-user {}", b.path("vm1.sock").display()));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("carries nothing"), "{refused:?}");
    assert_eq!(networks(&b.tenant("red")), networks(&api.tenant("red")));
}

#[test]
fn a_node_that_carries_nothing_any_more_says_nothing_of_what_was_plugged_there() {
    let server = Server::start();
    let (mut a, b) = (daemon(&server.url(), "a", ""), daemon(&server.url(), "b", ""));
    a.must(&format!("plug vm1 --vhost-user {}", a.path("vm1.sock").display()));
    let red = b.tenant("red");
    let network = red.network("lan");
    let port = red.attached_port(&network, "vm1");
    wait_until("it is UP", SOON, || red.op_status(&network, &port) == "UP");
    a.stop();
    let settings = a.path("qvs.toml");
    let text = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(&settings, text.replace("host = \"a\"", "host = \"a\"\nroles = [\"api\"]")).unwrap();
    a.start_again();
    let nodes = || b.show("nodes").as_array().unwrap().len();
    wait_until("it is back", SOON, || nodes() == 2);
    assert_eq!(red.op_status(&network, &port), "DOWN");
    let socket = b.path("vm1.sock");
    b.must(&format!("plug vm1 --vhost-user {}", socket.display()));
    wait_until("it is UP there", SOON, || red.op_status(&network, &port) == "UP");
}

#[test]
fn a_host_that_is_told_to_end_while_a_write_waits_for_an_answer_leaves_at_once() {
    let server = Server::start();
    let relay = Relay::new(server.address());
    let settings = format!("[store]\nurl = \"etcd:{}\"\n[node]\nhost = \"a\"\nlease_s = 60", relay.url());
    let mut a = Daemon::start(&settings);
    let record = json!({"key": "L3F2cy9ub2RlL2E="});
    let lives = || !server.ask("/v3/kv/range", &record)["kvs"].is_null();
    wait_until("it lives", SOON, lives);
    let red = a.tenant("red");
    // Two, so that there is one that is not in its copy yet.
    (0..2).for_each(|_| drop(red.network("lan")));
    relay.set(Way::NoAnswers);
    std::thread::scope(|scope| {
        let body = json!({"network": {"name": "n"}});
        scope.spawn(move || drop(red.try_request("POST", "networks", Some(&body))));
        wait_until("it waits", SOON, || relay.unanswered().iter().any(|path| path == "/v3/kv/txn"));
        a.stop();
    });
    assert!(!lives(), "{}", a.path("log").display());
}

#[test]
fn a_second_host_of_one_name_takes_nothing_away_and_has_it_once_the_first_is_gone() {
    let server = Server::start();
    // The first one is back within its lease, also where a start takes some seconds.
    let start = |host: &str| {
        Daemon::start(&format!("[store]\nurl = \"etcd:{}\"\n[node]\nhost = \"{host}\"\nlease_s = 12", server.url()))
    };
    let [mut a, c] = ["a", "c"].map(start);
    let socket = |daemon: &Daemon| format!("plug vm1 --vhost-user {}", daemon.path("vm1.sock").display());
    a.must(&socket(&a));
    let red = c.tenant("red");
    let network = red.network("lan");
    let port = red.attached_port(&network, "vm1");
    let plugs = || {
        let nodes = c.show("nodes");
        nodes.as_array().unwrap().iter().find(|row| row["host"] == "a").map(|row| row["interfaces"].clone())
    };
    wait_until("it is UP", SOON, || red.op_status(&network, &port) == "UP" && plugs() == Some(json!(1)));
    // What somebody takes away of it is said again, and known to all before another may take its place.
    let record = json!({"key": "L3F2cy9ub2RlL2E="});
    let made = || server.ask("/v3/kv/range", &record)["kvs"][0]["create_revision"].clone();
    let before = made();
    server.ask("/v3/kv/deleterange", &record);
    wait_until("it lives again", SOON, || ![&before, &Value::Null].contains(&&made()));
    red.network("next");
    let namesake = start("a");
    wait_until("it is told", SOON, || namesake.log_tail().contains("another host has our name"));
    namesake.must(&format!("plug vm2 --vhost-user {}", namesake.path("vm2.sock").display()));
    assert_eq!((red.op_status(&network, &port), plugs()), ("UP".to_owned(), Some(json!(1))));
    // Killed and back it is the same host; gone for good it is not, and the other takes its place.
    a.kill_and_restart();
    wait_until("it is UP again", SOON, || red.op_status(&network, &port) == "UP");
    a.kill();
    wait_until("the other is registered", 2 * SOON, || {
        red.op_status(&network, &port) == "DOWN" && plugs() == Some(json!(1))
    });
    a.start_again();
    wait_until("the first is told", SOON, || a.log_tail().contains("another host has our name"));
}
