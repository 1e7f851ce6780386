//! What the service counts. Counting replaces logging where a guest sets the pace.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a guest did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestCounters {
    /// Calls, refused ones included.
    pub hypercalls: u64,
    /// Writes to a store that trapped.
    pub trapped_writes: u64,
    /// Trapped writes and calls (items of a batch) that were refused or failed.
    pub refused: u64,
}

/// What the service did with the remapping unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemapCounters {
    /// Entries in use.
    pub live: u64,
    /// Most entries that were ever in use at once.
    pub high_water: u64,
    /// Writes of a present entry.
    pub programmed: u64,
    /// Flushes with their wait, failed ones included.
    pub flushes: u64,
    /// Interrupts that were pending in a device when their function was reset, and went nowhere.
    pub discarded: u64,
    /// Entries and routes that wait for a flush to succeed.
    pub quarantined: u64,
}

/// The live form of [`GuestCounters`].
#[derive(Default)]
pub(super) struct GuestCounts {
    pub(super) hypercalls: AtomicU64,
    pub(super) trapped_writes: AtomicU64,
    pub(super) refused: AtomicU64,
}

impl GuestCounts {
    pub(super) fn read(&self) -> GuestCounters {
        GuestCounters {
            hypercalls: self.hypercalls.load(Relaxed),
            trapped_writes: self.trapped_writes.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }
}

/// The live form of [`RemapCounters`], without the quarantine, which counts itself.
#[derive(Default)]
pub(super) struct RemapCounts {
    pub(super) live: AtomicU64,
    pub(super) high_water: AtomicU64,
    pub(super) programmed: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) discarded: AtomicU64,
}

impl RemapCounts {
    /// Entries came into use.
    pub(super) fn taken(&self, entries: u64) {
        let live = self.live.fetch_add(entries, Relaxed) + entries;
        self.high_water.fetch_max(live, Relaxed);
    }

    /// An entry was given back.
    pub(super) fn given_back(&self) {
        self.live.fetch_sub(1, Relaxed);
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// So many more.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Relaxed);
}
