//! Offsets of fields of the fixed ACPI description table (FADT): ACPI 6.5, table 5.9.
#![forbid(unsafe_code)]

/// Port of a register: u32.
pub const SMI_CMD: usize = 48;
/// As [`SMI_CMD`].
pub const PM1A_EVT_BLK: usize = 56;
/// As [`SMI_CMD`].
pub const PM1B_EVT_BLK: usize = 60;
/// As [`SMI_CMD`].
pub const PM1A_CNT_BLK: usize = 64;
/// As [`SMI_CMD`].
pub const PM1B_CNT_BLK: usize = 68;
/// As [`SMI_CMD`].
pub const PM2_CNT_BLK: usize = 72;
/// As [`SMI_CMD`].
pub const PM_TMR_BLK: usize = 76;
/// As [`SMI_CMD`].
pub const GPE0_BLK: usize = 80;
/// As [`SMI_CMD`].
pub const GPE1_BLK: usize = 84;

/// Bytes of each of the two registers PM1_EVT: u8.
pub const PM1_EVT_LEN: usize = 88;
/// Bytes of each of the two registers PM1_CNT: u8.
pub const PM1_CNT_LEN: usize = 89;
/// Bytes of a register: u8.
pub const PM2_CNT_LEN: usize = 90;
/// As [`PM2_CNT_LEN`].
pub const PM_TMR_LEN: usize = 91;
/// As [`PM2_CNT_LEN`].
pub const GPE0_BLK_LEN: usize = 92;
/// As [`PM2_CNT_LEN`].
pub const GPE1_BLK_LEN: usize = 93;

/// Index of the CMOS clock's byte with the century: u8.
pub const CENTURY: usize = 108;
/// IAPC_BOOT_ARCH (table 5.11): u16.
pub const IAPC_BOOT_ARCH: usize = 109;
/// Flags (table 5.10): u32.
pub const FLAGS: usize = 112;

/// A generic address structure.
pub const RESET_REG: usize = 116;
/// As [`RESET_REG`].
pub const X_PM1A_EVT_BLK: usize = 148;
/// As [`RESET_REG`].
pub const X_PM1B_EVT_BLK: usize = 160;
/// As [`RESET_REG`].
pub const X_PM1A_CNT_BLK: usize = 172;
/// As [`RESET_REG`].
pub const X_PM1B_CNT_BLK: usize = 184;
/// As [`RESET_REG`].
pub const X_PM2_CNT_BLK: usize = 196;
/// As [`RESET_REG`].
pub const X_PM_TMR_BLK: usize = 208;
/// As [`RESET_REG`].
pub const X_GPE0_BLK: usize = 220;
/// As [`RESET_REG`].
pub const X_GPE1_BLK: usize = 232;
/// As [`RESET_REG`].
pub const SLEEP_CONTROL_REG: usize = 244;
/// As [`RESET_REG`].
pub const SLEEP_STATUS_REG: usize = 256;
