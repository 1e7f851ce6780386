//! Fault reasons of legacy mode and of interrupt remapping (VT-d appendix A, "Fault Reason Encodings").

/// The root entry is not present.
pub const ROOT_NOT_PRESENT: u8 = 0x01;
/// The context entry is not present.
pub const CONTEXT_NOT_PRESENT: u8 = 0x02;
/// The context entry is invalid: translation type or address width.
pub const CONTEXT_INVALID: u8 = 0x03;
/// The address is beyond the domain's or the unit's address width.
pub const ADDRESS_BEYOND_WIDTH: u8 = 0x04;
/// No write permission.
pub const WRITE_DENIED: u8 = 0x05;
/// No read permission.
pub const READ_DENIED: u8 = 0x06;
/// A second-stage paging entry could not be read.
pub const PAGING_ACCESS: u8 = 0x07;
/// The root table could not be read.
pub const ROOT_ACCESS: u8 = 0x08;
/// The context table could not be read.
pub const CONTEXT_ACCESS: u8 = 0x09;
/// Reserved bits in a present root entry.
pub const ROOT_RESERVED: u8 = 0x0a;
/// Reserved bits in a present context entry.
pub const CONTEXT_RESERVED: u8 = 0x0b;
/// Reserved bits in a present second-stage paging entry.
pub const PAGING_RESERVED: u8 = 0x0c;
/// The translated address lies in the interrupt address range.
pub const OUTPUT_IN_INTERRUPT_RANGE: u8 = 0x0e;
/// Reserved bits in a remappable-format interrupt request.
pub const REQUEST_RESERVED: u8 = 0x20;
/// The interrupt index is beyond the interrupt-remapping table.
pub const INDEX_BEYOND_TABLE: u8 = 0x21;
/// The interrupt-remapping table entry is not present.
pub const ENTRY_NOT_PRESENT: u8 = 0x22;
/// The interrupt-remapping table could not be read.
pub const TABLE_ACCESS: u8 = 0x23;
/// Reserved bits in a present interrupt-remapping table entry.
pub const ENTRY_RESERVED: u8 = 0x24;
/// A compatibility-format request is not allowed.
pub const COMPATIBILITY_BLOCKED: u8 = 0x25;
/// The requester is not the one that the entry names.
pub const SOURCE_ID: u8 = 0x26;
/// The posted-interrupt descriptor could not be accessed.
pub const DESCRIPTOR_ACCESS: u8 = 0x27;
/// Reserved bits in the posted-interrupt descriptor.
pub const DESCRIPTOR_RESERVED: u8 = 0x28;

/// Whether FPD in the entry concerned suppresses the record ("qualified" faults).
pub(crate) const fn is_qualified(reason: u8) -> bool {
    !matches!(
        reason,
        ROOT_NOT_PRESENT
            | ROOT_ACCESS
            | CONTEXT_ACCESS
            | ROOT_RESERVED
            | REQUEST_RESERVED
            | INDEX_BEYOND_TABLE
            | TABLE_ACCESS
            | COMPATIBILITY_BLOCKED
    )
}
