//! Root entry, context entry (legacy mode) and second-stage paging entry (VT-d chapter 9).

use super::{bit, bits, mask};

/// Bytes of a root entry and of a context entry.
pub(crate) const ENTRY_SIZE: u64 = 16;
/// The address part, bits 51:12, of every entry here.
pub(crate) const ADDRESS: u64 = mask(51, 12);
/// Reserved in a root entry, besides address bits above the host address width.
pub(crate) const ROOT_RESERVED: [u64; 2] = [mask(11, 1) | mask(63, 52), u64::MAX];
/// Reserved in a context entry, besides address bits above the host address width.
pub(crate) const CONTEXT_RESERVED: [u64; 2] = [mask(11, 4) | mask(63, 52), 1 << 7 | mask(63, 24)];

/// Untranslated requests are translated by second-stage tables.
pub(crate) const TT_UNTRANSLATED: u64 = 0;
/// As 0, and requests of device-TLBs are accepted.
pub(crate) const TT_DEVICE_TLB: u64 = 1;
/// Requests pass untranslated.
pub(crate) const TT_PASS_THROUGH: u64 = 2;

/// A context entry as it lies in memory: `[low quadword, high quadword]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContextEntry(pub(crate) [u64; 2]);

impl ContextEntry {
    pub(crate) const fn present(self) -> bool {
        bit(self.0[0], 0)
    }
    pub(crate) const fn fault_processing_disabled(self) -> bool {
        bit(self.0[0], 1)
    }
    pub(crate) const fn translation_type(self) -> u64 {
        bits(self.0[0], 3, 2)
    }
    /// SSPTPTR: the second-stage root table.
    pub(crate) const fn table(self) -> u64 {
        self.0[0] & ADDRESS
    }
    /// AW: 1 for 39 bits, 2 for 48 bits.
    pub(crate) const fn address_width(self) -> u64 {
        bits(self.0[1], 2, 0)
    }
    pub(crate) const fn domain_id(self) -> u16 {
        bits(self.0[1], 23, 8) as u16
    }
}

pub(crate) const SS_READ: u64 = 1 << 0;
pub(crate) const SS_WRITE: u64 = 1 << 1;
pub(crate) const SS_PAGE_SIZE: u64 = 1 << 7;
/// Reserved at every level: SNP (snoop control is not reported) and bit 62.
pub(crate) const SS_RESERVED: u64 = 1 << 11 | 1 << 62;

/// The lowest bit of the address that a table of this level (1 to 4) is indexed with.
pub(crate) const fn level_shift(level: u32) -> u32 {
    12 + (level - 1) * 9
}
