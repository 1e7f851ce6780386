//! First-stage tables: those of processors, for requests with a PASID and for others (VT-d 3.6, 9.7).

use crate::cache::Translation;
use crate::dma::{Access, in_interrupt_range};
use crate::memory::read_u64;
use crate::spec::tables::{self, first_stage as bit};
use crate::spec::{mask, reason};
use crate::unit::fault::Fault;
use crate::walk::Stage;
use crate::{Memory, Unit};

/// The level of the root table: tables have four levels.
const ROOT_LEVEL: u32 = 4;
/// Addresses that four levels translate are sign-extended from this bit on.
const SIGN: u32 = 47;

/// What an entry leads to, its permissions and those above it, and whether that is a page.
struct Step {
    target: Translation,
    leaf: bool,
}

impl Unit {
    /// Translates an address of a request for user privilege: nothing here sends others (ECAP.SRS = 0).
    pub(crate) fn first_stage(
        &mut self,
        stage: Stage,
        pasid: u32,
        address: u64,
        access: Access,
        mem: &mut dyn Memory,
    ) -> Result<u64, Fault> {
        let fault = |reason| Fault::with_fpd(reason, stage.fault_processing_disabled);
        if (address as i64) << (63 - SIGN) >> (63 - SIGN) != address as i64 {
            return Err(fault(reason::FS_NOT_CANONICAL));
        }
        let write = access == Access::Write;
        let tag = (stage.domain, pasid);
        let (page, level) = match self.caches.first_stage_page(tag, address) {
            // An entry without D, or without the right, is no answer for a write: the tables may have changed to more rights, and
            // hardware walks again (VT-d 6.2.4).
            Some((page, level)) if !write || page.permissions & bit::DIRTY != 0 => {
                self.stats.cache_hits += 1;
                (page, level)
            }
            _ => {
                self.stats.cache_misses += 1;
                let found = self.first_stage_walk(stage.table, address, write, mem).map_err(fault)?;
                self.stats.first_stage_walks += 1;
                found
            }
        };
        let output = page.address | address & mask(tables::level_shift(level) - 1, 0);
        if in_interrupt_range(output) {
            return Err(fault(reason::SM_OUTPUT_IN_INTERRUPT_RANGE));
        }
        self.caches.keep_first_stage_page(tag, level, address, page);
        Ok(output)
    }

    /// At most four steps: the level falls. Accessed bits are set on the way, and the page's dirty bit by a write (VT-d 3.6.2).
    fn first_stage_walk(
        &self,
        root: u64,
        address: u64,
        write: bool,
        mem: &mut dyn Memory,
    ) -> Result<(Translation, u32), u8> {
        let mut table = Translation { address: root, permissions: bit::WRITE | bit::USER };
        let mut level = ROOT_LEVEL;
        loop {
            let Step { target, leaf } = self.first_stage_entry(table, level, address, write, mem)?;
            if leaf {
                return Ok((target, level));
            }
            table = target;
            level -= 1;
        }
    }

    fn first_stage_entry(
        &self,
        table: Translation,
        level: u32,
        address: u64,
        write: bool,
        mem: &mut dyn Memory,
    ) -> Result<Step, u8> {
        let at = table.address + 8 * (address >> tables::level_shift(level) & 0x1ff);
        let entry = read_u64(mem, at).ok_or(reason::FS_PAGING_ACCESS)?;
        if entry & bit::PRESENT == 0 {
            return Err(reason::FS_PAGING_NOT_PRESENT);
        }
        let leaf = level == 1 || entry & bit::PAGE_SIZE != 0;
        if entry & self.first_stage_reserved(level, leaf) != 0 {
            return Err(reason::FS_PAGING_RESERVED);
        }
        let permissions = table.permissions & entry;
        if leaf && permissions & bit::USER == 0 {
            return Err(reason::FS_USER_DENIED);
        }
        if leaf && write && permissions & bit::WRITE == 0 {
            return Err(reason::SM_WRITE_DENIED);
        }
        let dirty = if leaf && write { bit::DIRTY } else { 0 };
        let noted = entry | bit::ACCESSED | dirty;
        if noted != entry && !mem.write(at, &noted.to_le_bytes()) {
            return Err(reason::FS_PAGING_ACCESS);
        }
        let kept = permissions & (bit::WRITE | bit::USER) | if leaf { noted & bit::DIRTY } else { 0 };
        let place = if leaf { tables::ADDRESS & !mask(tables::level_shift(level) - 1, 0) } else { tables::ADDRESS };
        Ok(Step { target: Translation { address: entry & place, permissions: kept }, leaf })
    }

    /// Address bits beyond the host's width, PS where there is no page of that size, and what lies below a large page's address but PAT.
    fn first_stage_reserved(&self, level: u32, leaf: bool) -> u64 {
        let large = match level {
            1 => true,
            2 => true,
            3 => self.config.first_stage_1g,
            _ => false,
        };
        let page_size = if large { 0 } else { bit::PAGE_SIZE };
        let offset = if leaf && level > 1 { mask(tables::level_shift(level) - 1, 13) } else { 0 };
        page_size | offset | self.beyond_host_width() & tables::ADDRESS
    }
}
