//! What this machine has: its firmware's tables, its PCI functions, its remapping units.

use alloc::{boxed::Box, vec::Vec};
use core::fmt;

use super::{
    clock as counters,
    loader::Loader,
    memory::{FRAMES, Firmware, find_rsdp, map_device},
    ports::Unit,
    wall_clock::WallClock,
};
use crate::{
    acpi::{Dmar, Drhd, Processor, Tables, ecam_windows, processors},
    addr::Bdf,
    apic,
    clock::{self, Choice},
    event,
    memory::{Mmio, PhysRange},
    pci::{ConfigPorts, ConfigSpace, Ecam, Function, scan, scan::buses_behind},
    vtd::{Capabilities, Config, Remapper},
};

/// The PCI segment that is looked at.
const SEGMENT: u16 = 0;

/// A region that the firmware keeps for a device is at most this long; the largest are those of graphics.
const RESERVED_MOST: u64 = 1 << 30;

/// The machine.
pub struct Machine {
    config: Box<dyn ConfigSpace + Send + Sync>,
    functions: Vec<Function>,
    dmar: Option<Dmar>,
    memory: Vec<PhysRange>,
    processors: Vec<Processor>,
    bochs: bool,
    clock: Choice,
    wall_clock: WallClock,
}

impl Machine {
    /// Looks around, chooses the clock ([`clock::current`]) and reads the date. A machine without ACPI, or with broken tables, is one
    /// without remapping units.
    pub fn discover(loader: &Loader) -> Self {
        let firmware = Firmware::new(loader);
        let tables = find_rsdp(&firmware, loader).and_then(|rsdp| Tables::new(&firmware, rsdp));
        if tables.is_none() {
            log::warn!("no ACPI tables");
        }
        let find = |signature| tables.as_ref().and_then(|tables| tables.find(signature));
        let memory: Vec<PhysRange> = loader.memory(true).collect();
        let clock = counters::start(find(b"FACP"), |range| overlaps(&memory, range));
        let wall_clock = counters::date(find(b"FACP"), clock);
        let config = config_space(find(b"MCFG"));
        let functions = scan(&*config);
        let dmar = find(b"DMAR").and_then(|table| {
            Dmar::parse(table).inspect_err(|error| log::error!("DMAR: {error}; it is not used")).ok()
        });
        let processors = find(b"APIC").map(processors).unwrap_or_default();
        let bochs = find(b"FACP").is_some_and(is_bochs);
        Self { config, functions, dmar, memory, processors, bochs, clock, wall_clock }
    }

    /// Access to configuration space.
    pub fn config(&self) -> &dyn ConfigSpace {
        &*self.config
    }

    /// APIC IDs of the processors that the firmware reports.
    pub fn apic_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.processors.iter().map(|processor| processor.apic_id)
    }

    /// Whether this is Bochs, whose virtualisation of the local APIC has defects (ARCHITECTURE.md, machine notes).
    pub fn is_bochs(&self) -> bool {
        self.bochs
    }

    /// What waits go by.
    pub fn clock(&self) -> Choice {
        self.clock
    }

    /// The date.
    pub fn wall_clock(&self) -> WallClock {
        self.wall_clock
    }

    /// All functions.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Which unit, by its place in DMAR, serves a function.
    pub fn unit_of(&self, bdf: Bdf) -> Option<usize> {
        let dmar = self.dmar.as_ref()?;
        let unit = dmar.unit_of(SEGMENT, bdf, |bridge| buses_behind(&self.functions, bridge))?;
        dmar.units.iter().position(|other| core::ptr::eq(unit, other))
    }

    /// Whether the firmware keeps memory of its own with a function.
    pub fn has_reserved_memory(&self, bdf: Bdf) -> bool {
        self.reserved_memory(bdf).next().is_some()
    }

    fn reserved_memory(&self, bdf: Bdf) -> impl Iterator<Item = PhysRange> + '_ {
        let regions = self
            .dmar
            .iter()
            .flat_map(move |dmar| dmar.reserved_of(SEGMENT, bdf, |bridge| buses_behind(&self.functions, bridge)));
        regions.map(|region| {
            let len = region.limit.as_u64().saturating_sub(region.base.as_u64()).saturating_add(1);
            PhysRange::new(region.base, len)
        })
    }

    /// Brings all units up, in DMAR's order, each with a table of as many entries as its functions can take, by `entries`. `None` stands
    /// for a unit that was refused; what it serves cannot be assigned. Their fault events go to the processor with this APIC ID.
    pub fn bring_up_units(&self, entries: impl Fn(&Function) -> u32, apic_id: u32) -> Vec<Option<Unit>> {
        let Some(dmar) = &self.dmar else {
            event!("refused what=vtd why=\"the firmware reports no remapping unit (no DMAR table)\"");
            return Vec::new();
        };
        if !dmar.interrupt_remapping {
            event!("refused what=vtd why=\"the firmware says that interrupts cannot be remapped (DMAR flags)\"");
            return Vec::new();
        }
        let wide = apic::is_x2apic() && dmar.units.iter().all(|unit| self.can_be_wide(unit));
        let bring_up = |(number, unit)| {
            let own = self.functions.iter().filter(|function| self.unit_of(function.bdf) == Some(number));
            let all = own.map(&entries).fold(0, u32::saturating_add);
            self.bring_up(number, unit, all, (apic_id, wide))
        };
        (0..).zip(&dmar.units).map(bring_up).collect()
    }

    /// A unit's registers, mapped. `Err` says why they cannot be used.
    fn registers(&self, unit: &Drhd) -> Result<Mmio, &'static str> {
        let (base, size) = (unit.base, unit.size);
        // A unit in the middle of memory would be a table's lie, and mapping it a hole in the hypervisor.
        if self.is_memory(PhysRange::new(base, size)) {
            return Err("DMAR puts its registers where memory is");
        }
        let unmapped = "its registers cannot be mapped";
        map_device(base, size).map_err(|_| unmapped)?;
        let bytes = usize::try_from(size).map_err(|_| unmapped)?;
        // SAFETY: the registers were mapped just now, uncached, and are no memory. What the unit does with memory is the tables'
        // that `vtd` makes for it.
        unsafe { Mmio::new(base, bytes) }.ok_or(unmapped)
    }

    /// Whether a unit takes x2APIC IDs, or is none that will be used. All of them have to, because a posted-interrupt descriptor says its
    /// destination in one way.
    fn can_be_wide(&self, unit: &Drhd) -> bool {
        let Ok(registers) = self.registers(unit) else { return true };
        let fits = |wide| Capabilities::read(&registers, unit.size, wide).is_ok();
        fits(true) || !fits(false)
    }

    fn bring_up(&self, number: usize, unit: &Drhd, entries: u32, (apic_id, wide): (u32, bool)) -> Option<Unit> {
        let refused = |why: &dyn fmt::Display| event!("refused what=vtd why=\"the unit at {}: {why}\"", unit.base);
        let registers = self.registers(unit).inspect_err(|why| refused(why)).ok()?;
        let config = Config { entries, wide_destinations: wide, register_bytes: unit.size, clock: clock::current() };
        let up = Remapper::new(registers, &FRAMES, config).and_then(|unit| {
            unit.unit().set_fault_event(fault_message(apic_id), apic::FAULT_VECTOR.into());
            self.keep_firmware_working(number, &unit);
            unit.enable_dma_remapping().map(|()| unit)
        });
        up.inspect_err(|refusal| refused(refusal)).ok()
    }

    /// Lets the functions of unit `number` that the firmware has set to work reach the memory it keeps for them (RMRR, VT-d 8.4). No
    /// guest gets such a function.
    fn keep_firmware_working(&self, number: usize, unit: &Unit) {
        for function in self.functions.iter().filter(|function| self.unit_of(function.bdf) == Some(number)) {
            let ranges: Vec<_> = self.reserved_memory(function.bdf).filter(|range| self.is_firmwares(range)).collect();
            if ranges.is_empty() {
                continue;
            }
            // SAFETY: the firmware reports the ranges as its own, and none of them is memory that anyone else uses.
            match unsafe { unit.attach_identity(function.bdf, ranges.into_iter()) } {
                // Its tables stay: nobody is going to destroy it.
                Ok(_domain) => log::info!("{}: keeps the memory that its firmware uses", function.bdf),
                Err(error) => log::warn!("{}: its firmware's memory stays out of its reach: {error}", function.bdf),
            }
        }
    }

    /// Whether a range can be what a DMAR table says of it: memory that the firmware keeps.
    fn is_firmwares(&self, range: &PhysRange) -> bool {
        range.len != 0 && range.len <= RESERVED_MOST && !self.is_memory(*range)
    }

    /// Whether a part of the range is memory that the loader's map calls usable.
    fn is_memory(&self, range: PhysRange) -> bool {
        overlaps(&self.memory, range)
    }
}

/// Whether a part of the range is in one of these.
fn overlaps(memory: &[PhysRange], range: PhysRange) -> bool {
    memory.iter().any(|memory| memory.start < range.end() && range.start < memory.end())
}

/// Bochs' firmware names itself in its tables. QEMU uses the same name, but says in CPUID that it is a hypervisor.
fn is_bochs(fadt: &[u8]) -> bool {
    const OEM_ID: core::ops::Range<usize> = 10..16;
    let virtual_machine = raw_cpuid::CpuId::new().get_feature_info().is_some_and(|f| f.has_hypervisor());
    fadt.get(OEM_ID) == Some(b"BOCHS ") && !virtual_machine
}

/// Where a unit sends its own messages, which are not remapped (VT-d 7.3), for a processor with this APIC ID: bits 7:0 of that are in the
/// address's 19:12, and 31:8 in its 63:40.
fn fault_message(apic_id: u32) -> u64 {
    const MESSAGES: u64 = 0xfee0_0000;
    MESSAGES | u64::from(apic_id & 0xff) << 12 | u64::from(apic_id & !0xff) << 32
}

/// By memory where the firmware tells where, else by ports.
fn config_space(mcfg: Option<&[u8]>) -> Box<dyn ConfigSpace + Send + Sync> {
    let windows: Vec<_> = mcfg
        .map(ecam_windows)
        .unwrap_or_default()
        .into_iter()
        .filter(|window| map_device(window.registers.start, window.registers.len).is_ok())
        .collect();
    // SAFETY: the windows were mapped just now, uncached; the hypervisor is the only one that configures functions.
    let ecam = unsafe { Ecam::new(SEGMENT, &windows) };
    if ecam.is_empty() {
        // SAFETY: privilege level 0, and this is the only such value.
        return Box::new(unsafe { ConfigPorts::new() });
    }
    Box::new(ecam)
}
