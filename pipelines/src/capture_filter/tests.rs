//! Filters against tcpdump's own, and against hostile text.

use super::*;
use crate::tests::frames::{Frame as Honest, any_frame};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::io::Write;
use std::process::{Command, Stdio};

fn compile(text: &str) -> CaptureFilter {
    CaptureFilter::compile(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn wants(text: &str, frame: &[u8]) -> bool {
    compile(text).matches(frame, frame.len())
}

/// A pcap file (not pcapng) of the frames; the time of each, in seconds, is its number.
fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut word = |value: u32| file.extend(value.to_le_bytes());
    // Microseconds, version 2.4, snaplen, Ethernet.
    [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 262_144, 1].into_iter().for_each(&mut word);
    for (number, frame) in frames.iter().enumerate() {
        for value in [number as u32, 0, frame.len() as u32, frame.len() as u32] {
            file.extend(value.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

/// The numbers of the frames that tcpdump's filter wants; `None` if it does not take the expression.
fn tcpdump(text: &str, file: &[u8]) -> Option<Vec<usize>> {
    let mut command = Command::new("tcpdump");
    command
        .args(["-O", "-r", "-", "-w", "-", text])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("tcpdump is installed: apt-get install tcpdump");
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // It may refuse the expression before it reads.
        scope.spawn(move || stdin.write_all(file));
        child.wait_with_output().unwrap()
    });
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return message.contains("rejects all packets").then(Vec::new);
    }
    let mut rest = &output.stdout[24.min(output.stdout.len())..];
    let mut numbers = Vec::new();
    while let Some(head) = rest.first_chunk::<16>() {
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
        numbers.push(word(0));
        rest = &rest[16 + word(8)..];
    }
    Some(numbers)
}

fn assert_agreement(text: &str, frames: &[Vec<u8>], file: &[u8]) -> usize {
    let filter = compile(text);
    let ours: Vec<usize> = (0..frames.len()).filter(|&at| filter.matches(&frames[at], frames[at].len())).collect();
    let theirs = tcpdump(text, file).unwrap_or_else(|| panic!("tcpdump does not take {text:?}"));
    let differ = ours.iter().find(|at| !theirs.contains(at)).or_else(|| theirs.iter().find(|at| !ours.contains(at)));
    if let Some(&at) = differ {
        panic!("{text:?}: tcpdump says {} of {:02x?}", theirs.contains(&at), frames[at]);
    }
    ours.len()
}

/// Frames of every kind, honest, tagged, spoilt and cut off.
fn frames() -> Vec<Vec<u8>> {
    let kinds = [
        Honest::udp4(),
        Honest::tcp4(),
        Honest::icmp4(),
        Honest::udp6(),
        Honest::tcp6(),
        Honest::icmp6(),
        Honest::arp(),
        Honest::udp4().fragment(0, true),
        Honest::udp4().fragment(3, false),
        Honest::tcp4().payload(900),
    ];
    let tags = [&[][..], &[5], &[7, 5], &[0x6005], &[5, 5, 5]];
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for kind in &kinds {
        for tags in tags {
            frames.push(tags.iter().fold(kind.clone(), |frame, &tag| frame.vlan(tag)).bytes());
        }
    }
    for kind in &kinds {
        let whole = kind.bytes();
        frames.extend((1..whole.len().min(90)).step_by(3).map(|len| whole[..len].to_vec()));
        // Options before the ports, other protocols, a fragment header, a broadcast.
        for (at, value) in [(14, 0x47), (23, 132), (23, 2), (20, 44), (20, 132), (12, 0x80), (0, 0xff), (26, 10)] {
            let mut spoilt = whole.clone();
            spoilt[at] = value;
            frames.push(spoilt);
        }
    }
    let mut broadcast = Honest::arp().bytes();
    broadcast[..6].fill(0xff);
    frames.push(broadcast.clone());
    broadcast[12..14].copy_from_slice(&0x8035u16.to_be_bytes());
    frames.push(broadcast);
    let mut runner = TestRunner::deterministic();
    frames.extend((0..400).map(|_| any_frame().new_tree(&mut runner).unwrap().current()));
    frames.retain(|frame| !frame.is_empty());
    frames
}

/// Single tests, as users write them. The frames go from 02:…:01 to 02:…:02, ports 1000 to 2000.
fn terms() -> Vec<String> {
    let v4 = Honest::udp4().bytes();
    let v6 = Honest::udp6().bytes();
    let quad = |at: usize| std::net::Ipv4Addr::from(*v4[at..].first_chunk::<4>().unwrap());
    let long = |at: usize| std::net::Ipv6Addr::from(*v6[at..].first_chunk::<16>().unwrap());
    let mac = |at: usize| v4[at..at + 6].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    let (source, destination) = (quad(26), quad(30));
    let [a, b, ..] = source.octets();
    let mut terms: Vec<String> = [
        "ip",
        "ip6",
        "arp",
        "rarp",
        "tcp",
        "udp",
        "icmp",
        "icmp6",
        "igmp",
        "sctp",
        "broadcast",
        "multicast",
        "ether broadcast",
        "ether multicast",
        "vlan",
        "vlan 5",
        "vlan 0x7",
        "proto 6",
        "proto \\udp",
        "ip proto 17",
        "ip6 proto 17",
        "ip6 proto \\tcp",
        "ip proto 2",
        "ether proto 0x0806",
        "ether proto \\ip",
        "port 2000",
        "src port 1000",
        "dst port 2000",
        "tcp port 2000",
        "udp dst port 2000",
        "sctp port 2000",
        "portrange 900-1000",
        "tcp src portrange 1-65535",
        "src and dst portrange 1000-2000",
        "src or dst port 1000",
        "portrange 2000-1500",
        "less 60",
        "less 0x40",
        "greater 100",
        "greater 61",
    ]
    .map(str::to_owned)
    .to_vec();
    terms.extend([
        format!("ether host {}", mac(0)),
        format!("ether src {}", mac(6)),
        format!("ether dst host {}", mac(6)),
        format!("ether src and dst {}", mac(6)),
        format!("host {source}"),
        format!("src {source}"),
        format!("dst {destination}"),
        format!("src or dst host {destination}"),
        format!("src and dst host {destination}"),
        format!("ip host {destination}"),
        format!("ip dst {destination}"),
        format!("arp host {source}"),
        format!("rarp src {source}"),
        format!("net {a}"),
        format!("net {a}.{b}"),
        format!("src net {a}.{b}.0.0/16"),
        format!("ip net {a}.0.0.0 mask 255.0.0.0"),
        "net 0.0.0.0/0".to_owned(),
        format!("dst net {destination}/32"),
        format!("host {}", long(22)),
        format!("ip6 src {}", long(22)),
        format!("dst {}", long(38)),
        format!("src and dst {}", long(38)),
        "net ::/0".to_owned(),
        format!("ip6 net {}/128", long(38)),
    ]);
    terms
}

#[test]
fn every_test_of_the_language_wants_what_tcpdump_wants() {
    let frames = frames();
    let file = pcap(&frames);
    for term in terms() {
        let wanted = assert_agreement(&term, &frames, &file);
        let rest = assert_agreement(&format!("not {term}"), &frames, &file);
        let is_rare = term.contains("src and dst") || term == "net 0.0.0.0/0" || term == "net ::/0";
        assert!(is_rare || wanted > 0, "{term:?} wants no frame of the test's");
        assert!(is_rare || rest > 0, "{term:?} wants all frames of the test's");
    }
}

/// Expressions that are right, of several tests.
fn any_expression() -> impl Strategy<Value = String> {
    let term = prop::sample::select(terms());
    term.prop_recursive(4, 12, 2, |inner| {
        prop_oneof![
            (inner.clone(), prop::sample::select(vec!["and", "or", "&&", "||"]), inner.clone())
                .prop_map(|(one, joint, other)| format!("{one} {joint} {other}")),
            inner.clone().prop_map(|inner| format!("not {inner}")),
            inner.clone().prop_map(|inner| format!("!({inner})")),
            inner.prop_map(|inner| format!("( {inner} )")),
        ]
    })
}

#[test]
fn expressions_want_what_tcpdump_wants() {
    let frames = frames();
    let file = pcap(&frames);
    let mut runner = TestRunner::deterministic();
    for quirk in [
        "tcp or udp and port 1000",
        "vlan 5 and tcp",
        "vlan 5 or tcp",
        "not vlan and tcp",
        "vlan 7 and vlan 5 and udp port 2000",
        "(vlan 5 or ip) and udp",
    ] {
        assert_agreement(quirk, &frames, &file);
    }
    let mut compared = 0;
    for _ in 0..200 {
        let text = any_expression().new_tree(&mut runner).unwrap().current();
        // Deeper than what either side takes.
        if text.matches("vlan").count() <= 4 {
            assert_agreement(&text, &frames, &file);
            compared += 1;
        }
    }
    assert!(compared > 150, "{compared}");
}

#[test]
fn what_is_refused_is_refused_with_its_place() {
    for (text, at, message) in [
        ("tcp and", 7, "ends where a test was expected"),
        ("tcp udp", 4, "\"udp\" where `and` or `or` was expected"),
        ("(tcp", 4, "`)` was expected"),
        ("tcp)", 3, "\")\" where `and` or `or` was expected"),
        ("port http", 5, "\"http\" is not a port from 0 to 65535"),
        ("port 70000", 5, "\"70000\" is not a port from 0 to 65535"),
        ("vlan 4096", 5, "\"4096\" is not a VLAN id from 0 to 4095"),
        ("host example.org", 5, "\"example.org\" is no address"),
        ("host 10.0.0.0/8", 5, "a host has no prefix; write `net`"),
        ("net 10.0.0.1/8", 4, "\"10.0.0.1/8\" has bits beyond its mask"),
        ("net 10.0.0.0/33", 4, "\"10.0.0.0/33\" is no address"),
        ("net 2001:db8::1/32", 4, "\"2001:db8::1/32\" has bits beyond its prefix"),
        ("net 1.2.3.4.5", 4, "\"1.2.3.4.5\" is no address"),
        ("ip host ::1", 8, "an IPv6 address where an IPv4 address was expected"),
        ("ip6 host 1.2.3.4", 9, "an IPv4 address where an IPv6 address was expected"),
        ("ether host 1:2:3", 11, "\"1:2:3\" is no MAC"),
        ("ether host 1:2:3:4:5:+6", 11, "\"1:2:3:4:5:+6\" is no MAC"),
        ("ether host 1:2:3:4:5:6:7", 11, "\"1:2:3:4:5:6:7\" is no MAC"),
        ("ether port 7", 6, "`ether` takes `host`, `src`, `dst` and `proto`"),
        ("tcp host 1.2.3.4", 9, "`port` or `portrange` was expected"),
        ("tcp[13] & 2 != 0", 0, "\"tcp[13]\" is no test this filter knows"),
        ("port 1 or 2", 10, "\"2\" is no test this filter knows"),
        ("10.0.0.1", 0, "\"10.0.0.1\" is no test this filter knows"),
        ("tcp & udp", 4, "\"&\" where `and` or `or` was expected"),
        ("é", 0, "\"é\" is no test this filter knows"),
    ] {
        let error = CaptureFilter::compile(text).expect_err(text);
        assert_eq!((error.at, error.message.as_str()), (at, message), "{text:?}");
    }
    assert_eq!(CaptureFilter::compile("(tcp").unwrap_err().to_string(), "filter, at byte 5: `)` was expected");
}

#[test]
fn an_empty_filter_wants_everything() {
    assert!(wants("", &[]) && wants(" \n", &[1, 2, 3]));
}

#[test]
fn expressions_are_bounded_in_every_direction() {
    let chain = |count: usize| vec!["tcp"; count].join(" or ");
    assert!(CaptureFilter::compile(&chain(TERMS_MAX)).is_ok());
    assert!(CaptureFilter::compile(&chain(TERMS_MAX + 1)).is_err());
    let nested = |depth: usize| format!("{}tcp{}", "(".repeat(depth), ")".repeat(depth));
    assert!(CaptureFilter::compile(&nested(DEPTH_MAX)).is_ok());
    assert!(CaptureFilter::compile(&nested(DEPTH_MAX + 1)).is_err());
    assert!(CaptureFilter::compile(&format!("{}tcp", "!".repeat(DEPTH_MAX + 1))).is_err());
    let tagged = |count: usize| vec!["vlan"; count].join(" and ");
    assert!(CaptureFilter::compile(&tagged(TAGS_MAX)).is_ok());
    assert!(CaptureFilter::compile(&tagged(TAGS_MAX + 1)).is_err());
    assert!(CaptureFilter::compile(&" ".repeat(LENGTH_MAX + 1)).is_err());
    // The longest chain, to its end.
    assert!(!wants(&chain(TERMS_MAX), &Honest::udp4().bytes()));
}

#[test]
fn a_filter_never_needs_more_than_it_is_shown() {
    let mut frame = Honest::tcp4().payload(100).bytes();
    for _ in 0..TAGS_MAX {
        frame.splice(ETHERTYPE..ETHERTYPE, [0x81, 0, 0, 5]);
    }
    // IPv4 with all its options; what then stands where the ports are.
    frame[ETHERNET + TAGS_MAX * TAG] = 0x4f;
    let ports = ETHERNET + TAGS_MAX * TAG + IPV4_MAX;
    frame[ports..ports + 4].copy_from_slice(&[0, 7, 0, 8]);
    let filter = format!("{} and src port 7 and dst port 8", ["vlan 5"; TAGS_MAX].join(" and "));
    assert!(compile(&filter).matches(&frame[..FILTER_BYTES], frame.len()));
}

proptest! {
    #[test]
    fn any_text_is_a_filter_or_refused_with_a_place_inside(text in "\\PC{0,200}", frame in any_frame()) {
        match CaptureFilter::compile(&text) {
            Ok(filter) => { filter.matches(&frame, frame.len()); }
            Err(error) => prop_assert!(error.at <= text.len()),
        }
    }

    #[test]
    fn any_words_are_a_filter_or_refused(
        words in prop::collection::vec(prop::sample::select(vec![
            "tcp", "udp", "ip", "ip6", "arp", "ether", "src", "dst", "host", "net", "port", "portrange", "proto", "vlan",
            "and", "or", "not", "!", "(", ")", "10.0.0.1", "10.0.0.0/8", "::1", "fe80::/10", "5", "1-2", "0x800", "mask",
            "2:0:0:0:0:1", "less", "greater", "broadcast", "multicast", "/", "0x", "99999999999", "\\tcp", "-", ":",
        ]), 0..12),
        frame in any_frame(),
    ) {
        let text = words.join(" ");
        match CaptureFilter::compile(&text) {
            Ok(filter) => { filter.matches(&frame, frame.len()); }
            Err(error) => prop_assert!(error.at <= text.len()),
        }
    }
}
