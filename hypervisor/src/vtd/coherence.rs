//! Makes our writes visible to a unit that does not snoop (ECAP.C = 0).

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
    /// Orders the writes to `len` bytes from `start` before later writes, and makes them visible to the unit.
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
    // SAFETY: the caller vouches for the bytes, and a line lies in the page of its bytes; a flush changes no content.
    unsafe {
        lines(start.as_ptr() as usize, len).for_each(|line| _mm_clflush(line as *const u8));
        _mm_mfence();
    }
}

/// The start of each cache line that `len` bytes from `start` touch.
fn lines(start: usize, len: usize) -> impl Iterator<Item = usize> {
    (start & !(LINE - 1)..start.saturating_add(len)).step_by(LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_with_one_of_the_bytes_is_written_back_and_no_other() {
        let all = |start, len| lines(start, len).collect::<Vec<_>>();
        assert_eq!(all(0x1000, 8), [0x1000]);
        assert_eq!(all(0x1038, 8), [0x1000]);
        assert_eq!(all(0x1038, 9), [0x1000, 0x1040]);
        assert_eq!(all(0x1040, 64), [0x1040]);
        assert_eq!(all(0x2000, 4096), (0x2000..0x3000).step_by(64).collect::<Vec<_>>());
    }
}
