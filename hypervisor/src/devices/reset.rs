//! How a function is stopped and reset to its initial state.

use crate::{
    clock,
    devices::{assign_error::AssignError, bars::registers, dsa},
    machine::discovery::Machine,
    memory::Mmio,
    pci::{self, Function, reset::Resetting},
};

/// How far a reset is right after its beginning.
pub enum Begun {
    /// It is over. Whether the function answered.
    Over(bool),
    /// The function must not be touched until it is over.
    UnderWay(Resetting<'static>),
}

/// What a function is reset by.
pub enum ResetMethod {
    /// A command to a DSA, by these registers.
    Command(Mmio),
    /// A function level reset (PCIe 6.6.2): any function that can do it.
    FunctionLevel,
}

impl ResetMethod {
    /// Those of a function. They have to be sure: a function that still works for a guest that is gone, or remembers it, is no
    /// other guest's.
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

    /// Resets the function, and lets it decode and send. Returns whether it answered.
    pub fn prepare(&self, machine: &Machine, function: &Function) -> bool {
        let config = machine.config();
        pci::function::enable_memory(config, function.bdf);
        let reset = self.reset(machine, function);
        if reset {
            pci::function::enable(config, function.bdf);
        }
        reset
    }

    /// Stops the function: it forgets what it did, and sends nothing any more. Its stores can be written still.
    pub fn stop(&self, machine: &Machine, function: &Function) {
        if !self.reset(machine, function) {
            log::error!("{}: does not answer to a reset", function.bdf);
        }
        pci::function::enable_memory(machine.config(), function.bdf);
    }

    /// Begins a reset that the function's guest asks for. A reset that takes long is not waited for: others have the processor meanwhile.
    pub fn begin(&self, machine: &Machine, function: &Function) -> Begun {
        match self {
            Self::Command(registers) => Begun::Over(dsa::reset(registers, clock::current())),
            Self::FunctionLevel => Resetting::begin(machine.config(), function, clock::current())
                .map_or(Begun::Over(false), Begun::UnderWay),
        }
    }

    fn reset(&self, machine: &Machine, function: &Function) -> bool {
        match self {
            Self::Command(registers) => dsa::reset(registers, clock::current()),
            Self::FunctionLevel => pci::reset::reset(machine.config(), function, clock::current()),
        }
    }
}
