//! What the cases stand on: the unit, the two devices, and memory for their DMA.

use alloc::vec::Vec;
use core::time::Duration;

use imsvisor::{
    acpi::{Dmar, Rsdp, Tables},
    addr::{Bdf, Gpa, Hpa, PAGE_SIZE},
    apic::FAULT_VECTOR,
    clock,
    cpu::interrupts,
    machine::{
        boot_info::BootInfo,
        discovery::{Machine, Unit},
        memory::{FRAMES, Firmware},
    },
    memory::Ram,
    pci::Function,
    vtd::{Domain, Fault, Route, message},
};

use crate::{
    edu::Edu,
    nvme::Nvme,
    raw::Raw,
    window::{READ_ONLY, SMALL, WINDOW, WINDOW_BYTES},
};

/// QEMU's devices: vendor, device.
const EDU: (u16, u16) = (0x1234, 0x11e8);
const NVME: (u16, u16) = (0x1b36, 0x0010);

/// Time enough for an interrupt that has been sent.
const SETTLE: Duration = Duration::from_micros(100);

/// Everything that the cases use.
pub struct Bed {
    /// The machine.
    pub machine: &'static Machine,
    /// The unit under which both devices are.
    pub unit: Unit,
    /// The processor that interrupts are for.
    pub apic_id: u32,
    /// The second processor.
    pub other: u32,
    /// The device whose DMA goes wherever it is told.
    pub edu: Edu,
    /// The device with MSI-X.
    pub nvme: Nvme,
    /// What both may reach.
    pub domain: Domain,
    /// The memory behind the domain.
    pub ram: Ram,
    /// The unit's tables, past the code under test.
    pub raw: Raw,
}

impl Bed {
    /// Finds the devices and makes their domain. Nobody is attached to it yet.
    pub fn new(
        loader: &BootInfo,
        machine: &'static Machine,
        units: Vec<Option<Unit>>,
        apic_id: u32,
        other: u32,
    ) -> Result<Self, &'static str> {
        let find = |(vendor, device)| machine.functions().iter().find(|f| (f.vendor, f.device) == (vendor, device));
        let edu = find(EDU).ok_or("the machine has no edu")?;
        let nvme = find(NVME).ok_or("the machine has no nvme")?;
        let number = unit_of(machine, edu, nvme)?;
        let unit = units.into_iter().nth(number).flatten().ok_or("the unit did not come up")?;
        let ram = Ram::alloc(&FRAMES, 2 * WINDOW_BYTES).ok_or("too little memory")?;
        let domain = domain(&unit, &ram).ok_or("no domain")?;
        let raw = Raw::new(register_base(loader, number).ok_or("no DMAR")?)?;
        let (edu, nvme) = (Edu::new(machine, edu)?, Nvme::new(machine, nvme)?);
        Ok(Self { machine, unit, apic_id, other, edu, nvme, domain, ram, raw })
    }

    /// A present entry for messages of `source`, that leads to `vector` of this processor.
    pub fn bind(&self, source: Bdf, vector: u8) -> Result<u16, &'static str> {
        self.unit.bind(source, self.route(vector)).map_err(|_| "no entry")
    }

    /// To `vector` of this processor.
    pub fn route(&self, vector: u8) -> Route {
        Route::Remapped { vector, destination: self.apic_id }
    }

    /// Has the unit forget what it may remember of an entry.
    pub fn flush(&self, index: u16) -> Result<(), &'static str> {
        self.unit.flush_entries([index].into_iter()).map_err(|_| "the flush failed")
    }

    /// Clears, flushes and gives back an entry.
    pub fn retire(&self, index: u16) -> Result<(), &'static str> {
        self.unit.clear(index).map_err(|_| "the entry cannot be cleared")?;
        self.flush(index)?;
        self.unit.release(index).map_err(|_| "the entry cannot be given back")
    }

    /// Has the NVMe controller raise entry 0 of its MSI-X table once, by an entry for messages of `source` that leads to `vector`. Returns
    /// which entry that was, and what came of it.
    pub fn raise_msix(&mut self, source: Bdf, vector: u8) -> Result<(u16, Seen), &'static str> {
        let index = self.bind(source, vector)?;
        self.nvme.set_message(0, message(index));
        self.nvme.start(&self.ram)?;
        self.nvme.identify(&self.ram)?;
        let seen = self.seen();
        self.nvme.stop()?;
        self.retire(index)?;
        Ok((index, seen))
    }

    /// Everything that has arrived, and every fault that was recorded, since the last time.
    pub fn seen(&self) -> Seen {
        clock::pause(clock::current(), SETTLE);
        interrupts::poll();
        self.seen_besides(interrupts::take().collect())
    }

    /// The same where these vectors have been taken already.
    pub fn seen_besides(&self, vectors: Vec<u8>) -> Seen {
        let mut seen = Seen { fault_event: vectors.contains(&FAULT_VECTOR), vectors, ..Seen::default() };
        seen.vectors.retain(|vector| *vector != FAULT_VECTOR);
        seen.lost = self.unit.take_faults(|fault| seen.faults.push(fault));
        seen
    }
}

/// What came of something.
#[derive(Debug, Default)]
pub struct Seen {
    /// Vectors that arrived, highest first.
    pub vectors: Vec<u8>,
    /// Faults that the unit recorded.
    pub faults: Vec<Fault>,
    /// The unit's fault event arrived.
    pub fault_event: bool,
    /// More faults than there is room for.
    pub lost: bool,
}

fn unit_of(machine: &Machine, edu: &Function, nvme: &Function) -> Result<usize, &'static str> {
    let number = machine.unit_of(edu.bdf).ok_or("no unit serves edu")?;
    if machine.unit_of(nvme.bdf) == Some(number) { Ok(number) } else { Err("another unit serves nvme") }
}

fn domain(unit: &Unit, ram: &Ram) -> Option<Domain> {
    let mut domain = unit.create_domain().ok()?;
    let behind = ram.base().checked_add(WINDOW_BYTES)?;
    let maps = [
        (WINDOW, ram.base(), WINDOW_BYTES, true),
        (SMALL, behind, PAGE_SIZE, true),
        (READ_ONLY, behind.checked_add(PAGE_SIZE)?, PAGE_SIZE, false),
    ];
    for (gpa, hpa, len, writable) in maps {
        // SAFETY: the memory was allocated for the devices, and is never given back.
        unsafe { unit.map(&mut domain, Gpa::new(gpa), hpa, len, writable) }.ok()?;
    }
    Some(domain)
}

/// Where the firmware's table says that the unit's registers are.
fn register_base(loader: &BootInfo, number: usize) -> Option<Hpa> {
    let firmware = Firmware::new(loader);
    let tables = Tables::new(&firmware, Rsdp::scan(&firmware)?)?;
    let dmar = Dmar::parse(tables.find(b"DMAR").ok()?.bytes).ok()?;
    dmar.units.get(number)?.base
}
