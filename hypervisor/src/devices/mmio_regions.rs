//! What is behind a guest-physical address outside of the guest's memory: a store, registers of a device or of a virtual function, configuration
//! space. A trapped access finds its region here ([`MmioRegions::find`]).

use alloc::vec::Vec;

use hcall_abi::DeviceId;

use crate::{
    addr::{Gpa, Hpa, PAGE_SIZE},
    ims::StoreName,
};

/// The contents of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// A store of a device. Reads come from its shadow.
    Store {
        /// The device.
        device: DeviceId,
        /// The store's name.
        name: StoreName,
        /// The shadow that the guest reads.
        shadow: Hpa,
    },
    /// Registers of a device.
    Registers(Registers),
    /// Registers of a virtual function in BAR 0, beside its MSI-X table.
    Virtual {
        /// The virtual function.
        device: DeviceId,
    },
    /// Configuration space of bus 0.
    Ecam,
}

/// Registers of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The device.
    pub device: DeviceId,
    /// The region's address on the machine.
    pub base: Hpa,
    /// The kind of registers.
    pub kind: RegisterKind,
}

/// The kinds of registers that differ for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterKind {
    /// The page of a DSA's command register. The hypervisor waits for the end of a reset that a write begins.
    Commands,
    /// Pending bits. Writes do not reach the device.
    PendingBits,
    /// Other registers. Writes are passed on.
    Plain,
}

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioRegion {
    /// The region's start in the guest.
    pub start: Gpa,
    /// The region's length in bytes.
    pub len: u64,
    /// The region's contents.
    pub kind: RegionKind,
}

/// All regions of a guest. If some overlap, the first one counts.
#[derive(Debug, Default)]
pub struct MmioRegions(Vec<MmioRegion>);

impl MmioRegions {
    /// Adds a region behind the others.
    ///
    /// # Safety
    /// For as long as this lives, what the region shows is mapped over the region's whole pages: a store's shadow in frames of its own,
    /// registers uncached and of a device whose DMA is confined to the guest.
    pub unsafe fn add(&mut self, region: MmioRegion) {
        self.0.push(region);
    }

    /// Whether a store has a part of the page at `page`.
    pub fn has_store_at(&self, page: Gpa) -> bool {
        let end = page.as_u64().saturating_add(PAGE_SIZE);
        self.0.iter().filter(|region| matches!(region.kind, RegionKind::Store { .. })).any(|region| {
            let start = region.start.as_u64();
            start < end && start.saturating_add(region.len) > page.as_u64()
        })
    }

    /// The region that holds `gpa`, and the offset in it.
    #[inline]
    pub fn find(&self, gpa: Gpa) -> Option<(RegionKind, u64)> {
        self.0.iter().find_map(|region| {
            let offset = gpa.offset_from(region.start)?;
            (offset < region.len).then_some((region.kind, offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_finds_its_window_and_offset() {
        let mut mmio_regions = MmioRegions::default();
        for (start, len) in [(0x1000, 0x1000), (0x4000, 0x400)] {
            // SAFETY: this kind has no memory behind it.
            unsafe { mmio_regions.add(MmioRegion { start: Gpa::new(start), len, kind: RegionKind::Ecam }) };
        }
        assert_eq!(mmio_regions.find(Gpa::new(0x43ff)), Some((RegionKind::Ecam, 0x3ff)));
        assert_eq!(mmio_regions.find(Gpa::new(0x1000)), Some((RegionKind::Ecam, 0)));
        for gpa in [0, 0xfff, 0x2000, 0x4400, u64::MAX] {
            assert_eq!(mmio_regions.find(Gpa::new(gpa)), None, "{gpa:#x}");
        }
    }

    #[test]
    fn a_page_is_a_stores_if_any_byte_of_it_is() {
        let mut mmio_regions = MmioRegions::default();
        let kind = RegionKind::Store { device: DeviceId(8), name: StoreName::Msix, shadow: Hpa::new(0) };
        // SAFETY: nobody reads the shadow.
        unsafe { mmio_regions.add(MmioRegion { start: Gpa::new(0x2ff0), len: 0x20, kind }) };
        // SAFETY: this kind has no memory behind it.
        unsafe { mmio_regions.add(MmioRegion { start: Gpa::new(0x5000), len: 0x20, kind: RegionKind::Ecam }) };
        let pages = (0..7).map(|n| n * PAGE_SIZE).filter(|page| mmio_regions.has_store_at(Gpa::new(*page)));
        assert_eq!(pages.collect::<Vec<_>>(), [0x2000, 0x3000]);
    }
}
