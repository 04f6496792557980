//! Offload state: what a sender left for its device to do, as claimed and as checked.
//!
//! A guest hands a `virtio_net_hdr` with every frame (virtio 1.2 section 5.1.6). Passed on unchecked it would let a
//! sender make the receiver's kernel rewrite bytes that we had checked. So a port stores it as an [`OffloadClaim`], the
//! parse stage holds it against the frame's own headers, and only the result, an [`Offload`], ever reaches an egress.

/// Bytes of `virtio_net_hdr` without `num_buffers`.
pub const VNET_HEADER_LEN: usize = 10;
/// Bytes of `virtio_net_hdr` with `num_buffers`: mergeable buffers, or virtio 1.
pub const VNET_HEADER_MRG_LEN: usize = 12;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`
pub const F_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`
pub const F_DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_NONE`
pub const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_UDP`, which we never offer.
pub const GSO_UDP: u8 = 3;
/// `VIRTIO_NET_HDR_GSO_TCPV6`
pub const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`
pub const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`
pub const GSO_ECN: u8 = 0x80;

/// A `virtio_net_hdr` as a device handed it over: nothing in it has been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct OffloadClaim {
    /// `VIRTIO_NET_HDR_F_*`
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of headers, by the sender's word; never believed.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where checksumming starts, bytes from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum goes, bytes from `csum_start`.
    pub csum_offset: u16,
}

impl OffloadClaim {
    /// Reads the little-endian header of virtio 1.
    #[inline]
    pub fn from_bytes(bytes: &[u8; VNET_HEADER_LEN]) -> OffloadClaim {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        OffloadClaim {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// The same from the first two little-endian words of the header and what follows it.
    #[inline]
    pub fn from_words(low: u64, high: u64) -> OffloadClaim {
        OffloadClaim {
            flags: low as u8,
            gso_type: (low >> 8) as u8,
            hdr_len: (low >> 16) as u16,
            gso_size: (low >> 32) as u16,
            csum_start: (low >> 48) as u16,
            csum_offset: high as u16,
        }
    }

    /// Whether the sender asks for nothing and tells nothing: the common case of small frames.
    #[inline]
    pub fn is_none(&self) -> bool {
        self.flags == 0 && self.gso_type == GSO_NONE
    }
}

/// What kind of large frame a receiver may cut up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of equal size (USO), over IPv4 or IPv6.
    UdpL4,
}

/// A checked request to cut a frame into segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gso {
    /// Protocols of the frame, as parsed by us.
    pub kind: GsoKind,
    /// Payload bytes of each segment.
    pub size: u16,
    /// Bytes of Ethernet, IP and L4 headers, computed by our parse.
    pub header_len: u16,
    /// Whether the TCP frame has CWR set and needs an ECN-aware cut (RFC 3168).
    pub ecn: bool,
}

/// A checked request to fill in an L4 checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialChecksum {
    /// The L4 header, bytes from the start of the frame.
    pub start: u16,
    /// The checksum field, bytes from `start`.
    pub offset: u16,
}

/// What an egress still has to do for a frame; checked against the frame's own headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// The checksum to complete; `None` if the frame carries a whole one or none.
    pub checksum: Option<PartialChecksum>,
    /// The cut to make; `None` for a frame that fits the wire.
    pub gso: Option<Gso>,
    /// The sender's device vouches for the checksum (`VIRTIO_NET_HDR_F_DATA_VALID`).
    pub checksum_valid: bool,
}

impl Offload {
    /// Whether nothing is left to do.
    #[inline]
    pub fn is_none(&self) -> bool {
        self.checksum.is_none() && self.gso.is_none()
    }

    /// The `virtio_net_hdr` that tells a receiver of this frame what is left, `num_buffers` = 1 in the last two bytes.
    #[inline]
    pub fn to_bytes(&self) -> [u8; VNET_HEADER_MRG_LEN] {
        let mut bytes = [0u8; VNET_HEADER_MRG_LEN];
        bytes[10] = 1;
        if let Some(partial) = self.checksum {
            bytes[0] = F_NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&partial.start.to_le_bytes());
            bytes[8..10].copy_from_slice(&partial.offset.to_le_bytes());
        } else if self.checksum_valid {
            bytes[0] = F_DATA_VALID;
        }
        if let Some(gso) = self.gso {
            bytes[1] = match gso.kind {
                GsoKind::Tcp4 => GSO_TCPV4,
                GsoKind::Tcp6 => GSO_TCPV6,
                GsoKind::UdpL4 => GSO_UDP_L4,
            } | if gso.ecn { GSO_ECN } else { 0 };
            bytes[2..4].copy_from_slice(&gso.header_len.to_le_bytes());
            bytes[4..6].copy_from_slice(&gso.size.to_le_bytes());
        }
        bytes
    }
}

/// What the far side of a port can finish by itself. Negotiated per port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EgressOffloads {
    /// Completes partial checksums.
    pub checksum: bool,
    /// Takes large TCP frames over IPv4.
    pub tso4: bool,
    /// Takes large TCP frames over IPv6.
    pub tso6: bool,
    /// Takes large TCP frames with CWR set.
    pub ecn: bool,
    /// Takes large UDP frames.
    pub uso: bool,
}

impl EgressOffloads {
    /// Whether the far side can take this cut over from us.
    #[inline]
    pub fn takes(&self, gso: &Gso) -> bool {
        (match gso.kind {
            GsoKind::Tcp4 => self.tso4,
            GsoKind::Tcp6 => self.tso6,
            GsoKind::UdpL4 => self.uso,
        }) && (!gso.ecn || self.ecn)
    }
}
