//! A strict model of one Intel VT-d DMA-remapping unit (legacy mode, and scalable mode with second-stage tables), written from the
//! rules of the "Intel Virtualization Technology for Directed I/O Architecture Specification" ("VT-d" below; section numbers are
//! those of revision 4.1).
//!
//! The model is stricter than hardware wherever the manual leaves a choice: cached entries stay until the right
//! invalidation names them, every reserved bit is checked, one global command changes one thing at a time. What the manual
//! calls undefined behaviour or forbids to software is refused and noted as a [`Violation`], which a test can demand to be
//! absent.
//!
//! What it stands for: registers ([`Unit::read`], [`Unit::write`]), interrupt requests ([`Unit::interrupt_request`]), DMA
//! ([`Unit::dma`]), and the messages that the unit itself sends ([`Unit::take_fault_event`]). It owns no memory: whoever calls
//! it lends it a [`Memory`].

#![forbid(unsafe_code)]

mod cache;
mod caps;
mod command;
mod config;
mod dma;
mod first_stage;
mod intr;
mod invalidate;
mod memory;
mod post;
mod regs;
mod scalable;
mod spec;
mod stats;
mod unit;
mod walk;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use dma::{Access, DmaFault, Requester};
pub use intr::{Compatibility, InterruptResult, Remapped};
pub use memory::{Memory, Ram};
pub use spec::reason;
pub use stats::Stats;
pub use unit::page_request::{PageRequest, PageResponse};
pub use unit::{Unit, Violation};
