//! The tenants' commands: `qvs net`, `qvs port` and `qvs attach`, which ask the API and not the admin socket.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// How a tenant's command finds the API, and as whom it asks.
#[derive(Args, Debug)]
#[command(next_help_heading = "The API")]
pub(crate) struct ServiceArgs {
    /// URL of the API, http or https
    #[arg(long, value_name = "URL", env = "QVS_URL", hide_env_values = true, default_value = "http://127.0.0.1:9696")]
    pub(crate) url: String,
    /// The tenant whose networks these are; with Keystone its project's id
    #[arg(long, value_name = "T", env = "QVS_TENANT", hide_env_values = true)]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) tenant: String,
    /// File that holds the token; -: standard input [default: the token in QVS_TOKEN, if set]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificates that vouch for an https URL
    #[arg(long, value_name = "FILE", env = "QVS_CACERT", hide_env_values = true)]
    #[arg(default_value = "/etc/ssl/certs/ca-certificates.crt")]
    pub(crate) cacert: PathBuf,
}

/// A network, by the word a user has for it.
#[derive(Args, Debug)]
pub(crate) struct NetArgs {
    /// The network: its id, or its name if it is the only one of that name
    #[arg(value_name = "NET", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) net: String,
}

/// A port of a network.
#[derive(Args, Debug)]
pub(crate) struct PortArgs {
    #[command(flatten)]
    pub(crate) net: NetArgs,
    /// The port: its id, or the id of what is attached to it
    #[arg(value_name = "PORT", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) port: String,
}

/// In which form something is told.
#[derive(Args, Debug)]
pub(crate) struct FormArgs {
    /// Print JSON: a list of objects, or one object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `qvs net`
#[derive(Subcommand, Debug)]
pub(crate) enum NetCommand {
    /// List the tenant's networks
    List {
        /// Only those of this name
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Only the one that this interface id is attached to
        #[arg(long, value_name = "ID")]
        attachment: Option<String>,
        #[command(flatten)]
        form: FormArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Show a network and its ports
    Show {
        #[command(flatten)]
        net: NetArgs,
        #[command(flatten)]
        form: FormArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Make a network; prints its id
    Create {
        /// Its name; other networks may have the same
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        form: FormArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Give a network another name
    Rename {
        #[command(flatten)]
        net: NetArgs,
        /// The new name
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Remove a network and its ports, unless something is attached to one
    Delete {
        #[command(flatten)]
        net: NetArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
}

/// `qvs port`
#[derive(Subcommand, Debug)]
pub(crate) enum PortCommand {
    /// List the ports of a network, or of all the tenant's networks
    List {
        /// The network: its id, or its name if it is the only one of that name [default: all]
        #[arg(value_name = "NET", value_parser = NonEmptyStringValueParser::new())]
        net: Option<String>,
        /// Only the one that this interface id is attached to
        #[arg(long, value_name = "ID")]
        attachment: Option<String>,
        #[command(flatten)]
        form: FormArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Show a port and what is attached to it
    Show {
        #[command(flatten)]
        port: PortArgs,
        #[command(flatten)]
        form: FormArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Make a port, ACTIVE; prints its id
    Create {
        #[command(flatten)]
        net: NetArgs,
        /// Make it DOWN
        #[arg(long)]
        down: bool,
        /// Attach this interface id to it too
        #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
        attach: Option<String>,
        /// A MAC it may send from, and an IP address or prefix used with it; may be repeated [default: as plugged]
        #[arg(long, value_name = "MAC[,IP]")]
        allow: Vec<String>,
        #[command(flatten)]
        form: FormArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Let a port send from these MACs and those of its plug only, in the place of what was allowed before
    Allow {
        #[command(flatten)]
        port: PortArgs,
        /// A MAC, and an IP address or prefix used with it, which is kept and not yet enforced; none: as plugged
        #[arg(value_name = "MAC[,IP]")]
        pairs: Vec<String>,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Let frames pass a port: state ACTIVE
    Up {
        #[command(flatten)]
        port: PortArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Let none pass: state DOWN; what is attached stays so
    Down {
        #[command(flatten)]
        port: PortArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Remove a port, unless something is attached to it
    Delete {
        #[command(flatten)]
        port: PortArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
}

/// `qvs attach`
#[derive(Subcommand, Debug)]
pub(crate) enum AttachCommand {
    /// Print the interface id that is attached to a port; nothing if none is
    Show {
        #[command(flatten)]
        port: PortArgs,
        #[command(flatten)]
        form: FormArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Attach an interface id to a port, which must have none
    Plug {
        #[command(flatten)]
        port: PortArgs,
        /// The interface id, as the operator has plugged it or will
        #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
        id: String,
        #[command(flatten)]
        service: ServiceArgs,
    },
    /// Take out what is attached to a port; nothing is fine too
    Unplug {
        #[command(flatten)]
        port: PortArgs,
        #[command(flatten)]
        service: ServiceArgs,
    },
}
