//! CAP, ECAP and VER as a [`Config`] makes them (VT-d 11.4, CAP_REG and ECAP_REG).

use crate::Config;
use crate::spec::regs;

fn flag(on: bool, bit: u32) -> u64 {
    u64::from(on) << bit
}

impl Config {
    /// VER: architecture version 6.0.
    pub(crate) const VERSION: u32 = 0x60;

    /// CAP_REG.
    pub(crate) fn cap(&self) -> u64 {
        let domains = u64::from(self.domain_id_bits.clamp(4, 16) - 4) / 2;
        let widths = flag(self.three_level, 9) | flag(self.four_level, 10);
        let large_pages = flag(self.pages_2m, 34) | flag(self.pages_1g, 35);
        let zero_length_reads = flag(true, 22);
        let page_selective = flag(true, 39);
        let draining = flag(true, 54) | flag(true, 55);
        domains
            | widths
            | large_pages
            | u64::from(self.address_width() - 1) << 16
            | zero_length_reads
            | (regs::FRCD >> 4) << 24
            | page_selective
            | (self.fault_records as u64 - 1) << 40
            | u64::from(self.max_address_mask & 0x3f) << 48
            | draining
            | flag(self.first_stage && self.first_stage_1g, 56)
            | flag(self.posted_interrupts, 59)
            | flag(self.flush_on_sirtp, 62)
            | flag(self.flush_on_srtp, 63)
    }

    /// ECAP_REG.
    pub(crate) fn ecap(&self) -> u64 {
        flag(self.coherent, 0)
            | flag(self.queued_invalidation, 1)
            | flag(self.device_tlb, 2)
            | flag(self.interrupt_remapping, 3)
            | flag(self.extended_interrupt_mode, 4)
            | flag(self.pass_through, 6)
            | flag(self.snoop_control, 7)
            | (regs::IVA >> 4) << 8
            | u64::from(self.max_handle_mask & 0xf) << 20
            | self.scalable_ecap()
    }

    /// ECAP_REG's fields of scalable mode: PRS, PSS, PASID, PDS, SMTS, SSTS, FSTS, SMPWCS.
    fn scalable_ecap(&self) -> u64 {
        if !self.scalable_mode {
            return 0;
        }
        let pasid_size = u64::from(self.pasid_bits.clamp(1, 20) - 1) << 35;
        pasid_size
            | flag(self.has_page_requests(), 29)
            | flag(self.pasids, 40)
            | flag(self.has_page_requests(), 42)
            | flag(true, 43)
            | flag(true, 46)
            | flag(self.first_stage, 47)
            | flag(self.scalable_walk_snoop, 48)
    }

    /// Whether devices may send page requests: those with device-TLBs, in scalable mode.
    pub(crate) fn has_page_requests(&self) -> bool {
        self.page_requests && self.scalable_mode && self.device_tlb
    }

    /// MGAW in bits.
    pub(crate) fn address_width(&self) -> u32 {
        self.guest_address_width.min(if self.four_level { 48 } else { 39 })
    }

    /// The bits of a domain id field that the unit does not implement.
    pub(crate) fn domain_id_reserved(&self) -> u16 {
        u16::MAX.checked_shl(self.domain_id_bits).unwrap_or(0)
    }
}
