//! Slots that take turns, and what happens when the order ends.

use super::*;

#[test]
fn slots_take_their_turns_where_a_lap_is_shorter_than_the_ring() {
    // Six of eight; two of three descriptors each, with two entries of the ring left over. Packed rings need not trust.
    let single = Shape::SINGLE;
    let cases = [(0, 6, single), (0, 2, Shape::linked(3)), (F_RING_PACKED, 5, single), (F_RING_PACKED, 8, single)];
    for (features, limit, shape) in cases {
        let mut config = DriverConfig { is_order_trusted: features == 0, ..config(features, 8) };
        config.send_shape = shape;
        let mut rig = Rig::new(config, 1);
        assert!(rig.driver.sender.limit(limit));
        let mut number = 0;
        for round in 0..50 {
            let frames: Vec<_> = (0..=u32::from(limit)).map(|ahead| frame(number + ahead, 60)).collect();
            let list: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            let wanted = 1 + round % list.len();
            let count = rig.driver.sender.send_burst(&list[..wanted]);
            assert_eq!(count, wanted.min(limit.into()));
            for _ in 0..count {
                let chain = rig.send.take().unwrap();
                assert_eq!(u32::from(chain.id), number % u32::from(limit) * u32::from(shape.pieces));
                assert_eq!(rig.send.read(&chain)[VNET_HEADER_MRG_LEN..], frame(number, 60));
                rig.send.give(&[(chain, 0)]);
                number += 1;
            }
            assert_eq!(rig.driver.sender.ring.turn(), Some((number % u32::from(limit)) as u16));
        }
    }
    assert!(!Rig::new(config(0, 8), 1).driver.sender.limit(6), "who does not trust has no turns");
}

#[test]
fn a_receiver_whose_buffers_come_back_out_of_order_once_goes_on() {
    for (features, round) in [0, F_RING_PACKED].into_iter().flat_map(|features| (0..9).map(move |at| (features, at))) {
        out_of_order_once(features, round);
    }
}

fn out_of_order_once(features: u64, disorder: u32) {
    let mut rig = Rig::new(config(features, 8), 1);
    let mut number = 0;
    for round in 0..40 {
        let chains: Vec<_> = (0..3).map(|_| rig.receive.take().unwrap()).collect();
        for order in if round == disorder { [1, 2, 0] } else { [0, 1, 2] } {
            let mut bytes = vec![0; VNET_HEADER_MRG_LEN];
            bytes[10] = 1;
            bytes.extend(frame(number, 60));
            number += 1;
            rig.receive.write(&chains[order], &bytes);
            rig.receive.give(&[(chains[order].clone(), bytes.len() as u32)]);
        }
        let mut seen = number - 3;
        rig.driver.receiver.recv_burst(9, |_, bytes| {
            assert_eq!(bytes, frame(seen, 60));
            seen += 1;
        });
        assert_eq!((seen, rig.driver.receiver.ring.faults()), (number, 0));
        if features != 0 {
            assert_eq!(rig.driver.receiver.ring.turn().is_some(), round < disorder, "turns end with the order");
        }
    }
}
