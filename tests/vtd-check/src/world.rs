//! The machine that is checked: one remapping unit in use, EDU and NVMe behind it, and what arrives at the processor.

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use imsvisor::{
    acpi::{Dmar, FirmwareMemory, Rsdp, Tables},
    addr::{Bdf, Gpa, Hpa, PAGE_SIZE},
    apic,
    cpu::interrupts,
    memory::{FrameSource, Mmio, Registers},
    pci::Function,
    platform::{
        loader::Loader,
        machine::Machine,
        memory::{FRAMES, Firmware},
        ports::Unit,
    },
    vtd::{Domain, Fault, Route, spec::registers::IRTA},
};

use crate::{edu::Edu, nvme::Nvme};

/// Interrupt remapping entries: the smallest table, so that messages can name entries beyond it.
pub const ENTRIES: u32 = 256;

/// Where EDU sees its page. It lies elsewhere in memory, so that an address that is not translated cannot pass for one that is.
pub const PAGE: Gpa = Gpa::new(0x1234_5000);

/// Bytes of an RSDP of the newer kind.
const RSDP_BYTES: usize = 36;

/// How often the processor lets interrupts in before it holds that none comes.
const POLLS: u32 = 200;

/// The machine under check.
pub struct World {
    /// The unit, brought up by the hypervisor's own code.
    pub unit: Unit,
    /// Its registers, seen past that code.
    pub registers: Mmio,
    /// EDU: it sends DMA writes to any address, and an MSI.
    pub edu: Edu,
    /// EDU's view of memory.
    pub memory: Domain,
    /// The page behind [`PAGE`].
    pub page: Hpa,
    /// NVMe: it sends MSI-X.
    pub nvme: Nvme,
    /// This processor.
    pub apic_id: u32,
}

/// What came of one request or several.
#[derive(Debug)]
pub struct Seen {
    /// Vectors that arrived, but for the fault event's.
    pub vectors: Vec<u8>,
    /// Whether the unit sent its fault event.
    pub event: bool,
    /// What the unit recorded.
    pub faults: Vec<Fault>,
    /// Whether there were more faults than records.
    pub lost: bool,
}

impl World {
    /// Brings up the unit and both devices.
    pub fn new(loader: &Loader, machine: &'static Machine, apic_id: u32) -> Result<Self, String> {
        let registers = registers(loader)?;
        let mut units = machine.bring_up_units(ENTRIES, apic_id);
        let unit = units.pop().flatten().filter(|_| units.is_empty()).ok_or("not exactly one unit came up")?;
        let mut memory = unit.create_domain().map_err(|error| format!("no domain: {error}"))?;
        let page = FRAMES.alloc_zeroed(1, PAGE_SIZE).ok_or("no page")?;
        // SAFETY: the page is EDU's for good.
        let mapped = unsafe { unit.map(&mut memory, PAGE, page, PAGE_SIZE, true) };
        mapped.map_err(|error| format!("EDU's page: {error}"))?;
        let edu = Edu::new(machine.config(), function(machine, Edu::ID)?)?;
        unit.attach(edu.bdf, &mut memory).map_err(|error| format!("EDU: {error}"))?;
        let nvme = Nvme::new(machine.config(), function(machine, Nvme::ID)?, &unit)?;
        Ok(Self { unit, registers, edu, memory, page, nvme, apic_id })
    }

    /// The route to a vector of this processor.
    pub fn route(&self, vector: u8) -> Route {
        Route::Remapped { vector, destination: self.apic_id }
    }

    /// A new entry for messages of `source`, programmed with this vector.
    pub fn entry(&self, source: Bdf, vector: u8) -> Result<u16, String> {
        let index = self.unit.reserve(source).map_err(|error| format!("reserve: {error}"))?;
        self.retarget(index, vector).map(|()| index)
    }

    /// One 128-bit update, and a flush.
    pub fn retarget(&self, index: u16, vector: u8) -> Result<(), String> {
        self.unit.program(index, self.route(vector)).map_err(|error| format!("program: {error}"))?;
        self.flush(index)
    }

    /// Makes an entry not present, and flushes it.
    pub fn clear(&self, index: u16) -> Result<(), String> {
        self.unit.clear(index).map_err(|error| format!("clear: {error}"))?;
        self.flush(index)
    }

    /// Gives an entry back.
    pub fn release(&self, index: u16) -> Result<(), String> {
        self.clear(index)?;
        self.unit.release(index).map_err(|error| format!("release: {error}"))
    }

    /// Flushes an entry.
    pub fn flush(&self, index: u16) -> Result<(), String> {
        self.unit.flush_entries([index].into_iter()).map_err(|error| format!("flush: {error}"))
    }

    /// Sets bits of an entry that the hypervisor's code never would: of its low and of its high half.
    pub fn spoil(&self, index: u16, bits: [u64; 2]) -> Result<(), String> {
        let table = self.registers.read64(IRTA) & !(PAGE_SIZE - 1);
        let entry = (table + 16 * u64::from(index)) as *const [AtomicU64; 2];
        // SAFETY: the unit's table, in which the index lies; it is accessed atomically only.
        let entry = unsafe { &*entry };
        entry.iter().zip(bits).for_each(|(half, bits)| _ = half.fetch_or(bits, Ordering::SeqCst));
        self.flush(index)
    }

    /// Waits for what was sent, and takes what came of it.
    pub fn look(&self) -> Seen {
        let mut seen = Seen { vectors: Vec::new(), event: false, faults: Vec::new(), lost: false };
        for _ in 0..POLLS {
            interrupts::poll();
            for vector in interrupts::take() {
                if vector == apic::FAULT_VECTOR { seen.event = true } else { seen.vectors.push(vector) }
            }
        }
        seen.lost = self.unit.take_faults(|fault| seen.faults.push(fault));
        seen
    }

    /// Has EDU write a message, as a device with an interrupt message store does.
    pub fn send(&self, (address, data): (u64, u32)) -> Result<Seen, String> {
        self.set_word(data);
        self.edu.load(PAGE.as_u64(), 4)?;
        self.edu.store(address, 4)?;
        Ok(self.look())
    }

    /// Writes the first word of EDU's page.
    pub fn set_word(&self, value: u32) {
        // SAFETY: the page is ours and EDU's, which is not at work.
        unsafe { FRAMES.pointer(self.page).cast::<u32>().write_volatile(value) };
    }

    /// Reads the first word of a page.
    pub fn word(&self, page: Hpa) -> u32 {
        // SAFETY: one of the pages that are ours and EDU's, which is not at work.
        unsafe { FRAMES.pointer(page).cast::<u32>().read_volatile() }
    }
}

/// The registers of the machine's first unit, by its DMAR table. They are mapped when the unit has been brought up.
fn registers(loader: &Loader) -> Result<Mmio, String> {
    let firmware = Firmware::new(loader);
    let rsdp = loader.rsdp().and_then(|at| Rsdp::parse(firmware.bytes(at, RSDP_BYTES)?));
    let tables = rsdp.or_else(|| Rsdp::scan(&firmware)).and_then(|rsdp| Tables::new(&firmware, rsdp));
    let tables = tables.ok_or("no ACPI tables")?;
    let dmar = Dmar::parse(tables.find(b"DMAR").ok_or("no DMAR")?).map_err(|error| format!("DMAR: {error}"))?;
    let unit = dmar.units.first().ok_or("DMAR names no unit")?;
    // SAFETY: `Machine::bring_up_units` maps them uncached before they are used; whoever writes them knows what it does.
    unsafe { Mmio::new(unit.base, unit.size as usize) }.ok_or_else(|| "a unit at 0".into())
}

fn function(machine: &Machine, (vendor, device): (u16, u16)) -> Result<&Function, String> {
    let found = machine.functions().iter().find(|function| (function.vendor, function.device) == (vendor, device));
    found.ok_or_else(|| format!("there is no {vendor:04x}:{device:04x}"))
}
