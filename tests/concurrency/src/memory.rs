//! The room `memory`, as far as descriptors need it: a table of quadwords.

use crate::{
    addr::Hpa,
    atomic::{AtomicU64, Ordering},
};

/// Frames come from nowhere.
pub trait FrameSource {}

/// A source of frames.
pub struct Frames;

impl FrameSource for Frames {}

/// The quadwords of a posted-interrupt descriptor that mean something.
const ENTRIES: usize = 5;

/// A table in memory that hardware may read and write.
pub struct Table([AtomicU64; ENTRIES]);

impl Table {
    pub fn new(_: &impl FrameSource) -> Option<Self> {
        Some(Self(std::array::from_fn(|_| AtomicU64::new(0))))
    }

    pub fn address(&self) -> Hpa {
        Hpa::new(0)
    }

    pub fn entry(&self, index: u64) -> &AtomicU64 {
        &self.0[index as usize]
    }

    #[track_caller]
    pub fn get(&self, index: u64) -> u64 {
        self.entry(index).load(Ordering::Relaxed)
    }

    #[track_caller]
    pub fn set(&self, index: u64, value: u64) {
        self.entry(index).store(value, Ordering::Release);
    }
}
