//! What the guests share: readers of what the hypervisor hands over, a small PCI and DSA driver, and the run-time of a program
//! without an operating system.
//!
//! | module | holds |
//! |---|---|
//! | [`boot_params`], [`command_line`], [`acpi`] | what a guest is told when it starts |
//! | [`pci`] | configuration space: functions, BARs, capabilities |
//! | [`dsa`] | the device: registers, descriptors, commands |
//! | [`tally`] | which interrupt was expected, which came |
//! | [`store_image`] | what a store must hold after writes of any width |
//! | [`samples`] | what was measured, in order |
//! | [`crc32c`], [`random`] | to make data and to check it |
//! | `bare` (feature) | entry, interrupts, console, exit |
//!
//! All but `bare` runs on the host, too, and is tested there.
#![cfg_attr(not(test), no_std)]

pub mod acpi;
pub mod boot_params;
pub mod command_line;
pub mod crc32c;
pub mod dsa;
pub mod memory;
pub mod pci;
pub mod phases;
pub mod random;
pub mod samples;
pub mod store_image;
pub mod tally;

#[cfg(feature = "bare")]
pub mod bare;

pub use guest_shim;
