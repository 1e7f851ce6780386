//! Which functions of the machine are assigned: whole, or by single work queues.

use alloc::vec::Vec;

use crate::{addr::Bdf, pci::Function};

/// Why a function cannot be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// A guest has the function already, whole or in part.
    Taken,
    /// It has too few work queues or slots left.
    NoRoom,
}

/// A work queue of a function, and the part of the function's store that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAllocation {
    /// The work queue's number.
    pub queue: u8,
    /// The queue's first slot in the store.
    pub first_slot: u16,
}

/// The part of a parent function from which a virtual function is made.
#[derive(Clone, Copy)]
pub struct VirtualAllocation {
    /// The parent function.
    pub parent: &'static Function,
    /// The work queue and its slots.
    pub part: QueueAllocation,
    /// The number of vectors, and of slots.
    pub vectors: u16,
}

/// A function of which the first queues and slots are allocated.
#[derive(Clone, Copy, Debug)]
struct Parent {
    bdf: Bdf,
    queues: u8,
    slots: u32,
}

/// The allocations. Nothing returns to it: a work queue is never given to a second guest, so a command for the queue that the device
/// carries out too late reaches no other guest.
#[derive(Clone, Debug, Default)]
pub struct Allocations {
    whole: Vec<Bdf>,
    parents: Vec<Parent>,
}

impl Allocations {
    /// Whether no part of the function is allocated.
    pub fn is_free(&self, bdf: Bdf) -> bool {
        !self.whole.contains(&bdf) && !self.parents.iter().any(|parent| parent.bdf == bdf)
    }

    /// Allocates a whole function, which must be free.
    pub fn take(&mut self, bdf: Bdf) {
        self.whole.push(bdf);
    }

    /// Allocates the next work queue, with `vectors` slots, of a function that has `queues` queues and `slots` slots.
    pub fn take_part(
        &mut self,
        bdf: Bdf,
        (queues, slots): (u8, u32),
        vectors: u16,
    ) -> Result<QueueAllocation, Unavailable> {
        if self.whole.contains(&bdf) {
            return Err(Unavailable::Taken);
        }
        let known = self.parents.iter().position(|parent| parent.bdf == bdf);
        let given = known.and_then(|n| self.parents.get(n)).copied();
        let given = given.unwrap_or(Parent { bdf, queues: 0, slots: 0 });
        let after = given.slots + u32::from(vectors);
        let first_slot = u16::try_from(given.slots).map_err(|_| Unavailable::NoRoom)?;
        if given.queues >= queues || after > slots {
            return Err(Unavailable::NoRoom);
        }
        let new = Parent { queues: given.queues + 1, slots: after, ..given };
        match known.and_then(|n| self.parents.get_mut(n)) {
            Some(parent) => *parent = new,
            None => self.parents.push(new),
        }
        Ok(QueueAllocation { queue: given.queues, first_slot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Bdf = Bdf(0xf0);
    const B: Bdf = Bdf(0xf8);
    const CAPACITY: (u8, u32) = (3, 4096);

    #[test]
    fn parts_follow_each_other_until_queues_or_slots_run_out() {
        let mut allocations = Allocations::default();
        let mut take = |vectors| allocations.take_part(A, CAPACITY, vectors);
        assert_eq!(take(2048), Ok(QueueAllocation { queue: 0, first_slot: 0 }));
        assert_eq!(take(2049), Err(Unavailable::NoRoom));
        assert_eq!(take(2047), Ok(QueueAllocation { queue: 1, first_slot: 2048 }));
        assert_eq!(take(2), Err(Unavailable::NoRoom));
        assert_eq!(take(1), Ok(QueueAllocation { queue: 2, first_slot: 4095 }));
        let mut many = Allocations::default();
        for queue in 0..3 {
            assert_eq!(many.take_part(A, CAPACITY, 2), Ok(QueueAllocation { queue, first_slot: 2 * u16::from(queue) }));
        }
        assert_eq!(many.take_part(A, CAPACITY, 2), Err(Unavailable::NoRoom));
        assert_eq!(many.take_part(B, CAPACITY, 2), Ok(QueueAllocation { queue: 0, first_slot: 0 }));
    }

    #[test]
    fn a_function_is_given_whole_or_in_parts() {
        let mut allocations = Allocations::default();
        allocations.take(A);
        assert!(!allocations.is_free(A) && allocations.is_free(B));
        assert_eq!(allocations.take_part(A, CAPACITY, 2), Err(Unavailable::Taken));
        assert!(allocations.take_part(B, CAPACITY, 2).is_ok() && !allocations.is_free(B));
    }
}
