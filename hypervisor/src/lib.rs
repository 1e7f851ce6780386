//! imsvisor: a minimal type-1 VT-x hypervisor that gives virtual machines Interrupt Message Store interrupts.
//!
//! The rooms, from the lowest to the highest. A room imports only from those that this list names before it:
//!
//! | layer | rooms |
//! |---|---|
//! | L0 words | [`addr`], [`sync`], [`options`], [`quirks`] |
//! | L1 machine | [`clock`], [`apic`], [`cpu`], [`console`], [`memory`], [`acpi`], [`pci`] |
//! | L2 hardware | [`vtd`], [`ept`], [`vmx`] |
//! | L2 pure | [`ims`] (the service), [`vdev`] (the guest's virtual devices) |
//! | L3 guests | [`guest`] (building one), [`exits`] (serving it) |
//! | L4 this machine | [`machine`] (what it is), [`irq`] (the service on its hardware), [`devices`] (giving functions away), [`vm`] (a guest), [`sched`] (who runs) |
//!
//! The image's `main` is the order of bring-up and nothing else.
//!
//! Without the feature `machine` the library has only [`addr`], [`options`], [`quirks`] and the code that reads a guest's options and image
//! ([`guest`]). The launcher checks its arguments with them.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub use ims::{self, addr};
pub use imsvisor_sync as sync;

#[cfg(feature = "machine")]
pub mod acpi;
#[cfg(feature = "machine")]
pub mod apic;
#[cfg(feature = "machine")]
pub mod clock;
#[cfg(feature = "machine")]
pub mod console;
#[cfg(feature = "machine")]
pub mod cpu;
#[cfg(feature = "machine")]
pub mod devices;
#[cfg(feature = "machine")]
pub mod ept;
#[cfg(feature = "machine")]
pub mod exits;
pub mod guest;
#[cfg(feature = "machine")]
pub mod irq;
#[cfg(feature = "machine")]
pub mod machine;
#[cfg(feature = "machine")]
pub mod memory;
pub mod options;
#[cfg(feature = "machine")]
pub mod pci;
pub mod quirks;
#[cfg(feature = "machine")]
pub mod sched;
#[cfg(feature = "machine")]
pub mod vdev;
#[cfg(feature = "machine")]
pub mod vm;
#[cfg(feature = "machine")]
pub mod vmx;
#[cfg(feature = "machine")]
pub mod vtd;
