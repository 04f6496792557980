//! The demo's own little world: user, network and mount namespaces that vanish with the process.
//!
//! What makes it harder than it looks: nothing may be left behind even by SIGKILL, so nothing is made outside. The
//! temporary directory is a tmpfs mounted over the host's, in our own mount namespace; the members' network namespaces
//! are pinned by files on it; the API listens on a loopback of our own. The kernel takes all of it away when the last
//! process in it is gone. A user namespace may only be made by a process with one thread, so [`enter`] must run before
//! any other thread starts.
//!
//! A namespace is a property of a thread: [`Netns::run`] moves a short-lived thread there and leaves the caller alone.

use super::netlink;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use std::io;
use std::path::{Path, PathBuf};
use switch::netns;

/// Size and mode of the temporary directory. The store and a log of a few seconds stay below a tenth of it.
const TMPFS_OPTIONS: &std::ffi::CStr = c"mode=0700,size=64m";

/// Why this host cannot show the demo.
#[derive(Debug, thiserror::Error)]
pub(super) enum NamespaceError {
    /// Something the demo needs is not there, or not for us.
    #[error("this host gives us no {what} ({source}).\n{remedy}")]
    Missing {
        /// Which one.
        what: &'static str,
        /// What the system said.
        source: io::Error,
        /// What to do about it.
        remedy: String,
    },
    /// The namespaces are there, and arranging them failed.
    #[error("{what}: {source}")]
    Io {
        /// What we tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

fn io_error<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> NamespaceError {
    move |source| NamespaceError::Io { what: what.into(), source: source.into() }
}

/// The namespaces this process has entered, and its temporary directory.
#[derive(Debug)]
pub(super) struct Sandbox {
    /// The temporary directory, empty and ours alone.
    pub(super) dir: PathBuf,
    /// Which namespaces are our own, in words.
    pub(super) kinds: &'static str,
}

/// Moves this process into user, network and mount namespaces of its own, with loopback up and an empty tmpfs.
///
/// Root goes without a user namespace where the kernel has none. The process must have one thread.
///
/// # Errors
/// [`NamespaceError`]; the process may then be in some of the namespaces and should end.
pub(super) fn enter() -> Result<Sandbox, NamespaceError> {
    if let Err(source) = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        return Err(NamespaceError::Missing {
            what: "/dev/net/tun",
            source: source.into(),
            remedy: "Load the kernel module (modprobe tun), or give the container the device (docker run --device \
                     /dev/net/tun)."
                .to_owned(),
        });
    }
    let user = rustix::process::geteuid();
    let group = rustix::process::getegid();
    let missing = |what| move |source: io::Error| NamespaceError::Missing { what, source, remedy: remedy() };
    let kinds = match unshare(UnshareFlags::NEWUSER) {
        Ok(()) => {
            // user_namespaces(7): without privilege in the parent, one id may be mapped and setgroups must be given up.
            for (file, text) in [
                ("setgroups", "deny".to_owned()),
                ("gid_map", format!("0 {} 1", group.as_raw())),
                ("uid_map", format!("0 {} 1", user.as_raw())),
            ] {
                std::fs::write(Path::new("/proc/self").join(file), text).map_err(missing("user namespace"))?;
            }
            "user, network and mount namespaces"
        }
        Err(_) if user.is_root() => "network and mount namespaces (no user namespace here, and root needs none)",
        Err(source) => return Err(missing("user namespace")(source)),
    };
    unshare(UnshareFlags::NEWNET).map_err(missing("network namespace"))?;
    unshare(UnshareFlags::NEWNS).map_err(missing("mount namespace"))?;
    netlink::set_up("lo").map_err(io_error("setting loopback up"))?;
    // What we mount must not show on the host.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|e| missing("mount namespace")(e.into()))?;
    let dir = [std::env::temp_dir(), "/tmp".into(), "/run".into(), "/mnt".into()]
        .into_iter()
        .find(|dir| dir.is_absolute() && dir.is_dir())
        .ok_or_else(|| io_error("looking for a directory to mount on")(io::Error::from(io::ErrorKind::NotFound)))?;
    rustix::mount::mount("qvs-demo", &dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, TMPFS_OPTIONS)
        .map_err(|e| missing("tmpfs in a mount namespace")(e.into()))?;
    Ok(Sandbox { dir, kinds })
}

/// A network namespace, pinned by a file in the sandbox.
#[derive(Debug)]
pub(super) struct Netns {
    /// The file; `qvs plug --netns` takes it.
    pub(super) path: PathBuf,
    namespace: OwnedFd,
}

impl Netns {
    /// Makes a network namespace with loopback up, pinned at `sandbox.dir/name.netns`.
    pub(super) fn new(sandbox: &Sandbox, name: &str) -> Result<Netns, NamespaceError> {
        let path = sandbox.dir.join(format!("{name}.netns"));
        std::fs::write(&path, "").map_err(io_error(format!("making {}", path.display())))?;
        let namespace = netns::create().map_err(io_error(format!("making {name}'s network namespace")))?;
        let made = Netns { path, namespace };
        made.run(|| {
            netlink::set_up("lo")?;
            Ok(rustix::mount::mount_bind("/proc/thread-self/ns/net", &made.path)?)
        })
        .flatten()
        .map_err(io_error(format!("preparing {name}'s network namespace")))?;
        Ok(made)
    }

    /// Runs `body` in this namespace, on a thread of its own, and returns what it returns.
    ///
    /// Sockets that `body` opens stay in the namespace, whatever thread uses them afterwards.
    pub(super) fn run<R: Send>(&self, body: impl FnOnce() -> R + Send) -> io::Result<R> {
        netns::within(Some(self.namespace.as_fd()), body)
    }
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    #[expect(deprecated, reason = "unsafe only for UnshareFlags::FILES, which we do not pass")]
    Ok(rustix::thread::unshare(flags)?)
}

/// Names the kernel switch that stands in the way, where there is one to be seen.
fn remedy() -> String {
    let value = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let switches = [
        ("kernel.unprivileged_userns_clone", "/proc/sys/kernel/unprivileged_userns_clone", "0", "1"),
        (
            "kernel.apparmor_restrict_unprivileged_userns",
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "0",
        ),
        ("user.max_user_namespaces", "/proc/sys/user/max_user_namespaces", "0", "1000"),
        ("user.max_net_namespaces", "/proc/sys/user/max_net_namespaces", "0", "1000"),
        ("user.max_mnt_namespaces", "/proc/sys/user/max_mnt_namespaces", "0", "1000"),
    ];
    for (name, path, bad, good) in switches {
        if value(path) == bad {
            return format!("{name} is {bad} here: run the demo as root, or set it (sysctl {name}={good}).");
        }
    }
    "Run the demo as root; in a container, one that may make namespaces (docker run --privileged).".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_says_what_is_missing_and_what_to_do() {
        let error = NamespaceError::Missing {
            what: "user namespace",
            source: io::Error::from_raw_os_error(1),
            remedy: "Run it as root.".to_owned(),
        };
        assert_eq!(
            error.to_string(),
            "this host gives us no user namespace (Operation not permitted (os error 1)).\nRun it as root."
        );
    }
}
