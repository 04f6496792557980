//! Captures as a reader of pcapng files sees them: written from the format's description alone, so that it is a witness
//! for what the switch writes (draft-ietf-opsawg-pcapng).

/// A frame of a capture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captured {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Bytes it had.
    pub len: usize,
    /// `epb_flags`
    pub flags: u32,
    /// `epb_dropcount`, 0 if absent.
    pub lost: u64,
    /// `opt_comment`, empty if absent.
    pub comment: String,
    /// What was captured of it.
    pub bytes: Vec<u8>,
}

impl Captured {
    /// Whether it came from the device into the switch.
    pub fn is_inbound(&self) -> bool {
        self.flags & 3 == 1
    }
}

/// A whole file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Capture {
    /// `if_name`
    pub interface: String,
    /// The frames, in the order of the file.
    pub frames: Vec<Captured>,
    /// `isb_ifrecv`, `isb_filteraccept`, `isb_osdrop`, `isb_usrdeliv`; `None` without statistics.
    pub statistics: Option<[u64; 4]>,
    /// Bytes behind the last whole block.
    pub rest: usize,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Options as (code, value).
fn options(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= 4 {
        let (code, len) = (word(bytes, 0) as u16, (word(bytes, 0) >> 16) as usize);
        if code == 0 {
            break;
        }
        found.push((code, &bytes[4..4 + len]));
        bytes = &bytes[4 + len.next_multiple_of(4)..];
    }
    found
}

fn text(value: &[u8]) -> String {
    String::from_utf8(value.to_vec()).expect("texts are UTF-8")
}

fn number(value: &[u8]) -> u64 {
    u64::from_le_bytes(value.try_into().expect("eight bytes"))
}

/// Reads a file that may end within a block.
///
/// # Panics
/// If it is not pcapng of one Ethernet interface with times in nanoseconds.
pub fn read(mut bytes: &[u8]) -> Capture {
    let mut capture = Capture::default();
    let mut kinds = Vec::new();
    while bytes.len() >= 12 && bytes.len() >= word(bytes, 4) as usize {
        let (kind, len) = (word(bytes, 0), word(bytes, 4) as usize);
        assert_eq!(word(bytes, len - 4) as usize, len, "the length stands at both ends");
        let body = &bytes[8..len - 4];
        bytes = &bytes[len..];
        kinds.push(kind);
        match kind {
            0x0a0d_0d0a => assert_eq!((word(body, 0), word(body, 4)), (0x1a2b_3c4d, 1), "version 1.0, our byte order"),
            1 => {
                assert_eq!(word(body, 0), 1, "Ethernet");
                for (code, value) in options(&body[8..]) {
                    match code {
                        2 => capture.interface = text(value),
                        9 => assert_eq!(value, [9], "nanoseconds"),
                        _ => {}
                    }
                }
            }
            5 => {
                let count = |wanted| {
                    let found = options(&body[12..]).into_iter().find(|(code, _)| *code == wanted);
                    number(found.expect("all statistics are there").1)
                };
                capture.statistics = Some([4, 6, 7, 8].map(count));
            }
            6 => {
                assert_eq!(word(body, 0), 0, "the one interface");
                let len = word(body, 12) as usize;
                let mut frame = Captured {
                    time_ns: u64::from(word(body, 4)) << 32 | u64::from(word(body, 8)),
                    len: word(body, 16) as usize,
                    flags: 0,
                    lost: 0,
                    comment: String::new(),
                    bytes: body[20..20 + len].to_vec(),
                };
                for (code, value) in options(&body[20 + len.next_multiple_of(4)..]) {
                    match code {
                        1 => frame.comment = text(value),
                        2 => frame.flags = word(value, 0),
                        4 => frame.lost = number(value),
                        _ => {}
                    }
                }
                capture.frames.push(frame);
            }
            other => panic!("a block of type {other}"),
        }
    }
    assert!(kinds.is_empty() || kinds.starts_with(&[0x0a0d_0d0a, 1]), "{kinds:?}");
    assert!(!kinds.contains(&5) || kinds.ends_with(&[5]), "statistics stand last");
    capture.rest = bytes.len();
    capture
}
