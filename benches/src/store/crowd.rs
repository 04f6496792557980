//! A crowd of clients: each makes a network and a port, plugs, looks, and takes all away again, over and over, on a
//! connection it keeps.

use super::client::Client;
use super::daemon::Daemon;
use super::{PER_TENANT, ms, tenant};
use anyhow::{Result, anyhow};
use std::collections::BTreeMap;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Stack of a client's thread.
const STACK: usize = 128 << 10;
/// Failures that are printed.
const SHOWN: usize = 5;

#[derive(Default)]
struct Told {
    reads: Vec<Duration>,
    writes: Vec<Duration>,
    /// What went wrong that was not the client's fault, and how often.
    failures: BTreeMap<String, usize>,
}

pub(super) fn run(daemon: &Daemon, clients: usize, time: Duration) -> Result<()> {
    let barrier = &Barrier::new(clients);
    let told: Vec<Told> = std::thread::scope(|threads| {
        let spawn = |at| {
            let builder = std::thread::Builder::new().stack_size(STACK);
            builder.spawn_scoped(threads, move || visit(daemon, at, barrier, time))
        };
        let clients = (0..clients).map(spawn).collect::<std::io::Result<Vec<_>>>()?;
        clients.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client broke"))).collect::<Result<_>>()
    })?;
    let mut sum = Told::default();
    for told in told {
        sum.reads.extend(told.reads);
        sum.writes.extend(told.writes);
        for (failure, count) in told.failures {
            *sum.failures.entry(failure).or_default() += count;
        }
    }
    let count = sum.reads.len() + sum.writes.len();
    let failed: usize = sum.failures.values().sum();
    println!(
        "{clients} clients for {} s: {count} requests, {:.0} a second, {failed} failed (bar 0)",
        time.as_secs(),
        count as f64 / time.as_secs_f64()
    );
    for (what, times) in [("reads", &mut sum.reads), ("writes", &mut sum.writes)] {
        times.sort_unstable();
        let at =
            |part: f64| times.get((times.len() as f64 * part) as usize).or(times.last()).copied().unwrap_or_default();
        println!(
            "  {what}: {} times, p50 {:.1} ms, p99 {:.1}, most {:.1}",
            times.len(),
            ms(at(0.5)),
            ms(at(0.99)),
            ms(at(1.0))
        );
    }
    for (failure, count) in sum.failures.iter().take(SHOWN) {
        println!("  failed {count} times: {failure}");
    }
    Ok(())
}

fn visit(daemon: &Daemon, at: usize, barrier: &Barrier, time: Duration) -> Told {
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
        if let Err(error) = go_round(&mut client, at, round, &mut told) {
            *told.failures.entry(format!("{error:#}")).or_default() += 1;
            match Client::open(daemon.api) {
                Ok(fresh) => client = fresh,
                Err(_) => break,
            }
        }
    }
    told
}

/// Everything a tenant does with one port.
fn go_round(client: &mut Client, at: usize, round: usize, told: &mut Told) -> Result<()> {
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
    let plug = format!(r#"{{"attachment": {{"id": "crowd-{at}-{round}"}}}}"#);
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
