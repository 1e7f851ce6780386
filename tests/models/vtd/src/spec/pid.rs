//! The posted-interrupt descriptor, 512 bits (VT-d chapter 9, "Posted Interrupt Descriptor"), as eight quadwords: 0 to 3 are
//! PIR.

use super::{bits, mask};

/// Bytes of a descriptor.
pub(crate) const SIZE: usize = 64;
/// The quadword with ON, SN, NV and NDST.
pub(crate) const CONTROL: usize = 4;
pub(crate) const ON: u64 = 1 << 0;
pub(crate) const SN: u64 = 1 << 1;
/// Reserved in the control quadword.
pub(crate) const CONTROL_RESERVED: u64 = mask(15, 2) | mask(31, 24);
/// Reserved too unless extended interrupt mode is on: NDST but its bits 15:8.
pub(crate) const XAPIC_NDST_RESERVED: u64 = mask(39, 32) | mask(63, 48);

pub(crate) const fn notification_vector(control: u64) -> u8 {
    bits(control, 23, 16) as u8
}

pub(crate) const fn notification_destination(control: u64) -> u32 {
    bits(control, 63, 32) as u32
}
