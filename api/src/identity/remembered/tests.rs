//! Verifications: what is remembered, and who waits for whom.

use super::*;
use std::cell::Cell;

const HOUR: Duration = Duration::from_secs(3600);
const WHY: Denied = Denied::Unavailable { why: "down", retry_after_s: 1 };
const DOWN: NotGood = NotGood::Away(WHY);

fn good(fresh: Duration, valid: Duration) -> Good {
    let now = Instant::now();
    let identity = Identity { user: "u".into(), project: None, roles: Vec::new(), is_confined: false };
    Good { identity: Arc::new(identity), fresh_until: now + fresh, expires: now + valid }
}

/// One of many.
fn peer(at: usize) -> Peer {
    Peer::of(std::net::Ipv4Addr::from_bits(0x0a00_0000 + at as u32).into())
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Verifies and tells whether anybody was asked.
fn ask(known: &Remembered, token: &str, answer: Result<Good, NotGood>) -> (bool, bool) {
    let asked = Cell::new(false);
    let outcome = run(known.verify((token, Peer::LOOPBACK), None, known.generation(), async |_turn| {
        asked.set(true);
        answer
    }));
    (outcome.is_ok(), asked.get())
}

#[test]
fn what_was_found_is_remembered_for_its_time() {
    let known = Remembered::new(2);
    assert_eq!(ask(&known, "a", Ok(good(HOUR, HOUR))), (true, true));
    assert_eq!(ask(&known, "a", Err(NotGood::Invalid)), (true, false));
    assert_eq!(ask(&known, "b", Err(NotGood::Invalid)), (false, true));
    assert_eq!(ask(&known, "b", Ok(good(HOUR, HOUR))), (false, false));
    known.forget(|_| true);
    assert_eq!(ask(&known, "a", Err(NotGood::Invalid)), (false, true));
    assert_eq!(ask(&known, "b", Ok(good(HOUR, HOUR))), (true, true));
}

#[test]
fn a_good_token_that_cannot_be_checked_again_stays_good_until_it_expires() {
    let known = Remembered::new(2);
    assert_eq!(ask(&known, "a", Ok(good(Duration::ZERO, HOUR))), (true, true));
    assert_eq!(ask(&known, "a", Err(DOWN)), (true, true));
    assert_eq!(ask(&known, "new", Err(DOWN)), (false, true));
    assert_eq!(ask(&known, "new", Ok(good(HOUR, HOUR))), (true, true), "a doubt is not remembered");
    assert_eq!(ask(&known, "a", Err(NotGood::Invalid)), (false, true), "revoked is revoked");
    assert_eq!(ask(&known, "a", Err(DOWN)), (false, false));
    assert_eq!(ask(&known, "short", Ok(good(Duration::ZERO, Duration::ZERO))), (true, true));
    let outcome = run(known.verify(("short", Peer::LOOPBACK), None, 0, async |_turn| Err(DOWN)));
    assert_eq!(outcome, Err(Denied::Invalid), "it is over, and that needs nobody to say so");
    assert_eq!(ask(&known, "short", Ok(good(HOUR, HOUR))), (true, true), "unless there is somebody who knows better");
}

#[test]
fn one_peer_leaves_places_in_the_queue_for_others() {
    let places = Places::default();
    let take =
        |at: usize, count: usize| -> Vec<_> { (0..count).map_while(|_| Place::take(&places, peer(at))).collect() };
    let (first, second, third) = (take(0, 100), take(1, 100), take(2, 100));
    assert_eq!([first.len(), second.len(), third.len()], [WAITING_MAX / 2, WAITING_MAX / 4, WAITING_MAX / 8]);
    let others: Vec<_> = (3..100).flat_map(|at| take(at, 1)).collect();
    assert_eq!(others.len(), WAITING_MAX / 8, "all places can be taken, by one each");
    drop((first, second, third, others));
    assert!(places.lock().unwrap().is_empty());
}

#[test]
fn strangers_wait_in_bounded_number_and_known_tokens_do_not_wait_for_them() {
    let known = Remembered::new(1);
    assert_eq!(ask(&known, "known", Ok(good(HOUR, HOUR))), (true, true));
    run(async {
        let tokens: Vec<String> = (0..WAITING_MAX + 20).map(|number| format!("stranger-{number}")).collect();
        let running = Cell::new(0);
        let mut strangers: Vec<_> = tokens
            .iter()
            .enumerate()
            .map(|(at, token)| {
                let running = &running;
                Box::pin(known.verify((token, peer(at)), None, 0, async move |_turn| {
                    running.set(running.get() + 1);
                    std::future::pending().await
                }))
            })
            .collect();
        let mut refused = 0;
        for stranger in &mut strangers {
            let polled = std::future::poll_fn(|context| std::task::Poll::Ready(stranger.as_mut().poll(context)));
            refused += usize::from(polled.await.is_ready());
        }
        assert_eq!((running.get(), refused), (1, 20));
        let answer = known.verify(("known", Peer::LOOPBACK), None, 0, async |_turn| panic!("it is known")).await;
        assert!(answer.is_ok());
        drop(strangers);
        assert!(
            known.verify(("new", Peer::LOOPBACK), None, 0, async |_turn| Ok(good(HOUR, HOUR))).await.is_ok(),
            "places are given back"
        );
    });
}

#[test]
fn memory_is_bounded_and_bad_tokens_drive_out_no_good_one() {
    let mut memory = Memory::default();
    let key = |number: usize| {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    };
    let now = Instant::now();
    let kept = |user: &str, valid| {
        let identity = Identity { user: user.into(), project: None, roles: Vec::new(), is_confined: false };
        let good = Good { identity: Arc::new(identity), ..good(HOUR, valid) };
        Kept { good, subject: None }
    };
    memory.remember_good(key(0), kept("a", HOUR));
    for number in 1..3 * BAD_MAX {
        memory.remember_bad(key(number), now);
    }
    assert_eq!((memory.good.len(), memory.bad.len()), (1, BAD_MAX));
    memory.remember_bad(key(9 * BAD_MAX), now + BAD_TIME);
    assert_eq!(memory.bad.len(), 1, "what is past is forgotten first");
    memory.remember_good(key(10 * GOOD_MAX), kept("a", Duration::ZERO));
    for number in 1..=GOOD_MAX {
        memory.remember_good(key(number), kept("many", if number == 7 { 2 * HOUR } else { 3 * HOUR }));
    }
    assert!(!memory.good.contains_key(&key(10 * GOOD_MAX)), "what is over goes first");
    assert_eq!(memory.good.len(), GOOD_MAX);
    assert!(memory.good.contains_key(&key(0)), "one with few tokens loses none");
    assert!(!memory.good.contains_key(&key(7)), "of the one with the most, the first to expire went");
}

#[test]
fn what_was_being_checked_when_all_was_forgotten_is_not_remembered() {
    let known = Remembered::new(2);
    let outcome = run(known.verify(("a", Peer::LOOPBACK), None, 0, async |_turn| {
        known.forget(|_| true);
        Ok(good(HOUR, HOUR))
    }));
    assert!(outcome.is_ok());
    assert_eq!(ask(&known, "a", Err(NotGood::Invalid)), (false, true));
}

/// Polls a future once and tells whether it is ready.
async fn is_ready(future: &mut std::pin::Pin<Box<impl Future<Output = Verified>>>) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

#[test]
fn a_known_token_is_checked_again_while_strangers_queue_and_never_held_good_for_want_of_a_turn() {
    let known = Remembered::new(1);
    for token in ["revoked", "other"] {
        assert_eq!(ask(&known, token, Ok(good(Duration::ZERO, HOUR))), (true, true));
    }
    run(async {
        let tokens: Vec<String> = (0..WAITING_MAX).map(|number| format!("stranger-{number}")).collect();
        let pending = async |_turn: Turn| std::future::pending().await;
        let mut strangers: Vec<_> =
            (0..).zip(&tokens).map(|(at, token)| Box::pin(known.verify((token, peer(at)), None, 0, pending))).collect();
        for stranger in &mut strangers {
            assert!(!is_ready(stranger).await);
        }
        let answer = known.verify(("revoked", Peer::LOOPBACK), None, 0, async |_turn| Err(NotGood::Invalid)).await;
        assert_eq!(answer, Err(Denied::Invalid));
        let places: Vec<_> = (0..WAITING_MAX).map(|at| Place::take(&known.known.places, peer(at)).unwrap()).collect();
        assert_eq!(known.verify(("other", Peer::LOOPBACK), None, 0, pending).await, Err(TOO_MANY));
        drop(places);
    });
}

#[test]
fn a_doubt_about_one_token_is_no_reason_to_hold_it_good() {
    let known = Remembered::new(1);
    assert_eq!(ask(&known, "a", Ok(good(Duration::ZERO, HOUR))), (true, true));
    assert_eq!(ask(&known, "a", Err(NotGood::Doubt(WHY))), (false, true));
    assert_eq!(ask(&known, "a", Err(DOWN)), (true, true));
}

#[test]
fn many_who_bring_the_same_token_have_it_verified_once() {
    let known = Remembered::new(1);
    run(async {
        let (open, opens) = tokio::sync::oneshot::channel::<()>();
        let mut first = Box::pin(known.verify(("a", Peer::LOOPBACK), None, 0, async |_turn| {
            let _ = opens.await;
            Ok(good(Duration::ZERO, HOUR))
        }));
        assert!(!is_ready(&mut first).await);
        let again = async |_turn: Turn| panic!("it is being verified");
        let mut same: Vec<_> =
            (0..2 * WAITING_MAX).map(|_| Box::pin(known.verify(("a", Peer::LOOPBACK), None, 0, again))).collect();
        for one in &mut same {
            assert!(!is_ready(one).await);
        }
        open.send(()).unwrap();
        assert!(first.await.is_ok());
        for one in same {
            assert!(one.await.is_ok());
        }
    });
}

#[test]
fn one_who_waited_for_another_that_gave_up_verifies_by_itself() {
    let known = Remembered::new(1);
    run(async {
        let mut first =
            Box::pin(known.verify(("a", Peer::LOOPBACK), None, 0, async |_turn| std::future::pending().await));
        assert!(!is_ready(&mut first).await);
        let mut second = Box::pin(known.verify(("a", Peer::LOOPBACK), None, 0, async |_turn| Ok(good(HOUR, HOUR))));
        assert!(!is_ready(&mut second).await);
        drop(first);
        assert!(second.await.is_ok());
    });
}

#[test]
fn a_subject_has_one_verification_at_a_time_and_holds_up_no_other() {
    let known = Remembered::new(2);
    let (red, blue) = (Text::from("red"), Text::from("blue"));
    run(async {
        let turn = Cell::new(None);
        let keep = async |taken: Turn| {
            turn.set(Some(taken));
            Err(NotGood::Invalid)
        };
        assert!(known.verify(("red-1", Peer::LOOPBACK), Some(&red), 0, keep).await.is_err());
        // Nobody waits for it any more, and its work goes on.
        assert_eq!(
            known.verify(("red-2", Peer::LOOPBACK), Some(&red), 0, async |_turn| panic!("two")).await,
            Err(TOO_MANY)
        );
        assert!(
            known.verify(("blue-1", Peer::LOOPBACK), Some(&blue), 0, async |_turn| Ok(good(HOUR, HOUR))).await.is_ok()
        );
        turn.set(None);
        assert!(
            known.verify(("red-2", Peer::LOOPBACK), Some(&red), 0, async |_turn| Ok(good(HOUR, HOUR))).await.is_ok()
        );
    });
}

#[test]
fn only_what_changed_is_forgotten() {
    let known = Remembered::new(2);
    let ask = |subject: &str, token: &str| {
        let asked = Cell::new(false);
        let check = async |_turn| {
            asked.set(true);
            Ok(good(HOUR, HOUR))
        };
        run(known.verify((token, Peer::LOOPBACK), Some(&subject.into()), known.generation(), check)).unwrap();
        asked.get()
    };
    assert!(ask("red", "r") && ask("blue", "b"));
    known.forget(|subject| subject == "red");
    assert!(ask("red", "r") && !ask("blue", "b"));
}
