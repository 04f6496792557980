//! A frame on its way through the switch: a private head, and the place where its tail lies.
//!
//! The head is a copy of the first bytes, made once at rx; every check reads it and every rewrite changes it. A guest
//! that rewrites its buffer afterwards changes nothing that was checked. The tail stays where it lies, as segments kept
//! in the [`crate::batch::Batch`]; the packet only remembers which of them are its own.
//!
//! A packet belongs to the worker that received it, for one round. What must outlive the round is copied.

use crate::ids::{NetworkIndex, PortIndex, QueueIndex};
use crate::offload::{Offload, OffloadClaim};

/// Bytes kept free before the frame for headers that encapsulation adds: Ethernet, two tags, IPv6, UDP, Geneve and options.
pub const HEADROOM: usize = 128;
/// Bytes a head can hold: outer and inner headers, or a whole ARP, ND or DHCP message.
pub const HEAD_MAX: usize = 640;
/// Bytes rx copies into the head: two cache lines, enough for Ethernet, two tags, IPv6 and TCP with options.
pub const HEAD_COPY: usize = 128;
/// Segments a tail can have. A Linux guest needs at most 17 fragments and each may cross one memory region.
pub const SEGMENTS_MAX: usize = 36;

const _: () = assert!(HEAD_COPY <= HEAD_MAX);
const _: () = assert!((HEADROOM + HEAD_MAX).is_multiple_of(64));

/// The network-layer protocol of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum L3 {
    /// None that we parse.
    #[default]
    Other,
    /// Nobody has looked behind the EtherType, since nothing depends on it: the frame asks for no offload.
    Unread,
    /// ARP (RFC 826).
    Arp,
    /// IPv4 (RFC 791).
    Ipv4,
    /// IPv6 (RFC 8200).
    Ipv6,
}

/// Where the headers of a frame are; written by the parse stage, bytes from the start of the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Headers {
    /// The EtherType behind all tags, host byte order.
    pub ethertype: u16,
    /// How many VLAN tags stand before it.
    pub vlan_count: u8,
    /// What `l3_offset` points at.
    pub l3: L3,
    /// The outermost tag's control information; meaningless without a tag.
    pub vlan_tci: u16,
    /// First byte behind the EtherType.
    pub l3_offset: u16,
    /// First byte of the L4 header; 0 if there is none in this frame (no IP, or a later fragment).
    pub l4_offset: u16,
    /// IP protocol number of the L4 header; meaningless if `l4_offset` is 0.
    pub l4_protocol: u8,
    /// Whether the frame is a fragment, the first one included.
    pub is_fragment: bool,
}

impl Headers {
    /// Those of an untagged frame that nobody has looked into behind its EtherType.
    #[inline]
    pub const fn unread(ethertype: u16, l3_offset: u16) -> Headers {
        Headers {
            ethertype,
            vlan_count: 0,
            l3: L3::Unread,
            vlan_tci: 0,
            l3_offset,
            l4_offset: 0,
            l4_protocol: 0,
            is_fragment: false,
        }
    }
}

/// One frame: meta data, a private head with headroom, and the extent of its tail in the batch.
#[repr(C, align(64))]
pub struct Packet {
    /// Port the frame came in by.
    pub ingress: PortIndex,
    /// Queue of that port.
    pub queue: QueueIndex,
    /// Network it belongs to; set by the classify stage.
    pub network: NetworkIndex,
    head_start: u16,
    head_len: u16,
    tail_first: u16,
    tail_count: u16,
    tail_len: u32,
    /// Hash of the flow's addresses and ports; 0 while the headers are [`L3::Unread`].
    pub flow_hash: u32,
    /// What the sender's device claimed; read by the parse stage only.
    pub claim: OffloadClaim,
    /// What is left to do for the frame; written by the parse stage.
    pub offload: Offload,
    /// Where the headers are; written by the parse stage.
    pub headers: Headers,
    /// Keeps the frame's first byte at the begin of a cache line.
    _pad: [u8; HEAD_PAD],
    head: [u8; HEADROOM + HEAD_MAX],
}

/// Bytes between the meta data and the head.
const HEAD_PAD: usize = 4;
const _: () = assert!((std::mem::offset_of!(Packet, head) + HEADROOM).is_multiple_of(64));
const _: () = assert!(std::mem::offset_of!(Packet, head) == 64, "the meta data is one cache line");

impl Packet {
    pub(crate) const fn empty() -> Packet {
        Packet {
            ingress: PortIndex(0),
            queue: QueueIndex(0),
            network: NetworkIndex(0),
            head_start: HEADROOM as u16,
            head_len: 0,
            tail_first: 0,
            tail_count: 0,
            tail_len: 0,
            flow_hash: 0,
            claim: OffloadClaim { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 },
            offload: Offload { checksum: None, gso: None, checksum_valid: false },
            headers: Headers {
                ethertype: 0,
                vlan_count: 0,
                l3: L3::Other,
                vlan_tci: 0,
                l3_offset: 0,
                l4_offset: 0,
                l4_protocol: 0,
                is_fragment: false,
            },
            _pad: [0; HEAD_PAD],
            head: [0; HEADROOM + HEAD_MAX],
        }
    }

    /// Makes the packet an empty one with a tail that will start at segment `tail_first` of the batch.
    #[inline]
    pub(crate) fn reset(&mut self, ingress: PortIndex, queue: QueueIndex, tail_first: u16, claim: OffloadClaim) {
        self.ingress = ingress;
        self.queue = queue;
        self.head_start = HEADROOM as u16;
        self.head_len = 0;
        self.tail_first = tail_first;
        self.tail_count = 0;
        self.tail_len = 0;
        self.flow_hash = 0;
        self.claim = claim;
        self.offload = Offload::default();
    }

    /// The private head: the first bytes of the frame.
    #[inline]
    pub fn head(&self) -> &[u8] {
        let start = usize::from(self.head_start);
        &self.head[start..start + usize::from(self.head_len)]
    }

    /// The first `N` bytes of the head; `None` if it has fewer.
    #[inline]
    pub fn front<const N: usize>(&self) -> Option<&[u8; N]> {
        if usize::from(self.head_len) < N {
            return None;
        }
        self.head.get(usize::from(self.head_start)..)?.first_chunk()
    }

    /// The private head, to rewrite.
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        let start = usize::from(self.head_start);
        &mut self.head[start..start + usize::from(self.head_len)]
    }

    /// Room for `len` more bytes at the end of the head, now part of it; `None` if the head cannot hold them.
    #[inline]
    pub(crate) fn extend_head(&mut self, len: usize) -> Option<&mut [u8]> {
        let start = self.head_start as usize + self.head_len as usize;
        let room = self.head.get_mut(start..start + len)?;
        self.head_len += len as u16;
        Some(room)
    }

    /// Takes the last `len` bytes of the head away again.
    #[inline]
    pub(crate) fn shorten_head(&mut self, len: usize) {
        self.head_len -= len as u16;
    }

    /// The array that a head which is put in as a whole begins with.
    #[inline]
    pub(crate) fn front_mut(&mut self) -> &mut [u8; HEAD_COPY] {
        self.head[HEADROOM..].first_chunk_mut().expect("the head has room for more")
    }

    /// Says that [`Packet::front_mut`] was filled with the first `len` bytes of the frame.
    #[inline]
    pub(crate) fn set_front(&mut self, len: usize) {
        self.head_len = len as u16;
    }

    /// Bytes of the whole frame, head and tail.
    #[inline]
    pub fn len(&self) -> usize {
        self.head_len as usize + self.tail_len as usize
    }

    /// Whether the frame has no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the tail.
    #[inline]
    pub fn tail_len(&self) -> u32 {
        self.tail_len
    }

    /// Which segments of the batch are this packet's tail.
    #[inline]
    pub(crate) fn tail_range(&self) -> std::ops::Range<usize> {
        self.tail_first as usize..self.tail_first as usize + self.tail_count as usize
    }

    /// Tells the packet that another segment of `len` bytes was put behind its tail.
    #[inline]
    pub(crate) fn grow_tail(&mut self, len: u32) {
        self.tail_count += 1;
        self.tail_len += len;
    }

    /// Tells the packet that the first `dropped` segments of its tail and `len` bytes of the tail were consumed.
    #[inline]
    pub(crate) fn shrink_tail(&mut self, dropped: u16, len: u32) {
        self.tail_first += dropped;
        self.tail_count -= dropped;
        self.tail_len -= len;
    }
}
