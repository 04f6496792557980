//! Who is on the stage, and what can be asked of them: reach each other, be cut off, be seen by these and nobody else.
//!
//! The questions look at packets and at the API's answers, never into the daemon.

use super::client::Tenant;
use super::daemon::{Files, GLANCE};
use super::traffic::{Member, PROBE_FRAMES, Probe, Station, probe};
use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use switch::ids::MacAddr;

/// The tenants' names.
pub(super) const TENANTS: [&str; 2] = ["red", "blue"];
/// Name, attachment, TAP and last byte of the address of each member: first those of red, then those of blue.
pub(super) const MEMBERS: [(&str, &str, &str, u8); 4] = [
    ("red-1", "red-1-vif", "tap-red-1", 1),
    ("red-2", "red-2-vif", "tap-red-2", 2),
    ("blue-1", "blue-1-vif", "tap-blue-1", 1),
    ("blue-2", "blue-2-vif", "tap-blue-2", 2),
];
/// Members of one tenant.
pub(super) const MEMBERS_EACH: usize = 2;
const _: () = assert!(MEMBERS.len() == TENANTS.len() * MEMBERS_EACH);
/// How long something that must come true may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long we ping where nobody may answer.
pub(super) const DOUBT: Duration = Duration::from_millis(300);

/// A tenant with its network and ports, by the ids that the API gave them.
pub(super) struct Estate {
    pub(super) tenant: Tenant,
    pub(super) network: String,
    pub(super) ports: [String; MEMBERS_EACH],
}

impl Estate {
    pub(super) fn network_path(&self) -> String {
        format!("/networks/{}", self.network)
    }

    pub(super) fn port_path(&self, port: usize) -> String {
        format!("/networks/{}/ports/{}", self.network, self.ports[port])
    }

    pub(super) fn attachment_path(&self, port: usize) -> String {
        format!("{}/attachment", self.port_path(port))
    }
}

/// The stage after everything is built.
pub(super) struct Stage {
    pub(super) estates: Vec<Estate>,
    pub(super) members: Vec<Member>,
    pub(super) stations: Vec<Station>,
    /// Makes the frames of each probe different from all others.
    pub(super) nonce: u64,
}

impl Stage {
    pub(super) fn mac(&self, member: usize) -> MacAddr {
        self.stations[member].raw.mac()
    }

    pub(super) fn must_reach(&self, from: usize, to: usize) -> anyhow::Result<String> {
        let begun = Instant::now();
        match self.stations[from].ping(self.members[to].address, PATIENCE)? {
            Some(time) => {
                // The first echo may have waited for ARP, or for the switch.
                let waited = begun.elapsed().saturating_sub(time).as_millis();
                let after = if waited > 0 { format!(", after {waited} ms") } else { String::new() };
                Ok(format!("answer in {:.2} ms{after}", time.as_secs_f64() * 1e3))
            }
            None => bail!("{} did not answer {} for {PATIENCE:?}", self.members[to].name, self.members[from].name),
        }
    }

    /// Checks that nothing goes from `one` to `other` nor back: neither echoes nor raw frames.
    pub(super) fn must_be_cut_off(&mut self, one: usize, other: usize) -> anyhow::Result<()> {
        for (from, to) in [(one, other), (other, one)] {
            let frames = Probe { destination: MacAddr::BROADCAST, source: self.mac(from), vlan: None };
            self.must_be_seen_by(&[], from, frames)?;
            let direct = Probe { destination: self.mac(to), source: self.mac(from), vlan: None };
            self.must_be_seen_by(&[], from, direct)?;
        }
        let pinged = self.stations[other].ping(self.members[one].address, DOUBT)?;
        ensure!(pinged.is_none(), "{} answers {} still", self.members[one].name, self.members[other].name);
        Ok(())
    }

    /// Sends raw frames and checks that `receivers` get every one and the other members none.
    pub(super) fn must_be_seen_by(
        &mut self,
        receivers: &[usize],
        from: usize,
        frames: Probe,
    ) -> anyhow::Result<String> {
        let mut expected = [0; MEMBERS.len()];
        for &receiver in receivers {
            expected[receiver] = PROBE_FRAMES;
        }
        let counts = self.probe(from, frames, &expected)?;
        for (member, (count, due)) in self.members.iter().zip(counts.iter().zip(expected)) {
            ensure!(*count == due, "{} got {count} of {PROBE_FRAMES} frames, and {due} were due", member.name);
        }
        let names: Vec<&str> = receivers.iter().map(|&receiver| self.members[receiver].name).collect();
        Ok(format!("{} saw {PROBE_FRAMES} of {PROBE_FRAMES}", names.join(" and ")))
    }

    pub(super) fn probe(&mut self, from: usize, frames: Probe, expected: &[u32]) -> anyhow::Result<Vec<u32>> {
        self.nonce += 1;
        probe(&self.stations, from, frames, self.nonce, expected)
    }

    pub(super) fn set_state(&self, port: usize, state: &str) -> anyhow::Result<()> {
        let red = &self.estates[0];
        red.tenant.expect(204, "PUT", &red.port_path(port), Some(&json!({"port": {"state": state}})))?;
        Ok(())
    }
}

pub(super) fn attach(estate: &Estate, port: usize, attachment: &str) -> anyhow::Result<()> {
    let body = json!({"attachment": {"id": attachment}});
    estate.tenant.expect(204, "PUT", &estate.attachment_path(port), Some(&body))?;
    Ok(())
}

/// Waits until the API shows this op-status.
pub(super) fn await_op_status(estate: &Estate, port: usize, due: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let shown = estate.tenant.expect(200, "GET", &estate.port_path(port), None)?;
        let status = text(&shown, "/port/op-status")?;
        if status == due {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "op-status is {status} and not {due} after {PATIENCE:?}");
        std::thread::sleep(GLANCE);
    }
}

/// Everything the API says of a tenant's network: names, states, op-status, attachments; ports ordered by id.
pub(super) fn record(estate: &Estate) -> anyhow::Result<Value> {
    let mut network = estate.tenant.expect(200, "GET", &format!("{}/detail", estate.network_path()), None)?;
    let ports = network.pointer_mut("/network/ports").and_then(Value::as_array_mut).context("no ports in detail")?;
    ports.sort_by_key(|port| port["id"].as_str().unwrap_or_default().to_owned());
    Ok(network)
}

/// What is plugged where, without what changes by itself: counters, link and reason.
pub(super) fn plugs(files: &Files) -> anyhow::Result<Value> {
    let shown = files.show("ports")?;
    let mut plugs: Vec<Value> = shown
        .as_array()
        .context("qvs show ports --json is no list")?
        .iter()
        .map(|port| {
            ["interface", "kind", "path", "port", "network", "tenant", "state"]
                .into_iter()
                .map(|key| (key.to_owned(), port[key].clone()))
                .collect::<serde_json::Map<_, _>>()
                .into()
        })
        .collect();
    ensure!(plugs.len() == MEMBERS.len(), "{} ports are shown: {shown}", plugs.len());
    plugs.sort_by_key(|plug| plug["interface"].as_str().unwrap_or_default().to_owned());
    Ok(plugs.into())
}

pub(super) fn text(value: &Value, pointer: &str) -> anyhow::Result<String> {
    let text = value.pointer(pointer).and_then(Value::as_str);
    Ok(text.with_context(|| format!("no {pointer} in {value}"))?.to_owned())
}
