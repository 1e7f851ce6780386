//! Invalidation queue descriptors (VT-d 6.5.2). `word 0` is the low quadword; in descriptors of 256 bits, the upper two are reserved
//! in all types here.

use super::mask;

/// The low part of the type; bits 11:9 of word 0 are its high part.
pub(crate) const TYPE_LOW: (u32, u32) = (3, 0);
pub(crate) const TYPE_HIGH: (u32, u32) = (11, 9);

pub(crate) const CONTEXT_CACHE: u64 = 1;
pub(crate) const IOTLB: u64 = 2;
pub(crate) const DEVICE_TLB: u64 = 3;
pub(crate) const INTERRUPT_ENTRY_CACHE: u64 = 4;
pub(crate) const WAIT: u64 = 5;
pub(crate) const PASID_IOTLB: u64 = 6;
pub(crate) const PASID_CACHE: u64 = 7;
pub(crate) const PASID_DEVICE_TLB: u64 = 8;
pub(crate) const PAGE_GROUP_RESPONSE: u64 = 9;

/// Granularity of context-cache and IOTLB invalidation.
pub(crate) const GRANULARITY: (u32, u32) = (5, 4);
pub(crate) const DID: (u32, u32) = (31, 16);

/// PASID of a PASID-cache, of a PASID-based IOTLB invalidation, and of a page group response.
pub(crate) const PASID: (u32, u32) = (51, 32);

/// Context-cache invalidation.
pub(crate) mod context {
    pub(crate) const SID: (u32, u32) = (47, 32);
    pub(crate) const FM: (u32, u32) = (49, 48);
}

/// IOTLB invalidation, word 1.
pub(crate) mod iotlb {
    pub(crate) const AM: (u32, u32) = (5, 0);
    pub(crate) const IH: u32 = 6;
}

/// Interrupt entry cache invalidation.
pub(crate) mod iec {
    pub(crate) const G: u32 = 4;
    pub(crate) const IM: (u32, u32) = (31, 27);
    pub(crate) const IIDX: (u32, u32) = (47, 32);
}

/// Page group response.
pub(crate) mod response {
    /// The response has a PASID.
    pub(crate) const PP: u32 = 4;
    pub(crate) const CODE: (u32, u32) = (15, 12);
    pub(crate) const RID: (u32, u32) = (31, 16);
    /// Word 1: the group.
    pub(crate) const PRGI: (u32, u32) = (11, 3);
}

/// Invalidation wait.
pub(crate) mod wait {
    /// Page-request drain, where ECAP.PDS is set.
    pub(crate) const PD: u32 = 7;
    pub(crate) const IF: u32 = 4;
    pub(crate) const SW: u32 = 5;
    pub(crate) const STATUS: (u32, u32) = (63, 32);
}

/// The bits that each descriptor type leaves reserved, `[word 0, word 1]`; `None` for a type that this model lacks.
pub(crate) const fn reserved(kind: u64) -> Option<[u64; 2]> {
    Some(match kind {
        CONTEXT_CACHE => [mask(8, 6) | mask(15, 12) | mask(63, 50), u64::MAX],
        IOTLB => [mask(8, 8) | mask(15, 12) | mask(63, 32), mask(11, 7)],
        DEVICE_TLB => [mask(8, 4) | mask(31, 21) | mask(51, 48), mask(11, 1)],
        INTERRUPT_ENTRY_CACHE => [mask(8, 5) | mask(26, 12) | mask(63, 48), u64::MAX],
        PASID_IOTLB => [mask(8, 6) | mask(15, 12) | mask(63, 52), mask(11, 7)],
        PASID_CACHE => [mask(8, 6) | mask(15, 12) | mask(63, 52), u64::MAX],
        PASID_DEVICE_TLB => [0, mask(10, 1)],
        // Bit 2 of word 1 said "last page in group" until revision 4.0 reserved it. Hardware ignores it; Linux before 6.18 sets it.
        PAGE_GROUP_RESPONSE => [mask(8, 5) | mask(63, 52), mask(1, 0) | mask(63, 12)],
        WAIT => [1 << 8 | mask(31, 12), mask(1, 0)],
        _ => return None,
    })
}
