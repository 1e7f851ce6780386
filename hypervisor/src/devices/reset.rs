//! How a function is stopped and reset to its initial state.

use crate::{
    clock::{self, Clock},
    devices::{assign_error::AssignError, bars::registers, dsa, patience::PATIENT},
    machine::discovery::Machine,
    memory::Mmio,
    pci::{self, Function, reset::Resetting},
};

/// The state of a reset right after its beginning.
pub enum Begun {
    /// The reset is over. Holds whether the function answered.
    Over(bool),
    /// The reset is under way, and the function must not be accessed.
    UnderWay(Resetting<'static>),
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

    /// Begins a reset that the function's guest asks for. The call does not wait for a long reset, so other guests keep the processor.
    pub fn begin(&self, machine: &Machine, function: &Function) -> Begun {
        match self {
            Self::Command(registers) => Begun::Over(dsa::reset(registers, clock::current())),
            Self::FunctionLevel => Resetting::begin(machine.config(), function, clock::current())
                .map_or(Begun::Over(false), Begun::UnderWay),
        }
    }

    fn reset(&self, machine: &Machine, function: &Function, clock: &dyn Clock) -> bool {
        match self {
            Self::Command(registers) => dsa::reset(registers, clock),
            Self::FunctionLevel => pci::reset::reset(machine.config(), function, clock),
        }
    }
}
