//! Frames for tests: the process's own memory, where a frame's physical address is its pointer's number.

use std::{
    alloc::{Layout, alloc, dealloc},
    collections::BTreeMap,
    ptr::NonNull,
    sync::Mutex,
};

use super::{FrameSource, PhysRange};
use crate::addr::{Hpa, PAGE_SIZE};

/// A memory map as text, a line for each range: `0x0-0x9bfff usable`. The usable ranges, and the others.
pub fn real_map(text: &str) -> (Vec<PhysRange>, Vec<PhysRange>) {
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap();
    let lines = text.lines().map(|line| {
        let (range, kind) = line.split_once(' ').unwrap();
        let (first, last) = range.split_once('-').unwrap();
        (PhysRange::new(Hpa::new(number(first)), number(last) + 1 - number(first)), kind)
    });
    let (usable, others): (Vec<_>, Vec<_>) = lines.partition(|(_, kind)| *kind == "usable");
    let ranges = |list: Vec<(PhysRange, _)>| list.into_iter().map(|(range, _)| range).collect();
    (ranges(usable), ranges(others))
}

/// Page frames in the process's memory, with an account of those in use. What is still in use at the end is freed.
#[derive(Default)]
pub struct TestFrames {
    used: Mutex<BTreeMap<u64, Layout>>,
    /// How many allocations succeed before one fails.
    until_failure: Mutex<Option<usize>>,
}

impl TestFrames {
    /// Has one allocation fail: the one after `count` more.
    pub fn fail_after(&self, count: usize) {
        *self.until_failure.lock().unwrap() = Some(count);
    }

    /// Whether the allocation that was to fail has failed. None is to fail any more.
    pub fn has_failed(&self) -> bool {
        self.until_failure.lock().unwrap().take().is_none()
    }

    /// How many allocations are in use.
    pub fn in_use(&self) -> usize {
        self.used.lock().unwrap().len()
    }

    /// Whether all of `len` bytes at `address` belong to one allocation in use.
    pub fn holds(&self, address: u64, len: usize) -> bool {
        let used = self.used.lock().unwrap();
        let below = used.range(..=address).next_back();
        below.is_some_and(|(base, layout)| address - base + len as u64 <= layout.size() as u64)
    }
}

// SAFETY: the process's allocator gives memory to one at a time, and addresses are pointers.
unsafe impl FrameSource for TestFrames {
    fn alloc(&self, count: u64, alignment: u64) -> Option<Hpa> {
        let mut until_failure = self.until_failure.lock().unwrap();
        *until_failure = match *until_failure {
            Some(0) => {
                *until_failure = None;
                return None;
            }
            count => count.map(|count| count - 1),
        };
        let layout = Layout::from_size_align((count * PAGE_SIZE) as usize, alignment.max(PAGE_SIZE) as usize).ok()?;
        // SAFETY: the layout is not empty: nobody asks for no frames.
        let base = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: just allocated. Garbage shows who relies on zeros.
        unsafe { base.as_ptr().write_bytes(0xa5, layout.size()) };
        self.used.lock().unwrap().insert(base.as_ptr() as u64, layout);
        Some(Hpa::new(base.as_ptr() as u64))
    }

    unsafe fn free(&self, base: Hpa, count: u64) {
        let layout = self.used.lock().unwrap().remove(&base.as_u64()).expect("freed what was not allocated");
        assert_eq!(layout.size() as u64, count * PAGE_SIZE, "freed another size than was allocated");
        // SAFETY: allocated with this layout; the caller does not use it any more.
        unsafe { dealloc(base.as_u64() as *mut u8, layout) };
    }

    fn pointer(&self, address: Hpa) -> NonNull<u8> {
        NonNull::new(address.as_u64() as *mut u8).expect("a frame at 0")
    }
}

impl Drop for TestFrames {
    fn drop(&mut self) {
        for (&base, &layout) in self.used.lock().unwrap().iter() {
            // SAFETY: allocated with this layout; a test ends with its frames.
            unsafe { dealloc(base as *mut u8, layout) };
        }
    }
}
