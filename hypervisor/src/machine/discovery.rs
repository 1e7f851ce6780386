//! Discovers the machine: its firmware's tables, PCI functions and remapping units.

use alloc::{boxed::Box, collections::BTreeSet, vec::Vec};
use core::fmt;

use crate::{
    acpi::{
        Dmar, Drhd, EcamWindow, FirmwareMemory, Missing, Processor, Rmrr, Srat, Table, Tables, dmar::NoUnits,
        ecam_windows, io_apics, processors,
    },
    addr::{Bdf, Hpa, PAGE_SIZE},
    apic,
    clock::{self, Choice},
    event,
    machine::{
        boot_info::BootInfo,
        clock as counters, io_apic, log_limit,
        memory::{FRAMES, Firmware, find_rsdp, map_device},
        wall_clock::WallClock,
    },
    memory::{Frames, Mmio, PhysRange},
    pci::{
        ConfigPorts, ConfigSpace, Ecam, Function, scan,
        scan::{buses_behind, misplaced, top_bus},
    },
    vtd::{self, Capabilities, Config, Remapper},
};

/// The I/O APICs, the HPET, the usual place of remapping units, and the message window.
const APICS: PhysRange = PhysRange::new(Hpa::new(0xfec0_0000), 0x30_0000);

/// A remapping unit in use.
pub type Unit = Remapper<'static, Mmio, Frames>;

/// The machine.
pub struct Machine {
    config: Box<dyn ConfigSpace + Send + Sync>,
    functions: Vec<Function>,
    dmar: Result<Dmar, NoUnits>,
    memory: Vec<PhysRange>,
    processors: Vec<Processor>,
    srat: Srat,
    bochs: bool,
    clock: Choice,
    wall_clock: WallClock,
}

impl Machine {
    /// Discovers the machine, chooses the clock ([`clock::current`]) and reads the date. A machine without ACPI, or with broken tables, has
    /// no remapping units.
    pub fn discover(boot_info: &BootInfo) -> Self {
        let firmware = Firmware::new(boot_info);
        let tables = find_rsdp(&firmware, boot_info).and_then(|rsdp| Tables::new(&firmware, rsdp));
        if tables.is_none() {
            log::warn!("no ACPI tables");
        }
        if tables.as_ref().is_some_and(|tables| !tables.list_sums_up) {
            log_checksum("the list of ACPI tables");
        }
        let find = |signature| tables.as_ref().ok_or(Missing::NoAcpi).and_then(|tables| table(tables, signature));
        let memory: Vec<PhysRange> = boot_info.memory(true).collect();
        let fadt = find(b"FACP").ok();
        let clock = counters::start(fadt, |range| overlaps(&memory, range));
        let wall_clock = counters::date(fadt, clock);
        let (config, windows) = config_space(find(b"MCFG").ok(), &memory);
        let mut functions = scan(&*config);
        let dmar = Dmar::parse_found(find(b"DMAR"));
        let units = dmar.iter().flat_map(|dmar| &dmar.units);
        let units = units.filter_map(|unit| Some(PhysRange::new(unit.base?, unit.size)));
        let taken: Vec<PhysRange> = [&memory[..], &windows[..], &[APICS]].concat().into_iter().chain(units).collect();
        drop_misplaced_bars(&mut functions, &taken);
        if let Ok(dmar) = &dmar {
            log_defects(dmar);
        }
        let madt = find(b"APIC").ok();
        if madt.is_none() {
            log::warn!("no table MADT: no other processor is known, and no I/O APIC");
        }
        let processors = madt.map(listed).unwrap_or_default();
        for base in madt.map(io_apics).unwrap_or_default() {
            mask_io_apic(base, &memory);
        }
        let srat = find(b"SRAT").map(nodes).unwrap_or_default();
        let bochs = fadt.is_some_and(is_bochs);
        let machine = Self { config, functions, dmar, memory, processors, srat, bochs, clock, wall_clock };
        machine.log_functions();
        machine
    }

    /// The remapping units' table, if there is one that can be read.
    fn dmar(&self) -> Option<&Dmar> {
        self.dmar.as_ref().ok()
    }

    /// Enters x2APIC mode if the processor has it, unless the firmware opts out (DMAR, X2APIC_OPT_OUT). In that case the local APICs stay
    /// in the firmware's mode, and with xAPIC the units' destinations have 8 bits, as in Linux (`intel_prepare_irq_remapping`). Called
    /// before any other processor is started, and before units are brought up.
    pub fn choose_apic_mode(&self) {
        if !self.dmar().is_some_and(|dmar| dmar.x2apic_opt_out) {
            apic::enter_x2apic();
            return;
        }
        let mode = if apic::is_x2apic() { "x2APIC mode, which it has left on itself" } else { "xAPIC mode" };
        log::warn!("the firmware asks not to use x2APIC mode (DMAR): the local APICs stay in {mode}");
    }

    /// Logs requests of the firmware's tables that the hypervisor does not carry out.
    fn log_functions(&self) {
        let Some(dmar) = self.dmar() else { return };
        let in_memory = dmar.reserved.iter().filter(|region| !region.is_firmwares(&self.memory));
        log_limit::log_first("DMAR", in_memory, |region| {
            let why = "is in memory that the map calls usable, or too long; it is left out, and its function goes to no guest";
            log::warn!("DMAR: the region (RMRR) {} to {} {why}", region.base, region.limit);
        });
        let behind = |bridge| buses_behind(&self.functions, bridge);
        let functions = self.functions.iter().filter(|function| dmar.requires_ats(function.bdf, behind));
        log_limit::log_first("ATS", functions, |function| {
            let what = "the firmware says that it requires ATS (SATC), which stays off";
            log::warn!(
                "{}: {what}: the unit translates and confines all it does, but it may work slower or not at all",
                function.bdf
            );
        });
    }

    /// Access to configuration space.
    pub fn config(&self) -> &dyn ConfigSpace {
        &*self.config
    }

    /// APIC IDs of the processors that the firmware reports.
    pub fn apic_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.processors.iter().map(|processor| processor.apic_id)
    }

    /// The number of nodes: 0 where the firmware does not say.
    pub fn nodes(&self) -> usize {
        self.srat.domains()
    }

    /// The node of the processor with this APIC ID, as a proximity domain.
    pub fn node_of_processor(&self, apic_id: u32) -> Option<u32> {
        self.srat.of_processor(apic_id)
    }

    /// The node of a function: its remapping unit's.
    pub fn node_of(&self, bdf: Bdf) -> Option<u32> {
        self.dmar()?.units.get(self.unit_of(bdf)?)?.domain
    }

    /// The memory of a node.
    pub fn memory_of_node(&self, node: u32) -> Vec<PhysRange> {
        self.srat.memory_of(node)
    }

    /// Whether this is Bochs, whose virtualisation of the local APIC has defects (`tests/MACHINES.md`).
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

    /// The unit that serves a function, by its place in DMAR.
    pub fn unit_of(&self, bdf: Bdf) -> Option<usize> {
        let dmar = self.dmar()?;
        let top = top_bus(&self.functions, bdf);
        let unit = dmar.unit_of(bdf, top, |bridge| buses_behind(&self.functions, bridge))?;
        dmar.units.iter().position(|other| core::ptr::eq(unit, other))
    }

    /// The segment of a unit, by its place in DMAR.
    pub fn segment_of_unit(&self, number: usize) -> u16 {
        self.dmar().and_then(|dmar| dmar.units.get(number)).map_or(0, |unit| unit.segment)
    }

    /// Whether the firmware has reserved memory for a function (RMRR).
    pub fn has_reserved_memory(&self, bdf: Bdf) -> bool {
        self.reserved_memory(bdf).next().is_some()
    }

    fn reserved_memory(&self, bdf: Bdf) -> impl Iterator<Item = &Rmrr> + '_ {
        let behind = |bridge| buses_behind(&self.functions, bridge);
        self.dmar().into_iter().flat_map(move |dmar| dmar.reserved_of(bdf, behind))
    }

    /// Brings all units up, in DMAR's order, each with a table of as many entries as its functions can take, by `entries`. A unit that was
    /// refused is `None`, and its functions cannot be assigned. The units' fault events go to the processor with this APIC ID.
    pub fn bring_up_units(&self, entries: impl Fn(&Function) -> u32, apic_id: u32) -> Vec<Option<Unit>> {
        let units = match self.dmar.as_ref().map_err(|&why| why).and_then(Dmar::usable) {
            Ok(units) => units,
            Err(why) => {
                event!("refused what=vtd why=\"{why}\"");
                return Vec::new();
            }
        };
        let wide = apic::is_x2apic() && units.iter().all(|unit| self.can_be_wide(unit));
        let bring_up = |(number, unit)| {
            let own = self.functions.iter().filter(|function| self.unit_of(function.bdf) == Some(number));
            let all = own.map(&entries).fold(0, u32::saturating_add);
            self.bring_up(number, unit, all, (apic_id, wide))
        };
        (0..).zip(units).map(bring_up).collect()
    }

    /// Whether a unit serves nothing but graphics that must stay translated.
    fn serves_graphics_only(&self, number: usize) -> bool {
        let mut own = self.functions.iter().filter(|function| self.unit_of(function.bdf) == Some(number)).peekable();
        own.peek().is_some() && own.all(Function::must_stay_translated)
    }

    /// A unit's registers, mapped. `Err` says why they cannot be used.
    fn registers(&self, unit: &Drhd) -> Result<Mmio, &'static str> {
        let (base, size) = (unit.base.ok_or("DMAR gives its registers an address that cannot be")?, unit.size);
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

    /// Whether a unit supports x2APIC IDs, or will not be used. All units have to, because a posted-interrupt descriptor has one format of
    /// destination.
    fn can_be_wide(&self, unit: &Drhd) -> bool {
        let Ok(registers) = self.registers(unit) else { return true };
        let fits = |wide| Capabilities::read(&registers, unit.size, wide).is_ok();
        fits(true) || !fits(false)
    }

    fn bring_up(&self, number: usize, unit: &Drhd, entries: u32, (apic_id, wide): (u32, bool)) -> Option<Unit> {
        let refused = |why: &dyn fmt::Display| match unit.base {
            Some(base) => event!("refused what=vtd why=\"the unit at {base}: {why}\""),
            None => event!("refused what=vtd why=\"unit {number}: {why}\""),
        };
        let registers = self.registers(unit).inspect_err(|why| refused(why)).ok()?;
        if self.serves_graphics_only(number) && vtd::is_translating(&registers) {
            refused(
                &"the firmware has it translate for this kind of graphics, which can hang when that ends; it stays as it is",
            );
            return None;
        }
        let config = Config { entries, wide_destinations: wide, register_bytes: unit.size, clock: clock::current() };
        let up = Remapper::new(registers, &FRAMES, config).and_then(|unit| {
            unit.unit().set_fault_event(fault_message(apic_id), apic::FAULT_VECTOR.into());
            self.keep_firmware_working(number, &unit);
            unit.enable_dma_remapping().map(|()| unit)
        });
        up.inspect_err(|refusal| refused(refusal)).ok()
    }

    /// Lets the functions of unit `number` that the firmware uses reach the memory that it has reserved for them (RMRR, VT-d 8.4). No guest
    /// gets such a function.
    fn keep_firmware_working(&self, number: usize, unit: &Unit) {
        for function in self.functions.iter().filter(|function| self.unit_of(function.bdf) == Some(number)) {
            let regions = self.reserved_memory(function.bdf).filter(|region| region.is_firmwares(&self.memory));
            let ranges: Vec<_> = regions.map(Rmrr::range).collect();
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

    /// Whether a part of the range is usable memory by the loader's map.
    fn is_memory(&self, range: PhysRange) -> bool {
        overlaps(&self.memory, range)
    }
}

/// A table's bytes. A wrong checksum or an impossible length is logged.
fn table<'m>(tables: &Tables<'m, impl FirmwareMemory>, signature: &[u8; 4]) -> Result<&'m [u8], Missing> {
    let name = core::str::from_utf8(signature).unwrap_or("a table");
    let found = tables.find(signature).inspect_err(|missing| {
        if let Missing::Unreadable(at) = missing {
            log::warn!("{name} at {at}: its length cannot be (a fault of the firmware); it is not used");
        }
    });
    let Table { bytes, sums_up } = found?;
    if !sums_up {
        log_checksum(name);
    }
    Ok(bytes)
}

fn log_checksum(what: &str) {
    log::warn!("{what}: its checksum is wrong (a fault of the firmware); it is used all the same");
}

/// The processors that the MADT lists.
fn listed(madt: &[u8]) -> Vec<Processor> {
    let (processors, odd) = processors(madt);
    if let Some(at) = odd {
        log::warn!("MADT: the length at offset {at:#x} is wrong; processors behind it are not known");
    }
    processors
}

/// The nodes that the SRAT lists.
fn nodes(table: &[u8]) -> Srat {
    let srat = Srat::parse(table);
    if let Some(at) = srat.odd {
        log::warn!("SRAT: the length at offset {at:#x} is wrong; what is behind it is in no node");
    }
    srat
}

fn log_defects(dmar: &Dmar) {
    log_limit::log_first("DMAR", dmar.defects.iter(), |odd| log::warn!("DMAR: {odd}"));
    let segments: BTreeSet<u16> = dmar.units.iter().map(|unit| unit.segment).collect();
    let unsure = segments.into_iter().filter(|&segment| !dmar.is_whole(segment));
    log_limit::log_first("DMAR", unsure, |segment| {
        log::warn!(
            "DMAR: segment {segment:04x}: what no unit names could be one's that is left out, so it goes to no guest"
        );
    });
}

/// Whether a part of the range is in one of `memory`.
fn overlaps(memory: &[PhysRange], range: PhysRange) -> bool {
    memory.iter().any(|memory| memory.overlaps(&range))
}

/// Bochs' firmware names itself in its tables. QEMU uses the same name, but says in CPUID that it is a hypervisor.
fn is_bochs(fadt: &[u8]) -> bool {
    const OEM_ID: core::ops::Range<usize> = 10..16;
    let virtual_machine = raw_cpuid::CpuId::new().get_feature_info().is_some_and(|f| f.has_hypervisor());
    fadt.get(OEM_ID) == Some(b"BOCHS ") && !virtual_machine
}

/// Masks the I/O APIC at `base`, unless that is memory.
fn mask_io_apic(base: Hpa, memory: &[PhysRange]) {
    if overlaps(memory, PhysRange::new(base, PAGE_SIZE)) || map_device(base, PAGE_SIZE).is_err() {
        return;
    }
    // SAFETY: the page was mapped just now, uncached, and is no memory; an I/O APIC whose entries are masked sends nothing.
    if let Some(registers) = unsafe { Mmio::new(base, PAGE_SIZE as usize) } {
        io_apic::mask(&registers);
    }
}

/// The destination of a unit's own messages, which are not remapped (VT-d 7.3), for a processor with this APIC ID: bits 7:0 of the ID are
/// in the address's 19:12, and 31:8 in its 63:40.
fn fault_message(apic_id: u32) -> u64 {
    const MESSAGES: u64 = 0xfee0_0000;
    MESSAGES | u64::from(apic_id & 0xff) << 12 | u64::from(apic_id & !0xff) << 32
}

/// Drops the BARs of functions that the firmware has placed over memory, the machine's own registers or another function's BAR. Such a
/// function cannot be assigned, because a guest would get the other registers with it.
fn drop_misplaced_bars(functions: &mut [Function], taken: &[PhysRange]) {
    let misplaced = misplaced(functions, taken);
    let lost = misplaced.iter().filter_map(|&at| functions.get(at));
    log_limit::log_first("PCI", lost, |Function { bdf, .. }| {
        log::warn!(
            "{bdf}: a BAR lies over memory or over registers of something else (a fault of the firmware); it goes to no guest"
        );
    });
    for at in misplaced {
        if let Some(function) = functions.get_mut(at) {
            function.bars = Default::default();
        }
    }
}

/// Configuration space by memory if the firmware reports it, else by ports. Also returns the windows in memory.
fn config_space(mcfg: Option<&[u8]>, memory: &[PhysRange]) -> (Box<dyn ConfigSpace + Send + Sync>, Vec<PhysRange>) {
    let (windows, odd) = mcfg.map(ecam_windows).unwrap_or_default();
    if odd != 0 {
        log::warn!("MCFG: {odd} entries describe no window that can be; they are left out");
    }
    let (windows, over): (Vec<_>, Vec<_>) = windows.into_iter().partition(|window| !overlaps(memory, window.registers));
    if !over.is_empty() {
        log::warn!("MCFG: {} windows lie over memory; they are left out", over.len());
    }
    let is_mapped = |window: &EcamWindow| map_device(window.registers.start, window.registers.len).is_ok();
    let windows: Vec<_> = windows.into_iter().filter(is_mapped).collect();
    // SAFETY: the windows were mapped just now, uncached; the hypervisor is the only one that configures functions.
    let ecam = unsafe { Ecam::new(&windows) };
    if ecam.is_empty() {
        log::warn!(
            "the firmware reports no configuration space in memory (MCFG): no function has extended capabilities"
        );
        // SAFETY: privilege level 0, and this is the only such value.
        return (Box::new(unsafe { ConfigPorts::new() }), Vec::new());
    }
    (Box::new(ecam), windows.iter().map(|window| window.registers).collect())
}
