//! This machine: bring-up, the ports of the service on its hardware, and the loop that runs its guests.

pub mod delivery;
#[cfg(feature = "bare")]
pub mod loader;
#[cfg(feature = "bare")]
pub mod memory;
pub mod power;
pub mod windows;
pub mod world;
