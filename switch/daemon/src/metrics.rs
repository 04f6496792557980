//! The metrics: what the ledgers say at the moment of scraping, in Prometheus' text format (version 0.0.4).
//!
//! Nothing is counted here; a scrape sums the workers' counters, as `show` does. Interface ids are tenants' text and are
//! escaped. Bounds: about two kilobytes a port that has an interface on this host, and one scrape at a time on each thread that serves them.

use crate::view::{FlowRow, PortRow, WorkerRow};
use std::fmt::Write;
use switch::ledger::Balance;
use switch::switch::{QueueReport, WorkerReport};

/// Everything a scrape tells.
pub(crate) struct Metrics {
    /// The rows of `show ports` that have an interface here, or are ways to other hosts.
    pub(crate) ports: Vec<PortRow>,
    /// The rows of `show workers`.
    pub(crate) workers: Vec<WorkerRow>,
    /// The workers' own reports.
    pub(crate) reports: Vec<WorkerReport>,
    /// The books of the whole switch.
    pub(crate) balance: Balance,
    /// Queues moved from worker to worker.
    pub(crate) moved: u64,
    /// Generation of the snapshot in force.
    pub(crate) generation: u64,
    /// Networks there are.
    pub(crate) networks: usize,
    /// Entries of the MAC table.
    pub(crate) macs: usize,
}

impl Metrics {
    /// The text.
    pub(crate) fn render(&self) -> String {
        let mut page = Page::default();
        page.family("qvs_build_info", "gauge", "The program's version; always 1.");
        page.sample("qvs_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        page.family("qvs_config_generation", "counter", "Generation of the forwarding config in force.");
        page.sample("qvs_config_generation", &[], self.generation);
        page.family("qvs_networks", "gauge", "Tenants' networks.");
        page.sample("qvs_networks", &[], self.networks);
        page.family("qvs_mac_entries", "gauge", "Entries of the MAC table.");
        page.sample("qvs_mac_entries", &[], self.macs);
        self.render_ports(&mut page);
        self.render_devices(&mut page);
        self.render_workers(&mut page);
        self.render_balance(&mut page);
        page.text
    }

    fn render_ports(&self, page: &mut Page) {
        page.family("qvs_port_up", "gauge", "1 if the op-status of the logical port of an interface is UP.");
        self.each_port(|labels, port| {
            if let Some(status) = &port.op_status {
                page.sample("qvs_port_up", labels, u8::from(status == "UP"));
            }
        });
        page.family("qvs_port_link_up", "gauge", "1 if the guest's rings run or the carrier is there.");
        self.each_device(|labels, port| page.sample("qvs_port_link_up", labels, u8::from(port.link == "up")));
        page.family("qvs_port_sessions_total", "counter", "Sessions that began on the vhost-user socket.");
        self.each_device(|labels, port| {
            if let Some(sessions) = port.sessions {
                page.sample("qvs_port_sessions_total", labels, sessions);
            }
        });
        page.family("qvs_port_refused_total", "counter", "Connections to the vhost-user socket that were turned away.");
        self.each_device(|labels, port| {
            if let Some(refused) = port.refused {
                page.sample("qvs_port_refused_total", labels, refused);
            }
        });
        page.family("qvs_port_packets_total", "counter", "Frames moved; rx: received from the device, tx: sent to it.");
        self.each_flow(|labels, flow| page.sample("qvs_port_packets_total", labels, flow.packets));
        page.family("qvs_port_bytes_total", "counter", "Bytes of these frames.");
        self.each_flow(|labels, flow| page.sample("qvs_port_bytes_total", labels, flow.bytes));
        page.family("qvs_port_drops_total", "counter", "Frames dropped at the port, by reason.");
        self.each_flow(|labels, flow| {
            for (reason, count) in &flow.drops {
                let labels = [labels, &[("reason", reason.as_str())]].concat();
                page.sample("qvs_port_drops_total", &labels, count);
            }
        });
    }

    /// What the kernel counted at devices of others, and at the links of bonds.
    fn render_devices(&self, page: &mut Page) {
        let help = "What the kernel counted at the interface since it was made, as `ip -s link` tells it.";
        page.family("qvs_device_counter_total", "counter", help);
        self.each_device(|labels, port| {
            let own = (port.path.as_deref().unwrap_or_default(), &port.device_counters);
            let links = port.links.iter().map(|link| (link.interface.as_str(), &link.device_counters));
            for (device, counters) in std::iter::once(own).chain(links) {
                for (counter, count) in counters {
                    let labels = [labels, &[("device", device), ("counter", counter.as_str())]].concat();
                    page.sample("qvs_device_counter_total", &labels, count);
                }
            }
        });
    }

    fn each_port<'a>(&'a self, mut visit: impl FnMut(&[(&str, &str)], &'a PortRow)) {
        for port in &self.ports {
            let text = |text: &'a Option<String>| text.as_deref().unwrap_or_default();
            let labels = [
                ("interface", text(&port.interface)),
                ("port", text(&port.port)),
                ("network", text(&port.network)),
                ("tenant", text(&port.tenant)),
            ];
            visit(&labels, port);
        }
    }

    fn each_device<'a>(&'a self, mut visit: impl FnMut(&[(&str, &str)], &'a PortRow)) {
        self.each_port(|labels, port| {
            if let Some(kind) = &port.kind {
                visit(&[labels, &[("kind", kind.as_str())]].concat(), port);
            }
        });
    }

    fn each_flow<'a>(&'a self, mut visit: impl FnMut(&[(&str, &str)], &'a FlowRow)) {
        self.each_device(|labels, port| {
            visit(&[labels, &[("direction", "rx")]].concat(), &port.rx);
            visit(&[labels, &[("direction", "tx")]].concat(), &port.tx);
        });
    }

    fn render_workers(&self, page: &mut Page) {
        let label = |worker: u8| worker.to_string();
        page.family("qvs_worker_busy_ratio", "gauge", "Share of the last second spent in rounds that found frames.");
        for worker in &self.workers {
            page.sample("qvs_worker_busy_ratio", &[("worker", &label(worker.worker))], worker.busy);
        }
        type Field = fn(&WorkerReport) -> u64;
        let counters: [(&str, &str, Field); 5] = [
            ("qvs_worker_packets_total", "Frames taken from devices.", |report| report.packets),
            ("qvs_worker_batches_total", "Batches that were not empty.", |report| report.batches),
            ("qvs_worker_rounds_total", "Rounds over all queues.", |report| report.rounds),
            ("qvs_worker_busy_nanoseconds_total", "Time in rounds that found frames.", |report| report.busy_ns),
            ("qvs_worker_sleeps_total", "Times the worker went to sleep.", |report| report.sleeps),
        ];
        for (name, help, value) in counters {
            page.family(name, "counter", help);
            for report in &self.reports {
                page.sample(name, &[("worker", &label(report.worker.0))], value(report));
            }
        }
        type Cost = fn(&QueueReport) -> u64;
        let costs: [(&str, &str, Cost); 2] = [
            (
                "qvs_queue_busy_nanoseconds_total",
                "Time that the frames of a queue took, on whichever worker; an estimate.",
                |queue| queue.busy_ns,
            ),
            (
                "qvs_queue_busy_packets_total",
                "Frames that this is the time of; as much an estimate, so that the time a frame is steadier than either.",
                |queue| queue.busy_packets,
            ),
        ];
        for (name, help, value) in costs {
            page.family(name, "counter", help);
            for (worker, report) in std::iter::zip(&self.workers, &self.reports) {
                for (row, queue) in std::iter::zip(&worker.queues, &report.queues) {
                    let labels = [("interface", row.interface.as_str()), ("queue", &row.queue.to_string())];
                    page.sample(name, &labels, value(queue));
                }
            }
        }
        page.family("qvs_queue_moves_total", "counter", "Queues moved from worker to worker.");
        page.sample("qvs_queue_moves_total", &[], self.moved);
    }

    /// received + copies + originated = sent + dropped + consumed + held, between two rounds.
    fn render_balance(&self, page: &mut Page) {
        let books = &self.balance;
        for (name, kind, help, value) in [
            ("qvs_frames_received_total", "counter", "Frames taken from devices.", books.received),
            ("qvs_frames_copied_total", "counter", "Copies made: a flood to n ports makes n - 1.", books.copies),
            ("qvs_frames_originated_total", "counter", "Frames the switch made itself.", books.originated),
            ("qvs_frames_sent_total", "counter", "Frames delivered to devices.", books.sent),
            ("qvs_frames_dropped_total", "counter", "Frames dropped, for any reason.", books.dropped),
            ("qvs_frames_consumed_total", "counter", "Frames answered or swallowed by the switch.", books.consumed),
            ("qvs_frames_held", "gauge", "Frames kept for later.", books.held),
        ] {
            page.family(name, kind, help);
            page.sample(name, &[], value);
        }
    }
}

/// A page in Prometheus' text format.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a String takes all that is written");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.text.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            for c in text.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        writeln!(self.text, " {value}").expect("a String takes all that is written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_labels_stay_inside_their_quotes() {
        let mut page = Page::default();
        page.sample("m", &[("a", "x\"} 1\nm 2 \\"), ("b", "é")], 7);
        assert_eq!(page.text, "m{a=\"x\\\"} 1\\nm 2 \\\\\",b=\"é\"} 7\n");
    }

    fn page() -> String {
        let balance = Balance { received: 5, sent: 4, dropped: 1, ..Balance::default() };
        let metrics = Metrics {
            ports: Vec::new(),
            workers: Vec::new(),
            reports: Vec::new(),
            balance,
            moved: 0,
            generation: 3,
            networks: 2,
            macs: 9,
        };
        metrics.render()
    }

    /// The first words of the rows of a table of `switch/COUNTERS.md`, and what stands beside them.
    fn documented(heading: &str) -> Vec<(String, String)> {
        let text = include_str!("../../COUNTERS.md");
        let section = text.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        rows.map(|(name, rest)| (name.to_owned(), rest.split(" | ").next().unwrap().to_owned())).collect()
    }

    #[test]
    fn every_drop_reason_and_every_metric_is_documented_and_nothing_else() {
        let reasons: Vec<String> = documented("Why frames are dropped").into_iter().map(|(name, _)| name).collect();
        let all: Vec<&str> = switch::ledger::DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(reasons, all);
        let page = page();
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let types: Vec<_> = types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
        assert_eq!(documented("Metrics"), types);
    }

    #[test]
    fn a_page_has_every_family_once_and_no_line_without_form() {
        let text = page();
        assert!(text.contains("\nqvs_frames_received_total 5\n") && text.contains("\nqvs_config_generation 3\n"));
        let mut families: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let count = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), count);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert_eq!(line.split(' ').count(), 2, "{line}");
        }
    }
}
