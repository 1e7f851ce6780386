//! A plugin for the Bochs emulator, version 3.0: a machine with a VT-d remapping unit and a DSA.
//!
//! It puts the two models, which know nothing of Bochs, on the emulator's memory map and PCI bus, adds DMAR, MCFG and an SSDT
//! to the tables of the BIOS, and gives the machine an ECAM window and an I/O APIC of its own. Options and report file come from the
//! environment, as `tests/MACHINES.md` describes ("The emulated machine").
//!
//! Bochs' I/O APIC delivers past any remapping unit, and Linux uses no unit whose DMAR leaves an I/O APIC out. So [`ioapic`] takes
//! its place: its messages go through the unit, with a requester ID that the DMAR names. Message writes of other emulated devices
//! (the HPET) are caught, but without their requester: they count as requester ffff's.

mod acpi;
mod aml;
mod ffi;
mod ioapic;
mod layout;
mod machine;
mod odd;
mod options;
