//! A DSA that another process serves to QEMU: interrupts from the slots of its message store, and DMA.
//!
//! The driver is the guests'. What it does not have is a clock: the device takes the host's time, so every wait is for something that
//! the device does.

use alloc::vec::Vec;

use guests::dsa::{self, Completion, Descriptor, Portal, SubmitMethod, WorkQueue, spec};
use imsvisor::{
    addr::{Bdf, Gpa, Hpa},
    cpu::interrupts,
    devices::dsa::is_one,
    machine::{discovery::Machine, memory::map_device},
    memory::{Mmio, Ram, Registers},
    pci::{self, ConfigSpace, Function},
    vtd::message,
};

use crate::bed::{Bed, Seen};
use crate::window::WINDOW;

/// Where the record of a completion lies in the window. All descriptors share it, so only one at a time may be waited for.
const RECORDS: u64 = 0x3_0000;
/// Descriptors that the queue holds.
pub const QUEUE: u16 = 64;
/// Bytes of a slot, and of an entry of the MSI-X table: address, data, control.
const SLOT: usize = 16;
const CONTROL: usize = 12;
const MASK: u32 = 1;
const PENDING: u32 = 1 << 1;
const MSIX_ENABLE: u32 = 1 << 31;

/// The slot of markers, and their vector.
const MARKER: u16 = 2000;
const MARK: u8 = 0x31;
/// Looks at a register until the device counts as stuck: each is a message to another process and back.
const LOOKS: u32 = 200_000;

/// The registers, as the guests' driver has them.
struct Bar(Mmio);

impl dsa::Registers for Bar {
    fn read(&self, offset: u64) -> u32 {
        self.0.read32(offset as usize)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.0.write32(offset as usize, value);
    }
}

/// The device.
pub struct Dsa {
    /// Its requester ID.
    pub bdf: Bdf,
    registers: Mmio,
    store: usize,
    ims: Portal,
    msix: Portal,
    msix_table: usize,
    msix_capability: u16,
    config: &'static dyn ConfigSpace,
}

impl Dsa {
    /// Finds the first DSA and starts it with one work queue; `None` where the machine has none.
    pub fn find(machine: &'static Machine) -> Option<Result<Self, &'static str>> {
        machine.functions().iter().find(|function| is_one(function)).map(|function| Self::start(machine, function))
    }

    fn start(machine: &'static Machine, function: &Function) -> Result<Self, &'static str> {
        let config = machine.config();
        pci::function::enable(config, function.bdf);
        let msix = function.msix.ok_or("the DSA has no MSI-X")?;
        let [registers, for_driver] = [bar(function, 0)?, bar(function, 0)?].map(|(_, registers)| registers);
        let mut driver = dsa::Dsa::new(Bar(for_driver));
        driver.start(&[WorkQueue { index: 0, size: QUEUE, pasids: false }]).map_err(|_| "the DSA does not start")?;
        let (portals, _) = bar(function, 2)?;
        let portal = |kind: u64| {
            let page = core::ptr::NonNull::new((portals.as_u64() + kind * spec::PORTAL_SIZE) as *mut u64);
            // SAFETY: BAR2 was mapped just now; what the device reaches is the unit's to say.
            page.map(|page| unsafe { Portal::new(page, SubmitMethod::Pieces) }).ok_or("misplaced portals")
        };
        Ok(Self {
            bdf: function.bdf,
            registers,
            store: driver.ims_offset() as usize,
            ims: portal(spec::PORTAL_IMS_UNLIMITED)?,
            msix: portal(spec::PORTAL_MSIX_UNLIMITED)?,
            msix_table: msix.table.offset as usize,
            msix_capability: msix.capability,
            config,
        })
    }

    /// Writes the message of entry `index` into a slot and unmasks it.
    pub fn set_slot(&self, slot: u16, index: u16) {
        self.write_slot(slot, message(index));
    }

    /// Writes any message into a slot and unmasks it.
    pub fn write_slot(&self, slot: u16, message: (u64, u32)) {
        self.write_entry(self.store, slot, message);
    }

    /// Writes the message of entry `index` into an entry of the MSI-X table and unmasks it.
    pub fn set_msix(&self, entry: u16, index: u16) {
        self.write_entry(self.msix_table, entry, message(index));
        let control = self.config.read(self.bdf, self.msix_capability);
        self.config.write(self.bdf, self.msix_capability, control | MSIX_ENABLE);
    }

    fn write_entry(&self, table: usize, number: u16, (address, data): (u64, u32)) {
        let at = table + usize::from(number) * SLOT;
        self.registers.write32(at, address as u32);
        self.registers.write32(at + 4, (address >> 32) as u32);
        self.registers.write32(at + 8, data);
        self.registers.write32(at + CONTROL, 0);
    }

    /// Masks or unmasks a slot. The read brings the write to the device. (On QEMU it does not push messages that the device sent before
    /// it: a marker does.)
    pub fn mask(&self, slot: u16, masked: bool) {
        let at = self.store + usize::from(slot) * SLOT + CONTROL;
        self.registers.write32(at, if masked { MASK } else { 0 });
        let _ = self.registers.read32(at);
    }

    /// Whether something waits in a slot.
    pub fn pending(&self, slot: u16) -> bool {
        self.registers.read32(self.store + usize::from(slot) * SLOT + CONTROL) & PENDING != 0
    }

    /// Submits a descriptor that only raises a slot: no record, so that the interrupt is all that the unit sees of it. A marker
    /// ([`seen`](Self::seen)) tells when it is done.
    pub fn fire(&self, slot: u16) {
        self.ims.submit(&Descriptor { flags: spec::FLAG_RCI, ..Descriptor::noop(0, slot) });
    }

    /// Raises an entry of the MSI-X table.
    pub fn fire_msix(&self, entry: u16) {
        self.msix.submit(&Descriptor { flags: spec::FLAG_RCI, ..Descriptor::noop(0, entry) });
    }

    /// Submits a descriptor without an interrupt, and waits for its record.
    pub fn complete(&self, ram: &Ram, descriptor: Descriptor) -> Result<Completion, &'static str> {
        let place = Gpa::new(RECORDS);
        ram.write(place, &[0; Completion::SIZE as usize]).map_err(|_| "no room for a record")?;
        self.ims.submit(&Descriptor { completion: WINDOW + RECORDS, ..descriptor.without_interrupt() });
        let record = || {
            let _ = self.registers.read32(spec::GENSTS as usize);
            let word = |n: u64| ram.read_u64(Gpa::new(RECORDS + 8 * n)).unwrap_or(0);
            Some(Completion::from_words([word(0), word(1), word(2)]))
                .filter(|record| record.status != spec::STATUS_NONE)
        };
        (0..LOOKS).find_map(|_| record()).ok_or("the DSA completes nothing")
    }

    /// Submits a descriptor that leaves neither record nor interrupt.
    pub fn submit_silently(&self, descriptor: Descriptor) {
        self.ims.submit(&Descriptor { flags: 0, ..descriptor });
    }

    /// Makes the markers' entry. It stays, so that none of the cases' indexes is ever a marker's.
    pub fn bind_marker(&self, bed: &Bed) -> Result<(), &'static str> {
        self.set_slot(MARKER, bed.bind(self.bdf, MARK)?);
        Ok(())
    }

    /// Everything that has arrived, and every fault that was recorded, by what was submitted before this: the device carries out
    /// its work in order, and QEMU its messages, so all of it has come when a marker has.
    pub fn seen(&self, bed: &Bed) -> Result<Seen, &'static str> {
        self.fire(MARKER);
        let mut vectors = Vec::new();
        let marked = (0..LOOKS).any(|_| {
            let _ = self.registers.read32(spec::GENSTS as usize);
            interrupts::poll();
            vectors.extend(interrupts::take());
            vectors.contains(&MARK)
        });
        if !marked {
            return Err("the DSA's marker did not come");
        }
        vectors.retain(|vector| *vector != MARK);
        Ok(bed.seen_besides(vectors))
    }
}

/// A BAR, mapped.
fn bar(function: &Function, number: usize) -> Result<(Hpa, Mmio), &'static str> {
    let memory = function.bars.get(number).and_then(|bar| bar.as_ref()?.memory());
    let (base, size) = memory.ok_or("a device without registers")?;
    map_device(base, size).map_err(|_| "registers that cannot be mapped")?;
    // SAFETY: the registers were mapped just now, and are no memory. Where the device's DMA goes is the unit's to say.
    let registers = unsafe { Mmio::new(base, size as usize) }.ok_or("misplaced registers")?;
    Ok((base, registers))
}
