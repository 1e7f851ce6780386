//! Records whether devices and units can still reach a guest's memory.

/// The paths by which devices and remapping units reach a guest's memory, while they are closed one after another.
#[derive(Debug)]
#[must_use]
pub struct AccessPaths {
    /// The number of paths at first.
    all: usize,
    /// The number of paths that were handled so far.
    closed: usize,
    /// Whether a path could not be closed, so that it stays open for ever.
    is_one_open: bool,
}

impl AccessPaths {
    /// `all` open paths. A path that is never closed counts as one that could not be closed.
    pub const fn new(all: usize) -> Self {
        Self { all, closed: 0, is_one_open: false }
    }

    /// Notes that a path was handled. `is_sure` is set if the path is closed for sure.
    pub fn close(&mut self, is_sure: bool) {
        self.closed += 1;
        self.is_one_open |= !is_sure;
    }

    /// Frees the memory by `free` if no path is open any more. Returns whether it did.
    pub fn give_back(self, free: impl FnOnce()) -> bool {
        let are_closed = self.closed == self.all && !self.is_one_open;
        if are_closed {
            free();
        }
        are_closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn memory_is_given_back_only_if_every_way_was_closed_once(
            all in 0usize..6, closes in proptest::collection::vec(proptest::bool::weighted(0.9), 0..6)
        ) {
            let (mut paths, mut freed) = (AccessPaths::new(all), false);
            closes.iter().for_each(|is_sure| paths.close(*is_sure));
            let given_back = paths.give_back(|| freed = true);
            let expected = closes.len() == all && !closes.contains(&false);
            prop_assert_eq!((given_back, freed), (expected, expected));
        }
    }
}
