//! The MSR bitmaps: SDM vol. 3, 26.6.9.

use crate::addr::{Hpa, PAGE_SIZE};

/// The page of MSR bitmaps. A set bit makes the access exit.
#[repr(transparent)]
pub struct MsrBitmap([u8; PAGE_SIZE as usize]);

/// Offsets of the four bitmaps: reads of low and of high MSRs, writes of both.
const READ_LOW: usize = 0;
const WRITE_LOW: usize = 2048;
/// The distance of the bitmap for high MSRs from the one for low MSRs.
const HIGH: usize = 1024;
const HIGH_FIRST: u32 = 0xc000_0000;
/// The number of MSRs that a bitmap covers.
const COVERED: u32 = 0x2000;

impl MsrBitmap {
    /// Bitmaps that make every access exit, except for reads and writes of `passthrough`. An MSR that no bitmap covers exits in any case.
    pub fn new(passthrough: impl Iterator<Item = u32>) -> Self {
        let mut bitmap = Self([0xff; PAGE_SIZE as usize]);
        for register in passthrough {
            bitmap.let_through(register);
        }
        bitmap
    }

    /// The bitmaps in a frame.
    ///
    /// # Safety
    /// The frame holds bitmaps, and nobody else writes there while the result is used.
    pub unsafe fn at<'a>(frame: Hpa) -> &'a mut Self {
        // SAFETY: frames are identity-mapped; any byte is one of a bitmap; the caller vouches for the rest.
        unsafe { &mut *(frame.as_u64() as *mut Self) }
    }

    /// Lets reads and writes of a register through.
    pub fn let_through(&mut self, register: u32) {
        self.allow(register, READ_LOW);
        self.allow(register, WRITE_LOW);
    }

    /// Lets reads through.
    pub fn allow_reads(&mut self, registers: impl Iterator<Item = u32>) {
        registers.for_each(|register| self.allow(register, READ_LOW));
    }

    /// Lets writes through.
    pub fn allow_writes(&mut self, registers: impl Iterator<Item = u32>) {
        registers.for_each(|register| self.allow(register, WRITE_LOW));
    }

    fn allow(&mut self, register: u32, way: usize) {
        let (half, number) = if register >= HIGH_FIRST { (HIGH, register - HIGH_FIRST) } else { (0, register) };
        if number < COVERED {
            self.0[way + half + number as usize / 8] &= !(1 << (number % 8));
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; PAGE_SIZE as usize] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_let_through_does_not_exit() {
        let bitmap = MsrBitmap::new([0x174, 0xc000_0102, 0x4000_0000].into_iter());
        let cleared: Vec<_> = (0..4096 * 8).filter(|bit| bitmap.bytes()[bit / 8] & 1 << (bit % 8) == 0).collect();
        assert_eq!(cleared, [0x174, 1024 * 8 + 0x102, 2048 * 8 + 0x174, 3072 * 8 + 0x102]);
    }
}
