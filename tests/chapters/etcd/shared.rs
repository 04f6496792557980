//! API servers that share tenants' records: real daemons over one etcd, without a wire between them.

use super::{SOON, blob};
use api::etcd::message::{Step, Txn};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use tests::daemon::Daemon;
use tests::etcd::{Etcd as Server, Relay, Way};
use tests::http::Tenant;
use tests::process::{TempDir, wait_for, wait_until};

/// A daemon called `host` that shares what is behind `urls`.
pub(super) fn daemon(urls: &str, host: &str, more: &str) -> Daemon {
    Daemon::start(&format!("[store]\nurl = \"etcd:{urls}\"\n[node]\nhost = \"{host}\"\nlease_s = 6\n{more}"))
}

/// Settings of a host, called by one letter, whose networks are tunnelled; the socket of its uplink is in `dir`.
fn tunnels(dir: &TempDir, host: &str) -> String {
    let (path, number) = (dir.join(host), host.as_bytes()[0]);
    format!(
        "[[uplink]]\nphysical_network = \"p\"\nvhost_user = {path:?}\naddress = \"192.0.2.{number}/24\"\n\
         [tunnel]\nlocal_ip = \"192.0.2.{number}\"\n[segments]\ndefault = \"vxlan\"\n"
    )
}

/// The ids of a tenant's networks at this API.
pub(super) fn networks(tenant: &Tenant) -> BTreeSet<String> {
    let answer = tenant.request("GET", "networks", None, 200).json();
    let id = |network: &Value| network["id"].as_str().unwrap().to_owned();
    answer["networks"].as_array().unwrap().iter().map(id).collect()
}

/// Waits until both APIs tell the same networks; which.
pub(super) fn agreed(a: &Tenant, b: &Tenant) -> BTreeSet<String> {
    let same = || {
        let (a, b) = (networks(a), networks(b));
        (a == b).then_some(a)
    };
    wait_for(SOON, same).unwrap_or_else(|| panic!("{:?} and {:?}", networks(a), networks(b)))
}

#[test]
fn what_one_api_server_wrote_the_other_tells_and_both_change_it() {
    let server = Server::start();
    let [a, b] = ["a", "b"].map(|host| daemon(&server.url(), host, ""));
    let [red_a, red_b] = [&a, &b].map(|daemon| daemon.tenant("red"));
    let network = red_a.network("lan");
    wait_until("b hears of it", SOON, || networks(&red_b).contains(&network));
    let port = red_b.port(&network);
    // At once, although a may not have heard of it: its plan is made anew until it has.
    red_b.attach(&network, &port, "vm1");
    // None while the host has not heard of the port.
    let attached = |tenant: &Tenant| {
        let path = format!("networks/{network}/ports/{port}/attachment");
        let answer = tenant.try_request("GET", &path, None).unwrap();
        (answer.status == 200).then(|| answer.json()["attachment"]["id"].clone())
    };
    wait_until("a hears of it", SOON, || attached(&red_a).is_some_and(|id| id == "vm1"));
    let other = red_a.port(&network);
    let body = json!({"attachment": {"id": "vm1"}});
    red_a.request("PUT", &format!("networks/{network}/ports/{other}/attachment"), Some(&body), 409);
    red_a.detach(&network, &port);
    wait_until("b hears of it", SOON, || attached(&red_b).is_some_and(|id| id.is_null()));
    red_b.request("DELETE", &format!("networks/{network}"), None, 204);
    assert!(agreed(&red_a, &red_b).is_empty());
    // Both know who is there.
    wait_until("both live", SOON, || {
        let nodes = b.show("nodes");
        nodes.as_array().unwrap().iter().map(|row| row["host"].clone()).eq(["a", "b"])
    });
}

#[test]
fn no_api_server_refuses_by_what_another_has_changed_a_moment_ago() {
    let server = Server::start();
    let [a, b] = ["a", "b"].map(|host| daemon(&server.url(), host, ""));
    let (red_a, red_b) = (a.tenant("red"), b.tenant("red"));
    let first = red_a.network("lan");
    let port = red_a.port(&first);
    for at in 0..30 {
        // At once, each: the other has hardly heard of it.
        let network = red_a.network("lan");
        let other = red_b.port(&network);
        red_a.attach(&first, &port, "vm1");
        red_a.detach(&first, &port);
        red_b.attach(&network, &other, "vm1");
        red_b.detach(&network, &other);
        red_a.request("DELETE", &format!("networks/{network}"), None, 204);
        // Whatever it has heard of, this is not there any more.
        let body = json!({"port": {"state": "ACTIVE"}});
        red_b.request("POST", &format!("networks/{network}/ports"), Some(&body), 404);
        let socket = |daemon: &Daemon| format!("plug vm2 --vhost-user {}", daemon.path(&format!("{at}")).display());
        for host in [&a, &b] {
            host.must(&socket(host));
            host.must("unplug vm2");
        }
    }
}

#[test]
fn two_api_servers_that_write_at_once_lose_nothing_and_keep_quotas_and_segments() {
    let (server, dir) = (Server::start(), TempDir::new());
    let quota = |host: &str| format!("[quota]\nnetworks = 60\n{}", tunnels(&dir, host));
    let [a, b] = ["a", "b"].map(|host| daemon(&server.url(), host, &quota(host)));
    let (made, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for daemon in [&a, &b] {
            for _ in 0..4 {
                scope.spawn(|| {
                    let tenant = daemon.tenant("red");
                    for _ in 0..12 {
                        let body = json!({"network": {"name": "n"}});
                        let answer = tenant.try_request("POST", "networks", Some(&body)).unwrap();
                        let counter = if answer.status == 202 { &made } else { &refused };
                        counter.fetch_add(1, Ordering::Relaxed);
                        let text = String::from_utf8_lossy(&answer.body).into_owned();
                        assert!(answer.status == 202 || text.contains("Quota"), "{}: {text}", answer.status);
                    }
                });
            }
        }
    });
    assert_eq!((made.into_inner(), refused.into_inner()), (60, 36));
    assert_eq!(agreed(&a.tenant("red"), &b.tenant("red")).len(), 60);
    let segments = |daemon: &Daemon| -> BTreeSet<u64> {
        let networks = daemon.show("networks");
        networks.as_array().unwrap().iter().map(|row| row["segmentation_id"].as_u64().unwrap()).collect()
    };
    assert_eq!(segments(&a), (5000..5060).collect::<BTreeSet<_>>());
    assert_eq!(segments(&a), segments(&b));
}

#[test]
fn a_number_that_was_a_networks_is_no_others_until_who_has_not_heard_counts_as_dead() {
    let (server, dir) = (Server::start(), TempDir::new());
    let few = |host: &str| format!("{}vni = \"5000-5029\"\n", tunnels(&dir, host));
    let [a, b] = ["a", "b"].map(|host| daemon(&server.url(), host, &few(host)));
    let number = |daemon: &Daemon, network: &str| {
        let networks = daemon.show("networks");
        let row = networks.as_array().unwrap().iter().find(|row| row["id"] == network).cloned();
        row.unwrap_or_else(|| panic!("{network} of {networks:#}"))["segmentation_id"].as_u64().unwrap()
    };
    let red = a.tenant("red");
    let first = red.network("first");
    assert_eq!(number(&a, &first), 5000);
    red.request("DELETE", &format!("networks/{first}"), None, 204);
    let second = a.tenant("blue").network("second");
    let third = b.tenant("blue").network("third");
    assert_eq!((number(&a, &second), number(&b, &third)), (5001, 5002));
    // Who has just started knows it too.
    let c = daemon(&server.url(), "c", &few("c"));
    let fourth = c.tenant("blue").network("fourth");
    assert_eq!(number(&c, &fourth), 5003);
    // Who makes networks and removes them for ever gets his own again, and leaves the others some.
    let numbers: BTreeSet<u64> = (0..50)
        .map(|_| {
            let network = red.network("n");
            let number = number(&a, &network);
            red.request("DELETE", &format!("networks/{network}"), None, 204);
            number
        })
        .collect();
    assert!(numbers.len() <= 20, "{numbers:?}");
    // They are free again by themselves; leases last six seconds here.
    let range = json!({"key": "L3F2cy9mcmVlZC8=", "range_end": "L3F2cy9mcmVlZDA=", "count_only": true});
    wait_until("the marks have gone", 3 * SOON, || server.ask("/v3/kv/range", &range)["count"].is_null());
    let all: BTreeSet<u64> = (0..27).map(|_| number(&b, &b.tenant("blue").network("n"))).collect();
    assert_eq!(all.len(), 27, "of thirty three are taken");
}

#[test]
fn etcd_forgets_what_is_long_past() {
    let server = Server::start();
    let a = daemon(&server.url(), "a", "");
    let first = server.ask("/v3/kv/range", &json!({"key": "YQ=="}))["header"]["revision"].as_str().unwrap().to_owned();
    // What every host is told of; nobody knows what it is.
    let long = json!({"key": "L3F2cy9sb25nL3g=", "value": "x".repeat(1 << 20)}).to_string();
    let is_forgotten = || {
        let question = json!({"key": "YQ==", "revision": first});
        let mut connection = tests::http::Connection::open(server.address()).unwrap();
        connection.request("POST", "/v3/kv/range", Some(&question)).unwrap().status != 200
    };
    let mut count = 0;
    while !is_forgotten() {
        server.ask_text("/v3/kv/put", &long);
        count += 1;
        assert!(count < 250, "a MiB each");
    }
    assert!(count > 100, "some history is kept: {count}");
    let network = a.tenant("red").network("lan");
    assert!(networks(&a.tenant("red")).contains(&network));
}

#[test]
fn a_write_whose_answer_is_lost_is_done_once_and_answered() {
    let server = Server::start();
    let relay = Relay::new(server.address());
    let (a, b) = (daemon(&relay.url(), "a", ""), daemon(&server.url(), "b", ""));
    let (red_a, red_b) = (a.tenant("red"), b.tenant("red"));
    // It has read what there is, and serves.
    assert!(networks(&red_a).is_empty());
    for _ in 0..3 {
        relay.set(Way::NoAnswers);
        thread::scope(|scope| {
            let writer = scope.spawn(|| red_a.network("lan"));
            wait_until("it wrote in vain, and asks what became of that", SOON, || {
                let asked = relay.unanswered();
                let written = asked.iter().position(|path| path == "/v3/kv/txn");
                written.is_some_and(|at| asked[at + 1..].iter().any(|path| path.starts_with("/v3/kv/")))
            });
            relay.set(Way::Open);
            let made = writer.join().unwrap();
            assert!(networks(&red_a).contains(&made));
        });
    }
    assert_eq!(agreed(&red_a, &red_b).len(), 3);
}

#[test]
fn a_write_whose_answer_is_lost_is_done_once_although_a_host_of_the_same_name_wrote_since() {
    let server = Server::start();
    let relay = Relay::new(server.address());
    let a = daemon(&relay.url(), "a", "");
    let namesake = daemon(&server.url(), "a", "");
    let (red_a, red_b) = (a.tenant("red"), namesake.tenant("red"));
    assert!(networks(&red_a).is_empty());
    relay.set(Way::NoAnswers);
    thread::scope(|scope| {
        let writer = scope.spawn(|| red_a.network("lan"));
        wait_until("it is written", SOON, || networks(&red_b).len() == 1);
        red_b.network("lan");
        relay.set(Way::Open);
        let made = writer.join().unwrap();
        assert!(networks(&red_b).contains(&made));
    });
    assert_eq!(agreed(&red_a, &red_b).len(), 2);
}

#[test]
fn a_mark_that_went_unheard_withholds_its_number_from_nobody() {
    let (server, dir) = (Server::start(), TempDir::new());
    let relay = Relay::new(server.address());
    let (a, b) = (daemon(&server.url(), "a", &tunnels(&dir, "a")), daemon(&relay.url(), "b", &tunnels(&dir, "b")));
    let (red_a, red_b) = (a.tenant("red"), b.tenant("red"));
    let gone = red_a.network("gone");
    red_a.request("DELETE", &format!("networks/{gone}"), None, 204);
    red_b.network("next");
    let numbers = || {
        let networks = b.show("networks");
        let number = |row: &Value| row["segmentation_id"].as_u64().unwrap();
        networks.as_array().unwrap().iter().map(number).collect::<BTreeSet<_>>()
    };
    assert_eq!(numbers(), BTreeSet::from([5001]), "it knows of the mark");
    relay.set(Way::Closed);
    red_a.network("meanwhile");
    // As when its lease ends.
    server.ask("/v3/kv/deleterange", &json!({"key": "L3F2cy9mcmVlZC8=", "range_end": "L3F2cy9mcmVlZDA="}));
    server.compact();
    relay.set(Way::Open);
    wait_until("b has caught up", SOON, || agreed(&red_a, &red_b).len() == 2);
    let body = json!({"network": {"name": "n"}});
    let make = || red_b.try_request("POST", "networks", Some(&body)).unwrap().status == 202;
    wait_until("b writes", SOON, make);
    assert_eq!(numbers(), BTreeSet::from([5000, 5001, 5002]));
}

#[test]
fn a_network_is_removed_although_the_lease_of_earlier_marks_has_ended() {
    let (server, dir) = (Server::start(), TempDir::new());
    let a = daemon(&server.url(), "a", &tunnels(&dir, "a"));
    let red = a.tenant("red");
    let [first, second] = ["first", "second"].map(|name| red.network(name));
    red.request("DELETE", &format!("networks/{first}"), None, 204);
    let range = json!({"key": "L3F2cy9mcmVlZC8=", "range_end": "L3F2cy9mcmVlZDA="});
    let marks = || server.ask("/v3/kv/range", &range)["kvs"].clone();
    server.ask("/v3/lease/revoke", &json!({"ID": marks()[0]["lease"]}));
    assert!(marks().is_null());
    red.request("DELETE", &format!("networks/{second}"), None, 204);
    assert_eq!(marks().as_array().map(Vec::len), Some(1), "it has left its mark");
}

#[test]
fn an_etcd_that_is_full_is_had_forget_what_is_long_past() {
    let server = Server::start_at(std::net::Ipv4Addr::LOCALHOST.into(), "http", |_| {
        vec!["--quota-backend-bytes".to_owned(), (180 << 20).to_string()]
    });
    let relay = Relay::new(server.address());
    let a = daemon(&relay.url(), "a", "");
    let first = server.revision();
    // One that every host is told of, and one that none is.
    let long = |key: &str| json!({"key": key, "value": "x".repeat(1 << 20)}).to_string();
    let (told, untold) = (long("L3F2cy9sb25nL3g="), long("eA=="));
    let ask = |path: &str, question: &str| {
        tests::http::Connection::open(server.address()).unwrap().request_text("POST", path, question).unwrap().status
    };
    let has_said = || !server.ask("/v3/kv/range", &json!({"key": "L3F2cy9jb21wYWN0ZWQ="}))["kvs"].is_null();
    while !has_said() {
        server.ask_text("/v3/kv/put", &told);
    }
    // Nearly enough for another cut; the rest it hears of when etcd is full.
    (0..50).for_each(|_| drop(server.ask_text("/v3/kv/put", &told)));
    wait_until("a has heard", SOON, || {
        let copy = std::fs::read_to_string(a.path("state/cloud.copy")).unwrap();
        copy.lines().next().unwrap().contains(&format!("\"revision\":{}", server.revision()))
    });
    relay.set(Way::Closed);
    (0..20).for_each(|_| drop(server.ask_text("/v3/kv/put", &told)));
    while ask("/v3/kv/put", &untold) == 200 {}
    relay.set(Way::Open);
    let question = json!({"key": "YQ==", "revision": first.to_string()}).to_string();
    wait_until("it has forgotten", SOON, || ask("/v3/kv/range", &question) != 200);
}

#[test]
fn a_record_that_cannot_be_read_is_told_and_followed_past_once_it_is_mended() {
    let server = Server::start();
    let [a, b] = ["a", "b"].map(|host| daemon(&server.url(), host, ""));
    let [red_a, red_b] = [&a, &b].map(|daemon| daemon.tenant("red"));
    red_a.network("lan");
    agreed(&red_a, &red_b);
    // "/qvs/network/x"
    server.ask("/v3/kv/put", &json!({"key": "L3F2cy9uZXR3b3JrL3g=", "value": "eA=="}));
    wait_until("it is told", SOON, || b.log_tail().contains("this host follows nothing until that is mended"));
    let made = red_a.network("meanwhile");
    server.ask("/v3/kv/deleterange", &json!({"key": "L3F2cy9uZXR3b3JrL3g="}));
    wait_until("b hears of it", 2 * SOON, || networks(&red_b).contains(&made));
    let next = red_a.network("next");
    wait_until("b hears of it", SOON, || networks(&red_b).contains(&next));
}

/// Writes networks of the tenant red with these ids and numbers of ports into an etcd that has none, as a daemon would.
fn fill(server: &Server, networks: &[(&str, usize)]) {
    /// Steps of one transaction.
    const STEPS: usize = 100;
    let record = |text: String| [&[1], text.as_bytes()].concat();
    let mut records = vec![("head".to_owned(), br#"{"schema":1,"write":"w"}"#.to_vec())];
    let mut serial = 0;
    for (id, ports) in networks {
        let network = record(format!(r#"{{"tenant":"red","name":null,"serial":{serial}}}"#));
        records.push((format!("network/{id}"), network));
        for _ in 0..*ports {
            serial += 1;
            // As long as the real ones.
            let port = format!(r#"{{"network":"{id}","state":"ACTIVE","attachment":null,"serial":{serial}}}"#);
            records.push((format!("port/{id}-4567-8901-2345-{serial:012}"), record(port)));
        }
        serial += 1;
    }
    let client = super::client(server);
    super::run(async {
        for some in records.chunks(STEPS) {
            let put = |(key, value): &(String, Vec<u8>)| Step::put(blob(&format!("/qvs/{key}")), value.clone(), None);
            let txn = Txn { success: some.iter().map(put).collect(), ..Txn::default() };
            assert!(client.transact(&txn).await.unwrap().succeeded);
        }
    });
}

#[test]
fn a_network_of_thousands_of_ports_is_removed_at_once_and_a_larger_one_is_not_touched() {
    let server = Server::start();
    fill(&server, &[("large-12345678", 12_000), ("largest-1234567", 25_000)]);
    let [a, b] = ["a", "b"].map(|host| daemon(&server.url(), host, ""));
    let (red_a, red_b) = (a.tenant("red"), b.tenant("red"));
    let count = || {
        let answer = server.ask(
            "/v3/kv/range",
            &json!({"key": "L3F2cy9wb3J0Lw==", "range_end": "L3F2cy9wb3J0MA==", "count_only": true}),
        );
        answer["count"].as_str().map(str::to_owned).unwrap_or_default()
    };
    assert_eq!(count(), "37000");
    let refused = red_a.request("DELETE", "networks/largest-1234567", None, 409);
    let text = String::from_utf8_lossy(&refused.body).into_owned();
    assert!(text.contains("25000 ports are more than can be removed at once"), "{text}");
    red_a.request("DELETE", "networks/large-12345678", None, 204);
    assert_eq!(count(), "25000");
    wait_until("b hears of it", SOON, || networks(&red_b) == BTreeSet::from(["largest-1234567".to_owned()]));
}

#[test]
fn what_an_extension_keeps_is_shared_and_no_update_is_lost() {
    let server = Server::start();
    let [a, b] = ["a", "b"].map(|host| daemon(&server.url(), host, ""));
    let body = json!({"qos": {"qos_name": "gold", "qos_desc": {"rate": "1"}}});
    let path = "extensions/csco/tenants/red/qoss";
    let ask = |daemon: &Daemon, method: &str, path: &str, body: Option<&Value>| {
        let mut connection = tests::http::Connection::open(daemon.api()).unwrap();
        connection.request(method, &format!("/v1.1/{path}"), body).unwrap()
    };
    let made = ask(&a, "POST", path, Some(&body));
    assert!(made.status < 300, "{}", String::from_utf8_lossy(&made.body));
    let count = |daemon: &Daemon| ask(daemon, "GET", path, None).json()["qoss"].as_array().map_or(0, Vec::len);
    wait_until("b tells it", SOON, || count(&b) == 1);
    assert!(ask(&b, "POST", path, Some(&body)).status < 300);
    wait_until("a tells both", SOON, || count(&a) == 2 && count(&b) == 2);
}

#[test]
fn what_an_extension_keeps_whose_answer_is_lost_is_kept_once_and_answered() {
    let server = Server::start();
    let relay = Relay::new(server.address());
    let a = daemon(&relay.url(), "a", "");
    let body = json!({"qos": {"qos_name": "gold", "qos_desc": {"rate": "1"}}});
    let ask = |method: &str, body: Option<&Value>| {
        let mut connection = tests::http::Connection::open(a.api()).unwrap();
        connection.request(method, "/v1.1/extensions/csco/tenants/red/qoss", body).unwrap()
    };
    assert!(ask("POST", Some(&body)).status < 300);
    relay.set(Way::NoAnswers);
    thread::scope(|scope| {
        let writer = scope.spawn(|| ask("POST", Some(&body)).status);
        wait_until("it wrote in vain, and asks what became of that", SOON, || {
            relay.unanswered().iter().filter(|path| *path == "/v3/kv/txn").count() > 1
        });
        relay.set(Way::Open);
        assert!(writer.join().unwrap() < 300);
    });
    assert_eq!(ask("GET", None).json()["qoss"].as_array().map(Vec::len), Some(2));
}
