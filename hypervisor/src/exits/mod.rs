//! Serving a guest's VM exits: one file for each family. Handlers return an [`Action`]; [`dispatch`] carries it out, and RIP advances
//! there alone.

pub mod alu;
mod breakpoints;
pub mod bus_locks;
mod context;
pub mod cpuid;
pub mod cr;
pub mod decode;
pub mod decode_cache;
pub mod dispatch;
mod fast;
pub mod instruction;
pub mod io;
pub mod machine;
pub mod mmio;
pub mod msr;
mod operand;
mod pv_eoi;
mod vector_moves;
pub mod vmcall;
pub mod walk;
pub mod width;

pub use context::{Context, Devices, Platform, PortWrite, RepeatedFault};
pub use dispatch::Next;
pub use pv_eoi::PvEoi;

use crate::vmx::{Event, EventKind};

/// What has to happen before the guest goes on. With a tag of its own, as [`Exit`](crate::vmx::Exit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// The instruction is done: RIP moves behind it.
    Advance,
    /// The same for an instruction whose length the exit does not tell.
    AdvanceBy(u8),
    /// The guest goes on where it is.
    Resume,
    /// The guest executes the instruction again when the others have had their turns.
    Yield,
    /// An event is delivered to the guest where it is.
    Inject {
        /// The event.
        event: Event,
        /// Its error code, if it has one.
        error_code: u32,
    },
    /// The instruction is done and the guest waits for an interrupt.
    Halt,
    /// The guest is at its end.
    End(EndReason),
}

impl Action {
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self =
        Self::Inject { event: Event::new(EventKind::HardwareException, 13, true), error_code: 0 };
    /// #UD.
    pub const UNDEFINED_OPCODE: Self =
        Self::Inject { event: Event::new(EventKind::HardwareException, 6, false), error_code: 0 };
}

/// Why a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// It said so, with an exit code.
    Exit(u8),
    /// A fault while delivering a fault while delivering a fault.
    TripleFault,
    /// It asked for a reset of its machine.
    Reset,
    /// It halted with interrupts off: nothing can wake it.
    Halted,
    /// It did something that no guest can go on from.
    Killed(&'static str),
}

impl EndReason {
    /// The name that a report uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exit(_) => "exit",
            Self::TripleFault => "triple-fault",
            Self::Reset => "reset",
            Self::Halted => "halted",
            Self::Killed(_) => "killed",
        }
    }

    /// Its exit code; 255 for a guest that did not say one.
    pub const fn code(self) -> u8 {
        match self {
            Self::Exit(code) => code,
            _ => 255,
        }
    }
}
