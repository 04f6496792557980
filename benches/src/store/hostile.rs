//! Clients that send the worst bodies that fit: nested, wide, or bombs. Each is to be refused, and to cost little memory.

use super::client::Client;
use super::daemon::Daemon;
use super::report::Report;
use super::tenant;
use anyhow::{Result, anyhow};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Bytes of a body that the API takes.
const BODY: usize = 64 << 10;
/// Stack of a client's thread.
const STACK: usize = 256 << 10;
/// Failures that are printed.
const SHOWN: usize = 5;

/// A body: the path's end, the media type, and the text.
struct Body {
    suffix: &'static str,
    text: String,
}

/// `head`, as many of `item` as fit, and `tail`.
fn filled(suffix: &'static str, head: &str, item: &str, tail: &str) -> Body {
    let count = (BODY - head.len() - tail.len()) / item.len();
    Body { suffix, text: format!("{head}{}{tail}", item.repeat(count)) }
}

fn bodies() -> Vec<Body> {
    let network = r#"{"network": {"name": "n", "x": ["#;
    let entity = r#"<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><network name="&b;">"#;
    vec![
        filled("json", "", "[", ""),
        filled("json", network, "0,", "0]}}"),
        filled("json", network, "[],", "0]}}"),
        filled("json", network, r#"{"":[]},"#, "0]}}"),
        filled("json", r#"{"network": {"name": ""#, "\\u0041", r#""}}"#),
        filled("xml", "", "<a>", ""),
        filled("xml", r#"<network name="n">"#, "<a/>", "</network>"),
        filled("xml", r#"<network name=""#, "&#65;", r#""/>"#),
        filled("xml", entity, "&b;", "</network>"),
    ]
}

/// How it went.
#[derive(Default)]
pub(super) struct Told {
    requests: usize,
    /// What was answered that is not the client's fault, or not at all.
    failures: BTreeMap<String, usize>,
}

impl Told {
    pub(super) fn add(&mut self, other: Told) {
        self.requests += other.requests;
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
    }

    pub(super) fn print(&self, clients: usize, time: Duration, report: &mut Report) {
        let failed: usize = self.failures.values().sum();
        let rate = self.requests as f64 / time.as_secs_f64();
        report.bar(
            &format!(
                "{clients} clients with 64 KiB of nests and bombs for {} s, not refused as theirs",
                time.as_secs()
            ),
            "none",
            format!("{failed} of {}, {rate:.0} a second", self.requests),
            failed == 0,
        );
        for (failure, count) in self.failures.iter().take(SHOWN) {
            println!("  {count} times: {failure}");
        }
    }
}

pub(super) fn run(daemon: &Daemon, clients: usize, time: Duration) -> Result<Told> {
    let bodies = &bodies();
    let told: Vec<Told> = std::thread::scope(|threads| {
        let spawn = |at: usize| {
            let builder = std::thread::Builder::new().stack_size(STACK);
            builder.spawn_scoped(threads, move || send(daemon, bodies, at, time))
        };
        let clients = (0..clients).map(spawn).collect::<std::io::Result<Vec<_>>>()?;
        clients.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client broke"))).collect::<Result<_>>()
    })?;
    Ok(told.into_iter().fold(Told::default(), |mut sum, told| {
        sum.add(told);
        sum
    }))
}

fn send(daemon: &Daemon, bodies: &[Body], mut at: usize, time: Duration) -> Told {
    let mut told = Told::default();
    let fail = |what: String, told: &mut Told| *told.failures.entry(what).or_default() += 1;
    let end = Instant::now() + time;
    let mut client = None;
    while Instant::now() < end {
        let Body { suffix, text } = &bodies[at % bodies.len()];
        at += 1;
        // Of a network that is not there: what is parsed is not written.
        let path = format!("/v1.1/tenants/{}/networks/none.{suffix}", tenant(at % 100));
        let mut open = match client.take().map_or_else(|| Client::open(daemon.api), Ok) {
            Ok(open) => open,
            Err(error) => {
                fail(format!("connecting: {error}"), &mut told);
                return told;
            }
        };
        match open.ask("PUT", &path, text) {
            Ok(answer) if matches!(answer.status, 400 | 404) => client = Some(open),
            Ok(answer) => fail(format!("{}: {}", answer.status, answer.body), &mut told),
            Err(error) => fail(format!("{error:#}"), &mut told),
        }
        told.requests += 1;
    }
    told
}
