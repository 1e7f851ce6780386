//! The unit's tables written by hand, with contents that the code under test refuses to write.

use imsvisor::{
    addr::Hpa,
    memory::{Mmio, Registers},
    vtd::spec::{
        irte::Irte,
        registers::{IQA, IQT, IRTA, Iqa, Irta},
    },
};

const PAGE: u64 = 4096;
const SLOT: u64 = 16;
/// Bytes of the unit's registers.
pub const REGISTERS: usize = 0x1000;

/// A descriptor of a type that there is not, with bits that are reserved in all types.
const NO_DESCRIPTOR: u128 = u128::MAX;

/// The unit's registers, and through them its tables.
pub struct Raw {
    base: Hpa,
    registers: Mmio,
}

impl Raw {
    /// The unit at `base`, whose registers are mapped.
    pub fn new(base: Hpa) -> Result<Self, &'static str> {
        // SAFETY: the unit has been brought up, so its registers are mapped; only what the cases say is written.
        let registers = unsafe { Mmio::new(base, REGISTERS) }.ok_or("misplaced registers")?;
        Ok(Self { base, registers })
    }

    /// The registers, for another owner.
    pub fn registers(&self) -> Result<Mmio, &'static str> {
        // SAFETY: as in `new`. The former owner gives no commands any more.
        unsafe { Mmio::new(self.base, REGISTERS) }.ok_or("misplaced registers")
    }

    /// An entry of the interrupt remapping table.
    pub fn entry(&self, index: u16) -> Irte {
        // SAFETY: the table holds the entry, and nobody else writes it.
        Irte(unsafe { self.place(index).read_volatile() })
    }

    /// Writes an entry as it is.
    pub fn set_entry(&self, index: u16, entry: Irte) {
        // SAFETY: as in `entry`. What is no entry makes the unit refuse messages.
        unsafe { self.place(index).write_volatile(entry.0) }
    }

    fn place(&self, index: u16) -> *mut u128 {
        let table = Irta(self.registers.read64(IRTA)).page() * PAGE;
        (table + u64::from(index) * SLOT) as *mut u128
    }

    /// Gives the unit a descriptor that it must refuse.
    pub fn queue_nonsense(&self) {
        let queue = Iqa(self.registers.read64(IQA));
        let bytes = PAGE << queue.qs();
        let tail = self.registers.read64(IQT);
        // SAFETY: the tail lies in the queue, where the code under test writes its next descriptor.
        unsafe { ((queue.page() * PAGE + tail) as *mut u128).write_volatile(NO_DESCRIPTOR) };
        self.registers.write64(IQT, (tail + SLOT) % bytes);
    }
}
