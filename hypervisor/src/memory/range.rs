//! A range of physical memory.

use crate::addr::{Hpa, PAGE_SIZE};

/// `len` bytes of physical memory from `start`. Firmware and boot loaders say such things: nothing is assumed of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysRange {
    /// The first byte.
    pub start: Hpa,
    /// Bytes.
    pub len: u64,
}

/// The first address that no processor has (52 bits).
const TOP: u64 = 1 << 52;

impl PhysRange {
    /// The range from `start`, `len` bytes long.
    pub const fn new(start: Hpa, len: u64) -> Self {
        Self { start, len }
    }

    /// The address behind the last byte, cut to 52 bits.
    pub fn end(&self) -> Hpa {
        Hpa::new(self.start.as_u64().saturating_add(self.len).min(TOP))
    }

    /// Whether the two have a byte in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Whether `address` lies inside.
    pub fn contains(&self, address: Hpa) -> bool {
        address >= self.start && address < self.end()
    }

    /// The page numbers (first, behind the last) of the whole pages inside: how to take usable memory.
    pub(super) fn inner_pages(&self) -> (u64, u64) {
        let first = self.start.as_u64().min(TOP).div_ceil(PAGE_SIZE);
        (first, (self.end().as_u64() / PAGE_SIZE).max(first))
    }

    /// The page numbers (first, behind the last) of all pages touched: how to take reserved memory.
    pub(super) fn outer_pages(&self) -> (u64, u64) {
        let first = self.start.as_u64().min(TOP) / PAGE_SIZE;
        if self.len == 0 {
            return (first, first);
        }
        (first, self.end().as_u64().div_ceil(PAGE_SIZE).max(first))
    }
}
