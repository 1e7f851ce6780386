//! Memory that a device reads and writes.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

/// Memory at whole pages, whose physical address is its virtual one. A device may change it at any time, so it is read and
/// written volatile, a quadword at a time.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct DmaBuffer<const BYTES: usize>(UnsafeCell<[u8; BYTES]>);

// SAFETY: accesses are volatile and of single quadwords, each of which one processor at a time uses.
unsafe impl<const BYTES: usize> Sync for DmaBuffer<BYTES> {}

impl<const BYTES: usize> DmaBuffer<BYTES> {
    /// All zeros.
    #[expect(clippy::new_without_default, reason = "it lives in a static")]
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; BYTES]))
    }

    /// Its physical address.
    pub fn address(&self) -> u64 {
        self.0.get().expose_provenance() as u64
    }

    /// Its first byte.
    pub fn pointer(&self) -> NonNull<u8> {
        NonNull::from(&self.0).cast()
    }

    fn word(&self, offset: usize) -> NonNull<u64> {
        assert!(offset.is_multiple_of(8) && offset < BYTES, "quadword at {offset:#x} of {BYTES:#x}");
        // SAFETY: the quadword lies in the buffer, as was checked: buffers are whole quadwords long.
        unsafe { self.pointer().add(offset).cast() }
    }

    /// Reads the quadword at `offset`.
    pub fn read(&self, offset: usize) -> u64 {
        // SAFETY: `word` gives quadwords of the buffer.
        unsafe { self.word(offset).read_volatile() }
    }

    /// Writes the quadword at `offset`.
    pub fn write(&self, offset: usize, value: u64) {
        // SAFETY: `word` gives quadwords of the buffer.
        unsafe { self.word(offset).write_volatile(value) }
    }

    /// Writes `value` to `size` bytes from `offset`, both multiples of 8.
    pub fn fill(&self, offset: usize, size: usize, value: u64) {
        (offset..offset + size).step_by(8).for_each(|at| self.write(at, value));
    }
}
