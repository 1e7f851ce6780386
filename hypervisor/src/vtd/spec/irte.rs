//! Interrupt remapping table entries: sections 9.10 (remapped) and 9.11 (posted), and the message that selects one: 5.1.2.2.

use super::layout;

layout! {
    /// An entry. Bits 31:12 and 127:64 differ by IM.
    Irte: u128 {
        /// P: present.
        p, with_p: 0, 0;
        /// FPD: faults are not recorded.
        fpd, with_fpd: 1, 1;
        /// DM: the destination is logical (remapped).
        dm, with_dm: 2, 2;
        /// RH: redirection hint (remapped).
        rh, with_rh: 3, 3;
        /// TM: level-triggered (remapped).
        tm, with_tm: 4, 4;
        /// DLM: delivery mode (remapped).
        dlm, with_dlm: 7, 5;
        /// AVAIL: software's.
        avail, with_avail: 11, 8;
        /// URG: the notification is sent even if one is outstanding (posted).
        urg, with_urg: 14, 14;
        /// IM: 1 for posted.
        im, with_im: 15, 15;
        /// V: the vector.
        v, with_v: 23, 16;
        /// DST: the destination with EIME (remapped).
        dst, with_dst: 63, 32;
        /// DST: the destination without EIME (remapped).
        dst_xapic, with_dst_xapic: 47, 40;
        /// PDA low: bits 31:6 of the descriptor's address (posted).
        pda_low, with_pda_low: 63, 38;
        /// SID: the requester.
        sid, with_sid: 79, 64;
        /// SQ: which bits of the requester count; 0 for all.
        sq, with_sq: 81, 80;
        /// SVT: 0 no check, 1 by SID, 2 by a range of buses.
        svt, with_svt: 83, 82;
        /// PDA high: bits 63:32 of the descriptor's address (posted).
        pda_high, with_pda_high: 127, 96;
    }
}

const _: () = assert!(size_of::<Irte>() == 16);

/// SVT: the requester is compared with SID.
pub const SVT_SID: u128 = 1;

/// A remappable message's address with handle 0 and SHV: the index is the subhandle, in the data.
pub const MESSAGE_ADDRESS: u64 = 0xfee0_0000 | 1 << 4 | 1 << 3;
