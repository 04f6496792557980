//! `qvs`: the Quantum virtual switch.
//!
//! Here all crates meet. The commands are in the modules of their names; this file only tells them apart and turns
//! outcomes into exit statuses: 0 done, 1 refused or failed, 2 wrong usage or settings.
#![forbid(unsafe_code)]

mod accounts;
mod admin;
mod backup;
mod bond;
mod capture;
mod check;
mod cli;
mod client;
mod cluster;
mod completions;
mod control;
mod demo;
mod devices;
mod directories;
mod identity;
mod listener;
mod load;
mod logs;
mod manual;
mod metrics;
mod naming;
mod notify;
mod opener;
mod plugs;
mod protocol;
mod rebalance;
mod run;
mod scrape;
mod service;
mod settings;
mod show;
mod steering;
mod table;
mod tenant;
mod timed;
mod tls;
mod token;
mod view;

use api::host::DeviceDriver;
use clap::Parser;
use cli::{
    Cli, Command, Daemon, DeviceArgs, DriverArg, PlugArgs, RebalanceArgs, RoleArg, ShowArgs, TraceArgs, UnplugArgs,
    What,
};
use client::ClientError;
use plugs::{DeviceRequest, PlugRequest};
use protocol::Request;
use run::RunError;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

/// Refused or failed.
const FAILED: u8 = 1;
/// Wrong usage or settings.
const WRONG: u8 = 2;

/// A command's end: what to print, or the one line saying why not and the status.
type Outcome = Result<String, (u8, String)>;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => match run::run(&args) {
            Ok(()) => Ok(String::new()),
            Err(error @ RunError::Settings(_)) => Err((WRONG, error.to_string())),
            Err(error @ RunError::Failed(_)) => Err((FAILED, error.to_string())),
        },
        // It prints as it goes, and must come before any thread is started.
        Command::Demo(args) => return demo::run(&args),
        Command::Plug(args) => plug(args),
        Command::Unplug(args) => unplug(args),
        Command::Show(args) => show(&args),
        Command::Trace(args) => trace(args),
        Command::Rebalance(args) => rebalance(&args),
        Command::Token(args) => token::token(&args),
        Command::Store(command) => backup::store(&command),
        Command::Capture(args) => capture::capture(args),
        Command::Check(args) => match check::check(&args) {
            Ok((text, true)) => Ok(text),
            Ok((text, false)) => {
                print(&text);
                Err((FAILED, "the switch cannot do its job here".into()))
            }
            Err(error) => Err((WRONG, error.to_string())),
        },
        Command::Net(command) => tenant::net(command),
        Command::Port(command) => tenant::port(command),
        Command::Attach(command) => tenant::attach(command),
        Command::Completions(args) => Ok(completions::script(args.shell)),
        Command::Manual(args) => match manual::write(&args.directory) {
            Ok(()) => Ok(String::new()),
            Err(error) => Err((FAILED, format!("{}: {error}", args.directory.display()))),
        },
    };
    match outcome {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err((status, line)) => {
            // Nothing can be done about a closed standard error.
            let _ = writeln!(std::io::stderr(), "qvs: {line}");
            ExitCode::from(status)
        }
    }
}

/// Prints to standard output; a reader that went away, like `head`, is no fault of ours.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn ask(daemon: &Daemon, request: Request) -> Result<Value, (u8, String)> {
    let socket = client::socket(daemon).map_err(|error| (WRONG, error.to_string()))?;
    client::ask(&socket, request).map_err(|error| match error {
        ClientError::Settings(_) => (WRONG, error.to_string()),
        _ => (FAILED, error.to_string()),
    })
}

fn plug(args: PlugArgs) -> Outcome {
    let DeviceArgs { vhost_user, tap, device, parent } = args.device;
    let device = match (vhost_user, tap, device, parent.zip(args.vlan)) {
        (Some(path), _, _, _) => DeviceRequest::VhostUser {
            path: path.into_os_string().into_string().map_err(|_| (WRONG, "the path is not UTF-8".into()))?,
            role: args.role.map(|role| match role {
                RoleArg::Server => settings::Role::Server,
                RoleArg::Client => settings::Role::Client,
            }),
        },
        (None, Some(name), _, _) => DeviceRequest::Tap { name, netns: args.netns, queues: args.queues },
        (None, None, Some(name), _) => DeviceRequest::Device {
            name,
            netns: args.netns,
            driver: args.driver.map(|driver| match driver {
                DriverArg::AfPacket => DeviceDriver::AfPacket,
                DriverArg::AfXdp => DeviceDriver::AfXdp,
            }),
        },
        (None, None, None, Some((parent, vlan))) => DeviceRequest::Vlan { parent, vlan },
        (None, None, None, None) => return Err((WRONG, "name a device".into())),
    };
    let request = PlugRequest {
        interface: args.id,
        device,
        macs: args.mac,
        addresses: args.ip,
        mtu: args.mtu,
        tenant: args.tenant,
        replace: args.replace,
    };
    // What is wrong with the words is wrong usage, whatever the daemon would say; the role that sockets have by default is not.
    plugs::check(request.clone(), settings::Role::Server).map_err(|error| (WRONG, error.to_string()))?;
    let answer = ask(&args.daemon, Request::Plug(request))?;
    let reason = answer["reason"].as_str().unwrap_or_default();
    Ok(match (answer["ready"].as_bool(), reason) {
        (Some(true), _) => "plugged\n".into(),
        (_, "") => "plugged; waiting for the device\n".into(),
        (_, reason) => format!("plugged; waiting for the device: {reason}\n"),
    })
}

fn unplug(args: UnplugArgs) -> Outcome {
    ask(&args.daemon, Request::Unplug { interface: args.id }).map(|_| "unplugged\n".into())
}

/// A daemon that is asked to show something.
struct Shown<'a> {
    socket: &'a Path,
    what: What,
}

impl show::Source for Shown<'_> {
    fn rows<T: DeserializeOwned>(self, visit: &mut dyn FnMut(T) -> bool) -> Result<(), ClientError> {
        client::ask_rows(self.socket, Request::Show { what: self.what }, visit)
    }
}

fn show(args: &ShowArgs) -> Outcome {
    let what = args.what;
    if what == What::Config {
        let answer = ask(&args.daemon, Request::Show { what })?;
        return show::told_config(&answer, args.json).map_err(|error| (FAILED, error.to_string()));
    }
    let socket = client::socket(&args.daemon).map_err(|error| (WRONG, error.to_string()))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    show::list(what, Shown { socket: &socket, what }, args.json, &mut out)
        .map_err(|error| (FAILED, error.to_string()))?;
    let _ = out.flush();
    Ok(String::new())
}

fn rebalance(args: &RebalanceArgs) -> Outcome {
    let answer = ask(&args.daemon, Request::Rebalance { dry_run: args.dry_run })?;
    show::rebalance(answer, args.json)
        .map_err(|error| (FAILED, format!("the daemon's answer is of another version: {error}")))
}

fn trace(args: TraceArgs) -> Outcome {
    protocol::parse_hex(&args.frame).map_err(|error| (WRONG, error))?;
    let answer = ask(&args.daemon, Request::Trace { port: args.port, frame: args.frame })?;
    let lines = answer.as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(lines.map(|line| format!("{line}\n")).collect())
}
