//! What the command line takes, and what it does not.

use super::*;
use clap::CommandFactory;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("qvs").chain(line.split_whitespace()))
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn wrong_usage_exits_with_2() {
    for line in [
        "",
        "plug",
        "plug vm1",
        "plug vm1 --tap t --vhost-user /x",
        "plug vm1 --tap t --role client",
        "plug vm1 --vhost-user /x --netns n",
        "plug vm1 --vhost-user /x --queues 2",
        "plug vm1 --tap t --queues many",
        "plug vm1 --tap t --driver af_packet",
        "plug vm1 --device e --queues 2",
        "plug vm1 --device e --role client",
        "plug vm1 --device e --driver mystery",
        "plug vm1 --tap t --mtu 70000",
        "plug vm1 --parent x --vlan 5 --role client",
        "plug vm1 --parent x --vlan 5 --netns n",
        "plug vm1 --parent x --vlan 5 --queues 2",
        "plug vm1 --parent x --vlan 5 --driver af_xdp",
        "show",
        "show cats",
        "trace vm1",
        "capture",
        "capture vm1 -c 0",
        "capture vm1 -s 0",
        "capture vm1 -s 70000",
        "capture vm1 -i sideways",
        "capture vm1 --buffer 65",
        "capture vm1 --counters -w x",
        "capture vm1 --lines -w x",
        "run --log xml",
        "token",
        "token acme --days 0",
        "net",
        "net list extra --tenant t",
        "net show --tenant t",
        "net create --tenant t",
        "net show --tenant t --json=yes n",
        "port show n --tenant t",
        "port create n --attach --tenant t",
        "attach plug n p --tenant t",
        "attach frob --tenant t",
        "completions tcsh",
    ] {
        assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
    }
}

#[test]
fn a_plug_takes_one_device_and_many_macs() {
    let Command::Plug(args) = parse("plug vm1 --tap t1 --netns red --mac a --mac b --replace").unwrap().command else {
        panic!("not a plug");
    };
    assert_eq!(args.device.tap.as_deref(), Some("t1"));
    assert_eq!((args.netns.as_deref(), args.mac.len(), args.replace), (Some("red"), 2, true));
}

#[test]
fn the_admin_socket_goes_before_the_settings() {
    let Command::Unplug(args) = parse("unplug vm1 --admin /a --config /nonexistent").unwrap().command else {
        panic!("not an unplug");
    };
    assert_eq!(crate::client::socket(&args.daemon).unwrap(), PathBuf::from("/a"));
}
