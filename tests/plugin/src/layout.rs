//! What lies where on the machine's buses.

use std::ops::RangeInclusive;

/// DSAs that a machine can have.
pub(crate) const MOST_DSAS: usize = 4;
/// Bytes of configuration space of a bus: its share of the ECAM window.
const BUS: u64 = 1 << 20;

/// Memory of a DSA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bar {
    Registers,
    Portals,
}

/// A root bus beside bus 0, behind a host bridge of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RootBus {
    /// Its number, and that of the last bus that could be below it.
    pub(crate) buses: RangeInclusive<u8>,
    /// The memory that its host bridge passes on: prefetchable, above 4 GiB.
    pub(crate) memory: RangeInclusive<u64>,
}

/// Places of a machine's functions and windows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Requester IDs of the DSAs. A machine with two has the first two.
    pub(crate) dsas: [u16; MOST_DSAS],
    /// The root buses beside bus 0.
    pub(crate) roots: &'static [RootBus],
    /// The ECAM window's start, and the last bus that it has.
    pub(crate) ecam: u64,
    pub(crate) last_bus: u8,
    /// The requesters that the first unit serves where there are two; the other one serves all others.
    pub(crate) first_unit: RangeInclusive<u16>,
}

/// Memory of a root bus: 32 MiB.
const fn window(start: u64) -> RangeInclusive<u64> {
    start..=start + 0x1ff_ffff
}

impl Layout {
    /// As on Sapphire Rapids: each DSA is device 1 on a root bus of its own, with BARs above 4 GiB. Bus numbers are those of such
    /// machines (`lspci`); addresses have 40 bits, as the emulator's processors do.
    pub(crate) const SAPPHIRE_RAPIDS: Self = Self {
        dsas: [0x6a08, 0x7408, 0x6f08, 0x7908],
        roots: &[
            RootBus { buses: 0x6a..=0x6e, memory: window(0x6f_fe00_0000) },
            RootBus { buses: 0x6f..=0x73, memory: window(0x7f_fe00_0000) },
            RootBus { buses: 0x74..=0x78, memory: window(0x8f_fe00_0000) },
            RootBus { buses: 0x79..=0x7d, memory: window(0x9f_fe00_0000) },
        ],
        ecam: 0xe000_0000,
        last_bus: 0xff,
        first_unit: 0x6a00..=0x73ff,
    };

    /// All on bus 0: 00:1e.0 and 00:1f.0, then 00:1c.0 and 00:1d.0, with BARs of 32 bits that the BIOS places.
    pub(crate) const GENEROUS: Self =
        Self { dsas: [0xf0, 0xf8, 0xe0, 0xe8], roots: &[], ecam: 0xe800_0000, last_bus: 0, first_unit: 0xf0..=0xf0 };

    /// The ECAM window.
    pub(crate) fn ecam(&self) -> RangeInclusive<u64> {
        self.ecam..=self.ecam + (self.ecam_size() - 1)
    }

    /// Bytes of the ECAM window.
    pub(crate) fn ecam_size(&self) -> u64 {
        (u64::from(self.last_bus) + 1) * BUS
    }

    /// Which of the first `count` DSAs has this requester ID.
    pub(crate) fn dsa_at(&self, source: u16, count: usize) -> Option<usize> {
        self.dsas.iter().take(count).position(|place| *place == source)
    }

    /// Where firmware places BAR0 and BAR2 of a DSA: at the start and in the middle of its root bus' memory. `None` on bus 0, where the BIOS
    /// does.
    pub(crate) fn bars(&self, dsa: usize) -> Option<[u64; 2]> {
        let [_, bus] = self.dsas.get(dsa)?.to_le_bytes();
        let memory = &self.roots.iter().find(|root| root.buses.contains(&bus))?.memory;
        Some([*memory.start(), memory.start() + 0x100_0000])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_overlap_neither_each_other_nor_the_processors_addresses() {
        let layout = Layout::SAPPHIRE_RAPIDS;
        let ecam = layout.ecam();
        assert_eq!((ecam.clone(), Layout::GENEROUS.ecam()), (0xe000_0000..=0xefff_ffff, 0xe800_0000..=0xe80f_ffff));
        let mut last = *ecam.end();
        for root in layout.roots {
            assert!(*root.memory.start() > last && *root.memory.end() < 1 << 40, "{root:x?}");
            assert!(root.memory.start().is_multiple_of(1 << 20), "Bochs wants whole mebibytes above 4 GiB: {root:x?}");
            last = *root.memory.end();
        }
    }

    #[test]
    fn each_dsa_is_alone_on_its_root_bus() {
        let layout = Layout::SAPPHIRE_RAPIDS;
        let roots: Vec<_> = (0..MOST_DSAS).map(|n| layout.bars(n).unwrap()[0]).collect();
        let windows: Vec<_> = layout.roots.iter().map(|root| *root.memory.start()).collect();
        assert_eq!(roots, [windows[0], windows[2], windows[1], windows[3]]);
        assert_eq!(Layout::GENEROUS.bars(0), None);
        assert_eq!(
            (layout.dsa_at(0x7408, 2), layout.dsa_at(0x6f08, 2), layout.dsa_at(0x6f08, 4)),
            (Some(1), None, Some(2))
        );
    }
}
