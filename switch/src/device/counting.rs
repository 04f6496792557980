//! What the kernel and the driver count at an interface: frames that never came to us, because a ring was full or they were broken,
//! show nowhere else; nor do those of queues that our port has no socket on.
//!
//! Asked for by rtnetlink (rtnetlink(7), `RTM_GETSTATS`), which may wait for whoever changes an interface; so one thread looks
//! once in a while ([`Counting::look`]), and who wants to know reads what it found. Control side only.

use crate::af_xdp::queue_watch::QueueWatch;
use crate::link::{attributes, u64_at};
use crate::route::{HEADER_SIZE, INFO_SIZE, Resolver};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

// linux/rtnetlink.h and linux/if_link.h
const RTM_NEWSTATS: u16 = 92;
const RTM_GETSTATS: u16 = 94;
const IFLA_STATS_LINK_64: u16 = 1;
/// Bit of the attribute in the filter of `struct if_stats_msg`.
const FILTER_LINK_64: u32 = 1 << (IFLA_STATS_LINK_64 - 1);

/// Counters of an interface since it was made, as ip(8) tells them: each with its place in `struct rtnl_link_stats64`.
const COUNTERS: [(&str, usize); 9] = [
    ("rx_packets", 0),
    ("rx_bytes", 2),
    ("rx_errors", 4),
    ("rx_dropped", 6),
    ("rx_missed", 15),
    ("tx_packets", 1),
    ("tx_bytes", 3),
    ("tx_errors", 5),
    ("tx_dropped", 7),
];

/// What the XDP program counts: frames of ours that came by a queue without a socket, which it dropped.
const UNCLAIMED: &str = "rx_unclaimed";

/// What was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkCounters {
    kernel: [u64; COUNTERS.len()],
    /// Since the port was opened; `None`: no program sorts the frames of the interface.
    unclaimed: Option<u64>,
}

impl LinkCounters {
    /// Each counter by its name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let kernel = std::iter::zip(COUNTERS, self.kernel).map(|((name, _), count)| (name, count));
        kernel.chain(self.unclaimed.map(|count| (UNCLAIMED, count)))
    }

    /// Reads an answer; `None` if it is cut short or another's.
    fn read(message: &[u8]) -> Option<LinkCounters> {
        let mut told = attributes(message.get(HEADER_SIZE + INFO_SIZE..)?);
        let (_, stats) = told.find(|(kind, _)| *kind == IFLA_STATS_LINK_64)?;
        let mut counts = [0; COUNTERS.len()];
        for (count, (_, place)) in std::iter::zip(&mut counts, COUNTERS) {
            *count = u64_at(stats, place * 8)?;
        }
        Some(LinkCounters { kernel: counts, unclaimed: None })
    }
}

/// Follows the counters of one interface.
pub struct Counting {
    kernel: Mutex<Resolver>,
    index: u32,
    queues: Option<Arc<QueueWatch>>,
    last: Mutex<Option<LinkCounters>>,
}

impl Counting {
    /// Of the interface with this index in the calling thread's namespace, and of its queues; looks once.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open(index: u32, queues: Option<Arc<QueueWatch>>) -> io::Result<Counting> {
        let counting = Counting { kernel: Mutex::new(Resolver::open()?), index, queues, last: Mutex::default() };
        counting.look();
        Ok(counting)
    }

    /// Asks the kernel.
    pub fn look(&self) {
        let mut info = [0; INFO_SIZE];
        info[4..8].copy_from_slice(&self.index.to_ne_bytes());
        info[8..].copy_from_slice(&FILTER_LINK_64.to_ne_bytes());
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kernel.answer((RTM_GETSTATS, RTM_NEWSTATS), &info, &[]).ok().flatten().and_then(LinkCounters::read);
        if let Some(queues) = &self.queues {
            queues.look();
        }
        let unclaimed = self.queues.as_ref().map(|queues| queues.unclaimed());
        let found = found.map(|found| LinkCounters { unclaimed, ..found });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// As of the last look; `None`: the interface was gone.
    pub fn last(&self) -> Option<LinkCounters> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used, reason = "test code")]
mod tests {
    use super::*;
    use crate::link::LinkWatch;
    use crate::tests::{ip, quiet_netns, within};

    #[test]
    fn what_the_kernel_counts_at_an_interface_is_told_as_long_as_it_is_there() {
        let netns = quiet_netns();
        ip(&netns, "link add near type veth peer name far");
        ip(&netns, "link set near up");
        ip(&netns, "link set far up");
        let index = within(&netns, || LinkWatch::open("near")).unwrap().unwrap().status().unwrap().index;
        let counting = within(&netns, || Counting::open(index, None)).unwrap();
        let count = |wanted: &str| counting.last().unwrap().iter().find(|(name, _)| *name == wanted).unwrap().1;
        assert_eq!((count("rx_packets"), count("tx_packets"), count("rx_missed")), (0, 0, 0));
        let far = within(&netns, || crate::af_packet::RawSocket::open("far").unwrap());
        far.send(&[2; 100]).unwrap();
        counting.look();
        assert_eq!((count("rx_packets"), count("rx_bytes"), count("tx_packets")), (1, 100, 0));
        ip(&netns, "link del near");
        counting.look();
        assert_eq!(counting.last(), None);
    }

    #[test]
    fn every_truncation_of_an_answer_is_taken_without_a_panic() {
        let mut message = vec![0; HEADER_SIZE + INFO_SIZE];
        message.extend([4, 0, 0, 0]);
        message.extend(196u16.to_ne_bytes());
        message.extend(IFLA_STATS_LINK_64.to_ne_bytes());
        message.extend((0..24u64).flat_map(u64::to_ne_bytes));
        let whole = LinkCounters::read(&message).unwrap();
        assert!(whole.iter().eq(COUNTERS.map(|(name, place)| (name, place as u64))), "{whole:?}");
        assert!((0..message.len()).all(|len| LinkCounters::read(&message[..len]).is_none()));
    }
}
