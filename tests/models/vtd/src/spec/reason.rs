//! Fault reasons of legacy mode, of scalable mode with second-stage tables, and of interrupt remapping (VT-d appendix A, "Fault
//! Reason Encodings").

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

/// A request with PASID while the root table is one of legacy mode.
pub const SM_PASID_IN_LEGACY_MODE: u8 = 0x31;
/// Scalable mode: the root table could not be read.
pub const SM_ROOT_ACCESS: u8 = 0x38;
/// Scalable mode: LP or UP of the root entry is clear.
pub const SM_ROOT_NOT_PRESENT: u8 = 0x39;
/// Scalable mode: reserved bits in a root entry with LP or UP.
pub const SM_ROOT_RESERVED: u8 = 0x3a;
/// Scalable mode: the context table could not be read.
pub const SM_CONTEXT_ACCESS: u8 = 0x40;
/// Scalable mode: the context entry is not present.
pub const SM_CONTEXT_NOT_PRESENT: u8 = 0x41;
/// Scalable mode: reserved bits in a present context entry.
pub const SM_CONTEXT_RESERVED: u8 = 0x42;
/// Scalable mode: a request for a translation, and DTE of the context entry is clear.
pub const SM_DEVICE_TLB_DISABLED: u8 = 0x44;
/// Scalable mode: a request with PASID, and PASIDE of the context entry is clear.
pub const SM_PASID_DISABLED: u8 = 0x45;
/// Scalable mode: the PASID is beyond the directory (PDTS).
pub const SM_PASID_BEYOND_DIRECTORY: u8 = 0x46;
/// Scalable mode: a page request, and PRE of the context entry is clear.
pub const SM_PAGE_REQUESTS_DISABLED: u8 = 0x47;
/// Scalable mode: the PASID directory could not be read.
pub const SM_DIRECTORY_ACCESS: u8 = 0x50;
/// Scalable mode: the PASID directory entry is not present.
pub const SM_DIRECTORY_NOT_PRESENT: u8 = 0x51;
/// Scalable mode: reserved bits in a present PASID directory entry.
pub const SM_DIRECTORY_RESERVED: u8 = 0x52;
/// Scalable mode: the PASID table could not be read.
pub const SM_PASID_ACCESS: u8 = 0x58;
/// Scalable mode: the PASID table entry is not present.
pub const SM_PASID_NOT_PRESENT: u8 = 0x59;
/// Scalable mode: reserved bits in a present PASID table entry.
pub const SM_PASID_RESERVED: u8 = 0x5a;
/// Scalable mode: the PASID table entry is invalid: translation type or address width.
pub const SM_PASID_INVALID: u8 = 0x5b;
/// A first-stage paging entry could not be read, or its accessed and dirty bits not be set.
pub const FS_PAGING_ACCESS: u8 = 0x70;
/// A first-stage paging entry is not present.
pub const FS_PAGING_NOT_PRESENT: u8 = 0x71;
/// Reserved bits in a present first-stage paging entry.
pub const FS_PAGING_RESERVED: u8 = 0x72;
/// First stage: the address is not canonical.
pub const FS_NOT_CANONICAL: u8 = 0x80;
/// First stage: a request for user privilege, and a supervisor's page.
pub const FS_USER_DENIED: u8 = 0x81;
/// Scalable mode: a second-stage paging entry could not be read.
pub const SM_PAGING_ACCESS: u8 = 0x78;
/// Scalable mode: a second-stage paging entry permits neither reads nor writes.
pub const SM_PAGING_NOT_PRESENT: u8 = 0x79;
/// Scalable mode: reserved bits in a present second-stage paging entry.
pub const SM_PAGING_RESERVED: u8 = 0x7a;
/// Scalable mode: the address is beyond the unit's width.
pub const SM_ADDRESS_BEYOND_UNIT: u8 = 0x83;
/// Scalable mode: the address is beyond the second-stage tables' width.
pub const SM_ADDRESS_BEYOND_WIDTH: u8 = 0x84;
/// Scalable mode: no write permission.
pub const SM_WRITE_DENIED: u8 = 0x85;
/// Scalable mode: no read permission.
pub const SM_READ_DENIED: u8 = 0x86;
/// Scalable mode: the translated address lies in the interrupt address range.
pub const SM_OUTPUT_IN_INTERRUPT_RANGE: u8 = 0x87;

/// Whether a request for a translation that meets it is answered, with no rights, and not recorded ("recoverable" faults): a page or a
/// right is missing.
pub(crate) const fn is_recoverable(reason: u8) -> bool {
    matches!(reason, FS_PAGING_NOT_PRESENT | FS_USER_DENIED | SM_PAGING_NOT_PRESENT | SM_WRITE_DENIED | SM_READ_DENIED)
}

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
            | SM_PASID_IN_LEGACY_MODE
            | SM_ROOT_ACCESS
            | SM_ROOT_NOT_PRESENT
            | SM_ROOT_RESERVED
            | SM_CONTEXT_ACCESS
    )
}
