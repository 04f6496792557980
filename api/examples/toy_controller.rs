//! A plugin for a controller elsewhere, whole: the example of `api/PLUGINS.md`.
//!
//! [`Driver`] is what one writes: two methods that speak the controller's language. [`toy`] is such a controller, so that
//! this runs anywhere: it speaks JSON, one object a line, one exchange a connection.
//! `cargo run -p api --example toy_controller` lets both meet; the tests of this crate run it, and the rules for plugins.

use api::model::{AdminState, OpStatus};
use api::plugin::Plugin;
use api::plugins::RemotePlugin;
use api::plugins::remote::{Contents, Device, DeviceError, DeviceNetwork, DevicePort, FoundPort, Pace, Step, Taken};
use api::store::Store;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// No call to the controller takes longer than a few of these; meanwhile nothing else is driven.
const TIME_MAX: Duration = Duration::from_secs(5);

/// The driver: where the controller is. It remembers nothing, so there is nothing that could be wrong.
pub(crate) struct Driver {
    pub(crate) controller: SocketAddr,
}

impl Driver {
    /// One exchange. Whatever goes wrong on the way is "no answer": perhaps the controller did it, perhaps not.
    fn ask(&self, question: &Value) -> Result<Value, DeviceError> {
        let unavailable = |why: String| DeviceError::Unavailable { why: why.into() };
        let exchange = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&self.controller, TIME_MAX)?;
            stream.set_read_timeout(Some(TIME_MAX))?;
            stream.set_write_timeout(Some(TIME_MAX))?;
            stream.write_all(format!("{question}\n").as_bytes())?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().map_err(|error| unavailable(error.to_string()))?;
        let answer: Value = serde_json::from_str(&answer).map_err(|error| unavailable(error.to_string()))?;
        match answer["refused"].as_str() {
            Some(why) => Err(DeviceError::Refused { why: why.into() }),
            None => Ok(answer),
        }
    }
}

impl Device for Driver {
    fn contents(&self) -> Result<Contents, DeviceError> {
        let answer = self.ask(&json!({"do": "list"}))?;
        let mut contents = Contents::default();
        for (id, it) in answer["networks"].as_object().into_iter().flatten() {
            let tenant = it["tenant"].as_str().unwrap_or_default().into();
            let network = DeviceNetwork { tenant, name: it["name"].as_str().map(Into::into) };
            contents.networks.insert(id.as_str().into(), network);
        }
        for (id, it) in answer["ports"].as_object().into_iter().flatten() {
            let port = DevicePort {
                network: it["network"].as_str().unwrap_or_default().into(),
                state: it["state"].as_str().and_then(AdminState::from_name).unwrap_or(AdminState::Down),
                attachment: it["attachment"].as_str().map(Into::into),
                pairs: serde_json::from_value(it["pairs"].clone()).unwrap_or_default(),
            };
            let is_up = it["link"] == "up";
            contents.ports.insert(id.as_str().into(), FoundPort { port, is_up });
        }
        Ok(contents)
    }

    fn apply(&self, step: &Step) -> Result<Taken, DeviceError> {
        let question = match step {
            Step::PutNetwork(id, network) => json!({
                "do": "put", "kind": "networks", "id": id,
                "value": {"tenant": network.tenant, "name": network.name},
            }),
            Step::PutPort(id, port) => json!({
                "do": "put", "kind": "ports", "id": id,
                "value": {
                    "network": port.network, "state": port.state, "attachment": port.attachment, "pairs": &*port.pairs,
                },
            }),
            Step::RemovePort(id) => json!({"do": "remove", "kind": "ports", "id": id}),
            Step::RemoveNetwork(id) => json!({"do": "remove", "kind": "networks", "id": id}),
        };
        self.ask(&question).map(|_| Taken::Done)
    }
}

/// The controller.
pub(crate) mod toy {
    use serde_json::{Value, json};
    use std::io::{BufRead, BufReader, Result, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    /// Starts one; it lives as long as the process.
    pub(crate) fn start() -> Result<(SocketAddr, Arc<Mutex<Value>>)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let contents = Arc::new(Mutex::new(json!({"networks": {}, "ports": {}})));
        let of_thread = contents.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up has what it wanted.
                let _ = answer(&stream, &of_thread);
            }
        });
        Ok((address, contents))
    }

    fn answer(mut stream: &TcpStream, contents: &Mutex<Value>) -> Result<()> {
        let mut question = String::new();
        BufReader::new(stream).read_line(&mut question)?;
        let question: Value = serde_json::from_str(&question)?;
        let mut contents = contents.lock().map_err(|_| std::io::Error::other("the controller broke"))?;
        let (kind, id) = (question["kind"].as_str(), question["id"].as_str());
        let answer = match (question["do"].as_str(), kind.and_then(|kind| contents.get_mut(kind)), id) {
            (Some("list"), ..) => contents.clone(),
            (Some("put"), Some(things), Some(id)) => {
                let mut value = question["value"].clone();
                if value["state"] == "ACTIVE" && value["attachment"].is_string() {
                    value["link"] = "up".into();
                }
                things[id] = value;
                json!({"done": id})
            }
            (Some("remove"), Some(things), Some(id)) => {
                things.as_object_mut().map(|things| things.remove(id));
                json!({"done": id})
            }
            _ => json!({"refused": "no such question"}),
        };
        stream.write_all(format!("{answer}\n").as_bytes())
    }
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (controller, contents) = toy::start()?;
    let state = std::env::temp_dir().join(format!("toy-controller-{}", std::process::id()));
    let store = Arc::new(Store::open(&state.join("state.redb"))?);
    let plugin = RemotePlugin::start(store, Driver { controller }, Pace::default())?;

    let network = plugin.create_network("acme", Some("blue".into()))?;
    let port = plugin.create_port("acme", &network, "ACTIVE")?;
    plugin.plug_interface("acme", &network, &port, "vif-1")?;
    if !plugin.wait_until_driven(TIME_MAX) {
        return Err("the controller does not answer".into());
    }
    let status = plugin.get_port_details("acme", &network, &port)?.op_status;
    println!("port {port} is {}; the controller has {}", status.name(), contents.lock().map_err(|_| "broken")?);
    std::fs::remove_dir_all(&state)?;
    if status == OpStatus::Up { Ok(()) } else { Err("the port is not up".into()) }
}
