//! What daemons do while the etcd they share is away, hangs, forgets or was set back, and what they serve from a copy.

use super::shared::{agreed, daemon, networks};
use super::{SOON, secret, want_users};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tests::daemon::Daemon;
use tests::etcd::{Etcd as Server, Relay, Way};
use tests::http::Tenant;
use tests::process::{wait_for, wait_until};

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
fn an_etcd_that_was_set_back_is_taken_as_it_is() {
    let mut server = Server::start();
    let [a, b] = ["a", "b"].map(|host| daemon(&server.url(), host, ""));
    let [red_a, red_b] = [&a, &b].map(|daemon| daemon.tenant("red"));
    let kept = red_a.network("kept");
    server.kill();
    server.keep_data();
    server.start_again();
    wait_until("writes are taken", SOON, || {
        red_a.try_request("POST", "networks", Some(&json!({"network": {"name": "lost"}}))).unwrap().status == 202
    });
    (0..5).for_each(|_| drop(red_b.network("lost")));
    wait_until("both know", SOON, || agreed(&red_a, &red_b).len() == 7);
    server.kill();
    server.set_back();
    server.start_again();
    let made = made_soon(&red_b);
    wait_until("both have what there is", SOON, || {
        agreed(&red_a, &red_b) == BTreeSet::from([kept.clone(), made.clone()])
    });
}

#[test]
fn an_etcd_that_was_set_back_and_is_further_by_now_is_taken_as_it_is() {
    let mut server = Server::start();
    let relay = Relay::new(server.address());
    let (a, b) = (daemon(&server.url(), "a", ""), daemon(&relay.url(), "b", ""));
    let (red_a, red_b) = (a.tenant("red"), b.tenant("red"));
    let kept = red_a.network("kept");
    server.kill();
    server.keep_data();
    server.start_again();
    made_soon(&red_a);
    (0..3).for_each(|_| drop(red_a.network("lost")));
    wait_until("both know", SOON, || agreed(&red_a, &red_b).len() == 5);
    let known = server.revision();
    relay.set(Way::Closed);
    server.kill();
    server.set_back();
    server.start_again();
    let mut all = BTreeSet::from([kept, made_soon(&red_a)]);
    wait_until("a has what there is", SOON, || networks(&red_a) == all);
    while server.revision() <= known + 2 {
        all.insert(red_a.network("new"));
    }
    relay.set(Way::Open);
    wait_until("b has what there is", SOON, || networks(&red_b) == all);
    all.insert(made_soon(&red_b));
    assert_eq!(agreed(&red_a, &red_b), all);
}

#[test]
fn who_starts_from_a_copy_takes_nothing_from_it_that_an_etcd_set_back_and_further_by_now_has_not() {
    let mut server = Server::start();
    let mut a = daemon(&server.url(), "a", "");
    a.tenant("red").network("lan");
    // What an extension keeps is written without the networks.
    let qos = |a: &Daemon, method: &str| {
        let body = json!({"qos": {"qos_name": "gold", "qos_desc": {"rate": "1"}}});
        let mut connection = tests::http::Connection::open(a.api()).unwrap();
        let body = (method == "POST").then_some(&body);
        connection.request(method, "/v1.1/extensions/csco/tenants/red/qoss", body).unwrap()
    };
    server.kill();
    server.keep_data();
    server.start_again();
    wait_until("it is kept", SOON, || qos(&a, "POST").status < 300);
    a.stop();
    let known = server.revision();
    server.kill();
    a.start_again();
    let count = || qos(&a, "GET").json()["qoss"].as_array().map(Vec::len);
    assert_eq!(count(), Some(1), "as in the copy");
    server.set_back();
    server.start_again();
    while server.revision() <= known + 2 {
        server.ask("/v3/kv/put", &json!({"key": "YQ==", "value": "YQ=="}));
    }
    wait_until("it tells what there is", SOON, || count() == Some(0));
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
    // The one that leads, and the first of those that follow it.
    for leads in [true, false] {
        let member = wait_for(SOON, || members.iter().find(|member| member.leads() == Some(leads)));
        let member = member.expect("one leads");
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
fn of_three_members_each_may_end_in_order_under_writes_and_no_acknowledged_one_is_lost() {
    /// Writes of each API that are acknowledged while one member is away.
    const MEANWHILE: usize = 4;
    let mut members = Server::start_three();
    let urls = members.iter().map(Server::url).collect::<Vec<_>>().join(",");
    let hosts = ["a", "b"].map(|host| daemon(&urls, host, ""));
    let is_over = AtomicBool::new(false);
    let made = Mutex::new([BTreeSet::new(), BTreeSet::new()]);
    let counts = || made.lock().unwrap().each_ref().map(BTreeSet::len);
    thread::scope(|scope| {
        for (at, host) in hosts.iter().enumerate() {
            let (is_over, made) = (&is_over, &made);
            scope.spawn(move || {
                let (tenant, body) = (host.tenant("red"), json!({"network": {"name": "n"}}));
                while !is_over.load(Ordering::Relaxed) {
                    // Who is not answered does not know whether it was done.
                    let Ok(answer) = tenant.try_request("POST", "networks", Some(&body)) else {
                        thread::sleep(Duration::from_millis(50));
                        continue;
                    };
                    match answer.status {
                        202 => {
                            let id = answer.json()["network"]["id"].as_str().unwrap().to_owned();
                            assert!(made.lock().unwrap()[at].insert(id), "an id comes twice");
                        }
                        // Refused, to be tried again.
                        503 => thread::sleep(Duration::from_millis(50)),
                        _ => panic!("{answer:?}"),
                    }
                }
            });
        }
        let go_on = |members: &mut [Server; 3]| {
            let grow = |what: &str| {
                let before = counts();
                wait_until(what, 2 * SOON, || {
                    counts().iter().zip(before).all(|(now, before)| *now >= before + MEANWHILE)
                });
            };
            grow("both write");
            for member in members {
                member.stop();
                grow("both write without one of three");
                member.start_again();
            }
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| go_on(&mut members)));
        is_over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let acknowledged: BTreeSet<String> = made.into_inner().unwrap().into_iter().flatten().collect();
    // Both that were there, and one that reads all there is.
    let late = daemon(&urls, "c", "");
    for host in hosts.iter().chain([&late]) {
        let tenant = host.tenant("red");
        let lost = || acknowledged.difference(&networks(&tenant)).cloned().collect::<Vec<_>>();
        assert!(wait_for(SOON, || lost().is_empty().then_some(())).is_some(), "lost: {:?}", lost());
    }
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

#[test]
fn where_others_have_etcd_forget_what_is_further_than_anything_of_ours_all_is_read_once() {
    let server = Server::start();
    let relay = Relay::new(server.address());
    // With leases this long nobody but who writes says anything.
    let start = |url: &str, host: &str| {
        Daemon::start(&format!("[store]\nurl = \"etcd:{url}\"\n[node]\nhost = \"{host}\"\nlease_s = 600"))
    };
    let (a, b) = (start(&server.url(), "a"), start(&relay.url(), "b"));
    let (red_a, red_b) = (a.tenant("red"), b.tenant("red"));
    red_a.network("lan");
    agreed(&red_a, &red_b);
    wait_until("both live", SOON, || b.show("nodes").as_array().unwrap().len() == 2);
    (0..3).for_each(|_| drop(server.ask("/v3/kv/put", &json!({"key": "b3RoZXI=", "value": "eA=="}))));
    server.compact();
    relay.set(Way::Closed);
    relay.set(Way::Open);
    let reads = || fs::read_to_string(b.path("log")).unwrap().matches("everything is read").count();
    wait_until("all is read", SOON, || reads() > 0);
    let next = red_a.network("next");
    wait_until("b hears of it", SOON, || networks(&red_b).contains(&next));
    assert_eq!(reads(), 1, "{}", b.log_tail());
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
