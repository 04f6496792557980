//! The daemon as the demo's child, and the command line beside it: this very program, started anew.
//!
//! What makes it harder than it looks: the demo may die at any moment, and its children must die with it. A child asks
//! the kernel for that itself, before it turns into the daemon: it is started as `demo --tether PID run …`, which sets
//! its parent-death signal (prctl(2)), looks whether the parent is still there, and executes `qvs run …` in its place.
//! The signal is tied to the thread that started the child, so everything here happens on the main thread.

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// This program, also when the file has been replaced or its directory is hidden by our tmpfs.
const OURSELVES: &str = "/proc/self/exe";
/// How long the daemon may take to serve. It takes about a tenth of a second.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to end after SIGTERM, as `qvs run --help` promises.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two looks at something that is about to happen.
pub(super) const GLANCE: Duration = Duration::from_millis(10);
/// The last lines of the daemon's log that a failure shows.
const LOG_LINES: usize = 20;

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    files: Files,
    /// Where its API listens.
    pub(super) api: SocketAddr,
}

/// Where the daemon keeps its things.
#[derive(Debug, Clone)]
pub(super) struct Files {
    settings: PathBuf,
    log: PathBuf,
}

impl Files {
    /// Writes the settings below `dir`: state and sockets there, the API on a free port of loopback.
    pub(super) fn new(dir: &Path) -> anyhow::Result<Files> {
        let files = Files { settings: dir.join("qvs.toml"), log: dir.join("qvs.log") };
        let path = |name: &str| toml::Value::from(dir.join(name).to_string_lossy().into_owned());
        let text =
            format!("state_dir = {}\nrun_dir = {}\n[api]\nlisten = \"127.0.0.1:0\"\n", path("state"), path("run"));
        std::fs::write(&files.settings, text).context("writing the daemon's settings")?;
        Ok(files)
    }

    /// The end of the daemon's log.
    pub(super) fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Runs `qvs ARGS` against the daemon and returns what it printed.
    pub(super) fn qvs(&self, args: &[&str]) -> anyhow::Result<String> {
        let said = || format!("qvs {}", args.join(" "));
        let output = ourselves(args).arg("--config").arg(&self.settings).output().with_context(said)?;
        ensure!(
            output.status.success(),
            "{}: {} ({})",
            said(),
            String::from_utf8_lossy(&output.stderr).trim(),
            output.status
        );
        String::from_utf8(output.stdout).with_context(said)
    }

    /// Runs `qvs show WHAT --json`.
    pub(super) fn show(&self, what: &str) -> anyhow::Result<Value> {
        let text = self.qvs(&["show", what, "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("the output of qvs show {what} --json"))
    }
}

impl Daemon {
    /// Starts `qvs run` and waits until it serves.
    pub(super) fn start(files: &Files) -> anyhow::Result<Daemon> {
        let log = std::fs::File::options().create(true).append(true).open(&files.log).context("opening its log")?;
        let child = ourselves(&["run", "--config"])
            .arg(&files.settings)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing its log")?)
            .stderr(log)
            .spawn()
            .context("starting the daemon")?;
        // From here on a failure kills it. The address is known in a moment.
        let mut daemon = Daemon { child, files: files.clone(), api: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let begun = Instant::now();
        loop {
            if let Some(status) = daemon.child.try_wait().context("waiting for the daemon")? {
                bail!("the daemon ended at once: {status}\n{}", files.log_tail());
            }
            match files.show("config").and_then(|config| api_address(&config)) {
                Ok(api) => {
                    daemon.api = api;
                    return Ok(daemon);
                }
                Err(error) if begun.elapsed() > START_TIMEOUT => {
                    bail!("the daemon does not serve after {START_TIMEOUT:?}: {error:#}\n{}", files.log_tail())
                }
                Err(_) => std::thread::sleep(GLANCE),
            }
        }
    }

    /// The daemon's process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as the kernel would (SIGKILL), so that it can neither save nor say anything.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().context("killing the daemon")?;
        let status = self.child.wait().context("waiting for the daemon")?;
        ensure!(status.signal() == Some(Signal::KILL.as_raw()), "the daemon had ended before: {status}");
        Ok(())
    }

    /// Asks it to end (SIGTERM) and returns how it ended.
    pub(super) fn terminate(mut self) -> anyhow::Result<ExitStatus> {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM).context("sending SIGTERM")?;
        let begun = Instant::now();
        while begun.elapsed() < STOP_TIMEOUT {
            if let Some(status) = self.child.try_wait().context("waiting for the daemon")? {
                return Ok(status);
            }
            std::thread::sleep(GLANCE);
        }
        bail!("the daemon still runs {STOP_TIMEOUT:?} after SIGTERM\n{}", self.files.log_tail())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it is gone and waited for, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `qvs ARGS…` as a child that dies with us.
fn ourselves(args: &[&str]) -> Command {
    let mut command = Command::new(OURSELVES);
    // Where we were started may be hidden by our tmpfs, and the daemon has no business there.
    command.current_dir("/");
    command.arg0("qvs").args(["demo", "--tether"]).arg(std::process::id().to_string()).arg("--").args(args);
    command
}

/// Becomes `qvs ARGS…` that dies with process `parent`; returns only if that fails.
pub(super) fn tether(parent: u32, args: &[OsString]) -> anyhow::Error {
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return anyhow::Error::new(error).context("asking to die with the demo");
    }
    // The parent may have gone before we asked; then nobody sends the signal.
    if std::os::unix::process::parent_id() != parent {
        return anyhow::anyhow!("the demo is gone");
    }
    anyhow::Error::new(Command::new(OURSELVES).arg0("qvs").args(args).exec()).context("executing ourselves")
}

/// Where the API listens, from `qvs show config --json`.
fn api_address(config: &Value) -> anyhow::Result<SocketAddr> {
    let text = config.get("api_listen").and_then(Value::as_str).context("qvs show config names no API address")?;
    let address: SocketAddr = text.parse().with_context(|| format!("{text:?} is no address"))?;
    ensure!(address.port() != 0, "the API has no port yet");
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_api_address_is_the_bound_one() {
        assert_eq!(api_address(&json!({"api_listen": "127.0.0.1:4711"})).unwrap().port(), 4711);
        assert!(api_address(&json!({"api_listen": "127.0.0.1:0"})).is_err());
        assert!(api_address(&json!({})).is_err());
    }
}
