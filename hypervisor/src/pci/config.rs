//! Configuration space, and memory-mapped access to it (PCI Express Base Specification 6.0, section 7.2.2).

use alloc::vec::Vec;

use crate::{
    acpi::EcamWindow,
    addr::Bdf,
    memory::{Mmio, Registers},
};

/// Bytes of a function's configuration space that every machine reaches.
pub const CONVENTIONAL: u16 = 0x100;

/// The dword of the command register, and of the status register in its upper half.
pub(super) const COMMAND: u16 = 0x04;
/// I/O space, memory space.
pub(super) const COMMAND_DECODE: u16 = 3;

/// The buses from `first` to `last` of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buses {
    /// The segment.
    pub segment: u16,
    /// The first bus.
    pub first: u8,
    /// The last bus.
    pub last: u8,
}

/// The configuration space of the machine's functions.
pub trait ConfigSpace {
    /// Reads the doubleword at `offset` (a multiple of 4). All ones where nobody answers.
    fn read(&self, bdf: Bdf, offset: u16) -> u32;
    /// Writes the doubleword at `offset` (a multiple of 4).
    fn write(&self, bdf: Bdf, offset: u16, value: u32);
    /// The buses that can be reached.
    fn buses(&self) -> Vec<Buses>;
    /// Whether offsets from [`CONVENTIONAL`] on can be reached.
    fn has_extended(&self) -> bool;
}

/// Writes the command register, and zeros to the status register, whose bits are cleared by ones.
pub fn set_command(config: &(impl ConfigSpace + ?Sized), bdf: Bdf, command: u16) {
    config.write(bdf, COMMAND, command.into());
}

/// Register blocks of 1 MiB a bus.
pub struct Ecam<R = Mmio> {
    windows: Vec<(Buses, R)>,
}

impl Ecam {
    /// The windows of all segments.
    ///
    /// # Safety
    /// They are mapped uncached, and what configures functions through this value knows what it does to their drivers.
    pub unsafe fn new(windows: &[EcamWindow]) -> Self {
        let map = |window: &EcamWindow| {
            let bytes = usize::try_from(window.registers.len).ok()?;
            // SAFETY: the caller vouches for the windows.
            let registers = unsafe { Mmio::new(window.registers.start, bytes) }?;
            let buses = Buses { segment: window.segment, first: window.first_bus, last: window.last_bus };
            Some((buses, registers))
        };
        Self { windows: windows.iter().filter_map(map).collect() }
    }
}

impl<R: Registers> Ecam<R> {
    /// From register blocks, each with its buses.
    pub fn with_registers(windows: Vec<(Buses, R)>) -> Self {
        Self { windows }
    }

    /// Whether there is no window.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    fn register(&self, bdf: Bdf, offset: u16) -> Option<(&R, usize)> {
        let is_there =
            |buses: &Buses| buses.segment == bdf.segment() && (buses.first..=buses.last).contains(&bdf.bus());
        let (buses, registers) = self.windows.iter().find(|(buses, _)| is_there(buses))?;
        let function = usize::from(bdf.requester_id()) - (usize::from(buses.first) << 8);
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

    fn buses(&self) -> Vec<Buses> {
        self.windows.iter().map(|(buses, _)| *buses).collect()
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
        let buses = |segment| Buses { segment, first: 4, last: 7 };
        let windows = [0, 3].map(|segment| (buses(segment), Probe(RefCell::default())));
        let ecam = Ecam::with_registers(windows.into());
        assert_eq!(ecam.read(Bdf::new(5, 2, 1), 0x106), 7);
        ecam.write(Bdf::new(4, 0, 0), 0xffc, 0);
        assert_eq!(ecam.read(Bdf::new(3, 0, 0), 0), u32::MAX);
        assert_eq!(ecam.read(Bdf::new(8, 0, 0), 0), u32::MAX);
        assert_eq!(ecam.read(Bdf::new(4, 0, 0), 0x1000), u32::MAX);
        assert_eq!(ecam.read(Bdf::new(5, 0, 0).in_segment(1), 0), u32::MAX, "no such segment");
        assert_eq!(*ecam.windows[0].1.0.borrow(), [0x11_1104, 0xffc]);
        assert_eq!(ecam.read(Bdf::new(4, 0, 0).in_segment(3), 4), 7);
        assert_eq!((ecam.windows[0].1.0.borrow().len(), &ecam.windows[1].1.0.borrow()[..]), (2, &[4][..]));
        assert_eq!(ecam.buses(), [buses(0), buses(3)]);
    }
}
