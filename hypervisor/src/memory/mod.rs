//! Physical memory: page frames, access to registers, the hypervisor's page tables and its heap.
//!
//! The hypervisor runs identity-mapped: a host-virtual address is the host-physical one.

pub mod frames;
pub mod heap;
pub mod mmio;
pub mod paging;
pub mod ram;
mod range;
pub mod start_page;
#[cfg(test)]
pub mod stepping;
mod table;
#[cfg(test)]
pub mod testing;
mod zero;

pub use frames::{FrameAllocator, FrameSource, Frames, NearFrames};
pub use mmio::{Mmio, Registers};
pub use paging::Paging;
pub use ram::Ram;
pub use range::PhysRange;
pub use table::Table;
