//! The socket's place in the file system: made, found, checked and removed without touching what is not ours.
//!
//! A path can be anything by the time we look at it, so nothing is decided by name where it can be decided by file: a
//! socket gets its permissions before anybody can connect to it, whatever the umask; only a socket that is ours by owner
//! and that nobody answers on is removed to make way; on leaving we remove what we made and nothing that took its place.
//! The last component of a path is never followed if it is a symlink. Used by the backend's thread.

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fstat, lstat, open};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Bytes of the longest path of a UNIX socket: `sun_path` less its NUL (unix(7)).
pub(crate) const PATH_MAX: usize = 107;
/// Connections that may wait to be accepted; all but one will be refused.
const BACKLOG: i32 = 8;

/// Why a socket could not be set up; retried by the caller.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A path that is relative, too long or has a NUL.
    #[error("{}: a socket's path is absolute and has at most {PATH_MAX} bytes", path.display())]
    BadPath {
        /// The path.
        path: PathBuf,
    },
    /// Something that is not a dead socket of ours is there.
    #[error("{} exists already and is {what}", path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// The system said no.
    #[error("{what}: {source}")]
    Io {
        /// What we tried.
        what: String,
        /// What it said.
        source: std::io::Error,
    },
}

fn io(what: &str, path: &Path) -> impl FnOnce(Errno) -> StartError {
    let what = format!("{what} {}", path.display());
    move |source| StartError::Io { what, source: source.into() }
}

/// What giving a file to another owner or group needs is said, for it is the operator's to mend.
fn give_away_failed(path: &Path) -> impl FnOnce(Errno) -> StartError {
    let needs = match rustix::process::geteuid().is_root() {
        true => "",
        false => " (another owner needs CAP_CHOWN; so does a group that this process is not in)",
    };
    let what = format!("give {} its owner and group{needs}", path.display());
    move |source| StartError::Io { what, source: source.into() }
}

fn address(path: &Path) -> Result<SocketAddrUnix, StartError> {
    let bad = || StartError::BadPath { path: path.to_owned() };
    if !path.is_absolute() || path.as_os_str().len() > PATH_MAX {
        return Err(bad());
    }
    SocketAddrUnix::new(path).map_err(|_| bad())
}

fn socket(path: &Path) -> Result<OwnedFd, StartError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(io("socket for", path))
}

fn is_socket(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::Socket
}

/// Who a socket file belongs to and who may connect to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ownership {
    /// Owner; `None`: ours.
    pub(crate) uid: Option<u32>,
    /// Group; `None`: ours.
    pub(crate) gid: Option<u32>,
    /// Permission bits.
    pub(crate) mode: u32,
}

/// A listening socket; its file is removed when it is dropped.
pub(crate) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file we made.
    file: (u64, u64),
}

impl Listener {
    /// Makes the file and listens.
    ///
    /// # Errors
    /// [`StartError`]; then nothing of ours is left there.
    pub(crate) fn bind(path: &Path, ownership: Ownership) -> Result<Listener, StartError> {
        let address = address(path)?;
        make_way(path, &address, ownership.uid)?;
        let socket = socket(path)?;
        let mode = Mode::from_raw_mode(ownership.mode & 0o777);
        // On Linux the file gets the socket's own mode less the umask, so it never has more bits than it should.
        fchmod(&socket, mode).map_err(io("set the mode of", path))?;
        bind(&socket, &address).map_err(io("bind", path))?;
        // Everything from here on is done to the file we hold, not to the name; nobody can connect before `listen`.
        let file = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let file = file.map_err(io("open", path))?;
        let status = fstat(&file).map_err(io("look at", path))?;
        if !is_socket(&status) {
            return Err(StartError::InTheWay { path: path.to_owned(), what: "no socket" });
        }
        let listener = Listener { socket, path: path.to_owned(), file: (status.st_dev, status.st_ino) };
        // The mode first: once it is another user's, only CAP_FOWNER would let us set it.
        let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::chmod(by_descriptor, mode).map_err(io("set the mode of", path))?;
        let (uid, gid) = (ownership.uid.map(Uid::from_raw), ownership.gid.map(Gid::from_raw));
        if uid.is_some() || gid.is_some() {
            chownat(&file, c"", uid, gid, AtFlags::EMPTY_PATH).map_err(give_away_failed(path))?;
        }
        listen(&listener.socket, BACKLOG).map_err(io("listen at", path))?;
        Ok(listener)
    }

    /// The file we made.
    pub(crate) fn file(&self) -> SocketFile {
        SocketFile { path: self.path.clone(), file: self.file }
    }

    /// The next connection; `None` if nobody waits.
    pub(crate) fn accept(&self) -> std::io::Result<Option<OwnedFd>> {
        match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => Ok(Some(socket)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The file of a listening socket, to look whether it is still there.
#[derive(Clone, Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    file: (u64, u64),
}

impl SocketFile {
    /// Whether the path still leads to our socket. If it does not, nobody new can connect.
    pub(crate) fn is_there(&self) -> bool {
        lstat(&self.path).is_ok_and(|status| (status.st_dev, status.st_ino) == self.file)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let is_ours = lstat(&self.path).is_ok_and(|status| (status.st_dev, status.st_ino) == self.file);
        if is_ours {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

/// Removes a dead socket of ours; anything else that is there is an error. Whether a socket of our own user, or of the one
/// that we give them to, is one that we made, the caller knows.
fn make_way(path: &Path, address: &SocketAddrUnix, owner: Option<u32>) -> Result<(), StartError> {
    let status = match lstat(path) {
        Ok(status) => status,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(io("look at", path)(error)),
    };
    let in_the_way = |what| Err(StartError::InTheWay { path: path.to_owned(), what });
    if !is_socket(&status) {
        return in_the_way("no socket");
    }
    if status.st_uid != rustix::process::geteuid().as_raw() && Some(status.st_uid) != owner {
        return in_the_way("another user's socket");
    }
    match connect(socket(path)?, address) {
        Err(Errno::CONNREFUSED) => {}
        // We gave it away, and its mode lets its owner or group connect, not us: so that must be found out another way.
        Err(Errno::ACCESS) if is_ours_alone(path) && !is_bound(path) => {}
        Err(Errno::ACCESS) => {
            return in_the_way("a socket that we may not connect to, and perhaps somebody listens on");
        }
        _ => return in_the_way("a socket that somebody listens on"),
    }
    rustix::fs::unlinkat(CWD, path, AtFlags::empty()).map_err(io("remove the dead socket", path))
}

/// Whether nobody but us, and root, can have put into its directory what is at this path. Access control lists are in the
/// group's bits (acl(5)).
fn is_ours_alone(path: &Path) -> bool {
    let directory = path.parent().and_then(|directory| lstat(directory).ok());
    directory.is_some_and(|status| {
        FileType::from_raw_mode(status.st_mode) == FileType::Directory
            && status.st_uid == rustix::process::geteuid().as_raw()
            && status.st_mode & 0o022 == 0
    })
}

/// Whether some process has a socket that was bound to this path, by the kernel's list (`/proc/net/unix`). That has those
/// of our network namespace only, and paths as they were said; it does where only we can have made the socket.
fn is_bound(path: &Path) -> bool {
    let Ok(list) = File::open("/proc/net/unix") else { return true };
    let mut list = BufReader::new(list);
    // The path is the last word of its line; what it has in it, spaces or line ends, stands there as it is. Of one with line
    // ends its last line is looked for, which may be another's too: then it is taken for bound.
    let end = [b" ", path.as_os_str().as_bytes(), b"\n"].concat();
    let end = end.split_inclusive(|&byte| byte == b'\n').next_back().unwrap_or_default();
    let mut line = Vec::new();
    loop {
        line.clear();
        match list.read_until(b'\n', &mut line) {
            Ok(0) => return false,
            Ok(_) if !line.ends_with(end) => {}
            Ok(_) | Err(_) => return true,
        }
    }
}

/// Connects to a socket that a peer listens on.
///
/// # Errors
/// [`StartError`], also if the path is a symlink or no socket.
pub(crate) fn connect_to(path: &Path) -> Result<OwnedFd, StartError> {
    let address = address(path)?;
    if !is_socket(&lstat(path).map_err(io("look at", path))?) {
        return Err(StartError::InTheWay { path: path.to_owned(), what: "no socket" });
    }
    let socket = socket(path)?;
    connect(&socket, &address).map_err(io("connect to", path))?;
    Ok(socket)
}

/// Checks a path without touching the file system.
pub(crate) fn check_path(path: &Path) -> Result<(), StartError> {
    address(path).map(|_| ())
}

/// The user on the other side of a connection, as the kernel knows it (SO_PEERCRED).
pub(crate) fn peer_uid(socket: BorrowedFd<'_>) -> std::io::Result<u32> {
    Ok(socket_peercred(socket)?.uid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Directory {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let name = format!("qvs-listen-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Directory(path)
        }

        fn path(&self) -> PathBuf {
            self.0.join("socket")
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const OURS: Ownership = Ownership { uid: None, gid: None, mode: 0o660 };

    #[test]
    fn the_file_has_the_mode_asked_for_and_goes_with_the_listener() {
        let directory = Directory::new();
        let listener = Listener::bind(&directory.path(), OURS).unwrap();
        assert_eq!(directory.path().metadata().unwrap().permissions().mode() & 0o7777, 0o660);
        assert!(connect_to(&directory.path()).is_ok());
        drop(listener);
        assert!(!directory.path().exists());
    }

    #[test]
    fn owner_and_group_are_given_away_where_we_may() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = Directory::new();
        let ownership = Ownership { uid: Some(4711), gid: Some(4712), mode: 0o600 };
        let _listener = Listener::bind(&directory.path(), ownership).unwrap();
        let status = directory.path().metadata().unwrap();
        assert_eq!((status.uid(), status.gid(), status.mode() & 0o777), (4711, 4712, 0o600));
    }

    /// Runs `work` as a user who may give files away and nothing else that others may not; false: nobody may become one here.
    fn as_giver(directory: &Directory, work: impl FnOnce() + Send) -> bool {
        use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_keep_capabilities};
        const GIVER: u32 = 4710;
        if !rustix::process::geteuid().is_root() || std::os::unix::fs::chown(&directory.0, Some(GIVER), None).is_err() {
            return false;
        }
        std::thread::scope(|scope| {
            // All of this is a thread's own, and ends with it.
            let thread = scope.spawn(|| {
                let (uid, gid) = (Uid::from_raw(GIVER), Gid::from_raw(GIVER));
                set_keep_capabilities(true).unwrap();
                rustix::thread::set_thread_groups(&[]).unwrap();
                rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                let held = CapabilitySet::CHOWN;
                let sets = CapabilitySets { effective: held, permitted: held, inheritable: CapabilitySet::empty() };
                set_capabilities(None, sets).unwrap();
                work();
            });
            thread.join().unwrap();
        });
        true
    }

    const GIVEN: Ownership = Ownership { uid: Some(4711), gid: Some(4712), mode: 0o600 };

    #[test]
    fn who_may_give_files_away_and_nothing_else_gives_a_socket_its_owner_group_and_mode() {
        let directory = Directory::new();
        as_giver(&directory, || {
            let _listener = Listener::bind(&directory.path(), GIVEN).unwrap();
            let status = directory.path().metadata().unwrap();
            assert_eq!((status.uid(), status.gid(), status.mode() & 0o7777), (4711, 4712, 0o600));
        });
    }

    #[test]
    fn a_dead_socket_that_we_gave_away_and_may_not_connect_to_is_replaced_and_a_live_one_is_not() {
        let directory = Directory::new();
        as_giver(&directory, || {
            let live = Listener::bind(&directory.path(), GIVEN).unwrap();
            assert_eq!(connect(socket(&live.path).unwrap(), &address(&live.path).unwrap()), Err(Errno::ACCESS));
            assert!(matches!(Listener::bind(&directory.path(), GIVEN), Err(StartError::InTheWay { .. })));
            // As after kill -9: nobody has the socket any more, and its file is still there.
            let aside = directory.0.join("aside");
            std::fs::rename(directory.path(), &aside).unwrap();
            drop(live);
            std::fs::rename(&aside, directory.path()).unwrap();
            assert!(Listener::bind(&directory.path(), GIVEN).is_ok());
        });
    }

    #[test]
    fn who_has_a_socket_is_found_in_the_kernels_list_whatever_its_path_has_in_it() {
        let directory = Directory::new();
        for name in ["socket", "so cket", "so\ncket", "socket\n"] {
            let path = directory.0.join(name);
            let _bound = UnixListener::bind(&path).unwrap();
            assert!(is_bound(&path), "{path:?}");
        }
        assert!(!is_bound(&directory.0.join("ocket")));
        assert!(!is_bound(&directory.0));
    }

    #[test]
    fn a_dead_socket_of_ours_is_replaced_and_a_live_one_is_not() {
        let directory = Directory::new();
        let theirs = UnixListener::bind(directory.path()).unwrap();
        let refused = Listener::bind(&directory.path(), OURS);
        assert!(matches!(refused, Err(StartError::InTheWay { what: "a socket that somebody listens on", .. })));
        drop(theirs);
        assert!(Listener::bind(&directory.path(), OURS).is_ok());
    }

    #[test]
    fn files_and_symlinks_are_left_alone() {
        let directory = Directory::new();
        std::fs::write(directory.path(), "precious").unwrap();
        assert!(matches!(Listener::bind(&directory.path(), OURS), Err(StartError::InTheWay { .. })));
        assert_eq!(std::fs::read(directory.path()).unwrap(), b"precious");

        let link = directory.0.join("link");
        symlink(directory.0.join("elsewhere"), &link).unwrap();
        assert!(matches!(Listener::bind(&link, OURS), Err(StartError::InTheWay { .. })));
        assert!(!directory.0.join("elsewhere").exists());

        let real = UnixListener::bind(directory.0.join("real")).unwrap();
        let to_real = directory.0.join("to-real");
        symlink(directory.0.join("real"), &to_real).unwrap();
        assert!(matches!(connect_to(&to_real), Err(StartError::InTheWay { .. })));
        drop(real);
    }

    #[test]
    fn what_took_our_place_is_not_removed() {
        let directory = Directory::new();
        let listener = Listener::bind(&directory.path(), OURS).unwrap();
        std::fs::remove_file(directory.path()).unwrap();
        std::fs::write(directory.path(), "new owner").unwrap();
        drop(listener);
        assert!(directory.path().exists());
    }

    #[test]
    fn paths_that_no_socket_can_have_are_refused() {
        let long = PathBuf::from(format!("/{}", "x".repeat(PATH_MAX)));
        for path in [Path::new("relative/socket"), &long] {
            assert!(matches!(Listener::bind(path, OURS), Err(StartError::BadPath { .. })));
            assert!(matches!(connect_to(path), Err(StartError::BadPath { .. })));
        }
        assert!(check_path(Path::new(&format!("/{}", "x".repeat(PATH_MAX - 1)))).is_ok());
    }
}
