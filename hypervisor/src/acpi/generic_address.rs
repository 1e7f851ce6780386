//! The generic address structure: ACPI 6.5, section 5.2.3.2.

use super::bytes::{u8_at, u64_at};

/// Address space: system memory.
pub(super) const MEMORY: u8 = 0;
/// Address space: I/O ports.
pub(super) const IO: u8 = 1;

/// The last I/O port.
pub(super) const LAST_PORT: u64 = 0xffff;

/// Where a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GenericAddress {
    /// The address space: [`MEMORY`], [`IO`] or another one.
    pub space: u8,
    /// Bits of the register.
    pub bit_width: u8,
    /// The register's first bit at the address.
    pub bit_offset: u8,
    /// The size of an access: 0 is undefined, 1 to 4 are bytes, words, dwords, quadwords.
    pub access_size: u8,
    /// The address in its space.
    pub address: u64,
}

impl GenericAddress {
    /// Reads the structure at offset `at` of a table. `None`: the table ends before the structure's end.
    pub fn parse(table: &[u8], at: usize) -> Option<Self> {
        let byte = |offset| u8_at(table, at + offset);
        Some(Self {
            space: byte(0)?,
            bit_width: byte(1)?,
            bit_offset: byte(2)?,
            access_size: byte(3)?,
            address: u64_at(table, at + 4)?,
        })
    }
}
