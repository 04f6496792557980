//! The daemon without root, with the rights that the packaged unit gives it.

use super::SOON;
use crate::topology::attached_tap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use tests::daemon::Daemon;
use tests::namespace::Namespace;
use tests::process::{Child, repository, wait_until};

/// The user and group for QEMU; Debian gives it number 1 everywhere.
const QEMU: (&str, u32) = ("daemon", 1);

/// What `AmbientCapabilities=` of the packaged unit names, as setpriv(1) writes them.
fn capabilities_of_the_unit() -> Vec<String> {
    let unit = fs::read_to_string(repository().join("tools/packaging/qvs.service")).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("AmbientCapabilities=")).unwrap().to_lowercase();
    line.split(' ').map(|name| name.strip_prefix("cap_").unwrap().to_owned()).collect()
}

/// In a user namespace there is no other user to become: then all of this chapter ran without root already.
fn is_root_of_the_host() -> bool {
    fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295")
}

#[test]
fn without_root_it_needs_the_units_capabilities_and_no_more() {
    let capabilities = capabilities_of_the_unit();
    let capabilities: Vec<&str> = capabilities.iter().map(String::as_str).collect();
    let is_root_of_the_host = is_root_of_the_host();
    let daemon = if is_root_of_the_host { Daemon::start_as_nobody(&capabilities, "") } else { Daemon::start("") };
    let tenant = daemon.tenant("red");
    let network = tenant.network("n");
    let namespaces = ["one", "two"].map(Namespace::new);
    for (index, namespace) in namespaces.iter().enumerate() {
        let address = format!("10.0.0.{}/24", index + 1);
        attached_tap(&daemon, &tenant, &network, namespace.name(), namespace, &address);
    }
    let third = Namespace::new("three");
    namespaces[0].must("ip link add end type veth peer name eth0 netns three");
    namespaces[0].must("ip link set end up");
    third.must("ip link set eth0 up");
    third.address("eth0", "10.0.0.3/24");
    daemon.must("plug three --device end --netns one");
    tenant.attached_port(&network, "three");
    let fourth = Namespace::new("four");
    namespaces[0].must("ip link add far type veth peer name eth0 netns four");
    namespaces[0].must("ip link set far up");
    fourth.must("ip link set eth0 up");
    fourth.address("eth0", "10.0.0.4/24");
    daemon.must("plug four --device far --netns one --driver af_xdp");
    tenant.attached_port(&network, "four");
    daemon.wait_up(&["one", "two", "three", "four"]);
    for namespace in [&namespaces[0], &third, &fourth] {
        assert!(namespace.pings_within("10.0.0.2", SOON), "{}", daemon.log_tail());
    }
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert_eq!(status.contains("Uid:\t0"), !is_root_of_the_host, "{status}");
}

#[test]
fn with_the_right_to_give_files_away_qemus_user_gets_its_socket_also_after_a_kill() {
    if !is_root_of_the_host() {
        return;
    }
    // As the unit has it, with CAP_CHOWN besides.
    let capabilities = [capabilities_of_the_unit(), vec!["chown".to_owned()]].concat();
    let capabilities: Vec<&str> = capabilities.iter().map(String::as_str).collect();
    let settings = format!("[vhost]\nowner = \"{0}\"\ngroup = \"{0}\"\nmode = \"0600\"", QEMU.0);
    let mut daemon = Daemon::start_as_nobody(&capabilities, &settings);
    let tenant = daemon.tenant("red");
    let network = tenant.network("n");
    let socket = daemon.path("run/vhost/vm");
    daemon.must(&format!("plug vm --vhost-user {}", socket.display()));
    tenant.attached_port(&network, "vm");
    for _ in 0..2 {
        daemon.wait_up(&["vm"]);
        let file = fs::metadata(&socket).unwrap();
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (QEMU.1, QEMU.1, 0o600));
        // Its user reaches it by the group that its directories have.
        for directory in ["run", "run/vhost"] {
            let found = fs::metadata(daemon.path(directory)).unwrap();
            assert_eq!((found.gid(), found.mode() & 0o7777), (QEMU.1, 0o750), "{directory}");
        }
        daemon.kill();
        assert!(socket.exists(), "kill -9 leaves it behind, and its mode does not let us connect to it");
        daemon.start_again();
    }
    daemon.wait_up(&["vm"]);
}

/// QEMU, as far as it matters here: listens, and takes a connection. Of its user, in the switch's group, with this umask.
fn qemu(socket: &Path, group: u32, umask: &str, log: &Path) -> Child {
    let program = format!(
        "import os, socket, time; os.umask(0o{umask}); s = socket.socket(socket.AF_UNIX); s.bind('{}'); s.listen(); c = s.accept(); time.sleep(60)",
        socket.display()
    );
    let mut command = Command::new("setpriv");
    let user = QEMU.1;
    command.args([format!("--reuid={user}"), format!("--regid={user}"), format!("--groups={group}")]);
    command.args(["/usr/bin/python3", "-c", &program]);
    Child::spawn("QEMU", &mut command, log)
}

#[test]
fn without_root_it_connects_to_what_qemus_user_makes_in_the_directory_of_the_package() {
    if !is_root_of_the_host() {
        return;
    }
    let line = fs::read_to_string(repository().join("tools/packaging/qvs.tmpfiles")).unwrap();
    let mode = line.lines().find_map(|line| line.strip_prefix("d /run/qvs-qemu ")?.split(' ').next()).unwrap();
    let capabilities = capabilities_of_the_unit();
    let capabilities: Vec<&str> = capabilities.iter().map(String::as_str).collect();
    let daemon = Daemon::start_as_nobody(&capabilities, &format!("[vhost]\nowner = \"{}\"", QEMU.0));
    // Of the test's own directory QEMU's user has to pass.
    fs::set_permissions(daemon.path("."), fs::Permissions::from_mode(0o711)).unwrap();
    let run = fs::metadata(daemon.path("run")).unwrap();
    let directory = daemon.path("qemu");
    fs::create_dir(&directory).unwrap();
    chown(&directory, Some(run.uid()), Some(run.gid())).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(u32::from_str_radix(mode, 8).unwrap())).unwrap();
    let socket = directory.join("vm");
    daemon.must(&format!("plug vm --vhost-user {} --role client", socket.display()));

    let mut closed = qemu(&socket, run.gid(), "022", &daemon.path("qemu.log"));
    wait_until("the refusal", SOON, || {
        daemon.interface("vm")["reason"].as_str().is_some_and(|reason| reason.contains("Permission denied"))
    });
    closed.kill();
    fs::remove_file(&socket).unwrap();
    let _open = qemu(&socket, run.gid(), "002", &daemon.path("qemu.log"));
    wait_until("a session", SOON, || daemon.interface("vm")["sessions"].as_u64() >= Some(1));
}
