//! `qvs net`, `qvs port` and `qvs attach`: what a tenant does by the API, in words.
//!
//! Users say names where the API wants ids. A word may be a name, an id or, for a port, what is attached to it; one that
//! may be two things is refused with the ids, never guessed. Between looking and doing somebody else may change
//! things: the API is asked by id, so at worst it says that the thing is gone.

mod service;
mod view;

use crate::Outcome;
use crate::cli::{AttachCommand, FormArgs, NetArgs, NetCommand, PortArgs, PortCommand, ServiceArgs};
use api::http_client::Method;
use serde_json::{Value, json};
use service::{Service, ServiceError, encode, is_id};

/// The attribute of a port that lists what it may send from.
const PAIRS: &str = "allowed_address_pairs";

/// `qvs net`
pub(crate) fn net(command: NetCommand) -> Outcome {
    outcome(match command {
        NetCommand::List { name, attachment, form, service } => {
            list_networks(&service, &[("name", name), ("attachment", attachment)], &form)
        }
        NetCommand::Show { net, form, service } => on_net(&service, &net, |service, path| {
            let network = service.get(&format!("{path}/detail"), "network")?;
            Ok(view::one(&network, &form, view::network_and_ports))
        }),
        NetCommand::Create { name, form, service } => with(&service, |service| {
            let id = service.create("/networks", "network", &json!({"name": name}))?;
            Ok(view::made(&id, &form))
        }),
        NetCommand::Rename { net, name, service } => on_net(&service, &net, |service, path| {
            service.ask(Method::PUT, path, Some(&json!({"network": {"name": name}})))?;
            Ok("renamed\n".to_owned())
        }),
        NetCommand::Delete { net, service } => on_net(&service, &net, delete),
    })
}

/// `qvs port`
pub(crate) fn port(command: PortCommand) -> Outcome {
    outcome(match command {
        PortCommand::List { net, attachment, form, service } => {
            list_ports(&service, net.as_deref(), attachment.as_deref(), &form)
        }
        PortCommand::Show { port, form, service } => on_port(&service, &port, |service, path| {
            let port = service.get(&format!("{path}/detail"), "port")?;
            Ok(view::one(&port, &form, |port| view::ports(std::slice::from_ref(port))))
        }),
        PortCommand::Create { net, down, attach, allow, form, service } => on_net(&service, &net, |service, path| {
            let state = if down { "DOWN" } else { "ACTIVE" };
            let ports = format!("{path}/ports");
            let mut port = json!({"state": state});
            if !allow.is_empty() {
                port[PAIRS] = pairs(&allow);
            }
            let id = service.create(&ports, "port", &port)?;
            if let Some(interface) = attach {
                plug(service, &format!("{ports}/{id}"), &interface).map_err(|error| {
                    // Nobody asked for a port with nothing attached.
                    match service.ask(Method::DELETE, &format!("{ports}/{id}"), None) {
                        Ok(_) => error,
                        Err(_) => ServiceError::Left { port: id.clone(), source: Box::new(error) },
                    }
                })?;
            }
            Ok(view::made(&id, &form))
        }),
        PortCommand::Allow { port, pairs: allowed, service } => on_port(&service, &port, |service, path| {
            // An update without a state would set it DOWN.
            let state = service.get(path, "port")?["state"].take();
            let body = json!({"port": {"state": state, PAIRS: pairs(&allowed)}});
            service.ask(Method::PUT, path, Some(&body))?;
            Ok(format!("{} allowed\n", allowed.len()))
        }),
        PortCommand::Up { port, service } => on_port(&service, &port, |service, path| set(service, path, "ACTIVE")),
        PortCommand::Down { port, service } => on_port(&service, &port, |service, path| set(service, path, "DOWN")),
        PortCommand::Delete { port, service } => on_port(&service, &port, delete),
    })
}

/// `qvs attach`
pub(crate) fn attach(command: AttachCommand) -> Outcome {
    outcome(match command {
        AttachCommand::Show { port, form, service } => on_port(&service, &port, |service, path| {
            let attachment = service.get(&format!("{path}/attachment"), "attachment")?;
            Ok(view::one(&attachment, &form, view::attachment))
        }),
        AttachCommand::Plug { port, id, service } => on_port(&service, &port, |service, path| {
            plug(service, path, &id)?;
            Ok("attached\n".to_owned())
        }),
        AttachCommand::Unplug { port, service } => on_port(&service, &port, |service, path| {
            service.ask(Method::DELETE, &format!("{path}/attachment"), None)?;
            Ok("detached\n".to_owned())
        }),
    })
}

fn outcome(result: Result<String, ServiceError>) -> Outcome {
    result.map_err(|error| (error.status(), error.to_string()))
}

fn with(
    args: &ServiceArgs,
    act: impl FnOnce(&Service) -> Result<String, ServiceError>,
) -> Result<String, ServiceError> {
    act(&Service::new(args)?)
}

/// Does something with a network, by its path below the tenant's URL.
fn on_net(
    args: &ServiceArgs,
    net: &NetArgs,
    act: impl FnOnce(&Service, &str) -> Result<String, ServiceError>,
) -> Result<String, ServiceError> {
    let service = Service::new(args)?;
    act(&service, &format!("/networks/{}", network_id(&service, &net.net)?))
}

/// Does something with a port, by its path below the tenant's URL.
fn on_port(
    args: &ServiceArgs,
    port: &PortArgs,
    act: impl FnOnce(&Service, &str) -> Result<String, ServiceError>,
) -> Result<String, ServiceError> {
    on_net(args, &port.net, |service, path| {
        let ports = format!("{path}/ports");
        let attached = ids(service, &format!("{ports}?attachment={}", encode(&port.port)), "ports")?;
        act(service, &format!("{ports}/{}", meant(service, "port", &port.port, attached, &ports)?))
    })
}

fn network_id(service: &Service, word: &str) -> Result<String, ServiceError> {
    let named = ids(service, &format!("/networks?name={}", encode(word)), "networks")?;
    meant(service, "network", word, named, "/networks")
}

/// The id that a word means, given those it names: it may be an id itself.
fn meant(
    service: &Service,
    kind: &'static str,
    word: &str,
    mut ids: Vec<String>,
    below: &str,
) -> Result<String, ServiceError> {
    // What is named nothing is an id or nothing; the API says so itself when it is asked for more.
    if is_id(word) && !ids.iter().any(|id| id == word) {
        let is_there = ids.is_empty() || exists(service, &format!("{below}/{word}"))?;
        ids.extend(is_there.then(|| word.to_owned()));
    }
    match ids.len() {
        0 => Err(ServiceError::Unknown { kind, word: word.to_owned() }),
        1 => Ok(ids.remove(0)),
        _ => Err(ServiceError::Ambiguous { word: word.to_owned(), ids }),
    }
}

fn exists(service: &Service, path: &str) -> Result<bool, ServiceError> {
    match service.ask(Method::GET, path, None) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The ids in a list.
fn ids(service: &Service, path: &str, key: &str) -> Result<Vec<String>, ServiceError> {
    let list = service.get(path, key)?;
    let ids = list.as_array().into_iter().flatten().filter_map(|object| object["id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

fn list_networks(
    args: &ServiceArgs,
    filters: &[(&str, Option<String>)],
    form: &FormArgs,
) -> Result<String, ServiceError> {
    with(args, |service| {
        let mut path = "/networks/detail".to_owned();
        for (key, text) in filters.iter().filter_map(|(key, text)| Some((key, text.as_ref()?))) {
            let separator = if path.contains('?') { '&' } else { '?' };
            path.push_str(&format!("{separator}{key}={}", encode(text)));
        }
        let networks = service.get(&path, "networks")?;
        let networks = networks.as_array().ok_or_else(|| service.strange())?;
        Ok(view::list(networks, form, view::networks))
    })
}

/// The API tells ports by network; those of all networks are asked for one network after another.
fn list_ports(
    args: &ServiceArgs,
    net: Option<&str>,
    attachment: Option<&str>,
    form: &FormArgs,
) -> Result<String, ServiceError> {
    with(args, |service| {
        let query = attachment.map_or_else(String::new, |id| format!("?attachment={}", encode(id)));
        let networks = match net {
            Some(word) => vec![network_id(service, word)?],
            None => ids(service, &format!("/networks{query}"), "networks")?,
        };
        let mut ports = Vec::new();
        for network in networks {
            let detail = match service.get(&format!("/networks/{network}/detail"), "network") {
                // It went since it was listed.
                Err(error) if error.is_not_found() && net.is_none() => continue,
                detail => detail?,
            };
            for port in detail["ports"].as_array().into_iter().flatten() {
                let is_wanted = attachment.is_none() || port["attachment"]["id"].as_str() == attachment;
                if is_wanted {
                    ports.push(view::port_of(port, &detail));
                }
            }
        }
        Ok(view::list(&ports, form, view::ports))
    })
}

/// `MAC[,IP]` each, as the API has them; it says itself what is wrong with one.
fn pairs(words: &[String]) -> Value {
    let pair = |word: &String| match word.split_once(',') {
        None => json!({"mac_address": word}),
        Some((mac, ip)) => json!({"mac_address": mac, "ip_address": ip}),
    };
    words.iter().map(pair).collect()
}

fn set(service: &Service, path: &str, state: &str) -> Result<String, ServiceError> {
    service.ask(Method::PUT, path, Some(&json!({"port": {"state": state}})))?;
    Ok(format!("{state}\n"))
}

fn plug(service: &Service, path: &str, interface: &str) -> Result<Value, ServiceError> {
    service.ask(Method::PUT, &format!("{path}/attachment"), Some(&json!({"attachment": {"id": interface}})))
}

fn delete(service: &Service, path: &str) -> Result<String, ServiceError> {
    service.ask(Method::DELETE, path, None)?;
    Ok("deleted\n".to_owned())
}
