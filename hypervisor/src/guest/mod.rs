//! Building a guest: its options, its memory's layout, its image, and what firmware and boot loader would have left there.
//!
//! Pure but for [`GuestRam`], through which every byte goes into the guest's memory.
#![cfg_attr(not(test), forbid(unsafe_code))]

pub mod acpi;
pub mod boot_params;
pub mod build;
pub mod elf;
pub mod entry;
pub mod memory_map;
pub mod options;

pub use build::{BuildError, Entry, GuestRam, Outside, build};
