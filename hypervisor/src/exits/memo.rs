//! Instructions that were decoded before.
//!
//! A driver writes its slots with the same few instructions again and again. What an instruction does follows from its bytes, its
//! address and the mode, so all three are compared each time: a guest that changes its code changes what is found.
#![forbid(unsafe_code)]

use super::decode::{Decoded, Mode};

/// Instructions that are remembered. A power of two.
const PLACES: usize = 32;

/// The 15 bytes from an instruction's first on, little-endian; the 16th is 0. Two words, because they are compared at each exit.
pub type Bytes = [u64; 2];

/// An instruction as it was found.
#[derive(Clone, Copy, Debug)]
struct Entry {
    rip: u64,
    mode: Mode,
    bytes: Bytes,
    decoded: Decoded,
}

/// What one virtual processor has executed.
#[derive(Debug, Default)]
pub struct Memo([Option<Entry>; PLACES]);

impl Memo {
    /// What the instruction does, if it was decoded before.
    pub fn find(&self, rip: u64, mode: Mode, bytes: Bytes) -> Option<&Decoded> {
        let entry = self.0[place(rip)].as_ref()?;
        (entry.rip == rip && entry.mode == mode && entry.bytes == bytes).then_some(&entry.decoded)
    }

    /// Remembers an instruction, in the place of another one.
    pub fn keep(&mut self, rip: u64, mode: Mode, bytes: Bytes, decoded: Decoded) {
        self.0[place(rip)] = Some(Entry { rip, mode, bytes, decoded });
    }
}

/// Instructions that follow each other differ in their low bits.
const fn place(rip: u64) -> usize {
    (rip ^ rip >> 5) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::super::decode::Operation;
    use super::*;

    #[test]
    fn only_the_same_bytes_at_the_same_place_in_the_same_mode_are_found() {
        let mut memo = Memo::default();
        let decoded = Decoded { length: 3, operation: Operation::NoAccess };
        let bytes = [0x8989_8989_8989_8989, 0x0089_8989_8989_8989];
        memo.keep(0x1000, Mode::Bits64, bytes, decoded);
        assert_eq!(memo.find(0x1000, Mode::Bits64, bytes), Some(&decoded));
        assert_eq!(memo.find(0x1000, Mode::Bits32, bytes), None);
        assert_eq!(memo.find(0x1020, Mode::Bits64, bytes), None);
        for at in 0..15 {
            let mut other = bytes;
            other[at / 8] ^= 1 << (8 * (at % 8));
            assert_eq!(memo.find(0x1000, Mode::Bits64, other), None, "byte {at}");
        }
    }
}
