//! Memory-mapped registers.

use core::ptr::NonNull;

use crate::addr::Hpa;

/// A block of device registers. Hardware code is generic over it, so that tests put a model behind it.
///
/// An offset is a multiple of the access's width. What lies outside of the block reads as all ones and is written to without
/// effect, as on a bus where nobody answers.
pub trait Registers {
    /// Reads 32 bits at `offset`.
    fn read32(&self, offset: usize) -> u32;
    /// Reads 64 bits at `offset`.
    fn read64(&self, offset: usize) -> u64;
    /// Writes 32 bits at `offset`.
    fn write32(&self, offset: usize, value: u32);
    /// Writes 64 bits at `offset`.
    fn write64(&self, offset: usize, value: u64);
}

impl<R: Registers + ?Sized> Registers for &R {
    fn read32(&self, offset: usize) -> u32 {
        (**self).read32(offset)
    }

    fn read64(&self, offset: usize) -> u64 {
        (**self).read64(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        (**self).write32(offset, value);
    }

    fn write64(&self, offset: usize, value: u64) {
        (**self).write64(offset, value);
    }
}

/// Registers in the processor's address space.
#[derive(Debug)]
pub struct Mmio {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: `new`'s caller vouched that any access within the block is safe; each is one volatile access.
unsafe impl Send for Mmio {}
// SAFETY: as for `Send`: accesses by several processors are volatile accesses to the device, in some order.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// The block of `len` bytes at `base`; none if that is null or not 8-byte aligned.
    ///
    /// # Safety
    /// The block is mapped (uncached, for a device) as long as this value lives, is no memory that Rust knows of, and reading or
    /// writing it cannot break memory safety except through what the device is told, for which the driver answers.
    pub unsafe fn new(base: Hpa, len: usize) -> Option<Self> {
        let base = NonNull::new(base.as_u64() as *mut u8).filter(|base| base.cast::<u64>().is_aligned())?;
        Some(Self { base, len })
    }

    /// Bytes of the block.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let inside = offset.checked_add(size_of::<T>())? <= self.len && offset.is_multiple_of(align_of::<T>());
        // SAFETY: the offset lies inside of the block.
        inside.then(|| unsafe { self.base.add(offset).cast() })
    }

    /// Reads a `T` at `offset`.
    fn read<T>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` checked bounds and alignment, `new`'s caller vouched for the block.
        self.at(offset).map(|register| unsafe { register.read_volatile() })
    }

    /// Writes a `T` at `offset`.
    fn write<T>(&self, offset: usize, value: T) {
        if let Some(register) = self.at(offset) {
            // SAFETY: as for `read`.
            unsafe { register.write_volatile(value) };
        }
    }
}

impl Registers for Mmio {
    fn read32(&self, offset: usize) -> u32 {
        self.read(offset).unwrap_or(u32::MAX)
    }

    fn read64(&self, offset: usize) -> u64 {
        self.read(offset).unwrap_or(u64::MAX)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.write(offset, value);
    }

    fn write64(&self, offset: usize, value: u64) {
        self.write(offset, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_stay_inside_of_the_block() {
        let mut memory = [0u64, 0x1122_3344_5566_7788, 7];
        // SAFETY: `memory` outlives the block, of which the last quadword is no part.
        let block = unsafe { Mmio::new(Hpa::new(memory.as_mut_ptr() as u64), 16) }.unwrap();
        block.write32(0, 5);
        block.write64(16, 9);
        block.write64(12, 9);
        assert_eq!((block.read64(0), block.read32(8), block.read32(12)), (5, 0x5566_7788, 0x1122_3344));
        assert_eq!((block.read64(16), block.read32(usize::MAX), block.read32(2)), (u64::MAX, u32::MAX, u32::MAX));
        assert_eq!(memory[2], 7);
    }
}
