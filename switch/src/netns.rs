//! Network namespaces: naming one, entering one for a moment, making one, and noticing that one is gone.
//!
//! What makes it harder than it looks: a namespace belongs to a thread and not to the process, so a thread that enters one
//! and fails to come back would take its later work along. We therefore enter only on a helper thread that ends with the
//! work ([`within`]). And whoever holds a descriptor that lives in a namespace keeps the namespace itself alive: when its
//! name is deleted, nothing dies and no event comes, the kernel merely loses the last way in. So [`Origin`] remembers
//! under which path a namespace was found and compares.
//!
//! Control side only. Entering another namespace needs CAP_SYS_ADMIN there and in the caller's user namespace (setns(2)).

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::ffi::CStr;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Where named namespaces live, by the custom of ip-netns(8).
const NAMED: &str = "/run/netns";
/// The calling thread's own network namespace.
const OWN: &CStr = c"/proc/thread-self/ns/net";
/// File system type of namespace files (`NSFS_MAGIC` in linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The path that `name` stands for: an absolute path as it is, a plain name under `/run/netns`.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if it is neither.
pub fn path(name: &str) -> io::Result<PathBuf> {
    let given = Path::new(name);
    if given.is_absolute() {
        return Ok(given.to_owned());
    }
    let mut parts = given.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(only)), None) if only == name => Ok(Path::new(NAMED).join(only)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is neither the name of a network namespace nor an absolute path"),
        )),
    }
}

/// Opens the network namespace of that name under `/run/netns`, or at that absolute path.
///
/// # Errors
/// The system's ([`io::ErrorKind::NotFound`] while there is none), or [`io::ErrorKind::InvalidInput`] if what stands there
/// is no namespace. That it is one of the network kind shows when it is entered.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    // Non-blocking, so that a FIFO at the path cannot hold us up.
    let netns = rustix::fs::open(path(name)?, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    if rustix::fs::fstatfs(&netns)?.f_type as u64 != NSFS_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a namespace")));
    }
    Ok(netns)
}

/// Makes a network namespace with nothing but a loopback interface, which is down.
///
/// It has no name and ends with the last descriptor that refers to it. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// The system's.
pub fn create() -> io::Result<OwnedFd> {
    on_helper(|| {
        #[expect(deprecated, reason = "unsafe only for UnshareFlags::FILES, which we do not pass")]
        rustix::thread::unshare(UnshareFlags::NEWNET)?;
        own()
    })?
}

/// The calling thread's own network namespace.
///
/// # Errors
/// The system's: no `/proc`, or no descriptor left.
pub fn own() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Runs `work` inside `netns`, on a helper thread that ends with it; `None`: on the calling thread, where it is.
///
/// Sockets and devices that `work` opens stay in that namespace, whatever thread uses them afterwards.
///
/// # Errors
/// The system's, for making the thread and entering; `EPERM` without CAP_SYS_ADMIN. `work` has not run then.
pub fn within<T: Send>(netns: Option<BorrowedFd<'_>>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let Some(netns) = netns else { return Ok(work()) };
    on_helper(move || {
        rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
        Ok(work())
    })?
}

fn on_helper<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let helper = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        // A panic of the work is the caller's panic.
        Ok(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Whether an interface of that name, of any kind, exists in the namespace; `None`: in the calling thread's.
///
/// # Errors
/// Those of [`within`], or no descriptor left.
pub fn has_interface(netns: Option<BorrowedFd<'_>>, name: &str) -> io::Result<bool> {
    within(netns, || {
        match rustix::net::netdevice::name_to_index(control_socket()?, name) {
            Ok(_) => Ok(true),
            // A name too long for any interface is nobody's name either.
            Err(Errno::NODEV | Errno::INVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    })?
}

/// A socket in the calling thread's namespace, only good for asking and setting things about interfaces.
///
/// # Errors
/// The system's: no descriptor left.
pub(crate) fn control_socket() -> io::Result<OwnedFd> {
    // Every socket takes interface ioctls; a Unix one is there even where IP is not.
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// Where a namespace was found, to notice when it is no longer there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Origin {
    /// The path under which `netns` was opened; `None` if it has none (made by us, or some process's own).
    ///
    /// Without `/proc` there is no telling, and the answer is `None` too.
    pub fn of(netns: BorrowedFd<'_>) -> Option<Origin> {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", netns.as_raw_fd())).ok()?;
        let stat = rustix::fs::fstat(netns).ok()?;
        let origin = Origin { path, device: stat.st_dev, inode: stat.st_ino };
        // The link of a nameless one reads `net:[4026531840]`, and a detached one shows a path that leads elsewhere.
        (origin.path.is_absolute() && origin.is_there()).then_some(origin)
    }

    /// Whether the path still leads to the same namespace. A doubt, such as a directory we may not read, counts as yes.
    ///
    /// True comparison only while somebody keeps the namespace alive: afterwards its inode number may serve another.
    pub fn is_there(&self) -> bool {
        match rustix::fs::stat(&self.path) {
            Ok(stat) => stat.st_dev == self.device && stat.st_ino == self.inode,
            Err(Errno::NOENT | Errno::NOTDIR) => false,
            Err(_) => true,
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.display().fmt(f)
    }
}

/// Same namespace or not: two descriptors may differ and mean one.
///
/// # Errors
/// The system's.
pub fn is_same(one: impl AsFd, other: impl AsFd) -> io::Result<bool> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHTS: &str = "these tests make network namespaces: run them as root";

    #[test]
    fn a_plain_name_means_run_netns_and_an_absolute_path_means_itself() {
        assert_eq!(path("blue").unwrap(), Path::new("/run/netns/blue"));
        assert_eq!(path("/proc/1/ns/net").unwrap(), Path::new("/proc/1/ns/net"));
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "../x", "a/b", "a/", "./a"] {
            assert_eq!(path(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        assert_eq!(open("/proc/self/status").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(open("/run/netns/there-is-none-of-this-name").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(open("/proc/self/status/below").unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn a_namespace_of_another_kind_is_not_entered() {
        let mount = open("/proc/self/ns/mnt").unwrap();
        let error = within(Some(mount.as_fd()), || unreachable!("not a network namespace")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn work_runs_inside_the_namespace_and_the_caller_stays_outside() {
        let before = own().unwrap();
        let made = create().expect(RIGHTS);
        assert!(!is_same(&before, &made).unwrap());
        let inside = within(Some(made.as_fd()), || own().unwrap()).expect(RIGHTS);
        assert!(is_same(&inside, &made).unwrap());
        assert!(is_same(own().unwrap(), &before).unwrap(), "the calling thread has moved");
        assert!(has_interface(Some(made.as_fd()), "lo").unwrap());
        assert!(!has_interface(Some(made.as_fd()), "qvs-none").unwrap());
        assert!(!has_interface(Some(made.as_fd()), "a-name-longer-than-sixteen-bytes").unwrap());
    }

    #[test]
    fn a_namespace_without_a_path_has_no_origin() {
        assert_eq!(Origin::of(create().expect(RIGHTS).as_fd()), None);
        assert_eq!(Origin::of(own().unwrap().as_fd()), None);
    }
}
