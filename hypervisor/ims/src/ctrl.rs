//! The control dword of a slot.

use hcall_abi::Pasid;

/// Control bit 0: the slot is masked and sends no message.
pub const CTRL_MASK: u32 = 1 << 0;
/// Control bit 1 of an IMS slot: a message is pending until the slot is unmasked. Read-only.
pub const CTRL_PENDING: u32 = 1 << 1;
/// Control bit 3 of an IMS slot: only work with the PASID in bits 31:12 raises the slot.
pub const CTRL_PASID_ENABLE: u32 = 1 << 3;
/// Control bits 31:12: the PASID.
pub const CTRL_PASID_SHIFT: u32 = 12;

/// The control bits that restrict a slot to work with this PASID.
pub fn pasid_bits(pasid: Pasid) -> u32 {
    pasid.value() << CTRL_PASID_SHIFT | CTRL_PASID_ENABLE
}
