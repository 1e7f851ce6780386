//! Giving functions away: the plan, what is given, pass-through, resets, DSAs and the virtual functions that are made of them.

pub mod allocation;
#[cfg(feature = "bare")]
pub mod bars;
pub mod command_turns;
pub mod dsa;
pub mod mmio_regions;
#[cfg(feature = "bare")]
pub mod parent_interrupt;
#[cfg(feature = "bare")]
pub mod passthrough;
#[cfg(feature = "bare")]
pub mod plan;
pub mod refusal;
#[cfg(feature = "bare")]
pub mod reset;
pub mod store_pages;
#[cfg(feature = "bare")]
pub mod virtual_functions;
