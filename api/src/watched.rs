//! Files that are read again when they changed: tokens, policy, certificates.
//!
//! Whoever asks gets the value of the moment, whole. Files are looked at no more than once in [`PAUSE`], so that a request
//! costs no system call most of the time. What cannot be used leaves the value before in force and is logged: an editor
//! that saves in two steps must not lock everybody out, nor who renews a certificate and then its key. So whoever wants
//! nothing to hold says so in the file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a change may go unnoticed.
pub const PAUSE: Duration = Duration::from_secs(1);
/// Longest file read, bytes; 10,000 tokens are about 3 MB.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Whose a file must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    /// Anybody's, and not everybody may write it.
    Any,
    /// Ours or root's, and no other user may read it: mode 0600, or for a key a group's 0640.
    NotOthers,
    /// Ours or root's, and only the owner may read or write it: mode 0600.
    OwnerOnly,
    /// This user's, and only he may read or write it: for root, who looks after the files of a daemon that runs as another
    /// and cannot read what is root's.
    OwnerOnlyOf(u32),
}

impl Rights {
    /// Permissions that nobody must have, and what a file may have instead.
    fn hidden(self) -> (u32, &'static str) {
        match self {
            Rights::Any => (0o002, "not writable for others"),
            Rights::NotOthers => (0o037, "ours or root's, mode 0600 or 0640"),
            Rights::OwnerOnly => (0o077, "ours or root's, mode 0600"),
            Rights::OwnerOnlyOf(_) => (0o077, "of the user that the switch runs as, mode 0600"),
        }
    }

    fn allows_owner(self, owner: u32) -> bool {
        match self {
            Rights::Any => true,
            Rights::NotOthers | Rights::OwnerOnly => [0, rustix::process::geteuid().as_raw()].contains(&owner),
            Rights::OwnerOnlyOf(user) => owner == user,
        }
    }
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read what must stay secret, or change what they must not.
    #[error("{path} has mode {mode:04o} and owner {owner}; it must be {wanted}")]
    TooOpen {
        /// Its path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        owner: u32,
        /// What it may have.
        wanted: &'static str,
    },
    /// It says something wrong.
    #[error("{path}: {why}")]
    Wrong {
        /// Its path.
        path: PathBuf,
        /// What.
        why: String,
    },
}

/// What changes when a file does: device, inode, size, and the times of its last writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp([i128; 5]);

impl FileError {
    /// Whose fault it is.
    pub fn path(&self) -> &Path {
        match self {
            FileError::Unreadable { path, .. } | FileError::TooOpen { path, .. } | FileError::Wrong { path, .. } => {
                path
            }
        }
    }
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Stamp {
        let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Stamp([
            metadata.dev().into(),
            metadata.ino().into(),
            metadata.size().into(),
            nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        ])
    }
}

/// Reads a whole file that has these rights.
///
/// # Errors
/// [`FileError::Unreadable`], [`FileError::TooOpen`].
pub fn read(path: &Path, rights: Rights) -> Result<String, FileError> {
    read_stamped(path, rights).map(|(text, _)| text)
}

fn read_stamped(path: &Path, rights: Rights) -> Result<(String, Stamp), FileError> {
    let unreadable = |source| FileError::Unreadable { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(unreadable)?;
    // Asked of the open file: what is checked is what is read.
    let metadata = file.metadata().map_err(unreadable)?;
    let mode = metadata.mode() & 0o7777;
    let (hidden, wanted) = rights.hidden();
    if mode & hidden != 0 || !rights.allows_owner(metadata.uid()) {
        return Err(FileError::TooOpen { path: path.to_owned(), mode, owner: metadata.uid(), wanted });
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(FileError::Wrong { path: path.to_owned(), why: format!("more than {FILE_BYTES_MAX} bytes") });
    }
    let mut text = String::new();
    file.by_ref().take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    Ok((text, Stamp::of(&metadata)))
}

/// A function that makes the value of a file's text, or says in one line what is wrong with it.
pub type Parse<T> = Box<dyn Fn(&str) -> Result<T, String> + Send + Sync>;

/// A function that makes one value of the texts of several files, in their order, or tells whose fault it is that it
/// cannot.
pub type ParseAll<T> = Box<dyn Fn(&[String]) -> Result<T, FileError> + Send + Sync>;

/// The value of a file or of several, as of their last change.
pub struct Watched<T> {
    files: Vec<(PathBuf, Rights)>,
    parse: ParseAll<T>,
    pause: Duration,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    /// Of the files as they were looked at last, used or not; `None`: one was not there.
    stamps: Vec<Option<Stamp>>,
    looked_at: Instant,
}

impl<T: 'static> Watched<T> {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(path: &Path, rights: Rights, parse: Parse<T>) -> Result<Watched<T>, FileError> {
        Watched::open_with_pause(path, rights, parse, PAUSE)
    }

    /// The same, with another time that changes may go unnoticed.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open_with_pause(
        path: &Path,
        rights: Rights,
        parse: Parse<T>,
        pause: Duration,
    ) -> Result<Watched<T>, FileError> {
        let named = path.to_owned();
        let wrong = move |why| FileError::Wrong { path: named.clone(), why };
        let parse: ParseAll<T> = Box::new(move |texts| parse(&texts[0]).map_err(&wrong));
        Watched::open_all(vec![(path.to_owned(), rights)], parse, pause)
    }

    /// Reads several files that make one value for the first time.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open_all(
        files: Vec<(PathBuf, Rights)>,
        parse: ParseAll<T>,
        pause: Duration,
    ) -> Result<Watched<T>, FileError> {
        let (value, stamps) = load(&files, &parse)?;
        let state = State { value: Arc::new(value), stamps, looked_at: Instant::now() };
        Ok(Watched { files, parse, pause, state: Mutex::new(state) })
    }

    /// The value now.
    pub fn now(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked_at.elapsed() >= self.pause {
            state.looked_at = Instant::now();
            let stamp = |path| std::fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata));
            let stamps: Vec<_> = self.files.iter().map(|(path, _)| stamp(path)).collect();
            if stamps != state.stamps {
                state.stamps = stamps;
                match load(&self.files, &self.parse) {
                    Ok((value, stamps)) => {
                        tracing::info!(path = %self.names(), "what changed is in force");
                        state.value = Arc::new(value);
                        state.stamps = stamps;
                    }
                    Err(error) => {
                        tracing::error!(%error, "what changed cannot be used; what was said before holds");
                    }
                }
            }
        }
        state.value.clone()
    }

    fn names(&self) -> String {
        self.files.iter().map(|(path, _)| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }
}

fn load<T>(files: &[(PathBuf, Rights)], parse: &ParseAll<T>) -> Result<(T, Vec<Option<Stamp>>), FileError> {
    let (mut texts, mut stamps) = (Vec::new(), Vec::new());
    for (path, rights) in files {
        let (text, stamp) = read_stamped(path, *rights)?;
        texts.push(text);
        stamps.push(Some(stamp));
    }
    Ok((parse(&texts)?, stamps))
}

#[cfg(test)]
pub(crate) mod testing {
    //! A file for tests.

    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A file that goes with the test.
    pub(crate) struct TestFile(PathBuf);

    impl TestFile {
        pub(crate) fn new(text: &str) -> TestFile {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let file = TestFile(std::env::temp_dir().join(format!("qvs-file-{}-{count}", std::process::id())));
            file.write(text);
            file
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }

        /// Puts another file, 0600, in its place.
        pub(crate) fn write(&self, text: &str) {
            let beside = self.0.with_extension("new");
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside).unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            std::fs::rename(beside, &self.0).unwrap();
        }

        pub(crate) fn set_mode(&self, mode: u32) {
            std::fs::set_permissions(&self.0, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    impl Drop for TestFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::TestFile;
    use super::*;

    fn number(file: &TestFile) -> Watched<u32> {
        let parse: Parse<u32> = Box::new(|text| text.trim().parse().map_err(|_| "no number".to_owned()));
        Watched::open_with_pause(file.path(), Rights::OwnerOnly, parse, Duration::ZERO).unwrap()
    }

    #[test]
    fn a_changed_file_is_read_again_and_an_unchanged_one_is_not() {
        let file = TestFile::new("1");
        let watched = number(&file);
        let first = watched.now();
        assert!(Arc::ptr_eq(&first, &watched.now()));
        file.write("2");
        assert_eq!(*watched.now(), 2);
    }

    #[test]
    fn a_file_that_cannot_be_used_leaves_the_value_before_until_it_can() {
        let file = TestFile::new("1");
        let watched = number(&file);
        file.write("one");
        assert_eq!(*watched.now(), 1);
        file.write("2");
        file.set_mode(0o644);
        assert_eq!(*watched.now(), 1);
        file.set_mode(0o600);
        assert_eq!(*watched.now(), 2);
        std::fs::remove_file(file.path()).unwrap();
        assert_eq!(*watched.now(), 2);
        file.write("3");
        assert_eq!(*watched.now(), 3);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let file = TestFile::new("1");
        for (mode, owner_only, not_others) in [
            (0o600, true, true),
            (0o400, true, true),
            (0o640, false, true),
            (0o644, false, false),
            (0o660, false, false),
        ] {
            file.set_mode(mode);
            assert_eq!(read(file.path(), Rights::OwnerOnly).is_ok(), owner_only, "{mode:o}");
            assert_eq!(read(file.path(), Rights::NotOthers).is_ok(), not_others, "{mode:o}");
            assert!(read(file.path(), Rights::Any).is_ok());
        }
        file.set_mode(0o602);
        assert!(read(file.path(), Rights::Any).is_err());
        file.set_mode(0o660);
        let error = read(file.path(), Rights::OwnerOnly).unwrap_err().to_string();
        assert!(error.contains("has mode 0660"), "{error}");
    }

    #[test]
    fn a_file_of_another_user_is_refused_unless_it_is_the_user_that_is_looked_after() {
        let file = TestFile::new("1");
        if rustix::process::geteuid().is_root() {
            let error = read(file.path(), Rights::OwnerOnlyOf(4711)).unwrap_err().to_string();
            assert!(error.contains("owner 0; it must be of the user that the switch runs as"), "{error}");
        }
        let Ok(()) = std::os::unix::fs::chown(file.path(), Some(4711), None) else { return };
        for rights in [Rights::NotOthers, Rights::OwnerOnly, Rights::OwnerOnlyOf(4712)] {
            let error = read(file.path(), rights).unwrap_err().to_string();
            assert!(error.contains("owner 4711"), "{rights:?}: {error}");
        }
        assert_eq!(read(file.path(), Rights::OwnerOnlyOf(4711)).unwrap(), "1");
        file.set_mode(0o640);
        assert!(read(file.path(), Rights::OwnerOnlyOf(4711)).is_err());
    }
}
