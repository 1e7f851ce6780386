//! Making what we write visible to a unit that does not snoop (ECAP.C = 0).

use core::{
    arch::x86_64::{_mm_clflush, _mm_mfence},
    ptr::NonNull,
    sync::atomic::{Ordering, fence},
};

/// Bytes that CLFLUSH writes back at least.
const LINE: usize = 64;

/// Whether the unit's table reads snoop the processors' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coherence(pub bool);

impl Coherence {
    /// Orders the writes to `len` bytes from `start` before what follows, and sees to it that the unit reads them.
    ///
    /// # Safety
    /// The bytes are mapped.
    pub unsafe fn publish(self, start: NonNull<u8>, len: usize) {
        if self.0 {
            fence(Ordering::Release);
        } else {
            // SAFETY: as the caller vouches.
            unsafe { flush(start, len) };
        }
    }
}

/// Writes the bytes' lines back.
///
/// # Safety
/// The bytes are mapped.
#[cold]
unsafe fn flush(start: NonNull<u8>, len: usize) {
    let first = start.as_ptr() as usize & !(LINE - 1);
    let end = (start.as_ptr() as usize).saturating_add(len);
    // SAFETY: the caller vouches for the bytes, and a line lies in the page of its bytes; a flush changes no content.
    unsafe {
        (first..end).step_by(LINE).for_each(|line| _mm_clflush(line as *const u8));
        _mm_mfence();
    }
}
