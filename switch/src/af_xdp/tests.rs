//! Rings by themselves, and AF_XDP ports on pairs of veth where the rules of all ports do not reach. They need root.

use super::*;

#[test]
fn entries_come_out_of_a_ring_as_they_went_in_also_when_the_counters_wrap() {
    let ring = Ring::<u64>::alone(8);
    for at in [ring.producer_at, ring.consumer_at] {
        ring.counter(at).store(u32::MAX - 5, Ordering::Relaxed);
    }
    let (mut producer, mut consumer) = (Producer::new(ring.clone()), Consumer::new(ring.clone()));
    let (mut put, mut got) = (0u64, 0u64);
    for count in (1..=8u32).cycle().take(100) {
        assert_eq!(producer.room(8), 8);
        for _ in 0..count {
            producer.push(put);
            put += 1;
        }
        assert_eq!(consumer.peek(0), None, "seen before it was published");
        producer.publish();
        assert_eq!(ring.waiting(), count);
        assert_eq!(consumer.peek(count - 1), Some(put - 1));
        for _ in 0..count {
            assert_eq!(consumer.peek(0), Some(got));
            consumer.advance(1);
            got += 1;
        }
        assert_eq!(consumer.peek(0), None);
        assert_eq!(producer.room(8), 8 - count, "a place that was not given back is not free");
        consumer.release();
    }
}

#[test]
fn a_counter_of_the_other_side_that_went_wild_gives_neither_room_nor_entries() {
    let ring = Ring::<u64>::alone(8);
    let (mut producer, mut consumer) = (Producer::new(ring.clone()), Consumer::new(ring.clone()));
    (0..3).for_each(|entry| producer.push(entry));
    producer.publish();
    assert_eq!(consumer.peek(0), Some(0));
    consumer.advance(3);
    consumer.release();
    for wild in [100, u32::MAX - 8, 1 << 31] {
        ring.counter(ring.consumer_at).store(wild, Ordering::Relaxed);
        producer.taken = ring.taken();
        assert_eq!(producer.room(8), 0, "{wild}");
        ring.counter(ring.producer_at).store(wild, Ordering::Relaxed);
        assert_eq!(consumer.peek(0), None, "{wild}");
    }
}

#[test]
#[should_panic(expected = "the ring is full")]
fn a_full_ring_takes_no_more() {
    let mut producer = Producer::new(Ring::<u64>::alone(4));
    (0..5).for_each(|entry| producer.push(entry));
}

#[test]
fn a_ring_that_does_not_lie_in_its_mapping_is_refused() {
    for (desc, producer) in [(200, 0), (192, 1000), (192, 2), (u64::MAX, 0)] {
        let offsets = libc::xdp_ring_offset { producer, consumer: 64, flags: 128, desc };
        assert!(Ring::<u64>::new(Mapping::anonymous(192 + 64), &offsets, 8).is_err(), "{desc} {producer}");
    }
}
