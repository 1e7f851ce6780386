//! Registers: chapter 11, section 11.4.

use super::layout;

/// Version.
pub const VER: usize = 0x00;
/// Capability.
pub const CAP: usize = 0x08;
/// Extended capability.
pub const ECAP: usize = 0x10;
/// Global command.
pub const GCMD: usize = 0x18;
/// Global status.
pub const GSTS: usize = 0x1c;
/// Root table address.
pub const RTADDR: usize = 0x20;
/// Fault status.
pub const FSTS: usize = 0x34;
/// Fault event control.
pub const FECTL: usize = 0x38;
/// Fault event data.
pub const FEDATA: usize = 0x3c;
/// Fault event address.
pub const FEADDR: usize = 0x40;
/// Fault event upper address.
pub const FEUADDR: usize = 0x44;
/// Protected memory enable.
pub const PMEN: usize = 0x64;
/// Invalidation queue head.
pub const IQH: usize = 0x80;
/// Invalidation queue tail.
pub const IQT: usize = 0x88;
/// Invalidation queue address.
pub const IQA: usize = 0x90;
/// Invalidation queue error record.
pub const IQERCD: usize = 0xb0;
/// Interrupt remapping table address.
pub const IRTA: usize = 0xb8;

layout! {
    /// CAP_REG.
    Cap: u64 {
        /// ND: domain ids have 4 + 2 × ND bits.
        nd, with_nd: 2, 0;
        /// RWBF: write buffers need an explicit flush.
        rwbf, with_rwbf: 4, 4;
        /// PLMR: protected low memory.
        plmr, with_plmr: 5, 5;
        /// PHMR: protected high memory.
        phmr, with_phmr: 6, 6;
        /// CM: entries that are not present are cached too.
        cm, with_cm: 7, 7;
        /// SAGAW: bit 1 for 39-bit (3-level), bit 2 for 48-bit (4-level) second-stage tables.
        sagaw, with_sagaw: 12, 8;
        /// MGAW: bits of a device's address, minus 1.
        mgaw, with_mgaw: 21, 16;
        /// FRO: offset of the fault recording registers in units of 16 bytes.
        fro, with_fro: 33, 24;
        /// SSLPS: bit 0 for 2 MiB, bit 1 for 1 GiB second-stage pages.
        sslps, with_sslps: 37, 34;
        /// NFR: number of fault recording registers, minus 1.
        nfr, with_nfr: 47, 40;
        /// DWD: IOTLB invalidations can drain writes.
        dwd, with_dwd: 54, 54;
        /// DRD: IOTLB invalidations can drain reads.
        drd, with_drd: 55, 55;
        /// PI: posted interrupts.
        pi, with_pi: 59, 59;
        /// ESIRTPS: SIRTP flushes the interrupt entry cache.
        esirtps, with_esirtps: 62, 62;
        /// ESRTPS: SRTP flushes the context cache and the IOTLB.
        esrtps, with_esrtps: 63, 63;
    }
}

layout! {
    /// ECAP_REG.
    Ecap: u64 {
        /// C: the unit's reads of tables snoop the processors' caches.
        c, with_c: 0, 0;
        /// QI: queued invalidation.
        qi, with_qi: 1, 1;
        /// IR: interrupt remapping.
        ir, with_ir: 3, 3;
        /// EIM: 32-bit APIC IDs.
        eim, with_eim: 4, 4;
        /// MHMV: the greatest index mask of an interrupt entry cache invalidation.
        mhmv, with_mhmv: 23, 20;
        /// PSS: bits of a PASID, minus 1.
        pss, with_pss: 39, 35;
        /// PASID: requests with PASIDs.
        pasid, with_pasid: 40, 40;
        /// SMTS: scalable mode.
        smts, with_smts: 43, 43;
        /// SSTS: scalable mode with second-stage tables.
        ssts, with_ssts: 46, 46;
        /// SMPWCS: in scalable mode, walks of paging structures can snoop the processors' caches.
        smpwcs, with_smpwcs: 48, 48;
    }
}

/// GCMD_REG and GSTS_REG: a command's bit and its status's.
pub mod global {
    /// TE: DMA remapping is on.
    pub const TE: u32 = 1 << 31;
    /// SRTP: take over the root table pointer.
    pub const SRTP: u32 = 1 << 30;
    /// SFL: take over the fault log pointer.
    pub const SFL: u32 = 1 << 29;
    /// WBF: flush write buffers.
    pub const WBF: u32 = 1 << 27;
    /// QIE: queued invalidation is on.
    pub const QIE: u32 = 1 << 26;
    /// IRE: interrupt remapping is on.
    pub const IRE: u32 = 1 << 25;
    /// SIRTP: take over the interrupt remapping table pointer.
    pub const SIRTP: u32 = 1 << 24;
    /// CFI: compatibility-format interrupts pass.
    pub const CFI: u32 = 1 << 23;
    /// Bits that must be written as 0 unless their command is meant.
    pub const ONE_SHOT: u32 = SRTP | SFL | WBF | SIRTP;
}

layout! {
    /// FSTS_REG.
    Fsts: u32 {
        /// PFO: a fault was not recorded for want of room.
        pfo, with_pfo: 0, 0;
        /// PPF: a record is pending.
        ppf, with_ppf: 1, 1;
        /// IQE: the queue is halted at a bad descriptor.
        iqe, with_iqe: 4, 4;
        /// ICE: an unexpected completion from a device-TLB.
        ice, with_ice: 5, 5;
        /// ITE: a device-TLB did not answer; waits were aborted.
        ite, with_ite: 6, 6;
        /// FRI: the first pending record.
        fri, with_fri: 15, 8;
    }
}

layout! {
    /// RTADDR_REG.
    Rtaddr: u64 {
        /// TTM: 0 for legacy mode, 1 for scalable mode.
        ttm, with_ttm: 11, 10;
        /// RTA: the root table's page number.
        page, with_page: 63, 12;
    }
}

/// FECTL_REG.IM: no fault event message.
pub const FECTL_IM: u32 = 1 << 31;
/// PMEN_REG.PRS: memory is protected.
pub const PMEN_PRS: u32 = 1 << 0;

layout! {
    /// IQA_REG.
    Iqa: u64 {
        /// QS: the queue has 2^QS pages.
        qs, with_qs: 2, 0;
        /// DW: 256-bit descriptors.
        dw, with_dw: 11, 11;
        /// IQA: the queue's page number.
        page, with_page: 63, 12;
    }
}

layout! {
    /// IRTA_REG.
    Irta: u64 {
        /// S: the table has 2^(S + 1) entries.
        s, with_s: 3, 0;
        /// EIME: destinations have 32 bits.
        eime, with_eime: 11, 11;
        /// IRTA: the table's page number.
        page, with_page: 63, 12;
    }
}

/// FRCD_REG's high half: writing this to the doubleword at offset 12 clears the record (F).
pub const FRCD_CLEAR: u32 = 1 << 31;

layout! {
    /// FRCD_REG.
    Frcd: u128 {
        /// FI: bits 63:12 of the address of a DMA request.
        fi, with_fi: 63, 12;
        /// FI of an interrupt request: its index.
        index, with_index: 63, 48;
        /// SID: the requester.
        sid, with_sid: 79, 64;
        /// PP: the request had a PASID.
        pp, with_pp: 95, 95;
        /// FR: the reason.
        fr, with_fr: 103, 96;
        /// PV: the PASID.
        pv, with_pv: 123, 104;
        /// T1: a read request.
        t1, with_t1: 126, 126;
        /// F: the record holds a fault.
        f, with_f: 127, 127;
    }
}

const _: () = assert!(size_of::<Frcd>() == 16);
