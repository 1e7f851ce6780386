//! What travels in registers and in memory. All structures are little-endian.

use crate::Status;

/// A device of the guest: its requester ID on the guest's own PCI bus (bus 15:8, device 7:3, function 2:0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u16);

impl DeviceId {
    /// From a register; bits 63:16 must be zero.
    pub fn from_register(value: u64) -> Result<Self, Status> {
        u16::try_from(value).map(Self).map_err(|_| Status::InvalidArgument)
    }
}

/// A message store: its device 15:0, and bit 16 for the device's queue store in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreId {
    /// The device.
    pub device: DeviceId,
    /// Whether it is the store in the guest's memory.
    pub queue: bool,
}

impl StoreId {
    const QUEUE: u64 = 1 << 16;

    /// The store in the device.
    pub const fn array(device: DeviceId) -> Self {
        Self { device, queue: false }
    }

    /// The store in the guest's memory.
    pub const fn queue(device: DeviceId) -> Self {
        Self { device, queue: true }
    }

    /// From a register; bits 63:17 must be zero, else it is [`Status::InvalidArgument`].
    pub fn from_register(value: u64) -> Result<Self, Status> {
        let device = DeviceId::from_register(value & !Self::QUEUE)?;
        Ok(Self { device, queue: value & Self::QUEUE != 0 })
    }

    /// As a register holds it.
    pub const fn to_register(self) -> u64 {
        self.device.0 as u64 | if self.queue { Self::QUEUE } else { 0 }
    }
}

impl From<DeviceId> for StoreId {
    fn from(device: DeviceId) -> Self {
        Self::array(device)
    }
}

/// Names a slot while it is allocated: index 15:0, generation 31:16 (never 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotHandle(u32);

impl SlotHandle {
    /// The handle of slot `index` in its `generation`.
    pub const fn new(index: u16, generation: core::num::NonZeroU16) -> Self {
        Self((generation.get() as u32) << 16 | index as u32)
    }

    /// From a register; bits 63:32 must be zero and the generation must not.
    pub fn from_register(value: u64) -> Result<Self, Status> {
        Self::from_bits(u32::try_from(value).map_err(|_| Status::InvalidArgument)?)
    }

    /// From its 32 bits; the generation must not be zero.
    pub fn from_bits(bits: u32) -> Result<Self, Status> {
        if bits >> 16 == 0 { Err(Status::InvalidArgument) } else { Ok(Self(bits)) }
    }

    /// Its 32 bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The slot's index in the store.
    pub const fn index(self) -> u16 {
        self.0 as u16
    }

    /// Counts the times the slot was allocated.
    pub const fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// Where an interrupt goes: vector 7:0, x2APIC ID of the virtual processor 63:32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// x2APIC ID of the virtual processor.
    pub apic_id: u32,
    /// Interrupt vector, 16 to 255.
    pub vector: u8,
}

impl Target {
    /// Vectors below are the processor's own: an interrupt with one of them is illegal (SDM vol. 3, 12.5.2).
    const FIRST_VECTOR: u8 = 16;

    /// A vector of a virtual processor's; [`Status::BadVector`] if it is below 16.
    pub const fn new(apic_id: u32, vector: u8) -> Result<Self, Status> {
        if vector < Self::FIRST_VECTOR { Err(Status::BadVector) } else { Ok(Self { apic_id, vector }) }
    }

    /// From a register; bits 31:8 must be zero, the vector at least 16.
    pub fn from_register(value: u64) -> Result<Self, Status> {
        if value & 0xffff_ff00 != 0 {
            return Err(Status::InvalidArgument);
        }
        Self::new((value >> 32) as u32, value as u8)
    }

    /// As a register holds it.
    pub const fn to_register(self) -> u64 {
        (self.apic_id as u64) << 32 | self.vector as u64
    }
}

/// A process address space ID (PCIe 6.20): 20 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pasid(u32);

impl Pasid {
    /// Bits of a PASID.
    pub const BITS: u32 = 20;
    /// Bit 31: there is one.
    const VALID: u32 = 1 << 31;

    /// `None` for more than 20 bits.
    pub const fn new(value: u32) -> Option<Self> {
        if value >> Self::BITS == 0 { Some(Self(value)) } else { None }
    }

    /// Its value.
    pub const fn value(self) -> u32 {
        self.0
    }

    /// From a register: bit 31 and the PASID in 19:0, or 0 for none; [`Status::InvalidArgument`] if any other bit is set.
    pub fn from_register(value: u64) -> Result<Option<Self>, Status> {
        match u32::try_from(value) {
            Ok(0) => Ok(None),
            Ok(bits) if bits & Self::VALID != 0 => {
                Self::new(bits & !Self::VALID).map(Some).ok_or(Status::InvalidArgument)
            }
            _ => Err(Status::InvalidArgument),
        }
    }

    /// As a register, or a field of 32 bits, holds it.
    pub const fn to_register(pasid: Option<Self>) -> u32 {
        match pasid {
            Some(Self(value)) => Self::VALID | value,
            None => 0,
        }
    }
}

/// What a device writes to raise an interrupt, as the guest is told: opaque, and constant while the slot is mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MessagePair {
    /// The message's address.
    pub address: u64,
    /// The message's data.
    pub data: u32,
}

/// Size and version of a batch's items: size 15:0 in bytes, version 31:16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemLayout(pub u64);

impl ItemLayout {
    /// The only layout of this version.
    pub const V1: Self = Self(1 << 16 | MapRequest::SIZE as u64);
}

/// One item of [`Call::Map`](crate::Call::Map), as the guest writes it: 16 bytes.
///
/// | bytes | field |
/// |---|---|
/// | 0..4 | slot handle |
/// | 4..6 | x2APIC ID of the virtual processor (16 bits) |
/// | 6 | vector |
/// | 7 | flags: bit 0 = unmask when mapped; the others 0 |
/// | 8..16 | cookie: comes back in queries and fault reports |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// Which slot.
    pub handle: SlotHandle,
    /// To whom.
    pub target: Target,
    /// Whether the slot is unmasked at the end.
    pub unmask: bool,
    /// The guest's own name for the interrupt.
    pub cookie: u64,
}

impl MapRequest {
    /// Bytes of an item.
    pub const SIZE: usize = 16;
    /// Flag: unmask the slot when it is mapped.
    pub const FLAG_UNMASK: u8 = 1;

    /// Checks an item that a guest wrote.
    pub fn from_bytes(bytes: &[u8; 16]) -> Result<Self, Status> {
        // One load for each half, not one for each field.
        let item = u128::from_le_bytes(*bytes);
        let (request, cookie) = (item as u64, (item >> 64) as u64);
        let (vector, flags) = ((request >> 48) as u8, (request >> 56) as u8);
        let handle = SlotHandle::from_bits(request as u32)?;
        if flags & !Self::FLAG_UNMASK != 0 {
            return Err(Status::InvalidArgument);
        }
        Ok(Self {
            handle,
            target: Target::new(((request >> 32) as u16).into(), vector)?,
            unmask: flags & Self::FLAG_UNMASK != 0,
            cookie,
        })
    }

    /// An item that has the same processor and the same flags as this one, which was checked: so there is only the rest to check. `None`
    /// for all others. The handle is whatever is there: it is compared with the slot's anyway.
    #[inline]
    pub fn another(&self, bytes: &[u8; 16]) -> Option<Self> {
        let dword = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if dword(4) & 0xff00_ffff != self.target.apic_id | u32::from(self.unmask) << 24 {
            return None;
        }
        // With generation 0 it is no slot's.
        let handle = SlotHandle(dword(0));
        let target = Target::new(self.target.apic_id, bytes[6]).ok()?;
        Some(Self { handle, target, unmask: self.unmask, cookie: u64::from(dword(12)) << 32 | u64::from(dword(8)) })
    }

    /// The item as it lies in memory. A target's x2APIC ID above 65,535 cannot be said here and becomes 65,535, which no
    /// virtual processor has.
    pub fn to_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..4].copy_from_slice(&self.handle.bits().to_le_bytes());
        bytes[4..6].copy_from_slice(&u16::try_from(self.target.apic_id).unwrap_or(u16::MAX).to_le_bytes());
        bytes[6] = self.target.vector;
        bytes[7] = if self.unmask { Self::FLAG_UNMASK } else { 0 };
        bytes[8..16].copy_from_slice(&self.cookie.to_le_bytes());
        bytes
    }
}

/// The answer to a [`MapRequest`], in its place: address 0..8, data 8..12, status 12..16 (0, or minus a [`Status`] code).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapReply(pub Result<MessagePair, Status>);

impl MapReply {
    /// The reply as it lies in memory. Address and data of a failed item are 0.
    pub fn to_bytes(self) -> [u8; 16] {
        let pair = self.0.unwrap_or_default();
        let status = match self.0 {
            Ok(_) => 0i32,
            Err(status) => -(status.code() as i32),
        };
        let halves = (u128::from(status as u32) << 32 | u128::from(pair.data)) << 64 | u128::from(pair.address);
        halves.to_le_bytes()
    }

    /// Reads a reply.
    pub fn from_bytes(bytes: &[u8; 16]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, s0, s1, s2, s3] = *bytes;
        Self(match i32::from_le_bytes([s0, s1, s2, s3]) {
            0 => Ok(MessagePair {
                address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
                data: u32::from_le_bytes([d0, d1, d2, d3]),
            }),
            status => Err(Status::from_code(u64::from(status.unsigned_abs()))),
        })
    }
}

/// Where a device keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum StoreKind {
    /// An array of 16-byte slots in device memory.
    Array = 1,
    /// Beside the work queue in system memory.
    Queue = 2,
}

/// What [`Call::QueryDevice`](crate::Call::QueryDevice) tells: 64 bytes.
///
/// | bytes | field |
/// |---|---|
/// | 0..4 | size of the structure: 64, set by the guest |
/// | 4..6 | version: 1, set by the guest |
/// | 6..8 | store kind: [`StoreKind`] |
/// | 8..12 | slots in the store |
/// | 12..16 | free slots |
/// | 16..20 | BAR that holds the store |
/// | 20..24 | offset of the store in that BAR |
/// | 24..28 | device ID |
/// | 28..32, 32..36 | the first and the last PASID that the guest owns for it, each with bit 31 set; 0 if it owns none |
/// | 36..64 | 0; the guest writes 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Where its messages are kept.
    pub kind: StoreKind,
    /// Slots in the store.
    pub slots: u32,
    /// Slots that [`Call::Alloc`](crate::Call::Alloc) can still give.
    pub free: u32,
    /// BAR that holds the store.
    pub bar: u32,
    /// Offset of the store in that BAR, in bytes.
    pub offset: u32,
    /// The device.
    pub device: DeviceId,
    /// The first and the last PASID that the guest owns for it.
    pub pasids: Option<(Pasid, Pasid)>,
}

impl DeviceInfo {
    /// Bytes of the structure.
    pub const SIZE: usize = 64;
    /// Version of the structure.
    pub const VERSION: u16 = 1;

    /// What a guest puts into memory before it asks.
    pub fn request() -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0..4].copy_from_slice(&(Self::SIZE as u32).to_le_bytes());
        bytes[4..6].copy_from_slice(&Self::VERSION.to_le_bytes());
        bytes
    }

    /// Checks what a guest put into memory: size, version, and zeros.
    pub fn check_request(bytes: &[u8; 64]) -> Result<(), Status> {
        let expected = Self::request();
        if bytes[..6] != expected[..6] {
            Err(Status::BadLayout)
        } else if bytes[6..] != expected[6..] {
            Err(Status::InvalidArgument)
        } else {
            Ok(())
        }
    }

    /// The answer as it lies in memory.
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut bytes = Self::request();
        bytes[6..8].copy_from_slice(&(self.kind as u16).to_le_bytes());
        let [first, last] = [self.pasids.map(|(first, _)| first), self.pasids.map(|(_, last)| last)];
        let pasids = [first, last].map(Pasid::to_register);
        let words = [self.slots, self.free, self.bar, self.offset, u32::from(self.device.0), pasids[0], pasids[1]];
        for (field, word) in bytes[8..36].chunks_exact_mut(4).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads an answer.
    pub fn from_bytes(bytes: &[u8; 64]) -> Result<Self, Status> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..6] != Self::request()[..6] {
            return Err(Status::BadLayout);
        }
        let kind = match u16::from_le_bytes([bytes[6], bytes[7]]) {
            1 => StoreKind::Array,
            2 => StoreKind::Queue,
            _ => return Err(Status::BadLayout),
        };
        let device = DeviceId::from_register(word(24).into())?;
        let pasids = Pasid::from_register(word(28).into())?.zip(Pasid::from_register(word(32).into())?);
        Ok(Self { kind, slots: word(8), free: word(12), bar: word(16), offset: word(20), device, pasids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::num::NonZeroU16;

    fn handle() -> SlotHandle {
        SlotHandle::new(0x0fff, NonZeroU16::new(7).unwrap())
    }

    #[test]
    fn a_map_request_reads_back_as_written() {
        let request = MapRequest {
            handle: handle(),
            target: Target { apic_id: 3, vector: 0xfe },
            unmask: true,
            cookie: 0x1122_3344_5566_7788,
        };
        assert_eq!(MapRequest::from_bytes(&request.to_bytes()), Ok(request));
    }

    #[test]
    fn a_map_request_with_reserved_bits_or_a_low_vector_is_refused() {
        let good = MapRequest { handle: handle(), target: Target { apic_id: 0, vector: 16 }, unmask: false, cookie: 0 }
            .to_bytes();
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            MapRequest::from_bytes(&bytes)
        };
        assert!(with(7, 0).is_ok());
        assert_eq!(with(7, 2), Err(Status::InvalidArgument));
        assert_eq!(with(6, 15), Err(Status::BadVector));
        assert_eq!(with(2, 0), Err(Status::InvalidArgument), "generation 0");
    }

    #[test]
    fn another_item_for_the_same_processor_is_as_if_it_were_the_first() {
        let target = Target { apic_id: 3, vector: 0x41 };
        let first = MapRequest { handle: handle(), target, unmask: true, cookie: 7 };
        let good = first.to_bytes();
        for at in 4..16 {
            for bit in 0..8 {
                let mut bytes = good;
                bytes[at] ^= 1 << bit;
                let whole = MapRequest::from_bytes(&bytes).ok();
                let alike = whole.filter(|item| (item.target.apic_id, item.unmask) == (3, true));
                assert_eq!(first.another(&bytes), alike, "byte {at}, bit {bit}");
            }
        }
        let low = MapRequest { target: Target { apic_id: 3, vector: 15 }, ..first };
        assert_eq!(first.another(&low.to_bytes()), None);
        let other = MapRequest { handle: SlotHandle::new(1, NonZeroU16::MIN), ..first };
        assert_eq!(first.another(&other.to_bytes()), Some(other));
    }

    #[test]
    fn a_reply_reads_back_as_written() {
        let pair = MessagePair { address: 0xfee0_0018, data: 0x8000_0001 };
        assert_eq!(MapReply::from_bytes(&MapReply(Ok(pair)).to_bytes()), MapReply(Ok(pair)));
        for &status in Status::ALL {
            assert_eq!(MapReply::from_bytes(&MapReply(Err(status)).to_bytes()), MapReply(Err(status)));
        }
    }

    #[test]
    fn device_info_reads_back_as_written_and_refuses_other_layouts() {
        let info = DeviceInfo {
            kind: StoreKind::Array,
            slots: 4096,
            free: 4000,
            bar: 0,
            offset: 0x40000,
            device: DeviceId(0x10),
            pasids: Pasid::new(0x100).zip(Pasid::new(0x1ff)),
        };
        assert_eq!(DeviceInfo::from_bytes(&info.to_bytes()), Ok(info));
        assert_eq!(DeviceInfo::check_request(&DeviceInfo::request()), Ok(()));
        for (at, status) in [
            (0, Status::BadLayout),
            (4, Status::BadLayout),
            (6, Status::InvalidArgument),
            (63, Status::InvalidArgument),
        ] {
            let mut bytes = DeviceInfo::request();
            bytes[at] ^= 0x80;
            assert_eq!(DeviceInfo::check_request(&bytes), Err(status), "byte {at}");
        }
    }

    #[test]
    fn registers_with_reserved_bits_are_refused() {
        assert_eq!(DeviceId::from_register(0x1_0000), Err(Status::InvalidArgument));
        assert_eq!(SlotHandle::from_register(1 << 32 | 0x1_0000), Err(Status::InvalidArgument));
        assert_eq!(SlotHandle::from_register(0xffff), Err(Status::InvalidArgument));
        assert_eq!(Target::from_register(0x130), Err(Status::InvalidArgument));
        assert_eq!(Target::from_register(0x0f), Err(Status::BadVector));
        let target = Target { apic_id: 0xffff_fffe, vector: 0x30 };
        assert_eq!(Target::from_register(target.to_register()), Ok(target));
    }
}
