//! How a queue dozes: it answers without a look at the device while it is empty and its worker watches its descriptor.
//!
//! To ask the kernel for frames costs a system call even when there are none. So a queue that stays empty says so without
//! asking, until the worker's watch ([`crate::port::Port::watched`]) shows something and rouses it. Under load a queue is
//! never empty for long, so that frames which follow each other closely wait for nobody. One worker polls a queue; the
//! atomics are for the moment in which it changes hands.

use crate::sync::{AtomicBool, AtomicU32, Ordering};

/// Looks in a row that find a queue empty before it dozes.
pub(crate) const DOZE_AFTER: u32 = 64;

/// Whether one queue dozes.
#[derive(Default)]
pub(crate) struct Doze {
    is_dozing: AtomicBool,
    /// Whether the worker watches the descriptor and would rouse us.
    is_watched: AtomicBool,
    /// Looks in a row that found nothing; kept at 0 while nobody watches the descriptor.
    empty: AtomicU32,
}

impl Doze {
    /// Whether rx answers without a look.
    #[inline]
    pub(crate) fn is_dozing(&self) -> bool {
        self.is_dozing.load(Ordering::Relaxed)
    }

    /// A look found nothing.
    pub(crate) fn found_nothing(&self) {
        let is_watched = self.is_watched.load(Ordering::Relaxed);
        let empty = if is_watched { self.empty.load(Ordering::Relaxed) + 1 } else { 0 };
        self.empty.store(empty, Ordering::Relaxed);
        self.is_dozing.store(empty >= DOZE_AFTER, Ordering::Relaxed);
    }

    /// A look found something.
    pub(crate) fn found_something(&self) {
        self.empty.store(0, Ordering::Relaxed);
    }

    /// The worker begins or ends to watch the descriptor.
    pub(crate) fn watched(&self, is_watched: bool) {
        self.is_watched.store(is_watched, Ordering::Relaxed);
        self.rouse();
    }

    /// The descriptor showed something.
    pub(crate) fn rouse(&self) {
        self.empty.store(0, Ordering::Relaxed);
        self.is_dozing.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_queue_dozes_after_many_looks_in_vain_and_only_while_it_is_watched() {
        let doze = Doze::default();
        (0..2 * DOZE_AFTER).for_each(|_| doze.found_nothing());
        assert!(!doze.is_dozing(), "nobody would rouse it");
        doze.watched(true);
        (1..DOZE_AFTER).for_each(|_| doze.found_nothing());
        assert!(!doze.is_dozing());
        doze.found_something();
        (1..DOZE_AFTER).for_each(|_| doze.found_nothing());
        assert!(!doze.is_dozing(), "looks in a row are counted");
        doze.found_nothing();
        assert!(doze.is_dozing());
        doze.rouse();
        assert!(!doze.is_dozing());
        (0..DOZE_AFTER).for_each(|_| doze.found_nothing());
        doze.watched(false);
        assert!(!doze.is_dozing());
    }
}
