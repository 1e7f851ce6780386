//! The cache of decoded instructions and of the page walks that lead to them.
//!
//! A driver writes its slots with the same few instructions again and again. An instruction's effect follows from its bytes, its address
//! and the mode, so a lookup compares all three: if a guest changes its code, the lookup fails. The place of the code follows from the
//! guest's page tables, whose entries are compared each time as well ([`Walked`]).
#![forbid(unsafe_code)]

use alloc::boxed::Box;

use super::{
    instruction::{Decoded, Mode},
    walk::Walked,
};

/// Sets of the cache, a power of two. Each has two ways, so that a function that masks and one that unmasks do not evict each other all the
/// time.
const PLACES: usize = 128;
/// Page walks in the cache, a power of two.
const PAGES: usize = 16;

/// The 15 bytes from an instruction's first byte on, little-endian; the 16th is 0. Two words, because they are compared at each exit.
pub type Bytes = [u64; 2];

/// A decoded instruction, with the address, mode and bytes that it had.
#[derive(Clone, Copy, Debug)]
struct Entry {
    rip: u64,
    mode: Mode,
    bytes: Bytes,
    decoded: Decoded,
}

/// The decode cache of one virtual processor.
#[derive(Clone, Debug)]
pub struct DecodeCache {
    instructions: Box<[[Option<Entry>; 2]; PLACES]>,
    pages: Box<[Option<Walked>; PAGES]>,
}

impl Default for DecodeCache {
    fn default() -> Self {
        Self { instructions: Box::new([const { [None, None] }; PLACES]), pages: Box::new([const { None }; PAGES]) }
    }
}

impl DecodeCache {
    /// The decoded instruction, if the cache has it.
    #[inline(always)]
    pub fn find(&self, rip: u64, mode: Mode, bytes: Bytes) -> Option<&Decoded> {
        let is_it = |entry: &&Entry| entry.rip == rip && entry.mode == mode && entry.bytes == bytes;
        let [newer, older] = &self.instructions[place(rip)];
        let found = newer.as_ref().filter(is_it).or_else(|| older.as_ref().filter(is_it))?;
        Some(&found.decoded)
    }

    /// Adds an instruction, in place of the older one of its set, or of the one with the same address.
    pub fn keep(&mut self, rip: u64, mode: Mode, bytes: Bytes, decoded: Decoded) {
        let [newer, older] = &mut self.instructions[place(rip)];
        if newer.as_ref().is_some_and(|entry| entry.rip != rip) {
            *older = *newer;
        }
        *newer = Some(Entry { rip, mode, bytes, decoded });
    }

    /// The cached walk for the set of `rip`, which may be the walk for other code.
    #[inline]
    pub fn walked(&self, rip: u64) -> Option<&Walked> {
        self.pages[page(rip)].as_ref()
    }

    /// Adds the walk for the code at `rip`, in place of another one.
    pub fn keep_walked(&mut self, rip: u64, walked: Walked) {
        self.pages[page(rip)] = Some(walked);
    }
}

/// The set of an address. Stores are seldom shorter than 4 bytes, so the stores of a function, or of an unrolled loop, do not evict each
/// other.
const fn place(rip: u64) -> usize {
    (rip >> 2) as usize % PLACES
}

const fn page(rip: u64) -> usize {
    (rip >> 12) as usize % PAGES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exits::instruction::Operation;

    #[test]
    fn only_the_same_bytes_at_the_same_place_in_the_same_mode_are_found() {
        let mut decode_cache = DecodeCache::default();
        let decoded = Decoded { length: 3, operation: Operation::NoAccess };
        let bytes = [0x8989_8989_8989_8989, 0x0089_8989_8989_8989];
        decode_cache.keep(0x1000, Mode::Bits64, bytes, decoded);
        assert_eq!(decode_cache.find(0x1000, Mode::Bits64, bytes), Some(&decoded));
        assert_eq!(decode_cache.find(0x1000, Mode::Bits32, bytes), None);
        assert_eq!(decode_cache.find(0x1020, Mode::Bits64, bytes), None);
        for at in 0..15 {
            let mut other = bytes;
            other[at / 8] ^= 1 << (8 * (at % 8));
            assert_eq!(decode_cache.find(0x1000, Mode::Bits64, other), None, "byte {at}");
        }
    }

    #[test]
    fn the_stores_of_two_unrolled_loops_all_have_their_places() {
        let mut decode_cache = DecodeCache::default();
        let decoded = Decoded { length: 7, operation: Operation::NoAccess };
        let loop_of = |length: u64| (0..512 / length).map(move |n| 0x40_1003 + n * length);
        for length in [4, 6, 7, 10, 11] {
            // And those of another one, which are at the same places.
            let both = || loop_of(length).chain(loop_of(length).map(|rip| rip + 0x4_0000));
            both().for_each(|rip| decode_cache.keep(rip, Mode::Bits64, [rip, 0], decoded));
            assert!(both().all(|rip| decode_cache.find(rip, Mode::Bits64, [rip, 0]).is_some()), "{length}");
        }
    }
}
