//! What the hypervisor tells of slots and their faults.

use crate::{DeviceId, MessagePair, Pasid, Status, Target};

/// What a slot is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum SlotState {
    /// Taken; it has no target.
    Allocated = 1,
    /// It has a target.
    Mapped = 2,
}

/// What [`Call::QuerySlot`](crate::Call::QuerySlot) tells: 64 bytes.
///
/// | bytes | field |
/// |---|---|
/// | 0..4 | size of the structure: 64, set by the guest |
/// | 4..6 | version: 1, set by the guest |
/// | 6..8 | [`SlotState`] |
/// | 8..10 | flags: bit 0 = masked, bit 1 = a message waits, bit 2 = masked because it fired faster than its limit |
/// | 10..12 | group |
/// | 12..16 | PASID: bit 31 = there is one, 19:0 its value |
/// | 16..24 | target as in a register ([`Target`]); 0 of one that is not mapped |
/// | 24..32 | cookie; 0 of one that is not mapped |
/// | 32..40 | the address of what lies in the slot, or has to be written there in a queue store; 0 of one that is not mapped |
/// | 40..44 | its data |
/// | 44..64 | 0; the guest writes 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// What it is in, and where it leads.
    pub mapping: Option<Mapping>,
    /// No message is sent.
    pub masked: bool,
    /// A message waits for the slot to be unmasked.
    pub pending: bool,
    /// It was masked because it fired faster than its limit.
    pub limited: bool,
    /// The group it was allocated with.
    pub group: u16,
    /// The PASID it is for.
    pub pasid: Option<Pasid>,
}

/// Where a slot leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// To whom.
    pub target: Target,
    /// The guest's own name for it.
    pub cookie: u64,
    /// What lies in the store.
    pub pair: MessagePair,
}

/// Size and version, which open a structure that a guest asks for.
fn request() -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0..4].copy_from_slice(&(SlotInfo::SIZE as u32).to_le_bytes());
    bytes[4..6].copy_from_slice(&SlotInfo::VERSION.to_le_bytes());
    bytes
}

impl SlotInfo {
    /// Bytes of the structure.
    pub const SIZE: usize = 64;
    /// Version of the structure.
    pub const VERSION: u16 = 1;
    const MASKED: u16 = 1 << 0;
    const PENDING: u16 = 1 << 1;
    const LIMITED: u16 = 1 << 2;

    /// What a guest puts into memory before it asks.
    pub fn request() -> [u8; 64] {
        request()
    }

    /// Checks what a guest put into memory: size and version ([`Status::BadLayout`]), and zeros ([`Status::InvalidArgument`]).
    pub fn check_request(bytes: &[u8; 64]) -> Result<(), Status> {
        let expected = request();
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
        let mut bytes = request();
        let state = if self.mapping.is_some() { SlotState::Mapped } else { SlotState::Allocated };
        bytes[6..8].copy_from_slice(&(state as u16).to_le_bytes());
        let flag = |set: bool, bit: u16| if set { bit } else { 0 };
        let flags =
            flag(self.masked, Self::MASKED) | flag(self.pending, Self::PENDING) | flag(self.limited, Self::LIMITED);
        bytes[8..10].copy_from_slice(&flags.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.group.to_le_bytes());
        bytes[12..16].copy_from_slice(&Pasid::to_register(self.pasid).to_le_bytes());
        if let Some(Mapping { target, cookie, pair }) = self.mapping {
            bytes[16..24].copy_from_slice(&target.to_register().to_le_bytes());
            bytes[24..32].copy_from_slice(&cookie.to_le_bytes());
            bytes[32..40].copy_from_slice(&pair.address.to_le_bytes());
            bytes[40..44].copy_from_slice(&pair.data.to_le_bytes());
        }
        bytes
    }

    /// Reads an answer. [`Status::BadLayout`] for one of another layout, or the status of a field that is wrong.
    pub fn from_bytes(bytes: &[u8; 64]) -> Result<Self, Status> {
        if bytes[..6] != request()[..6] {
            return Err(Status::BadLayout);
        }
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let mapping = match half(6) {
            1 => None,
            2 => {
                let pair = MessagePair { address: long(32), data: word(40) };
                Some(Mapping { target: Target::from_register(long(16))?, cookie: long(24), pair })
            }
            _ => return Err(Status::BadLayout),
        };
        let flags = half(8);
        Ok(Self {
            mapping,
            masked: flags & Self::MASKED != 0,
            pending: flags & Self::PENDING != 0,
            limited: flags & Self::LIMITED != 0,
            group: half(10),
            pasid: Pasid::from_register(word(12).into())?,
        })
    }
}

/// What went wrong with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The remapping unit refused a message that named the slot's entry, with this reason (VT-d 5.1.4.1).
    Remapping(u8),
    /// The slot fired faster than its limit and was masked. [`Call::Unmask`](crate::Call::Unmask) lets it fire again.
    Storm,
    /// The hypervisor could not carry out what the guest wrote to the slot, for this reason: [`Status::NoFreeVector`],
    /// [`Status::NoFreeEntry`] or [`Status::HardwareError`]. It masked the slot; unmasking the slot tries again. Only for guests that enabled
    /// version 1.3 or later.
    Refused(Status),
}

/// Which store of a device a fault's slot is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FaultStore {
    /// The MSI-X table.
    Msix = 0,
    /// The interrupt message store in the device.
    Array = 1,
    /// The store in the guest's memory.
    Queue = 2,
}

/// A fault of one of the guest's slots: 32 bytes.
///
/// | bytes | field |
/// |---|---|
/// | 0..8 | cookie; 0 of a slot that was not mapped by a call |
/// | 8..10 | device ID |
/// | 10..12 | slot |
/// | 12 | [`FaultStore`] |
/// | 13 | kind: 1 = refused by the remapping unit, 2 = storm, 3 = a write to the slot could not be carried out |
/// | 14 | of kind 1, the unit's reason code; of kind 3, the status |
/// | 15 | flags: bit 0 = the message came from another function than the slot's |
/// | 16..20 | how many faults were lost before this one, because nobody had read the older ones |
/// | 20..32 | 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// The guest's own name for the interrupt.
    pub cookie: u64,
    /// The device.
    pub device: DeviceId,
    /// The slot.
    pub slot: u16,
    /// The store that it is in.
    pub store: FaultStore,
    /// What went wrong.
    pub kind: FaultKind,
    /// Whether another function used the slot's entry.
    pub foreign: bool,
    /// How many faults were lost before this one.
    pub lost: u32,
}

impl FaultRecord {
    /// Bytes of a record.
    pub const SIZE: usize = 32;

    /// The record as it lies in memory.
    pub fn to_bytes(&self) -> [u8; 32] {
        let (kind, reason) = match self.kind {
            FaultKind::Remapping(reason) => (1, reason),
            FaultKind::Storm => (2, 0),
            FaultKind::Refused(status) => (3, status.code() as u8),
        };
        let mut bytes = [0; 32];
        bytes[0..8].copy_from_slice(&self.cookie.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.device.0.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.slot.to_le_bytes());
        bytes[12..16].copy_from_slice(&[self.store as u8, kind, reason, self.foreign.into()]);
        bytes[16..20].copy_from_slice(&self.lost.to_le_bytes());
        bytes
    }

    /// Reads a record. [`Status::BadLayout`] for a kind or a store that this version does not know.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, Status> {
        let [c0, c1, c2, c3, c4, c5, c6, c7, d0, d1, s0, s1, store, kind, reason, flags, l0, l1, l2, l3, ..] = *bytes;
        let kind = match kind {
            1 => FaultKind::Remapping(reason),
            2 => FaultKind::Storm,
            3 => FaultKind::Refused(Status::from_code(reason.into())),
            _ => return Err(Status::BadLayout),
        };
        let store = match store {
            0 => FaultStore::Msix,
            1 => FaultStore::Array,
            2 => FaultStore::Queue,
            _ => return Err(Status::BadLayout),
        };
        Ok(Self {
            cookie: u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            device: DeviceId(u16::from_le_bytes([d0, d1])),
            slot: u16::from_le_bytes([s0, s1]),
            store,
            kind,
            foreign: flags & 1 != 0,
            lost: u32::from_le_bytes([l0, l1, l2, l3]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_info_reads_back_as_written_and_refuses_other_layouts() {
        let mapping = Mapping {
            target: Target { apic_id: 7, vector: 0x61 },
            cookie: 0x1234_5678_9abc_def0,
            pair: MessagePair { address: 0xfee0_0018, data: 0x1_0001 },
        };
        let mapped = SlotInfo {
            mapping: Some(mapping),
            masked: true,
            pending: false,
            limited: true,
            group: 200,
            pasid: Pasid::new(0xf_ffff),
        };
        let allocated = SlotInfo { mapping: None, masked: false, pending: true, limited: false, group: 0, pasid: None };
        for info in [mapped, allocated] {
            assert_eq!(SlotInfo::from_bytes(&info.to_bytes()), Ok(info));
        }
        assert_eq!(SlotInfo::check_request(&SlotInfo::request()), Ok(()));
        for (at, status) in [(0, Status::BadLayout), (5, Status::BadLayout), (6, Status::InvalidArgument)] {
            let mut bytes = SlotInfo::request();
            bytes[at] ^= 1;
            assert_eq!(SlotInfo::check_request(&bytes), Err(status), "byte {at}");
        }
    }

    #[test]
    fn a_pasid_has_20_bits_and_its_mark() {
        assert_eq!(Pasid::from_register(0), Ok(None));
        assert_eq!(Pasid::from_register(0x8000_0000), Ok(Pasid::new(0)));
        assert_eq!(Pasid::from_register(0x800f_ffff), Ok(Pasid::new(0xf_ffff)));
        for bad in [1, 0x8010_0000, 0x1_8000_0000, 0x4000_0000] {
            assert_eq!(Pasid::from_register(bad), Err(Status::InvalidArgument), "{bad:#x}");
        }
    }

    #[test]
    fn a_fault_record_reads_back_as_written() {
        for kind in [FaultKind::Remapping(0x26), FaultKind::Storm, FaultKind::Refused(Status::NoFreeVector)] {
            let record = FaultRecord {
                cookie: 0x0102_0304_0506_0708,
                device: DeviceId(0x10),
                slot: 4095,
                store: FaultStore::Queue,
                kind,
                foreign: true,
                lost: 3,
            };
            assert_eq!(FaultRecord::from_bytes(&record.to_bytes()), Ok(record));
        }
        assert_eq!(FaultRecord::from_bytes(&[0; 32]), Err(Status::BadLayout));
    }
}
