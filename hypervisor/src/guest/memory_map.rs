//! The layout of a guest's physical address space.
//!
//! | from | what |
//! |---|---|
//! | 0 | RAM; its first MiB holds what the loader leaves there |
//! | 3 GiB | window for 32-bit BARs, 512 MiB |
//! | 3.5 GiB | ECAM of bus 0, 1 MiB |
//! | 0xFEE0_0000 | interrupt messages: nothing is mapped there |
//! | 4 GiB | window for 64-bit BARs that are too large for the other, 32 GiB |

use crate::addr::{Gpa, PAGE_SIZE};

/// Most RAM of a guest: what lies below the first window.
pub const RAM_MAX: u64 = 3 << 30;
/// Least RAM of a guest.
pub const RAM_MIN: u64 = 4 << 20;
/// RAM comes in large pages.
pub const RAM_GRANULE: u64 = 2 << 20;

/// Descriptor table for the entry.
pub const GDT: Gpa = Gpa::new(0x1000);
/// Page tables for the entry: PML4, PDPT, four page directories.
pub const PAGE_TABLES: Gpa = Gpa::new(0x2000);
/// Linux's `boot_params`.
pub const BOOT_PARAMS: Gpa = Gpa::new(0x8000);
/// The command line.
pub const CMDLINE: Gpa = Gpa::new(0x9000);
/// Room for it, with the zero at its end: Linux's `COMMAND_LINE_SIZE`.
pub const CMDLINE_SIZE: usize = 2048;
/// Top of a stack that ends at 0xA000.
pub const STACK_TOP: Gpa = Gpa::new(0x1_0000);
/// End of conventional memory.
pub const LOW_END: Gpa = Gpa::new(0xa_0000);
/// ACPI tables, the RSDP first. Linux searches here also without `boot_params`.
pub const ACPI: Gpa = Gpa::new(0xe_0000);
/// End of the room for them.
pub const ACPI_END: Gpa = RESET_VECTOR;
/// Where a processor begins after a reset, in the first MiB: the code at F000:FFF0.
pub const RESET_VECTOR: Gpa = Gpa::new(0xf_fff0);
/// First address at which an image may lie.
pub const IMAGE: Gpa = Gpa::new(0x10_0000);

/// Window for 32-bit BARs.
pub const MMIO32: Gpa = Gpa::new(RAM_MAX);
/// Its bytes.
pub const MMIO32_SIZE: u64 = 512 << 20;
/// Configuration space of bus 0.
pub const ECAM: Gpa = Gpa::new(0xe000_0000);
/// Its bytes.
pub const ECAM_SIZE: u64 = 1 << 20;
/// Window for large 64-bit BARs.
pub const MMIO64: Gpa = Gpa::new(4 << 30);
/// Its bytes.
pub const MMIO64_SIZE: u64 = 32 << 30;

/// Whether a guest can have `ram` bytes.
pub const fn is_ram_size(ram: u64) -> bool {
    ram >= RAM_MIN && ram <= RAM_MAX && ram.is_multiple_of(RAM_GRANULE)
}

/// Gives BARs their places.
#[derive(Clone, Debug)]
pub struct BarAllocator {
    next32: u64,
    next64: u64,
}

impl Default for BarAllocator {
    fn default() -> Self {
        Self { next32: MMIO32.as_u64(), next64: MMIO64.as_u64() }
    }
}

impl BarAllocator {
    /// Both windows empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates an address for `size` bytes, a power of two of at least a page, aligned to `size`. A BAR goes above 4 GiB only if it is a
    /// 64-bit BAR and the lower window is full.
    pub fn place(&mut self, size: u64, is_64bit: bool) -> Option<Gpa> {
        if !size.is_power_of_two() || size < PAGE_SIZE {
            return None;
        }
        let low = take(&mut self.next32, size, MMIO32.as_u64() + MMIO32_SIZE);
        low.or_else(|| if is_64bit { take(&mut self.next64, size, MMIO64.as_u64() + MMIO64_SIZE) } else { None })
    }
}

fn take(next: &mut u64, size: u64, end: u64) -> Option<Gpa> {
    let start = next.checked_next_multiple_of(size)?;
    let after = start.checked_add(size).filter(|after| *after <= end)?;
    *next = after;
    Some(Gpa::new(start))
}

const _: () = assert!(PAGE_TABLES.as_u64() + 6 * PAGE_SIZE <= BOOT_PARAMS.as_u64());
const _: () = assert!(CMDLINE.as_u64() + CMDLINE_SIZE as u64 <= 0xa000 && STACK_TOP.as_u64() <= LOW_END.as_u64());
const _: () = assert!(MMIO32.as_u64() + MMIO32_SIZE <= ECAM.as_u64() && ECAM.as_u64() + ECAM_SIZE <= 0xfee0_0000);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn large_64_bit_bars_go_above_4_gib_and_others_do_not() {
        let mut bars = BarAllocator::new();
        assert_eq!(bars.place(0x1000, true), Some(MMIO32));
        assert_eq!(bars.place(1 << 30, true), Some(MMIO64));
        assert_eq!(bars.place(1 << 30, false), None);
        assert_eq!(bars.place(64 << 30, true), None);
        assert_eq!(bars.place(0x8_0000, false), Some(Gpa::new(0xc008_0000)));
        for size in [0, 16, 0x3000, 0x800] {
            assert_eq!(bars.place(size, true), None);
        }
    }

    proptest! {
        #[test]
        fn places_are_aligned_inside_a_window_and_apart(requests in proptest::collection::vec((12_u32..64, any::<bool>()), 0..80)) {
            let mut bars = BarAllocator::new();
            let mut placed: Vec<(u64, u64)> = Vec::new();
            for (log2, wide) in requests {
                let size = 1_u64 << log2;
                let Some(gpa) = bars.place(size, wide) else { continue };
                let (start, end) = (gpa.as_u64(), gpa.as_u64() + size);
                prop_assert_eq!(start % size, 0);
                let low = start >= MMIO32.as_u64() && end <= ECAM.as_u64();
                prop_assert!(low || wide && start >= MMIO64.as_u64() && end <= MMIO64.as_u64() + MMIO64_SIZE);
                prop_assert!(placed.iter().all(|(s, e)| end <= *s || start >= *e));
                placed.push((start, end));
            }
        }
    }
}
