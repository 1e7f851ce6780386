//! Builds guests: options, memory layout, image, and the data that firmware and boot loader would have left in memory.
//!
//! It is logic on values except for [`GuestRam`], through which every byte goes into the guest's memory.
#![cfg_attr(not(test), forbid(unsafe_code))]

#[cfg(feature = "machine")]
pub mod acpi;
#[cfg(feature = "machine")]
pub mod boot_params;
#[cfg(feature = "machine")]
pub mod build;
pub mod bzimage;
pub mod elf;
#[cfg(feature = "machine")]
pub mod entry;
pub mod image;
pub mod memory_map;
pub mod options;
pub mod processor_set;
pub mod shares;

#[cfg(feature = "machine")]
pub use build::{BuildError, Entry, GuestRam, Outside, build};
