//! What was measured: the smallest of some values, the middle one, and the one that few exceed.

/// Room for values.
#[derive(Debug)]
pub struct Samples<const ROOM: usize> {
    values: [u64; ROOM],
    count: usize,
}

/// What is said of some values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// The smallest.
    pub min: u64,
    /// The middle one.
    pub median: u64,
    /// 99 of 100 are not above it.
    pub p99: u64,
}

impl<const ROOM: usize> Samples<ROOM> {
    /// No values.
    #[expect(clippy::new_without_default, reason = "it lives in a static")]
    pub const fn new() -> Self {
        Self { values: [0; ROOM], count: 0 }
    }

    /// Forgets all values.
    pub const fn clear(&mut self) {
        self.count = 0;
    }

    /// Takes a value; one for which there is no room is lost.
    pub fn push(&mut self, value: u64) {
        if let Some(place) = self.values.get_mut(self.count) {
            *place = value;
            self.count += 1;
        }
    }

    /// What they come to, by nearest rank. Zeros without a value.
    pub fn spread(&mut self) -> Spread {
        let Some(values) = self.values.get_mut(..self.count).filter(|values| !values.is_empty()) else {
            return Spread::default();
        };
        values.sort_unstable();
        let rank = |percent: usize| values[(values.len() * percent).div_ceil(100).max(1) - 1];
        Spread { min: values[0], median: rank(50), p99: rank(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_values_in_order() {
        let mut samples = Samples::<256>::new();
        (1..=200).rev().for_each(|value| samples.push(value));
        assert_eq!(samples.spread(), Spread { min: 1, median: 100, p99: 198 });
        samples.clear();
        samples.push(7);
        assert_eq!(samples.spread(), Spread { min: 7, median: 7, p99: 7 });
    }

    #[test]
    fn none_and_too_many_values_are_no_trouble() {
        let mut samples = Samples::<2>::new();
        assert_eq!(samples.spread(), Spread::default());
        [5, 3, 1].into_iter().for_each(|value| samples.push(value));
        assert_eq!(samples.spread(), Spread { min: 3, median: 3, p99: 5 });
    }
}
