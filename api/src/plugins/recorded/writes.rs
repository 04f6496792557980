//! The state of a plugin with records, and how writes get into it: several in one commit, each answered when it is
//! durable and in force.
//!
//! A disk takes about as long for one change as for fifty. So writers plan one after another against the *planned* state
//! and gather in a group; one of them leads it: commits, makes its end the state readers see, puts it in force, and wakes
//! the others. Meanwhile the next group gathers. What makes it hard is that a plan may rest on a change that then fails:
//!
//! * A group that fails takes those that gathered behind it along, and the state is read back before anyone plans again.
//! * A refusal, too, may rest on what is not durable yet ("in use" by a plug that fails). So it waits for the group it
//!   rests on, and is planned anew if that failed.
//! * Where others write to the same store, a group may be outrun by one of theirs. Then nothing of it is done, and its writers
//!   plan anew once theirs is part of the state ([`Writes::absorb`]); nobody hears of it but by the time it takes.
//! * There a refusal may rest on what is no longer so. So before it is told the store is asked how far it has come, and who
//!   planned with less plans once more when that is part of the state. The same of a write that finds nothing to change.
//!
//! Whoever commits or reads back has the *turn*, one thread at a time, with no lock held. Readers take a
//! snapshot and never wait for a disk. Nor does who puts the state in force because something changed on the host: that has a lock
//! of its own ([`Writes::enforce`]), for a commit to a store elsewhere may take long. A group has no bound but the number of callers, who each wait for theirs, and where the store
//! sets one ([`Backing::BYTES_MAX`]): who finds it full waits for the next.

use super::Backing;
use crate::cluster::Absorbed;
use crate::host::Scope;
use crate::model::{Change, Inconsistent, Model, Touched};
use crate::plugin::StoreFailed;
use crate::store::StoreError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How long a write that is outrun again and again is planned anew.
const OUTRUN_MAX: Duration = Duration::from_secs(10);

/// The state and its writers.
pub(super) struct Writes<B> {
    pub(super) backing: B,
    /// What is durable; readers' copy.
    model: RwLock<Arc<Model>>,
    queue: Mutex<Queue>,
    /// Held while something is put in force. Taken with the turn or without, never the other way round.
    in_force: Mutex<()>,
    /// Told when the turn is free, for those who want it and are in no group.
    is_free: Condvar,
}

/// What waits to be written.
struct Queue {
    /// The state once all that waits is durable.
    planned: Arc<Model>,
    /// How far what others write is part of it ([`Backing::place`]).
    place: i64,
    /// The group that takes new writes, and what it has so far.
    gathering: Arc<Group>,
    changes: Vec<Change>,
    touched: Touched,
    /// Bytes of it in the store.
    bytes: usize,
    /// The group being committed.
    committing: Option<Arc<Group>>,
    /// Somebody has the turn.
    is_taken: bool,
    /// A commit failed and the durable state was not read back since: the model may differ from it.
    is_stale: bool,
    /// What is in force may differ from the model: putting it in force broke off.
    is_behind: bool,
}

/// Writes that are committed together.
#[derive(Default)]
struct Group {
    /// How it ended.
    outcome: OnceLock<Result<(), Failed>>,
    /// Tells its writers that it ended, or one of them that the turn is free.
    told: Condvar,
}

/// How a group ends that is not done.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Failed {
    /// The store failed.
    Store(StoreFailed),
    /// Others were faster: it may be planned anew.
    Outrun,
}

/// Something is put in force, until dropped.
struct Enforcing<'a, B> {
    writes: &'a Writes<B>,
    _alone: MutexGuard<'a, ()>,
}

impl<B> Drop for Enforcing<'_, B> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody knows how far it came: before the next write all is put in force once more.
            let mut queue = self.writes.queue();
            queue.is_stale = true;
            queue.is_behind = true;
        }
    }
}

/// The turn, until dropped.
struct Turn<'a, B> {
    writes: &'a Writes<B>,
}

impl<B> Drop for Turn<'_, B> {
    fn drop(&mut self) {
        let mut queue = self.writes.queue();
        queue.is_taken = false;
        if std::thread::panicking() {
            // Nobody knows how far it came. Before the next write the state is read back and put in force as a whole.
            queue.is_stale = true;
            queue.is_behind = true;
        }
        if let Some(group) = queue.committing.take() {
            if group.outcome.get().is_none() {
                // The leader panicked; its writers must not wait for ever, and nobody knows what is durable.
                let failed = Failed::Store(StoreFailed { why: "the write broke off".into() });
                let _ = group.outcome.set(Err(failed.clone()));
                queue.fail(&failed);
            }
            group.told.notify_all();
        }
        queue.gathering.told.notify_one();
        self.writes.is_free.notify_one();
    }
}

impl<B> Writes<B> {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state as it is now; it does not change under the caller.
    pub(super) fn snapshot(&self) -> Arc<Model> {
        self.model.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the turn.
    fn turn(&self) -> Turn<'_, B> {
        let queue = self.is_free.wait_while(self.queue(), |queue| queue.is_taken);
        self.take(&mut queue.unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self, queue: &mut Queue) -> Turn<'_, B> {
        assert!(!queue.is_taken, "one has the turn at a time");
        queue.is_taken = true;
        Turn { writes: self }
    }
}

impl<B: Backing> Writes<B> {
    pub(super) fn new(backing: B, model: Arc<Model>) -> Writes<B> {
        let queue = Queue {
            planned: model.clone(),
            place: backing.place(),
            gathering: Arc::default(),
            changes: Vec::new(),
            touched: Touched::default(),
            bytes: 0,
            committing: None,
            is_taken: false,
            is_stale: false,
            is_behind: false,
        };
        Writes {
            backing,
            model: RwLock::new(model),
            queue: Mutex::new(queue),
            in_force: Mutex::default(),
            is_free: Condvar::new(),
        }
    }

    /// Puts the whole state in force once more.
    pub(super) fn put_in_force(&self) {
        self.enforce(Scope::All);
    }

    /// Puts the state that readers see in force. One at a time, and each the newest there is: so what was in force once is
    /// never overtaken by what was before it.
    fn enforce(&self, scope: Scope<'_>) {
        let _alone = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        let _enforcing = Enforcing { writes: self, _alone };
        self.backing.put_in_force(&self.snapshot(), scope);
    }

    /// Calls `look` with the state, in turn with the writers: nobody writes meanwhile.
    pub(super) fn while_settled(&self, look: &mut dyn FnMut(&Arc<Model>)) {
        let _turn = self.turn();
        look(&self.snapshot());
    }

    /// One write: `plan` looks at a state and says what is to change. It may be asked more than once, if what it rested
    /// on failed.
    pub(super) fn write<T, E: From<StoreFailed>>(
        &self,
        plan: impl Fn(&Model) -> Result<(Vec<Change>, T), E>,
    ) -> Result<T, E> {
        let begin = Instant::now();
        let mut present = None;
        loop {
            let mut queue = self.queue();
            while queue.is_stale {
                drop(queue);
                self.mend()?;
                queue = self.queue();
            }
            match plan(&queue.planned) {
                Ok((changes, value)) if !changes.is_empty() => {
                    let bytes = self.backing.size_of(&changes);
                    if !queue.changes.is_empty() && queue.bytes + bytes > B::BYTES_MAX {
                        // The group is full. How it ends is its own writers' matter; behind it there is room.
                        let group = queue.gathering.clone();
                        let _ = self.settle(queue, &group);
                        continue;
                    }
                    let group = queue.enter(changes, bytes);
                    match self.settle(queue, &group) {
                        Ok(()) => return Ok(value),
                        Err(Failed::Store(failed)) => return Err(failed.into()),
                        Err(Failed::Outrun) => self.catch_up(begin)?,
                    }
                }
                nothing_to_write => {
                    let place = queue.place;
                    let settled = match queue.newest() {
                        Some(group) => self.settle(queue, &group),
                        None => {
                            drop(queue);
                            Ok(())
                        }
                    };
                    match settled {
                        Ok(()) if self.has_seen_all(place, &mut present, begin)? => {
                            return nothing_to_write.map(|(_, value)| value);
                        }
                        Ok(()) | Err(Failed::Store(_)) => {}
                        Err(Failed::Outrun) => self.catch_up(begin)?,
                    }
                }
            }
        }
    }

    /// Whether a plan over the state of `place` saw all that was written by the time `present` was asked for, which is done once. If
    /// not, that is part of the state now.
    fn has_seen_all(&self, place: i64, present: &mut Option<i64>, begin: Instant) -> Result<bool, StoreFailed> {
        let present = match *present {
            Some(present) => present,
            None => *present.insert(self.backing.present().map_err(|error| store_failed(&error))?),
        };
        if place >= present {
            return Ok(true);
        }
        self.catch_up(begin)?;
        // Who makes it part of the state may still be at it.
        drop(self.turn());
        Ok(false)
    }

    /// Waits until what we were outrun by is part of the state.
    fn catch_up(&self, begin: Instant) -> Result<(), StoreFailed> {
        if begin.elapsed() > OUTRUN_MAX {
            return Err(store_failed(&StoreError::Outrun));
        }
        self.backing.catch_up().map_err(|error| store_failed(&error))
    }

    /// Makes what others did part of the state and puts it in force, in turn with the writers. `take` looks at the state and
    /// says what becomes of it; `None`: nothing. What `also` names is put in force besides.
    ///
    /// # Errors
    /// What `take` said.
    pub(super) fn absorb(
        &self,
        take: impl FnOnce(&Model) -> Result<Option<Absorbed>, Inconsistent>,
        also: Touched,
    ) -> Result<(), Inconsistent> {
        let _turn = self.turn();
        let taken = take(&self.snapshot())?;
        let mut touched = Some(also);
        if let Some(Absorbed { model, touched: by_it }) = taken {
            *self.model.write().unwrap_or_else(PoisonError::into_inner) = model.clone();
            let mut queue = self.queue();
            if !queue.changes.is_empty() {
                // What has gathered was planned without it.
                let was_stale = queue.is_stale;
                queue.fail(&Failed::Outrun);
                queue.is_stale = was_stale;
            }
            queue.planned = model;
            queue.place = self.backing.place();
            drop(queue);
            touched = touched.zip(by_it).map(|(mut touched, by_it)| {
                touched.interfaces.extend(by_it.interfaces);
                touched.networks.extend(by_it.networks);
                touched
            });
        }
        match touched {
            None => self.enforce(Scope::All),
            Some(touched) if touched.is_empty() => {}
            Some(touched) => self.enforce(Scope::Parts(&touched)),
        }
        Ok(())
    }

    /// Waits until the group has ended; leads it if nobody else does.
    fn settle<'a>(&'a self, mut queue: MutexGuard<'a, Queue>, group: &Group) -> Result<(), Failed> {
        loop {
            if let Some(outcome) = group.outcome.get() {
                return outcome.clone();
            }
            if queue.is_taken {
                queue = group.told.wait(queue).unwrap_or_else(PoisonError::into_inner);
            } else {
                // Nobody commits and this one has not ended: it is the one that gathers.
                self.lead(queue);
                queue = self.queue();
            }
        }
    }

    /// Commits what has gathered and puts it in force.
    fn lead(&self, mut queue: MutexGuard<'_, Queue>) {
        let turn = self.take(&mut queue);
        let group = std::mem::take(&mut queue.gathering);
        let changes = std::mem::take(&mut queue.changes);
        let touched = std::mem::take(&mut queue.touched);
        queue.bytes = 0;
        let target = queue.planned.clone();
        queue.committing = Some(group.clone());
        drop(queue);
        let outcome = match self.backing.commit(&self.snapshot(), &changes) {
            Ok(()) => {
                *self.model.write().unwrap_or_else(PoisonError::into_inner) = target;
                self.queue().place = self.backing.place();
                self.enforce(Scope::Parts(&touched));
                Ok(())
            }
            Err(error) => {
                let failed = match &error {
                    StoreError::Outrun => Failed::Outrun,
                    error => Failed::Store(store_failed(error)),
                };
                self.queue().fail(&failed);
                if let Err(error) = self.reload() {
                    tracing::error!(%error, "the state cannot be read back; writes fail until it can");
                }
                Err(failed)
            }
        };
        assert!(group.outcome.set(outcome).is_ok(), "a group ends once");
        drop(turn);
    }

    /// Reads the state back after a failure, unless somebody else did.
    fn mend(&self) -> Result<(), StoreFailed> {
        let _turn = self.turn();
        if self.queue().is_stale { self.reload().map_err(|error| store_failed(&error)) } else { Ok(()) }
    }

    /// Makes the state what the store says, and puts it in force if that is something else or may not be. The caller has
    /// the turn, and no write waits.
    fn reload(&self) -> Result<(), StoreError> {
        if let Some(durable) = self.backing.reload()? {
            let before = self.snapshot();
            if durable.networks != before.networks || durable.ports != before.ports {
                *self.model.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(durable);
                self.queue().is_behind = true;
            }
        }
        if self.queue().is_behind {
            self.enforce(Scope::All);
            self.queue().is_behind = false;
        }
        let mut queue = self.queue();
        queue.planned = self.snapshot();
        queue.place = self.backing.place();
        queue.is_stale = false;
        Ok(())
    }
}

impl Queue {
    /// Adds a write to the group that gathers.
    fn enter(&mut self, changes: Vec<Change>, bytes: usize) -> Arc<Group> {
        let planned = Arc::make_mut(&mut self.planned);
        for change in &changes {
            planned.touch(change, &mut self.touched);
            planned.apply(change);
        }
        self.changes.extend(changes);
        self.bytes += bytes;
        self.gathering.clone()
    }

    /// The newest group that the planned state rests on, if it has not ended.
    fn newest(&self) -> Option<Arc<Group>> {
        if self.changes.is_empty() { self.committing.clone() } else { Some(self.gathering.clone()) }
    }

    /// A group failed: so has what gathered behind it, and nobody plans before the state was read back.
    fn fail(&mut self, failed: &Failed) {
        self.is_stale = true;
        self.changes.clear();
        self.touched = Touched::default();
        self.bytes = 0;
        let behind = std::mem::take(&mut self.gathering);
        let _ = behind.outcome.set(Err(failed.clone()));
        behind.told.notify_all();
    }
}

fn store_failed(error: &StoreError) -> StoreFailed {
    tracing::warn!(%error, "a write was not confirmed");
    StoreFailed { why: error.in_public().into() }
}

#[cfg(test)]
mod tests;
