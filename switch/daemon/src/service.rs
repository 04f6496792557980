//! What the daemon answers on the admin socket, put together from its parts.

use crate::admin::{self, Service};
use crate::capture::serve::{CaptureRequest, Captures, Running};
use crate::cli::What;
use crate::control::Control;
use crate::load::Load;
use crate::metrics::Metrics;
use crate::protocol::{Answer, Request, Rows, parse_hex};
use crate::rebalance::Rebalancer;
use crate::settings::Settings;
use crate::view;
use api::host::DeviceSpec;
use api::model::InterfaceId;
use api::quota::Quotas;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use switch::ids::PortIndex;
use switch::worker::Pipeline;

/// Bytes of a frame that `trace` takes: the largest a port carries, with two tags.
const FRAME_MAX: usize = switch::config::MTU_MAX as usize + switch::config::L2_OVERHEAD_MAX;

/// The running daemon, as the admin socket sees it.
pub(crate) struct Daemon<P: Pipeline> {
    /// The host's state.
    pub(crate) control: Arc<Control<P>>,
    /// What tenants may have.
    pub(crate) quotas: Arc<Quotas>,
    /// The workers' load.
    pub(crate) load: Load,
    /// What moves queues between them.
    pub(crate) rebalancer: Rebalancer,
    /// Captures under way.
    pub(crate) captures: Captures,
    /// The settings in force.
    pub(crate) settings: Settings,
    /// Where the API listens, with the port the system chose; `None`: this node serves none.
    pub(crate) api_address: Option<SocketAddr>,
    /// Where metrics are served over TCP.
    pub(crate) metrics_address: Option<SocketAddr>,
}

impl<P: Pipeline> Daemon<P> {
    fn config(&self) -> Result<Value, serde_json::Error> {
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "generation": self.control.switch().snapshot().generation,
            "api_listen": self.api_address.map(|address| address.to_string()),
            "metrics_listen": self.metrics_address.map(|address| address.to_string()),
            "settings": serde_json::to_value(&self.settings)?,
        }))
    }

    fn workers(&self) -> Vec<view::WorkerRow> {
        let config = self.control.switch().snapshot().config.clone();
        let name =
            |index: PortIndex| config.port(index).map_or_else(|| index.to_string(), |port| port.interface.to_string());
        self.load.rows(self.control.switch().worker_reports(), name)
    }

    /// The interface that `port` names, an interface id, an uplink or the id of a logical port that has an interface; and its index.
    fn resolve(&self, port: &str) -> Result<(InterfaceId, PortIndex), String> {
        if let Some(index) = self.control.uplink(port) {
            return Ok((port.into(), index));
        }
        let view = self.control.view();
        let model = self.control.model();
        let interface = match model.ports.get(port).and_then(|port| port.attachment.as_deref()) {
            Some(attachment) if !view.interfaces.contains_key(port) => attachment,
            _ => port,
        };
        let interface = view.interfaces.get(interface).ok_or_else(|| format!("{port:?} is not plugged here"))?;
        let index = interface.index.ok_or_else(|| format!("{port:?} has no port: the switch is full"))?;
        Ok((interface.plug.interface.clone(), index))
    }

    /// The same of one that frames come and go by: no device stands at a VLAN of a trunk.
    fn resolve_device(&self, port: &str) -> Result<(InterfaceId, PortIndex), String> {
        let (interface, index) = self.resolve(port)?;
        match self.control.view().interfaces.get(&interface).map(|view| &view.plug.device) {
            Some(DeviceSpec::Vlan { parent, vlan }) => Err(format!(
                "{interface:?} is VLAN {vlan} of {parent:?} and has no device: capture at {parent:?} with the filter \"vlan {vlan}\""
            )),
            _ => Ok((interface, index)),
        }
    }

    fn trace(&self, port: &str, frame: &str) -> Result<Vec<String>, String> {
        let frame = parse_hex(frame)?;
        if frame.len() > FRAME_MAX {
            return Err(format!("the frame has {} bytes; at most {FRAME_MAX} are carried", frame.len()));
        }
        let (interface, index) = self.resolve(port)?;
        let mut lines = vec![format!("from {interface:?}, {} bytes", frame.len())];
        lines.extend(self.control.switch().trace(index, &frame));
        Ok(lines)
    }
}

impl<P: Pipeline> Service for Daemon<P> {
    fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Plug(plug) => match self.control.plug(plug) {
                Ok(device) => Answer::Ok(json!({ "ready": device.is_ready, "reason": device.reason })),
                Err(error) => Answer::Error(error.to_string()),
            },
            Request::Unplug { interface } => match self.control.unplug(&interface) {
                Ok(()) => Answer::Ok(Value::Null),
                Err(error) => Answer::Error(error.to_string()),
            },
            Request::Trace { port, frame } => match self.trace(&port, &frame) {
                Ok(lines) => Answer::Ok(json!(lines)),
                Err(error) => Answer::Error(error),
            },
            Request::Rebalance { dry_run } => {
                let told = self.rebalancer.ask(self.control.switch(), &self.load, dry_run);
                serde_json::to_value(told).map_or_else(|error| Answer::Error(error.to_string()), Answer::Ok)
            }
            // These need the connection: see `show` and `capture`.
            Request::Show { .. } | Request::Capture(_) => Answer::Error("this is more than an answer".into()),
        }
    }

    fn show(&self, what: What, to: &mut dyn Write) -> io::Result<()> {
        if what == What::Config {
            let config = self.config().map_or_else(|error| Answer::Error(error.to_string()), Answer::Ok);
            return admin::write_answer(to, &config);
        }
        let control = &self.control;
        let mut rows = Rows::begin(to)?;
        match what {
            What::Ports => view::each_port(control, |row| rows.row(&row))?,
            What::Networks => view::each_network(control, |row| rows.row(&row))?,
            What::Macs => view::macs(control).iter().try_for_each(|row| rows.row(row))?,
            What::Workers => self.workers().iter().try_for_each(|row| rows.row(row))?,
            What::Drops => view::drops(view::interfaces(control)).iter().try_for_each(|row| rows.row(row))?,
            What::Nodes => view::nodes(control).iter().try_for_each(|row| rows.row(row))?,
            What::Quotas => view::quotas(&control.model(), &self.quotas).iter().try_for_each(|row| rows.row(row))?,
            What::Config => unreachable!("it is told above and is no list"),
        }
        rows.end()
    }

    fn capture(&self, request: CaptureRequest, mut stream: &UnixStream) -> io::Result<()> {
        let started = self.resolve_device(&request.port).and_then(|(interface, index)| {
            Running::start(&self.captures, self.control.switch(), interface, index, request)
        });
        let running = match started {
            Ok(running) => running,
            Err(error) => return admin::write_answer(&mut stream, &Answer::Error(error)),
        };
        running.log(stream);
        admin::write_answer(&mut stream, &Answer::Ok(json!({ "interface": running.interface() })))?;
        running.send_to(stream)
    }

    fn metrics(&self) -> String {
        let switch = self.control.switch();
        let metrics = Metrics {
            ports: view::interfaces(&self.control),
            workers: self.workers(),
            reports: switch.worker_reports(),
            balance: switch.balance(),
            moved: self.rebalancer.moved(),
            generation: switch.snapshot().generation,
            networks: self.control.model().networks.len(),
            macs: switch.mac_table().entries(switch.clock().now()).len(),
        };
        metrics.render()
    }
}
