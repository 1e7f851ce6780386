//! A guest: how it is made, what it holds, its virtual processors, and what its exits reach.

pub mod access_paths;
#[cfg(feature = "bare")]
pub mod chipset;
#[cfg(feature = "bare")]
pub mod create;
#[cfg(feature = "bare")]
pub mod guest_io;
#[cfg(feature = "bare")]
pub mod instance;
#[cfg(feature = "bare")]
pub mod new_vcpu;
#[cfg(feature = "bare")]
pub mod resources;
#[cfg(feature = "bare")]
pub mod switched_state;
#[cfg(feature = "bare")]
pub mod virtual_cpu;
