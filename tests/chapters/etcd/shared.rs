//! API servers that share tenants' records: real daemons over one etcd, without a wire between them.

use super::{SOON, blob, secret, want_users};
use api::etcd::message::{Step, Txn};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use tests::daemon::Daemon;
use tests::etcd::{Etcd as Server, Relay, Way};
use tests::http::Tenant;
use tests::process::{wait_for, wait_until};

/// A daemon called `host` that shares what is behind `urls`.
fn daemon(urls: &str, host: &str, more: &str) -> Daemon {
    Daemon::start(&format!("[store]\nurl = \"etcd:{urls}\"\n[node]\nhost = \"{host}\"\nlease_s = 6\n{more}"))
}

/// Settings of a host, called by one letter, whose networks are tunnelled.
fn tunnels(host: &str) -> String {
    let (path, number) = (format!("/tmp/qvs-etcd-{}-{host}", std::process::id()), host.as_bytes()[0]);
    format!(
        "[[uplink]]\nphysical_network = \"p\"\nvhost_user = \"{path}\"\naddress = \"192.0.2.{number}/24\"\n\
         [tunnel]\nlocal_ip = \"192.0.2.{number}\"\n[segments]\ndefault = \"vxlan\"\n"
    )
}

/// The ids of a tenant's networks at this API.
fn networks(tenant: &Tenant) -> BTreeSet<String> {
    let answer = tenant.request("GET", "networks", None, 200).json();
    let id = |network: &Value| network["id"].as_str().unwrap().to_owned();
    answer["networks"].as_array().unwrap().iter().map(id).collect()
}

/// Waits until both APIs tell the same networks; which.
fn agreed(a: &Tenant, b: &Tenant) -> BTreeSet<String> {
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
    let nodes = b.show("nodes");
    let hosts: Vec<_> = nodes.as_array().unwrap().iter().map(|row| row["host"].clone()).collect();
    assert_eq!(hosts, ["a", "b"], "{nodes:#}");
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
    let server = Server::start();
    let quota = |host: &str| format!("[quota]\nnetworks = 60\n{}", tunnels(host));
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
    let server = Server::start();
    let few = |host: &str| format!("{}vni = \"5000-5029\"\n", tunnels(host));
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
    let long = "x".repeat(1 << 20);
    let is_forgotten = || {
        let question = json!({"key": "YQ==", "revision": first});
        let mut connection = tests::http::Connection::open(server.address()).unwrap();
        connection.request("POST", "/v3/kv/range", Some(&question)).unwrap().status != 200
    };
    let mut count = 0;
    while !is_forgotten() {
        server.ask("/v3/kv/put", &json!({"key": "L3F2cy9sb25nL3g=", "value": long}));
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
fn without_etcd_reads_are_answered_writes_refused_and_all_is_caught_up_afterwards() {
    let mut server = Server::start();
    let [a, b] = ["a", "b"].map(|host| daemon(&server.url(), host, ""));
    let [red_a, red_b] = [&a, &b].map(|daemon| daemon.tenant("red"));
    let network = red_a.network("lan");
    agreed(&red_a, &red_b);
    server.kill();
    for tenant in [&red_a, &red_b] {
        assert!(networks(tenant).contains(&network));
        let answer = tenant.request("POST", "networks", Some(&json!({"network": {"name": "n"}})), 503);
        assert!(answer.headers.iter().any(|line| line.to_ascii_lowercase().starts_with("retry-after:")), "{answer:?}");
    }
    server.start_again();
    let made = wait_for(SOON, || {
        let body = json!({"network": {"name": "n"}});
        let answer = red_b.try_request("POST", "networks", Some(&body)).unwrap();
        (answer.status == 202).then(|| answer.json()["network"]["id"].as_str().unwrap().to_owned())
    });
    let made = made.expect("writes are taken again");
    wait_until("a hears of it", SOON, || networks(&red_a).contains(&made));
    assert_eq!(agreed(&red_a, &red_b).len(), 2, "what was refused was not done");
    wait_until("both live again", SOON, || {
        [&a, &b].iter().all(|daemon| daemon.show("nodes").as_array().unwrap().len() == 2)
    });
}

#[test]
fn an_interface_is_plugged_while_a_write_waits_for_etcd_and_the_next_writers_are_refused_soon() {
    let server = Server::start();
    let a = daemon(&server.url(), "a", "");
    let red = a.tenant("red");
    red.network("lan");
    server.pause();
    let body = json!({"network": {"name": "n"}});
    thread::scope(|scope| {
        let writer = scope.spawn(|| a.tenant("red").try_request("POST", "networks", Some(&body)).unwrap().status);
        wait_until("it is away", SOON, || is_away(&a));
        a.must(&format!("plug vm1 --vhost-user {}", a.path("vm1.sock").display()));
        assert!(!writer.is_finished());
        assert_eq!(a.interface("vm1")["kind"], "vhost-user");
        server.resume();
        assert!([202, 503].contains(&writer.join().unwrap()));
    });
    made_soon(&red);
    server.pause();
    wait_until("it is away again", SOON, || is_away(&a));
    let begin = std::time::Instant::now();
    for _ in 0..5 {
        red.request("POST", "networks", Some(&body), 503);
    }
    assert!(begin.elapsed() < SOON / 2, "{:?}", begin.elapsed());
    server.resume();
    made_soon(&red);
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

#[test]
fn an_etcd_that_was_set_back_is_taken_as_it_is() {
    let mut server = Server::start();
    let [a, b] = ["a", "b"].map(|host| daemon(&server.url(), host, ""));
    let [red_a, red_b] = [&a, &b].map(|daemon| daemon.tenant("red"));
    let kept = red_a.network("kept");
    server.kill();
    let directory = server.path("");
    let copy = |from: &str, to: &str| {
        let (from, to) = (directory.join(from), directory.join(to));
        let copied = std::process::Command::new("cp").arg("-aT").args([from, to]).status().unwrap();
        assert!(copied.success());
    };
    copy("data", "old");
    server.start_again();
    wait_until("writes are taken", SOON, || {
        red_a.try_request("POST", "networks", Some(&json!({"network": {"name": "lost"}}))).unwrap().status == 202
    });
    (0..5).for_each(|_| drop(red_b.network("lost")));
    wait_until("both know", SOON, || agreed(&red_a, &red_b).len() == 7);
    server.kill();
    std::fs::remove_dir_all(server.path("data")).unwrap();
    copy("old", "data");
    server.start_again();
    let made = wait_for(SOON, || {
        let answer = red_b.try_request("POST", "networks", Some(&json!({"network": {"name": "n"}}))).unwrap();
        (answer.status == 202).then(|| answer.json()["network"]["id"].as_str().unwrap().to_owned())
    });
    let made = made.expect("writes are taken");
    wait_until("both have what there is", SOON, || {
        agreed(&red_a, &red_b) == BTreeSet::from([kept.clone(), made.clone()])
    });
}

/// Whether a daemon has found that etcd is away, and not that it is back.
fn is_away(daemon: &Daemon) -> bool {
    let log = daemon.log_tail();
    log.lines().rfind(|line| line.contains("etcd is")).is_some_and(|line| line.contains("etcd is away"))
}

/// Has a network made by this API as soon as it takes writes; its id.
fn made_soon(tenant: &Tenant) -> String {
    let body = json!({"network": {"name": "n"}});
    let make = || {
        let answer = tenant.try_request("POST", "networks", Some(&body)).unwrap();
        (answer.status == 202).then(|| answer.json()["network"]["id"].as_str().unwrap().to_owned())
    };
    wait_for(2 * SOON, make).expect("writes are taken")
}

#[test]
fn with_three_members_one_may_hang_and_without_most_of_them_all_is_told_and_nothing_written() {
    let mut members = Server::start_three();
    let urls = members.iter().map(Server::url).collect::<Vec<_>>().join(",");
    let [a, b] = ["a", "b"].map(|host| daemon(&urls, host, ""));
    let [red_a, red_b] = [&a, &b].map(|daemon| daemon.tenant("red"));
    let mut all = BTreeSet::from([red_a.network("lan")]);
    for member in &members {
        member.pause();
        all.insert(made_soon(&red_b));
        wait_until("the other hears of it", 2 * SOON, || networks(&red_a) == all);
        member.resume();
    }
    members[1..].iter_mut().for_each(Server::kill);
    wait_until("both know", SOON, || is_away(&a) && is_away(&b));
    for tenant in [&red_a, &red_b] {
        assert_eq!(networks(tenant), all);
        tenant.request("POST", "networks", Some(&json!({"network": {"name": "n"}})), 503);
    }
    members[1..].iter_mut().for_each(Server::start_again);
    all.insert(made_soon(&red_a));
    all.insert(made_soon(&red_b));
    wait_until("both have all", 2 * SOON, || agreed(&red_a, &red_b) == all);
    wait_until("both live", SOON, || b.show("nodes").as_array().unwrap().len() == 2);
}

#[test]
fn who_was_away_while_etcd_forgot_reads_everything() {
    let server = Server::start();
    let relay = Relay::new(server.address());
    let (a, b) = (daemon(&server.url(), "a", ""), daemon(&relay.url(), "b", ""));
    let (red_a, red_b) = (a.tenant("red"), b.tenant("red"));
    let gone = red_a.network("gone");
    agreed(&red_a, &red_b);
    relay.set(Way::Closed);
    red_a.request("DELETE", &format!("networks/{gone}"), None, 204);
    let network = red_a.network("lan");
    let port = red_a.attached_port(&network, "vm1");
    server.compact();
    relay.set(Way::Open);
    wait_until("b has caught up", SOON, || networks(&red_b) == BTreeSet::from([network.clone()]));
    let path = format!("networks/{network}/ports/{port}/attachment");
    assert_eq!(red_b.request("GET", &path, None, 200).json()["attachment"]["id"], "vm1");
    // And it follows from there.
    let next = red_a.network("next");
    wait_until("b hears of it", SOON, || networks(&red_b).contains(&next));
    assert!(red_b.network("back").len() == 36 && agreed(&red_a, &red_b).len() == 3);
}

/// Has a daemon's copy cut off at its end, as by a disk that lost it.
fn tear_copy(daemon: &Daemon) {
    let path = daemon.path("state/cloud.copy");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
}

#[test]
fn a_quiet_host_whose_token_etcd_forgot_follows_on() {
    let mut server = Server::start();
    want_users(&server);
    let password = secret(&server, "password", "secret");
    let settings = |host: &str| {
        format!(
            "[store]\nurl = \"etcd:{}\"\nuser = \"root\"\npassword_file = \"{}\"\n[node]\nhost = \"{host}\"\nlease_s = 600",
            server.url(),
            password.display()
        )
    };
    let [a, b] = ["a", "b"].map(|host| Daemon::start(&settings(host)));
    let [red_a, red_b] = [&a, &b].map(|daemon| daemon.tenant("red"));
    red_b.network("lan");
    agreed(&red_a, &red_b);
    // It has its tokens in memory. With leases this long nobody but who writes asks it anything.
    server.kill();
    server.start_again();
    let made = wait_for(SOON, || {
        let answer = red_b.try_request("POST", "networks", Some(&json!({"network": {"name": "n"}}))).unwrap();
        (answer.status == 202).then(|| answer.json()["network"]["id"].as_str().unwrap().to_owned())
    });
    let made = made.expect("who writes gets another token");
    wait_until("a hears of it", SOON, || networks(&red_a).contains(&made));
}

#[test]
fn a_daemon_that_starts_without_etcd_and_a_copy_waits_for_it_and_ends_when_it_is_told_to() {
    let mut server = Server::start();
    let mut a = daemon(&server.url(), "a", "");
    let network = a.tenant("red").network("lan");
    a.stop();
    tear_copy(&a);
    server.kill();
    a.spawn();
    wait_until("it waits", SOON, || a.log_tail().contains("trying again"));
    assert!(a.log_tail().contains("torn"), "{}", a.log_tail());
    a.stop();
    server.start_again();
    a.start_again();
    wait_until("it serves what there is", SOON, || networks(&a.tenant("red")).contains(&network));
}

#[test]
fn a_copy_of_an_etcd_that_is_no_more_is_served_until_the_new_one_is_there_and_then_no_longer() {
    let mut server = Server::start();
    let mut a = daemon(&server.url(), "a", "");
    let network = a.tenant("red").network("lan");
    // What was last known is in the copy when it has ended in order.
    a.stop();
    server.kill();
    a.start_again();
    let tenant = a.tenant("red");
    assert_eq!(networks(&tenant), BTreeSet::from([network.clone()]));
    tenant.request("POST", "networks", Some(&json!({"network": {"name": "n"}})), 503);
    // Another one comes, in which as much was written, but otherwise.
    server.wipe();
    server.start_again();
    let b = daemon(&server.url(), "b", "");
    let other = b.tenant("red").network("other");
    wait_until("a tells what there is now", SOON, || networks(&tenant) == BTreeSet::from([other.clone()]));
    let next = wait_for(SOON, || {
        let answer = tenant.try_request("POST", "networks", Some(&json!({"network": {"name": "n"}}))).unwrap();
        (answer.status == 202).then_some(())
    });
    assert!(next.is_some() && agreed(&tenant, &b.tenant("red")).len() == 2);
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
fn a_second_host_of_one_name_takes_nothing_away_and_has_it_once_the_first_is_gone() {
    let server = Server::start();
    let [mut a, c] = ["a", "c"].map(|host| daemon(&server.url(), host, ""));
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
    // What somebody takes away of it is said again.
    server.ask("/v3/kv/deleterange", &json!({"key": "L3F2cy9ub2RlL2E="}));
    wait_until("it lives again", SOON, || plugs() == Some(json!(1)));
    let namesake = daemon(&server.url(), "a", "");
    wait_until("it is told", SOON, || namesake.log_tail().contains("another host has our name"));
    namesake.must(&format!("plug vm2 --vhost-user {}", namesake.path("vm2.sock").display()));
    assert_eq!((red.op_status(&network, &port), plugs()), ("UP".to_owned(), Some(json!(1))));
    // Killed and back it is the same host; gone for good it is not, and the other takes its place.
    a.kill_and_restart();
    wait_until("it is UP again", SOON, || red.op_status(&network, &port) == "UP");
    a.kill();
    wait_until("the other is registered", SOON, || {
        red.op_status(&network, &port) == "DOWN" && plugs() == Some(json!(1))
    });
    a.start_again();
    wait_until("the first is told", SOON, || a.log_tail().contains("another host has our name"));
}
