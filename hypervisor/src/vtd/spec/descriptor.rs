//! Invalidation descriptors: section 6.5.2. Descriptors of 256 bits have the same first 128 bits, followed by zeros.

use super::layout;

/// Granularity of context-cache and IOTLB invalidations: everything.
pub const GLOBAL: u128 = 1;
/// Granularity: a domain.
pub const DOMAIN: u128 = 2;
/// Granularity of a PASID-cache invalidation: a PASID of a domain.
pub const PASID: u128 = 1;
/// Granularity of a PASID-cache invalidation: everything.
pub const ALL_PASIDS: u128 = 3;
/// Granularity of a context-cache invalidation: a function.
pub const DEVICE: u128 = 3;

layout! {
    /// Context-cache invalidation, 6.5.2.1: type 1.
    ContextCache: u128 {
        /// Type.
        kind, with_kind: 3, 0;
        /// G: granularity.
        g, with_g: 5, 4;
        /// DID: the domain id.
        did, with_did: 31, 16;
        /// SID: the requester.
        sid, with_sid: 47, 32;
    }
}

layout! {
    /// IOTLB invalidation, 6.5.2.3: type 2.
    Iotlb: u128 {
        /// Type.
        kind, with_kind: 3, 0;
        /// G: granularity.
        g, with_g: 5, 4;
        /// DW: drain writes.
        dw, with_dw: 6, 6;
        /// DR: drain reads.
        dr, with_dr: 7, 7;
        /// DID: the domain id.
        did, with_did: 31, 16;
    }
}

layout! {
    /// Interrupt entry cache invalidation, 6.5.2.7: type 4.
    InterruptEntryCache: u128 {
        /// Type.
        kind, with_kind: 3, 0;
        /// G: 0 for everything, 1 by index.
        g, with_g: 4, 4;
        /// IM: the low bits of the index that do not count.
        im, with_im: 31, 27;
        /// IIDX: the index.
        iidx, with_iidx: 47, 32;
    }
}

layout! {
    /// PASID-cache invalidation, 6.5.2.2: type 7.
    PasidCache: u128 {
        /// Type.
        kind, with_kind: 3, 0;
        /// G: 0 for a domain, 1 for a PASID of a domain, 3 for everything.
        g, with_g: 5, 4;
        /// DID: the domain id.
        did, with_did: 31, 16;
        /// PASID.
        pasid, with_pasid: 51, 32;
    }
}

layout! {
    /// Invalidation wait, 6.5.2.8: type 5.
    Wait: u128 {
        /// Type.
        kind, with_kind: 3, 0;
        /// SW: write the status data when all before is done.
        sw, with_sw: 5, 5;
        /// FN: nothing after it begins before all before it is done.
        fn_, with_fn: 6, 6;
        /// Status data.
        status, with_status: 63, 32;
        /// Bits 63:2 of the status address.
        address, with_address: 127, 66;
    }
}

impl ContextCache {
    /// Of this type.
    pub const NEW: Self = Self(0).with_kind(1);
}

impl Iotlb {
    /// Of this type.
    pub const NEW: Self = Self(0).with_kind(2);
}

impl PasidCache {
    /// Of this type.
    pub const NEW: Self = Self(0).with_kind(7);
}

impl InterruptEntryCache {
    /// Of this type.
    pub const NEW: Self = Self(0).with_kind(4);
}

impl Wait {
    /// Of this type.
    pub const NEW: Self = Self(0).with_kind(5);
}

const _: () = assert!(size_of::<ContextCache>() == 16 && size_of::<Iotlb>() == 16);
const _: () = assert!(size_of::<PasidCache>() == 16);
const _: () = assert!(size_of::<InterruptEntryCache>() == 16 && size_of::<Wait>() == 16);
