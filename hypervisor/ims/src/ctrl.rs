//! The control dword of a slot.

use hcall_abi::Pasid;

/// ctrl bit 0: no message is sent.
pub const CTRL_MASK: u32 = 1 << 0;
/// ctrl bit 1 of an IMS slot: a message waits for the slot to be unmasked. Read-only.
pub const CTRL_PENDING: u32 = 1 << 1;
/// ctrl bit 3 of an IMS slot: the slot is for work of the PASID in bits 31:12 only.
pub const CTRL_PASID_ENABLE: u32 = 1 << 3;
/// ctrl bits 31:12: the PASID.
pub const CTRL_PASID_SHIFT: u32 = 12;

/// ctrl's bits that make a slot one for work of this PASID.
pub fn pasid_bits(pasid: Pasid) -> u32 {
    pasid.value() << CTRL_PASID_SHIFT | CTRL_PASID_ENABLE
}
