//! What a packed ring shows to who looks at it, in a guest's memory that ends with it.

use super::*;
use crate::memory::DriverMemory;
use crate::message::RegionInfo;
use std::sync::atomic::AtomicBool;

/// A ring of so many entries at the very end of a guest's memory, and that memory as the guest sees it.
fn ring(size: u16) -> (PackedRing, DriverMemory, usize) {
    const LEN: usize = 4096;
    let memory = DriverMemory::new(LEN, false).unwrap();
    let region = RegionInfo { guest_address: 0, size: LEN as u64, user_address: 0x1000, file_offset: 0 };
    let file = memory.file().try_clone_to_owned().unwrap();
    let guest = Arc::new(GuestMemory::map(&[region], &[file]).unwrap());
    let at = LEN - 16 * usize::from(size);
    let user = 0x1000;
    let addresses =
        RingAddresses { index: 0, flags: 0, descriptors: user + at as u64, used: user, available: user + 4, log: 0 };
    (PackedRing::find(guest, &addresses, size.into(), Terms::default()).unwrap(), memory, at)
}

#[test]
fn a_look_goes_once_round_however_the_driver_flips_its_flags() {
    for size in [1, 3, 16] {
        let (ring, memory, at) = ring(size);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for flags in [AVAIL, USED] {
                        for index in 0..usize::from(size) {
                            memory.word(at + 16 * index + 14).store(flags.to_le(), Ordering::Relaxed);
                        }
                    }
                }
            });
            let mut place = ring.resume(0x8000).unwrap();
            let mut entries = [Entry::default(); 32];
            let mut stays_inside = || {
                let count = ring.look(&mut place, &mut entries).unwrap();
                if count > usize::from(size) {
                    return false;
                }
                ring.take_all::<true>(&mut place, &entries[..count]);
                ring.show::<true>(&mut place);
                place.next.index < size
            };
            let is_inside = (0..20_000).all(|_| stays_inside());
            stop.store(true, Ordering::Relaxed);
            assert!(is_inside, "a look went beyond a ring of {size}");
        });
    }
}
