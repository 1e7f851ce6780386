//! Locks: one that is first come, first served, and one for what many read and few write.
#![cfg_attr(not(any(test, feature = "testing")), no_std)]

mod shared;
mod tickets;

use atomic::{AtomicBool, AtomicU16};
use spin::RwLock;

pub use {
    shared::Shared,
    spin::{RwLockReadGuard as ReadGuard, RwLockWriteGuard as WriteGuard},
    tickets::Tickets,
};

/// The atomics of protocols between processors. `tests/concurrency` compiles files that use these with a model checker's in their place.
pub mod atomic {
    pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering, fence};
}

/// A value that one processor at a time has. Processors get it in the order in which they ask.
///
/// So a wait ends after one turn of each other processor at most. Guests' virtual processors can ask for most locks as often as they like,
/// and an unfair lock would let one guest's loop keep another guest's processor out for good.
pub type Mutex<T> = lock_api::Mutex<Tickets, T>;

/// Holds a [`Mutex`], until it is dropped.
pub type MutexGuard<'a, T> = lock_api::MutexGuard<'a, Tickets, T>;

/// Locks, in turn, if it is `urgent`, else if no other processor has the lock or waits for it. A lock that processors ask for without pause is
/// never free for one that does not wait.
pub fn lock_or_try<T>(lock: &Mutex<T>, urgent: bool) -> Option<MutexGuard<'_, T>> {
    if urgent { Some(lock.lock()) } else { lock.try_lock() }
}

// SAFETY: each ticket is handed out once in 65,536, there are fewer processors than that, and one has the lock only while the ticket that is
// served is its own. The Release store of `serve_next` and the Acquire load of the next owner order what they do with the value.
unsafe impl lock_api::RawMutex for Tickets {
    #[allow(clippy::declare_interior_mutable_const, reason = "the trait wants it")]
    const INIT: Self = Self { next: AtomicU16::new(0), serving: AtomicU16::new(0) };
    type GuardMarker = lock_api::GuardSend;

    #[inline]
    fn lock(&self) {
        self.take();
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.try_take()
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.serve_next();
    }
}

/// A look later. The host's system may have taken the processor from the thread whose turn it is; a processor of the machine's goes on.
#[inline]
fn wait() {
    #[cfg(any(test, feature = "testing"))]
    std::thread::yield_now();
    #[cfg(not(any(test, feature = "testing")))]
    core::hint::spin_loop();
}

impl<T> Shared<T> {
    /// A value that nobody reads or writes.
    pub const fn new(value: T) -> Self {
        Self { value: RwLock::new(value), closing: AtomicBool::new(false), writer: Mutex::new(()) }
    }
}

/// What other rooms' tests do to a lock.
#[cfg(any(test, feature = "testing"))]
pub mod testing {
    use super::{Mutex, atomic::Ordering};

    /// Does what a processor does that asks for a lock and then never runs again: as the lock's owner, or while it waits for the lock.
    pub fn ask_and_be_gone<T>(lock: &Mutex<T>) {
        // SAFETY: whoever has the ticket never releases it.
        unsafe { lock.raw() }.next.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU32, Ordering};
    use lock_api::RawMutex;

    #[test]
    fn a_lock_goes_to_the_one_that_asked_first() {
        let (lock, order) = (Mutex::new(()), std::sync::Mutex::new(Vec::new()));
        // SAFETY: only looked at.
        let asked = || unsafe { lock.raw() }.next.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            let held = lock.lock();
            for number in 0..3 {
                let (lock, order) = (&lock, &order);
                scope.spawn(move || {
                    let _held = lock.lock();
                    order.lock().unwrap().push(number);
                });
                while asked() != number + 2 {
                    std::thread::yield_now();
                }
            }
            assert!(lock.try_lock().is_none(), "it is held, and others are before us");
            drop(held);
        });
        assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
    }

    #[test]
    fn a_lock_that_was_taken_65537_times_is_free_and_held_by_one_at_a_time() {
        let lock = Mutex::new(0u32);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..40_000 {
                        match lock.try_lock() {
                            Some(mut value) => *value += 1,
                            None => *lock.lock() += 1,
                        }
                    }
                });
            }
        });
        assert_eq!(*lock.try_lock().unwrap(), 80_000);
    }

    #[test]
    fn a_try_that_pauses_for_65536_tickets_waits_for_its_turn() {
        let lock = Tickets::INIT;
        let seen = lock.serving.load(Ordering::Relaxed);
        for _ in 0..u16::MAX {
            lock.lock();
            // SAFETY: locked just now.
            unsafe { lock.unlock() };
        }
        lock.lock();
        assert_eq!(
            lock.next.load(Ordering::Relaxed),
            seen,
            "the next ticket is again the one that the try has seen served"
        );
        let got = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(lock.take_if_next(seen));
                got.store(true, Ordering::Relaxed);
            });
            while lock.next.load(Ordering::Relaxed) == seen {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!got.load(Ordering::Relaxed), "another has it");
            // SAFETY: locked above.
            unsafe { lock.unlock() };
        });
        assert!(got.load(Ordering::Relaxed) && !lock.try_lock());
        // SAFETY: the thread above has locked it.
        unsafe { lock.unlock() };
        assert!(lock.try_lock() && !lock.try_lock());
    }

    #[test]
    fn what_is_urgent_gets_a_lock_for_which_others_wait() {
        let lock = Mutex::new(());
        let asked = |number| {
            // SAFETY: only looked at.
            while unsafe { lock.raw() }.next.load(Ordering::Relaxed) < number {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            let held = lock.lock();
            scope.spawn(|| drop(lock.lock()));
            asked(2);
            assert!(lock_or_try(&lock, false).is_none());
            let urgent = scope.spawn(|| lock_or_try(&lock, true).is_some());
            // Without a wait there is no third ticket.
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(held);
            assert!(urgent.join().unwrap());
        });
    }

    #[test]
    fn writers_get_in_although_readers_never_rest() {
        const WRITES: u32 = 200;
        let (shared, done) = (Shared::new((0u32, 0u32)), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while done.load(Ordering::Relaxed) < 2 {
                        let value = shared.read();
                        assert_eq!(value.0, value.1, "half of a write");
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..WRITES {
                        let mut value = shared.write();
                        value.0 += 1;
                        value.1 += 1;
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(*shared.read(), (2 * WRITES, 2 * WRITES));
    }
}
