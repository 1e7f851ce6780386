//! I/O ports of the chipset, as far as the FADT names them: ACPI 6.5, sections 4.8 and 5.2.9.
//!
//! A write to such a port can switch the machine off, or send its firmware an SMI. So what is taken for a serial port must not be there.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::bytes::{u8_at, u32_at, u64_at};
use crate::options::SerialPort;

/// Registers that the table names by a port: SMI_CMD, PM1a_EVT_BLK, PM1b_EVT_BLK, PM1a_CNT_BLK, PM1b_CNT_BLK, PM2_CNT_BLK, PM_TMR_BLK,
/// GPE0_BLK, GPE1_BLK (table 5.9). With each comes the field that has its length in bytes; SMI_CMD has one byte.
const PORTS: [(usize, Option<usize>); 9] = [
    (48, None),
    (56, Some(88)),
    (60, Some(88)),
    (64, Some(89)),
    (68, Some(89)),
    (72, Some(90)),
    (76, Some(91)),
    (80, Some(92)),
    (84, Some(93)),
];

/// Registers that it names by a generic address structure: RESET_REG, X_PM1a_EVT_BLK and those like the above up to X_GPE1_BLK,
/// SLEEP_CONTROL_REG, SLEEP_STATUS_REG.
const STRUCTURES: [usize; 11] = [116, 148, 160, 172, 184, 196, 208, 220, 232, 244, 256];
/// The structure's address space for I/O ports, and its fields (5.2.3.2).
const IO: u8 = 1;
const BIT_WIDTH: usize = 1;
const ADDRESS: usize = 4;

/// What a chipset decodes around a register: the registers lie in one block, in which the table does not name them all (Intel's have
/// SMI_EN in the block of PM1a). Such blocks have 64 to 256 ports.
const BLOCK: u64 = 0x100;
const LAST_PORT: u64 = 0xffff;

/// The ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChipsetPorts(Vec<RangeInclusive<u64>>);

impl ChipsetPorts {
    /// Reads the FADT, header included. Registers in memory, and those that cannot be, take no port.
    pub fn parse(fadt: &[u8]) -> Self {
        let fixed = PORTS.into_iter().filter_map(|(at, len)| {
            let bytes = len.and_then(|len| u8_at(fadt, len)).unwrap_or(1);
            Some((u64::from(u32_at(fadt, at)?), u64::from(bytes)))
        });
        let extended = STRUCTURES.into_iter().filter_map(|at| {
            let address = u64_at(fadt, at + ADDRESS)?;
            (u8_at(fadt, at)? == IO).then_some((address, u64::from(u8_at(fadt, at + BIT_WIDTH)?).div_ceil(8)))
        });
        let possible = fixed.chain(extended).filter(|&(first, _)| (1..=LAST_PORT).contains(&first));
        Self(possible.map(|(first, bytes)| block_of(first)..=block_of(first + bytes.max(1) - 1) + BLOCK - 1).collect())
    }

    /// Whether one of the chipset's ports, or what lies in a block with one, would be a port of this UART.
    pub fn contains(&self, port: SerialPort) -> bool {
        self.0.iter().any(|block| block.contains(&port.base().into()))
    }
}

const fn block_of(port: u64) -> u64 {
    port / BLOCK * BLOCK
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A table with PM1a_EVT_BLK at this port.
    pub fn with_pm1a(port: u16) -> Vec<u8> {
        let mut fadt = vec![0; 276];
        fadt[56..60].copy_from_slice(&u32::from(port).to_le_bytes());
        fadt[88] = 4;
        fadt
    }

    fn contains(fadt: &[u8], port: u64) -> bool {
        ChipsetPorts::parse(fadt).contains(SerialPort::new(port).unwrap())
    }

    /// By hand from table 5.9: the field, and its length's. The second length reaches into the next block.
    #[test]
    fn every_register_that_the_table_names_takes_the_blocks_that_it_is_in() {
        let seen = |fadt: &[u8]| [0x17f8, 0x1800, 0x1830, 0x18f8, 0x1900, 0x1a00].map(|port| contains(fadt, port));
        for (at, len) in [(48, 0), (56, 88), (60, 88), (64, 89), (68, 89), (72, 90), (76, 91), (80, 92), (84, 93)] {
            let mut fadt = vec![0; 276];
            fadt[at..at + 4].copy_from_slice(&0x18f4u32.to_le_bytes());
            assert_eq!(seen(&fadt), [false, true, true, true, false, false], "{at}");
            fadt[len] = 0x20;
            assert_eq!(seen(&fadt), [false, true, true, true, len != 0, false], "{at}");
        }
        for at in [116, 148, 160, 172, 184, 196, 208, 220, 232, 244, 256] {
            let mut fadt = vec![0; 276];
            fadt[at..at + 4].copy_from_slice(&[1, 32, 0, 0]);
            fadt[at + 4..at + 12].copy_from_slice(&0x18f4u64.to_le_bytes());
            assert_eq!(seen(&fadt), [false, true, true, true, false, false], "{at}");
            fadt[at + 1] = 128;
            assert!(contains(&fadt, 0x1900), "{at}");
            fadt[at] = 0;
            assert_eq!(seen(&fadt), [false; 6], "{at}: in memory");
        }
    }

    #[test]
    fn ports_that_cannot_be_and_tables_that_are_too_short_take_nothing() {
        for address in [0u32, 0x1_0000, u32::MAX] {
            let mut fadt = vec![0; 276];
            fadt[56..60].copy_from_slice(&address.to_le_bytes());
            assert_eq!(ChipsetPorts::parse(&fadt), ChipsetPorts(Vec::new()), "{address:#x}");
        }
        assert_eq!(ChipsetPorts::parse(&with_pm1a(0x1800)[..59]), ChipsetPorts(Vec::new()));
    }

    proptest! {
        #[test]
        fn random_tables_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            ChipsetPorts::parse(&bytes).contains(SerialPort::COM[0]);
        }
    }
}
