//! Tenants' records in etcd: how a write is committed so that no other is lost, and how those of others become part of the model.
//!
//! A write is planned against the model, which is all there was at the revision of a `head` that we have seen. It is one
//! transaction that asks for that very `head`, by revision and value, and writes another: so if anybody wrote meanwhile, here or
//! elsewhere, nothing is done ([`StoreError::Outrun`]), and whoever planned waits until we know what there is and plans anew.
//! Quotas, segments and uniqueness hold because every plan saw all that was there. What comes to no write, a refusal, is told only
//! if it saw all that was written by then ([`Cluster::present`]).
//!
//! A write that got no answer is not guessed at: a transaction that asks for the same `head` and writes a new one either
//! shuts it out for good, or tells what `head` is now and which write of ours was last.
//!
//! Where: [`Place`] is changed only by who has the writers' turn ([`crate::plugins`]). etcd takes 128 steps a transaction, and
//! as many less what is without in one within; so steps come in parcels of [`PARCEL`], and these in parcels again. What bounds a
//! write then is its bytes.

use super::everything::Everything;
use super::freed::freed_by;
use super::key::{Key, Keys};
use super::{Cluster, Followed, RETRY_MIN, lock};
use crate::etcd::by_luck;
use crate::etcd::message::{Blob, Compare, KeyValue, Revision, Step, Txn};
use crate::model::{Change, Inconsistent, Model, Touched};
use crate::store::{StoreError, records};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Steps of a transaction within another, on each of [`LEVELS`]; two more stand beside the outermost.
const PARCEL: usize = 42;
/// How deep steps lie.
const LEVELS: u32 = 3;
/// Steps that etcd takes one within another (`--max-txn-ops`).
const ETCD_STEPS_MAX: usize = 128;
const _: () = assert!(PARCEL * LEVELS as usize + 2 <= ETCD_STEPS_MAX);
/// Bytes of keys and values of one write; etcd takes requests of 1.5 MiB (`--max-request-bytes`). A network of some 18,000 ports can
/// be removed by it.
pub(crate) const BYTES_MAX: usize = 1_400_000;
/// What a step adds to its key and value, bytes: three tags with lengths of up to three bytes, the tags of both, and a share of the
/// parcels around it.
const STEP_BYTES: usize = 24;
/// What the mark that a removed network leaves is at most, bytes.
const MARK_BYTES: usize = 512;
/// The shortest key: what it names and its folder.
const KEY_BYTES_MIN: usize = 8;
// So many steps as there can be by their bytes find room in parcels.
const _: () = assert!(BYTES_MAX / (STEP_BYTES + KEY_BYTES_MIN) <= PARCEL.pow(LEVELS));
/// How long it is tried to find out what became of a write.
const FIND_OUT_MAX: Duration = Duration::from_secs(10);
/// How long a writer who was outrun waits until we know what there is.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);
/// How long after a write of another we count on more of them.
const OTHERS_WRITE_FOR: Duration = Duration::from_secs(1);
/// Longest pause before a write of ours then: some times what a write takes.
const PAUSE_MAX: Duration = Duration::from_millis(10);
/// The version of what is written here. What a newer program wrote is refused.
const SCHEMA: u64 = 1;

/// `head`.
#[derive(Serialize, Deserialize)]
struct HeadRecord {
    schema: u64,
    write: String,
}

/// A write of tenants' records, as `head` tells it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// Its revision; 0: there was none.
    pub(super) revision: Revision,
    /// What it wrote there.
    pub(super) value: Vec<u8>,
}

/// Whether a `head` is of a version that we know.
pub(super) fn check_head(value: &[u8]) -> Result<(), StoreError> {
    let bad = |why: String| StoreError::BadRecord { table: "etcd", key: "head".to_owned(), why };
    let head: HeadRecord = serde_json::from_slice(value).map_err(|error| bad(error.to_string()))?;
    if head.schema > SCHEMA {
        return Err(bad(format!("it has schema {}, this program knows up to {SCHEMA}", head.schema)));
    }
    Ok(())
}

/// Where the model stands.
#[derive(Default)]
pub(super) struct Place {
    revisions: Mutex<Revisions>,
    /// This start of the host has written.
    has_written: AtomicBool,
    /// Told when the model has come further.
    caught_up: Condvar,
}

#[derive(Default)]
struct Revisions {
    /// The `head` that the model is of.
    at: Head,
    /// A `head` that a write of ours met.
    wanted: Revision,
    /// When we heard last of a write of another.
    others_wrote: Option<Instant>,
}

impl Place {
    fn at(&self) -> Revision {
        lock(&self.revisions).at.revision
    }

    pub(super) fn head(&self) -> Head {
        lock(&self.revisions).at.clone()
    }

    fn set(&self, at: Head) {
        lock(&self.revisions).at = at;
        self.caught_up.notify_all();
    }
}

/// Something that an extension keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Extra {
    pub(crate) value: Vec<u8>,
    pub(crate) revision: Revision,
}

/// What extensions keep, by kind and id.
#[derive(Clone, Default)]
pub(crate) struct Extras {
    all: BTreeMap<(String, String), Extra>,
    /// Another number whenever something of a kind has changed.
    changes: BTreeMap<String, u64>,
    /// All that happened up to this revision is in it, for the watch told it or it was read.
    told: Revision,
}

impl Extras {
    /// All there is, as of this revision.
    pub(super) fn new(all: BTreeMap<(String, String), Extra>, told: Revision) -> Extras {
        Extras { all, changes: BTreeMap::new(), told }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&(String, String), &Extra)> {
        self.all.iter()
    }

    /// Takes what is there now for what was; every kind may be another.
    pub(super) fn replace(&mut self, now: Extras) {
        let kinds: Vec<String> = self.all.keys().chain(now.all.keys()).map(|(kind, _)| kind.clone()).collect();
        (self.all, self.told) = (now.all, now.told);
        kinds.into_iter().for_each(|kind| *self.changes.entry(kind).or_default() += 1);
    }

    /// The watch told what is kept now.
    pub(super) fn put(&mut self, kind: &str, id: &str, value: Option<&[u8]>, revision: Revision) {
        self.told = self.told.max(revision);
        self.enter(kind, id, value, revision);
    }

    /// What etcd answered to a write of ours: news only before the watch has told it, for what the watch told since may be that it is
    /// gone again.
    fn put_own(&mut self, kind: &str, id: &str, value: Option<&[u8]>, revision: Revision) {
        if revision > self.told {
            self.enter(kind, id, value, revision);
        }
    }

    fn enter(&mut self, kind: &str, id: &str, value: Option<&[u8]>, revision: Revision) {
        let key = (kind.to_owned(), id.to_owned());
        if self.all.get(&key).is_some_and(|known| known.revision >= revision) {
            return;
        }
        match value {
            Some(value) => drop(self.all.insert(key, Extra { value: value.to_vec(), revision })),
            None => drop(self.all.remove(&key)),
        }
        *self.changes.entry(kind.to_owned()).or_default() += 1;
    }
}

/// What happened to tenants' records.
pub enum TenantsNews {
    /// All of it, as of this `head`.
    All(Arc<Model>, Head),
    /// These changes in order, up to this `head`.
    Changes(Vec<(Revision, Change)>, Head),
}

/// What the model becomes.
pub(crate) struct Absorbed {
    pub(crate) model: Arc<Model>,
    /// `None`: anything.
    pub(crate) touched: Option<Touched>,
}

impl Cluster {
    /// The model as it is in etcd, for the start; all else that is there is taken too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn load(&self) -> Result<Arc<Model>, StoreError> {
        let read = lock(&self.read).take();
        let Everything { model, extras, directory, freed, head, last, revision } = match read {
            Some(everything) => everything,
            None => self.read_everything()?,
        };
        self.extras.write().unwrap_or_else(PoisonError::into_inner).replace(extras);
        *self.directory.write().unwrap_or_else(PoisonError::into_inner) = directory;
        self.freed.replace(freed, revision);
        self.tenants.set(head);
        *lock(&self.followed) = Followed { revision, last };
        self.copying.note_change();
        Ok(model)
    }

    /// The model is of no `head` that there is: whatever is read next is news.
    pub(super) fn forget_place(&self) {
        // What was wanted before is of a time that will not come, and marks are of one that has not been.
        lock(&self.tenants.revisions).wanted = 0;
        self.freed.forget();
        self.tenants.set(Head { revision: -1, value: Vec::new() });
    }

    /// What the news make of the model; `None`: it has them already. The caller has the writers' turn.
    ///
    /// # Errors
    /// [`Inconsistent`] if they are no news of this model.
    pub(crate) fn absorb(&self, model: &Model, news: TenantsNews) -> Result<Option<Absorbed>, Inconsistent> {
        let at = self.tenants.at();
        let (absorbed, head) = match news {
            // A write of ours is done only if it met nobody else's: then the model has all there is up to it.
            TenantsNews::All(_, head) | TenantsNews::Changes(_, head) if head.revision <= at => return Ok(None),
            // They are of no model that there is; all will be read.
            TenantsNews::Changes(..) if at < 0 => return Ok(None),
            TenantsNews::All(model, head) => (Absorbed { model, touched: None }, head),
            TenantsNews::Changes(changes, head) => {
                let mut next = model.clone();
                let changes = changes.into_iter().filter(|(revision, _)| *revision > at).map(|(_, change)| change);
                let touched = next.absorb(changes)?;
                (Absorbed { model: Arc::new(next), touched: Some(touched) }, head)
            }
        };
        lock(&self.tenants.revisions).others_wrote = Some(Instant::now());
        self.tenants.set(head);
        Ok(Some(absorbed))
    }

    /// Commits changes of the model that is `before`. The caller has the writers' turn.
    ///
    /// # Errors
    /// [`StoreError::Outrun`]: somebody else wrote, and nothing was done; else as [`StoreError`] says.
    pub(crate) fn commit(&self, before: &Model, changes: &[Change]) -> Result<(), StoreError> {
        self.check_is_there()?;
        let freed = freed_by(before, changes);
        let attempt = || {
            let steps = steps(&self.keys, changes).into_iter().chain(self.marks(&freed)?).collect();
            self.commit_steps(steps)
        };
        let outcome = match attempt() {
            // The lease of the marks is none any more, and nothing was done.
            Err(StoreError::Etcd(error)) if error.is_not_found() && !freed.is_empty() => {
                self.forget_freed_lease();
                attempt()
            }
            outcome => outcome,
        };
        if outcome.is_ok() {
            self.left(freed, self.tenants.at());
        }
        outcome
    }

    fn commit_steps(&self, steps: Vec<Step>) -> Result<(), StoreError> {
        self.let_others_write();
        let base = self.tenants.head();
        if self.is_from_copy() {
            return Err(StoreError::Behind);
        }
        let write = uuid::Uuid::new_v4().as_simple().to_string();
        let txn = self.txn(&base, &write, steps)?;
        match self.wait(self.etcd.transact(&txn)) {
            Ok(answer) if answer.succeeded => {
                self.written(answer.revision(), &write);
                Ok(())
            }
            Ok(answer) => Err(self.outrun(answer.found(0).map_or(0, KeyValue::mod_revision))),
            Err(error) if error.is_unknown() => {
                tracing::warn!(%error, "it is not known whether a write was done");
                self.find_out(&base, &write).unwrap_or(Err(StoreError::Etcd(error)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// While others write too, a pause before each write of ours, by luck: so who has far to go to etcd is not outrun for ever.
    fn let_others_write(&self) {
        let is_alone = lock(&self.tenants.revisions).others_wrote.is_none_or(|at| at.elapsed() > OTHERS_WRITE_FOR);
        if !is_alone {
            std::thread::sleep(by_luck(PAUSE_MAX));
        }
    }

    /// The transaction that does `steps` if the last write was `base`.
    fn txn(&self, base: &Head, write: &str, mut steps: Vec<Step>) -> Result<Txn, StoreError> {
        let bytes: usize = steps.iter().map(size).sum();
        if bytes > BYTES_MAX {
            return Err(StoreError::TooLarge { changes: steps.len(), bytes });
        }
        if !self.tenants.has_written.load(Ordering::Relaxed) {
            // Nobody will ask what became of a write of an earlier start.
            steps.extend(self.boots_before.iter().map(|boot| Step::delete(self.keys.of(Key::Writer(boot)))));
        }
        let writer = Step::put(self.keys.of(Key::Writer(&self.boot)), write.as_bytes().to_vec(), None);
        let mut success = vec![self.new_head(write), writer];
        success.extend(in_parcels(steps));
        Ok(Txn { compare: self.is_last(base), success, failure: vec![Step::read(self.keys.of(Key::Head))] })
    }

    /// What asks whether the last write is this one. In an etcd that was set back another may have its revision.
    fn is_last(&self, head: &Head) -> Vec<Compare> {
        let key = self.keys.of(Key::Head);
        let is_it = (head.revision > 0).then(|| Compare::Is(key.clone(), Blob(head.value.clone())));
        [Compare::At(key, head.revision)].into_iter().chain(is_it).collect()
    }

    /// A write of ours is done: the model is of it.
    fn written(&self, revision: Revision, write: &str) {
        self.tenants.has_written.store(true, Ordering::Relaxed);
        self.tenants.set(Head { revision, value: head_value(write) });
        self.copying.note_change();
    }

    fn new_head(&self, write: &str) -> Step {
        Step::put(self.keys.of(Key::Head), head_value(write), None)
    }

    /// Finds out whether the write was done, and sees to it that it will not be if it was not. `None`: that is not to be
    /// found out now.
    fn find_out(&self, base: &Head, write: &str) -> Option<Result<(), StoreError>> {
        let shut_out = format!("not {write}");
        let fence = Txn {
            compare: self.is_last(base),
            success: vec![self.new_head(&shut_out)],
            failure: vec![Step::read(self.keys.of(Key::Head)), Step::read(self.keys.of(Key::Writer(&self.boot)))],
        };
        let end = Instant::now() + FIND_OUT_MAX;
        loop {
            match self.wait(self.etcd.transact(&fence)) {
                Ok(answer) if answer.succeeded => {
                    // The fence changed nothing but `head`: the model is of the new one too.
                    self.written(answer.revision(), &shut_out);
                    return Some(Err(StoreError::Outrun));
                }
                Ok(answer) => {
                    let done = answer.found(1).filter(|writer| writer.value.0 == write.as_bytes());
                    return Some(match done {
                        Some(writer) => {
                            self.written(writer.mod_revision(), write);
                            Ok(())
                        }
                        None => Err(self.outrun(answer.found(0).map_or(0, KeyValue::mod_revision))),
                    });
                }
                Err(_) if Instant::now() < end => std::thread::sleep(RETRY_MIN),
                Err(_) => return None,
            }
        }
    }

    fn outrun(&self, head: Revision) -> StoreError {
        let at = self.tenants.at();
        self.want(head);
        // One that is no newer than ours is another.
        if head <= at {
            tracing::error!(head, known = at, "etcd has gone back in time; taking it as it is now");
            self.forget_place();
            self.is_set_back.store(true, Ordering::Relaxed);
        }
        StoreError::Outrun
    }

    fn want(&self, head: Revision) {
        let mut revisions = lock(&self.tenants.revisions);
        revisions.wanted = revisions.wanted.max(head);
    }

    /// The `head` that the model is of. The caller has the writers' turn.
    pub(crate) fn place(&self) -> Revision {
        self.tenants.at()
    }

    /// The `head` that there is, which [`Cluster::catch_up`] waits for.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn present(&self) -> Result<Revision, StoreError> {
        if self.is_from_copy() {
            return Err(StoreError::Behind);
        }
        // etcd answers a read with all that was written before it (linearizable, its default).
        let (head, _) = self.wait(self.etcd.get(&self.keys.of(Key::Head)))?;
        let head = head.map_or(0, |head| head.mod_revision());
        self.want(head);
        Ok(head)
    }

    /// Waits until the model has all that a write of ours was outrun by. The caller has no turn.
    ///
    /// # Errors
    /// [`StoreError::Behind`] if that takes too long.
    pub(crate) fn catch_up(&self) -> Result<(), StoreError> {
        let Place { revisions, caught_up, .. } = &self.tenants;
        let is_behind = |revisions: &mut Revisions| revisions.at.revision < revisions.wanted;
        let waited = caught_up.wait_timeout_while(lock(revisions), CATCH_UP_MAX, is_behind);
        match waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            true => Err(StoreError::Behind),
            false => Ok(()),
        }
    }

    /// What these changes take of the room of a transaction, which is [`BYTES_MAX`].
    pub(crate) fn size_of(&self, changes: &[Change]) -> usize {
        room(&self.keys, changes)
    }

    /// A number that is another when something of this kind has changed.
    pub(crate) fn extras_changed(&self, kind: &str) -> u64 {
        let extras = self.extras.read().unwrap_or_else(PoisonError::into_inner);
        extras.changes.get(kind).copied().unwrap_or_default()
    }

    /// What is kept under a kind, by id.
    pub(crate) fn extras(&self, kind: &str) -> BTreeMap<String, Extra> {
        let extras = self.extras.read().unwrap_or_else(PoisonError::into_inner);
        let from = (kind.to_owned(), String::new());
        let all = extras.all.range(from..).take_while(|((of, _), _)| of == kind);
        all.map(|((_, id), extra)| (id.clone(), extra.clone())).collect()
    }

    /// Keeps `value`, or nothing, under (kind, id), if what is there is of `revision` (0: nothing).
    ///
    /// # Errors
    /// [`StoreError::Outrun`]: it is of another, and nothing was done.
    pub(crate) fn put_extra(
        &self,
        kind: &str,
        id: &str,
        value: Option<&[u8]>,
        revision: Revision,
    ) -> Result<(), StoreError> {
        if self.is_from_copy() {
            return Err(StoreError::Behind);
        }
        self.check_is_there()?;
        let key = self.keys.of(Key::Extra(kind, id));
        let step = match value {
            Some(value) => Step::put(key.clone(), value.to_vec(), None),
            None => Step::delete(key.clone()),
        };
        let compare = vec![Compare::At(key.clone(), revision)];
        let txn = Txn { compare, success: vec![step], failure: vec![Step::read(key)] };
        let end = Instant::now() + FIND_OUT_MAX;
        let mut is_repeated = false;
        let answer = loop {
            match self.wait(self.etcd.transact(&txn)) {
                Ok(answer) => break answer,
                // Asked once more it is done now, or tells that it was.
                Err(error) if (is_repeated || error.is_unknown()) && Instant::now() < end => {
                    is_repeated = true;
                    std::thread::sleep(RETRY_MIN);
                }
                Err(error) => return Err(error.into()),
            }
        };
        let found = answer.found(0);
        let is_done = is_repeated && found.map(|found| &*found.value.0) == value;
        let revision = match found {
            _ if answer.succeeded => answer.revision(),
            Some(found) if is_done => found.mod_revision(),
            None if is_done => answer.revision(),
            _ => return Err(StoreError::Outrun),
        };
        let mut extras = self.extras.write().unwrap_or_else(PoisonError::into_inner);
        extras.put_own(kind, id, value, revision);
        drop(extras);
        self.copying.note_change();
        Ok(())
    }
}

/// Steps that etcd takes beside two others.
fn in_parcels(mut steps: Vec<Step>) -> Vec<Step> {
    while steps.len() > PARCEL {
        let mut rest = steps.into_iter().peekable();
        let mut parcels = Vec::new();
        while rest.peek().is_some() {
            let success = rest.by_ref().take(PARCEL).collect();
            parcels.push(Step::Within(Txn { success, ..Txn::default() }));
        }
        steps = parcels;
    }
    steps
}

fn head_value(write: &str) -> Vec<u8> {
    let head = HeadRecord { schema: SCHEMA, write: write.to_owned() };
    serde_json::to_vec(&head).expect("a record has only text keys")
}

/// What these changes take of the room of a transaction.
fn room(keys: &Keys, changes: &[Change]) -> usize {
    let marks = changes.iter().filter(|change| matches!(change, Change::RemoveNetwork(_))).count();
    steps(keys, changes).iter().map(size).sum::<usize>() + marks * MARK_BYTES
}

fn size(step: &Step) -> usize {
    match step {
        Step::Put(put) => STEP_BYTES + put.key.0.len() + put.value.0.len(),
        Step::Delete(named) | Step::Read(named) => STEP_BYTES + named.key.0.len(),
        Step::Within(txn) => txn.success.iter().map(size).sum(),
    }
}

/// The steps that these changes come to: one a key, because etcd takes no two for the same.
fn steps(keys: &Keys, changes: &[Change]) -> Vec<Step> {
    let mut last: BTreeMap<Blob, Option<Vec<u8>>> = BTreeMap::new();
    for change in changes {
        let (key, value) = match change {
            Change::PutNetwork(network) => (Key::Network(&network.id), Some(records::of_network(network))),
            Change::RemoveNetwork(id) => (Key::Network(id), None),
            Change::PutPort(port) => (Key::Port(&port.id), Some(records::of_port(port))),
            Change::RemovePort(id) => (Key::Port(id), None),
        };
        last.insert(keys.of(key), value);
    }
    let step = |(key, value)| match value {
        Some(value) => Step::put(key, value, None),
        None => Step::delete(key),
    };
    last.into_iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ClusterConfig;
    use super::*;
    use crate::etcd::EtcdConfig;
    use crate::watched::Rights;
    use std::path::PathBuf;

    /// A part in a cloud whose etcd is never asked.
    fn cluster() -> Cluster {
        let endpoints = vec!["http://127.0.0.1:1".to_owned()];
        let rights = Rights::OwnerOnly;
        let etcd = EtcdConfig { endpoints, ca: PathBuf::new(), identity: None, user: None, rights };
        let (prefix, host) = ("/qvs".to_owned(), "a".to_owned());
        Cluster::new(ClusterConfig { etcd, prefix, host, lease_s: 6, copy: None, boots_before: Vec::new() }).unwrap()
    }

    fn head(revision: Revision) -> Head {
        Head { revision, value: format!("{revision}").into_bytes() }
    }

    #[test]
    fn an_answer_to_a_write_of_ours_does_not_bring_back_what_the_watch_told_as_gone() {
        let mut extras = Extras::new(BTreeMap::new(), 4);
        extras.put_own("qos", "a", Some(b"early"), 4);
        assert_eq!(extras.iter().count(), 0, "it was read later than that");
        extras.put_own("qos", "a", Some(b"ours"), 5);
        assert_eq!(extras.iter().count(), 1, "before the watch tells it");
        extras.put("qos", "a", None, 8);
        extras.put_own("qos", "a", Some(b"ours"), 7);
        assert_eq!(extras.iter().count(), 0, "what is gone came back");
        extras.put_own("qos", "a", Some(b"again"), 9);
        assert_eq!(extras.iter().count(), 1, "what came after that is news");
    }

    #[test]
    fn once_a_writer_has_found_etcd_set_back_nothing_is_news_but_all_there_is() {
        let (cluster, model) = (cluster(), Model::default());
        let changes = |revision| TenantsNews::Changes(Vec::new(), head(revision));
        assert!(cluster.absorb(&model, changes(3)).unwrap().is_some());
        cluster.outrun(4);
        assert_eq!(cluster.place(), 3, "another was faster");
        // One of this revision that is not the one we know.
        cluster.outrun(3);
        assert!(cluster.is_set_back.load(Ordering::Relaxed));
        assert!(cluster.absorb(&model, changes(5)).unwrap().is_none());
        assert_eq!(cluster.place(), -1);
        assert!(cluster.absorb(&model, TenantsNews::All(Arc::default(), head(2))).unwrap().is_some());
        assert_eq!(cluster.place(), 2);
    }

    #[test]
    fn a_write_asks_for_the_last_one_by_what_it_wrote_too() {
        let cluster = cluster();
        let key = cluster.keys.of(Key::Head);
        let value = Blob(b"7".to_vec());
        assert_eq!(cluster.is_last(&head(7)), [Compare::At(key.clone(), 7), Compare::Is(key.clone(), value)]);
        assert_eq!(cluster.is_last(&Head::default()), [Compare::At(key, 0)], "there is none");
    }

    /// How deep steps lie, how many are beside each other at most, and how many there are.
    fn shape(steps: &[Step]) -> (u32, usize, usize) {
        let mut shape = (1, steps.len(), 0);
        for step in steps {
            let Step::Within(txn) = step else {
                shape.2 += 1;
                continue;
            };
            let within = self::shape(&txn.success);
            shape = (shape.0.max(within.0 + 1), shape.1.max(within.1), shape.2 + within.2);
        }
        shape
    }

    #[test]
    fn any_number_of_steps_is_one_transaction_that_etcd_takes() {
        for count in [0, 1, PARCEL, PARCEL + 1, PARCEL * PARCEL, PARCEL * PARCEL + 1, 20_000, PARCEL.pow(LEVELS)] {
            let (levels, beside, all) = shape(&in_parcels(vec![Step::delete(Blob::default()); count]));
            assert!(levels <= LEVELS && beside <= PARCEL, "{count}: {levels} {beside}");
            assert_eq!(all, count);
        }
    }
}
