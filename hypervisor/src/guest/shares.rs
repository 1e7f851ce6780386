//! How much of the processors' time a guest may have.

/// The weight of a guest that asks for none (Xen's credit scheduler has the same).
pub const DEFAULT_WEIGHT: u16 = 256;

/// The largest weight: the smallest share beside it is a ten-thousandth.
pub const MAX_WEIGHT: u16 = 10_000;

/// A guest's claim to the time of each processor that its virtual processors are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    weight: u16,
    cap: Option<u8>,
}

impl Default for Shares {
    fn default() -> Self {
        Self { weight: DEFAULT_WEIGHT, cap: None }
    }
}

impl Shares {
    /// `weight`: the guest's part among those that can run, in relation to their weights; 1 to [`MAX_WEIGHT`]. `cap`: the most that the guest
    /// gets of each processor, in percent, even if nobody else can run; 1 to 100.
    pub fn new(weight: u16, cap: Option<u8>) -> Option<Self> {
        let is_good = (1..=MAX_WEIGHT).contains(&weight) && cap.is_none_or(|cap| (1..=100).contains(&cap));
        is_good.then_some(Self { weight, cap })
    }

    /// The weight. Never 0.
    pub const fn weight(self) -> u16 {
        self.weight
    }

    /// The most of a processor's time, in percent.
    pub const fn cap(self) -> Option<u8> {
        self.cap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_never_0_and_a_cap_is_a_percentage() {
        for (weight, cap, is_good) in [
            (0, None, false),
            (1, None, true),
            (MAX_WEIGHT, Some(100), true),
            (MAX_WEIGHT + 1, None, false),
            (DEFAULT_WEIGHT, Some(0), false),
            (DEFAULT_WEIGHT, Some(1), true),
            (DEFAULT_WEIGHT, Some(101), false),
        ] {
            assert_eq!(Shares::new(weight, cap).is_some(), is_good, "{weight} {cap:?}");
        }
    }
}
