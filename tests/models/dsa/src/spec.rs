//! Layouts and numbers: registers, commands, descriptors, completion records.
//!
//! They follow Linux's `drivers/dma/idxd/registers.h` and `include/uapi/linux/idxd.h`. Where the tables lie is a device's own
//! choice ([`Layout`](crate::Layout)).

/// The PCI vendor ID: Intel.
pub const VENDOR_ID: u16 = 0x8086;
/// The PCI device ID of Granite Rapids D's DSA, which has no known erratum.
pub const DEVICE_ID: u16 = 0x11fb;
/// That of Sapphire Rapids' DSA, the only one that packaged Linux kernels know. Giving it to a guest is not safe (INTEL-SA-01084).
pub const DEVICE_ID_SAPPHIRE_RAPIDS: u16 = 0x0b25;
/// Base class, sub-class and programming interface: "other system peripheral".
pub const CLASS: u32 = 0x08_8000;

/// The size of BAR2, the portals.
pub const BAR2_SIZE: u32 = WQS as u32 * PORTALS_PER_WQ as u32 * PORTAL_SIZE as u32;

/// Work queues.
pub const WQS: usize = 8;
/// Groups.
pub const GROUPS: usize = 4;
/// Engines.
pub const ENGINES: usize = 4;
/// Descriptors that all work queues together can hold.
pub const TOTAL_WQ_SIZE: u32 = 128;
/// Read buffers of all engines together: as many as Intel's have.
pub const READ_BUFFERS: u8 = 96;

/// A portal is a page.
pub const PORTAL_SIZE: u64 = 4096;
/// MSI-X unlimited, MSI-X limited, IMS unlimited, IMS limited (`idxd_get_wq_portal_full_offset`).
pub const PORTALS_PER_WQ: u64 = 4;

/// Subsystem ID of a device whose store is slow. Not Intel's.
pub const SLOW_STORE_SUBSYSTEM: u16 = 0x510e;
/// Subsystem ID of a device whose portals take a descriptor in pieces of 8 bytes: where the processor has no stores of 64 bytes, or they
/// do not reach the device. Not Intel's.
pub const PIECES_SUBSYSTEM: u16 = 0x9108;

/// Where in configuration space the MSI-X capability is.
pub const MSIX_CAPABILITY: u16 = 0x80;

/// Register offsets in BAR0.
pub mod register {
    #![allow(missing_docs, reason = "the names are those of registers.h")]
    pub const VERSION: u64 = 0x00;
    pub const GENCAP: u64 = 0x10;
    pub const WQCAP: u64 = 0x20;
    pub const GRPCAP: u64 = 0x30;
    pub const ENGCAP: u64 = 0x38;
    pub const OPCAP: u64 = 0x40;
    pub const TABLE_OFFSETS: u64 = 0x60;
    pub const GENCFG: u64 = 0x80;
    pub const GENCTRL: u64 = 0x88;
    pub const GENSTS: u64 = 0x90;
    pub const INTCAUSE: u64 = 0x98;
    pub const CMD: u64 = 0xa0;
    pub const CMDSTS: u64 = 0xa8;
    pub const CMDCAP: u64 = 0xb0;
    pub const SWERR: u64 = 0xc0;
    pub const END: u64 = 0x100;
}

/// GENCAP bits.
pub mod gencap {
    /// Work queues may have their descriptors wait for pages.
    pub const BLOCK_ON_FAULT: u64 = 1 << 0;
    /// Overlapping source and destination are copied right.
    pub const OVERLAP_COPY: u64 = 1 << 1;
    /// The cache control flag is accepted for memory destinations.
    pub const CACHE_CONTROL_MEMORY: u64 = 1 << 2;
    /// The cache control flag is accepted for cache flushes.
    pub const CACHE_CONTROL_CACHE: u64 = 1 << 3;
    /// The CMDCAP register is there.
    pub const COMMAND_CAPABILITIES: u64 = 1 << 4;
    /// Where the maximum transfer shift begins.
    pub const MAX_TRANSFER_SHIFT: u32 = 16;
    /// Where the maximum batch shift begins.
    pub const MAX_BATCH_SHIFT: u32 = 21;
    /// Where the number of IMS slots, in units of [`IMS_UNIT`], begins.
    pub const MAX_IMS_MULTIPLIER: u32 = 25;
    /// Configuration is writable.
    pub const CONFIG_ENABLE: u64 = 1 << 31;
    /// The most that the field of six bits can say.
    pub const MOST_MULTIPLIER: u8 = 63;
    /// One step of the maximum IMS multiplier.
    pub const IMS_UNIT: u16 = 256;
}

/// GENCTRL: a recorded software error raises an interrupt.
pub const GENCTRL_SOFTWARE_ERROR_INTERRUPT: u32 = 1 << 0;
/// GENCTRL: a halt raises an interrupt.
pub const GENCTRL_HALT_INTERRUPT: u32 = 1 << 1;
/// GENSTS: the device has halted, and a software reset ends that (`enum idxd_device_status_state`, `enum idxd_device_reset_type`).
pub const GENSTS_HALTED: u32 = 3;
/// GENCTRL: the writable bits.
pub const GENCTRL_WRITABLE: u32 = 0b11;

/// INTCAUSE bits that the model sets.
pub mod intcause {
    /// A software error was recorded.
    pub const ERROR: u32 = 1 << 0;
    /// A command completed.
    pub const COMMAND: u32 = 1 << 1;
    /// The device has halted.
    pub const HALTED: u32 = 1 << 4;
    /// Interrupt handles were revoked.
    pub const HANDLE_REVOKED: u32 = 1 << 31;
}

/// SWERR, first quadword.
pub mod swerr {
    /// A record is there.
    pub const VALID: u64 = 1 << 0;
    /// Another error came while a record was there.
    pub const OVERFLOW: u64 = 1 << 1;
    /// The descriptor's fields in the record are valid.
    pub const DESCRIPTOR_VALID: u64 = 1 << 2;
    /// The work queue's index is valid.
    pub const WQ_INDEX_VALID: u64 = 1 << 3;
    /// The fault was on a write.
    pub const FAULT_WRITE: u64 = 1 << 5;
    /// Where the error code (a completion status) begins.
    pub const ERROR: u32 = 8;
    /// Where the work queue's index begins.
    pub const WQ_INDEX: u32 = 16;
    /// Where the opcode begins.
    pub const OPERATION: u32 = 32;
    /// Where the PASID begins.
    pub const PASID: u32 = 40;
}

/// Commands (`enum idxd_cmd`).
pub mod command {
    #![allow(missing_docs, reason = "the names are those of registers.h")]
    pub const ENABLE_DEVICE: u32 = 1;
    pub const DISABLE_DEVICE: u32 = 2;
    pub const DRAIN_ALL: u32 = 3;
    pub const ABORT_ALL: u32 = 4;
    pub const RESET_DEVICE: u32 = 5;
    pub const ENABLE_WQ: u32 = 6;
    pub const DISABLE_WQ: u32 = 7;
    pub const DRAIN_WQ: u32 = 8;
    pub const ABORT_WQ: u32 = 9;
    pub const RESET_WQ: u32 = 10;
    pub const DRAIN_PASID: u32 = 11;
    pub const ABORT_PASID: u32 = 12;
    pub const REQUEST_INT_HANDLE: u32 = 13;
    pub const RELEASE_INT_HANDLE: u32 = 14;
    /// Not Intel's, and not in CMDCAP: the device takes a handle away, as a real one does by itself when its function moves.
    pub const REVOKE_INT_HANDLE: u32 = 31;
    /// CMD: where the command begins; the operand is below.
    pub const SHIFT: u32 = 20;
    /// CMDSTS: the command is under way.
    pub const ACTIVE: u32 = 1 << 31;
    /// CMD: ask for an interrupt at completion.
    pub const REQUEST_INTERRUPT: u32 = 1 << 31;
    /// The operand's bit that says "IMS, not MSI-X" (`CMD_INT_HANDLE_IMS`).
    pub const HANDLE_IMS: u32 = 1 << 16;
}

/// Command errors (`enum idxd_cmdsts_err`).
///
/// `registers.h` only numbers the four group configuration errors; what each one means here is the model's choice.
pub mod command_error {
    #![allow(missing_docs, reason = "the names are those of registers.h")]
    pub const INVAL_CMD: u8 = 0x01;
    pub const INVAL_WQIDX: u8 = 0x02;
    pub const HW_ERR: u8 = 0x03;
    pub const DEV_ENABLED: u8 = 0x10;
    pub const BUSMASTER_EN: u8 = 0x12;
    pub const WQ_SIZE_ERANGE: u8 = 0x14;
    /// A work queue or an engine that does not exist.
    pub const GRP_CONFIG: u8 = 0x15;
    /// A work queue in two groups, or one with a size in none.
    pub const GRP_CONFIG2: u8 = 0x16;
    /// An engine in two groups.
    pub const GRP_CONFIG3: u8 = 0x17;
    /// Work queues without an engine, or engines without a work queue.
    pub const GRP_CONFIG4: u8 = 0x18;
    pub const DEV_NOTEN: u8 = 0x20;
    pub const WQ_ENABLED: u8 = 0x21;
    pub const WQ_SIZE: u8 = 0x22;
    pub const WQ_PRIOR: u8 = 0x23;
    pub const BOF_EN: u8 = 0x25;
    pub const PASID_EN: u8 = 0x26;
    pub const MAX_BATCH_SIZE: u8 = 0x27;
    pub const MAX_XFER_SIZE: u8 = 0x28;
    pub const DIS_DEV_EN: u8 = 0x31;
    pub const DEV_NOT_EN: u8 = 0x32;
    pub const INVAL_INT_IDX: u8 = 0x41;
    pub const NO_HANDLE: u8 = 0x42;
}

/// Opcodes (`enum dsa_opcode`).
pub mod opcode {
    #![allow(missing_docs, reason = "the names are those of idxd.h")]
    pub const NOOP: u8 = 0;
    pub const BATCH: u8 = 1;
    pub const DRAIN: u8 = 2;
    pub const MEMMOVE: u8 = 3;
    pub const MEMFILL: u8 = 4;
    pub const COMPARE: u8 = 5;
    pub const CRCGEN: u8 = 0x10;
    /// All of them, as OPCAP shows them.
    pub const ALL: u64 = 1 << NOOP | 1 << BATCH | 1 << DRAIN | 1 << MEMMOVE | 1 << MEMFILL | 1 << COMPARE | 1 << CRCGEN;
}

/// Descriptor flags (`IDXD_OP_FLAG_*`).
pub mod flag {
    #![allow(missing_docs, reason = "the names are those of idxd.h")]
    pub const FENCE: u32 = 0x0001;
    pub const BOF: u32 = 0x0002;
    pub const CRAV: u32 = 0x0004;
    pub const RCR: u32 = 0x0008;
    pub const RCI: u32 = 0x0010;
    pub const CR: u32 = 0x0080;
    pub const CC: u32 = 0x0100;
    pub const ADDR1_TCS: u32 = 0x0200;
    pub const ADDR2_TCS: u32 = 0x0400;
    pub const CR_TCS: u32 = 0x1000;
    pub const STORD: u32 = 0x2000;
    /// CRC: the seed is in memory.
    pub const READ_CRC_SEED: u32 = 1 << 16;
    /// CRC: seed and result are neither inverted nor reflected.
    pub const BYPASS_REFLECTION: u32 = 1 << 17;
    /// CRC: bit 7 of each byte is the most significant one.
    pub const BYPASS_DATA_REFLECTION: u32 = 1 << 18;
}

/// Completion status (`enum dsa_completion_status`).
pub mod status {
    #![allow(missing_docs, reason = "the names are those of idxd.h")]
    pub const SUCCESS: u8 = 0x01;
    pub const SUCCESS_PRED: u8 = 0x02;
    pub const PAGE_FAULT_NOBOF: u8 = 0x03;
    pub const PAGE_FAULT_IR: u8 = 0x04;
    pub const BATCH_FAIL: u8 = 0x05;
    pub const BATCH_PAGE_FAULT: u8 = 0x06;
    pub const BAD_OPCODE: u8 = 0x10;
    pub const INVALID_FLAGS: u8 = 0x11;
    pub const NOZERO_RESERVE: u8 = 0x12;
    pub const XFER_ERANGE: u8 = 0x13;
    pub const DESC_CNT_ERANGE: u8 = 0x14;
    pub const DESCLIST_ALIGN: u8 = 0x18;
    pub const INT_HANDLE_INVAL: u8 = 0x19;
    pub const CRA_XLAT: u8 = 0x1a;
    pub const CRA_ALIGN: u8 = 0x1b;
    /// `DSA_COMP_STATUS_WRITE`: the page fault was on a write.
    pub const WRITE: u8 = 0x80;
}

/// An entry of the MSI-X table or of the IMS: dwords, and the bits of the last one.
pub mod slot {
    /// Bytes of a slot.
    pub const SIZE: u64 = 16;
    /// ctrl: masked.
    pub const MASK: u32 = 1 << 0;
    /// ctrl: a message waits (IMS only; read-only).
    pub const PENDING: u32 = 1 << 1;
    /// ctrl, and MSI-X permissions: the PASID is compared.
    pub const PASID_ENABLE: u32 = 1 << 3;
    /// ctrl, and MSI-X permissions: the PASID.
    pub const PASID: u32 = 0xffff_f000;
    /// Where the PASID begins.
    pub const PASID_SHIFT: u32 = 12;
}
