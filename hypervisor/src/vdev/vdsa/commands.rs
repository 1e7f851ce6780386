//! The command register of a virtual function.
//!
//! The parent has one command register for all its virtual functions, and a command takes as long as the descriptors that it waits for. So
//! nothing here waits: a command consists of a few steps ([`Step`]), which the parent carries out one by one when it is the function's
//! turn. Until the last step is done, CMDSTS shows the command as active, and writes to CMD are lost, as with a real device.

use alloc::collections::VecDeque;

use super::{
    Effect, Handle, QueueState, VirtualDsa,
    spec::{
        CMD_INTERRUPT, CMD_MASK, CMD_OPERAND, CMD_RESERVED, CMD_SHIFT, CMDSTS_ACTIVE, CMDSTS_RESULT_SHIFT,
        INTCAUSE_COMMAND, command, error,
    },
};

/// CMDCAP: not the commands that name PASIDs, which are the hypervisor's.
pub(super) const COMMANDS: u32 = 0x7fe | 1 << command::REQUEST_INT_HANDLE | 1 << command::RELEASE_INT_HANDLE;

/// What the parent has to do for the function, with the work queue that is dedicated to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Enables the queue.
    Enable,
    /// Waits until all work in the queue is complete.
    Drain,
    /// Aborts the work in the queue.
    Abort,
    /// Disables the queue, after the work in it is complete.
    Disable,
    /// Requests the handle by which descriptors raise this vector's slot.
    RequestHandle(u16),
    /// Takes that back.
    ReleaseHandle(u16),
}

/// What the steps are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// The guest's command: the value of CMD.
    Command(u32),
    /// The queue stops, since the function may send no requests any more.
    Stop(Stop),
}

/// How much ends with the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    /// The function is no bus master.
    Queue,
    /// It was reset, so pending interrupts are dropped as well.
    All,
}

/// What is under way.
#[derive(Default)]
pub(super) struct CommandProgress {
    /// The purpose, and the steps that are left for it.
    job: Option<(Purpose, VecDeque<Step>)>,
    /// The step that the parent has.
    given: Option<Step>,
    /// The queue has to stop next.
    stop: Option<Stop>,
    /// A command that has not begun, because something else is under way.
    command: Option<u32>,
}

/// What a step, or a command, ends with: the result field of CMDSTS, or the error code. [`error::NO_ANSWER`] is no code of the parent's.
pub type CommandResult = Result<u16, u8>;

impl VirtualDsa {
    /// The guest has written to CMD.
    pub(super) fn take_command(&mut self, value: u32) -> Effect {
        if self.command_status & CMDSTS_ACTIVE != 0 {
            return Effect::default();
        }
        (self.command, self.command_status) = (value, CMDSTS_ACTIVE);
        self.progress.command = Some(value);
        self.proceed()
    }

    /// The step that the parent is to carry out next, if there is one and none is under way. It is under way from now on.
    pub fn next_step(&mut self) -> Option<Step> {
        if self.progress.given.is_some() {
            return None;
        }
        let (_, steps) = self.progress.job.as_ref()?;
        self.progress.given = steps.front().copied();
        self.progress.given
    }

    /// The handle of a vector that the parent has said before: it need not be asked again.
    pub fn known_handle(&self, vector: u16) -> Option<u16> {
        self.handles.get(usize::from(vector))?.map(|handle| handle.number)
    }

    /// Whether the parent has a step, or has to get one.
    pub fn is_busy(&self) -> bool {
        self.progress.given.is_some() || self.progress.job.is_some()
    }

    /// Handles the result of the parent's step.
    pub fn step_done(&mut self, result: CommandResult) -> Effect {
        let Some(step) = self.progress.given.take() else { return Effect::default() };
        self.note(step, result);
        let mut effect = Effect::default();
        // What it was given for may have ended meanwhile.
        if let Some((purpose, mut steps)) = self.progress.job.take() {
            steps.pop_front();
            // A queue that has turned out to be disabled need not be stopped.
            let is_stopped = self.queue == QueueState::Disabled;
            while is_stopped && matches!(steps.front(), Some(Step::Abort | Step::Disable)) {
                steps.pop_front();
            }
            match unless_done(step, result, purpose) {
                Ok(_) if !steps.is_empty() => self.progress.job = Some((purpose, steps)),
                result => effect = self.end(purpose, result),
            }
        }
        effect.and(self.proceed())
    }

    /// The guest has set or cleared the function's bus master bit. Without it the function sends no requests (PCIe 7.5.1.1.3), which its
    /// parent cannot know: so its queue stops.
    pub fn set_bus_master(&mut self, on: bool) -> Effect {
        self.bus_master = on;
        if on {
            self.show();
            return Effect::default();
        }
        self.stop(Stop::Queue)
    }

    /// Begins a function level reset, which removes all of the guest's settings once the function's queue has stopped.
    pub fn reset_function(&mut self) -> Effect {
        self.bus_master = false;
        let effect = self.stop(Stop::All);
        (self.genctrl, self.intcause, self.errors) = (0, 0, [0; 4]);
        (self.command, self.command_status) = (0, 0);
        self.take_handles_back();
        self.show();
        Effect { signal: false, ..effect }
    }

    /// Stops the queue. A command that is under way fails.
    fn stop(&mut self, stop: Stop) -> Effect {
        let under_way = self.progress.job.take_if(|(purpose, _)| matches!(purpose, Purpose::Command(_)));
        let waiting = self.progress.command.take();
        let mut effect = Effect::default();
        if under_way.is_some() || waiting.is_some() {
            effect = self.complete(self.command, Err(error::BUSMASTER_EN));
        }
        self.enabled = false;
        self.progress.stop = self.progress.stop.max(Some(stop));
        effect.and(self.proceed())
    }

    /// Begins the next step, and completes commands that need none.
    fn proceed(&mut self) -> Effect {
        let mut effect = Effect::default();
        while self.progress.given.is_none() && self.progress.job.is_none() {
            let (purpose, steps) = match (self.progress.stop.take(), self.progress.command.take()) {
                (Some(stop), command) => {
                    self.progress.command = command;
                    (Purpose::Stop(stop), Ok(self.steps_to_stop()))
                }
                (None, Some(value)) => (Purpose::Command(value), self.begin(value)),
                (None, None) => break,
            };
            match steps {
                Ok(steps) if !steps.is_empty() => self.progress.job = Some((purpose, steps)),
                steps => effect = effect.and(self.end(purpose, steps.map(|_| 0))),
            }
        }
        self.show();
        effect
    }

    /// What a command takes, if the function is in the state for it.
    fn begin(&mut self, value: u32) -> Result<VecDeque<Step>, u8> {
        let (number, operand) = (value >> CMD_SHIFT & CMD_MASK, value & CMD_OPERAND);
        if value & CMD_RESERVED != 0 || COMMANDS >> number & 1 == 0 {
            return Err(error::INVAL_CMD);
        }
        let of_queue = |step| if self.queue.may_take_work() { [step].into() } else { VecDeque::new() };
        match number {
            command::ENABLE_DEVICE if self.enabled => Err(error::DEV_ENABLED),
            command::ENABLE_DEVICE if !self.bus_master => Err(error::BUSMASTER_EN),
            command::ENABLE_DEVICE => {
                self.enabled = true;
                Ok(VecDeque::new())
            }
            command::RESET_DEVICE => Ok(self.steps_to_stop()),
            command::DISABLE_DEVICE | command::DRAIN_ALL | command::ABORT_ALL if !self.enabled => {
                Err(error::DIS_DEV_EN)
            }
            command::DISABLE_DEVICE => Ok(of_queue(Step::Disable)),
            command::DRAIN_ALL => Ok(of_queue(Step::Drain)),
            command::ABORT_ALL => Ok(of_queue(Step::Abort)),
            command::ENABLE_WQ => self.begin_enabling(operand),
            command::REQUEST_INT_HANDLE => self.begin_request(operand),
            command::RELEASE_INT_HANDLE => self.begin_release(operand),
            _ => self.begin_for_queue(number, operand),
        }
    }

    fn begin_enabling(&self, operand: u32) -> Result<VecDeque<Step>, u8> {
        if !self.enabled {
            Err(error::DEV_NOTEN)
        } else if operand != 0 {
            Err(error::INVAL_WQIDX)
        } else {
            match self.queue {
                QueueState::Disabled => Ok([Step::Enable].into()),
                QueueState::Enabled => Err(error::WQ_ENABLED),
                // The queue begins empty, whatever the parent did with it after the time-out.
                QueueState::Unknown => Ok([Step::Abort, Step::Disable, Step::Enable].into()),
            }
        }
    }

    /// Disable, drain, abort or reset the queues in the operand: a mask in 15:0 of the sixteen that 19:16 selects. There is one.
    fn begin_for_queue(&self, number: u32, operand: u32) -> Result<VecDeque<Step>, u8> {
        if operand != 1 {
            return Err(error::INVAL_WQIDX);
        }
        if !self.queue.may_take_work() {
            return Err(error::DEV_NOT_EN);
        }
        match number {
            command::DRAIN_WQ => Ok([Step::Drain].into()),
            command::ABORT_WQ => Ok([Step::Abort].into()),
            command::RESET_WQ => Ok([Step::Abort, Step::Disable].into()),
            command::DISABLE_WQ => Ok([Step::Disable].into()),
            _ => Err(error::INVAL_CMD),
        }
    }

    /// The handle of the vector's slot in the parent, which takes it from this function alone. Vector 0 has none.
    fn begin_request(&self, operand: u32) -> Result<VecDeque<Step>, u8> {
        let vector = u16::try_from(operand).map_err(|_| error::INVAL_INT_IDX)?;
        if vector == 0 || usize::from(vector) >= self.handles.len() {
            return Err(error::INVAL_INT_IDX);
        }
        Ok([Step::RequestHandle(vector)].into())
    }

    fn begin_release(&self, operand: u32) -> Result<VecDeque<Step>, u8> {
        let number = u16::try_from(operand).map_err(|_| error::INVAL_INT_IDX)?;
        if !self.handles.contains(&Some(Handle { number, is_out: true })) {
            return Err(error::INVAL_INT_IDX);
        }
        Ok([Step::ReleaseHandle(number)].into())
    }

    /// Handles are not given back to the parent: that would take a command for each of up to 2,047.
    fn steps_to_stop(&self) -> VecDeque<Step> {
        if self.queue.may_take_work() { [Step::Abort, Step::Disable].into() } else { VecDeque::new() }
    }

    /// The guest has no handle any more.
    fn take_handles_back(&mut self) {
        self.handles.iter_mut().flatten().for_each(|handle| handle.is_out = false);
    }

    /// Records the effect of a step on the parent, whatever command the step belonged to.
    fn note(&mut self, step: Step, result: CommandResult) {
        self.queue = self.queue.after(step, result);
        match (step, result) {
            (Step::RequestHandle(vector), Ok(number)) => {
                // The guest gets it unless the command has failed meanwhile.
                let handle = Handle { number, is_out: self.progress.job.is_some() };
                self.handles.get_mut(usize::from(vector)).into_iter().for_each(|place| *place = Some(handle));
            }
            // After a time-out the parent may have the handle still, or not: the guest has to ask for it again, and the parent is asked then.
            (Step::ReleaseHandle(number), Ok(_) | Err(error::INVAL_INT_IDX | error::NO_ANSWER)) => {
                let is_it = |place: &&mut Option<Handle>| place.is_some_and(|handle| handle.number == number);
                self.handles.iter_mut().filter(is_it).for_each(|place| *place = None);
            }
            _ => {}
        }
    }

    /// The last step is done, or one has failed.
    fn end(&mut self, purpose: Purpose, result: CommandResult) -> Effect {
        match purpose {
            Purpose::Command(value) => self.complete(value, result),
            Purpose::Stop(stop) => Effect { reset: stop == Stop::All, is_stuck: result.is_err(), ..Effect::default() },
        }
    }

    fn complete(&mut self, value: u32, result: CommandResult) -> Effect {
        let number = value >> CMD_SHIFT & CMD_MASK;
        if result.is_ok() && matches!(number, command::DISABLE_DEVICE | command::RESET_DEVICE) {
            self.enabled = false;
        }
        let reset = number == command::RESET_DEVICE && result.is_ok();
        if reset {
            // Everything but the bus master bit, which is not the device's.
            (self.genctrl, self.intcause, self.errors) = (0, 0, [0; 4]);
            self.take_handles_back();
        }
        self.command_status = match result {
            Ok(result) => u32::from(result) << CMDSTS_RESULT_SHIFT,
            Err(error) => error.into(),
        };
        let signal = value & CMD_INTERRUPT != 0;
        if signal {
            self.intcause |= INTCAUSE_COMMAND;
        }
        Effect { reset, signal, is_stuck: false }
    }
}

impl QueueState {
    /// Whether the parent may take descriptors for the queue.
    pub(super) const fn may_take_work(self) -> bool {
        !matches!(self, Self::Disabled)
    }

    /// The state after a step. The parent carries out one command after another, so the end of one that comes after a time-out tells what
    /// became of the command before it.
    const fn after(self, step: Step, result: CommandResult) -> Self {
        match (step, result) {
            (Step::Enable, Ok(_) | Err(error::WQ_ENABLED)) | (Step::Drain | Step::Abort, Ok(_)) => Self::Enabled,
            (Step::Disable, Ok(_)) | (Step::Drain | Step::Abort | Step::Disable, Err(error::DEV_NOT_EN)) => {
                Self::Disabled
            }
            (Step::Enable | Step::Disable, Err(error::NO_ANSWER)) => Self::Unknown,
            _ => self,
        }
    }
}

/// What is undone already need not be undone: the parent may have finished late, when it was not waited for any more. A guest's own
/// command to abort fails all the same.
fn unless_done(step: Step, result: CommandResult, purpose: Purpose) -> CommandResult {
    let number = match purpose {
        Purpose::Command(value) => value >> CMD_SHIFT & CMD_MASK,
        Purpose::Stop(_) => command::RESET_DEVICE,
    };
    let asked = matches!(number, command::ABORT_ALL | command::ABORT_WQ);
    match (step, result) {
        (Step::Disable, Err(error::DEV_NOT_EN)) => Ok(0),
        (Step::Abort, Err(error::DEV_NOT_EN)) if !asked => Ok(0),
        _ => result,
    }
}
