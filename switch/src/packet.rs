//! A frame on its way through the switch: a private head, and the place where its tail lies.
//!
//! The head is a copy of the first bytes, made once at rx; every check reads it and every rewrite changes it. A guest
//! that rewrites its buffer afterwards changes nothing that was checked. The tail stays where it lies, as segments kept
//! in the [`crate::batch::Batch`]; the packet only remembers which of them are its own.
//!
//! A packet belongs to the worker that received it, for one round. What must outlive the round is copied.

use crate::ids::{NetworkIndex, PortIndex, QueueIndex};
use crate::ledger::DropReason;
use crate::offload::{F_DATA_VALID, F_NEEDS_CSUM, GSO_NONE, Offload, OffloadClaim};
use crate::segmentation::{Encapsulation, Tunnel};

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
    /// First byte behind the EtherType; where nobody has looked behind it, counted as if the frame were in no tunnel.
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
    /// The outer headers while the frame is in a tunnel; only from encapsulation until that copy was sent, so that nothing
    /// need be cleared for a frame that comes in.
    outer: Option<Outer>,
    head: [u8; HEADROOM + HEAD_MAX],
}

/// [`Encapsulation`] in four bytes, as packets keep it.
#[derive(Clone, Copy)]
pub struct Outer {
    is_ipv6: bool,
    is_gre: bool,
    l3_offset: u8,
    tunnel_offset: u8,
}

impl From<Encapsulation> for Outer {
    /// # Panics
    /// If they begin beyond the headroom.
    fn from(outer: Encapsulation) -> Outer {
        let byte = |offset: u16| u8::try_from(offset).expect("outer headers lie in the headroom");
        Outer {
            is_ipv6: outer.l3 == L3::Ipv6,
            is_gre: outer.tunnel == Tunnel::Gre,
            l3_offset: byte(outer.l3_offset),
            tunnel_offset: byte(outer.tunnel_offset),
        }
    }
}

const _: () = assert!(HEADROOM <= u8::MAX as usize && size_of::<Option<Outer>>() == 4);
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
            outer: None,
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

    /// Puts `len` bytes before the frame and answers the whole head, to be filled in from its begin; `None` if there is no such
    /// room. What is known of the frame moves along; [`Packet::retract`] takes the bytes off again.
    #[inline]
    pub fn extend_front(&mut self, len: usize) -> Option<&mut [u8]> {
        let moved = u16::try_from(len).ok()?;
        self.head_start = self.head_start.checked_sub(moved)?;
        self.head_len += moved;
        self.shift(|offset| offset + moved);
        Some(self.head_mut())
    }

    /// Puts the last `len` bytes of `front` before the frame, like [`Packet::extend_front`], and answers them where they lie now, with
    /// whatever stands before them there; `None` if there is no room for all of `front`. Its length is known when compiled, so
    /// that nothing is copied byte by byte.
    ///
    /// # Panics
    /// If `front` is shorter than `len`.
    #[inline]
    pub fn put_front<const N: usize>(&mut self, front: &[u8; N], len: usize) -> Option<&mut [u8; N]> {
        assert!(len <= N && N <= HEADROOM, "outer headers lie in the headroom");
        let at = usize::from(self.head_start).checked_sub(N)?;
        let moved = len as u16;
        self.head_start -= moved;
        self.head_len += moved;
        self.shift(|offset| offset + moved);
        let room = self.head.get_mut(at..)?.first_chunk_mut()?;
        *room = *front;
        Some(room)
    }

    /// Takes `len` bytes off the begin of the frame that [`Packet::extend_front`] or [`Packet::put_front`] put there.
    ///
    /// # Panics
    /// If the head is shorter.
    #[inline]
    pub fn retract(&mut self, len: usize) {
        let moved = len as u16;
        assert!(len <= usize::from(self.head_len), "only what was put before is taken off");
        self.head_start += moved;
        self.head_len -= moved;
        self.outer = None;
        self.shift(|offset| offset - moved);
    }

    /// Moves what counts from the start of the frame.
    #[inline]
    fn shift(&mut self, by: impl Fn(u16) -> u16) {
        if self.headers.l3 == L3::Unread {
            // Nothing is left to do for it, so nobody asks where anything is.
            return;
        }
        self.headers.l3_offset = by(self.headers.l3_offset);
        if self.headers.l4_offset > 0 {
            self.headers.l4_offset = by(self.headers.l4_offset);
        }
        if let Some(partial) = &mut self.offload.checksum {
            partial.start = by(partial.start);
        }
        if let Some(gso) = &mut self.offload.gso {
            gso.header_len = by(gso.header_len);
        }
    }

    /// Says what the bytes are that were just put before the frame.
    #[inline]
    pub fn set_outer(&mut self, outer: Outer) {
        self.outer = Some(outer);
    }

    /// The outer headers; `None` for a frame that is in no tunnel.
    #[inline]
    pub fn outer(&self) -> Option<Encapsulation> {
        self.outer.map(|outer| Encapsulation {
            l3: if outer.is_ipv6 { L3::Ipv6 } else { L3::Ipv4 },
            l3_offset: outer.l3_offset.into(),
            tunnel: if outer.is_gre { Tunnel::Gre } else { Tunnel::Udp },
            tunnel_offset: outer.tunnel_offset.into(),
        })
    }

    /// Takes the first `len` bytes off a frame that came in, before it is parsed: outer headers. The claim that came with it
    /// then is about what is left; one about what was taken off is forgotten, unless the frame was to be cut by it.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] if the head is shorter, [`DropReason::BadOffload`] for such a cut.
    #[inline]
    pub fn strip_front(&mut self, len: usize) -> Result<(), DropReason> {
        if len > usize::from(self.head_len) {
            return Err(DropReason::Truncated);
        }
        let moved = len as u16;
        if !self.claim.is_none() {
            match self.claim.csum_start.checked_sub(moved) {
                Some(start) if self.claim.flags & F_NEEDS_CSUM != 0 => {
                    self.claim.csum_start = start;
                    // Who vouches for a checksum means the outermost one.
                    self.claim.flags &= !F_DATA_VALID;
                }
                _ if self.claim.gso_type != GSO_NONE => return Err(DropReason::BadOffload),
                _ => self.claim = OffloadClaim::default(),
            }
        }
        self.head_start += moved;
        self.head_len -= moved;
        Ok(())
    }

    /// Room for `len` more bytes at the end of the head, now part of it; `None` if the head cannot hold them.
    #[inline]
    pub(crate) fn extend_head(&mut self, len: usize) -> Option<&mut [u8]> {
        let start = self.head_start as usize + self.head_len as usize;
        let room = self.head.get_mut(start..start + len)?;
        self.head_len += len as u16;
        Some(room)
    }

    /// Makes the head able to hold `len` bytes in all, at most [`HEAD_MAX`]: what was taken off its front gives room.
    pub(crate) fn make_room(&mut self, len: usize) {
        let start = usize::from(self.head_start);
        if start + len > self.head.len() {
            self.head.copy_within(start..start + usize::from(self.head_len), HEADROOM);
            self.head_start = HEADROOM as u16;
        }
    }

    /// Has an empty head begin where that of `other` does: all of that one fits then.
    pub(crate) fn begin_like(&mut self, other: &Packet) {
        self.head_start = other.head_start;
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

    /// Tells the packet that the last `dropped` segments of its tail and `len` bytes of its end were cut off.
    #[inline]
    pub(crate) fn shrink_tail_end(&mut self, dropped: u16, len: u32) {
        self.tail_count -= dropped;
        self.tail_len -= len;
    }

    /// Tells the packet that the first `dropped` segments of its tail and `len` bytes of the tail were consumed.
    #[inline]
    pub(crate) fn shrink_tail(&mut self, dropped: u16, len: u32) {
        self.tail_first += dropped;
        self.tail_count -= dropped;
        self.tail_len -= len;
    }
}
