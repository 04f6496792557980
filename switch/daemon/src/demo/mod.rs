//! `qvs demo`: the whole promise of the switch, shown with real packets on any host, in some seconds.
//!
//! Two tenants, each with a network and two members in namespaces of their own, meet one daemon through its real API,
//! command line and TAPs; [`story`] tells what is shown. What makes it harder than it looks: it may change nothing on
//! the host and leave nothing there, however it ends ([`namespaces`]), and its children must end with it ([`daemon`]).
//!
//! It must be called before the process has a second thread, and runs on the main thread alone. A few short-lived threads
//! open sockets in other namespaces.

mod client;
mod daemon;
mod namespaces;
mod netlink;
mod report;
mod stage;
mod story;
mod traffic;
mod transfer;

use report::Report;
use std::ffi::OsString;
use std::process::ExitCode;

/// `qvs demo`
#[derive(clap::Args, Debug)]
#[command(
    after_help = "It needs /dev/net/tun and the right to make namespaces, which root has everywhere and everybody on most \
    kernels. It changes nothing on the host and leaves nothing behind. Exit status: 0 if every step went as it should, \
    1 otherwise."
)]
pub(crate) struct DemoArgs {
    /// Become another command that dies with this process: how the demo starts the daemon
    #[arg(long, value_name = "PID", hide = true)]
    tether: Option<u32>,
    /// The other command
    #[arg(last = true, hide = true, requires = "tether", value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the demo and prints its steps on standard output. The process must have one thread.
///
/// Returns 0 if every step went as it should, else 1.
pub(crate) fn run(args: &DemoArgs) -> ExitCode {
    if let Some(parent) = args.tether {
        eprintln!("qvs demo: {:#}", daemon::tether(parent, &args.command));
        return ExitCode::FAILURE;
    }
    let mut report = Report::new(std::io::stdout());
    report.line("qvs demo: two tenants on one switch. Nothing outside this demo is touched.");
    let sandbox = match namespaces::enter() {
        Ok(sandbox) => sandbox,
        Err(error) => {
            eprintln!("qvs demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    // The step that failed has been printed and counted.
    let _ = story::tell(&sandbox, &mut report);
    report.line(&format!("\n{}", report.summary()));
    if !report.is_success() {
        return ExitCode::FAILURE;
    }
    report.line("Everything the demo made is gone when it ends.");
    report.line(
        "To go on: README.md shows the switch with QEMU and libvirt; `qvs check` looks at this host; `qvs --help`.",
    );
    ExitCode::SUCCESS
}
