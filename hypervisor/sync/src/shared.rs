//! The reader-writer lock whose writers get in. `tests/concurrency` compiles this file with other atomics.

use crate::{
    Mutex, ReadGuard, RwLock, WriteGuard,
    atomic::{AtomicBool, Ordering},
    wait,
};

/// A value that many read at a time, or one writes.
///
/// A plain reader-writer lock of spinning readers can keep a writer out for good: each try of a reader counts for a moment, so that where
/// several try in step the count is never zero. Here readers wait without touching the count as soon as a writer wants in.
#[derive(Debug, Default)]
pub struct Shared<T> {
    pub(crate) value: RwLock<T>,
    /// A writer wants in.
    pub(crate) closing: AtomicBool,
    /// Which one.
    pub(crate) writer: Mutex<()>,
}

impl<T> Shared<T> {
    /// The value, to read. Whoever has it already must not ask again: a writer may have come in between.
    #[inline]
    pub fn read(&self) -> ReadGuard<'_, T> {
        while self.closing.load(Ordering::Acquire) {
            wait();
        }
        self.value.read()
    }

    /// The value, to write, when those who read it now have done.
    pub fn write(&self) -> WriteGuard<'_, T> {
        let _writer = self.writer.lock();
        self.closing.store(true, Ordering::Release);
        let value = self.value.write();
        self.closing.store(false, Ordering::Release);
        value
    }
}
