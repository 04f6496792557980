//! What an operator's views cost when they are as large as can be: `qvs show ports` and a scrape of a switch with all its
//! ports over the full store.
//!
//! All but one of the ports are VLANs of one trunk: they are told like others and need no devices, which would be measured too.

use super::client::Client;
use super::daemon::Daemon;
use super::report::Report;
use super::{interface, median, ms, timed};
use anyhow::{Context, Result, ensure};
use api::host::{DeviceSpec, Plug, SocketRole};
use api::store::Store;
use std::path::Path;
use switch::ids::PORTS_MAX;
use switch::underlay::VlanId;

/// How often each is asked for.
const ROUNDS: usize = 9;
/// The interface that has the VLANs.
const TRUNK: &str = "trunk";

/// Plugs as many interfaces more as the switch has ports, in the store at `path` of a daemon that does not run.
pub(super) fn plug_all(path: &Path, dir: &Path) -> Result<()> {
    let store = Store::open(path)?;
    let socket = dir.join("trunk.sock").display().to_string();
    store.put_plug(&Plug::new(TRUNK, DeviceSpec::VhostUser { path: socket, role: SocketRole::Server }))?;
    for id in 1..=(PORTS_MAX - store.plugs()?.len()).min(usize::from(VlanId::MAX)) {
        let vlan = VlanId::new(u16::try_from(id)?).context("VLANs begin at 1")?;
        store.put_plug(&Plug::new(interface(id), DeviceSpec::Vlan { parent: TRUNK.into(), vlan }))?;
    }
    Ok(())
}

pub(super) fn run(daemon: &Daemon, report: &mut Report) -> Result<()> {
    report.tell("start with all ports plugged", format!("{:.2} s, {}", daemon.start_s, daemon.memory()?));
    let mut tell = |what: &str, ask: &dyn Fn() -> Result<String>, row: &str| {
        let before_mib = daemon.resident_mib()?;
        daemon.forget_peak()?;
        let (mut times, mut text) = (Vec::new(), String::new());
        for _ in 0..ROUNDS {
            times.push(timed(|| {
                text = ask()?;
                Ok(())
            })?);
        }
        let rows = text.matches(row).count();
        ensure!(rows >= PORTS_MAX / 2, "{what} has {rows} rows");
        let (time_ms, kib, most_mib) = (ms(median(&times)), text.len() >> 10, daemon.peak_mib()?);
        report.tell(
            what,
            format!(
                "{time_ms:.0} ms, {rows} rows, {kib} KiB; the daemon had {before_mib} MiB before, {most_mib} at most"
            ),
        );
        Ok::<_, anyhow::Error>(())
    };
    tell("`qvs show ports --json` with all ports plugged", &|| daemon.show("ports"), "\"interface\"")?;
    let scrape = || -> Result<String> {
        let answer = Client::open(daemon.metrics)?.ask("GET", "/metrics", "")?;
        ensure!(answer.status == 200, "a scrape is answered {}", answer.status);
        Ok(answer.body)
    };
    tell("a scrape of /metrics with all ports plugged", &scrape, "interface=\"")
}
