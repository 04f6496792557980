//! What the demo shows, in order: red and blue build the same network by the API, talk, and never hear each other.
//!
//! Each step acts as a user would (REST API, command line, signals) and looks at the result from outside (packets, API
//! answers), so a step that says ok has seen it. What must not happen is looked for on the wire: no frame at all, rather
//! than no answer. Steps that later ones stand on end the story when they fail; the others are counted and passed.

use super::client::Tenant;
use super::daemon::{Daemon, Files};
use super::namespaces::{Netns, Sandbox};
use super::report::{Report, StepFailed};
use super::stage::{
    DOUBT, Estate, MEMBERS, MEMBERS_EACH, Stage, TENANTS, attach, await_op_status, plugs, record, text,
};
use super::traffic::{Member, PROBE_FRAMES, Probe, Station};
use super::transfer::transfer;
use anyhow::{Context, ensure};
use serde_json::json;
use std::io::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use switch::ids::MacAddr;

/// How long each TCP transfer sends.
const TRANSFER: Duration = Duration::from_millis(700);
/// A MAC address that nobody has and nobody has seen (locally administered).
const UNKNOWN: MacAddr = MacAddr([0x02, 0xde, 0xad, 0xbe, 0xef, 0x01]);

/// The index of `red-1`, `red-2`, `blue-1`, `blue-2`, as the steps below speak of them.
const RED_1: usize = 0;
const RED_2: usize = 1;
const BLUE_1: usize = 2;
const BLUE_2: usize = 3;

/// Tells the whole story.
pub(super) fn tell<W: Write>(sandbox: &Sandbox, report: &mut Report<W>) -> Result<(), StepFailed> {
    report.chapter("The stage");
    let members = report.step("four members in network namespaces", || {
        let members = MEMBERS
            .iter()
            .map(|&(name, attachment, tap, last)| {
                let netns = Netns::new(sandbox, name)?;
                Ok(Member { name, attachment, tap, address: Ipv4Addr::new(10, 0, 0, last), netns })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok((members, format!("all inside {} of our own", sandbox.kinds)))
    })?;
    let (files, mut daemon) = report.step("qvs run", || {
        let files = Files::new(&sandbox.dir)?;
        let daemon = Daemon::start(&files)?;
        let said = format!("process {}, API on {}", daemon.pid(), daemon.api);
        Ok(((files, daemon), said))
    })?;
    let estates = build_estates(&daemon, report)?;
    let stations = plug_members(&files, &members, &estates, report)?;
    let mut stage = Stage { estates, members, stations, nonce: 0 };

    report.chapter("Members of a network reach each other");
    stage.show_reach(report);
    report.chapter("Others see nothing");
    stage.show_isolation(report);
    stage.show_api_isolation(report);
    report.chapter("The API commands the packets");
    stage.show_admin_state(report);
    stage.show_unplugging(report);
    report.chapter("A crash loses nothing");
    daemon = stage.show_crash(daemon, &files, report)?;
    report.chapter("The end");
    report.check("qvs unplug removes the TAPs", || {
        for member in &stage.members {
            files.qvs(&["unplug", member.attachment])?;
        }
        for member in &stage.members {
            ensure!(!member.has_tap()?, "{} is still there", member.tap);
        }
        Ok("four, with their addresses".to_owned())
    });
    report.check("SIGTERM ends the daemon", || {
        let status = daemon.terminate()?;
        ensure!(status.success(), "{status}\n{}", files.log_tail());
        Ok("exit code 0".to_owned())
    });
    Ok(())
}

/// Makes both tenants' networks and ports and attaches the members, all by the API.
fn build_estates<W: Write>(daemon: &Daemon, report: &mut Report<W>) -> Result<Vec<Estate>, StepFailed> {
    let mut estates = Vec::new();
    for (index, name) in TENANTS.into_iter().enumerate() {
        let what = format!("{name} makes a network and two ports, and attaches its members");
        let estate = report.step(&what, || {
            let tenant = Tenant { api: daemon.api, name };
            let network = tenant.expect(202, "POST", "/networks", Some(&json!({"network": {"name": "office"}})))?;
            let network = text(&network, "/network/id")?;
            let mut ports = [const { String::new() }; MEMBERS_EACH];
            for port in &mut ports {
                let body = json!({"port": {"state": "ACTIVE"}});
                let made = tenant.expect(202, "POST", &format!("/networks/{network}/ports"), Some(&body))?;
                *port = text(&made, "/port/id")?;
            }
            let said = format!("network {}…", network.get(..8).unwrap_or(&network));
            let estate = Estate { tenant, network, ports };
            for port in 0..MEMBERS_EACH {
                attach(&estate, port, MEMBERS[index * MEMBERS_EACH + port].1)?;
            }
            Ok((estate, said))
        })?;
        estates.push(estate);
    }
    Ok(estates)
}

/// Plugs every member with a TAP in its namespace, and gives it its address.
fn plug_members<W: Write>(
    files: &Files,
    members: &[Member],
    estates: &[Estate],
    report: &mut Report<W>,
) -> Result<Vec<Station>, StepFailed> {
    report.step("qvs plug", || {
        for (index, member) in members.iter().enumerate() {
            let netns = member.netns.path.to_str().context("the temporary directory's name is not UTF-8")?;
            let tenant = TENANTS[index / MEMBERS_EACH];
            files.qvs(&["plug", member.attachment, "--tap", member.tap, "--netns", netns, "--tenant", tenant])?;
        }
        Ok(((), "four TAPs, made by the daemon in the members' namespaces".to_owned()))
    })?;
    report.step("op-status of all four ports", || {
        for estate in estates {
            for port in 0..MEMBERS_EACH {
                await_op_status(estate, port, "UP")?;
            }
        }
        Ok(((), "UP".to_owned()))
    })?;
    report.step("addresses", || {
        let stations = members.iter().map(Member::settle).collect::<anyhow::Result<Vec<_>>>()?;
        Ok((stations, "red has 10.0.0.1 and 10.0.0.2, and so has blue".to_owned()))
    })
}

impl Stage {
    fn show_reach<W: Write>(&mut self, report: &mut Report<W>) {
        for (from, to) in [(RED_1, RED_2), (BLUE_1, BLUE_2)] {
            let what = format!("{} pings {}", self.members[from].name, self.members[to].name);
            report.check(&what, || self.must_reach(from, to));
        }
        for (tenant, from, to) in [(0, RED_1, RED_2), (1, BLUE_1, BLUE_2)] {
            let other = 1 - tenant;
            let what = format!("TCP from {} to {}", self.members[from].name, self.members[to].name);
            report.check(&what, || {
                let strangers = &self.stations[other * MEMBERS_EACH..][..MEMBERS_EACH];
                for stranger in strangers {
                    stranger.drain()?;
                }
                let transfer = transfer(&self.members[from], &self.members[to], TRANSFER)?;
                let macs = [self.mac(from), self.mac(to)];
                let mut seen = 0;
                for stranger in strangers {
                    seen += stranger.frames_from(&macs)?;
                }
                ensure!(seen == 0, "{seen} frames of it came to {}", TENANTS[other]);
                Ok(format!("{transfer}; {} saw 0 frames of it", TENANTS[other]))
            });
        }
    }

    fn show_isolation<W: Write>(&mut self, report: &mut Report<W>) {
        for (from, own, victims) in [(RED_1, RED_2, [BLUE_1, BLUE_2]), (BLUE_1, BLUE_2, [RED_1, RED_2])] {
            let [first, second] = victims.map(|victim| self.mac(victim));
            let honest = self.mac(from);
            let probes = [
                ("broadcasts", Probe { destination: MacAddr::BROADCAST, source: honest, vlan: None }),
                ("sends to an unknown MAC", Probe { destination: UNKNOWN, source: honest, vlan: None }),
                ("sends to the other tenant's MAC", Probe { destination: first, source: honest, vlan: None }),
                ("forges the other tenant's MACs", Probe { destination: second, source: first, vlan: None }),
                ("broadcasts with a forged MAC", Probe { destination: MacAddr::BROADCAST, source: first, vlan: None }),
            ];
            for (what, frames) in probes {
                let what = format!("{} {what}", self.members[from].name);
                report.check(&what, || {
                    let seen = self.must_be_seen_by(&[own], from, frames)?;
                    Ok(format!("{seen}, nobody else any"))
                });
            }
            let tagged = Probe { destination: MacAddr::BROADCAST, source: honest, vlan: Some(1) };
            report.check(&format!("{} broadcasts with a VLAN tag", self.members[from].name), || {
                // Whether its own network carries tags is not the point here.
                let counts = self.probe(from, tagged, &[0; MEMBERS.len()])?;
                let seen: u32 = victims.iter().map(|&victim| counts[victim]).sum();
                ensure!(seen == 0, "{} got {seen} of {PROBE_FRAMES} frames", self.members[victims[0]].name);
                Ok("the other tenant saw 0".to_owned())
            });
        }
        report.check("after all the forging both networks still work", || {
            self.must_reach(BLUE_1, BLUE_2)?;
            self.must_reach(RED_1, RED_2)
        });
    }

    fn show_api_isolation<W: Write>(&mut self, report: &mut Report<W>) {
        let [red, blue] = &self.estates[..] else { unreachable!("two tenants were built") };
        report.check("blue asks the API for what is red's", || {
            let before = record(red)?;
            let (network, port) = (red.network_path(), red.port_path(0));
            let (name, state) = (json!({"network": {"name": "mine"}}), json!({"port": {"state": "DOWN"}}));
            let attachment = json!({"attachment": {"id": "blue-3-vif"}});
            let requests = [
                ("GET", network.clone(), None),
                ("GET", format!("{network}/detail"), None),
                ("PUT", network.clone(), Some(&name)),
                ("DELETE", network.clone(), None),
                ("GET", format!("{network}/ports"), None),
                ("GET", format!("{network}/ports/detail"), None),
                ("POST", format!("{network}/ports"), Some(&state)),
                ("GET", port.clone(), None),
                ("GET", format!("{port}/detail"), None),
                ("PUT", port.clone(), Some(&state)),
                ("DELETE", port.clone(), None),
                ("GET", red.attachment_path(0), None),
                ("PUT", red.attachment_path(0), Some(&attachment)),
                ("DELETE", red.attachment_path(0), None),
            ];
            for (method, path, body) in &requests {
                blue.tenant.expect(404, method, path, *body)?;
            }
            let list = blue.tenant.expect(200, "GET", "/networks", None)?;
            ensure!(!list.to_string().contains(&red.network), "blue's list of networks names red's: {list}");
            ensure!(record(red)? == before, "red's network is not what it was");
            Ok(format!("{} requests, each answered 404, and red's network is as it was", requests.len()))
        });
        report.check("blue attaches red's interface to a port of its own", || {
            let body = json!({"port": {"state": "ACTIVE"}});
            let made = blue.tenant.expect(202, "POST", &format!("{}/ports", blue.network_path()), Some(&body))?;
            let port = format!("{}/ports/{}", blue.network_path(), text(&made, "/port/id")?);
            let stolen = json!({"attachment": {"id": MEMBERS[RED_1].1}});
            blue.tenant.expect(409, "PUT", &format!("{port}/attachment"), Some(&stolen))?;
            blue.tenant.expect(204, "DELETE", &port, None)?;
            Ok("refused with 409".to_owned())
        });
    }

    fn show_admin_state<W: Write>(&mut self, report: &mut Report<W>) {
        report.check("red sets red-2's port DOWN", || {
            self.set_state(RED_2, "DOWN")?;
            await_op_status(&self.estates[0], RED_2, "DOWN")?;
            self.must_be_cut_off(RED_2, RED_1)?;
            self.must_reach(BLUE_1, BLUE_2)?;
            Ok("0 frames in, 0 out; blue goes on".to_owned())
        });
        report.check("and ACTIVE again", || {
            self.set_state(RED_2, "ACTIVE")?;
            await_op_status(&self.estates[0], RED_2, "UP")?;
            self.must_reach(RED_1, RED_2)
        });
    }

    fn show_unplugging<W: Write>(&mut self, report: &mut Report<W>) {
        report.check("red detaches red-2", || {
            let red = &self.estates[0];
            red.tenant.expect(204, "DELETE", &red.attachment_path(RED_2), None)?;
            self.must_be_cut_off(RED_2, RED_1)?;
            self.must_reach(BLUE_1, BLUE_2)?;
            Ok("0 frames in, 0 out; blue goes on".to_owned())
        });
        report.check("and attaches it again", || {
            attach(&self.estates[0], RED_2, MEMBERS[RED_2].1)?;
            await_op_status(&self.estates[0], RED_2, "UP")?;
            self.must_reach(RED_1, RED_2)
        });
    }

    /// Kills the daemon and starts it again; returns the new one.
    fn show_crash<W: Write>(
        &mut self,
        daemon: Daemon,
        files: &Files,
        report: &mut Report<W>,
    ) -> Result<Daemon, StepFailed> {
        let (api_before, plugs_before) = report.step("kill -9", || {
            let before = (self.estates.iter().map(record).collect::<anyhow::Result<Vec<_>>>()?, plugs(files)?);
            let said = format!("process {}", daemon.pid());
            daemon.kill()?;
            Ok((before, said))
        })?;
        report.check("without a switch nothing moves", || {
            let pinged = self.stations[RED_1].ping(self.members[RED_2].address, DOUBT)?;
            ensure!(pinged.is_none(), "{} answered", self.members[RED_2].name);
            Ok("no answer to a ping".to_owned())
        });
        let begun = Instant::now();
        let daemon = report.step("qvs run, once more", || {
            let daemon = Daemon::start(files)?;
            let said = format!("process {}, API on {}", daemon.pid(), daemon.api);
            Ok((daemon, said))
        })?;
        for estate in &mut self.estates {
            estate.tenant.api = daemon.api;
        }
        report.check("traffic is back without further action", || {
            self.must_reach(RED_1, RED_2)?;
            self.must_reach(BLUE_1, BLUE_2)?;
            Ok(format!("in both networks {} ms after the start", begun.elapsed().as_millis()))
        });
        report.check("networks, ports, attachments and plugs", || {
            for (estate, before) in self.estates.iter().zip(&api_before) {
                for port in 0..MEMBERS_EACH {
                    await_op_status(estate, port, "UP")?;
                }
                let now = record(estate)?;
                ensure!(now == *before, "{} had {before}, and now {now}", estate.tenant.name);
            }
            let now = plugs(files)?;
            ensure!(now == plugs_before, "plugged were {plugs_before}, and now {now}");
            Ok("as they were".to_owned())
        });
        report.check("TAPs and their addresses", || {
            for (member, station) in self.members.iter().zip(&self.stations) {
                let index = member.tap_index().with_context(|| format!("{} is gone", member.tap))?;
                ensure!(index == station.raw.interface_index(), "{} was made anew", member.tap);
                ensure!(member.has_address()?, "{} has lost its address", member.tap);
            }
            Ok("the same ones".to_owned())
        });
        report.check("and red is still alone", || {
            let frames = Probe { destination: MacAddr::BROADCAST, source: self.mac(RED_1), vlan: None };
            let seen = self.must_be_seen_by(&[RED_2], RED_1, frames)?;
            Ok(format!("{seen}, nobody else any"))
        });
        Ok(daemon)
    }
}
