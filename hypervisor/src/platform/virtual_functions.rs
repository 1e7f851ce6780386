//! Virtual functions: a DSA that the hypervisor keeps, and whose work queues are guests' functions (Intel Scalable IOV calls them
//! assignable device interfaces; Linux's `idxd-mdev` had the same idea).
//!
//! A guest's function has registers of the hypervisor's making ([`VirtualDsa`]), an MSI-X table whose slots are a part of the device's
//! message store, and the portals of its work queue straight through: submitting costs no exit. A descriptor names its interrupt by a
//! handle that the device takes as it is. So that no function can name another one's, each work queue has a PASID of its own, and its
//! slots are for that PASID alone.

use alloc::vec::Vec;

use hcall_abi::{DeviceId, Pasid};

use super::{
    assign::{self, Refusal, Room},
    dsa::{self, Queue},
    ledger::Part,
    machine::Machine,
    memory::FRAMES,
    own_interrupt,
    plan::Share,
    ports::MachineService,
    windows::{Kind, Window},
};
use crate::{
    addr::{Bdf, Gpa, Hpa, PAGE_SIZE},
    ept::Access,
    guest::memory_map::BarAllocator,
    ims::{Backing, DeviceSpec, Domain, OwnEntry, Reach, StoreName, StoreSpec},
    memory::{FrameSource, Mmio},
    pci::{self, Function},
    vdev::{
        pci::{BarDescr, Effect, FunctionDescr, MsixDescr, VirtualFunction},
        vdsa::{self, Shape, VirtualDsa},
    },
};

/// The only vector that the hypervisor signals: command completions and errors.
const SIGNALLED: u16 = 0;

/// A function of a guest.
struct Virtual {
    /// Its name in the guest.
    id: DeviceId,
    queue: u8,
    first_slot: u16,
    pasid: Pasid,
    registers: VirtualDsa,
    bus_master: bool,
    msix_enabled: bool,
    function_masked: bool,
}

impl Virtual {
    /// Whether its configuration space lets it send interrupts.
    const fn sends(&self) -> bool {
        self.msix_enabled && !self.function_masked && self.bus_master
    }
}

/// A DSA that the hypervisor keeps, with a guest's functions of it.
pub struct Parent {
    machine: &'static Machine,
    function: Function,
    registers: Mmio,
    functions: Vec<Virtual>,
    /// By which errors are told of; without it they are found when a guest's function is written to.
    interrupt: Option<OwnEntry>,
}

/// What can be shared out of a function: work queues, and slots of its store.
pub fn capacity(function: &Function) -> Option<(u8, u32)> {
    function.pasid?;
    let registers = assign::registers(function).ok()?;
    Some((dsa::queues(&registers)?.count, dsa::message_store(&registers)?.slots))
}

impl Parent {
    /// Takes a function for the hypervisor, and shares it out.
    pub fn new(machine: &'static Machine, service: &MachineService, function: &Function) -> Result<Self, Refusal> {
        let registers = assign::registers(function)?;
        let pasid = function.pasid.ok_or(Refusal::NoPasid)?;
        if dsa::has_slow_store(function) {
            return Err(Refusal::NoStore);
        }
        pci::function::enable(machine.config(), function.bdf);
        if !dsa::reset(&registers) {
            return Err(Refusal::Hardware);
        }
        pci::function::set_pasid_enable(machine.config(), function.bdf, pasid, true);
        dsa::share_out(&registers).map_err(|error| {
            log::error!("{}: cannot be shared out: command error {error:#x}", function.bdf);
            Refusal::Hardware
        })?;
        let interrupt = own_interrupt::listen(machine, service, function);
        if interrupt.is_some() {
            dsa::tell_errors(&registers);
        }
        Ok(Self { machine, function: function.clone(), registers, functions: Vec::new(), interrupt })
    }

    /// Its place on the machine.
    pub fn bdf(&self) -> Bdf {
        self.function.bdf
    }

    /// Whether a guest's function of this name is one of its.
    pub fn has(&self, id: DeviceId) -> bool {
        self.functions.iter().any(|function| function.id == id)
    }

    /// Makes a function and puts it into the guest. What the service is to be told.
    pub fn add(&mut self, share: &Share, room: &mut Room) -> Result<DeviceSpec, Refusal> {
        let queues = dsa::queues(&self.registers).ok_or(Refusal::NoRoom)?;
        let store = dsa::message_store(&self.registers).ok_or(Refusal::NoStore)?;
        let (gencap, opcap) = dsa::capabilities(&self.registers);
        let Share { part: Part { queue, first_slot }, vectors, .. } = *share;
        let registers = VirtualDsa::new(Shape { gencap, opcap, queue_size: queues.size, vectors });
        let pasid = pasid_of(queue).ok_or(Refusal::NoRoom)?;
        let descr = self.describe(vectors, room.bars)?;
        let place = VirtualFunction::new(&descr).map_err(|_| Refusal::Table)?;
        let id = DeviceId(room.bus.add(place).map_err(|_| Refusal::OutOfMemory)?.0);
        let [Some(bar0), _, Some(bar2), ..] = descr.bars else { return Err(Refusal::Bar(0)) };
        let slots = u64::from(vectors) * 16;
        let offset = u64::from(store.offset) + u64::from(first_slot) * 16;
        let base = self.locate(dsa::REGISTERS_BAR.into(), offset, slots)?;
        let shadow = map_table(room, id, bar0.gpa, slots)?;
        map_registers(room, id, bar0.gpa, &registers)?;
        self.map_portals(room, bar2.gpa, queue)?;
        let (bus_master, msix_enabled, function_masked) = (false, false, false);
        self.functions.push(Virtual {
            id,
            queue,
            first_slot,
            pasid,
            registers,
            bus_master,
            msix_enabled,
            function_masked,
        });
        let backing = Some(Backing { pasid, emulated: SIGNALLED + 1 });
        let msix = StoreSpec {
            base,
            shadow,
            slots: vectors.into(),
            bar: 0,
            offset: vdsa::TABLE,
            backing,
            reach: Reach::Memory,
        };
        let requester = self.function.bdf;
        Ok(DeviceSpec { id, requester, msix: Some(msix), ims: None, pasids: None, shares_requester: true })
    }

    /// What the guest sees in configuration space.
    fn describe(&self, vectors: u16, bars: &mut BarAllocator) -> Result<FunctionDescr, Refusal> {
        let Function { vendor, device, revision, class, subsystem, .. } = self.function;
        let mut place = |size| {
            let gpa = bars.place(size, false).ok_or(Refusal::OutOfMemory)?;
            Ok::<_, Refusal>(Some(BarDescr { size, gpa, is_64bit: false, prefetchable: false }))
        };
        let bars = [place(vdsa::BAR0_SIZE)?, None, place(vdsa::BAR2_SIZE)?, None, None, None];
        let msix = Some(MsixDescr { size: vectors, table: (0, vdsa::TABLE), pba: (0, vdsa::PENDING_BITS) });
        let (subsystem_vendor, subsystem) = subsystem;
        let dvsec = Vec::new();
        Ok(FunctionDescr { vendor, device, revision, class, subsystem_vendor, subsystem, bars, msix, dvsec })
    }

    /// The guest's portals for MSI-X are the device's for the message store.
    fn map_portals(&self, room: &mut Room, gpa: Gpa, queue: u8) -> Result<(), Refusal> {
        let first = u64::from(queue) * dsa::PORTALS_OF_QUEUE + dsa::STORE_PORTAL;
        let len = 2 * PAGE_SIZE;
        let portals = self.locate(dsa::PORTALS_BAR, first * PAGE_SIZE, len)?;
        room.map(gpa, portals, len, Access::Device)
    }

    fn locate(&self, bar: usize, offset: u64, bytes: u64) -> Result<Hpa, Refusal> {
        let (base, size) = assign::memory_bar(&self.function, bar)?;
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= size);
        base.checked_add(offset).filter(|_| inside).ok_or(Refusal::Table)
    }

    /// A guest has written outside of its function's MSI-X table.
    pub fn write(
        &mut self,
        id: DeviceId,
        offset: u64,
        bytes: u8,
        value: u64,
        (service, domain): (&MachineService, &Domain),
    ) {
        let Some((function, mut queue)) = self.function(id) else { return };
        let effect = function.registers.write(offset, bytes, value, &mut queue);
        if effect.reset {
            // What cannot be dropped comes when the guest unmasks it: one interrupt too many.
            let _ = service.drop_pending(domain, id);
        }
        self.hand_out_events((service, domain));
        if effect.signal {
            signal(service, domain, id);
        }
    }

    /// What a guest reads outside of its function's MSI-X table.
    pub fn read(&self, id: DeviceId, offset: u64, bytes: u8, (service, domain): (&MachineService, &Domain)) -> u64 {
        let Some(function) = self.functions.iter().find(|function| function.id == id) else { return u64::MAX };
        if bytes > 8 || !offset.is_multiple_of(u64::from(bytes.max(1))) {
            return u64::MAX;
        }
        let quadword = |at: u64| match at {
            0..PAGE_SIZE => {
                let dword = |n: usize| u64::from(function.registers.page().get(n).copied().unwrap_or(0));
                let n = (at / 4) as usize;
                dword(n) | dword(n + 1) << 32
            }
            // Words beyond the last slot are refused, and read as nothing pending.
            _ if at < u64::from(vdsa::PENDING_BITS) + PAGE_SIZE => {
                let word = (at - u64::from(vdsa::PENDING_BITS)) / 8;
                service.pending(domain, id, word as u32).unwrap_or(0)
            }
            _ => 0,
        };
        quadword(offset & !7) >> (8 * (offset % 8)) & u64::MAX >> (64 - 8 * u32::from(bytes.max(1)))
    }

    /// A guest has written to its function's configuration space.
    pub fn configure(&mut self, id: DeviceId, effect: Effect, (service, domain): (&MachineService, &Domain)) {
        let bdf = self.function.bdf;
        let Some((function, mut queue)) = self.function(id) else { return };
        let sent = function.sends();
        match effect {
            Effect::Command { bus_master, .. } => {
                function.bus_master = bus_master;
                if !function.registers.set_bus_master(bus_master, &mut queue) {
                    log::error!("{bdf}: a work queue that has to stop does not");
                }
            }
            Effect::Msix { enable, function_mask } => {
                (function.msix_enabled, function.function_masked) = (enable, function_mask);
            }
            // BARs stay where they are.
            Effect::None | Effect::BarMoved(_) => return,
        }
        if function.sends() != sent {
            let _ = service.mask_table(domain, id, sent);
        }
    }

    /// Tells the functions what the device has to say: revoked handles to all of them, an error to the one whose work queue's it is.
    pub fn hand_out_events(&mut self, (service, domain): (&MachineService, &Domain)) {
        if dsa::take_causes(&self.registers) {
            for function in &mut self.functions {
                function.registers.revoke_handles();
                signal(service, domain, function.id);
            }
        }
        let Some((Some(queue), record)) = dsa::take_error(&self.registers) else { return };
        let whose = self.functions.iter_mut().find(|function| function.queue == queue);
        if let Some(function) = whose
            && function.registers.record_error(record)
        {
            signal(service, domain, function.id);
        }
    }

    fn function(&mut self, id: DeviceId) -> Option<(&mut Virtual, Queue<'_, Mmio>)> {
        let Self { registers, functions, .. } = self;
        let function = functions.iter_mut().find(|function| function.id == id)?;
        let (number, pasid, first_slot) = (function.queue, function.pasid.value(), function.first_slot);
        Some((function, Queue { registers, number, pasid, first_slot }))
    }

    /// Stops what the device does: before its interrupts and its memory are taken away.
    pub fn quiesce(&self) {
        if !dsa::reset(&self.registers) {
            log::error!("{}: does not answer to a reset", self.function.bdf);
        }
        pci::function::disable_bus_master(self.machine.config(), self.function.bdf);
        assign::set_msix(self.machine.config(), &self.function, false, true);
        if let Some(pasid) = self.function.pasid {
            pci::function::set_pasid_enable(self.machine.config(), self.function.bdf, pasid, false);
        }
    }

    /// Takes its way to memory away. Returns whether that is sure.
    pub fn release(self, service: &MachineService) -> bool {
        if let Some(interrupt) = self.interrupt {
            service.give_back_own(interrupt);
        }
        service.ports().detach(self.function.bdf)
    }
}

/// The PASID of a work queue's work: 0 is that of work without one.
fn pasid_of(queue: u8) -> Option<Pasid> {
    Pasid::new(u32::from(queue) + 1)
}

fn signal(service: &MachineService, domain: &Domain, id: DeviceId) {
    // A vector without a message that the guest may send waits for one; nobody is told, as for the write itself.
    let _ = service.signal(domain, id, SIGNALLED);
}

/// The MSI-X table: the guest reads its shadow and its writes are trapped. Where the shadow is.
fn map_table(room: &mut Room, id: DeviceId, bar0: Gpa, bytes: u64) -> Result<Hpa, Refusal> {
    let start = bar0.checked_add(vdsa::TABLE.into()).ok_or(Refusal::Table)?;
    let len = bytes.next_multiple_of(PAGE_SIZE);
    let shadow = FRAMES.alloc_zeroed(len / PAGE_SIZE, PAGE_SIZE).ok_or(Refusal::OutOfMemory)?;
    room.frames.push((shadow, len / PAGE_SIZE));
    room.map(start, shadow, len, Access::Shadow)?;
    let kind = Kind::Store { device: id, name: StoreName::Msix, shadow };
    // SAFETY: the shadow's frames were allocated just now, and go back only when the guest has ended: nobody looks at windows then.
    unsafe { room.windows.add(Window { start, len: bytes, kind }) };
    Ok(shadow)
}

/// The registers: the guest reads them without an exit. Everything else in the BAR is not mapped.
fn map_registers(room: &mut Room, id: DeviceId, bar0: Gpa, registers: &VirtualDsa) -> Result<(), Refusal> {
    let start = bar0.checked_add(vdsa::REGISTERS.into()).ok_or(Refusal::Table)?;
    let page = Hpa::new(registers.page().as_ptr() as u64);
    room.map(start, page, PAGE_SIZE, Access::Shadow)?;
    let window = Window { start: bar0, len: vdsa::BAR0_SIZE, kind: Kind::Virtual { device: id } };
    // SAFETY: the function's model answers for this kind; the window of the table, which lies in it, came before and counts first.
    unsafe { room.windows.add(window) };
    Ok(())
}
