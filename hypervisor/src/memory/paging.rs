//! The hypervisor's own page tables: an identity map with the least rights.
//!
//! SDM vol. 3, 5.5 (4-level paging). RAM is write-back, and not executable except for the hypervisor's text, which is not writable. Device
//! memory is uncached. Page 0 and all ranges that no caller named are not mapped.

use core::fmt;

use bit_field::BitField;

use super::{FrameSource, PhysRange, Table};
use crate::addr::{Hpa, PAGE_SIZE};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51:12 of an entry: the address of a table or page.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// What a leaf says besides its address and size.
const ATTRIBUTES: u64 = PRESENT | WRITABLE | WRITE_THROUGH | CACHE_DISABLE | NO_EXECUTE;

/// The lower half of the linear address space: where the identity map can be.
const TOP: u64 = 1 << 47;
/// Levels: 3 maps 512 GiB an entry, 0 a page.
const ROOT_LEVEL: u32 = 3;

/// What may be done with a range of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// RAM: write-back, readable, writable.
    Ram,
    /// Constants and tables: write-back, readable.
    ReadOnly,
    /// Code: write-back, readable, executable.
    Text,
    /// Code that lies among its data: write-back, all rights. For the start-up page of the processors only.
    Trampoline,
    /// Device memory: uncached (PAT entry 3 as after reset), readable, writable.
    Device,
    /// A screen's memory: write-combining where the MTRRs say so, else uncached (PAT entry 2 as after reset), readable, writable.
    Screen,
    /// Nothing: a fault.
    None,
}

impl Protection {
    const fn bits(self) -> u64 {
        match self {
            Self::Ram => PRESENT | WRITABLE | NO_EXECUTE,
            Self::ReadOnly => PRESENT | NO_EXECUTE,
            Self::Text => PRESENT,
            Self::Trampoline => PRESENT | WRITABLE,
            Self::Device => PRESENT | WRITABLE | WRITE_THROUGH | CACHE_DISABLE | NO_EXECUTE,
            Self::Screen => PRESENT | WRITABLE | CACHE_DISABLE | NO_EXECUTE,
            Self::None => 0,
        }
    }
}

/// Why a range could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frame for a table.
    NoMemory,
    /// The range is empty, wraps, or does not lie in the first 128 TiB.
    BadRange,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMemory => "no memory for a page table",
            Self::BadRange => "a range is empty or does not lie in the first 128 TiB",
        })
    }
}

/// A set of page tables.
pub struct Paging<'f, F: FrameSource> {
    frames: &'f F,
    root: Table,
    /// The highest level that may hold a page: 2 where the processor has 1 GiB pages, else 1.
    leaf_level: u32,
}

impl<'f, F: FrameSource> Paging<'f, F> {
    /// Empty tables. `gibibyte_pages` is CPUID 8000_0001H:EDX bit 26.
    pub fn new(frames: &'f F, gibibyte_pages: bool) -> Result<Self, MapError> {
        let root = Table::new(frames).ok_or(MapError::NoMemory)?;
        Ok(Self { frames, root, leaf_level: if gibibyte_pages { 2 } else { 1 } })
    }

    /// The value for CR3.
    pub fn cr3(&self) -> u64 {
        self.root.address().as_u64()
    }

    /// Maps the pages that `range` touches to themselves with `protection`, whatever was there before. Pages are as large as
    /// alignment permits. On a live set of tables: new rights are seen at once, narrower ones after [`flush`].
    pub fn map(&mut self, range: PhysRange, protection: Protection) -> Result<(), MapError> {
        let (first, end) = range.outer_pages();
        let (mut at, end) = (first * PAGE_SIZE, end * PAGE_SIZE);
        if at >= end || end > TOP || range.start.as_u64().checked_add(range.len).is_none() {
            return Err(MapError::BadRange);
        }
        while at < end {
            at += self.map_one(at, end - at, protection)?;
        }
        Ok(())
    }

    /// Maps device registers: [`Protection::Device`].
    pub fn map_mmio(&mut self, start: Hpa, len: u64) -> Result<(), MapError> {
        self.map(PhysRange::new(start, len), Protection::Device)
    }

    /// Takes the rights from page 0, so that a null pointer faults.
    pub fn unmap_null(&mut self) -> Result<(), MapError> {
        self.map(PhysRange::new(Hpa::new(0), PAGE_SIZE), Protection::None)
    }

    /// Maps one page of the largest size that fits at `at`; returns its bytes.
    fn map_one(&self, at: u64, len: u64, protection: Protection) -> Result<u64, MapError> {
        let fits = |level: &u32| at.is_multiple_of(size(*level)) && size(*level) <= len;
        let level = (0..=self.leaf_level).rev().find(fits).unwrap_or(0);
        let mut table = self.root;
        for above in (level + 1..=ROOT_LEVEL).rev() {
            table = self.descend(&table, above, at)?;
        }
        let large = if level > 0 && protection != Protection::None { LARGE } else { 0 };
        let address = if protection == Protection::None { 0 } else { at };
        // A table that hung here keeps its frame: the processor may still hold it in its paging-structure caches.
        table.set(index(at, level), address | protection.bits() | large);
        Ok(size(level))
    }

    /// The table under the entry for `at` in a `table` of `level`: it is made where there is none, and a large page is split.
    fn descend(&self, table: &Table, level: u32, at: u64) -> Result<Table, MapError> {
        let entry = table.get(index(at, level));
        if entry & PRESENT != 0 && (level == ROOT_LEVEL || entry & LARGE == 0) {
            // SAFETY: an entry that is present and no page was made below, from a table of these frames; none is ever freed.
            return Ok(unsafe { Table::at(self.frames, Hpa::new(entry & ADDRESS)) });
        }
        let below = Table::new(self.frames).ok_or(MapError::NoMemory)?;
        if entry & PRESENT != 0 {
            let (base, attributes) = (entry & ADDRESS & !(size(level) - 1), entry & ATTRIBUTES);
            let large = if level > 1 { LARGE } else { 0 };
            (0..512).for_each(|i| below.set(i, (base + i * size(level - 1)) | attributes | large));
        }
        table.set(index(at, level), below.address().as_u64() | PRESENT | WRITABLE);
        Ok(below)
    }

    /// The access bits in force at `address`, and the bytes of its page; for tests and dumps.
    pub fn lookup(&self, address: Hpa) -> Option<(u64, u64)> {
        let at = address.as_u64();
        let mut table = self.root;
        for level in (0..=ROOT_LEVEL).rev() {
            let entry = table.get(index(at, level));
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 0 || (level < ROOT_LEVEL && entry & LARGE != 0) {
                return Some((entry & ATTRIBUTES, size(level)));
            }
            // SAFETY: as in `descend`.
            table = unsafe { Table::at(self.frames, Hpa::new(entry & ADDRESS)) };
        }
        None
    }
}

/// Bytes that an entry of `level` maps.
const fn size(level: u32) -> u64 {
    PAGE_SIZE << (9 * level)
}

/// The index of the entry for `at` in a table of `level`.
fn index(at: u64, level: u32) -> u64 {
    let low = 12 + 9 * level as usize;
    at.get_bits(low..low + 9)
}

/// Makes this processor use the tables at `cr3`, with no-execute (EFER.NXE) and read-only pages in force for the hypervisor
/// itself (CR0.WP).
///
/// # Safety
/// The tables map the code that runs, its stack and all that it uses to themselves, with the rights that they need.
#[cfg(target_arch = "x86_64")]
pub unsafe fn activate(cr3: u64) {
    // SAFETY: the caller vouches for the tables. EFER is MSR C000_0080H; NXE, bit 11, exists on every processor with VT-x.
    // CR0.WP is bit 16.
    unsafe {
        core::arch::asm!(
            "mov ecx, 0xc0000080", "rdmsr", "or eax, 0x800", "wrmsr",
            "mov rax, cr0", "or rax, 0x10000", "mov cr0, rax",
            "mov cr3, {cr3}",
            cr3 = in(reg) cr3, out("eax") _, out("ecx") _, out("edx") _, options(nostack),
        );
    }
}

/// Forgets what this processor cached of its page tables. Other processors keep theirs.
///
/// # Safety
/// Privilege level 0.
#[cfg(target_arch = "x86_64")]
pub unsafe fn flush() {
    // SAFETY: reloading CR3 with its own value changes no mapping.
    unsafe { core::arch::asm!("mov {cr3}, cr3", "mov cr3, {cr3}", cr3 = out(reg) _, options(nostack)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::TestFrames;

    const GIB: u64 = 1 << 30;

    fn range(start: u64, len: u64) -> PhysRange {
        PhysRange::new(Hpa::new(start), len)
    }

    fn at<F: FrameSource>(paging: &Paging<'_, F>, address: u64) -> Option<(u64, u64)> {
        paging.lookup(Hpa::new(address))
    }

    #[test]
    fn pages_are_as_large_as_they_can_be() {
        let frames = TestFrames::default();
        let mut paging = Paging::new(&frames, true).unwrap();
        paging.map(range(0, 2 * GIB + 0x20_1000), Protection::Ram).unwrap();
        assert_eq!(at(&paging, GIB), Some((Protection::Ram.bits(), GIB)));
        assert_eq!(at(&paging, 2 * GIB), Some((Protection::Ram.bits(), 2 << 20)));
        assert_eq!(at(&paging, 2 * GIB + 0x20_0fff), Some((Protection::Ram.bits(), PAGE_SIZE)));
        assert_eq!(at(&paging, 2 * GIB + 0x20_1000), None);
    }

    #[test]
    fn without_gibibyte_pages_two_mib_are_the_largest() {
        let frames = TestFrames::default();
        let mut paging = Paging::new(&frames, false).unwrap();
        paging.map(range(0, GIB), Protection::Ram).unwrap();
        assert_eq!(at(&paging, 0), Some((Protection::Ram.bits(), 2 << 20)));
    }

    #[test]
    fn text_is_cut_out_of_ram_and_the_rest_keeps_its_rights() {
        let frames = TestFrames::default();
        let mut paging = Paging::new(&frames, true).unwrap();
        paging.map(range(0, GIB), Protection::Ram).unwrap();
        paging.map(range(0x10_0000, 0x3000), Protection::Text).unwrap();
        paging.unmap_null().unwrap();
        assert_eq!(at(&paging, 0xfff), None);
        assert_eq!(at(&paging, 0x1000), Some((Protection::Ram.bits(), PAGE_SIZE)));
        assert_eq!(at(&paging, 0x10_2fff), Some((Protection::Text.bits(), PAGE_SIZE)));
        assert_eq!(at(&paging, 0x10_3000), Some((Protection::Ram.bits(), PAGE_SIZE)));
        assert_eq!(at(&paging, 0x20_0000), Some((Protection::Ram.bits(), 2 << 20)));
        assert_eq!(Protection::Text.bits() & WRITABLE, 0);
    }

    #[test]
    fn devices_are_uncached_wherever_they_are() {
        let frames = TestFrames::default();
        let mut paging = Paging::new(&frames, true).unwrap();
        paging.map_mmio(Hpa::new(0x7f_ffff_f800), 0x1000).unwrap();
        let (bits, size) = at(&paging, 0x80_0000_0000).unwrap();
        assert_eq!((bits, size), (Protection::Device.bits(), PAGE_SIZE));
        assert_eq!(bits & (WRITE_THROUGH | CACHE_DISABLE), WRITE_THROUGH | CACHE_DISABLE);
        assert!(at(&paging, 0x7f_ffff_f000).is_some());
    }

    #[test]
    fn a_screen_in_reserved_memory_is_not_cached_and_its_surroundings_are() {
        let frames = TestFrames::default();
        let mut paging = Paging::new(&frames, true).unwrap();
        paging.map(range(3 * GIB, GIB), Protection::ReadOnly).unwrap();
        paging.map(range(3 * GIB + 0x1000_0000, 0x30_0000), Protection::Screen).unwrap();
        let (bits, _) = at(&paging, 3 * GIB + 0x1020_0000).unwrap();
        assert_eq!((bits & (CACHE_DISABLE | WRITE_THROUGH), bits & WRITABLE), (CACHE_DISABLE, WRITABLE));
        assert_eq!(at(&paging, 3 * GIB + 0x1030_0000), Some((Protection::ReadOnly.bits(), PAGE_SIZE)));
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        let frames = TestFrames::default();
        let mut paging = Paging::new(&frames, true).unwrap();
        for bad in [range(0x1000, 0), range(u64::MAX - 5, 0x1000), range(TOP - 0x1000, 0x2000), range(0, u64::MAX)] {
            assert_eq!(paging.map(bad, Protection::Device), Err(MapError::BadRange));
        }
    }
}
