//! The 256-bit registers of a local APIC: IRR, ISR and TMR (SDM vol. 3, 12.8.4).

/// A set of interrupt vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorSet {
    words: [u64; 4],
    /// Bit n: word n has a vector. At each exit the question is whether there is any.
    filled: u8,
}

impl VectorSet {
    /// No vector.
    pub const EMPTY: Self = Self { words: [0; 4], filled: 0 };

    const fn place(vector: u8) -> (usize, u64) {
        ((vector >> 6) as usize, 1 << (vector & 63))
    }

    /// Adds `vector`; says whether it was new.
    pub fn insert(&mut self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.filled |= 1 << word;
        new
    }

    /// Removes `vector`; says whether it was there.
    pub fn remove(&mut self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        let was = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        if self.words[word] == 0 {
            self.filled &= !(1 << word);
        }
        was
    }

    /// Whether `vector` is in it.
    pub const fn contains(&self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        self.words[word] & bit != 0
    }

    /// Whether no vector is in it.
    pub const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The highest vector in it: the one of highest priority.
    pub fn highest(&self) -> Option<u8> {
        let index = self.filled.checked_ilog2()?;
        let word = self.words[index as usize & 3];
        Some((index * 64 + 63 - word.leading_zeros()) as u8)
    }

    /// The `index`th of its eight 32-bit registers; `index` is cut to three bits.
    pub const fn register(&self, index: u32) -> u32 {
        let word = self.words[(index as usize & 7) / 2];
        if index & 1 == 0 { word as u32 } else { (word >> 32) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_keeps_what_was_inserted_and_finds_the_highest() {
        let mut set = VectorSet::EMPTY;
        assert_eq!(set.highest(), None);
        for vector in [0, 31, 32, 63, 64, 200, 255] {
            assert!(set.insert(vector));
            assert!(!set.insert(vector), "a second time is not new");
            assert_eq!(set.highest(), Some(vector));
        }
        assert_eq!(set.register(0), 1 << 31 | 1);
        assert_eq!(set.register(1), 1 << 31 | 1);
        assert_eq!(set.register(6), 1 << (200 - 192));
        assert!(set.remove(255) && !set.remove(255));
        assert_eq!(set.highest(), Some(200));
        assert!(!set.is_empty());
        for vector in [200, 64, 63, 32, 31, 0] {
            assert_eq!(set.highest(), Some(vector));
            assert!(set.remove(vector));
        }
        assert_eq!(set, VectorSet::EMPTY);
    }
}
