//! What the host offers: packages, a guest kernel, namespaces. And how commands are run.
//!
//! The guest kernel is downloaded and unpacked under `target/guest`, never installed. Tests get mount, network and PID
//! namespaces of their own (and a user namespace where we are not root): whatever they make there, also if they are
//! killed, is gone with the last process, so nothing has to be put back.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The root of the repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("xtask lies two folders deep")
}

/// A cargo command in the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository());
    command
}

fn metadata() -> Result<&'static serde_json::Value> {
    static METADATA: OnceLock<serde_json::Value> = OnceLock::new();
    if let Some(known) = METADATA.get() {
        return Ok(known);
    }
    let mut command = cargo();
    command.args(["metadata", "--no-deps", "--format-version=1"]);
    let text = output(&mut command)?;
    let value = serde_json::from_str(&text).context("cargo metadata speaks no JSON")?;
    Ok(METADATA.get_or_init(|| value))
}

/// The directory cargo builds in.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let path = metadata()?["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(PathBuf::from(path))
}

/// The version of a package of this workspace.
pub(crate) fn version_of(package: &str) -> Result<String> {
    let packages = metadata()?["packages"].as_array().context("cargo metadata lists no packages")?;
    let found = packages.iter().find(|candidate| candidate["name"] == package);
    let version = found.and_then(|found| found["version"].as_str());
    Ok(version.with_context(|| format!("no package {package} in the workspace"))?.to_owned())
}

/// Runs a command whose output the user sees.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("+ {}", shown(command));
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    ensure!(status.success(), "{} failed: {status}", shown(command));
    Ok(())
}

/// Runs a command and answers its standard output; the user sees its standard error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start {}", shown(command)))?;
    ensure!(output.status.success(), "{} failed: {}", shown(command), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    let mut line = words.join(" ");
    // The set-up of namespaces is a small script; its first line says enough.
    if let Some(end) = line.find('\n') {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// Builds something and answers the executables cargo made: (target name, path).
pub(crate) fn build_executables(command: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    println!("+ {}", shown(command));
    command.arg("--message-format=json-render-diagnostics");
    let text = output(command)?;
    let mut found = Vec::new();
    for line in text.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
            found.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(found)
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Which of these Debian packages are not installed.
fn missing(packages: &[&'static str]) -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for &package in packages {
        let output = Command::new("dpkg-query")
            .args(["--show", "--showformat=${db:Status-Status}", package])
            .stderr(Stdio::null())
            .output()
            .context("cannot start dpkg-query; the tests' needs are named by Debian packages")?;
        if output.stdout != b"installed" {
            missing.push(package);
        }
    }
    Ok(missing)
}

/// Where the guest kernel is unpacked.
fn kernel_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("guest/root"))
}

/// Sees to it that the packages are there and, if wanted, a kernel for guests. Answers whether all is there; if not,
/// the user has been told what to do.
pub(crate) fn prepare(packages: &[&'static str], wants_kernel: bool, may_install: bool) -> Result<bool> {
    let missing = missing(packages)?;
    let lacks_kernel = wants_kernel && !kernel_dir()?.exists();
    if missing.is_empty() && !lacks_kernel {
        return Ok(true);
    }
    if !missing.is_empty() {
        println!("missing Debian packages: {}", missing.join(" "));
        if !may_install || !is_root() {
            println!("apt-get update && apt-get install -y --no-install-recommends {}", missing.join(" "));
            return Ok(false);
        }
    }
    if lacks_kernel && !may_install {
        println!("missing: a guest kernel; run without --no-install once");
        return Ok(false);
    }
    if is_root() {
        run(apt().arg("update"))?;
    }
    if !missing.is_empty() {
        run(apt().args(["install", "-y", "--no-install-recommends"]).args(&missing))?;
    }
    if lacks_kernel {
        fetch_kernel()?;
    }
    Ok(true)
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.arg("--quiet=2").env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Downloads Debian's cloud kernel and unpacks it.
fn fetch_kernel() -> Result<()> {
    // The package of this name is empty and depends on the newest kernel.
    const META: &str = "linux-image-cloud-amd64";
    let depends = output(Command::new("apt-cache").args(["depends", META]))?;
    let package = depends.split_whitespace().find(|word| word.starts_with("linux-image-") && *word != META);
    let package = package.with_context(|| {
        format!("apt-cache knows no {META}; as root: apt-get update (Debian 12 on amd64 is expected)")
    })?;
    let place = kernel_dir()?;
    let dir = place.parent().context("the kernel's directory has a parent")?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    run(apt().args(["download", package]).current_dir(dir))?;
    let mut debs = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let deb = debs.find(|path| path.extension() == Some(OsStr::new("deb"))).context("apt-get downloaded nothing")?;
    // Unpacked beside its place and renamed whole, so that half a kernel is never taken for one.
    let partial = dir.join("root.partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    run(Command::new("dpkg").arg("-x").arg(&deb).arg(&partial))?;
    std::fs::rename(&partial, &place)?;
    std::fs::remove_file(&deb)?;
    Ok(())
}

/// A Python environment of this name under `target` with this package in it; made if it may be.
///
/// # Errors
/// If it is not there and cannot or may not be made.
pub(crate) fn python(name: &str, package: &str, may_install: bool) -> Result<PathBuf> {
    let place = target_dir()?.join(name);
    // Written last, so that half an environment is never taken for one.
    let mark = place.join("installed");
    if std::fs::read_to_string(&mark).is_ok_and(|found| found == package) {
        return Ok(place);
    }
    ensure!(may_install, "missing: {package} in {}; run without --no-install once", place.display());
    if place.exists() {
        std::fs::remove_dir_all(&place)?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&place))?;
    run(Command::new(place.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check", package]))?;
    std::fs::write(&mark, package)?;
    Ok(place)
}

/// What is done in the fresh namespaces before the program runs: nothing of the host's /run is seen, named namespaces
/// and temporary files live in memory, and the loopback is up.
const SET_UP: &str = r#"set -e
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/netns /run/tmp
ip link set lo up
export TMPDIR=/run/tmp
exec "$@""#;

/// A command for `program` in namespaces of its own. SIGKILL to it takes everything started in there along.
///
/// # Errors
/// Says what is missing if this host cannot do it.
pub(crate) fn isolated(program: &Path) -> Result<Command> {
    let tun = Path::new("/dev/net/tun");
    if let Err(error) = std::fs::File::options().read(true).write(true).open(tun) {
        bail!("cannot run here: {}: {error}", tun.display());
    }
    let mut command = Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "--propagation=private", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let mut probe = Command::new("unshare");
    probe.args(command.get_args()).arg("true").stderr(Stdio::piped());
    let tried = probe.output().context("cannot start unshare (util-linux)")?;
    if !tried.status.success() {
        let why = String::from_utf8_lossy(&tried.stderr);
        let who = if is_root() { "root here lacks CAP_SYS_ADMIN" } else { "run as root, or allow user namespaces" };
        bail!("cannot run here: no namespaces: {} ({who})", why.trim());
    }
    command.args(["--", "/bin/sh", "-c", SET_UP, "sh"]).arg(program);
    command.env("PATH", path_with_sbin()).current_dir(repository());
    Ok(command)
}

/// The search path with the places where Debian keeps `ip` and others, which ordinary users lack.
fn path_with_sbin() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}
