//! Masks the I/O APICs, which the hypervisor does not use, so that an entry that firmware has left unmasked causes no fault in a remapping
//! unit.

use crate::memory::Registers;

/// Offsets of the index and of the data register (82093AA, 3.1), and numbers of registers: version, and the first redirection entry.
const INDEX: usize = 0;
const DATA: usize = 0x10;
const VERSION: u32 = 1;
const ENTRIES: u32 = 0x10;
/// The last entry that has registers: they are numbered by a byte, and each has two.
const LAST: u32 = 0x77;

/// The lower half of a redirection entry: mask; delivery mode, and that of an SMI.
const MASKED: u32 = 1 << 16;
const DELIVERY: u32 = 0b111 << 8;
const SMI: u32 = 0b010 << 8;

/// Masks all entries but those that raise an SMI, which are the firmware's own (as Linux, `clear_IO_APIC`).
pub fn mask(registers: &impl Registers) {
    let select = |register| registers.write32(INDEX, register);
    select(VERSION);
    let version = registers.read32(DATA);
    // Nobody answers.
    if version == u32::MAX {
        return;
    }
    for entry in 0..=(version >> 16 & 0xff).min(LAST) {
        select(ENTRIES + 2 * entry);
        let low = registers.read32(DATA);
        if low & DELIVERY != SMI {
            registers.write32(DATA, low | MASKED);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// An I/O APIC: its registers, and the one that is selected.
    struct Chip(RefCell<Vec<u32>>, Cell<u32>);

    impl Registers for Chip {
        fn read32(&self, offset: usize) -> u32 {
            assert_eq!(offset, DATA);
            self.0.borrow()[self.1.get() as usize]
        }
        fn read64(&self, _: usize) -> u64 {
            unreachable!()
        }
        fn write32(&self, offset: usize, value: u32) {
            match offset {
                INDEX => self.1.set(value),
                _ => self.0.borrow_mut()[self.1.get() as usize] = value,
            }
        }
        fn write64(&self, _: usize, _: u64) {
            unreachable!()
        }
    }

    fn after(version: u32, entries: &[u32]) -> Vec<u32> {
        let mut registers = vec![0; 0x100];
        registers[VERSION as usize] = version;
        (0..).zip(entries).for_each(|(n, &entry)| registers[0x10 + 2 * n] = entry);
        let chip = Chip(RefCell::new(registers), Cell::new(0));
        mask(&chip);
        let registers = chip.0.borrow();
        (0..entries.len()).map(|n| registers[0x10 + 2 * n]).collect()
    }

    #[test]
    fn entries_are_masked_but_for_those_of_smis() {
        assert_eq!(after(0x0002_0020, &[0x30, 0x1_0031, 0x0200, 0x33]), [0x1_0030, 0x1_0031, 0x0200, 0x33]);
        assert_eq!(after(0x00ff_0020, &[0; 0x78]), [0x1_0000; 0x78], "no more than there are registers for");
        assert_eq!(after(u32::MAX, &[0x30]), [0x30], "nobody answers");
    }
}
