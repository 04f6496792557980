//! Our client of etcd, and what hosts share by it, against the real one: what is read and written, and what becomes of writes
//! when etcd, or the way to it, fails.

mod away;
mod hosts;
mod shared;
mod tls;

use api::etcd::message::{Blob, Compare, Step, Txn};
use api::etcd::watch::News;
use api::etcd::{Etcd, EtcdConfig, EtcdError};
use api::watched::Rights;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tests::etcd::{Etcd as Server, Relay, Way};
use tests::process::wait_until;

/// Long enough for whatever etcd does; a test that waits this long has failed.
const SOON: Duration = Duration::from_secs(20);

/// How to reach these members, without TLS and user.
fn config(endpoints: &[String]) -> EtcdConfig {
    EtcdConfig {
        endpoints: endpoints.to_vec(),
        ca: PathBuf::new(),
        identity: None,
        user: None,
        rights: Rights::OwnerOnly,
    }
}

fn client(server: &Server) -> Etcd {
    Etcd::new(config(&[server.url()])).unwrap()
}

fn run<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(what)
}

fn blob(text: &str) -> Blob {
    Blob(text.as_bytes().to_vec())
}

fn put(key: &str, value: &str) -> Txn {
    Txn { success: vec![Step::put(blob(key), value.as_bytes().to_vec(), None)], ..Txn::default() }
}

async fn next(watch: &mut api::etcd::watch::Watch) -> Result<News, EtcdError> {
    tokio::time::timeout(SOON, watch.next()).await.expect("news come soon")
}

#[test]
fn a_transaction_is_done_if_what_it_asks_is_so_and_each_within_it_by_itself() {
    let server = Server::start();
    let etcd = client(&server);
    run(async {
        let first = etcd.transact(&put("a", "1")).await.unwrap();
        let compare = |key: &str, revision| Compare::At(blob(key), revision);
        let within = |known| {
            let success = vec![Step::put(blob("b"), vec![0, 0xff], None)];
            Step::Within(Txn { compare: vec![compare("b", known)], success, failure: vec![Step::read(blob("b"))] })
        };
        let txn = Txn {
            compare: vec![compare("a", first.revision())],
            success: vec![Step::put(blob("a"), b"2".to_vec(), None), within(0)],
            failure: vec![Step::read(blob("a"))],
        };
        let second = etcd.transact(&txn).await.unwrap();
        assert!(second.succeeded && second.within(1).unwrap().succeeded);
        let outrun = etcd.transact(&txn).await.unwrap();
        assert!(!outrun.succeeded);
        let found = outrun.found(0).unwrap();
        assert_eq!((&*found.value.0, found.mod_revision()), (&b"2"[..], second.revision()));
        let third = etcd.transact(&Txn { success: vec![within(0)], ..Txn::default() }).await.unwrap();
        assert!(third.succeeded && !third.within(0).unwrap().succeeded);
        assert_eq!(third.within(0).unwrap().found(0).unwrap().value.0, [0, 0xff]);
        let (value, revision) = etcd.get(&blob("b")).await.unwrap();
        assert_eq!((value.unwrap().mod_revision(), revision), (second.revision(), second.revision()));
        assert!(etcd.get(&blob("c")).await.unwrap().0.is_none());
    });
}

#[test]
fn more_than_a_page_is_read_as_of_one_revision() {
    let server = Server::start();
    let etcd = client(&server);
    run(async {
        let key = |at: usize| blob(&format!("/p/{at:05}"));
        let all: Vec<usize> = (0..4250).collect();
        for some in all.chunks(100) {
            let success = some.iter().map(|&at| Step::put(key(at), at.to_string().into_bytes(), None)).collect();
            etcd.transact(&Txn { success, ..Txn::default() }).await.unwrap();
        }
        etcd.transact(&put("/q", "beside it")).await.unwrap();
        let mut found = Vec::new();
        let revision = etcd.read_all(&blob("/p/"), |kv| found.push(kv.key)).await.unwrap();
        assert_eq!(found, (0..4250).map(key).collect::<Vec<_>>());
        assert_eq!(revision, etcd.get(&blob("/q")).await.unwrap().1);
    });
}

#[test]
fn records_so_long_that_a_page_of_them_would_be_too_long_are_read_in_shorter_ones() {
    let server = Server::start();
    let etcd = client(&server);
    run(async {
        // In Base64 some 21 MB in all, and one that is as long as can be.
        let long = "x".repeat(400_000);
        for at in 0..40 {
            etcd.transact(&put(&format!("/p/{at:02}"), &long)).await.unwrap();
        }
        etcd.transact(&put("/p/99", &"x".repeat(1_500_000))).await.unwrap();
        let mut found = Vec::new();
        etcd.read_all(&blob("/p/"), |kv| found.push(kv.value.0.len())).await.unwrap();
        assert_eq!((found.len(), found[0], found[40]), (41, 400_000, 1_500_000));
    });
}

#[test]
fn a_watch_tells_everything_from_its_revision_on_and_what_is_forgotten() {
    let server = Server::start();
    let etcd = client(&server);
    run(async {
        let first = etcd.transact(&put("/w/a", "1")).await.unwrap().revision();
        etcd.transact(&put("/other", "x")).await.unwrap();
        let mut watch = etcd.watch(&blob("/w/"), first).await.unwrap();
        let success = vec![Step::delete(blob("/w/a")), Step::put(blob("/w/b"), b"2".to_vec(), None)];
        let last = etcd.transact(&Txn { success, ..Txn::default() }).await.unwrap().revision();
        let mut told = Vec::new();
        while told.len() < 3 {
            told.extend(next(&mut watch).await.unwrap().events);
        }
        let told: Vec<_> = told.into_iter().map(|event| (event.key, event.value, event.revision)).collect();
        let (a, b) = (blob("/w/a"), blob("/w/b"));
        assert_eq!(told, [(a.clone(), Some(b"1".to_vec()), first), (a, None, last), (b, Some(b"2".to_vec()), last)]);
        server.compact();
        let mut late = etcd.watch(&blob("/w/"), first).await.unwrap();
        let end = loop {
            match next(&mut late).await {
                Ok(news) => assert!(news.events.is_empty()),
                Err(end) => break end,
            }
        };
        assert!(matches!(end, EtcdError::Compacted), "{end}");
    });
}

#[test]
fn a_large_transaction_is_told_whole() {
    let server = Server::start();
    let etcd = client(&server);
    run(async {
        let value = vec![b'x'; 20_000];
        let mut watch = etcd.watch(&blob("/l/"), 1).await.unwrap();
        let success = (0..60).map(|at| Step::put(blob(&format!("/l/{at}")), value.clone(), None)).collect();
        etcd.transact(&Txn { success, ..Txn::default() }).await.unwrap();
        let mut events = Vec::new();
        while events.is_empty() {
            events = next(&mut watch).await.unwrap().events;
        }
        assert_eq!(events.len(), 60, "cut or not, they come together");
        assert!(events.iter().all(|event| event.value.as_ref() == Some(&value)));
    });
}

#[test]
fn what_is_under_a_lease_goes_when_nobody_keeps_it_alive() {
    let server = Server::start();
    let etcd = client(&server);
    run(async {
        let lease = etcd.grant(5).await.unwrap();
        let txn = Txn { success: vec![Step::put(blob("/n"), b"here".to_vec(), Some(lease))], ..Txn::default() };
        etcd.transact(&txn).await.unwrap();
        assert!(etcd.keep_alive(lease).await.unwrap());
        let mut watch = etcd.watch(&blob("/n"), 1).await.unwrap();
        let mut values = Vec::new();
        while values.len() < 2 {
            values.extend(next(&mut watch).await.unwrap().events.into_iter().map(|event| event.value));
        }
        assert_eq!(values, [Some(b"here".to_vec()), None]);
        assert!(!etcd.keep_alive(lease).await.unwrap());
        let refused = etcd.transact(&txn).await.unwrap_err();
        assert!(!refused.is_unknown() && refused.to_string().contains("lease"), "{refused}");
    });
}

#[test]
fn the_next_member_is_asked_when_one_is_gone_silent_or_busy_dying() {
    let server = Server::start();
    let (one, two) = (Relay::new(server.address()), Relay::new(server.address()));
    let etcd = Etcd::new(config(&["http://127.0.0.1:1".to_owned(), one.url(), two.url()])).unwrap();
    run(async {
        // The first never was, the second goes.
        etcd.transact(&put("a", "1")).await.unwrap();
        one.set(Way::Closed);
        etcd.get(&blob("a")).await.unwrap();
        etcd.transact(&put("a", "2")).await.unwrap();
        // A write that was sent and not answered is not sent again.
        two.set(Way::NoAnswers);
        let unknown = etcd.transact(&put("a", "3")).await.unwrap_err();
        assert!(unknown.is_unknown(), "{unknown}");
        one.set(Way::Open);
        assert_eq!(etcd.get(&blob("a")).await.unwrap().0.unwrap().value.0, b"3");
        // Nobody is there: it surely was not done.
        let nobody = Etcd::new(config(&["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()])).unwrap();
        let gone = nobody.transact(&put("a", "4")).await.unwrap_err();
        assert!(!gone.is_unknown(), "{gone}");
    });
}

#[test]
fn a_member_that_says_nothing_is_given_up_in_time() {
    let server = Server::start();
    let etcd = client(&server);
    run(etcd.transact(&put("a", "1"))).unwrap();
    server.pause();
    let silent = run(etcd.transact(&put("a", "2"))).unwrap_err();
    assert!(silent.is_unknown(), "{silent}");
    server.resume();
    // It has much to do first, and so may the machine.
    wait_until("it answers again", SOON, || run(etcd.get(&blob("a"))).is_ok());
}

#[test]
fn a_page_that_is_not_answered_is_asked_for_again_and_none_before_it() {
    let server = Server::start();
    let relay = Relay::new(server.address());
    let etcd = Etcd::new(config(&[relay.url()])).unwrap();
    let key = |at: usize| blob(&format!("/p/{at:05}"));
    let all: Vec<usize> = (0..4250).collect();
    for some in all.chunks(100) {
        let success = some.iter().map(|&at| Step::put(key(at), Vec::new(), None)).collect();
        run(client(&server).transact(&Txn { success, ..Txn::default() })).unwrap();
    }
    let mut found = Vec::new();
    thread::scope(|scope| {
        let mut opener = None;
        let prefix = blob("/p/");
        let read = etcd.read_all(&prefix, |kv| {
            // The first page is here; the next one is not answered in time.
            opener.get_or_insert_with(|| {
                relay.set(Way::Silent);
                scope.spawn(|| {
                    // Asked for once more than that: it was given up.
                    wait_until("it is asked for again", SOON, || relay.unanswered().len() > 1);
                    // Nor is that one waited for.
                    relay.set(Way::Closed);
                    relay.set(Way::Open);
                })
            });
            found.push(kv.key);
        });
        run(read).unwrap();
    });
    assert_eq!(found, all.into_iter().map(key).collect::<Vec<_>>());
}

/// A server that answers whatever it is asked with this, and then goes on for ever if it is to; how many bytes it got rid of.
fn stranger(head: &'static str, goes_on: bool) -> (String, Arc<AtomicUsize>) {
    /// More than any reader should take, and no danger to the machine.
    const ENOUGH: usize = 256 << 20;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    // It ends with the process.
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let asked = client.read(&mut [0; 65_536]);
            let _ = asked.and_then(|_| client.write_all(head.as_bytes()));
            while goes_on && count.load(Ordering::Relaxed) < ENOUGH && client.write_all(&[b'x'; 65_536]).is_ok() {
                count.fetch_add(65_536, Ordering::Relaxed);
            }
        }
    });
    (url, sent)
}

#[test]
fn a_stranger_whose_answers_tell_nothing_is_no_empty_etcd() {
    let (url, _) = stranger("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}", false);
    let etcd = Etcd::new(config(&[url])).unwrap();
    run(async {
        let is_none = |error: &EtcdError| matches!(error, EtcdError::Nonsense(_));
        assert!(etcd.get(&blob("a")).await.is_err_and(|error| is_none(&error)));
        assert!(etcd.get_at(&blob("a"), 1).await.is_err_and(|error| is_none(&error)));
        assert!(etcd.read_all(&blob("a"), |_| ()).await.is_err_and(|error| is_none(&error)));
        assert!(etcd.grant(1).await.is_err_and(|error| is_none(&error)));
        let unknown = etcd.transact(&put("a", "1")).await;
        assert!(unknown.is_err_and(|error| is_none(&error) && error.is_unknown()));
    });
}

#[test]
fn who_refuses_a_watch_without_end_is_not_heard_out() {
    let (url, sent) = stranger("HTTP/1.1 500 No\r\nconnection: close\r\n\r\n", true);
    let etcd = Etcd::new(config(&[url])).unwrap();
    assert!(run(etcd.watch(&blob("a"), 1)).is_err());
    // With what lies in sockets.
    assert!(sent.load(Ordering::Relaxed) < 32 << 20, "{} bytes", sent.load(Ordering::Relaxed));
}

/// From now on it asks who is there; "root" with password "secret" may do everything.
fn want_users(server: &Server) {
    for (path, question) in [
        ("/v3/auth/user/add", json!({"name": "root", "password": "secret"})),
        ("/v3/auth/role/add", json!({"name": "root"})),
        ("/v3/auth/user/grant", json!({"user": "root", "role": "root"})),
        ("/v3/auth/enable", json!({})),
    ] {
        server.ask(path, &question);
    }
}

/// Writes a file that only we may read.
fn secret(server: &Server, name: &str, text: &str) -> PathBuf {
    let path = server.path(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_user_logs_in_and_again_when_his_token_is_none_any_more() {
    let server = Server::start_at(Ipv4Addr::LOCALHOST.into(), "http", |_| {
        vec!["--auth-token".to_owned(), "simple".to_owned(), "--auth-token-ttl".to_owned(), "3".to_owned()]
    });
    want_users(&server);
    let as_user = |password: &str| {
        let file = secret(&server, "password", password);
        Etcd::new(EtcdConfig { user: Some(("root".to_owned(), file)), ..config(&[server.url()]) })
    };
    run(async {
        let nobody = client(&server).transact(&put("a", "1")).await.unwrap_err();
        assert!(!nobody.is_unknown(), "{nobody}");
        let wrong = as_user("wrong").unwrap().transact(&put("a", "1")).await.unwrap_err();
        assert!(!wrong.is_unknown() && wrong.to_string().contains("invalid user ID or password"), "{wrong}");
        let etcd = as_user("secret\n").unwrap();
        etcd.transact(&put("a", "1")).await.unwrap();
        let mut watch = etcd.watch(&blob("a"), 1).await.unwrap();
        while next(&mut watch).await.unwrap().events.is_empty() {}
        // Tokens last three seconds here and are looked at once a second.
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(4200)).await;
            etcd.transact(&put("a", "2")).await.unwrap();
        }
    });
    let open = secret(&server, "password", "secret");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let too_open = Etcd::new(EtcdConfig { user: Some(("root".to_owned(), open)), ..config(&[server.url()]) });
    assert!(too_open.is_err_and(|error| error.to_string().contains("mode 0644")));
}
