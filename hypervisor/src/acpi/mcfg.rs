//! Memory-mapped configuration space: PCI Firmware Specification 3.3, section 4.1.2.

use alloc::vec::Vec;

use super::bytes::{u8_at, u16_at, u64_at};
use crate::{addr::Hpa, memory::PhysRange};

/// Where the entries begin: after the header and 8 reserved bytes.
const ENTRIES: usize = 44;
const ENTRY_SIZE: usize = 16;

/// The configuration space of some buses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcamWindow {
    /// The PCI segment.
    pub segment: u16,
    /// The first bus.
    pub first_bus: u8,
    /// The last bus.
    pub last_bus: u8,
    /// The registers of these buses, 1 MiB each.
    pub registers: PhysRange,
}

/// The windows in the table that can be: aligned, not wrapping, not empty. And how many entries describe none.
pub fn ecam_windows(mcfg: &[u8]) -> (Vec<EcamWindow>, usize) {
    let entries = mcfg.get(ENTRIES..).unwrap_or_default().chunks_exact(ENTRY_SIZE);
    let count = entries.len();
    let windows: Vec<_> = entries.filter_map(window).collect();
    let odd = count - windows.len();
    (windows, odd)
}

fn window(entry: &[u8]) -> Option<EcamWindow> {
    // The base is where bus 0 would be, even if the window begins later.
    let base = u64_at(entry, 0)?;
    let (segment, first_bus, last_bus) = (u16_at(entry, 8)?, u8_at(entry, 10)?, u8_at(entry, 11)?);
    let buses = u64::from(last_bus.checked_sub(first_bus)?) + 1;
    let start = base.checked_add(u64::from(first_bus) << 20)?;
    let end = start.checked_add(buses << 20)?;
    let valid = base != 0 && base.is_multiple_of(1 << 20) && end <= 1 << 52;
    valid.then(|| EcamWindow { segment, first_bus, last_bus, registers: PhysRange::new(Hpa::new(start), buses << 20) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(base: u64, first: u8, last: u8) -> Vec<u8> {
        [&base.to_le_bytes()[..], &[0, 0, first, last, 0, 0, 0, 0]].concat()
    }

    #[test]
    fn a_window_begins_at_its_first_bus() {
        let mcfg = [vec![0; ENTRIES], entry(0xe000_0000, 0x10, 0x1f)].concat();
        let window = ecam_windows(&mcfg).0[0];
        assert_eq!((window.first_bus, window.last_bus), (0x10, 0x1f));
        assert_eq!(window.registers, PhysRange::new(Hpa::new(0xe100_0000), 16 << 20));
    }

    #[test]
    fn windows_that_cannot_be_are_left_out() {
        for bad in [entry(0, 0, 0), entry(0xe000_1000, 0, 0), entry(0xe000_0000, 2, 1), entry(!0xf_ffff, 0, 255)] {
            let mcfg = [vec![0; ENTRIES], bad, entry(0xe000_0000, 0, 255)].concat();
            let (windows, odd) = ecam_windows(&mcfg);
            assert_eq!((windows.len(), windows[0].last_bus, odd), (1, 255, 1));
        }
    }

    proptest! {
        #[test]
        fn random_tables_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (windows, odd) = ecam_windows(&bytes);
            prop_assert_eq!(windows.len() + odd, bytes.len().saturating_sub(ENTRIES) / ENTRY_SIZE);
        }
    }
}
