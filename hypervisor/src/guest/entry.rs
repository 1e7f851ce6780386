//! The processor's data structures for Linux's 64-bit entry: a descriptor table with flat segments, and page tables that map the first 4
//! GiB to themselves (boot.rst, "64-bit boot protocol"; SDM vol. 3, 3.4.5 and 5.5). The code where a processor begins after a reset is here
//! as well.

use super::memory_map::{self as map, PAGE_TABLES};
use crate::{
    addr::{Gpa, PAGE_SIZE},
    vdev::ports,
};

/// Linux's `__BOOT_CS`.
pub const CODE_SELECTOR: u16 = 0x10;
/// Linux's `__BOOT_DS`.
pub const DATA_SELECTOR: u16 = 0x18;

/// The descriptor table: two empty entries, 64-bit code, data; accessed, so that the processor need not write them.
pub const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Its limit.
pub const GDT_LIMIT: u16 = 31;

/// The code at [`map::RESET_VECTOR`], where a guest jumps in real mode for a reset, as Linux does at last (`machine_real_restart`): it
/// writes 6 to the reset control register.
///
/// ```text
/// ba f9 0c    mov dx, 0xcf9
/// b0 06       mov al, 6
/// ee          out dx, al
/// f4          hlt
/// eb fd       jmp to hlt
/// ```
pub const RESET_CODE: [u8; 9] = [0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd];

/// Tables: PML4, PDPT, and a page directory for each GiB.
pub const TABLES: u64 = 6;

const PRESENT_WRITABLE: u64 = 3;
/// Write-through and cache disable: uncacheable.
const UNCACHEABLE: u64 = 3 << 3;
const LARGE: u64 = 1 << 7;
const LARGE_PAGE: u64 = 2 << 20;

/// Entry `index` of table `table` (0 to 5). What lies behind the RAM's end of the layout is uncacheable.
pub fn page_table_entry(table: u64, index: u64) -> u64 {
    let next = |table: u64| (PAGE_TABLES.as_u64() + table * PAGE_SIZE) | PRESENT_WRITABLE;
    match (table, index) {
        (0, 0) => next(1),
        (1, 0..=3) => next(2 + index),
        (0 | 1, _) => 0,
        _ => {
            let address = ((table - 2) * 512 + index) * LARGE_PAGE;
            let cache = if address >= map::RAM_MAX { UNCACHEABLE } else { 0 };
            address | cache | LARGE | PRESENT_WRITABLE
        }
    }
}

/// One of the tables, as bytes, and where it lies.
pub fn page_table(table: u64) -> (Gpa, [u8; PAGE_SIZE as usize]) {
    let mut page = [0; PAGE_SIZE as usize];
    for (index, entry) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *entry = page_table_entry(table, index as u64).to_le_bytes();
    }
    (Gpa::new(PAGE_TABLES.as_u64() + table * PAGE_SIZE), page)
}

const _: () = assert!(map::RESET_VECTOR.as_u64() + RESET_CODE.len() as u64 <= map::IMAGE.as_u64());
const _: () = assert!(u16::from_le_bytes([RESET_CODE[1], RESET_CODE[2]]) == ports::RESET_CONTROL);

#[cfg(test)]
mod tests {
    use super::*;

    /// A walk as the processor does it.
    fn translate(address: u64) -> Option<(u64, u64)> {
        let at = |base: u64, index: u64| {
            let table = (base & !0xfff).checked_sub(PAGE_TABLES.as_u64())? / PAGE_SIZE;
            assert!(table < TABLES);
            Some(page_table_entry(table, index & 511)).filter(|entry| entry & 1 != 0)
        };
        let pdpt = at(PAGE_TABLES.as_u64(), address >> 39)?;
        let directory = at(pdpt, address >> 30)?;
        let page = at(directory, address >> 21)?;
        assert_ne!(page & LARGE, 0);
        Some((page & !0x1f_ffff | address & 0x1f_ffff, page & UNCACHEABLE))
    }

    #[test]
    fn the_first_4_gib_map_to_themselves_and_nothing_else_is_mapped() {
        for address in [0, 0x1234, 0x20_0000, 0x3fff_ffff, 0x4000_0000, 0xbfff_ffff] {
            assert_eq!(translate(address), Some((address, 0)));
        }
        for address in [0xc000_0000, 0xe000_0123, 0xffff_ffff] {
            assert_eq!(translate(address), Some((address, UNCACHEABLE)), "device memory");
        }
        for address in [1 << 32, 1 << 39, 0xffff_8000_0000_0000] {
            assert_eq!(translate(address), None);
        }
    }

    #[test]
    fn descriptors_are_flat_present_and_64_bit() {
        let code = GDT[usize::from(CODE_SELECTOR / 8)];
        assert_eq!(code >> 40 & 0xff, 0x9b);
        assert_eq!((code >> 53 & 1, code >> 54 & 1), (1, 0), "L and not D");
        assert_eq!(GDT[usize::from(DATA_SELECTOR / 8)] >> 40 & 0xff, 0x93);
        assert_eq!(usize::from(GDT_LIMIT) + 1, size_of_val(&GDT));
    }
}
