//! The image's heap. It grows on demand, because the needs of the firmware's tables, the machine's functions and processors are not known
//! before.

use core::{
    alloc::Layout,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use talc::{
    TalcLock,
    base::{Talc, binning::Binning},
    source::Source,
};

use super::{FrameSource, Frames};
use crate::{addr::PAGE_SIZE, sync::Tickets};

/// Bytes that the heap grows by at least.
const STEP: u64 = 1 << 20;

/// Bytes that the heap has grown by itself.
static GROWN: AtomicU64 = AtomicU64::new(0);

/// Where the heap gets more memory, once it has got its first.
struct Growing {
    frames: Option<&'static Frames>,
}

impl fmt::Debug for Growing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Growing")
    }
}

/// Interrupts are off in the hypervisor, so the lock cannot be asked for by its own holder.
#[cfg_attr(feature = "bare", global_allocator)]
static HEAP: TalcLock<Tickets, Growing> = TalcLock::new(Growing { frames: None });

// SAFETY: the frame allocator never uses the heap.
unsafe impl Source for Growing {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        let frames = talc.source.frames.ok_or(())?;
        // Twice: what the heap keeps for itself fits as well.
        let bytes = (layout.size().saturating_add(layout.align()) as u64).saturating_mul(2).max(STEP);
        let claimed = claim(talc, frames, bytes).ok_or(())?;
        GROWN.fetch_add(claimed, Ordering::Relaxed);
        Ok(())
    }
}

/// Gives the heap `bytes` (rounded up to pages) more. Returns whether there were so many.
#[must_use]
pub fn extend(frames: &'static Frames, bytes: u64) -> bool {
    let mut heap = HEAP.lock();
    heap.source.frames = Some(frames);
    bytes == 0 || claim(&mut heap, frames, bytes).is_some()
}

/// Bytes that the heap has grown by itself so far, and keeps.
pub fn grown() -> u64 {
    GROWN.load(Ordering::Relaxed)
}

/// Bytes that are allocated now.
pub fn allocated() -> u64 {
    HEAP.lock().counters().allocated_bytes as u64
}

/// How many bytes the heap has got; at least `bytes`.
fn claim<B: Binning>(talc: &mut Talc<Growing, B>, frames: &Frames, bytes: u64) -> Option<u64> {
    let count = bytes.div_ceil(PAGE_SIZE);
    let base = frames.alloc(count, PAGE_SIZE)?;
    // SAFETY: these frames were allocated for the heap just now, and stay its own.
    unsafe { talc.claim(frames.pointer(base).as_ptr(), (count * PAGE_SIZE) as usize) }?;
    Some(count * PAGE_SIZE)
}
