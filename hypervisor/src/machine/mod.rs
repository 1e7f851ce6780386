//! What the machine is: how it was booted, its memory, what it has, its processors, its power.

pub mod boot_info;
pub mod clock;
pub mod console;
pub mod discovery;
pub mod io_apic;
pub mod log_limit;
pub mod memory;
pub mod power;
pub mod smp;
pub mod wall_clock;
