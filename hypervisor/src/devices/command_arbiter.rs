//! Arbitration of a shared device's command register.
//!
//! The device has one command register. Functions' steps ([`Step`]) go through it one at a time, and the functions take turns. So a step
//! waits for at most one step of each other function. A step takes no longer than the work in its function's queue, which is bounded
//! ([`queue_limits`](crate::vdev::vdsa::queue_limits)): 16 descriptors of up to 64 MiB where eight queues share 128. No processor waits
//! here for longer than four times [`QUICK`]; a step that takes longer is polled later.
//!
//! The device may carry out a step after the time-out ([`STEP`]). Until it has, all steps fail at once, and the device gets none. The
//! function whose step it was treats the state of its queue as unknown ([`crate::vdev::vdsa`]).
#![forbid(unsafe_code)]

use core::time::Duration;

use crate::{
    clock::{Clock, Timeout, poll},
    devices::dsa::{self, Queue},
    memory::Registers,
    vdev::vdsa::{Effect, Step, VirtualDsa, spec::error::NO_ANSWER},
};

/// How long the processor that gives a command waits for the command's end. Most commands do not wait for descriptors and end in this time.
pub const QUICK: Duration = Duration::from_micros(50);
/// The time limit of a step: longer than the device needs for a full queue. After it the device counts as stuck.
pub const STEP: Duration = Duration::from_secs(10);
/// The most steps that one call of [`CommandArbiter::advance`] begins.
const STEPS: usize = 4;

/// A function that shares the device's command register.
pub trait CommandClient {
    /// The number of the function's work queue.
    fn queue(&self) -> u8;
    /// The function's registers.
    fn registers(&mut self) -> &mut VirtualDsa;
    /// The function's work queue in the device's registers.
    fn work_queue<'a, R: Registers>(&self, registers: &'a R) -> Queue<'a, R>;
}

/// The order of the functions, and the step that is under way.
#[derive(Default)]
pub struct CommandArbiter {
    /// The step's function, by its queue, and the rest of the step's time.
    under_way: Option<(u8, Timeout<'static>)>,
    /// The queue that comes next.
    next: u8,
    /// Whether the device has not finished a step in time.
    is_stuck: bool,
}

impl CommandArbiter {
    /// Forgets the step that is under way: the device has lost it.
    pub fn forget(&mut self) {
        (self.under_way, self.is_stuck) = (None, false);
    }

    /// Completes the step that is under way, and begins the next ones. Calls `done` with the effect of each completed step. Returns whether
    /// steps are left, for which the caller calls this again. The call waits for a step that it begins for at most the duration beside the
    /// clock.
    pub fn advance<F: CommandClient>(
        &mut self,
        registers: &impl Registers,
        clock: (&'static dyn Clock, Duration),
        functions: &mut [F],
        mut done: impl FnMut(&mut F, Effect),
    ) -> bool {
        for _ in 0..STEPS {
            if !self.finish(registers, functions, &mut done) {
                return true;
            }
            let Some((at, step)) = self.next_command(functions) else { return false };
            let Some(function) = functions.get_mut(at) else { return false };
            self.begin(function, step, registers, clock, &mut done);
        }
        self.under_way.is_some() || functions.iter_mut().any(|function| function.registers().is_busy())
    }

    /// Ends the step that is under way if the device has completed it. Returns whether none is under way any more.
    fn finish<F: CommandClient>(
        &mut self,
        registers: &impl Registers,
        functions: &mut [F],
        done: &mut impl FnMut(&mut F, Effect),
    ) -> bool {
        let Some((queue, timeout)) = &mut self.under_way else { return true };
        let result = match dsa::command_result(registers) {
            Some(result) => result,
            None if timeout.is_over() => {
                self.is_stuck = true;
                Err(NO_ANSWER)
            }
            None => return false,
        };
        // The function may have gone with its guest while the step was under way.
        if let Some(function) = functions.iter_mut().find(|function| function.queue() == *queue) {
            let effect = function.registers().step_done(result);
            done(function, effect);
        }
        self.under_way = None;
        true
    }

    /// The next function that has a step, and the step.
    fn next_command<F: CommandClient>(&mut self, functions: &mut [F]) -> Option<(usize, Step)> {
        let mut order: [Option<usize>; 32] = [None; 32];
        for (at, function) in functions.iter().enumerate() {
            let place = usize::from(function.queue().wrapping_sub(self.next)) % order.len();
            order[place] = Some(at);
        }
        order.into_iter().flatten().find_map(|at| {
            let function = functions.get_mut(at)?;
            let step = function.registers().next_step()?;
            self.next = (function.queue() + 1) % 32;
            Some((at, step))
        })
    }

    fn begin<F: CommandClient>(
        &mut self,
        function: &mut F,
        step: Step,
        registers: &impl Registers,
        (clock, quick): (&'static dyn Clock, Duration),
        done: &mut impl FnMut(&mut F, Effect),
    ) {
        // The device ignores a command that is written while another command is under way. The end of the other command would then be taken for
        // the end of this one. So a stuck device gets no command before its last command has ended.
        self.is_stuck &= dsa::command_result(registers).is_none();
        let known = match step {
            Step::RequestHandle(vector) => function.registers().known_handle(vector),
            _ => None,
        };
        let over = match known {
            Some(handle) => Some(Ok(handle)),
            None if self.is_stuck => Some(Err(NO_ANSWER)),
            None => function.work_queue(registers).begin(step),
        };
        if let Some(result) = over {
            let effect = function.registers().step_done(result);
            return done(function, effect);
        }
        self.under_way = Some((function.queue(), Timeout::new(clock, STEP)));
        // Most commands end at once, and the guest that wrote the command finds it done after its exit.
        let _ = poll(clock, quick, || dsa::command_result(registers).is_some());
    }
}

#[cfg(test)]
mod tests;
