//! Handlers of a guest's VM exits: one file for each family. Handlers return an [`Action`], which [`dispatch`] carries out. RIP advances
//! there only.

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

/// How the guest continues after its exit. The enum has a tag of its own, as [`Exit`](crate::vmx::Exit) has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// The instruction is done, so RIP advances.
    Advance,
    /// The same for an instruction whose length the exit does not report.
    AdvanceBy(u8),
    /// The guest continues at the same RIP.
    Resume,
    /// The same, after the machine's interrupt at this vector, which is not ended yet.
    Interrupt(u8),
    /// The guest executes the instruction again after the others have run.
    Yield,
    /// An event is delivered to the guest at its RIP.
    Inject {
        /// The event.
        event: Event,
        /// Its error code, if it has one.
        error_code: u32,
    },
    /// The instruction is done and the guest waits for an interrupt.
    Halt,
    /// The guest has ended.
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
    /// The guest ended itself, with an exit code.
    Exit(u8),
    /// A fault occurred while a double fault was delivered.
    TripleFault,
    /// The guest asked for a reset of its machine.
    Reset,
    /// The guest halted with interrupts off, so nothing can wake it.
    Halted,
    /// A manager has ended the guest, or it did not stop in time when it was asked.
    Stopped,
    /// The guest cannot continue after what it did.
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
            Self::Stopped => "stopped",
            Self::Killed(_) => "killed",
        }
    }

    /// The guest's exit code; 255 for a guest that gave none.
    pub const fn code(self) -> u8 {
        match self {
            Self::Exit(code) => code,
            _ => 255,
        }
    }
}
