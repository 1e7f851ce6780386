//! Assignment of functions and processors to guests: the plan, pass-through, resets, DSAs and their virtual functions.

pub mod allocation;
pub mod arc_list;
pub mod assign_error;
pub mod bars;
pub mod command_arbiter;
pub mod dsa;
pub mod guest_bars;
pub mod mmio_regions;
pub mod parent_interrupt;
pub mod passthrough;
mod patience;
pub mod plan;
pub mod reset;
pub mod store_pages;
pub mod virtual_bars;
pub mod virtual_functions;
