//! Guests: creation, resources, virtual processors, and guest I/O.

pub mod access_paths;
pub mod chipset;
pub mod create;
pub mod guest_io;
pub mod instance;
mod life_calls;
pub mod management;
pub mod new_vcpu;
pub mod release;
pub mod resources;
pub mod switched_state;
pub mod virtual_cpu;
