//! Statics that one owner takes.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// A value in a static that can be taken, once.
#[derive(Debug)]
pub struct TakeOnce<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: only the one who took the value reaches it.
unsafe impl<T: Send> Sync for TakeOnce<T> {}

impl<T> TakeOnce<T> {
    /// A value that nobody has taken.
    pub const fn new(value: T) -> Self {
        Self { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// The value.
    ///
    /// # Panics
    /// When it was taken before.
    #[expect(clippy::mut_from_ref, reason = "it is given out once")]
    pub fn take(&'static self) -> &'static mut T {
        assert!(!self.taken.swap(true, SeqCst), "taken twice");
        // SAFETY: nobody else was given it, nor will be.
        unsafe { &mut *self.value.get() }
    }
}
