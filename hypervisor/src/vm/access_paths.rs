//! Records whether devices and units can still reach a guest's memory.

/// The paths by which devices and remapping units reach a guest's memory, while they are taken away from them one after another.
#[derive(Debug)]
#[must_use]
pub struct AccessPaths {
    /// How many there were at first.
    all: usize,
    /// How many were to be closed so far.
    closed: usize,
    /// One could not be closed, so it leads there for ever.
    is_one_open: bool,
}

impl AccessPaths {
    /// So many paths, all of them open. A path that nobody closes counts as one that could not be closed.
    pub const fn new(all: usize) -> Self {
        Self { all, closed: 0, is_one_open: false }
    }

    /// A path was to be closed. `is_sure`: the path is closed for sure.
    pub fn close(&mut self, is_sure: bool) {
        self.closed += 1;
        self.is_one_open |= !is_sure;
    }

    /// Gives the memory back, by `free`, if no path leads there any more. Returns whether.
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
