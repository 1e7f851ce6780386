//! The order in which an entry of two quadwords is written that the unit may read at any time. `tests/concurrency` compiles this file with
//! other atomics.

use crate::sync::atomic::{AtomicU64, Ordering};

/// Writes an entry that is not present and in no cache. The half with P is written last, so the unit sees the entry not present or whole.
#[inline]
pub fn write_absent([low, high]: &[AtomicU64; 2], new: u128) {
    high.store((new >> 64) as u64, Ordering::Relaxed);
    low.store(new as u64, Ordering::Release);
}
