//! What a processor does for guests that takes time, and in which order. Nothing here touches hardware.
#![forbid(unsafe_code)]

use crate::ims::GuestId;

/// Work for a guest that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Make the guest.
    Make(GuestId),
    /// Release the guest's resources.
    Release(GuestId),
}

impl Job {
    /// For whom.
    pub const fn guest(self) -> GuestId {
        match self {
            Self::Make(guest) | Self::Release(guest) => guest,
        }
    }
}

/// The job that a processor begins next, of those that wait, at most one of each guest. `last`: for whom it has done its last one. Guests take
/// turns by their numbers, so that each waits for one job of each other guest at most, however often those are restarted.
pub fn next_job(waiting: impl Iterator<Item = Job>, last: Option<GuestId>) -> Option<Job> {
    let had_its_turn = |guest: GuestId| last.is_some_and(|last| guest.0 <= last.0);
    waiting.min_by_key(|job| (had_its_turn(job.guest()), job.guest().0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_guests_that_restart_without_end_do_not_keep_a_third_from_being_made() {
        let waiting = || [0, 1, 2].map(|number| Job::Make(GuestId(number))).into_iter();
        let (mut last, mut order) = (None, Vec::new());
        for _ in 0..6 {
            let job = next_job(waiting(), last).unwrap();
            last = Some(job.guest());
            order.push(job.guest().0);
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    }

    proptest! {
        /// Each step, some guests ask; one that has asked goes on asking until it had its turn.
        #[test]
        fn a_guest_waits_for_one_job_of_each_other_guest_at_most(
            asking in proptest::collection::vec(proptest::collection::vec(0_u16..8, 0..8), 1..60)
        ) {
            let (mut waits, mut last) = ([None::<u32>; 8], None);
            for ask in asking {
                for guest in ask {
                    waits[usize::from(guest)].get_or_insert(0);
                }
                let waiting = (0..).zip(&waits).filter(|(_, waits)| waits.is_some());
                let job = next_job(waiting.map(|(number, _)| Job::Release(GuestId(number))), last);
                prop_assert_eq!(job.is_some(), waits.iter().any(Option::is_some));
                let Some(job) = job else { continue };
                last = Some(job.guest());
                waits[usize::from(job.guest().0)] = None;
                waits.iter_mut().flatten().for_each(|jobs| *jobs += 1);
                prop_assert!(waits.iter().flatten().all(|jobs| *jobs <= 7), "{:?}", waits);
            }
        }
    }
}
