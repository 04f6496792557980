//! kill -9 in the middle of a stream of writes: what was acknowledged is there afterwards.
//!
//! The child is this test binary again. It says each write before (`try`) and after (`ok`); the parent kills it,
//! keeps a book of what was acknowledged, and opens the store. Only the one write that was tried and not acknowledged
//! may be there or not.

use crate::rig::{Scratch, native};
use api::model::Model;
use api::plugin::Plugin;
use api::store::Store;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const CHILD_STORE: &str = "QVS_TEST_CRASH_STORE";
const CHILD_SEED: &str = "QVS_TEST_CRASH_SEED";
/// Kills, set by hand where the default is too few; whole daemons are killed for longer by `cargo xtask soak`.
const ROUNDS: &str = "QVS_TEST_CRASH_ROUNDS";
const ROUNDS_DEFAULT: u64 = 8;

/// What the store should hold: port id -> attachment; networks count as ports of themselves without one.
type Book = BTreeMap<String, Option<String>>;

fn book_of(model: &Model) -> Book {
    let networks = model.networks.keys().map(|id| (id.to_string(), None));
    let ports = model.ports.values().map(|port| {
        let attachment = port.attachment.as_ref().map(ToString::to_string);
        (port.id.to_string(), attachment)
    });
    networks.chain(ports).collect()
}

/// Small and seeded; good enough to pick writes and moments.
fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

#[test]
fn child_that_writes_until_it_is_killed() {
    let (Ok(store), Ok(seed)) = (std::env::var(CHILD_STORE), std::env::var(CHILD_SEED)) else { return };
    let mut random: u64 = seed.parse().unwrap();
    let plugin = native(Path::new(&store));
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        out.write_all(format!("\n@{line}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
    };
    let mut attachment_count = 0;
    loop {
        let model = plugin.snapshot();
        let mut networks: Vec<_> = model.networks.values().collect();
        networks.sort_by_key(|network| network.serial);
        let mut ports: Vec<_> = model.ports.values().collect();
        ports.sort_by_key(|port| port.serial);
        let port = ports.get(next(&mut random) as usize % ports.len().max(1));
        match (next(&mut random) % 8, networks.first(), port) {
            (0, _, _) | (_, None, _) => {
                say("try make".to_owned());
                say(format!("ok {} -", plugin.create_network("red", None).unwrap()));
            }
            (1..=3, Some(network), _) | (_, Some(network), None) => {
                say("try make".to_owned());
                say(format!("ok {} -", plugin.create_port("red", &network.id, "ACTIVE").unwrap()));
            }
            (4 | 5, _, Some(port)) if port.attachment.is_none() => {
                attachment_count += 1;
                let attachment = format!("vif-{seed}-{attachment_count}");
                say(format!("try {} {attachment}", port.id));
                plugin.plug_interface("red", &port.network, &port.id, &attachment).unwrap();
                say(format!("ok {} {attachment}", port.id));
            }
            (4..=6, _, Some(port)) => {
                say(format!("try {} -", port.id));
                plugin.unplug_interface("red", &port.network, &port.id).unwrap();
                say(format!("ok {} -", port.id));
            }
            (_, _, Some(port)) if port.attachment.is_none() => {
                say(format!("try {} gone", port.id));
                plugin.delete_port("red", &port.network, &port.id).unwrap();
                say(format!("ok {} gone", port.id));
            }
            _ => {}
        }
    }
}

fn enter(book: &mut Book, id: &str, what: &str) {
    match what {
        "gone" => book.remove(id),
        "-" => book.insert(id.to_owned(), None),
        attachment => book.insert(id.to_owned(), Some(attachment.to_owned())),
    };
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    let scratch = Scratch::new();
    let rounds = std::env::var(ROUNDS).ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS_DEFAULT);
    let mut book = Book::new();
    for round in 0..rounds {
        let mut random = round + 1;
        next(&mut random);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::child_that_writes_until_it_is_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD_STORE, scratch.store())
            .env(CHILD_SEED, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let kill_after = next(&mut random) % 60;
        let mut pending = None;
        let mut count = 0;
        let mut take = |line: &str, book: &mut Book, pending: &mut Option<(String, String)>| {
            if let Some(tried) = line.strip_prefix("@try ") {
                let (id, what) = tried.split_once(' ').unwrap_or((tried, ""));
                *pending = Some((id.to_owned(), what.to_owned()));
            } else if let Some(done) = line.strip_prefix("@ok ") {
                let (id, what) = done.split_once(' ').unwrap();
                enter(book, id, what);
                *pending = None;
                count += 1;
            }
            count
        };
        while take(&lines.next().expect("the child writes until killed"), &mut book, &mut pending) < kill_after {}
        std::thread::sleep(Duration::from_micros(next(&mut random) % 3000));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            take(&line, &mut book, &mut pending);
        }
        let found = book_of(&Store::open(&scratch.store()).unwrap().load().unwrap());
        if found != book {
            match pending.as_ref().map(|(id, what)| (id.as_str(), what.as_str())) {
                Some(("make", _)) => {
                    let new: Vec<_> = found.keys().filter(|id| !book.contains_key(*id)).cloned().collect();
                    assert_eq!(new.len(), 1, "round {round}");
                    book.insert(new[0].clone(), None);
                }
                Some((id, what)) => enter(&mut book, id, what),
                None => {}
            }
        }
        assert_eq!(found, book, "round {round}, pending {pending:?}");
    }
    assert!(!book.is_empty());
}
