//! A PCI function given to a guest: what the guest sees of it, and how it gets there.

use alloc::vec::Vec;
use core::{hint::spin_loop, ops::Range};

use hcall_abi::{DeviceId, Pasid};

use crate::{
    addr::{Bdf, Gpa, Hpa, PAGE_SIZE},
    devices::{
        bars::{locate, look, map_bars, memory_bar},
        dsa,
        mmio_regions::{MmioRegion, MmioRegions, RegionKind, RegisterKind, Registers},
        refusal::Refusal,
        reset::{Begun, ResetMethod},
        store_pages,
    },
    ept::{self, Ept},
    guest::memory_map::BarAllocator,
    ims::{DeviceSpec, Domain, GuestId, Reach, StoreName, StoreSpec},
    irq::{
        dma::Requests,
        ports::{MachinePorts, MachineService},
    },
    machine::{discovery::Machine, memory::FRAMES},
    memory::{FrameSource, Mmio, Ram},
    pci::{
        self, Bar, Function, TableLocation,
        reset::{Progress, Resetting},
    },
    vdev::pci::{BarDescr, Effect, FunctionDescr, MsixDescr, VirtualBus, VirtualFunction},
};

/// Bytes of the SIOV capability (Scalable IOV specification, 3.2.1), and its place in the guest's.
const SIOV_BYTES: u16 = 0x18;

/// A function in a guest's hands.
pub struct Assigned {
    /// Its name in the guest.
    pub id: DeviceId,
    machine: &'static Machine,
    function: Function,
    reset_method: ResetMethod,
    /// Its requests can have PASIDs.
    pasids: bool,
    state: State,
    wanted: Wanted,
    /// The guest has been told of as one that moves its BARs: once is enough.
    moves_told: bool,
    /// The device has been told of as one that does not finish its reset.
    reset_told: bool,
}

/// Whether a function can be touched.
enum State {
    /// It answers.
    Ready,
    /// Its guest has reset it, and it must be left alone.
    Resetting(Resetting<'static>),
    /// It has not come back from its reset.
    Lost,
}

/// What a guest has set in its function's configuration space, and the function gets when it can be touched.
#[derive(Clone, Copy, Default)]
struct Wanted {
    bus_master: bool,
    msix_enable: bool,
    msix_mask: bool,
}

/// A function that is ready to be given away, with all that the guest will see of it.
pub struct Prepared {
    /// What the service is told.
    pub spec: DeviceSpec,
    /// The function.
    pub assigned: Assigned,
}

/// Takes the memory that assigning functions needs for good: tables that map their registers, and the unit's tables for their buses. What
/// guests take after that comes back from each of them.
pub fn make_room(machine: &Machine, ports: &MachinePorts) {
    for function in machine.functions().iter().filter(|function| can_be_given(function)) {
        let mapped = map_bars(function);
        let room = mapped.and_then(|()| ports.prepare(function.bdf).map_err(|_| Refusal::OutOfMemory));
        // The guest that asks for it hears of it again.
        room.unwrap_or_else(|why| log::warn!("{}: {why}", function.bdf));
    }
}

/// Whether a guest could get the function, by what the function has.
fn can_be_given(function: &Function) -> bool {
    dsa::is_one(function) || function.msix.is_some() && function.resets()
}

/// How many slots a function has in its stores, if a guest can get it; those of a store that the hypervisor does not know do not count.
pub fn slots(machine: &Machine, function: &Function) -> u32 {
    if !can_be_given(function) {
        return 0;
    }
    let store = dsa::is_one(function).then(|| look(machine, function, dsa::message_store).flatten()).flatten();
    store.map_or(0, |store| store.slots) + function.msix.map_or(0, |msix| msix.entries.into())
}

/// What a guest's function is put into.
pub struct Room<'a> {
    /// Its PCI bus.
    pub bus: &'a mut VirtualBus,
    /// Its address space for BARs.
    pub bars: &'a mut BarAllocator,
    /// Its page tables.
    pub ept: &'a mut Ept,
    /// What it finds outside of its memory.
    pub mmio_regions: &'a mut MmioRegions,
    /// Frames that are its own: those of shadows are added, those of a preparation that fails too.
    pub frames: &'a mut Vec<(Hpa, u64)>,
}

impl Room<'_> {
    /// Maps a range into the guest.
    pub fn map(&mut self, gpa: Gpa, hpa: Hpa, len: u64, page_type: ept::PageType) -> Result<(), Refusal> {
        self.ept.map(&FRAMES, gpa, hpa, len, page_type).map_err(|_| Refusal::OutOfMemory)
    }
}

/// Gets a function ready: resets it, puts it on the guest's bus, and maps it into the guest. If the guest owns `pasids`, the function may
/// work with PASIDs.
pub fn prepare(
    machine: &'static Machine,
    ports: &MachinePorts,
    function: &Function,
    pasids: Option<(Pasid, Pasid)>,
    room: &mut Room,
) -> Result<Prepared, Refusal> {
    map_bars(function)?;
    let reset_method = ResetMethod::of(function)?;
    if !reset_method.prepare(machine, function) {
        return Err(Refusal::Hardware);
    }
    let store = reset_method.registers().and_then(dsa::message_store);
    if store.is_none() && function.msix.is_none() {
        return Err(Refusal::NoMessages);
    }
    if pasids.is_some() {
        let capability = function.pasid.ok_or(Refusal::NoPasid)?;
        pci::function::set_pasid_enable(machine.config(), function.bdf, capability, true);
    }
    let descr = describe(machine, function, room.bars)?;
    let place = VirtualFunction::new(&descr).map_err(|_| Refusal::Table)?;
    let id = DeviceId(room.bus.add(place).map_err(|_| Refusal::OutOfMemory)?.requester_id());
    let mut layout = Layout { function, descr: &descr, id, room, shared: Vec::new() };
    layout.map_bars()?;
    let neighbours = reset_method.registers().map(|registers| {
        let own: Vec<_> = layout.msix_in_bar(dsa::REGISTERS_BAR).collect();
        dsa::tables_in_bar(registers, descr.msix.map_or(0, |msix| msix.size), &own)
    });
    let ims = store.map(|store| layout.map_message_store(store, neighbours.as_ref(), ports)).transpose()?;
    let msix = match descr.msix {
        Some(msix) => Some(layout.map_store(StoreName::Msix, msix.table, msix.size.into(), neighbours.as_ref())?),
        None => None,
    };
    layout.map_pending_bits()?;
    if reset_method.registers().is_some() {
        layout.map_commands()?;
    }
    layout.serve_the_rest();
    let spec = DeviceSpec { id, requester: function.bdf, msix, ims, pasids, shares_requester: false };
    Ok(Prepared {
        spec,
        assigned: Assigned {
            id,
            machine,
            function: function.clone(),
            reset_method,
            pasids: pasids.is_some(),
            state: State::Ready,
            wanted: Wanted::default(),
            moves_told: false,
            reset_told: false,
        },
    })
}

/// Has requests of a function lead to a guest's memory, at the guest's own addresses.
pub fn attach(ports: &MachinePorts, guest: GuestId, requests: Requests, ram: &Ram) -> Result<(), Refusal> {
    ports.attach(guest, requests, ram).ok_or(Refusal::NoRemapping)?.map_err(Refusal::from)
}

/// What the guest sees in configuration space.
fn describe(machine: &Machine, function: &Function, bars: &mut BarAllocator) -> Result<FunctionDescr, Refusal> {
    let mut descr = FunctionDescr {
        vendor: function.vendor,
        device: function.device,
        revision: function.revision,
        class: function.class,
        subsystem_vendor: function.subsystem.0,
        subsystem: function.subsystem.1,
        ..FunctionDescr::default()
    };
    for (index, bar) in function.bars.iter().enumerate() {
        if let Some(Bar::Memory { prefetchable, wide, .. }) = *bar {
            let (_, size) = memory_bar(function, index)?;
            let gpa = bars.place(size, wide).ok_or(Refusal::OutOfMemory)?;
            descr.bars[index] = Some(BarDescr { size, gpa, is_64bit: wide, prefetchable });
        }
    }
    descr.msix = function.msix.map(|msix| MsixDescr {
        size: msix.entries,
        table: (msix.table.bar, msix.table.offset),
        pba: (msix.pba.bar, msix.pba.offset),
    });
    if let Some(siov) = function.siov {
        let words = (0..SIOV_BYTES / 4).map(|n| machine.config().read(function.bdf, siov.capability + 4 * n));
        descr.dvsec = words.flat_map(u32::to_le_bytes).collect();
    }
    Ok(descr)
}

/// The function's BARs as they are laid out in the guest.
struct Layout<'a, 'r> {
    function: &'a Function,
    descr: &'a FunctionDescr,
    id: DeviceId,
    room: &'a mut Room<'r>,
    /// Pages that hold something beside what their windows show: where they begin in the guest and on the machine, and their bytes.
    shared: Vec<(Gpa, Hpa, u64)>,
}

impl Layout<'_, '_> {
    /// Everything straight through at first. What must not be comes after, page by page.
    fn map_bars(&mut self) -> Result<(), Refusal> {
        for index in 0..self.descr.bars.len() {
            if let Some(bar) = self.descr.bars[index] {
                let (base, size) = memory_bar(self.function, index)?;
                self.map(bar.gpa, base, size, ept::PageType::Device)?;
            }
        }
        Ok(())
    }

    /// A store: the guest reads its shadow and its writes are trapped, in whole pages. Where the pages may hold something else, reads are
    /// trapped as well, so that the guest finds that too. `neighbours` are the tables of a device all of whose tables are known.
    fn map_store(
        &mut self,
        name: StoreName,
        table: (u8, u32),
        slots: u32,
        neighbours: Option<&dsa::Tables>,
    ) -> Result<StoreSpec, Refusal> {
        let bytes = u64::from(slots) * 16;
        let (gpa, base) = self.locate(table, bytes)?;
        let len = (gpa.page_offset() + bytes).next_multiple_of(PAGE_SIZE);
        let shadow = FRAMES.alloc_zeroed(len / PAGE_SIZE, PAGE_SIZE).ok_or(Refusal::OutOfMemory)?;
        self.room.frames.push((shadow, len / PAGE_SIZE));
        if self.is_alone(table, bytes, neighbours) {
            self.map(gpa.page(), shadow, len, ept::PageType::Shadow)?;
        } else {
            self.map(gpa.page(), base.page(), len, ept::PageType::Trapped)?;
            self.shared.push((gpa.page(), base.page(), len));
        }
        let shadow = shadow.checked_add(gpa.page_offset()).ok_or(Refusal::Table)?;
        let kind = RegionKind::Store { device: self.id, name, shadow };
        // SAFETY: the shadow's frames were allocated just now, and go back only when the guest has ended: nobody looks at windows then.
        unsafe { self.room.mmio_regions.add(MmioRegion { start: gpa, len: bytes, kind }) };
        Ok(StoreSpec { base, shadow, slots, bar: table.0.into(), offset: table.1, backing: None, reach: Reach::Memory })
    }

    /// The interrupt message store of a DSA.
    fn map_message_store(
        &mut self,
        store: dsa::MessageStore,
        neighbours: Option<&dsa::Tables>,
        ports: &MachinePorts,
    ) -> Result<StoreSpec, Refusal> {
        let table = (dsa::REGISTERS_BAR, store.offset);
        let spec = self.map_store(StoreName::Ims, table, store.slots, neighbours)?;
        if !dsa::has_slow_store(self.function) {
            return Ok(spec);
        }
        Ok(StoreSpec { reach: Reach::Slow(self.hide_slow_store(ports)?), ..spec })
    }

    /// A store behind a command interface, which is the hypervisor's alone: its page reads as zeros in the guest, and takes nothing.
    fn hide_slow_store(&mut self, ports: &MachinePorts) -> Result<u16, Refusal> {
        let (gpa, base) = self.locate((dsa::REGISTERS_BAR, dsa::SLOW_STORE), PAGE_SIZE)?;
        let zeros = FRAMES.alloc_zeroed(1, PAGE_SIZE).ok_or(Refusal::OutOfMemory)?;
        self.room.frames.push((zeros, 1));
        self.map(gpa, zeros, PAGE_SIZE, ept::PageType::Shadow)?;
        // SAFETY: `map_bars` has mapped the BAR, uncached, for good, and `locate` has found the page in it.
        let registers = unsafe { Mmio::new(base, PAGE_SIZE as usize) }.ok_or(Refusal::Table)?;
        ports.slow_store(self.function.bdf, registers).ok_or(Refusal::Table)
    }

    /// Whether nothing else of the device's is in the pages of a store: the store fills them, or the device's other tables, which are
    /// known, are elsewhere.
    fn is_alone(&self, (bar, offset): (u8, u32), bytes: u64, neighbours: Option<&dsa::Tables>) -> bool {
        let store = u64::from(offset)..u64::from(offset) + bytes;
        let known = neighbours.filter(|_| bar == dsa::REGISTERS_BAR);
        store_pages::fills_its_pages(&store)
            || known.is_some_and(|tables| {
                store_pages::is_alone_in_its_pages(&store, tables.iter().cloned().chain(self.msix_in_bar(bar)))
            })
    }

    /// The MSI-X table and its pending bits, if they are in this BAR.
    fn msix_in_bar(&self, bar: u8) -> impl Iterator<Item = Range<u64>> + use<> {
        let tables = self.descr.msix.map(|msix| {
            let entries = u64::from(msix.size);
            [(msix.table, entries * 16), (msix.pba, entries.div_ceil(64) * 8)]
        });
        let here = tables.into_iter().flatten().filter(move |((other, _), _)| *other == bar);
        here.map(|((_, offset), bytes)| u64::from(offset)..u64::from(offset) + bytes)
    }

    /// The pending bits can be read; writes to them are no guest's business, but those of what is beside them are.
    fn map_pending_bits(&mut self) -> Result<(), Refusal> {
        let Some(msix) = self.descr.msix else { return Ok(()) };
        let bytes = u64::from(msix.size).div_ceil(64) * 8;
        let (gpa, base) = self.locate_at(msix.pba, bytes, 8)?;
        let pages = (gpa.page_offset() + bytes).next_multiple_of(PAGE_SIZE);
        for at in (0..pages).step_by(PAGE_SIZE as usize) {
            let place = gpa.page().checked_add(at).zip(base.page().checked_add(at));
            let (page, base) = place.ok_or(Refusal::Table)?;
            // Reads of a page that a store shares are trapped already, or the store's alone.
            if !self.room.mmio_regions.has_store_at(page) {
                self.map(page, base, PAGE_SIZE, ept::PageType::DeviceReadOnly)?;
                self.shared.push((page, base, PAGE_SIZE));
            }
        }
        let kind = RegionKind::Registers(Registers { device: self.id, base, kind: RegisterKind::PendingBits });
        // SAFETY: `map_bars` has mapped the BAR, uncached, for good, and `locate_at` has found the bits in it.
        unsafe { self.room.mmio_regions.add(MmioRegion { start: gpa, len: bytes, kind }) };
        Ok(())
    }

    /// Whatever else is in trapped pages is read and written as if they were not.
    fn serve_the_rest(&mut self) {
        for &(start, base, len) in &self.shared {
            let kind = RegionKind::Registers(Registers { device: self.id, base, kind: RegisterKind::Plain });
            // SAFETY: `map_bars` has mapped the BAR, uncached, for good, and the pages were found in it. MmioRegions of what the guest must not
            // write were added before.
            unsafe { self.room.mmio_regions.add(MmioRegion { start, len, kind }) };
        }
    }

    /// The page of the command register can be read straight from the device. Writes are passed on, but seen: the guest may reset
    /// the device, and with it the store.
    fn map_commands(&mut self) -> Result<(), Refusal> {
        let (gpa, base) = self.locate((dsa::REGISTERS_BAR, 0), PAGE_SIZE)?;
        // What the guest may not even read stays trapped.
        if !self.room.mmio_regions.has_store_at(gpa) {
            self.map(gpa, base, PAGE_SIZE, ept::PageType::DeviceReadOnly)?;
        }
        let kind = RegionKind::Registers(Registers { device: self.id, base, kind: RegisterKind::Commands });
        // SAFETY: `map_bars` has mapped the BAR, uncached, for good, and `locate` has found the page in it.
        unsafe { self.room.mmio_regions.add(MmioRegion { start: gpa, len: PAGE_SIZE, kind }) };
        Ok(())
    }

    /// Where a table of slots is in the guest and on the machine.
    fn locate(&self, table: (u8, u32), bytes: u64) -> Result<(Gpa, Hpa), Refusal> {
        self.locate_at(table, bytes, 16)
    }

    /// The same for what is aligned to `alignment` bytes.
    fn locate_at(&self, (bar, offset): (u8, u32), bytes: u64, alignment: u32) -> Result<(Gpa, Hpa), Refusal> {
        let base = locate(self.function, TableLocation { bar, offset }, bytes)?;
        let descr = self.descr.bars.get(usize::from(bar)).copied().flatten();
        let gpa = descr.and_then(|descr| descr.gpa.checked_add(offset.into()));
        gpa.filter(|_| offset.is_multiple_of(alignment)).map(|gpa| (gpa, base)).ok_or(Refusal::Table)
    }

    fn map(&mut self, gpa: Gpa, hpa: Hpa, len: u64, page_type: ept::PageType) -> Result<(), Refusal> {
        self.room.map(gpa, hpa, len, page_type)
    }
}

impl Assigned {
    /// Its place on the machine.
    pub fn bdf(&self) -> Bdf {
        self.function.bdf
    }

    /// The guest has written to its configuration space. Returns whether the function has to be looked at from now on ([`Self::look`]).
    pub fn configure(&mut self, effect: Effect, service: &MachineService, domain: &Domain) -> bool {
        match effect {
            Effect::None => {}
            Effect::Command { bus_master, .. } => {
                self.wanted.bus_master = bus_master;
                self.apply_bus_master();
            }
            Effect::BarMoved(bar) if !self.moves_told => {
                self.moves_told = true;
                log::info!("{}: its guest tries to move BAR {bar}, which stays where it is", self.function.bdf);
            }
            Effect::BarMoved(_) => {}
            Effect::Msix { enable, function_mask } => {
                (self.wanted.msix_enable, self.wanted.msix_mask) = (enable, function_mask);
                self.apply_msix();
            }
            Effect::Reset => self.reset(service, domain),
        }
        matches!(self.state, State::Resetting(_))
    }

    fn apply_bus_master(&self) {
        let (config, bdf) = (self.machine.config(), self.function.bdf);
        match self.state {
            State::Ready if self.wanted.bus_master => pci::function::enable(config, bdf),
            State::Ready => pci::function::disable_bus_master(config, bdf),
            State::Resetting(_) | State::Lost => {}
        }
    }

    fn apply_msix(&self) {
        let Wanted { msix_enable, msix_mask, .. } = self.wanted;
        if matches!(self.state, State::Ready) {
            pci::function::set_msix(self.machine.config(), &self.function, msix_enable, msix_mask);
        }
    }

    /// The guest resets its function (PCIe 6.6.2). Its interrupts go first, while its tables can be written.
    fn reset(&mut self, service: &MachineService, domain: &Domain) {
        self.wanted = Wanted::default();
        // An error leaves an interrupt pending, which comes when the guest unmasks it: one too many.
        let _ = service.function_reset(domain, self.id);
        if !matches!(self.state, State::Ready) {
            return;
        }
        match self.reset_method.begin(self.machine, &self.function) {
            Begun::Over(true) => service.ports().mend_slow_store(self.function.bdf),
            Begun::Over(false) => self.tell_reset(),
            Begun::UnderWay(resetting) => self.state = State::Resetting(resetting),
        }
        self.apply_bus_master();
        self.apply_msix();
    }

    /// Looks how far a reset is that the guest asked for. Returns whether the reset is still under way.
    pub fn look(&mut self, service: &MachineService, domain: &Domain) -> bool {
        let State::Resetting(resetting) = &mut self.state else { return false };
        match resetting.look(self.machine.config(), &self.function) {
            Progress::UnderWay => return true,
            Progress::Done => {
                self.come_back();
                // The function has not seen what the guest has written into its table meanwhile. An error means that the device is not in the
                // domain any more.
                let _ = service.function_ready(domain, self.id);
            }
            Progress::Failed => {
                self.state = State::Lost;
                self.tell_reset();
            }
        }
        false
    }

    /// The function answers again, as after a reset: writes to it what its guest has set meanwhile.
    fn come_back(&mut self) {
        self.state = State::Ready;
        let config = self.machine.config();
        if let Some(capability) = self.function.pasid.filter(|_| self.pasids) {
            pci::function::set_pasid_enable(config, self.function.bdf, capability, true);
        }
        pci::function::enable_memory(config, self.function.bdf);
        self.apply_msix();
        self.apply_bus_master();
    }

    /// Says once that the device does not come back.
    fn tell_reset(&mut self) {
        if !core::mem::replace(&mut self.reset_told, true) {
            log::warn!("{}: does not finish its reset", self.function.bdf);
        }
    }

    /// Whether a DSA has ended its last command, or must not be asked: another processor of the guest has begun a reset of the function.
    pub fn is_idle(&self) -> bool {
        !matches!(self.state, State::Ready)
            || self.reset_method.registers().is_none_or(|registers| dsa::command_result(registers).is_some())
    }

    /// The guest has reset the device by its command register. `answered`: the device has ended the command in time. A reset of the function
    /// that has begun meanwhile does the rest when it ends.
    pub fn was_reset(&mut self, answered: bool, service: &MachineService, domain: &Domain) {
        if !matches!(self.state, State::Ready) {
            return;
        }
        if answered {
            service.ports().mend_slow_store(self.function.bdf);
        } else {
            self.tell_reset();
        }
        // The device has masked all slots of its store by itself; the service forgets what they held.
        let _ = service.device_reset(domain, self.id);
    }

    /// Stops what the device does: before its interrupts and its memory are taken away.
    pub fn quiesce(&mut self) {
        if !self.is_back() {
            log::error!("{}: does not answer to a reset", self.function.bdf);
            return;
        }
        self.reset_method.stop(self.machine, &self.function);
        if let Some(capability) = self.function.pasid {
            pci::function::set_pasid_enable(self.machine.config(), self.function.bdf, capability, false);
        }
        pci::function::set_msix(self.machine.config(), &self.function, false, true);
    }

    /// Waits for a reset that is under way, for 1.1 seconds at most. Returns whether the function can be touched.
    fn is_back(&mut self) -> bool {
        while let State::Resetting(resetting) = &mut self.state {
            match resetting.look(self.machine.config(), &self.function) {
                Progress::UnderWay => spin_loop(),
                Progress::Done => self.come_back(),
                Progress::Failed => self.state = State::Lost,
            }
        }
        matches!(self.state, State::Ready)
    }

    /// Takes its way to memory away. Returns whether that is sure.
    pub fn release(self, guest: GuestId, ports: &MachinePorts) -> bool {
        ports.detach(guest, self.function.bdf)
    }
}

/// A function in a guest's hands, by its name there.
pub fn by_id(functions: &mut [Assigned], id: DeviceId) -> Option<&mut Assigned> {
    functions.iter_mut().find(|assigned| assigned.id == id)
}
