//! The objects by which Bochs knows the DSAs.

use crate::layout::MOST_DSAS;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The object of each function, once it is made.
static OBJECTS: [AtomicPtr<c_void>; MOST_DSAS] = [const { AtomicPtr::new(ptr::null_mut()) }; MOST_DSAS];

/// Keeps the object of a function. There is one object for each.
pub(super) fn keep(number: usize, object: *mut c_void) {
    OBJECTS[number].store(object, Ordering::Relaxed);
}

/// Which function an object is; one more than there are for something else.
pub(super) fn number(object: *mut c_void) -> usize {
    OBJECTS.iter().position(|known| known.load(Ordering::Relaxed) == object).unwrap_or(OBJECTS.len())
}
