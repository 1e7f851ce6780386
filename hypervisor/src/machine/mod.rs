//! The machine: boot information, memory, discovery, processors, power.

pub mod boot_info;
pub mod clock;
pub mod console;
pub mod discovery;
pub mod io_apic;
pub mod log_limit;
pub mod memory;
pub mod power;
pub mod smp;
pub mod topology;
pub mod wall_clock;
