//! Real virtual machines.
use tests::guest::Guest;

#[test]
fn a_guest_boots_runs_commands_and_tells_their_exit_status() {
    let mut guest = Guest::boot("alone", &[]);
    assert_eq!(guest.must("echo one; echo two >&2"), "one\ntwo\n");
    assert_eq!(guest.run("exit 3").status, 3);
    assert!(guest.must("iperf3 --version").contains("iperf"));
    assert!(guest.must("lsmod").contains("virtio_net"));
}
