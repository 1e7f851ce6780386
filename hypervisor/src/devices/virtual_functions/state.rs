//! Who has what of a device that the hypervisor keeps, and who stops the device.

use alloc::vec::Vec;
use core::time::Duration;

use crate::{
    clock::{self, Timeout},
    devices::command_arbiter::CommandArbiter,
    ims::GuestId,
    irq::rate_limit::RateLimit,
};

use super::function::{Name, Virtual};

/// How far a device is on its way back from a halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecoveryStep {
    /// A command that was under way when it halted may still be: the device ignores others until that has ended.
    Wait,
    /// The device is being reset.
    Reset,
    /// It is configured, and is being enabled.
    Enable,
}

/// A device on its way back.
pub(super) struct Recovery {
    pub(super) step: RecoveryStep,
    pub(super) timeout: Timeout<'static>,
}

impl Recovery {
    pub(super) fn new(step: RecoveryStep, limit: Duration) -> Self {
        Self { step, timeout: Timeout::new(clock::current(), limit) }
    }
}

/// Who has what of a function.
#[derive(Default)]
pub(super) struct ParentState {
    /// Those that have asked for something, until they leave.
    pub(super) guests: Vec<GuestId>,
    /// The last of them is leaving: the device is being stopped, or has been. It is left alone from now on.
    pub(super) is_stopped: bool,
    pub(super) functions: Vec<Virtual>,
    pub(super) arbiter: CommandArbiter,
    /// The interrupts by which the device tells of errors.
    pub(super) rate_limit: RateLimit,
    /// The device has halted, and is being brought back. Guests' commands wait.
    pub(super) recovery: Option<Recovery>,
    /// How often it has halted.
    pub(super) halts: u32,
    /// The device has halted for good.
    pub(super) is_lost: bool,
}

/// What is left to do when a guest has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaveOutcome {
    /// Nothing: other guests have the device.
    ToOthers,
    /// The device has been stopped already.
    Stopped,
    /// The device has to be stopped.
    Running,
}

impl ParentState {
    /// A guest asks for something. Returns whether it can have it: not of a device that is being stopped.
    pub(super) fn join(&mut self, guest: GuestId) -> bool {
        if !self.is_stopped && !self.guests.contains(&guest) {
            self.guests.push(guest);
        }
        !self.is_stopped
    }

    /// A guest is about to leave. Returns whether the device has to be stopped now, because no other guest has it.
    pub(super) fn begin_stop(&mut self, guest: GuestId) -> bool {
        let stops = !self.is_stopped && self.guests == [guest];
        self.is_stopped |= stops;
        stops
    }

    /// A guest has left.
    pub(super) fn leave(&mut self, guest: GuestId) -> LeaveOutcome {
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

    pub(super) fn function(&mut self, name: Name) -> Option<&mut Virtual> {
        self.functions.iter_mut().find(|function| function.name == name)
    }
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
