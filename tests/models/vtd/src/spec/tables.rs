//! Root and context entries of both modes, PASID directory and table entries, second-stage paging entry (VT-d chapter 9).

use super::{bit, bits, mask};

/// The PASID that requests without one have: RID_PASID is reserved.
pub(crate) const RID_PASID: u32 = 0;

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

/// Scalable mode: a half of a root entry, for functions 0 to 7 of devices 0 to 15, or 16 to 31. Reserved besides address bits above
/// the host address width.
pub(crate) const SM_ROOT_RESERVED: u64 = mask(11, 1) | mask(63, 52);
/// Bytes of a scalable-mode context entry.
pub(crate) const SM_CONTEXT_SIZE: u64 = 32;
/// Bytes of a PASID directory entry.
pub(crate) const DIRECTORY_ENTRY_SIZE: u64 = 8;
/// Bytes of a PASID table entry.
pub(crate) const PASID_ENTRY_SIZE: u64 = 64;
/// PASIDs that a directory entry's table is for: bits 5:0.
pub(crate) const PASID_TABLE_BITS: u32 = 6;

/// A scalable-mode context entry, quadword by quadword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScalableContext(pub(crate) [u64; 4]);

impl ScalableContext {
    /// RID_PASID (ECAP.RPS = 0), RID_PRIV (ECAP.SRS = 0), the rest. Without device-TLBs DTE is reserved, without page requests PRE.
    pub(crate) const RESERVED: [u64; 4] = [mask(8, 5) | mask(63, 52), u64::MAX, u64::MAX, u64::MAX];
    /// DTE: requests of a device-TLB, for translations, are allowed.
    pub(crate) const DTE: u64 = 1 << 2;
    /// PASIDE: requests with PASID are allowed. Reserved where there are none.
    pub(crate) const PASIDE: u64 = 1 << 3;
    /// PRE: page requests are allowed.
    pub(crate) const PRE: u64 = 1 << 4;

    pub(crate) const fn present(self) -> bool {
        bit(self.0[0], 0)
    }
    pub(crate) const fn fault_processing_disabled(self) -> bool {
        bit(self.0[0], 1)
    }
    pub(crate) const fn device_tlb_enabled(self) -> bool {
        self.0[0] & Self::DTE != 0
    }
    pub(crate) const fn page_requests_enabled(self) -> bool {
        self.0[0] & Self::PRE != 0
    }
    pub(crate) const fn pasid_enabled(self) -> bool {
        self.0[0] & Self::PASIDE != 0
    }
    /// PDTS: the directory has 2^(7 + PDTS) entries. Here as bits of a PASID.
    pub(crate) const fn pasid_bits(self) -> u32 {
        bits(self.0[0], 11, 9) as u32 + 7 + PASID_TABLE_BITS
    }
    /// PASIDDIRPTR.
    pub(crate) const fn directory(self) -> u64 {
        self.0[0] & ADDRESS
    }
}

/// Reserved in a PASID directory entry: all but P, FPD and the table's address.
pub(crate) const DIRECTORY_RESERVED: u64 = mask(11, 2) | mask(63, 52);

/// PGTT: first-stage tables alone.
pub(crate) const PGTT_FIRST_STAGE: u64 = 1;
/// PGTT: second-stage tables alone.
pub(crate) const PGTT_SECOND_STAGE: u64 = 2;
/// PGTT: pass-through.
pub(crate) const PGTT_PASS_THROUGH: u64 = 4;

/// A PASID table entry, quadword by quadword.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PasidEntry(pub(crate) [u64; 8]);

impl PasidEntry {
    /// PWSNP: walks snoop.
    pub(crate) const PWSNP: u64 = 1 << 23;
    /// PGSNP: what the pages of this entry lead to is snooped; reserved without snoop control.
    pub(crate) const PGSNP: u64 = 1 << 24;
    /// SSEE, SSADE (no such capabilities) and reserved bits; memory types, and everything that is for first-stage tables.
    pub(crate) const RESERVED: [u64; 8] = {
        let mut reserved = [u64::MAX; 8];
        reserved[0] = 1 << 5 | mask(11, 9) | mask(63, 52);
        reserved[1] = mask(63, 16) & !(Self::PWSNP | Self::PGSNP);
        reserved
    };

    /// The same where the unit has first-stage tables: of four levels (FSPM = 0), without SRE and ERE (ECAP.SRS = ECAP.ERS = 0), SMEP,
    /// and EAFE (ECAP.EAFS = 0). WPE and NXE mean nothing without these. Without second-stage tables SSPTPTR and AW are ignored.
    pub(crate) const RESERVED_FIRST_STAGE: [u64; 8] = {
        let mut reserved = Self::RESERVED;
        reserved[0] &= mask(11, 0);
        reserved[2] = mask(3, 0) | mask(11, 6) | mask(63, 52);
        reserved
    };

    pub(crate) const fn present(self) -> bool {
        bit(self.0[0], 0)
    }
    pub(crate) const fn fault_processing_disabled(self) -> bool {
        bit(self.0[0], 1)
    }
    /// AW: 1 for 39 bits, 2 for 48 bits.
    pub(crate) const fn address_width(self) -> u64 {
        bits(self.0[0], 4, 2)
    }
    /// FSPTPTR.
    pub(crate) const fn first_stage_table(self) -> u64 {
        self.0[2] & ADDRESS
    }
    /// PGTT.
    pub(crate) const fn translation_type(self) -> u64 {
        bits(self.0[0], 8, 6)
    }
    /// SSPTPTR.
    pub(crate) const fn table(self) -> u64 {
        self.0[0] & ADDRESS
    }
    pub(crate) const fn domain_id(self) -> u16 {
        bits(self.0[1], 15, 0) as u16
    }
}

pub(crate) const SS_READ: u64 = 1 << 0;
pub(crate) const SS_WRITE: u64 = 1 << 1;
pub(crate) const SS_PAGE_SIZE: u64 = 1 << 7;
/// SNP: reserved in entries that lead to a table, and everywhere without snoop control (VT-d 9.8).
pub(crate) const SS_SNOOP: u64 = 1 << 11;
/// Reserved at every level.
pub(crate) const SS_RESERVED: u64 = 1 << 62;

/// The lowest bit of the address that a table of this level (1 to 4) is indexed with.
pub(crate) const fn level_shift(level: u32) -> u32 {
    12 + (level - 1) * 9
}

/// A first-stage paging entry (VT-d 9.7).
pub(crate) mod first_stage {
    pub(crate) const PRESENT: u64 = 1 << 0;
    pub(crate) const WRITE: u64 = 1 << 1;
    pub(crate) const USER: u64 = 1 << 2;
    pub(crate) const ACCESSED: u64 = 1 << 5;
    pub(crate) const DIRTY: u64 = 1 << 6;
    pub(crate) const PAGE_SIZE: u64 = 1 << 7;
}
