//! A plugin for the Bochs emulator (2.7 and 3.0): a machine with a VT-d remapping unit and a DSA.
//!
//! It puts the two models, which know nothing of Bochs, on the emulator's memory map and PCI bus, adds the DMAR and MCFG
//! tables to what the BIOS made, and gives the machine an ECAM window. Options and report file come from the environment, as
//! the architecture document describes ("The emulated machine").
//!
//! Bochs' I/O APIC and local APICs deliver among themselves, past the remapping unit; so the DMAR table lists no I/O APIC.
//! Message writes of other emulated devices are caught, but without their requester: they count as [`UNKNOWN_SOURCE`]'s.
//!
//! [`UNKNOWN_SOURCE`]: machine::UNKNOWN_SOURCE

mod acpi;
mod ffi;
mod machine;
mod options;
