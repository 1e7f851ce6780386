//! What some slots must read as after a guest's writes: bytes land where they are written, and of the control dword only the
//! mask bit is kept.

/// Slots of the image.
pub const SLOTS: usize = 8;
/// Bytes of the image.
pub const BYTES: usize = SLOTS * 16;

/// The slots' bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreImage([u8; BYTES]);

impl Default for StoreImage {
    fn default() -> Self {
        Self::new()
    }
}

impl StoreImage {
    /// As after reset: zeros with the mask set.
    pub const fn new() -> Self {
        let mut bytes = [0; BYTES];
        let mut slot = 0;
        while slot < SLOTS {
            bytes[slot * 16 + 12] = 1;
            slot += 1;
        }
        Self(bytes)
    }

    /// Writes the low `width` bytes of `value` at `offset`. What lies beyond the image is left out.
    pub fn write(&mut self, offset: usize, width: usize, value: u64) {
        for (n, byte) in value.to_le_bytes().into_iter().enumerate().take(width) {
            let at = offset + n;
            let kept = match at % 16 {
                12 => 1,
                13..=15 => 0,
                _ => 0xff,
            };
            if let Some(place) = self.0.get_mut(at) {
                *place = byte & kept;
            }
        }
    }

    /// Reads `width` bytes at `offset`.
    pub fn read(&self, offset: usize, width: usize) -> u64 {
        let bytes = self.0.iter().skip(offset).take(width);
        bytes.rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    /// The dword with number `n`.
    pub fn dword(&self, n: usize) -> u32 {
        self.read(n * 4, 4) as u32
    }

    /// How many dwords there are.
    pub const fn dwords() -> usize {
        BYTES / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_image_is_masked_zeros() {
        let image = StoreImage::new();
        for n in 0..StoreImage::dwords() {
            assert_eq!(image.dword(n), u32::from(n % 4 == 3));
        }
    }

    #[test]
    fn bytes_land_where_they_are_written_across_slots() {
        let mut image = StoreImage::new();
        image.write(10, 8, 0x8877_6655_4433_2211);
        assert_eq!(image.dword(2), 0x2211_0000);
        assert_eq!(image.dword(3), 0x33 & 1, "only the mask bit of control");
        assert_eq!(image.dword(4), 0x8877);
        assert_eq!(image.read(9, 4), 0x0122_1100);
    }

    #[test]
    fn a_write_beside_the_mask_byte_keeps_the_mask_and_one_beyond_the_end_is_cut() {
        let mut image = StoreImage::new();
        image.write(13, 2, 0xffff);
        assert_eq!(image.dword(3), 1);
        image.write(BYTES - 2, 8, !0);
        assert_eq!(image, StoreImage::new());
    }
}
