//! The image's heap.

use talc::{TalcLock, source::Manual};

use super::{FrameSource, Frames};
use crate::addr::PAGE_SIZE;

/// Interrupts are off in the hypervisor, so the lock cannot be asked for by its own holder.
#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Manual> = TalcLock::new(Manual);

/// Gives the heap `bytes` (rounded up to pages) more. Returns whether there were so many.
#[must_use]
pub fn extend(frames: &Frames, bytes: u64) -> bool {
    if bytes == 0 {
        return true;
    }
    let count = bytes.div_ceil(PAGE_SIZE);
    let Some(base) = frames.alloc(count, PAGE_SIZE) else { return false };
    // SAFETY: these frames were allocated for the heap just now, and stay its own.
    unsafe { HEAP.lock().claim(frames.pointer(base).as_ptr(), (count * PAGE_SIZE) as usize) }.is_some()
}
