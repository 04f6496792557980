//! Invariant 4: the packet path does not allocate.

use allocation_counter::measure;
use benches::{NOW, Rig};
use switch::batch::BURST;

#[test]
fn a_round_allocates_and_frees_nothing() {
    for size in [60, 1514] {
        let mut rig = Rig::new(size);
        let mut moved = 0;
        for _ in 0..200 {
            rig.offer();
            let counted = measure(|| moved += rig.worker().step(NOW));
            assert_eq!((counted.count_total, counted.bytes_total), (0, 0), "frames of {size} bytes");
            rig.take();
        }
        assert_eq!(moved, 200 * 2 * BURST);
    }
    // The counter counts: else the test above would pass whatever happens.
    assert_eq!(measure(|| drop(Box::new(7u64))).count_total, 1);
}
