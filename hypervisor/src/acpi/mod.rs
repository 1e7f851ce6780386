//! The firmware's tables: processors, nodes, PCI configuration space, remapping units, timer and console.
//!
//! The hypervisor walks the tables by itself. The crate `acpi` (6.1) loops for ever on a MADT entry of length 0 and reads beyond an MCFG
//! that is shorter than its header. This hypervisor does not trust firmware: each table is a slice, and each field is read with bounds.

mod bytes;
pub mod chipset_ports;
pub mod dmar;
pub mod fadt;
mod fadt_spec;
mod generic_address;
pub mod madt;
pub mod mcfg;
#[cfg(test)]
mod real_tests;
pub mod spcr;
pub mod srat;
pub mod tables;

pub use chipset_ports::ChipsetPorts;
pub use dmar::{DefectKind, Dmar, DmarDefect, Drhd, Rmrr, Satc, Scope, ScopeKind};
pub use fadt::{CmosClock, PmTimer};
pub use madt::{Processor, io_apics, processors};
pub use mcfg::{EcamWindow, ecam_windows};
pub use spcr::{FirmwareConsole, NoConsole, firmware_console};
pub use srat::Srat;
pub use tables::{FirmwareMemory, IdentityMapped, Missing, Rsdp, Table, Tables};
