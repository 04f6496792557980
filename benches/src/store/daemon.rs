//! A `qvs` of its own over the full store: how long until it answers, and what memory it holds.

use super::client::Client;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use switch::affinity::allowed_cpus;

/// Longest start that is waited for.
const START_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(2);

pub(super) struct Daemon {
    child: Child,
    program: PathBuf,
    dir: PathBuf,
    /// The CPU that its one worker has to itself.
    pub(super) worker_cpu: usize,
    pub(super) api: SocketAddr,
    pub(super) metrics: SocketAddr,
    /// How long it took from its start to its first answer, seconds.
    pub(super) start_s: f64,
}

/// Starts one over `dir/state`.
pub(super) fn start(dir: &Path, program: Option<&Path>) -> Result<Daemon> {
    let program = match program {
        Some(program) => program.to_owned(),
        None => std::env::current_exe()?.with_file_name("qvs"),
    };
    ensure!(program.exists(), "{} is not there: build it, or name it by --qvs", program.display());
    let [api, metrics] = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let (api, metrics) = (api.local_addr()?, metrics.local_addr()?);
    let settings = dir.join("qvs.toml");
    let (state, run) = (dir.join("state"), dir.join("run"));
    let worker_cpu = *allowed_cpus()?.last().context("a CPU is allowed")?;
    let text = format!(
        "state_dir = {state:?}\nrun_dir = {run:?}\n[api]\nlisten = \"{api}\"\n[metrics]\nlisten = \"{metrics}\"\n\
         [switch]\nworkers = [{worker_cpu}]\n"
    );
    std::fs::write(&settings, text)?;
    let log = dir.join("qvs.log");
    let begin = Instant::now();
    let child = Command::new(&program)
        .args(["run", "--log-level", "warn", "--config"])
        .arg(&settings)
        .stdin(Stdio::null())
        // Every write is audited, and a crowd's are many.
        .stderr(File::create(&log)?)
        .spawn()
        .with_context(|| format!("{}", program.display()))?;
    let mut daemon = Daemon { child, program, dir: dir.to_owned(), worker_cpu, api, metrics, start_s: 0.0 };
    while Client::open(api).and_then(|mut client| client.ask("GET", "/", "")).is_err() {
        if let Some(status) = daemon.child.try_wait()? {
            bail!("qvs ended at once, {status}: {}", std::fs::read_to_string(&log)?.trim_end());
        }
        ensure!(begin.elapsed() < START_MAX, "qvs does not answer");
        std::thread::sleep(PAUSE);
    }
    daemon.start_s = begin.elapsed().as_secs_f64();
    Ok(daemon)
}

impl Daemon {
    /// Its memory now and at most.
    pub(super) fn memory(&self) -> Result<String> {
        Ok(format!("{} MiB resident, {} at most", self.resident_mib()?, self.peak_mib()?))
    }

    /// Its memory now.
    pub(super) fn resident_mib(&self) -> Result<u64> {
        self.mib("VmRSS")
    }

    /// Its memory at most.
    pub(super) fn peak_mib(&self) -> Result<u64> {
        self.mib("VmHWM")
    }

    /// A figure of proc_pid_status(5).
    fn mib(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) >> 10)
    }

    /// Forgets the most memory it had so far.
    pub(super) fn forget_peak(&self) -> Result<()> {
        // proc_pid_clear_refs(5): 5 sets the peak to what is resident now.
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?)
    }

    /// Plugs a vhost-user interface; answers its socket.
    pub(super) fn plug(&self, interface: &str) -> Result<PathBuf> {
        let socket = self.dir.join(format!("{interface}.sock"));
        let mut command = Command::new(&self.program);
        command.args(["plug", interface, "--vhost-user"]).arg(&socket).arg("--config").arg(self.dir.join("qvs.toml"));
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(socket)
    }

    /// What `qvs show WHAT --json` prints.
    pub(super) fn show(&self, what: &str) -> Result<String> {
        let config = self.dir.join("qvs.toml");
        let output = Command::new(&self.program).args(["show", what, "--json", "--config"]).arg(config).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The file of the scheduler's statistics of its worker's thread.
    pub(super) fn worker_stats(&self) -> Result<PathBuf> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()))?;
        let is_worker =
            |task: &PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == "worker-0");
        let task = tasks.flatten().map(|task| task.path()).find(is_worker).context("the daemon has a worker")?;
        Ok(task.join("schedstat"))
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
