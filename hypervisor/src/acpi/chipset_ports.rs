//! I/O ports of the chipset, as far as the FADT names them: ACPI 6.5, sections 4.8 and 5.2.9.
//!
//! A write to such a port can switch the machine off, or send an SMI to its firmware. So no such port may be used as a serial port.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::{
    bytes::{u8_at, u32_at},
    fadt_spec::*,
    generic_address::{GenericAddress, IO, LAST_PORT},
};
use crate::options::SerialPort;

/// Registers that the table names by a port, each with the field that has the register's length in bytes; SMI_CMD has one byte.
const PORTS: [(usize, Option<usize>); 9] = [
    (SMI_CMD, None),
    (PM1A_EVT_BLK, Some(PM1_EVT_LEN)),
    (PM1B_EVT_BLK, Some(PM1_EVT_LEN)),
    (PM1A_CNT_BLK, Some(PM1_CNT_LEN)),
    (PM1B_CNT_BLK, Some(PM1_CNT_LEN)),
    (PM2_CNT_BLK, Some(PM2_CNT_LEN)),
    (PM_TMR_BLK, Some(PM_TMR_LEN)),
    (GPE0_BLK, Some(GPE0_BLK_LEN)),
    (GPE1_BLK, Some(GPE1_BLK_LEN)),
];

/// Registers that the table names by a generic address structure.
const STRUCTURES: [usize; 11] = [
    RESET_REG,
    X_PM1A_EVT_BLK,
    X_PM1B_EVT_BLK,
    X_PM1A_CNT_BLK,
    X_PM1B_CNT_BLK,
    X_PM2_CNT_BLK,
    X_PM_TMR_BLK,
    X_GPE0_BLK,
    X_GPE1_BLK,
    SLEEP_CONTROL_REG,
    SLEEP_STATUS_REG,
];

/// What a chipset decodes around a register: the registers lie in one block, in which the table does not name them all (Intel's have
/// SMI_EN in the block of PM1a). Such blocks have 64 to 256 ports.
const BLOCK: u64 = 0x100;

/// The ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChipsetPorts(Vec<RangeInclusive<u64>>);

impl ChipsetPorts {
    /// Reads the FADT, header included. Registers in memory, and impossible ones, count as no port.
    pub fn parse(fadt: &[u8]) -> Self {
        let fixed = PORTS.into_iter().filter_map(|(at, len)| {
            let bytes = len.and_then(|len| u8_at(fadt, len)).unwrap_or(1);
            Some((u64::from(u32_at(fadt, at)?), u64::from(bytes)))
        });
        let extended = STRUCTURES.into_iter().filter_map(|at| {
            let GenericAddress { space, bit_width, address, .. } = GenericAddress::parse(fadt, at)?;
            (space == IO).then_some((address, u64::from(bit_width).div_ceil(8)))
        });
        let possible = fixed.chain(extended).filter(|&(first, _)| (1..=LAST_PORT).contains(&first));
        Self(possible.map(|(first, bytes)| block_of(first)..=block_of(first + bytes.max(1) - 1) + BLOCK - 1).collect())
    }

    /// Whether a port of this UART is one of the chipset's ports, or in a block with one.
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
