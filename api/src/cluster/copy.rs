//! A host's own copy of what hosts share, so that it starts, and carries frames, while etcd is away.
//!
//! A file of text: a line that tells what it is of, a line for each key with what stands there, and a line that vouches for all
//! before it. It is written whole beside the one that is there and put in its place, so that there is always one, however the
//! writer ends; and what was torn, cut, or is another cloud's is told from it and left alone. What was read from it may be of
//! an etcd that is no more: before anything is followed, or a tenant's record or an extra written, all is read from etcd.
//!
//! A thread of its own, `copy`, writes what has changed: at once after a quiet time, in a storm no more than
//! [`BYTES_PER_SECOND`], and once more when the host ends. Memory: the shared state once more as text while it is read.

use super::everything::{Everything, Gathering};
use super::follow::Follower;
use super::freed::Marks;
use super::key::Keys;
use super::{Cluster, END_PAUSE, lock};
use crate::etcd::message::{Blob, Revision};
use crate::hex;
use crate::store::StoreError;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Shortest pause between two copies.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Bytes that are written a second, in the long run, so that a cloud that never rests does not wear a disk out.
const BYTES_PER_SECOND: u64 = 2 << 20;
/// How long the last copy may take once the host ends.
const FINISH_MAX: Duration = Duration::from_secs(2);
/// Longest copy read, bytes: 50,000 ports on 1,000 hosts take some 30 MB.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// The version written here.
const VERSION: u32 = 1;
/// What the first line begins with, to tell a copy from any other file.
const KIND: &str = "copy of a cloud";

/// The first line.
#[derive(Serialize, Deserialize)]
struct Title {
    qvs: String,
    version: u32,
    /// Whose it is: all keys begin with it.
    prefix: String,
    /// And the members of the etcd it is of.
    members: Vec<String>,
    revision: Revision,
}

/// A line: what stands at a key, and since when.
#[derive(Serialize, Deserialize)]
struct Line(Blob, Revision, Blob);

/// Why a copy is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error(transparent)]
    File(#[from] io::Error),
    #[error("it is no regular file of ours that nobody else may read or write")]
    NotOurs,
    #[error("it is too long")]
    TooLong,
    #[error("it is torn, or no copy at all")]
    Torn,
    #[error("it has version {found}, this program knows {VERSION}")]
    Version { found: u32 },
    #[error("it is of another cloud: prefix {prefix:?}, members {members:?}")]
    Another { prefix: String, members: Vec<String> },
    #[error(transparent)]
    Record(#[from] StoreError),
}

/// The copy of one host.
pub(super) struct Copying {
    /// Where it is; `None`: nowhere.
    path: Option<PathBuf>,
    noted: Mutex<Noted>,
    /// Told of changes and of the end.
    told: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Noted {
    is_changed: bool,
    is_ended: bool,
}

impl Copying {
    pub(super) fn at(path: Option<PathBuf>) -> Arc<Copying> {
        Arc::new(Copying { path, noted: Mutex::default(), told: Condvar::new(), thread: Mutex::default() })
    }

    /// Something of what is shared is another.
    pub(super) fn note_change(&self) {
        lock(&self.noted).is_changed = true;
        self.told.notify_all();
    }

    /// No more copies, but of what has changed up to now.
    pub(super) fn end(&self) {
        lock(&self.noted).is_ended = true;
        self.told.notify_all();
    }

    /// Waits until there is something to write; false: there will be nothing any more.
    fn wait_changed(&self) -> bool {
        let idle = |noted: &mut Noted| !noted.is_changed && !noted.is_ended;
        let noted = self.told.wait_while(lock(&self.noted), idle);
        std::mem::take(&mut noted.unwrap_or_else(PoisonError::into_inner).is_changed)
    }

    /// What should have been written was not: it is tried again after the pause, unless we end, where once is enough.
    fn note_failure(&self) {
        let mut noted = lock(&self.noted);
        noted.is_changed |= !noted.is_ended;
    }

    /// Waits this long, or until the end.
    fn pause(&self, time: Duration) {
        let waited = self.told.wait_timeout_while(lock(&self.noted), time, |noted| !noted.is_ended);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Cluster {
    /// Keeps a copy of what is shared, if there is a place for it, as long as the follower and we are there.
    ///
    /// # Errors
    /// What the system says of another thread.
    pub(super) fn keep_copy(self: &Arc<Cluster>, follower: Weak<dyn Follower>) -> io::Result<()> {
        let Some(path) = self.copying.path.clone() else { return Ok(()) };
        let (copying, this) = (self.copying.clone(), Arc::downgrade(self));
        let mut is_failing = false;
        let thread = std::thread::Builder::new().name("copy".into()).spawn(move || {
            while copying.wait_changed() {
                let Some((this, follower)) = this.upgrade().zip(follower.upgrade()) else { return };
                let everything = this.take_stock(&*follower);
                drop(follower);
                let written = write(&path, &this.keys, &this.members, &everything);
                drop(this);
                let bytes = match written {
                    Ok(bytes) => bytes,
                    Err(error) if is_failing => {
                        tracing::debug!(%error, "the copy of what hosts share cannot be written");
                        0
                    }
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "the copy of what hosts share cannot be written");
                        0
                    }
                };
                is_failing = bytes == 0;
                if is_failing {
                    copying.note_failure();
                }
                copying.pause(PAUSE_MIN.max(Duration::from_millis(bytes * 1000 / BYTES_PER_SECOND)));
            }
        })?;
        *lock(&self.copying.thread) = Some(thread);
        Ok(())
    }

    /// Waits until the copy has all that is known; not longer than that, because a write that waits for etcd may be in its way.
    /// For the end.
    pub(super) fn finish_copy(&self) {
        let thread = lock(&self.copying.thread).take();
        let end = Instant::now() + FINISH_MAX;
        while thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < end {
            std::thread::sleep(END_PAUSE);
        }
    }

    /// All that we know: nothing in it is older than its revision.
    fn take_stock(&self, follower: &dyn Follower) -> Everything {
        let revision = self.revision();
        let directory = self.look(Clone::clone);
        let extras = self.extras.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut settled = None;
        follower.while_settled(&mut |model| settled = Some((model.clone(), self.tenants.head())));
        let (model, head) = settled.expect("it calls what it is given");
        // What no other host is told of here: it goes with a lease, and is not needed before all is read again.
        Everything { model, extras, directory, freed: Marks::new(), head, last: None, revision }
    }

    /// Takes our own copy for what there is, until etcd tells more; false: there is none that can be used.
    pub fn remember(&self) -> bool {
        let Some(path) = &self.copying.path else { return false };
        let age = |path: &Path| std::fs::metadata(path).and_then(|it| it.modified()).ok()?.elapsed().ok();
        match read(path, &self.keys, &self.members) {
            Ok(everything) => {
                let age_s = age(path).map(|age| age.as_secs());
                let (networks, ports) = (everything.model.networks.len(), everything.model.ports.len());
                tracing::warn!(age_s, networks, ports, "etcd is away; starting with what this host knew last");
                *lock(&self.read) = Some(everything);
                self.is_from_copy.store(true, Ordering::Relaxed);
                true
            }
            Err(CopyError::File(error)) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "this host's copy of what hosts share is not used");
                false
            }
        }
    }

    /// Whether what is known comes from a copy.
    pub(super) fn is_from_copy(&self) -> bool {
        self.is_from_copy.load(Ordering::Relaxed)
    }

    /// What is known comes from etcd now.
    pub(super) fn forget_copy(&self) {
        self.is_from_copy.store(false, Ordering::Relaxed);
    }
}

/// Hashes what is written, and counts it.
struct Vouching<W> {
    to: W,
    context: Context,
    bytes: u64,
}

impl<W: Write> Write for Vouching<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.context.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes a copy in place of the one that is there; its bytes.
fn write(path: &Path, keys: &Keys, members: &[String], everything: &Everything) -> io::Result<u64> {
    let new = path.with_added_extension("new");
    // What an earlier writer left has another's rights, perhaps.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let mut out = Vouching { to: BufWriter::new(&file), context: Context::new(&SHA256), bytes: 0 };
    let title = Title {
        qvs: KIND.to_owned(),
        version: VERSION,
        prefix: keys.prefix_text().to_owned(),
        members: members.to_vec(),
        revision: everything.revision,
    };
    write_line(&mut out, &title)?;
    everything.each(keys, |key, value, revision| write_line(&mut out, &Line(key, revision, Blob(value.to_vec()))))?;
    let Vouching { to: mut out, context, bytes } = out;
    writeln!(out, "{}", hex::encode(context.finish().as_ref()))?;
    out.flush()?;
    drop(out);
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(bytes)
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Reads a copy that is of this cloud.
fn read(path: &Path, keys: &Keys, members: &[String]) -> Result<Everything, CopyError> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    if !metadata.is_file() || !is_ours {
        return Err(CopyError::NotOurs);
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(CopyError::TooLong);
    }
    parse(&bytes, keys, members)
}

fn parse(bytes: &[u8], keys: &Keys, members: &[String]) -> Result<Everything, CopyError> {
    let text = bytes.strip_suffix(b"\n").ok_or(CopyError::Torn)?;
    let end = text.iter().rposition(|&byte| byte == b'\n').ok_or(CopyError::Torn)? + 1;
    let (text, vouched) = text.split_at(end);
    let mut context = Context::new(&SHA256);
    context.update(text);
    if hex::encode(context.finish().as_ref()).as_bytes() != vouched {
        return Err(CopyError::Torn);
    }
    let mut lines = text.split_inclusive(|&byte| byte == b'\n');
    let title = lines.next().and_then(|line| serde_json::from_slice::<Title>(line).ok());
    let title = title.filter(|title| title.qvs == KIND).ok_or(CopyError::Torn)?;
    let Title { version, prefix, members: its, revision, .. } = title;
    if version != VERSION {
        return Err(CopyError::Version { found: version });
    }
    if prefix != keys.prefix_text() || !its.iter().any(|member| members.contains(member)) {
        return Err(CopyError::Another { prefix, members: its });
    }
    let mut gathering = Gathering::of(keys);
    for line in lines {
        let Line(key, revision, value) = serde_json::from_slice(line).map_err(|_| CopyError::Torn)?;
        gathering.take(&key, &value.0, revision);
    }
    Ok(gathering.finish(revision)?)
}

#[cfg(test)]
mod tests;
