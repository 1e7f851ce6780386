//! VT-d remapping units: interrupts (with posting) and DMA, in scalable mode where there is one, else in legacy mode.
//!
//! [`Remapper`] is the interface of a unit; the other files are its parts.

mod capabilities;
mod coherence;
mod dma;
mod domain;
mod entry_words;
mod error;
mod fault;
mod irt;
mod queue;
mod remapper;
mod scalable;
pub mod spec;
#[cfg(test)]
pub(crate) mod tests;
mod unit;

pub use capabilities::Capabilities;
pub use coherence::Coherence;
pub use domain::Domain;
pub use error::{Error, QueueError, UnitError};
pub use fault::{Fault, Reason, Request};
pub use irt::{InterruptTable, Route, RouteFields, message};
pub use queue::CAPACITY as QUEUE_CAPACITY;
pub use remapper::{Binder, Config, Remapper, Runs, Statistics};
pub use unit::{Unit, is_translating};
