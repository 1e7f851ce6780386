//! The service's counters. A guest can set the pace of these events, so they are counted and not logged.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A guest's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestCounters {
    /// Calls, including refused ones.
    pub hypercalls: u64,
    /// Trapped writes of a store.
    pub trapped_writes: u64,
    /// Trapped writes, calls and items of a batch that were refused or failed.
    pub refused: u64,
}

/// The service's use of the remapping unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemapCounters {
    /// Entries in use.
    pub live: u64,
    /// The most entries that were in use at once.
    pub high_water: u64,
    /// Writes of a present entry.
    pub programmed: u64,
    /// Flushes with their wait, including failed ones.
    pub flushes: u64,
    /// Pending interrupts that were dropped because their function was reset.
    pub discarded: u64,
    /// Entries and routes that wait for a successful flush.
    pub quarantined: u64,
}

/// The counters behind [`GuestCounters`], which change.
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

/// The counters behind [`RemapCounters`], which change. The quarantine counts its own elements.
#[derive(Default)]
pub(super) struct RemapCounts {
    pub(super) live: AtomicU64,
    pub(super) high_water: AtomicU64,
    pub(super) programmed: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) discarded: AtomicU64,
}

impl RemapCounts {
    /// Counts `entries` as taken.
    pub(super) fn taken(&self, entries: u64) {
        let live = self.live.fetch_add(entries, Relaxed) + entries;
        self.high_water.fetch_max(live, Relaxed);
    }

    /// Counts one entry as released.
    pub(super) fn given_back(&self) {
        self.live.fetch_sub(1, Relaxed);
    }
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds `more`.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Relaxed);
}
