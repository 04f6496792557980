//! How many lines of the audit log strangers get: a few, and then their number.
//!
//! Whoever reaches the listener can ask for writes without a token, and each is refused and told. So a peer gets some lines
//! in a time, and what is more is summed up in one line at the end of it. While tokens cannot be checked nobody knows who
//! is a stranger; writes that fail for that are told and summed up apart. Peers are remembered within a bound; those beyond
//! it share one account of each kind.

use crate::audit::{self, Who};
use crate::peer::Peer;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Peers with accounts of their own.
const PEERS_MAX: usize = 256;

/// Whose write came to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Stranger {
    /// Without a valid token.
    Refused,
    /// With a token that could not be checked.
    Unverified,
}

/// The accounts of a peer, or of all that are not remembered.
type Key = (Option<Peer>, Stranger);

/// The accounts of strangers.
pub(super) struct Strangers {
    lines_max: u32,
    time: Duration,
    accounts: Mutex<HashMap<Key, Account>>,
}

struct Account {
    begin: Instant,
    told: u32,
    /// Not told; not 0: a task will sum up at the end of the time.
    more: u64,
}

impl Strangers {
    /// Each peer gets `lines_max` lines in `time`.
    pub(super) fn new(lines_max: u32, time: Duration) -> Arc<Strangers> {
        Arc::new(Strangers { lines_max, time, accounts: Mutex::default() })
    }

    /// Whether a line about a stranger from this address is told. Call it on a tokio runtime with time.
    pub(super) fn may_be_told(self: &Arc<Strangers>, address: IpAddr, stranger: Stranger) -> bool {
        let mut accounts = self.accounts();
        let is_over = |account: &Account| account.more == 0 && account.begin.elapsed() >= self.time;
        let mut key = (Some(Peer::of(address)), stranger);
        if accounts.len() >= PEERS_MAX && !accounts.contains_key(&key) {
            accounts.retain(|_, account| !is_over(account));
            key.0 = key.0.filter(|_| accounts.len() < PEERS_MAX);
        }
        let fresh = || Account { begin: Instant::now(), told: 0, more: 0 };
        let account = accounts.entry(key).or_insert_with(fresh);
        if is_over(account) {
            *account = fresh();
        }
        if account.told < self.lines_max {
            account.told += 1;
            return true;
        }
        account.more += 1;
        if account.more == 1 {
            let (strangers, end) = (self.clone(), account.begin + self.time);
            tokio::spawn(async move {
                tokio::time::sleep_until(end.into()).await;
                let account = strangers.accounts().remove(&key);
                account.iter().for_each(|account| strangers.sum_up(key, account));
            });
        }
        false
    }

    /// Sums up what was not told so far, at the end.
    pub(super) fn finish(&self) {
        self.accounts().drain().for_each(|(key, account)| self.sum_up(key, &account));
    }

    fn sum_up(&self, (peer, stranger): Key, account: &Account) {
        if account.more > 0 {
            let peer = peer.map_or_else(|| "others".to_owned(), |peer| peer.to_string());
            let who = match stranger {
                Stranger::Refused => Who::Unknown,
                Stranger::Unverified => Who::Unverified,
            };
            audit::tell_of_more(who, account.more, &peer, self.time);
        }
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<Key, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_peer_gets_its_lines_and_new_ones_when_its_time_is_over() {
        run(async {
            let strangers = Strangers::new(3, Duration::from_secs(1));
            let told = |address| (0..10).filter(|_| strangers.may_be_told(ip(address), Stranger::Refused)).count();
            assert_eq!([told("10.0.0.1"), told("10.0.0.1"), told("2001:db8::1"), told("2001:db8::2")], [3, 0, 3, 0]);
            assert_eq!(strangers.accounts()[&(Some(Peer::of(ip("10.0.0.1"))), Stranger::Refused)].more, 17);
            let begin = Instant::now();
            while !strangers.accounts().is_empty() {
                assert!(begin.elapsed() < Duration::from_secs(20), "they are not summed up");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(told("10.0.0.1"), 3);
            assert!(strangers.may_be_told(ip("10.0.0.1"), Stranger::Unverified), "who may be somebody is told apart");
        });
    }

    #[test]
    fn more_peers_than_are_remembered_share_one_account() {
        run(async {
            let told = |strangers: &Arc<Strangers>, peers: std::ops::Range<u32>| {
                peers.filter(|at| strangers.may_be_told(IpAddr::from(at.to_be_bytes()), Stranger::Refused)).count()
            };
            let strangers = Strangers::new(3, Duration::from_secs(600));
            assert_eq!(told(&strangers, 0..2000), PEERS_MAX + 3);
            assert_eq!(strangers.accounts().len(), PEERS_MAX + 1);
            let strangers = Strangers::new(3, Duration::from_millis(100));
            assert_eq!(told(&strangers, 0..PEERS_MAX as u32), PEERS_MAX);
            tokio::time::sleep(Duration::from_millis(150)).await;
            assert_eq!(told(&strangers, 1000..1010), 10, "old accounts make room");
        });
    }
}
