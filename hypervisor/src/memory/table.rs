//! A frame as a table of 512 quadwords, which hardware may read while we write it.

use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use super::FrameSource;
use crate::addr::{Hpa, PAGE_SIZE};

/// Entries of a table.
pub const ENTRIES: usize = 512;

/// A page frame that holds 512 quadwords: a page table, an EPT table, a remapping unit's root or context table. It does not
/// own the frame: whoever builds the structure knows when hardware has let go of it.
#[derive(Clone, Copy)]
pub struct Table {
    address: Hpa,
    entries: NonNull<[AtomicU64; ENTRIES]>,
}

// SAFETY: the frame is a table's from `new` on; its entries are accessed atomically only, from whichever processor.
unsafe impl Send for Table {}
// SAFETY: as for `Send`.
unsafe impl Sync for Table {}

impl Table {
    /// A new one, all zeros.
    pub fn new(frames: &impl FrameSource) -> Option<Self> {
        let address = frames.alloc_zeroed(1, PAGE_SIZE)?;
        Some(Self { address, entries: frames.pointer(address).cast() })
    }

    /// The one at `address`.
    ///
    /// # Safety
    /// `address` came from [`Table::new`] with the same `frames`, and is not freed while the result is used.
    pub unsafe fn at(frames: &impl FrameSource, address: Hpa) -> Self {
        Self { address, entries: frames.pointer(address).cast() }
    }

    /// Where it is.
    pub fn address(&self) -> Hpa {
        self.address
    }

    /// Entry `index`, of which the low nine bits count.
    pub fn entry(&self, index: u64) -> &AtomicU64 {
        // SAFETY: `new` and `at` hold a frame that nobody uses otherwise; AtomicU64 lets hardware read concurrently.
        let entries = unsafe { self.entries.as_ref() };
        &entries[index as usize % ENTRIES]
    }

    /// Reads entry `index`.
    pub fn get(&self, index: u64) -> u64 {
        self.entry(index).load(Ordering::Relaxed)
    }

    /// Writes entry `index`, after all that was written before.
    pub fn set(&self, index: u64, value: u64) {
        self.entry(index).store(value, Ordering::Release);
    }
}
