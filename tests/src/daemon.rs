//! A `qvs run` of its own for a test: settings, sockets and store in a temporary directory, API on a free port.
//!
//! It can be killed and started again on the same state, which is half of what the chapters are about.

use crate::http::Tenant;
use crate::process::{Child, TempDir, built, wait_for};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

/// Longest start on a machine that is slow and loaded.
const START_LIMIT: Duration = Duration::from_secs(60);
/// SIGTERM is answered within 5 s, as `qvs run --help` promises; one more for the machine.
const STOP_LIMIT: Duration = Duration::from_secs(6);

/// The daemon's program: `QVS_BIN`, or built now.
///
/// # Panics
/// If it cannot be built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| built("qvs", "QVS_BIN"))
}

/// A daemon and the directory it lives in. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    /// The command up to `run`: the program, or what starts it as somebody else.
    launch: Vec<OsString>,
    api: SocketAddr,
    dir: TempDir,
}

impl Daemon {
    /// Starts one with settings besides those for directories and addresses; workers on the last CPU.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(settings: &str) -> Daemon {
        Daemon::start_in(TempDir::new(), settings)
    }

    /// The same, in a directory that the caller made: on a tmpfs, say.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_in(dir: TempDir, settings: &str) -> Daemon {
        Daemon::launch(&[last_cpu()], settings, dir, vec![program().into()])
    }

    /// The same with a worker on each of these CPUs. The settings begin in the section `[switch]`.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start_on(cpus: &[usize], settings: &str) -> Daemon {
        Daemon::launch(cpus, settings, TempDir::new(), vec![program().into()])
    }

    /// Starts one as user and group `nobody` with no privilege but these capabilities, as its systemd unit does.
    ///
    /// # Panics
    /// If it does not come up, or there is no such user here.
    pub fn start_as_nobody(capabilities: &[&str], settings: &str) -> Daemon {
        const NOBODY: u32 = 65_534;
        let dir = TempDir::new();
        chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("root may give files away");
        // The original may lie in a directory that nobody may enter.
        let copy = dir.join("qvs");
        fs::copy(program(), &copy).expect("there is room for the program");
        let list = capabilities.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(",");
        let mut launch = vec!["setpriv".into(), format!("--reuid={NOBODY}").into(), format!("--regid={NOBODY}").into()];
        launch.extend(["--clear-groups".into(), format!("--inh-caps=-all,{list}").into()]);
        launch.extend([format!("--ambient-caps=-all,{list}").into(), copy.into()]);
        Daemon::launch(&[last_cpu()], settings, dir, launch)
    }

    fn launch(cpus: &[usize], settings: &str, dir: TempDir, launch: Vec<OsString>) -> Daemon {
        let mut daemon = Daemon::prepare(cpus, settings, dir, launch);
        daemon.start_again();
        daemon
    }

    /// One that does not run yet: [`Daemon::spawn`] starts it.
    ///
    /// # Panics
    /// If its directory cannot be written.
    pub fn prepared(settings: &str) -> Daemon {
        Daemon::prepare(&[last_cpu()], settings, TempDir::new(), vec![program().into()])
    }

    fn prepare(cpus: &[usize], settings: &str, dir: TempDir, launch: Vec<OsString>) -> Daemon {
        let api = free_address();
        let (state, run) = (dir.join("state"), dir.join("run"));
        let text = format!(
            "state_dir = {state:?}\nrun_dir = {run:?}\n[api]\nlisten = \"{api}\"\n[switch]\nworkers = {cpus:?}\n{settings}\n"
        );
        fs::write(dir.join("qvs.toml"), text).expect("our own directory");
        Daemon { child: None, launch, api, dir }
    }

    /// Starts it again on the same state.
    ///
    /// # Panics
    /// If it runs, or does not come up.
    pub fn start_again(&mut self) {
        self.spawn();
        let mut child = self.child.take().expect("it was just started");
        let up = wait_for(START_LIMIT, || match child.ended() {
            Some(status) => panic!("qvs ended at once: {status}\n{}", child.log_tail()),
            None => (TcpStream::connect(self.api).is_ok() && self.admin_socket().exists()).then_some(()),
        });
        assert!(up.is_some(), "qvs did not start within {START_LIMIT:?}\n{}", child.log_tail());
        self.child = Some(child);
    }

    /// Starts its process on the same state and does not wait for it to serve.
    ///
    /// # Panics
    /// If it runs.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut command = Command::new(&self.launch[0]);
        command
            .args(&self.launch[1..])
            .arg("run")
            .arg("--config")
            .arg(self.dir.join("qvs.toml"))
            .args(["--log-level", "debug"]);
        self.child = Some(Child::spawn("qvs", &mut command, &self.dir.join("log")));
    }

    /// SIGKILL.
    ///
    /// # Panics
    /// If it had ended by itself.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        if let Some(status) = child.ended() {
            panic!("qvs had ended by itself: {status}\n{}", child.log_tail());
        }
        child.kill();
    }

    /// SIGKILL and a new start.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// SIGTERM; it must end with status 0 in time.
    ///
    /// # Panics
    /// If it does not.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let status = child.terminate(STOP_LIMIT);
        assert!(status.success(), "qvs ended with {status}\n{}", child.log_tail());
    }

    /// Fails the test unless the daemon is alive and answers.
    ///
    /// # Panics
    /// If it has died.
    pub fn assert_alive(&mut self) {
        let child = self.child.as_mut().expect("it runs");
        if let Some(status) = child.ended() {
            panic!("qvs died: {status}\n{}", child.log_tail());
        }
        self.tenant("nobody").request("GET", "networks", None, 200);
    }

    /// Where the API is.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// A tenant of its API.
    pub fn tenant(&self, name: &str) -> Tenant {
        Tenant { api: self.api, name: name.to_owned() }
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.join("run/admin.sock")
    }

    /// A path in its directory, short enough for a socket.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The metrics, as a scraper reads them on the admin socket.
    ///
    /// # Panics
    /// If the daemon does not answer.
    pub fn metrics(&self) -> String {
        let mut stream = UnixStream::connect(self.admin_socket()).expect("the daemon listens");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: qvs\r\n\r\n").expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers in UTF-8");
        text
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.child.as_ref().map(Child::log_tail).unwrap_or_default()
    }

    /// Runs the command line against it, words separated by spaces.
    pub fn command(&self, line: &str) -> Output {
        let mut command = Command::new(program());
        command.args(line.split_whitespace()).arg("--admin").arg(self.admin_socket());
        command.output().expect("the program was started before")
    }

    /// A command that must succeed; answers what it printed.
    ///
    /// # Panics
    /// If it fails, with what it said.
    pub fn must(&self, line: &str) -> String {
        let output = self.command(line);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "qvs {line}: {}: {error}\n{}", output.status, self.log_tail());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What `show` says, as JSON.
    pub fn show(&self, what: &str) -> Value {
        let text = self.must(&format!("show {what} --json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("show {what} --json: {error}: {text}"))
    }

    /// One interface of `show ports`.
    ///
    /// # Panics
    /// If it is not listed.
    pub fn interface(&self, id: &str) -> Value {
        let ports = self.show("ports");
        let found = ports.as_array().into_iter().flatten().find(|port| port["interface"] == id);
        found.unwrap_or_else(|| panic!("no interface {id} in {ports:#}")).clone()
    }

    /// Waits until the interfaces' logical ports are UP.
    ///
    /// # Panics
    /// If they are not within 10 s, with what `show` says.
    pub fn wait_up(&self, interfaces: &[&str]) {
        let up = wait_for(Duration::from_secs(10), || {
            interfaces.iter().all(|id| self.interface(id)["op_status"] == "UP").then_some(())
        });
        assert!(up.is_some(), "not UP: {:#}\n{}", self.show("ports"), self.log_tail());
    }
}

/// A loopback address whose port nobody has at the moment.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback is up");
    listener.local_addr().expect("it is bound")
}

/// The last CPU we may run on; guests are on the first.
///
/// # Panics
/// If the kernel does not tell.
pub fn last_cpu() -> usize {
    *allowed_cpus().last().expect("we run on some CPU")
}

/// All of them, in order.
///
/// # Panics
/// If the kernel does not tell.
pub fn allowed_cpus() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).expect("our own thread");
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect()
}
