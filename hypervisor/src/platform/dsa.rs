//! What the hypervisor has to know of Intel DSA beyond PCI: where its interrupt message store is, and how it is reset.
//!
//! Register offsets and fields: Intel DSA architecture specification, chapter 9; Linux `drivers/dma/idxd/registers.h`.

use bit_field::BitField;

use crate::{memory::Registers, pci::Function};

/// PCI IDs.
const VENDOR: u16 = 0x8086;
/// PCI device ID.
const DEVICE: u16 = 0x0b25;

/// BAR with registers and tables.
pub const REGISTERS_BAR: u8 = 0;

const GENCAP: usize = 0x10;
const TABLE_OFFSETS: usize = 0x60;
/// The command register.
pub const CMD: u64 = 0xa0;
const CMDSTS: usize = 0xa8;

/// Commands: bits 24:20 of the command register.
const COMMAND_RESET_DEVICE: u32 = 5;

/// A store's size is told in units of 256 slots, table offsets in units of 256 bytes.
const IMS_UNIT: u32 = 256;
const OFFSET_UNIT: u32 = 0x100;

/// Reads of the status register before a command counts as stuck.
const STATUS_READS: u32 = 100_000;

/// Where a store is in [`REGISTERS_BAR`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageStore {
    /// Offset of the first slot.
    pub offset: u32,
    /// Slots of 16 bytes.
    pub slots: u32,
}

/// Whether a function is one.
pub fn is_one(function: &Function) -> bool {
    (function.vendor, function.device) == (VENDOR, DEVICE)
}

/// Reads where the interrupt message store is; `None` when the device says that it has none.
pub fn message_store(registers: &impl Registers) -> Option<MessageStore> {
    let slots = registers.read64(GENCAP).get_bits(25..31) as u32 * IMS_UNIT;
    let offset = registers.read64(TABLE_OFFSETS).get_bits(48..64) as u32 * OFFSET_UNIT;
    (slots != 0 && offset != 0).then_some(MessageStore { offset, slots })
}

/// Whether a write of `bytes` bytes at `offset` of the registers starts a reset of the device.
pub fn is_reset(offset: u64, bytes: u8, value: u64) -> bool {
    // The register takes effect when its command bits are written: an access that covers bytes 2 and 3 of it.
    let Some(at) = (CMD + 2).checked_sub(offset) else { return false };
    at + 2 <= u64::from(bytes) && (value >> (8 * at)) as u32 >> 4 & 0x1f == COMMAND_RESET_DEVICE
}

/// Waits until the device has done its last command. Returns whether it has.
pub fn wait_command(registers: &impl Registers) -> bool {
    (0..STATUS_READS).any(|_| !registers.read32(CMDSTS).get_bit(31))
}

/// Resets the device. Returns whether it answered.
pub fn reset(registers: &impl Registers) -> bool {
    registers.write32(CMD as usize, COMMAND_RESET_DEVICE << 20);
    wait_command(registers)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake([u64; 64]);

    impl Registers for Fake {
        fn read32(&self, offset: usize) -> u32 {
            (self.0[offset / 8] >> (8 * (offset % 8))) as u32
        }
        fn read64(&self, offset: usize) -> u64 {
            self.0[offset / 8]
        }
        fn write32(&self, _: usize, _: u32) {}
        fn write64(&self, _: usize, _: u64) {}
    }

    #[test]
    fn the_store_is_where_the_device_says() {
        let mut fake = Fake([0; 64]);
        assert_eq!(message_store(&fake), None);
        fake.0[GENCAP / 8] = 16 << 25;
        fake.0[TABLE_OFFSETS / 8] = 0x400 << 48;
        assert_eq!(message_store(&fake), Some(MessageStore { offset: 0x40000, slots: 4096 }));
    }

    #[test]
    fn a_reset_is_seen_in_every_width_that_can_write_it() {
        let reset = u64::from(COMMAND_RESET_DEVICE << 20);
        assert!(is_reset(CMD, 4, reset));
        assert!(is_reset(CMD, 8, reset));
        assert!(is_reset(CMD + 2, 2, reset >> 16));
        assert!(is_reset(CMD - 4, 8, reset << 32));
        assert!(!is_reset(CMD, 2, reset));
        assert!(!is_reset(CMD, 4, 6 << 20));
        assert!(!is_reset(CMD + 4, 4, reset));
        assert!(!is_reset(CMD - 8, 8, u64::MAX));
    }

    #[test]
    fn a_device_that_never_answers_is_given_up() {
        let mut fake = Fake([0; 64]);
        fake.0[CMDSTS / 8] = 1 << 31;
        assert!(!wait_command(&fake));
    }
}
