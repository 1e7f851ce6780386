//! Virtual functions: the hypervisor keeps a DSA and gives its work queues to guests as functions (assignable device interfaces of Intel
//! Scalable IOV; Linux's `idxd-mdev` had the same idea).
//!
//! The hypervisor emulates the registers of a guest's function ([`VirtualDsa`]). The slots of its MSI-X table are a part of the device's
//! message store. The portals of its work queue are mapped straight through, so submitting costs no exit. A descriptor names its interrupt
//! by a handle, which the device uses unchanged. So that no function can name another one's interrupt, each work queue has a PASID of its
//! own, and its slots accept that PASID only.

use alloc::{sync::Arc, vec::Vec};
use core::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use hcall_abi::{DeviceId, Pasid};

use crate::{
    addr::{Bdf, Hpa, PAGE_SIZE},
    clock::{self, poll},
    cpu,
    devices::{
        allocation::{QueueAllocation, VirtualAllocation},
        arc_list::ArcList,
        assign_error::AssignError,
        bars,
        command_arbiter::{CommandArbiter, CommandClient, QUICK},
        dsa::{self, Queue},
        guest_bars::GuestSpace,
        parent_interrupt, virtual_bars,
    },
    guest::memory_map::BarAllocator,
    ims::{Backing, DeviceSpec, Domain, GuestId, OwnEntry, StoreLocation, StoreSpec},
    irq::{ports::MachineService, rate_limit::RateLimit},
    machine::discovery::Machine,
    memory::{FrameSource, Mmio, Registers},
    pci::{self, Function, TableLocation},
    sync::{Mutex, lock_or_try},
    vdev::{
        pci::{BarDescr, Effect, FunctionDescr, MsixDescr, VirtualFunction},
        vdsa::{self, Shape, VirtualDsa},
    },
};

/// The only vector that the hypervisor signals: command completions and errors.
const SIGNALLED: u16 = 0;

/// Ticks between two polls of commands that are under way. A guest can have commands under way all the time, and each poll ends another
/// one's slice.
const LOOKS: u64 = 1_000_000;
/// The time limit for stopping a guest's functions.
const STOP: Duration = Duration::from_secs(1);

/// A virtual function, by its guest and its name in the guest.
type Name = (GuestId, DeviceId);

/// A virtual function.
struct Virtual {
    name: Name,
    /// The guest's domain, once the guest is attached to the service.
    domain: Option<Arc<Domain>>,
    queue: u8,
    first_slot: u16,
    vectors: u16,
    pasid: Pasid,
    registers: VirtualDsa,
    bus_master: bool,
    msix_enabled: bool,
    function_masked: bool,
    /// Whether the log has said that its queue does not stop. A guest can cause that again and again.
    told: bool,
}

impl Virtual {
    /// Whether its configuration space allows interrupts.
    const fn sends(&self) -> bool {
        self.msix_enabled && !self.function_masked && self.bus_master
    }

    /// Signals the vector that the hypervisor raises.
    fn signal(&self, service: &MachineService) {
        if let Some(domain) = &self.domain {
            // A vector without a message that the guest may send waits for one; nobody is told, as for the write itself.
            let _ = service.signal(domain, self.name.1, SIGNALLED);
        }
    }
}

impl CommandClient for Virtual {
    fn queue(&self) -> u8 {
        self.queue
    }

    fn registers(&mut self) -> &mut VirtualDsa {
        &mut self.registers
    }

    fn work_queue<'a, R: Registers>(&self, registers: &'a R) -> Queue<'a, R> {
        Queue { registers, number: self.queue, pasid: self.pasid.value(), first_slot: self.first_slot }
    }
}

/// A parent function: a DSA that the hypervisor keeps, with its virtual functions.
pub struct Parent {
    machine: &'static Machine,
    function: Function,
    registers: Mmio,
    /// The interrupt by which the device reports errors. Without it, errors are found at the next write to a virtual function.
    interrupt: Option<OwnEntry>,
    /// The lock keeps the device's registers and this state consistent. Processors get it in turn. A processor holds it for a few times
    /// [`QUICK`] at most: a reset of the device is waited for without the lock, after [`ParentState::is_stopped`] was set.
    state: Mutex<ParentState>,
    /// Whether commands are under way.
    is_busy: AtomicBool,
    /// The TSC of the next poll of a device whose error interrupt is off for now; `u64::MAX` if it is on.
    next_look: AtomicU64,
}

/// The state of a parent function.
#[derive(Default)]
struct ParentState {
    /// Guests that have asked for a virtual function and have not left yet.
    guests: Vec<GuestId>,
    /// Whether the last guest is leaving or has left. The device is being stopped or has been, and is not used any more.
    is_stopped: bool,
    functions: Vec<Virtual>,
    arbiter: CommandArbiter,
    /// The rate limit of the device's error interrupt.
    rate_limit: RateLimit,
}

/// What is left to do after a guest has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeaveOutcome {
    /// Nothing, because other guests use the device.
    ToOthers,
    /// Nothing, because the device has been stopped.
    Stopped,
    /// The device has to be stopped.
    Running,
}

impl ParentState {
    /// Adds a guest that asks for a virtual function. Returns false if the device is being stopped.
    fn join(&mut self, guest: GuestId) -> bool {
        if !self.is_stopped && !self.guests.contains(&guest) {
            self.guests.push(guest);
        }
        !self.is_stopped
    }

    /// Notes that a guest is about to leave. Returns whether the caller has to stop the device now, because no other guest uses it.
    fn begin_stop(&mut self, guest: GuestId) -> bool {
        let stops = !self.is_stopped && self.guests == [guest];
        self.is_stopped |= stops;
        stops
    }

    /// Removes a guest.
    fn leave(&mut self, guest: GuestId) -> LeaveOutcome {
        self.guests.retain(|other| *other != guest);
        match (self.guests.is_empty(), self.is_stopped) {
            (false, _) => LeaveOutcome::ToOthers,
            (true, true) => LeaveOutcome::Stopped,
            (true, false) => {
                self.is_stopped = true;
                LeaveOutcome::Running
            }
        }
    }

    fn function(&mut self, name: Name) -> Option<&mut Virtual> {
        self.functions.iter_mut().find(|function| function.name == name)
    }
}

/// All parent functions. The list's lock comes before the lock of a function's [`ParentState`], and `taking` before both.
#[derive(Default)]
pub struct Parents {
    all: ArcList<Parent>,
    /// Held while a guest takes a parent function, for the time of the function's reset. Only processors that make guests wait for it.
    taking: Mutex<()>,
}

impl Parents {
    /// Takes a parent function for a guest. The hypervisor resets and keeps the function if it does not yet.
    pub fn take(
        &self,
        guest: GuestId,
        machine: &'static Machine,
        service: &MachineService,
        function: &Function,
    ) -> Result<Arc<Parent>, AssignError> {
        let _taking = self.taking.lock();
        // What a guest that leaves last had of it is still being taken away: that is waited for.
        while let Some(parent) = self.all.find(|parent| parent.function.bdf == function.bdf) {
            if parent.state.lock().join(guest) {
                return Ok(parent);
            }
            spin_loop();
        }
        let parent = Arc::new(Parent::new(machine, service, function)?);
        parent.state.lock().join(guest);
        self.all.add(Arc::clone(&parent));
        // An interrupt that came before it was in the list has led to nothing, and another one comes only after a look.
        parent.hand_out_events(service, &mut parent.state.lock().functions);
        Ok(parent)
    }

    /// Handles parents' interrupts: passes the devices' events to the virtual functions.
    pub fn event(&self, service: &MachineService) {
        self.all.for_each(|parent| {
            let mut state = parent.state.lock();
            if state.is_stopped {
                return;
            }
            // The lock is held no longer than for what is recorded now: more comes by another interrupt.
            if parent.hand_out_events(service, &mut state.functions) && state.rate_limit.event(cpu::tsc(), false) {
                dsa::log_errors(&parent.registers, false);
                parent.set_next_look(&state.rate_limit);
            }
        });
    }

    /// Advances the commands of guests that use an `own` parent, and polls devices whose error interrupt is off, when a poll is due. The
    /// scheduler calls this all the time, and at [`Self::due`]. So a guest's commands take the time of processors that run the guest, and
    /// of no others.
    pub fn poll(&self, service: &MachineService, own: impl Fn(&Arc<Parent>) -> bool) {
        // Whoever has them looks already, or is soon done.
        let Some(parents) = self.all.try_lock() else { return };
        for parent in parents.iter() {
            let is_busy = parent.is_busy.load(Ordering::Relaxed) && own(parent);
            let is_due = parent.is_look_due();
            if !is_due && !is_busy {
                continue;
            }
            // A guest that writes to its function's registers on several processors without pause keeps the lock asked for without pause: a try
            // would fail for good, and nobody would look at the errors.
            let Some(mut state) = lock_or_try(&parent.state, is_due) else { continue };
            if state.is_stopped {
                continue;
            }
            if is_busy {
                parent.advance(&mut state, Duration::ZERO, service);
            }
            if is_due {
                parent.look(&mut state, service);
            }
        }
    }

    /// When the next poll is due, seen from `now`, because guests wait for events that the devices do not report.
    pub fn due(&self, now: u64, own: impl Fn(&Arc<Parent>) -> bool) -> Option<u64> {
        // While the list is locked the answer is "soon".
        let soon = now.saturating_add(LOOKS);
        let Some(parents) = self.all.try_lock() else { return Some(soon) };
        let is_busy = |parent: &&Arc<Parent>| parent.is_busy.load(Ordering::Relaxed) && own(parent);
        let busy = parents.iter().find(is_busy).map(|_| soon);
        let looks = parents.iter().map(|parent| parent.next_look.load(Ordering::Relaxed)).filter(|&at| at != u64::MAX);
        looks.chain(busy).min()
    }

    /// Removes a leaving guest's functions, which [`Parent::quiesce`] has stopped. After the last guest the hypervisor does not keep the
    /// parent any longer.
    pub fn leave(&self, parent: &Arc<Parent>, guest: GuestId, service: &MachineService) {
        let left = {
            let state = &mut *parent.state.lock();
            for function in state.functions.extract_if(.., |function| function.name.0 == guest) {
                dsa::close_slots(&parent.registers, function.first_slot, function.vectors);
            }
            state.leave(guest)
        };
        match left {
            LeaveOutcome::ToOthers => return,
            LeaveOutcome::Stopped => {}
            LeaveOutcome::Running => parent.stop(),
        }
        if let Some(interrupt) = &parent.interrupt {
            service.give_back_own(interrupt);
        }
        self.all.remove(parent);
    }
}

/// The work queues and slots of a function that virtual functions can get.
pub fn capacity(machine: &Machine, function: &Function) -> Option<(u8, u32)> {
    function.pasid?;
    bars::look(machine, function, |registers| {
        Some((dsa::queues(registers)?.count, dsa::message_store(registers)?.slots))
    })?
}

impl Parent {
    /// Takes a function as parent, and configures its work queues.
    fn new(machine: &'static Machine, service: &MachineService, function: &Function) -> Result<Self, AssignError> {
        let registers = bars::registers(function)?;
        let pasid = function.pasid.ok_or(AssignError::NoPasid)?;
        if dsa::has_slow_store(function) {
            return Err(AssignError::NoStore);
        }
        pci::function::enable_memory(machine.config(), function.bdf);
        if !dsa::reset(&registers, clock::current()) {
            return Err(AssignError::Hardware);
        }
        pci::function::set_pasid_enable(machine.config(), function.bdf, pasid, true);
        pci::function::enable(machine.config(), function.bdf);
        let mut new = Self {
            machine,
            function: function.clone(),
            registers,
            interrupt: None,
            state: Mutex::default(),
            is_busy: AtomicBool::new(false),
            next_look: AtomicU64::new(u64::MAX),
        };
        if let Err(error) = dsa::share_out(&new.registers, clock::current()) {
            log::error!("{}: cannot be shared out: command error {error:#x}", function.bdf);
            // After a time-out the device may be enabled still.
            new.stop();
            return Err(AssignError::Hardware);
        }
        new.interrupt = parent_interrupt::listen(machine, service, function);
        if new.interrupt.is_some() {
            dsa::log_errors(&new.registers, true);
        }
        Ok(new)
    }

    /// The parent's address on the machine.
    pub fn bdf(&self) -> Bdf {
        self.function.bdf
    }

    /// Makes a virtual function and puts it into the guest. Returns its description for the service.
    pub fn add(
        &self,
        guest: GuestId,
        allocation: &VirtualAllocation,
        space: &mut GuestSpace<'_, impl FrameSource>,
    ) -> Result<DeviceSpec, AssignError> {
        let queues = dsa::queues(&self.registers).ok_or(AssignError::NoRoom)?;
        let store = dsa::message_store(&self.registers).ok_or(AssignError::NoStore)?;
        let (gencap, opcap) = dsa::capabilities(&self.registers);
        let VirtualAllocation { part: QueueAllocation { queue, first_slot }, vectors, .. } = *allocation;
        let registers = VirtualDsa::new(Shape { gencap, opcap, queue_size: queues.size, vectors });
        let pasid = pasid_of(queue).ok_or(AssignError::NoRoom)?;
        let descr = self.describe(vectors, space.bars)?;
        let place = VirtualFunction::new(&descr).map_err(|_| AssignError::Table)?;
        let id = DeviceId(space.bus.add(place).map_err(|_| AssignError::OutOfMemory)?.requester_id());
        let [Some(bar0), _, Some(bar2), ..] = descr.bars else { return Err(AssignError::Bar(0)) };
        let slots = u64::from(vectors) * 16;
        let offset = store.offset.checked_add(u32::from(first_slot) * 16).ok_or(AssignError::Table)?;
        let base = bars::locate(&self.function, TableLocation { bar: dsa::REGISTERS_BAR, offset }, slots)?;
        let portals = dsa::portals_of_queue(&self.function, queue).ok_or(AssignError::Table)?;
        let page = Hpa::new(registers.page().as_ptr() as u64);
        let shadow = virtual_bars::map(space, id, (bar0.gpa, bar2.gpa), (page, slots, portals))?;
        self.state.lock().functions.push(Virtual {
            name: (guest, id),
            domain: None,
            queue,
            first_slot,
            vectors,
            pasid,
            registers,
            bus_master: false,
            msix_enabled: false,
            function_masked: false,
            told: false,
        });
        let backing = Some(Backing { pasid, emulated: SIGNALLED + 1 });
        let msix = StoreSpec {
            base,
            shadow,
            slots: vectors.into(),
            bar: 0,
            offset: vdsa::TABLE,
            backing,
            location: StoreLocation::DeviceMemory,
        };
        let requester = self.function.bdf;
        Ok(DeviceSpec { id, requester, msix: Some(msix), ims: None, pasids: None, shares_requester: true })
    }

    /// Describes the function's configuration space in the guest.
    fn describe(&self, vectors: u16, bars: &mut BarAllocator) -> Result<FunctionDescr, AssignError> {
        let Function { vendor, device, revision, class, subsystem, .. } = self.function;
        let mut place = |size| {
            let gpa = bars.place(size, false).ok_or(AssignError::OutOfMemory)?;
            Ok::<_, AssignError>(Some(BarDescr { size, gpa, is_64bit: false, prefetchable: false }))
        };
        let bars = [place(vdsa::BAR0_SIZE)?, None, place(vdsa::BAR2_SIZE)?, None, None, None];
        let msix = Some(MsixDescr { size: vectors, table: (0, vdsa::TABLE), pba: (0, vdsa::PENDING_BITS) });
        let (subsystem_vendor, subsystem) = subsystem;
        let dvsec = Vec::new();
        Ok(FunctionDescr { vendor, device, revision, class, subsystem_vendor, subsystem, bars, msix, dvsec })
    }

    /// Lets a guest's functions be signalled, because the guest is attached to the service.
    pub fn admit(&self, guest: GuestId, domain: &Arc<Domain>) {
        for function in self.state.lock().functions.iter_mut().filter(|function| function.name.0 == guest) {
            function.domain = Some(Arc::clone(domain));
        }
    }

    /// Handles a guest's write outside of its function's MSI-X table. `None` if the function is not one of the parent's.
    pub fn write(&self, name: Name, offset: u64, bytes: u8, value: u64, service: &MachineService) -> Option<()> {
        let mut state = self.state.lock();
        let function = state.function(name)?;
        let effect = function.registers.write(offset, bytes, value);
        self.apply(function, effect, service);
        self.advance(&mut state, QUICK, service);
        if self.interrupt.is_none() {
            self.hand_out_events(service, &mut state.functions);
        }
        Some(())
    }

    /// Handles a guest's read outside of its function's MSI-X table. `None` if the function is not one of the parent's.
    pub fn read(&self, name: Name, offset: u64, bytes: u8, service: &MachineService) -> Option<u64> {
        let mut state = self.state.lock();
        let function = state.function(name)?;
        if bytes > 8 || !offset.is_multiple_of(u64::from(bytes.max(1))) {
            return Some(u64::MAX);
        }
        let quadword = function.quadword(offset & !7, service);
        Some(quadword >> (8 * (offset % 8)) & u64::MAX >> (64 - 8 * u32::from(bytes.max(1))))
    }

    /// Handles a guest's write to its function's configuration space. `None` if the function is not one of the parent's.
    pub fn configure(&self, name: Name, effect: Effect, service: &MachineService) -> Option<()> {
        let mut state = self.state.lock();
        let function = state.function(name)?;
        let sent = function.sends();
        match effect {
            Effect::Command { bus_master, .. } => {
                function.bus_master = bus_master;
                let effect = function.registers.set_bus_master(bus_master);
                self.apply(function, effect, service);
            }
            Effect::Msix { enable, function_mask } => {
                (function.msix_enabled, function.function_masked) = (enable, function_mask);
            }
            Effect::Reset => {
                (function.bus_master, function.msix_enabled, function.function_masked) = (false, false, false);
                let effect = function.registers.reset_function();
                if let Some(domain) = &function.domain {
                    // What cannot be dropped comes when the guest unmasks it: one interrupt too many.
                    let _ = service.function_reset(domain, name.1);
                }
                self.apply(function, effect, service);
                self.advance(&mut state, QUICK, service);
                return Some(());
            }
            // BARs stay where they are.
            Effect::None | Effect::BarMoved(_) => {}
        }
        if function.sends() != sent
            && let Some(domain) = &function.domain
        {
            let _ = service.mask_table(domain, name.1, sent);
        }
        self.advance(&mut state, QUICK, service);
        Some(())
    }

    /// Advances the functions' commands. Waits for a command that it begins for `quick` at most.
    fn advance(&self, state: &mut ParentState, quick: Duration, service: &MachineService) {
        // The device has been reset for the last guest that leaves.
        if state.is_stopped {
            return;
        }
        let ParentState { functions, arbiter, .. } = state;
        let done = |function: &mut Virtual, effect| self.apply(function, effect, service);
        let more = arbiter.advance(&self.registers, (clock::current(), quick), functions, done);
        self.is_busy.store(more, Ordering::Relaxed);
    }

    /// Carries out the effect of a change of a function's registers.
    fn apply(&self, function: &mut Virtual, effect: vdsa::Effect, service: &MachineService) {
        if effect.reset
            && let Some(domain) = &function.domain
        {
            // What cannot be dropped comes when the guest unmasks it: one interrupt too many.
            let _ = service.drop_pending(domain, function.name.1);
        }
        if effect.signal {
            function.signal(service);
        }
        // Its guest can bring that about again and again.
        if effect.is_stuck && !core::mem::replace(&mut function.told, true) {
            log::error!(
                "{}: the device does not carry out the stop of work queue {}",
                self.function.bdf,
                function.queue
            );
        }
    }

    /// Polls a device whose error interrupt is off, and switches the interrupt on again if no error was recorded.
    fn look(&self, state: &mut ParentState, service: &MachineService) {
        let (ParentState { functions, rate_limit, .. }, now) = (state, cpu::tsc());
        if rate_limit.is_due(now) && rate_limit.looked(now, self.hand_out_events(service, functions)) {
            dsa::log_errors(&self.registers, true);
            // One that was recorded before that raises nothing any more.
            self.hand_out_events(service, functions);
        }
        self.set_next_look(rate_limit);
    }

    fn set_next_look(&self, rate_limit: &RateLimit) {
        self.next_look.store(rate_limit.due().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether [`Self::look`] is due.
    fn is_look_due(&self) -> bool {
        let at = self.next_look.load(Ordering::Relaxed);
        at != u64::MAX && at <= cpu::tsc()
    }

    /// Passes the device's events to the functions: revoked handles to all of them, an error to the function whose work queue it concerns.
    /// Returns whether there were any.
    fn hand_out_events(&self, service: &MachineService, functions: &mut [Virtual]) -> bool {
        let revoked = dsa::take_causes(&self.registers);
        if revoked {
            for function in functions.iter_mut() {
                function.registers.revoke_handles();
                function.signal(service);
            }
        }
        let Some((queue, record)) = dsa::take_error(&self.registers) else { return revoked };
        let whose = functions.iter_mut().find(|function| Some(function.queue) == queue);
        if let Some(function) = whose
            && function.registers.record_error(record)
        {
            function.signal(service);
        }
        true
    }

    /// Stops a guest's functions, before their interrupts and the guest's memory are taken away.
    pub fn quiesce(&self, guest: GuestId, service: &MachineService) {
        let is_last = {
            let state = &mut *self.state.lock();
            let is_last = state.begin_stop(guest);
            if !is_last {
                for function in state.functions.iter_mut().filter(|function| function.name.0 == guest) {
                    let effect = function.registers.set_bus_master(false);
                    self.apply(function, effect, service);
                }
            }
            is_last
        };
        if is_last {
            return self.stop();
        }
        let is_busy = |function: &&Virtual| function.name.0 == guest && function.registers.is_busy();
        // Others' commands go on meanwhile, between two looks.
        let have_stopped = || {
            let mut state = self.state.lock();
            self.advance(&mut state, Duration::ZERO, service);
            !state.functions.iter().any(|function| is_busy(&function))
        };
        if !poll(clock::current(), STOP, have_stopped) {
            for function in self.state.lock().functions.iter().filter(is_busy) {
                log::error!(
                    "{}: work queue {} has not stopped {STOP:?} after its guest",
                    self.function.bdf,
                    function.queue
                );
            }
        }
    }

    /// Stops the whole device, without the lock, because that may take long.
    fn stop(&self) {
        self.next_look.store(u64::MAX, Ordering::Relaxed);
        if !dsa::reset(&self.registers, clock::current()) {
            log::error!("{}: does not answer to a reset", self.function.bdf);
        }
        pci::function::disable_bus_master(self.machine.config(), self.function.bdf);
        pci::function::set_msix(self.machine.config(), &self.function, false, true);
        if let Some(pasid) = self.function.pasid {
            pci::function::set_pasid_enable(self.machine.config(), self.function.bdf, pasid, false);
        }
    }
}

impl Virtual {
    /// The quadword at `at` outside of the MSI-X table, as the guest reads it.
    fn quadword(&self, at: u64, service: &MachineService) -> u64 {
        const PENDING_BITS: u64 = vdsa::PENDING_BITS as u64;
        match at {
            0..PAGE_SIZE => {
                let dword = |n: usize| u64::from(self.registers.page().get(n).copied().unwrap_or(0));
                let n = (at / 4) as usize;
                dword(n) | dword(n + 1) << 32
            }
            PENDING_BITS.. if at < PENDING_BITS + PAGE_SIZE => {
                let word = ((at - PENDING_BITS) / 8) as u32;
                // Words beyond the last slot are refused, and read as nothing pending.
                self.domain.as_ref().and_then(|domain| service.pending(domain, self.name.1, word).ok()).unwrap_or(0)
            }
            _ => 0,
        }
    }
}

/// The PASID for a work queue's work. PASID 0 stands for work without one.
fn pasid_of(queue: u8) -> Option<Pasid> {
    Pasid::new(u32::from(queue) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: GuestId = GuestId(1);
    const OTHER: GuestId = GuestId(2);

    #[test]
    fn nobody_joins_a_device_that_is_being_stopped() {
        let mut state = ParentState::default();
        assert!(state.join(ONE) && state.join(ONE) && state.begin_stop(ONE));
        assert!(!state.join(OTHER) && state.guests == [ONE]);
        assert_eq!(state.leave(ONE), LeaveOutcome::Stopped);
        assert!(!state.join(OTHER), "until it is kept no longer");
    }

    #[test]
    fn a_device_is_stopped_once_by_the_last_guest_also_where_two_leave_at_once() {
        let mut state = ParentState::default();
        assert!(state.join(ONE) && state.join(OTHER));
        assert!(!state.begin_stop(ONE) && !state.begin_stop(OTHER), "the other one has it still");
        assert_eq!(state.leave(ONE), LeaveOutcome::ToOthers);
        assert_eq!((state.leave(OTHER), state.is_stopped), (LeaveOutcome::Running, true));
        let mut state = ParentState::default();
        assert!(state.join(ONE) && state.join(OTHER) && !state.begin_stop(ONE));
        assert_eq!(state.leave(ONE), LeaveOutcome::ToOthers);
        assert!(state.begin_stop(OTHER) && !state.begin_stop(OTHER));
        assert_eq!(state.leave(OTHER), LeaveOutcome::Stopped);
    }
}
