//! Virtual functions: the hypervisor keeps a DSA and gives its work queues to guests as functions (assignable device interfaces of Intel
//! Scalable IOV; Linux's `idxd-mdev` had the same idea).
//!
//! The hypervisor emulates the registers of a guest's function ([`vdsa::VirtualDsa`]). The slots of its MSI-X table are a part of the device's
//! message store. The portals of its work queue are mapped straight through, so submitting costs no exit. A descriptor names its interrupt
//! by a handle, which the device uses unchanged. So that no function can name another one's interrupt, each work queue has a PASID of its
//! own, and its slots accept that PASID only.

mod access;
mod creation;
mod events;
mod function;
mod list;
mod recovery;
mod state;

use core::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use crate::{
    addr::Bdf,
    clock::{self, poll},
    devices::{assign_error::AssignError, bars, dsa, parent_interrupt, patience::PATIENT},
    ims::{GuestId, OwnEntry},
    irq::ports::MachineService,
    machine::discovery::Machine,
    memory::Mmio,
    pci::{self, Function},
    sync::Mutex,
    vdev::vdsa,
};

use self::{function::Virtual, state::ParentState};

pub use self::list::Parents;

/// What the functions of a guest that leaves get to stop.
const STOP: Duration = Duration::from_secs(1);

/// A DSA that the hypervisor keeps, with guests' functions of it.
pub struct Parent {
    machine: &'static Machine,
    function: Function,
    registers: Mmio,
    /// The interrupt by which the device reports errors. Without it, errors are found at the next write to a virtual function.
    interrupt: Option<OwnEntry>,
    /// The lock keeps what the device is told and what is known of it together. Processors that want it get it in turn. A processor holds it
    /// for a few times [`QUICK`](super::command_arbiter::QUICK) at most: a reset of the device is waited for without the lock, after [`ParentState::is_stopped`] was set.
    state: Mutex<ParentState>,
    /// Whether commands are under way.
    is_busy: AtomicBool,
    /// The TSC of the next poll of a device whose error interrupt is off for now; `u64::MAX` if it is on.
    next_look: AtomicU64,
}

/// What can be shared out of a function: work queues, and slots of its store.
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
        if !dsa::reset(&registers, PATIENT) {
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
        if let Err(error) = dsa::share_out(&new.registers, PATIENT) {
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

    /// Goes on with the functions' commands, and waits for one that is begun for `quick` at most.
    fn advance(&self, state: &mut ParentState, quick: Duration, service: &MachineService) {
        // The device has been reset for the last guest that leaves.
        if state.is_stopped {
            return;
        }
        if state.recovery.is_some() {
            self.recover(state, service);
        }
        if state.recovery.is_some() {
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

    /// Stops what a guest's functions do: before their interrupts and the guest's memory are taken away.
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
        if !poll(PATIENT, STOP, have_stopped) {
            for function in self.state.lock().functions.iter().filter(is_busy) {
                log::error!(
                    "{}: work queue {} has not stopped {STOP:?} after its guest",
                    self.function.bdf,
                    function.queue
                );
            }
        }
    }

    /// Stops the whole device, without the lock, because that may take long. Others run meanwhile.
    fn stop(&self) {
        self.next_look.store(u64::MAX, Ordering::Relaxed);
        if !dsa::reset(&self.registers, PATIENT) {
            log::error!("{}: does not answer to a reset", self.function.bdf);
        }
        pci::function::disable_bus_master(self.machine.config(), self.function.bdf);
        pci::function::set_msix(self.machine.config(), &self.function, false, true);
        if let Some(pasid) = self.function.pasid {
            pci::function::set_pasid_enable(self.machine.config(), self.function.bdf, pasid, false);
        }
    }
}
