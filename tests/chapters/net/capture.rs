//! `qvs capture` beside what a packet socket in the tenant's namespace saw, and what a bad client can do with it.

use super::SOON;
use crate::topology::TwoTenants;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Stdio};
use tests::capture::Running;
use tests::daemon::{Daemon, program};
use tests::ledger::Counters;
use tests::namespace::Namespace;
use tests::pcapng::{self, Capture, Captured};
use tests::process::wait_until;

/// Sends `bytes` by TCP from one namespace to the other, where 10.0.0.2 is.
fn transfer(from: &Namespace, to: &Namespace, bytes: u64) {
    let listener = to.inside(|| TcpListener::bind(("10.0.0.2", 5000)).unwrap());
    let received = std::thread::scope(|scope| {
        let sink = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
        });
        let mut stream = from.inside(|| TcpStream::connect(("10.0.0.2", 5000)).unwrap());
        stream.set_write_timeout(Some(SOON)).unwrap();
        std::io::copy(&mut std::io::repeat(0x5a).take(bytes), &mut stream).unwrap();
        drop(stream);
        sink.join().unwrap()
    });
    assert_eq!(received, bytes);
}

/// The frames of one direction.
fn one_way(capture: &Capture, is_inbound: bool) -> Vec<Vec<u8>> {
    let frames = capture.frames.iter().filter(|frame| frame.is_inbound() == is_inbound);
    frames.map(|frame| frame.bytes.clone()).collect()
}

/// What was captured must be what was heard, frame by frame; tells the first that differs.
fn assert_same(what: &str, captured: &[Vec<u8>], heard: &[Vec<u8>]) {
    let differs = |at: &usize| captured.get(*at) != heard.get(*at);
    if let Some(at) = (0..captured.len().max(heard.len())).find(differs) {
        let shown = |frame: Option<&Vec<u8>>| frame.map(|frame| (frame.len(), frame[..frame.len().min(80)].to_vec()));
        let (one, other) = (shown(captured.get(at)), shown(heard.get(at)));
        let counts = (captured.len(), heard.len());
        panic!("{what}: {counts:?} frames captured and heard; number {at} was captured as {one:?}, heard as {other:?}");
    }
}

fn is_tcp(frame: &Captured) -> bool {
    frame.bytes.get(23) == Some(&6)
}

#[test]
fn a_file_holds_what_the_namespace_saw_both_ways_and_tcpdump_reads_it() {
    let world = TwoTenants::new();
    let (red_1, red_2) = (world.namespace("red-1"), world.namespace("red-2"));
    assert!(red_1.pings_within("10.0.0.2", SOON));
    let file = world.daemon.path("capture.pcapng");
    // By the logical port's id; the file is named by the interface.
    let capture = Running::start(&world.daemon, &format!("{} -w {}", world.port("red-1"), file.display()));
    let ear = red_1.sniff();
    assert!(red_1.is_answered("10.0.0.2") && red_2.is_answered("10.0.0.1"));
    transfer(red_1, red_2, 300_000);
    let heard = ear.stop();
    let notes = capture.interrupt();
    let capture = pcapng::read(&fs::read(&file).unwrap());

    let mac: Vec<u8> = red_1.mac("tap0").split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let (sent, received): (Vec<_>, Vec<_>) = heard.into_iter().partition(|frame| frame[6..12] == mac);
    assert!(sent.len() > 10 && received.len() > 10, "{} and {}", sent.len(), received.len());
    assert_same("sent", &one_way(&capture, true), &sent);
    assert_same("received", &one_way(&capture, false), &received);

    let count = capture.frames.len() as u64;
    assert_eq!((capture.interface.as_str(), capture.statistics), ("red-1", Some([count, count, 0, count])));
    assert!(notes.contains(&format!("{count} frames captured")) && notes.contains("0 frames dropped"), "{notes}");
    assert!(capture.frames.is_sorted_by_key(|frame| frame.time_ns));
    let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
        - capture.frames[0].time_ns;
    assert!(age < 60_000_000_000, "times are the wall clock's");
    // Large segments and what is left to do for them are told.
    let large = capture.frames.iter().find(|frame| is_tcp(frame) && frame.len > 1514).expect("TCP is not cut");
    assert_eq!(large.flags & 0xe00, 0xa00, "checksum not ready, not yet cut");
    assert!(large.comment.contains("not yet cut: TCP over IPv4, 1448 bytes a segment"), "{}", large.comment);

    let output = Command::new("tcpdump").args(["-n", "-r"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count() as u64, count);
    assert!(text.contains("10.0.0.1 > 10.0.0.2: ICMP echo request"), "{text}");
}

#[test]
fn a_pipe_gets_frames_while_they_pass_and_its_closing_ends_the_capture() {
    let world = TwoTenants::new();
    let red_1 = world.namespace("red-1");
    assert!(red_1.pings_within("10.0.0.2", SOON));
    let mut capture = Running::start(&world.daemon, "red-1 -w - --filter icmp");
    let mut reader = Command::new("tcpdump")
        .args(["-n", "-l", "-r", "-"])
        .stdin(Stdio::from(capture.stdout()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(reader.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        assert!(red_1.is_answered("10.0.0.2"));
        // The capture goes on meanwhile.
        assert!(lines.next().unwrap().unwrap().contains("echo request"));
        assert!(lines.next().unwrap().unwrap().contains("echo reply"));
    }
    reader.kill().unwrap();
    reader.wait().unwrap();
    // Without another frame: that the reader is gone is seen all the same.
    let (status, notes) = capture.end();
    assert_eq!(status, Some(0), "{notes}");
    assert!(notes.contains("6 frames captured, 6 matched"), "{notes}");
}

#[test]
fn direction_count_filter_snaplen_and_duration_choose_what_is_captured() {
    let world = TwoTenants::new();
    let (red_1, daemon) = (world.namespace("red-1"), &world.daemon);
    assert!(red_1.pings_within("10.0.0.2", SOON));
    let run = |line: &str| {
        let mut capture = Running::start(daemon, line);
        red_1.must("busybox ping -c 3 -i 0.1 -s 400 10.0.0.2");
        let mut bytes = Vec::new();
        capture.stdout().read_to_end(&mut bytes).unwrap();
        let (status, notes) = capture.end();
        assert_eq!(status, Some(0), "{notes}");
        pcapng::read(&bytes)
    };
    let inward = run("red-1 -i in -c 2");
    assert!(inward.frames.len() == 2 && inward.frames.iter().all(Captured::is_inbound), "{inward:?}");
    let outward = run("red-1 -i out -c 2 -s 60");
    assert!(outward.frames.iter().all(|frame| !frame.is_inbound() && frame.bytes.len() == 60 && frame.len >= 60));
    assert!(outward.frames.iter().any(|frame| frame.len == 442), "{outward:?}");
    let timed = run("red-1 --duration 4 --filter icmp");
    assert_eq!((timed.frames.len(), timed.statistics.unwrap()[1]), (6, 6));

    let lines = Running::start(daemon, "red-1 --lines --filter icmp -c 2");
    assert!(red_1.is_answered("10.0.0.2"));
    let mut lines = lines;
    let mut text = String::new();
    lines.stdout().read_to_string(&mut text).unwrap();
    let told: Vec<&str> = text.lines().collect();
    assert!(told[0].contains(" in  ") && told[0].contains("10.0.0.1 > 10.0.0.2: echo request"), "{text}");
    assert!(told[1].contains(" out ") && told[1].contains("10.0.0.2 > 10.0.0.1: echo reply"), "{text}");
}

#[test]
fn a_reader_that_stands_still_costs_captured_copies_and_no_frame() {
    let world = TwoTenants::new();
    let (red_1, red_2) = (world.namespace("red-1"), world.namespace("red-2"));
    assert!(red_1.pings_within("10.0.0.2", SOON));
    let mut capture = Running::start(&world.daemon, "red-1 -w - --buffer 1");
    let before = Counters::read(&world.daemon);
    transfer(red_1, red_2, 32 << 20);
    let changes = Counters::read(&world.daemon).changes(&before);
    // A full receiver is told by a drop, which TCP takes as it should; nothing else may appear.
    let drops: Vec<_> = changes.iter().filter(|change| change.contains(".drops.")).collect();
    assert!(drops.iter().all(|change| change.contains("rx_ring_full")), "{drops:?}");

    // Now it reads again, and ends.
    capture.signal(rustix::process::Signal::TERM);
    let mut bytes = Vec::new();
    capture.stdout().read_to_end(&mut bytes).unwrap();
    let (status, notes) = capture.end();
    assert_eq!(status, Some(0), "{notes}");
    let capture = pcapng::read(&bytes);
    let [seen, matched, lost, written] = capture.statistics.unwrap();
    assert_eq!((seen, written, capture.rest), (matched, capture.frames.len() as u64, 0));
    assert_eq!(matched, written + lost);
    assert!(lost > 0 && written > 0 && notes.contains(&format!("{lost} frames dropped by the capture")), "{notes}");
    assert!(bytes.len() < 8 << 20, "{} bytes were kept for a reader that stood still", bytes.len());
}

#[test]
fn a_client_that_stands_still_gives_its_place_back_when_its_time_is_over() {
    let world = TwoTenants::new();
    let (red_1, red_2) = (world.namespace("red-1"), world.namespace("red-2"));
    assert!(red_1.pings_within("10.0.0.2", SOON));
    // All places of the port, by clients that read nothing of what is more than a socket and a pipe hold.
    let still: Vec<Running> = (0..4).map(|_| Running::start(&world.daemon, "red-1 -w - --duration 5")).collect();
    still.iter().for_each(|capture| capture.signal(rustix::process::Signal::STOP));
    transfer(red_1, red_2, 16 << 20);
    let begins = || Running::try_start(&world.daemon, "red-1 -w -").note().starts_with("capturing");
    assert!(!begins(), "the port has more than four places");
    wait_until("the places are free again", 2 * SOON, begins);
}

#[test]
fn a_killed_client_leaves_nothing_behind_and_captures_are_bounded() {
    let mut world = TwoTenants::new();
    let place = |at: usize| ["red-1", "red-2"][at % 2];
    let captures: Vec<Running> =
        (0..8).map(|at| Running::start(&world.daemon, &format!("{} -w -", place(at)))).collect();
    let refused = world.daemon.command("capture blue-1 -w -");
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), message.as_str()), (Some(1), "qvs: there are 8 captures already\n"));
    for capture in &captures[1..] {
        capture.signal(rustix::process::Signal::KILL);
    }
    wait_until("the places are free again", SOON, || {
        let mut more: Vec<Running> = (0..7).map(|_| Running::try_start(&world.daemon, "blue-1 -w -")).collect();
        let notes: Vec<String> = more.iter_mut().map(Running::note).collect();
        // Four at one port, all of which could be had.
        let port_is_full = "qvs: there are 4 captures at this port already\n";
        notes.iter().filter(|note| note.starts_with("capturing")).count() == 4
            && notes.iter().filter(|note| *note == port_is_full).count() == 3
    });
    assert!(world.namespace("red-1").pings_within("10.0.0.2", SOON));
    // The daemon's end is told, and the file so far is whole.
    let mut last = captures.into_iter().next().unwrap();
    let (mut stdout, mut bytes) = (last.stdout(), Vec::new());
    while pcapng::read(&bytes).frames.is_empty() {
        let mut piece = [0; 4096];
        let count = stdout.read(&mut piece).unwrap();
        assert!(count > 0, "it ended without a frame");
        bytes.extend_from_slice(&piece[..count]);
    }
    world.daemon.kill();
    stdout.read_to_end(&mut bytes).unwrap();
    let capture = pcapng::read(&bytes);
    assert!(!capture.frames.is_empty() && capture.statistics.is_none() && capture.rest == 0);
    let (status, notes) = last.end();
    assert_eq!((status, notes.as_str()), (Some(1), "qvs: the daemon went away before the capture ended\n"));
    world.daemon.start_again();
}

#[test]
fn a_capture_stays_when_the_tenant_detaches_and_ends_when_the_operator_unplugs() {
    let world = TwoTenants::new();
    let red_1 = world.namespace("red-1");
    assert!(red_1.pings_within("10.0.0.2", SOON));
    let file = world.daemon.path("capture.pcapng");
    let capture = Running::start(&world.daemon, &format!("red-1 -w {}", file.display()));
    world.red.detach(&world.red_network, world.port("red-1"));
    assert!(!red_1.pings("10.0.0.2"));
    world.red.attach(&world.red_network, world.port("red-1"), "red-1");
    assert!(red_1.pings_within("10.0.0.2", SOON));
    world.daemon.must("unplug red-1");
    let (status, notes) = capture.end();
    assert_eq!(status, Some(0), "{notes}");
    assert!(notes.contains("the interface was unplugged"), "{notes}");
    let capture = pcapng::read(&fs::read(&file).unwrap());
    let (stopped, passed): (Vec<&Captured>, Vec<_>) =
        capture.frames.iter().partition(|frame| frame.comment == "dropped: no_network");
    assert!(!stopped.is_empty() && stopped.iter().all(|frame| frame.is_inbound()));
    assert!(passed.iter().any(|frame| !frame.is_inbound()));
    // The last frames before the end are there too: an echo and its answer.
    assert_eq!(capture.frames.iter().rev().find(|frame| frame.bytes[12..14] == [8, 0]).map(|f| f.bytes[34]), Some(0));
}

#[test]
fn a_refused_capture_touches_no_file() {
    let world = TwoTenants::new();
    let file = world.daemon.path("precious");
    fs::write(&file, "kept").unwrap();
    for line in ["nobody -w", "red-1 --filter port -w"] {
        let output = world.daemon.command(&format!("capture {line} {}", file.display()));
        assert!(matches!(output.status.code(), Some(1 | 2)), "{line}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    let output = world.daemon.command("capture red-1 -w /proc/no/such/file");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("qvs: /proc/no/such/file: "), "{message}");
    let full = world.namespace("red-1").run("true").status.success().then(|| {
        let capture = Running::start(&world.daemon, "red-1 -w /dev/full");
        capture.end()
    });
    let (status, notes) = full.unwrap();
    assert_eq!(status, Some(1));
    assert!(notes.contains("writing the capture: No space left on device"), "{notes}");
}

#[test]
fn members_of_the_group_may_count_frames_and_not_read_them() {
    // In a user namespace there is no other user to become: what is told by the kernel's word is a unit test.
    if !fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295") {
        return;
    }
    const NOBODY: u32 = 65_534;
    let daemon = Daemon::start("[admin]\ngroup = \"nogroup\"");
    let open = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(&daemon.path(""), 0o755);
    let copy = daemon.path("qvs");
    fs::copy(program(), &copy).unwrap();
    chown(&copy, Some(NOBODY), Some(NOBODY)).unwrap();
    daemon.must("plug a --tap tap-capture");
    let as_nobody = |line: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).args(line.split_whitespace());
        command.arg("--admin").arg(daemon.admin_socket()).output().unwrap()
    };
    let refused = as_nobody("capture a -w - --duration 1");
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(message, "qvs: only root and the daemon's own user may do this\n");
    assert!(refused.status.code() == Some(1) && refused.stdout.is_empty());
    let counted = as_nobody("capture a --counters --duration 1");
    assert!(counted.status.success(), "{}", String::from_utf8_lossy(&counted.stderr));
    assert!(String::from_utf8(counted.stdout).unwrap().contains(" frames matched\n"));
}
