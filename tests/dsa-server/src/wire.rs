//! Messages of the vfio-user protocol (QEMU's `docs/interop/vfio-user.rst`): their layouts, and what a client's bytes mean.
//!
//! A message is a header of 16 bytes and a payload; all fields are little-endian. Every value of a client is checked here once: the form of
//! a [`Request`] needs no further check.

use std::fmt;

/// Bytes of a header.
pub const HEADER: usize = 16;
/// The most mappings at one time: what QEMU asks for by itself (Linux' `dma_entry_limit`).
pub const MAX_MAPPINGS: usize = 65_535;
/// The most data that one access carries. The client is told (`max_data_xfer_size`).
pub const MAX_DATA: usize = 1 << 20;
/// The longest message: an access with the most data, or a version with capabilities.
pub const MAX_MESSAGE: usize = MAX_DATA + 64;

/// The protocol's version, major and minor.
const VERSION: (u16, u16) = (0, 0);

const COMMAND_VERSION: u16 = 1;
const COMMAND_DMA_MAP: u16 = 2;
const COMMAND_DMA_UNMAP: u16 = 3;
const COMMAND_GET_INFO: u16 = 4;
const COMMAND_GET_REGION_INFO: u16 = 5;
const COMMAND_GET_IRQ_INFO: u16 = 7;
const COMMAND_SET_IRQS: u16 = 8;
const COMMAND_REGION_READ: u16 = 9;
const COMMAND_REGION_WRITE: u16 = 10;
const COMMAND_DMA_READ: u16 = 11;
const COMMAND_DMA_WRITE: u16 = 12;
const COMMAND_RESET: u16 = 13;

const FLAG_TYPE: u32 = 0xf;
const FLAG_REPLY: u32 = 1;
const FLAG_NO_REPLY: u32 = 1 << 4;
const FLAG_ERROR: u32 = 1 << 5;

/// `VFIO_DMA_MAP_FLAG_READ` and `VFIO_DMA_MAP_FLAG_WRITE` (`linux/vfio.h`).
const MAP_READ: u32 = 1;
const MAP_WRITE: u32 = 1 << 1;
/// `VFIO_DMA_UNMAP_FLAG_ALL`.
const UNMAP_ALL: u32 = 1 << 1;

/// Why a request is refused. The client gets the number as the reply's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// There is no such region, interrupt or command argument.
    Invalid = 22,
    /// Larger than what was agreed on.
    TooBig = 7,
    /// The range is mapped already.
    Exists = 17,
    /// More mappings than what was agreed on.
    NoSpace = 28,
    /// A command that this server does not have.
    NotSupported = 95,
}

/// A stream that makes no sense: the connection ends, because nobody knows where the next message begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The header's size is smaller than a header or larger than any message.
    Size(u32),
    /// Neither a command nor a reply.
    Type(u32),
    /// File descriptors came with what cannot have any, or more than one.
    Descriptors,
    /// The first message is not a version, or one that this server does not speak.
    Version,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "a message of {size} bytes (at least {HEADER}, at most {MAX_MESSAGE})"),
            Self::Type(flags) => write!(f, "a message that is neither command nor reply (flags {flags:#x})"),
            Self::Descriptors => write!(f, "file descriptors where none belong"),
            Self::Version => write!(f, "the client does not begin with version {}.{}", VERSION.0, VERSION.1),
        }
    }
}

impl std::error::Error for Broken {}

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Names the message in its reply.
    pub id: u16,
    command: u16,
    /// Bytes of the payload.
    pub payload: usize,
    flags: u32,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, Broken> {
        let [i, d, c, m, s0, s1, s2, s3, f0, f1, f2, f3, ..] = *bytes;
        let (id, command) = (u16::from_le_bytes([i, d]), u16::from_le_bytes([c, m]));
        let (size, flags) = (u32::from_le_bytes([s0, s1, s2, s3]), u32::from_le_bytes([f0, f1, f2, f3]));
        let payload = usize::try_from(size).ok().filter(|size| (HEADER..=MAX_MESSAGE).contains(size));
        let payload = payload.ok_or(Broken::Size(size))? - HEADER;
        if flags & FLAG_TYPE > FLAG_REPLY {
            return Err(Broken::Type(flags));
        }
        Ok(Self { id, command, payload, flags })
    }

    /// Whether it answers a request of ours.
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_TYPE == FLAG_REPLY
    }

    /// Whether the client waits for an answer.
    pub fn wants_reply(&self) -> bool {
        !self.is_reply() && self.flags & FLAG_NO_REPLY == 0
    }

    /// Whether it is the message that a connection begins with.
    pub fn is_version(&self) -> bool {
        !self.is_reply() && self.command == COMMAND_VERSION
    }

    /// The reply with this payload.
    pub fn reply(&self, payload: &[u8]) -> Vec<u8> {
        message(self.id, self.command, FLAG_REPLY, 0, payload)
    }

    /// The reply that refuses.
    pub fn refusal(&self, why: Errno) -> Vec<u8> {
        message(self.id, self.command, FLAG_REPLY | FLAG_ERROR, why as u32, &[])
    }
}

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// The first message of a connection.
    Version,
    /// Memory for the device's DMA; what is at `offset` of the descriptor that comes with it, if one does.
    DmaMap(Map),
    /// No longer for the device's DMA: a range, or everything.
    DmaUnmap(Option<Range>),
    /// What the device is.
    GetInfo,
    /// What a region is.
    GetRegionInfo(u32),
    /// What a kind of interrupts is.
    GetIrqInfo(u32),
    /// How interrupts are signalled: so many.
    SetIrqs(u32),
    /// Load of `count` bytes.
    RegionRead(Place, usize),
    /// Store of these bytes.
    RegionWrite(Place, &'a [u8]),
    /// Back to the state after power-on.
    Reset,
}

/// A range of the device's addresses. It is not empty, and its end is an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

impl Range {
    /// `size` bytes from `first` on.
    pub fn new(first: u64, size: u64) -> Option<Self> {
        let last = first.checked_add(size.checked_sub(1)?)?;
        Some(Self { first, last })
    }
}

/// A mapping that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// The device's addresses.
    pub range: Range,
    /// Where in the file their first byte is.
    pub offset: u64,
    /// The device may read there.
    pub read: bool,
    /// The device may write there.
    pub write: bool,
}

/// A place in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The region's index (`VFIO_PCI_BAR0_REGION_INDEX` and so on).
    pub region: u32,
    /// Bytes from its begin.
    pub offset: u64,
}

impl<'a> Request<'a> {
    /// Reads a command's payload. What lacks a field, or has more bytes than it says, is refused.
    pub fn parse(header: &Header, payload: &'a [u8]) -> Result<Self, Errno> {
        let mut fields = Fields(payload);
        let request = Self::read(header.command, &mut fields)?;
        let open_ended = matches!(request, Self::Version | Self::SetIrqs(_));
        match request {
            _ if !open_ended && !fields.0.is_empty() => Err(Errno::Invalid),
            Self::RegionRead(_, count) if count > MAX_DATA => Err(Errno::TooBig),
            request => Ok(request),
        }
    }

    fn read(command: u16, fields: &mut Fields<'a>) -> Result<Self, Errno> {
        Ok(match command {
            COMMAND_VERSION => {
                let (major, _) = (fields.u16()?, fields.u16()?);
                if major != VERSION.0 {
                    return Err(Errno::Invalid);
                }
                // The rest are the client's capabilities. No message of ours is larger than the smallest that it may ask for.
                Self::Version
            }
            COMMAND_DMA_MAP => Self::DmaMap(map(fields)?),
            COMMAND_DMA_UNMAP => {
                let (_, flags) = (fields.u32()?, fields.u32()?);
                let range = Range::new(fields.u64()?, fields.u64()?);
                Self::DmaUnmap(if flags & UNMAP_ALL != 0 { None } else { Some(range.ok_or(Errno::Invalid)?) })
            }
            COMMAND_GET_INFO => {
                fields.bytes(16)?;
                Self::GetInfo
            }
            COMMAND_GET_REGION_INFO => {
                fields.bytes(8)?;
                let index = fields.u32()?;
                fields.bytes(20)?;
                Self::GetRegionInfo(index)
            }
            COMMAND_GET_IRQ_INFO => {
                fields.bytes(8)?;
                let index = fields.u32()?;
                fields.bytes(4)?;
                Self::GetIrqInfo(index)
            }
            COMMAND_SET_IRQS => {
                fields.bytes(16)?;
                // The rest says how each is signalled.
                Self::SetIrqs(fields.u32()?)
            }
            COMMAND_REGION_READ => {
                let (place, count) = access(fields)?;
                Self::RegionRead(place, count)
            }
            COMMAND_REGION_WRITE => {
                let (place, count) = access(fields)?;
                Self::RegionWrite(place, fields.bytes(count)?)
            }
            COMMAND_RESET => Self::Reset,
            _ => return Err(Errno::NotSupported),
        })
    }
}

fn map(fields: &mut Fields) -> Result<Map, Errno> {
    let (_, flags, offset) = (fields.u32()?, fields.u32()?, fields.u64()?);
    let range = Range::new(fields.u64()?, fields.u64()?).ok_or(Errno::Invalid)?;
    // Each byte has a place in a file.
    let end = offset.checked_add(range.last - range.first).and_then(|last| last.checked_add(1));
    if end.is_none_or(|end| end > i64::MAX as u64) {
        return Err(Errno::Invalid);
    }
    Ok(Map { range, offset, read: flags & MAP_READ != 0, write: flags & MAP_WRITE != 0 })
}

fn access(fields: &mut Fields) -> Result<(Place, usize), Errno> {
    let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
    Ok((Place { region, offset }, usize::try_from(count).map_err(|_| Errno::TooBig)?))
}

/// The reply to a version. One descriptor with a message is enough; pages of the IOMMU are of 4 KiB.
pub fn version_reply(header: &Header) -> Vec<u8> {
    let capabilities = format!(
        "{{\"capabilities\":{{\"max_msg_fds\":1,\"max_data_xfer_size\":{MAX_DATA},\"max_dma_maps\":{},\"pgsizes\":4096}}}}\0",
        MAX_MAPPINGS
    );
    let mut payload = Vec::from(VERSION.0.to_le_bytes());
    payload.extend(VERSION.1.to_le_bytes());
    payload.extend(capabilities.as_bytes());
    header.reply(&payload)
}

/// The payload of an answer that is a row of 32-bit fields and then one of 64-bit fields, as `linux/vfio.h` has them. The first
/// field, `argsz`, is the payload's own size.
pub fn info(words: &[u32], quads: &[u64]) -> Vec<u8> {
    let size = 4 * (words.len() + 1) + 8 * quads.len();
    let words = [size as u32].into_iter().chain(words.iter().copied()).flat_map(u32::to_le_bytes);
    words.chain(quads.iter().flat_map(|quad| quad.to_le_bytes())).collect()
}

/// The payload of the answer that says what was unmapped: the request's again.
pub fn unmapped(range: Option<Range>) -> Vec<u8> {
    match range {
        Some(range) => info(&[0], &[range.first, (range.last - range.first).wrapping_add(1)]),
        None => info(&[UNMAP_ALL], &[0, 0]),
    }
}

/// The reply to an access: its fields again, and what was loaded.
pub fn access_reply(header: &Header, place: Place, count: usize, data: &[u8]) -> Vec<u8> {
    let mut payload = Vec::from(place.offset.to_le_bytes());
    payload.extend(place.region.to_le_bytes());
    payload.extend((count as u32).to_le_bytes());
    payload.extend(data);
    header.reply(&payload)
}

/// A request of the device's: a write of memory, or of a message, whose success nobody waits for.
pub fn dma_write(id: u16, address: u64, data: &[u8]) -> Vec<u8> {
    let mut payload = dma(address, data.len());
    payload.extend(data);
    message(id, COMMAND_DMA_WRITE, FLAG_NO_REPLY, 0, &payload)
}

/// A request of the device's: a read of memory. Its answer is dropped.
pub fn dma_read(id: u16, address: u64, count: usize) -> Vec<u8> {
    message(id, COMMAND_DMA_READ, 0, 0, &dma(address, count))
}

fn dma(address: u64, count: usize) -> Vec<u8> {
    [address, count as u64].iter().flat_map(|field| field.to_le_bytes()).collect()
}

fn message(id: u16, command: u16, flags: u32, error: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(id.to_le_bytes());
    bytes.extend(command.to_le_bytes());
    bytes.extend(((HEADER + payload.len()) as u32).to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(error.to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// Takes fields off the front of a payload. One that is not there makes the message invalid.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Errno::Invalid)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        self.bytes(N)?.try_into().map_err(|_| Errno::Invalid)
    }

    fn u16(&mut self) -> Result<u16, Errno> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u16, size: u32, flags: u32) -> [u8; HEADER] {
        let bytes = message(7, command, flags, 0, &[]);
        let mut bytes: [u8; HEADER] = bytes.try_into().unwrap();
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        bytes
    }

    fn command(command: u16) -> Header {
        Header::parse(&header(command, 16, 0)).unwrap()
    }

    fn parse(number: u16, payload: &[u8]) -> Result<Request<'_>, Errno> {
        Request::parse(&command(number), payload)
    }

    fn quads(values: &[u64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn sizes_that_no_message_has_are_refused() {
        for size in [0, 15, MAX_MESSAGE as u32 + 1, u32::MAX] {
            assert_eq!(Header::parse(&header(9, size, 0)), Err(Broken::Size(size)));
        }
        assert_eq!(Header::parse(&header(9, 32, 0)).unwrap().payload, 16);
        assert_eq!(Header::parse(&header(9, MAX_MESSAGE as u32, 0)).unwrap().payload, MAX_MESSAGE - 16);
    }

    #[test]
    fn a_message_is_a_command_or_a_reply() {
        assert!(Header::parse(&header(9, 16, 1)).unwrap().is_reply());
        assert!(!Header::parse(&header(9, 16, 1)).unwrap().wants_reply());
        assert!(Header::parse(&header(9, 16, 0)).unwrap().wants_reply());
        assert!(!Header::parse(&header(9, 16, 0x10)).unwrap().wants_reply());
        assert_eq!(Header::parse(&header(9, 16, 2)), Err(Broken::Type(2)));
    }

    #[test]
    fn commands_without_all_their_fields_or_with_more_are_refused() {
        let sizes = [(2, 32), (3, 24), (4, 16), (5, 32), (7, 16), (9, 16)];
        for (number, size) in sizes {
            let payload = vec![0x10; size];
            // Ones everywhere are a good request of each kind but for the length of the access.
            assert!(parse(number, &payload).is_ok() || number == 9, "command {number}");
            for wrong in [0, 1, size - 1, size + 1] {
                assert_eq!(parse(number, &vec![0x10; wrong]), Err(Errno::Invalid), "command {number} of {wrong} bytes");
            }
        }
    }

    #[test]
    fn a_store_has_as_many_bytes_as_it_says() {
        let mut payload = quads(&[0x40, 4 << 32]);
        assert_eq!(parse(10, &payload), Err(Errno::Invalid));
        payload.extend([1, 2, 3, 4]);
        assert_eq!(parse(10, &payload), Ok(Request::RegionWrite(Place { region: 0, offset: 0x40 }, &[1, 2, 3, 4])));
        payload.push(5);
        assert_eq!(parse(10, &payload), Err(Errno::Invalid));
        assert_eq!(parse(10, &quads(&[0, u64::MAX])), Err(Errno::Invalid));
    }

    #[test]
    fn a_load_is_bounded() {
        let load = |count: u64| parse(9, &quads(&[0, 2 | count << 32])).map(|_| ()).err();
        assert_eq!((load(MAX_DATA as u64), load(MAX_DATA as u64 + 1)), (None, Some(Errno::TooBig)));
    }

    #[test]
    fn ranges_do_not_wrap() {
        assert_eq!(Range::new(0, 0), None);
        assert_eq!(Range::new(1, u64::MAX).unwrap().last, u64::MAX);
        assert_eq!(Range::new(2, u64::MAX), None);
        let map = |offset, address, size| parse(2, &quads(&[3 << 32, offset, address, size])).is_ok();
        assert!(map(0, 0x1000, 0x1000) && !map(0, u64::MAX, 2) && !map(u64::MAX, 0, 2) && !map(0, 0, 0));
        // Files have no such offsets.
        assert!(map(i64::MAX as u64 - 1, 0, 1) && !map(i64::MAX as u64, 0, 1) && !map(u64::MAX, 0, 1));
        assert_eq!(parse(3, &quads(&[2 << 32, 0, 0])), Ok(Request::DmaUnmap(None)));
        assert_eq!(parse(3, &quads(&[0, 0, 0])), Err(Errno::Invalid));
    }

    #[test]
    fn other_commands_and_versions_are_refused() {
        for number in [0, 6, 11, 12, 14, 15, 16, u16::MAX] {
            assert_eq!(parse(number, &[0; 64]), Err(Errno::NotSupported), "{number}");
        }
        assert_eq!(parse(1, &[0, 0, 1, 0, b'{', b'}', 0]), Ok(Request::Version));
        assert_eq!(parse(1, &[1, 0, 0, 0]), Err(Errno::Invalid));
        assert_eq!(parse(1, &[0, 0]), Err(Errno::Invalid));
    }

    #[test]
    fn the_devices_requests_are_as_qemu_reads_them() {
        let write = dma_write(3, 0xfee0_1000, &[1, 2, 3, 4]);
        assert_eq!(write[..16], [3, 0, 12, 0, 36, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(write[16..], [0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(dma_read(4, 0x1000, 8)[..12], [4, 0, 11, 0, 32, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn capabilities_end_with_a_zero_byte() {
        let reply = version_reply(&command(1));
        assert_eq!(reply[16..20], [0; 4]);
        assert_eq!((reply.last(), reply.iter().filter(|byte| **byte == b'{').count()), (Some(&0), 2));
    }

    proptest! {
        #[test]
        fn any_header_and_payload_is_survived(head in any::<[u8; HEADER]>(), number in 0u16..20, payload in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Header::parse(&head);
            let _ = parse(number, &payload);
        }
    }
}
