//! A device that halts: its guests are told, and it is reset and shared out again while they run.
//!
//! A DSA halts after an error of its own hardware. It has lost the work that waited, and takes nothing but a reset, which GENSTS names: the
//! command to reset, or a reset of the function or of more. The hypervisor gives the command; what else a device may need is told of, and comes
//! when the last of its guests has left.

use core::sync::atomic::Ordering;

use crate::{devices::dsa, event, irq::ports::MachineService, vdev::vdsa::spec::error::NO_ANSWER};

use super::{
    Parent,
    state::{ParentState, Recovery, RecoveryStep as Step},
};

/// Halts after which a device is given up: each is told of, and costs its guests and others time.
const MOST_HALTS: u32 = 8;

impl Parent {
    /// Looks whether the device has halted, and begins to bring it back. Returns whether it has, so that it has nothing else to say.
    pub(super) fn notice_halt(&self, state: &mut ParentState, service: &MachineService) -> bool {
        if state.recovery.is_some() || state.is_lost {
            return true;
        }
        let Some(reset) = dsa::halted(&self.registers) else { return false };
        // A cause that is not cleared raises no further interrupt.
        let _ = dsa::take_causes(&self.registers);
        event!("device-halted sid={} reset={reset} functions={}", self.function.bdf, state.functions.len());
        state.arbiter.forget();
        for function in state.functions.iter_mut() {
            let effect = function.registers.halt();
            self.apply(function, effect, service);
        }
        if reset != 0 {
            state.is_lost = true;
            log::error!(
                "{}: the device has halted, and the command to reset does not end that: its functions do not work until all its guests have left",
                self.function.bdf
            );
            return true;
        }
        state.halts = state.halts.saturating_add(1);
        if state.halts > MOST_HALTS {
            state.is_lost = true;
            log::error!("{}: has halted {MOST_HALTS} times and is not brought back any more", self.function.bdf);
            return true;
        }
        state.recovery = Some(Recovery::new(Step::Wait, dsa::COMMAND));
        self.is_busy.store(true, Ordering::Relaxed);
        true
    }

    /// Goes on to bring the device back. What the device was told of guests' vectors it is told again.
    pub(super) fn recover(&self, state: &mut ParentState, service: &MachineService) {
        let Some(Recovery { step, timeout }) = &mut state.recovery else { return };
        let result = match dsa::command_result(&self.registers) {
            None if !timeout.is_over() => return,
            // There is no other means than the reset.
            _ if *step == Step::Wait => Ok(()),
            None => Err(NO_ANSWER),
            Some(result) => result.map(drop),
        };
        let next = match (result, *step) {
            (Ok(()), Step::Wait) => {
                dsa::begin_reset(&self.registers);
                Ok(Some((Step::Reset, dsa::RESET)))
            }
            (Ok(()), Step::Reset) => {
                dsa::begin_sharing_out(&self.registers).map(|()| Some((Step::Enable, dsa::COMMAND)))
            }
            (result, Step::Enable) => result.map(|()| None),
            (Err(error), Step::Wait | Step::Reset) => Err(error),
        };
        state.recovery = None;
        match next {
            Ok(Some((step, limit))) => state.recovery = Some(Recovery::new(step, limit)),
            Ok(None) => self.is_back(state, service),
            Err(error) => {
                state.is_lost = true;
                log::error!("{}: does not come back after a halt: error {error:#x}", self.function.bdf);
            }
        }
    }

    fn is_back(&self, state: &mut ParentState, service: &MachineService) {
        if self.interrupt.is_some() {
            dsa::log_errors(&self.registers, state.rate_limit.due().is_none());
        }
        for function in &state.functions {
            if let Some(domain) = &function.domain {
                // The function is the guest's, so the service knows it.
                let _ = service.function_ready(domain, function.name.1);
            }
        }
        event!("device-recovered sid={}", self.function.bdf);
        // What it has said meanwhile raises no further interrupt.
        if !self.notice_halt(state, service) {
            self.hand_out_events(service, &mut state.functions, &mut |_, _| ());
        }
    }
}
