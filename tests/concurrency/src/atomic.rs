//! Atomics that run in loom's scheduler.
//!
//! Loom treats `SeqCst` accesses as `AcqRel` and has total order for fences only, so these atomics add a fence to each `SeqCst` access: before
//! it or after it ([`Fences`]). Each way is stricter than the language at another place. A fence before the access orders an earlier relaxed
//! access, and a fence after it orders a later one; the language orders neither. So [`crate::check::check`] runs each model both ways, and
//! what fails in one of them is a fault of the program.

use std::cell::Cell;

pub use loom::sync::atomic::{Ordering, fence};

/// Where a `SeqCst` access has its fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fences {
    /// Before the access.
    Before,
    /// After it.
    After,
}

thread_local! {
    /// Loom runs all threads of a model in one thread of the host.
    static FENCES: Cell<Fences> = const { Cell::new(Fences::Before) };
}

/// Sets where the models of this thread have their fences.
pub fn set_fences(fences: Fences) {
    FENCES.set(fences);
}

fn access<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
    let fence_if = |fences| {
        if order == Ordering::SeqCst && FENCES.get() == fences {
            fence(Ordering::SeqCst);
        }
    };
    fence_if(Fences::Before);
    let result = access();
    fence_if(Fences::After);
    result
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        /// Loom's, with a fence for each `SeqCst` access.
        #[derive(Debug)]
        pub struct $name(loom::sync::atomic::$name);

        impl Default for $name {
            fn default() -> Self {
                Self::new(<$value>::default())
            }
        }

        impl $name {
            pub fn new(value: $value) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            #[track_caller]
            pub fn load(&self, order: Ordering) -> $value {
                access(order, || self.0.load(order))
            }

            #[track_caller]
            pub fn store(&self, value: $value, order: Ordering) {
                access(order, || self.0.store(value, order))
            }

            #[track_caller]
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                access(order, || self.0.swap(value, order))
            }

            #[track_caller]
            pub fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                access(success, || self.0.compare_exchange(old, new, success, failure))
            }

            /// Tries until no other thread has come between, as the standard library does.
            #[track_caller]
            pub fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                mut change: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut old = self.load(failure);
                while let Some(new) = change(old) {
                    match self.compare_exchange(old, new, success, failure) {
                        Ok(_) => return Ok(old),
                        Err(other) => old = other,
                    }
                }
                Err(old)
            }
        }
    };
}

macro_rules! arithmetic {
    ($name:ident, $value:ty) => {
        impl $name {
            #[track_caller]
            pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                access(order, || self.0.fetch_add(value, order))
            }

            #[track_caller]
            pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                access(order, || self.0.fetch_sub(value, order))
            }

            #[track_caller]
            pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                access(order, || self.0.fetch_or(value, order))
            }

            #[track_caller]
            pub fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                access(order, || self.0.fetch_and(value, order))
            }
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicU8, u8);
atomic!(AtomicU16, u16);
atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
arithmetic!(AtomicU16, u16);
arithmetic!(AtomicU32, u32);
arithmetic!(AtomicU64, u64);
