//! A `qvs` of its own over the full store: how long until it answers, and what memory it holds.

use super::client::Client;
use anyhow::{Context, Result, bail, ensure};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest start that is waited for.
const START_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);

pub(super) struct Daemon {
    child: Child,
    pub(super) api: SocketAddr,
    /// How the start went.
    pub(super) started: String,
}

/// Starts one over `dir/state`.
pub(super) fn start(dir: &Path, program: Option<&Path>) -> Result<Daemon> {
    let program = match program {
        Some(program) => program.to_owned(),
        None => std::env::current_exe()?.with_file_name("qvs"),
    };
    ensure!(program.exists(), "{} is not there: build it, or name it by --qvs", program.display());
    let api = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let settings = dir.join("qvs.toml");
    let (state, run) = (dir.join("state"), dir.join("run"));
    std::fs::write(&settings, format!("state_dir = {state:?}\nrun_dir = {run:?}\n[api]\nlisten = \"{api}\"\n"))?;
    let begin = Instant::now();
    let child = Command::new(&program)
        .args(["run", "--log-level", "warn", "--config"])
        .arg(&settings)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("{}", program.display()))?;
    let mut daemon = Daemon { child, api, started: String::new() };
    while Client::open(api).and_then(|mut client| client.ask("GET", "/", "")).is_err() {
        if let Some(status) = daemon.child.try_wait()? {
            bail!("qvs ended at once: {status}");
        }
        ensure!(begin.elapsed() < START_MAX, "qvs does not answer");
        std::thread::sleep(PAUSE);
    }
    let took_s = begin.elapsed().as_secs_f64();
    daemon.started = format!("start: answers after {took_s:.2} s (bar 2 s), {}", daemon.memory()?);
    Ok(daemon)
}

impl Daemon {
    /// Its memory now and at most.
    pub(super) fn memory(&self) -> Result<String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) >> 10
        };
        Ok(format!("{} MiB resident, {} at most", mib("VmRSS"), mib("VmHWM")))
    }

    /// Ends it.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ended already if all went well.
        let _ = self.stop();
    }
}
