//! The messages of vhost-user: bytes to a typed [`Request`] and back, and nothing else.
//!
//! Pure functions, used by the backend, by the driver that plays the guest in tests, and by the fuzzer. A message is a
//! 12-byte header, a payload and file descriptors that travel beside it. All integers are in the byte order of the host,
//! which both sides share (vhost-user specification, "Message specification"). A peer is hostile: every size, count and
//! flag is held against what the message may be before anything is read, and an unknown message is an error with a name.
//! Bounds: a payload has at most [`PAYLOAD_MAX`] bytes, a memory table at most [`REGIONS_MAX`] regions.

/// Bytes of a message header: request, flags, payload size.
pub const HEADER_LEN: usize = 12;
/// Regions a memory table may have. The specification's baseline is 8; hot-plugged DIMMs take one each.
pub const REGIONS_MAX: usize = 32;
/// Bytes of the longest payload: a full memory table.
pub const PAYLOAD_MAX: usize = 8 + REGION_LEN * REGIONS_MAX;
/// File descriptors that can come with one message: one a region.
pub const FDS_MAX: usize = REGIONS_MAX;

const REGION_LEN: usize = 32;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0x3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
const RING_INDEX_MASK: u64 = 0xff;
const RING_NO_FD: u64 = 1 << 8;

/// `VHOST_USER_F_PROTOCOL_FEATURES`, in the space of virtio features.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol features (vhost-user specification, "Protocol features"), as bits.
pub mod protocol {
    /// Number of queues can be asked for.
    pub const MQ: u64 = 1 << 0;
    /// The log of dirty pages is shared memory.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// The backend sends RARP for a guest that cannot announce itself.
    pub const RARP: u64 = 1 << 2;
    /// Any message may ask for an answer.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The frontend tells the MTU it gives to the guest.
    pub const NET_MTU: u64 = 1 << 4;
    /// The state of buffers that are being used is kept in memory that outlives the backend.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// The device can be reset as a whole.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// Memory regions come and go one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// The frontend tells the device status.
    pub const STATUS: u64 = 1 << 16;
}

macro_rules! codes {
    ($($name:ident = $number:literal,)*) => {
        /// The number of a message.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Code {
            $(#[doc = concat!("Message ", $number, " of the specification.")] $name = $number,)*
        }

        impl Code {
            /// The message of that number, if we know it.
            pub fn from_number(number: u32) -> Option<Code> {
                match number { $($number => Some(Code::$name),)* _ => None }
            }

            /// Every message we know.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];
        }
    };
}

codes! {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    ResetOwner = 4,
    SetMemTable = 5,
    SetLogBase = 6,
    SetLogFd = 7,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SendRarp = 19,
    NetSetMtu = 20,
    SetVringEndian = 23,
    GetInflightFd = 31,
    SetInflightFd = 32,
    ResetDevice = 34,
    GetMaxMemSlots = 36,
    AddMemReg = 37,
    RemMemReg = 38,
    SetStatus = 39,
    GetStatus = 40,
}

/// Why bytes are not a message we understand. Each ends the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageError {
    /// The version bits are not 1.
    #[error("message {request} has flags {flags:#x}, whose version is not 1")]
    BadVersion {
        /// The message's number.
        request: u32,
        /// Its flags.
        flags: u32,
    },
    /// A reply where a request belongs, or the reverse.
    #[error("message {request} is a reply where a request belongs, or the reverse")]
    WrongDirection {
        /// The message's number.
        request: u32,
    },
    /// A message number we do not know, or one whose feature was not offered.
    #[error("message {request} is unknown")]
    Unknown {
        /// The message's number.
        request: u32,
    },
    /// The payload is longer than any message's.
    #[error("message {request} announces {size} bytes; the longest has {PAYLOAD_MAX}")]
    TooLong {
        /// The message's number.
        request: u32,
        /// The announced payload, bytes.
        size: u32,
    },
    /// The payload has another size than this message's.
    #[error("{code:?} has {given} bytes of payload instead of {wanted}")]
    WrongSize {
        /// The message.
        code: Code,
        /// Payload it came with, bytes.
        given: usize,
        /// Payload it should have, bytes.
        wanted: usize,
    },
    /// Too few or too many file descriptors.
    #[error("{code:?} came with {given} file descriptors instead of {wanted}")]
    WrongFdCount {
        /// The message.
        code: Code,
        /// How many came.
        given: usize,
        /// How many belong to it.
        wanted: usize,
    },
    /// A memory table beyond [`REGIONS_MAX`].
    #[error("a memory table of {given} regions; the most is {REGIONS_MAX}")]
    TooManyRegions {
        /// How many it has.
        given: u32,
    },
    /// A field has a value the specification does not give it.
    #[error("{code:?} has the value {given}, which means nothing")]
    BadValue {
        /// The message.
        code: Code,
        /// The value.
        given: u64,
    },
}

/// The first 12 bytes of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Number of the message.
    pub request: u32,
    /// Version, direction, and whether an answer is wanted.
    pub flags: u32,
    /// Bytes of payload that follow; at most [`PAYLOAD_MAX`] after [`Header::parse`].
    pub size: u32,
}

impl Header {
    /// Reads a header and checks version and size, so that the payload may be waited for.
    ///
    /// # Errors
    /// [`MessageError::BadVersion`], [`MessageError::TooLong`].
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Header, MessageError> {
        let header = Header { request: u32_at(bytes, 0), flags: u32_at(bytes, 4), size: u32_at(bytes, 8) };
        if header.flags & VERSION_MASK != VERSION {
            return Err(MessageError::BadVersion { request: header.request, flags: header.flags });
        }
        if header.size as usize > PAYLOAD_MAX {
            return Err(MessageError::TooLong { request: header.request, size: header.size });
        }
        Ok(header)
    }

    /// Whether the sender wants an answer to a message that has none by itself; means nothing without `REPLY_ACK`.
    pub fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// Whether it answers a request.
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }

    fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }
}

/// One region of guest memory, as the peer describes it. Nothing in it has been checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionInfo {
    /// Guest physical address of the first byte.
    pub guest_address: u64,
    /// Bytes in the region.
    pub size: u64,
    /// Address of the first byte in the frontend's own space; ring addresses are given in it.
    pub user_address: u64,
    /// Where the region begins in the file that comes with it, bytes.
    pub file_offset: u64,
}

/// Where the log of dirty pages lies in the file that comes with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogInfo {
    /// Bytes of the log: one bit a page of 4,096 bytes, from guest address 0 on.
    pub size: u64,
    /// Where it begins in the file, bytes.
    pub file_offset: u64,
}

/// Where the inflight area lies in its file, and what it has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InflightInfo {
    /// Bytes of the area; of no meaning in the question.
    pub size: u64,
    /// Where it begins in the file, bytes.
    pub file_offset: u64,
    /// Rings it is for.
    pub ring_count: u16,
    /// Entries of each ring.
    pub ring_size: u16,
}

/// A place in a packed ring, as SET_VRING_BASE and GET_VRING_BASE carry it: each index has 15 bits, and the lap's wrap counter
/// stands above it (specification, "Vring state description" and virtio 1.2 section 2.8.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackedPosition {
    /// The next entry to take from the driver.
    pub available: u16,
    /// The driver's wrap counter there.
    pub available_wrap: bool,
    /// The next entry to give back.
    pub used: u16,
    /// The device's wrap counter there.
    pub used_wrap: bool,
}

impl PackedPosition {
    /// Where a ring begins (virtio 1.2 section 2.8.1: both wrap counters are 1 at first).
    pub const START: PackedPosition = PackedPosition { available: 0, available_wrap: true, used: 0, used_wrap: true };

    /// Reads the number of a message.
    pub fn from_bits(bits: u32) -> PackedPosition {
        let half = |bits: u32| ((bits & 0x7fff) as u16, bits & 0x8000 != 0);
        let ((available, available_wrap), (used, used_wrap)) = (half(bits), half(bits >> 16));
        PackedPosition { available, available_wrap, used, used_wrap }
    }

    /// The number of a message.
    pub fn to_bits(self) -> u32 {
        let half = |index: u16, wrap: bool| u32::from(index & 0x7fff) | u32::from(wrap) << 15;
        half(self.available, self.available_wrap) | half(self.used, self.used_wrap) << 16
    }
}

/// A ring and a number: its size, or a position in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingState {
    /// Which ring: 0 is what the guest receives by, 1 what it sends by.
    pub index: u32,
    /// The number.
    pub value: u32,
}

/// Where a ring's three parts lie, in the frontend's own address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingAddresses {
    /// Which ring.
    pub index: u32,
    /// Bit 0, [`RING_LOG`]: log writes to the used ring.
    pub flags: u32,
    /// The descriptor table.
    pub descriptors: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub available: u64,
    /// The guest physical address at which the used ring's first byte is logged; it need not lie in the memory table.
    pub log: u64,
}

/// `VHOST_VRING_F_LOG`, in [`RingAddresses::flags`].
pub const RING_LOG: u32 = 1;

/// A ring and whether a file descriptor comes for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingFd {
    /// Which ring.
    pub index: u8,
    /// Whether there is one; without it the ring is polled, or no signal is wanted.
    pub has_fd: bool,
}

/// A message from the frontend, in type and number right; whether it fits the session's state is not said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Asks for our virtio features.
    GetFeatures,
    /// Chooses virtio features.
    SetFeatures(u64),
    /// The sender owns the session from now on.
    SetOwner,
    /// Deprecated: stop all rings and forget.
    ResetOwner,
    /// The guest's memory; one file descriptor a region.
    SetMemTable(Vec<RegionInfo>),
    /// The log of dirty pages, with its file.
    SetLogBase(LogInfo),
    /// An eventfd that may be signalled when the log has grown.
    SetLogFd,
    /// A ring's size, entries.
    SetVringNum(RingState),
    /// A ring's addresses.
    SetVringAddr(RingAddresses),
    /// Where in the ring to begin.
    SetVringBase(RingState),
    /// Stop the ring and tell where it stands.
    GetVringBase(u32),
    /// The eventfd by which the guest wakes us.
    SetVringKick(RingFd),
    /// The eventfd by which we interrupt the guest.
    SetVringCall(RingFd),
    /// The eventfd by which we tell that a ring is broken.
    SetVringErr(RingFd),
    /// Asks for our protocol features.
    GetProtocolFeatures,
    /// Chooses protocol features.
    SetProtocolFeatures(u64),
    /// Asks how many queue pairs we have.
    GetQueueNum,
    /// Switches a ring on or off.
    SetVringEnable {
        /// Which ring.
        index: u32,
        /// On or off.
        is_enabled: bool,
    },
    /// The guest with this MAC has moved here: announce it.
    SendRarp([u8; 6]),
    /// The MTU the frontend gives to the guest, bytes.
    NetSetMtu(u64),
    /// The byte order of a legacy ring: 0 little, 1 big.
    SetVringEndian(RingState),
    /// Asks for an inflight area.
    GetInflightFd(InflightInfo),
    /// Hands back an inflight area, with its file.
    SetInflightFd(InflightInfo),
    /// Stop all rings and forget everything but the session itself.
    ResetDevice,
    /// Asks how many memory regions there can be.
    GetMaxMemSlots,
    /// One more region, with its file.
    AddMemReg(RegionInfo),
    /// One region less: that of this guest address, user address and size.
    RemMemReg(RegionInfo),
    /// The device status of virtio 1.2 section 2.1.
    SetStatus(u64),
    /// Asks for the device status.
    GetStatus,
}

/// What an answer carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// A number: features, a count, or zero for "done" where `REPLY_ACK` asked.
    Number(u64),
    /// A ring's position.
    Ring(RingState),
    /// An inflight area, whose file goes along.
    Inflight(InflightInfo),
}

/// Bytes of [`InflightInfo`] as frontends send it: they pad the structure to eight bytes. Without padding it has 20.
const INFLIGHT_LEN: usize = 24;
const INFLIGHT_LEN_MIN: usize = 20;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("two bytes were sliced"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes were sliced"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes were sliced"))
}

/// Makes a request of a checked header, its payload and the number of file descriptors that came along.
///
/// # Errors
/// [`MessageError`]; the session cannot go on, for what follows may mean anything.
pub fn parse(header: &Header, payload: &[u8], fd_count: usize) -> Result<Request, MessageError> {
    if header.is_reply() {
        return Err(MessageError::WrongDirection { request: header.request });
    }
    let code = Code::from_number(header.request).ok_or(MessageError::Unknown { request: header.request })?;
    let size = |wanted: usize| match payload.len() {
        given if given == wanted => Ok(()),
        given => Err(MessageError::WrongSize { code, given, wanted }),
    };
    let fds = |wanted: usize| match fd_count {
        given if given == wanted => Ok(()),
        given => Err(MessageError::WrongFdCount { code, given, wanted }),
    };
    let number = || size(8).map(|()| u64_at(payload, 0));
    let ring = || size(8).map(|()| RingState { index: u32_at(payload, 0), value: u32_at(payload, 4) });
    let ring_fd = || {
        let bits = number()?;
        if bits & !(RING_INDEX_MASK | RING_NO_FD) != 0 {
            return Err(MessageError::BadValue { code, given: bits });
        }
        let has_fd = bits & RING_NO_FD == 0;
        fds(usize::from(has_fd))?;
        Ok(RingFd { index: (bits & RING_INDEX_MASK) as u8, has_fd })
    };

    match code {
        Code::SetMemTable | Code::SetVringKick | Code::SetVringCall | Code::SetVringErr => {}
        Code::SetLogBase | Code::SetLogFd | Code::SetInflightFd | Code::AddMemReg => fds(1)?,
        // "The back-end MAY accept messages with one file descriptor" (specification, REM_MEM_REG): QEMU sends one.
        Code::RemMemReg if fd_count == 1 => {}
        _ => fds(0)?,
    }
    let inflight = || {
        match payload.len() {
            INFLIGHT_LEN | INFLIGHT_LEN_MIN => {}
            given => return Err(MessageError::WrongSize { code, given, wanted: INFLIGHT_LEN }),
        }
        let (ring_count, ring_size) = (u16_at(payload, 16), u16_at(payload, 18));
        Ok(InflightInfo { size: u64_at(payload, 0), file_offset: u64_at(payload, 8), ring_count, ring_size })
    };
    // Eight bytes of padding come first.
    let one_region = || size(8 + REGION_LEN).map(|()| region_at(payload, 8));
    Ok(match code {
        Code::GetFeatures => size(0).map(|()| Request::GetFeatures)?,
        Code::SetOwner => size(0).map(|()| Request::SetOwner)?,
        Code::ResetOwner => size(0).map(|()| Request::ResetOwner)?,
        Code::GetProtocolFeatures => size(0).map(|()| Request::GetProtocolFeatures)?,
        Code::GetQueueNum => size(0).map(|()| Request::GetQueueNum)?,
        Code::GetStatus => size(0).map(|()| Request::GetStatus)?,
        Code::SetFeatures => Request::SetFeatures(number()?),
        Code::SetProtocolFeatures => Request::SetProtocolFeatures(number()?),
        Code::NetSetMtu => Request::NetSetMtu(number()?),
        Code::SetStatus => Request::SetStatus(number()?),
        Code::SendRarp => {
            size(8)?;
            Request::SendRarp(payload[..6].try_into().expect("six bytes were sliced"))
        }
        Code::SetVringEndian => Request::SetVringEndian(ring()?),
        Code::GetInflightFd => Request::GetInflightFd(inflight()?),
        Code::SetInflightFd => Request::SetInflightFd(inflight()?),
        Code::ResetDevice => size(0).map(|()| Request::ResetDevice)?,
        Code::GetMaxMemSlots => size(0).map(|()| Request::GetMaxMemSlots)?,
        Code::AddMemReg => Request::AddMemReg(one_region()?),
        Code::RemMemReg => Request::RemMemReg(one_region()?),
        Code::SetLogBase => {
            size(16)?;
            Request::SetLogBase(LogInfo { size: u64_at(payload, 0), file_offset: u64_at(payload, 8) })
        }
        Code::SetLogFd => size(0).map(|()| Request::SetLogFd)?,
        Code::SetVringNum => Request::SetVringNum(ring()?),
        Code::SetVringBase => Request::SetVringBase(ring()?),
        Code::GetVringBase => Request::GetVringBase(ring()?.index),
        Code::SetVringEnable => match ring()? {
            RingState { index, value: value @ 0..=1 } => Request::SetVringEnable { index, is_enabled: value == 1 },
            RingState { value, .. } => return Err(MessageError::BadValue { code, given: u64::from(value) }),
        },
        Code::SetVringAddr => {
            size(40)?;
            Request::SetVringAddr(RingAddresses {
                index: u32_at(payload, 0),
                flags: u32_at(payload, 4),
                descriptors: u64_at(payload, 8),
                used: u64_at(payload, 16),
                available: u64_at(payload, 24),
                log: u64_at(payload, 32),
            })
        }
        Code::SetVringKick => Request::SetVringKick(ring_fd()?),
        Code::SetVringCall => Request::SetVringCall(ring_fd()?),
        Code::SetVringErr => Request::SetVringErr(ring_fd()?),
        Code::SetMemTable => Request::SetMemTable(memory_table(payload, fd_count)?),
    })
}

fn memory_table(payload: &[u8], fd_count: usize) -> Result<Vec<RegionInfo>, MessageError> {
    let code = Code::SetMemTable;
    if payload.len() < 8 {
        return Err(MessageError::WrongSize { code, given: payload.len(), wanted: 8 });
    }
    let count = u32_at(payload, 0);
    if count as usize > REGIONS_MAX {
        return Err(MessageError::TooManyRegions { given: count });
    }
    let count = count as usize;
    let wanted = 8 + REGION_LEN * count;
    if payload.len() != wanted {
        return Err(MessageError::WrongSize { code, given: payload.len(), wanted });
    }
    if fd_count != count {
        return Err(MessageError::WrongFdCount { code, given: fd_count, wanted: count });
    }
    Ok((0..count).map(|region| region_at(payload, 8 + REGION_LEN * region)).collect())
}

fn region_at(bytes: &[u8], at: usize) -> RegionInfo {
    RegionInfo {
        guest_address: u64_at(bytes, at),
        size: u64_at(bytes, at + 8),
        user_address: u64_at(bytes, at + 16),
        file_offset: u64_at(bytes, at + 24),
    }
}

impl RegionInfo {
    fn to_words(self) -> [u64; 4] {
        [self.guest_address, self.size, self.user_address, self.file_offset]
    }
}

impl InflightInfo {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = [self.size.to_ne_bytes(), self.file_offset.to_ne_bytes()].concat();
        bytes.extend([self.ring_count.to_ne_bytes(), self.ring_size.to_ne_bytes()].concat());
        bytes.resize(INFLIGHT_LEN, 0);
        bytes
    }
}

impl Request {
    /// Its number.
    pub fn code(&self) -> Code {
        match self {
            Request::GetFeatures => Code::GetFeatures,
            Request::SetFeatures(_) => Code::SetFeatures,
            Request::SetOwner => Code::SetOwner,
            Request::ResetOwner => Code::ResetOwner,
            Request::SetMemTable(_) => Code::SetMemTable,
            Request::SetLogBase(_) => Code::SetLogBase,
            Request::SetLogFd => Code::SetLogFd,
            Request::SetVringNum(_) => Code::SetVringNum,
            Request::SetVringAddr(_) => Code::SetVringAddr,
            Request::SetVringBase(_) => Code::SetVringBase,
            Request::GetVringBase(_) => Code::GetVringBase,
            Request::SetVringKick(_) => Code::SetVringKick,
            Request::SetVringCall(_) => Code::SetVringCall,
            Request::SetVringErr(_) => Code::SetVringErr,
            Request::GetProtocolFeatures => Code::GetProtocolFeatures,
            Request::SetProtocolFeatures(_) => Code::SetProtocolFeatures,
            Request::GetQueueNum => Code::GetQueueNum,
            Request::SetVringEnable { .. } => Code::SetVringEnable,
            Request::SendRarp(_) => Code::SendRarp,
            Request::NetSetMtu(_) => Code::NetSetMtu,
            Request::SetVringEndian(_) => Code::SetVringEndian,
            Request::GetInflightFd(_) => Code::GetInflightFd,
            Request::SetInflightFd(_) => Code::SetInflightFd,
            Request::ResetDevice => Code::ResetDevice,
            Request::GetMaxMemSlots => Code::GetMaxMemSlots,
            Request::AddMemReg(_) => Code::AddMemReg,
            Request::RemMemReg(_) => Code::RemMemReg,
            Request::SetStatus(_) => Code::SetStatus,
            Request::GetStatus => Code::GetStatus,
        }
    }

    /// Whether the specification gives it an answer of its own.
    pub fn has_reply(&self) -> bool {
        matches!(
            self,
            Request::GetFeatures
                | Request::GetProtocolFeatures
                | Request::GetQueueNum
                | Request::GetVringBase(_)
                | Request::SetLogBase(_)
                | Request::GetInflightFd(_)
                | Request::GetMaxMemSlots
                | Request::GetStatus
        )
    }

    /// Header and payload, as they go over the socket; what the driver side sends.
    pub fn to_bytes(&self, needs_reply: bool) -> Vec<u8> {
        let numbers = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let pair = |index: u32, value: u32| [index.to_ne_bytes(), value.to_ne_bytes()].concat();
        let ring_fd = |ring: &RingFd| numbers(&[u64::from(ring.index) | if ring.has_fd { 0 } else { RING_NO_FD }]);
        let payload = match self {
            Request::GetFeatures
            | Request::SetOwner
            | Request::ResetOwner
            | Request::GetProtocolFeatures
            | Request::GetQueueNum
            | Request::SetLogFd
            | Request::ResetDevice
            | Request::GetMaxMemSlots
            | Request::GetStatus => Vec::new(),
            Request::SetFeatures(value)
            | Request::SetProtocolFeatures(value)
            | Request::NetSetMtu(value)
            | Request::SetStatus(value) => numbers(&[*value]),
            Request::SendRarp(mac) => [&mac[..], &[0, 0]].concat(),
            Request::SetVringNum(ring) | Request::SetVringBase(ring) | Request::SetVringEndian(ring) => {
                pair(ring.index, ring.value)
            }
            Request::SetLogBase(log) => numbers(&[log.size, log.file_offset]),
            Request::GetInflightFd(area) | Request::SetInflightFd(area) => area.to_bytes(),
            Request::AddMemReg(region) | Request::RemMemReg(region) => {
                [numbers(&[0]), numbers(&region.to_words())].concat()
            }
            Request::GetVringBase(index) => pair(*index, 0),
            Request::SetVringEnable { index, is_enabled } => pair(*index, u32::from(*is_enabled)),
            Request::SetVringAddr(ring) => {
                let mut bytes = pair(ring.index, ring.flags);
                bytes.extend(numbers(&[ring.descriptors, ring.used, ring.available, ring.log]));
                bytes
            }
            Request::SetVringKick(ring) | Request::SetVringCall(ring) | Request::SetVringErr(ring) => ring_fd(ring),
            Request::SetMemTable(regions) => {
                let mut bytes = pair(regions.len() as u32, 0);
                bytes.extend(regions.iter().flat_map(|region| numbers(&region.to_words())));
                bytes
            }
        };
        let flags = VERSION | if needs_reply { FLAG_NEED_REPLY } else { 0 };
        let header = Header { request: self.code() as u32, flags, size: payload.len() as u32 };
        [&header.to_bytes()[..], &payload].concat()
    }
}

impl Reply {
    /// Header and payload of the answer to message `code`.
    pub fn to_bytes(self, code: Code) -> Vec<u8> {
        let payload = match self {
            Reply::Number(value) => value.to_ne_bytes().to_vec(),
            Reply::Ring(ring) => [ring.index.to_ne_bytes(), ring.value.to_ne_bytes()].concat(),
            Reply::Inflight(area) => area.to_bytes(),
        };
        let header = Header { request: code as u32, flags: VERSION | FLAG_REPLY, size: payload.len() as u32 };
        [&header.to_bytes()[..], &payload].concat()
    }

    /// Reads an answer; what the driver side receives.
    ///
    /// # Errors
    /// [`MessageError`] if it is no answer, or of another size.
    pub fn parse(header: &Header, payload: &[u8]) -> Result<Reply, MessageError> {
        if !header.is_reply() {
            return Err(MessageError::WrongDirection { request: header.request });
        }
        let code = Code::from_number(header.request).ok_or(MessageError::Unknown { request: header.request })?;
        let wanted = if code == Code::GetInflightFd { INFLIGHT_LEN } else { 8 };
        if payload.len() != wanted {
            return Err(MessageError::WrongSize { code, given: payload.len(), wanted });
        }
        Ok(match code {
            Code::GetInflightFd => Reply::Inflight(InflightInfo {
                size: u64_at(payload, 0),
                file_offset: u64_at(payload, 8),
                ring_count: u16_at(payload, 16),
                ring_size: u16_at(payload, 18),
            }),
            Code::GetVringBase => Reply::Ring(RingState { index: u32_at(payload, 0), value: u32_at(payload, 4) }),
            _ => Reply::Number(u64_at(payload, 0)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8], fd_count: usize) -> Result<Request, MessageError> {
        let header = Header::parse(bytes[..HEADER_LEN].try_into().unwrap())?;
        parse(&header, &bytes[HEADER_LEN..], fd_count)
    }

    fn region(number: u64) -> RegionInfo {
        RegionInfo { guest_address: number << 20, size: 1 << 20, user_address: number << 30, file_offset: number }
    }

    fn every_request() -> Vec<(Request, usize)> {
        let ring = RingState { index: 1, value: 256 };
        let fd = RingFd { index: 1, has_fd: true };
        let none = RingFd { index: 0, has_fd: false };
        let inflight = InflightInfo { size: 1 << 20, file_offset: 4096, ring_count: 2, ring_size: 1024 };
        let addresses = RingAddresses { index: 1, flags: 0, descriptors: 16, used: 32, available: 48, log: 64 };
        vec![
            (Request::GetFeatures, 0),
            (Request::SetFeatures(1 << 32), 0),
            (Request::SetOwner, 0),
            (Request::ResetOwner, 0),
            (Request::SetMemTable(Vec::new()), 0),
            (Request::SetMemTable((0..REGIONS_MAX as u64).map(region).collect()), REGIONS_MAX),
            (Request::SetVringNum(ring), 0),
            (Request::SetVringAddr(addresses), 0),
            (Request::SetVringBase(ring), 0),
            (Request::GetVringBase(1), 0),
            (Request::SetVringKick(fd), 1),
            (Request::SetVringKick(none), 0),
            (Request::SetVringCall(fd), 1),
            (Request::SetVringErr(fd), 1),
            (Request::GetProtocolFeatures, 0),
            (Request::SetProtocolFeatures(protocol::REPLY_ACK), 0),
            (Request::GetQueueNum, 0),
            (Request::SetVringEnable { index: 0, is_enabled: true }, 0),
            (Request::SendRarp([2, 0, 0, 0, 0, 9]), 0),
            (Request::NetSetMtu(9000), 0),
            (Request::SetLogBase(LogInfo { size: 4096, file_offset: 64 }), 1),
            (Request::SetLogFd, 1),
            (Request::SetVringEndian(ring), 0),
            (Request::GetInflightFd(inflight), 0),
            (Request::SetInflightFd(inflight), 1),
            (Request::ResetDevice, 0),
            (Request::GetMaxMemSlots, 0),
            (Request::AddMemReg(region(7)), 1),
            (Request::RemMemReg(region(7)), 0),
            (Request::RemMemReg(region(7)), 1),
            (Request::SetStatus(15), 0),
            (Request::GetStatus, 0),
        ]
    }

    #[test]
    fn every_request_survives_the_way_to_bytes_and_back() {
        let requests = every_request();
        for code in Code::ALL {
            assert!(requests.iter().any(|(request, _)| request.code() == *code), "{code:?} is not tried");
        }
        for (request, fds) in requests {
            assert_eq!(read(&request.to_bytes(true), fds), Ok(request));
        }
    }

    #[test]
    fn a_payload_cut_or_grown_by_a_byte_is_refused() {
        for (request, fds) in every_request() {
            let bytes = request.to_bytes(false);
            if bytes.len() > HEADER_LEN {
                assert!(read(&bytes[..bytes.len() - 1], fds).is_err(), "{request:?} cut");
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(read(&longer, fds).is_err(), "{request:?} grown");
            let fd_max = if matches!(request, Request::RemMemReg(_)) { 1 } else { fds };
            assert!(read(&bytes, fd_max + 1).is_err(), "{request:?} with a foreign file descriptor");
        }
    }

    #[test]
    fn foreign_versions_directions_numbers_and_sizes_are_told_apart() {
        let header = |request: u32, flags: u32, size: u32| {
            let bytes = Header { request, flags, size }.to_bytes();
            Header::parse(&bytes).and_then(|header| parse(&header, &[], 0))
        };
        assert_eq!(header(1, 2, 0), Err(MessageError::BadVersion { request: 1, flags: 2 }));
        assert_eq!(header(1, 5, 0), Err(MessageError::WrongDirection { request: 1 }));
        assert_eq!(header(22, 1, 0), Err(MessageError::Unknown { request: 22 }));
        let size = PAYLOAD_MAX as u32 + 1;
        assert_eq!(header(5, 1, size), Err(MessageError::TooLong { request: 5, size }));
        let mut table = Request::SetMemTable(vec![]).to_bytes(false);
        table[HEADER_LEN] = REGIONS_MAX as u8 + 1;
        assert_eq!(read(&table, 0), Err(MessageError::TooManyRegions { given: REGIONS_MAX as u32 + 1 }));
    }

    #[test]
    fn replies_survive_the_way_to_bytes_and_back() {
        for (code, reply) in [
            (Code::GetFeatures, Reply::Number(77)),
            (Code::GetVringBase, Reply::Ring(RingState { index: 1, value: 500 })),
            (
                Code::GetInflightFd,
                Reply::Inflight(InflightInfo { size: 9, file_offset: 8, ring_count: 7, ring_size: 6 }),
            ),
        ] {
            let bytes = reply.to_bytes(code);
            let header = Header::parse(bytes[..HEADER_LEN].try_into().unwrap()).unwrap();
            assert_eq!(Reply::parse(&header, &bytes[HEADER_LEN..]), Ok(reply));
        }
    }

    #[test]
    fn an_inflight_description_is_taken_with_and_without_its_padding() {
        let area = InflightInfo { size: 1 << 20, file_offset: 4096, ring_count: 2, ring_size: 1024 };
        let payload = area.to_bytes();
        for len in [INFLIGHT_LEN_MIN, INFLIGHT_LEN] {
            let header = Header { request: Code::GetInflightFd as u32, flags: VERSION, size: len as u32 };
            assert_eq!(parse(&header, &payload[..len], 0), Ok(Request::GetInflightFd(area)));
        }
    }

    #[test]
    fn a_place_in_a_packed_ring_has_15_bits_and_a_lap_for_each_side() {
        assert_eq!(PackedPosition::START.to_bits(), 0x8000_8000);
        let place = PackedPosition { available: 0x7fff, available_wrap: false, used: 5, used_wrap: true };
        assert_eq!(place.to_bits(), 0x8005_7fff);
        for bits in [0, 0x8005_7fff, u32::MAX, 0x1234_5678] {
            assert_eq!(PackedPosition::from_bits(bits).to_bits(), bits);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn noise_is_refused_or_means_what_it_says(
            request in 0u32..48,
            flags in any::<u32>(),
            payload in proptest::collection::vec(any::<u8>(), 300),
            len in prop_oneof![Just(0usize), Just(8), Just(INFLIGHT_LEN_MIN), Just(INFLIGHT_LEN), Just(40), 0usize..300],
            fds in 0usize..4
        ) {
            let header = [request, flags & !VERSION_MASK | VERSION, len as u32];
            let mut bytes: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).collect();
            bytes.extend(&payload[..len]);
            crate::fuzzing::message(&bytes, fds);
        }
    }
}
