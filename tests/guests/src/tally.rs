//! Which interrupt was expected, and which came.
//!
//! Slots share vectors, so a driver says before it raises a slot that the slot is the one to come on its vector. An interrupt
//! that nobody expects is a stray: one too many, or one that went to the wrong place.

use core::sync::atomic::{AtomicU16, AtomicU32, Ordering::SeqCst};

/// Counts interrupts by what was expected of their vectors. Names are below 65,535.
#[derive(Debug)]
pub struct Tally<const NAMES: usize> {
    /// By vector: 1 + the name of what is expected there, or 0.
    expected: [AtomicU16; 256],
    handled: [AtomicU32; NAMES],
    total: AtomicU32,
    strays: AtomicU32,
    last_stray: AtomicU32,
}

impl<const NAMES: usize> Tally<NAMES> {
    /// Nothing is expected and nothing came.
    #[expect(clippy::new_without_default, reason = "it lives in a static")]
    pub const fn new() -> Self {
        Self {
            expected: [const { AtomicU16::new(0) }; 256],
            handled: [const { AtomicU32::new(0) }; NAMES],
            total: AtomicU32::new(0),
            strays: AtomicU32::new(0),
            last_stray: AtomicU32::new(0),
        }
    }

    /// The next interrupt on `vector` is `name`'s. False when another one is still expected there.
    #[must_use]
    pub fn expect(&self, vector: u8, name: u16) -> bool {
        self.expected[usize::from(vector)].compare_exchange(0, name + 1, SeqCst, SeqCst).is_ok()
    }

    /// Nothing is expected on `vector` any more. Returns what was, and did not come.
    pub fn forget(&self, vector: u8) -> Option<u16> {
        self.expected[usize::from(vector)].swap(0, SeqCst).checked_sub(1)
    }

    /// An interrupt came on `vector`. To be called by its handler.
    pub fn arrived(&self, vector: u8) {
        match self.forget(vector).and_then(|name| self.handled.get(usize::from(name))) {
            Some(count) => {
                count.fetch_add(1, SeqCst);
                self.total.fetch_add(1, SeqCst);
            }
            None => {
                self.last_stray.store(vector.into(), SeqCst);
                self.strays.fetch_add(1, SeqCst);
            }
        }
    }

    /// How many came for `name`.
    pub fn handled(&self, name: u16) -> u32 {
        self.handled.get(usize::from(name)).map_or(0, |count| count.load(SeqCst))
    }

    /// How many came that were expected.
    pub fn total(&self) -> u32 {
        self.total.load(SeqCst)
    }

    /// How many came that were not.
    pub fn strays(&self) -> u32 {
        self.strays.load(SeqCst)
    }

    /// The vector of the last one that was not expected.
    pub fn last_stray(&self) -> u8 {
        self.last_stray.load(SeqCst) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_counts_once_for_what_was_expected() {
        let tally = Tally::<4>::new();
        assert!(tally.expect(0x30, 3));
        assert!(!tally.expect(0x30, 2), "one at a time");
        tally.arrived(0x30);
        tally.arrived(0x30);
        assert_eq!((tally.handled(3), tally.total(), tally.strays(), tally.last_stray()), (1, 1, 1, 0x30));
    }

    #[test]
    fn what_did_not_come_can_be_forgotten() {
        let tally = Tally::<4>::new();
        assert!(tally.expect(0x31, 0));
        assert_eq!(tally.forget(0x31), Some(0));
        assert_eq!(tally.forget(0x31), None);
        tally.arrived(0x31);
        assert_eq!((tally.total(), tally.strays()), (0, 1));
    }
}
