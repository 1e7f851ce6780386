//! A lock for what many read and few write.

use core::sync::atomic::{AtomicBool, Ordering};

use spin::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

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
            core::hint::spin_loop();
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
