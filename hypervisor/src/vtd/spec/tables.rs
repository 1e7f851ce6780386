//! Tables of legacy mode: root entry 9.1, context entry 9.3, second-stage paging entry 9.8.

use super::layout;

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
