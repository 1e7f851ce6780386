//! Whether anything of the machine can still reach a guest's memory.

/// The ways by which devices and remapping units reach a guest's memory, while it is taken away from them one after another.
#[derive(Debug, Default)]
#[must_use]
pub struct Ways {
    /// One could not be closed, so it leads there for ever.
    is_one_open: bool,
}

impl Ways {
    /// One was to be closed: whether that is sure.
    pub fn close(&mut self, is_sure: bool) {
        self.is_one_open |= !is_sure;
    }

    /// Gives the memory back, by `free`, if nothing leads there any more. Returns whether.
    pub fn give_back(self, free: impl FnOnce()) -> bool {
        if !self.is_one_open {
            free();
        }
        !self.is_one_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn memory_is_given_back_only_if_every_way_was_closed(all in proptest::collection::vec(any::<bool>(), 0..6)) {
            let (mut ways, mut freed) = (Ways::default(), false);
            all.iter().for_each(|is_sure| ways.close(*is_sure));
            let given_back = ways.give_back(|| freed = true);
            let expected = !all.contains(&false);
            prop_assert_eq!((given_back, freed), (expected, expected));
        }
    }
}
