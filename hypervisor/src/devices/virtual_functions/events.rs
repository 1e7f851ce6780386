//! What a device tells by itself: errors and revoked handles.

use core::sync::atomic::Ordering;

use crate::{
    cpu,
    devices::dsa,
    irq::{
        ports::{MachineService, fault_log::Bill},
        rate_limit::RateLimit,
    },
};

use super::{Parent, function::Virtual, state::ParentState};

impl Parent {
    /// Looks at a device that does not tell of errors for now, and lets it tell of them again if it has recorded none.
    /// `bill`: see [`Self::hand_out_events`].
    pub(super) fn look(&self, state: &mut ParentState, service: &MachineService, bill: &mut Bill<'_>) {
        // A halt is told of by itself; its interrupt may have come before the error's was off.
        if self.notice_halt(state, service) {
            return;
        }
        let (ParentState { functions, rate_limit, .. }, now) = (state, cpu::tsc());
        if rate_limit.is_due(now) && rate_limit.looked(now, self.hand_out_events(service, functions, bill)) {
            dsa::log_errors(&self.registers, true);
            // One that was recorded before that raises nothing any more.
            self.hand_out_events(service, functions, bill);
        }
        self.set_next_look(rate_limit);
    }

    pub(super) fn set_next_look(&self, rate_limit: &RateLimit) {
        self.next_look.store(rate_limit.due().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether it is time for [`Self::look`].
    pub(super) fn is_look_due(&self) -> bool {
        let at = self.next_look.load(Ordering::Relaxed);
        at != u64::MAX && at <= cpu::tsc()
    }

    /// Tells the functions what the device has to say: revoked handles to all of them, an error to the one whose work queue's it is.
    /// Returns whether it had recorded something. An error is on the `bill` of its guest, with the ticks that it took.
    pub(super) fn hand_out_events(
        &self,
        service: &MachineService,
        functions: &mut [Virtual],
        bill: &mut Bill<'_>,
    ) -> bool {
        let began = cpu::tsc();
        let revoked = dsa::take_causes(&self.registers);
        if revoked {
            for function in functions.iter_mut() {
                function.registers.revoke_handles();
                function.signal(service);
            }
        }
        let Some((queue, record)) = dsa::take_error(&self.registers) else { return revoked };
        let whose = functions.iter_mut().find(|function| Some(function.queue) == queue);
        if let Some(function) = whose {
            if function.registers.record_error(record) {
                function.signal(service);
            }
            bill(function.name.0, cpu::tsc().saturating_sub(began));
        }
        true
    }
}
