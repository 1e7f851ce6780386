//! Locks that hold values in models. `Mutex` is the hypervisor's own ticket lock with a value in one of loom's cells, which finds two owners
//! at a time. `RwLock` is a model of the crate `spin`'s.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use loom::cell::{ConstPtr, MutPtr, UnsafeCell};

use crate::{
    atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering},
    shared::Shared,
    tickets::Tickets,
};

/// A look later: another thread runs.
pub fn wait() {
    loom::thread::yield_now();
}

impl Tickets {
    /// A lock that serves `serving`, and has given the tickets before `next` to threads.
    pub fn with(next: u16, serving: u16) -> Self {
        Self { next: AtomicU16::new(next), serving: AtomicU16::new(serving) }
    }
}

impl<T> Shared<T> {
    /// As `Shared::new`, which is a constant function at home.
    pub fn of(value: T) -> Self {
        Self { value: RwLock::new(value), closing: AtomicBool::new(false), writer: Mutex::new(()) }
    }
}

/// The hypervisor's lock, around a value.
pub struct Mutex<T> {
    tickets: Tickets,
    value: UnsafeCell<T>,
}

// SAFETY: `Tickets` lets one thread at a time have the value, and loom's cell finds it if it does not.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self::with(Tickets::with(0, 0), value)
    }

    pub fn with(tickets: Tickets, value: T) -> Self {
        Self { tickets, value: UnsafeCell::new(value) }
    }

    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.tickets.take();
        self.taken()
    }

    #[track_caller]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.tickets.try_take().then(|| self.taken())
    }

    /// A try that saw `ticket` served some time ago.
    #[track_caller]
    pub fn try_with(&self, ticket: u16) -> Option<MutexGuard<'_, T>> {
        self.tickets.take_if_next(ticket).then(|| self.taken())
    }

    /// The value, for one whose ticket is served already.
    #[track_caller]
    pub fn taken(&self) -> MutexGuard<'_, T> {
        MutexGuard { tickets: &self.tickets, value: Some(self.value.get_mut()) }
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tickets.fmt(f)
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

pub struct MutexGuard<'a, T> {
    tickets: &'a Tickets,
    value: Option<MutPtr<T>>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard has the lock; loom's pointer watches that nobody else uses the value.
        unsafe { self.value.as_ref().expect("until it is dropped").deref() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { self.value.as_ref().expect("until it is dropped").deref() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        self.tickets.serve_next();
    }
}

const WRITER: u32 = 1;
const READER: u32 = 4;

/// The reader-writer lock of `spin`: readers count themselves in and out again if a writer has the value.
pub struct RwLock<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: `state` keeps writers from others, and loom's cell finds it if it does not.
unsafe impl<T: Send> Send for RwLock<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}

impl<T> RwLock<T> {
    pub fn new(value: T) -> Self {
        Self { state: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    #[track_caller]
    pub fn read(&self) -> ReadGuard<'_, T> {
        while self.state.fetch_add(READER, Ordering::Acquire) & WRITER != 0 {
            self.state.fetch_sub(READER, Ordering::Release);
            wait();
        }
        ReadGuard { lock: self, value: Some(self.value.get()) }
    }

    #[track_caller]
    pub fn write(&self) -> WriteGuard<'_, T> {
        while self.state.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_err() {
            wait();
        }
        WriteGuard { lock: self, value: Some(self.value.get_mut()) }
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}

impl<T: Default> Default for RwLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

pub struct ReadGuard<'a, T> {
    lock: &'a RwLock<T>,
    value: Option<ConstPtr<T>>,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard has the lock; loom's pointer watches that nobody writes.
        unsafe { self.value.as_ref().expect("until it is dropped").deref() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        self.lock.state.fetch_sub(READER, Ordering::Release);
    }
}

pub struct WriteGuard<'a, T> {
    lock: &'a RwLock<T>,
    value: Option<MutPtr<T>>,
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard has the lock; loom's pointer watches that nobody else uses the value.
        unsafe { self.value.as_ref().expect("until it is dropped").deref() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { self.value.as_ref().expect("until it is dropped").deref() }
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        self.lock.state.fetch_and(!WRITER, Ordering::Release);
    }
}
