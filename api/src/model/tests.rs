//! What others did, as they told it: whatever the order, it comes to the same model, and what cannot be is refused.

use super::*;
use proptest::prelude::*;
use switch::underlay::{TunnelKind, Vni};

fn network(at: u8, name: Option<&str>) -> Network {
    let network_type = NetworkType::Local;
    let id = format!("n{at}").into();
    Network { id, tenant: "red".into(), name: name.map(Into::into), network_type, serial: u64::from(at) }
}

fn port(at: u8, network: u8, attachment: Option<u8>) -> LogicalPort {
    LogicalPort {
        id: format!("p{at}").into(),
        network: format!("n{network}").into(),
        state: AdminState::Active,
        attachment: attachment.map(|at| format!("vm{at}").into()),
        pairs: [].into(),
        serial: 100 + u64::from(at),
    }
}

/// Steps that follow on a model, of those asked for.
fn steps(model: &mut Model, wishes: &[(u8, u8, u8)]) -> Vec<Change> {
    let mut done = Vec::new();
    for &(what, at, other) in wishes {
        let id = NetworkId::from(format!("n{}", at % 4));
        let change = match what % 5 {
            0 => Change::PutNetwork(network(at % 4, (other % 2 == 0).then_some("name"))),
            1 if model.networks.contains_key(&id) => {
                let ports: Vec<_> = model.ports_of(&id).map(|port| Change::RemovePort(port.id.clone())).collect();
                ports.iter().for_each(|change| model.apply(change));
                done.extend(ports);
                Change::RemoveNetwork(id)
            }
            2 => Change::RemovePort(format!("p{}", at % 8).into()),
            _ => {
                let wanted = port(at % 8, other % 4, (what >= 128).then_some(other % 3));
                let known = model.ports.get(&wanted.id).map(|port| port.network.clone());
                let network = known.unwrap_or_else(|| wanted.network.clone());
                let holder = wanted.attachment.as_ref().and_then(|it| model.by_attachment.get(it));
                if !model.networks.contains_key(&network) || holder.is_some_and(|holder| *holder != wanted.id) {
                    continue;
                }
                Change::PutPort(LogicalPort { network, ..wanted })
            }
        };
        model.apply(&change);
        done.push(change);
    }
    done
}

proptest! {
    #[test]
    fn what_was_done_step_by_step_is_absorbed_at_once_in_any_order_of_keys(
        before in prop::collection::vec(any::<(u8, u8, u8)>(), 0..20),
        then in prop::collection::vec(any::<(u8, u8, u8)>(), 0..20),
    ) {
        let mut model = Model::default();
        steps(&mut model, &before);
        let mut absorbed = model.clone();
        let changes = steps(&mut model, &then);
        absorbed.absorb(changes).unwrap();
        prop_assert_eq!(&absorbed.networks, &model.networks);
        prop_assert_eq!(&absorbed.ports, &model.ports);
        prop_assert_eq!(&absorbed.by_attachment, &model.by_attachment);
        prop_assert_eq!(absorbed.counts_of("red"), model.counts_of("red"));
        for network in model.networks.keys() {
            prop_assert!(absorbed.ports_of(network).eq(model.ports_of(network)));
        }
    }

    #[test]
    fn no_news_are_more_than_refused(wishes in prop::collection::vec(any::<(u8, u8, u8)>(), 0..20)) {
        let mut model = Model::default();
        for (what, at, other) in wishes {
            let change = match what % 4 {
                0 => Change::PutNetwork(network(at % 4, None)),
                1 => Change::RemoveNetwork(format!("n{}", at % 4).into()),
                2 => Change::RemovePort(format!("p{}", at % 8).into()),
                _ => Change::PutPort(port(at % 8, other % 4, Some(what % 3))),
            };
            let mut next = model.clone();
            if next.absorb([change]).is_ok() {
                model = next;
            }
        }
    }
}

#[test]
fn an_attachment_moves_from_port_to_port_in_one_piece_of_news_and_both_networks_are_touched() {
    let mut model = Model::default();
    let steps = [
        Change::PutNetwork(network(0, None)),
        Change::PutNetwork(network(1, None)),
        Change::PutPort(port(0, 0, Some(1))),
        Change::PutPort(port(1, 1, None)),
    ];
    steps.iter().for_each(|change| model.apply(change));
    let moved = [Change::PutPort(port(1, 1, Some(1))), Change::PutPort(port(0, 0, None))];
    let touched = model.absorb(moved).unwrap();
    assert_eq!(&*model.port_by_attachment("vm1").unwrap().id, "p1");
    let mut networks = touched.networks;
    networks.sort();
    assert_eq!((touched.interfaces, networks), (vec!["vm1".into(); 2], vec!["n0".into(), "n1".into()]));
    for (news, why) in [
        (Change::PutPort(port(2, 0, Some(1))), "is plugged into ports p1 and p2"),
        (Change::PutPort(port(2, 9, None)), "which does not exist"),
        (Change::RemoveNetwork("n0".into()), "which does not exist"),
    ] {
        let error = model.clone().absorb([news]).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn numbers_of_others_do_not_move_where_a_free_one_is_looked_for() {
    let network = |vni: u32| Network {
        id: vni.to_string().into(),
        tenant: "red".into(),
        name: None,
        network_type: NetworkType::Tunnel { kind: TunnelKind::Vxlan, vni: Vni::new(vni).unwrap() },
        serial: u64::from(vni),
    };
    let mut model = Model::default();
    model.apply(&Change::PutNetwork(network(5)));
    model.absorb([Change::PutNetwork(network(90))]).unwrap();
    assert_eq!(model.vni_hint(), 6);
    model.absorb([Change::RemoveNetwork("5".into()), Change::PutNetwork(network(91))]).unwrap();
    assert_eq!(model.vni_hint(), 5);
}
