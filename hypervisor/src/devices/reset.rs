//! How a function is stopped and reset to its initial state.

use core::time::Duration;

use crate::{
    clock::{self, Clock},
    devices::{assign_error::AssignError, bars::registers, dsa, patience::PATIENT},
    machine::discovery::Machine,
    memory::Mmio,
    pci::{self, Function, reset::Progress},
};

/// A reset that no processor waits for. The caller polls it by [`Self::look`].
#[derive(Debug)]
pub enum Resetting {
    /// By a command, which takes 1.2 seconds at most. Whether the device's guest has given it by itself: the function is reset otherwise, and
    /// the command is a part of that.
    Command {
        /// The command.
        command: dsa::Resetting<'static>,
        /// See above.
        is_guests: bool,
    },
    /// A function level reset, which takes 1.1 seconds at most. The function must not be accessed meanwhile.
    FunctionLevel(pci::reset::Resetting<'static>),
}

/// How a function is reset.
pub enum ResetMethod {
    /// By a command to a DSA, through these registers.
    Command(Mmio),
    /// By a function level reset (PCIe 6.6.2), for any function that supports it.
    FunctionLevel,
}

impl ResetMethod {
    /// The reset method of a function. It must be reliable: a function that still works for a former guest, or remembers its data, is given
    /// to no other guest.
    pub fn of(function: &Function) -> Result<Self, AssignError> {
        if dsa::is_one(function) {
            registers(function).map(Self::Command)
        } else if function.resets() {
            Ok(Self::FunctionLevel)
        } else {
            Err(AssignError::NoReset)
        }
    }

    /// A DSA's registers.
    pub fn registers(&self) -> Option<&Mmio> {
        match self {
            Self::Command(registers) => Some(registers),
            Self::FunctionLevel => None,
        }
    }

    /// Resets the function, and enables decoding and sending. Returns whether it answered. Others run while this waits.
    pub fn prepare(&self, machine: &Machine, function: &Function) -> bool {
        let config = machine.config();
        pci::function::enable_memory(config, function.bdf);
        let reset = self.reset(machine, function, PATIENT);
        if reset {
            pci::function::enable(config, function.bdf);
        }
        reset
    }

    /// Stops the function: its state is lost and it sends nothing any more. Its stores can still be written. Others run while this waits.
    pub fn stop(&self, machine: &Machine, function: &Function) {
        if !self.reset(machine, function, PATIENT) {
            log::error!("{}: does not answer to a reset", function.bdf);
        }
        pci::function::enable_memory(machine.config(), function.bdf);
    }

    /// Begins a reset that the function's guest asks for. `None` if the function cannot be reset.
    pub fn begin(&self, machine: &Machine, function: &Function) -> Option<Resetting> {
        let clock = clock::current();
        match self {
            Self::Command(_) => Some(Resetting::Command { command: dsa::Resetting::begin(clock), is_guests: false }),
            Self::FunctionLevel => {
                pci::reset::Resetting::begin(machine.config(), function, clock).map(Resetting::FunctionLevel)
            }
        }
    }

    /// Polls a reset of the function that was begun before, for `limit` at most.
    pub fn look(&self, resetting: &mut Resetting, machine: &Machine, function: &Function, limit: Duration) -> Progress {
        match (self, resetting) {
            (Self::Command(registers), Resetting::Command { command, .. }) => command.look_for(registers, limit),
            (_, Resetting::FunctionLevel(level)) => level.look(machine.config(), function),
            // A command needs the registers of a DSA, and every DSA has them here.
            (Self::FunctionLevel, Resetting::Command { .. }) => Progress::Failed,
        }
    }

    fn reset(&self, machine: &Machine, function: &Function, clock: &dyn Clock) -> bool {
        match self {
            Self::Command(registers) => dsa::reset(registers, clock),
            Self::FunctionLevel => pci::reset::reset(machine.config(), function, clock),
        }
    }
}
