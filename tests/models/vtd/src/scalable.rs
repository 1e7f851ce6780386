//! Scalable mode's way from a request to its second-stage tables: root table, context table, PASID directory, PASID table
//! (VT-d 3.4.3, 9.2, 9.4 to 9.6).

use crate::dma::Requester;
use crate::memory::{read_quads, read_u64};
use crate::spec::tables::{self, PasidEntry, RID_PASID, ScalableContext};
use crate::spec::{bit, reason};
use crate::unit::fault::Fault;
use crate::walk::Stage;
use crate::{Memory, Unit};

impl Unit {
    /// What leads on for a request, from the caches or from memory. Only good entries are cached.
    pub(crate) fn scalable_stage(&mut self, requester: Requester, mem: &mut dyn Memory) -> Result<Stage, Fault> {
        let context = self.scalable_context(requester.source_id, mem)?;
        let fault = |reason| Fault::with_fpd(reason, context.fault_processing_disabled());
        if requester.pasid.is_some() && !context.pasid_enabled() {
            return Err(fault(reason::SM_PASID_DISABLED));
        }
        let pasid = requester.pasid.unwrap_or(RID_PASID);
        if pasid >> context.pasid_bits().min(self.config.pasid_bits) != 0 {
            return Err(fault(reason::SM_PASID_BEYOND_DIRECTORY));
        }
        let entry = self.pasid_entry(requester.source_id, context, pasid, mem)?;
        let first_stage = entry.translation_type() == tables::PGTT_FIRST_STAGE;
        Ok(Stage {
            domain: entry.domain_id(),
            table: if first_stage { entry.first_stage_table() } else { entry.table() },
            first_stage,
            address_width: entry.address_width(),
            pass_through: entry.translation_type() == tables::PGTT_PASS_THROUGH,
            fault_processing_disabled: context.fault_processing_disabled() || entry.fault_processing_disabled(),
        })
    }

    pub(crate) fn scalable_context(&mut self, source_id: u16, mem: &mut dyn Memory) -> Result<ScalableContext, Fault> {
        if let Some(entry) = self.caches.scalable_context(source_id) {
            self.stats.cache_hits += 1;
            return Ok(entry);
        }
        self.stats.cache_misses += 1;
        let table = self.scalable_context_table(source_id, mem)?;
        let at = table + u64::from(source_id & 0x7f) * tables::SM_CONTEXT_SIZE;
        let entry = ScalableContext(read_quads(mem, at).ok_or(Fault::new(reason::SM_CONTEXT_ACCESS))?);
        let fault = |reason| Fault::with_fpd(reason, entry.fault_processing_disabled());
        if !entry.present() {
            return Err(fault(reason::SM_CONTEXT_NOT_PRESENT));
        }
        let mut reserved = ScalableContext::RESERVED;
        reserved[0] |= self.beyond_host_width();
        if !self.config.device_tlb {
            reserved[0] |= ScalableContext::DTE;
        }
        if !self.config.has_page_requests() {
            reserved[0] |= ScalableContext::PRE;
        }
        if !self.config.pasids {
            reserved[0] |= ScalableContext::PASIDE;
        }
        if any(entry.0, reserved) {
            return Err(fault(reason::SM_CONTEXT_RESERVED));
        }
        self.caches.keep_scalable_context(source_id, entry);
        Ok(entry)
    }

    /// The lower half of a root entry is for devices 0 to 15, the upper for the others.
    fn scalable_context_table(&self, source_id: u16, mem: &mut dyn Memory) -> Result<u64, Fault> {
        let entry = (self.regs.root & !0xfff) + u64::from(source_id >> 8) * tables::ENTRY_SIZE;
        let half =
            read_u64(mem, entry + u64::from(source_id >> 7 & 1) * 8).ok_or(Fault::new(reason::SM_ROOT_ACCESS))?;
        if !bit(half, 0) {
            return Err(Fault::new(reason::SM_ROOT_NOT_PRESENT));
        }
        if half & (tables::SM_ROOT_RESERVED | self.beyond_host_width()) != 0 {
            return Err(Fault::new(reason::SM_ROOT_RESERVED));
        }
        Ok(half & tables::ADDRESS)
    }

    fn pasid_entry(
        &mut self,
        source_id: u16,
        context: ScalableContext,
        pasid: u32,
        mem: &mut dyn Memory,
    ) -> Result<PasidEntry, Fault> {
        if let Some(entry) = self.caches.pasid(source_id, pasid) {
            self.stats.cache_hits += 1;
            return Ok(entry);
        }
        self.stats.cache_misses += 1;
        let (table, disabled) = self.pasid_table(context, pasid, mem)?;
        let at = table + u64::from(pasid & 0x3f) * tables::PASID_ENTRY_SIZE;
        let words = read_quads(mem, at).ok_or(Fault::with_fpd(reason::SM_PASID_ACCESS, disabled))?;
        let entry = PasidEntry(words);
        let wrong = self.pasid_entry_wrong(entry);
        if let Some(reason) = wrong {
            return Err(Fault::with_fpd(reason, disabled || entry.fault_processing_disabled()));
        }
        if self.caches.pasid_domain_differs(entry) {
            let rule = "PASID entries of one domain have the same tables and width (VT-d 6.2.1)";
            self.violation(0, pasid.into(), rule);
        }
        self.caches.keep_pasid(source_id, pasid, entry);
        Ok(entry)
    }

    /// The PASID table, and whether faults from there on are not recorded.
    fn pasid_table(&self, context: ScalableContext, pasid: u32, mem: &mut dyn Memory) -> Result<(u64, bool), Fault> {
        let disabled = context.fault_processing_disabled();
        let index = pasid >> tables::PASID_TABLE_BITS;
        let at = context.directory() + u64::from(index) * tables::DIRECTORY_ENTRY_SIZE;
        let entry = read_u64(mem, at).ok_or(Fault::with_fpd(reason::SM_DIRECTORY_ACCESS, disabled))?;
        let disabled = disabled || bit(entry, 1);
        if !bit(entry, 0) {
            return Err(Fault::with_fpd(reason::SM_DIRECTORY_NOT_PRESENT, disabled));
        }
        if entry & (tables::DIRECTORY_RESERVED | self.beyond_host_width()) != 0 {
            return Err(Fault::with_fpd(reason::SM_DIRECTORY_RESERVED, disabled));
        }
        Ok((entry & tables::ADDRESS, disabled))
    }

    fn pasid_entry_wrong(&self, entry: PasidEntry) -> Option<u8> {
        if !entry.present() {
            return Some(reason::SM_PASID_NOT_PRESENT);
        }
        let first_stage = self.config.first_stage && entry.translation_type() == tables::PGTT_FIRST_STAGE;
        let mut reserved = if first_stage { PasidEntry::RESERVED_FIRST_STAGE } else { PasidEntry::RESERVED };
        reserved[if first_stage { 2 } else { 0 }] |= self.beyond_host_width();
        reserved[1] |= u64::from(self.config.domain_id_reserved());
        if !self.config.scalable_walk_snoop {
            reserved[1] |= PasidEntry::PWSNP;
        }
        if !self.config.snoop_control {
            reserved[1] |= PasidEntry::PGSNP;
        }
        if any(entry.0, reserved) {
            return Some(reason::SM_PASID_RESERVED);
        }
        if first_stage {
            return None;
        }
        let known = match entry.translation_type() {
            tables::PGTT_SECOND_STAGE => true,
            tables::PGTT_PASS_THROUGH => self.config.pass_through,
            _ => false,
        };
        (!known || !self.has_width(entry.address_width())).then_some(reason::SM_PASID_INVALID)
    }
}

/// Whether any of the `reserved` bits is set.
fn any<const N: usize>(words: [u64; N], reserved: [u64; N]) -> bool {
    words.iter().zip(&reserved).any(|(word, reserved)| word & reserved != 0)
}
