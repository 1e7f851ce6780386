//! This machine: bring-up, the ports of the service on its hardware, and the loop that runs its guests.

pub mod burst;
pub mod delivery;
pub mod dsa;
pub mod windows;

#[cfg(feature = "bare")]
pub mod assign;
#[cfg(feature = "bare")]
pub mod board;
#[cfg(feature = "bare")]
pub mod faults;
#[cfg(feature = "bare")]
pub mod holdings;
#[cfg(feature = "bare")]
pub mod loader;
#[cfg(feature = "bare")]
pub mod machine;
#[cfg(feature = "bare")]
pub mod memory;
#[cfg(feature = "bare")]
pub mod outside;
#[cfg(feature = "bare")]
pub mod plan;
#[cfg(feature = "bare")]
pub mod ports;
#[cfg(feature = "bare")]
pub mod power;
#[cfg(feature = "bare")]
pub mod run;
#[cfg(feature = "bare")]
pub mod seat;
#[cfg(feature = "bare")]
pub mod seed;
#[cfg(feature = "bare")]
pub mod smp;
#[cfg(feature = "bare")]
pub mod start;
mod storm;
#[cfg(feature = "bare")]
pub mod virtual_cpu;
#[cfg(feature = "bare")]
pub mod vm;
#[cfg(feature = "bare")]
pub mod work;
#[cfg(feature = "bare")]
pub mod world;
