//! Phases of the machine's time that guests share without a word to each other: all of them read the machine's TSC.

/// Ticks of a phase.
pub const PHASE: u64 = 12_000_000;

/// The first phase begins at a multiple of this, so that guests that start at about the same time agree on it.
const STEP: u64 = 1 << 26;

/// Ticks that guests have at least to get ready.
const READY: u64 = STEP / 4;

/// The phases as a guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phases {
    /// The TSC at the beginning of the first one.
    pub base: u64,
    /// Ticks of each.
    pub ticks: u64,
}

impl Phases {
    /// For a guest that starts at `tsc`.
    pub const fn from(tsc: u64) -> Self {
        Self { base: (tsc + READY).next_multiple_of(STEP), ticks: PHASE }
    }

    /// The phase at `tsc`; `None` before the first one.
    pub fn at(&self, tsc: u64) -> Option<u64> {
        Some(tsc.checked_sub(self.base)? / self.ticks)
    }

    /// The TSC at the end of a phase.
    pub const fn end(&self, phase: u64) -> u64 {
        self.base + (phase + 1) * self.ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_that_start_at_about_the_same_time_agree() {
        let (one, other) = (Phases::from(3 * STEP), Phases::from(3 * STEP + 1_000_000));
        assert_eq!(one, other);
        assert_eq!(one.at(one.base - 1), None);
        assert_eq!([0, PHASE - 1, PHASE].map(|ticks| one.at(one.base + ticks)), [Some(0), Some(0), Some(1)]);
        assert_eq!(one.end(0), one.base + PHASE);
    }
}
