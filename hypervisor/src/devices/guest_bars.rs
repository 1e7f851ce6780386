//! A function's BARs in the guest: pages that reach the device, shadow pages, and trapped pages.

use alloc::vec::Vec;
use core::ops::Range;

use hcall_abi::DeviceId;

use crate::{
    addr::{Gpa, Hpa, PAGE_SIZE},
    devices::{
        assign_error::AssignError,
        bars::{locate, memory_bar},
        dsa,
        mmio_regions::{MmioRegion, MmioRegions, RegionKind, RegisterKind, Registers},
        store_pages,
    },
    ept::{self, Ept},
    guest::memory_map::BarAllocator,
    ims::{StoreLocation, StoreName, StoreSpec},
    memory::{self, FrameSource, Mmio},
    pci::{Bar, ConfigSpace, Function, TableLocation},
    vdev::pci::{BarDescr, FunctionDescr, MsixDescr, VirtualBus},
};

/// The parts of a guest into which a function is put.
pub struct GuestSpace<'a, F> {
    /// The guest's PCI bus.
    pub bus: &'a mut VirtualBus,
    /// The guest's address space for BARs.
    pub bars: &'a mut BarAllocator,
    /// The guest's page tables.
    pub ept: &'a mut Ept,
    /// The guest's regions outside of its memory.
    pub mmio_regions: &'a mut MmioRegions,
    /// The guest's own frames: those of shadows are added, also those of a preparation that fails.
    pub frames: &'a mut Vec<(Hpa, u64)>,
    /// The source of frames.
    pub source: &'a F,
}

impl<F: FrameSource> GuestSpace<'_, F> {
    /// Allocates `count` zeroed frames, which the guest owns from now on.
    pub fn zeroed(&mut self, count: u64) -> Result<Hpa, AssignError> {
        let base = self.source.alloc_zeroed(count, PAGE_SIZE).ok_or(AssignError::OutOfMemory)?;
        self.frames.push((base, count));
        Ok(base)
    }

    /// Maps a range into the guest.
    pub fn map(&mut self, gpa: Gpa, hpa: Hpa, len: u64, page_type: ept::PageType) -> Result<(), AssignError> {
        self.ept.map(self.source, gpa, hpa, len, page_type).map_err(|_| AssignError::OutOfMemory)
    }
}

/// Bytes of the SIOV capability (Scalable IOV specification, 3.2.1), and its place in the guest's configuration space.
const SIOV_BYTES: u16 = 0x18;

/// Describes the function's configuration space in the guest.
pub(super) fn describe(
    config: &dyn ConfigSpace,
    function: &Function,
    bars: &mut BarAllocator,
) -> Result<FunctionDescr, AssignError> {
    let mut descr = FunctionDescr {
        vendor: function.vendor,
        device: function.device,
        revision: function.revision,
        class: function.class,
        subsystem_vendor: function.subsystem.0,
        subsystem: function.subsystem.1,
        ..FunctionDescr::default()
    };
    for (index, bar) in function.bars.iter().enumerate() {
        if let Some(Bar::Memory { prefetchable, wide, .. }) = *bar {
            let (_, size) = memory_bar(function, index)?;
            let gpa = bars.place(size, wide).ok_or(AssignError::OutOfMemory)?;
            descr.bars[index] = Some(BarDescr { size, gpa, is_64bit: wide, prefetchable });
        }
    }
    descr.msix = function.msix.map(|msix| MsixDescr {
        size: msix.entries,
        table: (msix.table.bar, msix.table.offset),
        pba: (msix.pba.bar, msix.pba.offset),
    });
    if let Some(siov) = function.siov {
        let words = (0..SIOV_BYTES / 4).map(|n| config.read(function.bdf, siov.capability + 4 * n));
        descr.dvsec = words.flat_map(u32::to_le_bytes).collect();
    }
    Ok(descr)
}

/// The layout of a function's BARs in the guest.
pub(super) struct BarLayout<'a, 'r, F> {
    pub function: &'a Function,
    pub descr: &'a FunctionDescr,
    pub id: DeviceId,
    pub space: &'a mut GuestSpace<'r, F>,
    /// Trapped pages that hold registers beside a store or pending bits: their start in the guest, their start on the machine, their bytes.
    pub shared: Vec<(Gpa, Hpa, u64)>,
}

/// The descriptions of a function's stores for the service.
pub(super) struct Stores {
    /// Its interrupt message store.
    pub ims: Option<StoreSpec>,
    /// Its MSI-X table.
    pub msix: Option<StoreSpec>,
}

impl<F: FrameSource> BarLayout<'_, '_, F> {
    /// Maps all BARs straight through. Pages that need a trap or a shadow are changed after that.
    fn map_bars(&mut self) -> Result<(), AssignError> {
        for index in 0..self.descr.bars.len() {
            if let Some(bar) = self.descr.bars[index] {
                let (base, size) = memory_bar(self.function, index)?;
                self.map(bar.gpa, base, size, ept::PageType::Device)?;
            }
        }
        Ok(())
    }

    /// Maps a store: the guest reads its shadow, and writes to its whole pages are trapped. If the pages may hold other registers, reads
    /// are trapped as well, so that the guest reaches those. `neighbours` are the device's tables, if all of them are known.
    fn map_store(
        &mut self,
        name: StoreName,
        table: (u8, u32),
        slots: u32,
        neighbours: Option<&dsa::Tables>,
    ) -> Result<StoreSpec, AssignError> {
        let bytes = u64::from(slots) * 16;
        let (gpa, base) = self.locate(table, bytes)?;
        let len = (gpa.page_offset() + bytes).next_multiple_of(PAGE_SIZE);
        let shadow = self.space.zeroed(len / PAGE_SIZE)?;
        if self.is_alone(table, bytes, neighbours) {
            self.map(gpa.page(), shadow, len, ept::PageType::Shadow)?;
        } else {
            self.map(gpa.page(), base.page(), len, ept::PageType::Trapped)?;
            self.shared.push((gpa.page(), base.page(), len));
        }
        let shadow = shadow.checked_add(gpa.page_offset()).ok_or(AssignError::Table)?;
        let kind = RegionKind::Store { device: self.id, name, shadow };
        // SAFETY: the shadow's frames were allocated just now, and go back only when the guest has ended: nobody looks at regions then.
        unsafe { self.space.mmio_regions.add(MmioRegion { start: gpa, len: bytes, kind }) };
        Ok(StoreSpec {
            base,
            shadow,
            slots,
            bar: table.0.into(),
            offset: table.1,
            backing: None,
            location: StoreLocation::DeviceMemory,
        })
    }

    /// Maps everything. `registers` are a DSA's. `slow_store` gets a store's command interface, and returns the store's number.
    pub fn show_all(
        &mut self,
        registers: Option<&impl memory::Registers>,
        slow_store: impl FnOnce(Mmio) -> Option<u16>,
    ) -> Result<Stores, AssignError> {
        self.map_bars()?;
        let neighbours = registers.map(|registers| {
            let own: Vec<_> = self.msix_in_bar(dsa::REGISTERS_BAR).collect();
            dsa::tables_in_bar(registers, self.descr.msix.map_or(0, |msix| msix.size), &own)
        });
        let store = registers.and_then(dsa::message_store);
        let ims = store.map(|store| self.map_message_store(store, neighbours.as_ref(), slow_store)).transpose()?;
        let msix = match self.descr.msix {
            Some(msix) => Some(self.map_store(StoreName::Msix, msix.table, msix.size.into(), neighbours.as_ref())?),
            None => None,
        };
        self.map_pending_bits()?;
        if registers.is_some() {
            self.map_commands()?;
        }
        self.serve_the_rest();
        Ok(Stores { ims, msix })
    }

    /// The interrupt message store of a DSA.
    fn map_message_store(
        &mut self,
        store: dsa::MessageStore,
        neighbours: Option<&dsa::Tables>,
        slow_store: impl FnOnce(Mmio) -> Option<u16>,
    ) -> Result<StoreSpec, AssignError> {
        let table = (dsa::REGISTERS_BAR, store.offset);
        let spec = self.map_store(StoreName::Ims, table, store.slots, neighbours)?;
        if !dsa::has_slow_store(self.function) {
            return Ok(spec);
        }
        Ok(StoreSpec { location: StoreLocation::SlowStore(self.hide_slow_store(slow_store)?), ..spec })
    }

    /// Hides the command interface of a slow store: its page reads as zeros in the guest, and ignores writes.
    fn hide_slow_store(&mut self, slow_store: impl FnOnce(Mmio) -> Option<u16>) -> Result<u16, AssignError> {
        let (gpa, base) = self.locate((dsa::REGISTERS_BAR, dsa::SLOW_STORE), PAGE_SIZE)?;
        let zeros = self.space.zeroed(1)?;
        self.map(gpa, zeros, PAGE_SIZE, ept::PageType::Shadow)?;
        // SAFETY: `map_bars` has mapped the BAR, uncached, for good, and `locate` has found the page in it.
        let registers = unsafe { Mmio::new(base, PAGE_SIZE as usize) }.ok_or(AssignError::Table)?;
        slow_store(registers).ok_or(AssignError::Table)
    }

    /// Whether a store is alone in its pages: it fills them, or all other tables of the device are known and elsewhere.
    fn is_alone(&self, (bar, offset): (u8, u32), bytes: u64, neighbours: Option<&dsa::Tables>) -> bool {
        let store = u64::from(offset)..u64::from(offset) + bytes;
        let known = neighbours.filter(|_| bar == dsa::REGISTERS_BAR);
        store_pages::fills_its_pages(&store)
            || known.is_some_and(|tables| {
                store_pages::is_alone_in_its_pages(&store, tables.iter().cloned().chain(self.msix_in_bar(bar)))
            })
    }

    /// The MSI-X table and its pending bits, if they are in this BAR.
    fn msix_in_bar(&self, bar: u8) -> impl Iterator<Item = Range<u64>> + use<F> {
        let tables = self.descr.msix.map(|msix| {
            let entries = u64::from(msix.size);
            [(msix.table, entries * 16), (msix.pba, entries.div_ceil(64) * 8)]
        });
        let here = tables.into_iter().flatten().filter(move |((other, _), _)| *other == bar);
        here.map(|((_, offset), bytes)| u64::from(offset)..u64::from(offset) + bytes)
    }

    /// Maps the pending bits for reads. Writes to them are dropped; writes to registers beside them reach the device.
    fn map_pending_bits(&mut self) -> Result<(), AssignError> {
        let Some(msix) = self.descr.msix else { return Ok(()) };
        let bytes = u64::from(msix.size).div_ceil(64) * 8;
        let (gpa, base) = self.locate_at(msix.pba, bytes, 8)?;
        let pages = (gpa.page_offset() + bytes).next_multiple_of(PAGE_SIZE);
        for at in (0..pages).step_by(PAGE_SIZE as usize) {
            let place = gpa.page().checked_add(at).zip(base.page().checked_add(at));
            let (page, base) = place.ok_or(AssignError::Table)?;
            // Reads of a page that a store shares are trapped already, or the store's alone.
            if !self.space.mmio_regions.has_store_at(page) {
                self.map(page, base, PAGE_SIZE, ept::PageType::DeviceReadOnly)?;
                self.shared.push((page, base, PAGE_SIZE));
            }
        }
        let kind = RegionKind::Registers(Registers { device: self.id, base, kind: RegisterKind::PendingBits });
        // SAFETY: `map_bars` has mapped the BAR, uncached, for good, and `locate_at` has found the bits in it.
        unsafe { self.space.mmio_regions.add(MmioRegion { start: gpa, len: bytes, kind }) };
        Ok(())
    }

    /// Adds regions for the other registers in trapped pages, whose accesses are passed to the device.
    fn serve_the_rest(&mut self) {
        for &(start, base, len) in &self.shared {
            let kind = RegionKind::Registers(Registers { device: self.id, base, kind: RegisterKind::Plain });
            // SAFETY: `map_bars` has mapped the BAR, uncached, for good, and the pages were found in it. The regions that the guest must not
            // write were added before, and the first region counts.
            unsafe { self.space.mmio_regions.add(MmioRegion { start, len, kind }) };
        }
    }

    /// Maps the page of the command register: reads go straight to the device. Writes are trapped and passed on, because the guest may
    /// reset the device, and with it the store.
    fn map_commands(&mut self) -> Result<(), AssignError> {
        let (gpa, base) = self.locate((dsa::REGISTERS_BAR, 0), PAGE_SIZE)?;
        // What the guest may not even read stays trapped.
        if !self.space.mmio_regions.has_store_at(gpa) {
            self.map(gpa, base, PAGE_SIZE, ept::PageType::DeviceReadOnly)?;
        }
        let kind = RegionKind::Registers(Registers { device: self.id, base, kind: RegisterKind::Commands });
        // SAFETY: `map_bars` has mapped the BAR, uncached, for good, and `locate` has found the page in it.
        unsafe { self.space.mmio_regions.add(MmioRegion { start: gpa, len: PAGE_SIZE, kind }) };
        Ok(())
    }

    /// The address of a table of slots in the guest and on the machine.
    fn locate(&self, table: (u8, u32), bytes: u64) -> Result<(Gpa, Hpa), AssignError> {
        self.locate_at(table, bytes, 16)
    }

    /// The same for a table that is aligned to `alignment` bytes.
    fn locate_at(&self, (bar, offset): (u8, u32), bytes: u64, alignment: u32) -> Result<(Gpa, Hpa), AssignError> {
        let base = locate(self.function, TableLocation { bar, offset }, bytes)?;
        let descr = self.descr.bars.get(usize::from(bar)).copied().flatten();
        let gpa = descr.and_then(|descr| descr.gpa.checked_add(offset.into()));
        gpa.filter(|_| offset.is_multiple_of(alignment)).map(|gpa| (gpa, base)).ok_or(AssignError::Table)
    }

    fn map(&mut self, gpa: Gpa, hpa: Hpa, len: u64, page_type: ept::PageType) -> Result<(), AssignError> {
        self.space.map(gpa, hpa, len, page_type)
    }
}

#[cfg(test)]
mod tests;
