//! Lowering held against histories of worlds: whatever happened before, the outcome follows from what is.

use super::*;
use crate::host::DeviceSpec;
use proptest::prelude::*;
use std::collections::btree_map;
use switch::ids::MacAddr;
use switch::underlay::{TunnelConfig, TunnelKind, UplinkConfig, UplinkTags, VlanId, Vni};

pub(super) fn plug(interface: &str) -> Plug {
    Plug::new(interface, DeviceSpec::Tap { name: "t".to_owned(), netns: None, queues: 1 })
}

pub(super) fn plugs(all: impl IntoIterator<Item = Plug>) -> BTreeMap<InterfaceId, Plug> {
    all.into_iter().map(|plug| (plug.interface.clone(), plug)).collect()
}

/// Networks `n0…` of tenants `t0…`, and ports on them with attachments.
pub(super) fn model(networks: &[usize], ports: &[(usize, AdminState, Option<&str>)]) -> Model {
    let network = |(at, tenant): (usize, &usize)| Network {
        id: format!("n{at}").into(),
        tenant: format!("t{tenant}").into(),
        name: None,
        network_type: Default::default(),
        serial: at as u64,
    };
    let port = |(at, (network, state, attachment)): (usize, &(usize, AdminState, Option<&str>))| LogicalPort {
        id: format!("p{at}").into(),
        network: format!("n{network}").into(),
        state: *state,
        attachment: attachment.map(Into::into),
        pairs: [].into(),
        serial: at as u64,
    };
    let networks = networks.iter().enumerate().map(network).collect();
    Model::from_records(networks, ports.iter().enumerate().map(port).collect()).unwrap()
}

fn port_config<'a>(lowered: &'a Lowered, interface: &str) -> &'a PortConfig {
    lowered.config.ports().iter().find(|port| &*port.interface == interface).unwrap()
}

/// The id of the network an interface is on.
pub(super) fn network_of<'a>(lowered: &'a Lowered, interface: &str) -> Option<&'a str> {
    port_config(lowered, interface).network.map(|index| &*lowered.config.network(index).unwrap().id)
}

#[test]
fn a_device_of_somebody_elses_has_no_mtu_but_its_own_and_the_operators() {
    let device = DeviceSpec::Device { name: "eth0".to_owned(), netns: None, driver: None };
    let bounded = Plug { device: device.clone(), mtu: Some(1400), ..plug("bounded") };
    let lowered = lower(
        &Model::default(),
        &plugs([bounded, Plug { device, ..plug("free") }, plug("tap")]),
        &mut Indices::default(),
    );
    let mtus = ["bounded", "free", "tap"].map(|interface| port_config(&lowered, interface).mtu);
    assert_eq!(mtus, [1400, MTU_MAX, 1500]);
}

#[test]
fn a_plug_is_on_the_network_of_the_port_it_is_attached_to_with_that_ports_state() {
    let model = model(&[0, 0, 1], &[(0, AdminState::Active, Some("a")), (1, AdminState::Down, Some("b"))]);
    let lowered = lower(&model, &plugs([plug("a"), plug("b"), plug("free")]), &mut Indices::default());
    assert_eq!(network_of(&lowered, "a"), Some("n0"));
    assert_eq!(network_of(&lowered, "b"), Some("n1"));
    assert_eq!(network_of(&lowered, "free"), None);
    let is_up = |interface| port_config(&lowered, interface).is_admin_up;
    assert_eq!([is_up("a"), is_up("b"), is_up("free")], [true, false, true]);
    assert_eq!(port_config(&lowered, "a").mtu, 1500);
    assert_eq!(lowered.config.networks().len(), 2, "a network nobody is plugged into is not here");
    assert!(lowered.unbound.is_empty());
}

#[test]
fn a_plug_for_a_tenant_stays_off_the_networks_of_others() {
    let model = model(&[0], &[(0, AdminState::Active, Some("a")), (0, AdminState::Active, Some("b"))]);
    let for_tenant = |name, tenant: &str| Plug { tenant: Some(tenant.to_owned()), ..plug(name) };
    let lowered = lower(&model, &plugs([for_tenant("a", "t0"), for_tenant("b", "t1")]), &mut Indices::default());
    assert_eq!(network_of(&lowered, "a"), Some("n0"));
    assert_eq!(network_of(&lowered, "b"), None);
    assert_eq!(lowered.unbound["b"], ("p1".into(), Unbound::ClaimedByOther));
    assert_eq!(lowered.unbound.len(), 1);
}

#[test]
fn of_two_with_one_mac_on_one_network_the_one_in_force_stays_whatever_the_names() {
    let with_mac = |name| Plug { macs: vec!["02:00:00:00:00:01".to_owned()], mtu: Some(9000), ..plug(name) };
    let active = |name| (0, AdminState::Active, Some(name));
    let mut indices = Indices::default();
    let first = lower(&model(&[0], &[active("b")]), &plugs([with_mac("b")]), &mut indices);
    assert_eq!(network_of(&first, "b"), Some("n0"));
    assert_eq!(port_config(&first, "b").mtu, 9000);
    let both = model(&[0], &[active("b"), active("a")]);
    let second = lower(&both, &plugs([with_mac("a"), with_mac("b")]), &mut indices);
    assert_eq!(network_of(&second, "b"), Some("n0"));
    assert_eq!(network_of(&second, "a"), None);
    assert_eq!(second.unbound["a"], ("p1".into(), Unbound::MacConflict));
    let third = lower(&both, &plugs([with_mac("a")]), &mut indices);
    assert_eq!(network_of(&third, "a"), Some("n0"), "free again");
    let fresh = lower(&both, &plugs([with_mac("a"), with_mac("b")]), &mut Indices::default());
    assert_eq!(network_of(&fresh, "a"), Some("n0"), "without a history the order of names decides");
}

#[test]
fn who_has_an_address_is_certain_of_ports_that_are_up_with_one_mac_and_of_one_port_alone() {
    let with = |name: &str, last: u8, addresses: &[&str]| Plug {
        macs: vec![format!("02:00:00:00:00:{last:02x}")],
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ..plug(name)
    };
    let mut two_macs = with("two-macs", 5, &["10.0.0.5"]);
    two_macs.macs.push("02:00:00:00:00:55".to_owned());
    let all = [
        with("a", 1, &["10.0.0.1", "fd00::1", "10.0.0.7"]),
        with("b", 2, &["10.0.0.2", "10.0.0.7"]),
        with("down", 3, &["10.0.0.3"]),
        with("elsewhere", 4, &["10.0.0.1"]),
        two_macs,
        with("on-none", 6, &["10.0.0.6"]),
    ];
    let ports = [
        (0, AdminState::Active, Some("a")),
        (0, AdminState::Active, Some("b")),
        (0, AdminState::Down, Some("down")),
        (1, AdminState::Active, Some("elsewhere")),
        (0, AdminState::Active, Some("two-macs")),
    ];
    let lowered = lower(&model(&[1, 2], &ports), &plugs(all), &mut Indices::default());
    let known: Vec<_> = lowered
        .config
        .neighbours()
        .iter()
        .map(|it| {
            let network = lowered.config.network(it.network).unwrap().id.to_string();
            (network, it.address.to_string(), it.mac.to_string())
        })
        .collect();
    let expected = [
        (network_of(&lowered, "a"), "10.0.0.1", "02:00:00:00:00:01"),
        (network_of(&lowered, "a"), "10.0.0.2", "02:00:00:00:00:02"),
        (network_of(&lowered, "a"), "fd00::1", "02:00:00:00:00:01"),
        (network_of(&lowered, "elsewhere"), "10.0.0.1", "02:00:00:00:00:04"),
    ]
    .map(|(network, address, mac)| (network.unwrap().to_owned(), address.to_owned(), mac.to_owned()));
    assert_eq!(known, expected);
}

#[test]
fn an_interface_with_an_unusable_mac_is_on_no_network_rather_than_unguarded() {
    for mac in ["nonsense", "", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
        let bad = Plug { macs: vec!["02:00:00:00:00:01".to_owned(), mac.to_owned()], mtu: Some(1), ..plug("a") };
        let model = model(&[0], &[(0, AdminState::Active, Some("a"))]);
        let lowered = lower(&model, &plugs([bad]), &mut Indices::default());
        assert_eq!(network_of(&lowered, "a"), None);
        assert_eq!(lowered.unbound["a"].1, Unbound::MacInvalid, "{mac}");
    }
}

#[test]
fn the_macs_of_a_ports_pairs_are_allowed_besides_the_plugs_own_and_may_be_shared() {
    let own = "02:00:00:00:00:01";
    let fixed = Plug { macs: vec![own.to_owned()], ..plug("a") };
    let pair = |mac: &str| crate::address_pair::AddressPair::new(mac, Some("10.0.0.1")).unwrap();
    let (vrrp, other) = ("00:00:5e:00:01:07", "02:00:00:00:00:02");
    let mut model = model(&[0], &[(0, AdminState::Active, Some("a")), (0, AdminState::Active, Some("b"))]);
    for (port, pairs) in [("p0", [pair(other), pair(vrrp), pair(own)]), ("p1", [pair(own), pair(vrrp), pair(vrrp)])] {
        let port = LogicalPort { pairs: pairs.into(), ..model.ports[port].clone() };
        model.apply(&crate::model::Change::PutPort(port));
    }
    let lowered = lower(&model, &plugs([fixed, plug("b"), plug("free")]), &mut Indices::default());
    assert!(lowered.unbound.is_empty());
    let macs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<MacAddr>>();
    let of = |interface| {
        let port = port_config(&lowered, interface);
        (port.macs.clone(), port.allowed_macs.clone())
    };
    assert_eq!(of("a"), (macs(&[own]), macs(&[vrrp, other])));
    assert_eq!(of("b"), (macs(&[]), macs(&[vrrp, own])));
    assert_eq!(of("free"), (macs(&[]), macs(&[])));
}

/// The same networks, the first two as VLANs 7 and 8 of physnet1, the others in VXLAN.
pub(super) fn carried(model: &Model) -> Model {
    let carry = |network: &Network| {
        let number = network.serial as u32 + 7;
        let vlan =
            || NetworkType::Vlan { physical_network: "physnet1".into(), vlan: VlanId::new(number as u16).unwrap() };
        let tunnel = || NetworkType::Tunnel { kind: TunnelKind::Vxlan, vni: Vni::new(number).unwrap() };
        let network_type = if network.serial < 2 { vlan() } else { tunnel() };
        Network { network_type, ..network.clone() }
    };
    let networks = model.networks.values().map(carry).collect();
    Model::from_records(networks, model.ports.values().cloned().collect()).unwrap()
}

pub(super) fn uplink(index: PortIndex, tags: UplinkTags) -> UplinkConfig {
    UplinkConfig {
        index,
        physical_network: "physnet1".into(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1600,
        is_shared: false,
        address: None,
        tags,
    }
}

#[test]
fn networks_in_use_are_led_out_and_a_far_end_keeps_its_index_while_its_network_is_used() {
    let mut indices = Indices::default();
    let uplink = uplink(indices.reserve().unwrap(), UplinkTags::default());
    let tunnel = TunnelConfig::new([192, 0, 2, 1].into(), Vec::new());
    let underlay = Underlay { uplinks: vec![uplink], tunnel: Some(tunnel), ..Underlay::default() };
    let plugs = plugs([plug("a"), plug("b"), plug("c")]);
    let active = |network, interface| (network, AdminState::Active, Some(interface));
    let both = carried(&model(&[0, 0, 0, 0], &[active(0, "a"), active(1, "b"), active(2, "c")]));
    let mut lower = |model: &Model, underlay: &Underlay| lower_over(model, &plugs, &mut indices, underlay.clone());

    let lowered = lower(&both, &underlay);
    let ways = lowered.config.underlay();
    let told: Vec<_> =
        ways.vlans.iter().map(|vlan| (vlan.vlan.get(), &*lowered.config.network(vlan.network).unwrap().id)).collect();
    assert_eq!(told, [(7, "n0"), (8, "n1")]);
    let tunnelled = &ways.tunnel.as_ref().unwrap().networks;
    assert_eq!(tunnelled.iter().map(|it| it.vni.get()).collect::<Vec<_>>(), [9], "n3 is used by nobody here");
    let far_end = ways.vlans[1].index;

    let one = carried(&model(&[0, 0, 0, 0], &[active(1, "b")]));
    let lowered = lower(&one, &underlay);
    assert_eq!(lowered.config.underlay().vlans.iter().map(|vlan| vlan.index).collect::<Vec<_>>(), [far_end]);
    assert_eq!(lowered.departed_vlans.len(), 1);
    // Without its uplink a network stays within the host.
    let lowered = lower(&one, &Underlay::default());
    assert_eq!((lowered.config.underlay(), lowered.departed_vlans), (&Underlay::default(), vec![far_end]));
    assert_eq!(network_of(&super::lower(&one, &plugs, &mut Indices::default()), "b"), Some("n1"));
}

#[test]
fn a_stored_network_whose_vlan_is_the_underlays_stays_within_the_host_unless_there_is_a_service_tag() {
    let plugs = plugs([plug("a"), plug("b")]);
    let stored = carried(&model(&[0, 0], &[(0, AdminState::Active, Some("a")), (1, AdminState::Active, Some("b"))]));
    let with = |service: Option<VlanId>| {
        let tags = UplinkTags { service, underlay: VlanId::new(7), native: None };
        let underlay = Underlay { uplinks: vec![uplink(PortIndex(100), tags)], ..Underlay::default() };
        let lowered = lower_over(&stored, &plugs, &mut Indices::default(), underlay);
        let vlans: Vec<u16> = lowered.config.underlay().vlans.iter().map(|it| it.vlan.get()).collect();
        (network_of(&lowered, "a").map(str::to_owned), vlans, lowered.kept_in)
    };
    assert_eq!(with(None), (Some("n0".to_owned()), vec![8], vec!["n0".into()]));
    assert_eq!(with(VlanId::new(500)), (Some("n0".to_owned()), vec![7, 8], Vec::new()));
}

#[test]
fn of_two_stored_networks_with_one_number_the_older_leaves_the_host() {
    let stored = model(&[0, 0], &[(0, AdminState::Active, Some("a")), (1, AdminState::Active, Some("b"))]);
    let mut twice = carried(&stored);
    // What no record that this service wrote says: somebody else gave it the number of another.
    let number = twice.networks["n0"].network_type.clone();
    let network = Network { network_type: number, ..twice.networks["n1"].clone() };
    twice.networks.insert("n1".into(), network);
    let underlay = Underlay { uplinks: vec![uplink(PortIndex(100), UplinkTags::default())], ..Underlay::default() };
    let lowered = lower_over(&twice, &plugs([plug("a"), plug("b")]), &mut Indices::default(), underlay);
    assert_eq!((lowered.config.underlay().vlans.len(), lowered.kept_in), (1, vec!["n1".into()]));
}

#[test]
fn freed_indices_come_back_oldest_first_and_not_in_the_change_that_freed_them() {
    let mut indices = Indices::default();
    let empty = Model::default();
    let mut of = |names: &[&str]| {
        let lowered = lower(&empty, &plugs(names.iter().map(|name| plug(name))), &mut indices);
        names.iter().map(|name| port_config(&lowered, name).index.0).collect::<Vec<_>>()
    };
    assert_eq!(of(&["a", "b", "c"]), [0, 1, 2]);
    assert_eq!(of(&["a", "c", "d"]), [0, 2, 3], "1 is freed by this very change");
    assert_eq!(of(&["c", "d"]), [2, 3]);
    assert_eq!(of(&["c", "d", "e", "f", "g"]), [2, 3, 1, 0, 4]);
}

#[test]
fn beyond_the_bound_interfaces_wait_without_an_index_until_one_is_free() {
    let name = |at: usize| format!("i{at:05}");
    let last = name(PORTS_MAX);
    let all: Vec<_> = (0..=PORTS_MAX).map(|at| plug(&name(at))).collect();
    let model = model(&[0], &[(0, AdminState::Active, Some(&last))]);
    let mut indices = Indices::default();
    let lowered = lower(&model, &plugs(all.clone()), &mut indices);
    assert_eq!(lowered.config.ports().len(), PORTS_MAX);
    assert_eq!(lowered.unbound[&*last], ("p0".into(), Unbound::TooManyPorts));
    let lowered = lower(&model, &plugs(all.into_iter().skip(1)), &mut indices);
    assert_eq!(lowered.config.ports().len(), PORTS_MAX);
    assert_eq!(network_of(&lowered, &last), Some("n0"));
    assert_eq!(port_config(&lowered, &last).index, PortIndex(0), "none was left but the one freed just now");
}

#[test]
fn networks_that_lost_their_ports_give_their_indices_back_when_all_are_taken() {
    let mut indices = Indices::default();
    let networks: Vec<usize> = vec![0; NETWORKS_MAX + 1];
    let records = model(&networks, &[]);
    for at in 0..NETWORKS_MAX {
        indices.networks.insert(format!("n{at}").into(), NetworkIndex(u16::try_from(at).unwrap()));
    }
    indices.network_pool.next = NETWORKS_MAX;
    let mut model = records;
    model.apply(&crate::model::Change::PutPort(LogicalPort {
        id: "p".into(),
        network: format!("n{NETWORKS_MAX}").into(),
        state: AdminState::Active,
        attachment: Some("a".into()),
        pairs: [].into(),
        serial: 1 << 40,
    }));
    let lowered = lower(&model, &plugs([plug("a")]), &mut indices);
    assert_eq!(network_of(&lowered, "a"), Some(&*format!("n{NETWORKS_MAX}")));
    assert_eq!(indices.networks.len(), 1);
}

/// One state of the world: the tenant of each network; each port's network, state and attachment; each plug's MAC and
/// tenant. Interfaces are `i0…i7`.
#[derive(Clone, Debug)]
struct World {
    tenants: Vec<usize>,
    ports: Vec<(usize, bool, Option<usize>)>,
    plugs: Vec<(usize, Option<u8>, Option<usize>)>,
}

fn world() -> impl Strategy<Value = World> {
    (
        proptest::collection::vec(0..2usize, 1..4),
        proptest::collection::vec((0..4usize, any::<bool>(), proptest::option::of(0..8usize)), 0..8),
        proptest::collection::vec((0..8usize, proptest::option::of(0..3u8), proptest::option::of(0..2usize)), 0..8),
    )
        .prop_map(|(tenants, ports, plugs)| World { tenants, ports, plugs })
}

impl World {
    fn model(&self) -> Model {
        let mut taken = HashSet::new();
        let names: Vec<_> = (0..8).map(|at| format!("i{at}")).collect();
        let ports = self.ports.iter().map(|(network, is_up, attachment)| {
            let attachment = attachment.filter(|at| taken.insert(*at)).map(|at| names[at].as_str());
            let state = if *is_up { AdminState::Active } else { AdminState::Down };
            (network % self.tenants.len(), state, attachment)
        });
        model(&self.tenants, &ports.collect::<Vec<_>>())
    }

    fn plugs(&self) -> BTreeMap<InterfaceId, Plug> {
        let mut all = BTreeMap::new();
        for (at, mac, tenant) in &self.plugs {
            let one = Plug {
                macs: mac.iter().map(|mac| format!("02:00:00:00:00:{mac:02x}")).collect(),
                tenant: tenant.map(|tenant| format!("t{tenant}")),
                ..plug(&format!("i{at}"))
            };
            if let btree_map::Entry::Vacant(entry) = all.entry(one.interface.clone()) {
                entry.insert(one);
            }
        }
        all
    }
}

proptest! {
    #[test]
    fn whatever_the_history_every_plug_is_where_it_may_be_and_keeps_its_index(
        worlds in proptest::collection::vec(world(), 1..8)
    ) {
        let mut indices = Indices::default();
        let mut last: HashMap<InterfaceId, PortIndex> = HashMap::new();
        let mut last_networks: HashMap<NetworkId, NetworkIndex> = HashMap::new();
        for world in &worlds {
            let (model, plugs) = (world.model(), world.plugs());
            let lowered = lower(&model, &plugs, &mut indices);
            prop_assert!(lowered.config.ports().iter().map(|port| &port.interface).collect::<HashSet<_>>()
                == plugs.keys().collect::<HashSet<_>>());
            let mut fixed: HashSet<(NetworkIndex, MacAddr)> = HashSet::new();
            for port in lowered.config.ports() {
                let plug = &plugs[&port.interface];
                let logical = model.port_by_attachment(&port.interface);
                let reason = lowered.unbound.get(&port.interface);
                // On no network exactly if nobody claims it or a reason is given.
                prop_assert_eq!(port.network.is_none(), logical.is_none() || reason.is_some());
                if let (Some(index), Some(logical)) = (port.network, logical) {
                    let network = &model.networks[&lowered.config.network(index).unwrap().id];
                    prop_assert_eq!(&network.id, &logical.network);
                    prop_assert!(plug.tenant.as_deref().is_none_or(|tenant| tenant == &*network.tenant));
                    prop_assert!(port.macs.iter().all(|mac| fixed.insert((index, *mac))));
                    prop_assert_eq!(port.macs.len(), plug.macs.len());
                }
                prop_assert_eq!(port.is_admin_up, logical.is_none_or(|it| it.state == AdminState::Active));
                if let Some((id, reason)) = reason {
                    prop_assert_eq!(Some(id), logical.map(|it| &it.id));
                    let is_foreign = plug.tenant.as_deref() != Some(&*model.networks[&logical.unwrap().network].tenant);
                    let is_right = match reason {
                        Unbound::ClaimedByOther => plug.tenant.is_some() && is_foreign,
                        Unbound::MacConflict => !plug.macs.is_empty(),
                        Unbound::MacInvalid | Unbound::TooManyPorts | Unbound::PluggedElsewhere => false,
                    };
                    prop_assert!(is_right, "{reason:?}");
                }
                if let Some(index) = last.get(&port.interface) {
                    prop_assert_eq!(*index, port.index, "an index stays");
                } else {
                    prop_assert!(last.values().all(|index| *index != port.index), "and is not passed on at once");
                }
            }
            for network in lowered.config.networks() {
                prop_assert!(lowered.config.ports().iter().any(|port| port.network == Some(network.index)));
                prop_assert!(last_networks.get(&network.id).is_none_or(|index| *index == network.index));
            }
            prop_assert_eq!(indices.ports.len(), plugs.len());
            last.clone_from(&indices.ports);
            last_networks.clone_from(&indices.networks);
            // A second look at the same world changes nothing.
            prop_assert!(lower(&model, &plugs, &mut indices).config == lowered.config);
        }
    }
}
