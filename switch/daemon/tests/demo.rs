//! `qvs demo` as a user meets it: it passes, as root and without, and however it ends nothing is left of it.
//!
//! Each test runs a copy of the program of its own, so that every process of the demo can be told by its executable, in a
//! temporary directory of its own. They need /dev/net/tun and the right to make namespaces; some need root. Where these
//! are missing they fail and say so.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, Signal};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The promise: the demo takes less than 20 seconds; a debug build may take longer.
const PROMISE: Duration = Duration::from_secs(if cfg!(debug_assertions) { 60 } else { 20 });
/// How long the kernel may take to end the children of a killed demo.
const GRACE: Duration = Duration::from_secs(20);
/// The user and group `nobody`, who may do nothing special.
const NOBODY: u32 = 65_534;

/// Held while a program is written and while one is started: a child forked in between would hold the file open for
/// writing until it executes, and the kernel executes no such file (`ETXTBSY`).
static FORKING: Mutex<()> = Mutex::new(());

fn start(command: &mut Command) -> Child {
    let _guard = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap()
}

fn finish(command: &mut Command) -> Output {
    start(command).wait_with_output().unwrap()
}

/// A copy of the program, with a directory for its temporary files; both go with the test.
struct Copy {
    dir: PathBuf,
}

impl Copy {
    fn new(name: &str) -> Copy {
        let dir = std::env::temp_dir().join(format!("qvs-demo-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(dir.join("tmp")).unwrap();
        for path in [&dir, &dir.join("tmp")] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        }
        let _guard = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::copy(env!("CARGO_BIN_EXE_qvs"), dir.join("qvs")).unwrap();
        Copy { dir }
    }

    fn program(&self) -> PathBuf {
        self.dir.join("qvs")
    }

    fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    fn demo(&self) -> Command {
        let mut command = Command::new(self.program());
        command
            .arg("demo")
            .env("TMPDIR", self.tmp())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Every process that runs this copy of the program.
    fn processes(&self) -> Vec<String> {
        // Seen from outside, a changed root stands before the path; so the name of our directory decides.
        let program = Path::new(self.dir.file_name().unwrap()).join("qvs");
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter(|entry| std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe.ends_with(&program)))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Checks that no process, mount, interface or file of the demo is there.
    fn must_have_left_nothing(&self) {
        let begun = Instant::now();
        while !self.processes().is_empty() && begun.elapsed() < GRACE {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.processes(), Vec::<String>::new(), "processes are left");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("qvs-demo "), "mounts are left: {mounts}");
        assert!(!mounts.contains(self.dir.to_str().unwrap()), "mounts are left: {mounts}");
        let interfaces = std::fs::read_to_string("/proc/net/dev").unwrap();
        assert!(!interfaces.contains("tap-red") && !interfaces.contains("tap-blue"), "{interfaces}");
        assert_eq!(std::fs::read_dir(self.tmp()).unwrap().count(), 0, "files are left");
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn must_have_passed(output: &Output, took: Duration) {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    assert!(!text.contains("FAILED"), "{text}");
    for promised in ["red-1 pings red-2", "TCP from red-1", "forges", "DOWN", "kill -9", ", 0 failed, "] {
        assert!(text.contains(promised), "no {promised:?} in\n{text}");
    }
    assert!(took < PROMISE, "it took {took:?}\n{text}");
}

#[test]
fn the_demo_passes_within_its_promise_and_leaves_nothing() {
    let copy = Copy::new("passes");
    let begun = Instant::now();
    let output = finish(&mut copy.demo());
    must_have_passed(&output, begun.elapsed());
    copy.must_have_left_nothing();
}

#[test]
fn the_demo_passes_for_a_user_without_any_privilege() {
    let copy = Copy::new("nobody");
    let begun = Instant::now();
    let mut command = copy.demo();
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = finish(&mut command);
    must_have_passed(&output, begun.elapsed());
    copy.must_have_left_nothing();
}

/// Starts the demo, sends it `signal` when it prints a line with `moment`, and looks for what is left.
fn end_at(copy: &Copy, moment: &str, signal: Signal) {
    let mut demo = start(&mut copy.demo());
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let is_there = lines.any(|line| line.is_ok_and(|line| line.contains(moment)));
    assert!(is_there, "the demo never said {moment:?}");
    rustix::process::kill_process(Pid::from_child(&demo), signal).unwrap();
    let status = demo.wait().unwrap();
    assert_eq!(status.signal(), Some(signal.as_raw()), "{moment:?}: {status}");
    copy.must_have_left_nothing();
}

#[test]
fn killing_the_demo_at_any_moment_leaves_nothing() {
    let copy = Copy::new("kill");
    for moment in ["The stage", "four members", "qvs run", "addresses", "red-1 pings", "forges", "kill -9", "once more"]
    {
        end_at(&copy, moment, Signal::KILL);
    }
}

#[test]
fn ctrl_c_leaves_nothing() {
    let copy = Copy::new("interrupt");
    end_at(&copy, "red-1 pings", Signal::INT);
}

/// Runs `body` on a thread in a mount namespace of its own; what it starts is in there too, the other tests are not.
fn in_mount_namespace<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    let thread = || {
        #[expect(deprecated, reason = "unsafe only for UnshareFlags::FILES, which we do not pass")]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS)
            .expect("this test makes a mount namespace: run it as root");
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        body()
    };
    std::thread::scope(|scope| scope.spawn(thread).join().unwrap())
}

#[test]
fn without_dev_net_tun_the_demo_says_so_and_exits_with_1() {
    let copy = Copy::new("tun");
    let output = in_mount_namespace(|| {
        rustix::mount::mount("none", "/dev/net", "tmpfs", MountFlags::empty(), None).unwrap();
        finish(&mut copy.demo())
    });
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("no /dev/net/tun") && errors.contains("modprobe tun"), "{errors}");
    copy.must_have_left_nothing();
}

/// Runs `command` where the kernel refuses user namespaces: it does to a process whose root is not that of its mount
/// namespace (unshare(2), `EPERM`).
fn without_user_namespaces(copy: &Copy, command: &mut Command) -> Output {
    let root = copy.dir.join("root");
    std::fs::create_dir(&root).unwrap();
    in_mount_namespace(|| {
        rustix::mount::mount_bind_recursive("/", &root).unwrap();
        rustix::process::chroot(&root).unwrap();
        rustix::process::chdir("/").unwrap();
        finish(command)
    })
}

#[test]
fn without_user_namespaces_a_plain_user_is_told_so_and_it_exits_with_1() {
    let copy = Copy::new("plain");
    let output = without_user_namespaces(&copy, copy.demo().uid(NOBODY).gid(NOBODY));
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("no user namespace") && errors.contains("root"), "{errors}");
    copy.must_have_left_nothing();
}

#[test]
fn without_user_namespaces_root_goes_on_and_the_demo_passes() {
    let copy = Copy::new("root");
    let begun = Instant::now();
    let output = without_user_namespaces(&copy, &mut copy.demo());
    must_have_passed(&output, begun.elapsed());
    copy.must_have_left_nothing();
}
