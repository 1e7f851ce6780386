//! All devices that the hypervisor keeps: taking one for a guest, looking after them, and giving them up.

use alloc::sync::Arc;
use core::{sync::atomic::Ordering, time::Duration};

use crate::{
    cpu,
    devices::{arc_list::ArcList, assign_error::AssignError, dsa, patience},
    ims::GuestId,
    irq::ports::{MachineService, fault_log::Bill},
    machine::discovery::Machine,
    pci::Function,
    sync::{Mutex, lock_or_try},
};

use super::{Parent, state::LeaveOutcome};

/// Ticks between two looks at commands that are under way. A guest can have some without end, and each look ends the slice of another one.
const LOOKS: u64 = 1_000_000;
/// All functions that the hypervisor keeps. The list's lock comes before the lock of a function's [`ParentState`](super::state::ParentState), and `taking` before both.
#[derive(Default)]
pub struct Parents {
    all: ArcList<Parent>,
    /// A guest that is being made takes a function. That takes as long as the function's reset, while other guests run. Nobody waits for the
    /// lock without letting others run: who has it may wait for its turn on the same processor.
    taking: Mutex<()>,
}

impl Parents {
    /// The function, for a guest. The hypervisor takes it if it has not yet.
    pub fn take(
        &self,
        guest: GuestId,
        machine: &'static Machine,
        service: &MachineService,
        function: &Function,
    ) -> Result<Arc<Parent>, AssignError> {
        let _taking = loop {
            match self.taking.try_lock() {
                Some(taking) => break taking,
                None => patience::others(),
            }
        };
        // What a guest that leaves last had of it is still being taken away: that is waited for.
        while let Some(parent) = self.all.find(|parent| parent.function.bdf == function.bdf) {
            if parent.state.lock().join(guest) {
                return Ok(parent);
            }
            patience::others();
        }
        let parent = Arc::new(Parent::new(machine, service, function)?);
        parent.state.lock().join(guest);
        self.all.add(Arc::clone(&parent));
        // An interrupt that came before it was in the list has led to nothing, and another one comes only after a look.
        parent.hand_out_events(service, &mut parent.state.lock().functions, &mut |_, _| ());
        Ok(parent)
    }

    /// An interrupt has come: tells guests' functions what the devices have to say.
    pub fn event(&self, service: &MachineService, bill: &mut Bill<'_>) {
        self.all.for_each(|parent| {
            let mut state = parent.state.lock();
            if state.is_stopped || parent.notice_halt(&mut state, service) {
                return;
            }
            // The lock is held no longer than for what is recorded now: more comes by another interrupt.
            if parent.hand_out_events(service, &mut state.functions, bill) && state.rate_limit.event(cpu::tsc(), false)
            {
                dsa::log_errors(&parent.registers, false);
                parent.set_next_look(&state.rate_limit);
            }
        });
    }

    /// Goes on with the commands of guests that have a part of an `own` function, and looks at devices that do not tell of errors, when it is
    /// time. To be called again and again, and at [`Self::due`]. So what a guest's commands leave to do takes the time of processors that
    /// run the guest, and of no others.
    pub fn poll(&self, service: &MachineService, own: impl Fn(&Arc<Parent>) -> bool, bill: &mut Bill<'_>) {
        if self.all.is_empty() {
            return;
        }
        // The processor that has the list looks already, or is soon done.
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
                parent.look(&mut state, service, bill);
            }
        }
    }

    /// When to look again, if it is `now`: guests wait for what the devices do not tell by themselves.
    pub fn due(&self, now: u64, own: impl Fn(&Arc<Parent>) -> bool) -> Option<u64> {
        if self.all.is_empty() {
            return None;
        }
        // While the list is locked the answer is "soon".
        let soon = now.saturating_add(LOOKS);
        let Some(parents) = self.all.try_lock() else { return Some(soon) };
        let is_busy = |parent: &&Arc<Parent>| parent.is_busy.load(Ordering::Relaxed) && own(parent);
        let busy = parents.iter().find(is_busy).map(|_| soon);
        let looks = parents.iter().map(|parent| parent.next_look.load(Ordering::Relaxed)).filter(|&at| at != u64::MAX);
        looks.chain(busy).min()
    }

    /// A guest leaves: its functions, which [`Parent::quiesce`] has stopped, are no more. With the last guest the function is not kept any
    /// longer.
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
