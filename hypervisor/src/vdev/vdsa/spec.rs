//! Registers, tables and commands of a DSA: Intel DSA architecture specification, chapters 3 and 9; offsets and numbers are those of Linux
//! `drivers/dma/idxd/registers.h`.

use core::ops::Range;

/// Registers: offsets in BAR 0.
pub const VERSION: usize = 0x00;
/// General capabilities.
pub const GENCAP: usize = 0x10;
/// Capabilities of work queues.
pub const WQCAP: usize = 0x20;
/// How many groups there are.
pub const GRPCAP: usize = 0x30;
/// GRPCAP: groups.
pub const GRPCAP_GROUPS: Range<usize> = 0..8;
/// How many engines there are, in bits 7:0.
pub const ENGCAP: usize = 0x38;
/// Operations: 256 bits.
pub const OPCAP: usize = 0x40;
/// Where tables are.
pub const TABLE_OFFSETS: usize = 0x60;
/// What raises MSI-X entry 0.
pub const GENCTRL: usize = 0x88;
/// The device's state.
pub const GENSTS: usize = 0x90;
/// Why MSI-X entry 0 was raised; written bits are cleared.
pub const INTCAUSE: usize = 0x98;
/// The command register.
pub const CMD: usize = 0xa0;
/// What became of the last command.
pub const CMDSTS: usize = 0xa8;
/// A bit for each command.
pub const CMDCAP: usize = 0xb0;
/// The recorded error: four quadwords.
pub const SWERR: usize = 0xc0;

/// GENCAP: [`CMDCAP`] exists. Without it there are no interrupt handles either, and a descriptor names its MSI-X entry or slot directly.
pub const GENCAP_COMMANDS: usize = 4;
/// GENCAP: the largest transfer, as a power of two.
pub const GENCAP_TRANSFER: Range<usize> = 16..21;
/// GENCAP: the largest batch, as a power of two.
pub const GENCAP_BATCH: Range<usize> = 21..25;
/// GENCAP: slots of the message store, in units of [`IMS_UNIT`].
pub const GENCAP_IMS_SIZE: Range<usize> = 25..31;
/// Slots.
pub const IMS_UNIT: u32 = 256;

/// WQCAP: descriptors of all queues together.
pub const WQCAP_SIZE: Range<usize> = 0..16;
/// WQCAP: queues.
pub const WQCAP_QUEUES: Range<usize> = 16..24;
/// WQCAP: a queue's configuration has 2^(5 + this) bytes.
pub const WQCAP_CONFIG_SIZE: Range<usize> = 24..28;

/// TABLE_OFFSETS: the configuration of groups, in units of [`OFFSET_UNIT`] as the others.
pub const OFFSET_GROUPS: Range<usize> = 0..16;
/// TABLE_OFFSETS: the configuration of work queues.
pub const OFFSET_QUEUES: Range<usize> = 16..32;
/// TABLE_OFFSETS: MSI-X permissions.
pub const OFFSET_PERMISSIONS: Range<usize> = 32..48;
/// TABLE_OFFSETS: the message store.
pub const OFFSET_IMS: Range<usize> = 48..64;
/// The quadword behind TABLE_OFFSETS: performance monitoring.
pub const OFFSET_PERFMON: Range<usize> = 0..16;
/// Bytes.
pub const OFFSET_UNIT: u32 = 0x100;

/// GRPCFG: engines are behind 256 bits of work queues.
pub const GROUP_ENGINES: usize = 32;

/// WQCFG, dword 2: mode (dedicated, [`QUEUE_DEDICATED`]), priority 7:4, PASID 27:8, [`QUEUE_PASID_ENABLE`].
pub const QUEUE_MODE: usize = 8;
/// WQCFG, dword 3: the largest transfer 4:0, the largest batch 8:5.
pub const QUEUE_LIMITS: usize = 12;
/// WQCFG, dword 6: the state, 31:30.
pub const QUEUE_STATE: usize = 24;
/// Dedicated; a priority in the middle.
pub const QUEUE_DEDICATED: u32 = 1 | 8 << 4;
/// The queue's work is done with its PASID.
pub const QUEUE_PASID_ENABLE: u32 = 1 << 28;
/// The state is enabled.
pub const QUEUE_ENABLED: u32 = 1 << 30;

/// GENCTRL: recording an error raises the interrupt.
pub const GENCTRL_ERROR: u32 = 1 << 0;
/// GENCTRL: halting does so.
pub const GENCTRL_HALT: u32 = 1 << 1;

/// INTCAUSE: an error was recorded.
pub const INTCAUSE_ERROR: u32 = 1 << 0;
/// INTCAUSE: a command is done.
pub const INTCAUSE_COMMAND: u32 = 1 << 1;
/// INTCAUSE: interrupt handles were revoked.
pub const INTCAUSE_HANDLES_REVOKED: u32 = 1 << 31;

/// SWERR, first quadword: there is a record. Written to clear it.
pub const SWERR_VALID: u64 = 1 << 0;
/// There was another error since. Written to clear it.
pub const SWERR_OVERFLOW: u64 = 1 << 1;
/// [`SWERR_QUEUE`] says something.
pub const SWERR_QUEUE_VALID: u64 = 1 << 3;
/// The work queue's index.
pub const SWERR_QUEUE: Range<usize> = 16..24;
/// The PASID.
pub const SWERR_PASID: Range<usize> = 40..60;

/// CMD: the operand, 19:0.
pub const CMD_OPERAND: u32 = 0xf_ffff;
/// CMD: the command is 24:20.
pub const CMD_SHIFT: u32 = 20;
/// The command, shifted down.
pub const CMD_MASK: u32 = 0x1f;
/// CMD: 30:25.
pub const CMD_RESERVED: u32 = 0x7e00_0000;
/// CMD: an interrupt at completion.
pub const CMD_INTERRUPT: u32 = 1 << 31;

/// CMDSTS: the error is 7:0, the result is 23:8.
pub const CMDSTS_RESULT_SHIFT: u32 = 8;
/// CMDSTS: the command is under way.
pub const CMDSTS_ACTIVE: u32 = 1 << 31;

/// Commands (`enum idxd_cmd`).
pub mod command {
    /// Enables the device.
    pub const ENABLE_DEVICE: u32 = 1;
    /// Disables the device and its queues.
    pub const DISABLE_DEVICE: u32 = 2;
    /// Waits for all descriptors.
    pub const DRAIN_ALL: u32 = 3;
    /// Gives all descriptors up.
    pub const ABORT_ALL: u32 = 4;
    /// Resets the device.
    pub const RESET_DEVICE: u32 = 5;
    /// Enables the work queue in the operand.
    pub const ENABLE_WQ: u32 = 6;
    /// Disables work queues. The operand of this and the next three is a mask in 15:0 of the sixteen queues that 19:16 selects.
    pub const DISABLE_WQ: u32 = 7;
    /// Waits for work queues' descriptors.
    pub const DRAIN_WQ: u32 = 8;
    /// Gives work queues' descriptors up.
    pub const ABORT_WQ: u32 = 9;
    /// Resets work queues.
    pub const RESET_WQ: u32 = 10;
    /// What a descriptor says to raise the MSI-X entry, or slot, in the operand.
    pub const REQUEST_INT_HANDLE: u32 = 13;
    /// Gives that back.
    pub const RELEASE_INT_HANDLE: u32 = 14;
    /// Operand of these two: a slot of the message store, not an MSI-X entry.
    pub const HANDLE_IMS: u32 = 1 << 16;
}

/// Errors of commands (`enum idxd_cmdsts_err`).
pub mod error {
    /// No such command.
    pub const INVAL_CMD: u8 = 0x01;
    /// No such work queue.
    pub const INVAL_WQIDX: u8 = 0x02;
    /// The device is enabled.
    pub const DEV_ENABLED: u8 = 0x10;
    /// It is no bus master.
    pub const BUSMASTER_EN: u8 = 0x12;
    /// A queue cannot be enabled: the device is not.
    pub const DEV_NOTEN: u8 = 0x20;
    /// The queue is enabled.
    pub const WQ_ENABLED: u8 = 0x21;
    /// The device is not enabled.
    pub const DIS_DEV_EN: u8 = 0x31;
    /// The queue is not enabled.
    pub const DEV_NOT_EN: u8 = 0x32;
    /// No such MSI-X entry, slot or handle.
    pub const INVAL_INT_IDX: u8 = 0x41;
    /// Of the hypervisor, not of the device: the device has not finished the command in time, and may still carry it out.
    pub const NO_ANSWER: u8 = 0xff;
}
