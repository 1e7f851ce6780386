//! Whose traces a processor's predictors hold.
#![forbid(unsafe_code)]

use crate::ims::GuestId;

/// The guest that ran last on a processor. Its virtual processors trust each other; another guest must not be steered by what it left.
#[derive(Debug, Default)]
pub struct GuestChange(Option<GuestId>);

impl GuestChange {
    /// A virtual processor of `guest` runs next. Returns whether anything else ran last: another guest, or what ran before the first one.
    pub fn enter(&mut self, guest: GuestId) -> bool {
        self.0.replace(guest) != Some(guest)
    }

    /// A virtual processor of `guest` has left for good. Another guest may get the number.
    pub fn leave(&mut self, guest: GuestId) {
        self.0 = self.0.filter(|last| *last != guest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_change_is_one_of_guests_and_not_of_virtual_processors() {
        let mut change = GuestChange::default();
        let (one, other) = (GuestId(1), GuestId(2));
        let entered = [one, one, one, other, other, one].map(|guest| change.enter(guest));
        assert_eq!(entered, [true, false, false, true, false, true]);
    }

    #[test]
    fn a_guest_with_the_number_of_one_that_has_left_is_another() {
        let mut change = GuestChange::default();
        let (one, other) = (GuestId(1), GuestId(2));
        assert!(change.enter(one));
        change.leave(other);
        assert!(!change.enter(one), "another one's leaving changes nothing");
        change.leave(one);
        assert!(change.enter(one));
    }

    proptest! {
        #[test]
        fn no_guest_runs_behind_another_without_a_change(order in proptest::collection::vec(0_u16..4, 1..100)) {
            let mut change = GuestChange::default();
            let mut last = None;
            for guest in order {
                prop_assert_eq!(change.enter(GuestId(guest)), last != Some(guest));
                last = Some(guest);
            }
        }
    }
}
