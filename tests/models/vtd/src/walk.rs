//! Translation: root and context table of legacy mode, second-stage tables of both modes (VT-d 3.4.2, 3.7).

use crate::cache::Translation;
use crate::dma::{Access, Requester, in_interrupt_range};
use crate::memory::{read_pair, read_u64};
use crate::spec::regs::{RTADDR_TTM, TTM_SCALABLE};
use crate::spec::tables::{self, ContextEntry, RID_PASID, SS_PAGE_SIZE, SS_READ, SS_RESERVED, SS_SNOOP, SS_WRITE};
use crate::spec::{bits, mask, reason};
use crate::unit::fault::Fault;
use crate::{Memory, Unit};

/// Levels of the second-stage tables for a context entry's AW, if there is such a width.
fn levels(address_width: u64) -> Option<u32> {
    match address_width {
        1 => Some(3),
        2 => Some(4),
        _ => None,
    }
}

/// The permission an access needs.
fn needed(access: Access) -> u64 {
    match access {
        Access::Read => SS_READ,
        Access::Write => SS_WRITE,
    }
}

/// What leads from a request to its second-stage tables.
#[derive(Clone, Copy)]
pub(crate) struct Stage {
    pub(crate) domain: u16,
    pub(crate) table: u64,
    /// AW.
    pub(crate) address_width: u64,
    pub(crate) pass_through: bool,
    /// The tables are of the first stage.
    pub(crate) first_stage: bool,
    pub(crate) fault_processing_disabled: bool,
}

/// Why second-stage tables do not lead on.
#[derive(Clone, Copy)]
enum Trouble {
    Access,
    NotPresent,
    Denied,
    Reserved,
    InterruptRange,
    BeyondUnit,
    BeyondWidth,
}

impl Trouble {
    fn reason(self, access: Access, scalable: bool) -> u8 {
        let write = access == Access::Write;
        match (self, scalable) {
            (Trouble::Access, false) => reason::PAGING_ACCESS,
            (Trouble::Access, true) => reason::SM_PAGING_ACCESS,
            (Trouble::NotPresent, true) => reason::SM_PAGING_NOT_PRESENT,
            (Trouble::NotPresent | Trouble::Denied, false) if write => reason::WRITE_DENIED,
            (Trouble::NotPresent | Trouble::Denied, false) => reason::READ_DENIED,
            (Trouble::Denied, true) if write => reason::SM_WRITE_DENIED,
            (Trouble::Denied, true) => reason::SM_READ_DENIED,
            (Trouble::Reserved, false) => reason::PAGING_RESERVED,
            (Trouble::Reserved, true) => reason::SM_PAGING_RESERVED,
            (Trouble::InterruptRange, false) => reason::OUTPUT_IN_INTERRUPT_RANGE,
            (Trouble::InterruptRange, true) => reason::SM_OUTPUT_IN_INTERRUPT_RANGE,
            (Trouble::BeyondUnit | Trouble::BeyondWidth, false) => reason::ADDRESS_BEYOND_WIDTH,
            (Trouble::BeyondUnit, true) => reason::SM_ADDRESS_BEYOND_UNIT,
            (Trouble::BeyondWidth, true) => reason::SM_ADDRESS_BEYOND_WIDTH,
        }
    }
}

/// Where a walk stands: the table it looks into next.
#[derive(Clone, Copy)]
struct Step {
    table: Translation,
    level: u32,
}

impl Unit {
    /// Whether the root table is one of scalable mode (RTADDR.TTM as SRTP latched it).
    pub(crate) fn scalable(&self) -> bool {
        bits(self.regs.root, RTADDR_TTM.0, RTADDR_TTM.1) == TTM_SCALABLE
    }

    pub(crate) fn translate(
        &mut self,
        requester: Requester,
        address: u64,
        access: Access,
        mem: &mut dyn Memory,
    ) -> Result<u64, Fault> {
        let scalable = self.scalable();
        let stage = match requester.pasid {
            _ if scalable => self.scalable_stage(requester, mem)?,
            Some(_) => return Err(Fault::new(reason::SM_PASID_IN_LEGACY_MODE)),
            None => self.legacy_stage(requester.source_id, mem)?,
        };
        if stage.first_stage {
            let pasid = requester.pasid.unwrap_or(RID_PASID);
            return self.first_stage(stage, pasid, address, access, mem);
        }
        let fault =
            |trouble: Trouble| Fault::with_fpd(trouble.reason(access, scalable), stage.fault_processing_disabled);
        self.second_stage(stage, address, access, mem).map_err(fault)
    }

    fn second_stage(
        &mut self,
        stage: Stage,
        address: u64,
        access: Access,
        mem: &mut dyn Memory,
    ) -> Result<u64, Trouble> {
        if address >> self.config.address_width() != 0 {
            return Err(Trouble::BeyondUnit);
        }
        // A stage's width was checked with its entry.
        let root_level = levels(stage.address_width).ok_or(Trouble::BeyondWidth)?;
        if address >> (12 + 9 * root_level) != 0 {
            return Err(Trouble::BeyondWidth);
        }
        if stage.pass_through {
            return Ok(address);
        }
        self.page(stage, root_level, address, access, mem)
    }

    fn legacy_stage(&mut self, source_id: u16, mem: &mut dyn Memory) -> Result<Stage, Fault> {
        let context = self.context(source_id, mem)?;
        Ok(Stage {
            domain: context.domain_id(),
            table: context.table(),
            address_width: context.address_width(),
            pass_through: context.translation_type() == tables::TT_PASS_THROUGH,
            first_stage: false,
            fault_processing_disabled: context.fault_processing_disabled(),
        })
    }

    /// The requester's context entry, from the context cache or from memory. Only a good one is cached.
    fn context(&mut self, source_id: u16, mem: &mut dyn Memory) -> Result<ContextEntry, Fault> {
        if let Some(entry) = self.caches.context(source_id) {
            self.stats.cache_hits += 1;
            return Ok(entry);
        }
        self.stats.cache_misses += 1;
        let table = self.context_table(source_id, mem)?;
        let at = table + u64::from(source_id & 0xff) * tables::ENTRY_SIZE;
        let words = read_pair(mem, at).ok_or(Fault::new(reason::CONTEXT_ACCESS))?;
        let entry = self.check_context(ContextEntry(words))?;
        if self.caches.domain_differs(entry) {
            let rule = "context entries of one domain have the same tables and width (VT-d 6.2.1)";
            self.violation(0, u64::from(source_id), rule);
        }
        self.caches.keep_context(source_id, entry);
        Ok(entry)
    }

    fn context_table(&mut self, source_id: u16, mem: &mut dyn Memory) -> Result<u64, Fault> {
        let at = (self.regs.root & !0xfff) + u64::from(source_id >> 8) * tables::ENTRY_SIZE;
        let root = read_pair(mem, at).ok_or(Fault::new(reason::ROOT_ACCESS))?;
        if root[0] & 1 == 0 {
            return Err(Fault::new(reason::ROOT_NOT_PRESENT));
        }
        let reserved = tables::ROOT_RESERVED[0] | self.beyond_host_width();
        if root[0] & reserved != 0 || root[1] & tables::ROOT_RESERVED[1] != 0 {
            return Err(Fault::new(reason::ROOT_RESERVED));
        }
        Ok(root[0] & tables::ADDRESS)
    }

    fn check_context(&self, entry: ContextEntry) -> Result<ContextEntry, Fault> {
        let fault = |reason| Fault::with_fpd(reason, entry.fault_processing_disabled());
        if !entry.present() {
            return Err(fault(reason::CONTEXT_NOT_PRESENT));
        }
        let reserved = tables::CONTEXT_RESERVED[0] | self.beyond_host_width();
        let domain_wrong = entry.domain_id() & self.config.domain_id_reserved() != 0;
        let high_wrong = entry.0[1] & tables::CONTEXT_RESERVED[1] != 0;
        if entry.0[0] & reserved != 0 || high_wrong || domain_wrong {
            return Err(fault(reason::CONTEXT_RESERVED));
        }
        if !self.type_and_width_fit(entry) {
            return Err(fault(reason::CONTEXT_INVALID));
        }
        Ok(entry)
    }

    /// Whether the unit has this width (AW).
    pub(crate) fn has_width(&self, address_width: u64) -> bool {
        match address_width {
            1 => self.config.three_level,
            2 => self.config.four_level,
            _ => false,
        }
    }

    /// Pass-through wants the greatest width that the unit supports (VT-d chapter 9, context entry, AW).
    fn type_and_width_fit(&self, entry: ContextEntry) -> bool {
        let width = entry.address_width();
        let greatest = width == if self.config.four_level { 2 } else { 1 };
        self.has_width(width)
            && match entry.translation_type() {
                tables::TT_UNTRANSLATED => true,
                tables::TT_DEVICE_TLB => self.config.device_tlb,
                tables::TT_PASS_THROUGH => self.config.pass_through && greatest,
                _ => false,
            }
    }

    /// The host-physical address, from the IOTLB or by a walk.
    fn page(
        &mut self,
        stage: Stage,
        root_level: u32,
        address: u64,
        access: Access,
        mem: &mut dyn Memory,
    ) -> Result<u64, Trouble> {
        let domain = stage.domain;
        let permission = needed(access);
        let (page, level) = match self.caches.page(domain, address) {
            Some(cached) => {
                self.stats.cache_hits += 1;
                cached
            }
            None => {
                self.stats.cache_misses += 1;
                self.walk(stage, root_level, address, access, mem)?
            }
        };
        if page.permissions & permission == 0 {
            return Err(Trouble::Denied);
        }
        let output = page.address | address & mask(tables::level_shift(level) - 1, 0);
        if in_interrupt_range(output) {
            return Err(Trouble::InterruptRange);
        }
        self.caches.keep_page(domain, level, address, page);
        Ok(output)
    }

    /// Walks from the lowest table that the paging-structure caches know. At most four steps: the level falls.
    fn walk(
        &mut self,
        stage: Stage,
        root_level: u32,
        address: u64,
        access: Access,
        mem: &mut dyn Memory,
    ) -> Result<(Translation, u32), Trouble> {
        let domain = stage.domain;
        let root = Translation { address: stage.table, permissions: SS_READ | SS_WRITE };
        let cached = self.caches.table(domain, address, root_level);
        let (table, level) = cached.unwrap_or((root, root_level));
        let mut step = Step { table, level };
        loop {
            let (entry, leaf) = self.paging_entry(step, address, access, mem)?;
            if leaf {
                return Ok((entry, step.level));
            }
            step = Step { table: entry, level: step.level - 1 };
            self.caches.keep_table(domain, step.level, address, entry);
        }
    }

    /// Reads and checks one entry: what it points to, with the permissions up to it, and whether that is a page.
    fn paging_entry(
        &self,
        step: Step,
        address: u64,
        access: Access,
        mem: &mut dyn Memory,
    ) -> Result<(Translation, bool), Trouble> {
        let permission = needed(access);
        let index = address >> tables::level_shift(step.level) & 0x1ff;
        let entry = read_u64(mem, step.table.address + index * 8).ok_or(Trouble::Access)?;
        if entry & (SS_READ | SS_WRITE) == 0 {
            return Err(Trouble::NotPresent);
        }
        let leaf = step.level == 1 || entry & SS_PAGE_SIZE != 0;
        if entry & self.paging_reserved(step.level, leaf) != 0 {
            return Err(Trouble::Reserved);
        }
        let permissions = step.table.permissions & entry;
        if permissions & permission == 0 {
            return Err(Trouble::Denied);
        }
        let target = Translation { address: entry & tables::ADDRESS, permissions: permissions & (SS_READ | SS_WRITE) };
        Ok((target, leaf))
    }

    /// The reserved bits of a paging entry. PS is reserved where the unit has no page of that size.
    fn paging_reserved(&self, level: u32, leaf: bool) -> u64 {
        let large = match level {
            1 => true,
            2 => self.config.pages_2m,
            3 => self.config.pages_1g,
            _ => false,
        };
        let page_size = if large { 0 } else { SS_PAGE_SIZE };
        let offset = if leaf && level > 1 { mask(tables::level_shift(level) - 1, 12) } else { 0 };
        let address = self.beyond_host_width() & tables::ADDRESS;
        let snoop = if leaf && self.config.snoop_control { 0 } else { SS_SNOOP };
        SS_RESERVED | page_size | snoop | offset | address
    }
}
