//! A lock for a guest's processors: first come, first served.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// A value that one processor at a time may use. Interrupt handlers must not.
#[derive(Debug)]
pub struct Lock<T> {
    next: AtomicU32,
    serving: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: only the holder of the ticket that is served reaches the value.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A value that nobody uses.
    pub const fn new(value: T) -> Self {
        Self { next: AtomicU32::new(0), serving: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Waits for the value.
    pub fn lock(&self) -> Guard<'_, T> {
        let ticket = self.next.fetch_add(1, SeqCst);
        while self.serving.load(SeqCst) != ticket {
            core::hint::spin_loop();
        }
        Guard(self)
    }
}

impl<T: Copy> Lock<T> {
    /// The value, whoever holds it.
    ///
    /// # Safety
    /// Nobody changes it any more.
    pub unsafe fn peek(&self) -> T {
        // SAFETY: the caller's promise.
        unsafe { *self.value.get() }
    }
}

/// The value, until this is dropped.
#[derive(Debug)]
pub struct Guard<'a, T>(&'a Lock<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the ticket of this guard is the one that is served.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the ticket of this guard is the one that is served, and it is borrowed mutably.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.0.serving.fetch_add(1, SeqCst);
    }
}
