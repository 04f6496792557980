//! What the stages have in common: what they may look at, which packets are still on their way, what a stage is.
//!
//! All packets of a batch came in by one port (the engine polls one queue at a time), so what is known of that port is
//! looked up once a batch and kept in the [`Scope`].

use crate::tables::{PortEntry, Tables};
use switch::batch::{BURST, Batch};
use switch::ids::PortIndex;
use switch::ledger::DropReason;
use switch::worker::{Context, Egress};

/// One stage, as the list in `lib.rs` names it.
#[derive(Clone, Copy)]
pub struct Stage {
    /// Its name in traces.
    pub name: &'static str,
    /// Decides about every live packet of the batch. What it drops or sends is no longer live afterwards.
    pub run: for<'s, 'r, 'e> fn(&Scope<'s>, &mut Batch<'r>, &mut Live, &mut Egress<'e>),
    /// Decides about the one packet of the batch and tells it in words. Changes nothing but that packet.
    pub trace: for<'s, 'r> fn(&Scope<'s>, &mut Batch<'r>) -> Step,
}

/// What a stage did with a traced packet.
#[derive(Debug)]
pub struct Step {
    /// In words.
    pub text: String,
    /// Whether the next stage sees it.
    pub goes_on: bool,
}

impl Step {
    /// The packet goes on to the next stage.
    pub fn on(text: String) -> Step {
        Step { text, goes_on: true }
    }

    /// The packet's way ends here.
    pub fn end(text: String) -> Step {
        Step { text, goes_on: false }
    }

    /// The packet is dropped and counted at the port it came from.
    pub fn drop(scope: &Scope<'_>, reason: DropReason) -> Step {
        Step::end(format!("drop {}, counted at {}", reason.name(), scope.tables.label(scope.ingress)))
    }
}

/// What holds for all packets of one batch.
pub struct Scope<'a> {
    /// The compiled config.
    pub tables: &'a Tables,
    /// Time, MAC table and worker.
    pub context: &'a Context<'a>,
    /// The port the packets came in by.
    pub ingress: PortIndex,
    /// What the tables say of it.
    pub port: PortEntry,
}

impl<'a> Scope<'a> {
    /// Looks the ingress port up.
    #[inline]
    pub fn new(tables: &'a Tables, context: &'a Context<'a>, ingress: PortIndex) -> Scope<'a> {
        Scope { tables, context, ingress, port: tables.port(ingress) }
    }
}

/// Which packets of a batch are still on their way: one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Live(u32);

const _: () = assert!(BURST <= u32::BITS as usize, "one bit a packet");

impl Live {
    /// The first `count` packets, at most [`BURST`].
    #[inline]
    pub fn first(count: usize) -> Live {
        assert!(count <= BURST, "a batch holds at most BURST packets");
        Live(((1u64 << count) - 1) as u32)
    }

    /// Whether none is left.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Takes a packet out.
    #[inline]
    pub fn remove(&mut self, index: usize) {
        self.0 &= !(1 << index);
    }

    /// Takes all packets out.
    #[inline]
    pub fn clear(&mut self) {
        self.0 = 0;
    }

    /// The packets left now, lowest index first; later changes do not show.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut bits = self.0;
        std::iter::from_fn(move || {
            if bits == 0 {
                return None;
            }
            let index = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            Some(index)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_packets_are_visited_in_order_and_removed_ones_are_not() {
        for count in [0, 1, 7, BURST] {
            assert_eq!(Live::first(count).iter().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
        }
        let mut live = Live::first(5);
        live.remove(0);
        live.remove(3);
        assert_eq!(live.iter().collect::<Vec<_>>(), [1, 2, 4]);
        live.clear();
        assert!(live.is_empty());
    }
}
