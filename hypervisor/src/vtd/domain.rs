//! Domains: second-stage tables, which map the memory that a device reaches. Sections 3.7 and 9.8.

use core::ptr::NonNull;

use super::{coherence::Coherence, error::Error, spec::tables::SecondStageEntry};
use crate::{
    addr::{Gpa, Hpa, PAGE_SIZE},
    memory::{FrameSource, Table},
};

/// The shape of a unit's second-stage tables.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// 3 or 4.
    pub levels: u32,
    /// The highest level that may hold a page: 1 to 3.
    pub page_level: u32,
    /// Bits of an address.
    pub address_bits: u32,
    /// Whether the unit snoops.
    pub coherence: Coherence,
}

/// A device's view of memory: guest-physical to host-physical addresses.
pub struct Domain {
    pub(super) id: u16,
    /// The unit that the domain belongs to.
    pub(super) unit: Hpa,
    /// The number of attached functions and PASIDs, including those whose detaching failed.
    pub(super) attached: usize,
    root: Table,
    shape: Shape,
}

impl Domain {
    /// An empty domain, which blocks everything.
    pub(super) fn new(frames: &impl FrameSource, id: u16, unit: Hpa, shape: Shape) -> Result<Self, Error> {
        let root = new_table(frames, shape.coherence)?;
        Ok(Self { id, unit, attached: 0, root, shape })
    }

    /// The domain id.
    pub fn id(&self) -> u16 {
        self.id
    }

    pub(super) fn root(&self) -> Hpa {
        self.root.address()
    }

    /// AW of the context entry, or of the PASID entry.
    pub(super) fn address_width(&self) -> u8 {
        self.shape.levels as u8 - 2
    }

    /// Maps `len` bytes at `gpa` to those at `hpa` for the domain's devices. All values are page-aligned. Pages are as large as alignment
    /// and unit permit. A range that is mapped already is refused; after an error a part may be mapped.
    ///
    /// # Safety
    /// The memory is the guest's own: a device can do what it likes with it until the domain is destroyed.
    pub(super) unsafe fn map(
        &mut self,
        frames: &impl FrameSource,
        gpa: Gpa,
        hpa: Hpa,
        len: u64,
        writable: bool,
    ) -> Result<(), Error> {
        self.check(gpa, hpa, len)?;
        let mut done = 0;
        while done < len {
            let (from, to) = (gpa.as_u64() + done, hpa.as_u64() + done);
            done += self.map_one(frames, from, to, len - done, writable)?;
        }
        Ok(())
    }

    fn check(&self, gpa: Gpa, hpa: Hpa, len: u64) -> Result<(), Error> {
        let aligned = gpa.is_aligned(PAGE_SIZE) && hpa.is_aligned(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE);
        let end = gpa.as_u64().checked_add(len).filter(|end| *end <= 1 << self.shape.address_bits);
        let host_end = hpa.as_u64().checked_add(len).filter(|end| *end <= 1 << 52);
        if aligned && len != 0 {
            end.and(host_end).map(|_| ()).ok_or(Error::BadAddress)
        } else {
            Err(Error::BadAddress)
        }
    }

    /// Maps one page of the largest possible size. Returns its bytes.
    fn map_one(&self, frames: &impl FrameSource, from: u64, to: u64, len: u64, writable: bool) -> Result<u64, Error> {
        let fits = |level: &u32| (from | to).is_multiple_of(size(*level)) && size(*level) <= len;
        let level = (1..=self.shape.page_level).rev().find(fits).unwrap_or(1);
        let mut table = self.root;
        for above in (level + 1..=self.shape.levels).rev() {
            table = self.descend(frames, &table, above, from)?;
        }
        if table.get(index(from, level)) != 0 {
            return Err(Error::Mapped);
        }
        let large = u64::from(level > 1);
        let page = SecondStageEntry(0).with_r(1).with_w(writable.into()).with_ps(large).with_page(to / PAGE_SIZE);
        set(&table, index(from, level), page, self.shape.coherence);
        Ok(size(level))
    }

    /// The table under the entry for `at` of a `table` of `level`. It is made if there is none.
    fn descend(&self, frames: &impl FrameSource, table: &Table, level: u32, at: u64) -> Result<Table, Error> {
        let entry = SecondStageEntry(table.get(index(at, level)));
        if entry.0 == 0 {
            let below = new_table(frames, self.shape.coherence)?;
            let page = below.address().as_u64() / PAGE_SIZE;
            set(table, index(at, level), SecondStageEntry(0).with_r(1).with_w(1).with_page(page), self.shape.coherence);
            return Ok(below);
        }
        if entry.ps() != 0 {
            return Err(Error::Mapped);
        }
        // SAFETY: an entry that is no page was made here, from a table of the same frames; they are freed with the domain.
        Ok(unsafe { Table::at(frames, Hpa::new(entry.page() * PAGE_SIZE)) })
    }

    /// Gives the tables back.
    ///
    /// # Safety
    /// No device is attached, no cache of the unit knows of the domain.
    pub(super) unsafe fn free(self, frames: &impl FrameSource) {
        // SAFETY: the caller vouches for it.
        unsafe { free_table(frames, &self.root, self.shape.levels) };
    }
}

/// Gives back a table of `level` and all below it. Four levels at most.
///
/// # Safety
/// Nobody uses them any more.
unsafe fn free_table(frames: &impl FrameSource, table: &Table, level: u32) {
    let entries = (0..512).map(|i| SecondStageEntry(table.get(i)));
    for entry in entries.filter(|entry| level > 1 && entry.0 != 0 && entry.ps() == 0) {
        // SAFETY: as in `descend`; the caller vouches that nobody uses it.
        unsafe { free_table(frames, &Table::at(frames, Hpa::new(entry.page() * PAGE_SIZE)), level - 1) };
    }
    // SAFETY: the caller vouches for it.
    unsafe { frames.free(table.address(), 1) };
}

/// A zeroed table that the unit sees.
pub(super) fn new_table(frames: &impl FrameSource, coherence: Coherence) -> Result<Table, Error> {
    let table = Table::new(frames).ok_or(Error::NoMemory)?;
    // SAFETY: the table's frame is ours.
    unsafe { coherence.publish(frames.pointer(table.address()), PAGE_SIZE as usize) };
    Ok(table)
}

/// Writes an entry so that the unit sees it.
fn set(table: &Table, at: u64, entry: SecondStageEntry, coherence: Coherence) {
    table.set(at, entry.0);
    // SAFETY: the table's frame is ours.
    unsafe { coherence.publish(NonNull::from(table.entry(at)).cast(), size_of::<u64>()) };
}

/// Bytes that an entry of `level` (1 to 4) covers.
const fn size(level: u32) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

/// The index of the entry for `at` in a table of `level`.
const fn index(at: u64, level: u32) -> u64 {
    at >> (12 + 9 * (level - 1)) & 0x1ff
}
