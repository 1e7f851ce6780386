//! A small driver for DSA: registers and descriptors as in Linux's `drivers/dma/idxd/registers.h` and
//! `include/uapi/linux/idxd.h`.

mod descriptor;
mod driver;
mod portal;
pub mod spec;

pub use descriptor::{Completion, Descriptor};
pub use driver::{Dsa, Error, Registers, WorkQueue};
pub use portal::{Portal, SubmitMethod, has_enqcmds};
