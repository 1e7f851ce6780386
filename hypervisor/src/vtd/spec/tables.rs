//! Tables of legacy mode: root entry 9.1, context entry 9.3; of scalable mode: root entry 9.2, context entry 9.4, PASID directory entry
//! 9.5, PASID table entry 9.6; of both: second-stage paging entry 9.8.

use super::layout;

/// The PASID of requests without one: RID_PASID is zero.
pub const RID_PASID: u32 = 0;

layout! {
    /// A root entry: one for a bus.
    RootEntry: u128 {
        /// P: present.
        p, with_p: 0, 0;
        /// CTP: the context table's page number.
        ctp, with_ctp: 63, 12;
    }
}

layout! {
    /// A context entry: one for a function.
    ContextEntry: u128 {
        /// P: present.
        p, with_p: 0, 0;
        /// FPD: faults are not recorded.
        fpd, with_fpd: 1, 1;
        /// TT: translation type; 0 for second-stage tables.
        tt, with_tt: 3, 2;
        /// SSPTPTR: the second-stage table's page number.
        ssptptr, with_ssptptr: 63, 12;
        /// AW: 1 for 3 levels, 2 for 4.
        aw, with_aw: 66, 64;
        /// DID: the domain id.
        did, with_did: 87, 72;
    }
}

layout! {
    /// Half of a scalable-mode root entry: for devices 0 to 15 of a bus, or 16 to 31.
    ScalableRootHalf: u64 {
        /// LP, UP: present.
        p, with_p: 0, 0;
        /// LCTP, UCTP: the context table's page number.
        ctp, with_ctp: 63, 12;
    }
}

layout! {
    /// The first quadword of a scalable-mode context entry, which has four. The others are zero: RID_PASID is 0.
    ScalableContextEntry: u64 {
        /// P: present.
        p, with_p: 0, 0;
        /// PASIDE: requests with PASIDs are allowed.
        paside, with_paside: 3, 3;
        /// PDTS: the PASID directory has 2^(PDTS + 7) entries.
        pdts, with_pdts: 11, 9;
        /// PASIDDIRPTR: the directory's page number.
        directory, with_directory: 63, 12;
    }
}

layout! {
    /// A PASID directory entry: one for 64 PASIDs.
    PasidDirectoryEntry: u64 {
        /// P: present.
        p, with_p: 0, 0;
        /// SMPTBLPTR: the PASID table's page number.
        table, with_table: 63, 12;
    }
}

layout! {
    /// The first two quadwords of a PASID table entry, which has eight. The others are zero.
    PasidEntry: u128 {
        /// P: present.
        p, with_p: 0, 0;
        /// AW: 1 for 3 levels, 2 for 4.
        aw, with_aw: 4, 2;
        /// PGTT: the translation type; 2 for second-stage tables.
        pgtt, with_pgtt: 8, 6;
        /// SSPTPTR: the second-stage table's page number.
        ssptptr, with_ssptptr: 63, 12;
        /// DID: the domain id.
        did, with_did: 79, 64;
        /// PWSNP: page walks snoop.
        pwsnp, with_pwsnp: 87, 87;
    }
}

/// PGTT: second-stage tables.
pub const PGTT_SECOND_STAGE: u128 = 2;

layout! {
    /// A second-stage paging entry.
    SecondStageEntry: u64 {
        /// R: reads pass.
        r, with_r: 0, 0;
        /// W: writes pass.
        w, with_w: 1, 1;
        /// PS: a page, above the lowest level.
        ps, with_ps: 7, 7;
        /// ADDR: the page number of the next table or of the page.
        page, with_page: 51, 12;
    }
}

const _: () = assert!(size_of::<RootEntry>() == 16 && size_of::<ContextEntry>() == 16);
const _: () = assert!(size_of::<SecondStageEntry>() == 8);
