//! The control dword of a slot of 16 bytes: address, data, control. A guest that writes its store uses it, natively as well.

/// The slot is masked: a message waits in the device.
pub const CONTROL_MASK: u32 = 1 << 0;
/// A message waits for the slot to be unmasked; read-only.
pub const CONTROL_PENDING: u32 = 1 << 1;
/// The slot is only for work of the PASID in bits 31:12.
pub const CONTROL_PASID_ENABLE: u32 = 1 << 3;
/// Where the PASID begins.
pub const CONTROL_PASID_SHIFT: u32 = 12;
