//! What the machine is: how it was booted, its memory, what it has, its processors, its power.

#[cfg(feature = "bare")]
pub mod boot_info;
#[cfg(feature = "bare")]
pub mod clock;
#[cfg(feature = "bare")]
pub mod console;
#[cfg(feature = "bare")]
pub mod discovery;
pub mod io_apic;
pub mod log_limit;
#[cfg(feature = "bare")]
pub mod memory;
#[cfg(feature = "bare")]
pub mod power;
#[cfg(feature = "bare")]
pub mod smp;
pub mod wall_clock;
