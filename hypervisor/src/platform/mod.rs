//! This machine: bring-up, the ports of the service on its hardware, and the loop that runs its guests.

pub mod delivery;
pub mod dsa;
pub mod windows;

#[cfg(feature = "bare")]
pub mod assign;
#[cfg(feature = "bare")]
pub mod guest;
#[cfg(feature = "bare")]
pub mod loader;
#[cfg(feature = "bare")]
pub mod machine;
#[cfg(feature = "bare")]
pub mod memory;
#[cfg(feature = "bare")]
pub mod outside;
#[cfg(feature = "bare")]
pub mod ports;
#[cfg(feature = "bare")]
pub mod power;
#[cfg(feature = "bare")]
pub mod run;
#[cfg(feature = "bare")]
pub mod smp;
#[cfg(feature = "bare")]
pub mod start;
#[cfg(feature = "bare")]
pub mod work;
#[cfg(feature = "bare")]
pub mod world;
