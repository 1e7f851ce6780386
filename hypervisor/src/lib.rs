//! imsvisor: a minimal type-1 VT-x hypervisor that gives virtual machines Interrupt Message Store interrupts.
//!
//! The rooms, lowest first; each imports only from those above it in this list:
//!
//! | layer | rooms |
//! |---|---|
//! | L0 words | [`addr`], [`sync`] |
//! | L1 machine | [`clock`], [`apic`], [`cpu`], [`console`], [`memory`], [`acpi`], [`pci`] |
//! | L2 hardware | [`vtd`], [`ept`], [`vmx`] |
//! | L2 pure | [`ims`] (the service), [`vdev`] (the guest's virtual devices) |
//! | L3 guests | [`guest`] (building one), [`exits`] (serving it) |
//! | L4 | [`platform`]: the ports of the service on this hardware, the run loop |
//!
//! The image's `main` is the order of bring-up and nothing else.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod acpi;
pub mod addr;
pub mod apic;
pub mod clock;
pub mod console;
pub mod cpu;
pub mod ept;
pub mod exits;
pub mod guest;
pub mod ims;
pub mod memory;
pub mod pci;
pub mod platform;
pub mod sync;
pub mod vdev;
pub mod vmx;
pub mod vtd;
