//! The interrupt-remapping table entry, 128 bits (VT-d chapter 9, "Interrupt Remapping Table Entry"), and the
//! remappable-format request (VT-d 5.1.2.2).

use super::{bit, bits, mask};

/// Bytes of an entry.
pub(crate) const SIZE: u64 = 16;

/// An entry as it lies in memory: `[low quadword, high quadword]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Irte(pub(crate) [u64; 2]);

impl Irte {
    pub(crate) const fn present(self) -> bool {
        bit(self.0[0], 0)
    }
    pub(crate) const fn fault_processing_disabled(self) -> bool {
        bit(self.0[0], 1)
    }
    pub(crate) const fn posted(self) -> bool {
        bit(self.0[0], 15)
    }
    pub(crate) const fn logical(self) -> bool {
        bit(self.0[0], 2)
    }
    pub(crate) const fn redirection_hint(self) -> bool {
        bit(self.0[0], 3)
    }
    pub(crate) const fn level_triggered(self) -> bool {
        bit(self.0[0], 4)
    }
    pub(crate) const fn delivery_mode(self) -> u8 {
        bits(self.0[0], 7, 5) as u8
    }
    pub(crate) const fn urgent(self) -> bool {
        bit(self.0[0], 14)
    }
    pub(crate) const fn vector(self) -> u8 {
        bits(self.0[0], 23, 16) as u8
    }
    /// The whole destination field.
    pub(crate) const fn destination(self) -> u32 {
        bits(self.0[0], 63, 32) as u32
    }
    /// The host-physical address of the posted-interrupt descriptor.
    pub(crate) const fn descriptor(self) -> u64 {
        bits(self.0[0], 63, 38) << 6 | bits(self.0[1], 63, 32) << 32
    }
    pub(crate) const fn source_id(self) -> u16 {
        bits(self.0[1], 15, 0) as u16
    }
    pub(crate) const fn source_id_qualifier(self) -> u64 {
        bits(self.0[1], 17, 16)
    }
    pub(crate) const fn source_validation_type(self) -> u64 {
        bits(self.0[1], 19, 18)
    }
}

/// Reserved in remapped format.
pub(crate) const REMAPPED_RESERVED: [u64; 2] = [mask(14, 12) | mask(31, 24), mask(63, 20)];
/// Reserved in remapped format too, unless extended interrupt mode is on: the destination but 47:40.
pub(crate) const XAPIC_DESTINATION_RESERVED: u64 = mask(39, 32) | mask(63, 48);
/// Reserved in posted format.
pub(crate) const POSTED_RESERVED: [u64; 2] = [mask(7, 2) | mask(13, 12) | mask(31, 24) | mask(37, 32), mask(31, 20)];

/// The address of a remappable-format request.
pub(crate) mod request {
    use super::{bit, bits};

    pub(crate) const fn is_remappable(address: u64) -> bool {
        bit(address, 4)
    }
    pub(crate) const fn subhandle_valid(address: u64) -> bool {
        bit(address, 3)
    }
    pub(crate) const fn handle(address: u64) -> u32 {
        (bits(address, 19, 5) | bits(address, 2, 2) << 15) as u32
    }
}
