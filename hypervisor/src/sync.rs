//! Locks: one that is first come, first served, and one for what many read and few write.

use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use spin::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A value that one processor at a time has. Processors get it in the order in which they ask.
///
/// So a wait ends after one turn of each other processor at most. Guests' virtual processors can ask for most locks as often as they like,
/// and an unfair lock would let one guest's loop keep another guest's processor out for good.
pub type Mutex<T> = lock_api::Mutex<Tickets, T>;

/// Holds a [`Mutex`], until it is dropped.
pub type MutexGuard<'a, T> = lock_api::MutexGuard<'a, Tickets, T>;

/// The state of a [`Mutex`]: a ticket lock of 4 bytes, so that a message store's slot with its lock fits into a cache line.
#[derive(Debug)]
pub struct Tickets {
    /// The next ticket that is handed out.
    next: AtomicU16,
    /// The ticket of the processor that has the lock; equal to `next` if none has it.
    serving: AtomicU16,
}

// SAFETY: each ticket is handed out once in 65,536, there are fewer processors than that, and one has the lock only while `serving` is its
// ticket. The Release store of `unlock` and the Acquire load of the next owner order what they do with the value.
unsafe impl lock_api::RawMutex for Tickets {
    #[allow(clippy::declare_interior_mutable_const, reason = "the trait wants it")]
    const INIT: Self = Self { next: AtomicU16::new(0), serving: AtomicU16::new(0) };
    type GuardMarker = lock_api::GuardSend;

    #[inline]
    fn lock(&self) {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        while self.serving.load(Ordering::Acquire) != ticket {
            wait();
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        let serving = self.serving.load(Ordering::Acquire);
        let taken = serving.wrapping_add(1);
        self.next.compare_exchange(serving, taken, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    #[inline]
    unsafe fn unlock(&self) {
        let next = self.serving.load(Ordering::Relaxed).wrapping_add(1);
        self.serving.store(next, Ordering::Release);
    }
}

/// A look later. The host's system may have taken the processor from the thread whose turn it is; a processor of the machine's goes on.
#[inline]
fn wait() {
    #[cfg(test)]
    std::thread::yield_now();
    #[cfg(not(test))]
    core::hint::spin_loop();
}

/// A value that many read at a time, or one writes.
///
/// A plain reader-writer lock of spinning readers can keep a writer out for good: each try of a reader counts for a moment, so that where
/// several try in step the count is never zero. Here readers wait without touching the count as soon as a writer wants in.
#[derive(Debug, Default)]
pub struct Shared<T> {
    value: RwLock<T>,
    /// A writer wants in.
    closing: AtomicBool,
    /// Which one.
    writer: Mutex<()>,
}

impl<T> Shared<T> {
    /// A value that nobody reads or writes.
    pub const fn new(value: T) -> Self {
        Self { value: RwLock::new(value), closing: AtomicBool::new(false), writer: Mutex::new(()) }
    }

    /// The value, to read. Whoever has it already must not ask again: a writer may have come in between.
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        while self.closing.load(Ordering::Acquire) {
            wait();
        }
        self.value.read()
    }

    /// The value, to write, when those who read it now have done.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let _writer = self.writer.lock();
        self.closing.store(true, Ordering::Release);
        let value = self.value.write();
        self.closing.store(false, Ordering::Release);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU32;

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
