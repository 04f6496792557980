//! Child processes that do not outlive their test, directories that vanish with it, and waiting with an end.
//!
//! A test that fails must not leave a QEMU or a daemon behind, so a [`Child`] is killed when dropped and its output goes
//! to a file that the failure message quotes. Nothing here waits without a bound.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Pause after the first look while waiting: short against everything waited for here.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause. Looks start processes, and what is waited for has to get the CPU too.
const LAST_PAUSE: Duration = Duration::from_millis(100);
/// Lines of a log quoted in a failure message.
const LOG_LINES_QUOTED: usize = 40;

/// Waits until `look` answers something; `None` after `limit`.
pub fn wait_for<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        let begin = Instant::now();
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        // As long as the look took, at least.
        pause = pause.max(begin.elapsed()).min(LAST_PAUSE);
        std::thread::sleep(pause);
        pause += pause / 4;
    }
}

/// Waits until `look` is true.
///
/// # Panics
/// With `what`, if it is not within `limit`.
pub fn wait_until(what: &str, limit: Duration, mut look: impl FnMut() -> bool) {
    assert!(wait_for(limit, || look().then_some(())).is_some(), "waited {limit:?} in vain until {what}");
}

/// A directory of its own for one test, mode 0700, removed when dropped.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
}

impl TempDir {
    /// Makes one. Its path is short, because UNIX socket paths in it must stay below 108 bytes.
    ///
    /// # Panics
    /// If the temporary directory cannot be written.
    #[allow(clippy::new_without_default, reason = "making a directory is no default")]
    pub fn new() -> TempDir {
        TempDir::within(&std::env::temp_dir())
    }

    /// Makes one in another place, such as a tmpfs.
    ///
    /// # Panics
    /// If that place cannot be written.
    pub fn within(root: &Path) -> TempDir {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        loop {
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let path = root.join(format!("qvs-t{}-{serial}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    use std::os::unix::fs::PermissionsExt;
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("our own directory");
                    return TempDir { path };
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("cannot make {}: {error}", path.display()),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("QVS_TEST_KEEP").is_some() {
            eprintln!("kept {}", self.path.display());
        } else {
            // A file that cannot be removed must not turn a passed test into an abort.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// A process with its output in a file; killed and reaped when dropped.
#[derive(Debug)]
pub struct Child {
    name: String,
    child: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `command` with its output appended to `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Child {
        let open = || File::options().create(true).append(true).open(log).expect("the log's directory is ours");
        let child = command.stdin(Stdio::null()).stdout(open()).stderr(open()).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        Child { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    /// SIGKILL, and reaps it.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait().expect("our own child can be waited for");
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Panics
    /// If it takes longer than `limit`.
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our own child, not yet reaped");
        wait_for(limit, || self.ended())
            .unwrap_or_else(|| panic!("{} did not end within {limit:?} of SIGTERM\n{}", self.name, self.log_tail()))
    }

    /// The end of its output.
    pub fn log_tail(&self) -> String {
        log_tail(&self.name, &self.log)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a log file, headed by `name`.
pub fn log_tail(name: &str, log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(LOG_LINES_QUOTED);
    format!("--- end of {name}'s output ---\n{}\n---", lines[first..].join("\n"))
}

/// Runs a command to its end and answers its standard output.
///
/// # Panics
/// If it cannot be started or fails, with what it said.
pub fn output_of<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {:?} failed: {}{}",
        args.iter().map(AsRef::as_ref).collect::<Vec<_>>(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The root of this repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests package lies in the workspace")
}

/// What `cargo metadata` says of the workspace, dependencies of others left out.
pub fn cargo_metadata() -> &'static serde_json::Value {
    static METADATA: OnceLock<serde_json::Value> = OnceLock::new();
    METADATA.get_or_init(|| {
        let manifest = repository().join("Cargo.toml");
        let manifest = manifest.to_str().expect("the repository's path is UTF-8");
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let text = output_of(&cargo, &["metadata", "--no-deps", "--format-version=1", "--manifest-path", manifest]);
        serde_json::from_str(&text).expect("cargo metadata speaks JSON")
    })
}

/// The `target` directory in use.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("QVS_TARGET_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(cargo_metadata()["target_directory"].as_str().expect("cargo metadata names the target")),
    }
}

/// A program of ours: where the variable says, or built now, optimised enough to move real traffic.
///
/// # Panics
/// If it cannot be built.
pub fn built(package: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return PathBuf::from(path);
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let manifest = repository().join("Cargo.toml");
    let manifest = manifest.to_str().expect("the repository's path is UTF-8");
    output_of(&cargo, &["build", "--quiet", "-p", package, "--profile", "test-opt", "--manifest-path", manifest]);
    target_dir().join("test-opt").join(package)
}

/// How long the long forms of tests go on: `cargo xtask soak` sets it, otherwise each test has its short seeded form.
pub fn soak_time() -> Option<Duration> {
    let seconds = std::env::var("QVS_SOAK_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("QVS_SOAK_SECONDS is a number of seconds")))
}
