//! Extended page tables, which map a guest's physical addresses. SDM vol. 3, 30.3.

mod reserve;

use core::fmt;

use crate::{
    addr::{Gpa, Hpa, PAGE_SIZE},
    cpu::fiber,
    memory::{FrameSource, Table},
    sync::Mutex,
};

use reserve::Reserve;

/// Permissions: bits 2:0 of an entry.
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const RIGHTS: u64 = READ | WRITE | EXECUTE;
/// Entry maps a page.
const LARGE: u64 = 1 << 7;
/// Memory type: bits 5:3 of a leaf; write-back 6, uncached 0.
const WRITE_BACK: u64 = 6 << 3;
const MEMORY_TYPE: u64 = 7 << 3;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// EPT pointer: write-back tables, four levels.
const EPTP_WRITE_BACK: u64 = 6;
const EPTP_FOUR_LEVELS: u64 = 3 << 3;

/// Guest-physical addresses end here: four levels.
const TOP: u64 = 1 << 48;

/// What a guest may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageType {
    /// The guest's own RAM: everything, write-back.
    Ram,
    /// Device registers: reads and writes reach the device, uncached.
    Device,
    /// Device registers. Reads reach the device; writes are trapped.
    DeviceReadOnly,
    /// RAM of the hypervisor that the guest can only read: shadows of stores and registers.
    Shadow,
    /// Device registers. Reads and writes are trapped.
    Trapped,
}

impl PageType {
    const fn bits(self) -> u64 {
        match self {
            Self::Ram => RIGHTS | WRITE_BACK,
            Self::Device => READ | WRITE,
            Self::DeviceReadOnly => READ,
            Self::Shadow => READ | WRITE_BACK,
            Self::Trapped => 0,
        }
    }
}

/// Why a range could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frame for a table.
    OutOfMemory,
    /// The range is empty, not page-aligned, or ends beyond 2^48.
    BadRange,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "memory ran out for its extended page tables",
            Self::BadRange => "extended page tables cannot map what it is to have",
        })
    }
}

/// One guest's extended page tables.
///
/// The tables' frames come from the frame source and go back to it with [`Ept::free`].
pub struct Ept {
    root: Table,
    gibibyte_pages: bool,
    /// Large pages of RAM are not executable.
    small_code_pages: bool,
    /// Tables that large pages of RAM may still be split into.
    splits: u64,
    /// Frames for these. Held while a page is made executable: guests run meanwhile.
    reserve: Mutex<Reserve>,
}

impl Ept {
    /// Empty tables: every access is a violation.
    pub fn new(frames: &impl FrameSource, gibibyte_pages: bool) -> Result<Self, MapError> {
        let root = Table::new(frames).ok_or(MapError::OutOfMemory)?;
        Ok(Self { root, gibibyte_pages, small_code_pages: false, splits: 0, reserve: Mutex::default() })
    }

    /// Maps RAM from now on so that no large page is executable (iTLB multihit, INTEL-SA-00210). [`Self::make_executable`] splits large
    /// pages where the guest executes.
    pub fn use_small_code_pages(&mut self) {
        self.small_code_pages = true;
    }

    /// Sets frames aside for all that [`Self::make_executable`] may take for the RAM that was mapped since the last call: a frame for each 2 MiB,
    /// and one for each GiB that is one page. So no other guest can take memory that this one needs to execute. A fiber may stop meanwhile.
    pub fn reserve_splits(&mut self, frames: &impl FrameSource) -> Result<(), MapError> {
        let reserve = self.reserve.get_mut();
        for _ in 0..core::mem::take(&mut self.splits) {
            reserve.add(frames).ok_or(MapError::OutOfMemory)?;
            fiber::cond_resched();
        }
        Ok(())
    }

    /// The value for the VMCS's EPT pointer.
    pub fn pointer(&self) -> u64 {
        self.root.address().as_u64() | EPTP_FOUR_LEVELS | EPTP_WRITE_BACK
    }

    /// Maps `len` bytes of guest-physical memory from `gpa` to `hpa`, by pages as large as alignment allows. What was mapped there
    /// before is replaced; the caller drops cached translations (INVEPT) where the guest has run already.
    pub fn map(
        &mut self,
        frames: &impl FrameSource,
        gpa: Gpa,
        hpa: Hpa,
        len: u64,
        page_type: PageType,
    ) -> Result<(), MapError> {
        let end = gpa.as_u64().checked_add(len).ok_or(MapError::BadRange)?;
        if len == 0 || end > TOP || !(gpa.as_u64() | hpa.as_u64() | len).is_multiple_of(PAGE_SIZE) {
            return Err(MapError::BadRange);
        }
        let (mut gpa, mut hpa) = (gpa.as_u64(), hpa.as_u64());
        while gpa < end {
            let level = self.level_for(gpa, hpa, end - gpa);
            self.map_page(frames, gpa, hpa, level, page_type)?;
            gpa += page_size(level);
            hpa += page_size(level);
        }
        Ok(())
    }

    /// Where `gpa` is mapped to and whether the guest may write there.
    pub fn lookup(&self, frames: &impl FrameSource, gpa: Gpa) -> Option<(Hpa, bool)> {
        let gpa = gpa.as_u64();
        if gpa >= TOP {
            return None;
        }
        let mut table = self.root;
        for level in (0..4).rev() {
            let entry = table.get(index(gpa, level));
            if entry & RIGHTS == 0 {
                return None;
            }
            if level == 0 || entry & LARGE != 0 {
                let offset = gpa & (page_size(level) - 1);
                return Some((Hpa::new((entry & ADDRESS & !(page_size(level) - 1)) | offset), entry & WRITE != 0));
            }
            // SAFETY: an entry that is present and no leaf holds the address of a table that `next_table` made.
            table = unsafe { Table::at(frames, Hpa::new(entry & ADDRESS)) };
        }
        None
    }

    /// Lets the guest execute at `gpa`, where that is RAM in a page that is not executable: the 2 MiB around it become pages of 4 KiB that
    /// are. Returns whether the guest may execute there now. Takes one frame for each 2 MiB of RAM, and one for each GiB, at the most,
    /// however often it is called: those that [`Self::reserve_splits`] has set aside, and others if there are none.
    ///
    /// Cached translations may stay: they deny execution, and the violation that this follows has dropped the one that caused it (SDM
    /// vol. 3, 30.4.3.1).
    pub fn make_executable(&self, frames: &impl FrameSource, gpa: Gpa) -> Result<bool, MapError> {
        let gpa = gpa.as_u64();
        if gpa >= TOP {
            return Ok(false);
        }
        let mut reserve = self.reserve.lock();
        let mut next = || reserve.take(frames).or_else(|| Table::new(frames)).ok_or(MapError::OutOfMemory);
        let mut table = self.root;
        for level in (0..4).rev() {
            let (at, entry) = (index(gpa, level), table.get(index(gpa, level)));
            let is_leaf = level == 0 || entry & LARGE != 0;
            if entry & RIGHTS == 0 || is_leaf && !is_ram(entry) {
                return Ok(false);
            }
            match level {
                _ if !is_leaf => {}
                0 => {
                    table.set(at, entry | EXECUTE);
                    return Ok(true);
                }
                // The table's entries are whole before the processor can find it.
                1 => {
                    split(table, at, level, (next()?, EXECUTE));
                    return Ok(true);
                }
                _ => {
                    split(table, at, level, (next()?, 0));
                }
            }
            // SAFETY: the entry is present and no leaf, or no longer: `next_table` or `split` made the table.
            table = unsafe { Table::at(frames, Hpa::new(table.get(at) & ADDRESS)) };
        }
        Ok(false)
    }

    /// Gives all tables back. A fiber may stop meanwhile.
    ///
    /// # Safety
    /// No processor uses them any more: no VMCS holds the pointer, and cached translations are dropped.
    pub unsafe fn free(self, frames: &impl FrameSource) {
        free_table(frames, self.root, 3, fiber::cond_resched);
        self.reserve.into_inner().free(frames);
    }

    /// The largest page that maps the start of a range.
    fn level_for(&self, gpa: u64, hpa: u64, len: u64) -> u32 {
        let highest = if self.gibibyte_pages { 2 } else { 1 };
        (1..=highest)
            .rev()
            .find(|&level| len >= page_size(level) && (gpa | hpa).is_multiple_of(page_size(level)))
            .unwrap_or(0)
    }

    fn map_page(
        &mut self,
        frames: &impl FrameSource,
        gpa: u64,
        hpa: u64,
        leaf: u32,
        page_type: PageType,
    ) -> Result<(), MapError> {
        let mut table = self.root;
        for level in (leaf + 1..4).rev() {
            table = next_table(frames, table, index(gpa, level), level)?;
        }
        let large = if leaf > 0 { LARGE } else { 0 };
        let entry = table.get(index(gpa, leaf));
        let denied = if leaf > 0 && self.small_code_pages && page_type == PageType::Ram { EXECUTE } else { 0 };
        if denied != 0 {
            self.splits += if leaf > 1 { 1 + 512 } else { 1 };
        }
        table.set(index(gpa, leaf), hpa | page_type.bits() & !denied | large);
        if leaf > 0 && entry & RIGHTS != 0 && entry & LARGE == 0 {
            // SAFETY: the entry pointed to a table of `next_table`'s, which nothing points to any more.
            free_table(frames, unsafe { Table::at(frames, Hpa::new(entry & ADDRESS)) }, leaf - 1, || {});
        }
        Ok(())
    }
}

/// The table that entry `at` of a `table` at `level` points to; made, or a large page split, where there is none.
fn next_table(frames: &impl FrameSource, table: Table, at: u64, level: u32) -> Result<Table, MapError> {
    let entry = table.get(at);
    if entry & RIGHTS != 0 && entry & LARGE == 0 {
        // SAFETY: such an entry was written below.
        return Ok(unsafe { Table::at(frames, Hpa::new(entry & ADDRESS)) });
    }
    let next = Table::new(frames).ok_or(MapError::OutOfMemory)?;
    split(table, at, level, (next, 0));
    Ok(next)
}

/// Makes entry `at` of a `table` at `level` point to the empty table `next`, whose entries map what the entry did, with `more` rights.
fn split(table: Table, at: u64, level: u32, (next, more): (Table, u64)) {
    let entry = table.get(at);
    if entry & LARGE != 0 {
        let size = page_size(level - 1);
        let large = if level > 1 { LARGE } else { 0 };
        for n in 0..512 {
            next.set(n, ((entry & !LARGE) + n * size) | large | more);
        }
    }
    table.set(at, next.address().as_u64() | RIGHTS);
}

/// Whether a leaf maps RAM: no other page is written and cached.
const fn is_ram(leaf: u64) -> bool {
    leaf & (READ | WRITE | MEMORY_TYPE) == READ | WRITE | WRITE_BACK
}

fn free_table(frames: &impl FrameSource, table: Table, level: u32, after_each: fn()) {
    for n in 0..512 {
        let entry = table.get(n);
        if level > 0 && entry & RIGHTS != 0 && entry & LARGE == 0 {
            // SAFETY: such an entry holds the address of a table of ours; the caller has let go of the whole tree.
            free_table(frames, unsafe { Table::at(frames, Hpa::new(entry & ADDRESS)) }, level - 1, after_each);
        }
    }
    // SAFETY: nothing points to the table any more.
    unsafe { frames.free(table.address(), 1) };
    after_each();
}

/// Bytes that an entry at `level` maps.
const fn page_size(level: u32) -> u64 {
    PAGE_SIZE << (9 * level)
}

/// Index of the entry for `gpa` in a table at `level`.
const fn index(gpa: u64, level: u32) -> u64 {
    gpa >> (12 + 9 * level) & 0x1ff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::TestFrames;

    const MIB: u64 = 1 << 20;

    fn look(ept: &Ept, frames: &TestFrames, gpa: u64) -> Option<(u64, bool)> {
        ept.lookup(frames, Gpa::new(gpa)).map(|(hpa, write)| (hpa.as_u64(), write))
    }

    #[test]
    fn a_guest_sees_its_memory_and_nothing_else() {
        let frames = TestFrames::default();
        let mut ept = Ept::new(&frames, true).unwrap();
        ept.map(&frames, Gpa::new(0), Hpa::new(64 * MIB), 6 * MIB + PAGE_SIZE, PageType::Ram).unwrap();
        assert_eq!(look(&ept, &frames, 0), Some((64 * MIB, true)));
        assert_eq!(look(&ept, &frames, 5 * MIB + 7), Some((69 * MIB + 7, true)));
        assert_eq!(look(&ept, &frames, 6 * MIB + 0xfff), Some((70 * MIB + 0xfff, true)));
        assert_eq!(look(&ept, &frames, 6 * MIB + PAGE_SIZE), None);
        assert_eq!(look(&ept, &frames, 1 << 40), None);
        assert_eq!(look(&ept, &frames, u64::MAX), None);
    }

    #[test]
    fn a_page_inside_a_large_page_can_be_mapped_otherwise() {
        let frames = TestFrames::default();
        let mut ept = Ept::new(&frames, false).unwrap();
        ept.map(&frames, Gpa::new(0), Hpa::new(64 * MIB), 4 * MIB, PageType::Ram).unwrap();
        ept.map(&frames, Gpa::new(2 * MIB + 0x5000), Hpa::new(0x9000), PAGE_SIZE, PageType::Shadow).unwrap();
        assert_eq!(look(&ept, &frames, 2 * MIB + 0x5010), Some((0x9010, false)));
        assert_eq!(look(&ept, &frames, 2 * MIB + 0x4010), Some((66 * MIB + 0x4010, true)));
        assert_eq!(look(&ept, &frames, 2 * MIB + 0x6010), Some((66 * MIB + 0x6010, true)));
    }

    /// The entry that maps `gpa`, and the bytes that it maps.
    fn leaf(ept: &Ept, frames: &TestFrames, gpa: u64) -> (u64, u64) {
        let mut table = ept.root;
        for level in (0..4).rev() {
            let entry = table.get(index(gpa, level));
            if level == 0 || entry & LARGE != 0 || entry & RIGHTS == 0 {
                return (entry, page_size(level));
            }
            // SAFETY: the entry is present and no leaf.
            table = unsafe { Table::at(frames, Hpa::new(entry & ADDRESS)) };
        }
        unreachable!()
    }

    #[test]
    fn no_large_page_is_ever_executable_with_small_code_pages() {
        for gibibyte_pages in [false, true] {
            let frames = TestFrames::default();
            let mut ept = Ept::new(&frames, gibibyte_pages).unwrap();
            ept.use_small_code_pages();
            ept.map(&frames, Gpa::new(0), Hpa::new(1 << 30), (1 << 30) + 4 * MIB + 0x3000, PageType::Ram).unwrap();
            ept.map(&frames, Gpa::new(6 * MIB + 0x5000), Hpa::new(0x9000), PAGE_SIZE, PageType::Shadow).unwrap();
            ept.map(&frames, Gpa::new(1 << 40), Hpa::new(1 << 40), 4 * MIB, PageType::Device).unwrap();
            let before = frames.in_use();
            for gpa in [0x1234, 5 * MIB, 6 * MIB, (1 << 30) + 3 * MIB, (1 << 30) + 4 * MIB + 0x2000] {
                for _ in 0..3 {
                    assert_eq!(ept.make_executable(&frames, Gpa::new(gpa)), Ok(true), "{gpa:#x}");
                }
                let (entry, size) = leaf(&ept, &frames, gpa);
                assert_eq!((entry & RIGHTS, size), (RIGHTS, PAGE_SIZE), "{gpa:#x}");
                assert_eq!(look(&ept, &frames, gpa), Some(((1 << 30) + gpa, true)));
            }
            // 0x1234, 5 MiB and the one behind 1 GiB; 6 MiB was split before, and so was the GiB.
            assert_eq!(frames.in_use() - before, 3);
            for gpa in (0..(1 << 30) + 4 * MIB).step_by(PAGE_SIZE as usize) {
                let (entry, size) = leaf(&ept, &frames, gpa);
                assert!(size == PAGE_SIZE || entry & EXECUTE == 0, "{gpa:#x}");
            }
            // What is no RAM never becomes executable.
            for gpa in [6 * MIB + 0x5000, 1 << 40, (1 << 40) + 3 * MIB, 1 << 41, TOP, u64::MAX] {
                assert_eq!(ept.make_executable(&frames, Gpa::new(gpa)), Ok(false), "{gpa:#x}");
            }
            assert_eq!(leaf(&ept, &frames, 6 * MIB + 0x5000).0 & EXECUTE, 0);
            // SAFETY: no processor has seen these tables.
            unsafe { ept.free(&frames) };
            assert_eq!(frames.in_use(), 0);
        }
    }

    #[test]
    fn a_guest_that_executes_everywhere_costs_a_frame_for_each_2_mib() {
        let frames = TestFrames::default();
        let mut ept = Ept::new(&frames, true).unwrap();
        ept.use_small_code_pages();
        ept.map(&frames, Gpa::new(0), Hpa::new(1 << 30), 1 << 30, PageType::Ram).unwrap();
        let before = frames.in_use();
        for _ in 0..2 {
            for gpa in (0..1 << 30).step_by(PAGE_SIZE as usize * 16) {
                assert_eq!(ept.make_executable(&frames, Gpa::new(gpa)), Ok(true));
            }
        }
        assert_eq!(frames.in_use() - before, 1 + 512);
    }

    #[test]
    fn a_guest_that_executes_everywhere_takes_nothing_but_what_was_set_aside_for_it() {
        for gibibyte_pages in [false, true] {
            let frames = TestFrames::default();
            let mut ept = Ept::new(&frames, gibibyte_pages).unwrap();
            ept.use_small_code_pages();
            let len = (1 << 30) + 6 * MIB + 0x3000;
            ept.map(&frames, Gpa::new(0), Hpa::new(1 << 30), len, PageType::Ram).unwrap();
            let before = frames.in_use();
            ept.reserve_splits(&frames).unwrap();
            assert_eq!(frames.in_use() - before, 512 + 3 + usize::from(gibibyte_pages));
            let (before, starved) = (frames.in_use(), Starved(&frames));
            for gpa in (0..len).step_by(PAGE_SIZE as usize * 16) {
                assert_eq!(ept.make_executable(&starved, Gpa::new(gpa)), Ok(true), "{gpa:#x}");
                assert_eq!(leaf(&ept, &frames, gpa), ((1 << 30) + gpa + (RIGHTS | WRITE_BACK), PAGE_SIZE));
            }
            assert_eq!(frames.in_use(), before);
            ept.map(&frames, Gpa::new(1 << 40), Hpa::new(0), 4 * MIB, PageType::Ram).unwrap();
            assert_eq!(
                ept.make_executable(&starved, Gpa::new(1 << 40)),
                Err(MapError::OutOfMemory),
                "nothing is left over"
            );
            ept.reserve_splits(&frames).unwrap();
            assert_eq!(ept.make_executable(&starved, Gpa::new(1 << 40)), Ok(true));
            // SAFETY: no processor has seen these tables.
            unsafe { ept.free(&frames) };
            assert_eq!(frames.in_use(), 0);
        }
    }

    /// Frames of which others have taken all.
    struct Starved<'a>(&'a TestFrames);

    // SAFETY: it gives no frame, and passes everything else on.
    unsafe impl FrameSource for Starved<'_> {
        fn alloc(&self, _: u64, _: u64) -> Option<Hpa> {
            None
        }

        unsafe fn free(&self, base: Hpa, count: u64) {
            // SAFETY: the caller's promise.
            unsafe { self.0.free(base, count) }
        }

        fn pointer(&self, address: Hpa) -> core::ptr::NonNull<u8> {
            self.0.pointer(address)
        }
    }

    #[test]
    fn without_small_code_pages_ram_is_executable_and_nothing_is_split() {
        let frames = TestFrames::default();
        let mut ept = Ept::new(&frames, true).unwrap();
        ept.map(&frames, Gpa::new(0), Hpa::new(0), 2 * MIB, PageType::Ram).unwrap();
        assert_eq!(leaf(&ept, &frames, 0x1000), (RIGHTS | WRITE_BACK | LARGE, 2 * MIB));
    }

    #[test]
    fn gibibyte_pages_are_used_only_where_the_processor_has_them() {
        for (gibibyte_pages, tables) in [(true, 2), (false, 3)] {
            let frames = TestFrames::default();
            let mut ept = Ept::new(&frames, gibibyte_pages).unwrap();
            ept.map(&frames, Gpa::new(1 << 30), Hpa::new(1 << 30), 1 << 30, PageType::Ram).unwrap();
            assert_eq!(frames.in_use(), tables);
            assert_eq!(look(&ept, &frames, (1 << 30) + 12345), Some(((1 << 30) + 12345, true)));
        }
    }

    #[test]
    fn every_table_goes_back() {
        let frames = TestFrames::default();
        let mut ept = Ept::new(&frames, true).unwrap();
        ept.map(&frames, Gpa::new(0x1000), Hpa::new(0x1000), 7 * MIB, PageType::Ram).unwrap();
        ept.map(&frames, Gpa::new(1 << 39), Hpa::new(0x1000), 0x1000, PageType::Device).unwrap();
        // SAFETY: no processor has seen these tables.
        unsafe { ept.free(&frames) };
        assert_eq!(frames.in_use(), 0);
    }

    /// A map that lacks memory in its middle leaves tables that are the map's, and can be done again.
    #[test]
    fn each_frame_that_is_lacking_is_an_error_and_goes_back_with_the_others() {
        for count in 0.. {
            let frames = TestFrames::default();
            frames.fail_after(count);
            let made = Ept::new(&frames, true).and_then(|mut ept| {
                ept.use_small_code_pages();
                let mut fill = || {
                    ept.map(&frames, Gpa::new(0), Hpa::new(64 * MIB), 6 * MIB, PageType::Ram)?;
                    ept.map(&frames, Gpa::new(2 * MIB + 0x5000), Hpa::new(0x9000), PAGE_SIZE, PageType::Shadow)?;
                    ept.reserve_splits(&frames)?;
                    ept.make_executable(&frames, Gpa::new(0x1000))
                };
                let filled = fill();
                if filled.is_err() {
                    assert_eq!(fill(), Ok(true), "frame {count}");
                    assert_eq!(look(&ept, &frames, 2 * MIB + 0x5010), Some((0x9010, false)), "frame {count}");
                    assert_eq!(leaf(&ept, &frames, 0x1000).1, PAGE_SIZE);
                }
                // SAFETY: no processor has seen these tables.
                unsafe { ept.free(&frames) };
                filled
            });
            assert_eq!(frames.in_use(), 0, "frame {count}");
            if !frames.has_failed() {
                assert!(count > 5 && made == Ok(true), "{count} frames");
                break;
            }
            assert_eq!(made, Err(MapError::OutOfMemory), "frame {count}");
        }
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        let frames = TestFrames::default();
        let mut ept = Ept::new(&frames, true).unwrap();
        for (gpa, len) in [(0, 0), (1, PAGE_SIZE), (0, 1), (TOP, PAGE_SIZE), (TOP - PAGE_SIZE, 2 * PAGE_SIZE)] {
            let result = ept.map(&frames, Gpa::new(gpa), Hpa::new(0), len, PageType::Ram);
            assert_eq!(result, Err(MapError::BadRange), "{gpa:#x} {len:#x}");
        }
        let wrap = ept.map(&frames, Gpa::new(u64::MAX - 0xfff), Hpa::new(0), 2 * PAGE_SIZE, PageType::Ram);
        assert_eq!(wrap, Err(MapError::BadRange));
    }
}
