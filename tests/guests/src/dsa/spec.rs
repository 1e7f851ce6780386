//! Offsets and bits.
#![allow(missing_docs, reason = "the names are those of registers.h and idxd.h")]

pub const VENDOR: u16 = 0x8086;
/// Of Sapphire Rapids to Granite Rapids, Granite Rapids D, Diamond Rapids.
pub const DEVICES: [u16; 3] = [0x0b25, 0x11fb, 0x1212];
/// Subsystem IDs of our models' devices whose portals take a descriptor in pieces of 8 bytes.
pub const SUBSYSTEM_PIECES: u16 = 0x9108;
pub const SUBSYSTEM_SLOW_STORE: u16 = 0x510e;

pub const GENCAP: u64 = 0x10;
pub const WQCAP: u64 = 0x20;
pub const TABLE_OFFSETS: u64 = 0x60;
pub const GENCTRL: u64 = 0x88;
pub const GENSTS: u64 = 0x90;
pub const INTCAUSE: u64 = 0x98;
pub const CMD: u64 = 0xa0;
pub const CMDSTS: u64 = 0xa8;
pub const CMDCAP: u64 = 0xb0;
pub const SWERR: u64 = 0xc0;

pub const GENSTS_STATE: u32 = 0b11;
pub const GENSTS_ENABLED: u32 = 1;
pub const CMDSTS_ACTIVE: u32 = 1 << 31;
pub const CMD_SHIFT: u32 = 20;
/// CMD: an interrupt at completion.
pub const CMD_INTERRUPT: u32 = 1 << 31;
pub const INTCAUSE_ERROR: u32 = 1 << 0;
pub const INTCAUSE_COMMAND: u32 = 1 << 1;
/// GENCTRL: an interrupt at a software error.
pub const GENCTRL_ERROR: u32 = 1 << 0;
pub const SWERR_VALID: u32 = 1 << 0;
/// Operand of the interrupt handle commands: IMS, not MSI-X.
pub const HANDLE_IMS: u32 = 1 << 16;
/// GENSTS: the device has halted.
pub const GENSTS_HALTED: u32 = 3;
/// GENCTRL: an interrupt at a halt.
pub const GENCTRL_HALT: u32 = 1 << 1;
/// INTCAUSE: the device has halted.
pub const INTCAUSE_HALTED: u32 = 1 << 4;
/// INTCAUSE: interrupt handles were revoked.
pub const INTCAUSE_HANDLE_REVOKED: u32 = 1 << 31;
/// GENCAP: CMDCAP is there.
pub const GENCAP_COMMANDS: u32 = 1 << 4;
/// GENCAP's maximum IMS multiplier counts in these.
pub const IMS_UNIT: u32 = 256;
/// TABLE OFFSETS counts in these.
pub const TABLE_UNIT: u64 = 0x100;

pub const COMMAND_ENABLE_DEVICE: u32 = 1;
pub const COMMAND_DISABLE_DEVICE: u32 = 2;
pub const COMMAND_DRAIN_ALL: u32 = 3;
pub const COMMAND_RESET_DEVICE: u32 = 5;
pub const COMMAND_ENABLE_WQ: u32 = 6;
pub const COMMAND_DISABLE_WQ: u32 = 7;
pub const COMMAND_REQUEST_INT_HANDLE: u32 = 13;
pub const COMMAND_RELEASE_INT_HANDLE: u32 = 14;
/// Our model only: the device takes a handle away.
pub const COMMAND_REVOKE_INT_HANDLE: u32 = 31;

/// In a group's configuration: its engines, its flags. The mask of its work queues is at 0.
pub const GROUP_ENGINES: u64 = 32;
pub const GROUP_FLAGS: u64 = 40;
pub const WQCFG_MODE_DEDICATED: u32 = 1;
pub const WQCFG_PASID_ENABLE: u32 = 1 << 28;

pub const PORTAL_SIZE: u64 = 4096;
/// MSI-X unlimited, MSI-X limited, IMS unlimited, IMS limited.
pub const PORTALS_PER_WQ: u64 = 4;
pub const PORTAL_MSIX_UNLIMITED: u64 = 0;
pub const PORTAL_IMS_UNLIMITED: u64 = 2;

pub const OPCODE_NOOP: u8 = 0;
pub const OPCODE_MEMMOVE: u8 = 3;
pub const OPCODE_MEMFILL: u8 = 4;
pub const OPCODE_CRCGEN: u8 = 0x10;

pub const FLAG_CRAV: u32 = 0x04;
pub const FLAG_RCR: u32 = 0x08;
pub const FLAG_RCI: u32 = 0x10;

pub const STATUS_NONE: u8 = 0;
pub const STATUS_SUCCESS: u8 = 1;
pub const STATUS_PAGE_FAULT: u8 = 3;
pub const STATUS_INT_HANDLE_INVAL: u8 = 0x19;
/// Status: bit 7 says that the page fault was on a write.
pub const STATUS_MASK: u8 = 0x7f;
