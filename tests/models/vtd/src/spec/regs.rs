//! Registers (VT-d chapter "Register Descriptions", 11.4 in revision 4.1).

pub(crate) const VER: u64 = 0x00;
pub(crate) const CAP: u64 = 0x08;
pub(crate) const ECAP: u64 = 0x10;
pub(crate) const GCMD: u64 = 0x18;
pub(crate) const GSTS: u64 = 0x1c;
pub(crate) const RTADDR: u64 = 0x20;
pub(crate) const CCMD: u64 = 0x28;
pub(crate) const FSTS: u64 = 0x34;
/// FECTL, FEDATA, FEADDR and FEUADDR follow each other.
pub(crate) const FECTL: u64 = 0x38;
pub(crate) const FEADDR: u64 = 0x40;
pub(crate) const FEUADDR: u64 = 0x44;
pub(crate) const PMEN: u64 = 0x64;
pub(crate) const IQH: u64 = 0x80;
pub(crate) const IQT: u64 = 0x88;
pub(crate) const IQA: u64 = 0x90;
pub(crate) const ICS: u64 = 0x9c;
/// IECTL, IEDATA, IEADDR and IEUADDR follow each other.
pub(crate) const IECTL: u64 = 0xa0;
pub(crate) const IEUADDR: u64 = 0xac;
pub(crate) const IQERCD: u64 = 0xb0;
pub(crate) const IRTA: u64 = 0xb8;
/// Page requests: where software reads next, where the unit writes next, the queue's place, the status.
pub(crate) const PQH: u64 = 0xc0;
pub(crate) const PQT: u64 = 0xc8;
pub(crate) const PQA: u64 = 0xd0;
pub(crate) const PRS: u64 = 0xdc;
/// PECTL, PEDATA, PEADDR and PEUADDR follow each other.
pub(crate) const PECTL: u64 = 0xe0;
pub(crate) const PEUADDR: u64 = 0xec;

/// Where this model has IVA and IOTLB; ECAP.IRO tells software. Unlike any common unit's, so that a constant shows.
pub(crate) const IVA: u64 = 0x500;
pub(crate) const IOTLB: u64 = IVA + 8;
/// Where this model has its fault recording registers; CAP.FRO tells software.
pub(crate) const FRCD: u64 = 0x600;
/// The most fault recording registers that fit between [`FRCD`] and the end of the page.
pub(crate) const MAX_FAULT_RECORDS: usize = ((4096 - FRCD) / 16) as usize;

/// GCMD and GSTS share bit positions.
pub(crate) mod global {
    pub(crate) const TE: u32 = 1 << 31;
    pub(crate) const SRTP: u32 = 1 << 30;
    pub(crate) const SFL: u32 = 1 << 29;
    pub(crate) const EAFL: u32 = 1 << 28;
    pub(crate) const WBF: u32 = 1 << 27;
    pub(crate) const QIE: u32 = 1 << 26;
    pub(crate) const IRE: u32 = 1 << 25;
    pub(crate) const SIRTP: u32 = 1 << 24;
    pub(crate) const CFI: u32 = 1 << 23;
    /// Commands; the other bits are switches.
    pub(crate) const ONE_SHOT: u32 = SRTP | SFL | WBF | SIRTP;
    pub(crate) const SWITCHES: u32 = TE | EAFL | QIE | IRE | CFI;
}

/// FSTS.
pub(crate) mod fsts {
    pub(crate) const PFO: u32 = 1 << 0;
    pub(crate) const PPF: u32 = 1 << 1;
    pub(crate) const IQE: u32 = 1 << 4;
    pub(crate) const ICE: u32 = 1 << 5;
    pub(crate) const ITE: u32 = 1 << 6;
    pub(crate) const FRI_SHIFT: u32 = 8;
    /// What software clears by writing 1.
    pub(crate) const WRITE_1_TO_CLEAR: u32 = PFO | IQE | ICE | ITE;
}

/// FECTL and IECTL.
pub(crate) mod event {
    pub(crate) const IM: u32 = 1 << 31;
    pub(crate) const IP: u32 = 1 << 30;
}

/// ICS.IWC: a wait descriptor with IF has completed.
pub(crate) const ICS_IWC: u32 = 1;

/// RTADDR: translation table mode.
pub(crate) const RTADDR_TTM: (u32, u32) = (11, 10);
pub(crate) const TTM_LEGACY: u64 = 0;
pub(crate) const TTM_SCALABLE: u64 = 1;
pub(crate) const RTADDR_RESERVED: u64 = super::mask(9, 0);

/// IRTA.
pub(crate) mod irta {
    pub(crate) const EIME: u32 = 11;
    pub(crate) const SIZE: (u32, u32) = (3, 0);
    pub(crate) const RESERVED: u64 = super::super::mask(10, 4);
}

/// IQA.
pub(crate) mod iqa {
    pub(crate) const DW: u32 = 11;
    pub(crate) const SIZE: (u32, u32) = (2, 0);
    pub(crate) const RESERVED: u64 = super::super::mask(10, 3);
}

/// PQA, PQH and PQT: the queue has 2^SIZE pages; offsets are multiples of 32.
pub(crate) mod pqa {
    pub(crate) const SIZE: (u32, u32) = (2, 0);
    pub(crate) const RESERVED: u64 = super::super::mask(11, 3);
    pub(crate) const OFFSET: u64 = super::super::mask(18, 5);
}

/// PRS.
pub(crate) mod prs {
    /// A page request is pending.
    pub(crate) const PPR: u32 = 1 << 0;
    /// The queue was full: requests were not put into it.
    pub(crate) const PRO: u32 = 1 << 1;
}

/// IQERCD.IQEI: why the queue stopped.
pub(crate) mod queue_error {
    pub(crate) const INVALID_TAIL: u64 = 1;
    pub(crate) const FETCH: u64 = 2;
    pub(crate) const INVALID_TYPE: u64 = 3;
    pub(crate) const RESERVED_FIELD: u64 = 4;
    pub(crate) const INVALID_WIDTH: u64 = 5;
}

/// CCMD.
pub(crate) mod ccmd {
    pub(crate) const ICC: u32 = 63;
    pub(crate) const CIRG: (u32, u32) = (62, 61);
    pub(crate) const CAIG_SHIFT: u32 = 59;
    pub(crate) const FM: (u32, u32) = (33, 32);
    pub(crate) const SID: (u32, u32) = (31, 16);
    pub(crate) const DID: (u32, u32) = (15, 0);
    pub(crate) const RESERVED: u64 = super::super::mask(58, 34);
}

/// IOTLB and IVA.
pub(crate) mod iotlb {
    pub(crate) const IVT: u32 = 63;
    pub(crate) const IIRG: (u32, u32) = (61, 60);
    pub(crate) const IAIG_SHIFT: u32 = 57;
    pub(crate) const DID: (u32, u32) = (47, 32);
    pub(crate) const RESERVED: u64 = super::super::mask(31, 0) | super::super::mask(56, 50) | 1 << 59 | 1 << 62;
    pub(crate) const IVA_RESERVED: u64 = super::super::mask(11, 7);
}

/// Fault recording register, high quadword.
pub(crate) mod frcd {
    pub(crate) const F: u64 = 1 << 63;
    /// Type: a read request.
    pub(crate) const T1: u64 = 1 << 62;
    pub(crate) const REASON_SHIFT: u32 = 32;
    /// The request had a PASID, and where that is.
    pub(crate) const PP: u64 = 1 << 31;
    pub(crate) const PASID_SHIFT: u32 = 40;
    /// Low quadword: where an interrupt-remapping fault has its index.
    pub(crate) const INDEX_SHIFT: u32 = 48;
}
