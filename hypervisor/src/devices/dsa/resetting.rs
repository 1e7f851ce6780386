//! The reset of a DSA by its command register, which nobody has to wait for.

use core::{hint::spin_loop, time::Duration};

use super::{COMMAND, RESET, begin_reset, is_active};
use crate::{
    clock::{Clock, Timeout},
    memory::Registers,
    pci::reset::Progress,
};

/// The step that a reset is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// An older command may be under way. The device ignores a command that is written meanwhile.
    Older,
    /// The reset was written although the older command has not ended: what ends next may be either of them.
    Forced,
    /// What ends next is the reset.
    Last,
}

/// A reset that no processor waits for. The caller polls it by [`Self::look`].
#[derive(Debug)]
pub struct Resetting<'c> {
    step: Step,
    clock: &'c dyn Clock,
    timeout: Timeout<'c>,
}

impl<'c> Resetting<'c> {
    /// A reset that is written when the device's last command has ended, or after [`COMMAND`] if it has not.
    pub fn begin(clock: &'c dyn Clock) -> Self {
        Self::at(Step::Older, COMMAND, clock)
    }

    /// A reset that somebody else has just written.
    pub fn written(clock: &'c dyn Clock) -> Self {
        Self::at(Step::Last, RESET, clock)
    }

    fn at(step: Step, limit: Duration, clock: &'c dyn Clock) -> Self {
        Self { step, clock, timeout: Timeout::new(clock, limit) }
    }

    /// Polls the reset, without waiting. The result is [`Progress::UnderWay`] for 1.2 seconds at most: 100 ms for an older command, one second
    /// for the reset, and 100 ms for the reset once more if the older command has ended late. The second reset finds the device at rest, or
    /// almost: it gets no more than a command.
    pub fn look(&mut self, registers: &impl Registers) -> Progress {
        let is_over = self.timeout.is_over();
        let is_idle = !is_active(registers);
        if !is_idle && !is_over {
            return Progress::UnderWay;
        }
        let (step, limit) = match self.step {
            Step::Older => (if is_idle { Step::Last } else { Step::Forced }, RESET),
            Step::Forced if is_idle => (Step::Last, COMMAND),
            Step::Last if is_idle => return Progress::Done,
            Step::Forced | Step::Last => return Progress::Failed,
        };
        begin_reset(registers);
        *self = Self::at(step, limit, self.clock);
        Progress::UnderWay
    }

    /// Polls the reset for `limit`, or until it is over.
    pub fn look_for(&mut self, registers: &impl Registers, limit: Duration) -> Progress {
        let mut timeout = Timeout::new(self.clock, limit);
        loop {
            let is_over = timeout.is_over();
            let progress = self.look(registers);
            if progress != Progress::UnderWay || is_over {
                return progress;
            }
            spin_loop();
        }
    }
}
