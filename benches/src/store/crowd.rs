//! A crowd of clients: each makes a network and a port, plugs, looks, and takes all away again, over and over, on a
//! connection it keeps.

use super::client::Client;
use super::daemon::Daemon;
use super::report::Report;
use super::{PER_TENANT, ms, tenant};
use anyhow::{Result, anyhow};
use std::collections::BTreeMap;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Stack of a client's thread.
const STACK: usize = 128 << 10;
/// Failures that are printed.
const SHOWN: usize = 5;

/// How it went.
#[derive(Default)]
pub(super) struct Told {
    reads: Vec<Duration>,
    writes: Vec<Duration>,
    /// What went wrong that was not the client's fault, and how often.
    failures: BTreeMap<String, usize>,
}

impl Told {
    pub(super) fn add(&mut self, other: Told) {
        self.reads.extend(other.reads);
        self.writes.extend(other.writes);
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
    }

    pub(super) fn print(&mut self, clients: usize, time: Duration, report: &mut Report) {
        let count = self.reads.len() + self.writes.len();
        let failed: usize = self.failures.values().sum();
        let rate = count as f64 / time.as_secs_f64();
        report.bar(
            &format!("{clients} clients for {} s, requests failed", time.as_secs()),
            "none",
            format!("{failed} of {count}, {rate:.0} a second"),
            failed == 0,
        );
        for (what, times) in [("reads", &mut self.reads), ("writes", &mut self.writes)] {
            times.sort_unstable();
            let at = |part: f64| {
                times.get((times.len() as f64 * part) as usize).or(times.last()).copied().unwrap_or_default()
            };
            let told = format!("p50 {:.1} ms, p99 {:.1}, most {:.1}", ms(at(0.5)), ms(at(0.99)), ms(at(1.0)));
            report.tell(&format!("their {what}"), format!("{} times, {told}", times.len()));
        }
        for (failure, count) in self.failures.iter().take(SHOWN) {
            println!("  failed {count} times: {failure}");
        }
    }
}

/// Lets them do so for some time. The first `live` of them plug interfaces that this host has, so that what they do is put
/// in force under the traffic.
pub(super) fn run(daemon: &Daemon, clients: usize, live: usize, time: Duration) -> Result<Told> {
    let barrier = &Barrier::new(clients);
    let told: Vec<Told> = std::thread::scope(|threads| {
        let spawn = |at| {
            let builder = std::thread::Builder::new().stack_size(STACK);
            builder.spawn_scoped(threads, move || visit(daemon, at, at < live, barrier, time))
        };
        let clients = (0..clients).map(spawn).collect::<std::io::Result<Vec<_>>>()?;
        clients.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client broke"))).collect::<Result<_>>()
    })?;
    Ok(told.into_iter().fold(Told::default(), |mut sum, told| {
        sum.add(told);
        sum
    }))
}

fn visit(daemon: &Daemon, at: usize, is_live: bool, barrier: &Barrier, time: Duration) -> Told {
    let mut told = Told::default();
    let client = Client::open(daemon.api);
    barrier.wait();
    let end = Instant::now() + time;
    let mut client = match client {
        Ok(client) => client,
        Err(error) => {
            told.failures.insert(format!("connecting: {error}"), 1);
            return told;
        }
    };
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        if let Err(error) = go_round(&mut client, at, is_live, round, &mut told) {
            *told.failures.entry(format!("{error:#}")).or_default() += 1;
            match Client::open(daemon.api) {
                Ok(fresh) => client = fresh,
                Err(_) => break,
            }
        }
    }
    told
}

/// The interface on this host that is a client's.
pub(super) fn live_interface(at: usize) -> String {
    format!("live-{at}")
}

/// Everything a tenant does with one port.
fn go_round(client: &mut Client, at: usize, is_live: bool, round: usize, told: &mut Told) -> Result<()> {
    let mut ask = |method: &str, path: &str, body: &str, wanted: u16| {
        let begin = Instant::now();
        let answer = client.ask(method, path, body)?;
        let took = begin.elapsed();
        if method == "GET" {
            told.reads.push(took);
        } else {
            told.writes.push(took);
        }
        if answer.status == wanted {
            Ok(answer)
        } else {
            Err(anyhow!("{method}: {} and not {wanted}: {}", answer.status, answer.body))
        }
    };
    let networks = format!("/v1.1/tenants/{}/networks", tenant(at % PER_TENANT));
    let network = ask("POST", &format!("{networks}.json"), r#"{"network": {"name": "crowd"}}"#, 202)?.id()?;
    let ports = format!("{networks}/{network}/ports");
    ask("GET", &format!("{networks}.json"), "", 200)?;
    let port = ask("POST", &format!("{ports}.json"), r#"{"port": {"state": "ACTIVE"}}"#, 202)?.id()?;
    ask("GET", &format!("{networks}/{network}/detail.json"), "", 200)?;
    let attachment = format!("{ports}/{port}/attachment.json");
    let interface = if is_live { live_interface(at) } else { format!("crowd-{at}-{round}") };
    let plug = format!(r#"{{"attachment": {{"id": "{interface}"}}}}"#);
    ask("PUT", &attachment, &plug, 204)?;
    ask("GET", &format!("{ports}/{port}/detail.json"), "", 200)?;
    ask("GET", &format!("{networks}/detail.json?has-attachment=true"), "", 200)?;
    ask("PUT", &format!("{ports}/{port}.json"), r#"{"port": {"state": "DOWN"}}"#, 204)?;
    ask("GET", &format!("{ports}.json?state=DOWN"), "", 200)?;
    // In use, and told so.
    ask("DELETE", &format!("{ports}/{port}.json"), "", 409)?;
    ask("DELETE", &attachment, "", 204)?;
    ask("DELETE", &format!("{ports}/{port}.json"), "", 204)?;
    ask("DELETE", &format!("{networks}/{network}.json"), "", 204)?;
    Ok(())
}
