//! Configuration space, and the memory-mapped way to it (PCI Express Base Specification 6.0, section 7.2.2).

use alloc::vec::Vec;

use crate::{
    acpi::EcamWindow,
    addr::Bdf,
    memory::{Mmio, Registers},
};

/// Bytes of a function's configuration space that every machine reaches.
pub const CONVENTIONAL: u16 = 0x100;

/// The configuration space of the functions of one segment.
pub trait ConfigSpace {
    /// Reads the doubleword at `offset` (a multiple of 4). All ones where nobody answers.
    fn read(&self, bdf: Bdf, offset: u16) -> u32;
    /// Writes the doubleword at `offset` (a multiple of 4).
    fn write(&self, bdf: Bdf, offset: u16, value: u32);
    /// The buses that can be reached: the first, the last.
    fn buses(&self) -> (u8, u8);
    /// Whether offsets from [`CONVENTIONAL`] on can be reached.
    fn has_extended(&self) -> bool;
}

/// Register blocks of 1 MiB a bus.
pub struct Ecam<R = Mmio> {
    windows: Vec<(u8, u8, R)>,
}

impl Ecam {
    /// The windows of a segment.
    ///
    /// # Safety
    /// They are mapped uncached, and what configures functions through this value knows what it does to their drivers.
    pub unsafe fn new(segment: u16, windows: &[EcamWindow]) -> Self {
        let of_segment = windows.iter().filter(|window| window.segment == segment);
        let map = |window: &EcamWindow| {
            let bytes = usize::try_from(window.registers.len).ok()?;
            // SAFETY: the caller vouches for the windows.
            let registers = unsafe { Mmio::new(window.registers.start, bytes) }?;
            Some((window.first_bus, window.last_bus, registers))
        };
        Self { windows: of_segment.filter_map(map).collect() }
    }
}

impl<R: Registers> Ecam<R> {
    /// From register blocks: first bus, last bus, registers.
    pub fn with_registers(windows: Vec<(u8, u8, R)>) -> Self {
        Self { windows }
    }

    /// Whether there is no window.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    fn register(&self, bdf: Bdf, offset: u16) -> Option<(&R, usize)> {
        let (first, _, registers) =
            self.windows.iter().find(|(first, last, _)| (*first..=*last).contains(&bdf.bus()))?;
        let function = usize::from(bdf.0) - (usize::from(*first) << 8);
        (offset < 0x1000).then_some((registers, function << 12 | usize::from(offset & !3)))
    }
}

impl<R: Registers> ConfigSpace for Ecam<R> {
    fn read(&self, bdf: Bdf, offset: u16) -> u32 {
        self.register(bdf, offset).map_or(u32::MAX, |(registers, at)| registers.read32(at))
    }

    fn write(&self, bdf: Bdf, offset: u16, value: u32) {
        if let Some((registers, at)) = self.register(bdf, offset) {
            registers.write32(at, value);
        }
    }

    fn buses(&self) -> (u8, u8) {
        let first = self.windows.iter().map(|window| window.0).min().unwrap_or(0);
        let last = self.windows.iter().map(|window| window.1).max().unwrap_or(0);
        (first, last)
    }

    fn has_extended(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Notes the offsets that it is asked for.
    struct Probe(RefCell<Vec<usize>>);

    impl Registers for Probe {
        fn read32(&self, offset: usize) -> u32 {
            self.0.borrow_mut().push(offset);
            7
        }
        fn read64(&self, _: usize) -> u64 {
            unreachable!()
        }
        fn write32(&self, offset: usize, _: u32) {
            self.0.borrow_mut().push(offset);
        }
        fn write64(&self, _: usize, _: u64) {
            unreachable!()
        }
    }

    #[test]
    fn each_function_has_its_page_in_the_window_of_its_bus() {
        let ecam = Ecam::with_registers(vec![(4, 7, Probe(RefCell::default()))]);
        assert_eq!(ecam.read(Bdf::new(5, 2, 1), 0x106), 7);
        ecam.write(Bdf::new(4, 0, 0), 0xffc, 0);
        assert_eq!(ecam.read(Bdf::new(3, 0, 0), 0), u32::MAX);
        assert_eq!(ecam.read(Bdf::new(8, 0, 0), 0), u32::MAX);
        assert_eq!(ecam.read(Bdf::new(4, 0, 0), 0x1000), u32::MAX);
        assert_eq!(*ecam.windows[0].2.0.borrow(), [0x11_1104, 0xffc]);
    }
}
