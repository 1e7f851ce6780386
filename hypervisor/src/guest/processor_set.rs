//! A set of processors, as `pin=` names it: `0,2-3`.

use core::fmt;

/// Most numbers and ranges of a list.
const RANGES: usize = 8;

/// Processors by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessorSet {
    /// First and last number of each range; the first `count` of them.
    ranges: [(u16, u16); RANGES],
    count: usize,
}

impl ProcessorSet {
    /// Reads numbers and ranges with commas between them. `None` for anything else, for a range that ends before it begins, and for more than
    /// eight of them.
    pub fn parse(text: &str) -> Option<Self> {
        let mut set = Self { ranges: [(0, 0); RANGES], count: 0 };
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = (number(first)?, number(last)?);
            *set.ranges.get_mut(set.count).filter(|_| range.0 <= range.1)? = range;
            set.count += 1;
        }
        Some(set)
    }

    fn ranges(&self) -> impl Iterator<Item = (u16, u16)> {
        self.ranges.iter().copied().take(self.count)
    }

    /// Whether a processor is in the set.
    pub fn contains(&self, number: usize) -> bool {
        self.ranges().any(|(first, last)| (usize::from(first)..=usize::from(last)).contains(&number))
    }

    /// The processors' numbers, in the order of the list.
    pub fn numbers(&self) -> impl Iterator<Item = usize> {
        self.ranges().flat_map(|(first, last)| usize::from(first)..=usize::from(last))
    }
}

/// A decimal number without a sign.
fn number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

impl fmt::Display for ProcessorSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.ranges().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::ToString, vec::Vec};

    #[test]
    fn lists_of_numbers_and_ranges_are_sets() {
        let set = ProcessorSet::parse("0,2-4,9").unwrap();
        assert_eq!(set.numbers().collect::<Vec<_>>(), [0, 2, 3, 4, 9]);
        assert_eq!([0, 1, 4, 5, 9].map(|number| set.contains(number)), [true, false, true, false, true]);
        assert_eq!(set.to_string(), "0,2-4,9");
        assert!(ProcessorSet::parse("0,1,2,3,4,5,6,7").is_some());
        for wrong in ["", ",", "1,", "3-2", "1-", "-1", "+1", "a", "65536", "0,1,2,3,4,5,6,7,8", "1-2-3"] {
            assert_eq!(ProcessorSet::parse(wrong), None, "{wrong}");
        }
    }
}
