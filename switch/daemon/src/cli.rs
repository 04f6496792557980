//! The command line, and nothing but its shape: what each command does is in the module of its name.
//!
//! The text here is what `--help` prints; the golden files in `tests/golden/help` hold it still. Wrong usage exits with
//! status 2 (clap's own), like wrong settings.

mod plug;
mod tenant;

pub(crate) use plug::{DeviceArgs, DriverArg, PlugArgs, RoleArg};
pub(crate) use tenant::{AttachCommand, FormArgs, NetArgs, NetCommand, PortArgs, PortCommand, ServiceArgs};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The Quantum virtual switch: a userspace switch for VMs and TAPs, with the Quantum networking API built in.
#[derive(Parser, Debug)]
#[command(name = "qvs", version, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 done; 1 refused or failed, with one line saying why; 2 wrong usage or settings."
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the switch and its API in the foreground
    Run(RunArgs),
    /// Show on this host what the switch does: two tenants, real packets, nothing left behind
    Demo(crate::demo::DemoArgs),
    /// Tie an interface id, which tenants attach to, to a device of this host
    Plug(PlugArgs),
    /// Remove the host side of an attachment, with the device if we made it
    Unplug(UnplugArgs),
    /// Show what the running switch knows and counts
    Show(ShowArgs),
    /// Tell what each stage would do with a frame, without sending it
    Trace(TraceArgs),
    /// Capture the frames that pass a port, to a file, a pipe or the terminal
    Capture(CaptureArgs),
    /// Move queues between workers, so that each has its share of the load
    Rebalance(RebalanceArgs),
    /// Make a token for a tenant of the API, for a site without Keystone (identity.mode = "tokens")
    Token(TokenArgs),
    /// Back up and restore the state of a daemon that does not run
    #[command(subcommand)]
    Store(StoreCommand),
    /// Check whether this host can run the switch, with the remedy for what is missing
    Check(CheckArgs),
    /// Networks, as the tenant who owns them, by the API
    #[command(subcommand, after_help = TENANT_HELP)]
    Net(NetCommand),
    /// Ports of networks, as the tenant, by the API
    #[command(subcommand, after_help = TENANT_HELP)]
    Port(PortCommand),
    /// What is attached to ports, as the tenant, by the API
    #[command(subcommand, after_help = TENANT_HELP)]
    Attach(AttachCommand),
    /// Print what makes a shell complete `qvs` commands
    Completions(CompletionsArgs),
    /// Write the pages that man(1) shows to a directory
    Manual(ManualArgs),
}

/// What the tenants' commands have in common.
const TENANT_HELP: &str = "\
These ask the API, here or on another host, as a tenant. An operator's `qvs plug` ties an interface id to a device of its \
host; a tenant's `qvs attach plug` says which port it is on. Either may come first, unless identity is on: then a tenant \
attaches only what was plugged for it, `qvs plug vif-1 … --tenant acme`.

Example:
  qvs token acme > acme.token       # once, by the operator: each call makes another, which holds until it is taken out
  export QVS_TENANT=acme QVS_TOKEN=$(cat acme.token)
  qvs net create blue
  qvs port create blue --attach vif-1
  qvs port list";

/// `qvs completions`
#[derive(Args, Debug)]
#[command(after_help = "\
The Debian package has them installed. By hand, for bash:
  qvs completions bash > /etc/bash_completion.d/qvs")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: ShellArg,
}

/// `qvs manual`
#[derive(Args, Debug)]
#[command(after_help = "\
The Debian package has them installed: man qvs, man qvs-plug. By hand:
  mkdir -p /usr/local/share/man/man1 && qvs manual /usr/local/share/man/man1")]
pub(crate) struct ManualArgs {
    /// The directory, which is there
    #[arg(value_name = "DIRECTORY")]
    pub(crate) directory: PathBuf,
}

/// A shell that completes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ShellArg {
    Bash,
    Zsh,
    Fish,
}

/// `qvs run`
#[derive(Args, Debug)]
#[command(
    after_help = "Without a settings file it keeps its state in /var/lib/qvs, its sockets in /run/qvs and serves the \
    API on 127.0.0.1:9696. SIGTERM and SIGINT answer the requests in flight and exit 0 within 5 seconds. Under systemd \
    it says READY when every port that can be back is back, or after 15 seconds in which etcd was not there for a host that \
    knows nothing yet."
)]
pub(crate) struct RunArgs {
    /// Settings file [default: /etc/qvs/qvs.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Form of the log on standard error
    #[arg(long, value_enum, value_name = "FORM", default_value = "text")]
    pub(crate) log: LogForm,
    /// Least severe level that is logged
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: LogLevel,
}

/// How the log is written.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LogForm {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LogLevel {
    /// What went wrong.
    Error,
    /// And what may go wrong.
    Warn,
    /// And what changed.
    Info,
    /// And the steps.
    Debug,
    /// And the details.
    Trace,
}

/// How a command finds the daemon.
#[derive(Args, Debug, Default)]
pub(crate) struct Daemon {
    /// Admin socket of the daemon, whatever --config says [default: as the settings say]
    #[arg(long, value_name = "SOCKET")]
    pub(crate) admin: Option<PathBuf>,
    /// Settings file that names the admin socket [default: /etc/qvs/qvs.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `qvs unplug`
#[derive(Args, Debug)]
#[command(
    after_help = "The tenant's attachment stays; its op-status goes DOWN. A TAP of ours is removed with its addresses. A \
    device that attach.auto made goes when its attachment is unplugged by the API, and not before."
)]
pub(crate) struct UnplugArgs {
    /// Interface id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

/// `qvs show`
#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    /// What to show
    #[arg(value_enum, value_name = "WHAT")]
    pub(crate) what: What,
    /// Print JSON: a list of objects, or one object for `config`
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

/// What can be shown.
#[derive(ValueEnum, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum What {
    /// Interfaces, logical ports and ways to other hosts (uplinks, their VLANs, peers of tunnels): state, reason, counters
    Ports,
    /// Tenants' networks and their ports
    Networks,
    /// The MAC table
    Macs,
    /// Workers: CPU, load, packets
    Workers,
    /// Dropped frames by port, direction and reason
    Drops,
    /// Hosts that share the state: where they are, what is plugged there
    Nodes,
    /// What tenants have, and may have at most
    Quotas,
    /// Generation, addresses and settings in force
    Config,
}

/// `qvs trace`
#[derive(Args, Debug)]
#[command(after_help = "Example: an ARP broadcast from 02:00:00:00:00:01
  qvs trace vm1-eth0 'ffffffffffff 020000000001 0806 0001080006040001 020000000001 0a000001 000000000000 0a000002'")]
pub(crate) struct TraceArgs {
    /// Interface id, id of a logical port, or an uplink (uplink:physnet1), that the frame would come from
    #[arg(value_name = "PORT")]
    pub(crate) port: String,
    /// The frame from its destination MAC on, in hexadecimal; spaces and colons are ignored
    #[arg(value_name = "FRAME")]
    pub(crate) frame: String,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

/// `qvs capture`
#[derive(Args, Debug)]
#[command(after_help = "\
Frames from the device are captured as they came, those that the switch then drops too, with the reason as a comment. \
Frames to the device are captured if they were delivered, before large ones are cut. What is left to the receiver (a \
checksum to fill in, a large frame to cut) is told in each packet's flags and comment. In the file, inbound is from the \
device into the switch. Frames of one round of a worker have one time. Switching never waits for a capture: frames that \
find its buffer full are switched, not captured, and counted.

A filter is tcpdump's: host, net, port, portrange and ether host with src or dst; ip, ip6, arp, tcp, udp, icmp, icmp6, \
proto N, vlan [N], broadcast, multicast, less N, greater N; and, or, not, parentheses.

It ends by ^C, SIGTERM, -c, --duration, a closed pipe, or when the interface is unplugged. Frames are for root and the \
daemon's own user; members of admin.group may use --counters.

Examples:
  qvs capture vm1-eth0 -w vm1.pcapng
  qvs capture vm1-eth0 -w - | wireshark -k -i -
  qvs capture vm1-eth0 --filter 'arp or icmp and not host 10.0.0.1'")]
pub(crate) struct CaptureArgs {
    /// Interface id, id of a logical port, or an uplink (uplink:physnet1)
    #[arg(value_name = "PORT")]
    pub(crate) port: String,
    /// Write pcapng to a file; -: to standard output [default: lines on a terminal, else as -]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
    /// Print one line a frame, also where standard output is no terminal; times are UTC
    #[arg(long, conflicts_with = "write")]
    pub(crate) lines: bool,
    /// Count frames and bytes, capture none
    #[arg(long, conflicts_with_all = ["write", "lines", "count", "snaplen", "buffer"])]
    pub(crate) counters: bool,
    /// Which way
    #[arg(short = 'i', long, value_enum, value_name = "WAY", default_value = "both")]
    pub(crate) direction: DirectionArg,
    /// End after this many frames
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Bytes kept of each frame
    #[arg(short, long, value_name = "BYTES", default_value_t = switch::capture::SNAPLEN_MAX as u32)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=switch::capture::SNAPLEN_MAX as i64))]
    pub(crate) snaplen: u32,
    /// End after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) duration: Option<u64>,
    /// Only frames that this wants
    #[arg(long, value_name = "EXPRESSION", default_value = "", hide_default_value = true)]
    pub(crate) filter: String,
    /// MiB for frames not yet written, 1 to 64
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) buffer: u32,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

/// Which way frames go, seen from the switch.
#[derive(ValueEnum, Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DirectionArg {
    /// From the device into the switch
    In,
    /// From the switch to the device
    Out,
    /// Both
    Both,
}

/// `qvs rebalance`
#[derive(Args, Debug)]
#[command(after_help = "\
The load is that of the last seconds, which `qvs show workers` tells by queue. A queue moves whole, within some ten \
microseconds in which its frames wait in their ring: none is lost and none overtakes another. What is nearly even stays as \
it is. With switch.rebalance = true the daemon does this by itself when the load stays uneven.")]
pub(crate) struct RebalanceArgs {
    /// Tell what would be moved, and move nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON: one object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

/// `qvs token`
#[derive(Args, Debug)]
#[command(after_help = "\
The token is printed once and kept nowhere: the file identity.tokens gets its Argon2id hash, with the tenant and the roles. \
The file is made if it is not there, mode 0600. A running daemon takes it up within a second. To revoke a token take its \
[[token]] entry out of the file; its id is the token's second part.

What a role may do is told by the policy: by default every role may see what is its tenant's, \
`member` may change it too, and `admin` may use every tenant's URLs; `reader`, which no rule names, may only see.

Each call makes another token, and the ones before hold: keep what it prints.

Example:
  qvs token acme --days 90 > acme.token
  curl -H \"X-Auth-Token: $(cat acme.token)\" 127.0.0.1:9696/v1.1/tenants/acme/networks")]
pub(crate) struct TokenArgs {
    /// The tenant: the T of its URLs, /v1.1/tenants/T
    #[arg(value_name = "T")]
    pub(crate) tenant: String,
    /// Whom the audit log names [default: the tenant]
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// A role; may be repeated
    #[arg(long, value_name = "ROLE", default_value = "member")]
    pub(crate) role: Vec<String>,
    /// End after this many days [default: never]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(crate) days: Option<u32>,
    /// Settings file that names the file of tokens [default: /etc/qvs/qvs.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `qvs store`
#[derive(Subcommand, Debug)]
pub(crate) enum StoreCommand {
    /// Write everything in the store to a file
    Export(ExportArgs),
    /// Fill the store from such a file
    Import(ImportArgs),
}

/// `qvs store export`
#[derive(Args, Debug)]
#[command(after_help = "\
The file is made with mode 0600 and never overwrites another. It is text, one JSON object a line: the first names the \
format and its version, the last counts the records between. Secrets in it are sealed by the key in store.seal_key, which \
is not in it: keep a copy of that file elsewhere. The daemon must not run; tokens and settings are files of their own.")]
pub(crate) struct ExportArgs {
    /// The file to make
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Settings file that names the store [default: /etc/qvs/qvs.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `qvs store import`
#[derive(Args, Debug)]
#[command(after_help = "\
The file is read and checked whole before anything is written, and written in one transaction. The daemon must not run. A TAP \
whose record --replace takes away is told: nobody removes it but you. A state in etcd is not imported.

--from quantum-essex reads the database of OpenStack's Quantum, of the Essex release or before it: SQLite's file, for which \
the program sqlite3 must be there, or an SQL dump as `sqlite3 quantum.sqlite .dump` or `mysqldump ovs_quantum` makes it. \
Networks, ports and attachments keep their ids, networks get segments as [segments] says, and what was plugged here stays; what \
is left out is told. Look with --dry-run first:
  qvs store import --from quantum-essex quantum.sqlite --dry-run")]
pub(crate) struct ImportArgs {
    /// The file to read
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// What wrote the file
    #[arg(long, value_enum, value_name = "WHAT", default_value = "qvs")]
    pub(crate) from: Origin,
    /// Put it in place of what the store holds [default: refuse if it holds anything]
    #[arg(long)]
    pub(crate) replace: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Settings file that names the store [default: /etc/qvs/qvs.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// What wrote a file that is imported.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// `qvs store export`
    Qvs,
    /// OpenStack's Quantum: the file of its SQLite database, or an SQL dump
    QuantumEssex,
}

/// `qvs check`
#[derive(Args, Debug)]
#[command(
    after_help = "Exits 1 if something is missing without which guests or TAPs cannot be switched; warnings do not count."
)]
pub(crate) struct CheckArgs {
    /// Settings file [default: /etc/qvs/qvs.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON: a list of objects
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests;
